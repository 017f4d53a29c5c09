"""How unlike an image is to those of calibration, by the features that the network's head takes.

The score is the squared Mahalanobis distance to the nearest class (Lee et al., "A Simple Unified Framework
for Detecting Out-of-Distribution Samples and Adversarial Attacks", 2018). There are more features than images
to tell a covariance by, so it is that of a probabilistic PCA (Tipping and Bishop, 1999): the directions in
which images of a class differ most have a variance each, all others have one together. docs/guard.md has what
other scores see, and what none sees.

Dims: B images of a batch, N images of calibration, C classes, F features, R directions.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArtefactError

Floats = npt.NDArray[np.float32]

METADATA_KEY = "msmamba.guard.likeness"
"""Entry of an ONNX file's ``metadata_props`` that holds it, as text."""
DIRECTIONS = 32
"""Directions that have a variance of their own; 16 to 64 measure alike."""
_VALUE = np.dtype("<f4")


@dataclass(frozen=True)
class Likeness:
    """What images of each class are like."""

    means: Floats
    """(C, F)."""
    directions: Floats
    """(R, F), orthonormal."""
    variances: Floats
    """(R,), along the directions."""
    rest: float
    """The variance along any other."""

    @classmethod
    def of(cls, features: npt.NDArray[Any], truth: npt.NDArray[np.integer[Any]]) -> Likeness | None:
        """What labelled images are like.

        Args:
            features: (N, F), finite.
            truth: (N,), class indices, each class at least once.

        Returns:
            None where images of a class differ in nothing, or are too few to tell.
        """
        rows = np.asarray(features, np.float64)
        classes = int(truth.max()) + 1
        means = np.stack([rows[truth == index].mean(axis=0) for index in range(classes)])
        freedom = len(rows) - classes
        kept = min(DIRECTIONS, freedom - 1, rows.shape[1] - 1)
        if kept < 1:
            return None
        _, sizes, directions = np.linalg.svd(rows - means[truth], full_matrices=False)
        variances = sizes**2 / freedom
        rest = variances[kept:].sum() / (rows.shape[1] - kept)
        if not rest > np.finfo(np.float32).tiny:
            return None
        return cls(
            means.astype(_VALUE),
            directions[:kept].astype(_VALUE),
            np.maximum(variances[:kept], rest).astype(_VALUE),
            float(np.float32(rest)),
        )

    @classmethod
    def from_text(cls, text: str, name: str) -> Likeness:
        """The inverse of `to_text`.

        Args:
            text: what `to_text` gave.
            name: what messages call the artefact.

        Raises:
            ArtefactError: it is something else.
        """
        try:
            shape, _, content = text.partition(":")
            classes, features, directions = map(int, shape.split("x"))
            values = np.frombuffer(base64.b64decode(content, validate=True), _VALUE)
            ends = np.cumsum([classes * features, directions * features, directions])
            means, axes, variances, rest = np.split(values, ends)
            found = cls(
                means.reshape(classes, features), axes.reshape(directions, features), variances, rest.item()
            )
            if not (np.isfinite(values).all() and classes and directions and values[ends[1] :].min() > 0):
                raise ValueError("no variances")
        except ValueError as error:
            raise ArtefactError(
                f"what the guard of '{name}' compares images with is damaged: fit it again with "
                "'mmdeploy calibrate'"
            ) from error
        return found

    def to_text(self) -> str:
        """It as text, exactly."""
        classes, features = self.means.shape
        parts = (self.means, self.directions, self.variances, np.array([self.rest]))
        content = b"".join(part.astype(_VALUE).tobytes() for part in parts)
        return f"{classes}x{features}x{len(self.directions)}:{base64.b64encode(content).decode()}"

    def distances(self, features: npt.NDArray[Any]) -> Floats:
        """(B, F) to (B,): the squared distance to the nearest class, in deviations."""
        rows = np.asarray(features, np.float32)
        nearest = np.full(len(rows), np.inf, np.float32)
        for mean in self.means:
            away = rows - mean
            along = away @ self.directions.T  # (B, R)
            beside = np.maximum((away**2).sum(axis=1) - (along**2).sum(axis=1), 0)
            nearest = np.minimum(nearest, (along**2 / self.variances).sum(axis=1) + beside / self.rest)
        return nearest
