"""From a histogram to a range: the largest absolute value that int8 tells apart; larger ones are cut off."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..runtime.onnxruntime_library import import_onnxruntime
from .histogram import BINS, Histogram

METHODS = ("entropy", "percentile", "minmax")
PERCENTILE = 99.99
"""Share of an activation's values, in percent, that the percentile method does not cut off."""

_ENTROPY_BINS = 256
"""A side. onnxruntime's search takes time with the square of it."""
_LEVELS = 128
"""Levels that onnxruntime's search spreads over both sides."""


def range_of(histogram: Histogram, method: str) -> float:
    """The range of one activation; 0 where it was never anything else.

    Args:
        histogram: how often each absolute value was met.
        method: ``minmax``, the largest value seen; ``percentile``, the one that all but `PERCENTILE` percent
            stay below; ``entropy``, the one whose eight-bit distribution is nearest to the measured one by
            the Kullback-Leibler divergence (onnxruntime's search, after TensorRT's).

    Raises:
        InputError: the method is unknown.
    """
    if method not in METHODS:
        raise InputError(f"calibration method {method!r} is unknown: choose one of {', '.join(METHODS)}")
    if method == "minmax" or histogram.width == 0:
        return histogram.largest
    threshold = _percentile(histogram) if method == "percentile" else _entropy(histogram)
    return min(threshold, histogram.largest)


def _percentile(histogram: Histogram) -> float:
    below = np.cumsum(histogram.counts)
    bin_reached = int(np.searchsorted(below, PERCENTILE / 100 * below[-1]))
    return (bin_reached + 1) * histogram.width


def _entropy(histogram: Histogram) -> float:
    import_onnxruntime()
    from onnxruntime.quantization.calibrate import HistogramCollector

    # Its search wants both sides of zero, and no empty bins beyond the largest value.
    used = int(np.flatnonzero(histogram.counts)[-1]) + 1
    factor = -(-used // _ENTROPY_BINS)
    groups: npt.NDArray[np.int64] = np.add.reduceat(histogram.counts, np.arange(0, BINS, factor))
    groups = groups[: max(_LEVELS // 2 + 1, -(-used // factor))]
    edge = len(groups) * factor * histogram.width
    counts = np.concatenate([groups[::-1], groups])
    edges = np.linspace(-edge, edge, len(counts) + 1, dtype=np.float32)
    collector = HistogramCollector("entropy", True, len(counts), _LEVELS, None, None)
    extent = np.float32(histogram.largest)
    low, high = collector.get_entropy_threshold((counts, edges, -extent, extent, extent), _LEVELS)
    return float(max(-low, high))
