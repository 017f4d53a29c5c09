"""The same images to train on: in other files and folders, by more workers, stopped and gone on with."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .doors import near
from .lab import Lab, Relation, differ, save


def images(lab: Lab, chance: random.Random, folder: Path, each: int = 8) -> list[Path]:
    """``<class>/*.png`` of two classes in colours of their own."""
    found = []
    for label, colour in {"dark": (60, 40, 90), "light": (190, 200, 170)}.items():
        (folder / label).mkdir(parents=True)
        for number in range(each):
            pixels = lab.drawn(chance, 36, 36) // 3 + np.array(colour, np.uint8) // 2
            found.append(save(pixels.astype(np.uint8), folder / label / f"{number}.png"))
    return found


def weights(run: Path) -> dict[str, bytes]:
    """The tensors of a run's checkpoint."""
    from safetensors.numpy import load_file

    return {name: each.tobytes() for name, each in load_file(run / "best.safetensors").items()}


def history(run: Path) -> list[dict[str, Any]]:
    """What was lost in each epoch, without times."""
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def read(run: Path) -> list[dict[str, str]]:
    """The rows of a run's predictions."""
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def trained(lab: Lab, data: object, run: Path, *words: object) -> Path:
    """A run of two short epochs."""
    every = ("--image-size", 32, "--warm-up", 0, "--batch-size", 8, "--threads", 1, "--lr", 1e-3)
    epochs = () if "--epochs" in words else ("--epochs", 2)
    lab.mmdeploy("train", data, "-o", run, *every, *epochs, *words)
    return run


def same_run(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """The same weights from another place, format, number of workers, and in two goes."""
    paths = images(lab, chance, work / "in")
    words = chance.choice(((), ("--preset", "micrographs", "--image-size", 32), ("--average", 2)))
    expected = trained(lab, work / "in", work / "one", *words)
    kind = chance.choice(("tif", "bmp", "png"))
    for path in sorted(paths, key=lambda _: chance.random()):
        target = work / "other place" / path.parent.name / f"{path.stem}.{kind}"
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            if kind == "png":
                image.save(target, compress_level=1)
            else:
                image.save(target)
    found = trained(lab, work / "other place", work / "two", *words, "--workers", chance.randrange(3))
    yield from differ("history", history(found), history(expected))
    yield from differ(
        "weights", [n for n, each in weights(found).items() if weights(expected)[n] != each], []
    )
    lines = [(run / "predictions.csv").read_text().replace(f".{kind}", ".png") for run in (found, expected)]
    yield from differ("predictions", lines[0], lines[1])
    one, other = (json.loads((run / "metrics.json").read_bytes()) for run in (found, expected))
    for key in one.keys() - {"data", "seconds", "model"}:
        yield from near(key, one[key], other[key])
    lab.mmdeploy("data", "import", "folder", work / "in", "-o", work / "imported")
    imported = trained(lab, work / "imported", work / "three", *words)
    said = [
        sorted((row["split"], row["image"].removeprefix(f"{row['split']}/")) for row in rows)
        for rows in (read(expected), read(imported))
    ]
    yield from differ("split of an import", said[1], said[0])
    tested = lab.mmdeploy("eval", imported / "best.safetensors", work / "imported", "--format", "json").json
    told = json.loads((imported / "metrics.json").read_bytes())
    said = told.get("metrics", told).get("test", told.get("metrics", told))
    for name in ("accuracy", "auc", "f1", "precision", "recall"):
        if name in said:
            yield from near(f"test's {name}", tested["metrics"][name], said[name], 1e-9)


def same_tables(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """``table`` of runs in another order and format has the same rows."""
    images(lab, chance, work / "in")
    runs = [
        trained(lab, work / "in", work / name, "--epochs", 1, *more)
        for name, more in (("one", ()), ("two", ("--no-mifa",)))
    ]
    found = []
    for order in (runs, runs[::-1]):
        out = lab.mmdeploy("table", *order, "--format", "csv", "--resamples", 200).out
        found.append(sorted(map(tuple, csv.reader(out.splitlines()))))
    yield from differ("rows", found[1], found[0])


RELATIONS: dict[str, Relation] = {each.__name__: each for each in (same_run, same_tables)}
