"""How often the bootstrap's 95 % intervals hold the truth, where the truth is known.

Scores of two classes are drawn from two normal distributions a given distance apart, so AUC and accuracy are
known in closed form. Of the calibration error, logits are drawn from a normal distribution, and whether
the answer is right by their softmax at another temperature. The figures stand in docs/verification.md.

    python benchmarks/interval_coverage.py [--trials 1000] [--resamples 400]
"""

from __future__ import annotations

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import norm  # type: ignore[import-untyped]  # ships no types

from msmamba.measures.metrics import log_softmax
from msmamba.measures.uncertainty import calibration_error, resample

CASES = ((1, 60), (2, 60), (3, 60), (4, 60), (4, 105), (2, 20))
"""Distance of the distributions in standard deviations, and images of each class."""
LAWS = ((1, 1.5, 5), (1, 4, 3), (0.7, 1.5, 5), (0.7, 4, 3), (0.4, 3, 8), (1.5, 1, 4))
"""What the logits are to be multiplied by to be right, their standard deviation, and classes."""
IMAGES = (20, 60, 320, 1000)


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


if __name__ == "__main__":
    main()
