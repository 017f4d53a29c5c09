"""Histograms that do not depend on the order of what they count, and the ranges found in them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msmamba.calib import METHODS, Histogram, range_of
from msmamba.calib.histogram import BINS
from msmamba.errors import InputError

Floats = npt.NDArray[np.float32]


def histogram_of(*parts: Floats) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def normal(count: int, scale: float = 1.0, seed: int = 0) -> Floats:
    return (np.random.default_rng(seed).standard_normal(count) * scale).astype(np.float32)


finite = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(finite, max_size=5), min_size=1, max_size=6))
def test_the_order_of_images_does_not_matter(parts: list[list[float]]) -> None:
    arrays = [np.array(part, np.float32) for part in parts]
    one = histogram_of(*arrays)
    other = histogram_of(*sorted(arrays, key=lambda array: array.tobytes()))
    assert (one.width, one.largest) == (other.width, other.largest)
    assert one.counts.tolist() == other.counts.tolist()
    assert one.counts.sum() == sum(map(len, parts))
    assert one.largest == max((abs(float(x)) for array in arrays for x in array), default=0)


def test_it_counts_as_numpy_does() -> None:
    values = normal(5000)
    histogram = histogram_of(*np.array_split(values, 7))
    edges = np.arange(BINS + 1) * histogram.width
    assert histogram.counts.tolist() == np.histogram(np.abs(values), edges)[0].tolist()
    assert np.log2(histogram.width).is_integer()
    assert histogram.largest < BINS * histogram.width <= 2 * histogram.largest * (1 + 1e-6)


@pytest.mark.parametrize(("largest", "width"), [(BINS, 2.0), (np.nextafter(np.float32(BINS), 0), 1.0)])
def test_a_power_of_two_begins_a_width_of_its_own(largest: float, width: float) -> None:
    histogram = histogram_of(np.array([largest], np.float32))
    assert histogram.width == width
    assert histogram.counts[int(largest / width)] == 1


def test_a_much_larger_value_takes_no_more_memory() -> None:
    histogram = histogram_of(np.zeros(10, np.float32), normal(100, 1e-20), normal(100), normal(100, 1e20))
    assert histogram.counts.shape == (BINS,)
    assert histogram.counts[0] >= 210
    assert histogram.counts.sum() == 310


def test_the_smallest_numbers_are_counted() -> None:
    histogram = histogram_of(np.array([1e-45, 1e-39], np.float32))
    assert histogram.counts.sum() == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        histogram_of(np.array([1, value], np.float32))


@pytest.mark.parametrize("method", METHODS)
def test_a_range_is_above_zero_and_at_most_the_largest_value(method: str) -> None:
    for values in (normal(3000), np.abs(normal(3000)), normal(3), np.ones(9, np.float32)):
        histogram = histogram_of(values)
        assert 0 < range_of(histogram, method) <= histogram.largest
    assert range_of(histogram_of(np.zeros(4, np.float32)), method) == 0


@pytest.mark.parametrize(
    ("method", "least", "most"),
    [("minmax", 100, 100), ("percentile", 3.5, 5), ("entropy", 1.5, 60)],
    ids=["minmax-keeps-it", "percentile-cuts-it-off", "entropy-cuts-it-off"],
)
def test_one_outlier_among_many_values(method: str, least: float, most: float) -> None:
    histogram = histogram_of(normal(200_000), np.array([100], np.float32))
    assert least <= range_of(histogram, method) <= most


def test_the_percentile_is_the_end_of_the_bin_that_it_falls_into() -> None:
    counts = np.zeros(BINS, np.int64)
    counts[[0, 50, 100]] = 9998, 1, 1  # 99.99 % of 10,000 are those of the first two
    assert range_of(Histogram(counts, 1.0, 100.5), "percentile") == 51


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(InputError, match="'mean' is unknown: choose one of entropy, percentile, minmax"):
        range_of(Histogram(), "mean")
