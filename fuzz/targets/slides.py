"""Slides, and the folder of their results."""

from __future__ import annotations

import io
import logging
import random
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from mutation import TELLING, mutated, mutated_json, mutated_table
from seeds import Seeds, json_of

from .target import written

_TAGS = (254, 256, 257, 258, 259, 262, 266, 270, 273, 274, 277, 278, 279, 282, 284, 296)
_TAGS_OF_TILES = (317, 320, 322, 323, 324, 325, 330, 338, 339, 347, 530, 65420)
_VALUES = (0, 1, 2, 3, 7, 16, 64, 255, 4096, 65_535, 2**31 - 16, 2**32 - 1)


class Slides:
    """Pyramids in pages and SubIFDs, OME-TIFF, strips, with tags exchanged or damage anywhere."""

    inputs = 2000

    def __init__(self, seeds: Seeds) -> None:
        self._good = list(_pyramids().items())
        # What tifffile logs of a damaged file is raised, too, and the command leaves it out.
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)

    def make(self, generator: random.Random, folder: Path) -> Path:
        name, content = generator.choice(self._good)
        if generator.random() < 0.5:
            return written(folder / name, mutated(content, generator))
        changed = bytearray(content)
        for _ in range(generator.choice((1, 1, 2, 3))):
            _exchange_a_tag(changed, generator)
        return written(folder / name, bytes(changed))

    def open(self, path: Path) -> object:
        from msmamba.microscope.slides import open_slide
        from msmamba.microscope.slides.tissue import thumbnail

        with closing(open_slide(path)) as slide:
            for place, level in enumerate(slide.levels[:4]):
                slide.read(place, level.width // 2, level.height // 2, 1, 1)
                slide.read(place, 0, 0, min(level.width, 100), min(level.height, 100))
            return thumbnail(slide, 64), slide.scale


class SlideResults:
    """A folder of results whose record, rows or pictures are something else; slide goes on in it."""

    inputs = 400

    def __init__(self, seeds: Seeds) -> None:
        from msmamba.runtime import open_session

        self._session = open_session(seeds.bundle, threads=1)
        self._bundle = seeds.bundle
        self._slide = min(seeds.cells.rglob("*.png"))
        self._good = seeds.folder / "results"
        if not (self._good / "report.html").exists():
            shutil.rmtree(self._good, ignore_errors=True)
            self._classify(self._good)

    def make(self, generator: random.Random, folder: Path) -> Path:
        results = Path(shutil.copytree(self._good, folder / "results"))
        rows = f"{self._slide.stem}.csv"
        done, partial = results / "model-outputs-csv" / rows, results / "partial" / rows
        if generator.random() < 0.5:
            done.rename(partial)
        there = partial if partial.exists() else done
        match generator.randrange(4):
            case 0 | 1:
                written(results / "run.json", mutated_json(json_of(results / "run.json"), generator))
            case 2:
                written(there, mutated_table(there.read_text(), generator))
            case 3:
                picture = results / "thumbnails" / f"{self._slide.stem}.png"
                written(picture, mutated(picture.read_bytes(), generator))
        return results

    def open(self, path: Path) -> object:
        again = Path(shutil.copytree(path, path.with_name("again")))  # the input stays as it was made
        self._classify(again)
        return sorted(again.rglob("*"))

    def _classify(self, folder: Path) -> None:
        from msmamba.microscope.slides.run import SlideOptions, classify_slides

        classify_slides(
            self._session,
            self._bundle,
            [self._slide],
            folder,
            SlideOptions(pixel_for_pixel=True, overlap=0.5, tissue=None),
        )


def _pyramids() -> dict[str, bytes]:
    """Slides of 200 x 150 pixels by file name."""
    from tifffile import TiffWriter

    pixels = np.random.default_rng(2).integers(0, 256, (150, 200, 3), np.uint8)
    tiled = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    ome = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    aperio = {"description": "Aperio Image Library v11\n200x150 |AppMag = 20|MPP = 0.5"}
    kinds: dict[str, tuple[dict[str, Any], int, bool, dict[str, Any]]] = {
        "pages.tif": ({}, 2, False, tiled),
        "deflate.tif": ({}, 1, False, {**tiled, "compression": "deflate"}),
        "below.tif": ({}, 2, True, tiled),
        "big.ome.tif": ({"ome": True, "bigtiff": True}, 2, True, {**tiled, "metadata": ome}),
        "strips.ome.tif": (
            {"ome": True},
            1,
            False,
            {"photometric": "rgb", "rowsperstrip": 16, "metadata": ome},
        ),
        "aperio.svs": ({}, 2, False, {**tiled, **aperio}),
    }
    contents = {}
    for name, (kind, levels, sub, options) in kinds.items():
        file = io.BytesIO()
        with TiffWriter(file, **kind) as writer:
            writer.write(pixels, subifds=levels - 1 if sub else None, **options)
            for level in range(1, levels):
                below = {**options, "metadata": None}
                writer.write(pixels[:: 2**level, :: 2**level], subfiletype=1, **below)
        contents[name] = file.getvalue()
    return contents


def _exchange_a_tag(content: bytearray, generator: random.Random) -> None:
    """Another value, type, count or number for an entry of the directories, wherever one stands."""
    places = [
        place
        for tag in (*_TAGS, *_TAGS_OF_TILES)
        for place in _found(content, tag.to_bytes(2, "little"))
        if int.from_bytes(content[place + 2 : place + 4], "little") in range(1, 19)
    ]
    if not places:
        return
    place = generator.choice(places)
    value = generator.choice(_VALUES)
    match generator.randrange(6):
        case 0 | 1 | 2:  # a BigTIFF's stand four bytes further on
            at = place + generator.choice((8, 8, 12))
            content[at : at + 4] = value.to_bytes(4, "little")
        case 3:
            content[place + 2 : place + 4] = generator.randrange(1, 19).to_bytes(2, "little")
        case 4:
            content[place + 4 : place + 8] = value.to_bytes(4, "little")
        case 5:
            content[place : place + 2] = generator.choice((*_TAGS, *_TAGS_OF_TILES)).to_bytes(2, "little")
    if generator.random() < 0.1:
        told = generator.choice(TELLING)
        content[place : place + len(told)] = told


def _found(content: bytearray, sought: bytes) -> list[int]:
    places, place = [], content.find(sought)
    while place >= 0:
        places.append(place)
        place = content.find(sought, place + 1)
    return places
