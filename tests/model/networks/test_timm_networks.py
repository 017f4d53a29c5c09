"""The networks of Table I that timm has: they are timm's, and go the whole way (`make test-peers`)."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner
from conftest import SMALL_LABELS
from safetensors.torch import save_file
from torch import Tensor, nn

from msmamba import open as open_artefact
from msmamba.cli import mmdeploy
from msmamba.data.folders import read_training_folder
from msmamba.errors import CheckpointError, InputError
from msmamba.export.bundle import ExportOptions, export_bundle
from msmamba.export.graph.int8_options import Int8Options
from msmamba.export.graph.judging import Limits
from msmamba.export.graph.onnx_model import onnx_from_network
from msmamba.export.graph.products import DEPTHWISE
from msmamba.export.proof.verify import verify
from msmamba.measures.decision import ImageLimit
from msmamba.model import build_network
from msmamba.model.evaluation import listing
from msmamba.model.evaluation.explanation import Explainer
from msmamba.model.evaluation.paper import PEERS
from msmamba.model.networks.checkpoint import load_checkpoint, save_checkpoint
from msmamba.model.networks.complexity import complexity
from msmamba.model.networks.family import Network
from msmamba.model.networks.layers import DropPath
from msmamba.model.networks.pretrained import Pretrained
from msmamba.model.networks.registry import NETWORKS, architecture_named, family_of, recognise
from msmamba.model.networks.timm_networks import TimmNetwork
from msmamba.model.training.loop import Hardware, train
from msmamba.model.training.recipe import Recipe

pytestmark = pytest.mark.peers

# By network: 10^6 parameters with as many classes as the paper counted, and 10^9 multiply-adds in full at
# 224 pixels, as timm 1.0.31 has them.
SIZES = {
    "convnext_tiny": (28.589, 4.46),
    "convnext_small": (50.224, 8.68),
    "repvit_m1_0": (6.853, 1.11),
    "repvit_m1_1": (8.289, 1.34),
    "mobileone_s0": (5.293, 1.05),
    "mobileone_s2": (7.885, 1.30),
    "mobileone_s3": (10.171, 1.90),
    "twins_pcpvt_small": (24.106, 3.81),
    "twins_pcpvt_base": (43.828, 6.65),
    "vit_tiny_patch16_224": (5.717, 1.25),
    "vit_small_patch16_224": (22.051, 4.60),
    "vit_base_patch16_224": (86.568, 17.56),
    "fastvit_sa24": (21.554, 2.88),
    "fastvit_ma36": (44.068, 5.99),
    "swiftformer_s": (5.644, 0.98),
    "swiftformer_l1": (11.291, 1.60),
    "swiftformer_l3": (27.473, 4.01),
}
CHEAPEST = (
    *("convnext_tiny", "repvit_m1_0", "mobileone_s0", "twins_pcpvt_small", "vit_tiny_patch16_224"),
    *("fastvit_sa24", "swiftformer_s"),
)
MERGED = ("repvit_m1_0", "mobileone_s0", "fastvit_sa24")


@pytest.fixture(scope="module", autouse=True)
def torchvision_imports() -> Iterator[None]:
    """Beside a PyTorch for the CPU, too, where PyPI's torchvision, built for CUDA, lacks its operators.

    It does not import unless these two are declared. No network has them.
    """
    library = None
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
    yield
    del library  # with it they go


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def timms(name: str, classes: int, **options: Any) -> nn.Module:
    """The network as timm builds it, with one head as the paper counts it."""
    import timm

    if name.startswith("repvit"):
        options.setdefault("distillation", False)
    network: nn.Module = timm.create_model(name, num_classes=classes, **options).eval()
    return network


@torch.no_grad()
def awakened(network: nn.Module) -> None:
    """Gives every part a say: scales of blocks begin at 1e-5 and less, norms with no statistics."""
    torch.manual_seed(1)
    for name, tensor in network.state_dict().items():
        if name.endswith("gamma") or "layer_scale" in name:
            tensor.uniform_(0.1, 0.3)
        elif name.endswith("bias"):
            tensor.add_(0.05 * torch.randn_like(tensor))
    norms = [each for each in network.modules() if isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        coloured = 1.5 * torch.randn(16, 3, 1, 1) + torch.randn(16, 3, 64, 64)  # as the micrographs are
        network.train()(coloured)
        network.eval()
    for norm in norms:
        norm.momentum = 0.1


@cache
def network_of(name: str) -> Network:
    """A network of three classes in evaluation mode; not to be changed."""
    torch.manual_seed(0)
    network = build_network(name, num_classes=3).eval()
    awakened(network)
    return network


@pytest.mark.parametrize("name", SIZES)
def test_it_is_timms_own(name: str) -> None:
    torch.manual_seed(0)
    expected = timms(name, 5)
    awakened(expected)
    network = build_network(name, num_classes=5).eval()
    assert list(network.state_dict()) == list(expected.state_dict())
    network.load_state_dict(expected.state_dict())
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        wanted = expected(images)
        torch.testing.assert_close(network(images), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert (wanted[0] - wanted[1]).abs().max() > 1e-4 * wanted.abs().max()  # it sees the images


def test_vit_takes_other_sizes_as_timm_does() -> None:
    network = network_of("vit_tiny_patch16_224")
    expected = timms("vit_tiny_patch16_224", 3, img_size=96)
    expected.load_state_dict(
        {**network.state_dict(), "pos_embed": torch.zeros_like(expected.state_dict()["pos_embed"])}
    )
    other = timms("vit_tiny_patch16_224", 3)
    other.load_state_dict(network.state_dict())
    other.set_input_size(img_size=(96, 96))
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(network(images), other(images), rtol=0, atol=1e-5)
        assert (network(images) - expected(images)).abs().max() > 1e-3  # positions count


def test_vits_embeddings_stand_in_the_file_in_the_size_of_its_images() -> None:
    """Otherwise timm resizes them there for every image, to 224 pixels too, and TensorRT refuses the file."""
    network = network_of("vit_tiny_patch16_224")
    model = onnx_from_network(network, 224)
    assert "Resize" not in {node.op_type for node in model.graph.node}
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        form = family_of(network).inference_form(network, 224).eval()
        torch.testing.assert_close(form(images), network(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_timm_and_of_the_paper(name: str) -> None:
    (peer,) = (each for each in PEERS if each.network == name)
    millions, gmacs = SIZES[name]
    count = complexity(architecture_named(name, num_classes=peer.classes))
    assert count.parameters / 1e6 == pytest.approx(millions, abs=0.0006)
    assert count.macs / 1e9 == pytest.approx(gmacs, abs=0.0051)
    bar = 0.006
    if name == "convnext_tiny":
        bar = 0.11  # a misprint
    elif name.startswith("vit"):
        bar = 0.04  # the paper's has two norms more, and no biases of queries, keys and values
    assert count.parameters / 1e6 == pytest.approx(peer.parameters, abs=bar)
    seen = count.product_macs if name.startswith("vit") else 0  # ptflops saw the attention of the paper's ViT
    assert (count.paper_macs + seen) / 1e9 == pytest.approx(peer.macs, rel=0.012)


@pytest.mark.parametrize("name", SIZES)
def test_a_state_dict_tells_which_network_it_is_of(name: str) -> None:
    with torch.device("meta"):
        network = build_network(name, num_classes=5)
    family, arch = recognise(network.state_dict())
    assert arch == network.arch
    assert family.name_of(arch) == name
    assert family.architecture_from({**arch.to_dict(), "depths": list(arch.depths)}) == arch


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", CHEAPEST)
def test_each_family_goes_the_whole_way(name: str, precision: str, micrographs: Path, tmp_path: Path) -> None:
    """Seconds each: networks of timm come in their published sizes only."""
    network = network_of(name)
    checkpoint, bundle = tmp_path / "network.safetensors", tmp_path / "bundle"
    save_checkpoint(checkpoint, network, labels=["a", "b", "c"], image_size=64, mean=[0.5] * 3, std=[0.2] * 3)
    loaded = load_checkpoint(checkpoint).network
    assert loaded.arch == network.arch
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    export_bundle(checkpoint, bundle, ExportOptions(precision=precision))
    # What is not trained may be undecided.
    parity = verify(bundle, checkpoint, [micrographs], max_undecided=ImageLimit(100, per_cent=True))
    assert parity.passed, parity.to_text()
    model = onnx.load(bundle / "model.onnx")
    assert {each.name for each in model.graph.output} == {"logits", "features"}
    shown = {value for node in model.graph.node for value in node.output}
    assert set(family_of(network).probes(network)) <= shown
    if name == "mobileone_s0":  # a convolution a block, and the stem's
        kinds = [node.op_type for node in model.graph.node]
        assert kinds.count("Conv") == sum(network.arch.depths) + 1
        assert "BatchNormalization" not in kinds
    heat = Explainer(network, 64).heat(torch.randn(3, 3, 64, 64), torch.tensor([0, 1, 2]))
    assert heat.shape[1:] == ((4, 4) if name.startswith("vit") else (2, 2))
    assert (heat >= 0).all()


@pytest.mark.parametrize("name", ["mobileone_s0", "repvit_m1_0", "vit_tiny_patch16_224"])
def test_merged_convolutions_and_attention_calibrate(name: str, labelled: Path, tmp_path: Path) -> None:
    """Seconds each, as above."""
    network = network_of(name)
    units = family_of(network).units(network)
    assert all(network.get_submodule(unit) for unit in units)
    checkpoint, bundle = tmp_path / "network.safetensors", tmp_path / "bundle"
    save_checkpoint(checkpoint, network, labels=SMALL_LABELS, image_size=64, mean=[0.5] * 3, std=[0.2] * 3)
    anything = ImageLimit(100, per_cent=True)  # what is not trained decides by little
    how = Int8Options(labelled, images=9, limits=Limits(100, anything))
    int8 = export_bundle(checkpoint, bundle, ExportOptions(precision="int8", int8=how)).int8
    assert int8 is not None
    assert all(share == (kind != DEPTHWISE) for kind, share in int8.proof.by_kind.items())
    inside = tuple(f"{unit}." for unit in units)
    blocks = {unit for unit in units if any(product.startswith(unit) for product in int8.proof.products)}
    outside = [product for product in int8.proof.products if not product.startswith(inside)]
    assert len(blocks) > len(outside) > 0  # the stem, and what is between stages
    with open_artefact(bundle) as session:
        assert len(session.classify(sorted((labelled / "val").glob("*/*")))) == 12


@pytest.mark.parametrize("name", CHEAPEST)
def test_every_weight_learns(name: str) -> None:
    network = copy.deepcopy(network_of(name)).train()
    loss = nn.functional.cross_entropy(network(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert [key for key, weight in network.named_parameters() if weight.grad is None] == []
    assert set(network.without_weight_decay()) <= {key for key, _ in network.named_parameters()}


@pytest.mark.parametrize("name", MERGED)
def test_branches_are_merged_at_export_and_not_before(name: str) -> None:
    network = network_of(name)
    family = family_of(network)
    before = sum(weight.numel() for weight in network.parameters())
    form = family.inference_form(network, 64).eval()
    assert sum(weight.numel() for weight in form.parameters()) < before
    assert sum(weight.numel() for weight in network.parameters()) == before
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = network(images)
        torch.testing.assert_close(form(images), logits, rtol=0, atol=1e-4 * float(logits.abs().max()))


def test_stochastic_depth_is_ours() -> None:
    network = build_network("convnext_tiny", num_classes=2, drop_path_rate=0.2)
    rates = [module.rate for module in network.modules() if isinstance(module, DropPath)]
    assert max(rates) == pytest.approx(0.2)
    with pytest.raises(InputError, match="RepViT has no stochastic depth"):
        build_network("repvit_m1_0", num_classes=2, drop_path_rate=0.2)
    with pytest.raises(InputError, match=r"are of none of convnext_tiny \(depths"):
        build_network("convnext_tiny", num_classes=2, depths=(1, 1, 1, 1))


def test_a_repvit_with_two_heads_is_one(tmp_path: Path) -> None:
    """timm's published ones are."""
    distilled = timms("repvit_m1_0", 4, distillation=True)
    awakened(distilled)
    torch.save(distilled.state_dict(), tmp_path / "distilled.pth")
    network = load_checkpoint(tmp_path / "distilled.pth").network
    images = torch.randn(1, 3, 64, 64)
    form = family_of(network).inference_form(network, 64).eval()
    with torch.no_grad():
        torch.testing.assert_close(network(images), distilled(images))
        torch.testing.assert_close(form(images), distilled(images), rtol=1e-3, atol=1e-4)


def test_timms_published_weights_are_taken_but_for_the_head(tmp_path: Path) -> None:
    published = timms("swiftformer_s", 1000)
    awakened(published)
    state: dict[str, Tensor] = published.state_dict()
    save_file(state, tmp_path / "model.safetensors")
    network = build_network("swiftformer_s", num_classes=1000)
    heads = {key: network.state_dict()[key].clone() for key in state if key.startswith("head")}
    (note,) = Pretrained.read(tmp_path / "model.safetensors").fill(network)
    assert "the head is trained anew" in note
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, heads.get(key, state[key])), key
    with pytest.raises(
        CheckpointError, match="has weights of swiftformer_s, and the network is convnext_tiny"
    ):
        Pretrained.read(tmp_path / "model.safetensors").fill(build_network("convnext_tiny", num_classes=3))


def test_a_size_that_a_network_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        network_of("vit_tiny_patch16_224")(torch.zeros(1, 3, 72, 72))
    result = CliRunner().invoke(mmdeploy, ["info", "repvit_m1_0", "--image-size", "72"])
    assert result.exit_code == 1
    assert result.stderr == (
        "error: network 'repvit_m1_0' cannot take them: images are 72x72; the side must be a multiple of 32: "
        "resize them\n"
    )


def test_a_network_is_trained_and_exported_at_each_size_that_it_takes(cells: Path, tmp_path: Path) -> None:
    run, bundle, recipe = tmp_path / "run", tmp_path / "bundle", Recipe(1, 4, warmup_epochs=0, image_size=48)
    arch = architecture_named("vit_tiny_patch16_224")
    train(read_training_folder(cells), run, arch, recipe, hardware=Hardware(threads=1))
    assert (
        CliRunner().invoke(mmdeploy, ["export", f"{run}/best.safetensors", "-o", str(bundle)]).exit_code == 0
    )
    with open_artefact(bundle) as session:
        assert session.manifest.image_size == 48
        assert len(session.classify([next(cells.rglob("*.png"))])) == 1


def test_they_are_listed_with_their_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "NETWORKS", {"swiftformer_s": NETWORKS["swiftformer_s"]})
    result = CliRunner().invoke(mmdeploy, ["networks"])
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if "swiftformer" in line]
    assert rows == [["swiftformer_s", "SwiftFormer-S", "5.64", "5.64", "1.00", "1.01", "0.98"]]
    assert not result.stderr


def test_the_paths_of_modules_begin_with_timm() -> None:
    network = network_of("repvit_m1_0")
    assert isinstance(network, TimmNetwork)
    assert all(name.startswith("timm.") for name, _ in network.named_parameters())
    assert not any(name.startswith("timm.") for name in network.state_dict())
