"""The compiled resize against the reference: equal bits with every instruction set and number of threads."""

from __future__ import annotations

import ctypes.util
from pathlib import Path

import numpy as np
import pytest
from resize_cases import CASES, picture

from msmamba import images
from msmamba.errors import BackendError
from msmamba.plugins.image_resize import cpu
from msmamba.plugins.selective_scan import cpu as scan
from msmamba.resize import resize

pytestmark = pytest.mark.skipif(scan.why_unavailable() is not None, reason="the native library is not built")

TABLES = np.sqrt(np.arange(3 * 256, dtype=np.float32)).reshape(3, 256)


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    """By the reference, for every case."""
    return {
        name: resize(picture(height, width), size, box) for name, (height, width, size, box) in CASES.items()
    }


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_the_bits_are_the_references(
    name: str, threads: int, kernels: str, expected: dict[str, np.ndarray]
) -> None:
    height, width, size, box = CASES[name]
    scan.set_threads(threads)
    np.testing.assert_array_equal(cpu.resize(picture(height, width), size, box), expected[name])
    if box is None:
        tensor = cpu.prepare(picture(height, width), size, TABLES)
        looked_up = np.stack([TABLES[channel][expected[name][..., channel]] for channel in range(3)])
        np.testing.assert_array_equal(tensor, looked_up)


def test_huge_reductions_and_extreme_values(kernels: str) -> None:
    pixels = np.full((3, 70_001, 3), 255, np.uint8)
    pixels[:, ::2, 1] = 0
    np.testing.assert_array_equal(cpu.resize(pixels, 2), resize(pixels, 2))


def test_any_picture(kernels: str) -> None:
    generator = np.random.default_rng(0)
    for _ in range(60):
        height, width = (int(side) for side in generator.integers(1, 70, 2))
        left, top = int(generator.integers(width)), int(generator.integers(height))
        right, bottom = int(generator.integers(left, width)) + 1, int(generator.integers(top, height)) + 1
        size = int(generator.integers(1, 50))
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for box in (None, (left, top, right, bottom)):
            np.testing.assert_array_equal(cpu.resize(pixels, size, box), resize(pixels, size, box))


def test_a_picture_may_lie_in_memory_as_it_likes() -> None:
    pixels = picture(40, 60)
    for view in (pixels[::2, ::-1], pixels.transpose(1, 0, 2), np.asfortranarray(pixels)):
        np.testing.assert_array_equal(cpu.resize(view, 17), resize(np.ascontiguousarray(view), 17))


def test_every_value_is_normalised() -> None:
    pixels, out = picture(31, 31), np.full((3, 31, 31), np.nan, np.float32)
    cpu.normalise(pixels[:, ::-1], TABLES, out)
    looked_up = np.stack([TABLES[channel][pixels[:, ::-1, channel]] for channel in range(3)])
    np.testing.assert_array_equal(out, looked_up)


@pytest.mark.parametrize(
    ("pixels", "tables", "out", "message"),
    [
        (np.zeros((2, 2, 4), np.uint8), TABLES, np.zeros((3, 2, 2), np.float32), "pixels are"),
        (np.zeros((2, 2, 3), np.uint8), TABLES.astype(float), np.zeros((3, 2, 2), np.float32), "tables is"),
        (np.zeros((2, 2, 3), np.uint8), TABLES, np.zeros((3, 2, 3), np.float32), "out is"),
        (np.zeros((2, 2, 3), np.uint8), TABLES, np.zeros((2, 2, 3), np.float32).T, "out is"),
    ],
    ids=["rgba", "double-tables", "other-shape", "strided"],
)
def test_arrays_that_do_not_fit_are_refused(
    pixels: np.ndarray, tables: np.ndarray, out: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cpu.normalise(pixels, tables, out)


def test_a_library_without_the_resize_is_told_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    system = ctypes.util.find_library("c")
    if system is None:
        pytest.skip("there is no C library to stand in for an old one")
    monkeypatch.setattr(scan, "library_path", lambda: Path(system))
    monkeypatch.setattr(scan, "why_unavailable", lambda: None)
    cpu._library.cache_clear()
    images.native_resize.cache_clear()
    try:
        with pytest.raises(BackendError, match="older msmamba, which had no resize"):
            cpu.resize(picture(4, 4), 2)
        np.testing.assert_array_equal(images.resized(picture(9, 4), 2), resize(picture(9, 4), 2))
    finally:
        cpu._library.cache_clear()
        images.native_resize.cache_clear()
