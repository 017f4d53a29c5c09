"""Checkpoints: what was saved comes back, the authors' files load, and bad files are named."""

from __future__ import annotations

import io
import json
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from msmamba.data.seen import Seen
from msmamba.errors import CheckpointError, InputError, Note
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


def test_it_says_which_images_training_saw(
    network: MicroscopicMamba, micrographs: Path, tmp_path: Path
) -> None:
    images = sorted(micrographs.glob("*.png"))
    seen = Seen.of(images[:5], images[5:7])
    said = {"labels": ["a", "b", "c"], "image_size": 32, "mean": [0.5] * 3, "std": [0.2] * 3}
    save_checkpoint(tmp_path / "seen.safetensors", network, **said, seen=seen)
    loaded = load_checkpoint(tmp_path / "seen.safetensors").seen
    assert loaded is not None
    assert loaded.to_dict() == seen.to_dict()
    save_checkpoint(tmp_path / "none.safetensors", network, **said)
    assert load_checkpoint(tmp_path / "none.safetensors").seen is None


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
    with pytest.raises(CheckpointError, match="'resize' is 'cubic', expected"):
        load_checkpoint(tmp_path / "x.safetensors")


def test_labels_must_fit_the_classes(network: MicroscopicMamba, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 labels for 3 classes"):
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
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_a_folder_is_told_from_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder, not a checkpoint"):
        load_checkpoint(tmp_path)


def test_the_folder_of_a_run_is_told_from_its_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes(checkpoint.read_bytes())
    with pytest.raises(CheckpointError, match=r"folder of a run: its network is .*best\.safetensors$"):
        load_checkpoint(tmp_path)


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def averaged(state: State) -> State:
    return {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}


WRAPPED = {
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled, parallel": lambda state: prefixed(state, "module._orig_mod."),
    "a module's net": lambda state: prefixed(state, "net."),
    "lightning": lambda state: {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": prefixed(state, "model."),
        "hyper_parameters": {"lr": 1e-3},
    },
    "lightning, compiled, with a loss": lambda state: {
        "state_dict": {**prefixed(state, "model._orig_mod."), "criterion.weight": torch.ones(3)}
    },
    "swa": lambda state: {"n_averaged": torch.tensor(7), **prefixed(state, "module.")},
    "dictionaries in dictionaries": lambda state: {"model": {"state_dict": state}, "epoch": 3},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
@pytest.mark.filterwarnings("ignore::msmamba.errors.Note")
def test_what_frameworks_wrap_around_a_state_dict_is_taken_off(
    network: MicroscopicMamba, tmp_path: Path, wrap: Callable[[State], Any]
) -> None:
    torch.save(wrap(network.state_dict()), tmp_path / "best.ckpt")
    assert_same_state(load_checkpoint(tmp_path / "best.ckpt").network, network)


def test_what_stands_beside_the_network_is_told(network: MicroscopicMamba, tmp_path: Path) -> None:
    state = {**prefixed(network.state_dict(), "model."), "criterion.weight": torch.ones(3)}
    torch.save(state, tmp_path / "best.ckpt")
    with pytest.warns(Note, match=r"1 tensors beside the network are left out: criterion\.weight"):
        assert len(load_checkpoint(tmp_path / "best.ckpt").notes) == 1


BOTH = {
    "timm": lambda state, ema: {"state_dict": state, "state_dict_ema": ema, "epoch": 1},
    "model and ema": lambda state, ema: {"model": state, "ema": {"module": ema}},
    "one module": lambda state, ema: {
        "state_dict": {**prefixed(state, "model."), **prefixed(ema, "ema_model.module.")}
    },
    "lightning's averaging": lambda state, ema: {"state_dict": ema, "current_model_state": state},
}


@pytest.mark.parametrize("wrap", BOTH.values(), ids=BOTH.keys())
def test_weights_and_their_average_are_told_apart(
    network: MicroscopicMamba, tmp_path: Path, wrap: Callable[[State, State], Any]
) -> None:
    path, state = tmp_path / "best.pth", network.state_dict()
    torch.save(wrap(state, averaged(state)), path)
    with pytest.warns(Note, match="weights and their moving average, and the weights are taken: choose with"):
        assert_same_state(load_checkpoint(path).network, network)
    assert_same_state(load_checkpoint(path, "model").network, network)
    bias = load_checkpoint(path, weights_of="ema").network.state_dict()["head.bias"]
    assert torch.equal(bias, state["head.bias"] + 1)


def test_an_average_that_is_not_there_is_refused(network: MicroscopicMamba, tmp_path: Path) -> None:
    path = tmp_path / "best.pth"
    torch.save(network.state_dict(), path)
    with pytest.raises(CheckpointError, match="weights and no moving average: leave --weights-of ema out"):
        load_checkpoint(path, "ema")
    torch.save({"state_dict_ema": network.state_dict()}, path)
    with pytest.raises(CheckpointError, match="a moving average alone"):
        load_checkpoint(path, "model")
    assert_same_state(load_checkpoint(path).network, network)
    with pytest.raises(CheckpointError, match="no weights of 'best': choose one of model, ema"):
        load_checkpoint(path, "best")


def nested(value: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.to_sparse(), "head.weight is sparse"),
        (lambda value: torch.zeros(1).expand(30_000_000, 32), "numbers made of 4 bytes"),
        (lambda value: value.to(torch.complex64), "head.weight is complex"),
        (nested, "head.weight is nested"),
        (lambda value: value.to("meta"), "head.weight is on meta"),
        (lambda value: (100 * value).to(torch.int8), "head.weight is torch.int8, expected torch.float32"),
        (lambda value: 5, "head.weight is a int"),
        (lambda value: None, "head.weight is a NoneType"),
    ],
    ids=["sparse", "expanded", "complex", "nested", "meta", "int8", "number", "none"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights_are_named(
    network: MicroscopicMamba, tmp_path: Path, change: Callable[[Tensor], Any], message: str
) -> None:
    state: dict[str, Any] = dict(network.state_dict())
    torch.save({**state, "head.weight": change(state["head.weight"])}, tmp_path / "state.pth")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(tmp_path / "state.pth")
    assert len(str(caught.value).splitlines()) == 1


def rezipped(content: bytes) -> bytes:
    """A PyTorch file whose content is compressed."""
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file,
    ):
        for entry in source.infolist():
            file.writestr(entry.filename, source.read(entry))
    return packed.getvalue()


def legacy_bomb() -> bytes:
    """A file of PyTorch's first format that asks for a storage of 400 GB."""
    content = io.BytesIO()
    torch.save({"a": torch.zeros(1_000_003)}, content, _use_new_zipfile_serialization=False)
    number, larger = (pickle.dumps(count, 2)[2:-1] for count in (1_000_003, 100_000_000_000))
    assert content.getvalue().count(number) >= 1
    return content.getvalue().replace(number, larger)[:5000]


def legacy_bomb_that_ends_as_a_zip() -> bytes:
    content = io.BytesIO(legacy_bomb())
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr("nothing", "")
    return content.getvalue()


def zip_bomb() -> bytes:
    content = io.BytesIO()
    torch.save({"a": torch.zeros(5_000_000)}, content)
    return rezipped(content.getvalue())


@pytest.mark.parametrize("make", [legacy_bomb, legacy_bomb_that_ends_as_a_zip, zip_bomb])
def test_files_that_are_larger_inside_are_refused(tmp_path: Path, make: Callable[[], bytes]) -> None:
    (tmp_path / "small.pth").write_bytes(make())
    with pytest.raises(CheckpointError, match=r"would take .* bytes or more, and the file has"):
        load_checkpoint(tmp_path / "small.pth")


@pytest.mark.parametrize(
    "says",
    [b"\x80\2Nr" + (1 << 21).to_bytes(4, "little"), b"\x80\5\x96" + (1 << 25).to_bytes(8, "little")],
    ids=["things to remember", "bytes"],
)
def test_what_a_pickle_says_is_not_made_room_for(tmp_path: Path, says: bytes) -> None:
    (tmp_path / "small.pth").write_bytes(says + b".")
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="neither safetensors nor a PyTorch state dict"):
            load_checkpoint(tmp_path / "small.pth")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["zip", "first format"])
def test_tuples_in_tuples_do_not_end_the_process(tmp_path: Path, kind: str) -> None:
    deep = b"\x80\2}N" + b"\x85" * 1000 + b"Ns."  # of a million the hash, as a key, needs too much stack
    path = tmp_path / "deep.pth"
    path.write_bytes(deep)
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", deep)
            file.writestr("archive/byteorder", "little")
            file.writestr("archive/version", "3\n")
    with pytest.raises(CheckpointError, match="neither safetensors nor a PyTorch state dict") as raised:
        load_checkpoint(path)
    assert str(raised.value.__cause__) == "tuples in tuples"


def test_a_file_of_the_first_format_loads(network: MicroscopicMamba, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same_state(load_checkpoint(tmp_path / "old.pth").network, network)


@pytest.mark.parametrize("name", ["best.safetensors", "best.pth"])
def test_a_pointer_of_git_lfs_is_called_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(CheckpointError, match=r"is a Git LFS pointer.*git lfs pull"):
        load_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["text.safetensors", "text.pth"])
def test_text_is_refused_under_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a page that a server sent in place of the file\n" * 9)
    with pytest.raises(CheckpointError, match="neither safetensors nor a PyTorch state dict"):
        load_checkpoint(tmp_path / name)


def test_every_half_of_a_file_is_refused(network: MicroscopicMamba, tmp_path: Path) -> None:
    content = io.BytesIO()
    torch.save({"head.weight": torch.zeros(9, 9)}, content)
    for length in range(0, len(content.getvalue()), 97):
        (tmp_path / "cut.pth").write_bytes(content.getvalue()[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / "cut.pth")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format_version", "2", "'format_version' is '2'"),
        ("format_version", 2, "reads up to 1: upgrade msmamba"),
        ("architecture", [], r"'architecture' is \[\]"),
        ("architecture", {"drop_path_rate": "x"}, "drop_path_rate is 'x'"),
        ("architecture", {"depths": [1, 1, 1, 9]}, "of two architectures, which differ in depths"),
        ("architecture", {"depths": "x"}, "depths are 'x'"),
        ("architecture", {"colour": 1}, "unexpected keyword argument 'colour'"),
        ("labels", "abc", "'labels' is 'abc'"),
        ("labels", ["a", "a", "b"], "distinct names"),
        ("labels", ["a", "b"], "2 labels, but its tensors have 3 classes"),
        ("image_size", -5, "'image_size' is -5"),
        ("image_size", 10**9, "1 to 8192 pixels"),
        ("mean", [float("nan")] * 3, "'mean' is"),
        ("seen", {"train": "AAAA", "val": ""}, "'seen' is"),
        ("std", [0.0, 1.0, 1.0], "'std' is"),
        ("versions", 5, "'versions' is 5"),
    ],
)
def test_metadata_of_other_kinds_is_named(
    checkpoint: Path, tmp_path: Path, field: str, value: Any, message: str
) -> None:
    content = checkpoint.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    description = json.loads(header["__metadata__"]["msmamba"])
    header["__metadata__"]["msmamba"] = json.dumps({**description, field: value})
    written = json.dumps(header).encode()
    path = tmp_path / "changed.safetensors"
    path.write_bytes(len(written).to_bytes(8, "little") + written + content[8 + length :])
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("labels", ["a", "a", "b"]), ("image_size", 0), ("mean", [0.5]), ("std", [float("inf")] * 3)],
)
def test_nothing_is_saved_that_could_not_be_loaded(
    network: MicroscopicMamba, tmp_path: Path, field: str, value: Any
) -> None:
    fields: dict[str, Any] = {"labels": list("abc"), "image_size": 32, "mean": [0.5] * 3, "std": [0.2] * 3}
    with pytest.raises(InputError, match=f"cannot be saved as a checkpoint: '{field}' is"):
        save_checkpoint(tmp_path / "x.safetensors", network, **{**fields, field: value})
    assert list(tmp_path.iterdir()) == []
