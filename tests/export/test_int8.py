"""INT8 bundles from checkpoint to engine, by the command and by the library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from msmamba import open as open_artefact
from msmamba.cli import mmdeploy
from msmamba.errors import DataError, ExportError, InputError
from msmamba.export.bundle import Export, ExportOptions, export_bundle
from msmamba.export.int8 import Int8Options
from msmamba.export.verify import verify
from msmamba.files import sha256_of
from msmamba.plugins.tensorrt_library import link_parser_library


@pytest.fixture(scope="module")
def exported(checkpoint: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    output = tmp_path_factory.mktemp("int8") / "cells.int8"
    how = Int8Options(labelled, method="minmax", images=9)
    return export_bundle(checkpoint, output, ExportOptions(precision="int8", int8=how))


def int8_options(data: Path, **chosen: object) -> ExportOptions:
    return ExportOptions(precision="int8", int8=Int8Options(data, method="minmax", images=9, **chosen))


def test_a_bundle_says_how_it_was_quantised(
    exported: Export, labelled: Path, bundles: dict[str, Path]
) -> None:
    manifest = exported.manifest
    assert manifest.precision_asked == "int8"
    said = manifest.precision_proven["int8"]
    assert said["share_of_multiply_adds"] > 0.8
    assert said["plan"] == {"kept": [], "kinds": ["convolution", "linear"]}
    assert said["calibration"]["by_class"] == {"basophil": 3, "eosinophil": 3, "lymphocyte": 3}
    listed = json.loads((exported.path / "calibration.json").read_text())
    assert len(listed["files"]) == 9
    for name, digest in listed["files"].items():
        assert sha256_of(labelled / name) == digest
        assert name.startswith("train/")
    assert set(manifest.files) == {"model.onnx", "calibration.json", "plan.json"}
    whole = (bundles["fp32"] / "model.onnx").stat().st_size
    assert exported.bytes < whole


def test_it_runs_and_is_verified(exported: Export, checkpoint: Path, labelled: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(exported.path, tmp_path / "copied"))
    with open_artefact(bundle) as session:
        assert len(session.classify(sorted((labelled / "val").glob("*/*")))) == 12
        assert "int8" in session.path
    parity = verify(bundle, checkpoint, [labelled / "val"], max_flips=1)
    assert parity.passed
    assert "int8" in parity.bar.reason


def test_the_same_checkpoint_and_images_give_the_same_bytes(
    exported: Export, checkpoint: Path, labelled: Path, tmp_path: Path
) -> None:
    again = export_bundle(checkpoint, tmp_path / "again", int8_options(labelled)).path
    for name in ("model.onnx", "calibration.json", "manifest.json"):
        assert (again / name).read_bytes() == (exported.path / name).read_bytes()


def test_a_plan_is_used_again(checkpoint: Path, labelled: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text('{"format_version": 1, "kept": ["layers.1.blocks.0"], "kinds": ["linear"]}')
    export = export_bundle(checkpoint, tmp_path / "planned", int8_options(labelled, plan=plan))
    assert export.int8 is not None
    assert not any(name.startswith(("layers.1.blocks.0", "patch")) for name in export.int8.proof.products)
    assert (export.path / "plan.json").read_text() != ""
    with pytest.raises(DataError, match="nowhere"):
        export_bundle(checkpoint, tmp_path / "other", int8_options(labelled, plan=tmp_path / "nowhere.json"))


def test_a_cache_beside_the_bundle_is_used_and_a_stale_one_refused(
    checkpoint: Path, labelled: Path, tmp_path: Path
) -> None:
    export_bundle(checkpoint, tmp_path / "b", int8_options(labelled))
    kept = (tmp_path / "b.calib").read_bytes()
    fewer = ExportOptions(precision="int8", int8=Int8Options(labelled, method="minmax", images=3))
    with pytest.raises(InputError, match=r"b\.calib' is stale: the images changed"):
        export_bundle(checkpoint, tmp_path / "b", fewer, force=True)
    assert (tmp_path / "b" / "model.onnx").is_file()
    steps: list[str] = []
    export_bundle(checkpoint, tmp_path / "b", int8_options(labelled), force=True, report=steps.append)
    assert [step for step in steps if step.startswith("calibrating")] == ["calibrating: 9 of 9 images"]
    assert (tmp_path / "b.calib").read_bytes() == kept


def test_folders_that_cannot_be_calibrated_on(checkpoint: Path, labelled: Path, tmp_path: Path) -> None:
    mislabelled = Path(shutil.copytree(labelled / "val", tmp_path / "mislabelled"))
    (mislabelled / "basophil").rename(mislabelled / "basofil")
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "basophil").mkdir(parents=True)
    for folder, message in {
        "mislabelled": "1 classes are unknown to the model: basofil",
        "empty": "no class folders",
        "hollow": "no images",
        "absent": "does not exist",
    }.items():
        with pytest.raises(DataError, match=message):
            export_bundle(checkpoint, tmp_path / "b", int8_options(tmp_path / folder))
    assert not (tmp_path / "b").exists()


def test_a_flat_folder_is_used_whole(checkpoint: Path, labelled: Path, tmp_path: Path) -> None:
    export = export_bundle(checkpoint, tmp_path / "b", int8_options(labelled / "val"))
    assert export.int8 is not None
    assert export.int8.calibration.available == 12


def test_int8_without_images_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--calib"):
        export_bundle(checkpoint, tmp_path / "b", ExportOptions(precision="int8"))


@pytest.mark.parametrize(
    "arguments",
    [["--int8"], ["--calib", "cells"], ["--method", "minmax"], ["--fp16", "--plan", "plan.json"]],
    ids=["no-images", "no-int8", "method-alone", "plan-with-fp16"],
)
def test_options_that_do_not_go_together(arguments: list[str], checkpoint: Path) -> None:
    result = CliRunner().invoke(mmdeploy, ["export", str(checkpoint), "-o", "b", *arguments])
    assert result.exit_code == 2
    assert "--int8 needs --calib DATA" in result.stderr


def test_an_engine_from_the_command_line(checkpoint: Path, labelled: Path, tmp_path: Path) -> None:
    link_parser_library()
    options = ["--int8", "--calib", str(labelled), "--method", "percentile", "--calib-images", "6"]
    target = ["--target", "tensorrt-rtx", "--sm", "8.9", "--batches", "1", "1", "2"]
    output = str(tmp_path / "b")
    result = CliRunner().invoke(mmdeploy, ["export", str(checkpoint), *options, *target, "-o", output])
    assert result.exit_code == 0, result.output
    proven = json.loads((tmp_path / "b" / "manifest.json").read_text())["precision_proven"]
    assert set(proven["engine"]["int8_layers"]) == set(proven["int8"]["products"])
    assert proven["engine"]["layers"]["INT8"] > len(proven["int8"]["products"])
    assert proven["nodes"]["float16"] > 100
    assert "in int8" in result.stdout
