"""Regions that were drawn in QuPath: GeoJSON to polygons inside a slide, and which tiles lie in them.

A tile lies in a region when its middle does. What cannot be used of a file is said, a line for each kind of
fault: regions that cross themselves (taken by the even-odd rule), that are empty, outside the slide, or
points and lines.

Shapely does the geometry: it knows which polygons cross themselves and mends them, and its areas of overlap
are exact, with holes too.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError, reason_of, some
from ...files import as_path, read_file
from .tiling import Tile
from .tissue import Mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SUFFIXES = (".geojson", ".geojson.gz", ".json", ".json.gz")
_NO_REGIONS = frozenset({"detection", "cell", "tile"})
_AREAS = frozenset({"Polygon", "MultiPolygon", "GeometryCollection"})
_LARGEST = 1 << 30  # bytes of GeoJSON, decompressed
_NO_SHAPE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)
_FARTHEST = 1e12  # pixels: beyond lies no slide, and areas are no longer exact, or overflow
_TILES_AT_ONCE = 4096
_BOXES_AT_ONCE = 8  # that are laid over a shape as it is


@dataclass(frozen=True)
class Region:
    """A region of a slide.

    Attributes:
        label: its class in QuPath; empty where it has none.
        shape: a valid polygon or several, of shapely; pixels of level 0.
    """

    label: str
    shape: Any


@dataclass(frozen=True)
class Regions:
    """The regions of a slide, at least one.

    Attributes:
        regions: in the order of the file.
        notes: what of the file is not used, or was mended.
    """

    regions: tuple[Region, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def outline(self) -> Any:
        """All of them as one shape."""
        import shapely

        shape = shapely.union_all([each.shape for each in self.regions])
        shapely.prepare(shape)
        return shape

    @cached_property
    def by_class(self) -> dict[str, Any]:
        """One shape for each class, in the order of their names, none over another.

        Where regions of different classes lie over each other, the smaller one counts: it was drawn into the
        larger.
        """
        import shapely

        ordered = sorted(self.regions, key=lambda each: each.shape.area)
        shapes = [each.shape for each in ordered]
        tree = shapely.STRtree(shapes)
        parts: dict[str, list[Any]] = {}
        for place, region in enumerate(ordered):
            over = [
                shapes[other]
                for other in sorted(tree.query(region.shape, predicate="intersects").tolist())
                if other < place and ordered[other].label != region.label
            ]
            left = shapely.difference(region.shape, shapely.union_all(over)) if over else region.shape
            parts.setdefault(region.label, []).append(left)
        found = {label: shapely.union_all(parts[label]) for label in sorted(parts)}
        for shape in found.values():
            shapely.prepare(shape)
        return found


@dataclass(frozen=True)
class Within:
    """The parts of a slide whose middle lies in its regions, and that have tissue where that is asked for.

    Attributes:
        regions: the slide's.
        mask: where its tissue is; None asks for none.
    """

    regions: Regions
    mask: Mask | None = None

    def has_tissue(self, x: int, y: int, width: int, height: int) -> bool:
        """Whether a part of the slide, in pixels of level 0, is one of them."""
        import shapely

        inside = bool(shapely.contains_xy(self.regions.outline, x + width / 2, y + height / 2))
        return inside and (self.mask is None or self.mask.has_tissue(x, y, width, height))


def file_of(annotations: Path, slide: Path) -> Path | None:
    """The file of a slide's regions.

    Args:
        annotations: a GeoJSON file, or a folder of files that are called as their slides.
        slide: the slide.

    Returns:
        None where the folder has none for it.

    Raises:
        InputError: the folder may not be looked into, or the slide's name is too long for one of these.
    """
    names = (f"{name}{suffix}" for name in (slide.stem, slide.name) for suffix in _SUFFIXES)
    try:
        if not annotations.is_dir():
            return annotations
        return next((path for name in names if (path := annotations / name).is_file()), None)
    except OSError as error:
        raise _unreadable(error.filename or annotations, error) from error


def check_annotations(annotations: Path, slides: Sequence[Path]) -> None:
    """Refuses what cannot be the regions of these slides.

    Raises:
        InputError: it is not there, cannot be read, or is one file for several slides.
    """
    try:
        exists, is_folder = annotations.exists(), annotations.is_dir()
        if is_folder:
            os.scandir(annotations).close()
    except OSError as error:
        raise _unreadable(annotations, error) from error
    if not exists:
        raise InputError(f"'{annotations}' does not exist: expected QuPath's GeoJSON, or a folder of it")
    if not is_folder and len(slides) > 1:
        raise InputError(
            f"'{annotations}' is one file, and there are {len(slides)} slides: expected a folder with "
            "<slide>.geojson for each"
        )


def read_regions(
    path: str | os.PathLike[str], width: int, height: int, left: int = 0, top: int = 0
) -> Regions:
    """The regions in a GeoJSON file of QuPath's, cut off at the border of what QuPath shows.

    Args:
        path: a FeatureCollection, a list of features or one feature; gzip is unpacked.
        width: width of the slide's `Bounds`, in which the file's positions are, pixels of level 0.
        height: height of these.
        left: where they begin.
        top: where they begin.

    Raises:
        InputError: it is no path, cannot be read, is no GeoJSON, or no region of it can be used.
    """
    import shapely

    path = as_path(path)
    shown = shapely.box(0, 0, width, height)
    faults: dict[str, list[str]] = {}
    regions = []
    for number, feature in enumerate(_features(path), start=1):
        name, label, shape, fault = _read(feature, f"region {number}")
        if not fault:
            parts = _parts(shape)
            mended = [part for each in parts for part in _parts(shapely.make_valid(each)) if part.area > 0]
            inside = shapely.intersection(shapely.union_all(mended), shown)
            fault = "" if inside.area > 0 else "lie outside the slide" if mended else "are empty"
        if fault:
            faults.setdefault(f"{fault} and are left out", []).append(name)
            continue
        if not all(each.is_valid for each in parts):
            faults.setdefault("cross themselves and are taken by the even-odd rule", []).append(name)
        moved = shapely.transform(inside, lambda places: np.add(places, (left, top)))
        regions.append(Region(label, moved))
    notes = tuple(f"'{path}': regions that {fault}: {some(names)}" for fault, names in faults.items())
    if not regions:
        why = "; ".join(notes) or f"'{path}' holds no annotation"
        raise InputError(f"{why}: draw regions in a slide of {width} x {height} pixels, and export them anew")
    return Regions(tuple(regions), notes)


def labels_of(tiles: Iterator[Tile], regions: Regions, min_cover: float | None) -> Iterator[tuple[Tile, str]]:
    """The tiles that belong to a class, with its name.

    Args:
        tiles: those of the slide that the regions are in.
        regions: the slide's; those without a class mark nothing.
        min_cover: the least share of a tile that regions of its class cover; None asks for its middle.
    """
    shapes = {label: shape for label, shape in regions.by_class.items() if label}
    while shapes and (block := list(islice(tiles, _TILES_AT_ONCE))):
        for tile, place in zip(block, _best(block, [*shapes.values()], min_cover), strict=True):
            if place >= 0:
                yield tile, [*shapes][place]


def _best(tiles: Sequence[Tile], shapes: Sequence[Any], min_cover: float | None) -> list[int]:
    """The place of each tile's shape, -1 for none."""
    import shapely

    x, y, side = np.array([(tile.x, tile.y, tile.side) for tile in tiles], np.float64).T
    shares: NDArray[np.float64] = np.zeros((len(shapes), len(tiles)))
    for own, shape in zip(shares, shapes, strict=True):
        if min_cover is None:
            own[:] = shapely.contains_xy(shape, x + side / 2, y + side / 2)
            continue
        boxes = shapely.box(x, y, x + side, y + side)
        own[shapely.contains_properly(shape, boxes)] = 1
        border = shapely.intersects(shape, boxes) & (own == 0)
        own[border] = _covered(shape, boxes[border]) / side[border] ** 2
    least = 0.5 if min_cover is None else min_cover - 1e-9  # areas are rounded
    return np.where(shares.max(0) >= least, shares.argmax(0), -1).tolist()


def _covered(shape: Any, boxes: NDArray[Any]) -> NDArray[np.float64]:
    """The area of each box that a shape covers.

    Half of the boxes need no more of the shape than what lies below them, and half of these no more than
    that: an outline of 100,000 points would be followed whole for each of them.
    """
    import shapely

    if len(boxes) <= _BOXES_AT_ONCE:
        return np.asarray(shapely.area(shapely.intersection(shape, boxes)), np.float64)
    bounds = shapely.bounds(boxes)
    axis = int(np.ptp(bounds[:, 1]) > np.ptp(bounds[:, 0]))
    order = np.argsort(bounds[:, axis], kind="stable")
    areas = np.empty(len(boxes))
    for half in np.array_split(order, 2):
        left, top = bounds[half, :2].min(0)
        right, bottom = bounds[half, 2:].max(0)
        below = shapely.intersection(shape, shapely.box(left, top, right, bottom))
        areas[half] = _covered(below, boxes[half])
    return areas


def _features(path: Path) -> list[Any]:
    """The features of a file, and what else stands among them.

    Raises:
        InputError: it cannot be read, or holds no feature in place of those that it should.
    """
    try:
        content = read_file(path)
        if content[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError("it is larger than a gigabyte")
        found = json.loads(content)
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, EOFError, zlib.error, RecursionError) as error:
        raise InputError(f"'{path}' is no GeoJSON: {error}") from error
    if isinstance(found, dict):
        found = found.get("features") if found.get("type") == "FeatureCollection" else [found]
    if not isinstance(found, list) or not (not found or any(map(_is_feature, found))):
        raise InputError(f"'{path}' is no GeoJSON of QuPath's: expected a collection of features")
    return found


def _is_feature(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "Feature" and "geometry" in value


def _read(feature: Any, name: str) -> tuple[str, str, Any, str]:
    """A feature's name for messages, its class, its shape, and what is wrong with it."""
    import shapely

    if not _is_feature(feature):
        return name, "", None, "are no features of GeoJSON"
    said = feature.get("properties")
    properties: dict[str, Any] = said if isinstance(said, dict) else {}
    label = _class_of(properties.get("classification"))
    name = f"{name} ({properties.get('name') or label or 'no class'})"
    geometry = feature["geometry"]
    kind = str(properties.get("objectType", properties.get("object_type", "annotation"))).lower()
    if kind in _NO_REGIONS:
        return name, label, None, "are detections or tiles"
    if not isinstance(geometry, dict) or str(geometry.get("type")) not in _AREAS:
        return name, label, None, "are points or lines"
    try:
        with np.errstate(invalid="ignore"):
            shape = shapely.geometry.shape(geometry)
        coordinates = shapely.get_coordinates(shape)
    except (*_NO_SHAPE, shapely.errors.ShapelyError):
        return name, label, None, "have no coordinates that could be read"
    if not np.isfinite(coordinates).all():
        return name, label, None, "have no coordinates that could be read"
    if (np.abs(coordinates) > _FARTHEST).any():
        return name, label, None, "have coordinates that no slide has"
    return name, label, shape, ""


def _unreadable(path: str | Path, error: OSError) -> InputError:
    return InputError(f"'{path}' cannot be read: {reason_of(error)}")


def _parts(shape: Any) -> list[Any]:
    """The polygons, points and lines of a shape: those of a collection, and of what is in it."""
    import shapely

    parts: list[Any] = shapely.get_parts(shapely.get_parts(shape)).tolist()
    return parts


def _class_of(classification: Any) -> str:
    """The class that QuPath writes: a name, or the names that a class is derived from."""
    if isinstance(classification, str):
        return classification.strip()
    if not isinstance(classification, dict):
        return ""
    names = classification.get("names")
    if isinstance(names, list):
        return ": ".join(map(str, names)).strip()
    return str(classification.get("name") or "").strip()
