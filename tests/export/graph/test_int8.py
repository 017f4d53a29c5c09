"""INT8 bundles from checkpoint to engine, by the command and by the library."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from conftest import SMALL_LABELS
from onnx import numpy_helper
from PIL import Image

from msmamba import open as open_artefact
from msmamba.cli import mmdeploy
from msmamba.data.published import ImportOptions, import_data_set
from msmamba.errors import DataError, ExportError, InputError
from msmamba.export.bundle import Export, ExportOptions, export_bundle
from msmamba.export.graph.int8_options import Int8Options, Prepared, prepare
from msmamba.export.graph.judging import Limits
from msmamba.export.graph.plan import Plan
from msmamba.export.proof.evaluate import evaluate_model
from msmamba.export.proof.parity import Rise
from msmamba.export.proof.verify import verify
from msmamba.files import sha256_of
from msmamba.images import FULL_WHITE
from msmamba.measures.decision import ImageLimit
from msmamba.model import MicroscopicMamba
from msmamba.model.networks.checkpoint import save_checkpoint
from msmamba.plugins.hybrid_block import INT8, INT8_OPERATORS
from msmamba.plugins.tensorrt_library import link_parser_library

LOOSE = Limits(accuracy_drop=100, flips=ImageLimit(100, per_cent=True))
"""The small network is not trained: its labels flip easily."""


def int8_options(data: Path, **chosen: Any) -> ExportOptions:
    how = {"method": "minmax", "images": 9, "limits": LOOSE, **chosen}
    return ExportOptions(precision="int8", int8=Int8Options(data, **how))


STAGES = 2
"""Of the network here, the published number being four: the exports take half the time."""


@pytest.fixture(scope="module")
def checkpoint(
    make_network: Callable[..., MicroscopicMamba], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "two-stages.safetensors"
    save_checkpoint(
        path,
        make_network(depths=(1,) * STAGES, dims=(32, 64)),
        labels=SMALL_LABELS,
        image_size=32,
        mean=(0.6, 0.5, 0.7),
        std=(0.2, 0.25, 0.15),
    )
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Not to be changed."""
    output = tmp_path_factory.mktemp("int8") / "cells.int8"
    return export_bundle(checkpoint, output, int8_options(labelled, sensitivity=True))


def prepared(data: Path, **chosen: Any) -> Prepared:
    how = int8_options(data, **chosen).int8
    assert how is not None
    return prepare(how, SMALL_LABELS, FULL_WHITE, lambda step: None)


def test_a_bundle_says_how_it_was_quantised(exported: Export, checkpoint: Path, labelled: Path) -> None:
    manifest = exported.manifest
    assert manifest.precision_asked == "int8"
    said = manifest.precision_proven["int8"]
    assert said["share_of_multiply_adds"] > 0.8
    assert said["plan"] == {"kept": [], "kinds": ["convolution", "linear"]}
    assert said["calibration"]["by_class"] == {"basophil": 3, "eosinophil": 3, "lymphocyte": 3}
    assert (said["judged"]["images"], said["judged"]["on"]) == (12, "validation images")
    listed = json.loads((exported.path / "calibration.json").read_text())
    assert len(listed["files"]) == 9
    for name, digest in listed["files"].items():
        assert sha256_of(labelled / name) == digest
        assert name.startswith("train/")
    assert {name.split("/")[0] for name in listed["judged"]} == {"val"}
    named = {"model.onnx", "calibration.json", "plan.json", "sensitivity.json", "sensitivity.png"}
    assert set(manifest.files) >= named
    assert exported.bytes < checkpoint.stat().st_size
    assert Plan.from_json((exported.path / "plan.json").read_bytes(), "plan.json") == Plan()


def test_every_unit_and_kind_was_measured(exported: Export) -> None:
    measured = json.loads((exported.path / "sensitivity.json").read_text())
    units = [f"layers.{i}.{part}" for i in range(STAGES) for part in ("blocks.0", "downsample")][:-1]
    assert {harm["part"] for harm in measured["units"]} == {"patch_embed", *units}
    assert {harm["part"] for harm in measured["kinds"]} == {"convolution", "depthwise", "linear"}
    keys = [(harm["judgement"]["flips"], harm["judgement"]["logit_error"]) for harm in measured["units"]]
    assert keys == sorted(keys, reverse=True)
    assert min(error for _, error in keys) > 0
    with Image.open(exported.path / "sensitivity.png") as plot:
        assert plot.width > 800


def test_it_runs_and_is_verified(exported: Export, checkpoint: Path, labelled: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(exported.path, tmp_path / "copied"))
    with open_artefact(bundle) as session:
        assert len(session.classify(sorted((labelled / "val").glob("*/*")))) == 12
        assert "int8" in session.path
    parity = verify(bundle, checkpoint, [labelled], split="val", max_flips=ImageLimit(12))
    assert parity.precision == "int8"
    assert parity.max_abs_error < 0.5
    assert any("int8 was calibrated or judged on 12 of these 12 images" in note for note in parity.notes)
    measured = evaluate_model(bundle, labelled, split="train").notes
    assert any("int8 was calibrated or judged on 9 of these" in note for note in measured)


@pytest.mark.parametrize(
    ("node", "position", "module"),
    [
        pytest.param("patch_embed.2:wide", 1, "patch_embed.2", id="quantised-at-once"),
        pytest.param("layers.0.downsample", 1, "layers.0.downsample", id="linear"),
        pytest.param(
            "layers.1.blocks.0.pvm_layer/ProjectedScan2D", 4, "layers.1.blocks.0.pvm_layer", id="scan"
        ),
        pytest.param("logits", 1, "head", id="head"),
    ],
)
def test_where_the_error_grows_most_is_named(
    node: str, position: int, module: str, exported: Export, checkpoint: Path, labelled: Path, tmp_path: Path
) -> None:
    model = onnx.load(exported.path / "model.onnx")
    made_by = {output: each for each in model.graph.node for output in each.output}
    weight = made_by[node].input[position]
    if weight in made_by:  # dequantised
        weight = made_by[weight].input[0]
    (tensor,) = (each for each in model.graph.initializer if each.name == weight)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((-values).astype(values.dtype), tensor.name))
    onnx.save(model, tmp_path / "broken.onnx")
    parity = verify(tmp_path / "broken.onnx", checkpoint, [labelled], split="val", limit=3, max_error=1e-6)
    assert not parity.passed
    assert isinstance(parity.departure, Rise)
    assert parity.departure.module == module
    assert parity.departure.error > 5 * parity.departure.error_before
    assert f"the error grows most at {module}" in parity.failure
    assert f"departs at     {module} above all, relative error" in parity.to_text()


def test_the_same_images_give_the_same_bytes_from_the_cache_or_anew(
    exported: Export, checkpoint: Path, labelled: Path, tmp_path: Path
) -> None:
    steps: list[str] = []
    cache = exported.path.with_name("cells.int8.calib")
    again = export_bundle(
        checkpoint, tmp_path / "again", int8_options(labelled, cache=cache), report=steps.append
    )
    assert [step for step in steps if step.startswith("calibrating")] == ["calibrating: 9 of 9 images"]
    for name in ("model.onnx", "calibration.json", "plan.json"):
        assert (again.path / name).read_bytes() == (exported.path / name).read_bytes()


def test_a_stale_cache_stops_the_export_and_loses_nothing(
    exported: Export, checkpoint: Path, labelled: Path
) -> None:
    before = sha256_of(exported.path / "model.onnx")
    with pytest.raises(InputError, match=r"int8\.calib' is stale: the images changed"):
        export_bundle(checkpoint, exported.path, int8_options(labelled, images=3), force=True)
    assert sha256_of(exported.path / "model.onnx") == before


def test_a_plan_is_used_again(checkpoint: Path, labelled: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text('{"format_version": 1, "kept": ["layers.1.blocks.0"], "kinds": ["linear"]}')
    export = export_bundle(checkpoint, tmp_path / "planned", int8_options(labelled, plan=plan))
    assert export.int8 is not None
    assert not any(name.startswith(("layers.1.blocks.0", "patch")) for name in export.int8.proof.products)
    assert export.int8.sensitivity is None
    written = Plan.from_json((export.path / "plan.json").read_bytes(), "plan.json")
    assert written == Plan(kept=("layers.1.blocks.0",), kinds=("linear",))


def test_folders_that_cannot_be_calibrated_on_are_refused_before_any_work(
    labelled: Path, tmp_path: Path
) -> None:
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
            prepared(tmp_path / folder)
    with pytest.raises(DataError, match="nowhere"):
        prepared(labelled, plan=tmp_path / "nowhere.json")


@pytest.mark.parametrize("split", ["val", "test"])
def test_no_split_stands_in_for_training_images(split: str, labelled: Path, tmp_path: Path) -> None:
    shutil.copytree(labelled / "val", tmp_path / "data" / split)
    with pytest.raises(DataError, match=f"no training images to measure ranges on, only {split}"):
        prepared(tmp_path / "data")


def test_a_plan_is_judged_on_images_that_would_not_do_for_ranges(labelled: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(labelled, tmp_path / "data"))
    shutil.rmtree(data / "val" / "basophil")
    blank = next((data / "val").rglob("*.png"))
    Image.new("RGB", (40, 40)).save(blank)
    assert blank in {image.source for image in prepared(data).judged.images}


def test_an_unknown_method_is_refused_before_any_image_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="method 'guess' is unknown: choose one of"):
        prepared(tmp_path / "absent", method="guess")


def test_an_imported_data_set_is_calibrated_on_its_training_images_alone(cells: Path, tmp_path: Path) -> None:
    folder = tmp_path / "imported"
    import_data_set("folder", cells, folder, ImportOptions(seed=1))
    found = prepare(Int8Options(folder), ("round", "square"), FULL_WHITE, lambda step: None)
    assert found.judged_on == "validation images"
    for split, chosen in (("train", found.calibration), ("val", found.judged)):
        held = {path.resolve() for path in (folder / split).rglob("*.png")}
        assert {Path(str(image.source)).resolve() for image in chosen.images} == held


def test_what_a_plan_is_judged_on(labelled: Path) -> None:
    by_split = prepared(labelled)
    assert by_split.judged_on == "validation images"
    assert all(image.name.startswith("val/") for image in by_split.judged.images)
    flat = prepared(labelled / "train")
    assert flat.judged_on == "images that it was not calibrated on"
    assert not {i.source for i in flat.judged.images} & {i.source for i in flat.calibration.images}
    assert prepared(labelled / "train", images=500).judged_on.endswith("for want of others")


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
    options += ["--max-flips", "100%", "--max-accuracy-drop", "100"]
    target = ["--target", "tensorrt-rtx", "--sm", "8.9", "--batches", "1", "1", "2"]
    output = str(tmp_path / "b")
    result = CliRunner().invoke(mmdeploy, ["export", str(checkpoint), *options, *target, "-o", output])
    assert result.exit_code == 0, result.output
    proven = json.loads((tmp_path / "b" / "manifest.json").read_text())["precision_proven"]
    assert set(proven["engine"]["int8_layers"]) == set(proven["int8"]["products"])
    assert proven["engine"]["layers"]["INT8"] > len(proven["int8"]["products"])
    compiled = proven["engine"]["compiled_products"]
    assert compiled["int8"] == len(proven["int8"]["products"])
    assert set(compiled) == {"int8", "half", "float"}
    assert compiled["float"] == 1  # the head
    counted = f"{compiled['int8']} of {compiled['int8']} int8 products are compiled as such"
    assert counted in result.stdout
    assert "\n    on 12 validation images: " in result.stdout
    assert proven["nodes"]["float16"] > 100
    assert f"int8: {len(proven['int8']['products'])} products" in result.stdout


def test_blocks_stay_operators_whatever_of_them_is_in_int8(
    exported: Export, checkpoint: Path, labelled: Path, tmp_path: Path
) -> None:
    def operators(export: Export) -> Counter[str]:
        graph = onnx.load(export.path / "model.onnx").graph
        return Counter(node.op_type for node in graph.node if node.domain == "msmamba")

    in_int8 = {*INT8_OPERATORS} - {"ScanInputsInt8", "PatchMergingInt8"}
    whole = {"MIFA": STAGES, "PatchMergingInt8": STAGES - 1}
    assert operators(exported) == {**whole, **dict.fromkeys(in_int8, STAGES)}
    plan = Plan(kept=("layers.0.blocks.0",))
    (tmp_path / "plan.json").write_text(plan.to_json())
    mixed = export_bundle(checkpoint, tmp_path / "b", int8_options(labelled, plan=tmp_path / "plan.json"))
    kept = dict.fromkeys((name.removesuffix(INT8) for name in in_int8), 1)
    assert operators(mixed) == {**whole, **kept, **dict.fromkeys(in_int8, STAGES - 1)}
    with open_artefact(mixed.path) as native, open_artefact(mixed.path, kernels="functions") as functions:
        images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
        np.testing.assert_allclose(native.run(images), functions.run(images), rtol=0, atol=0.02)
