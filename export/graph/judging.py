"""How a quantised network is judged: by what it answers beside the float32 one, and by limits to that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from ...calib import CalibrationSet
from ...errors import ArtefactError, ExportError
from ...images import Transform
from ...measures.decision import ImageLimit
from ...runtime.onnxruntime_backend import OnnxRuntimeBackend


@dataclass(frozen=True)
class Judgement:
    """What a quantised network answers, beside the float32 one."""

    images: int
    flips: int
    """Images whose label differs from the float32 network's."""
    accuracy: float
    float32_accuracy: float
    logit_error: float
    """Root mean square, over images and classes."""
    largest_logit_error: float

    @property
    def accuracy_drop(self) -> float:
        """Percentage points lost; below zero where the quantised network is the better one."""
        # Rounded: 0.3 points of 1,000 images must not exceed 0.3 by a rounding.
        return round(100 * (self.float32_accuracy - self.accuracy), 9)

    @property
    def summary(self) -> str:
        """The judgement in words, for a terminal."""
        return (
            f"{self.flips} labels flip, accuracy {100 * self.accuracy:.2f} % (float32 "
            f"{100 * self.float32_accuracy:.2f} %), logits off by {self.logit_error:.3g} (root mean square)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


USUAL_FLIPS = ImageLimit(0.5, per_cent=True)


@dataclass(frozen=True)
class Limits:
    """What a quantised network must meet on the images that a plan is judged on.

    Stricter than what `verify` allows on others by default (`decision.INT8_BAR`).
    """

    accuracy_drop: float = 0.3
    """Percentage points of accuracy, at most."""
    flips: ImageLimit = USUAL_FLIPS
    """Images whose label differs from the float32 network's, at most."""

    def missed(self, judgement: Judgement) -> str:
        """What was missed, in words; empty when nothing was."""
        missed = []
        if not judgement.accuracy_drop <= self.accuracy_drop:  # NaN is met by nothing
            missed.append(
                f"accuracy drops by {judgement.accuracy_drop:.2f} points (allowed {self.accuracy_drop:g})"
            )
        if judgement.flips > self.flips.allowed(judgement.images):
            missed.append(f"{judgement.flips} of {judgement.images} labels flip (allowed {self.flips})")
        return " and ".join(missed)

    def check(self, judgement: Judgement, what: str) -> None:
        """Refuses what misses the limits.

        Raises:
            ExportError: it does; the message says by how much.
        """
        if missed := self.missed(judgement):
            raise ExportError(
                f"{what} misses the limits: {missed}: leave --plan out to have one found, calibrate on more "
                "images, or allow more with --max-flips and --max-accuracy-drop"
            )


def limits_of(max_flips: str | None = None, max_accuracy_drop: float | None = None) -> Limits:
    """The limits that a command line says, in place of the usual ones.

    Raises:
        InputError: the flips are neither a count nor a per cent.
    """
    usual = Limits()
    return Limits(
        accuracy_drop=usual.accuracy_drop if max_accuracy_drop is None else max_accuracy_drop,
        flips=usual.flips if max_flips is None else ImageLimit.parse(max_flips),
    )


class Judge:
    """Runs models on labelled images beside the float32 network."""

    def __init__(
        self,
        reference: ModelProto,
        images: CalibrationSet,
        labels: Sequence[str],
        transform: Transform,
        report: Callable[[str], None] = lambda step: None,
    ) -> None:
        """The float32 network's answers are computed when they are first needed.

        Args:
            reference: the float32 network.
            images: labelled; read anew for each model, so that memory does not grow with their number.
            labels: the networks' classes.
            transform: makes an image the networks' input.
            report: is told each step as it begins.
        """
        self._reference, self._transform, self.report = reference, transform, report
        self._sources = [image.source for image in images.images]
        self._truth = np.array([labels.index(image.label) for image in images.images])
        self._expected: npt.NDArray[np.float32] | None = None

    def of(self, model: ModelProto, limit: int | None = None) -> Judgement:
        """Judges a model.

        Args:
            model: with the classes of the float32 network.
            limit: look at this many images only, the first, which are as many of one class as of another.

        Raises:
            ArtefactError: its logits are not finite.
            BackendError: it does not run.
        """
        if self._expected is None:
            self._expected = self._logits(self._reference)
        expected, truth, found = self._expected[:limit], self._truth[:limit], self._logits(model, limit)
        errors = found.astype(np.float64) - expected
        return Judgement(
            images=len(truth),
            flips=int((found.argmax(1) != expected.argmax(1)).sum()),
            accuracy=float((found.argmax(1) == truth).mean()),
            float32_accuracy=float((expected.argmax(1) == truth).mean()),
            logit_error=float(np.sqrt((errors**2).mean())),
            largest_logit_error=float(np.abs(errors).max()),
        )

    def _logits(self, model: ModelProto, limit: int | None = None) -> npt.NDArray[np.float32]:
        backend = OnnxRuntimeBackend(model.SerializeToString(), "the model")
        try:
            rows = [backend.run(self._transform.of(source)[None]) for source in self._sources[:limit]]
        finally:
            backend.close()
        logits = np.concatenate(rows)
        if not np.isfinite(logits).all():
            raise ArtefactError("the model's logits are not finite: calibrate it again")
        return logits
