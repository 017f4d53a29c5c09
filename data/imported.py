"""A data set on disk as `mmdeploy data import` leaves it: what its files say, read and checked.

It holds::

    dataset.json              the manifest: classes, splits, groups, channel statistics, origin, checksums
    index.csv                 one line for each image: split, class, group, file, size, checksum, origin
    {train,val,test}/<class>/ the images, where they are files: the authors' layout, readable by anything

or, where the images are hundreds of thousands of small ones, in place of the last two::

    index.npy                 (N,) of `STACK_ROW`: split, class, stack and row of each image
    *.npy                     the stacks: (N, H, W) or (N, H, W, 3) uint8

Nothing in it is executed or unpickled, and a path that leads out of the folder is refused.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, reason_of
from ..files import lines_of, open_file, open_text, read_file, sha256_of
from ..images import FULL_WHITE, LEAST_WHITE, NO_ARRAY
from ..schema import (
    CHANNELS,
    LABELS,
    SHA256,
    SPREADS,
    TEXT,
    by_name,
    is_whole,
    listed,
    maybe,
    parsed,
    record,
    whole,
)
from ..text import as_cell, as_row, from_cell, shown
from .coverage import COVERAGE, Coverage
from .samples import FileSamples, Samples, StackedSamples
from .splitting import SPLITS

FORMAT = 1
MANIFEST, INDEX, STACK_INDEX = "dataset.json", "index.csv", "index.npy"

STACK_ROW = np.dtype([("split", "u1"), ("class", "u2"), ("stack", "u1"), ("row", "u4")])
"""One image of a stack: index of its split in `SPLITS`, of its class, of its stack, and its place there."""

MOST_IMAGES = 1_000_000_000
"""The most images that a data set is believed to hold."""

Channels = tuple[float, float, float]

_STORED = {
    "links": "hard links to the source",
    "copies": "copies",
    "made": "files made for it",
    "stack": "stacks, of which images are read where they stand",
}


@dataclass(frozen=True)
class IndexRow:
    """One image file. The fields are the columns of the index."""

    split: str
    label: str
    """Class name."""
    group: str
    """What it shares a split with, such as a patient; empty where nothing is known."""
    file: str
    """Path in the data set, with ``/``."""
    size: int
    """Bytes."""
    sha256: str
    width: int
    height: int
    """Pixels, as the image is read."""
    origin: str
    """Path in the folder that it was imported from."""


@dataclass(frozen=True)
class DataManifest:
    """What a data set is and where it comes from."""

    kind: str
    """The importer that read it."""
    source: str
    labels: tuple[str, ...]
    """Class names; a class's index is its place here."""
    counts: dict[str, dict[str, int]]
    """Images by split and class name."""
    grouped_by: str
    """What keeps images together: ``patient`` or ``pattern …``, say; empty where nothing is known of it."""
    groups: dict[str, int]
    """Groups by split; empty where nothing is known of them."""
    split: str
    """How the images were dealt, in words."""
    seed: int
    mean: Channels
    std: Channels
    """Statistics of values in [0, 1] over the training images at their own size, all weighing the same."""
    stored: str
    """``links``, ``copies``, ``made`` or ``stack``."""
    white_level: int = FULL_WHITE
    """The value of white in 16-bit images; imports of earlier versions took all 16 bits."""
    covers: Coverage | None = None
    """What the training images cover; imports of earlier versions do not say."""
    stacks: tuple[str, ...] = ()
    """The files that hold the images, where they are stacks, in the order of the index's numbers."""
    differences: tuple[str, ...] = ()
    """How the counts differ from what was published; empty when all agree or none are known."""
    notes: tuple[str, ...] = ()
    """What was passed over or decided while reading."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Images that could not be read, with the reason."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the index and the stacks; the index has those of the images."""
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """JSON, one value a line."""
        covers = None if self.covers is None else self.covers.to_dict()
        values = {"format": FORMAT, **asdict(self), "covers": covers}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, name: str) -> DataManifest:
        """The inverse of `to_json`.

        Raises:
            DataError: it is something else, or of a newer version.
        """
        again = "import it again"
        try:
            values = parsed(text, names=True)  # of files, which need not be UTF-8
        except ValueError as error:
            raise DataError(
                f"{name}: is not the manifest of an imported data set: {error}: {again}"
            ) from error
        version = values.get("format") if isinstance(values, dict) else None
        if is_whole(version, FORMAT + 1):
            raise DataError(
                f"{name}: has format {version}, this version reads up to {FORMAT}: install a newer msmamba"
            )
        if problems := _MANIFEST.problems(values):
            raise DataError(
                f"{name}: is not the manifest of an imported data set: {'; '.join(problems)}: {again}"
            )
        known = {each.name for each in fields(cls)}
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if key in known
        }
        return cls(**{**given, "covers": Coverage.from_dict(given.get("covers"))})

    @property
    def in_files(self) -> bool:
        """Whether each image is a file of its own."""
        return not self.stacks

    def to_text(self) -> str:
        """A table of the splits, and what was decided."""
        rows = {"images": [sum(counts.values()) for counts in self.counts.values()]}
        if self.groups:
            pattern = self.grouped_by.startswith("pattern ")
            rows["groups" if pattern else f"{shown(self.grouped_by)}s"] = [*self.groups.values()]
        for label in self.labels:
            rows[shown(label)] = [counts.get(label, 0) for counts in self.counts.values()]
        width = max(map(len, rows))
        lines = [" " * width + "".join(f"{name:>10}" for name in (*map(shown, self.counts), "all"))]
        lines += [
            f"{name:{width}}" + "".join(f"{value:>10,}" for value in (*values, sum(values)))
            for name, values in rows.items()
        ]
        mean, std = (" ".join(f"{value:.4f}" for value in values) for values in (self.mean, self.std))
        lines += [
            "",
            f"split     {shown(self.split)}",
            f"channels  mean {mean}, std {std}",
            *([] if self.white_level == FULL_WHITE else [f"white     {self.white_level} of 16-bit images"]),
            *([] if self.covers is None else [f"scale     {self.covers.to_text()}"]),
            f"stored    as {_STORED.get(self.stored, shown(self.stored))}",
            *(f"note      {shown(note)}" for note in self.notes),
        ]
        return "\n".join(lines) + "\n"


_COUNT = whole(0, MOST_IMAGES)
_MANIFEST = record(
    {
        "format": whole(0, FORMAT),
        **dict.fromkeys(("kind", "source", "grouped_by", "split", "stored"), TEXT),
        "labels": LABELS,
        "counts": by_name(by_name(_COUNT)),
        "groups": by_name(_COUNT),
        "seed": whole(),
        "mean": CHANNELS,
        "std": SPREADS,
    },
    optional={
        **dict.fromkeys(("stacks", "differences", "notes"), listed(TEXT)),
        **dict.fromkeys(("skipped", "versions"), by_name(TEXT)),
        "files": by_name(SHA256),
        "white_level": whole(LEAST_WHITE, FULL_WHITE),
        "covers": maybe(COVERAGE),
    },
)


@dataclass(frozen=True)
class Imported:
    """A data set that was read."""

    manifest: DataManifest
    splits: dict[str, Samples]
    groups: dict[str, tuple[str, ...]]
    """The group of each sample, by split; empty where nothing is known of them."""
    covers: Coverage | None
    """What the training images cover; None of stacks that an earlier version imported."""


def is_imported(root: Path) -> bool:
    """Whether a folder was written by an import."""
    return (root / MANIFEST).is_file()


def read_manifest(root: Path) -> DataManifest:
    """The manifest of an imported data set.

    Raises:
        DataError: it cannot be read or used.
    """
    path = root / MANIFEST
    try:
        text = read_file(path)
    except FileNotFoundError as error:
        raise DataError(
            f"{root} holds no {MANIFEST}: expected a folder that 'mmdeploy data import' wrote"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason_of(error)}") from error
    return DataManifest.from_json(text, str(path))


def read_imported(root: Path) -> Imported:
    """An imported data set, of which no image is opened.

    Raises:
        DataError: the manifest or the index is missing, changed or of a newer version.
    """
    manifest = read_manifest(root)
    index = INDEX if manifest.in_files else STACK_INDEX
    try:
        digest = sha256_of(root / index)
    except OSError as error:
        raise DataError(f"{root / index}: cannot be read: {reason_of(error)}") from error
    if digest != manifest.files.get(index):
        raise DataError(f"{root / index}: is not the one that was written by the import: import it again")
    if manifest.in_files:
        return _read_files(root, manifest)
    return Imported(manifest, _read_stacks(root, manifest), {}, manifest.covers)


def read_index(root: Path) -> Iterator[IndexRow]:
    """The lines of the index of image files.

    Raises:
        DataError: a line makes no sense, or names a file outside of the data set.
    """
    path = root / INDEX
    # Names of files are bytes: surrogates carry those that are no UTF-8.
    with open_text(path, errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(lines_of(file), strict=True)
        try:
            for values in reader:
                row = IndexRow(
                    values["split"],
                    from_cell(values["label"]),
                    from_cell(values["group"]),
                    from_cell(values["file"]),
                    int(values["size"]),
                    values["sha256"],
                    int(values["width"]),
                    int(values["height"]),
                    from_cell(values["origin"]),
                )
                _check_inside(path, row.file)
                if min(row.size, row.width, row.height) < 0:
                    raise ValueError("a size below 0")
                yield row
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {reason_of(error)}") from error
        except (csv.Error, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: line {reader.line_num} makes no sense ({error!r}): import it again"
            ) from error


def index_of(rows: Sequence[IndexRow]) -> bytes:
    """The index of image files, as a file's content."""
    lines = [as_row(each.name for each in fields(IndexRow))]
    lines += [
        as_row(as_cell(value) if isinstance(value, str) else value for value in vars(row).values())
        for row in rows
    ]
    return "".join(lines).encode("utf-8", "surrogateescape")


def check_contents(
    root: Path, advance: Callable[[int, int], None] = lambda done, files: None
) -> tuple[DataManifest, dict[str, str]]:
    """Compares every file of an imported data set with its checksum.

    Args:
        root: the data set.
        advance: called with the files done and all files.

    Returns:
        The manifest, and what is wrong with which file.

    Raises:
        DataError: the manifest or the index cannot be used.
    """
    manifest = read_imported(root).manifest
    expected = {name: digest for name, digest in manifest.files.items() if name not in (INDEX, STACK_INDEX)}
    if manifest.in_files:
        expected |= {row.file: row.sha256 for row in read_index(root)}
    for name in manifest.files:
        _check_inside(root / MANIFEST, name)
    wrong = {}
    for done, (name, digest) in enumerate(expected.items(), start=1):
        try:
            if sha256_of(root / name) != digest:
                wrong[name] = "has changed"
        except OSError as error:
            wrong[name] = reason_of(error)
        advance(done, len(expected))
    return manifest, wrong


def _read_files(root: Path, manifest: DataManifest) -> Imported:
    names: dict[str, list[str]] = {}
    classes: dict[str, list[int]] = {}
    groups: dict[str, list[str]] = {}
    sizes: list[tuple[int, int]] = []
    position = {label: number for number, label in enumerate(manifest.labels)}
    for row in read_index(root):
        if row.split not in SPLITS or row.label not in position:
            raise DataError(f"{root / INDEX}: {row.file!r} is of no split or class of the manifest")
        names.setdefault(row.split, []).append(row.file)
        classes.setdefault(row.split, []).append(position[row.label])
        groups.setdefault(row.split, []).append(row.group)
        if row.split == "train":
            sizes.append((row.height, row.width))
    present = [split for split in SPLITS if split in names]
    return Imported(
        manifest,
        {split: FileSamples(root, names[split], classes[split]) for split in present},
        {split: tuple(groups[split]) for split in present} if manifest.grouped_by else {},
        manifest.covers or Coverage.of(sizes),
    )


def _read_stacks(root: Path, manifest: DataManifest) -> dict[str, Samples]:
    path = root / STACK_INDEX
    try:
        with open_file(path) as file:
            index: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, *NO_ARRAY) as error:
        raise DataError(f"{path}: cannot be read: {reason_of(error)}: import it again") from error
    if index.dtype != STACK_ROW or index.ndim != 1:
        raise DataError(f"{path}: holds {index.dtype}, expected {STACK_ROW}: import it again")
    for name in manifest.stacks:
        _check_inside(path, name)
    stacks = [root / name for name in manifest.stacks]
    if len(index) and (
        index["stack"].max() >= len(stacks)
        or index["class"].max() >= len(manifest.labels)
        or index["split"].max() >= len(SPLITS)
    ):
        raise DataError(f"{path}: names a stack, class or split that the manifest has not: import it again")
    rows = {split: index[index["split"] == number] for number, split in enumerate(SPLITS)}
    return {
        split: StackedSamples(stacks, found["stack"], found["row"], found["class"])
        for split, found in rows.items()
        if len(found)
    }


def _check_inside(index: Path, name: str) -> None:
    path, here = PurePosixPath(name), PurePath(name)  # on Windows a backslash and a drive lead elsewhere, too
    leads_out = path.anchor or here.anchor or ".." in (*path.parts, *here.parts)
    if leads_out or not path.parts or "\0" in name:
        raise DataError(f"{index}: {name!r} leads out of the data set: expected a path below its folder")
