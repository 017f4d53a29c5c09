"""Verification: what agrees passes, what does not is caught, and the first bad module is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from msmamba.errors import ArtefactError, BackendError, CheckpointError, DataError, InputError
from msmamba.export.graph.onnx_model import flat_model
from msmamba.export.proof import verify as module
from msmamba.export.proof.compared_images import images_to_compare
from msmamba.export.proof.departure import OwnError, first_departure, half_errors_of
from msmamba.export.proof.parity import Answer, Bar, Departure, Parity, compare
from msmamba.export.proof.verify import verify
from msmamba.files import sha256_of, write_atomically
from msmamba.measures.decision import ImageLimit
from msmamba.measures.margins import undecided_images
from msmamba.model import MicroscopicMamba
from msmamba.model.networks.checkpoint import save_checkpoint
from msmamba.runtime import Manifest
from msmamba.runtime.artefact import open_bundle

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
    assert manifest.precision_proven["parity"] == parity.summary
    assert written["undecided"] == parity.undecided


def test_the_artefact_runs_as_it_is_asked_to_and_the_proof_says_how(
    copied: dict[str, Path], checkpoint: Path, micrographs: Path, no_gpu: None
) -> None:
    found = verify(copied["fp32"], checkpoint, [micrographs], kernels="functions", threads=1)
    assert found.passed
    assert "ONNX functions" in found.executed_by
    assert json.loads((copied["fp32"] / "parity.json").read_text())["executed_by"] == found.executed_by
    before = (copied["fp32"] / "parity.json").read_bytes()
    with pytest.raises(BackendError, match="cuda"):
        verify(copied["fp32"], checkpoint, [micrographs], device="cuda")
    assert (copied["fp32"] / "parity.json").read_bytes() == before


def of_single_images(bundle: Path) -> Path:
    """The bundle's model for batches of one image, as a file."""
    model = onnx.load(bundle / "model.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    onnx.save(model, bundle / "single")
    return bundle / "single"


def test_what_takes_single_images_is_verified_one_by_one(
    copied: dict[str, Path], checkpoint: Path, micrographs: Path
) -> None:
    single = of_single_images(copied["fp32"])
    assert verify(single, checkpoint, [micrographs]).passed
    assert verify(copied["fp32"], single, [micrographs]).flips == 0


def test_copies_count_as_one_image_for_the_doubt_about_calibration(tmp_path: Path) -> None:
    for number in range(6):
        image = tmp_path / "cells" / "ab"[number % 2] / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(image)
    assert images_to_compare([tmp_path / "cells"], ["a", "b"], None, None, []).groups is None
    shutil.copy(tmp_path / "cells/a/0.png", tmp_path / "cells/a/again.png")
    images = images_to_compare([tmp_path / "cells"], ["a", "b"], None, None, [])
    assert images.groups is not None
    together = [Path(str(source)).stem for source, group in zip(images.sources, images.groups, strict=True)
                if group == images.groups[0]]  # fmt: skip
    assert together == ["0", "again"]
    fewer = images_to_compare([tmp_path / "cells"], ["a", "b"], None, 4, []).groups
    assert fewer is not None
    assert len(fewer) == 4


def test_one_folder_need_not_stand_in_a_list_and_none_is_named(
    copied: dict[str, Path], checkpoint: Path, micrographs: Path
) -> None:
    several = verify(copied["fp32"], checkpoint, [micrographs], limit=2)
    for one in (micrographs, str(micrographs)):
        assert verify(copied["fp32"], checkpoint, one, limit=2).images == several.images
    with pytest.raises(DataError, match="no images to compare: expected files or folders"):
        verify(copied["fp32"], checkpoint, [])


def test_a_proof_that_says_less_replaces_a_fuller_one_only_when_forced(
    copied: dict[str, Path], checkpoint: Path, micrographs: Path
) -> None:
    bundle, kept = copied["fp32"], copied["fp32"] / "parity.json"
    verify(bundle, checkpoint, micrographs, limit=3)
    fuller = kept.read_bytes()
    less = verify(bundle, bundle / "model.onnx", micrographs, limit=2)
    assert kept.read_bytes() == fuller
    assert less.notes[-1] == (
        f"{bundle} keeps its fuller proof; this one (2 in place of 3 images, no bound on a logit's error) "
        "was not written: --force replaces it, --format json prints this one"
    )
    forced = verify(bundle, checkpoint, micrographs, limit=2, force=True)
    assert json.loads(kept.read_bytes())["images"] == 2
    assert not any("fuller" in note for note in forced.notes)
    kept.write_bytes(fuller)  # not what the manifest lists, and so no proof of it
    assert not any("fuller" in note for note in verify(bundle, checkpoint, micrographs, limit=1).notes)
    assert json.loads(kept.read_bytes())["images"] == 1


def test_a_proof_falls_short_of_one_with_labels_or_a_guard() -> None:
    plain = compared([[2, 1, 0]], [[2, 1, 0]])
    assert plain.falls_short_of({"images": 1, "decision": {}, "guard": {}}) == ("no labels", "no guard")
    assert plain.falls_short_of({"images": 1, "guard": None, "bar": {"max_abs_error": 0.1}}) == ()
    assert plain.falls_short_of(json.loads(plain.to_json())) == ()


def test_no_proof_is_put_into_what_replaced_the_bundle_meanwhile(
    copied: dict[str, Path], checkpoint: Path, micrographs: Path
) -> None:
    def export(step: str) -> None:
        if step.startswith("compared"):
            changed_weight(copied["fp32"], "head.weight")

    with pytest.raises(ArtefactError, match="was changed while it was verified"):
        verify(copied["fp32"], checkpoint, [micrographs], report=export)
    assert not (copied["fp32"] / "parity.json").exists()


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_proof_that_is_interrupted_leaves_a_bundle_that_agrees_with_its_manifest(
    written: int,
    copied: dict[str, Path],
    checkpoint: Path,
    micrographs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verify(copied["fp32"], checkpoint, [micrographs], limit=2)
    left = iter(range(written))

    def stop(path: Path, content: bytes) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        write_atomically(path, content)

    monkeypatch.setattr(module, "write_atomically", stop)
    with pytest.raises(KeyboardInterrupt):
        verify(copied["fp32"], checkpoint, [micrographs], limit=3)
    bundle = open_bundle(copied["fp32"])
    for name in bundle.manifest.files:
        bundle.read(name)
    assert ("parity" in bundle.manifest.precision_proven) == ("parity.json" in bundle.manifest.files)


def test_nothing_is_written_through_links_out_of_a_bundle(
    copied: dict[str, Path], checkpoint: Path, micrographs: Path, tmp_path: Path
) -> None:
    bundle, home = copied["fp32"], tmp_path / "home"
    home.mkdir()
    (home / ".bashrc").write_text("export PATH=x\n")
    (bundle / "parity.json").unlink(missing_ok=True)
    (bundle / "parity.json").symlink_to(home / ".bashrc")
    (bundle / "manifest.json").rename(home / "manifest.json")
    (bundle / "manifest.json").symlink_to(home / "manifest.json")
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    assert verify(bundle, checkpoint, [micrographs]).passed
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before
    assert "parity.json" in json.loads((bundle / "manifest.json").read_bytes())["files"]


def test_float16_has_a_wider_bar_than_float32(
    bundles: dict[str, Path], checkpoint: Path, micrographs: Path
) -> None:
    bars = {
        precision: verify(bundle / "model.onnx", checkpoint, [micrographs], limit=4).bar
        for precision, bundle in bundles.items()
    }
    assert bars["fp16"].max_abs_error > 20 * bars["fp32"].max_abs_error
    for bar in bars.values():  # which its own words give, to their three digits
        own, of_float32, largest = (float(found) for found in re.findall(r"\((\d[\d.e-]*)\)", bar.reason))
        assert bar.max_abs_error == pytest.approx(max(2 * own + of_float32, 32 / 2**23 * largest), rel=0.01)
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
    assert isinstance(parity.departure, Departure)
    assert parity.departure.module.endswith(module)
    assert parity.departure.error > 2 * parity.departure.expected_error
    assert json.loads((copied[precision] / "parity.json").read_text())["passed"] is False


def test_a_bar_given_by_the_user_is_taken(
    bundles: dict[str, Path], checkpoint: Path, micrographs: Path
) -> None:
    model = bundles["fp16"] / "model.onnx"
    assert not verify(model, checkpoint, [micrographs], max_error=1e-9, limit=3).passed
    wide = verify(model, checkpoint, [micrographs], max_error=1.0, limit=3, max_undecided=ImageLimit(3))
    assert wide.passed


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


def compared(
    expected: list[list[float]], found: list[list[float]], bar: Bar = BAR, labels: str = "xyz"
) -> Parity:
    """Two sets of logits, the undecided told by the bar's bound."""
    rows = [np.array(logits, np.float32) for logits in (expected, found)]
    return compare(
        *rows,
        images=[chr(ord("a") + number) for number in range(len(expected))],
        labels=labels,
        bar=bar,
        precision="fp16",
        executed_by="",
        undecided=undecided_images(*rows, bar.max_abs_error),
    )


def test_flips_are_counted_by_the_label_before() -> None:
    parity = compared(
        [[2, 1, 0], [0, 2, 1], [0, 2, 1.75]],
        [[2, 1, 0], [0, 2, 1], [0, 1.5, 1.75]],
        replace(BAR, max_abs_error=0.125),
    )
    assert (parity.flips, parity.flips_by_class) == (1, {"y": 1})
    assert parity.flipped_images == (Answer("c", "y", "z", 0.25),)
    assert parity.worst_image == "c"
    assert parity.max_abs_error == 0.5
    assert parity.failure == "a logit is off by 0.5, allowed 0.125; 1 of 3 labels flip, allowed 0"
    assert re.search(r"^  c +flipped, y -> z, margin 0.25$", parity.to_text(), flags=re.MULTILINE)


def test_a_flip_that_allowed_errors_explain_is_undecided_and_not_judged() -> None:
    bar = Bar(0.25, 0, "for a test", max_undecided=2)
    parity = compared(
        [[2, 1.625, 0], [0, 2, 1.5], [0, 1.75, 2]],  # margins 0.375, 0.5 = twice the bar, 0.25
        [[1.75, 1.875, 0], [0, 2, 1.5], [0, 1.75, 2]],
        bar,
    )
    assert parity.passed
    assert (parity.flips, parity.flips_by_class, parity.flipped_images) == (0, {}, ())
    assert (parity.undecided, parity.undecided_flips) == (2, 1)
    assert parity.undecided_images == (Answer("a", "x", "y", 0.375), Answer("c", "z", "z", 0.25))
    text = parity.to_text()
    assert "2 (66.67 %, allowed 2, 1 of them flipped): margin below 0.5, twice the bar" in text
    assert re.search(r"^  a +flipped, x -> y, margin 0.375$", text, flags=re.MULTILINE)
    assert re.search(r"^  c +z, margin 0.25$", text, flags=re.MULTILINE)
    written = json.loads(parity.to_json())
    assert written["undecided_images"][0] == {
        "image": "a",
        "reference": "x",
        "artefact": "y",
        "margin": 0.375,
    }

    too_many = replace(parity, bar=replace(bar, max_undecided=1))
    assert (
        too_many.failure
        == "the reference does not decide 2 of 3 images (66.7 %), allowed 1 where one flips, and 1 does "
        "(--max-undecided)"
    )
    assert too_many.summary == {
        "passed": False,
        "images": 3,
        "max_abs_error": 0.25,
        "allowed_error": 0.25,
        "flips": 0,
        "undecided": 2,
        "undecided_flips": 1,
    }


def test_however_many_images_are_undecided_where_none_flips_nothing_is_excused() -> None:
    parity = compared([[2, 1.75], [0, 0.25]], [[2, 1.875], [0, 0.125]], Bar(0.25, 0, "for a test"), "xy")
    assert (parity.undecided, parity.undecided_flips, parity.failure) == (2, 0, "")
    assert "2 (100.00 %, none of them flipped): margin below 0.5, twice the bar" in parity.to_text()


def test_a_flip_at_exactly_twice_the_bar_is_judged() -> None:
    parity = compared([[2, 1.5]], [[1.75, 1.875]], Bar(0.25, 0, "for a test", max_undecided=1), "xy")
    assert (parity.undecided, parity.flips) == (0, 1)
    assert not parity.passed


def test_without_a_bar_on_logits_every_flip_counts_and_shows_its_margin() -> None:
    parity = compared([[2, 1.875]], [[1, 2]], Bar(None, 0, "for a test"), "xy")
    assert parity.flipped_images == (Answer("a", "x", "y", 0.125),)
    assert not parity.passed
    assert "undecided" not in parity.to_text()


def test_one_class_has_no_margin_and_never_flips() -> None:
    parity = compared([[2], [1]], [[2], [1.05]], labels="x")
    assert parity.passed
    assert (parity.flips, parity.undecided) == (0, 0)


def test_logits_that_are_not_finite_never_pass() -> None:
    wide_open = Bar(1e9, 10, "wide open", max_undecided=10)
    parity = compared([[1, 1, 1], [1, 1, 1]], [[1, 1, 1], [1, np.nan, 1]], wide_open)
    assert not parity.passed
    assert parity.flipped_images == (Answer("b", "x", None, 0.0),)
    assert parity.undecided == 1
    assert parity.flipped_images[0].text == "flipped, x -> not finite, margin 0"
    assert parity.summary["max_abs_error"] is None
    assert json.loads(parity.to_json(), parse_constant=pytest.fail)["max_abs_error"] is None

    assert compared([[1, 1, 1]], [[1, 1, 1]], Bar(np.nan, 0, "of no number")).summary["allowed_error"] is None

    of_reference = compared([[np.inf, 1, 1]], [[1, 1, 1]], wide_open)
    assert not of_reference.passed
    assert of_reference.flipped_images == (Answer("a", None, "x", None),)
    assert of_reference.flips_by_class == {"not finite": 1}


def test_the_bar_and_not_the_artefact_says_which_images_are_undecided(
    bundles: dict[str, Path], micrographs: Path
) -> None:
    model, reference = bundles["fp16"] / "model.onnx", bundles["fp32"]
    measured = verify(model, reference, [micrographs], limit=6, max_error=1e9, max_undecided=ImageLimit(6))
    margins = sorted(answer.margin for answer in measured.undecided_images if answer.margin is not None)
    assert len(margins) == 6
    assert measured.passed

    half = margins[2] / 2  # the third is decided by this bar, by the next larger one it is not
    at = verify(model, reference, [micrographs], limit=6, max_error=half)
    above = verify(model, reference, [micrographs], limit=6, max_error=float(np.nextafter(half, 1)))
    assert (at.undecided, above.undecided) == (2, 3)
    assert verify(model, reference, [micrographs], limit=6).undecided == 0  # no bar


def test_where_no_module_departs_none_is_named(
    bundles: dict[str, Path], checkpoint: Path, micrographs: Path
) -> None:
    parity = verify(bundles["fp16"] / "model.onnx", checkpoint, [micrographs], max_error=1e-9, limit=3)
    assert not parity.passed
    assert parity.departure is None
    assert parity.failure.endswith("no module departs")
    assert re.search("^departs at +nowhere: on the worst image each", parity.to_text(), flags=re.MULTILINE)


def test_the_bar_is_twice_the_networks_own_error_and_that_of_float32_above_a_floor() -> None:
    own = OwnError(1e-3, 1e-4, 10.0, {"a": 2e-3, "b": 0.0}, {"a": 1e-4, "b": 0.0})
    ulp = float(np.finfo(np.float32).eps)
    assert own.logit_bound == pytest.approx(2.1e-3)
    assert own.with_logits(2e-3).logit_bound == pytest.approx(4.1e-3)
    assert own.with_logits(5e-4).logit_bound == own.logit_bound
    assert np.isnan(own.with_logits(np.nan).logits)
    assert replace(own, logits=0.0, float32_logits=0.0).logit_bound == pytest.approx(32 * ulp * 10)
    assert own.module_bound("a") == pytest.approx(4.1e-3)
    assert own.module_bound("b") == pytest.approx(32 * ulp)
    other = own.with_image(
        replace(own, modules={"a": 1e-3, "b": 3e-3}, float32_modules={"a": 2e-4, "b": 0.0})
    )
    assert (other.modules, other.float32_modules) == ({"a": 2e-3, "b": 3e-3}, {"a": 2e-4, "b": 0.0})


def test_a_file_of_somebody_elses_is_not_verified_nor_a_reference(
    bundles: dict[str, Path], micrographs: Path, tmp_path: Path
) -> None:
    ours, foreign = bundles["fp32"] / "model.onnx", tmp_path / "foreign.onnx"
    model = onnx.load(ours)
    del model.metadata_props[:]
    onnx.save(model, foreign)
    with pytest.raises(
        ArtefactError, match=r"foreign\.onnx has no manifest: verify a bundle or an ONNX file by"
    ):
        verify(foreign, ours, [micrographs])
    with pytest.raises(
        ArtefactError, match=r"foreign\.onnx has no manifest: give a bundle or an ONNX file by"
    ):
        verify(ours, foreign, [micrographs])


def test_a_module_is_held_against_the_networks_own_error_on_that_very_image(
    network: MicroscopicMamba, bundles: dict[str, Path]
) -> None:
    generator = np.random.default_rng(0)
    usual, image = generator.standard_normal((2, 1, 3, 32, 32)).astype(np.float32)
    own = OwnError.of(network, usual, "fp32")
    model = bundles["fp16"] / "model.onnx"  # errs like float16, so more than float32 did on another image
    assert first_departure(model, network, image, own) is not None
    assert first_departure(model, network, image, own.with_image(OwnError.of(network, image, "fp16"))) is None


@pytest.mark.parametrize(
    ("weight", "module"),
    [
        pytest.param(
            "layers.0.downsample.weights.reduction_weight", "layers.0.downsample.reduction", id="merging"
        ),
        pytest.param("head.weight", "head", id="behind-it"),
    ],
)
def test_a_departure_is_found_in_files_from_before_patch_merging_was_one_operator(
    weight: str, module: str, network: MicroscopicMamba, bundles: dict[str, Path], tmp_path: Path
) -> None:
    model = flat_model(onnx.load(bundles["fp32"] / "model.onnx"))
    merging = "layers.0.downsample"
    earlier = {f"{merging}/PatchMerging/merged": merging, merging: f"{merging}.reduction"}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [earlier.get(name, name) for name in names]
    (tensor,) = (each for each in model.graph.initializer if each.name == weight)
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), weight))
    onnx.save(model, tmp_path / "earlier.onnx")
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    departure = first_departure(
        tmp_path / "earlier.onnx", network, image, OwnError.of(network, image, "fp32")
    )
    assert departure is not None
    assert departure.module == module


def test_a_network_that_overflows_float16_sets_no_bar_and_so_meets_none(
    make_network: Callable[..., MicroscopicMamba], copied: dict[str, Path], micrographs: Path
) -> None:
    network = make_network()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("PSFFN.conv_0.weight"):  # inside a block, whose kernels compute in float32
                tensor.mul_(1e6)
    save_checkpoint(
        copied["fp16"] / "large",
        network,
        labels=("a", "b", "c"),
        image_size=32,
        mean=(0.6, 0.5, 0.7),
        std=(0.2, 0.25, 0.15),
    )
    manifest = json.loads((copied["fp16"] / "manifest.json").read_text())
    manifest["checkpoint_sha256"] = sha256_of(copied["fp16"] / "large")
    (copied["fp16"] / "manifest.json").write_text(json.dumps(manifest))
    found = verify(copied["fp16"], copied["fp16"] / "large", [micrographs], limit=2)
    assert found.bar.max_abs_error is None
    assert not found.passed
    assert re.search(r"the network itself is not finite from layers\.0\.blocks\.0\.\S+ on", found.failure)
    assert "no bound on a logit's error" in found.failure
    assert found.departure is None
    asked = verify(copied["fp16"], copied["fp16"] / "large", [micrographs], limit=2, max_error=1e3)
    assert "no bound" not in asked.failure


@pytest.mark.parametrize("name", ["limit", "batch_size"])
def test_a_number_of_images_that_is_none_is_refused(
    name: str, bundles: dict[str, Path], checkpoint: Path, micrographs: Path
) -> None:
    with pytest.raises(InputError, match="is 0: expected at least 1"):
        verify(bundles["fp32"], checkpoint, [micrographs], **{name: 0})


@pytest.mark.parametrize("bound", [float("nan"), float("inf"), -1.0])
def test_a_bound_that_is_none_is_refused(bound: float, bundles: dict[str, Path], micrographs: Path) -> None:
    with pytest.raises(InputError, match="expected a finite bound of 0 or more"):
        verify(bundles["fp32"], bundles["fp32"], [micrographs], max_error=bound)


def test_float16_s_own_errors_are_those_of_an_image_and_of_the_image_turned_by_half(
    network: MicroscopicMamba,
) -> None:
    images = np.random.default_rng(0).standard_normal((5, 3, 32, 32)).astype(np.float32)
    turned = np.rot90(images, 2, (2, 3)).copy()
    errors = half_errors_of(network)(images)
    assert errors.shape == (5, network.arch.num_classes)
    assert (errors > 0).all()
    np.testing.assert_array_equal(errors, half_errors_of(network)(turned))
    own = OwnError.of(network, images, "fp16")  # as they are, against float64
    assert errors.max() >= own.logits - own.float32_logits
    assert errors.max() < 5 * own.logits


def test_the_networks_own_error_grows_with_less_precision(network: MicroscopicMamba) -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    exact_enough = OwnError.of(network, images, "fp32")
    half = OwnError.of(network, images, "fp16")
    assert 0 < exact_enough.logits < half.logits / 50
    assert half.float32_logits == exact_enough.logits
    assert list(half.modules)[-1] == "head"
    assert all(torch.isfinite(torch.tensor(error)) for error in half.modules.values())
