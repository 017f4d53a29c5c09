"""A path to an open slide: which reader a file is for is decided by its content."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import BackendError, ImageError
from ...files import check_is_file
from ...images import FULL_WHITE
from .field import Field
from .openslide_reader import OpenSlideReader, format_of
from .slide import Slide
from .tiff_reader import TiffReader, stored

SUFFIXES = frozenset(
    {
        *(".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".vms", ".vmu", ".svslide"),
        *(".tif", ".tiff", ".btf", ".png", ".jpg", ".jpeg", ".bmp"),
    }
)
"""Suffixes, in lower case, by which slides and fields are found in folders (they are opened by content)."""

_GENERIC = "generic-tiff"


def open_slide(path: str | os.PathLike[str], *, white_level: int = FULL_WHITE) -> Slide:
    """Opens a slide or a field.

    A scanner's file goes to OpenSlide, and so does a plain tiled TIFF; OME-TIFF, levels in SubIFDs and what
    else is too large to be decoded at once goes to tifffile; everything else is a field, read by the rules
    of `msmamba.images`.

    Args:
        path: the file; of a slide in several files the one that OpenSlide expects.
        white_level: the value of white in 16-bit pictures, as the model's manifest says it.

    Raises:
        ImageError: it does not exist, is damaged, or is of a kind that is not read.
        BackendError: the extra ``slides`` is not installed.
    """
    require_libraries()
    path = Path(path)
    try:
        check_is_file(path)
        vendor, tiff = format_of(path), stored(path)
    except OSError as error:
        raise ImageError(f"'{path}' cannot be read: {(error.strerror or str(error)).lower()}") from error
    if vendor is not None and (vendor != _GENERIC or tiff is None or not tiff.in_levels):
        return OpenSlideReader(path)
    if tiff is not None and (tiff.in_levels or tiff.in_parts):
        return TiffReader(path, white_level)
    return Field.of_file(path, white_level)


def require_libraries() -> None:
    """Checks that the extra ``slides`` is there.

    Raises:
        BackendError: it is not installed.
    """
    try:
        import jinja2  # noqa: F401  # whether it is there; so are the others
        import openslide  # noqa: F401
        import scipy  # type: ignore[import-untyped]  # noqa: F401  # ships no types
        import tifffile  # noqa: F401
    except (ImportError, OSError) as error:
        raise BackendError(
            f"slides need OpenSlide, tifffile, SciPy and Jinja, which are not all here ({error}): "
            "pip install 'msmamba[slides]'"
        ) from error
