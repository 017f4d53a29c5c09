"""Where frames come from: cameras, streams, videos, the screen, Micro-Manager, folders, a wandering stage.

Dims: ``H`` and ``W`` pixels of a frame. A new kind is a new module with a `Source`, and one line in
`opening`.
"""

from __future__ import annotations

from .frame import Frame, Source
from .opening import open_source

__all__ = ["Frame", "Source", "open_source"]
