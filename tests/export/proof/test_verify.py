"""Verification: what agrees passes, what does not is caught, and the first bad module is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from msmamba.errors import ArtefactError, CheckpointError, InputError
from msmamba.export.proof.verify import Bar, OwnError, compare, verify
from msmamba.files import sha256_of
from msmamba.model import MicroscopicMamba
from msmamba.model.networks.checkpoint import save_checkpoint
from msmamba.runtime import Manifest

BAR = Bar(max_abs_error=0.1, max_flips=0, reason="for a test")


@pytest.fixture
def copied(bundles: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """The bundles, to be changed."""
    return {name: Path(shutil.copytree(path, tmp_path / name)) for name, path in bundles.items()}


def changed_weight(bundle: Path, name: str) -> None:
    """Turns one weight of the bundle's model over and makes the manifest agree."""
    model = onnx.load(bundle / "model.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(-3), name))
    onnx.save(model, bundle / "model.onnx")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = sha256_of(bundle / "model.onnx")
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_honest_export_passes_and_the_proof_is_put_into_the_bundle(
    precision: str, copied: dict[str, Path], checkpoint: Path, micrographs: Path
) -> None:
    parity = verify(copied[precision], checkpoint, [micrographs])
    assert parity.passed
    assert parity.images == 12
    assert parity.flips == 0
    assert parity.max_abs_error > 0 or precision == "fp32"
    written = json.loads((copied[precision] / "parity.json").read_text())
    assert written["passed"] is True
    assert written["bar"]["max_abs_error"] == parity.bar.max_abs_error
    manifest = Manifest.from_json((copied[precision] / "manifest.json").read_bytes())
    assert manifest.files["parity.json"] == sha256_of(copied[precision] / "parity.json")


def test_float16_has_a_wider_bar_than_float32(
    bundles: dict[str, Path], checkpoint: Path, micrographs: Path
) -> None:
    bars = {
        precision: verify(bundle / "model.onnx", checkpoint, [micrographs], limit=4).bar.max_abs_error
        for precision, bundle in bundles.items()
    }
    assert bars["fp16"] > 20 * bars["fp32"]
    assert not (bundles["fp32"] / "parity.json").exists()


@pytest.mark.parametrize(
    ("precision", "weight", "module"),
    [
        pytest.param(
            "fp32", "layers.0.blocks.0.Conv_branch.weights.expand_weight", "Conv_branch", id="local"
        ),
        pytest.param("fp32", "layers.2.blocks.0.pvm_layer.scan.A", "layers.2.blocks.0.pvm_layer", id="scan"),
        pytest.param("fp16", "layers.2.blocks.0.pvm_layer.scan.D", "layers.2.blocks.0.pvm_layer", id="half"),
        pytest.param("fp32", "head.weight", "head", id="head"),
    ],
)
def test_the_first_module_that_departs_is_named(
    precision: str, weight: str, module: str, copied: dict[str, Path], checkpoint: Path, micrographs: Path
) -> None:
    changed_weight(copied[precision], weight)
    parity = verify(copied[precision], checkpoint, [micrographs], limit=4)
    assert not parity.passed
    assert parity.departure is not None
    assert parity.departure.module.endswith(module)
    assert parity.departure.error > 2 * parity.departure.expected_error
    assert json.loads((copied[precision] / "parity.json").read_text())["passed"] is False


def test_a_bar_given_by_the_user_is_taken(
    bundles: dict[str, Path], checkpoint: Path, micrographs: Path
) -> None:
    model = bundles["fp16"] / "model.onnx"
    assert not verify(model, checkpoint, [micrographs], max_error=1e-9, limit=3).passed
    assert verify(model, checkpoint, [micrographs], max_error=1.0, limit=3).passed


def test_another_checkpoint_is_refused(
    make_network: Callable[..., MicroscopicMamba], bundles: dict[str, Path], micrographs: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    save_checkpoint(
        other, make_network(seed=1), labels=["a", "b", "c"], image_size=32, mean=(0, 0, 0), std=(1, 1, 1)
    )
    with pytest.raises(ArtefactError, match="made from another checkpoint"):
        verify(bundles["fp32"], other, [micrographs])


def test_missing_images_and_checkpoints_are_named(
    bundles: dict[str, Path], checkpoint: Path, micrographs: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        verify(bundles["fp32"], checkpoint, [tmp_path / "empty"])
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        verify(bundles["fp32"], tmp_path / "none.safetensors", [micrographs])


def test_flips_are_counted_by_the_label_before() -> None:
    expected = np.array([[2, 1, 0], [0, 2, 1], [0, 2, 1.95]], np.float32)
    found = np.array([[2, 1, 0], [0, 2, 1], [0, 1.9, 1.95]], np.float32)
    parity = compare(
        expected,
        found,
        images=["a", "b", "c"],
        labels=["x", "y", "z"],
        bar=BAR,
        precision="fp16",
        executed_by="",
    )
    assert (parity.flips, parity.flips_by_class, parity.flipped_images) == (1, {"y": 1}, ("c",))
    assert parity.worst_image == "c"
    assert parity.max_abs_error == pytest.approx(0.1, abs=1e-6)
    assert not parity.passed


def test_logits_that_are_not_finite_never_pass() -> None:
    expected = np.ones((2, 3), np.float32)
    found = np.array([[1, 1, 1], [1, np.nan, 1]], np.float32)
    parity = compare(
        expected,
        found,
        images=["a", "b"],
        labels=["x", "y", "z"],
        bar=Bar(1e9, 10, "wide open"),
        precision="fp32",
        executed_by="",
    )
    assert not parity.passed
    assert parity.flipped_images == ("b",)
    json.loads(parity.to_json())


def test_the_networks_own_error_grows_with_less_precision(network: MicroscopicMamba) -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    exact_enough = OwnError.of(network, images, "fp32")
    half = OwnError.of(network, images, "fp16")
    assert 0 < exact_enough.logits < half.logits / 50
    assert half.float32_logits == exact_enough.logits
    assert list(half.modules)[-1] == "head"
    assert all(torch.isfinite(torch.tensor(error)) for error in half.modules.values())
