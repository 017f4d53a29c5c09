"""Tiles: at the model's scale, from the best level, none left out, and where the tissue is."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from slide_files import HALF_A_MICRON, tissue, write_tiff

from msmamba.errors import InputError
from msmamba.microscope.slides import Tile, open_slide, tiles
from msmamba.microscope.slides.tiling import best_level, read_tile
from msmamba.microscope.slides.tissue import Mask, Thumbnail, TissueOptions, mask_of, thumbnail, tissue_mask

PIXELS = tissue()
SMALL = TissueOptions(thumbsize=210, median_filter_size=3, closing_kernel_size=3, min_object_size_um2=200)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.33])
@pytest.mark.parametrize("size", [32, 60, 300, 1000])
def test_the_grid_covers_every_pixel(pyramid: Path, size: int, overlap: float) -> None:
    slide = open_slide(pyramid)
    covered = np.zeros((300, 420), int)
    for tile in tiles(slide, None, size, overlap):
        assert 0 <= tile.x < 420
        assert 0 <= tile.y < 300
        covered[tile.y : tile.y + size, tile.x : tile.x + size] += 1
    assert covered.min() == 1
    slide.close()


@pytest.mark.parametrize(
    ("mpp", "side", "level"), [(0.5, 32, 0), (1.0, 64, 1), (1.5, 96, 1), (2.0, 128, 2), (0.25, 16, 0)]
)
def test_a_tile_covers_the_models_microns_from_the_best_level(
    pyramid: Path, mpp: float, side: int, level: int
) -> None:
    slide = open_slide(pyramid)
    first = next(tiles(slide, mpp, 32))
    assert first == Tile(0, 0, side)
    assert best_level(slide, side / 32) == level
    part = PIXELS[:: 2**level, :: 2**level][: side >> level, : side >> level]
    assert (read_tile(slide, first, 32) == part).all()
    slide.close()


def test_a_tile_over_the_border_is_completed_by_reflection(pyramid: Path) -> None:
    slide = open_slide(pyramid)
    tile = read_tile(slide, Tile(400, 290, 32), 32)
    corner = PIXELS[290:, 400:]
    assert (tile[:10, :20] == corner).all()
    assert (tile[10:20, :20] == corner[::-1]).all()
    assert (tile[:10, 20:] == corner[:, ::-1][:, :12]).all()
    slide.close()


def test_between_the_pixels_of_a_level_a_tile_begins_at_the_nearest_that_there_is(pyramid: Path) -> None:
    slide = open_slide(pyramid)
    for at, nearest in ((63, 32), (64, 32), (65, 32), (67, 34)):  # halves of a pixel to the even one
        assert (read_tile(slide, Tile(at, at, 64), 32) == slide.read(1, nearest, nearest, 32, 32)).all()
    assert (read_tile(slide, Tile(419, 299, 64), 32) == PIXELS[298, 418]).all()  # 210 and 150 are beyond it
    slide.close()


def test_a_scale_that_nobody_knows_names_both_ways_out(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    slide = open_slide(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"--assume-mpp.*slide --pixel-for-pixel, data import without --mpp"):
        next(tiles(slide, 0.5, 32))
    assert next(tiles(slide, 0.5, 32, assume_mpp=0.25)).side == 64
    assert next(tiles(slide, None, 32)).side == 32


@pytest.mark.parametrize(
    ("mpp", "size", "overlap", "said"),
    [
        (0.0, 32, 0.0, "microns a pixel"),
        (float("nan"), 32, 0.0, "microns a pixel"),
        (0.5, 0, 0.0, "size"),
        (0.5, 32, 0.95, "overlap"),
        (0.002, 32, 0.0, "less than two"),
        (999.0, 32, 0.0, "15,984 x 15,984 of its pixels, expected at most 89,000,000 in all: look at the"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    pyramid: Path, mpp: float, size: int, overlap: float, said: str
) -> None:
    slide = open_slide(pyramid)
    with pytest.raises(InputError, match=said):
        next(tiles(slide, mpp, size, overlap))
    slide.close()


@pytest.mark.parametrize("longest", [70, 100, 400])
def test_a_thumbnail_is_the_mean_of_squares_of_one_level(pyramid: Path, longest: int) -> None:
    slide = open_slide(pyramid)
    found = thumbnail(slide, longest)
    small, scale = found.pixels, found.scale
    assert not found.damaged.any()
    level = {70: 2, 100: 2, 400: 0}[longest]
    factor = {70: 2, 100: 2, 400: 2}[longest]
    assert scale == pytest.approx(factor * 2**level, rel=0.01)
    part = PIXELS[:: 2**level, :: 2**level]
    part = np.pad(part, ((0, part.shape[0] % 2), (0, part.shape[1] % 2), (0, 0)), "edge").astype(float)
    means = part.reshape(part.shape[0] // 2, 2, part.shape[1] // 2, 2, 3).mean((1, 3))
    assert small.shape == means.shape
    assert np.abs(small - means).max() <= 0.5
    slide.close()


def test_a_thumbnail_does_not_depend_on_its_blocks(pyramid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = open_slide(pyramid)
    whole = thumbnail(slide, 100).pixels
    monkeypatch.setattr("msmamba.microscope.slides.tissue._BLOCK_ROWS", 7)
    monkeypatch.setattr("msmamba.microscope.slides.tissue._BLOCK_COLUMNS", 30)
    assert (thumbnail(slide, 100).pixels == whole).all()
    slide.close()


def test_the_mask_is_where_the_tissue_is(pyramid: Path) -> None:
    slide = open_slide(pyramid)
    mask = tissue_mask(slide, SMALL)
    expected = np.zeros((300, 420), bool)
    expected[60:240, 52:210] = True
    there = np.kron(mask.tissue, np.ones((2, 2), bool))[:300, :420]
    assert (there != expected).mean() < 0.02
    assert mask.share == pytest.approx(expected.mean(), abs=0.02)
    kept = list(tiles(slide, 0.5, 30, mask=mask))
    for tile in kept:
        assert expected[tile.y : tile.y + 30, tile.x : tile.x + 30].any()
    inside = [
        tile for tile in tiles(slide, 0.5, 30) if expected[tile.y : tile.y + 30, tile.x : tile.x + 30].all()
    ]
    assert set(inside) <= set(kept)
    slide.close()


@pytest.mark.parametrize("scale", [1.0, 3.0, 2.7, 40.0])
def test_a_part_is_kept_for_the_share_of_tissue_in_the_pixels_that_it_touches(scale: float) -> None:
    generator = np.random.default_rng(0)
    there = generator.random((9, 12)) < 0.4
    width, height = round(12 * scale), round(9 * scale)
    starts, ends = np.arange(12) * scale, np.arange(1, 13) * scale
    for _ in range(300):
        left, right = sorted(generator.choice(width + 1, 2, replace=False).tolist())
        top, bottom = sorted(generator.choice(height + 1, 2, replace=False).tolist())
        columns = np.flatnonzero((starts < right) & (ends > left))
        rows = np.flatnonzero((starts[:9] < bottom) & (ends[:9] > top))
        touched = there[np.ix_(rows, columns)]
        for least in (0.1, 0.3, 0.4):
            kept = Mask(there, scale, least).has_tissue(left, top, right - left, bottom - top)
            assert kept == (touched.sum() * 10 >= round(10 * least) * touched.size)


def test_specks_and_holes_go_by_their_area_in_microns(tmp_path: Path) -> None:
    pixels = tissue()
    pixels[100:112, 100:112] = 243  # a hole of 36 square microns
    pixels[20:30, 300:310] = (205, 110, 175)  # a speck of 25
    slide = open_slide(write_tiff(tmp_path / "a.tif", pixels, **HALF_A_MICRON))
    options = {"thumbsize": 420, "median_filter_size": 1, "closing_kernel_size": 1}
    kept = tissue_mask(slide, TissueOptions(**options, min_object_size_um2=20, min_hole_size_um2=30)).tissue
    assert kept[25, 305]
    assert not kept[106, 106]
    gone = tissue_mask(slide, TissueOptions(**options, min_object_size_um2=30, min_hole_size_um2=40)).tissue
    assert not gone[25, 305]
    assert gone[106, 106]
    slide.close()


def test_tissue_is_more_saturated_than_the_threshold_and_specks_are_smaller_than_the_bound(
    pyramid: Path,
) -> None:
    pixels = np.full((40, 60, 3), 255, np.uint8)
    pixels[10:14, 10:15] = (255, 255, 247)  # a saturation of 8
    pixels[10:14, 40:45] = (255, 255, 248)  # of 7
    small = Thumbnail(pixels, 1.0, np.zeros((40, 60), bool))
    options = TissueOptions(
        median_filter_size=1, closing_kernel_size=1, min_object_size_um2=20, min_hole_size_um2=0
    )
    with closing(open_slide(pyramid)) as slide:
        found = mask_of(slide, small, options, 1.0).tissue
        assert (found == (pixels[..., 2] == 247)).all()
        with pytest.raises(InputError, match="shows no tissue"):
            mask_of(slide, small, replace(options, min_object_size_um2=21), 1.0)


def test_a_slide_without_tissue_says_what_to_do(tmp_path: Path) -> None:
    glass = np.full((200, 200, 3), 243, np.uint8)
    slide = open_slide(write_tiff(tmp_path / "glass.tif", glass, **HALF_A_MICRON))
    with pytest.raises(InputError, match=r"glass\.tif' shows no tissue.*--no-tissue"):
        tissue_mask(slide)
    slide.close()


@pytest.mark.parametrize(
    "change",
    [
        {"thumbsize": 3},
        {"median_filter_size": 4},
        {"binary_threshold": 256},
        {"closing_kernel_size": 0},
        {"min_hole_size_um2": -1.0},
        {"min_hole_size_um2": math.nan},
        {"min_object_size_um2": math.inf},
        {"min_tissue": 1.5},
    ],
    ids=lambda change: "-".join(map(str, *change.items())),
)
def test_options_that_cannot_be_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected"):
        TissueOptions(**change)  # type: ignore[arg-type]
