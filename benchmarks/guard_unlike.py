"""How well scores tell images that are unlike the calibration set: other classes or data, blur, another hue.

    python benchmarks/guard_unlike.py BUNDLE DATA [--unlike NAME=FOLDER]… [--cache FILE.npz]

Scores are fitted on the `val` images of DATA and tell its `test` images from all images of each FOLDER, and
from the test images themselves after a blur or a turn of the hue. For each score: the area under the ROC
curve, and the false alarms where 95 % are detected. Whatever a score is called, more is more unlike. Then
what a guard withholds that `mmdeploy calibrate --max-error 10%` would fit: for features, for the picture, for
either, and for any reason. The figures stand in docs/guard.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from guard_answers import Answers, Floats, all_answers
from rich.console import Console
from rich.table import Table

from msmamba.calib.guard import fit_guard
from msmamba.measures.selective import certainty
from msmamba.runtime.guard import UNLIKE
from msmamba.runtime.likeness import Likeness


def fitted(reference: Answers) -> dict[str, Callable[[Answers], Floats]]:
    """The scores by name, fitted on the calibration images' answers; each gives (N,)."""
    classes = reference.logits.shape[1]
    members = [reference.features[reference.truth == index] for index in range(classes)]
    means = np.stack([each.mean(axis=0) for each in members])
    within = np.concatenate([each - mean for each, mean in zip(members, means, strict=True)])
    everywhere = reference.features - (centre := reference.features.mean(axis=0))
    whitened, whitened_all = (shrunk_inverse(deviations) for deviations in (within, everywhere))

    likeness = Likeness.of(reference.features, reference.truth)
    assert likeness is not None

    def to_nearest_mean(features: Floats) -> Floats:
        return np.min([squares(features - mean, whitened) for mean in means], axis=0)

    def to_neighbour(given: Floats, normalise: bool, place: int) -> Floats:
        rows, known = (
            each / np.linalg.norm(each, axis=1, keepdims=True) if normalise else each
            for each in (given, reference.features)
        )
        distances = np.linalg.norm(rows[:, None] - known[None], axis=2)
        distances[distances < 1e-9] = np.inf  # an image is not its own neighbour
        return np.sort(distances, axis=1)[:, place - 1]

    return {
        "largest logit": lambda given: -given.logits.max(axis=1),
        "energy": lambda given: -np.logaddexp.reduce(given.logits, axis=1),
        "certainty": lambda given: -certainty(given.logits),
        "Mahalanobis": lambda given: to_nearest_mean(given.features),
        "relative Mahalanobis": lambda given: (
            to_nearest_mean(given.features) - squares(given.features - centre, whitened_all)
        ),
        "Mahalanobis of a probabilistic PCA": lambda given: likeness.distances(given.features),
        "1st neighbour": lambda given: to_neighbour(given.features, False, 1),
        "5th neighbour": lambda given: to_neighbour(given.features, False, 5),
        "1st neighbour, normalised": lambda given: to_neighbour(given.features, True, 1),
        "5th neighbour, normalised": lambda given: to_neighbour(given.features, True, 5),
    }


def shrunk_inverse(deviations: Floats) -> Floats:
    """The inverse of their covariance after Ledoit and Wolf (2004), which more features than images need."""
    from sklearn.covariance import ledoit_wolf  # type: ignore[import-untyped]  # ships no types

    return np.linalg.inv(ledoit_wolf(deviations, assume_centered=True)[0])


def squares(deviations: Floats, inverse: Floats) -> Floats:
    """(N,): the squared Mahalanobis lengths of (N, F) deviations."""
    return np.einsum("nf,fg,ng->n", deviations, inverse, deviations)


def separation(like: Floats, unlike: Floats) -> tuple[float, float]:
    """The area under the ROC curve, and the false alarms where 95 % of what is unlike are detected."""
    ordered = np.sort(like)
    below = np.searchsorted(ordered, unlike, "left") + np.searchsorted(ordered, unlike, "right")
    threshold = np.quantile(unlike, 0.05, method="lower")
    return float(below.mean() / 2 / len(like)), float((like >= threshold).mean())


def withheld_by(reference: Answers, others: list[Answers]) -> dict[str, list[float]]:
    """What the guard of the calibration images withholds of others, by the reason."""
    guard, _, _ = fit_guard(
        reference.logits,
        reference.features,
        reference.qualities,
        reference.truth,
        0.1,
        0.95,
        "ab" * 32,
        "the val images",
    )
    shares: dict[str, list[float]] = {name: [] for name in ("features", "picture", "either", "all")}
    for each in others:
        distances = guard.distances(each.features)
        by_features = np.array(
            [UNLIKE in said.reasons for said in guard.judge(each.logits, distances=distances)]
        )
        by_picture = np.array([bool(guard.faults(quality)) for quality in each.qualities])
        everything = guard.judge(each.logits, each.qualities, distances)
        shares["features"].append(float(by_features.mean()))
        shares["picture"].append(float(by_picture.mean()))
        shares["either"].append(float((by_features | by_picture).mean()))
        shares["all"].append(float(np.mean([bool(said.reasons) for said in everything])))
    return shares


def main() -> None:
    """Prints a table of each measure: a row a score, a column for what is unlike."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("data")
    parser.add_argument("--unlike", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    unlike = dict(each.split("=", 1) for each in options.unlike)
    found = all_answers(options.cache, options.bundle, options.data, unlike, changed=True)
    reference, like = found.pop("val"), found.pop("test")
    scores = fitted(reference)
    values = {name: {what: score(each) for what, each in found.items()} for name, score in scores.items()}
    areas, alarms, withheld = (
        Table(title, *columns)
        for title, columns in (
            ("area under ROC", found),
            ("false alarms, %", found),
            ("withheld, %", ["test", *found]),
        )
    )
    for name, by_what in values.items():
        separated = [separation(scores[name](like), each) for each in by_what.values()]
        areas.add_row(name, *(f"{area:.3f}" for area, _ in separated))
        alarms.add_row(name, *(f"{100 * share:.1f}" for _, share in separated))
    said = withheld_by(reference, [like, *found.values()])
    for name, shares in said.items():
        withheld.add_row(name, *(f"{100 * share:.1f}" for share in shares))
    for table in (areas, alarms, withheld):
        Console(width=200).print(table)


if __name__ == "__main__":
    main()
