"""The networks that timm has, where timm is missing or does not do: one line, and all else works."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner, Result

from msmamba.cli import mmdeploy
from msmamba.errors import BackendError
from msmamba.model import build_network
from msmamba.model.evaluation import listing
from msmamba.model.networks.checkpoint import load_checkpoint
from msmamba.model.networks.registry import NETWORKS

MISSING = "timm is not installed here (import of timm halted; None in sys.modules): pip install"


@pytest.fixture
def no_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(mmdeploy, [str(argument) for argument in arguments])


@pytest.mark.usefixtures("no_timm")
def test_commands_say_in_a_line_what_is_missing(cells: Path, tmp_path: Path) -> None:
    info = command("info", "repvit_m1_0")
    assert info.exit_code == 1
    assert info.stderr.startswith(f"error: network 'repvit_m1_0' is timm's, and {MISSING}")
    assert info.stderr.count("\n") == 1
    train = command("train", cells, "-o", tmp_path / "run", "--network", "fastvit_sa24")
    assert train.exit_code == 1
    assert train.stderr.startswith(f"error: network 'fastvit_sa24' cannot be trained here: {MISSING}")
    assert train.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_timm")
def test_the_others_are_listed_with_their_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting takes a moment for each, so of three."""
    few = ("pvt_small", "convnext_tiny", "vit_tiny_patch16_224")
    monkeypatch.setattr(listing, "NETWORKS", {name: NETWORKS[name] for name in few})
    result = command("networks")
    assert result.exit_code == 0
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines()[2:]}
    assert lines["pvt_small"][2:] == ["24.49", "24.49", "3.70", "3.71", "3.82"]
    assert lines["convnext_tiny"][1:] == ["ConvNext-tiny", "–", "28.69", "–", "4.49", "–"]
    assert result.stderr.startswith(f"note: 2 of the networks cannot be built: {MISSING}")
    assert result.stderr.count("\n") == 1


@pytest.mark.usefixtures("no_timm")
def test_a_checkpoint_is_known_without_timm(tmp_path: Path) -> None:
    dims, depths = (96, 192, 384, 768), (3, 3, 9, 3)
    state = {
        f"stages.{stage}.blocks.{block}.gamma": torch.zeros(dim)
        for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True))
        for block in range(depth)
    }
    torch.save({**state, "head.fc.weight": torch.zeros(4, 768)}, tmp_path / "convnext.pth")
    with pytest.raises(BackendError, match="'convnext_tiny' is timm's, and timm is not installed"):
        load_checkpoint(tmp_path / "convnext.pth")


def test_a_timm_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("timm")
    old.__dict__["__version__"] = "0.9.16.dev0"
    monkeypatch.setitem(sys.modules, "timm", old)
    with pytest.raises(BackendError, match=r"timm 0.9.16.dev0 is installed here, and 1.0.29 or later is"):
        build_network("vit_tiny_patch16_224", num_classes=2)


def test_a_torchvision_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(BackendError, match=re.escape(f"beside PyTorch {torch.__version__} (operator t")):
        build_network("vit_tiny_patch16_224", num_classes=2)
