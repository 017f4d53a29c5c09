"""What training images cover: pixels and microns of their sides, for tiles of slides to cover the same.

An image that is not square is squeezed into the network's square input, so its side is that of the square of
the same area: a tile of a slide, which is not squeezed, then covers as much as the image did. What training
crops at random, turns or flips counts for nothing here: the network is evaluated on whole images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..schema import listed, maybe, number, record

_VARIED = 1.25


class Spread(NamedTuple):
    """The least, the median and the most of many figures."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one figure, to six digits."""
        from statistics import median  # not at the top: opening an artefact would load decimals and fractions

        return cls(*(float(f"{value:.6g}") for value in (min(values), median(values), max(values))))


_SPREAD = listed(number(1e-6, 1e9), 3, 3)
COVERAGE = record({"pixels": _SPREAD}, {"microns": maybe(_SPREAD)})
"""What a `Coverage` is in a file."""


@dataclass(frozen=True)
class Coverage:
    """The sides of training images.

    Attributes:
        pixels: as they are stored, before any resize.
        microns: None where nobody has said them.
    """

    pixels: Spread
    microns: Spread | None = None

    @classmethod
    def of(
        cls, sizes: Sequence[tuple[int, int]], mpp: float | Sequence[float] | None = None
    ) -> Coverage | None:
        """What images cover.

        Args:
            sizes: two sides of each, pixels.
            mpp: microns a pixel, of all of them or of each.

        Returns:
            None of no images.
        """
        if not sizes:
            return None
        sides = [math.sqrt(height * width) for height, width in sizes]
        if mpp is None:
            return cls(Spread.of(sides))
        scales = mpp if isinstance(mpp, Sequence) else [mpp] * len(sides)
        return cls(
            Spread.of(sides), Spread.of([side * scale for side, scale in zip(sides, scales, strict=True)])
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Coverage | None:
        """What a file holds of the kind `COVERAGE`; None of nothing."""
        if not values:
            return None
        microns = values.get("microns")
        return cls(Spread(*values["pixels"]), None if microns is None else Spread(*microns))

    def to_dict(self) -> dict[str, Any]:
        """Plain values: lists of least, median and most."""
        return {
            "pixels": list(self.pixels),
            "microns": None if self.microns is None else list(self.microns),
        }

    def at(self, mpp: float) -> Coverage:
        """The same images, of so many microns a pixel each."""
        return Coverage(self.pixels, Spread.of([value * mpp for value in self.pixels]))

    def mpp(self, size: int) -> float | None:
        """Microns that a pixel of the network's input covers, in the median; None where nobody has said them.

        Args:
            size: side of that input, pixels.
        """
        return None if self.microns is None else self.microns.median / size

    def to_text(self) -> str:
        """A phrase such as ``images of 448 pixels, 112 microns (100 to 224)``."""
        parts = [f"images of {_phrase(self.pixels)} pixels"]
        if self.microns is not None:
            parts.append(f"{_phrase(self.microns)} microns")
        return ", ".join(parts)

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say of images that do not all cover the same."""
        if self.microns is None:
            return ()
        least, middle, most = self.microns
        if most <= middle * _VARIED and least >= middle / _VARIED:
            return ()
        return (
            f"training images cover {least:g} to {most:g} microns a side: tiles of slides will cover the "
            f"median, {middle:g}",
        )


def _phrase(spread: Spread) -> str:
    least, middle, most = spread
    return f"{middle:g}" if least == most else f"{middle:g} ({least:g} to {most:g})"
