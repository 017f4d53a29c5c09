"""Labelled images by the hundred thousand: what a split of a data set consists of.

A sample is made when it is asked for. What is kept of a split are a few numpy arrays, so that 236,386 images
take megabytes, and so that worker processes, which share the arrays, copy nothing by counting references.

Dims: N samples.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt

from ..images import StackedImage

Source: TypeAlias = Path | StackedImage
"""Where the pixels of a sample are: an image file, or a place in a file that holds many."""


@dataclass(frozen=True)
class Sample:
    """One image and its class."""

    source: Source
    label: int
    """Index into the class names."""


class Samples(Sequence[Sample]):
    """Samples that are made when they are asked for.

    Args:
        classes: (N,) class indices.
    """

    def __init__(self, classes: npt.ArrayLike) -> None:
        self.classes: npt.NDArray[np.int32] = np.asarray(classes, np.int32)

    @abstractmethod
    def source(self, index: int) -> Source:
        """Where the pixels of one sample are."""

    @abstractmethod
    def take(self, indices: npt.NDArray[np.intp]) -> Samples:
        """Some of the samples, in the order of their indices."""

    @abstractmethod
    def labelled(self, classes: npt.NDArray[np.integer]) -> Samples:
        """The same images with other class indices, (N,)."""

    def __len__(self) -> int:
        return len(self.classes)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Samples: ...

    def __getitem__(self, index: int | slice) -> Sample | Samples:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return Sample(self.source(index % len(self)), int(self.classes[index]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # mutable arrays inside, as in a list


class FileSamples(Samples):
    """Image files below one folder, a class each.

    Args:
        root: the folder.
        names: paths below it.
        classes: (N,) class indices.
    """

    def __init__(self, root: Path, names: Iterable[str | os.PathLike[str]], classes: npt.ArrayLike) -> None:
        super().__init__(classes)
        self.root = root
        encoded = [os.fsencode(name) for name in names]
        self._names = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def name(self, index: int) -> str:
        """The path of one file below the folder."""
        return os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]])

    def source(self, index: int) -> Path:
        return self.root / self.name(index)

    def take(self, indices: npt.NDArray[np.intp]) -> FileSamples:
        return FileSamples(self.root, [self.name(int(index)) for index in indices], self.classes[indices])

    def labelled(self, classes: npt.NDArray[np.integer]) -> FileSamples:
        same = FileSamples(self.root, [], classes)
        same._names, same._ends = self._names, self._ends
        return same


class StackedSamples(Samples):
    """Images in stacks: files that hold many of one size (see `StackedImage`).

    Args:
        stacks: the files.
        stack: (N,) index of a sample's file.
        row: (N,) its place in there.
        classes: (N,) class indices.
    """

    def __init__(
        self, stacks: Sequence[Path], stack: npt.ArrayLike, row: npt.ArrayLike, classes: npt.ArrayLike
    ) -> None:
        super().__init__(classes)
        self._stacks = tuple(stacks)
        self._stack = np.asarray(stack, np.uint8)
        self._row = np.asarray(row, np.uint32)

    def source(self, index: int) -> StackedImage:
        return StackedImage(self._stacks[self._stack[index]], int(self._row[index]))

    def take(self, indices: npt.NDArray[np.intp]) -> StackedSamples:
        return StackedSamples(self._stacks, self._stack[indices], self._row[indices], self.classes[indices])

    def labelled(self, classes: npt.NDArray[np.integer]) -> StackedSamples:
        return StackedSamples(self._stacks, self._stack, self._row, classes)


def classes_of(samples: Sequence[Sample]) -> npt.NDArray[np.int32]:
    """The class indices of samples, (N,)."""
    if isinstance(samples, Samples):
        return samples.classes
    return np.array([sample.label for sample in samples], np.int32)


def sources_of(samples: Sequence[Sample]) -> Iterator[Source]:
    """Where the pixels of samples are, in their order."""
    return (sample.source for sample in samples)
