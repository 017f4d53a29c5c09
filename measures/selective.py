"""When an answer can be trusted: the temperature, the threshold that keeps a promise, and sets of candidates.

A threshold is chosen on labelled images so that the *risk*, the share of wrong answers among those that are
given, is at most what was asked for, at a confidence that was asked for. Images are taken in the order of
their certainty, which needs no label, and prefixes of that order are tested by the exact binomial bound
(Clopper and Pearson, 1934). Searching is corrected for by testing in a fixed sequence (Angelopoulos et al.,
"Learn then Test", 2021): from the strictest prefix on, until one fails; so a fine grid costs nothing. One
failure by bad luck would end all, so there are `STARTS` sequences, each at its share of the doubt. The
promise is exact where less certain answers are not more often right.

Neither the certainty nor the masses above depend on the temperature: that is fitted on the same images, and
a promise holds for scores that were settled before their labels were seen.

Dims: N images, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .metrics import log_softmax

Floats = npt.NDArray[np.float64]

STARTS = 3
"""Sequences of tests; with one, a single early error of 300 images would forbid all larger coverages."""
PREFIXES = 60
"""Prefixes that are tested, in equal ratios: two neighbours differ by some per cent of the images."""
TEMPERATURES = (0.02, 50.0)
"""The least and the largest temperature that is looked for."""


@dataclass(frozen=True)
class Selection:
    """A threshold on the certainty, and what the images it was chosen on say of it."""

    threshold: float | None
    """Images of a larger certainty are answered; None: all are."""
    images: int
    answered: int
    errors: int
    """Wrong ones among the answered."""

    @property
    def coverage(self) -> float:
        """The share of images that are answered."""
        return self.answered / self.images


def certainty(logits: npt.NDArray[Any]) -> Floats:
    """(N,): the log-odds of the likeliest class, which do not saturate where its probability rounds to 1."""
    ordered = np.sort(np.asarray(logits, np.float64), axis=1)
    others = ordered[:, :-1]
    if not others.shape[1]:
        return np.full(len(ordered), np.inf)
    top = others[:, -1:]
    odds: Floats = ordered[:, -1] - top[:, 0] - np.log(np.exp(others - top).sum(axis=1))
    return odds


def masses_above(logits: npt.NDArray[Any]) -> Floats:
    """(N, C): the probability of all classes that are likelier than each; 0 for the likeliest."""
    probabilities = np.exp(log_softmax(np.asarray(logits, np.float64)))
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1)
    masses = np.zeros_like(ranked)
    np.cumsum(ranked[:, :-1], axis=1, out=masses[:, 1:])
    above = np.empty_like(masses)
    np.put_along_axis(above, order, masses, axis=1)
    return above


def temperature(logits: npt.NDArray[Any], truth: npt.NDArray[np.integer[Any]]) -> float:
    """What the logits are to be divided by so that the truth is likeliest (Guo et al., 2017).

    Args:
        logits: (N, C), finite.
        truth: (N,), class indices.

    Returns:
        The temperature; 1 where the likelihood has no maximum (every image is right, say).
    """
    rows = np.asarray(logits, np.float64)
    true = rows[np.arange(len(rows)), truth]

    def slope(inverse: float) -> float:
        """The mean loss's derivative by 1 / temperature, which rises with it."""
        probabilities = np.exp(log_softmax(rows * inverse))
        return float(((probabilities * rows).sum(axis=1) - true).mean())

    low, high = (1 / value for value in reversed(TEMPERATURES))
    if not slope(low) < 0 < slope(high):
        return 1.0
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / math.sqrt(low * high)


def select(
    scores: Floats, right: npt.NDArray[np.bool_], max_error: float, confidence: float
) -> Selection | None:
    """The threshold that answers most images while it keeps a promise.

    Args:
        scores: (N,), the images' `certainty`.
        right: (N,), whether the likeliest class is the true one.
        max_error: the risk that is promised, in (0, 1).
        confidence: how surely, in (0, 1): the share of calibration sets whose threshold keeps the promise.

    Returns:
        None where no threshold can be promised to.
    """
    from scipy.stats import binom  # type: ignore[import-untyped]  # ships no types

    doubt = (1 - confidence) / STARTS
    images = len(scores)
    least = _fewest(max_error, doubt)
    if images < least:
        return None
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    wrong = np.concatenate([[0], np.cumsum(~right[order])])
    sizes = np.unique(np.round(np.geomspace(least, images, PREFIXES)).astype(int))
    # Equal scores are answered alike: a prefix ends before those that equal its threshold.
    answered = np.array(
        [images if size == images else np.searchsorted(-ordered, -ordered[size]) for size in sizes]
    )
    kept = binom.cdf(wrong[answered], answered, max_error) <= doubt
    passed = [
        index
        for start in range(STARTS)
        for index in range(start * len(sizes) // STARTS, len(sizes))
        if kept[start * len(sizes) // STARTS : index + 1].all()
    ]
    if not passed:
        return None
    best = max(passed)
    count = int(answered[best])
    threshold = None if sizes[best] == images else float(ordered[sizes[best]])
    return Selection(threshold, images, count, int(wrong[count]))


def images_needed(
    scores: Floats, right: npt.NDArray[np.bool_], max_error: float, confidence: float
) -> int | None:
    """How many images would let `select` keep a promise, were they right as often as these.

    Returns:
        None where no number would: of the most certain ones, too, more than ``max_error`` are wrong.
    """
    from scipy.stats import binom

    doubt = (1 - confidence) / STARTS
    images = len(scores)
    wrong = np.cumsum(~right[np.argsort(-scores, kind="stable")])
    needed = []
    for share in np.linspace(1, 10, 10) / 10:
        size = max(1, round(share * images))
        risk = wrong[size - 1] / size
        answered = _fewest(max_error, doubt)
        while risk < max_error and binom.cdf(math.ceil(risk * answered), answered, max_error) > doubt:
            answered = math.ceil(1.05 * answered)
        if risk < max_error:
            needed.append(math.ceil(answered * images / size))
    return min(needed, default=None)


def candidate_bound(masses: Floats, max_error: float) -> float | None:
    """The bound on `masses_above` within which the true class lies at a rate of at least 1 - ``max_error``.

    Split conformal prediction with adaptive sets (Romano et al., 2020), not randomised: the guarantee is
    exact for any law, over calibration sets and new images of the same kind together.

    Args:
        masses: (N,), the mass above the true class of each image.
        max_error: how often the truth may be missing, in (0, 1).

    Returns:
        None where N is too small for any set but that of all classes.
    """
    rank = math.ceil(round((len(masses) + 1) * (1 - max_error), 9))
    return None if rank > len(masses) else float(np.sort(masses)[rank - 1])


def _fewest(max_error: float, doubt: float) -> int:
    """The fewest images of which none is wrong that exclude a larger risk."""
    return math.ceil(math.log(doubt) / math.log1p(-max_error))
