"""Which images an artefact is compared on, and of which class they are where their folder says so.

Dims: N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...data.folders import match_labels, read_evaluation_folder
from ...data.imported import is_imported
from ...data.samples import Source
from ...data.splitting import SPLITS
from ...errors import DataError
from ...runtime.infer import find_images


@dataclass(frozen=True)
class ComparedImages:
    """What is compared."""

    sources: list[Source]
    truth: npt.NDArray[np.int64] | None = None
    """(N,), class indices by the model's labels."""
    groups: tuple[str, ...] | None = None
    """(N,), what counts as one for an interval (`ImageFolder.drawn_together`); None where each image does."""
    split: str = ""
    unlabelled: str = ""
    """Why `truth` is not known."""
    notes: tuple[str, ...] = ()
    """What there is to say of the data, a line each."""


def images_to_compare(
    data: Sequence[str | Path], labels: Sequence[str], split: str | None, limit: int | None, asked: list[str]
) -> ComparedImages:
    """The images to compare, with their classes where one folder says them and the model knows them.

    Args:
        data: files and folders.
        labels: the model's class names.
        split: the split to take of labelled data.
        limit: take at most this many, spread evenly.
        asked: options given that need labels.

    Raises:
        DataError: no images, classes that the model does not know, or no labels although they are needed.
        InputError: a folder without images, or a pattern that matches nothing.
    """
    if not data:
        raise DataError("there are no images to compare: expected files or folders of them")
    images = _labelled(data, labels, split, required=bool(asked))
    if images.truth is None:
        if asked:
            raise DataError(
                f"{' and '.join(asked)} {'needs' if len(asked) == 1 else 'need'} labelled images, and "
                f"{images.unlabelled}: give one folder DATA/<class>/* or DATA/{{train,val,test}}/<class>/*"
            )
        found, notes = find_images(data)
        images = replace(images, sources=[*found], notes=notes)
    if not images.sources:
        raise DataError(f"no images in {', '.join(str(item) for item in data)}")
    if limit is not None and len(images.sources) > limit:
        kept = spread(len(images.sources), limit)
        truth = None if images.truth is None else images.truth[kept]
        groups = None if images.groups is None else tuple(images.groups[i] for i in kept)
        sources = [images.sources[i] for i in kept]
        images = replace(images, sources=sources, truth=truth, groups=groups)
    return images


def _labelled(
    data: Sequence[str | Path], labels: Sequence[str], split: str | None, required: bool
) -> ComparedImages:
    """Images with their classes, or why there are none."""
    if len(data) != 1 or not Path(data[0]).is_dir():
        return ComparedImages(
            [], unlabelled=f"{', '.join(str(item) for item in data)} is not one folder of classes"
        )
    try:
        folder = read_evaluation_folder(data[0], split)
    except DataError as error:
        if required or _has_splits_of_classes(Path(data[0])):
            raise
        return ComparedImages([], unlabelled=str(error))
    if not set(folder.labels) & set(labels):
        return ComparedImages(
            [],
            unlabelled=f"none of the folders in {data[0]} is a class of the model ({', '.join(labels)})",
        )
    matched = match_labels(folder, labels)
    ((name, samples),) = matched.splits.items()
    return ComparedImages(
        [each.source for each in samples],
        np.array([each.label for each in samples]),
        matched.drawn_together(name),
        name,
        notes=folder.notes,
    )


def _has_splits_of_classes(folder: Path) -> bool:
    """Whether a folder is meant as labelled, whatever is wrong with it."""
    return is_imported(folder) or any(
        child.is_dir() for name in SPLITS if (folder / name).is_dir() for child in (folder / name).iterdir()
    )


def spread(count: int, most: int) -> list[int]:
    """At most so many indices, spread evenly over ``count``."""
    return np.linspace(0, count - 1, min(count, most)).astype(int).tolist()
