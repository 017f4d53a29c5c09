"""How often a guard's promises hold, and how much it answers, on logits whose law is known.

2,000 logits are drawn many times from a law of four classes; risk and coverage of the thresholds are known
from the two million that they are drawn from. In the law `misled` the certainty misleads: one image in 250 is
given a certain and wrong answer, so that the most certain answers are more often wrong than others. The
figures stand in docs/guard.md.

    python benchmarks/guard_promises.py [--draws 1000] [--images 2000]
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from msmamba.measures.selective import candidate_bound, certainty, masses_above, select

CLASSES, POPULATION = 4, 2_000_000
LAWS = {"normal, 3 % wrong": (3.2, 0.0), "normal, 7 % wrong": (2.7, 0.0), "misled": (3.2, 0.004)}
"""How far the true class is lifted above unit noise, and the share of images that lift another, and twice."""


def population(lift: float, misled: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """(POPULATION, CLASSES) logits and the true classes."""
    generator = np.random.default_rng(0)
    truth = generator.integers(CLASSES, size=POPULATION)
    logits = generator.normal(size=(POPULATION, CLASSES))
    wrong = generator.random(POPULATION) < misled
    lifted = np.where(wrong, (truth + 1) % CLASSES, truth)
    logits[np.arange(POPULATION), lifted] += np.where(wrong, 2 * lift, lift)
    return logits, truth


def main() -> None:
    """Prints one row a law and promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args()
    table = Table(
        "law", "promise", "held, %", "refused, %", "best", "of the best", "its 5th", "truth in the set, %"
    )
    for name, law in LAWS.items():
        logits, truth = population(*law)
        scores, right = certainty(logits), logits.argmax(axis=1) == truth
        masses = np.sort(true_masses := masses_above(logits)[np.arange(POPULATION), truth])
        order = np.argsort(-scores)
        ordered = -scores[order]
        risks = np.cumsum(~right[order]) / np.arange(1, POPULATION + 1)
        for max_error in (0.01, 0.02):
            kept = np.flatnonzero(risks[1000:] <= max_error)  # the first thousand say nothing yet
            best = kept.max() + 1001 if len(kept) else 0
            generator = np.random.default_rng(1)
            held, refused, shares, sets = 0, 0, [], []
            for _ in range(options.draws):
                chosen = generator.integers(POPULATION, size=options.images)
                bound = candidate_bound(true_masses[chosen], max_error)
                sets.append(1.0 if bound is None else np.searchsorted(masses, bound, "right") / POPULATION)
                selection = select(scores[chosen], right[chosen], max_error, 0.95)
                if selection is None:
                    held, refused = held + 1, refused + 1
                    shares.append(0.0)
                    continue
                threshold = -np.inf if selection.threshold is None else selection.threshold
                answered = int(np.searchsorted(ordered, -threshold))
                held += bool(risks[answered - 1] <= max_error)
                shares.append(answered / best if best else np.nan)
            table.add_row(
                name,
                f"{100 * max_error:g} %",
                f"{100 * held / options.draws:.1f}",
                f"{100 * refused / options.draws:.1f}",
                f"{best / POPULATION:.3f}",
                f"{np.mean(shares):.3f}",
                f"{np.quantile(shares, 0.05):.3f}",
                f"{100 * np.mean(sets):.2f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
