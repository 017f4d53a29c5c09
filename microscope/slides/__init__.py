"""Slides and fields: opened by one protocol, cut into tiles at the model's scale."""

from .engine import TileResult, classify_slide
from .opening import open_slide
from .slide import Level, Slide
from .tiles import Tile, tiles
from .tissue import Mask, TissueOptions, tissue_mask

__all__ = [
    "Level",
    "Mask",
    "Slide",
    "Tile",
    "TileResult",
    "TissueOptions",
    "classify_slide",
    "open_slide",
    "tiles",
    "tissue_mask",
]
