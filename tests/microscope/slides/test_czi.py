"""CZI that Zeiss's own library writes: read exactly, scenes on one canvas, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scanner_files import Part, write_czi_of
from slide_files import check_that_regions_outside_are_refused, tissue

from msmamba.errors import ImageError
from msmamba.images import read_image
from msmamba.microscope.slides import open_slide
from msmamba.microscope.slides.czi_reader import CziReader

czi = pytest.importorskip("pylibCZIrw.czi", reason="needs the extra czi")
PIXELS = tissue()


def write_czi(
    path: Path,
    pixels: np.ndarray = PIXELS,
    *,
    microns: float = 0.5,
    second_scene: bool = False,
    planes: int = 1,
) -> Path:
    """Tiles of 140 x 100 from -30, 50 on, and in another scene the first of them at 600, 0."""
    with czi.create_czi(str(path), compression_options="zstd1:ExplicitLevel=1") as file:
        for plane in range(planes):
            for y in range(0, pixels.shape[0], 100):
                for x in range(0, pixels.shape[1], 140):
                    tile = np.ascontiguousarray(pixels[y : y + 100, x : x + 140, ::-1])
                    file.write(tile, location=(x - 30, y + 50), plane={"Z": plane}, scene=0)
        if second_scene:
            file.write(np.ascontiguousarray(pixels[:100, :140, ::-1]), location=(600, 0), scene=1)
        file.write_metadata("slide", scale_x=microns * 1e-6, scale_y=microns * 1e-6)
    return path


def test_every_region_is_exact_and_the_scale_is_known(tmp_path: Path) -> None:
    slide = open_slide(write_czi(tmp_path / "a.czi"))
    assert (slide.reader, slide.scale.microns) == ("pylibCZIrw", pytest.approx(0.5))
    assert [(each.width, each.height, each.scale) for each in slide.levels] == [(420, 300, 1.0)]
    assert (slide.read(0, 0, 0, 420, 300) == PIXELS).all()
    assert (slide.read(0, 133, 95, 20, 10) == PIXELS[95:105, 133:153]).all()
    assert (slide.read(0, 419, 299, 1, 1) == PIXELS[299:, 419:]).all()
    check_that_regions_outside_are_refused(slide)
    other = slide.reopened()
    slide.close()
    slide.close()
    assert (other.read(0, 0, 0, 30, 40) == PIXELS[:40, :30]).all()
    other.close()


def test_scenes_lie_on_one_white_canvas(tmp_path: Path) -> None:
    slide = open_slide(write_czi(tmp_path / "a.czi", second_scene=True))
    assert (slide.levels[0].width, slide.levels[0].height) == (770, 350)
    assert (slide.read(0, 0, 50, 420, 300) == PIXELS).all()
    assert (slide.read(0, 630, 0, 140, 100) == PIXELS[:100, :140]).all()
    assert (slide.read(0, 430, 0, 190, 350) == 255).all()
    slide.close()


def test_a_coarser_level_is_read_at_its_zoom(tmp_path: Path) -> None:
    # The library writes no pyramids; what it makes of the finest level are every second and third pixel.
    slide = CziReader(write_czi(tmp_path / "a.czi"), 65535, scales=(1, 2, 3))
    assert [(each.width, each.height, each.scale) for each in slide.levels[1:]] == [
        (210, 150, 2.0),
        (140, 100, 3.0),
    ]
    assert (slide.read(1, 0, 0, 210, 150) == PIXELS[::2, ::2]).all()
    assert (slide.read(1, 30, 20, 7, 5) == PIXELS[40:50:2, 60:74:2]).all()
    for width, height in ((140, 100), (7, 1), (1, 1)):
        assert slide.read(2, 0, 0, width, height).shape == (height, width, 3)
    slide.close()


@pytest.mark.parametrize("kind", ["grey", "sixteen-bits", "sixteen-bit-colour"])
def test_other_pixels_are_read_by_the_rules_of_images(kind: str, tmp_path: Path) -> None:
    pixels = PIXELS[..., 1:2] if kind != "sixteen-bit-colour" else PIXELS
    pixels = pixels if kind == "grey" else pixels.astype(np.uint16) * 16 + 5
    slide = CziReader(write_czi(tmp_path / "a.czi", pixels), 4095)
    assert (slide.read(0, 0, 0, 420, 300) == read_image(pixels, white_level=4095)).all()
    slide.close()


def in_tiles(pixels: np.ndarray, side: int, scale: int = 1) -> list[Part]:
    """Parts of a picture, from -30, 50 on."""
    rows, columns = range(0, pixels.shape[0], side), range(0, pixels.shape[1], side)
    return [
        Part(pixels[y : y + side, x : x + side], scale * x - 30, scale * y + 50, scale)
        for y in rows
        for x in columns
    ]


def test_levels_are_read_as_they_are_stored(tmp_path: Path) -> None:
    coarse, coarser = 255 - PIXELS[::2, ::2], PIXELS[1::4, 1::4]
    parts = [*in_tiles(coarser, 64, 4), *in_tiles(PIXELS, 64), *in_tiles(coarse, 64, 2)]
    slide = open_slide(write_czi_of(tmp_path / "a.czi", parts))
    for level, pixels in enumerate((PIXELS, coarse, coarser)):
        height, width, _ = pixels.shape
        assert (slide.levels[level].width, slide.levels[level].height) == (width, height)
        assert (slide.read(level, 0, 0, width, height) == pixels).all()
    slide.close()


def test_a_level_of_which_a_part_is_missing_is_left_out(tmp_path: Path) -> None:
    """LibCZI leaves white what is not there, and reads a scene that has no such level from a finer one."""
    levels = [*in_tiles(PIXELS, 64), *in_tiles(PIXELS[::2, ::2], 64, 2)]
    slide = open_slide(write_czi_of(tmp_path / "a.czi", levels[:-1]))
    assert len(slide.levels) == 1
    slide.close()
    first = [part._replace(place={"S": 0}) for part in levels]
    second = Part(np.full((64, 64, 3), 7, np.uint8), 600, 50, place={"S": 1})
    slide = open_slide(write_czi_of(tmp_path / "b.czi", [*first, second]))
    assert len(slide.levels) == 2
    assert (slide.read(1, 315, 0, 32, 32) == 7).all()
    slide.close()


@pytest.mark.parametrize("colour", [True, False], ids=["colour", "grey"])
def test_white_between_scenes_hides_no_dark_ones(colour: bool, tmp_path: Path) -> None:
    deep = PIXELS.astype(np.uint16) * 16 if colour else PIXELS[..., 0].astype(np.uint16) * 16
    scenes = [Part(deep, 0, 0, place={"S": 0}), Part(deep, 500, 40, place={"S": 1})]
    path = write_czi_of(tmp_path / "a.czi", scenes)
    for white, notes in ((4095, 0), (65535, 1)):
        slide = open_slide(path, white_level=white)
        pixels = slide.read(0, 0, 0, slide.levels[0].width, slide.levels[0].height)
        assert (pixels[300:, :420] == 255).all()
        assert [note.count("(12 bits used): read as dark") for note in slide.notes] == [1] * notes
        slide.close()


@pytest.mark.parametrize("dimension", "ZTCRIHVB")
def test_several_planes_of_any_kind_are_refused(dimension: str, tmp_path: Path) -> None:
    """Phases, illuminations, views, …, of which libCZI reads the first."""
    parts = [Part(PIXELS, 0, 0, place={dimension: place}) for place in range(2)]
    with pytest.raises(ImageError, match=rf"holds several planes \(2 of {dimension}\)"):
        open_slide(write_czi_of(tmp_path / "a.czi", parts))


def test_pixels_of_several_kinds_are_refused(tmp_path: Path) -> None:
    """LibCZI takes samples of 8 bits among those of 16 as they are: black."""
    parts = [Part(PIXELS.astype(np.uint16), 0, 0), Part(PIXELS, 500, 0)]
    with pytest.raises(ImageError, match=r"holds pixels of several kinds \(Bgr48 and Bgr24\)"):
        open_slide(write_czi_of(tmp_path / "a.czi", parts))


@pytest.mark.parametrize("sorted_bytes", [True, False], ids=["sorted", "as-they-are"])
def test_deep_colour_with_sorted_bytes_is_refused(sorted_bytes: bool, tmp_path: Path) -> None:
    """LibCZI 6.1 unpacks a third of it, and leaves what memory held before in the rest."""
    deep, path = PIXELS.astype(np.uint16) * 257, tmp_path / "a.czi"
    options = "zstd1:ExplicitLevel=1" + ";PreProcess=HiLoByteUnpack" * sorted_bytes
    with czi.create_czi(str(path), compression_options=options) as file:
        file.write(np.ascontiguousarray(deep[..., ::-1]))
    if sorted_bytes:
        with pytest.raises(ImageError, match=r"with high and low bytes apart, which libCZI 6\.1 reads wrong"):
            open_slide(path)
        return
    slide = open_slide(path)
    assert (slide.read(0, 0, 0, 420, 300) == PIXELS).all()
    slide.close()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: write_czi(path, planes=2), r"holds several planes \(2 of Z\)"),
        (
            lambda path: write_czi(path, PIXELS[..., :1].astype(np.float32)),
            "holds pixels of the kind Gray32Float",
        ),
        (lambda path: path.write_bytes(b"ZISRAWFILE" + bytes(20)), "is damaged"),
    ],
    ids=["stack", "floats", "head"],
)
def test_what_is_not_read_is_named(make: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    make(tmp_path / "a.czi")
    with pytest.raises(ImageError, match=rf"a\.czi' {said}"):
        open_slide(tmp_path / "a.czi")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_truncated_file_is_one_line(share: float, tmp_path: Path) -> None:
    content = write_czi(tmp_path / "a.czi").read_bytes()
    (tmp_path / "a.czi").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ImageError, match=r"a\.czi' is damaged: Not enough data"):
        open_slide(tmp_path / "a.czi")


def test_a_damaged_tile_is_told_and_others_are_read(tmp_path: Path) -> None:
    path = write_czi(tmp_path / "a.czi")
    content = bytearray(path.read_bytes())
    magic = content.find(b"\x28\xb5\x2f\xfd")  # of Zstandard, in the first tile
    content[magic + 4 : magic + 200] = b"\x55" * 196
    path.write_bytes(content)
    slide = open_slide(path)
    with pytest.raises(ImageError, match=r"a\.czi' cannot be read at 0, 0 of level 0"):
        slide.read(0, 0, 0, 50, 50)
    assert (slide.read(0, 140, 0, 280, 300) == PIXELS[:, 140:]).all()
    slide.close()


@pytest.mark.parametrize("microns", [0.0, 84.6])
def test_a_scale_that_cannot_be_is_none(microns: float, tmp_path: Path) -> None:
    slide = open_slide(write_czi(tmp_path / "a.czi", microns=microns))
    assert slide.scale.microns is None
    slide.close()


def test_without_the_library_the_slide_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_czi(tmp_path / "a.czi")
    monkeypatch.setitem(__import__("sys").modules, "pylibCZIrw", None)
    with pytest.raises(ImageError, match=r"pip install 'msmamba\[czi\]'"):
        open_slide(path)
