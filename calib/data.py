"""The images that ranges are measured on: a seeded, class-balanced choice, known by what the files hold."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..data.folders import below
from ..data.seen import sha256_of_images
from ..errors import DataError, some
from ..images import FULL_WHITE, StackedImage, read_image

Source: TypeAlias = Path | StackedImage


@dataclass(frozen=True)
class CalibrationImage:
    """One image file of the set."""

    source: Source
    name: str
    """Relative to the data folder."""
    label: str
    sha256: str
    """Checksum of the file, or of the pixels where a file holds many images."""


@dataclass(frozen=True)
class CalibrationSet:
    """The images, in the order in which they are measured."""

    images: tuple[CalibrationImage, ...]
    seed: int
    available: int
    """Images that there were to choose from."""

    @property
    def digest(self) -> str:
        """sha256 over the images' own, in order: equal for the same pixels, wherever the files lie."""
        return hashlib.sha256("".join(image.sha256 for image in self.images).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """What a manifest says of the set."""
        return {
            "images": len(self.images),
            "available": self.available,
            "by_class": dict(Counter(image.label for image in self.images)),
            "seed": self.seed,
            "sha256": self.digest,
        }

    def listing(self) -> dict[str, str]:
        """Every image's name and sha256."""
        return {image.name: image.sha256 for image in self.images}


def choose(
    root: str | Path,
    samples: Sequence[tuple[Source, str]],
    labels: Sequence[str],
    *,
    count: int,
    seed: int = 0,
    for_ranges: bool = True,
    white_level: int = FULL_WHITE,
) -> CalibrationSet:
    """Chooses images, as many of one class as of another while they last, and looks at each.

    A smaller set is the beginning of a larger one with the same seed.

    Args:
        root: the folder that names are relative to; it holds the images.
        samples: images with their class names.
        labels: every class that the model knows.
        count: images wanted; where there are fewer, all are taken.
        seed: decides which images are chosen.
        for_ranges: whether ranges will be measured on them, for which every class must have images, and
            none of a single colour.
        white_level: the value of white in 16-bit images.

    Raises:
        DataError: no image was asked for, there is none, or those there are will not do for ranges.
        ImageError: an image cannot be read.
    """
    if count < 1:
        raise DataError(f"{count} calibration images were asked for: expected at least 1")
    by_class: dict[str, list[Source]] = {label: [] for label in labels}
    for source, label in samples:
        by_class[label].append(source)
    missing = [label for label, sources in by_class.items() if not sources]
    if missing and (for_ranges or len(missing) == len(by_class)):
        raise DataError(
            f"{root}: has no images of {some([repr(label) for label in missing])}: ranges measured without "
            "a class may cut its values off; add some"
        )
    generator = np.random.default_rng(seed)
    shuffled = [
        [(sources[i], label) for i in generator.permutation(len(sources))]
        for label, sources in by_class.items()
    ]
    rounds = range(max(map(len, shuffled)))
    dealt = [sources[turn] for turn in rounds for sources in shuffled if turn < len(sources)][:count]

    images, plain = [], []
    digests = sha256_of_images(source for source, _ in dealt)
    for (source, label), digest in zip(dealt, digests, strict=True):
        pixels = read_image(source, white_level=white_level)
        name = below(Path(root), source)
        if (pixels == pixels[:1, :1]).all():
            plain.append(name)
        images.append(CalibrationImage(source, name, label, digest))
    if plain and for_ranges:
        raise DataError(
            f"{root}: {len(plain)} of {len(images)} calibration images show a single colour: {some(plain)}; "
            "ranges measured on them would be wrong: take them out"
        )
    return CalibrationSet(tuple(images), seed, len(samples))
