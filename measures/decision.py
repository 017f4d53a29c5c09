"""What an artefact's answers mean for whoever acts on them: labelled images, reference against artefact.

Tensor errors say how far numbers are apart. Here it is asked which images get another label, whether that
harms or helps, and how far accuracy, AUC and calibration move, each with an interval: what a drop was on
these images is known, what it is on others is not.

A flip is an image whose label differs between the two: *lost* when the reference was right, *gained* when the
artefact is, and *neither* when both are wrong. All of them are told; those on images that the reference does
not decide itself (`margins`) are not counted against the artefact.

Dims: N images, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .margins import margins_of
from .metrics import Metrics, log_odds, log_softmax, metrics_of
from .paired import Auc, Flags, Members, mcnemar_p, members_of, share_change, share_interval
from .uncertainty import (
    LEVEL,
    Interval,
    Reliability,
    calibration_change,
    calibration_error,
    reliability,
)


@dataclass(frozen=True)
class ImageLimit:
    """How many images something may happen to: a count, or a share of those it is asked of."""

    amount: float
    per_cent: bool = False
    least: int = 0
    """Images that are always allowed: a share of few images is none."""

    @classmethod
    def parse(cls, text: str, of: str = "flips") -> ImageLimit:
        """Reads ``3`` or ``0.5%``.

        Args:
            text: what was given.
            of: what it limits, for the message.

        Raises:
            InputError: neither a count nor a per cent from 0 to 100.
        """
        digits, per_cent = (text.strip().removesuffix("%"), text.strip().endswith("%"))
        try:
            amount = float(digits) if per_cent else float(int(digits))
        except ValueError:
            amount = -1
        if not 0 <= amount <= (100 if per_cent else float("inf")):
            raise InputError(f"'{text}' {of}: expected a count such as 2, or a per cent such as 0.5%")
        return cls(amount, per_cent)

    def allowed(self, images: int) -> int:
        """The largest number of images that meets the limit."""
        # A share such as 0.7 % of 1,000 must give 7 although 0.7 / 100 * 1000 is a little less.
        share = int(self.amount / 100 * images + 1e-9) if self.per_cent else int(self.amount)
        return max(share, self.least)

    def __str__(self) -> str:
        return f"{self.amount:g} %" if self.per_cent else f"{self.amount:g}"


@dataclass(frozen=True)
class DecisionBar:
    """What must not be lost; None: reported, not judged."""

    max_accuracy_drop: float | None = None
    """Percentage points."""
    max_auc_drop: float | None = None
    max_flips: ImageLimit = ImageLimit(0)
    """How many of the images that the reference decides may flip."""
    max_undecided: ImageLimit = ImageLimit(2, per_cent=True, least=1)
    """Images on which a flip is not held against the artefact; judged where there is a bar on logits, and
    one of them flips."""


INT8_BAR = DecisionBar(max_accuracy_drop=0.5, max_auc_drop=0.002, max_flips=ImageLimit(1, per_cent=True))
"""What int8, whose tensors are off by design, is held to: the decision may change, and this little of it."""


@dataclass(frozen=True)
class Change:
    """One figure of both models on the same images."""

    reference: float
    artefact: float
    reference_interval: Interval
    artefact_interval: Interval
    change_interval: Interval
    """The interval of artefact minus reference, image by image."""

    @property
    def change(self) -> float:
        """Artefact minus reference."""
        return self.artefact - self.reference


@dataclass(frozen=True)
class Flip:
    """An image that gets another label."""

    image: str
    truth: str
    reference: str
    """The label that the reference gives."""
    artefact: str
    reference_probability: float
    """The probability that the reference gives to its label."""
    artefact_probability: float
    outcome: str
    """``lost``, ``gained`` or ``neither``."""
    margin: float
    """The distance between the reference's two largest logits."""
    undecided: bool
    """Whether that is too little for the reference to decide; such a flip is not judged."""


@dataclass(frozen=True)
class Proportion:
    """A share with its interval; None where there is nothing to take a share of."""

    value: float | None
    interval: Interval

    @classmethod
    def of(cls, flags: Flags, members: Members, among: Flags) -> Proportion:
        """The share of those images ``among`` others that are flagged; all three are (N,)."""
        counted = flags & among
        value = float(counted.sum() / among.sum()) if among.any() else None
        return cls(value, share_interval(counted, members, among))


@dataclass(frozen=True)
class ClassChange:
    """One class against all others."""

    label: str
    images: int
    reference_sensitivity: Proportion
    """The share of this class's images that is given the class."""
    artefact_sensitivity: Proportion
    reference_specificity: Proportion
    """The share of all other images that is not given the class."""
    artefact_specificity: Proportion
    flips: int
    """Images of this class that get another label, of which `lost` and `gained`."""
    lost: int
    gained: int


@dataclass(frozen=True)
class Criterion:
    """One part of the bar, and whether it is met on these images."""

    name: str
    found: float | None
    """What was measured, in `unit`; None where it is not defined on these images."""
    allowed: float
    worst: float | None
    """The bad end of the interval of `found`: what these images cannot exclude. None for a count."""
    unit: str

    @property
    def met(self) -> bool:
        """Whether what was found is allowed; true of what is not defined, which `Decision.notes` tell."""
        return self.found is None or self.found <= self.allowed

    @property
    def certain(self) -> bool:
        """Whether it is met by all of the interval, so that these images are enough to say so."""
        return self.found is not None and (self.worst is None or self.worst <= self.allowed)


@dataclass(frozen=True)
class Decision:
    """How an artefact's answers on labelled images compare with its reference's."""

    images: int
    groups: int | None
    """Patients, slides or the like that they are of, copies counted once; None where each image counts."""
    accuracy: Change
    auc: Change | None
    """The area under the curve, as `metrics_of` has it; None where the images are all of one class."""
    calibration_error: Change
    """Expected calibration error, in bins of the reference's confidence for both."""
    flips: tuple[Flip, ...]
    """The flipped images, decided ones first, and the lost ones first among these."""
    flip_share: Proportion
    """The share of the images that the reference decides that get another label."""
    undecided: int
    """Images that the reference does not decide."""
    lost: int
    """Counted over all images, as are `gained`, `mcnemar_p` and all that follows but the criteria."""
    gained: int
    mcnemar_p: float
    """Exact, two-sided: of a split into lost and gained as uneven as this, if neither model were better; by
    whole groups."""
    classes: tuple[ClassChange, ...]
    reference_confusion: tuple[tuple[int, ...], ...]
    """Images by true class (rows) and given class (columns)."""
    artefact_confusion: tuple[tuple[int, ...], ...]
    reference_reliability: Reliability
    artefact_reliability: Reliability
    """In the bins of the reference's confidence, as `calibration_error` is."""
    criteria: tuple[Criterion, ...]
    notes: tuple[str, ...]
    """What these images cannot tell."""
    level: float
    """Level of confidence of all intervals."""

    @property
    def met(self) -> bool:
        """Whether every criterion is."""
        return all(criterion.met for criterion in self.criteria)

    @property
    def certain(self) -> bool:
        """Whether every criterion is met by all of its interval."""
        return all(criterion.certain for criterion in self.criteria)

    @property
    def decided_flips(self) -> int:
        """Flips of images that the reference decides: those that are judged."""
        return sum(not flip.undecided for flip in self.flips)

    @property
    def sentence(self) -> str:
        """What happened to the labels, in words."""
        if not self.undecided:
            return self._flips_in_words
        among = len(self.flips) - self.decided_flips
        of_these = f", {among} of those that get another label among them" if among else ""
        return f"{self._flips_in_words} The reference itself does not decide {self.undecided}{of_these}."

    @property
    def _flips_in_words(self) -> str:
        if not self.flips:
            return f"All {self.images} images keep their label."
        neither = len(self.flips) - self.lost - self.gained
        parts = [
            f"{count} {_was(count)} {words}"
            for count, words in (
                (self.lost, "right and now wrong"),
                (self.gained, "wrong and now right"),
                (neither, "wrong and still wrong"),
            )
            if count
        ]
        gets = "gets" if len(self.flips) == 1 else "get"
        return f"{len(self.flips)} of {self.images} images {gets} another label: {', '.join(parts)}."


def decide(
    reference: npt.NDArray[np.floating[Any]],
    artefact: npt.NDArray[np.floating[Any]],
    truth: npt.NDArray[np.integer[Any]],
    *,
    labels: Sequence[str],
    images: Sequence[str],
    bar: DecisionBar = DecisionBar(),
    undecided: npt.NDArray[np.bool_] | None = None,
    groups: Sequence[str] | None = None,
) -> Decision:
    """Compares two models' logits on labelled images.

    Args:
        reference: (N, C) logits, finite.
        artefact: (N, C) logits, finite.
        truth: (N,), the index of each image's true class.
        labels: the C class names.
        images: the N images' names.
        bar: what must not be lost.
        undecided: (N,), the images that the reference does not decide, as `undecided_images` has them; None:
            there is no bar on logits to tell by, all flips count, and the number of these is not judged.
        groups: (N,), the patient or slide of each image; None: each image is its own.

    Raises:
        ValueError: shapes that do not fit together, no image, or logits that are not finite.
    """
    before, after = (metrics_of(logits, truth, labels) for logits in (reference, artefact))
    probabilities = [np.exp(log_softmax(logits)) for logits in (reference, artefact)]
    members = members_of(groups, len(truth))
    not_judged = np.zeros(len(truth), np.bool_) if undecided is None else undecided
    flips = _flips(probabilities, truth, labels, images, margins_of(reference), not_judged)
    given = [rows.argmax(axis=1) for rows in probabilities]
    right = [labels_given == truth for labels_given in given]
    lost, gained = right[0] & ~right[1], right[1] & ~right[0]
    auc = None
    if len(set(truth.tolist())) > 1:
        auc = _auc_change(*(Auc.of(log_odds(logits), truth, members) for logits in (reference, artefact)))
    of_reference, of_artefact = (share_interval(each, members) for each in right)
    moved = share_change(lost, gained, members)
    accuracy = Change(before.accuracy, after.accuracy, of_reference, of_artefact, moved)
    judged = int((~not_judged).sum())
    judged_flips = sum(not flip.undecided for flip in flips)
    flip_share = Proportion.of(given[0] != given[1], members, ~not_judged)
    criteria = [
        *_change_criteria(bar, accuracy, auc),
        _image_criterion("flips", bar.max_flips, judged_flips, judged, flip_share.interval.high),
    ]
    # That share is of these images; on others it is theirs, so nothing is in doubt.
    if undecided is not None and judged_flips < len(flips):
        criteria.append(_image_criterion("undecided", bar.max_undecided, len(truth) - judged, len(truth)))
    units = None if groups is None else int(members.max()) + 1
    notes = [*_notes(bar, before, auc is not None, criteria)]
    if units is not None:
        drawn = f"{units} group{'' if units == 1 else 's'}"
        notes.insert(0, f"intervals are by {drawn} (patients, slides, copies), not by images")
    return Decision(
        images=len(truth),
        groups=units,
        accuracy=accuracy,
        auc=auc,
        calibration_error=_calibration_change(probabilities, truth, None if groups is None else members),
        flips=flips,
        flip_share=flip_share,
        undecided=len(truth) - judged,
        lost=int(lost.sum()),
        gained=int(gained.sum()),
        mcnemar_p=mcnemar_p(lost, gained, members),
        classes=tuple(_class_changes(before, given, truth, members, flips)),
        reference_confusion=before.confusion,
        artefact_confusion=after.confusion,
        reference_reliability=reliability(probabilities[0], truth),
        artefact_reliability=reliability(probabilities[1], truth, binned_by=probabilities[0]),
        criteria=tuple(criteria),
        notes=tuple(notes),
        level=LEVEL,
    )


def _auc_change(reference: Auc, artefact: Auc) -> Change:
    return Change(
        reference.value,
        artefact.value,
        reference.interval(),
        artefact.interval(),
        reference.change_interval(artefact),
    )


def _calibration_change(
    probabilities: Sequence[npt.NDArray[np.float64]],
    truth: npt.NDArray[np.integer[Any]],
    members: Members | None,
) -> Change:
    sure = [rows.max(axis=1) for rows in probabilities]
    right = [rows.argmax(axis=1) == truth for rows in probabilities]
    (before, reference), (after, artefact) = (
        calibration_error(*each, members, binned_by=sure[0]) for each in zip(sure, right, strict=True)
    )
    return Change(before, after, reference, artefact, calibration_change(sure, right, members)[1])


def _flips(
    probabilities: Sequence[npt.NDArray[np.float64]],
    truth: npt.NDArray[np.integer[Any]],
    labels: Sequence[str],
    images: Sequence[str],
    margins: npt.NDArray[np.float64],
    undecided: npt.NDArray[np.bool_],
) -> tuple[Flip, ...]:
    before, after = (rows.argmax(axis=1) for rows in probabilities)
    order = ("lost", "gained", "neither")
    flips = []
    for index in np.flatnonzero(before != after).tolist():
        right = (before[index] == truth[index], after[index] == truth[index])
        flips.append(
            Flip(
                image=images[index],
                truth=labels[truth[index]],
                reference=labels[before[index]],
                artefact=labels[after[index]],
                reference_probability=float(probabilities[0][index].max()),
                artefact_probability=float(probabilities[1][index].max()),
                outcome="lost" if right[0] else "gained" if right[1] else "neither",
                margin=float(margins[index]),
                undecided=bool(undecided[index]),
            )
        )
    return tuple(sorted(flips, key=lambda flip: (flip.undecided, order.index(flip.outcome))))


def _class_changes(
    metrics: Metrics,
    given: Sequence[npt.NDArray[np.integer[Any]]],
    truth: npt.NDArray[np.integer[Any]],
    members: Members,
    flips: Sequence[Flip],
) -> Iterator[ClassChange]:
    outcomes = Counter((flip.truth, flip.outcome) for flip in flips)
    totals = Counter(flip.truth for flip in flips)
    for index, each in enumerate(metrics.classes):
        of_it = truth == index
        sensitivity = [Proportion.of(labels == index, members, of_it) for labels in given]
        specificity = [Proportion.of(labels != index, members, ~of_it) for labels in given]
        yield ClassChange(
            label=each.label,
            images=each.images,
            reference_sensitivity=sensitivity[0],
            artefact_sensitivity=sensitivity[1],
            reference_specificity=specificity[0],
            artefact_specificity=specificity[1],
            flips=totals[each.label],
            lost=outcomes[each.label, "lost"],
            gained=outcomes[each.label, "gained"],
        )


def _change_criteria(bar: DecisionBar, accuracy: Change, auc: Change | None) -> Iterator[Criterion]:
    if bar.max_accuracy_drop is not None:
        yield Criterion(
            "accuracy drop",
            round(-100 * accuracy.change, 9)
            + 0.0,  # 0.5 points of 200 images must not exceed 0.5 by a rounding
            bar.max_accuracy_drop,
            -100 * accuracy.change_interval.low,
            "points",
        )
    if bar.max_auc_drop is not None:
        yield Criterion(
            "AUC drop",
            None if auc is None else round(-auc.change, 12) + 0.0,
            bar.max_auc_drop,
            None if auc is None else -auc.change_interval.low,
            "",
        )


def _image_criterion(
    name: str, limit: ImageLimit, found: int, images: int, worst_share: float | None = None
) -> Criterion:
    if not limit.per_cent:
        return Criterion(name, found, limit.amount, None, "")
    images = max(images, 1)
    worst = None if worst_share is None else 100 * worst_share
    allowed = max(limit.amount, 100 * limit.least / images)
    return Criterion(name, 100 * found / images, allowed, worst, "%")


def _notes(bar: DecisionBar, metrics: Metrics, has_auc: bool, criteria: Sequence[Criterion]) -> Iterator[str]:
    images = metrics.images
    absent = [result.label for result in metrics.classes if not result.images]
    if not has_auc:
        present = next(result.label for result in metrics.classes if result.images)
        yield f"AUC is not defined: all images are of class '{present}'; give images of another class too"
    if absent:
        yield f"there are no images of {', '.join(absent)}, so nothing is said about such"
    if bar.max_accuracy_drop is not None and 100 / images > bar.max_accuracy_drop:
        yield (
            f"one image of {images} is {100 / images:.2g} points: a bar of {bar.max_accuracy_drop:g} points "
            "allows no image to be lost on balance"
        )
    for criterion in criteria:
        if criterion.met and not criterion.certain and criterion.worst is not None:
            worst = f"{float(f'{criterion.worst:.2g}'):g} {criterion.unit}".rstrip()
            yield (
                f"{criterion.name}: met on these {images} images, which are too few to exclude {worst} on "
                f"others (allowed {criterion.allowed:g})"
            )


def _was(count: int) -> str:
    return "was" if count == 1 else "were"
