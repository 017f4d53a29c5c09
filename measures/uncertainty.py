"""How far a figure may be trusted: resampled and exact intervals, and calibration.

`bootstrap_interval` is for one model and any statistic, and can draw whole patients; two models on the same
images are compared in `paired`.

Dims: N images, C classes, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .metrics import log_odds, weighted_mean

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
"""Resamples of a bootstrap: the ends of a 95 % interval then rest on the 50 outermost of each side."""
LEVEL = 0.95
SEED = 0
BINS = 15
"""Equal parts of [0, 1] into which confidences are counted for the calibration error."""

_CHANCES = 10_000
"""Draws of the chance in a calibration error, each as large as there are bins."""
_CHANGED_BESIDES = 0.5
"""Images that are taken to change in a comparison, besides those that did."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float
    exact: bool = False
    """Computed from the counts, not by resampling."""

    @property
    def width(self) -> float:
        """Upper end minus lower, in the unit of the figure."""
        return self.high - self.low


@dataclass(frozen=True)
class Reliability:
    """Confidence, the probability of the class that was given, against accuracy, by bins of confidence."""

    edges: tuple[float, ...]
    """Edges of the bins, one more than there are bins; a bin holds its upper edge."""
    images: tuple[int, ...]
    confidence: tuple[float | None, ...]
    """Mean of a bin's images; None where it has none."""
    accuracy: tuple[float | None, ...]
    """Share of a bin's images that is right; None where it has none."""
    error: float
    """Expected calibration error: the bins' mean distance between the two, weighted by images."""


def bootstrap_interval(
    statistic: Callable[..., float | None],
    *arrays: npt.NDArray[Any],
    seed: int = SEED,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    groups: npt.NDArray[Any] | None = None,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Interval | None:
    """The percentile bootstrap: the interval that a statistic of resampled images falls into.

    Args:
        statistic: computed from the arrays, each with N rows drawn with replacement, the same in all;
            None or NaN where it has no value (AUC where a resample holds one class only).
        arrays: at least one, each of N rows.
        seed: decides the resamples: the same arrays give the same interval.
        resamples: how many are drawn.
        level: share of the statistics that lies within, half of the rest on either side.
        groups: (N,), the patient or slide of each row. Whole groups are drawn then: the images of one patient
            resemble each other, so drawing them one by one makes an interval too narrow. Where they are few
            it is `widened`.
        bounds: what the statistic lies between.

    Returns:
        None where the statistic has no value in more than half of the resamples, and where there is one row
        or group only: nothing tells how others differ from it.

    Raises:
        ValueError: arrays of no or different lengths, or figures that make no sense.
    """
    lengths = [len(array) for array in (*arrays, *(() if groups is None else (groups,)))]
    if not arrays or len(set(lengths)) > 1 or not lengths[0]:
        raise ValueError(f"the arrays have {lengths} rows; expected the same number, at least one, in each")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"cannot take {resamples} resamples to a level of {level}")
    generator = np.random.default_rng(seed)
    count = lengths[0]
    places, sizes = np.arange(count), np.ones(count, np.intp)
    if groups is not None:
        _, places, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        return None
    members, starts = np.argsort(places, kind="stable"), np.cumsum(sizes) - sizes  # of one group side by side
    values = np.full(resamples, np.nan)
    for number in range(resamples):
        rows = generator.integers(len(sizes), size=len(sizes))
        if groups is not None:
            drawn, counts = rows, sizes[rows]
            ends = np.cumsum(counts)
            rows = members[np.arange(ends[-1]) + np.repeat(starts[drawn] - (ends - counts), counts)]
        value = statistic(*(array[rows] for array in arrays))
        if value is not None:
            values[number] = value
    if 2 * np.isnan(values).sum() > resamples:
        return None
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    interval, estimate = Interval(float(low), float(high)), statistic(*arrays)
    if groups is None or estimate is None:
        return interval
    return widened(interval, estimate, len(sizes), level=level, bounds=bounds)


def widened(
    interval: Interval,
    estimate: float,
    units: int,
    *,
    level: float = LEVEL,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """A bootstrap interval of few patients, as wide as so few have to make it.

    Resamples of U units vary by sqrt((U - 1) / U) of what they should, and their quantiles are the normal
    distribution's where Student's with U - 1 degrees of freedom count (Hesterberg, 2015, on narrowness). Of
    two patients the plain interval reaches from one's figure to the other's, and holds the truth in half of
    all cases; of fifty it is 3 % too narrow.

    Args:
        interval: by resamples of whole units.
        estimate: the figure on the images as they are.
        units: U, at least 2.
        level: the interval's.
        bounds: what the figure lies between.
    """
    from scipy.stats import norm  # type: ignore[import-untyped]  # ships no types
    from scipy.stats import t as student

    tail = (1 + level) / 2
    times = float(student.ppf(tail, units - 1) / norm.ppf(tail)) * (units / (units - 1)) ** 0.5
    low, high = (estimate + times * (end - estimate) for end in (interval.low, interval.high))
    return Interval(max(bounds[0], min(interval.low, low)), min(bounds[1], max(interval.high, high)))


def bias_corrected(estimate: float, values: Floats, level: float = LEVEL) -> Interval:
    """The bias-corrected percentiles (Efron, 1987) of a figure on resamples.

    Args:
        estimate: the figure on the images as they are.
        values: (R,), those on resamples. Where no two differ, the interval has no width.
        level: share of the resamples that lies within.
    """
    from scipy.special import ndtr, ndtri  # type: ignore[import-untyped]  # ships no types

    resamples = len(values)
    moved = np.round(values - estimate, 12)  # equal shares of images differ in their last bits
    below = ((moved < 0).mean() + (moved <= 0).mean()) / 2
    bias = ndtri(np.clip(below, 0.5 / resamples, 1 - 0.5 / resamples))
    tail = (1 - level) / 2
    low, high = np.quantile(values, ndtr(2 * bias + ndtri(np.array([tail, 1 - tail]))))
    return Interval(float(low), float(high))


def metric_intervals(
    logits: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    *,
    seed: int = SEED,
    resamples: int = RESAMPLES,
    groups: npt.NDArray[Any] | None = None,
) -> dict[str, Interval | None]:
    """95 % intervals of what `metrics_of` reports of the same predictions.

    Args:
        logits: (N, C), finite.
        truth: (N,), class indices.
        seed: decides the resamples.
        resamples: how many are drawn.
        groups: (N,), the patient or slide of each image (see `bootstrap_interval`).

    Returns:
        By the names of `Metrics`' fields. None where a metric has no value, or where the images do not tell
        how far it may be off: they are one, or of one group, or it is 0 or 1 in every resample. An accuracy
        of none or all has the exact interval, of groups where there are some.
    """
    classes = logits.shape[1]
    # Scores as their places in order, equal ones alike: a resample's AUC is then counted, not sorted.
    ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in log_odds(logits).T], axis=1)
    predicted = logits.argmax(axis=1)

    def shares(truth: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> tuple[Any, Any, Any]:
        """Right answers, images and predictions of each class."""
        hits = np.bincount(truth[truth == predicted], minlength=classes)
        return hits, np.bincount(truth, minlength=classes), np.bincount(predicted, minlength=classes)

    def accuracy(truth: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> float:
        return float((truth == predicted).mean())

    def precision(truth: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> float:
        hits, images, given = shares(truth, predicted)
        return float(images @ (hits / np.maximum(given, 1)) / len(truth))

    def f1(truth: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> float:
        hits, images, given = shares(truth, predicted)
        return float(images @ (2 * hits / np.maximum(images + given, 1)) / len(truth))

    def auc(truth: npt.NDArray[Any], ranks: npt.NDArray[Any]) -> float | None:
        columns = [1] if classes == 2 else range(classes)
        aucs = [_auc_of_ranks(truth == column, ranks[:, column]) for column in columns]
        weights = np.bincount(truth, minlength=classes)[columns] / len(truth)
        return weighted_mean(aucs, weights)

    def interval(statistic: Callable[..., float | None], *arrays: npt.NDArray[Any]) -> Interval | None:
        found = bootstrap_interval(
            statistic, *arrays, seed=seed, resamples=resamples, groups=groups, bounds=(0.0, 1.0)
        )
        return None if found is not None and not found.width and found.low in (0, 1) else found

    right, units = truth == predicted, len(truth) if groups is None else len(np.unique(groups))
    if right.all() or not right.any():
        within: Interval | None = proportion_interval(units if right.all() else 0, units)
    else:
        within = interval(accuracy, truth, predicted)
    return {
        "accuracy": within,
        "auc": interval(auc, truth, ranks),
        "precision": interval(precision, truth, predicted),
        "recall": within,  # weighted by class size, recall is accuracy
        "f1": interval(f1, truth, predicted),
    }


def _auc_of_ranks(positive: npt.NDArray[np.bool_], ranks: npt.NDArray[Any]) -> float | None:
    """The AUC as the share of pairs in order, ties counting half: that of `metrics_of`, much faster."""
    positives = np.bincount(ranks[positive], minlength=ranks.max() + 1)
    negatives = np.bincount(ranks[~positive], minlength=ranks.max() + 1)
    pairs = int(positives.sum()) * int(negatives.sum())
    if not pairs:
        return None
    below = np.cumsum(negatives) - negatives / 2
    return float(positives @ below / pairs)


def proportion_interval(successes: float, trials: float, level: float = LEVEL) -> Interval:
    """The exact (Clopper-Pearson) interval of a proportion; [0, 1] where nothing was tried.

    It stays honest at none and at all, where resampling gives an interval of no width. Numbers need not be
    whole, as those of images are not that count for less than one each.
    """
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = 0.0 if successes <= 0 else float(beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes >= trials else float(beta.ppf(1 - tail, successes + 1, trials - successes))
    return Interval(low, high, exact=True)


def calibration_error(
    confidence: Floats,
    right: npt.NDArray[np.bool_],
    groups: npt.NDArray[np.intp] | None = None,
    *,
    binned_by: Floats | None = None,
) -> tuple[float, Interval]:
    """The expected calibration error, and a 95 % interval that holds what it is of all images of this kind.

    The error sums the sizes of the bins' gaps between accuracy and confidence, so chance adds to it: of 60
    images and a model that is calibrated to perfection it is 9 to 15 %. A resampled one has the chance of
    both draws, and its quantiles, bias-corrected or not, never reach the 0 that is true there. So the chance
    is taken off, not resampled. A gap g that is measured with the error e makes the sum larger by
    |g + e| - |g|, which is at most |e|, and the sign of g times e where g is far from 0; far is more than
    sqrt(ln U) standard errors of U units, as in the moment selection of Andrews and Soares (2010). The lower
    end is what is left when the chance's upper quantile is taken off. What is measured is at least the sum of
    the gaps by their true signs, so the upper end is a plain one of a sum of means.

    Args:
        confidence: (N,), the probability of the label that was given.
        right: (N,), whether that is the true one.
        groups: (N,), the index of each image's patient or slide, of U; None where each image is its own.
        binned_by: (N,), what decides an image's bin in place of its confidence: another model's, say.

    Returns:
        The error, which is always inside of the interval; that is all of [0, 1] for a single unit.
    """
    from scipy.stats import t as student

    ((gaps,), covariance, units) = _gaps([confidence], [right], groups, binned_by)
    error = float(np.abs(gaps).sum())
    if units < 2:
        return error, Interval(0.0, 1.0)
    signs = np.sign(gaps)
    is_far = np.abs(gaps) > np.sqrt(np.log(units) * np.diag(covariance))
    sizes, axes = np.linalg.eigh(covariance)
    generator = np.random.default_rng(SEED)
    chance = generator.normal(size=(_CHANCES, BINS)) @ (axes * np.sqrt(np.maximum(sizes, 0))).T
    chance *= np.sqrt((units - 1) / generator.chisquare(units - 1, (_CHANCES, 1)))  # few units know it badly
    added = np.where(is_far, chance * signs, np.abs(chance)).sum(axis=1)
    tail = (1 - LEVEL) / 2
    low = error - max(0.0, float(np.quantile(added, 1 - tail)))
    high = error + student.ppf(1 - tail, units - 1) * _deviation(signs, covariance)
    return error, Interval(max(0.0, low), min(1.0, float(high)))


def calibration_change(
    confidences: Sequence[Floats],
    rights: Sequence[npt.NDArray[np.bool_]],
    groups: npt.NDArray[np.intp] | None = None,
) -> tuple[float, Interval]:
    """How much larger a second model's calibration error is on the same images, and a 95 % interval of it.

    Both are counted in bins of the first one's confidence. In bins of its own the second would differ from a
    first that it hardly differs from by every image that crosses an edge, which is chance, and several times
    the change.

    A bin's part of the change, |g + d| - |g| of the first one's gap g, is not smooth where g is 0, or g + d:
    there chance adds to one error and not as much to the other, and resampling adds it again. But the part
    is at most |d|, and at least -|d|, and d is what pairs tell well. So where a gap may be 0, the first one's
    for the upper end, the second's for the lower, |d| takes the part's place, with the standard error of d;
    elsewhere the signs of the gaps are known, and the part is a difference of means. (Fang and Santos, 2019,
    on such functions; a gap may be 0 that Bonferroni's bound for all bins does not exclude.)

    Where hardly an answer changes the images tell nothing of those that would. So half an image more is taken
    to change, spread over the bins: as many at once as the images of a unit are alike.

    Args:
        confidences: (N,) of each of the two, the probability of the label that was given.
        rights: (N,) of each, whether that is the true one.
        groups: (N,), the index of each image's patient or slide, of U; None where each image is its own.

    Returns:
        The change, which is always inside of the interval; that is all of [-1, 1] for a single unit.
    """
    from scipy.stats import t as student

    ((first, second), covariance, units) = _gaps(confidences, rights, groups, confidences[0])
    parts = np.abs(second) - np.abs(first)
    change = float(parts.sum())
    if units < 2:
        return change, Interval(-1.0, 1.0)
    images = len(confidences[0])
    alike = _images_alike(rights[0] - confidences[0], groups)
    filled = np.bincount(_bins_of(confidences[0]), minlength=BINS) / images
    covariance[BINS:, BINS:] += np.diag(_CHANGED_BESIDES * filled * (alike / images) ** 2)
    bound = student.ppf(1 - (1 - LEVEL) / (2 * BINS), units - 1)
    far_first, far_second = np.abs([first, second]) > bound * np.sqrt(np.diag(covariance)).reshape(2, BINS)
    moved = second - first
    by_signs = np.concatenate([-np.sign(first), np.sign(second)])  # d change / d gaps
    grew = np.where(moved < 0, -1.0, 1.0)
    by_moves = np.concatenate([-grew, grew])  # d sum |d| / d gaps
    quantile = student.ppf((1 + LEVEL) / 2, units - 1)

    def end(is_far: npt.NDArray[np.bool_], sign: int) -> float:
        """The upper end, or with the sign -1 the lower one."""
        weights = np.where(np.tile(is_far, 2), by_signs, sign * by_moves)
        doubt = float(quantile * _deviation(weights, covariance))
        return float(np.where(is_far, parts, sign * np.abs(moved)).sum()) + sign * doubt

    return change, Interval(max(-1.0, end(far_second, -1)), min(1.0, end(far_first, 1)))


def _gaps(
    confidences: Sequence[Floats],
    rights: Sequence[npt.NDArray[np.bool_]],
    groups: npt.NDArray[np.intp] | None,
    binned_by: Floats | None,
) -> tuple[Floats, Floats, int]:
    """Each model's gaps between accuracy and confidence, (models, bins), their covariance, and the units.

    A bin's variance is at least that of answers that are as often right as they are sure, and as much alike
    within a unit as all are, or a few images that are all right would show none.
    """
    images = len(confidences[0])
    places = _bins_of(confidences[0] if binned_by is None else binned_by)
    members = np.arange(images) if groups is None else groups
    units, width = int(members.max()) + 1, len(confidences) * BINS
    parts, gaps, calibrated = np.zeros((units, width)), np.zeros(width), np.zeros(width)
    for start, confidence, right in zip(range(0, width, BINS), confidences, rights, strict=True):
        apart = (right - confidence) / images
        np.add.at(parts, (members, start + places), apart)
        np.add.at(gaps, start + places, apart)
        alike = _images_alike(right - confidence, groups)
        np.add.at(calibrated, start + places, alike * confidence * (1 - confidence) / images**2)
    parts -= parts.mean(axis=0)
    covariance = parts.T @ parts * (units / max(units - 1, 1))  # (models * bins,) * 2
    short = np.sqrt(np.maximum(0, calibrated - np.diag(covariance)))
    same_bin = np.equal.outer(np.arange(width) % BINS, np.arange(width) % BINS)
    covariance += np.where(same_bin, np.outer(short, short), 0)  # what one model lacks the other does, too
    return gaps.reshape(len(confidences), BINS), covariance, units


def _images_alike(values: Floats, groups: npt.NDArray[np.intp] | None) -> float:
    """How many times the variance of a mean is that of independent images: 1, or up to a unit's images."""
    if groups is None:
        return 1.0
    apart = values - values.mean()
    sums = np.bincount(groups, apart)
    return max(1.0, float(sums @ sums) / max(float(apart @ apart), 1e-300))


def _bins_of(confidence: Floats, bins: int = BINS) -> npt.NDArray[np.intp]:
    """The bin of each image; a bin holds its upper edge."""
    return np.clip(np.ceil(confidence * bins).astype(np.intp) - 1, 0, bins - 1)


def _deviation(weights: Floats, covariance: Floats) -> float:
    """The standard deviation of a weighted sum."""
    return float(np.sqrt(max(0.0, float(weights @ covariance @ weights))))


def reliability(
    probabilities: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    bins: int = BINS,
    *,
    binned_by: npt.NDArray[Any] | None = None,
) -> Reliability:
    """How well a model's confidence says how often it is right (Guo et al., 2017).

    Args:
        probabilities: (N, C).
        truth: (N,), class indices.
        bins: how many bins of equal width there are.
        binned_by: (N, C), the probabilities of the model whose confidence tells in which bin an image lies;
            None: its own.
    """
    rows = np.asarray(probabilities, np.float64)
    confidence, right = rows.max(axis=1), rows.argmax(axis=1) == truth
    places = _bins_of(
        confidence if binned_by is None else np.asarray(binned_by, np.float64).max(axis=1), bins
    )
    counts = np.bincount(places, minlength=bins)

    def sums(values: npt.NDArray[Any]) -> Floats:
        return np.bincount(places, values, minlength=bins).astype(np.float64)

    def means(values: npt.NDArray[Any]) -> tuple[float | None, ...]:
        pairs = zip(sums(values), counts, strict=True)
        return tuple(float(value / count) if count else None for value, count in pairs)

    return Reliability(
        edges=tuple(np.linspace(0, 1, bins + 1).tolist()),
        images=tuple(counts.tolist()),
        confidence=means(confidence),
        accuracy=means(right),
        error=float(np.abs(sums(right - confidence)).sum() / len(truth)),
    )
