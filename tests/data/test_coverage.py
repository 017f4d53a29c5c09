"""What training images cover, and which of the scales that files say are believed."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from msmamba.data.coverage import COVERAGE, Coverage, Spread
from msmamba.data.scale import Scale, check_microns, scale_of
from msmamba.errors import ImageError, InputError
from msmamba.images import read_image

PIXELS = np.full((20, 30, 3), 90, np.uint8)
OME = {"axes": "YXS", "PhysicalSizeX": 500.0, "PhysicalSizeY": 500.0}
NANOMETRES = {"PhysicalSizeXUnit": "nm", "PhysicalSizeYUnit": "nm"}


def test_the_side_of_an_oblong_image_is_that_of_a_square_as_large() -> None:
    covers = Coverage.of([(100, 400), (100, 100), (300, 300)], 0.5)
    assert covers == Coverage(Spread(100, 200, 300), Spread(50, 100, 150))
    assert covers is not None
    assert covers.mpp(50) == 2.0
    assert "cover 50 to 150 microns a side: tiles of slides will cover the median, 100" in covers.notes[0]
    assert covers.to_text() == "images of 200 (100 to 300) pixels, 100 (50 to 150) microns"


def test_images_of_many_scales_may_cover_the_same() -> None:
    covers = Coverage.of([(100, 100), (200, 200), (400, 400)], [1.0, 0.5, 0.25])
    assert covers == Coverage(Spread(100, 200, 400), Spread(100, 100, 100))
    assert covers is not None
    assert covers.notes == ()


@pytest.mark.parametrize(("least", "most", "told"), [(80, 125, 0), (79, 100, 1), (100, 126, 1)])
def test_images_that_cover_more_or_less_than_most_by_a_quarter_are_told(
    least: int, most: int, told: int
) -> None:
    covers = Coverage.of([(least, least), (100, 100), (most, most)], 1.0)
    assert covers is not None
    assert len(covers.notes) == told


def test_what_nobody_has_said_is_none() -> None:
    covers = Coverage.of([(32, 32)])
    assert covers is not None
    assert (covers.microns, covers.mpp(32), covers.notes) == (None, None, ())
    assert covers.at(0.25).mpp(16) == 0.5
    assert Coverage.of([]) is None


@pytest.mark.parametrize("kind", ["pages", "below", "ome"])
def test_of_several_pictures_the_one_that_is_read_is_asked(kind: str, tmp_path: Path) -> None:
    path, preview = tmp_path / "a.tif", PIXELS[:10, :15]
    resolution: dict[str, Any] = {"resolutionunit": "CENTIMETER", "metadata": None}
    with tifffile.TiffWriter(path, ome=kind == "ome", bigtiff=kind == "below") as file:
        if kind == "ome":
            for pixels, microns in ((preview, 2.0), (PIXELS, 0.5)):
                file.write(pixels, metadata={"PhysicalSizeX": microns, "PhysicalSizeY": microns})
        else:
            file.write(preview, resolution=(5_000, 5_000), subifds=int(kind == "below"), **resolution)
            file.write(PIXELS, resolution=(20_000, 20_000), **resolution)
    assert read_image(path).shape == PIXELS.shape
    assert scale_of(path).microns == 0.5


def test_a_resolution_that_is_no_number_says_nothing(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, resolution=(300, 300), metadata=None)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    for tag in (282, 283):
        place = content.index(struct.pack("<HHI", tag, 5, 1))  # a fraction, and not a float
        content[place : place + 12] = struct.pack("<HHIf", tag, 11, 1, np.nan)
    (tmp_path / "a.tif").write_bytes(content)
    assert scale_of(tmp_path / "a.tif") == Scale.of(None, None)


@pytest.mark.parametrize("mpp", [None, 0.5])
def test_a_file_gives_it_back(mpp: float | None) -> None:
    covers = Coverage.of([(32, 33), (64, 64)], mpp)
    assert covers is not None
    assert COVERAGE.holds(covers.to_dict())
    assert Coverage.from_dict(covers.to_dict()) == covers
    assert Coverage.from_dict({}) is Coverage.from_dict(None) is None


@pytest.mark.parametrize(
    "wrong", [{}, {"pixels": [1, 2]}, {"pixels": [0, 1, 2]}, {"pixels": [1, 1, 1], "microns": 3}], ids=str
)
def test_what_is_none_is_told(wrong: dict[str, Any]) -> None:
    assert not COVERAGE.holds(wrong)


SAID: dict[str, tuple[dict[str, Any], float | None]] = {
    "centimetres": ({"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}, 0.5),
    "inches": ({"resolution": (50_800, 50_800), "resolutionunit": "INCH"}, 0.5),
    "no-unit": ({"resolution": (2, 2), "resolutionunit": "NONE"}, None),
    "screen": ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
    "anisotropic": ({"resolution": (20_000, 10_000), "resolutionunit": "CENTIMETER"}, None),
    "zero": ({"resolution": (0, 0), "resolutionunit": "CENTIMETER"}, None),
    "imagej": ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "um"}}, 0.25),
    "imagej-micron": ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "\\u00B5m"}}, 0.25),
    "imagej-pixels": ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "pixel"}}, None),
    "ome": ({"ome": True, "metadata": {**OME, **NANOMETRES}}, 0.5),
    "ome-absurd": ({"ome": True, "metadata": OME}, None),
    "nothing": ({}, None),
}


@pytest.mark.parametrize("said", SAID)
def test_a_tiff_says_its_scale_in_several_ways(said: str, tmp_path: Path) -> None:
    options, microns = SAID[said]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", **({"metadata": None, **options}))
    found = scale_of(path)
    assert found.microns == (None if microns is None else pytest.approx(microns, rel=1e-6))
    assert bool(found.why) == (microns is None)


@pytest.mark.parametrize(("dots", "microns"), [(50_800, 0.5), (300, None), (None, None)])
def test_a_png_says_it_in_dots_an_inch(dots: int | None, microns: float | None, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png", **({} if dots is None else {"dpi": (dots, dots)}))
    found = scale_of(tmp_path / "a.png")
    assert found.microns == (None if microns is None else pytest.approx(microns, rel=1e-3))


@pytest.mark.parametrize(("dots", "microns"), [(50_800, 0.5), (72, None), (0, None)])
def test_a_camera_says_it_in_the_rationals_of_exif(dots: int, microns: float | None, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[282], exif[283], exif[296] = float(dots), float(dots), 2
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "JPEG", exif=exif)
    jfif = content.getvalue().index(b"JFIF")
    bare = content.getvalue()[:2] + content.getvalue()[jfif + 14 :]  # without the dots of JFIF
    (tmp_path / "a.jpg").write_bytes(bare)
    found = scale_of(tmp_path / "a.jpg")
    assert found.microns == (None if microns is None else pytest.approx(microns, rel=1e-3))


@pytest.mark.parametrize(
    "xml", ["<OME", "<OME/>", '<O xmlns="x"><Pixels SizeX="30" SizeY="20" PhysicalSizeX="a"/></O>']
)
def test_damaged_xml_says_nothing(xml: str) -> None:
    assert Scale.of_ome(xml, 0, 30, 20).microns is None


OME_IMAGE = (
    '<Image><Pixels SizeX="30" SizeY="20" SizeC="3" PhysicalSizeX="{mpp}" PhysicalSizeY="{mpp}">'
    '<Channel SamplesPerPixel="3"/>{planes}</Pixels></Image>'
)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ('<TiffData IFD="0"/>', '<TiffData IFD="1"/>', (0.25, 4.0)),
        ('<TiffData IFD="1"/>', '<TiffData IFD="0"/>', (4.0, 0.25)),
        ("<TiffData/>", '<TiffData IFD="1" PlaneCount="1"/>', (0.25, 4.0)),
        ('<TiffData IFD="0" PlaneCount="3"/>', '<TiffData IFD="1"/>', (0.25, 4.0)),
        ('<TiffData IFD="0"><UUID>b</UUID></TiffData>', "<TiffData><UUID>a</UUID></TiffData>", (4.0, None)),
        ("", "", (None, None)),
        ('<TiffData IFD="x"/>', '<TiffData IFD="1"/>', (None, 4.0)),
    ],
    ids=["in-order", "swapped", "all-planes", "too-many", "other-file", "not-said", "no-number"],
)
def test_of_pictures_of_one_size_ome_says_which_is_meant(
    first: str, second: str, expected: tuple[float | None, float | None]
) -> None:
    images = (OME_IMAGE.format(mpp=mpp, planes=each) for mpp, each in ((0.25, first), (4.0, second)))
    xml = f'<OME xmlns="x" UUID="a">{"".join(images)}</OME>'
    assert tuple(Scale.of_ome(xml, page, 30, 20).microns for page in range(2)) == expected
    assert Scale.of_ome(xml, 0, 30, 21).microns is None


def test_what_is_no_image_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"a\.png' cannot be read"):
        scale_of(tmp_path / "a.png")
    with pytest.raises(ImageError, match=f"'{tmp_path}' cannot be read: it is a folder"):
        scale_of(tmp_path)


@pytest.mark.parametrize("value", [0.0, -1.0, 1e9, float("nan"), float("inf")])
def test_microns_that_cannot_be_are_refused(value: float) -> None:
    check_microns(None, 0.5)
    with pytest.raises(InputError, match=r"expected 0\.001 to 1000"):
        check_microns(0.5, value)
