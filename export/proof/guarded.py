"""Whether an artefact's guard decides the reference's answers like the artefact's own.

Both logits are put through the guard of the artefact. A certainty, a class's logit minus the log-sum-exp of
the others, moves by at most twice what a logit is off by. So where no logit is off by more than the bar, an
image can be answered by the one and withheld by the other only where the reference's certainty is at most
twice the bar from the guard's threshold: *at the threshold*. Such images are counted apart, as those that a
reference does not decide between two labels are (`measures.margins`).

Dims: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...measures.selective import certainty
from ...runtime.guard import Guard


@dataclass(frozen=True)
class Ruling:
    """What the guard makes of one image."""

    image: str
    reference: bool
    """Whether the reference's logits are answered."""
    artefact: bool
    distance: float
    """The reference's certainty minus the guard's threshold."""

    @property
    def differs(self) -> bool:
        """Whether one is answered and the other withheld."""
        return self.reference != self.artefact

    @property
    def text(self) -> str:
        """The ruling in words, for a terminal."""
        before, after = ("answered" if each else "withheld" for each in (self.reference, self.artefact))
        return (
            f"{f'{before} -> {after}' if self.differs else before}, {self.distance:+.3g} from the threshold"
        )


@dataclass(frozen=True)
class GuardParity:
    """How an artefact's guard decides its own logits and the reference's."""

    images: int
    """Those whose logits are finite in both."""
    reference_answered: int
    artefact_answered: int
    differing: int
    """Images that one answers and the other withholds, those at the threshold left out."""
    differing_images: tuple[Ruling, ...]
    """The same one by one."""
    at_threshold: int
    """Images whose reference is within twice the bar of the threshold."""
    at_threshold_differing: int
    """How many of these one answers and the other withholds."""
    at_threshold_images: tuple[Ruling, ...]
    """All of them, first those that differ, closest first."""
    candidates_differing: int
    """Images for which the two name other candidates, or in another order."""


def compare_guarded(
    guard: Guard,
    expected: npt.NDArray[np.floating],
    found: npt.NDArray[np.floating],
    images: Sequence[str],
    max_error: float | None,
) -> GuardParity:
    """Puts two sets of logits through a guard.

    Args:
        guard: the artefact's.
        expected: (N, C), the reference's.
        found: (N, C), the artefact's.
        images: their N names.
        max_error: the bar on the error of a logit; None: there is none, and no image is at the threshold.
    """
    finite = np.flatnonzero(np.isfinite(expected).all(axis=1) & np.isfinite(found).all(axis=1))
    expected, found = expected[finite], found[finite]
    threshold = -np.inf if guard.threshold is None else guard.threshold
    distances = certainty(expected) - threshold
    rulings = [
        Ruling(images[place], bool(before), bool(after), float(distance))
        for place, before, after, distance in zip(
            finite.tolist(), guard.decided(expected), guard.decided(found), distances, strict=True
        )
    ]
    close = np.zeros(len(finite), np.bool_) if max_error is None else np.abs(distances) <= 2 * max_error
    at_threshold = [ruling for ruling, near in zip(rulings, close, strict=True) if near]
    at_threshold.sort(key=lambda ruling: (not ruling.differs, abs(ruling.distance)))
    differing = tuple(
        ruling for ruling, near in zip(rulings, close, strict=True) if ruling.differs and not near
    )
    pairs = zip(guard.candidates(expected), guard.candidates(found), strict=True)
    return GuardParity(
        images=len(rulings),
        reference_answered=sum(ruling.reference for ruling in rulings),
        artefact_answered=sum(ruling.artefact for ruling in rulings),
        differing=len(differing),
        differing_images=differing,
        at_threshold=len(at_threshold),
        at_threshold_differing=sum(ruling.differs for ruling in at_threshold),
        at_threshold_images=tuple(at_threshold),
        candidates_differing=sum(one != other for one, other in pairs),
    )
