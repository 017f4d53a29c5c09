"""How an artefact compares with its model: the figures, the bar, and whether it is met."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from ...measures.decision import Decision
from ...measures.decision_text import FLIPS_SHOWN, decision_text


@dataclass(frozen=True)
class Bar:
    """What an artefact must meet."""

    max_abs_error: float | None
    """Of any logit; None: reported, not judged."""
    max_flips: int
    """Images that may change their label."""
    reason: str
    """Where the error bound comes from."""


@dataclass(frozen=True)
class Departure:
    """The first module, in the order of computation, whose result departs."""

    module: str
    """Its path in the PyTorch network, such as ``layers.1.blocks.0.pvm_layer``."""
    error: float
    """Largest absolute difference over the largest absolute value of the module's result."""
    expected_error: float
    """The same of the network itself in this precision, against float64."""


@dataclass(frozen=True)
class Parity:
    """How an artefact compares with its checkpoint."""

    images: int
    max_abs_error: float
    mean_abs_error: float
    lowest_cosine: float
    """Between the logits of one image."""
    flips: int
    flips_by_class: Mapping[str, int]
    """Flipped images by the label that PyTorch gives them."""
    flipped_images: tuple[str, ...]
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
    """Of labelled data, from which the images are; ``all`` of a flat folder."""
    departure: Departure | None = None
    """Where it begins, when the bar is missed and the artefact can be looked into."""
    decision: Decision | None = None
    """What it means on labelled images."""
    no_decision: str = ""
    """Why there is none."""
    notes: tuple[str, ...] = ()
    """What there is to say of the images' folders, a line each."""

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
        if self.flips > self.bar.max_flips:
            missed.append(f"{self.flips} of {self.images} labels flip, allowed {self.bar.max_flips}")
        for criterion in self.decision.criteria if self.decision is not None else ():
            if not criterion.met and criterion.name != "flips":  # those are counted above
                missed.append(
                    f"{criterion.name} of {criterion.found:.3g} {criterion.unit}".rstrip()
                    + f", allowed {criterion.allowed:g}"
                )
        if missed and self.departure is not None:
            missed.append(f"first departing module {self.departure.module}")
        return "; ".join(missed)

    def to_text(self) -> str:
        """The comparison as lines for a terminal."""
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
            "worst image": self.worst_image,
            "executed by": self.executed_by,
        }
        if self.departure is not None:
            lines["departs at"] = (
                f"{self.departure.module}, relative error {self.departure.error:.3g} "
                f"(expected {self.departure.expected_error:.3g})"
            )
        if self.no_decision:
            lines["decision"] = f"not judged: {self.no_decision}"
        lines["parity"] = "kept" if self.passed else "LOST"
        width = max(map(len, lines))
        text = "".join(f"{name:<{width}}  {value}\n" for name, value in lines.items())
        return text if self.decision is None else f"{decision_text(self.decision)}\n{text}"

    def _flip_lines(self) -> dict[str, str]:
        return {
            **{f"  {label}": str(count) for label, count in self.flips_by_class.items()},
            **{f"  {image}": "flipped" for image in self.flipped_images[:FLIPS_SHOWN]},
        }

    def to_json(self) -> str:
        """The comparison as JSON, for ``parity.json``."""
        values = {"passed": self.passed, **asdict(self)}
        if self.decision is None:
            del values["decision"]
        else:
            del values["no_decision"]
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


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
) -> Parity:
    """Compares two sets of logits, (images, classes) each.

    A value that is not finite counts as infinitely wrong.
    """
    wide, other = expected.astype(np.float64), found.astype(np.float64)
    errors = np.abs(wide - other)
    errors[~np.isfinite(other)] = np.inf
    before, after = wide.argmax(1), np.where(np.isfinite(other), other, -np.inf).argmax(1)
    flipped = np.flatnonzero((before != after) | ~np.isfinite(other).all(1))
    norms = np.linalg.norm(wide, axis=1) * np.linalg.norm(other, axis=1)
    cosines = np.where(norms > 0, (wide * other).sum(1) / np.where(norms > 0, norms, 1), 1.0)
    counts = Counter(labels[int(before[i])] for i in flipped)
    return Parity(
        images=len(images),
        max_abs_error=float(errors.max()),
        mean_abs_error=float(errors.mean()),
        lowest_cosine=float(np.nan_to_num(cosines, nan=-1.0).min()),
        flips=len(flipped),
        flips_by_class=dict(counts),
        flipped_images=tuple(images[int(i)] for i in flipped),
        worst_image=images[int(errors.max(1).argmax())],
        precision=precision,
        executed_by=executed_by,
        bar=bar,
        checkpoint_sha256=checkpoint_sha256,
    )
