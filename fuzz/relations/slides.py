"""The same slide in other files, tiles, batches and regions; its tables, maps and objects."""

from __future__ import annotations

import csv
import gzip
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from PIL import Image
from seeds import LABELS, SIDE

from .lab import MPP, NEAR, TRAINED, Lab, Pixels, Relation, apart, differ, save

FIELD = ("--pixel-for-pixel", "--no-tissue")


class Row(NamedTuple):
    """A tile's row of the CSV."""

    x: int
    y: int
    side: int
    values: tuple[float, ...]
    error: str
    decided: str


def rows_of(folder: Path, name: str) -> list[Row]:
    """The rows of a slide."""
    with (folder / "model-outputs-csv" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return [
            Row(
                int(row["minx"]),
                int(row["miny"]),
                int(row["width"]),
                tuple(float(row[f"prob_{label}"] or "nan") for label in LABELS),
                row["error"],
                row.get("decided", ""),
            )
            for row in csv.DictReader(file)
        ]


def drawn_slide(lab: Lab, chance: random.Random, height: int, width: int) -> Pixels:
    """(height, width, 3): glass with pictures side by side, some of it tissue."""
    pixels = np.full((height, width, 3), 243, np.uint8)
    for top in range(0, height, 60):
        for left in range(0, width, 60):
            if chance.random() < 0.7:
                part = pixels[top : top + 60, left : left + 60]
                part[:] = lab.drawn(chance, *part.shape[:2])
    return pixels


def written(pixels: Any, path: Path, kind: str, chance: random.Random, mpp: float | None = None) -> Path:
    """A slide of a kind, of these very pixels."""
    if kind == "png":
        dots = {} if mpp is None else {"dpi": (25400 / mpp, 25400 / mpp)}
        return save(pixels, path.with_suffix(".png"), **dots)
    if kind == "bmp":
        return save(pixels, path.with_suffix(".bmp"))
    options: dict[str, Any] = {
        "photometric": "rgb",
        "metadata": None,
        "compression": chance.choice((None, "deflate", "lzw", "zstd", "jpeg2000" if kind == "sub" else None)),
        "tile": (16 * chance.randrange(2, 9), 16 * chance.randrange(2, 9)),
    }
    if mpp is not None:
        options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    if kind == "strips":
        del options["tile"]
        options["rowsperstrip"] = chance.randrange(1, 64)
    if kind == "sixteen":
        pixels = pixels.astype(np.uint16) << 8
    if options["compression"] == "jpeg2000":
        options["compressionargs"] = {"level": 0, "reversible": True}
    path = path.with_suffix(".tif")
    if kind == "ome":
        options["metadata"] = {"axes": "YXS"}
        if mpp is not None:
            unit = chance.choice((("µm", 1.0), ("nm", 1e3), ("mm", 1e-3)))
            options["metadata"] |= {f"PhysicalSize{axis}": mpp * unit[1] for axis in "XY"}
            options["metadata"] |= {f"PhysicalSize{axis}Unit": unit[0] for axis in "XY"}
            del options["resolution"], options["resolutionunit"]
    levels = 3 if kind in ("sub", "pages") else 1
    with tifffile.TiffWriter(path, bigtiff=kind == "big", ome=kind == "ome") as writer:
        writer.write(pixels, subifds=levels - 1 if kind == "sub" else None, **options)
        for level in range(1, levels):
            below = {
                name: options[name] for name in options if not name.startswith(("resolution", "metadata"))
            }
            writer.write(pixels[:: 2**level, :: 2**level], subfiletype=1, metadata=None, **below)
    return path


KINDS = ("png", "bmp", "plain", "strips", "big", "ome", "sub", "pages", "sixteen")


def same_layouts(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """The same pixels in every kind of file."""
    pixels = drawn_slide(lab, chance, chance.randint(150, 400), chance.randint(150, 400))
    overlap = chance.choice((0, 0.25, 0.5, 0.3))
    slides = [written(pixels, work / "slides" / kind, kind, chance) for kind in made(work / "slides")]
    lab.mmdeploy("slide", lab.bundle, *slides, "-o", work / "out", *FIELD, "--overlap", overlap)
    expected = rows_of(work / "out", "png")
    for kind in KINDS:
        yield from differ(kind, rows_of(work / "out", kind), expected)
    maps = {kind: map_of(work / "out", kind, 0) for kind in KINDS}
    for kind in KINDS:
        yield from differ(f"map of {kind}", maps[kind].tolist(), maps["png"].tolist())


def made(folder: Path) -> tuple[str, ...]:
    """The kinds, after the folder was made."""
    folder.mkdir(parents=True)
    return KINDS


def map_of(folder: Path, name: str, index: int) -> Any:
    """A class's map, as it is stored."""
    (path,) = (folder / "heat-maps" / name).glob(f"{index}-*.ome.tif")
    return tifffile.imread(path)


def same_scales(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Microns a pixel from the file, in any unit, or by the option; all of them times a number."""
    # OpenSlide interpolates in levels that are not a whole number of times coarser.
    pixels = drawn_slide(lab, chance, 4 * chance.randint(50, 125), 4 * chance.randint(50, 125))
    mpp = chance.choice((0.25, 0.5, 0.4, 0.23, 0.7))
    wanted = chance.choice((0.5, 0.8, 1.0, 0.4))
    words = ("--no-tissue", "--mpp", wanted)
    (work / "slides").mkdir()
    for kind in ("plain", "ome", "sub", "pages", "strips", "png"):
        path = written(pixels, work / "slides" / f"{kind}", kind, chance, mpp)
        lab.mmdeploy("slide", lab.bundle, path, "-o", work / "said", *words)
    bare = written(pixels, work / "slides" / "bare", "plain", chance)
    lab.mmdeploy("slide", lab.bundle, bare, "-o", work / "assumed", *words, "--assume-mpp", mpp)
    twice = ("--no-tissue", "--mpp", wanted * 2, "--assume-mpp", mpp * 2)
    lab.mmdeploy("slide", lab.bundle, bare, "-o", work / "twice", *twice)
    expected = rows_of(work / "assumed", "bare")
    yield from differ("twice", rows_of(work / "twice", "bare"), expected)
    for kind in ("plain", "ome", "strips", "png"):
        yield from differ(kind, rows_of(work / "said", kind), expected)
    for kind in ("sub", "pages"):  # from another level
        there = [row[:3] for row in rows_of(work / "said", kind)]
        yield from differ(f"places of {kind}", there, [row[:3] for row in expected])
    yield from differ("sub and pages", rows_of(work / "said", "sub"), rows_of(work / "said", "pages"))


def same_batches(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Other batches, threads, kernels, calls; gone on with after any row; packed."""
    pixels = drawn_slide(lab, chance, chance.randint(150, 300), chance.randint(150, 300))
    slides = [written(pixels, work / name, "plain", chance) for name in ("one", "two")]
    words = ("slide", lab.guarded, *slides, *FIELD, "--overlap", chance.choice((0, 0.5)))
    lab.mmdeploy(*words, "-o", work / "out", "--threads", 2)
    expected = contents(work / "out")
    lab.mmdeploy(*words, "-o", work / "thread", "--threads", 1)
    yield from differ("one thread", unlike(contents(work / "thread"), expected), [])
    for slide in reversed(slides):
        lab.mmdeploy("slide", lab.guarded, slide, *words[4:], "-o", work / "apart")
    yield from differ("one by one", unlike(contents(work / "apart"), expected), [])
    again = work / "again"
    shutil.copytree(work / "out", again)
    done = again / "model-outputs-csv" / "two.csv"
    lines = done.read_bytes().splitlines(keepends=True)
    done.unlink()
    torn = b"".join(lines)[: chance.randrange(len(b"".join(lines)))]
    (again / "partial" / "two.csv").write_bytes(torn)
    lab.mmdeploy(*words, "-o", again)
    yield from differ(f"after {len(torn)} bytes", unlike(contents(again), expected), [])
    lab.mmdeploy(*words, "-o", work / "packed", "--gzip")
    for path in sorted((work / "packed" / "model-outputs-geojson").iterdir()):
        found = gzip.decompress(path.read_bytes())
        yield from differ("packed", found == expected[f"model-outputs-geojson/{path.stem}"], True)
    lab.mmdeploy(*words, "-o", work / "batch", "--batch-size", (size := chance.randrange(2, 9)))
    for name in ("one", "two"):
        one, other = rows_of(work / "batch", name), rows_of(work / "out", name)
        yield from differ("decided", [row.decided for row in one], [row.decided for row in other])
        values = [row.values for row in one], [row.values for row in other]
        yield from apart(f"batches of {size}", *values, 2e-6)


SAME = ("model-outputs-csv", "model-outputs-geojson", "heat-maps", "masks", "thumbnails")


def contents(folder: Path) -> dict[str, bytes]:
    """What has to be the same, by name."""
    files = (path for name in SAME for path in (folder / name).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def unlike(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """The names of files that differ."""
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))


def same_elsewhere(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Moved by whole tiles, twice side by side, and cut off at a tile's border."""
    side = TRAINED
    down, across = chance.randint(2, 6), chance.randint(2, 6)
    pixels = drawn_slide(lab, chance, down * side, across * side)
    moved_down, moved_right = chance.randrange(3), chance.randrange(3)
    moved = np.full(((down + moved_down) * side, (across + moved_right) * side, 3), 200, np.uint8)
    moved[moved_down * side :, moved_right * side :] = pixels
    top, left = chance.randrange(down), chance.randrange(across)
    pictures = {
        "plain": pixels,
        "moved": moved,
        "beside": np.hstack([pixels, pixels]),
        "below": np.vstack([pixels, pixels]),
        "cut": pixels[top * side :, left * side :],
    }
    for name, each in pictures.items():
        written(each, work / name, chance.choice(("png", "plain", "sub", "strips")), chance)
    slides = [path for path in sorted(work.iterdir()) if path.is_file()]
    lab.mmdeploy("slide", lab.guarded, *slides, "-o", work / "out", *FIELD)
    rows = {name: {row[:2]: row[3:] for row in rows_of(work / "out", name)} for name in pictures}
    plain, (height, width) = rows["plain"], pixels.shape[:2]
    yield from differ("tiles", len(plain), down * across)
    expected = {(x + moved_right * side, y + moved_down * side): each for (x, y), each in plain.items()}
    yield from differ("moved", {at: each for at, each in rows["moved"].items() if at in expected}, expected)
    yield from differ(
        "beside", rows["beside"], {**plain, **{(x + width, y): v for (x, y), v in plain.items()}}
    )
    yield from differ(
        "below", rows["below"], {**plain, **{(x, y + height): v for (x, y), v in plain.items()}}
    )
    cut = {(x - left * side, y - top * side): each for (x, y), each in plain.items()}
    yield from differ("cut", rows["cut"], {at: each for at, each in cut.items() if min(at) >= 0})
    told = json.loads((work / "out" / "run.json").read_bytes())["slides"]
    for name in ("beside", "below"):
        yield from differ("twice the tiles", told[name]["tiles"], 2 * told["plain"]["tiles"])
        yield from differ("twice undecided", told[name]["undecided"], 2 * told["plain"]["undecided"])
        one, other = ([each["shares"][label] for label in LABELS] for each in (told[name], told["plain"]))
        yield from apart("shares", one, other, 1e-6)
    whole, part = (map_of(work / "out", name, 0) for name in ("plain", "cut"))
    yield from differ("map of the cut", part.tolist(), whole[top:, left:].tolist())
    twice = map_of(work / "out", "beside", 0)
    yield from differ("map beside", twice.tolist(), np.hstack([whole, whole]).tolist())


def same_tiles(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Each tile as a picture of its own through ``infer``, and those without overlap among the others."""
    side = chance.choice((TRAINED, 2 * TRAINED))
    pixels = drawn_slide(lab, chance, side * 2 + chance.randrange(side), side * 2 + chance.randrange(side))
    slide = written(pixels, work / "slide", chance.choice(KINDS[1:6]), chance)
    words = FIELD if side == TRAINED else ("--no-tissue", "--mpp", MPP * side / SIDE, "--assume-mpp", MPP)
    lab.mmdeploy("slide", lab.guarded, slide, "-o", work / "out", *words)
    lab.mmdeploy("slide", lab.guarded, slide, "-o", work / "half", *words, "--overlap", 0.5)
    rows = rows_of(work / "out", "slide")
    among = {row[:3]: row[3:] for row in rows_of(work / "half", "slide")}
    (work / "tiles").mkdir()
    for row in rows:
        yield from differ("side", row.side, side)
        if row[:3] in among or max(row.x + side - pixels.shape[1], row.y + side - pixels.shape[0]) <= 0:
            yield from differ(f"{row[:2]} at half", among.get(row[:3]), row[3:])
        part = pixels[row.y : row.y + side, row.x : row.x + side]
        beyond = [(0, side - length) for length in part.shape[:2]]
        save(np.pad(part, (*beyond, (0, 0)), "symmetric"), work / "tiles" / f"{row.y:05}-{row.x:05}.png")
    alone = lab.inferred(work / "tiles", artefact=lab.guarded)
    for row, other in zip(rows, alone, strict=True):
        found = {each["label"]: each["probability"] for each in other["top"]}
        yield from apart(f"tile {row[:2]}", row.values, [found[label] for label in LABELS], 6e-7 + NEAR)
        # A guard judges a tile in the training images' pixels, and a picture of its own as it is.
        if side == TRAINED:
            yield from differ(f"decided {row[:2]}", row.decided, "yes" if other["decided"] else "no")


def same_outputs(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """CSV, GeoJSON, maps, summary and ``run.json`` tell the same."""
    artefact = chance.choice((lab.bundle, lab.guarded))
    overlap = chance.choice((0, 0, 0.5, 0.25))
    pixels = drawn_slide(lab, chance, chance.randint(150, 400), chance.randint(150, 400))
    mpp = chance.choice((0.5, 0.4, 0.25))
    slide = written(pixels, work / "slide", chance.choice(("plain", "ome", "png")), chance, mpp)
    lab.mmdeploy(
        "slide", artefact, slide, "-o", work / "out", "--overlap", overlap, "--seg-min-object-size-um2", 0
    )
    rows, height, width = rows_of(work / "out", "slide"), *pixels.shape[:2]
    told = json.loads((work / "out" / "run.json").read_bytes())["slides"]["slide"]
    yield from differ("tiles", told["tiles"], len(rows))
    objects = json.loads((work / "out" / "model-outputs-geojson" / "slide.geojson").read_bytes())["features"]
    yield from differ("objects", len(objects), len(rows))
    counts = dict.fromkeys(LABELS, 0)
    for row, each in zip(rows, objects, strict=True):
        ring = each["geometry"]["coordinates"][0]
        xs, ys = zip(*ring, strict=True)
        box = (min(xs), min(ys), max(xs), max(ys))
        expected = (row.x, row.y, min(row.x + row.side, width), min(row.y + row.side, height))
        yield from differ("box", box, expected)
        likeliest = LABELS[int(np.argmax(row.values))]
        counts[likeliest] += row.decided != "no"
        name = each["properties"]["classification"]["name"]
        yield from differ("class", name, "undecided" if row.decided == "no" else likeliest)
        measured = each["properties"]["measurements"]
        by_name = measured if isinstance(measured, dict) else {m["name"]: m["value"] for m in measured}
        found = [next(v for k, v in by_name.items() if k.endswith(label)) for label in LABELS]
        yield from apart("measurements", found, row.values, 1e-9)
    for label in LABELS:
        yield from apart(f"share of {label}", told["shares"][label], counts[label] / len(rows), 1e-6)
    with (work / "out" / "summary.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    for label in LABELS:
        share = next(value for key, value in line.items() if key.endswith(label))
        yield from apart(f"summary of {label}", float(share), told["shares"][label], 1e-6)
    yield from differ("summary's tiles", int(line["tiles"]), len(rows))
    for index in range(len(LABELS)):
        found = map_of(work / "out", "slide", index)
        if overlap:
            yield from differ("map's zeros", found.any(), True)
            continue
        side = rows[0].side
        expected_map = np.zeros((-(-height // side), -(-width // side)), np.uint8)
        for row in rows:
            expected_map[row.y // side, row.x // side] = 1 + np.rint(np.float32(row.values[index]) * 254)
        yield from differ("map", found.tolist(), expected_map.tolist())


def same_regions(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Regions drawn otherwise: turned, cut up, doubled; inside and outside; a cropped file."""
    side, down, across = TRAINED, chance.randint(3, 6), chance.randint(3, 6)
    pixels = drawn_slide(lab, chance, down * side, across * side)
    slide = written(pixels, work / "slide", chance.choice(("png", "plain", "sub")), chance)
    top, left = chance.randrange(down - 1), chance.randrange(across - 1)
    bottom, right = chance.randint(top + 1, down), chance.randint(left + 1, across)
    box = [(left, top), (right, top), (right, bottom), (left, bottom)]
    ring = [(x * side, y * side) for x, y in box]

    def tiles(name: str, *shapes: Any) -> dict[Any, Any]:
        path = work / f"{name}.geojson"
        feature = {"type": "Feature", "properties": {"objectType": "annotation"}}
        path.write_text(
            json.dumps(
                {"type": "FeatureCollection", "features": [{**feature, "geometry": s} for s in shapes]}
            )
        )
        lab.mmdeploy("slide", lab.bundle, slide, "-o", work / f"out-{name}", *FIELD, "--roi", path)
        return {row[:2]: row[3:] for row in rows_of(work / f"out-{name}", "slide")}

    def polygon(*rings: Sequence[tuple[float, float]]) -> dict[str, Any]:
        return {"type": "Polygon", "coordinates": [[*each, each[0]] for each in rings]}

    expected = tiles("plain", polygon(ring))
    places = {(x * side, y * side) for y in range(top, bottom) for x in range(left, right)}
    yield from differ("tiles inside", set(expected), places)
    turn = chance.randrange(4)
    yield from differ("turned", tiles("turned", polygon([*ring[turn:], *ring[:turn]])), expected)
    yield from differ("backwards", tiles("back", polygon(ring[::-1])), expected)
    yield from differ("doubled", tiles("doubled", polygon(ring), polygon(ring)), expected)
    finer = [((a[0] * 2 + b[0]) / 3, (a[1] * 2 + b[1]) / 3) for a, b in pairwise([*ring, ring[0]])]
    more = [point for pair in zip(ring, finer, strict=True) for point in pair]
    yield from differ("more points", tiles("more", polygon(more)), expected)
    middle = (ring[0][1] + ring[2][1]) / 2 + 0.25
    halves = (
        polygon([ring[0], ring[1], (ring[1][0], middle), (ring[0][0], middle)]),
        polygon([(ring[0][0], middle), (ring[1][0], middle), ring[2], ring[3]]),
    )
    yield from differ("in halves", tiles("halves", *halves), expected)
    several = {"type": "MultiPolygon", "coordinates": [each["coordinates"] for each in halves[::-1]]}
    yield from differ("several in one", tiles("several", several), expected)
    all_of_it = {
        "type": "Polygon",
        "coordinates": polygon([(-9, -9), (9e4, -9), (9e4, 9e4), (-9, 9e4)])["coordinates"],
    }
    whole = tiles("whole", all_of_it)
    yield from differ("all of it", len(whole), down * across)
    if len(expected) < len(whole):
        hole = tiles("hole", polygon([(-9, -9), (9e4, -9), (9e4, 9e4), (-9, 9e4)], ring))
        yield from differ("inside and outside", {**hole, **expected}, whole)
        yield from differ("both", set(hole) & set(expected), set())
    cropped = pixels[top * side : bottom * side, left * side : right * side]
    other = written(cropped, work / "cropped", "plain", chance)
    lab.mmdeploy("slide", lab.bundle, other, "-o", work / "out-cropped", *FIELD)
    moved = {(x + left * side, y + top * side): e for x, y, _, *e in rows_of(work / "out-cropped", "cropped")}
    yield from differ("cropped", {at: tuple(each) for at, each in moved.items()}, expected)


def same_tissue(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Tissue of the mirrored and turned slide; less of it where more is asked for."""
    side, down, across = TRAINED, chance.randint(3, 8), chance.randint(3, 8)
    pixels = drawn_slide(lab, chance, down * side, across * side)
    options: tuple[object, ...] = (
        "--mpp",
        MPP * TRAINED / SIDE,
        "--assume-mpp",
        MPP,
        "--seg-min-object-size-um2",
        chance.choice((0, 100, 900)),
        "--seg-min-hole-size-um2",
        chance.choice((0, 100, 900)),
        "--seg-closing-kernel-size",
        chance.randrange(1, 9),
        "--seg-median-filter-size",
        chance.choice((1, 3, 7, 9)),
    )
    pictures = {
        "plain": pixels,
        "mirrored": pixels[:, ::-1],
        "upside": pixels[::-1],
        "turned": pixels.transpose(1, 0, 2),
    }
    slides = [save(np.ascontiguousarray(each), work / f"{name}.png") for name, each in pictures.items()]
    try:
        lab.mmdeploy("slide", lab.bundle, *slides, "-o", work / "out", *options)
    except Exception as error:
        if "shows no tissue" in str(error) or "enough tissue" in str(error):
            return
        raise
    masks = {name: np.asarray(Image.open(work / "out" / "masks" / f"{name}.png")) > 0 for name in pictures}
    yield from differ("mirrored", (masks["mirrored"][:, ::-1] != masks["plain"]).sum(), 0)
    yield from differ("upside down", (masks["upside"][::-1] != masks["plain"]).sum(), 0)
    yield from differ("turned", (masks["plain"] != masks["turned"].T).sum(), 0)
    places = {name: {row[:2] for row in rows_of(work / "out", name)} for name in pictures}
    width, height = across * side, down * side
    yield from differ(
        "tiles mirrored", {(width - side - x, y) for x, y in places["mirrored"]}, places["plain"]
    )
    yield from differ(
        "tiles upside down", {(x, height - side - y) for x, y in places["upside"]}, places["plain"]
    )
    yield from differ("tiles turned", {(y, x) for x, y in places["turned"]}, places["plain"])
    before = {(x, y) for y in range(0, height, side) for x in range(0, width, side)}
    for share in (0, 0.1, 0.3, 0.6, 0.9, 1):
        target = work / f"least-{share}"
        try:
            lab.mmdeploy("slide", lab.bundle, slides[0], "-o", target, *options, "--min-tissue", share)
        except Exception as error:
            if "enough tissue" in str(error):
                break
            raise
        found = {row[:2] for row in rows_of(target, "plain")}
        yield from differ(f"more at {share}", found - before, set())
        before = found


def same_kinds(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """TIFF of any kind, as a picture and as a slide: the same pixels and microns."""
    from msmamba.data.scale import scale_of
    from msmamba.errors import MsmambaError
    from msmamba.images import load_image
    from msmamba.microscope.slides import open_slide

    for number in range(40):
        path, kind = any_tiff(chance, work / f"{number}.tif")
        white = chance.choice((65535, 4095))
        try:
            picture = load_image(path, white_level=white)
            slide = open_slide(path, white_level=white)
        except MsmambaError:
            path.unlink()
            continue
        with closing(slide):
            level = slide.levels[0]
            found = slide.read(0, 0, 0, level.width, level.height).astype(int)
            # libtiff, by way of OpenSlide, rounds what inks leave otherwise.
            yield from apart(kind, found, picture.pixels, 1 if "separated" in kind else 0)
            yield from near_microns(kind, slide.scale.microns, scale_of(path).microns)


def near_microns(name: str, found: float | None, expected: float | None) -> Iterator[str]:
    """Says so where two scales differ, or one alone is known."""
    if (found is None) != (expected is None) or (found and expected and abs(found / expected - 1) > 1e-9):
        yield f"{name}: {found} microns a pixel, expected {expected}"


def any_tiff(chance: random.Random, path: Path) -> tuple[Path, str]:
    """A TIFF of a random kind, and what it is."""
    noise = np.random.default_rng(chance.getrandbits(32))
    kinds = {"minisblack": (1, 2, 5), "miniswhite": (1, 2), "rgb": (3, 4, 5), "separated": (4,)}
    photometric = chance.choice([*kinds])
    channels, bits = chance.choice(kinds[photometric]), chance.choice((1, 2, 4, 8, 8, 8, 10, 12, 16, 16))
    if channels > 1 and bits not in (8, 16):
        bits = 8
    beside = channels - {"rgb": 3, "separated": 4}.get(photometric, 1)
    extras = [chance.choice(("unspecified", "assocalpha", "unassalpha")) for _ in range(beside)]
    samples = noise.integers(0, 1 << bits, (chance.randint(20, 90), chance.randint(20, 90), channels))
    samples = samples.astype(bool if bits == 1 else np.uint8 if bits <= 8 else np.uint16)
    compressions = (None, "lzw", "zlib", "packbits", "zstd", "lzma") if bits in (8, 16) else (None,)
    options: dict[str, Any] = {
        "photometric": photometric,
        "compression": (compression := chance.choice(compressions)),
        "predictor": compression not in (None, "packbits") and chance.random() < 0.5,
        "bigtiff": chance.random() < 0.3,
        "byteorder": chance.choice("<>") if bits in (8, 16) else "<",
        "tile": chance.choice(((16, 16), (64, 64), (48, 80), (240, 240))),
        "metadata": None,
    }
    if chance.random() < 0.2:
        del options["tile"]
        options["rowsperstrip"] = chance.randrange(1, 40)
    if bits not in (1, 8, 16):
        options["bitspersample"] = bits
    if extras:
        options["extrasamples"] = extras
    if channels > 1 and chance.random() < 0.4:
        options["planarconfig"], samples = "separate", np.ascontiguousarray(np.moveaxis(samples, -1, 0))
    if chance.random() < 0.5:
        options["resolution"] = (chance.choice((2.0, 4.0, 20_000.0, 50_800.0, 72.0)),) * 2
        options["resolutionunit"] = chance.choice(("NONE", "INCH", "CENTIMETER"))
        options["description"] = chance.choice(
            (None, "ImageJ=1.54f\nunit=micron\n", "ImageJ=1.54f\nunit=inch\n")
        )
    tifffile.imwrite(path, samples.squeeze(), **options)
    return path, f"{photometric} of {bits} bits, {channels} channels, {extras}, {options}"


def same_cuts(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Tiles that ``data import slides`` has cut, through ``infer``: what ``slide`` says of these places."""
    mpp, wanted = chance.choice((0.25, 0.5, 0.4)), chance.choice((0.5, 0.8, 0.4, 1.0))
    (work / "slides").mkdir()
    (work / "drawn").mkdir()
    for number in range(6):
        pixels = drawn_slide(lab, chance, chance.randint(150, 260), chance.randint(150, 260))
        height, width = pixels.shape[:2]
        kind = chance.choice(("plain", "ome", "sub", "strips", "png"))
        written(pixels, work / "slides" / f"s{number}", kind, chance, mpp)
        features = []
        for name, left, right in (("a", -1, width / 2), ("b", width / 2, width + 1)):
            ring = [(left, -1), (right, -1), (right, height + 1), (left, height + 1), (left, -1)]
            kind_of = {"objectType": "annotation", "classification": {"name": name}}
            geometry = {"type": "Polygon", "coordinates": [ring]}
            features.append({"type": "Feature", "properties": kind_of, "geometry": geometry})
        told = json.dumps({"type": "FeatureCollection", "features": features})
        (work / "drawn" / f"s{number}.geojson").write_text(told)
    words = ("--mpp", wanted, "--overlap", chance.choice((0, 0.5)))
    drawn = ("--annotations", work / "drawn", "-o", work / "data", "--size", SIDE)
    lab.mmdeploy("data", "import", "slides", work / "slides", *drawn, *words)
    lab.mmdeploy("slide", lab.bundle, work / "slides", "-o", work / "out", "--no-tissue", *words)
    rows = {f"s{n}": {row[:2]: row for row in rows_of(work / "out", f"s{n}")} for n in range(6)}
    for each in lab.inferred(work / "data"):
        name, x, y = Path(each["image"]).stem.rsplit("-", 2)
        found = {top["label"]: top["probability"] for top in each["top"]}
        expected = rows[name][int(x), int(y)].values
        yield from apart(each["image"], [found[label] for label in LABELS], expected, 6e-7 + NEAR)


RELATIONS: dict[str, Relation] = {
    each.__name__: each
    for each in (
        same_kinds,
        same_cuts,
        same_layouts,
        same_scales,
        same_batches,
        same_elsewhere,
        same_tiles,
        same_outputs,
        same_regions,
        same_tissue,
    )
}
