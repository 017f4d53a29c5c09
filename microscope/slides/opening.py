"""A path to an open slide: which reader a file is for is decided by its content."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...data.scale import scale_of
from ...errors import BackendError, ImageError, InputError, reason_of
from ...files import alike, as_path, check_is_file
from ...images import FULL_WHITE, check_white_level
from .czi_reader import CziReader, is_czi
from .field import Field
from .large_field import LargeField, header_of
from .openslide_reader import OpenSlideReader, format_of
from .slide import Slide
from .tiff_reader import TiffReader, stored

SUFFIXES = frozenset(
    {
        *(".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".vms", ".vmu", ".svslide"),
        *(".czi", ".tif", ".tiff", ".btf", ".png", ".jpg", ".jpeg", ".bmp"),
    }
)
"""Suffixes, in lower case, by which slides and fields are found in folders (they are opened by content)."""

_GENERIC = "generic-tiff"


def open_slide(
    path: str | os.PathLike[str], *, white_level: int = FULL_WHITE, scratch: Path | None = None
) -> Slide:
    """Opens a slide or a field.

    CZI goes to libCZI; a scanner's file to OpenSlide, and so does a plain tiled TIFF of 8 bits; OME-TIFF,
    levels in SubIFDs, 16 bits, a slide behind a preview and other TIFF that is too large to be decoded at
    once to tifffile; such PNG and JPEG to libvips, which decodes them into a file; everything else is a field
    in memory, read by the rules of `msmamba.images`.

    Args:
        path: the file; of a slide in several files the one that OpenSlide expects.
        white_level: the value of white in 16-bit pictures, as the model's manifest says it.
        scratch: the folder for the pixels of PNG and JPEG of more than `msmamba.images.MAX_PIXELS`; the
            system's own where None.

    Raises:
        ImageError: it does not exist, is damaged, or is of a kind that is not read.
        InputError: it is no path, or the white level is none.
        BackendError: the extra ``slides`` is not installed.
    """
    require_libraries()
    path = as_path(path)
    check_white_level(white_level)
    try:
        check_is_file(path)
        if is_czi(path):
            return CziReader(path, white_level)
        tiff, vendor, header = stored(path), format_of(path), header_of(path)
    except OSError as error:
        raise ImageError(f"'{path}' cannot be read: {reason_of(error)}") from error
    if vendor is not None and (vendor != _GENERIC or tiff is None):
        return OpenSlideReader(path)
    if vendor is not None and tiff is not None and tiff.is_plain:
        return OpenSlideReader(path, tiff.notes, scale_of(path))  # ImageJ's unit, too
    if tiff is not None and (tiff.in_levels or tiff.in_parts):
        return TiffReader(path, white_level, tiff.page, tiff.notes)
    if header is not None and header.is_large:
        return LargeField(path, header, white_level, scratch)
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
        import shapely  # noqa: F401
        import tifffile  # noqa: F401
    except (ImportError, OSError) as error:
        raise BackendError(
            f"slides need OpenSlide, tifffile, SciPy, shapely and Jinja, which are not all here ({error}): "
            "pip install 'msmamba[slides]'"
        ) from error


def by_name(slides: Sequence[Path]) -> dict[str, Path]:
    """Slides by the name that their results get.

    Raises:
        InputError: two have the same, or such as some file systems take for one.
    """
    taken: dict[str, Path] = {}
    for path in slides:
        if (other := taken.setdefault(alike(path.stem), path)) != path:
            raise InputError(
                f"'{other}' and '{path}' have the same name, and so would their results: rename one, or "
                "classify them into two folders"
            )
    return {path.stem: path for path in slides}
