"""Plans that follow from harm: measured on a network whose harm is planted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL_LABELS
from onnx import ModelProto, numpy_helper

from msmamba.calib import CalibrationSet, choose
from msmamba.errors import ArtefactError, ExportError, InputError
from msmamba.export.graph.judging import Judge, Judgement, Limits, limits_of
from msmamba.export.graph.onnx_model import flat_model
from msmamba.export.graph.plan import Plan
from msmamba.export.graph.products import CONVOLUTION, KINDS, Product, products
from msmamba.export.graph.quantise import int8_from_fp32
from msmamba.export.graph.sensitivity import find_plan, measure_sensitivity
from msmamba.images import Transform, read_image
from msmamba.measures.decision import ImageLimit
from msmamba.model import MicroscopicMamba
from msmamba.model.networks.registry import family_of
from msmamba.runtime.onnxruntime_backend import OnnxRuntimeBackend

TRANSFORM = Transform(32, (0.6, 0.5, 0.7), (0.2, 0.25, 0.15))
BAD_UNITS = ("layers.1.blocks.0", "layers.0.downsample")
"""The unit whose activations get a range a hundred times too narrow."""


@pytest.fixture(scope="module")
def images(labelled: Path) -> CalibrationSet:
    folder = labelled / "val"
    samples = [(path, path.parent.name) for path in sorted(folder.glob("*/*"))]
    return choose(folder, samples, SMALL_LABELS, count=12)


@pytest.fixture(scope="module")
def flat(small_onnx: ModelProto, images: CalibrationSet) -> ModelProto:
    """The small network, its classes moved so close together that labels differ and flip easily."""
    model = flat_model(small_onnx)
    batch = np.stack([TRANSFORM(read_image(image.source)) for image in images.images])
    backend = OnnxRuntimeBackend(model.SerializeToString(), "the small network")
    logits = backend.run(batch)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    moved = numpy_helper.to_array(bias) - logits.mean(0)
    bias.CopyFrom(numpy_helper.from_array(moved, bias.name))
    return model


@pytest.fixture(scope="module")
def judge(flat: ModelProto, images: CalibrationSet) -> Judge:
    return Judge(flat, images, SMALL_LABELS, TRANSFORM)


@pytest.fixture(scope="module")
def found(flat: ModelProto, network: MicroscopicMamba) -> list[Product]:
    return products(flat, family_of(network).units(network))


class Quantiser:
    """Good ranges everywhere but in `BAD_UNITS`, and a record of what was asked."""

    def __init__(self, flat: ModelProto, found: Sequence[Product]) -> None:
        self.flat = flat
        self.ranges = {product.activation: 8.0 for product in found}
        self.ranges |= {product.activation: 0.02 for product in found if product.unit in BAD_UNITS}
        self.asked: list[int] = []

    def __call__(self, chosen: Sequence[Product]) -> ModelProto:
        self.asked.append(len(chosen))
        return int8_from_fp32(self.flat, self.ranges, [product.node for product in chosen])


def test_the_same_network_does_no_harm(flat: ModelProto, judge: Judge) -> None:
    judgement = judge.of(flat)
    assert (judgement.images, judgement.flips, judgement.accuracy_drop) == (12, 0, 0)
    assert judgement.logit_error == 0
    assert Limits(0, ImageLimit(0)).missed(judgement) == ""


def test_a_broken_network_is_refused(flat: ModelProto, judge: Judge) -> None:
    broken = ModelProto()
    broken.CopyFrom(flat)
    bias = next(tensor for tensor in broken.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(3, np.nan, np.float32), bias.name))
    with pytest.raises(ArtefactError, match="not finite"):
        judge.of(broken)


def test_units_are_ranked_by_the_harm_that_they_do(
    flat: ModelProto, judge: Judge, found: list[Product]
) -> None:
    sensitivity = measure_sensitivity(judge, Quantiser(flat, found), found, Plan(), KINDS)
    ranked = [harm.part for harm in sensitivity.units]
    assert set(ranked[:2]) == set(BAD_UNITS)
    assert len(ranked) == len(set(ranked)) == 8
    assert {harm.part for harm in sensitivity.kinds} == set(KINDS)
    assert sum(harm.share for harm in sensitivity.kinds) == pytest.approx(1)
    assert sensitivity.plot(Plan(kept=BAD_UNITS), "harm.png").startswith(b"\x89PNG")


def test_a_kind_that_a_network_lacks_is_not_ranked(
    flat: ModelProto, judge: Judge, found: list[Product]
) -> None:
    stem = [product for product in found if product.unit == "patch_embed"]
    assert {product.kind for product in stem} == {CONVOLUTION}
    quantiser = Quantiser(flat, found)
    sensitivity = measure_sensitivity(judge, quantiser, stem, Plan(), KINDS)
    assert [harm.part for harm in sensitivity.kinds] == [CONVOLUTION]
    assert 0 not in quantiser.asked
    assert sensitivity.plot(Plan(), "harm.png").startswith(b"\x89PNG")


def test_nothing_is_kept_or_ranked_where_all_of_it_does(
    flat: ModelProto, judge: Judge, found: list[Product]
) -> None:
    quantiser = Quantiser(flat, found)
    limits = Limits(100, ImageLimit(12))
    plan, _, _, sensitivity = find_plan(judge, quantiser, found, Plan(), limits)
    assert (plan, sensitivity, len(quantiser.asked)) == (Plan(), None, 1)


def test_the_fewest_units_that_meet_the_limits_are_kept(
    flat: ModelProto, judge: Judge, found: list[Product]
) -> None:
    quantiser = Quantiser(flat, found)
    allowed = judge.of(quantiser(Plan(kept=BAD_UNITS).chosen(found))).flips
    assert allowed < judge.of(quantiser(Plan().chosen(found))).flips  # or the test shows nothing
    limits = Limits(100, ImageLimit(allowed))
    plan, model, judgement, sensitivity = find_plan(judge, quantiser, found, Plan(), limits)
    assert sensitivity is not None
    assert plan.kept == tuple(harm.part for harm in sensitivity.units)[: len(plan.kept)]
    assert 1 <= len(plan.kept) <= 2
    assert judgement.flips <= allowed
    assert judge.of(model) == judgement


def test_limits_that_no_plan_meets_are_an_error(flat: ModelProto, judge: Judge, found: list[Product]) -> None:
    quantiser = Quantiser(flat, found)
    quantiser.ranges = dict.fromkeys(quantiser.ranges, 1e-4)
    with pytest.raises(ExportError, match=r"no plan meets the limits: .*labels flip.*--max-flips"):
        find_plan(judge, quantiser, found, Plan(), Limits(100, ImageLimit(0)))


@pytest.mark.parametrize(
    ("flips", "accuracy", "message"),
    [
        (1, 0.9, ""),
        (2, 0.9, r"2 of 200 labels flip \(allowed 0\.5 %\)"),
        (0, 0.89, r"accuracy drops by 1\.00 points \(allowed 0\.3\)"),
        (0, 0.95, ""),
        (0, 0.897, ""),
        (0, float("nan"), r"accuracy drops by nan points"),
    ],
    ids=["met", "flips", "accuracy", "better-than-float32", "just-what-is-allowed", "nan"],
)
def test_what_was_missed_is_said(flips: int, accuracy: float, message: str) -> None:
    judgement = Judgement(200, flips, accuracy, 0.9, 0.1, 0.3)
    if not message:
        Limits().check(judgement, "it")
        return
    with pytest.raises(ExportError, match=message):
        Limits().check(judgement, "it")


def test_limits_come_from_the_command_line() -> None:
    assert limits_of() == Limits()
    assert limits_of("2", 1.5) == Limits(1.5, ImageLimit(2))
    assert limits_of("1%") == Limits(0.3, ImageLimit(1, per_cent=True))
    with pytest.raises(InputError, match="'some' flips"):
        limits_of("some")
