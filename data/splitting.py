"""Dealing images to training, validation and test: stratified, seeded, and never a group to two splits.

A group is what must stay together: the cells of a patient, the regions of a slide, copies of one file.

Dims: N images.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import DataError, InputError, some
from ..images import SUFFIXES

SPLITS = ("train", "val", "test")
FOLDS = {"train": 3, "val": 1, "test": 1}
"""Fifths that go to each split: 6:2:2."""
SMALLEST_CLASS = 4
"""Images that a class needs: two to train on, one to validate with, one to test with."""

DEALING = 2
"""How folders are dealt now. 0: copies for themselves, and the first folds of groups are held out, however
large; 1: copies share a split; 2: those folds are held out that come nearest to the shares."""
LARGEST_SEED = 2**32 - 1
"""What the generators of all libraries take."""

COUNTED = f"files ending in {', '.join(sorted(SUFFIXES))} count"
"""Why a folder has fewer images than somebody sees there."""

_LIKE_SPLITS = frozenset(
    {"train", "training", "val", "valid", "validate", "validation", "dev", "test", "testing"}
)
"""What people call the folders of splits, in lower case."""

EACH_FOR_ITSELF = "--group-by '.+/.+' takes each image for itself"
"""The way out of groups that nobody asked for: the whole path is the group, as names alone may recur."""
FOLDERS_ARE_GROUPS = f"the folders inside of the classes' folders were taken for groups: {EACH_FOR_ITSELF}"
"""What to say beside an error about groups that nobody asked for."""

Names = npt.NDArray[np.object_]


def deal(
    classes: npt.NDArray[np.integer],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    folds: Mapping[str, int] | None = None,
    dealing: int = DEALING,
) -> Names:
    """The split of each image.

    Args:
        classes: (N,) class indices.
        groups: (N,) what stays together; None deals every image for itself.
        seed: decides the order.
        folds: shares of the splits, the first of which gets what is left over; 6:2:2 by default.
        dealing: as it was in an earlier version (see `DEALING`).

    Returns:
        (N,) names of splits.

    Raises:
        DataError: too few groups for the shares.
        InputError: the seed is not 0 to `LARGEST_SEED`.
    """
    folds = folds or FOLDS
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"the seed is {seed}: expected 0 to {LARGEST_SEED}")
    if groups is None:
        return _deal_images(classes, seed, folds)
    distinct, members = np.unique(np.asarray(groups), return_inverse=True)
    if len(distinct) == len(classes):
        return _deal_images(classes, seed, folds)
    if len(distinct) < (count := sum(folds.values())):
        ratio = ":".join(str(2 * share) for share in folds.values())
        raise DataError(
            f"there are {len(distinct)} groups ({', '.join(map(str, distinct))}); a {ratio} split of whole "
            f"groups needs at least {count}"
        )
    return _deal_groups(classes, members, seed, folds, dealing)


def deal_together(
    classes: npt.NDArray[np.integer],
    contents: Sequence[Hashable],
    groups: Sequence[str] | None = None,
    *,
    seed: int = 0,
    folds: Mapping[str, int] | None = None,
    dealing: int = DEALING,
) -> Names:
    """Deals as `deal` does, but copies of an image share a split, and so do the groups that share a copy.

    Args:
        classes: (N,) class indices.
        contents: (N,) equal for equal images.
        groups: (N,) what stays together; None deals every image for itself.
        seed: decides the order.
        folds: shares of the splits.
        dealing: as it was in an earlier version (see `DEALING`).

    Raises:
        DataError: too few groups for the shares.
        InputError: the seed is not 0 to `LARGEST_SEED`.
    """
    copies = _numbered(contents)
    if groups is None:
        firsts = np.unique(copies, return_index=True)[1]
        return deal(classes[firsts], seed=seed, folds=folds)[copies]
    whole = together(groups, contents)
    try:
        return deal(classes, whole, seed=seed, folds=folds, dealing=dealing)
    except DataError as error:
        if (before := len(set(groups))) == (after := len(set(whole))):
            raise
        raise DataError(f"{error}; copies of images join {before} groups to {after}: remove them") from error


def together(groups: Sequence[str], contents: Sequence[Hashable]) -> list[str]:
    """Groups `joined` where they share a copy, (N,), by the name of the first of them.

    Args:
        groups: (N,) what stays together.
        contents: (N,) equal for equal images.
    """
    named: dict[int, str] = {}
    return [
        named.setdefault(number, group)
        for number, group in zip(joined(groups, contents).tolist(), groups, strict=True)
    ]


def group_in(path: str, pattern: re.Pattern[str]) -> str:
    """The group that a pattern finds: its first parenthesis, or the whole match; "" where it finds none.

    Args:
        path: the image's path below the data, with ``/``.
        pattern: is looked for in the file's name, or in the path where it has a ``/`` itself.
    """
    match = pattern.search(path if "/" in pattern.pattern else path.rpartition("/")[2])
    return "" if match is None else match[1 if pattern.groups else 0] or ""


def folder_groups(labels: Sequence[str], inner: Sequence[str]) -> list[str] | None:
    """The group of each image by the folder that it is in, inside of its class's folder: its patient, say.

    An image that lies in the class's folder itself is a group of its own. None where no folder tells images
    apart: there is none, or all images are in one.

    Args:
        labels: (N,) class names.
        inner: (N,) paths below the folders of the classes, with ``/``.
    """
    folders = {path.partition("/")[0] if "/" in path else "" for path in inner}
    if len(folders) < 2:
        return None
    return [
        path.partition("/")[0] if "/" in path else f"{label}/{path}"
        for label, path in zip(labels, inner, strict=True)
    ]


def joined(groups: Sequence[Hashable], copies: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """Groups merged where an image of one is a copy of an image of another.

    Args:
        groups: (N,) what stays together.
        copies: (N,) content of the images, equal for equal ones.

    Returns:
        (N,) numbers of the merged groups.
    """
    from scipy.sparse import coo_matrix  # type: ignore[import-untyped]  # ships no types
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    group, content = _numbered(groups), _numbered(copies)
    ends = int(group.max(initial=-1)) + 1
    size = ends + int(content.max(initial=-1)) + 1
    edges = coo_matrix((np.ones(len(group)), (group, content + ends)), shape=(size, size))
    component: npt.NDArray[np.int64] = connected_components(edges, directed=False)[1].astype(np.int64)
    return component[group]


def shared_groups(groups: Sequence[Hashable], names: Sequence[str] | Names) -> dict[Hashable, list[str]]:
    """The groups that are in more than one split, with those splits, in the order of the groups."""
    found: dict[Hashable, set[str]] = {}
    for group, name in zip(groups, names, strict=True):
        found.setdefault(group, set()).add(name)
    return {group: sorted(splits) for group, splits in found.items() if len(splits) > 1}


def check_no_splits(root: Path, labels: Sequence[str]) -> None:
    """Refuses classes that are splits under other names: a network would learn to tell training from test.

    Args:
        root: the data, for the message.
        labels: class names of a folder that is about to be split.

    Raises:
        DataError: all of them are called like splits.
    """
    if len(labels) > 1 and {label.lower() for label in labels} <= _LIKE_SPLITS:
        raise DataError(
            f"{root}: its folders {some([*map(repr, labels)])} are called like splits, and would be the "
            f"classes: name them {', '.join(SPLITS)}"
        )


def notes_on_absent(names: Names, classes: npt.NDArray[np.integer], labels: Sequence[str]) -> list[str]:
    """A note for each split on the classes of which it has no image, though it has others.

    Args:
        names: (N,) the split of each image.
        classes: (N,) class indices.
        labels: class names.
    """
    notes = []
    for split in SPLITS:
        own = classes[names == split]
        counts = np.bincount(own, minlength=len(labels))
        absent = [repr(label) for label, count in zip(labels, counts, strict=True) if not count]
        if len(own) and absent:
            notes.append(f"the {split} split has no image of {some(absent)}")
    return notes


def on_empty_classes(folders: Iterable[str], labels: Iterable[str]) -> str:
    """What to say of classes' folders without an image; empty where each has one.

    It refuses what is to be trained on, since a class would be missing there, and is a note of what a model
    is measured on.

    Args:
        folders: the names of the folders, of all splits.
        labels: the classes of the images that were found.
    """
    empty = sorted(set(folders) - set(labels))
    if not empty:
        return ""
    has = "has" if len(empty) == 1 else "have"
    named = some([repr(name) for name in empty])
    return f"{named} {has} no image ({COUNTED}): add some, or take the folder away"


def check_class_sizes(
    root: Path,
    labels: Sequence[str],
    counts: Sequence[int],
    at_least: int,
    what: str = "images",
    why: str = COUNTED,
) -> None:
    """Refuses classes that are too small to be split or trained on.

    Args:
        root: the data, for the message.
        labels: class names.
        counts: images of each class.
        at_least: images that each class needs.
        what: the images that are counted.
        why: what may have left a class so few.

    Raises:
        DataError: classes have fewer; all of them are named.
    """
    small = [
        f"{label!r} has {count}" for label, count in zip(labels, counts, strict=True) if count < at_least
    ]
    if small:
        raise DataError(f"{root}: every class needs at least {at_least} {what}, but {some(small)} ({why})")


def _numbered(values: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """The values as numbers in the order of their first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)


def _deal_images(classes: npt.NDArray[np.integer], seed: int, folds: Mapping[str, int]) -> Names:
    """Every class by its shares, with at least one image in each split that is held out."""
    generator = np.random.default_rng(seed)
    first, *held_out = folds
    names = np.full(len(classes), first, dtype=object)
    for label in np.unique(classes):
        order = generator.permutation(np.flatnonzero(classes == label))
        start = 0
        for split in held_out:
            size = max(1, round(len(order) * folds[split] / sum(folds.values())))
            names[order[start : start + size]] = split
            start += size
    return names


def _deal_groups(
    classes: npt.NDArray[np.integer],
    members: npt.NDArray[np.integer],
    seed: int,
    folds: Mapping[str, int],
    dealing: int,
) -> Names:
    """Stratified folds of whole groups, one for each share.

    The folds are as unequal as the groups, and the largest group is in one of the first. Those are held out
    that leave every split with the nearest to its share of each class; of equal ones the first.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # type: ignore[import-untyped]  # ships no types

    first, count = next(iter(folds)), sum(folds.values())
    names = np.full(len(classes), first, dtype=object)
    folder = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    dealt = [held_out for _, held_out in folder.split(classes, classes, members)]
    held = [split for split in folds if split != first for _ in range(folds[split])]
    chosen = tuple(range(len(held)))
    if dealing >= 2:
        sizes = np.stack([np.bincount(classes[fold], minlength=int(classes.max()) + 1) for fold in dealt])
        known = sizes.sum(axis=0)
        excess = sizes[:, known > 0] / known[known > 0] - 1 / count  # of each fold over its share, by class

        def distance(places: tuple[int, ...]) -> tuple[bool, float]:
            held_out = excess[list(places)]
            of_all = np.abs(held_out).sum() + np.abs(held_out.sum(axis=0)).sum()  # what is left, too
            return bool((sizes[list(places)].sum(axis=1) == 0).any()), round(float(of_all), 9)

        chosen = min(itertools.permutations(range(count), len(held)), key=distance)
    for split, place in zip(held, chosen, strict=True):
        names[dealt[place]] = split
    return names
