"""Labelled images in folders: which image belongs to which class and which split.

Three layouts are read: a data set that `mmdeploy data import` wrote (see `imported`), the authors'
``{train,val,test}/<class>/*``, and a flat ``<class>/*`` that is split here, 6:2:2, stratified and seeded,
optionally so that no group (a patient, a slide) is in two splits. Nothing is copied or moved, and no image is
opened. Whatever takes a folder of data reads it here.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import DataError, some
from ..images import SUFFIXES, StackedImage
from .imported import INDEX, STACK_INDEX, Channels, is_imported, read_imported
from .samples import Sample, Samples, Source, classes_of
from .splitting import FOLDS, SMALLEST_CLASS, SPLITS, check_class_sizes, deal, group_in


@dataclass(frozen=True)
class ImageFolder:
    """A data set on disk."""

    root: Path
    labels: tuple[str, ...]
    """Class names, sorted; a class's index is its place here."""
    splits: Mapping[str, Sequence[Sample]]
    """Samples by split, in the order of their paths."""
    group_by: str | None = None
    """The pattern by which groups were kept, or found to be, in one split each."""
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The group of each sample (its patient, say), by split; empty where an import did not say."""
    statistics: tuple[Channels, Channels] | None = None
    """Mean and standard deviation of the channels over the training images, where an import measured them."""
    kind: str | None = None
    """The importer that read it: ``malaria``, say; None where there was no import."""
    contents: str | None = None
    """SHA-256 of an import's index, which names every image with its split, class and checksum."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Images that were left out because they cannot be read, with the reason."""

    def split(self, name: str) -> Sequence[Sample]:
        """The samples of one split.

        Raises:
            DataError: there is no such split, or it is empty.
        """
        samples = self.splits.get(name)
        if not samples:
            present = ", ".join(key for key, value in self.splits.items() if value) or "none"
            raise DataError(f"{self.root}: has no images in a {name!r} split (splits with images: {present})")
        return samples

    def names(self, name: str) -> tuple[str, ...]:
        """What the images of a split are called: paths below the folder, or places in a stack."""
        return tuple(_below(self.root, sample.source) for sample in self.split(name))

    def groups_of(self, name: str) -> tuple[str, ...] | None:
        """The group of each image of a split; None where nothing is known of groups."""
        if self.groups.get(name):
            return tuple(self.groups[name])
        if self.group_by is None:
            return None
        return tuple(_groups(self.root, self.split(name), re.compile(self.group_by)))

    def counts(self) -> dict[str, dict[str, int]]:
        """Images by split and class name."""
        return {
            name: dict(zip(self.labels, _tally(samples, self.labels), strict=True))
            for name, samples in self.splits.items()
        }

    @property
    def digest(self) -> str:
        """sha256 over every split, class and relative path: equal for the same files dealt the same way."""
        if self.contents is not None and not self.skipped:
            return self.contents
        lines = [
            f"{name}\t{self.labels[sample.label]}\t{_below(self.root, sample.source)}\n"
            for name, samples in sorted(self.splits.items())
            for sample in samples
        ]
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def read_training_folder(
    root: str | Path, *, seed: int = 0, group_by: re.Pattern[str] | None = None
) -> ImageFolder:
    """Reads a folder to train on; a flat one is split.

    Args:
        root: an imported data set, ``{train,val,test}/<class>/*`` (without ``test`` if there is none) or
            ``<class>/*``.
        seed: of the split of a flat folder.
        group_by: finds the group in a file name: its first group, or the whole match where it has none. In
            a flat folder no group is put in two splits; in the authors' layout that is checked. An imported
            data set has its groups already.

    Raises:
        DataError: not a folder, no or one class, a class with too few images, a class without training
            images, an empty split, a name without a group, a group in two splits.
    """
    root = Path(root)
    if is_imported(root):
        if group_by is not None:
            raise DataError(
                f"{root}: is an imported data set, whose groups were settled by the import: leave the group "
                "pattern out"
            )
        data = _read_imported(root)
        data.split("val")
    elif _has_splits(root):
        data = _read_splits(root)
        for name in ("train", "val"):
            data.split(name)
        if group_by is not None:
            _check_groups_apart(data, group_by)
    else:
        data = _split_flat(root, seed, group_by)
    check_trainable(data)
    return replace(data, group_by=group_by.pattern if group_by else None)


def read_evaluation_folder(root: str | Path, split: str | None = None) -> ImageFolder:
    """Reads a folder to evaluate on; its only split holds the images to use.

    Args:
        root: an imported data set, ``{train,val,test}/<class>/*`` or ``<class>/*``.
        split: which split of one that has splits, ``test`` by default. A flat folder is used whole.

    Raises:
        DataError: not a folder, no class, the split is missing or empty, or asked of a flat folder.
    """
    root = Path(root)
    if is_imported(root) or _has_splits(root):
        data = _read_imported(root) if is_imported(root) else _read_splits(root)
        name = split or "test"
        groups = {name: data.groups[name]} if name in data.groups else {}
        return replace(data, splits={name: data.split(name)}, groups=groups)
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
            f"{data.root}: {len(unknown)} classes are unknown to the model: {some(unknown)} "
            f"(it knows {some(labels)})"
        )
    index = np.array([labels.index(label) for label in data.labels])
    splits = {name: _labelled(samples, index) for name, samples in data.splits.items()}
    return replace(data, labels=tuple(labels), splits=splits)


def _labelled(samples: Sequence[Sample], index: npt.NDArray[np.integer]) -> Sequence[Sample]:
    if isinstance(samples, Samples):
        return samples.labelled(index[samples.classes])
    return tuple(Sample(sample.source, int(index[sample.label])) for sample in samples)


def _read_imported(root: Path) -> ImageFolder:
    data = read_imported(root)
    manifest = data.manifest
    return ImageFolder(
        root,
        manifest.labels,
        data.splits,
        groups=data.groups,
        statistics=(manifest.mean, manifest.std),
        kind=manifest.kind,
        contents=manifest.files[INDEX if manifest.in_files else STACK_INDEX],
    )


def _below(root: Path, source: Source) -> str:
    if isinstance(source, StackedImage):
        return f"{source.stack.relative_to(root).as_posix()}[{source.index}]"
    return source.relative_to(root).as_posix()


def _tally(samples: Sequence[Sample], labels: Sequence[str]) -> list[int]:
    """Images by class index."""
    counts: list[int] = np.bincount(classes_of(samples), minlength=len(labels)).tolist()
    return counts


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
            f"{root}: {some(strange)} {'is' if len(strange) == 1 else 'are'} no class of "
            f"{present[0]!r}, which has {some(labels)}"
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
    least = SMALLEST_CLASS if group_by is None else sum(FOLDS.values())
    check_class_sizes(root, labels, _tally(samples, labels), least)
    groups = None if group_by is None else _groups(root, samples, group_by)
    try:
        names = deal(classes_of(samples), groups, seed=seed)
    except DataError as error:
        raise DataError(f"{root}: {error}") from error
    return ImageFolder(
        root,
        labels,
        {
            split: tuple(s for s, name in zip(samples, names, strict=True) if name == split)
            for split in SPLITS
        },
    )


def _groups(root: Path, samples: Iterable[Sample], group_by: re.Pattern[str]) -> list[str]:
    names = [sample.source.name for sample in samples]
    groups = [group_in(name, group_by) for name in names]
    unmatched = [name for name, group in zip(names, groups, strict=True) if not group]
    if unmatched:
        raise DataError(
            f"{root}: {len(unmatched)} file names do not match the group pattern {group_by.pattern!r}: "
            f"{some(unmatched)}"
        )
    return groups


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
            f"{data.root}: {len(leaking)} groups are in more than one split: {some(sorted(leaking))}"
        )


def check_trainable(data: ImageFolder) -> None:
    """Refuses data without two classes, a class without two training images, and an empty split.

    Raises:
        DataError: it is one of those.
    """
    if len(data.labels) < 2:
        raise DataError(f"{data.root}: has one class, {data.labels[0]!r}; training needs at least two")
    check_class_sizes(data.root, data.labels, _tally(data.split("train"), data.labels), 2, "training images")
    for name in data.splits:
        data.split(name)
