"""Beside the microscope: frames, slides and fields through a session of the runtime, without PyTorch."""

from __future__ import annotations

from .live import Grid, Result, TileMap, stream

__all__ = ["Grid", "Result", "TileMap", "stream"]
