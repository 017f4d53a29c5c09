"""Slides, disks and models that are not as they should be: one clear line, and nothing lost that was done."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import tifffile
from click.testing import CliRunner
from full_disk import no_file_larger_than
from slide_files import HALF_A_MICRON, tissue, write_tiff

import msmamba
from msmamba.cli import mmdeploy
from msmamba.errors import ImageError, TargetError
from msmamba.microscope.slides import classify_slide, open_slide
from msmamba.microscope.slides.results import read_rows
from msmamba.microscope.slides.run import SlideOptions, classify_slides

OPTIONS = SlideOptions(mpp=0.5, tissue=None, batch_size=4)


def outputs(folder: Path) -> dict[str, bytes]:
    kinds = ("model-outputs-csv", "model-outputs-geojson", "heat-maps")
    files = (path for kind in kinds for path in (folder / kind).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("sub", [False, True], ids=["openslide", "tifffile"])
def test_a_slide_that_ends_in_the_middle_of_a_level(
    sub: bool, bundles: dict[str, Path], tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 420, 3)).astype(np.uint8)
    path = write_tiff(tmp_path / "cut.tif", noise, sub=sub, levels=2, **HALF_A_MICRON)
    with tifffile.TiffFile(path) as file:
        end = file.pages[0].dataoffsets[20]
    with path.open("r+b") as file:
        file.truncate(end + 100)
    good = write_tiff(tmp_path / "good.tif", tissue(), **HALF_A_MICRON)
    with (
        msmamba.open(bundles["fp32"], threads=1) as session,
        pytest.raises(ImageError, match=r"cut") as caught,
    ):
        classify_slides(session, bundles["fp32"], [path, good], tmp_path / "out", OPTIONS)
    assert "\n" not in str(caught.value)
    facts = json.loads((tmp_path / "out" / "run.json").read_text())["slides"]
    assert "error" not in facts["good"]
    if "error" not in facts["cut"]:  # it could be opened: then the tiles say it
        rows = list(read_rows(tmp_path / "out" / "model-outputs-csv" / "cut.csv"))
        assert 0 < sum(bool(each.error) for each in rows) == facts["cut"]["unreadable"] < len(rows)


def test_glass_a_folder_without_slides_and_no_slide_at_all(bundles: dict[str, Path], tmp_path: Path) -> None:
    glass = np.full((200, 200, 3), 243, np.uint8)
    write_tiff(tmp_path / "glass.tif", glass, **HALF_A_MICRON)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no slide")
    arguments = ["slide", str(bundles["fp32"]), "-o", str(tmp_path / "out"), "--mpp", "0.5", "--threads", "1"]
    done = CliRunner().invoke(mmdeploy, [*arguments, str(tmp_path / "glass.tif")])
    assert (done.exit_code, "shows no tissue" in done.stderr) == (1, True)
    done = CliRunner().invoke(mmdeploy, [*arguments, str(tmp_path / "empty")])
    assert done.exit_code == 1
    assert str(tmp_path / "empty") in done.stderr
    assert done.stderr.count("error:") == 1
    done = CliRunner().invoke(mmdeploy, [*arguments, str(tmp_path / "missing.svs")])
    assert done.exit_code == 1
    assert "missing.svs' cannot be read" in done.stderr


@pytest.mark.parametrize("limit", [100, 1500, 6000])
def test_a_disk_without_room_loses_nothing(limit: int, bundles: dict[str, Path], tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", tissue(), **HALF_A_MICRON)
    with msmamba.open(bundles["fp32"], threads=1) as session:
        classify_slides(session, bundles["fp32"], [path], tmp_path / "whole", OPTIONS)
        with no_file_larger_than(limit), pytest.raises(TargetError, match="cannot write") as caught:
            classify_slides(session, bundles["fp32"], [path], tmp_path / "out", OPTIONS)
        assert "\n" not in str(caught.value)
        classify_slides(session, bundles["fp32"], [path], tmp_path / "out", OPTIONS)
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")


def test_a_model_with_a_fixed_batch_takes_tiles_one_by_one(
    bundles: dict[str, Path], pyramid: Path, tmp_path: Path
) -> None:
    model = onnx.load(bundles["fp32"] / "model.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "fixed.onnx")
    slide = open_slide(pyramid)
    found = []
    for artefact in (bundles["fp32"], tmp_path / "fixed.onnx"):
        with msmamba.open(artefact, threads=1) as session:
            results = classify_slide(session, slide, mpp=2.0, batch_size=3)
            found.append([each.probabilities for each in results])
    slide.close()
    assert len(found[0]) > 3
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
