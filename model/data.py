"""Labelled images in folders: which image belongs to which class and which split.

Two layouts are read: the authors' ``{train,val,test}/<class>/*``, and a flat ``<class>/*`` that is split
here, 6:2:2, stratified and seeded, optionally so that no group (a patient, a slide) is in two splits.
Nothing is copied or moved, and no image is opened.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..images import SUFFIXES

SPLITS = ("train", "val", "test")
SMALLEST_CLASS = 4
"""Images that a class of a flat folder needs: two to train on, one to validate with, one to test with."""
FOLDS = {"train": 3, "val": 1, "test": 1}
"""Fifths of a flat folder that go to each split: 6:2:2."""

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Sample:
    """One image file and its class."""

    path: Path
    label: int
    """Index into the class names."""


@dataclass(frozen=True)
class ImageFolder:
    """A data set on disk."""

    root: Path
    labels: tuple[str, ...]
    """Class names, sorted; a class's index is its place here."""
    splits: dict[str, tuple[Sample, ...]]
    """Samples by split, in the order of their paths."""
    group_by: str | None = None
    """The pattern by which groups were kept, or found to be, in one split each."""

    def split(self, name: str) -> tuple[Sample, ...]:
        """The samples of one split.

        Raises:
            DataError: there is no such split, or it is empty.
        """
        samples = self.splits.get(name)
        if not samples:
            present = ", ".join(key for key, value in self.splits.items() if value) or "none"
            raise DataError(f"{self.root}: has no images in a {name!r} split (splits with images: {present})")
        return samples

    def counts(self) -> dict[str, dict[str, int]]:
        """Images by split and class name."""
        tallies = {name: Counter(sample.label for sample in samples) for name, samples in self.splits.items()}
        return {
            name: {label: tally[index] for index, label in enumerate(self.labels)}
            for name, tally in tallies.items()
        }

    @property
    def digest(self) -> str:
        """sha256 over every split, class and relative path: equal for the same files dealt the same way."""
        lines = [
            f"{name}\t{self.labels[sample.label]}\t{sample.path.relative_to(self.root).as_posix()}\n"
            for name, samples in sorted(self.splits.items())
            for sample in samples
        ]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_training_folder(
    root: str | Path, *, seed: int = 0, group_by: re.Pattern[str] | None = None
) -> ImageFolder:
    """Reads a folder to train on; a flat one is split.

    Args:
        root: ``{train,val,test}/<class>/*`` (without ``test`` if there is none) or ``<class>/*``.
        seed: of the split of a flat folder.
        group_by: finds the group in a file name: its first group, or the whole match where it has none. In
            a flat folder no group is put in two splits; in the authors' layout that is checked.

    Raises:
        DataError: not a folder, no or one class, a class with too few images, a class without training
            images, an empty split, a name without a group, a group in two splits.
    """
    root = Path(root)
    if _has_splits(root):
        data = _read_splits(root)
        for name in ("train", "val"):
            data.split(name)
        if group_by is not None:
            _check_groups_apart(data, group_by)
    else:
        data = _split_flat(root, seed, group_by)
    _check_trainable(data)
    return replace(data, group_by=group_by.pattern if group_by else None)


def read_evaluation_folder(root: str | Path, split: str | None = None) -> ImageFolder:
    """Reads a folder to evaluate on; its only split holds the images to use.

    Args:
        root: ``{train,val,test}/<class>/*`` or ``<class>/*``.
        split: which split of the first layout, ``test`` by default. A flat folder is used whole.

    Raises:
        DataError: not a folder, no class, the split is missing or empty, or asked of a flat folder.
    """
    root = Path(root)
    if _has_splits(root):
        data = _read_splits(root)
        name = split or "test"
        return ImageFolder(root, data.labels, {name: data.split(name)})
    if split is not None:
        raise DataError(
            f"{root}: has class folders but no {split!r} folder; leave the split out to use all its images"
        )
    labels, samples = _read_classes(root)
    data = ImageFolder(root, labels, {"all": samples})
    data.split("all")
    return data


def match_labels(data: ImageFolder, labels: Sequence[str]) -> ImageFolder:
    """The same samples with the class indices of ``labels``, matched by name.

    Args:
        data: its classes may be fewer, and in another order.
        labels: a model's class names by index.

    Raises:
        DataError: classes that the model does not know.
    """
    unknown = sorted(set(data.labels) - set(labels))
    if unknown:
        raise DataError(
            f"{data.root}: {len(unknown)} classes are unknown to the model: {_some(unknown)} "
            f"(it knows {_some(labels)})"
        )
    index = [labels.index(label) for label in data.labels]
    splits = {
        name: tuple(Sample(sample.path, index[sample.label]) for sample in samples)
        for name, samples in data.splits.items()
    }
    return ImageFolder(data.root, tuple(labels), splits)


def _has_splits(root: Path) -> bool:
    if not root.is_dir():
        raise DataError(
            f"{root}: {'is not a folder' if root.exists() else 'does not exist'}; expected image folders"
        )
    return any((root / name).is_dir() for name in SPLITS)


def _read_splits(root: Path) -> ImageFolder:
    """The authors' layout. The training split, where there is one, says what the classes are."""
    present = [name for name in SPLITS if (root / name).is_dir()]
    folders = {name: _class_folders(root / name) for name in present}
    labels = tuple(folder.name for folder in folders[present[0]])
    strange = sorted(
        f"{name}/{folder.name}" for name in present for folder in folders[name] if folder.name not in labels
    )
    if strange:
        raise DataError(
            f"{root}: {_some(strange)} {'is' if len(strange) == 1 else 'are'} no class of "
            f"{present[0]!r}, which has {_some(labels)}"
        )
    splits = {
        name: tuple(
            Sample(path, labels.index(folder.name)) for folder in folders[name] for path in _images(folder)
        )
        for name in present
    }
    return ImageFolder(root, labels, splits)


def _read_classes(root: Path) -> tuple[tuple[str, ...], tuple[Sample, ...]]:
    folders = _class_folders(root)
    samples = tuple(Sample(path, index) for index, folder in enumerate(folders) for path in _images(folder))
    return tuple(folder.name for folder in folders), samples


def _class_folders(root: Path) -> list[Path]:
    folders = sorted(
        (path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))),
        key=lambda path: path.name,
    )
    if not folders:
        raise DataError(f"{root}: has no class folders; expected one folder of images for each class")
    return folders


def _images(folder: Path) -> list[Path]:
    """Image files by suffix; hidden files, Thumbs.db and the like are passed over."""
    return sorted(
        (
            path
            for path in folder.iterdir()
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
        ),
        key=lambda path: path.name,
    )


def _split_flat(root: Path, seed: int, group_by: re.Pattern[str] | None) -> ImageFolder:
    labels, samples = _read_classes(root)
    _check_class_sizes(
        root, labels, samples, at_least=SMALLEST_CLASS if group_by is None else sum(FOLDS.values())
    )
    names = (
        _split_each_class(samples, seed)
        if group_by is None
        else _split_by_group(root, samples, _groups(root, samples, group_by), seed)
    )
    return ImageFolder(
        root,
        labels,
        {
            split: tuple(s for s, name in zip(samples, names, strict=True) if name == split)
            for split in SPLITS
        },
    )


def _split_each_class(samples: Sequence[Sample], seed: int) -> list[str]:
    """The split of each sample: every class 6:2:2, with at least one image in each."""
    generator = np.random.default_rng(seed)
    classes = np.array([sample.label for sample in samples])
    names = np.full(len(samples), "train", dtype=object)
    for label in np.unique(classes):
        order = generator.permutation(np.flatnonzero(classes == label))
        held_out = max(1, round(len(order) / sum(FOLDS.values())))
        names[order[:held_out]] = "val"
        names[order[held_out : 2 * held_out]] = "test"
    return names.tolist()


def _split_by_group(root: Path, samples: Sequence[Sample], groups: Sequence[str], seed: int) -> list[str]:
    """The split of each sample: five stratified folds of whole groups, three of them for training."""
    from sklearn.model_selection import StratifiedGroupKFold  # type: ignore[import-untyped]  # ships no types

    folds = sum(FOLDS.values())
    if len(set(groups)) < folds:
        raise DataError(
            f"{root}: the names hold {len(set(groups))} groups ({_some(sorted(set(groups)))}); a 6:2:2 split "
            f"of whole groups needs at least {folds}"
        )
    names = ["train"] * len(samples)
    classes = [sample.label for sample in samples]
    folder = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(classes, classes, groups)
    for split, (_, held_out) in zip(("val", "test"), folder, strict=False):
        for index in held_out:
            names[index] = split
    return names


def _groups(root: Path, samples: Iterable[Sample], group_by: re.Pattern[str]) -> list[str]:
    matches = [(sample.path.name, group_by.search(sample.path.name)) for sample in samples]
    unmatched = [name for name, match in matches if match is None]
    if unmatched:
        raise DataError(
            f"{root}: {len(unmatched)} file names do not match the group pattern {group_by.pattern!r}: "
            f"{_some(unmatched)}"
        )
    return [match[1 if group_by.groups else 0] for _, match in matches if match is not None]


def _check_groups_apart(data: ImageFolder, group_by: re.Pattern[str]) -> None:
    seen: dict[str, set[str]] = defaultdict(set)
    for name, samples in data.splits.items():
        for group in _groups(data.root, samples, group_by):
            seen[group].add(name)
    leaking = [
        f"{group!r} in {' and '.join(sorted(names))}" for group, names in seen.items() if len(names) > 1
    ]
    if leaking:
        raise DataError(
            f"{data.root}: {len(leaking)} groups are in more than one split: {_some(sorted(leaking))}"
        )


def _check_trainable(data: ImageFolder) -> None:
    if len(data.labels) < 2:
        raise DataError(f"{data.root}: has one class, {data.labels[0]!r}; training needs at least two")
    _check_class_sizes(data.root, data.labels, data.split("train"), at_least=2, where="training ")
    for name in data.splits:
        data.split(name)


def _check_class_sizes(
    root: Path, labels: Sequence[str], samples: Iterable[Sample], *, at_least: int, where: str = ""
) -> None:
    tally = Counter(sample.label for sample in samples)
    small = [f"{label!r} has {tally[index]}" for index, label in enumerate(labels) if tally[index] < at_least]
    if small:
        raise DataError(
            f"{root}: every class needs at least {at_least} {where}images, but {_some(small)} "
            f"(files ending in {', '.join(sorted(SUFFIXES))} count)"
        )


def _some(items: Sequence[str]) -> str:
    shown = ", ".join(items[:_NAMES_SHOWN])
    return shown if len(items) <= _NAMES_SHOWN else f"{shown}, … {len(items) - _NAMES_SHOWN} more"
