"""The quality of pictures: what is blurred, dark, bright or empty is called so, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from msmamba.errors import InputError
from msmamba.runtime.quality import quality_of


def field(
    height: int = 300, width: int = 400, contrast: float = 1.0, blur: float = 0.7, seed: int = 0
) -> NDArray[np.uint8]:
    """A smear as a microscope shows it: pale ground, pink cells with a dark nucleus, a little noise."""
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), (225, 222, 228))
    draw = ImageDraw.Draw(image)
    for _ in range(height * width // 2500):
        x, y, radius = generator.integers(0, width), generator.integers(0, height), generator.integers(9, 18)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(205, 150, 165))
        draw.ellipse((x - 4, y - 4, x + 5, y + 5), fill=(110, 60, 140))
    smooth = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), np.float64)
    noisy = (smooth - 225) * contrast + 225 + generator.normal(0, 0.5, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def test_a_good_picture_has_no_faults() -> None:
    quality = quality_of(field())
    assert quality.faults == ()
    assert quality.focus is not None
    assert 0.42 < quality.focus < 1
    assert 0.8 < quality.brightest < 0.95
    assert quality.black == quality.white == 0
    assert quality.emptiness < 0.7


@pytest.mark.parametrize("shape", [(300, 400), (1081, 1919), (96, 96)], ids=str)
def test_focus_falls_with_every_blur(shape: tuple[int, int]) -> None:
    focus = [quality_of(field(*shape, blur=blur)).focus for blur in (0.7, 1.5, 3)]
    assert None not in focus
    assert focus == sorted(focus, reverse=True)
    assert quality_of(field(*shape, blur=4)).faults == ("out of focus",)


@pytest.mark.parametrize("noise", [1, 2, 4])
def test_a_cameras_noise_hides_no_blur(noise: float) -> None:
    """By the differences of single pixels alone such pictures are as sharp as can be."""
    generator = np.random.default_rng(1)
    for blur, faults in ((0.7, ()), (6, ("out of focus",))):
        pixels = field(600, 800, blur=blur)
        noisy = np.clip(pixels + generator.normal(0, noise, pixels.shape), 0, 255).astype(np.uint8)
        quality = quality_of(noisy)
        assert quality.faults == faults
        assert quality.focus is not None
        assert quality.focus > 0.42


def test_rounding_hides_no_blur() -> None:
    """A large picture far out of focus: its neighbouring pixels differ by less than a level."""
    small = Image.fromarray(field(blur=0.7)).resize((1600, 1200), Image.Resampling.BICUBIC)
    assert quality_of(np.asarray(small.filter(ImageFilter.GaussianBlur(16)))).faults == ("out of focus",)


@pytest.mark.parametrize(("shape", "known"), [((95, 400), False), ((96, 96), True), ((1201, 1601), True)])
def test_small_pictures_have_no_coarse_focus(shape: tuple[int, int], known: bool) -> None:
    quality = quality_of(field(*shape))
    assert (quality.coarse_focus is not None) == known
    assert quality.faults == ()


@pytest.mark.parametrize(("side", "faults"), [(239, ()), (240, ("out of focus",))])
def test_a_coarse_focus_alone_is_a_fault_of_larger_pictures_only(side: int, faults: tuple[str]) -> None:
    """One cell's soft edge in a crop has as little as a field out of focus: its guard's range tells."""
    noise = np.random.default_rng(1).normal(0, 2, (side, side, 3))
    quality = quality_of(np.clip(field(side, side, blur=8) + noise, 0, 255).astype(np.uint8))
    assert quality.coarse_focus is not None
    assert quality.coarse_focus < 0.32
    assert quality.faults == faults


def test_a_stage_in_motion_is_out_of_focus_along_it() -> None:
    pixels = field().astype(np.float64)
    smeared = np.mean([np.roll(pixels, step, axis=1) for step in range(32)], axis=0).astype(np.uint8)
    for along in (smeared, smeared.transpose(1, 0, 2)):
        assert quality_of(along).faults == ("out of focus",)
        noisy = np.clip(along + np.random.default_rng(0).normal(0, 3, along.shape), 0, 255).astype(np.uint8)
        assert quality_of(noisy).faults == ("out of focus",)  # by the coarse focus alone


def test_focus_does_not_depend_on_contrast_or_light() -> None:
    full, pale = quality_of(field(blur=1)).focus, quality_of(field(blur=1, contrast=0.5)).focus
    dim = quality_of((field(blur=1) * 0.6).astype(np.uint8)).focus
    assert full is not None
    assert pale == pytest.approx(full, abs=0.06)
    assert dim == pytest.approx(full, abs=0.06)


@pytest.mark.parametrize(
    ("pixels", "faults"),
    [
        ((field() * 0.15).astype(np.uint8), "too dark"),
        (np.clip(field().astype(int) + 90, 0, 255).astype(np.uint8), "too bright"),
        (np.full((300, 400, 3), 200, np.uint8), "empty"),
        (np.tile(np.linspace(150, 230, 400).astype(np.uint8)[None, :, None], (300, 1, 3)), "empty"),
    ],
    ids=["dark", "bright", "bare glass", "bare glass in uneven light"],
)
def test_faults_are_named(pixels: NDArray[np.uint8], faults: str) -> None:
    assert faults in quality_of(pixels).faults
    assert "out of focus" not in quality_of(pixels).faults


def test_the_colour_of_the_lamp_is_seen() -> None:
    red, green, blue = quality_of((field() * [1.0, 0.9, 0.6]).astype(np.uint8)).background
    assert red > green > blue
    assert blue / red == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize("shape", [(1, 1), (2, 500), (500, 13), (15, 15), (16, 16)], ids=str)
def test_pictures_of_any_size_have_a_quality(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert json.loads(json.dumps(quality_of(pixels).as_json()))["faults"] is not None


@pytest.mark.parametrize(
    "pixels",
    [field() / np.float32(255), field()[..., 0], np.dstack([field(), field()[..., 0]]), field()[:0]],
    ids=["float32", "grey", "transparent", "empty"],
)
def test_what_is_no_picture_is_refused(pixels: NDArray[Any]) -> None:
    with pytest.raises(InputError, match=r"expected uint8 of shape \(H, W, 3\), RGB"):
        quality_of(pixels)


def test_a_picture_of_one_value_has_no_focus() -> None:
    quality = quality_of(np.zeros((100, 100, 3), np.uint8))
    assert quality.focus is None
    assert quality.faults == ("too dark", "empty")
    assert (quality.black, quality.emptiness) == (1, 1)
