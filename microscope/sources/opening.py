"""A source from what a user types: one string for every kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...data.finding import Passed, images_below
from ...errors import DataError, InputError, SourceError, reason_of
from ...images import FULL_WHITE, check_white_level
from ...text import as_word
from .demo import Demo, drawn_smear, stage_over
from .frame import Source
from .micro_manager import MicroManager
from .screen import Screen
from .stills import Stills, Watched
from .video import PROTOCOLS, SUFFIXES, Video, address, camera

FORMS = (
    "a camera's number or device, rtsp://… or http://…, screen, screen:x,y,w,h, mm:CONFIG.cfg, watch:FOLDER, "
    "demo, demo:IMAGE, a video, an image or a folder of them"
)
"""What a user may type."""

_OF_A_SOURCE = ("name", "endless", "keeps", "stalls_after", "frames")


@dataclass(frozen=True)
class _Asked:
    """What was typed, and how it is to be read.

    Attributes:
        text: all of it.
        rest: what stands behind the kind's colon.
        white_level: the value of white in 16-bit pictures.
        keep_all: whether every frame is asked for.
        mosaic: the image of ``demo``.
    """

    text: str
    rest: str
    white_level: int
    keep_all: bool
    mosaic: Path | None


def open_source(
    what: Source | str | os.PathLike[str],
    white_level: int = FULL_WHITE,
    *,
    keep_all: bool = False,
    mosaic: Path | None = None,
) -> Source:
    """The source that a string names; nothing of it is opened before its frames are asked for.

    Args:
        what: a camera (``0``, ``/dev/video0``, ``camera:NAME``), a stream (``rtsp://…``, ``http://…``),
            ``screen``, ``screen:N``, ``screen:x,y,w,h``, ``mm:CONFIG.cfg``, ``watch:FOLDER``, ``demo``,
            ``demo:IMAGE``, or the path of a video, an image or a folder of them; or a `Source`, which is
            given back.
        white_level: the value of white in 16-bit pictures.
        keep_all: whether every frame is asked for: a video then waits, in place of keeping its pace.
        mosaic: what ``demo`` wanders over where that file is there; else over a drawn smear.

    Raises:
        InputError: it is none of these, or the white level is none.
        SourceError: it names nothing that is there.
        ImageError: the image of a demo cannot be used.
        BackendError: the extra that this kind of source needs is not installed.
    """
    check_white_level(white_level)
    if not isinstance(what, str | os.PathLike):
        if missing := [each for each in _OF_A_SOURCE if not hasattr(what, each)]:
            raise InputError(
                f"expected a source or its name, found {type(what).__name__}: it has no {', '.join(missing)}"
            )
        return what
    text = os.fsdecode(what)
    if not text:
        raise SourceError(f"no source is named: expected {FORMS}")
    kind, _, rest = text.partition(":")
    asked = _Asked(text, rest, white_level, keep_all, mosaic)
    if text in _WORDS:
        return _WORDS[text](asked)
    if kind in _KINDS and text != kind:
        if not rest:
            raise SourceError(f"'{text}' names nothing: expected {kind}:{_KINDS[kind][0]}")
        return _KINDS[kind][1](asked)
    try:
        is_device = text.isdecimal() or text.startswith("/dev/") or Path(text).is_char_device()
        return camera(text, white_level) if is_device else _files(asked)
    except OSError as error:  # a name that no file can have
        raise SourceError(f"'{text}' is no source: {reason_of(error)}: expected {FORMS}") from error


def _files(asked: _Asked) -> Source:
    path = Path(asked.text)
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return Video(path, asked.white_level, paced=not asked.keep_all)
    try:
        paths = sorted(images_below(path, Passed())) if path.is_dir() else [path]
    except DataError as error:
        raise SourceError(str(error)) from error
    if not paths:
        watched = as_word(f"watch:{asked.text}")
        raise SourceError(f"the folder '{asked.text}' holds no image; to wait for some, say {watched}")
    if not os.path.lexists(path):
        raise SourceError(f"'{asked.text}' is no source: expected {FORMS}")
    return Stills(asked.text, paths, asked.white_level)


def _demo(asked: _Asked) -> Source:
    if asked.mosaic is not None and asked.mosaic.is_file():
        return Demo(asked.text, *stage_over(asked.mosaic, asked.white_level))
    return Demo(asked.text, drawn_smear())


_Open = Callable[[_Asked], Source]

_WORDS: dict[str, _Open] = {"demo": _demo, "screen": lambda asked: Screen(asked.text)}

_KINDS: dict[str, tuple[str, _Open]] = {
    "demo": ("IMAGE", lambda asked: Demo(asked.text, *stage_over(Path(asked.rest), asked.white_level))),
    "watch": ("FOLDER", lambda asked: Watched(Path(asked.rest), asked.white_level)),
    "screen": ("x,y,w,h", lambda asked: Screen(asked.text)),
    "camera": ("NAME", lambda asked: camera(asked.rest, asked.white_level)),
    "mm": ("CONFIG.cfg", lambda asked: MicroManager(Path(asked.rest), asked.white_level)),
    **{
        protocol: ("//ADDRESS", lambda asked: address(asked.text, asked.white_level))
        for protocol in PROTOCOLS
    },
}
