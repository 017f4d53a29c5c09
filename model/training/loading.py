"""From samples to batches: decoding once, and an order that depends on nothing but seeds.

Every random choice is drawn from a generator seeded by (seed, epoch, image), so a run is the same with any
number of workers, and a resumed run continues as if it had never stopped.

Dims: B batch, H W an image's own size, S side of the square network input.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ...data.imported import Channels
from ...data.samples import Sample
from ...errors import ImageError, TrainingError, reason_of
from ...images import FULL_WHITE, StackedImage, Transform, load_image
from .augmentation import Augmentation, Pixels

Item = tuple[npt.NDArray[np.float32], int]
"""A normalised image (3, S, S) and its class index."""
Key = tuple[int, int]
"""An epoch and an image's index: all that an augmentation depends on, beside the seed."""

CACHE_BYTES = 1 << 30
"""Decoded images kept in memory, at most."""

START = "fork" if sys.platform == "linux" else "spawn"
"""How workers begin. Forked, which from Python 3.14 on is no default any more, they share what was kept."""


class Images:
    """Decoded images, kept in memory until a bound is reached; later ones are decoded every time.

    What is kept is never replaced: each epoch has a new order, so one that evicts would hit no more often.
    Images of a stack need no decoding and are never kept.
    """

    def __init__(
        self, samples: Sequence[Sample], cache_bytes: int = CACHE_BYTES, white_level: int = FULL_WHITE
    ) -> None:
        self.samples = samples
        self.white_level = white_level
        self.depths: set[tuple[int | None, int | None]] = set()
        """The largest value and the bits in use that images of 16 bits had (see `white_level_of`)."""
        self.sizes: dict[int, tuple[int, int]] = {}
        """Height and width, pixels, of the images that were read, by index."""
        self._room = self._all_room = cache_bytes
        self._cache: dict[int, Pixels] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> Pixels:
        """The RGB pixels of one image, (H, W, 3).

        Raises:
            ImageError: the file cannot be read; the message names it.
        """
        if (kept := self._cache.get(index)) is not None:
            return kept
        source = self.samples[index].source
        image = load_image(source, white_level=self.white_level)
        self.depths.add((image.largest, image.significant_bits))
        pixels = image.pixels
        self.sizes[index] = pixels.shape[:2]
        if pixels.nbytes <= self._room and not isinstance(source, StackedImage):
            self._room -= pixels.nbytes
            self._cache[index] = pixels
        return pixels

    def take_white(self, level: int) -> None:
        """Reads 16-bit images by another white level from now on."""
        if level != self.white_level:
            self.white_level = level
            self.forget()

    def forget(self) -> None:
        """Keeps none of the images that were read so far."""
        self._room = self._all_room
        self._cache.clear()

    def share_room(self, workers: int) -> None:
        """Leaves a worker process its part of the room, so that all of them together keep to the bound.

        What was kept before the workers began is memory that they share.
        """
        self._room //= workers


def images_of(
    splits: Mapping[str, Sequence[Sample]], cache_bytes: int = CACHE_BYTES, white_level: int = FULL_WHITE
) -> dict[str, Images]:
    """The images of each split, which together keep no more than ``cache_bytes``."""
    count = sum(map(len, splits.values()))
    return {
        name: Images(samples, cache_bytes * len(samples) // count, white_level)
        for name, samples in splits.items()
    }


class TrainingImages(Dataset[Item]):
    """Augmented images by (epoch, index), each (3, S, S), with their class indices."""

    def __init__(self, images: Images, augmentation: Augmentation, transform: Transform, seed: int) -> None:
        self.images = images
        self.augmentation = augmentation
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Item:
        pixels, label = self.pixels(key)
        return self.transform.normalise(pixels), label

    def pixels(self, key: Key) -> tuple[Pixels, int]:
        """An item before normalising: (S, S, 3) uint8, and its class."""
        epoch, index = key
        generator = np.random.default_rng((self.seed, epoch, index))
        pixels = self.augmentation(self.images.read(index), self.transform.size, generator)
        return pixels, self.images.samples[index].label


class EvaluationImages(Dataset[Item]):
    """Images as the runtime sees them, by index, each (3, S, S), with their class indices."""

    def __init__(self, images: Images, transform: Transform) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        pixels, label = self.pixels(index)
        return self.transform.normalise(pixels), label

    def pixels(self, index: int) -> tuple[Pixels, int]:
        """An item before normalising: (S, S, 3) uint8, and its class."""
        return self.transform.resize(self.images.read(index)), self.images.samples[index].label


class ShuffledBatches(Sampler[list[Key]]):
    """All images once, in batches, in an order that the seed and :attr:`epoch` decide.

    A last batch of one image joins the batch before it: batch norm cannot be trained on one image whose map
    has shrunk to one position.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.epoch = 0
        self.seed = seed
        starts = list(range(0, count, batch_size))
        if len(starts) > 1 and count - starts[-1] == 1:
            starts.pop()
        self._bounds = list(zip(starts, [*starts[1:], count], strict=True))
        self._count = count

    def __len__(self) -> int:
        return len(self._bounds)

    @property
    def sizes(self) -> list[int]:
        """Images in each batch."""
        return [stop - start for start, stop in self._bounds]

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self._count)
        for start, stop in self._bounds:
            yield [(self.epoch, int(index)) for index in order[start:stop]]


def in_batches(count: int, batch_size: int) -> list[list[int]]:
    """The indices of all images in their order, in batches."""
    return [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]


class Batches:
    """Batches of a data set: images (B, 3, S, S) float32 and class indices (B,) int64.

    Drawing them leaves PyTorch's global random state alone. Workers hand over 8-bit pixels, which are
    normalised in this process: a fourth of the bytes to move, and moving them is most of what workers cost.
    They come through a pipe, as arrays: tensors would need shared memory, of which a container has 64 MB, and
    where it is full PyTorch waits for ever.

    Args:
        dataset: one of those above.
        workers: processes that decode and augment; 0 does it in this one.
        pinned: whether batches lie in page-locked memory, from which a GPU copies beside other work.
        batching: ``batch_size`` or ``batch_sampler``.
    """

    def __init__(
        self,
        dataset: TrainingImages | EvaluationImages,
        workers: int = 0,
        *,
        pinned: bool = False,
        **batching: Any,
    ) -> None:
        self._transform, self._pinned = dataset.transform, pinned
        if workers and START != "fork":
            dataset.images.forget()  # each worker would get a copy of all that is kept, through a pipe
        self._loader = DataLoader(
            _CarryingErrors(dataset),
            num_workers=workers,
            multiprocessing_context=START if workers else None,
            persistent_workers=workers > 0,
            generator=torch.Generator(),
            collate_fn=_collate,
            worker_init_fn=_begin_worker,
            **batching,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Raises ImageError where an image cannot be read; the message names it."""
        for batch in self._loader:
            if isinstance(batch, ImageError):
                raise batch
            pixels, labels = batch
            shape = (len(pixels), 3, *pixels.shape[1:3])
            images = torch.empty(shape, dtype=torch.float32, pin_memory=self._pinned)
            for image, own in zip(images.numpy(), pixels, strict=True):
                self._transform.normalise(own, out=image)
            yield images, torch.from_numpy(labels)


@contextmanager
def telling_of_workers() -> Iterator[None]:
    """Says what became of worker processes; PyTorch's own words for it come from wherever this process is.

    Raises:
        TrainingError: one was ended from outside.
    """
    try:
        yield
    except RuntimeError as error:
        # Where this process was interrupted, so were they, and that is told elsewhere.
        if "DataLoader worker" not in str(error) or isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise TrainingError(
            f"a process that reads images is gone ({reason_of(error).rstrip('. ')}): where memory is short "
            "the system ends one: continue the run with --resume and fewer --workers"
        ) from error


def _begin_worker(number: int) -> None:
    """Called in each worker process before its first image."""
    worker = get_worker_info()
    if worker is not None and isinstance(worker.dataset, _CarryingErrors):
        worker.dataset.dataset.images.share_room(worker.num_workers)


class _CarryingErrors(Dataset[Any]):
    """Pixels by key. Errors are values: raised in a worker, they would arrive as that process's traceback."""

    def __init__(self, dataset: TrainingImages | EvaluationImages) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> tuple[Pixels, int] | ImageError:
        try:
            return self.dataset.pixels(key)
        except ImageError as error:
            return error


def _collate(
    items: list[tuple[Pixels, int] | ImageError],
) -> tuple[Pixels, npt.NDArray[np.int64]] | ImageError:
    images, labels = [], []
    for item in items:
        if isinstance(item, ImageError):
            return item
        images.append(item[0])
        labels.append(item[1])
    return np.stack(images), np.array(labels, np.int64)


def channel_statistics(images: Images, size: int) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel over all images, resized as for evaluation.

    Counted by pixel value, so they are exact up to one rounding. A channel without any contrast gets a
    deviation of 1, so that normalising it divides by something.

    Args:
        images: at least one.
        size: side of the square that images are resized to, pixels.

    Returns:
        The means and the deviations, of values in [0, 1].

    Raises:
        ImageError: a file cannot be read.
    """
    transform = Transform(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    counts = np.zeros((3, 256), np.int64)
    for index in range(len(images)):
        pixels = transform.resize(images.read(index))
        for channel in range(3):
            counts[channel] += np.bincount(pixels[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    deviations = np.square(values - mean[:, None])
    std = np.sqrt((shares * deviations).sum(axis=1))
    std[counts.astype(bool).sum(axis=1) == 1] = 1.0
    red, green, blue = mean.tolist()
    red_std, green_std, blue_std = std.tolist()
    return (red, green, blue), (red_std, green_std, blue_std)
