"""PNG and JPEG that are decoded into a file: the same pixels as in memory, and no trace of the file."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from full_disk import no_file_larger_than
from PIL import Image
from slide_files import check_that_regions_outside_are_refused, tissue

import msmamba
from msmamba.errors import ImageError
from msmamba.images import read_image
from msmamba.microscope.slides import Slide, large_field, open_slide
from msmamba.microscope.slides.run import SlideOptions, classify_slides

pytest.importorskip("pyvips", reason="needs the extra fields")
PIXELS = tissue()
GREY = PIXELS[..., 1]


@pytest.fixture(autouse=True)
def small_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the pictures of these tests for large ones."""
    monkeypatch.setattr("msmamba.microscope.slides.large_field.MAX_PIXELS", 1000)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


KINDS: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
    "png": (Image.fromarray(PIXELS), "PNG", {"dpi": (50_800, 50_800)}),
    "png-grey": (Image.fromarray(GREY), "PNG", {}),
    "png-alpha": (Image.fromarray(np.dstack([PIXELS, PIXELS[..., 0]])), "PNG", {}),
    "png-grey-alpha": (Image.fromarray(np.dstack([GREY, PIXELS[..., 0]])), "PNG", {}),
    "png-grey-key": (Image.fromarray(GREY), "PNG", {"transparency": int(GREY[0, 0])}),
    "png-16": (Image.fromarray(GREY.astype(np.uint16) * 200), "PNG", {}),
    "png-palette": (Image.fromarray(PIXELS).quantize(200), "PNG", {}),
    "png-1": (Image.fromarray(GREY > 150), "PNG", {}),
    "jpeg": (Image.fromarray(PIXELS), "JPEG", {"quality": 90, "dpi": (50_800, 50_800)}),
    "jpeg-444": (Image.fromarray(PIXELS), "JPEG", {"quality": 90, "subsampling": 0}),
    "jpeg-grey": (Image.fromarray(GREY), "JPEG", {"quality": 90}),
    "jpeg-restarts": (Image.fromarray(PIXELS), "JPEG", {"quality": 90, "restart_marker_blocks": 3}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_are_those_that_a_small_one_would_have(kind: str, tmp_path: Path) -> None:
    picture, form, options = KINDS[kind]
    path = tmp_path / "a.picture"
    picture.save(path, form, **options)
    expected = read_image(path, white_level=60_000)
    slide = open_slide(path, white_level=60_000, scratch=tmp_path)
    assert (slide.reader, len(slide.levels)) == ("libvips", 1)
    assert slide.scale.microns == (pytest.approx(0.5, rel=1e-3) if "dpi" in options else None)
    assert (slide.read(0, 0, 0, 420, 300) == expected).all()
    assert (slide.read(0, 419, 255, 1, 45) == expected[255:, 419:]).all()
    check_that_regions_outside_are_refused(slide)
    assert slide.reopened() is slide
    slide.close()


def test_the_file_has_no_name(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    slide = open_slide(tmp_path / "a.png", scratch=scratch)
    assert list(scratch.iterdir()) == []
    assert os.fstat(slide._pixels.fileno()).st_size == PIXELS.nbytes  # type: ignore[attr-defined]
    slide.close()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "progressive.jpg": ({"progressive": True}, "comes in passes over all of them"),
    "turned.jpg": ({"exif": turned()}, r"stored turned \(orientation 6\)"),
    "turned.png": ({"exif": turned()}, r"stored turned \(orientation 6\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rows_from_top_to_bottom_is_refused(name: str, tmp_path: Path) -> None:
    options, said = REFUSED[name]
    Image.fromarray(PIXELS).save(tmp_path / name, **options)
    with pytest.raises(ImageError, match=f"has 420 x 300 pixels and .*{said}"):
        open_slide(tmp_path / name)


def test_inks_are_refused(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).convert("CMYK").save(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="holds cmyk: expected grey or RGB"):
        open_slide(tmp_path / "a.jpg", scratch=tmp_path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_truncated_picture_is_one_line_and_leaves_nothing(name: str, share: float, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ImageError, match=rf"{name}' cannot be read: .*") as caught:
        open_slide(tmp_path / name, scratch=tmp_path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_disk_without_room_is_told_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ImageError, match=r"has to hold 0\.0 GB, and has room for 0\.0"):
        open_slide(tmp_path / "a.png", scratch=tmp_path)


def test_a_disk_that_fills_up_meanwhile_is_told(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((300, 420, 3), np.uint8)).save(tmp_path / "a.png")
    message = "cannot hold while it is read: file too large"
    with no_file_larger_than(100_000), pytest.raises(ImageError, match=message):
        open_slide(tmp_path / "a.png", scratch=tmp_path)


def test_without_the_library_the_picture_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "pyvips", None)
    with pytest.raises(ImageError, match=r"pip install 'msmamba\[fields\]'"):
        open_slide(tmp_path / "a.png")


def test_what_is_small_stays_in_memory(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[:20, :30]).save(tmp_path / "a.png")
    slide: Slide = open_slide(tmp_path / "a.png")
    assert slide.reader == "field"


def test_a_run_decodes_it_once_and_beside_its_results(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, decode = [], large_field._decoded
    monkeypatch.setattr(large_field, "_decoded", lambda *given: decoded.append(given[0]) or decode(*given))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no-such-folder"))
    path, out = tmp_path / "field.png", tmp_path / "out"
    Image.fromarray(tissue(70, 100)).save(path)
    with msmamba.open(bundles["fp32"], threads=1) as session:
        for opened in (1, 2):  # the second call finds all done, and opens it for the page's tiles only
            options = SlideOptions(pixel_for_pixel=True, tissue=None, batch_size=4)
            classify_slides(session, bundles["fp32"], [path], out, options)
            assert decoded == opened * [path]
            page = (out / "report.html").read_text()
            assert "the most certain tiles" in page
            (out / "report.html").unlink()
