"""A network in int8: calibrated on images, quantised by a plan, judged by what it answers.

The last file of the line that the room's docstring tells: here its steps are taken, one after another. One
file does not serve a CPU and an engine alike, so the precision around the int8 products is chosen. Float32,
with the outputs of convolutions quantised and the block operators left whole, those with int8 products too,
is what there are CPU kernels for; float16, written flat and with inputs quantised only, is what TensorRT
fuses. docs/int8.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from ...calib import measure, range_of
from ...errors import ExportError, some
from ...images import Transform
from ...plugins.hybrid_block import INT8_WEIGHTS
from ...schema import as_json
from .inlining import block_nodes
from .int8_options import Prepared, Report
from .judging import Judge, Judgement
from .onnx_model import flat_model
from .plan import QUANTISED_KINDS, Plan
from .precision import fp16_from_fp32
from .products import KINDS, Product, measured_values, merged, products
from .quantise import Int8Proof, int8_from_fp32, int8_proof, with_int8_blocks
from .sensitivity import Sensitivity, find_plan, measure_sensitivity


@dataclass(frozen=True)
class Int8:
    """A quantised network and how it came about."""

    model: ModelProto
    proof: Int8Proof
    plan: Plan
    prepared: Prepared
    ranges: dict[str, float]
    """The largest absolute value told apart, by activation."""
    judgement: Judgement
    sensitivity: Sensitivity | None
    """None where it was not needed to find the plan."""

    @property
    def summary(self) -> tuple[str, str]:
        """What was quantised, and what it answers, a line each."""
        kept = ", ".join(self.plan.kept) or "none"
        return (
            f"int8: {len(self.proof.products)} products, {100 * self.proof.share:.1f} % of the multiply-adds "
            f"outside the scan; ranges by {self.prepared.options.method} on "
            f"{len(self.prepared.calibration.images)} images; units kept in floating point: {kept}",
            f"  on {self.judgement.images} {self.prepared.judged_on}: {self.judgement.summary}",
        )

    def to_dict(self) -> dict[str, Any]:
        """What the manifest says."""
        return {
            **self.proof.to_dict(),
            "plan": {"kept": list(self.plan.kept), "kinds": list(self.plan.kinds)},
            "calibration": {
                "method": self.prepared.options.method,
                **self.prepared.calibration.to_dict(),
                "notes": list(self.prepared.notes),
            },
            "judged": {
                "on": self.prepared.judged_on,
                "sha256": self.prepared.judged.digest,
                **self.judgement.to_dict(),
            },
        }

    def calibration_json(self) -> str:
        """Every image and every range, for a file beside the model."""
        content = {
            "method": self.prepared.options.method,
            **self.prepared.calibration.to_dict(),
            "files": self.prepared.calibration.listing(),
            "judged": self.prepared.judged.listing(),
            "ranges": self.ranges,
        }
        return as_json(content, indent=2) + "\n"


@dataclass(frozen=True)
class Quantiser:
    """Makes the network with just the given products in int8."""

    model: ModelProto
    """Float32, with its block operators."""
    flat: ModelProto
    """The same with all operators written out."""
    ranges: Mapping[str, float]
    half: bool
    """Float16 around the int8 products."""

    def __call__(self, chosen: Sequence[Product]) -> ModelProto:
        """Quantises products of `flat`."""
        if self.half:
            names = [product.node for product in chosen]
            return fp16_from_fp32(int8_from_fp32(self.flat, self.ranges, names))
        wanted = {product.output for product in chosen}
        untouched, whole = self._operators(wanted)
        base = merged(flat_model(self.model, [*untouched, *whole]))
        names = [product.node for product in products(base) if product.output in wanted]
        model = int8_from_fp32(base, self.ranges, names, outputs=True)
        return with_int8_blocks(model, self.ranges, whole)

    def _operators(self, wanted: Collection[str]) -> tuple[list[str], list[str]]:
        """Block operators that stay what they are, and those that have a form for what is quantised in them.

        The others are written out: there are no kernels for them.
        """
        found = products(self.flat)
        untouched, whole = [], []
        for node in block_nodes(self.model):
            inside = [
                product
                for product in found
                if product.output in node.output or product.output.startswith(f"{node.name}/")
            ]
            quantised = {product.output for product in inside if product.output in wanted}
            if not quantised:
                untouched.append(node.name)
            elif node.op_type in INT8_WEIGHTS and quantised == {
                product.output for product in inside if product.kind in QUANTISED_KINDS
            }:
                whole.append(node.name)
        return untouched, whole


def int8_network(
    model: ModelProto,
    units: Sequence[str],
    transform: Transform,
    prepared: Prepared,
    default_cache: Path,
    report: Report,
) -> Int8:
    """Quantises a network.

    Args:
        model: float32, from `onnx_model.onnx_from_network`; it is left as it is.
        units: the network's, which a plan speaks of (`Family.units`).
        transform: makes an image the network's input.
        prepared: how, and on which images.
        default_cache: where measured ranges are kept, unless the options say.
        report: is told each step as it begins.

    Raises:
        ImageError: an image cannot be read any more.
        InputError: the calibration cache is stale.
        ExportError: the plan is not for this network, no plan meets the limits, or the file does not hold the
            int8 that was planned.
    """
    options = prepared.options
    flat = merged(flat_model(model))
    found = products(flat, units)
    plan = prepared.plan or Plan()
    plan.chosen(found)

    # All of them, so that the cache serves every plan.
    histograms = measure(
        flat.SerializeToString(deterministic=True),
        sorted(measured_values(found)),
        prepared.calibration,
        transform,
        default_cache if options.cache is None else options.cache,
        advance=counting(report, "calibrating"),
    )
    report(f"finding ranges by {options.method}")
    kinds = KINDS if options.sensitivity else plan.kinds
    needed = measured_values(product for product in found if product.kind in kinds)
    ranges = {name: range_of(histograms[name], options.method) for name in sorted(needed)}

    quantised = Quantiser(model, flat, ranges, options.half)
    judge = Judge(model, prepared.judged, prepared.labels, transform, report)
    sensitivity = measure_sensitivity(judge, quantised, found, plan, kinds) if options.sensitivity else None
    if prepared.plan is None:
        plan, final, judgement, sensitivity = find_plan(
            judge, quantised, found, plan, options.limits, sensitivity
        )
    else:
        report("judging the plan")
        final = quantised(plan.chosen(found))
        judgement = judge.of(final)
        options.limits.check(judgement, f"the plan '{options.plan}'")
    proof = int8_proof(final, flat)
    missing = sorted({product.node for product in plan.chosen(found)} - set(proof.products))
    if missing:
        raise ExportError(f"{len(missing)} products were to be int8 and are not: {some(missing)}")
    used = measured_values(plan.chosen(found))
    ranges = {name: value for name, value in ranges.items() if name in used}
    return Int8(final, proof, plan, prepared, ranges, judgement, sensitivity)


def counting(report: Report, what: str) -> Callable[[int, int], None]:
    """Reports images done as steps, twenty in all: a log would not want a line for each."""

    def advance(done: int, images: int) -> None:
        report(f"{what}: {done - done % max(1, images // 20) if done < images else done} of {images} images")

    return advance
