"""A small classifier as an ONNX file and as a bundle, to be run by the real ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from msmamba.files import sha256_of
from msmamba.runtime.manifest import Manifest

SIZE, LABELS = 9, ("blue", "green", "red")


def classifier(
    *,
    size: int | str = SIZE,
    batch: int | str = "batch",
    channels: int = 3,
    metadata: dict[str, str] | None = None,
    features: bool = False,
) -> onnx.ModelProto:
    """Logits are the channels' means as B, G, R: a class for each colour; features are those as R, G, B."""
    means = "features" if features else "means"
    weight = np.eye(channels, dtype=np.float32)[:, ::-1][:, :3]
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], [means], keepdims=0),
        helper.make_node("MatMul", [means, "weight"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, channels, size, size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])
    constants = [
        numpy_helper.from_array(np.array([2, 3]), "axes"),
        numpy_helper.from_array(np.ascontiguousarray(weight), "weight"),
    ]
    outputs = [logits]
    if features:
        outputs.append(helper.make_tensor_value_info(means, TensorProto.FLOAT, [batch, channels]))
    graph = helper.make_graph(nodes, "colours", [image], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model)
    return model


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "labels": LABELS,
        "image_size": SIZE,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "architecture": {},
        "precision_asked": "fp32",
    }
    return Manifest(**{**values, **changes})


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """An ONNX file that carries its manifest, under a name that does not tell."""
    path = tmp_path / "colours"
    path.write_bytes(classifier(metadata=manifest().to_metadata()).SerializeToString())
    return path


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Makes a bundle, with extra files by name; further arguments change its manifest."""

    def make(extra: dict[str, bytes] | None = None, **changes: Any) -> Path:
        folder = tmp_path / "colours.bundle"
        folder.mkdir()
        for name, content in {"model.onnx": classifier().SerializeToString(), **(extra or {})}.items():
            (folder / name).write_bytes(content)
        files = {path.name: sha256_of(path) for path in folder.iterdir()}
        (folder / "manifest.json").write_text(manifest(**{"files": files, **changes}).to_json())
        return folder

    return make


@pytest.fixture
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle()


@pytest.fixture
def colours() -> list[np.ndarray]:
    """A red, a green and a blue image, of three sizes."""
    images = [np.full(shape, 40, np.uint8) for shape in ((9, 9, 3), (20, 30, 3), (5, 4, 3))]
    for channel, image in enumerate(images):
        image[..., channel] = 220
    return images
