"""How often a guard's promise holds where patients differ in how often the model is wrong.

Images are drawn of few patients, with the certainties of four classes' logits (`guard_promises.py`), and are
wrong as often as their certainty says, times their patient's factor or moved by their patient's log-odds. A
promise is kept where at most so many of the answers are wrong over all patients that there are. Thresholds
are chosen as if each image came alone, and by patients as `mmdeploy calibrate` does. The figures stand in
docs/guard.md.

    python benchmarks/guard_patients.py [--draws 400] [--images 1000] [--patients 5 --patients 10 …]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from guard_promises import population
from rich.console import Console
from rich.table import Table

from msmamba.measures.selective import certainty, select

Floats = npt.NDArray[np.float64]

LIFT, MAX_ERROR, CONFIDENCE = 2.8, 0.05, 0.95
BINS, MANY = 400, 20_000
"""Bins of certainty by which images are wrong, and patients over whom a risk is known."""


@dataclass(frozen=True)
class Law:
    """How patients differ, and how many images they have."""

    name: str
    deviation: float
    """Of the patients' factors, which are 1 on average, or of their log-odds."""
    by_odds: bool = False
    uneven: bool = False
    """The images of the k-th patient are as 1 / k, in place of as many of each."""

    def patients(self, generator: np.random.Generator, number: int) -> Floats:
        """(U,): what each moves."""
        if self.by_odds:
            return generator.normal(0, self.deviation, number)
        if not self.deviation:
            return np.ones(number)
        return generator.gamma(self.deviation**-2, self.deviation**2, number)

    def wrong(self, rates: Floats, moved: Floats) -> Floats:
        """How often images are wrong that are wrong at these rates on average."""
        if not self.by_odds:
            return np.minimum(1, rates * moved)
        odds = rates * np.exp(moved)
        return odds / (1 - rates + odds)


LAWS = (
    Law("all patients alike", 0),
    Law("rates by half", 0.5),
    Law("rates by as much", 1),
    Law("likewise, uneven", 1, uneven=True),
    Law("log-odds by 1", 1, by_odds=True),
)


def main() -> None:
    """Prints one row a law and number of patients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--patients", type=int, action="append")
    options = parser.parse_args()
    logits, truth = population(LIFT, 0)
    scores = certainty(logits)
    order = np.argsort(-scores)
    descending = -scores[order]
    edges = np.quantile(scores, np.linspace(0, 1, BINS + 1))[1:-1]
    bins = np.searchsorted(edges, scores)
    rates = np.bincount(bins, logits.argmax(axis=1) != truth, BINS) / np.bincount(bins, minlength=BINS)
    columns = ("broken, by images", "by patients", "refused", "best", "answered, by images", "by patients")
    table = Table("patients differ", "patients", *columns)
    for law in LAWS:
        many = law.patients(np.random.default_rng(9), MANY)
        true_rates = np.array([law.wrong(np.full(MANY, rate), many).mean() for rate in rates])
        risks = np.cumsum(true_rates[bins[order]]) / np.arange(1, len(order) + 1)
        best = (np.flatnonzero(risks[1000:] <= MAX_ERROR).max() + 1001) / len(order)
        for number in options.patients or (5, 10, 20, 50):
            generator = np.random.default_rng(1)
            broken, refused, answered = np.zeros(2), 0, np.zeros(2)
            for _ in range(options.draws):
                chosen = generator.integers(len(order), size=options.images)
                shares = 1 / np.arange(1, number + 1) if law.uneven else np.ones(number)
                members = generator.choice(number, options.images, p=shares / shares.sum())
                moved = law.patients(generator, number)[members]
                right = generator.random(options.images) >= law.wrong(rates[bins[chosen]], moved)
                members = np.unique(members, return_inverse=True)[1]
                for way, of in enumerate((None, members)):
                    selection = select(scores[chosen], right, MAX_ERROR, CONFIDENCE, of)
                    if selection is None:
                        refused += way
                        continue
                    threshold = -np.inf if selection.threshold is None else selection.threshold
                    count = int(np.searchsorted(descending, -threshold))
                    broken[way] += risks[max(count - 1, 0)] > MAX_ERROR
                    answered[way] += count / len(order)
            found = [f"{100 * each / options.draws:.1f} %" for each in (*broken, refused)]
            shares_answered = [f"{each / options.draws:.2f}" for each in answered]
            table.add_row(law.name, str(number), *found, f"{best:.2f}", *shares_answered)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
