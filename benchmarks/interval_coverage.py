"""How often the bootstrap's 95 % intervals hold the truth, where the truth is known.

Scores of two classes are drawn from two normal distributions a given distance apart, so AUC and accuracy are
known in closed form. Of the calibration error, logits are drawn from a normal distribution, and whether
the answer is right by their softmax at another temperature. Of its change, another model's logits are these
times a factor, with noise; images are independent, or there four times, or of patients of about 20 images
whose answers are right by a temperature of their own. The figures stand in docs/verification.md.

    python benchmarks/interval_coverage.py [--trials 1000] [--resamples 400]
"""

from __future__ import annotations

import argparse
from itertools import product

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import norm  # type: ignore[import-untyped]  # ships no types

from msmamba.measures.metrics import log_softmax
from msmamba.measures.uncertainty import calibration_change, calibration_error, resample

CASES = ((1, 60), (2, 60), (3, 60), (4, 60), (4, 105), (2, 20))
"""Distance of the distributions in standard deviations, and images of each class."""
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


def coverage(distance: float, images: int, trials: int, resamples: int) -> dict[str, float]:
    """The shares of data sets whose intervals hold the truth."""
    known = {"auc": norm.cdf(distance / np.sqrt(2)), "accuracy": norm.cdf(distance / 2)}
    held = {"auc": 0, "accuracy": 0, "auc by percentiles": 0}
    truth = np.repeat([0, 1], images)
    generator = np.random.default_rng(0)
    for trial in range(trials):
        scores = generator.normal(size=2 * images) + distance * (truth - 0.5)
        second = 1 / (1 + np.exp(-scores))
        probabilities = np.stack([1 - second, second], axis=1)
        (figures,) = resample([probabilities], truth, resamples=resamples, seed=trial)
        for name, value in known.items():
            interval = getattr(figures, name).interval()
            held[name] += bool(interval.low <= value <= interval.high)
        assert figures.auc is not None
        low, high = np.quantile(figures.auc.values, [0.025, 0.975])
        held["auc by percentiles"] += bool(low <= known["auc"] <= high)
    return {name: count / trials for name, count in held.items()}


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
    parser.add_argument("--resamples", type=int, default=400)
    options = parser.parse_args()
    table = Table("images", "AUC", "held, %", "by percentiles, %", "accuracy", "held, %")
    for distance, images in CASES:
        found = coverage(distance, images, options.trials, options.resamples)
        table.add_row(
            str(2 * images),
            f"{norm.cdf(distance / np.sqrt(2)):.4f}",
            f"{100 * found['auc']:.1f}",
            f"{100 * found['auc by percentiles']:.1f}",
            f"{norm.cdf(distance / 2):.4f}",
            f"{100 * found['accuracy']:.1f}",
        )
    Console().print(table)
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
        found = change_coverage(law, change, alike, images, options.trials // 5)
        row = [100 * found[each] for each in ("true", "interval", "width", "own bins", "resampled")]
        table.add_row(*map(str, law), name, alike, str(images), *(f"{value:.2f}" for value in row))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
