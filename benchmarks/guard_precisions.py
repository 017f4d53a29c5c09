"""How many images another precision decides otherwise: one guard, the same images, bundles of one model.

    python benchmarks/guard_precisions.py DATA FIRST OTHER… [--max-error 0.05]

A guard is fitted on the `val` images by FIRST (float32, say) and put to the answers of each OTHER, as if it
had not to be fitted again; and fitted by OTHER itself, as it has to. Told of the `test` images: how many are
decided otherwise than by FIRST with its own guard, and how many of those that both decide get another label.
The figures stand in docs/guard.md.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt
from guard_answers import Answers, all_answers
from rich.console import Console
from rich.table import Table

from msmamba.calib.guard import fit_guard
from msmamba.runtime.guard import Guard


def fitted(answers: Answers, max_error: float) -> Guard:
    """The guard of answers on the calibration images."""
    guard, _, _ = fit_guard(
        answers.logits,
        answers.features,
        answers.qualities,
        answers.truth,
        max_error,
        0.95,
        "ab" * 32,
        "the val images",
    )
    return guard


def decided(guard: Guard, answers: Answers) -> npt.NDArray[np.bool_]:
    """(N,): which images are decided."""
    distances = guard.distances(answers.features)
    verdicts = guard.judge(answers.logits, answers.qualities, distances)
    return np.array([not each.reasons for each in verdicts])


def main() -> None:
    """Prints a row a bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--max-error", type=float, default=0.05)
    options = parser.parse_args()
    table = Table(
        "bundle", "images", "decided", "otherwise, guard of the first", "own guard", "another label"
    )
    first: tuple[Guard, npt.NDArray[np.bool_], npt.NDArray[np.int64]] | None = None
    for bundle in options.bundles:
        found = all_answers(None, bundle, options.data, {})
        own, labels = fitted(found["val"], options.max_error), found["test"].logits.argmax(axis=1)
        here = decided(own, found["test"])
        first = first or (own, here, labels)
        guard, there, others = first
        borrowed = decided(guard, found["test"])
        figures = (
            len(here),
            here.sum(),
            (borrowed != there).sum(),
            (here != there).sum(),
            (labels != others)[here & there].sum(),
        )
        table.add_row(bundle, *map(str, figures))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
