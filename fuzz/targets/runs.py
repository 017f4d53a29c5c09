"""What runs and exports leave and read again: configs, states, figures, predictions, measured ranges."""

from __future__ import annotations

import io
import json
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
from mutation import mutated, mutated_json, mutated_table
from seeds import SIDE, Seeds, json_of

from .target import written


class Runs:
    """A run's config or figures say something else; the table of runs reads both."""

    inputs = 600

    def __init__(self, seeds: Seeds) -> None:
        self._good = seeds.run

    def make(self, generator: random.Random, folder: Path) -> Path:
        run = folder / generator.choice(("run", "r[/x]", "r[red]"))
        run.mkdir(parents=True)
        for name in ("config.json", "metrics.json", "predictions.csv", "history.jsonl"):
            shutil.copy(self._good / name, run / name)
        name = generator.choice(("config.json", "metrics.json"))
        written(run / name, mutated_json(json_of(run / name), generator))
        return run

    def open(self, path: Path) -> object:
        from msmamba.model.evaluation.table import compare
        from msmamba.model.training.run import RunFolder

        RunFolder(path).read_beginning()
        table = compare([path], resamples=100)
        return table.to_text(), table.to_csv(), table.to_latex()


class RunStates:
    """The state to resume from, damaged."""

    inputs = 200

    def __init__(self, seeds: Seeds) -> None:
        self._good = (seeds.run / "last.pt").read_bytes()

    def make(self, generator: random.Random, folder: Path) -> Path:
        written(folder / "last.pt", mutated(self._good, generator))
        return folder

    def open(self, path: Path) -> object:
        from msmamba.model.training.run import RunFolder

        return RunFolder(path).read_state()


class PredictionFiles:
    """Predictions with other cells."""

    inputs = 3000

    def __init__(self, seeds: Seeds) -> None:
        self._good = (seeds.run / "predictions.csv").read_text()

    def make(self, generator: random.Random, folder: Path) -> Path:
        return written(folder / "predictions.csv", mutated_table(self._good, generator))

    def open(self, path: Path) -> object:
        from msmamba.measures.predictions import read_predictions

        return {split: found.metrics() for split, found in read_predictions(path).items()}


class CalibrationCaches:
    """Measured ranges, damaged as an archive, as arrays, or in their head."""

    inputs = 600

    def __init__(self, seeds: Seeds) -> None:
        import onnx

        from msmamba.calib.activations import measure
        from msmamba.calib.data import CalibrationImage, CalibrationSet
        from msmamba.files import sha256_of
        from msmamba.images import Transform

        image = min(seeds.cells.rglob("*.png"))
        images = CalibrationSet((CalibrationImage(image, image.name, "cell", sha256_of(image)),), 0, 1)
        transform = Transform(SIDE, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
        model = (seeds.bundle / "model.onnx").read_bytes()
        values = ["image", onnx.load_from_string(model).graph.node[0].output[0]]
        self._measure = lambda cache: measure(model, values, images, transform, cache)
        good = seeds.folder / "image.calib"
        self._measure(good)
        self._good = good.read_bytes()
        with np.load(io.BytesIO(self._good), allow_pickle=False) as arrays:
            self._arrays = dict(arrays)
        self._head = json.loads(str(self._arrays.pop("header")))

    def make(self, generator: random.Random, folder: Path) -> Path:
        target, how = folder / "bundle.calib", generator.randrange(3)
        if how == 0:
            return written(target, mutated(self._good, generator))
        file = io.BytesIO()
        if how == 1:
            head = mutated_json(self._head, generator).decode("utf-8", "replace")
            np.savez_compressed(file, header=np.array(head), **self._arrays)
            return written(target, file.getvalue())
        with zipfile.ZipFile(io.BytesIO(self._good)) as good, zipfile.ZipFile(file, "w") as bad:
            for name in good.namelist():
                content = good.read(name)
                if generator.random() < 0.5:
                    content = mutated(content, generator)
                bad.writestr(name, content)
        return written(target, file.getvalue())

    def open(self, path: Path) -> object:
        return self._measure(path)
