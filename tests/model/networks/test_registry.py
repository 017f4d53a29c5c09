"""A network that is added in one place is trained, exported, verified, counted and explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner
from toy_network import TOYS, Toy, ToyArchitecture, ToyFamily

from msmamba.cli import mmdeploy
from msmamba.data.folders import read_training_folder
from msmamba.errors import CheckpointError, InputError
from msmamba.export.proof.verify import verify
from msmamba.model import MicroscopicMamba, build_network
from msmamba.model.evaluation.explanation import Explainer
from msmamba.model.evaluation.listing import listed_networks
from msmamba.model.networks import registry
from msmamba.model.networks.checkpoint import load_checkpoint
from msmamba.model.networks.complexity import complexity
from msmamba.model.networks.family import Family
from msmamba.model.training.loop import Hardware, train, train_folder
from msmamba.model.training.recipe import Recipe
from msmamba.model.training.run import RunFolder
from msmamba.runtime import open_session


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TOYS:
        monkeypatch.setitem(registry.NETWORKS, name, ToyFamily())


@pytest.mark.usefixtures("threads_as_before")
def test_a_toy_network_goes_the_whole_way(cells: Path, tmp_path: Path) -> None:
    figures = {"epochs": 1, "warmup_epochs": 0, "image_size": 32, "batch_size": 4}
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    train_folder(cells, run, network="toy_thin", figures=figures, hardware=Hardware(threads=1))

    config = RunFolder(run).read_config()
    assert config is not None
    assert config["network"] == "toy_thin"
    loaded = load_checkpoint(run / "best.safetensors")
    assert isinstance(loaded.network, Toy)
    assert loaded.network.arch == ToyArchitecture(2, 4)

    result = CliRunner().invoke(mmdeploy, ["export", str(run / "best.safetensors"), "-o", str(bundle)])
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith(" 0 scans\n")  # and not a word of kernels, which it does not want
    model = onnx.load(bundle / "model.onnx")
    assert not model.functions
    with open_session(bundle) as session:
        assert session.manifest is not None
        assert (session.manifest.network, session.manifest.architecture) == (
            "toy_thin",
            {"num_classes": 2, "width": 4},
        )
    assert verify(bundle, run / "best.safetensors", [cells]).passed

    other = tmp_path / "other.safetensors"
    state = {name: tensor + 0.1 for name, tensor in loaded.network.state_dict().items()}
    torch.save(state, other)
    assert isinstance(load_checkpoint(other).network, Toy)  # a bare state dict tells whose it is


@pytest.mark.usefixtures("threads_as_before")
def test_a_departure_is_traced_to_a_module_of_the_toy(tmp_path: Path) -> None:
    from msmamba.export.graph.onnx_model import onnx_from_network
    from msmamba.export.proof.departure import OwnError, first_departure

    torch.manual_seed(0)
    network = build_network("toy_wide", num_classes=3).eval()
    images = torch.randn(1, 3, 32, 32).numpy()
    onnx.save(onnx_from_network(network, 32), tmp_path / "toy.onnx")
    own = OwnError.of(network, images, "fp32")
    assert first_departure(tmp_path / "toy.onnx", network, images, own) is None
    with torch.no_grad():
        network.last.weight.add_(1)
    departure = first_departure(tmp_path / "toy.onnx", network, images, own)
    assert departure is not None
    assert departure.module == "last"
    with torch.no_grad():
        network.stem.weight.add_(1)
    departure = first_departure(tmp_path / "toy.onnx", network, images, own)
    assert departure is not None
    assert departure.module == "stem"


def test_the_toy_is_counted_and_explained() -> None:
    counted = complexity(ToyArchitecture(num_classes=5, width=4), 32)
    assert counted.parameters == counted.used_parameters == 4 * 27 + 4 + 5 * 4 + 5
    assert counted.macs == 8 * 8 * 4 * 27 + 4 * 5
    network = build_network("toy_thin", num_classes=2).eval()
    assert Explainer(network, 32).heat(torch.randn(2, 3, 32, 32), torch.tensor([0, 1])).shape == (2, 8, 8)


def test_a_network_without_maps_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyFamily, "map_layers", Family.map_layers)
    with pytest.raises(InputError, match="Toy tells of no maps for gradcam: choose occlusion"):
        Explainer(build_network("toy_thin", num_classes=2).eval(), 32)


def test_info_knows_it_by_name() -> None:
    shown = CliRunner().invoke(mmdeploy, ["info", "toy_wide"])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("toy_wide, 1000 classes, 224 pixels\n")


def test_info_counts_at_the_size_of_the_checkpoints_images(checkpoint: Path) -> None:
    preprocessing = load_checkpoint(checkpoint).preprocessing
    assert preprocessing is not None
    for words, size in (([], preprocessing.image_size), (["--image-size", "96"], 96)):
        shown = CliRunner().invoke(mmdeploy, ["info", str(checkpoint), *words])
        assert f" classes, {size} pixels\n" in shown.stdout


def test_info_takes_what_is_no_file_for_a_name() -> None:
    wrong = CliRunner().invoke(mmdeploy, ["info", "toy_wid"])
    assert wrong.exit_code == 1
    assert wrong.stderr.startswith("error: there is no network 'toy_wid': did you mean toy_wide")
    missing = CliRunner().invoke(mmdeploy, ["info", "toy_wid.pth"])
    assert missing.stderr == "error: toy_wid.pth: cannot read the checkpoint: no such file or directory\n"


def test_some_of_the_networks_are_listed_alone() -> None:
    (listed,) = listed_networks(["toy_thin"])
    assert (listed.name, listed.title, listed.classes, listed.printed_macs) == ("toy_thin", "Toy", 1000, None)
    with pytest.raises(InputError, match="no network 'toy_thim': did you mean toy_thin"):
        list(listed_networks(["toy_thin", "toy_thim"]))


def test_build_network_takes_names_and_fields() -> None:
    tiny = build_network("t", num_classes=4)
    assert isinstance(tiny, MicroscopicMamba)
    assert tiny.arch == MicroscopicMamba.of_size("t", num_classes=4).arch
    assert not build_network("s", num_classes=2, mifa=False).arch.to_dict()["mifa"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        pytest.param("resnet18", {}, "no network 'resnet18': 'mmdeploy networks' lists all", id="unknown"),
        pytest.param("PVT-smal", {}, "no network 'PVT-smal': did you mean pvt_small or", id="misspelt"),
        pytest.param("t", {"width": 3}, "network 't' cannot be built so.*width", id="no-such-field"),
        pytest.param("t", {"dims": (30,)}, "network 't' cannot be built so.*same stages", id="unfit"),
        pytest.param(
            "toy_thin",
            {"mifa": False, "colour": 1},
            "'toy_thin' cannot be built so: Toy has no mifa, colour: it has num_classes, width",
            id="other-family's",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_network(name, num_classes=2, **changes)


def test_a_state_dict_of_no_network_says_why_it_is_none(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"not a Microscopic-Mamba.*no tensor.*not a PVT checkpoint"):
        load_checkpoint(tmp_path / "resnet.pth")


def test_a_run_is_not_resumed_with_another_network(cells: Path, tmp_path: Path) -> None:
    data = read_training_folder(cells)
    recipe = Recipe(epochs=1, warmup_epochs=0, image_size=32)
    train(data, tmp_path / "run", ToyArchitecture(2, 4), recipe)
    train(data, tmp_path / "run", ToyArchitecture(2, 4), recipe, resume=True)
    with pytest.raises(Exception, match="network was 'toy_thin' and is 'toy_wide'"):
        train(data, tmp_path / "run", ToyArchitecture(2, 16), recipe, resume=True)


@pytest.mark.parametrize("network", ["t", "s", "b"])
def test_names_are_read_off_architectures(network: str) -> None:
    arch = registry.architecture_named(network, num_classes=7, mifa=False)
    assert registry.family_of(arch).name_of(arch) == network
    other = registry.with_switches(arch, {"depths": (1, 1, 1, 1)})
    assert registry.family_of(other).name_of(other) == "microscopic_mamba"
    assert registry.family_named("microscopic_mamba") is registry.family_named(network)
