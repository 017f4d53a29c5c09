"""How often a guard's promises hold on real images: fitted on a random half of them, judged on the other.

    python benchmarks/guard_halves.py BUNDLE DATA [--group-by PATTERN] [--draws 1000] [--cache FILE.npz]
        [--no-features]

The `val` and `test` images of DATA, which training did not see, are halved many times, whole groups
(`--group-by` finds them in file names). A guard is fitted on one half as `mmdeploy calibrate` does it, and
answers on the other. The calibration error is that of the other half, before and at the temperature. The
error found is of a hundred images or so: where it is above what was promised, the promise need not be broken;
so the mean over halves is told, too, and the 5th and 95th percentiles. The figures stand in docs/guard.md.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
from guard_answers import Answers, Floats, all_answers
from rich.console import Console
from rich.table import Table

from msmamba.calib.guard import fit_guard
from msmamba.errors import DataError
from msmamba.measures.metrics import log_softmax
from msmamba.measures.uncertainty import reliability
from msmamba.runtime.guard import Guard

PROMISES = (0.01, 0.05, 0.10)


def halves(groups: npt.NDArray[np.int64], draws: int) -> list[npt.NDArray[np.bool_]]:
    """Random halves of the groups, as masks of the images."""
    generator, count = np.random.default_rng(0), groups.max() + 1
    return [(generator.permutation(count) < count // 2)[groups] for _ in range(draws)]


def calibration_error(answers: Answers, temperature: float) -> float:
    """The expected calibration error at a temperature."""
    return reliability(np.exp(log_softmax(answers.logits / temperature)), answers.truth).error


def judged(guard: Guard, answers: Answers) -> tuple[float, float, float]:
    """The share that is answered, that of wrong ones among these, and that of truths among candidates."""
    distances = guard.distances(answers.features)
    verdicts = guard.judge(answers.logits, answers.qualities, distances)
    decided = np.array([not each.reasons for each in verdicts])
    wrong = (answers.logits.argmax(axis=1) != answers.truth)[decided]
    held = [truth in each.candidates for truth, each in zip(answers.truth, verdicts, strict=True)]
    return float(decided.mean()), float(wrong.mean()) if len(wrong) else 0.0, float(np.mean(held))


def spread(values: list[float] | Floats) -> str:
    """Mean, and the 5th and 95th percentiles, per cent."""
    low, high = np.quantile(values, [0.05, 0.95])
    return f"{100 * np.mean(values):.2f} ({100 * low:.2f} to {100 * high:.2f})"


def main() -> None:
    """Prints the calibration error, and one row a promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("data")
    parser.add_argument("--group-by", metavar="PATTERN")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--no-features", action="store_true", help="as of an older bundle; much faster")
    options = parser.parse_args()
    found = all_answers(options.cache, options.bundle, options.data, {})
    everything = Answers._make(map(np.concatenate, zip(found["val"], found["test"], strict=True)))
    groups = np.arange(len(everything.truth))
    if options.group_by:
        matches = [re.search(options.group_by, name) for name in everything.names]
        if None in matches:
            parser.error(f"'{everything.names[matches.index(None)]}' does not match '{options.group_by}'")
        groups = np.unique([match[1] for match in matches if match], return_inverse=True)[1]
    wrong = (everything.logits.argmax(axis=1) != everything.truth).mean()
    print(f"{len(groups)} images in {groups.max() + 1} groups, {100 * wrong:.2f} % wrong")
    table = Table(
        "promise", "refused, %", "answered, %", "wrong of them, %", "kept on the half, %", "held, %"
    )
    fitted: list[list[float]] = []  # of the promise that was given most often: temperatures are alike
    for max_error in PROMISES:
        figures, errors, needed = [], [], set()
        for first in halves(groups, options.draws):
            fitting, other = everything.of(first), everything.of(~first)
            try:
                guard, _, _ = fit_guard(
                    fitting.logits,
                    None if options.no_features else fitting.features,
                    fitting.qualities,
                    fitting.truth,
                    max_error,
                    0.95,
                    "ab" * 32,
                    "half",
                )
            except DataError as error:
                needed.add(str(error).rpartition("; ")[2])
                continue
            figures.append(judged(guard, other))
            errors.append([calibration_error(other, 1), calibration_error(other, guard.temperature)])
        fitted = max(fitted, errors, key=len)
        refused = f"{100 * (1 - len(figures) / options.draws):.1f}"
        if not figures:
            table.add_row(f"{100 * max_error:g} %", refused, *["-"] * 4)
            print(f"{100 * max_error:g} %: {min(needed)}")
            continue
        answered, found_wrong, held = np.array(figures).T
        table.add_row(
            f"{100 * max_error:g} %",
            refused,
            spread(answered),
            spread(found_wrong),
            f"{100 * (found_wrong <= max_error).mean():.1f}",
            spread(held),
        )
    if fitted:
        before, after = np.array(fitted).T
        print(f"calibration error of the other half: {spread(before)} before, {spread(after)} after")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
