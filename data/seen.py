"""Which images a training saw: checksums by content, which go with the weights from the checkpoint on.

An image is known by the first eight bytes of a SHA-256: of its file, or of its pixels where it lies in a
stack. So it is found again under another name and in another folder, without being decoded; one that was
saved anew, in another format say, counts as another image. Two of a million images agree by chance once in
forty million data sets. 236,386 images take 2 MB.

Dims: N images.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ImageError, reason_of, some
from ..files import sha256_of
from ..images import StackedImage, pixels_in_stack
from ..schema import SHA256, Kind, by_name, record
from .samples import Source

Checksums = npt.NDArray[np.uint64]

CHECKSUM = np.dtype(">u8")
"""A checksum as it is stored."""


@dataclass(frozen=True)
class Seen:
    """Checksums of the images that made a network what it is, distinct and in ascending order."""

    trained_on: Checksums
    chose_the_epoch: Checksums
    """Those of the validation split, by which the epoch that was kept was chosen."""

    @classmethod
    def of(cls, trained_on: Iterable[Source], chose_the_epoch: Iterable[Source]) -> Seen:
        """The checksums of images.

        Raises:
            ImageError: one cannot be read.
        """
        return cls(*(_distinct(checksums_of(each)) for each in (trained_on, chose_the_epoch)))

    def to_dict(self) -> dict[str, str]:
        """Base64 of the checksums, by split."""
        return {"train": _as_text(self.trained_on), "val": _as_text(self.chose_the_epoch)}

    @classmethod
    def from_dict(cls, values: Mapping[str, str]) -> Seen:
        """The inverse of `to_dict`.

        Raises:
            ValueError: it is something else; every mismatch is named.
        """
        if problems := SEEN.problems(values):
            raise ValueError("; ".join(problems))
        return cls(_from_text(values["train"]), _from_text(values["val"]))


@dataclass(frozen=True)
class Overlap:
    """Which of some images a training saw: their places, by what it used them for."""

    trained_on: tuple[int, ...]
    chose_the_epoch: tuple[int, ...]
    """Those that were not trained on."""
    fitted_the_guard: tuple[int, ...] = ()
    """Those that an artefact's guard was fitted on, whatever else they were used for."""
    made_int8: tuple[int, ...] = ()
    """Those that an artefact's int8 was calibrated or judged on, whatever else they were used for."""

    @classmethod
    def of(
        cls,
        sources: Iterable[Source],
        seen: Seen | None,
        guard: Checksums | None = None,
        int8: Checksums | None = None,
    ) -> Overlap:
        """Looks images up.

        Args:
            sources: the images.
            seen: what training saw; None where that is not known.
            guard: what a guard was fitted on; None where there is none, or that is not known.
            int8: what int8 was calibrated and judged on; None where there is none, or that is not known.

        Raises:
            ImageError: an image cannot be read.
        """
        lists = [None, None] if seen is None else [seen.trained_on, seen.chose_the_epoch]
        known = [set[int]() if each is None else set(each.tolist()) for each in (*lists, guard, int8)]
        found = checksums_of(sources) if any(known) else []
        trained_on, chose, fitted, quantised = (
            tuple(place for place, each in enumerate(found) if each in kept) for kept in known
        )
        trained = set(trained_on)
        return cls(trained_on, tuple(place for place in chose if place not in trained), fitted, quantised)

    def notes(self, names: Sequence[str]) -> list[str]:
        """A line for each use that flatters what is measured on the named images."""
        better = {
            self.trained_on_note(names): "the figures are better than they are on others",
            self.chosen_by_note(names): "the figures are a little better than they are on others",
            self.fitted_note(names): "what is told of its answers is better than it is on others",
            self.int8_note(names): "it looks better on these than on others",
        }
        return [f"{note}: {how}" for note, how in better.items() if note]

    def trained_on_note(self, names: Sequence[str]) -> str:
        """How many of the named images were trained on, with examples; empty where none were."""
        if not self.trained_on:
            return ""
        examples = some([names[place] for place in self.trained_on])
        return f"training saw {len(self.trained_on)} of these {len(names)} images ({examples})"

    def chosen_by_note(self, names: Sequence[str]) -> str:
        """How many others of the named images chose the epoch, with examples; empty where none did."""
        if not self.chose_the_epoch:
            return ""
        examples = some([names[place] for place in self.chose_the_epoch])
        return f"{len(self.chose_the_epoch)} of these {len(names)} images chose the epoch ({examples})"

    def fitted_note(self, names: Sequence[str]) -> str:
        """How many of the named images the guard was fitted on, with examples; empty where none were."""
        if not self.fitted_the_guard:
            return ""
        examples = some([names[place] for place in self.fitted_the_guard])
        return (
            f"the guard was fitted on {len(self.fitted_the_guard)} of these {len(names)} images ({examples})"
        )

    def int8_note(self, names: Sequence[str]) -> str:
        """How many of the named images int8 was calibrated or judged on, with examples; empty where none."""
        if not self.made_int8:
            return ""
        examples = some([names[place] for place in self.made_int8])
        made = len(self.made_int8)
        return f"int8 was calibrated or judged on {made} of these {len(names)} images ({examples})"


def checksums_of(sources: Iterable[Source]) -> list[int]:
    """(N,): the checksum of each image.

    Raises:
        ImageError: one cannot be read; it would be missing in silence where images are told apart by these.
    """
    return [_checksum(each) for each in sha256_of_images(sources)]


def sha256_of_images(sources: Iterable[Source]) -> list[str]:
    """(N,): the SHA-256 of each image's file, or of its pixels in a stack.

    Raises:
        ImageError: one cannot be read.
    """
    found: list[str] = []
    for source in sources:
        try:
            if isinstance(source, StackedImage):
                digest = hashlib.sha256(pixels_in_stack(source).tobytes()).hexdigest()
            else:
                digest = sha256_of(source)
        except OSError as error:
            raise ImageError(f"'{source}' cannot be read: {reason_of(error)}") from error
        found.append(digest)
    return found


def _checksum(digest: str) -> int:
    return int(digest[: 2 * CHECKSUM.itemsize], 16)


def _distinct(checksums: Iterable[int]) -> Checksums:
    return np.unique(np.array([*checksums], np.uint64))


def _as_text(checksums: Checksums) -> str:
    return base64.b64encode(checksums.astype(CHECKSUM).tobytes()).decode("ascii")


def _from_text(text: str) -> Checksums:
    return np.unique(np.frombuffer(base64.b64decode(text, validate=True), CHECKSUM).astype(np.uint64))


def _are_checksums(value: Any) -> bool:
    try:
        return isinstance(value, str) and len(base64.b64decode(value, validate=True)) % CHECKSUM.itemsize == 0
    except ValueError:
        return False


SEEN = record(dict.fromkeys(("train", "val"), Kind("checksums in base64", _are_checksums)))
"""What `Seen.to_dict` gives."""

_CALIBRATED = record({"images": Kind("checksums in base64", _are_checksums)})


def calibrated(sources: Iterable[Source]) -> dict[str, str]:
    """What a bundle holds of the images that its guard was fitted on.

    Raises:
        ImageError: one cannot be read.
    """
    return {"images": _as_text(_distinct(checksums_of(sources)))}


def calibrated_images(values: Mapping[str, str]) -> Checksums:
    """The checksums of what `calibrated` gives.

    Raises:
        ValueError: it is something else; every mismatch is named.
    """
    if problems := _CALIBRATED.problems(values):
        raise ValueError("; ".join(problems))
    return _from_text(values["images"])


_QUANTISED = record({}, {"files": by_name(SHA256), "judged": by_name(SHA256)})


def quantised_images(values: Mapping[str, Any]) -> Checksums:
    """The checksums of the images that int8 was calibrated and judged on, by its ``calibration.json``.

    Raises:
        ValueError: it is something else; every mismatch is named.
    """
    if problems := _QUANTISED.problems(values):
        raise ValueError("; ".join(problems))
    digests = {*values.get("files", {}).values(), *values.get("judged", {}).values()}
    return _distinct(map(_checksum, digests))
