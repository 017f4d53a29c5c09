"""Slides and fields are read exactly, in every region, or refused by name."""

from __future__ import annotations

import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import picture_variants
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from slide_files import HALF_A_MICRON, check_that_regions_outside_are_refused, tissue, with_tag, write_tiff

from msmamba.data.scale import scale_of
from msmamba.errors import BackendError, ImageError, InputError
from msmamba.images import load_image, read_image
from msmamba.microscope import slides
from msmamba.microscope.slides import open_slide, tiff_reader
from msmamba.microscope.slides.tiff_reader import TiffReader
from msmamba.microscope.sources import open_source

PIXELS = tissue()
OME = {"axes": "YXS", "PhysicalSizeX": 500.0, "PhysicalSizeY": 500.0}
OME_NM = {**OME, "PhysicalSizeXUnit": "nm", "PhysicalSizeYUnit": "nm"}
OME_PLANAR = {**OME_NM, "axes": "SYX"}

KINDS: dict[str, tuple[dict[str, Any], str, int]] = {
    "plain-pyramid": ({"levels": 3, **HALF_A_MICRON}, "OpenSlide (generic-tiff)", 3),
    "ome-subifds": ({"levels": 3, "sub": True, "ome": True, "metadata": OME_NM}, "tifffile", 3),
    "subifds": ({"levels": 2, "sub": True, **HALF_A_MICRON}, "tifffile", 2),
    "big-ome-planar": (
        {"planarconfig": "separate", "ome": True, "bigtiff": True, "metadata": OME_PLANAR},
        "tifffile",
        1,
    ),
    "pyramid-of-odd-tiles": (
        {"levels": 3, "tile": (80, 48), "compression": None, **HALF_A_MICRON},
        "tifffile",
        3,
    ),
    "strips": ({"tile": None, "rowsperstrip": 7, **HALF_A_MICRON}, "field", 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_region_of_every_level_is_exact(kind: str, tmp_path: Path) -> None:
    options, reader, levels = KINDS[kind]
    pixels = np.moveaxis(PIXELS, 2, 0) if kind == "big-ome-planar" else PIXELS
    slide = open_slide(write_tiff(tmp_path / "a.tif", pixels, **options))
    assert (slide.reader, len(slide.levels)) == (reader, levels)
    assert slide.scale.microns == pytest.approx(0.5, rel=1e-6)
    for place, level in enumerate(slide.levels):
        expected = PIXELS[:: 2**place, :: 2**place]
        assert (level.height, level.width) == expected.shape[:2]
        assert level.scale == pytest.approx(2**place, rel=0.02)
        x, y = level.width // 3, level.height // 4
        width, height = level.width - x, level.height // 2 + 1
        assert (slide.read(place, x, y, width, height) == expected[y : y + height, x:]).all()
    assert (slide.read(0, 419, 0, 1, 300) == PIXELS[:, 419:]).all()  # what a border may leave
    check_that_regions_outside_are_refused(slide)
    slide.close()


SMALL = PIXELS[::4, ::4]
PREVIEWS: dict[str, dict[str, Any]] = {
    "strips": {},
    "reduced": {"subfiletype": 1},
    "tiled": {"tile": (16, 16)},
    "tiled-and-reduced": {"tile": (16, 16), "subfiletype": 1},
}


@pytest.mark.parametrize("sub", [False, True], ids=["pages", "subifds"])
@pytest.mark.parametrize("preview", PREVIEWS)
def test_the_slide_is_found_behind_a_preview(preview: str, sub: bool, tmp_path: Path) -> None:
    path, tiled = tmp_path / "a.tif", {"tile": (64, 64), "photometric": "rgb"}
    with tifffile.TiffWriter(path) as writer:
        writer.write(SMALL, photometric="rgb", metadata=None, **PREVIEWS[preview])
        writer.write(PIXELS, subifds=1 if sub else None, **HALF_A_MICRON, **tiled)
        writer.write(PIXELS[::2, ::2], subfiletype=1, metadata=None, **tiled)
    slide = open_slide(path)
    assert slide.reader == "tifffile"
    assert [(level.width, level.height) for level in slide.levels] == [(420, 300), (210, 150)]
    assert slide.scale.microns == pytest.approx(0.5, rel=1e-6)
    assert (slide.read(0, 0, 0, 420, 300) == PIXELS).all()
    assert (slide.read(1, 10, 20, 30, 40) == PIXELS[40:120:2, 20:80:2]).all()
    slide.close()


PAGES: dict[str, tuple[list[dict[str, Any]], str]] = {
    "two-by-openslide": ([{}, {}], "page 1 of 2 is read, and another is at least half as large"),
    "two-behind-a-preview": ([{"preview": True}, {}, {}], "page 2 of 3 is read, and another is"),
    "three-behind-a-preview": ([{"preview": True}, {}, {}, {}], "page 2 of 4 is read, and 2 others are"),
    "two-of-16-bits": ([{"deep": True}, {"deep": True}], "page 1 of 2 is read, and another is"),
    "two-in-strips": ([{"tile": None}, {"tile": None}], "page 1 of 2"),
    "levels": ([{}, {"step": 2}, {"step": 4}], ""),
    "levels-behind-a-preview": ([{"preview": True}, {}, {"step": 2}], ""),
    "a-reduced-picture-of-its-size": ([{}, {"subfiletype": 1}], ""),
    "reduced-pictures-alone": ([{"subfiletype": 1}, {"subfiletype": 1, "step": 2}], ""),
}


@pytest.mark.parametrize("ome", [False, True], ids=["plain", "ome"])
@pytest.mark.parametrize("kind", PAGES)
def test_of_several_slides_in_a_file_the_first_is_read_and_others_are_told(
    kind: str, ome: bool, tmp_path: Path
) -> None:
    pages, said = PAGES[kind]
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, ome=ome) as writer:
        for page in pages:
            settings: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", **page}
            preview, deep, step = (settings.pop(name, None) for name in ("preview", "deep", "step"))
            pixels = SMALL if preview else PIXELS[:: step or 1, :: step or 1]
            writer.write(
                pixels.astype(np.uint16) * 257 if deep else pixels, metadata={} if ome else None, **settings
            )
    slide = open_slide(path)
    assert (slide.read(0, 0, 0, 420, 300) == PIXELS).all()
    assert said in " ".join(slide.notes) if said else slide.notes == ()
    slide.close()


def test_what_is_said_of_a_slides_values_is_of_all_that_was_read(tmp_path: Path) -> None:
    pixels = np.full((300, 420, 4), (9_000, 9_000, 9_000, 65_535), np.uint16)
    pixels[200:, 200:, :3] = 60_000
    pixels[250:, 250:, 3] = 0
    path = write_tiff(tmp_path / "a.tif", pixels, extrasamples=["unassalpha"], **HALF_A_MICRON)
    slide = open_slide(path, white_level=40_000)
    slide.read(0, 0, 0, 100, 100)
    assert slide.notes == (
        "16 bit, but the largest value is 9000 (14 bits used): read as dark, since white is 40000",
    )
    slide.read(0, 0, 0, 420, 300)
    assert slide.notes == (
        "transparent parts shown on white",
        "16 bit, but values, up to 60000, lie above the white level 40000",
    )
    other = slide.reopened()
    assert other.notes == ()
    other.close()
    slide.close()


def test_tiles_that_were_not_scanned_are_white_and_hide_no_dark_ones(tmp_path: Path) -> None:
    deep = PIXELS[:128, :128].astype(np.uint16) * 16
    tiles = (None if x != y else deep[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64))
    path = tmp_path / "a.tif"
    options: dict[str, Any] = {"tile": (64, 64), "compression": "deflate", "photometric": "rgb"}
    tifffile.imwrite(path, tiles, shape=deep.shape, dtype=deep.dtype, metadata=None, **options)
    for white, notes in ((4095, 0), (65535, 1)):
        slide = open_slide(path, white_level=white)
        assert (slide.read(0, 64, 0, 64, 64) == 255).all()
        assert (slide.read(0, 0, 0, 64, 64) == read_image(deep, white_level=white)[:64, :64]).all()
        assert [note.count("(12 bits used): read as dark") for note in slide.notes] == [1] * notes
        slide.close()


@pytest.mark.parametrize("sub", [False, True], ids=["openslide", "tifffile"])
def test_a_handle_outlives_its_file(sub: bool, tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", PIXELS, sub=sub, levels=2, compression=None, **HALF_A_MICRON)
    whole = path.read_bytes()
    slide = open_slide(path)
    path.write_bytes(b"")
    for _ in range(3):
        with pytest.raises(ImageError, match=r"a\.tif' cannot be"):
            slide.read(0, 128, 128, 64, 64)
    path.write_bytes(whole)
    assert (slide.read(0, 128, 128, 64, 64) == PIXELS[128:192, 128:192]).all()
    slide.close()
    slide.close()


@pytest.mark.parametrize(
    "compression", ["none", "lzw", "deflate", "packbits", "zstd", "lzma", "jpeg2000", "webp"]
)
def test_a_plain_tiled_file_is_read_however_it_is_compressed(compression: str, tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs", reason="compresses what is read")
    options = {"compression": None if compression == "none" else compression, "compressionargs": {}}
    if compression == "webp":
        options["compressionargs"] = {"lossless": True}
    slide = open_slide(write_tiff(tmp_path / "a.tif", PIXELS, levels=2, **options, **HALF_A_MICRON))
    by_openslide = compression in ("none", "lzw", "deflate", "packbits", "zstd")
    assert slide.reader.startswith("OpenSlide") == by_openslide
    assert [level.width for level in slide.levels] == [420, 210]
    assert (slide.read(0, 30, 20, 300, 200) == PIXELS[20:220, 30:330]).all()
    slide.close()


def test_damage_is_told_once(tmp_path: Path) -> None:
    path = with_tag(write_tiff(tmp_path / "a.tif", PIXELS), 277, 0)
    with pytest.raises(ImageError, match=f"^'{path}' is damaged: [^']*$"):
        open_slide(path)


def test_damaged_ome_xml_is_told_by_its_name(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.ome.tif", PIXELS, ome=True, metadata=OME)
    path.write_bytes(path.read_bytes().replace(b"<Pixels", b"<Pix&ls", 1))
    with pytest.raises(ImageError, match=r"is damaged: its OME-XML cannot be read: not well-formed"):
        open_slide(path)
    path.write_bytes(path.read_bytes().replace(b"<Pix&ls", b"<Pixels").replace(b" SizeX=", b" SizeQ=", 1))
    with pytest.raises(ImageError, match=r"is damaged: 'SizeX' is missing in it"):
        open_slide(path)


def test_large_strips_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msmamba.microscope.slides.tiff_reader.MAX_PIXELS", 1000)
    options = {"tile": None, "rowsperstrip": 7, **HALF_A_MICRON}
    slide = open_slide(write_tiff(tmp_path / "a.tif", PIXELS, **options))
    assert slide.reader == "tifffile"
    assert (slide.read(0, 5, 290, 200, 10) == PIXELS[290:, 5:205]).all()
    slide.close()


def test_what_is_kept_of_a_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("_KEPT", "_MOST_KEPT"):
        monkeypatch.setattr(tiff_reader, bound, 3 * 64 * 64 * 3)
    slide = open_slide(write_tiff(tmp_path / "a.tif", PIXELS, levels=2, sub=True))
    for _ in range(2):
        assert (slide.read(0, 0, 0, 420, 300) == PIXELS).all()
    assert len(slide._segments._kept) == 3  # type: ignore[attr-defined]
    slide.close()


def test_strips_are_decoded_once_for_a_row_of_tiles_on_any_handle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However wide the slide is: a strip of 100,000 pixels lies under 447 tiles of 224."""
    monkeypatch.setattr(tiff_reader, "MAX_PIXELS", 1000)
    monkeypatch.setattr(tiff_reader, "_KEPT", 1)
    path = write_tiff(tmp_path / "a.tif", PIXELS, tile=None, rowsperstrip=7, **HALF_A_MICRON)
    slide = open_slide(path)
    other = slide.reopened()
    decoded: list[int] = []
    decode = TiffReader._decoded

    def counting(reader: TiffReader, level: int, index: int) -> Any:
        decoded.append(index)
        return decode(reader, level, index)

    monkeypatch.setattr(TiffReader, "_decoded", counting)
    for y in (0, 70, 140):
        for x in range(0, 420, 70):
            handle = other if x % 140 else slide
            assert (handle.read(0, x, y, 70, 70) == PIXELS[y : y + 70, x : x + 70]).all()
    assert decoded == [*range(30)]
    slide.close()
    other.close()


def test_a_strip_that_two_threads_want_at_once_is_decoded_by_one() -> None:
    segments, begun, go_on = tiff_reader._Segments(), Event(), Event()

    def decode() -> NDArray[Any]:
        begun.set()
        assert go_on.wait(10)
        return np.zeros(1)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(segments.of, (0, 0), decode)
        assert begun.wait(10)
        second = pool.submit(segments.of, (0, 0), lambda: np.ones(1))
        go_on.set()
        assert first.result() is second.result()


def test_sixteen_bits_become_eight_by_the_rule_of_images(tmp_path: Path) -> None:
    wide = PIXELS.astype(np.uint16) * 256 + 77
    path = write_tiff(tmp_path / "a.tif", wide, ome=True, metadata={"axes": "YXS"})
    slide = open_slide(path)
    assert (slide.read(0, 10, 20, 100, 90) == PIXELS[20:110, 10:110]).all()
    slide.close()
    first = open_slide(path, white_level=0x7FFF)
    bright = first.reopened()
    first.close()
    assert (bright.read(0, 10, 20, 100, 90) == read_image(wide, white_level=0x7FFF)[20:110, 10:110]).all()
    bright.close()


def test_sixteen_bits_of_a_plain_tiled_file_too_though_openslide_would_take_it(tmp_path: Path) -> None:
    camera = PIXELS.astype(np.uint16) * 16 + 7  # 12 bits
    path = write_tiff(tmp_path / "a.tif", camera, levels=2, **HALF_A_MICRON)
    slide = open_slide(path, white_level=4095)
    assert slide.reader == "tifffile"
    assert (slide.read(0, 10, 20, 100, 90) == PIXELS[20:110, 10:110]).all()
    slide.close()


TILED = [
    *((kind, bits) for kind in ("grey", "from-white") for bits in (2, 4, 8, 10, 12, 15, 16)),
    *(
        (kind, bits)
        for kind in ("grey-alpha", "rgba", "rgba-premultiplied", "rgb-and-unknown")
        for bits in (8, 16)
    ),
]


@pytest.mark.parametrize(("kind", "bits"), TILED)
def test_a_tiled_file_shows_what_it_shows_as_a_picture(kind: str, bits: int, tmp_path: Path) -> None:
    photometric, channels, extra = picture_variants.KINDS[kind]
    samples = picture_variants.drawing(channels, bits).squeeze()
    more: dict[str, Any] = {"compression": "zlib"} if bits in (8, 16) else {"bitspersample": bits}
    if extra:
        more["extrasamples"] = [extra]
    path = tmp_path / "a.tif"
    path.write_bytes(picture_variants.written(samples, photometric=photometric, tile=(16, 32), **more))
    expected = load_image(path, white_level=4095)
    slide = open_slide(path, white_level=4095)
    found = slide.read(0, 0, 0, slide.levels[0].width, slide.levels[0].height)
    assert (found == expected.pixels).all()
    assert any("channel" in note for note in slide.notes) == (kind == "rgb-and-unknown")
    slide.close()


@pytest.mark.parametrize("kind", ["two-channels", "five-channels"])
def test_channels_without_a_meaning_are_refused_in_a_tiled_file_too(kind: str, tmp_path: Path) -> None:
    _, channels, extra = picture_variants.KINDS[kind]
    samples = picture_variants.drawing(channels, 8)
    more = {"extrasamples": [extra] * (channels - 1), "compression": "zlib", "tile": (16, 32)}
    path = tmp_path / "a.tif"
    path.write_bytes(picture_variants.written(samples, photometric="minisblack", **more))
    with pytest.raises(ImageError, match=f"{channels} channels in colours of the kind 1: expected grey, RGB"):
        open_slide(path)


def test_a_resolution_without_a_unit_is_an_inchs(tmp_path: Path) -> None:
    deep = tissue().astype(np.uint16)
    path = write_tiff(tmp_path / "a.tif", deep, resolution=(50_800.0, 50_800.0), metadata=None)
    content = path.read_bytes()
    unit = struct.pack("<HHI", 296, 3, 1)
    assert content.count(unit) == 1
    path.write_bytes(content.replace(unit, struct.pack("<HHI", 297, 3, 1)))  # which says nothing of a scale
    slide = open_slide(path)
    assert (slide.reader, slide.scale.microns) == ("tifffile", scale_of(path).microns) == ("tifffile", 0.5)
    slide.close()


@pytest.mark.parametrize("tile", [(64, 64), None], ids=["openslide", "field"])
def test_imagejs_unit_goes_before_the_files(tile: tuple[int, int] | None, tmp_path: Path) -> None:
    said = {"description": "ImageJ=1.54f\nunit=micron\n", "resolution": (2, 2), "resolutionunit": "INCH"}
    path = write_tiff(tmp_path / "a.tif", PIXELS, tile=tile, metadata=None, **said)
    slide = open_slide(path)
    assert slide.scale == scale_of(path)
    assert (slide.scale.microns, slide.reopened().scale.microns) == (0.5, 0.5)


def test_a_plain_tiled_file_that_is_turned_is_refused(tmp_path: Path) -> None:
    turned = [(274, 3, 1, 3, True)]
    path = write_tiff(tmp_path / "a.tif", PIXELS, extratags=turned, **HALF_A_MICRON)
    with pytest.raises(ImageError, match=r"is stored turned \(orientation 3\): save it upright"):
        open_slide(path)


STRIPS = {"tile": None, "rowsperstrip": 16, "metadata": None}


@pytest.mark.parametrize(
    ("options", "changes", "said"),
    [
        ({}, {322: 2**31 - 16}, "damaged: its tiles have 2,147,483,632 x 64 pixels"),
        ({}, {323: 2**31 - 16}, "damaged: its tiles have 64 x 2,147,483,632 pixels"),
        (STRIPS, {256: 2**20, 257: 2**20}, "damaged: 1,048,576 x 1,048,576 pixels need 65,536 strips, and"),
        (STRIPS, {256: 2**24, 257: 2**24}, "stores 16777216 x 16 pixels in one piece"),
        (
            {"ome": True, "metadata": {"axes": "YXS"}},
            {257: 10**9},
            "damaged: 420 x 1,000,000,000 pixels need",
        ),
        ({"levels": 2, "sub": True}, {257: -300}, "damaged: a picture, strip or tile in it has no size"),
    ],
    ids=["wide tiles", "high tiles", "huge", "huge strips", "long", "negative"],
)
def test_what_no_slide_has_is_refused_before_a_library_trusts_it(
    options: dict[str, Any], changes: dict[int, int], said: str, tmp_path: Path
) -> None:
    path = write_tiff(tmp_path / "a.tif", PIXELS, **{"metadata": None, **options})
    for tag, value in changes.items():
        with_tag(path, tag, value)
    with pytest.raises(ImageError, match=said):
        open_slide(path)


def test_directories_in_a_circle_are_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", PIXELS, metadata=None)
    content = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (tags,) = struct.unpack_from("<H", content, first)
    struct.pack_into("<I", content, first + 2 + 12 * tags, first)
    path.write_bytes(content)
    with pytest.raises(ImageError, match="is damaged: its directories lead round in a circle"):
        open_slide(path)


def ome_of(sizes: str, data: str) -> str:
    """OME-XML that speaks of planes."""
    return (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
        'SizeX="420" SizeY="300" '
        f'{sizes}><Channel ID="Channel:0" SamplesPerPixel="3"/>{data}</Pixels></Image></OME>'
    )


@pytest.mark.parametrize(
    ("sizes", "data"),
    [
        ('SizeC="3000000000" SizeZ="1" SizeT="1"', '<TiffData IFD="0"/>'),
        ('SizeC="3" SizeZ="1000000" SizeT="1000000"', '<TiffData IFD="0"/>'),
        ('SizeC="3" SizeZ="1" SizeT="1"', '<TiffData IFD="999999999"/>'),
        ('SizeC="3" SizeZ="1" SizeT="1"', '<TiffData IFD="0" PlaneCount="999999999"/>'),
        ('SizeC="3" SizeZ="1" SizeT="1"', '<Modulo><ModuloAlongZ Start="0" End="5e8"/></Modulo>'),
        ('SizeC="3" SizeZ="1" SizeT="1"', '<AlongT Type="phase" Start="0" End="-1" Step="-1e-9"/>'),
    ],
    ids=["channels", "volumes", "a plane", "planes", "steps", "small steps"],
)
@pytest.mark.parametrize("end", ["", "\t", "\u2003 "], ids=["", "tab", "wide"])
def test_planes_that_a_description_makes_up_are_not_made_room_for(
    sizes: str, data: str, end: str, tmp_path: Path
) -> None:
    said = (ome_of(sizes, data) + end).encode()
    path = write_tiff(tmp_path / "a.tif", PIXELS, metadata=None, description=said)
    with pytest.raises(
        ImageError, match=r"is damaged: its OME-XML (speaks of [0-9,]+ planes|cannot be read)"
    ):
        open_slide(path)


@pytest.mark.parametrize("encoding", ["microscope", "rot13", "utf-7"])
def test_a_description_in_an_encoding_that_is_none_is_one_line(encoding: str, tmp_path: Path) -> None:
    text = ome_of('SizeC="3" SizeZ="1" SizeT="1"', '<TiffData IFD="0"/>')
    said = text.replace('<?xml version="1.0"?>', f'<?xml version="1.0" encoding="{encoding}"?>').encode()
    path = write_tiff(tmp_path / "a.tif", PIXELS, metadata=None, description=said)
    with pytest.raises(ImageError, match=r"a\.tif' is damaged: its OME-XML cannot be read: "):
        open_slide(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
def test_files_that_a_description_names_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")  # would be waited for
    data = '<TiffData IFD="0"><UUID FileName="pipe.tif">urn:uuid:2</UUID></TiffData>'
    said = ome_of('SizeC="3" SizeZ="1" SizeT="1"', data)
    slide = open_slide(write_tiff(tmp_path / "a.tif", PIXELS, metadata=None, description=said))
    assert (slide.read(0, 0, 0, 420, 300) == PIXELS).all()
    slide.close()


@pytest.mark.parametrize("path", [None, 5, bytearray(b"a"), ["a"]])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(InputError, match="expected a path, found"):
        open_slide(path)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey_becomes_rgb_and_zero_may_be_white(photometric: str, tmp_path: Path) -> None:
    grey = PIXELS[..., 1]
    stored = grey if photometric == "minisblack" else 255 - grey
    slide = open_slide(
        write_tiff(tmp_path / "a.tif", stored, ome=True, photometric=photometric, metadata={"axes": "YX"})
    )
    assert (slide.read(0, 0, 0, 420, 300) == grey[..., None]).all()
    slide.close()


@pytest.mark.parametrize(("name", "dots"), [("a.png", 50_800), ("a.jpg", 50_800), ("b.png", 300)])
def test_a_field_is_a_slide_of_one_level(name: str, dots: int, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / name, dpi=(dots, dots))
    slide = open_slide(tmp_path / name)
    assert (slide.reader, len(slide.levels)) == ("field", 1)
    assert slide.reopened() is slide
    assert slide.read(0, 400, 290, 20, 10).shape == (10, 20, 3)
    if dots == 300:
        assert slide.scale.microns is None
        assert "84.6" in slide.scale.why
    else:
        assert slide.scale.microns == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("resolution", "why"),
    [((20_000.0, 10_000.0), "square"), ((1.0, 1.0), "no microscope"), (None, "does not say")],
    ids=["anisotropic", "absurd", "none"],
)
def test_a_scale_that_cannot_be_is_none(
    resolution: tuple[float, float] | None, why: str, tmp_path: Path
) -> None:
    said = {"resolution": resolution, "resolutionunit": "CENTIMETER"} if resolution else {}
    slide = open_slide(write_tiff(tmp_path / "a.tif", PIXELS, levels=2, sub=True, metadata=None, **said))
    assert slide.scale.microns is None
    assert why in slide.scale.why
    slide.close()


def test_a_handle_of_another_thread_is_its_own(pyramid: Path) -> None:
    slide = open_slide(pyramid)
    other = slide.reopened()
    slide.close()
    assert (other.read(0, 0, 0, 50, 50) == PIXELS[:50, :50]).all()
    other.close()


@pytest.mark.parametrize("sub", [False, True], ids=["openslide", "tifffile"])
def test_a_damaged_tile_is_told_and_others_are_read(sub: bool, tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", PIXELS, sub=sub, levels=2, **HALF_A_MICRON)
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offset, size = page.dataoffsets[0], page.databytecounts[0]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x55" * size)
    slide = open_slide(path)
    with pytest.raises(ImageError, match=r"a\.tif' cannot be read"):
        slide.read(0, 0, 0, 30, 30)
    assert (slide.read(0, 128, 128, 64, 64) == PIXELS[128:192, 128:192]).all()
    slide.close()


REFUSED: dict[str, tuple[np.ndarray, dict[str, Any], str]] = {
    "floats": (PIXELS.astype(np.float32), {}, "float32: expected 8 or 16 bits"),
    "channels": (
        np.moveaxis(PIXELS, 2, 0),
        {"photometric": "minisblack", "metadata": {"axes": "CYX"}},
        "CYX",
    ),
    "stack": (np.stack([PIXELS] * 2), {"metadata": {"axes": "ZYXS"}}, "ZYXS"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_defined_colours_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    pixels, options, said = REFUSED[kind]
    path = write_tiff(tmp_path / "odd.tif", pixels, ome=True, **options)
    with pytest.raises(ImageError, match=rf"odd\.tif'.*{said}"):
        open_slide(path)


@pytest.mark.parametrize(
    "content", [b"", b"no slide", b"II*\0\xff\xff\xff\x7f"], ids=["empty", "text", "cut-tiff"]
)
def test_what_is_no_slide_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.svs").write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.svs'"):
        open_slide(tmp_path / "x.svs")


def test_a_compression_without_a_decoder_is_refused_before_all_tiles_are(tmp_path: Path) -> None:
    path = with_tag(write_tiff(tmp_path / "a.ome.tif", tissue(), ome=True, metadata=None), 259, 12_345)
    with pytest.raises(ImageError, match=r"is compressed by 12345, .*: pip install imagecodecs, or save it"):
        open_slide(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        open_slide(tmp_path / "a.svs")
    with pytest.raises(ImageError, match="it is a folder"):
        open_slide(tmp_path)


@pytest.mark.parametrize("white", [3, 65536, 4095.0])
def test_what_is_no_white_level_is_refused(white: Any, pyramid: Path) -> None:
    for opens in (open_slide, open_source):
        with pytest.raises(
            InputError, match=r"the white level is .*: expected a whole number from 255 to 65535"
        ):
            opens(pyramid, white_level=white)


def test_without_the_extra_it_is_said_what_to_install(pyramid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(BackendError, match=r"pip install 'msmamba\[slides\]'"):
        open_slide(pyramid)


BELOW: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
    "of-another-shape": (PIXELS[:150, :150], {}),
    "grey": (PIXELS[::2, ::2, 0], {"photometric": "minisblack"}),
    "of-other-bits": (PIXELS[::2, ::2].astype(np.uint16), {}),
}


@pytest.mark.parametrize("sub", [True, False], ids=["sub", "page"])
@pytest.mark.parametrize("kind", BELOW)
def test_a_smaller_picture_that_is_no_copy_is_no_level(kind: str, sub: bool, tmp_path: Path) -> None:
    """Its pixels lie elsewhere, or mean something else: OpenSlide and tifffile take it for one."""
    path, options = tmp_path / "a.tif", {"tile": (64, 64), "compression": "deflate", "photometric": "rgb"}
    below, more = BELOW[kind]
    with tifffile.TiffWriter(path, ome=sub) as file:
        file.write(PIXELS, subifds=int(sub), metadata={} if sub else None, **options)
        file.write(below, subfiletype=1, metadata=None, **{**options, **more})
    slide = open_slide(path)
    assert [(each.width, each.height) for each in slide.levels] == [(420, 300)]
    assert (slide.read(0, 0, 0, 420, 300) == PIXELS).all()
    sides = f"{below.shape[1]} x {below.shape[0]}"
    note = f"smaller pictures that are no copies of the largest left out ({sides} pixels)"
    assert slide.notes == ((note,) if sub else ())
    slide.close()


def test_levels_are_the_finest_first_however_they_are_stored(tmp_path: Path) -> None:
    path, options = tmp_path / "a.tif", {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(PIXELS, subifds=2, **{**options, "metadata": OME_NM})
        for step in (4, 2):
            file.write(PIXELS[::step, ::step], subfiletype=1, **options)
    slide = open_slide(path)
    assert [each.scale for each in slide.levels] == [1, 2, 4]
    assert (slide.read(1, 0, 0, 210, 150) == PIXELS[::2, ::2]).all()
    slide.close()


@pytest.mark.parametrize("grey_first", [True, False], ids=["grey-first", "colour-first"])
def test_of_several_pictures_the_one_that_is_told_is_read(grey_first: bool, tmp_path: Path) -> None:
    """The one of most pixels, as a picture: that of colour has more samples."""
    path, grey, colour = tmp_path / "a.tif", PIXELS[..., 1], PIXELS[:200, :300]
    with tifffile.TiffWriter(path, ome=True) as file:
        for pixels in (grey, colour) if grey_first else (colour, grey):
            microns = 0.5 if pixels is grey else 4.0
            said = {"PhysicalSizeX": microns, "PhysicalSizeY": microns}
            file.write(pixels, tile=(64, 64), metadata=said)
    slide = open_slide(path)
    assert (slide.levels[0].width, slide.levels[0].height) == (420, 300)
    assert (slide.read(0, 0, 0, 420, 300) == grey[..., None]).all()
    other = slide.reopened()
    assert (other.read(0, 0, 0, 420, 300) == grey[..., None]).all()
    other.close()
    assert (load_image(path).pixels == grey[..., None]).all()
    assert slide.scale.microns == scale_of(path).microns == 0.5
    slide.close()


def test_a_picture_that_ome_xml_says_nothing_of_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(PIXELS[:60, :70], metadata={"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5})
    tifffile.imwrite(path, PIXELS, append="force", tile=(64, 64), photometric="rgb", metadata=None)
    slide = open_slide(path)
    assert (slide.read(0, 0, 0, 420, 300) == PIXELS).all()
    assert slide.scale.microns is None
    slide.close()


_PLANE = '<TiffData FirstC="{0}" IFD="0"><UUID FileName="{0}.ome.tif">urn:uuid:{0}</UUID></TiffData>'


def test_one_plane_of_a_stack_in_several_files_is_refused(tmp_path: Path) -> None:
    planes = "".join(_PLANE.format(channel) for channel in range(3))
    sizes = 'DimensionOrder="XYCZT" SizeX="420" SizeY="300" SizeC="3" SizeZ="1" SizeT="1" Type="uint8"'
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'UUID="urn:uuid:1"><Image><Pixels {sizes}>{planes}</Pixels></Image></OME>'
    )
    path = write_tiff(
        tmp_path / "1.ome.tif", PIXELS[..., 0], photometric="minisblack", description=xml, metadata=None
    )
    with pytest.raises(ImageError, match=r"1\.ome\.tif' holds one of 3 planes, by its OME-XML"):
        open_slide(path)


def test_a_volume_is_refused(tmp_path: Path) -> None:
    path, planes = tmp_path / "a.tif", np.zeros((4, 64, 64), np.uint8)
    tifffile.imwrite(path, planes, volumetric=True, tile=(2, 64, 64), photometric="minisblack", metadata=None)
    with pytest.raises(ImageError, match="holds a picture with the axes ZYX"):
        open_slide(path)


def test_the_public_names() -> None:
    assert set(slides.__all__) == {
        *("Bounds", "Level", "Mask", "Slide", "Tile", "TileResult", "TissueOptions", "classify_slide"),
        *("Region", "Regions", "Within", "open_slide", "read_regions", "tiles", "tissue_mask"),
    }
    assert all(hasattr(slides, name) for name in slides.__all__)
