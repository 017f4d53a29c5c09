"""Pretrained weights: what of a state dict goes into a network, what does not, and what is never run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import Tensor

from msmamba.cli import mmdeploy
from msmamba.errors import CheckpointError, TrainingError
from msmamba.model import MicroscopicMamba, build_network
from msmamba.model.networks.family import Network
from msmamba.model.networks.pretrained import Pretrained
from msmamba.model.training.loop import Hardware, Listener, Plan, train_folder
from msmamba.model.training.run import RunFolder

FIELDS: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128)}
HEAD = {"head.weight", "head.bias"}


def small(classes: int = 3, seed: int = 0, **changes: Any) -> Network:
    torch.manual_seed(seed)
    return build_network("medmamba_t", num_classes=classes, **{**FIELDS, **changes})


def published(classes: int = 1000) -> dict[str, Tensor]:
    return dict(small(classes, seed=5).state_dict())


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda state: state,
    "model": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1, name="run")},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "state_dict_ema": lambda state: {"state_dict_ema": state},
    "module": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "both": lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
    "half": lambda state: {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()
    },
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_all_but_the_head_is_taken(wrapper: str, tmp_path: Path) -> None:
    torch.save(WRAPPED[wrapper](published()), tmp_path / "published.pth")
    filled, before, wanted = small(), small().state_dict(), published()
    (note,) = Pretrained.read(tmp_path / "published.pth").fill(filled)
    body = len(before) - len(HEAD)
    assert note.endswith(f"{body} of {body} tensors are taken; the head is trained anew")
    bar = 1e-3 * (wrapper == "half")
    for name, tensor in filled.state_dict().items():
        expected = before[name] if name in HEAD else wanted[name]
        torch.testing.assert_close(tensor, expected, rtol=bar, atol=bar)


def test_a_head_of_as_many_classes_is_trained_anew_too(tmp_path: Path) -> None:
    save_file(published(3), tmp_path / "published.safetensors")
    filled = small()
    Pretrained.read(tmp_path / "published.safetensors").fill(filled)
    assert torch.equal(filled.head.weight, small().head.weight)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = published()
    del state["patch_embed.norm.bias"]
    state["layers.0.downsample.norm.bias"] = torch.zeros(7)
    state["layers.9.extra"] = torch.zeros(2)
    torch.save(state, tmp_path / "published.pth")
    filled = small()
    taken, random, left_out = Pretrained.read(tmp_path / "published.pth").fill(filled)
    assert "the head is trained anew" in taken
    assert random == (
        "2 tensors begin at random, as the file does not fit: patch_embed.norm.bias is missing, "
        "layers.0.downsample.norm.bias is (7,), expected (64,)"
    )
    assert left_out == "1 tensors of the file have no place in medmamba: layers.9.extra"
    assert torch.equal(filled.patch_embed.norm.bias, small().patch_embed.norm.bias)


def test_weights_of_another_network_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="has weights of microscopic_mamba, and the network is medmamba:"
    ):
        Pretrained.read(checkpoint).fill(small())
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "unknown.pth")
    with pytest.raises(CheckpointError, match=r"has 0 of the \d+ tensors that medmamba has beside its head"):
        Pretrained.read(tmp_path / "unknown.pth").fill(small())


def test_weights_that_diverged_are_refused(tmp_path: Path) -> None:
    state = published()
    state["patch_embed.norm.bias"][0] = float("nan")
    torch.save(state, tmp_path / "diverged.pth")
    with pytest.raises(CheckpointError, match=r"1 tensors hold NaN or infinity \(patch_embed.norm.bias\)"):
        Pretrained.read(tmp_path / "diverged.pth").fill(small())


def test_shared_weights_must_be_equal_where_both_are_there(tmp_path: Path) -> None:
    fields = {"depths": (1, 1, 1, 1), "dims": (16, 16, 24, 32), "paths": (1, 1, 1, 1)}
    mpvit = build_network("mpvit_tiny", num_classes=2, **fields)
    state = dict(mpvit.state_dict())
    alias = "mhca_stages.0.mhca_blks.0.MHCA_layers.0.cpe.proj.bias"
    torch.save({**state, alias: state[alias] + 1}, tmp_path / "differing.pth")
    with pytest.raises(CheckpointError, match=r"1 tensors should be equal"):
        Pretrained.read(tmp_path / "differing.pth").fill(mpvit)
    del state[alias]
    torch.save(state, tmp_path / "once.pth")
    assert len(Pretrained.read(tmp_path / "once.pth").fill(mpvit)) == 2


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("beside", [True, False], ids=["beside", "in-the-namespace"])
def test_nothing_pickled_is_executed(beside: bool, tmp_path: Path) -> None:
    trap = Malicious(tmp_path / "executed")
    content = {"model": published(), "args": trap if beside else argparse.Namespace(hidden=trap)}
    torch.save(content, tmp_path / "published.pth")
    with pytest.raises(CheckpointError, match="loads without running code"):
        Pretrained.read(tmp_path / "published.pth")
    assert not (tmp_path / "executed").exists()


class Stop(Exception):
    """Ends a run before its first epoch does."""


class StopAtOnce(Listener):
    def on_start(self, plan: Plan) -> None:
        self.notes = plan.notes

    def on_step(self, epoch: int, step: int, loss: float) -> None:
        raise Stop


RUN: dict[str, Any] = {
    "network": "medmamba_t",
    "switches": FIELDS,
    "figures": {"epochs": 1, "warmup_epochs": 0, "image_size": 32, "batch_size": 8},
    "hardware": Hardware(threads=1),
}


@pytest.mark.usefixtures("threads_as_before")
def test_a_run_begins_with_them_and_so_does_one_that_is_resumed(cells: Path, tmp_path: Path) -> None:
    """Two runs of an epoch: stopped before its end and resumed, or not stopped."""
    weights = tmp_path / "published.pth"
    torch.save(published(), weights)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    listener = StopAtOnce()
    expected = train_folder(cells, whole, weights=weights, **RUN)
    with pytest.raises(Stop):
        train_folder(cells, stopped, weights=weights, listeners=[listener], **RUN)
    assert any("tensors are taken" in note for note in listener.notes)
    config = RunFolder(stopped).read_config()
    assert config is not None
    assert config["weights"]["file"] == str(weights)
    resumed = train_folder(cells, stopped, resume=True, **RUN)
    assert resumed.history[0].train_loss == expected.history[0].train_loss

    other = tmp_path / "other.pth"
    torch.save({name: tensor + 1 for name, tensor in published().items()}, other)
    begun_with = r"was begun with .*published.pth \(model\), not with .*other.pth"
    with pytest.raises(TrainingError, match=begun_with):
        train_folder(cells, whole, resume=True, weights=other, **RUN)
    weights.unlink()
    assert train_folder(cells, whole, resume=True, **RUN).history  # it is finished, and needs them no more


@pytest.mark.usefixtures("threads_as_before")
def test_weights_that_changed_do_not_begin_a_run_again(cells: Path, tmp_path: Path) -> None:
    weights, run = tmp_path / "published.pth", tmp_path / "run"
    torch.save(published(), weights)
    with pytest.raises(Stop):
        train_folder(cells, run, weights=weights, listeners=[StopAtOnce()], **RUN)
    torch.save({name: tensor + 1 for name, tensor in published().items()}, weights)
    with pytest.raises(CheckpointError, match=r"is no longer the file that .*run was begun with"):
        train_folder(cells, run, resume=True, **RUN)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(mmdeploy, [str(argument) for argument in arguments])


def test_the_command_says_in_a_line_what_is_wrong(checkpoint: Path, cells: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    missing = command("train", cells, "-o", run, "--weights", tmp_path / "missing.pth")
    assert (missing.exit_code, missing.stderr) == (
        1,
        f"error: {tmp_path}/missing.pth: cannot read the checkpoint: no such file or directory\n",
    )
    unfit = command("train", cells, "-o", run, "--network", "pvt_small", "--weights", checkpoint)
    assert unfit.exit_code == 1
    assert unfit.stderr.startswith(
        f"error: {checkpoint}: has weights of microscopic_mamba, and the network is pvt"
    )
    assert unfit.stderr.count("\n") == 1
    assert not run.exists()  # the next try needs no other folder
    alone = command("train", cells, "-o", run, "--weights-of", "ema")
    assert alone.exit_code == 2


def test_a_state_dict_may_be_named(tmp_path: Path, cells: Path) -> None:
    described = ["--labels", "round,square", "--size", "32", "--threads", "1"]
    described += ["--mean", *["0.5"] * 3, "--std", *["0.2"] * 3]
    torch.save(small(2).state_dict(), tmp_path / "state.pth")
    for name, message in {
        "vmamba_t": "it is of medmamba, not of vmamba_t",
        "medmamba_s": "it is of medmamba (depths (1, 1, 1, 1), dims (16, 32, 64, 128)), not of medmamba_s",
        "nothing": "there is no network 'nothing': 'mmdeploy networks' lists all names",
    }.items():
        result = command("eval", tmp_path / "state.pth", cells, "--network", name, *described)
        assert result.exit_code == 1
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    named = command("eval", tmp_path / "state.pth", cells, "--network", "medmamba", *described)
    assert named.exit_code == 0, named.stderr
    unfit = command("eval", tmp_path / "state.pth", cells, *described, "--size", "40")
    assert unfit.exit_code == 1
    assert "images are 40x40; the side must be a multiple of 32: resize them" in unfit.stderr


def test_a_checkpoint_of_ours_serves_too(checkpoint: Path, network: MicroscopicMamba) -> None:
    fresh = MicroscopicMamba(network.arch)
    assert len(Pretrained.read(checkpoint).fill(fresh)) == 1
    name = "patch_embed.0.c.weight"
    assert torch.equal(fresh.state_dict()[name], network.state_dict()[name])
