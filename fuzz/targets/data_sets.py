"""Data sets: npz archives, tables of labels, and the manifest and index of imported ones."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
from mutation import mutated, mutated_json, mutated_table
from seeds import Seeds, json_of

from .target import written


class Npz:
    """An archive of stacks, as TissueMNIST is published."""

    inputs = 400

    def __init__(self, seeds: Seeds) -> None:
        generator = np.random.default_rng(0)
        arrays = {}
        for split, count in {"train": 80, "val": 24, "test": 24}.items():
            arrays[f"{split}_images"] = generator.integers(0, 256, (count, 8, 8), np.uint8)
            arrays[f"{split}_labels"] = (np.arange(count) % 8).astype(np.uint8)[:, None]
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        self._good = file.getvalue()

    def make(self, generator: random.Random, folder: Path) -> Path:
        target = folder / "tissuemnist.npz"
        if generator.random() < 0.4:
            return written(target, mutated(self._good, generator))
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(self._good)) as good, zipfile.ZipFile(file, "w") as bad:
            for name in good.namelist():
                content = good.read(name)
                if generator.random() < 0.3:
                    content = mutated(content, generator)
                bad.writestr(name, content)
        return written(target, file.getvalue())

    def open(self, path: Path) -> object:
        from msmamba.data.published import ImportOptions, import_data_set

        return import_data_set("tissuemnist", path, path.parent / "out", ImportOptions(threads=1))


_IMAGES = 30


class Tables:
    """The tables that published data sets come with."""

    inputs = 600

    def __init__(self, seeds: Seeds) -> None:
        self._image = next((seeds.cells).rglob("*.png")).read_bytes()
        head = "Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition"
        rows = [
            f"i{n}.png,{'SSA' if n % 3 else 'HP'},{5 if n % 3 else 1},{'train' if n % 4 else 'test'}"
            for n in range(_IMAGES)
        ]
        self._mhist = "\n".join([head, *rows])
        rows = [
            f"2019-{n // 2:05}-1-1-1_2019-05-28 16_40_29-lv1-1-1-1-{n},i{n}.png,{n % 2}"
            for n in range(_IMAGES)
        ]
        self._colon = "\n".join(["slide_id,img_id,tumor", *rows])

    def make(self, generator: random.Random, folder: Path) -> Path:
        kind = generator.choice(("mhist", "medfm-colon"))
        source = folder / kind
        (source / "images").mkdir(parents=True)
        for number in range(_IMAGES):
            written(source / "images" / f"i{number}.png", self._image + bytes([number]))
        name, text = ("annotations.csv", self._mhist) if kind == "mhist" else ("colon_train.csv", self._colon)
        written(source / name, mutated_table(text, generator))
        return source

    def open(self, path: Path) -> object:
        from msmamba.data.published import ImportOptions, import_data_set

        return import_data_set(path.name, path, path.parent / "out", ImportOptions(threads=1))


class _Imported:
    inputs = 1

    def __init__(self, seeds: Seeds) -> None:
        self._good = seeds.imported

    def _copy(self, folder: Path) -> Path:
        return Path(shutil.copytree(self._good, folder / "data"))

    def open(self, path: Path) -> object:
        from msmamba.data.folders import read_training_folder
        from msmamba.data.imported import check_contents

        read_training_folder(path).counts()
        manifest, wrong = check_contents(path)
        return manifest.to_text(), wrong


class DataManifests(_Imported):
    """An imported data set whose manifest says something else."""

    inputs = 1000

    def make(self, generator: random.Random, folder: Path) -> Path:
        data = self._copy(folder)
        written(data / "dataset.json", mutated_json(json_of(data / "dataset.json"), generator))
        return data


class Index(_Imported):
    """An imported data set with another index, whose checksum the manifest has."""

    inputs = 600

    def make(self, generator: random.Random, folder: Path) -> Path:
        data = self._copy(folder)
        manifest = json.loads((data / "dataset.json").read_bytes())
        content = mutated_table((data / "index.csv").read_text(), generator)
        written(data / "index.csv", content)
        manifest["files"]["index.csv"] = hashlib.sha256(content).hexdigest()
        written(data / "dataset.json", json.dumps(manifest).encode())
        return data
