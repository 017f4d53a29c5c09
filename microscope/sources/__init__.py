"""Where frames come from: image files, a folder that fills, a stage that wanders over an image.

Dims: ``H`` and ``W`` pixels of a frame. A new kind is a new module with a `Source`, and one line in
`opening`.
"""

from __future__ import annotations

from .frame import Frame, Source
from .opening import open_source

__all__ = ["Frame", "Source", "open_source"]
