"""Microns a pixel, as files say them: which figures are believed, and where each format keeps them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

from PIL import Image

from ..decoding.directory import directories
from ..decoding.tiff import largest_picture
from ..errors import ImageError, InputError, reason_of
from ..files import open_file

_LEAST, _MOST = 0.01, 20.0  # µm a pixel; 300 dots an inch, which programs write unasked, are 85
_ANISOTROPY = 0.01
_MICRONS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_IMAGEJ_MICRONS = frozenset({"micron", "microns", "µm", "μm", "um", "\\u00b5m"})
_MICRONS_OF_UNIT = {2: 25_400.0, 3: 10_000.0}  # an inch, a centimetre
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WIDTH, _HEIGHT, _IMAGE_DESCRIPTION = 256, 257, 270
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296


@dataclass(frozen=True)
class Scale:
    """Microns a pixel of an image, or of a slide's level 0.

    Attributes:
        microns: None where the file does not say, or says what cannot be.
        why: the reason for None.
    """

    microns: float | None
    why: str = ""

    @classmethod
    def of(cls, across: float | None, down: float | None) -> Scale:
        """What a file's two figures, in microns a pixel, are worth."""
        if across is None or down is None:
            return cls(None, "the file does not say its microns a pixel")
        said = f"the file says {across:g} x {down:g} microns a pixel"
        if not (_LEAST <= across <= _MOST and _LEAST <= down <= _MOST):
            return cls(None, f"{said}, which no microscope gives ({_LEAST:g} to {_MOST:g} expected)")
        if abs(across - down) > _ANISOTROPY * down:
            return cls(None, f"{said}, and square pixels are expected")
        return cls((across + down) / 2)

    @classmethod
    def of_ome(cls, xml: str, page: int, width: int, height: int) -> Scale:
        """What OME-XML says of the picture on a page; see `ome_pixels`."""
        found = {cls._of_pixels(pixels) for pixels in ome_pixels(xml, page, width, height)}
        return found.pop() if len(found) == 1 else cls.of(None, None)

    @classmethod
    def _of_pixels(cls, pixels: ElementTree.Element) -> Scale:
        try:
            across, down = (
                float(pixels.get(f"PhysicalSize{axis}", "nan"))
                * _MICRONS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"), math.nan)
                for axis in "XY"
            )
        except ValueError:
            return cls.of(None, None)
        return cls.of(across, down) if math.isfinite(across) and math.isfinite(down) else cls.of(None, None)

    @classmethod
    def of_resolution(cls, across: float, down: float, unit: int, description: str = "") -> Scale:
        """What the resolution tags of a TIFF say.

        Args:
            across: XResolution, pixels a unit; 0 where it is not said.
            down: YResolution.
            unit: ResolutionUnit: 2 an inch, 3 a centimetre. ImageJ says 1, and the unit in words.
            description: ImageDescription, which ImageJ writes its unit into.
        """
        microns = _MICRONS_OF_UNIT.get(unit)
        if description.startswith("ImageJ="):
            found = re.search(r"^unit=(\S+)", description, re.MULTILINE)
            microns = 1.0 if found and found[1].lower() in _IMAGEJ_MICRONS else None
        if microns is None or not across or not down:
            return cls.of(None, None)
        return cls.of(microns / across, microns / down)

    @classmethod
    def of_dots(cls, dots: object) -> Scale:
        """What Pillow's ``info["dpi"]`` says: two numbers or rationals of EXIF, or nothing."""
        across, down = map(_number, dots if isinstance(dots, tuple) and len(dots) == 2 else (0, 0))
        return cls.of(25_400 / across, 25_400 / down) if across and down else cls.of(None, None)


def ome_pixels(xml: str, page: int, width: int, height: int) -> list[ElementTree.Element]:
    """What OME-XML says of the picture on a page: of several of its size that whose planes are there.

    Args:
        xml: the description of the file's first page.
        page: the page's place in the file, from 0.
        width: the picture's width, pixels as stored.
        height: its height.

    Returns:
        One ``Pixels``; several where the XML does not say which of them lies there; none where none can.
    """
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return []
    sides = str(width), str(height)
    alike = [
        pixels
        for pixels in root.iter()
        if pixels.tag.endswith("}Pixels") and (pixels.get("SizeX"), pixels.get("SizeY")) == sides
    ]
    begins = {place: _first_page(pixels, page, root.get("UUID")) for place, pixels in enumerate(alike)}
    there = {place: first for place, first in begins.items() if first is not None}
    # An extent that runs on beyond its picture ends where the next one begins.
    return [alike[max(there, key=lambda place: there[place])]] if there else alike


def _first_page(pixels: ElementTree.Element, page: int, file: str | None) -> int | None:
    """Where a run of a picture's planes begins in which a page of this file lies; None: in none."""
    for planes in pixels:
        named = [each.text for each in planes if each.tag.endswith("}UUID")]
        if not planes.tag.endswith("}TiffData") or (named and file and named[0] != file):
            continue
        try:
            first = int(planes.get("IFD", "0"))
            count = int(planes.get("PlaneCount", 1 if "IFD" in planes.attrib else planes_of(pixels)))
        except ValueError:
            continue
        if first <= page < first + count:
            return first
    return None


def planes_of(pixels: ElementTree.Element, samples: int = 1) -> int:
    """How many planes OME-XML gives a picture, of so many samples a pixel at least.

    Raises:
        ValueError: it does not say that in numbers.
    """
    channels = [each for each in pixels if each.tag.endswith("}Channel")]
    together = max([samples, *(int(each.get("SamplesPerPixel", "1")) for each in channels)])
    counts = (int(pixels.get(f"Size{axis}", "1")) for axis in "CZT")
    return -(-math.prod(counts) // together)


def scale_of(path: Path) -> Scale:
    """The scale that an image file says: OME's physical size, TIFF's resolution, or dots an inch.

    Of several pictures in a TIFF the one that is read is asked, the largest.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        with open_file(path) as file:
            start = file.read(4)
            file.seek(0)
            if start in _TIFF:
                return _scale_of_tiff(file, path)
            with Image.open(file) as image:
                return Scale.of_dots(image.info.get("dpi"))
    except (OSError, ValueError, SyntaxError, TypeError) as error:
        raise ImageError(f"'{path}' cannot be read: {reason_of(error)}") from error


def _scale_of_tiff(file: BinaryIO, path: Path) -> Scale:
    tags, _ = largest_picture(file, f"'{path}'")
    said = (each.content(_IMAGE_DESCRIPTION) for each in (tags, next(directories(file))))
    description, first = (text.rstrip(b"\0").decode("utf-8", "replace") for text in said)
    if "<OME" in first:  # which tells of the pictures on later pages, too
        sides = tags.integer(_WIDTH), tags.integer(_HEIGHT)  # as stored: not turned by its orientation
        return Scale.of_ome(first, tags.page, *sides)
    across, down = tags.number(_X_RESOLUTION), tags.number(_Y_RESOLUTION)
    return Scale.of_resolution(across, down, tags.integer(_RESOLUTION_UNIT, 2), description)


def _number(value: object) -> float:
    """A rational as a number, 0 where there is none."""
    try:
        number = float(value)  # type: ignore[arg-type]  # what is no number raises
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def check_microns(*microns: float | None) -> None:
    """Refuses what cannot be microns a pixel; None is passed over.

    Raises:
        InputError: a value is not 0.001 to 1000.
    """
    for value in microns:
        if value is not None and not 0.001 <= value <= 1000:
            raise InputError(f"{value!r} microns a pixel cannot be: expected 0.001 to 1000")
