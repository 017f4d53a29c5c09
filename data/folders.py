"""Labelled images in folders: which image belongs to which class and which split.

Three layouts are read: a data set that `mmdeploy data import` wrote (see `imported`), the authors'
``{train,val,test}/<class>/**``, and a flat ``<class>/**`` that is split here, 6:2:2, stratified and seeded,
so that no group (a patient, a slide) and no copy of an image is in two splits. Folders inside of a class's
folder are its groups. Nothing is copied or moved, and no image is decoded. Whatever takes a folder of
labelled images reads it here; `ImageFolder.notes` says what was passed over, and where copies are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import DataError, some
from ..files import as_utf8
from ..images import StackedImage
from ..text import as_word
from .copies import contents_of, note_on_leaks, notes_on_copies
from .coverage import Coverage
from .finding import Passed, class_folders, images_below
from .imported import INDEX, STACK_INDEX, Channels, is_imported, read_imported
from .labels import check_labels
from .samples import Sample, Samples, Source, classes_of, sources_of
from .seen import checksums_of
from .splitting import (
    COUNTED,
    DEALING,
    EACH_FOR_ITSELF,
    FOLDERS_ARE_GROUPS,
    FOLDS,
    SMALLEST_CLASS,
    SPLITS,
    check_class_sizes,
    check_no_splits,
    deal_together,
    folder_groups,
    group_in,
    notes_on_absent,
    on_empty_classes,
    shared_groups,
    together,
)

T = TypeVar("T")

_FOLDERS_TAKEN = "the folders inside of the classes' folders are taken for groups (patients, say)"
_FOLDERS_KEPT = f"{_FOLDERS_TAKEN}, which stay in one split: {EACH_FOR_ITSELF}"
_FOLDERS_DRAWN = f"{_FOLDERS_TAKEN}, by which intervals are drawn: {EACH_FOR_ITSELF}"

_WHOLE_GROUPS = "whole groups share a split: --group-by says what a group is, and each class needs several"

LEAST_TRAINED, TRAINED = 2, "training images"
"""What each class needs to be trained on."""

WHOLE = "all"
"""What the one split of a flat folder is called."""


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
    """The group of each sample (its patient, say), by split; empty where nothing is known of them."""
    statistics: tuple[Channels, Channels] | None = None
    """Mean and standard deviation of the channels over the training images, where an import measured them."""
    white_level: int | None = None
    """The value of white in 16-bit images, where an import took it."""
    covers: Coverage | None = None
    """What the training images cover, where an import says it."""
    kind: str | None = None
    """The importer that read it: ``malaria``, say; None where there was no import."""
    dealing: int = DEALING
    """How it was dealt, where it is flat (see `splitting.DEALING`)."""
    contents: str | None = None
    """SHA-256 of an import's index, which names every image with its split, class and checksum."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Images that were left out because they cannot be read, with the reason."""
    whole: ImageFolder | None = None
    """The data with the images that were left out; None where none were."""
    notes: tuple[str, ...] = ()
    """What was passed over, and what else a user has to know of the data, a line each."""

    @property
    def name(self) -> str:
        """What people call it: the published data set that it is, or the folder."""
        return self.kind if self.kind not in (None, "folder") else self.root.resolve().name

    def split(self, name: str) -> Sequence[Sample]:
        """The samples of one split.

        Raises:
            DataError: there is no such split, or it is empty.
        """
        samples = self.splits.get(name)
        if not samples and name == WHOLE in self.splits:
            raise DataError(f"{self.root}: has no images in its class folders ({COUNTED})")
        if not samples:
            present = ", ".join(key for key, value in self.splits.items() if value) or "none"
            raise DataError(f"{self.root}: has no images in a {name!r} split (splits with images: {present})")
        return samples

    def names(self, name: str) -> tuple[str, ...]:
        """What the images of a split are called: paths below the folder, or places in a stack."""
        return tuple(below(self.root, sample.source) for sample in self.split(name))

    def groups_of(self, name: str) -> tuple[str, ...] | None:
        """The group of each image of a split; None where nothing is known of groups."""
        return tuple(self.groups[name]) if self.groups.get(name) else None

    def drawn_together(self, name: str) -> tuple[str, ...] | None:
        """What counts as one for an interval: the group of each image of a split, joined by copies.

        A copy is the same bytes in a file, or the same pixels in a stack. None where each image counts:
        nothing is known of groups, and no image is there twice.

        Raises:
            ImageError: an image of a stack cannot be read.
        """
        groups, names, samples = self.groups_of(name), self.names(name), self.split(name)
        contents: Sequence[Hashable] = _contents(samples)
        if len(contents) < len(samples):  # of a stack
            contents = checksums_of(sources_of(samples))
        if len(set(contents)) == len(contents):
            return groups
        return tuple(together(groups or names, contents))

    def counts(self) -> dict[str, dict[str, int]]:
        """Images by split and class name."""
        return {
            name: dict(zip(self.labels, _tally(samples, self.labels), strict=True))
            for name, samples in self.splits.items()
        }

    @property
    def digest(self) -> str:
        """sha256 over every split, class and relative path: equal for the same files dealt the same way."""
        return self.digest_of(*self.splits)

    def digest_of(self, *names: str) -> str:
        """The `digest` of some splits alone."""
        if self.contents is not None and not self.skipped:
            return self.contents
        lines = [
            f"{name}\t{self.labels[sample.label]}\t{below(self.root, sample.source)}\n"
            for name in sorted(names)
            for sample in self.splits[name]
        ]
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def read_training_folder(
    root: str | Path,
    *,
    seed: int = 0,
    group_by: re.Pattern[str] | None = None,
    dealing: int = DEALING,
) -> ImageFolder:
    """Reads a folder to train on; a flat one is split.

    Args:
        root: an imported data set, ``{train,val,test}/<class>/**`` (without ``test`` if there is none) or
            ``<class>/**``.
        seed: decides the split of a flat folder.
        group_by: finds the group in a file name, or in the path below ``root`` where it has a ``/``: its
            first parenthesis, or the whole match where it has none; in place of the folders inside of the
            classes' folders. In a flat folder no group is put in two splits; in the authors' layout that is
            checked. An imported data set has its groups already.
        dealing: how a flat folder is dealt, as it was in an earlier version (see `splitting.DEALING`).

    Raises:
        DataError: not a folder, no or one class, a class with too few images, a class without training
            images, an empty split, a name without a group, a group in two splits.
    """
    root, taken = Path(root), None
    if is_imported(root):
        if group_by is not None:
            raise DataError(
                f"{root}: is an imported data set, whose groups were settled by the import: leave the group "
                "pattern out"
            )
        data = _read_imported(root)
        data.split("val")
    elif _has_splits(root):
        passed = Passed()
        layout = _read_splits(root, passed)
        _check_classes(root, layout)
        _check_none_empty(root, layout)
        data = _folder_of(root, layout, group_by)
        data.split("train")
        if not data.splits.get("val"):
            raise DataError(
                f"{root}: has no images in a 'val' split: move some there, or let an import take a quarter "
                f"of 'train' for it: mmdeploy data import folder {as_word(root)} -o DATA"
            )
        if group_by is not None:
            _check_groups_apart(data)
        data, taken = replace(data, notes=(*passed.notes(), *_notes_on(data))), _FOLDERS_DRAWN
    else:
        data, taken = _split_flat(root, seed, group_by, dealing), _FOLDERS_KEPT
    check_trainable(data)
    return data if taken is None else replace(data, notes=(*data.notes, *_notes_on_training(data, taken)))


def read_evaluation_folder(
    root: str | Path, split: str | None = None, *, default: str = "test"
) -> ImageFolder:
    """Reads a folder to evaluate on; its only split holds the images to use.

    Args:
        root: an imported data set, ``{train,val,test}/<class>/**`` or ``<class>/**``.
        split: the one to read where there are splits. A flat folder is used whole.
        default: the one where none is named.

    Raises:
        DataError: not a folder, no class, the split is missing or empty, or asked of a flat folder.
    """
    root = Path(root)
    name = split or default
    if is_imported(root):
        data = _read_imported(root)
    elif _has_splits(root):
        passed = Passed()
        layout = _read_splits(root, passed)
        notes = passed.notes() + _notes_on(_folder_of(root, layout))
        # The classes of the other splits need not be known to whom this one is for.
        data, empty = _filled(root, {name: layout[name]} if name in layout else layout)
        data = replace(data, notes=notes + empty)
    else:
        if split is not None:
            raise DataError(
                f"{root}: has class folders but no {split!r} folder; leave the split out to use all its "
                "images"
            )
        passed, name = Passed(), WHOLE
        data, empty = _filled(root, {name: _read_classes(root, passed)})
        data = replace(data, notes=passed.notes() + _notes_on(data) + empty)
    groups = {name: data.groups[name]} if name in data.groups else {}
    return replace(data, splits={name: data.split(name)}, groups=groups)


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
        white_level=manifest.white_level,
        covers=data.covers,
        kind=manifest.kind,
        contents=manifest.files[INDEX if manifest.in_files else STACK_INDEX],
        notes=manifest.notes,
    )


def below(root: Path, source: Source) -> str:
    """What an image below a folder is called: its path, with ``/`` on every system, or place in a stack."""
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


_Classes = dict[str, list[Path]]
"""Images by class name, classes and images in the order of their names."""


def _read_splits(root: Path, passed: Passed) -> dict[str, _Classes]:
    """The authors' layout: images by split and class name."""
    beside = [path for path in class_folders(root, passed) if path.name not in SPLITS]
    for path in beside:
        passed.add("folders beside the splits", f"{path.name}/")
    return {name: _read_classes(root / name, passed) for name in SPLITS if (root / name).is_dir()}


def _read_classes(root: Path, passed: Passed) -> _Classes:
    return {folder.name: [*images_below(folder, passed)] for folder in class_folders(root, passed)}


def _check_classes(root: Path, layout: Mapping[str, _Classes]) -> None:
    """The training split, where there is one, says what the classes are."""
    first, *others = layout
    labels = layout[first]
    strange = sorted(f"{name}/{label}" for name in others for label in layout[name] if label not in labels)
    if strange:
        raise DataError(
            f"{root}: {some(strange)} {'is' if len(strange) == 1 else 'are'} no class of "
            f"{first!r}, which has {some([*labels])}"
        )


def _empty_classes(layout: Mapping[str, _Classes]) -> str:
    folders = [label for classes in layout.values() for label in classes]
    return on_empty_classes(
        folders, (label for own in layout.values() for label, paths in own.items() if paths)
    )


def _check_none_empty(root: Path, layout: Mapping[str, _Classes]) -> None:
    if said := _empty_classes(layout):
        raise DataError(f"{root}: {said}")


def _filled(root: Path, layout: Mapping[str, _Classes]) -> tuple[ImageFolder, tuple[str, ...]]:
    """What a model is measured on: the classes that have images, and a note on the others."""
    filled = {split: {label: paths for label, paths in own.items() if paths} for split, own in layout.items()}
    return _folder_of(root, filled), tuple(filter(None, [_empty_classes(layout)]))


def _folder_of(
    root: Path, layout: Mapping[str, _Classes], group_by: re.Pattern[str] | None = None
) -> ImageFolder:
    """The images of a layout with their groups, where a pattern or folders tell them."""
    labels = tuple(sorted({label for classes in layout.values() for label in classes}))
    index = {label: place for place, label in enumerate(labels)}
    splits = {
        name: tuple(Sample(path, index[label]) for label, paths in classes.items() for path in paths)
        for name, classes in layout.items()
    }
    everything = [sample for samples in splits.values() for sample in samples]
    groups = _groups(root, labels, everything, group_by, depth=2 if WHOLE in layout else 3)
    return ImageFolder(
        root,
        labels,
        splits,
        group_by=group_by.pattern if group_by else None,
        groups={} if groups is None else _by_split(splits, groups),
    )


def _by_split(splits: Mapping[str, Sequence[Sample]], values: Sequence[str]) -> dict[str, list[str]]:
    """Values of all samples, cut into those of each split."""
    remaining = iter(values)
    return {name: [*islice(remaining, len(samples))] for name, samples in splits.items()}


def _split_flat(root: Path, seed: int, group_by: re.Pattern[str] | None, dealing: int) -> ImageFolder:
    passed = Passed()
    layout = {WHOLE: _read_classes(root, passed)}
    _check_none_empty(root, layout)
    whole = _folder_of(root, layout, group_by)
    labels, samples = whole.labels, whole.splits[WHOLE]
    groups = whole.groups.get(WHOLE)
    check_no_splits(root, labels)
    least = SMALLEST_CLASS if groups is None else sum(FOLDS.values())
    check_class_sizes(root, labels, _tally(samples, labels), least)
    contents = _contents(samples)
    try:
        alike = contents if dealing >= 1 else range(len(samples))
        names = deal_together(classes_of(samples), alike, groups, seed=seed, dealing=dealing)
    except DataError as error:
        hint = f"; {FOLDERS_ARE_GROUPS}" if groups is not None and group_by is None else ""
        raise DataError(f"{root}: {error}{hint}") from error
    trained = _tally([sample for sample, name in zip(samples, names, strict=True) if name == "train"], labels)
    why = _WHOLE_GROUPS if groups is not None else "copies of an image share a split, so they count as one"
    check_class_sizes(root, labels, trained, LEAST_TRAINED, TRAINED, why)

    def dealt(values: Sequence[T], split: str) -> tuple[T, ...]:
        return tuple(value for value, name in zip(values, names, strict=True) if name == split)

    data = replace(
        whole,
        dealing=dealing,
        splits={split: dealt(samples, split) for split in SPLITS},
        groups={} if groups is None else {split: dealt(groups, split) for split in SPLITS},
    )
    in_order = [content for split in SPLITS for content in dealt(contents, split)]
    return replace(data, notes=passed.notes() + _notes_on(data, in_order))


def _contents(samples: Sequence[Sample]) -> list[int]:
    return contents_of([sample.source for sample in samples if isinstance(sample.source, Path)])


def _notes_on(data: ImageFolder, contents: Sequence[int] | None = None) -> tuple[str, ...]:
    """What there is to say of the images of a folder: groups that nobody asked for, copies, leaks.

    Args:
        data: the folder.
        contents: equal for equal images, in the order of the splits; the files are compared where None.
    """
    samples = [sample for own in data.splits.values() for sample in own]
    splits = [name for name, own in data.splits.items() for _ in own]
    contents = _contents(samples) if contents is None else contents
    names = [below(data.root, sample.source) for sample in samples]
    notes = notes_on_copies(names, [data.labels[sample.label] for sample in samples], contents)
    if data.groups:
        groups = [group for own in data.groups.values() for group in own]
        notes += note_on_leaks("groups", groups, splits, named=True)
    notes += note_on_leaks("images, by content,", contents, splits, named=False)
    return tuple(as_utf8(note).decode() for note in notes)


def _notes_on_training(data: ImageFolder, on_groups: str) -> list[str]:
    """What there is to say of the splits of a folder that was not imported: an import has said it.

    Args:
        data: the folder.
        on_groups: what to say where folders were taken for groups.
    """
    names = np.array([name for name, own in data.splits.items() for _ in own], dtype=object)
    classes = np.concatenate([classes_of(own) for own in data.splits.values()])
    notes = notes_on_absent(names, classes, data.labels)
    if data.groups and data.group_by is None:
        notes.append(on_groups)
    return notes


def _groups(
    root: Path,
    labels: Sequence[str],
    samples: Sequence[Sample],
    group_by: re.Pattern[str] | None,
    depth: int,
) -> list[str] | None:
    """The group of each sample; None where nothing tells them.

    Args:
        root: the data.
        labels: class names.
        samples: files below it.
        group_by: the pattern that finds groups; None for the folders inside of the classes' folders.
        depth: parts of the path below ``root`` down to a file in the folder of its class.
    """
    names = [below(root, sample.source) for sample in samples]
    if group_by is None:
        inner = ["/".join(name.split("/")[depth - 1 :]) for name in names]
        return folder_groups([labels[sample.label] for sample in samples], inner)
    groups = [group_in(name, group_by) for name in names]
    unmatched = [name for name, group in zip(names, groups, strict=True) if not group]
    if unmatched:
        raise DataError(
            f"{root}: {len(unmatched)} file names do not match the group pattern '{group_by.pattern}': "
            f"{some(unmatched)}"
        )
    return groups


def _check_groups_apart(data: ImageFolder) -> None:
    names = [name for name, groups in data.groups.items() for _ in groups]
    shared = shared_groups([group for groups in data.groups.values() for group in groups], names)
    leaking = sorted(f"{group!r} in {' and '.join(splits)}" for group, splits in shared.items())
    if leaking:
        raise DataError(f"{data.root}: {len(leaking)} groups are in more than one split: {some(leaking)}")


def check_trainable(data: ImageFolder) -> None:
    """Refuses data without two classes, names that no checkpoint keeps, a class without two training images,
    and an empty split.

    Raises:
        DataError: it is one of those.
    """
    if len(data.labels) < 2:
        raise DataError(f"{data.root}: has one class, {data.labels[0]!r}; training needs at least two")
    check_labels(data.root, data.labels)
    counts = _tally(data.split("train"), data.labels)
    why = COUNTED if data.kind is None else "as the import has dealt them"
    if data.skipped:
        why = f"{len(data.skipped)} images are left out that cannot be read"
    check_class_sizes(data.root, data.labels, counts, LEAST_TRAINED, TRAINED, why)
    for name in data.splits:
        data.split(name)
