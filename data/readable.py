"""Images that cannot be read: found before anything is computed, so that what is left out is known and named.

A run that met one in its third epoch would have to stop, or to train on less than it said. Looking at every
image first costs a pass of reading, and is done only when asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, islice

import numpy as np

from ..errors import ImageError
from ..images import FULL_WHITE, read_image
from ..machine import threads_to_use
from .folders import ImageFolder
from .samples import Sample, Samples, Source

_IMAGES_A_THREAD = 64
"""How many images are handed out together."""

Unreadable = dict[str, dict[int, str]]
"""The reason, by split and place in it."""


@contextmanager
def telling_of_skip_bad() -> Iterator[None]:
    """Says of an image that cannot be read that ``--skip-bad`` leaves such ones out."""
    try:
        yield
    except ImageError as error:
        raise ImageError(
            f"{error}: mend or remove it, or leave out all such images with --skip-bad"
        ) from error


def unreadable_images(
    data: ImageFolder,
    *,
    threads: int | None = None,
    white_level: int = FULL_WHITE,
    advance: Callable[[int, int], None] = lambda done, images: None,
) -> Unreadable:
    """Reads every image, and gives those that cannot be.

    Args:
        data: all of its splits are looked at.
        threads: how many images are read at once; one on every usable core by default.
        white_level: by which 16-bit images are read.
        advance: called with the images read and all images.
    """
    threads = threads_to_use(threads)
    images = sum(map(len, data.splits.values()))
    places = chain.from_iterable(
        ((name, place) for place in range(len(samples))) for name, samples in data.splits.items()
    )
    bad: Unreadable = {}
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(places, threads * _IMAGES_A_THREAD)):
            sources = [data.splits[name][place].source for name, place in chunk]
            reasons = pool.map(partial(_why_unreadable, white_level), sources)
            for (name, place), reason in zip(chunk, reasons, strict=True):
                if reason:
                    bad.setdefault(name, {})[place] = reason
            done += len(chunk)
            advance(done, images)
    return bad


def without(data: ImageFolder, bad: Unreadable) -> ImageFolder:
    """The data without some images, which `ImageFolder.skipped` then names and `ImageFolder.whole` has."""
    if not bad:
        return data
    kept = {
        name: np.array([place for place in range(len(samples)) if place not in bad.get(name, {})], np.intp)
        for name, samples in data.splits.items()
    }
    names = {name: data.names(name) for name in bad}
    return replace(
        data,
        splits={name: _taken(samples, kept[name]) for name, samples in data.splits.items()},
        groups={name: [groups[place] for place in kept[name]] for name, groups in data.groups.items()},
        skipped={
            **data.skipped,
            **{names[name][place]: reason for name, found in bad.items() for place, reason in found.items()},
        },
        whole=data.whole or data,
    )


def _taken(samples: Sequence[Sample], places: np.typing.NDArray[np.intp]) -> Sequence[Sample]:
    if isinstance(samples, Samples):
        return samples.take(places)
    return tuple(samples[place] for place in places)


def _why_unreadable(white_level: int, source: Source) -> str:
    try:
        read_image(source, white_level=white_level)
    except ImageError as error:
        return str(error)
    return ""
