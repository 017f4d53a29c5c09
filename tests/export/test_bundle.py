"""Bundles: what is in them, that they are whole or absent, and what is asked of the user."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from msmamba.data.seen import Seen
from msmamba.errors import ArtefactError, CheckpointError, ExportError, InputError, TargetError
from msmamba.export.bundle import ExportOptions, export_bundle
from msmamba.files import sha256_of
from msmamba.model import MicroscopicMamba
from msmamba.model.networks.checkpoint import save_checkpoint
from msmamba.plugins.tensorrt_library import link_parser_library
from msmamba.resize import PILLOW_RULE, RULE
from msmamba.runtime import Manifest
from msmamba.runtime.artefact import open_bundle
from msmamba.runtime.manifest import EngineFacts
from msmamba.runtime.probe import checksums
from tests.export.proof.test_guarded import with_guard

STATISTICS: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.fixture
def state_dict(make_network: Callable[..., MicroscopicMamba], tmp_path: Path) -> Path:
    """The authors' kind of checkpoint, which says nothing of labels or preprocessing; of two stages."""
    torch.save({"model": make_network(depths=(1, 1), dims=(32, 64)).state_dict()}, tmp_path / "best.pth")
    return tmp_path / "best.pth"


def test_a_bundle_says_what_it_is(bundles: dict[str, Path], checkpoint: Path) -> None:
    bundle = bundles["fp16"]
    manifest = Manifest.from_json((bundle / "manifest.json").read_bytes())
    assert manifest.labels == ("basophil", "eosinophil", "lymphocyte")
    assert (manifest.image_size, manifest.mean, manifest.std) == (32, (0.6, 0.5, 0.7), (0.2, 0.25, 0.15))
    assert manifest.checkpoint_sha256 == sha256_of(checkpoint)
    assert manifest.files == {
        name: sha256_of(bundle / name)
        for name in ("model.onnx", "scan.float16.kernels", "block.float16.steps")
    }
    assert manifest.precision_asked == "fp16"
    assert manifest.resize == RULE
    assert manifest.probe == checksums(manifest.transform)
    assert manifest.precision_proven["nodes"]["float16"] > 100
    assert manifest.architecture["dims"] == [32, 64, 128, 256]
    metadata = {entry.key: entry.value for entry in onnx.load(bundle / "model.onnx").metadata_props}
    assert Manifest.from_metadata(metadata).labels == manifest.labels


def test_the_same_checkpoint_gives_the_same_bytes(
    bundles: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    again = export_bundle(checkpoint, tmp_path / "again", ExportOptions(precision="fp16")).path
    for name in ("model.onnx", "scan.float16.kernels", "block.float16.steps", "manifest.json"):
        assert (again / name).read_bytes() == (bundles["fp16"] / name).read_bytes()


def test_a_bundle_says_which_images_training_saw(
    network: MicroscopicMamba, micrographs: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    images = sorted(micrographs.glob("*.png"))
    seen = Seen.of(images[:5], images[5:7])
    save_checkpoint(
        tmp_path / "seen.safetensors", network, labels=["a", "b", "c"], image_size=32, **STATISTICS, seen=seen
    )
    exported = export_bundle(tmp_path / "seen.safetensors", tmp_path / "bundle")
    assert exported.notes == ()
    bundle = open_bundle(exported.path)
    assert bundle.seen is not None
    assert bundle.seen.to_dict() == seen.to_dict()
    (bundle.folder / "seen.json").write_text("{}")
    with pytest.raises(ArtefactError, match="was changed after export"):
        _ = bundle.seen
    digest = sha256_of(bundle.folder / "seen.json")
    resealed = replace(bundle.manifest, files={**bundle.manifest.files, "seen.json": digest})
    with pytest.raises(ArtefactError, match=r"seen\.json' cannot be used: 'train' is missing"):
        _ = replace(bundle, manifest=resealed).seen
    assert open_bundle(bundles["fp32"]).seen is None


def test_an_existing_bundle_is_replaced_only_when_forced(
    bundles: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundles["fp32"], tmp_path / "bundle")
    before = sha256_of(tmp_path / "bundle" / "manifest.json")
    with pytest.raises(TargetError, match="exists already"):
        export_bundle(checkpoint, tmp_path / "bundle", ExportOptions(image_size=64))
    assert sha256_of(tmp_path / "bundle" / "manifest.json") == before
    guarded = with_guard(tmp_path / "bundle", tmp_path / "guarded", threshold=1.0)
    opened = open_bundle(guarded).manifest
    (guarded / "manifest.json").write_text(
        replace(opened, files={**opened.files, "parity.json": "0" * 64}).to_json()
    )
    note, proof = export_bundle(checkpoint, guarded, ExportOptions(image_size=64), force=True).notes
    assert "had a proof (parity.json), which was of what it held" in proof
    assert json.loads((guarded / "manifest.json").read_text())["image_size"] == 64
    assert "had a guard, which was of that network in that precision: calibrate again" in note


def test_a_failed_export_leaves_nothing_and_loses_nothing(
    bundles: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.safetensors").write_bytes(checkpoint.read_bytes()[:100])
    shutil.copytree(bundles["fp32"], tmp_path / "bundle")
    before = sorted(tmp_path.rglob("*"))
    for target in ("bundle", "other"):
        with pytest.raises(CheckpointError):
            export_bundle(tmp_path / "broken.safetensors", tmp_path / target, force=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_authors_checkpoint_needs_labels_and_statistics(state_dict: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"class names \(--labels\).*--mean.*--std"):
        export_bundle(state_dict, tmp_path / "bundle")
    options = ExportOptions(image_size=32, labels=("a", "b", "c"), **STATISTICS)
    manifest = export_bundle(state_dict, tmp_path / "bundle", options).manifest
    assert manifest.labels == ("a", "b", "c")
    assert manifest.resize == PILLOW_RULE  # what it was trained with, nobody knows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"labels": ("a", "b")}, "2 labels were given.*3 classes", id="labels"),
        pytest.param({"precision": "fp8"}, "'fp8' is unknown: choose one of fp32, fp16", id="precision"),
        pytest.param({"image_size": 100}, "multiple of 32", id="size"),
        pytest.param({"image_size": 0}, "image size is 0: expected 1", id="no-size"),
        pytest.param({"mean": (0.5, 0.5)}, "expected three finite numbers", id="mean"),
        pytest.param({"mean": 0.5}, "expected three finite numbers", id="one-mean"),
        pytest.param({"std": "abc"}, "std is .* expected three finite numbers", id="std"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    checkpoint: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ArtefactError, ExportError, InputError), match=message):
        export_bundle(checkpoint, tmp_path / "bundle", ExportOptions(**options))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_does_not_go_with_the_bundle_that_it_lies_in(
    bundles: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundles["fp32"], tmp_path / "bundle")
    shutil.copy(checkpoint, tmp_path / "bundle" / "best.safetensors")
    with pytest.raises(InputError, match=r"best\.safetensors' would go with the old '.*bundle'"):
        export_bundle(tmp_path / "bundle" / "best.safetensors", tmp_path / "bundle", force=True)
    assert (tmp_path / "bundle" / "best.safetensors").read_bytes() == checkpoint.read_bytes()


def test_what_takes_the_place_of_the_checkpoints_own_is_told(checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(mean=[0.1, 0.2, 0.3], white_level=4095)
    export = export_bundle(checkpoint, tmp_path / "bundle", options)
    assert (export.manifest.mean, export.manifest.white_level) == ((0.1, 0.2, 0.3), 4095)
    assert export.notes == (
        "the channels' mean is (0.1, 0.2, 0.3), as asked, not (0.6, 0.5, 0.7)",
        "white is 4095 of 16-bit images, as asked, not 65535",
    )


def test_an_engine_stands_beside_the_onnx_file(checkpoint: Path, tmp_path: Path) -> None:
    link_parser_library()
    options = ExportOptions(precision="fp16", target="tensorrt-rtx", compute_capabilities=("8.6", "12.0"))
    export = export_bundle(checkpoint, tmp_path / "bundle", options)
    assert export.engine is not None
    assert len(export.engine.proof.plugins) == 4
    manifest = Manifest.from_json((tmp_path / "bundle" / "manifest.json").read_bytes())
    assert manifest.compute_capabilities == ("8.6", "12.0")
    assert set(manifest.files) == {
        *("model.onnx", "model.engine", "build.log"),
        *("scan.float16.kernels", "block.float16.steps"),
    }
    facts = EngineFacts.of(manifest)
    assert facts is not None
    assert (facts.library, facts.version) == ("tensorrt_rtx", manifest.versions["tensorrt-rtx"])
    assert (facts.plugin_version, facts.batches) == ("1", (1, 1, 16))
    assert manifest.precision_proven["engine"]["layers"]["HALF"] > 100
    assert (tmp_path / "bundle" / "model.engine").read_bytes() == export.engine.plan


@pytest.mark.parametrize(
    ("sm", "message"),
    [
        pytest.param((), "give one with --sm", id="none"),
        pytest.param(("8.55",), "'8.55' is not of the form 8.9", id="not-a-version"),
        pytest.param(("3.5",), "3.5", id="too-old"),
    ],
)
def test_gpus_that_no_engine_can_be_built_for_are_refused(
    checkpoint: Path, tmp_path: Path, sm: tuple[str, ...], message: str
) -> None:
    link_parser_library()
    options = ExportOptions(image_size=32, target="tensorrt-rtx", compute_capabilities=sm)
    steps: list[str] = []
    with pytest.raises(ExportError, match=message):
        export_bundle(checkpoint, tmp_path / "bundle", options, report=steps.append)
    assert list(tmp_path.iterdir()) == []
    assert steps == ["reading the checkpoint"]  # refused before the work


def test_steps_are_reported_in_order(state_dict: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    options = ExportOptions(precision="fp16", image_size=32, labels=("a", "b", "c"), **STATISTICS)
    export_bundle(state_dict, tmp_path / "bundle", options, report=steps.append)
    assert steps == [
        "reading the checkpoint",
        "tracing PyTorch to ONNX",
        "converting to float16",
        "compiling kernels for GPUs",
        "writing the bundle",
    ]
