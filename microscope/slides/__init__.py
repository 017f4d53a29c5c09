"""Slides and fields: opened by one protocol, cut into tiles at the model's scale."""

from .engine import TileResult, classify_slide
from .opening import open_slide
from .regions import Region, Regions, Within, read_regions
from .slide import Bounds, Level, Slide
from .tiling import Tile, tiles
from .tissue import Mask, TissueOptions, tissue_mask

__all__ = [
    "Bounds",
    "Level",
    "Mask",
    "Region",
    "Regions",
    "Slide",
    "Tile",
    "TileResult",
    "TissueOptions",
    "Within",
    "classify_slide",
    "open_slide",
    "read_regions",
    "tiles",
    "tissue_mask",
]
