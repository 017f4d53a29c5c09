"""What is asked of int8, and on which images: checked before any work begins.

The ranges are measured on the training images, the plan is judged on others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...calib import METHODS, CalibrationSet, choose
from ...data.folders import match_labels, read_evaluation_folder
from ...data.imported import is_imported, read_imported
from ...data.samples import Sample
from ...data.splitting import SPLITS
from ...errors import DataError, InputError, reason_of
from ...files import read_file
from ...images import noting
from .judging import Limits
from .plan import Plan

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


def prepare(options: Int8Options, labels: tuple[str, ...], white_level: int, report: Report) -> Prepared:
    """Chooses the images and reads the plan, so that what cannot work fails at once.

    Args:
        options: which images, and how many.
        labels: the network's class names.
        white_level: the value of white in 16-bit images.
        report: is told of each step.

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
    with noting() as tally:
        calibration = _chosen(options, samples, labels, options.images, white_level)
        judged_on, others = _judging_samples(options.data, labels, samples, calibration)
        judged = _chosen(options, others, labels, JUDGED_IMAGES, white_level, for_ranges=False)
    notes = (*notes, *tally.lines())
    return Prepared(options, labels, plan, calibration, judged, judged_on, notes)


def _chosen(
    options: Int8Options,
    samples: Sequence[Sample],
    labels: tuple[str, ...],
    count: int,
    white_level: int,
    *,
    for_ranges: bool = True,
) -> CalibrationSet:
    named = [(sample.source, labels[sample.label]) for sample in samples]
    return choose(
        options.data,
        named,
        labels,
        count=count,
        seed=options.seed,
        for_ranges=for_ranges,
        white_level=white_level,
    )


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
        raise DataError(f"'{path}' cannot be read: {reason_of(error)}") from error
    return Plan.from_json(content, str(path))
