"""Augmentation: crops, turns, flips, colour and focus."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msmamba.images import Transform
from msmamba.model.training.augmentation import Augmentation, turned

WHOLE: dict[str, Any] = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}


def noise(height: int, width: int) -> np.ndarray:
    """An image of noise."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(deadline=None)
@given(width=st.integers(2, 400), height=st.integers(2, 400), seed=st.integers(0, 99))
def test_a_crop_lies_in_the_image_and_keeps_area_and_ratio(width: int, height: int, seed: int) -> None:
    augmentation = Augmentation()
    left, top, right, bottom = augmentation.crop_box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    crop_width, crop_height = right - left, bottom - top
    # Rounding to whole pixels moves each side by half a pixel at most.
    if 1 / 4 <= width / height <= 4:  # a longer image may have to give its small centre
        assert (crop_width + 0.5) * (crop_height + 0.5) >= 0.08 * width * height
    assert (crop_width - 0.5) / (crop_height + 0.5) <= 4 / 3
    assert (crop_width + 0.5) / (crop_height - 0.5) >= 3 / 4


def test_crops_spread_over_areas_ratios_and_places() -> None:
    generator = np.random.default_rng(0)
    boxes = np.array([Augmentation().crop_box(100, 100, generator) for _ in range(2000)])
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(axis=1) / 1e4
    ratios = np.log(sides[:, 0] / sides[:, 1])
    assert areas.min() < 0.1
    assert areas.max() > 0.9
    assert abs(np.median(areas) - 0.52) < 0.05  # not 0.54: large crops of a skewed ratio do not fit
    assert abs(ratios.mean()) < 0.02
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert np.abs(centres.mean(axis=0) - 50).max() < 1.5


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        pytest.param(400, 10, (193, 0, 206, 10), id="wide"),
        pytest.param(10, 400, (0, 193, 10, 206), id="tall"),
    ],
)
def test_an_image_that_no_crop_fits_gives_its_centre(
    width: int, height: int, box: tuple[int, int, int, int]
) -> None:
    assert Augmentation(crop_scale=(1.0, 1.0)).crop_box(width, height, np.random.default_rng(0)) == box


@pytest.mark.parametrize(
    ("height", "width", "changes"),
    [
        pytest.param(33, 33, {}, id="square"),
        pytest.param(33, 90, {"keep_shape": True}, id="wide"),
        pytest.param(50, 7, {"keep_shape": True}, id="narrow"),
    ],
)
def test_a_crop_of_everything_is_the_evaluation_resize(
    height: int, width: int, changes: dict[str, bool]
) -> None:
    pixels = noise(height, width)
    plain = Transform(32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    whole = Augmentation(**WHOLE, **changes)
    np.testing.assert_array_equal(whole(pixels, 32, np.random.default_rng(0)), plain.resize(pixels))


def test_crops_can_keep_the_shape_of_the_image() -> None:
    generator = np.random.default_rng(0)
    augmentation = Augmentation(crop_scale=(0.3, 0.7), crop_ratio=(3 / 4, 4 / 3), keep_shape=True)
    boxes = np.array([augmentation.crop_box(1200, 300, generator) for _ in range(500)])
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    ratios = width / height / 4
    assert ratios.min() > 0.74
    assert ratios.max() < 1.35
    assert np.log(ratios).mean() == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize(
    ("flips", "expected"),
    [
        pytest.param({}, {(False, False)}, id="none"),
        pytest.param({"horizontal_flip": True}, {(False, False), (True, False)}, id="horizontal"),
        pytest.param(
            {"horizontal_flip": True, "vertical_flip": True},
            {(left, up) for left in (False, True) for up in (False, True)},
            id="both",
        ),
    ],
)
def test_flips_mirror_about_half_of_the_images(
    flips: dict[str, bool], expected: set[tuple[bool, bool]]
) -> None:
    ramp = np.zeros((16, 16, 3), np.uint8)
    ramp[..., 0] = np.arange(16)[None, :] * 10
    ramp[..., 1] = np.arange(16)[:, None] * 10
    augmentation = Augmentation(**flips)
    seen = []
    for seed in range(60):
        out = augmentation(ramp, 16, np.random.default_rng(seed)).astype(int)
        seen.append((bool(out[0, 0, 0] > out[0, -1, 0]), bool(out[0, 0, 1] > out[-1, 0, 1])))
    assert set(seen) == expected
    for case in expected:
        assert seen.count(case) > 60 / len(expected) / 2


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [1, 32, 33])
def test_a_turn_by_quarters_moves_pixels_only(quarters: int, size: int) -> None:
    pixels = noise(size, size)
    np.testing.assert_array_equal(turned(pixels, 90 * quarters), np.rot90(pixels, quarters))


def test_a_turn_shows_the_mirror_image_at_the_corners() -> None:
    rows, columns = np.mgrid[:32, :32]
    ramp = np.stack([rows, columns, rows + columns], axis=-1).astype(np.uint8) + 100
    found = turned(ramp, 45).astype(int) - 100
    # Anticlockwise by an eighth: the upper left corner shows what is straight above the centre, 21.9 pixels
    # away, where the image ends after 15.5 (and begins again, mirrored, half a pixel further on).
    beyond = 15.5 * 2**0.5 - 15.5
    assert found[0, 0, :2] == pytest.approx([beyond - 1, 15.5], abs=1)
    assert found[0, -1, :2] == pytest.approx([15.5, 31 - beyond + 1], abs=1)
    assert found.min() >= -1  # no black corners


def test_rotation_turns_by_any_angle_up_to_the_widest() -> None:
    line = np.full((65, 65, 3), 255, np.uint8)
    line[:33, 31:34] = 0  # from the centre up
    angles = []
    for seed in range(40):
        turned = Augmentation(**WHOLE, rotation=90)(line, 65, np.random.default_rng(seed))
        rows, columns = np.nonzero(turned[..., 0] < 128)
        angles.append(np.degrees(np.arctan2(32 - columns.mean(), 32 - rows.mean())))  # anticlockwise
    assert max(map(abs, angles)) <= 91
    assert min(angles) < -60
    assert max(angles) > 60
    assert abs(np.mean(angles)) < 25


def test_colour_changes_channels_and_contrast_by_no_more_than_the_share() -> None:
    halves = np.full((16, 16, 3), 80, np.uint8)
    halves[8:] = 160
    means, contrasts = [], []
    for seed in range(60):
        out = Augmentation(**WHOLE, colour=0.1)(halves, 16, np.random.default_rng(seed)).astype(float)
        means.append(out.mean(axis=(0, 1)) / 120)
        contrasts.append((out[-1, 0] - out[0, 0]) / out.mean(axis=(0, 1)) * 120 / 80)
    for seen in (np.array(means), np.array(contrasts)):
        assert 0.89 < seen.min() < 0.93
        assert 1.07 < seen.max() < 1.11
    assert np.ptp(means, axis=1).max() > 0.1  # each channel by its own factor


def test_colour_stays_within_eight_bits() -> None:
    extremes = np.zeros((16, 16, 3), np.uint8)
    extremes[8:] = 255
    for seed in range(10):
        out = Augmentation(**WHOLE, colour=0.5)(extremes, 16, np.random.default_rng(seed))
        assert (out[8:] >= out[:8].max()).all()  # no value has wrapped around


def test_focus_blurs_by_up_to_a_share_of_the_side() -> None:
    dot = np.zeros((65, 65, 3), np.uint8)
    dot[32, 32] = 255
    deviations = []
    for seed in range(40):
        out = Augmentation(**WHOLE, focus=0.04)(dot, 65, np.random.default_rng(seed))[..., 0].astype(float)
        assert out.sum() == pytest.approx(255, rel=0.25)  # rounding to whole grey levels
        profile = out.sum(axis=0) / out.sum()
        deviations.append(np.sqrt(profile @ np.square(np.arange(65) - 32)))
    assert min(deviations) < 0.5
    assert 1.8 < max(deviations) < 0.04 * 65 * 1.1


def test_what_is_off_draws_nothing() -> None:
    """So that recipes without a figure give the images that they gave before there was it."""
    pixels = noise(40, 56)
    flips = {"horizontal_flip": True, "vertical_flip": True}
    for seed in range(8):
        plain = Augmentation(**flips)(pixels, 32, np.random.default_rng(seed))
        faint = Augmentation(**flips, colour=1e-9, focus=1e-9)(pixels, 32, np.random.default_rng(seed))
        np.testing.assert_array_equal(plain, faint)


def test_every_range_that_makes_no_sense_is_named_at_once() -> None:
    with pytest.raises(
        ValueError, match=r"crop_scale is 1 to 0.*rotation is 181, expected 0 to 180.*colour is -1"
    ):
        Augmentation(crop_scale=(1, 0), rotation=181, colour=-1)
    with pytest.raises(
        ValueError, match=r"crop_scale is 0 to 1.*crop_ratio is 0 to 2.*expected two numbers above 0"
    ):
        Augmentation(crop_scale=(0, 1), crop_ratio=(0, 2))
