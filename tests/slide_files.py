"""Slides of seeded noise for tissue on glass, as scanners write them, and what QuPath expects of results."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from msmamba.errors import InputError
from msmamba.microscope.slides import Slide

HALF_A_MICRON = {"resolution": (20_000.0, 20_000.0), "resolutionunit": "CENTIMETER", "metadata": None}
"""Options of `write_tiff` for 0.5 µm a pixel, as plain TIFF says it."""


def tissue(height: int = 300, width: int = 420) -> np.ndarray:
    """(height, width, 3) uint8: white glass with pink tissue in the middle of the left half."""
    generator = np.random.default_rng(5)
    pixels = np.full((height, width, 3), 243, np.uint8)
    spot = pixels[height // 5 : height * 4 // 5, width // 8 : width // 2]
    spot[:] = np.clip(generator.normal((205, 110, 175), 18, spot.shape), 0, 255)
    return pixels


def with_tag(path: Path, tag: int, value: object) -> Path:
    """A TIFF whose first picture says something else by one of its tags."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        page: Any = file.pages[0]
        page.tags[tag].overwrite(value, dtype="i" if isinstance(value, int) and value < 0 else None)
    return path


def write_tiff(path: Path, pixels: np.ndarray, *, levels: int = 1, sub: bool = False, **options: Any) -> Path:
    """A TIFF of tiles of 64 (or as the options say), each level half as large, in pages or in SubIFDs."""
    settings = {"tile": (64, 64), "compression": "deflate", "photometric": "rgb", **options}
    kind = {name: settings.pop(name, False) for name in ("ome", "bigtiff")}
    below = {name: value for name, value in settings.items() if name not in ("metadata", "resolution")}
    with tifffile.TiffWriter(path, **kind) as writer:
        writer.write(pixels, subifds=levels - 1 if sub else None, **settings)
        for level in range(1, levels):
            writer.write(pixels[:: 2**level, :: 2**level], subfiletype=1, metadata=None, **below)
    return path


_SCN = """<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection sizeX="{w}" sizeY="{h}">
{images}</collection></scn>"""
_SCN_IMAGE = """<image><creationDate>2026-11-28T00:00:00Z</creationDate><device model="Leica SCN400"/>
<pixels sizeX="{x}" sizeY="{y}"><dimension sizeX="{x}" sizeY="{y}" r="0" ifd="{ifd}"/></pixels>
<view sizeX="{w}" sizeY="{h}" offsetX="{left}" offsetY="{top}"/>
<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>
<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"""


def write_scn(path: Path, pixels: np.ndarray, left: int, top: int, width: int, height: int) -> Path:
    """A slide of Leica's of half a micron a pixel, of which the scanner took a part and left out the rest."""
    sides = {"w": width * 500, "h": height * 500}  # nanometres
    macro = _SCN_IMAGE.format(x=64, y=64, ifd=0, left=0, top=0, **sides)
    down, across, _ = pixels.shape
    part = {"w": across * 500, "h": down * 500, "left": left * 500, "top": top * 500}
    images = macro + _SCN_IMAGE.format(x=across, y=down, ifd=1, **part)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        settings: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", **HALF_A_MICRON}
        overview = np.full((64, 64, 3), 200, np.uint8)
        writer.write(overview, description=_SCN.format(images=images, **sides), **settings)
        writer.write(pixels, **settings)
    return path


def box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    """A closed ring of corners, pixels of level 0."""
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def feature(label: str | None, *rings: list[list[int]], **properties: Any) -> dict[str, Any]:
    """A polygon as QuPath exports an annotation: an outline, then holes."""
    classes = {} if label is None else {"classification": {"name": label, "color": [200, 0, 0]}}
    return {
        "type": "Feature",
        "id": "f5b3f0d6-6e3a-4a8c-9d7b-3f3a4d1c2b10",
        "geometry": {"type": "Polygon", "coordinates": list(rings)},
        "properties": {"objectType": "annotation", **classes, **properties},
    }


def write_geojson_of(path: Path, *features: dict[str, Any]) -> Path:
    """Features as QuPath exports them."""
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def check_geojson(text: str, width: int, height: int) -> list[dict[str, Any]]:
    """Checks what QuPath expects of objects that it imports; gives the features.

    By its reader (`GsonTools`, `QuPathTypeAdapters`): a UUID each, a closed ring in pixels of the slide, one
    of its types of objects, a class's name without line breaks and its colour, measurements that are numbers.
    """
    collection = json.loads(text)
    assert set(collection) == {"type", "features"}
    assert collection["type"] == "FeatureCollection"
    for feature in collection["features"]:
        assert feature["type"] == "Feature"
        assert uuid.UUID(feature["id"]).version == 5
        assert feature["geometry"]["type"] == "Polygon"
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert len({tuple(corner) for corner in ring}) == 4
        assert all(0 <= x <= width and 0 <= y <= height for x, y in ring)
        properties = feature["properties"]
        assert properties["objectType"] == "tile"
        assert set(properties) == {"objectType", "isLocked", "classification", "measurements"}
        assert "\n" not in properties["classification"]["name"]
        assert properties["isLocked"] is False
        assert all(type(each) is int and 0 <= each <= 255 for each in properties["classification"]["color"])
        assert len(properties["classification"]["color"]) == 3
        assert all(type(value) is float for value in properties["measurements"].values())
    assert len({feature["id"] for feature in collection["features"]}) == len(collection["features"])
    return list(collection["features"])


def check_that_regions_outside_are_refused(slide: Slide) -> None:
    """Of a slide of 420 x 300 pixels: what does not lie in a level is an error, not other pixels."""
    levels = len(slide.levels)
    outside = [(0, -1, 0, 5, 5), (0, 0, -1, 5, 5), (0, 416, 0, 5, 5), (0, 0, 296, 5, 5), (0, 0, 0, 0, 5)]
    for region in [*outside, (0, 0, 0, 5, 0), (levels, 0, 0, 5, 5), (-1, 0, 0, 5, 5)]:
        with pytest.raises(InputError, match=r"do not lie in level 0, which has 420 x 300|has no level"):
            slide.read(*region)
