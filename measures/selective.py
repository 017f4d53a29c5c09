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

Where images are of patients, or slides, who differ in how often the model is wrong, errors come in heaps, and
so does the coin's luck. So the coin errs as they do: each patient has a rate of its own, about the promised
one by a gamma distribution that varies as much as these patients may, and its walks are drawn.

Neither the certainty nor the masses above depend on the temperature: that is fitted on the same images, and
a promise holds for scores that were settled before their labels were seen.

Dims: N images, C classes, U patients, P prefixes, W walks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
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
WALKS = 10_000
"""Walks of a coin whose errors come by patients: of a doubt of 5 % they are wrong by 0.2 % (deviation)."""
DIFFERING = 0.8
"""How surely patients differ no more than they are taken to."""
MOST_DIFFERING = 2.0
"""The most that patients' error rates are taken to vary by, the square of their deviation over their mean: a
few errors exclude nothing, and of whoever differs without end nothing could be promised."""
LIKE_THESE = 64
"""By how many times as many images and patients it is looked for how many would do."""
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
    scores: Floats,
    right: npt.NDArray[np.bool_],
    max_error: float,
    confidence: float,
    members: npt.NDArray[np.intp] | None = None,
) -> Selection | None:
    """The threshold that answers most images while it keeps a promise.

    Args:
        scores: (N,), the images' `certainty`.
        right: (N,), whether the likeliest class is the true one.
        max_error: the risk that is promised, in (0, 1).
        confidence: how surely, in (0, 1): the share of calibration sets whose threshold keeps the promise.
        members: (N,), the patient or slide of each image, from 0 on; None: each image is its own. Of a single
            patient the promise is of its other images.

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
    alone = members is None or int(members.max()) + 1 == images
    patients = None if members is None or alone else _by_appearance(members[order])
    differ = 0.0 if patients is None else _patients_differ(~right[order], patients)
    allowed: Callable[[int], npt.NDArray[np.int64]]
    if patients is None or not differ:

        def allowed(first: int) -> npt.NDArray[np.int64]:
            return errors_allowed(tuple(answered[first:].tolist()), max_error, doubt)

    else:
        walks = _walks(answered, patients, max_error, differ)
        fewest = np.sort(walks, axis=0)

        def allowed(first: int) -> npt.NDArray[np.int64]:
            return _errors_allowed_on(walks[:, first:], fewest[:, first:], doubt)

    best = -1
    while best + 1 < len(sizes):
        passed = np.flatnonzero(wrong[answered[best + 1 :]] <= allowed(best + 1))
        if not len(passed):
            break
        best += 1 + int(passed[-1])
    if best < 0:
        return None
    count = int(answered[best])
    threshold = None if sizes[best] == images else float(ordered[sizes[best]])
    return Selection(threshold, images, count, int(wrong[count]))


def _by_appearance(members: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """(N,): the same patients, counted as they come, so that what is drawn does not hang on their names."""
    _, first, places = np.unique(members, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[places]


def _patients_differ(wrong: npt.NDArray[np.bool_], members: npt.NDArray[np.intp]) -> float:
    """The squared coefficient of variation of the patients' error rates, as much as these may have.

    That of a patient is its errors over those expected of images as certain as its own. What they vary by,
    more than chance has images vary, is known the less the fewer they are: taken is the upper end of an
    interval, as by a chi-squared distribution. A patient of many images counts for more than one of few.

    Args:
        wrong: (N,), from the most certain image on.
        members: (N,), the patient of each.

    Returns:
        At most `MOST_DIFFERING`, which it is, too, where no image is wrong; 0 of a single patient, and where
        images tell no difference.
    """
    from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]  # ships no types
    from scipy.stats import chi2  # type: ignore[import-untyped]  # ships no types

    rates = isotonic_regression(wrong.astype(np.float64)).x  # less certain answers are not more often right
    errors, expected, chance = (
        np.bincount(members, values) for values in (wrong, rates, rates * (1 - rates))
    )
    if not members.any():
        return 0.0
    squares = float(expected @ expected)
    patients = float(expected.sum()) ** 2 / squares if squares else 1.0
    if patients <= 1:  # of none, or of one, anything is wrong
        return MOST_DIFFERING
    apart = errors - expected
    spread = float(apart @ apart) * patients / float(chi2.ppf(1 - DIFFERING, patients - 1))
    return min(max(0.0, (spread - float(chance.sum())) / squares), MOST_DIFFERING)


def _walks(
    answered: npt.NDArray[np.int64], members: npt.NDArray[np.intp], max_error: float, differ: float
) -> npt.NDArray[np.int64]:
    """(W, P): the errors in each prefix of coins that err at the promised rate, by patients that differ.

    Args:
        answered: (P,), the prefixes' sizes, not descending.
        members: (N,), the patient of each image, from the most certain one on.
        max_error: the rate at which the coins err, over all patients.
        differ: the squared coefficient of variation of the patients' rates, above 0.
    """
    throws = np.diff(answered, prepend=0)
    prefix = np.repeat(np.arange(len(answered)), throws)
    patients = int(members.max()) + 1
    counts = np.zeros((patients, len(answered)))
    np.add.at(counts, (members[: len(prefix)], prefix), 1)
    generator = np.random.default_rng(0)
    at_once = max(1, 10_000_000 // patients)  # 80 MB
    walks = []
    for first in range(0, WALKS, at_once):
        drawn = generator.gamma(1 / differ, differ, (min(at_once, WALKS - first), patients))
        rates = np.minimum(1, max_error * drawn) @ counts / np.maximum(throws, 1)
        walks.append(np.cumsum(generator.binomial(throws, np.clip(rates, 0, 1)), axis=1))
    return np.concatenate(walks)


def _errors_allowed_on(
    walks: npt.NDArray[np.int64], fewest: npt.NDArray[np.int64], doubt: float
) -> npt.NDArray[np.int64]:
    """`errors_allowed` of coins by their (W, P) walks, and these by prefixes from the fewest errors on."""
    prefixes = walks.shape[1]

    def at(level: float) -> npt.NDArray[np.int64]:
        return fewest[int(level * len(walks))] - 1  # no more walks than the level allows have so few

    low, high = doubt / prefixes, doubt
    while high / low > 1.001:
        level = math.sqrt(low * high)
        low, high = (level, high) if (walks <= at(level)).any(axis=1).mean() <= doubt else (low, level)
    return at(low)


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
    from scipy.stats import binom

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
    scores: Floats,
    right: npt.NDArray[np.bool_],
    max_error: float,
    confidence: float,
    members: npt.NDArray[np.intp] | None = None,
) -> int | None:
    """How many images would let `select` keep a promise, were they right as often as these.

    Args:
        scores: (N,), the images' `certainty`.
        right: (N,), whether the likeliest class is the true one.
        max_error: the risk that is promised, in (0, 1).
        confidence: how surely, in (0, 1).
        members: (N,), the patient or slide of each image, from 0 on; None: each image is its own. More images
            are of more patients then, who differ as these do.

    Returns:
        None where no number would: of the most certain ones, too, more than ``max_error`` are wrong. By
        patients at most 64 times as many images, also where these would not do yet.
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
    if members is None or not needed:
        return min(needed, default=None)
    times, patients = 1, int(members.max()) + 1
    while times < LIKE_THESE:
        times = math.ceil(1.2 * times)
        more = np.add.outer(patients * np.arange(times), members).ravel()
        if select(np.tile(scores, times), np.tile(right, times), max_error, confidence, more) is not None:
            break
    return times * images


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
