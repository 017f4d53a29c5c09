"""A histogram of absolute values that takes any number of values in fixed memory.

Widths are powers of two and double when a larger value comes, pairs of bins becoming one, so the result does
not depend on the order of the images. (onnxruntime's `HistogramCollector` keeps the width that its first
image suggests and adds bins instead: after an almost constant image the next one needs millions.)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 2048
_LEAST_WIDTH = 2.0**-100  # float32 holds its reciprocal


class Histogram:
    """How many absolute values fell into each of `BINS` bins of equal width, from 0."""

    def __init__(
        self, counts: npt.NDArray[np.int64] | None = None, width: float = 0.0, largest: float = 0.0
    ) -> None:
        self.counts = np.zeros(BINS, np.int64) if counts is None else counts
        self.width = width
        """Width of a bin; 0 as long as every value was 0."""
        self.largest = largest

    def add(self, values: npt.NDArray[Any]) -> None:
        """Counts values of any shape.

        Raises:
            ValueError: some are not finite.
        """
        sizes = np.abs(values, dtype=np.float32).ravel()
        largest = float(sizes.max(initial=0))
        if not math.isfinite(largest):
            raise ValueError("values that are not finite")
        self.largest = max(self.largest, largest)
        if largest >= BINS * self.width:
            self._widen(largest)
        if self.width == 0:
            self.counts[0] += sizes.size
            return
        places = (sizes * np.float32(1 / self.width)).astype(np.int32)  # exact: the width is a power of two
        self.counts += np.bincount(places, minlength=BINS)

    def _widen(self, largest: float) -> None:
        """Takes the least width that is a power of two and has room for ``largest``."""
        if largest == 0:
            return
        _, exponent = math.frexp(largest / BINS)
        width = max(2.0**exponent, _LEAST_WIDTH)
        if self.width:
            factor = min(BINS, round(width / self.width))
            merged = np.add.reduceat(self.counts, np.arange(0, BINS, factor))
            self.counts = np.zeros(BINS, np.int64)
            self.counts[: len(merged)] = merged
        self.width = width
