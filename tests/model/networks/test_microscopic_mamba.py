"""The network against the published architecture: names, logits, stage outputs, parameter counts."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from msmamba.model import MicroscopicMamba
from msmamba.model.networks.microscopic_mamba import Architecture

REFERENCE = Path(__file__).parents[2] / "reference"


@pytest.fixture(scope="module")
def weights() -> ModuleType:
    """The module that fills a state dict reproducibly."""
    spec = spec_from_file_location("reference_weights", REFERENCE / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shapes() -> dict[str, list[int]]:
    """Names and shapes of the published tiny state dict with four classes."""
    return json.loads((REFERENCE / "state_dict_t.json").read_text())


def test_the_state_dict_has_the_published_names_and_shapes(shapes: dict[str, list[int]]) -> None:
    ours = MicroscopicMamba.of_size("t", num_classes=4).state_dict()
    assert {name: list(tensor.shape) for name, tensor in ours.items()} == shapes


def test_logits_and_stages_agree_with_the_published_architecture(
    weights: ModuleType, shapes: dict[str, list[int]]
) -> None:
    network = MicroscopicMamba.of_size("t", num_classes=4).eval()
    state = {name: torch.from_numpy(value) for name, value in weights.reference_state(shapes).items()}
    network.load_state_dict(state)
    expected = np.load(REFERENCE / "expected_t.npz")
    with torch.no_grad():
        stages = network.features(torch.from_numpy(weights.reference_image(2, 224)))
        logits = network.head(stages[-1].mean((1, 2))).numpy()
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-5)
    for number, stage in enumerate(stages, start=1):
        flat = stage.numpy().reshape(-1)
        sample = flat[:: max(1, flat.size // 4096)][:4096]
        assert tuple(expected[f"stage{number}_shape"]) == tuple(stage.shape)
        np.testing.assert_allclose(sample, expected[f"stage{number}_sample"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "changes", "parameters"),
    [
        pytest.param("t", {}, 4_321_310, id="tiny"),
        pytest.param("s", {}, 4_971_714, id="small"),
        pytest.param("b", {}, 9_405_578, id="base"),
        pytest.param("b", {"num_classes": 8}, 8_388_778, id="base-8-classes"),
        pytest.param("t", {"parallel": False}, 8_832_530, id="tiny-not-parallel"),
        pytest.param("t", {"mifa": False}, 4_299_422, id="tiny-without-mifa"),
    ],
)
def test_parameter_counts(size: str, changes: dict[str, int], parameters: int) -> None:
    with torch.device("meta"):
        network = MicroscopicMamba.of_size(size, **changes)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        pytest.param((1, 3, 64, 32), "square", id="not-square"),
        pytest.param((1, 3, 48, 48), "multiple of 32", id="not-a-multiple"),
        pytest.param((1, 3, 0, 0), "multiple of 32", id="empty"),
        pytest.param((1, 1, 32, 32), r"\(batch, 3, S, S\)", id="grey"),
        pytest.param((3, 32, 32), r"\(batch, 3, S, S\)", id="no-batch"),
    ],
)
def test_images_of_another_shape_are_refused(
    network: MicroscopicMamba, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        network(torch.zeros(shape))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"depths": (2, 2)}, "same stages", id="depths"),
        pytest.param({"dims": (90, 180, 360, 720)}, "multiples of 32", id="dims"),
        pytest.param({"dims": (32, 64, 128, 128)}, "must double", id="not-doubling"),
        pytest.param({"num_classes": 0}, "at least 1", id="no-classes"),
    ],
)
def test_architectures_that_do_not_fit_together_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Architecture(**fields)


def test_an_unknown_size_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'xl'.*t, s, b"):
        MicroscopicMamba.of_size("xl")


def test_stochastic_depth_grows_linearly_and_only_in_training() -> None:
    network = MicroscopicMamba.of_size("t", num_classes=2)
    rates = [block.drop_path.rate for stage in network.layers for block in stage.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 10))
    block = network.layers[3].blocks[1]
    x = torch.randn(64, 1, 1, 4)
    assert block.drop_path.eval()(x) is x
    dropped = (block.drop_path.train()(x) == 0).all(dim=(1, 2, 3))
    assert 0 < dropped.sum() < 64


def test_no_weight_decay_names_every_scan_parameter_once() -> None:
    network = MicroscopicMamba.of_size("t", num_classes=2)
    names = network.without_weight_decay()
    assert len(names) == 20
    assert {name.rsplit(".", 1)[1] for name in names} == {"A_logs", "Ds"}


def test_the_step_sizes_begin_between_a_thousandth_and_a_tenth() -> None:
    network = MicroscopicMamba.of_size("t", num_classes=2)
    for name, parameter in network.named_parameters():
        if name.endswith("dt_projs_bias"):
            steps = torch.nn.functional.softplus(parameter)
            assert steps.min() >= 0.99e-3
            assert steps.max() <= 0.101
        elif name.endswith("A_logs"):
            expected = torch.arange(1.0, 17.0).log().expand_as(parameter)
            torch.testing.assert_close(parameter.detach(), expected)


def test_biases_begin_as_in_the_released_code() -> None:
    """Those of convolutions at PyTorch's default, ±1/sqrt(fan-in), those of linear layers at zero."""
    torch.manual_seed(0)
    network = MicroscopicMamba.of_size("t", num_classes=2)
    sizes = set()
    for module in network.modules():
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            assert not module.bias.any()
        elif isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            fan_in = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
            sizes.add(fan_in)
            scaled = module.bias * fan_in**0.5  # uniform in ±1: at least three draws here, up to 1536
            assert scaled.abs().max() <= 1
            assert scaled.abs().max() > 0.2
            assert len(scaled.unique()) == len(scaled)
    assert len(sizes) > 3


def test_psffn_swaps_height_and_width(network: MicroscopicMamba) -> None:
    block = network.layers[0].blocks[0].pvm_layer.mamba
    x = torch.randn(2, 3, 5, 2 * block.in_proj.in_features)
    assert block.PSFFN(x).shape == (2, 5, 3, block.in_proj.in_features)
