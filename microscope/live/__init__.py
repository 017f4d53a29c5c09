"""A source's frames through a session, as they come: the newest frame wins."""

from __future__ import annotations

from .grid import Grid, TileMap
from .loop import Result, stream

__all__ = ["Grid", "Result", "TileMap", "stream"]
