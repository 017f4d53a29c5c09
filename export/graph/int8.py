"""A network in int8: calibrated on images, quantised by a plan, judged by what it answers.

The ranges are measured on the training images, the plan is judged on others. One file does not serve a CPU
and an engine alike, so the precision around the int8 products is chosen. Float32, with the outputs of
convolutions quantised and the block operators that hold no int8 left whole, is what there are CPU kernels
for; float16, with inputs quantised only, is what TensorRT fuses. docs/int8.md has the measurements.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto

from ...calib import METHODS, CalibrationSet, choose, measure, range_of
from ...data.folders import match_labels, read_evaluation_folder
from ...data.imported import is_imported, read_imported
from ...data.samples import Sample
from ...data.splitting import SPLITS
from ...errors import DataError, ExportError, InputError
from ...files import read_file
from ...images import Transform
from .inlining import block_nodes
from .onnx_model import flat_model
from .precision import fp16_from_fp32
from .quantise import KINDS, LINEAR, Int8Proof, Plan, Product, int8_from_fp32, int8_proof, merged, products
from .sensitivity import Judge, Judgement, Limits, Sensitivity, find_plan, measure_sensitivity

DEFAULT_METHOD, DEFAULT_IMAGES = "percentile", 128
JUDGED_IMAGES = 256
"""How many images a plan is judged on, at most."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Int8Options:
    """How to quantise."""

    data: str | Path
    """Labelled images: ``{train,val,test}/<class>/*``, whose training split is used, or ``<class>/*``."""
    method: str = DEFAULT_METHOD
    """One of `calib.METHODS`."""
    images: int = DEFAULT_IMAGES
    """How many images to calibrate on; all, where there are fewer."""
    seed: int = 0
    """Seed of the choice of those images."""
    cache: str | Path | None = None
    """File of the measured ranges; beside the bundle by default."""
    plan: str | Path | None = None
    """File of a plan to follow; otherwise one is found."""
    limits: Limits = field(default_factory=Limits)
    """What a plan must meet."""
    sensitivity: bool = False
    """Rank the units even where everything can be quantised."""
    half: bool = False
    """Float16 around the int8 products, as for engines."""


@dataclass(frozen=True)
class Prepared:
    """What was asked for, checked before any work begins."""

    options: Int8Options
    labels: tuple[str, ...]
    plan: Plan | None
    calibration: CalibrationSet
    judged: CalibrationSet
    judged_on: str
    """What the images are that a plan is judged on, in words."""
    notes: tuple[str, ...] = ()
    """What there is to say of the folder, a line each."""


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
    def summary(self) -> str:
        """Lines for a terminal."""
        kept = ", ".join(self.plan.kept) or "none"
        return (
            f"int8: {len(self.proof.products)} products, {100 * self.proof.share:.1f} % of the multiply-adds "
            f"outside the scan; ranges by {self.prepared.options.method} on "
            f"{len(self.prepared.calibration.images)} images; units kept in floating point: {kept}\n"
            f"  on {self.judgement.images} {self.prepared.judged_on}: {self.judgement.summary}"
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
            "ranges": self.ranges,
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def prepare(options: Int8Options, labels: tuple[str, ...], report: Report) -> Prepared:
    """Chooses the images and reads the plan, so that what cannot work fails at once.

    Raises:
        DataError: the folder cannot be calibrated on: empty, unknown classes, images of one colour.
        ImageError: an image cannot be read.
        InputError: the method is unknown, or the plan cannot be read.
    """
    if options.method not in METHODS:
        raise InputError(f"method {options.method!r} is unknown: choose one of {', '.join(METHODS)}")
    plan = None if options.plan is None else _read_plan(options.plan)
    samples, notes = calibration_samples(options.data, labels)
    report(f"choosing calibration images from {len(samples)}")
    calibration = _chosen(options, samples, labels, options.images)
    judged_on, others = _judging_samples(options.data, labels, samples, calibration)
    judged = _chosen(options, others, labels, JUDGED_IMAGES, for_ranges=False)
    return Prepared(options, labels, plan, calibration, judged, judged_on, notes)


def int8_network(
    model: ModelProto, transform: Transform, prepared: Prepared, default_cache: Path, report: Report
) -> Int8:
    """Quantises a network.

    Args:
        model: float32, from `onnx_model.onnx_from_network`; it is left as it is.
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
    found = products(flat)
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

    def quantised(chosen: Sequence[Product]) -> ModelProto:
        if options.half:
            return fp16_from_fp32(int8_from_fp32(flat, ranges, [product.node for product in chosen]))
        base = merged(flat_model(model, _untouched(model, chosen)))
        wanted = {product.output for product in chosen}
        names = [product.node for product in products(base) if product.output in wanted]
        return int8_from_fp32(base, ranges, names, outputs=True)

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
        raise ExportError(f"{len(missing)} products were to be int8 and are not: {', '.join(missing)}")
    used = measured_values(plan.chosen(found))
    ranges = {name: value for name, value in ranges.items() if name in used}
    return Int8(final, proof, plan, prepared, ranges, judgement, sensitivity)


def _untouched(model: ModelProto, chosen: Sequence[Product]) -> list[str]:
    """The block operators in which nothing is quantised: they stay operators, for which there are kernels."""
    return [
        node.name
        for node in block_nodes(model)
        if not any(product.output.startswith(f"{node.name}/") for product in chosen)
    ]


def measured_values(found: Iterable[Product]) -> set[str]:
    """The activations that ranges are needed of."""
    listed = list(found)
    outputs = {product.output for product in listed if product.kind != LINEAR}
    return outputs | {product.activation for product in listed}


def _chosen(
    options: Int8Options,
    samples: Sequence[Sample],
    labels: tuple[str, ...],
    count: int,
    *,
    for_ranges: bool = True,
) -> CalibrationSet:
    named = [(sample.source, labels[sample.label]) for sample in samples]
    return choose(options.data, named, labels, count=count, seed=options.seed, for_ranges=for_ranges)


def _judging_samples(
    data: str | Path, labels: tuple[str, ...], samples: Sequence[Sample], calibration: CalibrationSet
) -> tuple[str, Sequence[Sample]]:
    """The images that a plan is judged on: never the test split, and not those of the ranges if avoidable."""
    if "val" in _splits(data):
        (validation,) = match_labels(read_evaluation_folder(data, "val"), labels).splits.values()
        return "validation images", validation
    taken = {image.source for image in calibration.images}
    others = [sample for sample in samples if sample.source not in taken]
    if {sample.label for sample in others} == set(range(len(labels))):
        return "images that it was not calibrated on", others
    return "images that it was calibrated on, for want of others", samples


def counting(report: Report, what: str) -> Callable[[int, int], None]:
    """Reports images done as steps, twenty in all: a log would not want a line for each."""

    def advance(done: int, images: int) -> None:
        report(f"{what}: {done - done % max(1, images // 20) if done < images else done} of {images} images")

    return advance


def _splits(data: str | Path) -> list[str]:
    """The splits that a folder has: none for a flat one."""
    if is_imported(Path(data)):
        splits = read_imported(Path(data)).splits
        return [name for name in SPLITS if splits.get(name)]
    return [name for name in SPLITS if (Path(data) / name).is_dir()]


def calibration_samples(
    data: str | Path, labels: tuple[str, ...]
) -> tuple[Sequence[Sample], tuple[str, ...]]:
    """The labelled images to calibrate on (the training split, or all of a flat folder), and notes on them.

    Raises:
        DataError: the folder has no images, classes that the network does not know, or other splits only.
    """
    splits = _splits(data)
    if splits and "train" not in splits:
        raise DataError(
            f"{data}: has no training images to measure ranges on, only {' and '.join(splits)}: add train, "
            "or give folders of classes without splits"
        )
    folder = match_labels(read_evaluation_folder(data, "train" if splits else None), labels)
    (samples,) = folder.splits.values()
    return samples, folder.notes


def _read_plan(path: str | Path) -> Plan:
    try:
        content = read_file(path)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}") from error
    return Plan.from_json(content, str(path))
