"""Rows to files: WSInfer's CSV, and GeoJSON that QuPath shows in the classes' colours."""

from __future__ import annotations

import colorsys
import csv
import errno
import gzip
import io
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from ...errors import InputError, reason_of
from ...files import as_utf8, atomic_file, lines_of, open_text
from ...schema import as_json
from ...text import as_cell, as_row, from_cell
from .engine import TileResult
from .slide import Bounds
from .tiling import Tile

COLOURS = (
    *((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167)),
    *((230, 159, 0), (86, 180, 233), (240, 228, 66), (90, 90, 90)),
)
"""Colours of the first classes: Okabe and Ito's, which most colour-blind people can tell apart."""

UNDECIDED = "undecided"
"""The classification, in GeoJSON, of a tile that the guard does not decide."""
UNDECIDED_COLOUR = (128, 128, 128)

_FIXED = ("minx", "miny", "width", "height")
_GUARD = ("decided", "reasons", "candidates")
_GOLDEN = 0.618034
_DIGITS = 10  # of the largest place in a slide


def colour_of(index: int) -> tuple[int, int, int]:
    """The colour of a class by its place: red, green and blue, 0 to 255."""
    if index < len(COLOURS):
        return COLOURS[index]
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN % 1, 0.65, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def header(labels: Sequence[str], guarded: bool = False) -> bytes:
    """The first line of the CSV: WSInfer's columns, ``error`` of tiles that cannot be read, and a guard's."""
    return _line([*_FIXED, *(f"prob_{label}" for label in labels), "error", *(_GUARD if guarded else ())])


def row(result: TileResult, classes: int, guarded: bool = False) -> bytes:
    """A tile's line of the CSV, probabilities to six decimals."""
    tile = result.tile
    values = [f"{value:.6f}" for value in result.probabilities] or [""] * classes
    guard: list[str] = []
    if guarded:
        decided = "" if result.error else "yes" if result.decided else "no"
        guard = [decided, "; ".join(result.reasons), as_cell("; ".join(result.candidates))]
    return _line([str(tile.x), str(tile.y), *[str(tile.side)] * 2, *values, as_cell(result.error), *guard])


def read_rows(path: Path) -> Iterator[TileResult]:
    """The rows of a CSV that `header` and `row` have made.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    number, classes, guarded = 0, 0, False
    try:
        with open_text(path, newline="") as file:
            for number, cells in enumerate(csv.reader(lines_of(file))):
                if number:
                    yield _result_of(cells, classes, guarded)
                else:
                    guarded = cells[-len(_GUARD) :] == [*_GUARD]
                    classes = len(cells) - len(_FIXED) - 1 - guarded * len(_GUARD)
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, OSError) and error.errno != errno.EFBIG:  # that of a line without an end
            raise InputError(f"'{path}' cannot be read: {reason_of(error)}") from error
        raise InputError(
            f"'{path}' is not what slide has written: row {number}: {reason_of(error)}: delete it, and run "
            "slide again"
        ) from error


def _result_of(cells: Sequence[str], classes: int, guarded: bool) -> TileResult:
    """A row's tile.

    Raises:
        ValueError: it is none.
    """
    x, y, side, other, *others = cells
    *probabilities, error = others[: -len(_GUARD)] if guarded else others
    decided, reasons, candidates = others[-len(_GUARD) :] if guarded else ("yes", "", "")
    if len(probabilities) != classes or classes < 1:
        raise ValueError(f"it has {len(probabilities)} probabilities, expected {classes}")
    place = [int(cell) if cell.isdecimal() and len(cell) <= _DIGITS else -1 for cell in (x, y, side, other)]
    if min(place) < 0 or not side == other != "0":
        raise ValueError("it has no place and side of a tile")
    values = () if error else tuple(map(float, probabilities))
    if not all(0 <= value <= 1 for value in values):
        raise ValueError("a probability is none")
    return TileResult(
        Tile(*place[:3]),
        values,
        from_cell(error),
        decided != "no",
        tuple(reasons.split("; ")) if reasons else (),
        tuple(from_cell(candidates).split("; ")) if candidates else (),
    )


def write_geojson(
    path: Path,
    results: Iterable[TileResult],
    *,
    name: str,
    artefact: str,
    labels: Sequence[str],
    bounds: Bounds,
    compressed: bool,
) -> None:
    """Writes a FeatureCollection for QuPath, row by row: a tile object each, in its likeliest class's colour.

    Tiles that a guard does not decide are of the class `UNDECIDED`, in grey. Tiles at the border are drawn
    as far as QuPath shows the slide; those beyond, and those that could not be read, are left out.

    Args:
        path: the file, which appears whole or not at all.
        results: the slide's tiles.
        name: the slide's name.
        artefact: the artefact's SHA-256: with name and place it makes the tiles' identifiers.
        labels: the classes.
        bounds: those of the slide, in which QuPath's positions are.
        compressed: by gzip, as QuPath reads it, too.

    Raises:
        TargetError: it cannot be written.
    """
    space = uuid.uuid5(uuid.NAMESPACE_OID, f"{artefact}/{as_utf8(name).decode()}")
    with atomic_file(path) as file, _text(file, compressed) as out:
        out.write('{"type": "FeatureCollection", "features": [')
        before = "\n"
        for result in results:
            corners = _corners(result.tile, bounds)
            if corners and not result.error:
                feature = as_json(_feature(result, corners, space, labels))
                out.write(before + as_utf8(feature).decode())
                before = ",\n"
        out.write("\n]}\n")


def _corners(tile: Tile, bounds: Bounds) -> list[list[int]]:
    """A closed ring of what QuPath shows of a tile, by its positions; empty where that is nothing."""
    x, y = tile.x - bounds.left, tile.y - bounds.top
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + tile.side, bounds.width), min(y + tile.side, bounds.height)
    if left >= right or top >= bottom:
        return []
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def _feature(
    result: TileResult, corners: list[list[int]], space: uuid.UUID, labels: Sequence[str]
) -> dict[str, object]:
    tile = result.tile
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(space, f"{tile.x}/{tile.y}/{tile.side}")),
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "properties": {
            "objectType": "tile",
            "isLocked": False,
            "classification": _classification(result, labels),
            "measurements": {
                f"prob_{label}": value for label, value in zip(labels, result.probabilities, strict=True)
            },
        },
    }


def _classification(result: TileResult, labels: Sequence[str]) -> dict[str, object]:
    if result.decided:
        return {"name": labels[result.likeliest], "color": list(colour_of(result.likeliest))}
    name = f"{UNDECIDED} by the guard" if UNDECIDED in labels else UNDECIDED
    return {"name": name, "color": list(UNDECIDED_COLOUR)}


@contextmanager
def _text(file: BinaryIO, compressed: bool) -> Iterator[TextIO]:
    """Text into an open file, through gzip where asked, the same bytes at any time of day."""
    below: Any = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if compressed else file
    text = io.TextIOWrapper(below, encoding="utf-8", newline="")
    yield text
    text.flush()
    text.detach()  # the file is flushed to the device before it is closed
    if compressed:
        below.close()


def _line(fields: Sequence[str]) -> bytes:
    return as_utf8(as_row(fields))
