"""How an artefact compares with its model: the figures, the bar, and whether it is met."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...measures.decision import Decision
from ...measures.decision_text import FLIPS_SHOWN, decision_text
from ...measures.margins import margins_of
from ...schema import OBJECT, as_json, maybe, number, record, whole
from ...text import share_as_text, shown, wrapped
from .guarded import GuardParity

NOT_FINITE = "not finite"
"""What stands in place of a label where the logits are not finite."""

PROOF = record(
    {"images": whole(1)},
    {
        "decision": OBJECT,
        "guard": maybe(OBJECT),
        "bar": record({"max_abs_error": maybe(number(0))}),
    },
)
"""What tells how much a proof says (`Parity.falls_short_of`), of ``parity.json`` by any version."""


@dataclass(frozen=True)
class Bar:
    """What an artefact must meet."""

    max_abs_error: float | None
    """Bound on the error of any logit; None: reported, not judged."""
    max_flips: int
    """Images that may change their label, of those that the reference decides."""
    reason: str
    """Where the error bound comes from."""
    max_undecided: int = 0
    """Images that the reference may leave undecided where there is an error bound and one of them flips."""
    is_missing: bool = False
    """Whether the error should be judged, and no bound could be measured: then the bar is not met."""

    @property
    def decided_from(self) -> float | None:
        """The margin from which on the reference decides; None where there is no error bound to tell by."""
        return None if self.max_abs_error is None else 2 * self.max_abs_error


@dataclass(frozen=True)
class Answer:
    """The labels of one image, and how clearly the reference gives its own."""

    image: str
    reference: str | None
    """Its label; None where its logits are not finite."""
    artefact: str | None
    margin: float | None
    """Between the reference's two largest logits; None where one is not finite, or there is one class."""

    @property
    def flips(self) -> bool:
        """Whether the labels differ; an answer that is not finite agrees with none."""
        return self.reference is None or self.reference != self.artefact

    @property
    def text(self) -> str:
        """The answer in words, for a terminal."""
        before, after = (label or NOT_FINITE for label in (self.reference, self.artefact))
        margin = "" if self.margin is None else f", margin {self.margin:.3g}"
        return f"{f'flipped, {before} -> {after}' if self.flips else before}{margin}"


@dataclass(frozen=True)
class Departure:
    """The first module, in the order of computation, whose result departs."""

    module: str
    """Its path in the PyTorch network, such as ``layers.1.blocks.0.pvm_layer``."""
    error: float
    """Largest absolute difference over the largest absolute value of the module's result."""
    expected_error: float
    """The same of the network itself in this precision, against float64."""

    @property
    def failure(self) -> str:
        """What was missed by it, in words."""
        return f"first departing module {self.module}"

    @property
    def text(self) -> str:
        """Where, and how far, for a terminal."""
        return f"{self.module}, relative error {self.error:.3g} (expected {self.expected_error:.3g})"


@dataclass(frozen=True)
class Rise:
    """The module at which an int8 artefact's error grows most: none departs where all are off by design."""

    module: str
    """Its path in the PyTorch network."""
    error: float
    """Largest absolute difference over the largest absolute value of the module's result."""
    error_before: float
    """The largest of the modules before it; at least a step between two integers."""

    @property
    def failure(self) -> str:
        """What was found by it, in words."""
        return f"the error grows most at {self.module}"

    @property
    def text(self) -> str:
        """Where, and how far, for a terminal."""
        before = f"{self.error_before:.3g} at most before it"
        return f"{self.module} above all, relative error {self.error:.3g} ({before})"


@dataclass(frozen=True)
class Parity:
    """How an artefact compares with its checkpoint."""

    images: int
    max_abs_error: float
    mean_abs_error: float
    lowest_cosine: float
    """The lowest cosine between both models' logits of one image."""
    flips: int
    """Images that the reference decides and the artefact gives another label: those that are judged."""
    flips_by_class: Mapping[str, int]
    """The same by the label that the reference gives them."""
    flipped_images: tuple[Answer, ...]
    """The same one by one."""
    undecided: int
    """Images that the reference does not decide (`undecided_images`)."""
    undecided_flips: int
    """How many of these get another label."""
    undecided_images: tuple[Answer, ...]
    """All of them, first those that get another label, closest margin first."""
    worst_image: str
    """The image of `max_abs_error`."""
    precision: str
    executed_by: str
    """What computed the artefact's answers."""
    bar: Bar
    checkpoint_sha256: str
    artefact: str = ""
    reference: str = ""
    split: str = ""
    """The split of labelled data from which the images are; ``all`` of a flat folder."""
    departure: Departure | Rise | None = None
    """Where the error begins, or in int8 grows most, if the bar is missed and the artefact has modules."""
    no_departure: str = ""
    """What was found instead, when that was looked for and no module departs."""
    decision: Decision | None = None
    """What it means on labelled images."""
    no_decision: str = ""
    """Why there is none."""
    guard: GuardParity | None = None
    """What the artefact's guard makes of both; None where it has none, or it was left out."""
    notes: tuple[str, ...] = ()
    """What there is to say of the artefact and the images, a line each."""

    @property
    def passed(self) -> bool:
        """Whether the bar is met."""
        return not self.failure

    @property
    def failure(self) -> str:
        """What was missed, in words; empty when nothing was."""
        missed = []
        allowed = self.bar.max_abs_error
        if not math.isfinite(self.max_abs_error):
            missed.append("a logit is not finite")
        elif allowed is not None and self.max_abs_error > allowed:
            missed.append(f"a logit is off by {self.max_abs_error:.3g}, allowed {allowed:.3g}")
        if self.bar.is_missing:
            missed.append(f"there is no bound on a logit's error: {self.bar.reason}")
        if self.flips > self.bar.max_flips:
            decided = (
                f"{self.images - self.undecided} decided labels"
                if self.undecided
                else f"{self.images} labels"
            )
            missed.append(f"{self.flips} of {decided} flip, allowed {self.bar.max_flips}")
        # Where none of them flips there is nothing to excuse, however many there are.
        if self.undecided_flips and self.undecided > self.bar.max_undecided:
            missed.append(
                f"the reference does not decide {self.undecided} of {self.images} images "
                f"({share_as_text(self.undecided / self.images)} %), allowed {self.bar.max_undecided} "
                f"where one flips, and {self.undecided_flips} {'do' if self.undecided_flips > 1 else 'does'} "
                "(--max-undecided)"
            )
        if self.guard is not None and allowed is not None and self.guard.differing:
            missed.append(
                f"the guard decides {self.guard.differing} of {self.guard.images} images otherwise, allowed 0"
            )
        for criterion in self.decision.criteria if self.decision is not None else ():
            if not criterion.met and criterion.name not in ("flips", "undecided"):  # those are counted above
                missed.append(
                    f"{criterion.name} of {criterion.found:.3g} {criterion.unit}".rstrip()
                    + f", allowed {criterion.allowed:g}"
                )
        if missed and self.departure is not None:
            missed.append(self.departure.failure)
        elif missed and self.no_departure:
            missed.append("no module departs")
        return "; ".join(missed)

    def falls_short_of(self, other: Mapping[str, Any]) -> tuple[str, ...]:
        """What another proof of the same artefact says and this one does not, in words; none where all of it.

        Args:
            other: a `PROOF`.
        """
        lacking = []
        if other["images"] > self.images:
            lacking.append(f"{self.images} in place of {other['images']} images")
        if "decision" in other and self.decision is None:
            lacking.append("no labels")
        bounded = other.get("bar", {}).get("max_abs_error") is not None
        if bounded and self.bar.max_abs_error is None:
            lacking.append("no bound on a logit's error")
        if other.get("guard") is not None and self.guard is None:
            lacking.append("no guard")
        return tuple(lacking)

    def to_text(self, columns: int | None = None) -> str:
        """The comparison as lines for a terminal of so many columns; None: as wide as need be."""
        judged = self.bar.max_abs_error is not None
        allowed = f"allowed {self.bar.max_abs_error:.3g}" if judged else "reported, not judged"
        lines = {
            "images": f"{self.images}, split {self.split}" if self.split else str(self.images),
            "largest error": f"{self.max_abs_error:.3g} ({allowed})",
            "  allowed" if judged else "  because": self.bar.reason,
            "mean error": f"{self.mean_abs_error:.3g}",
            "lowest cosine": f"{self.lowest_cosine:.9f}",
            "label flips": f"{self.flips} (allowed {self.bar.max_flips})",
            **({} if self.decision else self._flip_lines()),
            **({} if self.bar.decided_from is None else self._undecided_lines(self.bar.decided_from)),
            **({} if self.guard is None else self._guard_lines(self.guard)),
            "worst image": self.worst_image,
            "executed by": self.executed_by,
        }
        if self.departure is not None:
            lines["departs at"] = self.departure.text
        elif self.no_departure:
            lines["departs at"] = f"nowhere: {self.no_departure}"
        if self.no_decision:
            lines["decision"] = f"not judged: {self.no_decision}"
        lines["parity"] = "kept" if self.passed else "LOST"
        width = max(map(len, lines))
        text = "".join(
            f"{wrapped(f'{name:<{width}}  {shown(value)}', columns, width + 2)}\n"
            for name, value in lines.items()
        )
        return text if self.decision is None else f"{decision_text(self.decision, columns)}\n{text}"

    def _flip_lines(self) -> dict[str, str]:
        return {
            **{f"  {label}": str(count) for label, count in self.flips_by_class.items()},
            **{f"  {answer.image}": answer.text for answer in self.flipped_images[:FLIPS_SHOWN]},
        }

    def _undecided_lines(self, decided_from: float) -> dict[str, str]:
        allowed = f"allowed {self.bar.max_undecided}, {self.undecided_flips} of them flipped"
        flips = allowed if self.undecided_flips else "none of them flipped"
        share = f"{share_as_text(self.undecided / self.images, 2)} %{f', {flips}' if self.undecided else ''}"
        return {
            "undecided": f"{self.undecided} ({share}): margin below {decided_from:.3g}, twice the bar",
            **{f"  {answer.image}": answer.text for answer in self.undecided_images[:FLIPS_SHOWN]},
        }

    def _guard_lines(self, guard: GuardParity) -> dict[str, str]:
        reach = self.bar.decided_from
        judged = "reported, not judged" if reach is None else "allowed 0"
        lines = {
            "guard": f"by certainty answers {guard.artefact_answered} of {guard.images}, of the reference's "
            f"logits {guard.reference_answered}; {guard.differing} decided otherwise ({judged})",
            # One blank more than flips have, which may be the same images.
            **{f"   {ruling.image}": ruling.text for ruling in guard.differing_images[:FLIPS_SHOWN]},
        }
        if reach is not None:
            lines["at threshold"] = (
                f"{guard.at_threshold}, {guard.at_threshold_differing} of them decided otherwise: certainty "
                f"within {reach:.3g} of the guard's threshold, twice the bar"
            )
            lines |= {f"   {ruling.image}": ruling.text for ruling in guard.at_threshold_images[:FLIPS_SHOWN]}
        lines["candidates"] = f"{guard.candidates_differing} images with others, or in another order"
        return lines

    @property
    def summary(self) -> dict[str, Any]:
        """What the manifest says: plain values, None for errors that are not finite."""
        allowed = self.bar.max_abs_error
        return {
            "passed": self.passed,
            "images": self.images,
            "max_abs_error": self.max_abs_error if math.isfinite(self.max_abs_error) else None,
            "allowed_error": allowed if allowed is not None and math.isfinite(allowed) else None,
            "flips": self.flips,
            "undecided": self.undecided,
            "undecided_flips": self.undecided_flips,
            **({} if self.guard is None else {"guard_decides_otherwise": self.guard.differing}),
        }

    def to_json(self) -> str:
        """The comparison as JSON, for ``parity.json``; errors that are not finite are null."""
        values = {"passed": self.passed, **asdict(self)}
        if self.decision is None:
            del values["decision"]
        else:
            del values["no_decision"]
        return as_json(values, indent=2) + "\n"


def compare(
    expected: npt.NDArray[np.float32],
    found: npt.NDArray[np.float32],
    *,
    images: Sequence[str],
    labels: Sequence[str],
    bar: Bar,
    precision: str,
    executed_by: str,
    checkpoint_sha256: str = "",
    undecided: npt.NDArray[np.bool_] | None = None,
) -> Parity:
    """Compares two sets of logits, (images, classes) each.

    A value that is not finite counts as infinitely wrong.

    Args:
        expected: the reference's.
        found: the artefact's.
        images: their names.
        labels: the classes' names.
        bar: what must be met.
        precision: the artefact's precision.
        executed_by: what computed its answers.
        checkpoint_sha256: the checksum of the checkpoint that both come from.
        undecided: (images,), those on which a flip is not judged (`undecided_images`); None: none.
    """
    wide, other = expected.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):  # what is not finite is told by name below
        errors = np.nan_to_num(np.abs(wide - other), nan=np.inf, posinf=np.inf)
        norms = np.linalg.norm(wide, axis=1) * np.linalg.norm(other, axis=1)
        cosines = np.where(norms > 0, (wide * other).sum(1) / np.where(norms > 0, norms, 1), 1.0)
    before, after = _labels_of(wide, labels), _labels_of(other, labels)
    margins = [float(margin) if np.isfinite(margin) else None for margin in margins_of(wide)]
    answers = [Answer(*each) for each in zip(images, before, after, margins, strict=True)]
    excused = np.zeros(len(images), np.bool_) if undecided is None else undecided
    flipped = [answers[i] for i in np.flatnonzero(~excused) if answers[i].flips]
    close = [answers[i] for i in np.flatnonzero(excused)]
    close.sort(key=lambda answer: (not answer.flips, answer.margin))
    counts = Counter(answer.reference or NOT_FINITE for answer in flipped)
    return Parity(
        images=len(images),
        max_abs_error=float(errors.max()),
        mean_abs_error=float(errors.mean()),
        lowest_cosine=float(np.nan_to_num(cosines, nan=-1.0).min()),
        flips=len(flipped),
        flips_by_class=dict(counts),
        flipped_images=tuple(flipped),
        undecided=len(close),
        undecided_flips=sum(answer.flips for answer in close),
        undecided_images=tuple(close),
        worst_image=images[int(errors.max(1).argmax())],
        precision=precision,
        executed_by=executed_by,
        bar=bar,
        checkpoint_sha256=checkpoint_sha256,
    )


def _labels_of(logits: npt.NDArray[np.float64], labels: Sequence[str]) -> list[str | None]:
    """The label of each row; None where one is not finite."""
    return [labels[int(row.argmax())] if np.isfinite(row).all() else None for row in logits]
