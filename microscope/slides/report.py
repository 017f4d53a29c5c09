"""The results in a folder as one page: shares, maps over thumbnails, the most certain tiles of each class."""

from __future__ import annotations

import heapq
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import ImageError, InputError, Note
from ...files import as_utf8, write_atomically
from ...images import read_image
from ...pages.page import COMPARE, page_from_template, photograph
from .engine import TileResult
from .opening import open_slide
from .results import colour_of, read_rows
from .slide import Slide
from .tiling import read_tile

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_FACTS = ("tiles", "unreadable", "tissue", "size", "microns_a_pixel", "tile", "reader")
_PICTURE = 640  # longest side on the page, pixels
_TILES, _TILE = 6, 168  # of each class, and their side in pixels
_ROOM = 32 << 20  # characters of pictures on the page, of which a slide takes half a million or so


@dataclass(frozen=True)
class Pictures:
    """A slide's pictures as files.

    Attributes:
        slide: its thumbnail.
        mask: where tissue was found; None where it was not looked for.
        maps: each class over the thumbnail, in the order of the labels.
    """

    slide: Path
    mask: Path | None
    maps: tuple[Path, ...]


def write_report(
    path: Path,
    *,
    artefact: str,
    sha256: str,
    labels: Sequence[str],
    slides: Iterable[tuple[str, dict[str, Any]]],
    pictures: dict[str, Pictures],
    rows: dict[str, Path],
    certain: Mapping[str, list[dict[str, Any]]],
    white_level: int,
    scratch: Path,
) -> None:
    """Writes the page, whole or not at all.

    Slides are pictured in their order until the page is some dozens of megabytes: one with pictures of a
    thousand opens nowhere. The others have their row of the table.

    Args:
        path: the file.
        artefact: its name.
        sha256: the artefact's.
        labels: the classes.
        slides: each slide's name, and what ``run.json`` says of it.
        pictures: those of each slide that is done.
        rows: for each slide that is done, its CSV.
        certain: `certain_tiles` of those slides where they are known; the others are opened for them.
        white_level: the value of white in 16-bit pictures.
        scratch: the folder for a large slide's pixels, as `open_slide` takes it.

    Raises:
        TargetError: it cannot be written.
    """
    shown, size, unpictured = [], 0, 0
    for name, facts in slides:
        done = name in rows and is_done(facts, labels)
        pictured = done and size < _ROOM
        unpictured += done - pictured
        # A slide with an error and rows was replaced: its file would give other pictures.
        tiles: list[dict[str, Any]] = []
        if pictured and not facts.get("error"):
            known = certain.get(name)
            tiles = _opened_for(facts, rows[name], labels, white_level, scratch) if known is None else known
        own = _shown_pictures(pictures[name]) if pictured else {}
        size += _size_of(tiles) + sum(map(len, filter(None, (own.get("slide"), *own.get("maps", ())))))
        shown.append(
            {
                "name": name,
                "error": facts.get("error", ""),
                "shares": [facts["shares"][label] for label in labels] if done else [],
                "notes": facts.get("notes", []),
                **{each: facts.get(each) for each in (*_FACTS, "undecided")},
                "pictured": pictured,
                **own,
                "certain": tiles,
            }
        )
    page = page_from_template(
        _TEMPLATE,
        COMPARE,
        artefact=artefact,
        sha256=sha256,
        labels=labels,
        colours=[colour_of(index) for index in range(len(labels))],
        slides=shown,
        unpictured=unpictured,
    )
    write_atomically(path, as_utf8(page))


def has_room(certain: Mapping[str, list[dict[str, Any]]]) -> bool:
    """Whether the page pictures a slide that comes after those whose `certain_tiles` these are."""
    return sum(map(_size_of, certain.values())) < _ROOM


def _size_of(certain: list[dict[str, Any]]) -> int:
    """How many characters `certain_tiles` take on the page."""
    return sum(len(tile["url"]) for group in certain for tile in group["tiles"])


def is_done(facts: Mapping[str, Any], labels: Sequence[str]) -> bool:
    """Whether ``run.json`` says of a slide all that is known of one whose last row is."""
    return facts.keys() >= {*_FACTS} and facts.get("shares", {}).keys() == {*labels}


def most_certain(results: Iterable[TileResult], classes: int, count: int) -> list[list[TileResult]]:
    """The tiles of each class that are likeliest it, the likeliest first; of equals the earlier.

    Those that the guard does not decide stand for nothing.
    """
    best: list[list[tuple[float, int, TileResult]]] = [[] for _ in range(classes)]
    for place, result in enumerate(results):
        if result.decided and not result.error:
            heap = best[result.likeliest]
            heapq.heappush(heap, (max(result.probabilities), -place, result))
            if len(heap) > count:
                heapq.heappop(heap)
    return [[result for _, _, result in sorted(heap, reverse=True)] for heap in best]


def _shown_pictures(of: Pictures) -> dict[str, Any]:
    return {
        "slide": _url_of(of.slide),
        "mask": None if of.mask is None else _url_of(of.mask),
        "maps": [_url_of(each) for each in of.maps],
    }


def certain_tiles(slide: Slide, rows: Path, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The most certain tiles of each class as pictures; none where the slide cannot be read any more.

    Args:
        slide: an open slide.
        rows: its CSV.
        labels: the classes.

    Raises:
        InputError: the CSV cannot be read.
    """
    groups = []
    found = most_certain(read_rows(rows), len(labels), _TILES)
    try:
        for label, results in zip(labels, found, strict=True):
            tiles = [
                {
                    "x": each.tile.x,
                    "y": each.tile.y,
                    "probability": max(each.probabilities),
                    "url": photograph(Image.fromarray(read_tile(slide, each.tile, _TILE)), _TILE),
                }
                for each in results
            ]
            groups.append({"label": label, "tiles": tiles})
    except ImageError as error:
        _tell_of_lack(f"tiles of '{slide.path}'", error)
        return []
    return groups


def _opened_for(
    facts: dict[str, Any], rows: Path, labels: Sequence[str], white_level: int, scratch: Path
) -> list[dict[str, Any]]:
    """`certain_tiles` of a slide that an earlier call classified; none where it is not there any more."""
    try:
        slide = open_slide(facts["path"], white_level=white_level, scratch=scratch)
    except InputError as error:
        if os.path.lexists(facts["path"]):
            _tell_of_lack(f"tiles of '{facts['path']}'", error)
        return []
    with closing(slide):
        return certain_tiles(slide, rows, labels)


def _url_of(picture: Path) -> str | None:
    """A picture among the results; None where it is not there any more."""
    try:
        return photograph(Image.fromarray(read_image(picture)), _PICTURE)
    except ImageError as error:
        if os.path.lexists(picture):
            _tell_of_lack("picture", error)
        return None


def _tell_of_lack(what: str, error: InputError) -> None:
    warnings.warn(f"the report shows no {what}: {error}", Note, stacklevel=2)
