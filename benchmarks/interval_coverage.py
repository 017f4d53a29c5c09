"""How often the bootstrap's 95 % intervals hold the truth, where the truth is known.

Scores of two classes are drawn from two normal distributions a given distance apart, so AUC and accuracy are
known in closed form. The figures stand in docs/verification.md.

    python benchmarks/interval_coverage.py [--trials 1000] [--resamples 400]
"""

from __future__ import annotations

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import norm

from msmamba.measures.uncertainty import resample

CASES = ((1, 60), (2, 60), (3, 60), (4, 60), (4, 105), (2, 20))
"""Distance of the distributions in standard deviations, and images of each class."""


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


if __name__ == "__main__":
    main()
