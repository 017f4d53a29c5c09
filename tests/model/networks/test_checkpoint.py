"""Checkpoints: what was saved comes back, the authors' files load, and bad files are named."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from msmamba.errors import CheckpointError
from msmamba.model import MicroscopicMamba
from msmamba.model.networks.checkpoint import METADATA_KEY, Preprocessing, load_checkpoint, save_checkpoint
from msmamba.resize import PILLOW_RULE, RULE

State = dict[str, Tensor]
MakeNetwork = Callable[..., MicroscopicMamba]


def assert_same_state(left: MicroscopicMamba, right: MicroscopicMamba) -> None:
    for name, tensor in left.state_dict().items():
        assert torch.equal(tensor, right.state_dict()[name]), name


def test_a_saved_checkpoint_comes_back_whole(network: MicroscopicMamba, checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    assert_same_state(loaded.network, network)
    assert loaded.network.arch == network.arch
    assert not loaded.network.training
    assert loaded.labels == ("basophil", "eosinophil", "lymphocyte")
    assert loaded.preprocessing == Preprocessing(32, (0.6, 0.5, 0.7), (0.2, 0.25, 0.15), RULE)
    assert len(loaded.sha256) == 64


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"mifa": False}, id="without-mifa"),
        pytest.param({"parallel": False}, id="not-parallel"),
        pytest.param({"psffn": False}, id="without-psffn"),
        pytest.param({"d_state": 8, "depths": (1, 2, 1, 3)}, id="other-sizes"),
    ],
)
def test_the_architecture_is_read_off_the_tensors(
    make_network: MakeNetwork, tmp_path: Path, changes: dict[str, Any]
) -> None:
    network = make_network(**changes)
    torch.save(network.state_dict(), tmp_path / "state.pth")
    assert MicroscopicMamba.from_checkpoint(tmp_path / "state.pth").arch == network.arch


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda state: state, id="plain"),
        pytest.param(lambda state: {"model": state, "epoch": 3}, id="model"),
        pytest.param(lambda state: {"state_dict": state}, id="state_dict"),
        pytest.param(lambda state: {f"module.{k}": v for k, v in state.items()}, id="data-parallel"),
        pytest.param(
            lambda state: {"model": {f"module.{k}": v for k, v in state.items()}}, id="model-data-parallel"
        ),
        pytest.param(lambda state: {k: v.half() for k, v in state.items()}, id="half"),
    ],
)
def test_the_authors_state_dicts_load(
    network: MicroscopicMamba, tmp_path: Path, wrap: Callable[[State], Any]
) -> None:
    torch.save(wrap(network.state_dict()), tmp_path / "best.pth")
    loaded = load_checkpoint(tmp_path / "best.pth")
    assert loaded.labels is None
    assert loaded.preprocessing is None
    torch.testing.assert_close(loaded.network.head.weight, network.head.weight, rtol=1e-3, atol=1e-4)
    assert loaded.network.head.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("said", "read"), [({}, PILLOW_RULE), ({"resize": RULE}, RULE)], ids=["before", "now"]
)
def test_the_resize_rule_of_a_checkpoint(
    said: dict[str, str], read: str, network: MicroscopicMamba, tmp_path: Path
) -> None:
    described = {"labels": ["a", "b", "c"], "image_size": 32, "mean": [0.5] * 3, "std": [0.1] * 3, **said}
    (tmp_path / "x.safetensors").write_bytes(
        save(network.state_dict(), metadata={METADATA_KEY: json.dumps(described)})
    )
    preprocessing = load_checkpoint(tmp_path / "x.safetensors").preprocessing
    assert preprocessing is not None
    assert preprocessing.resize == read


def test_a_resize_rule_of_later_versions_is_refused(network: MicroscopicMamba, tmp_path: Path) -> None:
    described = {"labels": ["a"] * 3, "image_size": 32, "mean": [0] * 3, "std": [1] * 3, "resize": "cubic"}
    (tmp_path / "x.safetensors").write_bytes(
        save(network.state_dict(), metadata={METADATA_KEY: json.dumps(described)})
    )
    with pytest.raises(CheckpointError, match="the resize rule is 'cubic', expected"):
        load_checkpoint(tmp_path / "x.safetensors")


def test_labels_must_fit_the_classes(network: MicroscopicMamba, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 labels for 3 classes"):
        save_checkpoint(
            tmp_path / "x.safetensors", network, labels=["a", "b"], image_size=32, mean=[0] * 3, std=[1] * 3
        )
    assert list(tmp_path.iterdir()) == []


class Payload:
    """Runs code when it is unpickled by an unsafe loader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    torch.save({"model": Payload(mark)}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="without running code"):
        load_checkpoint(tmp_path / "evil.pth")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))  # the payload does work where it is let in
    assert mark.exists()


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def with_value(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: {key: change(value) if key == name else value for key, value in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(without("head.weight"), "no tensor 'head.weight'", id="missing-head"),
        pytest.param(
            without("layers.2.blocks.0.pvm_layer.mamba.Ds"),
            r"layers.2.blocks.0.pvm_layer.mamba.Ds is missing",
            id="missing-tensor",
        ),
        pytest.param(
            lambda state: {**state, "fc.weight": torch.zeros(2)}, "fc.weight is unknown", id="extra-tensor"
        ),
        pytest.param(
            with_value("layers.1.downsample.reduction.weight", lambda value: value[:-1]),
            r"layers.1.downsample.reduction.weight is \(127, 256\), expected \(128, 256\)",
            id="other-shape",
        ),
        pytest.param(
            with_value("head.bias", lambda value: value * float("nan")), "head.bias.*diverged", id="nan"
        ),
        pytest.param(lambda state: {"conv1.weight": torch.zeros(3)}, "not a Microscopic-Mamba", id="resnet"),
        pytest.param(lambda state: [1, 2, 3], "holds list", id="not-a-dict"),
    ],
)
def test_state_dicts_that_do_not_fit_are_named(
    network: MicroscopicMamba, tmp_path: Path, change: Callable[[State], Any], message: str
) -> None:
    torch.save(change(network.state_dict()), tmp_path / "state.pth")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(tmp_path / "state.pth")
    assert "state.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not a checkpoint at all", id="text"),
        pytest.param(b"\xff" * 4096, id="noise"),
        pytest.param(b"\x10\0\0\0\0\0\0\0{not json", id="broken-safetensors"),
    ],
)
def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "best.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"best\.pth"):
        load_checkpoint(path)


def test_a_truncated_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_checkpoint(path)


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_a_folder_is_told_from_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder, not a checkpoint"):
        load_checkpoint(tmp_path)
