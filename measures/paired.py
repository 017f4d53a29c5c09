"""How far accuracy and AUC of two models on the same images, and their change, may be trusted.

Images of one patient resemble each other, and so may what two models make of them. So each figure is a sum
over *units*, which are patients or slides where these are known and images elsewhere, and its doubt is that
of drawing whole units:

- a *share* of images (accuracy, sensitivity, flips) has the exact interval of Clopper and Pearson for as many
  images as these are worth (Korn and Graubard, 1998): of independent images that is all of them;
- a *change of accuracy* is the share of images gained less that of images lost, and its interval is made of
  theirs (Zou and Donner, 2008: the variance is recovered from the limits). Where few images change, a
  bootstrap is too narrow by far;
- an *AUC* has DeLong's variance, summed over units (Obuchowski, 1997), on the scale of its log-odds, and the
  change of one likewise, as it is, with what images near each other could have done.

Where few units make most of a variance it is not known well: the quantile is of Student's t with as many
degrees of freedom as there are units of the size of those.

Dims: N images, C classes, U units, K classes that are judged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .uncertainty import LEVEL, Interval, proportion_interval

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Members = npt.NDArray[np.intp]
"""(N,): the unit of each image, from 0 on."""

_TAIL = (1 - LEVEL) / 2
_REACH_A_UNIT, _LEAST_REACH = 1e-3, 0.5
"""The share of images whose moves are looked at: all but so many for each unit, and no fewer than these."""


def members_of(groups: npt.ArrayLike | None, images: int) -> Members:
    """The unit of each image: its group, or without groups the image itself."""
    if groups is None:
        return np.arange(images)
    found: Members = np.unique(np.asarray(groups), return_inverse=True)[1]
    return found


def share_interval(flags: Flags, members: Members, among: Flags | None = None) -> Interval:
    """The 95 % interval of a share of images.

    Args:
        flags: (N,), the images that are counted.
        members: (N,), as `members_of` has them.
        among: (N,), those of which they are a share, the counted ones among them; None: all.

    Returns:
        All of [0, 1] where there is nothing to take a share of, and of a single unit of several images.
    """
    if among is not None:
        flags, members = flags[among], np.unique(members[among], return_inverse=True)[1]
    if not len(flags):
        return Interval(0.0, 1.0, exact=True)
    if len(flags) > 1 and not members.any():
        return Interval(0.0, 1.0)
    worth = _worth(flags, members)
    return replace(proportion_interval(flags.mean() * worth, worth), exact=worth == len(flags))


def share_change(lost: Flags, gained: Flags, members: Members) -> Interval:
    """The 95 % interval of the share of images gained less that of images lost.

    Args:
        lost: (N,), those that only the first model has right.
        gained: (N,), those that only the second has right.
        members: (N,), as `members_of` has them.

    Returns:
        All of [-1, 1] of a single unit.
    """
    if not members.any():
        return Interval(-1.0, 1.0)
    (less, of_lost), (more, of_gained) = (
        (float(flags.mean()), proportion_interval(flags.mean() * worth, worth))
        for flags, worth in ((each, _worth(each, members)) for each in (lost, gained))
    )
    alike = min(0.0, _correlation(lost, gained, members))  # unlike ones make their difference less sure

    def reach(one: float, other: float) -> float:
        return float(np.sqrt(max(0.0, one * one + other * other - 2 * alike * one * other)))

    change = more - less
    low = change - reach(more - of_gained.low, of_lost.high - less)
    high = change + reach(of_gained.high - more, less - of_lost.low)
    return Interval(max(-1.0, low), min(1.0, high), exact=not (lost | gained).any())


def mcnemar_p(lost: Flags, gained: Flags, members: Members) -> float:
    """McNemar's exact test: the two-sided p of a split as uneven as this, if both ways were as likely.

    What is as likely both ways is that the two models of a whole unit were exchanged, all its images at once.

    Args:
        lost: (N,), those that only the first model has right.
        gained: (N,), those that only the second has right.
        members: (N,), as `members_of` has them.
    """
    nets = np.abs(np.bincount(members, gained) - np.bincount(members, lost)).astype(int)
    observed = abs(int(gained.sum()) - int(lost.sum()))
    size = int(nets.sum())
    chances = np.ones(1)  # of each sum of the units' signed nets, from the least to the largest by steps of 2
    for net in nets[nets > 0].tolist():
        grown = np.zeros(len(chances) + net)
        grown[: len(chances)] += chances / 2
        grown[net:] += chances / 2
        chances = grown
    sums = 2 * np.arange(size + 1) - size
    return min(1.0, float(chances[np.abs(sums) >= observed].sum()))


@dataclass(frozen=True)
class Auc:
    """The area under the ROC curve: of the second of two classes, or of each against the rest, weighted."""

    value: float
    influence: Floats
    """(N,): how much each image moves it; its mean over each class is 0."""
    scores: tuple[Floats, ...]
    """(N,) of each of the K classes that are judged: by what it orders the images."""
    positive: tuple[Flags, ...]
    shares: tuple[float, ...]
    """The weights of the K classes, 1 together."""
    units: tuple[int, ...]
    """For each of them, how many units the class is of, or the rest, whichever are fewer."""
    members: Members

    @classmethod
    def of(cls, scores: npt.NDArray[Any], truth: npt.NDArray[Any], members: Members) -> Auc:
        """Measures it.

        Args:
            scores: (N, C), by which it orders the images (see `log_odds`).
            truth: (N,) class indices, of two classes at least.
            members: (N,), as `members_of` has them.
        """
        judged = [1] if scores.shape[1] == 2 else np.unique(truth).tolist()
        weights = np.array([(truth == index).mean() for index in judged])
        weights /= weights.sum()
        columns = tuple(np.asarray(scores[:, index], np.float64) for index in judged)
        positive = tuple(truth == index for index in judged)
        influence, value = np.zeros(len(truth)), 0.0
        for weight, column, own in zip(weights, columns, positive, strict=True):
            area, placed = _placements(column, own)
            value += weight * area
            influence += weight * placed
        for index in np.unique(truth):
            influence[truth == index] -= influence[truth == index].mean()
        units = tuple(min(len(np.unique(members[own])), len(np.unique(members[~own]))) for own in positive)
        return cls(float(value), influence, columns, positive, tuple(weights.tolist()), units, members)

    @property
    def typical_units(self) -> float:
        """The mean of `units`, weighted as the classes are."""
        return float(np.dot(self.shares, self.units))

    def interval(self) -> Interval:
        """The 95 % interval; of none or all in order the exact one of as many pairs that share no unit."""
        from scipy.special import expit, logit  # type: ignore[import-untyped]  # ships no types

        if round(self.value, 12) in (0, 1):
            bounds = [
                _TAIL ** (1 / units) for units in self.units
            ]  # one pair of each two units, all in order
            least = float(np.dot(self.shares, bounds))
            return (
                Interval(least, 1.0, exact=True) if self.value > 0.5 else Interval(0, 1 - least, exact=True)
            )
        if self.typical_units < 2:
            return Interval(0.0, 1.0)
        doubt = self._doubt(self.influence, 0.0) / (self.value * (1 - self.value))
        middle = logit(self.value)
        return Interval(float(expit(middle - doubt)), float(expit(middle + doubt)))

    def change_interval(self, other: Auc) -> Interval:
        """The 95 % interval of another model's AUC on the same images less this one.

        Where hardly an image passes another the images seem to tell that none ever would. So the doubt is at
        least that of units whose images all move as far as most of these did: past which others would they?
        """
        if self.typical_units < 2:
            return Interval(-1.0, 1.0)
        reach = np.zeros(int(self.members.max()) + 1)
        for weight, before, after, own in zip(
            self.shares, self.scores, other.scores, self.positive, strict=True
        ):
            moved = np.abs(after - before)
            among = max(_LEAST_REACH, 1 - _REACH_A_UNIT * self.typical_units)
            passed = _passed(before, own, float(np.quantile(moved, among)))
            reach += weight * np.bincount(self.members, passed, len(reach))
        doubt = self._doubt(other.influence - self.influence, float(reach @ reach))
        change = other.value - self.value
        return Interval(max(-1.0, change - doubt), min(1.0, change + doubt))

    def _doubt(self, influence: Floats, least: float) -> float:
        """Half of an interval's width: a quantile times the deviation of a sum over units."""
        from scipy.stats import t as student  # type: ignore[import-untyped]  # ships no types

        sums: Floats = np.bincount(self.members, influence).astype(np.float64)
        spread, units = float(sums @ sums), self.typical_units
        freedom = min(max(1.0, _as_many(sums)), units - 1)
        return float(student.ppf(1 - _TAIL, freedom) * np.sqrt(units / (units - 1) * max(spread, least)))


def _worth(flags: Flags, members: Members) -> float:
    """How many independent images these are worth for a share of them, 1 to N.

    At least as many as if the images of each unit were all alike; so many, too, where none or all are
    counted, of which nothing is known.
    """
    from scipy.stats import norm
    from scipy.stats import t as student

    sizes = np.bincount(members).astype(np.float64)
    images = float(sizes.sum())
    least = images**2 / float(sizes @ sizes)
    share = float(flags.mean())
    if least == images or share in (0, 1):
        return least
    apart = np.bincount(members, flags) - share * sizes
    spread = float(apart @ apart)
    if len(sizes) < 2 or spread == 0:
        return least
    variance = spread * len(sizes) / (len(sizes) - 1) / images**2
    known = float(norm.ppf(1 - _TAIL) / student.ppf(1 - _TAIL, _as_many(apart))) ** 2
    return float(np.clip(known * share * (1 - share) / variance, least, images))


def _as_many(sums: Floats) -> float:
    """How many units of one size would make so uneven a sum of squares: 1 to U."""
    squares = np.square(sums)
    fourth = float(squares @ squares)
    return float(squares.sum()) ** 2 / fourth if fourth > 0 else 1.0


def _correlation(one: Flags, other: Flags, members: Members) -> float:
    """How alike two counts over units are, less what the units' sizes make of them; 0 if one is constant."""
    sizes = np.bincount(members)
    first, second = (np.bincount(members, each) - each.mean() * sizes for each in (one, other))
    both = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / both if both > 0 else 0.0


def _placements(scores: Floats, positive: Flags) -> tuple[float, Floats]:
    """The area under one ROC curve, the share of pairs in the right order, and each image's part of it.

    That is, of a positive, the share of negatives below it (ties count half), over the positives, and of a
    negative the reverse (DeLong et al., 1988).
    """
    order = np.unique(scores, return_inverse=True)[1]
    positives, negatives = np.bincount(order[positive]), np.bincount(order[~positive])
    length = max(len(positives), len(negatives))
    positives, negatives = (np.pad(each, (0, length - len(each))) for each in (positives, negatives))
    below = (np.cumsum(negatives) - negatives / 2) / negatives.sum()
    above = 1 - (np.cumsum(positives) - positives / 2) / positives.sum()
    placed = np.where(positive, below[order] / positives.sum(), above[order] / negatives.sum())
    return float(positives @ below) / float(positives.sum()), placed


def _passed(scores: Floats, positive: Flags, reach: float) -> Floats:
    """(N,): what each image would change of the area if it moved so far, past those of the other side.

    Where nobody stands so near, the two that are nearest to each other are looked at.
    """
    passed = np.zeros(len(scores))
    sides = [np.sort(scores[side]) for side in (positive, ~positive)]
    places = np.searchsorted(sides[1], sides[0])
    gaps = [
        np.abs(sides[0] - sides[1][np.clip(places + step, 0, len(sides[1]) - 1)]).min() for step in (-1, 0)
    ]
    reach = max(reach, float(min(gaps)))
    for own, others in ((positive, sides[1]), (~positive, sides[0])):
        near = np.searchsorted(others, scores[own] + reach, "right") - np.searchsorted(
            others, scores[own] - reach, "left"
        )
        passed[own] = near / 2 / len(others) / own.sum()
    return passed
