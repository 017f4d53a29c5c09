"""A source from what a user types: one string for every kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ...data.finding import Passed, images_below
from ...errors import DataError, SourceError
from ...images import FULL_WHITE, read_image
from .demo import Demo, drawn_smear
from .frame import Source
from .stills import Stills, Watched


def open_source(text: str | os.PathLike[str], white_level: int = FULL_WHITE) -> Source:
    """The source that a string names.

    Args:
        text: ``demo``, ``demo:IMAGE``, ``watch:FOLDER``, or the path of an image file or of a folder of them.
        white_level: the value of white in 16-bit images.

    Raises:
        SourceError: it names nothing that is there.
        ImageError: the image of ``demo:IMAGE`` cannot be used.
    """
    text = os.fsdecode(text)
    kind, colon, rest = text.partition(":")
    if text == "demo":
        return Demo(text, drawn_smear())
    if colon and kind in _KINDS:
        if not rest:
            raise SourceError(f"'{text}' names nothing: expected {kind}:PATH")
        return _KINDS[kind](text, Path(rest), white_level)
    path = Path(text)
    try:
        paths = sorted(images_below(path, Passed())) if path.is_dir() else [path]
    except DataError as error:
        raise SourceError(str(error)) from error
    if not paths:
        raise SourceError(f"the folder '{text}' holds no image; to wait for some, say watch:{text}")
    if not os.path.lexists(path):
        raise SourceError(
            f"'{text}' is no source: expected demo, demo:IMAGE, watch:FOLDER, an image file or a folder of "
            "them"
        )
    return Stills(text, paths, white_level)


def _demo(text: str, path: Path, white_level: int) -> Source:
    return Demo(text, read_image(path, white_level=white_level))


def _watched(text: str, path: Path, white_level: int) -> Source:
    return Watched(path, white_level)


_KINDS: dict[str, Callable[[str, Path, int], Source]] = {"demo": _demo, "watch": _watched}
