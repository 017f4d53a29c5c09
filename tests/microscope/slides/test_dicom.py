"""Whole slides in DICOM: read to the pixel, whatever the order of frames and files, or refused."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from scanner_files import Frame, tiles_of, write_dicom
from slide_files import tissue

from msmamba.errors import ImageError
from msmamba.microscope.slides import open_slide

PIXELS = tissue(150, 210)


@pytest.mark.parametrize("sparse", [False, True], ids=["full", "sparse"])
def test_a_series_is_read_from_any_of_its_files(sparse: bool, tmp_path: Path) -> None:
    frames = tiles_of(PIXELS, 64)
    if sparse:
        random.Random(1).shuffle(frames)
    write_dicom(tmp_path / "b.dcm", PIXELS, frames, sparse=sparse, number=2)
    write_dicom(tmp_path / "a.dcm", PIXELS[::2, ::2], mpp=1.0)
    for name in ("a.dcm", "b.dcm"):
        slide = open_slide(tmp_path / name)
        assert (slide.reader, slide.scale.microns) == ("OpenSlide (dicom)", 0.5)
        assert [(each.width, each.height, each.scale) for each in slide.levels] == [
            (210, 150, 1),
            (105, 75, 2),
        ]
        assert (slide.read(0, 0, 0, 210, 150) == PIXELS).all()
        assert (slide.read(1, 0, 0, 105, 75) == PIXELS[::2, ::2]).all()
        slide.close()


def test_a_frame_that_was_not_scanned_is_white(tmp_path: Path) -> None:
    frames = [frame for frame in tiles_of(PIXELS, 64) if (frame.row, frame.column) != (1, 0)]
    slide = open_slide(write_dicom(tmp_path / "a.dcm", PIXELS, frames, sparse=True))
    expected = PIXELS.copy()
    expected[64:128, :64] = 255
    assert (slide.read(0, 0, 0, 210, 150) == expected).all()
    slide.close()


def second_path(frame: Frame) -> Frame:
    return frame._replace(path=1, pixels=255 - frame.pixels)


@pytest.mark.parametrize("sparse", [False, True], ids=["full", "sparse"])
@pytest.mark.parametrize("said", [True, False], ids=["paths", "frames-alone"])
def test_several_frames_for_a_place_are_refused(sparse: bool, said: bool, tmp_path: Path) -> None:
    """OpenSlide reads the last that is stored for a place, of whatever optical path."""
    frames = tiles_of(PIXELS, 64)
    frames = [*frames, *map(second_path, frames)]
    one = {(0x0048, 0x0105): ("SQ", [{(0x0048, 0x0106): ("SH", "0")}]), (0x0048, 0x0302): ("UL", 1)}
    path = write_dicom(tmp_path / "a.dcm", PIXELS, frames, sparse=sparse, more=None if said else one)
    with pytest.raises(ImageError, match=rf"several planes \({1 + said} optical paths, 24 frames for 12"):
        open_slide(path)


def test_a_series_of_several_pictures_is_refused(tmp_path: Path) -> None:
    """OpenSlide takes the smaller one for a level of the larger."""
    path = write_dicom(tmp_path / "a.dcm", PIXELS)
    write_dicom(tmp_path / "b.dcm", np.ascontiguousarray(PIXELS[:100]), number=2)
    with pytest.raises(ImageError, match=r"several pictures, of 210 x 150 and 210 x 100 pixels"):
        open_slide(path)
