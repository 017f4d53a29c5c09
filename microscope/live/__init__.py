"""A source's frames through a session, as they come: the newest frame wins."""

from __future__ import annotations

from .loop import Result, stream

__all__ = ["Result", "stream"]
