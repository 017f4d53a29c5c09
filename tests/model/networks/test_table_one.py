"""The networks of Table I that are written here: as published code computes, and the whole way for each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from conftest import SMALL_LABELS
from reference.weights import reference_image, reference_state

from msmamba.errors import CheckpointError, InputError
from msmamba.export.bundle import ExportOptions, export_bundle
from msmamba.export.engine.build import EngineOptions
from msmamba.export.engine.engine_bundle import engine_bundle
from msmamba.export.graph.int8_options import Int8Options
from msmamba.export.graph.judging import Limits
from msmamba.export.graph.onnx_model import scan_nodes
from msmamba.export.graph.products import CONVOLUTION, DEPTHWISE, LINEAR
from msmamba.export.proof.verify import verify
from msmamba.measures.decision import ImageLimit
from msmamba.model import build_network
from msmamba.model.evaluation.explanation import Explainer
from msmamba.model.evaluation.paper import PEERS
from msmamba.model.networks.checkpoint import load_checkpoint, save_checkpoint
from msmamba.model.networks.complexity import complexity
from msmamba.model.networks.family import Network
from msmamba.model.networks.registry import architecture_named, family_of, recognise
from msmamba.model.networks.staged import StagedNetwork
from msmamba.plugins.tensorrt_library import link_parser_library

REFERENCE = Path(__file__).parents[2] / "reference" / "peers"
SCALE = np.float32(1 / 32)  # a power of two: exact

# By network: parameters with 1000 and with 4 classes, and 10^9 multiply-adds of convolutions, linear layers
# and matrix products without the scan's, as the published code has them at 224 pixels.
SIZES = {
    "pvt_small": (24_485_864, 23_974_916, 3.816),
    "pvt_medium": (44_208_104, 43_697_156, 6.659),
    "mpvit_tiny": (5_843_736, 5_627_604, 1.636),
    "mpvit_small": (22_892_400, 22_604_556, 4.771),
    "uniformer_small": (21_545_256, 21_034_308, 3.632),
    "uniformer_base": (49_776_552, 49_265_604, 8.249),
    "smt_s": (22_550_952, 22_040_004, 4.839),
    "smt_b": (32_037_352, 31_526_404, 7.966),
    "medmamba_s": (19_389_544, 18_623_620, 3.035),
    "medmamba_b": (40_883_688, 39_862_788, 6.684),
    "vmamba_t": (22_893_448, 22_127_524, 3.677),
    "vmamba_s": (44_417_416, 43_651_492, 7.690),
}
# Where the published code gives what Table I prints (not so: modules counted once for each of their names, or
# figures copied from elsewhere).
PRINTED_MACS = {
    "pvt_small",
    "pvt_medium",
    "uniformer_small",
    "uniformer_base",
    "smt_s",
    "medmamba_s",
    "medmamba_b",
}

# The cheapest of each family, and networks of its kind small enough to go the whole way.
CHEAPEST = ("pvt_small", "mpvit_tiny", "uniformer_small", "smt_s", "medmamba_s", "vmamba_t")
SMALL: dict[str, dict[str, Any]] = {
    "pvt_small": {"depths": (1, 1, 1, 1), "dims": (64, 64, 64, 64)},
    "mpvit_tiny": {"depths": (1, 1, 2, 1), "dims": (16, 16, 24, 32), "paths": (1, 2, 1, 1)},
    "uniformer_small": {"depths": (1, 1, 1, 1), "dims": (16, 16, 64, 64)},
    "smt_s": {"depths": (1, 1, 2, 1), "dims": (32, 32, 32, 32)},
    "medmamba_s": {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128)},
    "vmamba_t": {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128)},
}
every_small = pytest.mark.parametrize("name", SMALL)


def small(name: str) -> Network:
    """A network of a family, of few and thin blocks and three classes, in evaluation mode."""
    torch.manual_seed(0)
    return build_network(name, num_classes=3, **SMALL[name]).eval()


def reference_weights(name: str) -> tuple[dict[str, list[int]], dict[str, npt.NDArray[Any]]]:
    """A published network's shapes, and the weights that its outputs are expected of."""
    shapes = json.loads((REFERENCE / f"{name}.json").read_text())
    state = reference_state(shapes)
    tied = REFERENCE / f"{name}_tied.json"
    for alias, first in json.loads(tied.read_text()).items() if tied.exists() else ():
        state[alias] = state[first]
    return shapes, state


def scaled(name: str, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The value of the variant whose norms see inputs so small that their eps counts."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        return value * SCALE * SCALE
    if leaf in ("Ds", "num_batches_tracked"):
        return value
    if value.ndim == 1 or name == "cls_token" or (name.startswith("pos_embed") and "." not in name):
        return value * SCALE
    return value


def filled(network: Network, state: Mapping[str, npt.NDArray[Any]]) -> None:
    network.load_state_dict({key: torch.from_numpy(np.asarray(value)) for key, value in state.items()})


@pytest.mark.parametrize(
    "name",
    [name if name in CHEAPEST else pytest.param(name, marks=pytest.mark.networks) for name in SIZES],
)
def test_logits_and_stages_agree_with_the_published_code(name: str) -> None:
    shapes, state = reference_weights(name)
    expected = np.load(REFERENCE / f"expected_{name}.npz")
    network = build_network(name, num_classes=4).eval()
    assert isinstance(network, StagedNetwork)
    assert {key: list(tensor.shape) for key, tensor in network.state_dict().items()} == shapes
    images = reference_image(2, 224)
    filled(network, state)
    stages: list[torch.Tensor] = []
    whole = network.features

    def kept(batch: torch.Tensor) -> list[torch.Tensor]:
        stages[:] = whole(batch)
        return stages

    network.features = kept  # type: ignore[method-assign]  # one pass gives both
    with torch.no_grad():
        logits = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(
        logits, expected["logits"], rtol=0, atol=max(1e-5, 10 * expected["logits_noise"])
    )
    for number, stage in enumerate(stages, start=1):
        flat = stage.numpy().reshape(-1)
        sample = flat[:: max(1, flat.size // 4096)][:4096]
        assert tuple(expected[f"stage{number}_shape"]) == tuple(stage.shape)
        bar = max(1e-4, 10 * expected[f"stage{number}_noise"])
        np.testing.assert_allclose(sample, expected[f"stage{number}_sample"], rtol=0, atol=bar)

    filled(network, {key: scaled(key, value) for key, value in state.items()})
    with torch.no_grad():
        logits = network(torch.from_numpy(images * SCALE)).numpy()
    noise = expected["small_logits_noise"]
    np.testing.assert_allclose(logits, expected["small_logits"], rtol=0, atol=10 * noise)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_published_code(name: str) -> None:
    parameters, of_four, gmacs = SIZES[name]
    count = complexity(architecture_named(name))
    assert count.parameters == parameters
    with torch.device("meta"):
        network = build_network(name, num_classes=4)
    assert sum(each.numel() for each in network.parameters()) == of_four
    macs = count.layer_macs + count.product_macs + count.projection_macs
    assert macs / 1e9 == pytest.approx(gmacs, abs=0.002)
    assert (count.state_updates > 0) == (name.split("_")[0] in ("medmamba", "vmamba"))
    if name in PRINTED_MACS:
        (printed,) = (peer.macs for peer in PEERS if peer.network == name)
        assert count.paper_macs / 1e9 == pytest.approx(printed, abs=0.015)


@pytest.mark.parametrize("name", SIZES)
def test_a_state_dict_tells_which_network_it_is_of(name: str) -> None:
    with torch.device("meta"):
        network = build_network(name, num_classes=5)
    family, arch = recognise(network.state_dict())
    assert arch == network.arch
    assert family.name_of(arch) == name


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.networks)])
@every_small
@pytest.mark.usefixtures("threads_as_before")
def test_each_goes_the_whole_way(name: str, precision: str, micrographs: Path, tmp_path: Path) -> None:
    """Tracing a network takes seconds, whatever its size: one precision of each in `make test`."""
    torch.set_num_threads(1)
    network = small(name)
    network.train()
    loss = torch.nn.functional.cross_entropy(network(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert [key for key, weight in network.named_parameters() if weight.grad is None] == []
    network.eval()
    checkpoint = tmp_path / "network.safetensors"
    save_checkpoint(checkpoint, network, labels=["a", "b", "c"], image_size=64, mean=[0.5] * 3, std=[0.2] * 3)
    loaded = load_checkpoint(checkpoint).network
    assert loaded.arch == network.arch
    bundle = tmp_path / "bundle"
    export = export_bundle(checkpoint, bundle, ExportOptions(precision=precision))
    assert verify(bundle, checkpoint, [micrographs]).passed
    model = onnx.load(bundle / "model.onnx")
    shown = {value for node in model.graph.node for value in node.output}
    probes = {probe for probe in family_of(network).probes(network) if not probe.endswith(".reduction")}
    assert probes <= shown  # the others are in files of earlier versions
    assert len(scan_nodes(model)) == export.scans == (4 if "mamba" in name else 0)
    operators = Counter(node.op_type for node in model.graph.node if node.domain == "msmamba")
    own = {"ScanFeatures": 4, "ProjectedScan2D": 4, "PatchMerging": 3}
    assert operators == (own if "mamba" in name else {})
    assert "Resize" not in {
        node.op_type for node in model.graph.node
    }  # of position embeddings, for every image
    heat = Explainer(network, 64).heat(torch.randn(1, 3, 64, 64), torch.tensor([1]))
    assert heat.ndim == 3
    if precision == "fp16":
        link_parser_library()
        options = EngineOptions((89,), batches=(1, 1, 2))
        proof = engine_bundle(bundle, tmp_path / "engine", options).engine.proof
        assert len(proof.plugins) == export.scans
        assert {plugin.outputs for plugin in proof.plugins} <= {("HALF",)}
        assert all("Gemm" in layer or "ReduceMean" in layer for layer in proof.float32_layers)


@every_small
def test_what_int8_takes_as_a_whole_are_modules_that_hold_its_products(name: str) -> None:
    network = small(name)
    units = family_of(network).units(network)
    inside = tuple(f"{unit}." for unit in units)
    assert all(network.get_submodule(unit) for unit in units)
    assert not any(unit.startswith(inside) for unit in units)
    products = [
        path
        for path, module in network.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and module.weight.shape[1] > 1
    ]
    assert {path for path in products if not path.startswith(inside)} == {family_of(network).head}
    assert all(any(path.startswith(unit) for path in products) for unit in inside)


@pytest.mark.networks
@every_small
@pytest.mark.usefixtures("threads_as_before")
def test_each_calibrates(name: str, labelled: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    network = small(name)
    checkpoint, bundle = tmp_path / "network.safetensors", tmp_path / "bundle"
    save_checkpoint(checkpoint, network, labels=SMALL_LABELS, image_size=64, mean=[0.5] * 3, std=[0.2] * 3)
    anything = ImageLimit(100, per_cent=True)  # what is not trained decides by little
    how = Int8Options(labelled, images=9, limits=Limits(100, anything))
    exported = export_bundle(checkpoint, bundle, ExportOptions(precision="int8", int8=how)).int8
    assert exported is not None
    assert exported.proof.by_kind.keys() - {DEPTHWISE} <= {CONVOLUTION, LINEAR}
    assert all(exported.proof.by_kind[kind] == (kind != DEPTHWISE) for kind in exported.proof.by_kind)
    parity = verify(
        bundle,
        checkpoint,
        [labelled],
        split="val",
        max_flips=anything,
        max_accuracy_drop=100,
        max_auc_drop=1,
    )
    assert parity.passed
    assert parity.max_abs_error > 0
    assert parity.lowest_cosine > 0.99


def test_position_embeddings_are_resized_for_other_images() -> None:
    network = small("pvt_small")
    with torch.no_grad():
        assert network(torch.randn(1, 3, 448, 448)).shape == (1, 3)
        network.pos_embed2.fill_(0.25)  # what is constant stays so
        torch.testing.assert_close(network.positions(1, 5, 5), torch.full((1, 5, 5, 64), 0.25))


@every_small
def test_a_size_that_a_network_cannot_take_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        small(name)(torch.zeros(1, 3, 72, 72))


def test_shared_weights_must_be_equal(tmp_path: Path) -> None:
    state = small("mpvit_tiny").state_dict()
    alias = "mhca_stages.0.mhca_blks.0.MHCA_layers.0.cpe.proj.bias"
    torch.save({"model": {**state, alias: state[alias] + 1}}, tmp_path / "differing.pth")
    with pytest.raises(CheckpointError, match=r"1 tensors should be equal.*cpe.proj.bias"):
        load_checkpoint(tmp_path / "differing.pth")
    torch.save({"model": state}, tmp_path / "equal.pth")
    assert load_checkpoint(tmp_path / "equal.pth").network.arch == small("mpvit_tiny").arch


def test_names_of_later_code_are_understood(tmp_path: Path) -> None:
    network = small("vmamba_t")
    later = {
        "patch_embed.proj": "patch_embed.0",
        "patch_embed.norm": "patch_embed.2",
        "head": "classifier.head",
    }
    later |= {"ln_1": "norm", "self_attention": "op"}
    state = {}
    for key, tensor in network.state_dict().items():
        if key.startswith("norm."):
            key = f"classifier.{key}"
        for ours, theirs in later.items():
            key = key.replace(f"{ours}.", f"{theirs}.") if key.startswith(ours) or f".{ours}." in key else key
        state[key] = tensor
    assert "layers.0.blocks.0.op.A_logs" in state
    torch.save(state, tmp_path / "later.pth")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(load_checkpoint(tmp_path / "later.pth").network(images), network(images))


@pytest.mark.parametrize(
    ("name", "extra", "message"),
    [
        pytest.param("uniformer_small", "aux_head.weight", "token-labelling", id="another-head-width"),
        pytest.param("uniformer_small", "blocks3.0.gamma_1", "layer scale", id="layer-scale"),
        pytest.param(
            "medmamba_s", "layers.0.blocks.0.finalconv11.weight", "April 2024", id="earlier-medmamba"
        ),
        pytest.param("vmamba_t", "layers.0.blocks.0.mlp.fc1.weight", "later versions", id="later-vmamba"),
    ],
)
def test_networks_that_only_look_alike_are_refused(
    name: str, extra: str, message: str, tmp_path: Path
) -> None:
    torch.save({**small(name).state_dict(), extra: torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        pytest.param("pvt_small", {"dims": (64, 64, 64)}, "4 stages", id="three-stages"),
        pytest.param("pvt_small", {"dims": (60, 64, 64, 64)}, "multiples of 64", id="no-whole-heads"),
        pytest.param("mpvit_tiny", {"paths": (2, 3)}, "same stages", id="two-paths"),
        pytest.param("smt_s", {"stem_kernel": 4}, "odd number", id="even-kernel"),
        pytest.param("vmamba_t", {"dims": (96, 100, 384, 768)}, "must double", id="no-doubling"),
        pytest.param("medmamba_s", {"d_state": 0}, "at least 1", id="no-states"),
        pytest.param("uniformer_small", {"mlp_ratio": 2.5}, "whole number", id="no-whole-number"),
    ],
)
def test_architectures_that_do_not_fit_together_are_refused(
    name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_network(name, num_classes=2, **changes)
