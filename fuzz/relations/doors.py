"""One picture through every door: ``infer``, Python, ``eval``, ``verify``, ``slide`` and ``live``."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from seeds import LABELS, SIDE

from .files import containers, values
from .lab import TRAINED, Lab, Pixels, Relation, apart, differ, save, save_lively
from .slides import FIELD, rows_of


def same_answer(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """A picture of a tile's size through every door, with a guard."""
    import msmamba
    from msmamba.microscope import stream

    (work / "in").mkdir()
    paths = [save(lab.drawn(chance, TRAINED, TRAINED), work / "in" / f"{number}.png") for number in range(3)]
    rows = lab.inferred(*paths, artefact=lab.guarded)
    expected = [values(row) for row in rows]
    decided = [(row["decided"], row["reasons"], row["candidates"]) for row in rows]
    with msmamba.open(lab.guarded) as session:
        said = session.classify(paths)
        yield from apart("classify", [each.probabilities for each in said], expected)
        yield from differ("classify decides", [told(each) for each in said], decided)
        images = np.stack([session.prepare(path)[0] for path in paths])
        qualities = [session.quality_of(np.asarray(Image.open(path))) for path in paths]
        said = session.predict(images, qualities=qualities)
        yield from apart("predict", [each.probabilities for each in said], expected)
        yield from differ("predict decides", [told(each) for each in said], decided)
        with closing(stream(session, work / "in", keep_all=True)) as results:
            found = [*results]
        yield from apart("stream", [each.probabilities for each in found], expected)
        yield from differ("stream decides", [told(each) for each in found], decided)
    lines = lab.mmdeploy("live", lab.guarded, work / "in", "--no-page", "--keep-all").rows
    yield from apart("live", [each["probabilities"] for each in lines], expected)
    yield from differ("live decides", [(x["decided"], x["reasons"], x["candidates"]) for x in lines], decided)
    lines = lab.mmdeploy("live", lab.guarded, work / "in", "--no-page", "--keep-all", "--tiles", 1).rows
    yield from apart("live, one tile", [each["probabilities"] for each in lines], expected, 1e-6)
    yield from differ(
        "live, one tile, decides", [each["decided"] for each in lines], [each[0] for each in decided]
    )
    lab.mmdeploy("slide", lab.guarded, *paths, "-o", work / "out", *FIELD)
    for number, path in enumerate(paths):
        (row,) = rows_of(work / "out", path.stem)
        yield from apart("slide", row.values, expected[number], 6e-7)
        yield from differ("slide decides", row.decided, "yes" if decided[number][0] else "no")
    model = lab.guarded / "model.onnx"
    yield from differ("model.onnx", [values(row) for row in lab.inferred(*paths, artefact=model)], expected)
    shutil.copytree(lab.guarded, work / "copy")
    yield from differ("copy", [values(row) for row in lab.inferred(*paths, artefact=work / "copy")], expected)


def told(said: Any) -> tuple[Any, ...]:
    """What a guard says of a prediction or a result."""
    return said.decided, [*said.reasons], [*said.candidates]


def labelled(lab: Lab, chance: random.Random, folder: Path, count: int) -> dict[Path, str]:
    """``<class>/*.png``: pictures of any class."""
    found = {}
    for number in range(count):
        label = LABELS[number % len(LABELS)] if number < 2 * len(LABELS) else chance.choice(LABELS)
        (folder / label).mkdir(parents=True, exist_ok=True)
        found[save(lab.picture(chance), folder / label / f"{number}.png")] = label
    return found


def figures(said: Any) -> dict[str, Any]:
    """What ``eval`` has measured, by class."""
    metrics = {**said["metrics"]}
    classes = metrics.pop("classes")
    metrics.pop("labels", None)
    names = [each["label"] for each in classes]
    confusion = metrics.pop("confusion")
    cells = {(a, b): confusion[i][j] for i, a in enumerate(names) for j, b in enumerate(names)}
    return {**metrics, **{each["label"]: each for each in classes}, "cells": cells, "trust": said["trust"]}


def near(name: str, found: Any, expected: Any, most: float = 1e-9) -> Iterator[str]:
    """Says where two nested values are farther apart than they may be."""
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        for key, value in found.items():
            yield from near(f"{name}, {key}", value, expected[key], most)
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from near(f"{name}, {place}", one, other, most)
    elif isinstance(found, float) and isinstance(expected, float):
        yield from apart(name, found, expected, most)
    else:
        yield from differ(name, found, expected)


def same_counts(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """``eval`` beside ``infer``, counted; a checkpoint beside its bundle; ``verify`` of them."""
    truth = labelled(lab, chance, work / "in", 20)
    artefact = chance.choice((lab.bundle, lab.guarded))
    said = lab.mmdeploy("eval", artefact, work / "in", "--format", "json").json
    rows = {Path(row["image"]): row for row in lab.inferred(work / "in", artefact=artefact)}
    cells = Counter((label, rows[path]["label"]) for path, label in truth.items())
    found = figures(said)
    yield from differ("cells", {at: n for at, n in found["cells"].items() if n}, dict(cells))
    right = sum(count for (one, other), count in cells.items() if one == other)
    yield from apart("accuracy", said["metrics"]["accuracy"], right / len(truth), 1e-9)
    if artefact is lab.guarded:
        answered = sum(row["decided"] for row in rows.values())
        yield from apart("answered", find(said["trust"], "coverage"), answered / len(truth), 1e-9)
    words = (("--batch-size", 1), ("--batch-size", 7), ("--threads", 2))
    again = figures(
        lab.mmdeploy("eval", artefact, work / "in", "--format", "json", *chance.choice(words)).json
    )
    yield from near("batches", again, found, 1e-5)
    if artefact is lab.bundle:
        network = figures(lab.mmdeploy("eval", lab.checkpoint, work / "in", "--format", "json").json)
        yield from near("checkpoint", network, found, 1e-5)
    copy = work / "copy"
    shutil.copytree(artefact, copy)
    parity = lab.mmdeploy(
        "verify", copy, "--against", lab.checkpoint, "--data", work / "in", "--format", "json"
    ).json
    if parity.get("decision"):
        yield from apart("verify", find(parity["decision"], "accuracy"), said["metrics"]["accuracy"], 1e-9)


def find(values_: Any, name: str) -> Any:
    """The first number below a name in nested values."""
    waiting: list[Any] = [values_]
    while waiting:
        each = waiting.pop(0)
        if isinstance(each, dict):
            if name in each:
                inner = each[name]
                while isinstance(inner, dict):
                    inner = next(iter(inner.values()))
                return inner
            waiting.extend(each.values())
    return None


def same_folders(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Labelled images moved, copied, linked, written anew in another order or time, and imported."""
    truth = labelled(lab, chance, work / "in", 24)
    expected = figures(lab.mmdeploy("eval", lab.bundle, work / "in", "--format", "json").json)
    shutil.copytree(work / "in", work / "copy")
    moved = work / "a folder, moved"
    for path, label in sorted(truth.items(), key=lambda _: chance.random()):
        (moved / label).mkdir(parents=True, exist_ok=True)
        target = moved / label / path.name
        os.link(path, target) if chance.random() < 0.5 else shutil.copy(path, target)
        os.utime(target, (chance.randrange(1 << 30),) * 2)
    for junk in ("Thumbs.db", ".DS_Store", "notes.txt"):
        (moved / LABELS[0] / junk).write_bytes(b"x")
        (moved / junk).write_bytes(b"x")
    (moved / ".hidden").mkdir()
    (moved / "__MACOSX").mkdir()
    for folder in (work / "copy", moved, f"{work / 'in'}/", work / "copy" / ".." / "in"):
        found = figures(lab.mmdeploy("eval", lab.bundle, folder, "--format", "json").json)
        yield from near(str(folder), found, expected)
    lab.mmdeploy("data", "import", "folder", work / "in", "-o", work / "one", "--seed", 3)
    lab.mmdeploy("data", "import", "folder", moved, "-o", work / "two", "--seed", 3, "--copy")
    yield from differ("index", dealt(work / "two"), dealt(work / "one"))
    manifests = [json.loads((work / name / "dataset.json").read_bytes()) for name in ("one", "two")]
    for key in ("labels", "mean", "std", "white_level", "covers", "counts"):
        yield from differ(key, manifests[1].get(key), manifests[0].get(key))
    for split in ("train", "val", "test"):
        one, two = (
            figures(lab.mmdeploy("eval", lab.bundle, work / name, "--split", split, "--format", "json").json)
            for name in ("one", "two")
        )
        yield from near(split, two, one)
    bare = work / "bare"
    for split in ("train", "val", "test"):
        shutil.copytree(work / "one" / split, bare / split)
    one, two = (
        figures(lab.mmdeploy("eval", lab.bundle, folder, "--format", "json").json)
        for folder in (work / "one", bare)
    )
    yield from near("without the import's files", two, one)


def dealt(folder: Path) -> list[tuple[str, ...]]:
    """Split, class, group and checksum of each image of an import."""
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        return sorted(
            (row["split"], row["label"], row["group"], row["sha256"]) for row in csv.DictReader(file)
        )


def same_classes(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Classes under other names, in another order: figures go along."""
    truth = labelled(lab, chance, work / "in", 20)
    order = chance.sample(range(3), 3)
    names = {LABELS[place]: f"{'cab'[number]} {LABELS[place]}" for number, place in enumerate(order)}
    inner = sorted(names.values())
    rows = tuple(LABELS.index(next(old for old, new in names.items() if new == each)) for each in inner)
    save_lively(work / "other.safetensors", tuple(inner), rows)
    for path, label in truth.items():
        (work / "other" / names[label]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, work / "other" / names[label] / path.name)
    one = figures(lab.mmdeploy("eval", lab.checkpoint, work / "in", "--format", "json").json)
    two = figures(lab.mmdeploy("eval", work / "other.safetensors", work / "other", "--format", "json").json)
    back = {new: old for old, new in names.items()}
    two["cells"] = {(back[a], back[b]): n for (a, b), n in two["cells"].items()}
    for new, old in back.items():
        two[old] = {**two.pop(new), "label": old}
    for each in (one, two):  # intervals are drawn at random, by the images' order
        each["trust"] = {key: value for key, value in each["trust"].items() if not isinstance(value, dict)}
    yield from near("renamed", two, one, 1e-5)
    lab.mmdeploy("data", "import", "folder", work / "in", "-o", work / "one")
    lab.mmdeploy("data", "import", "folder", work / "other", "-o", work / "two")
    if [names[label] for label in LABELS] == inner:
        same = [(split, names[label], group, sha) for split, label, group, sha in dealt(work / "one")]
        yield from differ("same split under other names", dealt(work / "two"), sorted(same))


def same_doubled(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Each image twice: shares stay, and intervals do, as a copy says nothing new."""
    truth = labelled(lab, chance, work / "in", 20)
    for path, label in truth.items():
        (work / "twice" / label).mkdir(parents=True, exist_ok=True)
        for copy in "ab":
            shutil.copy(path, work / "twice" / label / f"{path.stem}{copy}.png")
    one, two = (
        figures(lab.mmdeploy("eval", lab.bundle, folder, "--format", "json").json)
        for folder in (work / "in", work / "twice")
    )
    for name in ("accuracy", "auc", "f1", "precision", "recall"):
        yield from apart(name, two[name], one[name], 1e-9)
    yield from differ("cells", two["cells"], {at: 2 * count for at, count in one["cells"].items()})
    lab.mmdeploy("data", "import", "folder", work / "twice", "-o", work / "dealt")
    split_of: dict[str, set[str]] = {}
    for split, _, _, sha in dealt(work / "dealt"):
        split_of.setdefault(sha, set()).add(split)
    yield from differ("copies apart", [each for each in split_of.values() if len(each) > 1], [])


def same_groups(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Groups as folders and as names: the same split, none of them torn."""
    groups = [f"P{number}" for number in range(chance.randrange(6, 12))]
    for number in range(60):
        label, group = chance.choice(LABELS), chance.choice(groups)
        pixels = lab.drawn(chance, 20, 20)
        for folder, name in (("folders", f"{group}/{number:03}.png"), ("names", f"{group}_{number:03}.png")):
            path = work / folder / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            save(pixels, path)
    lab.mmdeploy(
        "data", "import", "folder", work / "folders", "-o", work / "one", "--group-by", "/(P[0-9]+)/"
    )
    lab.mmdeploy("data", "import", "folder", work / "names", "-o", work / "two", "--group-by", "^(P[0-9]+)_")
    yield from differ("split", dealt(work / "two"), dealt(work / "one"))
    of_group: dict[str, set[str]] = {}
    for split, _, group, _ in dealt(work / "one"):
        of_group.setdefault(group, set()).add(split)
    yield from differ("torn", [each for each in of_group.values() if len(each) > 1], [])


def same_exports(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Two exports are the same bytes, from another place too, and of PyTorch's own file."""
    import torch
    from safetensors.torch import load_file

    other = work / "elsewhere" / chance.choice(("a b", "ä", "x")) / "net.safetensors"
    other.parent.mkdir(parents=True)
    shutil.copy(lab.checkpoint, other)
    lab.mmdeploy("export", other, "-o", work / "one")
    lab.mmdeploy("export", lab.checkpoint, "-o", work / "two")
    one, two = ({p.name: p.read_bytes() for p in (work / name).iterdir()} for name in ("one", "two"))
    for name in sorted({*one, *two} - {"manifest.json"}):
        yield from differ(f"{name} is the same", one.get(name) == two.get(name), True)
    manifests = [json.loads(each["manifest.json"]) for each in (one, two)]
    changed = {key for key in manifests[0] if manifests[0][key] != manifests[1][key]}
    yield from differ("manifests", changed - {"created"}, set())
    torch.save({"model": load_file(lab.checkpoint)}, work / "net.pth")
    (work / "labels.txt").write_text("\n".join(LABELS))
    said = (
        "--labels",
        work / "labels.txt",
        "--mean",
        0.6,
        0.5,
        0.7,
        "--std",
        0.2,
        0.25,
        0.15,
        "--image-size",
        SIDE,
    )
    lab.mmdeploy("export", work / "net.pth", "-o", work / "three", *said)
    pictures = lab.pictures(chance, work / "in", 6)
    expected = [values(row) for row in lab.inferred(*pictures)]
    for name in ("one", "two", "three"):
        yield from differ(
            name, [values(row) for row in lab.inferred(*pictures, artefact=work / name)], expected
        )
    lab.mmdeploy("export", lab.checkpoint, "-o", work / "half", "--fp16")
    half = [values(row) for row in lab.inferred(*pictures, artefact=work / "half")]
    yield from apart("fp16", half, expected, 0.05)


def same_heat(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Heat maps of the same pixels in other files, alone and among others, for the class by its name."""
    pixels = lab.picture(chance)
    (work / "in").mkdir()
    several = containers(pixels, chance, work / "in")
    kept = chance.sample(sorted(several), 4)
    for name in sorted(several):
        if name not in kept:
            several[name].unlink()
    method = ("--method", chance.choice(("gradcam", "occlusion")))
    lab.mmdeploy("explain", lab.checkpoint, work / "in", "-o", work / "out", *method)
    maps = [np.asarray(Image.open(path).convert("RGB")) for path in sorted((work / "out").rglob("*.png"))]
    yield from differ("maps", len(maps), 4)
    alone = save(pixels, work / "alone.png")
    (row,) = lab.inferred(alone)
    lab.mmdeploy("explain", lab.checkpoint, alone, "-o", work / "one", *method)
    lab.mmdeploy("explain", lab.checkpoint, alone, "-o", work / "two", *method, "--class", row["label"])
    one, two = (next((work / name).rglob("*.png")).read_bytes() for name in ("one", "two"))
    yield from differ("class by its name is the same", one == two, True)


def same_sources(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """The same pictures to ``live`` from a folder, a video without loss, and in tiles."""
    import av

    height, width = 2 * chance.randrange(16, 40), 2 * chance.randrange(16, 40)
    frames = [lab.drawn(chance, height, width) for _ in range(6)]
    (work / "in").mkdir()
    for number, pixels in enumerate(frames):
        save(pixels, work / "in" / f"{number}.png")
    with av.open(str(work / "film.mkv"), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=chance.choice((5, 30, 200)))
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for pixels in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    words = ("--no-page", "--keep-all")
    grid = chance.choice(((), ("--tiles", chance.randrange(1, 5)), ("--mpp", 0.4, "--assume-mpp", 0.4)))
    folder = lab.mmdeploy("live", lab.guarded, work / "in", *words, *grid).rows
    film = lab.mmdeploy("live", lab.guarded, work / "film.mkv", *words, *grid).rows
    keys = ("label", "probability", "probabilities", "quality", "decided", "reasons", "candidates", "map")
    for one, other in zip(film, folder, strict=True):
        for key in (*keys, "number", "undecided"):
            yield from near(f"film, {key}", one.get(key), other.get(key), 1e-6)
    (work / "still").mkdir()
    for number in range(4):
        save(frames[0], work / "still" / f"{number}.png")
    for row in lab.mmdeploy("live", lab.guarded, work / "still", *words, *grid).rows:
        for key in keys:
            yield from near(f"still, {key}", row.get(key), folder[0].get(key), 1e-6)
    (one,) = lab.mmdeploy("live", lab.guarded, work / "in" / "0.png", *words, *grid).rows
    for key in keys:
        yield from near(f"alone, {key}", one.get(key), folder[0].get(key), 1e-6)
    if grid:
        small = folder[0]["tiles"]["side"]
        for y, across in enumerate(folder[0]["map"]):
            for x, found in enumerate(across):
                part = frames[0][y * small : (y + 1) * small, x * small : (x + 1) * small]
                if part.shape[0] < small or part.shape[1] < small:
                    beyond = [(0, small - length) for length in part.shape[:2]]
                    part = np.pad(part, (*beyond, (0, 0)), "symmetric")
                yield from apart(f"tile {x}, {y}", found, guarded(lab, part), 6e-5)
        withheld = {tuple(at) for at in folder[0]["undecided"]}
        rows, columns = len(folder[0]["map"]), len(folder[0]["map"][0])
        counted = [
            folder[0]["map"][y][x] for y in range(rows) for x in range(columns) if (y, x) not in withheld
        ] or [each for across in folder[0]["map"] for each in across]
        yield from apart("mean of the decided", folder[0]["probabilities"], np.mean(counted, axis=0), 6e-5)
        yield from differ(
            "decided", folder[0]["decided"], 2 * (rows * columns - len(withheld)) >= rows * columns
        )


def guarded(lab: Lab, pixels: Pixels) -> tuple[float, ...]:
    """The guarded bundle's probabilities of a picture."""
    import msmamba

    with msmamba.open(lab.guarded, threads=1) as session:
        return tuple(session.classify([pixels])[0].probabilities)


def same_depth(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """12-bit images by a bundle's white level, in strips and tiles beside their eight high bits."""
    lab.mmdeploy("export", lab.checkpoint, "--white-level", 4095, "-o", work / "bundle")
    noise = np.random.default_rng(chance.getrandbits(32))
    layouts: dict[str, dict[str, Any]] = {
        "strips": {"rowsperstrip": 7},
        "tiles": {"tile": (16, 32), "compression": "zlib"},
    }
    for number in range(12):
        pixels = lab.drawn(chance, TRAINED, TRAINED)
        values_ = (pixels.astype(np.uint16) << 4) | noise.integers(0, 16, pixels.shape, np.uint16)
        for name in ("eight", *layouts):
            (work / name / LABELS[number % 3]).mkdir(parents=True, exist_ok=True)
        save(pixels, work / "eight" / LABELS[number % 3] / f"{number}.png")
        for name, options in layouts.items():
            path = work / name / LABELS[number % 3] / f"{number}.tif"
            tifffile.imwrite(path, values_, photometric="rgb", metadata=None, **options)
    words = ("--pixel-for-pixel", "--no-tissue")
    expected = [values(row) for row in lab.inferred(work / "eight", artefact=work / "bundle")]
    measured = figures(lab.mmdeploy("eval", work / "bundle", work / "eight", "--format", "json").json)
    for name in layouts:
        found = [values(row) for row in lab.inferred(work / name, artefact=work / "bundle")]
        yield from differ(f"{name}, infer", found, expected)
        lines = lab.mmdeploy("live", work / "bundle", work / name, "--no-page", "--keep-all").rows
        yield from apart(f"{name}, live", [line["probabilities"] for line in lines], expected)
        lab.mmdeploy("slide", work / "bundle", work / name, "-o", work / f"out-{name}", *words)
        places = sorted(range(12), key=lambda number: (LABELS[number % 3], str(number)))
        rows = [rows_of(work / f"out-{name}", str(number))[0].values for number in places]
        yield from apart(f"{name}, slide", rows, expected, 1e-6)
        found_figures = figures(lab.mmdeploy("eval", work / "bundle", work / name, "--format", "json").json)
        yield from near(f"{name}, eval", found_figures, measured)


RELATIONS: dict[str, Relation] = {
    each.__name__: each
    for each in (
        same_answer,
        same_counts,
        same_folders,
        same_classes,
        same_doubled,
        same_groups,
        same_exports,
        same_heat,
        same_sources,
        same_depth,
    )
}
