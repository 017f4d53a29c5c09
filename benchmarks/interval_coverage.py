"""How often 95 % intervals hold the truth, where the truth is known.

Of accuracy, AUC, flips and their change: scores of two classes are drawn from two normal distributions, of
images by themselves or of patients who differ; another model's scores are these with noise, a shift and a
shift of each patient's. Of the calibration error, logits are drawn from a normal distribution, and whether
the answer is right by their softmax at another temperature. Of its change, another model's logits are these
times a factor, with noise; images are independent, or there four times, or of patients of about 20 images
whose answers are right by a temperature of their own. The figures stand in docs/verification.md.

    python benchmarks/interval_coverage.py [--trials 1000] [--paired]
"""

from __future__ import annotations

import argparse
from itertools import product

import numpy as np
from rich.console import Console
from rich.table import Table

from msmamba.measures.metrics import log_softmax
from msmamba.measures.paired import Auc, share_change, share_interval
from msmamba.measures.uncertainty import calibration_change, calibration_error

APART = {"accuracy 89 %": 3.0, "98 %": 5.0}
"""Distance of the two classes' scores, which deviate by 1 within a patient and by 0.7 among patients."""
MOVED = {"float16": (0.0, 0.002), "int8": (0.02, 0.05), "bad int8": (0.2, 0.3)}
"""Of the other model: the shift of all scores, and the deviation of each patient's shift and each image's."""
DRAWN = {
    "60 images": (60, 1),
    "210 images": (210, 1),
    "1,000 images": (1000, 1),
    "10 patients of 20": (10, 20),
    "30 patients of 20": (30, 20),
    "100 patients of 10": (100, 10),
}
OF_ONE_CLASS = {"patients of both classes": False, "patients of one class": True}
FIGURES = ("accuracy", "AUC", "flips", "change of accuracy", "change of AUC")
BY_IMAGES = "change of accuracy, resampled by images"
LAWS = ((1, 1.5, 5), (1, 4, 3), (0.7, 1.5, 5), (0.7, 4, 3), (0.4, 3, 8), (1.5, 1, 4))
"""What the logits are to be multiplied by to be right, their standard deviation, and classes."""
IMAGES = (20, 60, 320, 1000)
CHANGED = ((1, 1.5, 5), (0.7, 1.5, 5), (0.7, 4, 3), (1.5, 1, 4), (1, 12, 2), (0.5, 12, 2))
"""Laws of the model that is compared with."""
CHANGES = {
    "float16": (1, 0.003),
    "int8": (1, 0.05),
    "bad int8": (1, 0.3),
    "surer": (2, 0),
    "less sure": (0.6, 0),
}
"""What the other model's logits are multiplied by, and the deviation of what is added."""
ALIKE = {"images": 1, "four copies each": 4, "patients of 20": 20}
PATIENTS_DIFFER = 0.5
"""Standard deviation of the logarithm of the patients' factors."""


def _scores(
    units: int,
    each: int,
    one_class: bool,
    apart: float,
    moved: tuple[float, float],
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Classes, both models' scores and patients of images, as many of a patient as Poisson has it."""
    counts = np.maximum(1, generator.poisson(each, units)) if each > 1 else np.ones(units, int)
    patients = np.repeat(np.arange(units), counts)
    sick = np.arange(units) % 2 if one_class else generator.beta(2, 2, units)
    truth = (generator.random(len(patients)) < sick[patients]).astype(int)
    differ = generator.normal(0, 0.7, units)[patients]
    first = apart * (truth - 0.5) + differ + generator.normal(size=len(patients))
    shift, deviation = moved
    second = first + shift + generator.normal(0, deviation, units)[patients]
    return truth, first, second + generator.normal(0, deviation, len(patients)), patients


def _area(scores: np.ndarray, truth: np.ndarray, members: np.ndarray) -> Auc:
    return Auc.of(np.stack([-scores, scores], axis=1), truth, members)


def paired_coverage(
    drawn: tuple[int, int], one_class: bool, apart: float, moved: tuple[float, float], trials: int
) -> dict[str, tuple[float, float, float]]:
    """Of each figure the truth, the share of data sets whose intervals hold it, and their mean width.

    Beside them, of the change of accuracy, what 200 resamples by images hold, by percentiles, where an image
    changes (elsewhere they show no doubt).
    """
    generator = np.random.default_rng(0)
    _, each = drawn
    truth, first, second, patients = _scores(400_000 // each, each, one_class, apart, moved, generator)
    right, after = (first > 0) == truth, (second > 0) == truth
    areas = [_area(scores, truth, np.arange(len(truth))).value for scores in (first, second)]
    change = float(after.mean() - right.mean())
    known = right.mean(), areas[0], (right != after).mean(), change, areas[1] - areas[0]
    true = dict(zip(FIGURES, map(float, known), strict=True))
    true[BY_IMAGES] = change
    held, width = dict.fromkeys(true, 0.0), dict.fromkeys(true, 0.0)
    for _ in range(trials):
        truth, first, second, patients = _scores(*drawn, one_class, apart, moved, generator)
        if len(set(truth.tolist())) < 2:
            continue
        right, after = (first > 0) == truth, (second > 0) == truth
        before = _area(first, truth, patients)
        found = {
            "accuracy": share_interval(right, patients),
            "AUC": before.interval(),
            "flips": share_interval(right != after, patients),
            "change of accuracy": share_change(right & ~after, after & ~right, patients),
            "change of AUC": before.change_interval(_area(second, truth, patients)),
        }
        ends = {name: (interval.low, interval.high) for name, interval in found.items()}
        ends[BY_IMAGES] = ends["change of accuracy"]
        if (moves := after.astype(float) - right).any():
            weights = generator.multinomial(len(truth), np.full(len(truth), 1 / len(truth)), 200)
            ends[BY_IMAGES] = tuple(np.quantile(weights @ moves / len(truth), [0.025, 0.975]))
        for name, (low, high) in ends.items():
            held[name] += (low - 1e-6 <= true[name] <= high + 1e-6) / trials
            width[name] += (high - low) / trials
    return {name: (true[name], held[name], width[name]) for name in true}


def calibration_coverage(law: tuple[float, float, int], images: int, trials: int) -> tuple[float, float]:
    """The true calibration error, and the share of data sets whose intervals hold it."""
    factor, deviation, classes = law
    generator = np.random.default_rng(0)

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
        """How sure the answers are, and how often each is right."""
        logits = generator.normal(0, deviation, (count, classes))
        chances = np.exp(log_softmax(factor * logits))
        given = logits.argmax(axis=1)
        return np.exp(log_softmax(logits)).max(axis=1), chances[np.arange(count), given]

    confidence, chance = drawn(1_000_000)
    true, _ = calibration_error(confidence, chance)
    held = 0
    for _ in range(trials):
        confidence, chance = drawn(images)
        _, interval = calibration_error(confidence, generator.random(images) < chance)
        held += interval.low <= true + 1e-9 and true <= interval.high
    return true, held / trials


def change_coverage(
    law: tuple[float, float, int], change: tuple[float, float], alike: str, images: int, trials: int
) -> dict[str, float]:
    """The true change, the share of data sets whose intervals hold it, and their mean width.

    With it, the share that holds the change of two errors that are each in bins of their own, and the share
    of paired bootstraps by percentiles, of 200 resamples, that does.
    """
    factor, deviation, classes = law
    multiplied, added = change
    generator = np.random.default_rng(0)

    def drawn(units: int, each: int) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray, np.ndarray]:
        """Of two models, how sure each answer is and how often right, and what decides which class it is."""
        copies = each if alike.endswith("copies each") else 1
        factors = np.full((units, 1, 1), factor)
        if alike.startswith("patients"):
            factors = factors * np.exp(generator.normal(0, PATIENTS_DIFFER, (units, 1, 1)))
        logits = generator.normal(0, deviation, (units, each // copies, classes))
        chances = np.exp(log_softmax((factors * logits).reshape(-1, classes)))
        chances = chances.repeat(copies, axis=0)
        first = logits.reshape(-1, classes).repeat(copies, axis=0)
        noise = generator.normal(0, added, (len(first) // copies, classes)).repeat(copies, axis=0)
        both = [first, multiplied * first + noise]
        given = [logits.argmax(axis=1) for logits in both]
        sure = [np.exp(log_softmax(logits)).max(axis=1) for logits in both]
        below = generator.random((len(first) // copies, 1)).repeat(copies, axis=0)
        truth = (chances.cumsum(axis=1) < below).sum(axis=1)
        rows = np.arange(len(first))
        often = [chances[rows, each] for each in given]
        return sure, often, np.array(given), np.minimum(truth, classes - 1)

    sure, often, _, _ = drawn(300_000, 1)
    errors = [calibration_error(*each, binned_by=sure[0])[0] for each in zip(sure, often, strict=True)]
    true, own = errors[1] - errors[0], calibration_error(sure[1], often[1])[0] - errors[0]
    each = ALIKE[alike]
    groups = np.arange(images) // each
    held = {"interval": 0, "own bins": 0, "resampled": 0}
    width = 0.0
    for _ in range(trials):
        sure, _, given, truth = drawn(images // each, each)
        right = [labels == truth for labels in given]
        _, interval = calibration_change(sure, right, None if each == 1 else groups)
        held["interval"] += interval.low <= true + 1e-9 and true <= interval.high + 1e-9
        held["own bins"] += interval.low <= own + 1e-9 and own <= interval.high + 1e-9
        width += interval.width / trials
        weights = generator.multinomial(images, np.full(images, 1 / images), 200) / images
        drawn_errors = [
            np.abs((weights * (hits - confidence)) @ np.eye(15)[np.ceil(15 * confidence).astype(int) - 1])
            for hits, confidence in zip(right, sure, strict=True)
        ]
        low, high = np.quantile((drawn_errors[1] - drawn_errors[0]).sum(axis=1), [0.025, 0.975])
        held["resampled"] += low <= own <= high
    return {"true": true, "width": width} | {name: count / trials for name, count in held.items()}


def main() -> None:
    """Prints one row a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--paired", action="store_true", help="accuracy, AUC, flips and their change alone")
    options = parser.parse_args()
    for of_class, one_class in OF_ONE_CLASS.items():
        table = Table(
            "accuracy", "other model", "of", *FIGURES, BY_IMAGES, title=f"held, % (width), {of_class}"
        )
        for (name, apart), (other, moved), (of, drawn) in product(
            APART.items(), MOVED.items(), DRAWN.items()
        ):
            if one_class and drawn[1] == 1:
                continue
            found = paired_coverage(drawn, one_class, apart, moved, options.trials)
            table.add_row(
                name,
                other,
                of,
                *(f"{100 * held:.1f} ({100 * width:.3g})" for _, held, width in found.values()),
            )
        Console(width=150).print(table)
    if options.paired:
        return
    table = Table(
        "sure by", "spread", "classes", "calibration error, %", *(f"{n} images: held, %" for n in IMAGES)
    )
    for law in LAWS:
        true = [calibration_coverage(law, images, options.trials) for images in IMAGES]
        table.add_row(*map(str, law), f"{100 * true[0][0]:.2f}", *(f"{100 * held:.1f}" for _, held in true))
    Console().print(table)
    heads = "sure by,spread,classes,change,alike,images,true,held %,width,of own bins %,resampled %"
    table = Table(*heads.split(","), title="change of the calibration error, points")
    for law, (name, change), alike, images in product(CHANGED, CHANGES.items(), ALIKE, IMAGES[1:]):
        of_change = change_coverage(law, change, alike, images, options.trials // 5)
        row = [100 * of_change[each] for each in ("true", "interval", "width", "own bins", "resampled")]
        table.add_row(*map(str, law), name, alike, str(images), *(f"{value:.2f}" for value in row))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
