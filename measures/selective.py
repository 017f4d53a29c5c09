"""When an answer can be trusted: the temperature, the threshold that keeps a promise, and sets of candidates.

A threshold is chosen on labelled images so that the *risk*, the share of wrong answers among those that are
given, is at most what was asked for, at a confidence that was asked for. Images are taken in the order of
their certainty, which needs no label, and prefixes of that order are tested by the exact binomial bound
(Clopper and Pearson, 1934).

Searching is corrected for exactly, and step by step. Where less certain answers are not more often right,
there is one prefix from which on the promise is broken, and from there on errors come at least as often as
those of a coin that errs at the promised rate. So all prefixes are tested at one level, at which such a coin
passes any of them no more often than the doubt allows: that is computed, not bounded by a sum over tests,
which mostly agree. The largest that passes settles all before it, and those after it are tested again, by
themselves, at the higher level that fewer tests allow; and so on (a fixed sequence of hypotheses, "the
promise is broken from here on": Angelopoulos et al., "Learn then Test", 2021).

Neither the certainty nor the masses above depend on the temperature: that is fitted on the same images, and
a promise holds for scores that were settled before their labels were seen.

Dims: N images, C classes.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .metrics import log_odds, log_softmax

Floats = npt.NDArray[np.float64]

PREFIXES = 80
"""Prefixes that are tested, in equal ratios: two neighbours differ by some per cent of the images."""
SEARCHED = 4.0
"""By about how much the search for a threshold lowers the doubt that a single test may leave."""
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
    odds: Floats = log_odds(logits).max(axis=1)
    return odds


def masses_above(logits: npt.NDArray[Any]) -> Floats:
    """(N, C): the probability of all classes that are likelier than each; 0 for the likeliest."""
    probabilities = np.exp(log_softmax(np.asarray(logits, np.float64)))
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1)
    masses = np.zeros_like(ranked)
    np.minimum(np.cumsum(ranked[:, :-1], axis=1), 1, out=masses[:, 1:])  # sums may round to more
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
    doubt = 1 - confidence
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
    best = -1
    while best + 1 < len(sizes):
        tested = answered[best + 1 :]
        passed = np.flatnonzero(wrong[tested] <= errors_allowed(tuple(tested.tolist()), max_error, doubt))
        if not len(passed):
            break
        best += 1 + int(passed[-1])
    if best < 0:
        return None
    count = int(answered[best])
    threshold = None if sizes[best] == images else float(ordered[sizes[best]])
    return Selection(threshold, images, count, int(wrong[count]))


@functools.lru_cache(maxsize=1024)
def errors_allowed(answered: tuple[int, ...], max_error: float, doubt: float) -> npt.NDArray[np.int64]:
    """How many errors each prefix may have, so that a coin that errs too often seldom passes any of them.

    Args:
        answered: the prefixes' sizes, not descending.
        max_error: the rate at which the coin errs.
        doubt: how often it may pass at least one of them.

    Returns:
        As many whole numbers; -1 where no number would do. Each leaves the same doubt, if tested alone.
    """
    from scipy.stats import binom  # type: ignore[import-untyped]  # ships no types

    sizes = np.array(answered)

    def at(level: float) -> npt.NDArray[np.int64]:
        most = binom.ppf(level, sizes, max_error).astype(np.int64)  # the first whose probability is enough
        return np.where(binom.cdf(most, sizes, max_error) <= level, most, most - 1)

    low, high = doubt / len(sizes), doubt  # Bonferroni's level does, and no larger one than a single test's
    while high / low > 1.001:
        level = math.sqrt(low * high)
        low, high = (level, high) if _passing(sizes, at(level), max_error) <= doubt else (low, level)
    return at(low)


def _passing(sizes: npt.NDArray[np.int64], allowed: npt.NDArray[np.int64], max_error: float) -> float:
    """How often a coin has no more errors than allowed after at least one of these numbers of throws."""
    from scipy.signal import convolve  # type: ignore[import-untyped]  # ships no types
    from scipy.stats import binom

    most = max(int(allowed.max()), 0)
    going_on = np.eye(1, most + 1)[0]  # of having so many errors, and not having passed: beyond, none passes
    passing, thrown = 0.0, 0
    for size, errors in zip(sizes.tolist(), allowed.tolist(), strict=True):
        more = binom.pmf(np.arange(min(size - thrown, most) + 1), size - thrown, max_error)
        going_on = convolve(going_on, more)[: most + 1]
        passing += float(going_on[: errors + 1].sum())
        going_on[: errors + 1] = 0
        thrown = size
    return passing


def images_needed(
    scores: Floats, right: npt.NDArray[np.bool_], max_error: float, confidence: float
) -> int | None:
    """How many images would let `select` keep a promise, were they right as often as these.

    Returns:
        None where no number would: of the most certain ones, too, more than ``max_error`` are wrong.
    """
    from scipy.stats import binom

    doubt = (1 - confidence) / SEARCHED
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


def limits(values: Floats, share: float) -> tuple[float, float]:
    """What all but a share of images like these are at least, and what all but a share of them are at most.

    The order statistics of which that holds for any law, over calibration sets and new images together; the
    least and the largest value where there are too few images to say so much, which then 1 in N + 1 exceeds.

    Args:
        values: (N,), N at least 1.
        share: the share of images on either side, in (0, 1).
    """
    ordered, place = np.sort(values), max(1, math.floor(share * (len(values) + 1)))
    return float(ordered[place - 1]), float(ordered[-place])


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
