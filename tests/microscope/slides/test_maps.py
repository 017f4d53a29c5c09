"""Heat maps: right values, no seams, the same wherever the slide ends, and files that others open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import openslide
import pytest
import tifffile

from msmamba.microscope.slides import maps
from msmamba.microscope.slides.engine import TileResult
from msmamba.microscope.slides.maps import MapGrid, class_maps, in_turns, overlay, write_map
from msmamba.microscope.slides.results import colour_of
from msmamba.microscope.slides.tiling import Tile
from msmamba.microscope.slides.tissue import Thumbnail

HALF = MapGrid(width=1000, height=700, side=64, stride=32)


def tiles_of(grid: MapGrid, seed: int = 0, *, missing: float = 0.0) -> list[TileResult]:
    """Tiles of two classes with random probabilities, by place, so that a cut slide has the same ones."""
    found = []
    for y in range(0, max(grid.height - grid.side + grid.stride, 1), grid.stride):
        for x in range(0, max(grid.width - grid.side + grid.stride, 1), grid.stride):
            value, fate = np.random.default_rng((seed, x, y)).random(2)
            if fate >= missing:
                found.append(TileResult(Tile(x, y, grid.side), (value, 1 - value)))
    return found


def direct(results: list[TileResult], grid: MapGrid) -> np.ndarray:
    """The map's definition, pixel by pixel of each tile, in float64."""
    rows, columns = grid.shape
    weighted, weights = np.zeros((2, rows, columns))
    for result in results:
        for row in range(rows):
            down = (row + 0.5) * grid.pixel - result.tile.y
            if not 0 < down < grid.side:
                continue
            for column in range(columns):
                across = (column + 0.5) * grid.pixel - result.tile.x
                if 0 < across < grid.side:
                    weight = min(down, grid.side - down) * min(across, grid.side - across)
                    weighted[row, column] += weight * result.probabilities[0]
                    weights[row, column] += weight
    means = np.divide(weighted, weights, out=np.full_like(weights, np.nan), where=weights > 0)
    return np.where(weights > 0, 1 + means * 254, 0)


@pytest.mark.parametrize(("side", "stride"), [(30, 30), (32, 16), (30, 20), (31, 8), (40, 39)])
def test_a_map_is_the_weighted_mean_of_the_tiles(side: int, stride: int) -> None:
    grid = MapGrid(150, 110, side, stride)
    results = tiles_of(grid, missing=0.4)
    found = class_maps(results, [0], grid)[0]
    assert found.shape == grid.shape
    assert np.abs(found - direct(results, grid)).max() <= 0.51
    assert (found == 0).any()


def test_rows_of_the_slide_without_a_tile_are_empty() -> None:
    grid = MapGrid(100, 900, 32, 16)
    results = [each for each in tiles_of(grid) if each.tile.y < 64 or each.tile.y > 700]
    found = class_maps(results, [0], grid)[0]
    assert np.abs(found - direct(results, grid)).max() <= 0.51
    assert not found[30:170].any()
    assert found[180:].all()


def test_a_tile_that_could_not_be_read_counts_for_nothing() -> None:
    results = tiles_of(HALF)
    broken = [replace(results[0], probabilities=(), error="damaged"), *results[1:]]
    assert (class_maps(broken, [0], HALF)[0] == class_maps(results[1:], [0], HALF)[0]).all()


def test_maps_made_together_are_those_made_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a slide are read once for many classes, and no more maps are in memory than are bounded."""
    results = tiles_of(HALF, missing=0.2)
    together = class_maps(results, [0, 1], HALF)
    assert all((own == class_maps(results, [place], HALF)[0]).all() for place, own in enumerate(together))
    rows, columns = HALF.shape
    assert [*in_turns(5, HALF)] == [range(5)]
    monkeypatch.setattr(maps, "_TOGETHER", 2 * rows * columns)
    assert [*in_turns(5, HALF)] == [range(2), range(2, 4), range(4, 5)]
    monkeypatch.setattr(maps, "_TOGETHER", 1)
    assert len([*in_turns(5, HALF)]) == 5


def test_no_seams_show_where_tiles_meet() -> None:
    found = class_maps(tiles_of(HALF), [0], HALF)[0].astype(int)
    step = HALF.pixels_a_stride
    assert round(HALF.side / HALF.pixel) == 8
    for steps in (np.abs(np.diff(found, axis=1)), np.abs(np.diff(found, axis=0)).T):
        across = steps[:, step - 1 :: step].max()
        inside = np.delete(steps, np.s_[step - 1 :: step], axis=1).max()
        assert across <= inside


@pytest.mark.parametrize("overlap", [HALF, MapGrid(1000, 700, 64, 48), MapGrid(1000, 700, 64, 64)])
def test_a_cut_slide_has_the_same_map_but_for_a_tile_along_the_cut(overlap: MapGrid) -> None:
    whole = class_maps(tiles_of(overlap), [0], overlap)[0]
    cut = replace(overlap, width=overlap.stride * 9, height=overlap.stride * 7)
    found = class_maps(tiles_of(cut), [0], cut)[0]
    margin = len(overlap.weights)
    rows, columns = found.shape[0] - margin, found.shape[1] - margin
    assert rows > 0
    assert (found[:rows, :columns] == whole[:rows, :columns]).all()


def test_a_map_file_is_opened_by_others(tmp_path: Path) -> None:
    found = np.random.default_rng(0).integers(0, 256, (700, 901)).astype(np.uint8)
    write_map(tmp_path / "a.ome.tif", found, 16.0, "slide: α & <tumour>")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        assert file.is_ome
        levels = [level.asarray() for level in file.series[0].levels]
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
    assert [level.shape for level in levels] == [(700, 901), (350, 451), (175, 226)]
    assert (levels[0] == found).all()
    assert levels[1].dtype == np.uint8
    square = found[:2, :2][found[:2, :2] > 0]
    assert levels[1][0, 0] == square.sum(dtype=int) // len(square)
    assert pixels["PhysicalSizeX"] == pixels["PhysicalSizeY"] == 16.0
    assert pixels["PhysicalSizeXUnit"] == "µm"
    with openslide.OpenSlide(tmp_path / "a.ome.tif") as slide:
        assert slide.dimensions == (901, 700)
        region = np.asarray(slide.read_region((0, 0), 0, (901, 700)))
    assert (region[..., 0] == found).all()


def test_a_map_of_a_class_with_control_characters_is_opened_by_others(tmp_path: Path) -> None:
    write_map(tmp_path / "a.ome.tif", np.zeros((8, 8), np.uint8), None, "slide: \x1b[31mred\x00")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        image = ElementTree.fromstring(file.ome_metadata).find("{*}Image")
    assert image is not None
    assert image.get("Name") == r"slide: \u001b[31mred\u0000"


def test_a_map_file_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    found = np.full((10, 20), 7, np.uint8)
    for name in "ab":
        write_map(tmp_path / f"{name}.ome.tif", found, None, "slide: class")
    assert (tmp_path / "a.ome.tif").read_bytes() == (tmp_path / "b.ome.tif").read_bytes()


def test_a_picture_has_the_classes_colour_where_it_is_likely() -> None:
    grid = MapGrid(400, 200, 100, 100)
    values = (1.0, 0.0, 0.0, 1.0)
    results = [TileResult(Tile(100 * at, 0, 100), (value, 1 - value)) for at, value in enumerate(values)]
    small = Thumbnail(np.full((50, 100, 3), 250, np.uint8), 4.0, np.zeros((50, 100), bool))
    pixels = np.asarray(overlay(class_maps(results, [0], grid)[0], 0, grid, small))
    assert pixels.shape == (50, 100, 3)
    assert np.abs(pixels[12, 12].astype(int) - colour_of(0)).max() < 60
    assert (pixels[12, 80] == pixels[12, 12]).all()
    assert (pixels[12, 40] == 250).all()
    assert (pixels[40] == 250).all()  # not classified
