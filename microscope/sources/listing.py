"""Which sources are there now, and what is missing for the others."""

from __future__ import annotations

from ...errors import MsmambaError
from .micro_manager import require_pymmcore
from .screen import screens_there
from .video import cameras


def sources_there() -> list[str]:
    """A line for each camera and screen, beginning with what to type, and for each kind what is missing."""
    lines = []
    try:
        found = cameras()
        lines += [f"{text}  {name}" for text, name in found] or ["no camera is there"]
        lines.append("rtsp://…, http://…, VIDEO  streams and videos can be read")
    except MsmambaError as error:
        lines.append(str(error))
    try:
        lines += screens_there()
    except MsmambaError as error:
        lines.append(str(error))
    try:
        require_pymmcore()
        lines.append("mm:CONFIG.cfg  Micro-Manager's configurations can be loaded")
    except MsmambaError as error:
        lines.append(str(error))
    return [*lines, "demo, demo:IMAGE, watch:FOLDER, IMAGE, FOLDER  are there always"]
