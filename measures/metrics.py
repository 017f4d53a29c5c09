"""What a classifier got right: the paper's metrics from logits and true classes.

Overall accuracy, AUC, and precision, recall and F1 weighted by the classes' sizes (the paper's Tables I to
III give accuracy, AUC and precision). NumPy in, plain values out: PyTorch, ONNX Runtime and TensorRT are
measured by the same lines.

Intervals come from resampling the images (the percentile bootstrap): they say what another test set of the
same kind could have given, not what another training run could.

Dims: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..machine import check_installed


@dataclass(frozen=True)
class ClassMetrics:
    """One class against all others."""

    label: str
    images: int
    """Images of this class."""
    predicted: int
    """Images that were given this class."""
    precision: float
    """The share of the images given this class that belongs to it; 0 where none was given it."""
    recall: float
    """The share of this class's images that was given the class; 0 where there is none."""
    f1: float
    auc: float | None
    """Area under the ROC curve, this class against the rest; None where one of the two has no image."""


@dataclass(frozen=True)
class Metrics:
    """All that is reported of one set of images."""

    images: int
    accuracy: float
    """Overall accuracy, OA."""
    auc: float | None
    """Two classes: of the second, positive one. More: one against the rest, weighted by class size.

    None where the images are all of one class.
    """
    precision: float
    """Weighted by class size, as are recall and F1."""
    recall: float
    f1: float
    loss: float
    """Mean cross-entropy, nats."""
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Images by true class (rows) and predicted class (columns)."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def check_can_measure() -> None:
    """Says what `metrics_of` lacks: to be asked before the work that is to be measured.

    Raises:
        BackendError: scikit-learn is not installed.
    """
    check_installed("sklearn", "accuracy and AUC need scikit-learn", "scikit-learn")


def metrics_of(logits: npt.NDArray[Any], truth: npt.NDArray[Any], labels: Sequence[str]) -> Metrics:
    """Measures predictions.

    Args:
        logits: (N, C), any floating type.
        truth: (N,), the index of each image's true class.
        labels: the C class names.

    Raises:
        ValueError: shapes that do not fit together, no image, or logits that are not finite.
    """
    from sklearn.metrics import (  # type: ignore[import-untyped]  # ships no types
        confusion_matrix,
        precision_recall_fscore_support,
    )

    if logits.shape != (len(truth), len(labels)) or not len(truth):
        raise ValueError(
            f"logits are {logits.shape} for {len(truth)} images and {len(labels)} classes; expected one row "
            f"of {len(labels)} for each of at least one image"
        )
    if not np.isfinite(logits).all():
        rows = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        raise ValueError(f"the logits of {len(rows)} images are not finite, the first is image {rows[0]}")

    log_probabilities = log_softmax(logits)
    scores = log_odds(logits)  # (N, C)
    predicted = logits.argmax(axis=1)
    indices = list(range(len(labels)))
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, predicted, labels=indices, zero_division=0.0
    )
    aucs = [_auc(truth == index, scores[:, index]) for index in indices]
    weights = support / support.sum()
    return Metrics(
        images=len(truth),
        accuracy=float((predicted == truth).mean()),
        auc=aucs[1] if len(labels) == 2 else weighted_mean(aucs, weights),
        precision=float(weights @ precision),
        recall=float(weights @ recall),
        f1=float(weights @ f1),
        loss=float(-log_probabilities[np.arange(len(truth)), truth].mean()),
        classes=tuple(
            ClassMetrics(
                label=labels[index],
                images=int(support[index]),
                predicted=int((predicted == index).sum()),
                precision=float(precision[index]),
                recall=float(recall[index]),
                f1=float(f1[index]),
                auc=aucs[index],
            )
            for index in indices
        ),
        confusion=tuple(
            tuple(int(count) for count in row) for row in confusion_matrix(truth, predicted, labels=indices)
        ),
    )


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Log probabilities in float64: (N, C) to (N, C)."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_probabilities


def log_odds(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Log-odds of each class against all others: (N, C) to (N, C); infinite where there is one class.

    They order images as probabilities do, and do not saturate where these round to 1, from 37 on.
    """
    rows = np.asarray(logits, np.float64)
    likeliest, ordered = rows.argmax(axis=1)[:, None], np.sort(rows, axis=1)
    others, last = ordered[:, :-1], ordered[:, -1]
    if not others.shape[1]:
        return np.full(rows.shape, np.inf)
    top = others[:, -1:]
    logs = log_softmax(rows)
    np.put_along_axis(logs, likeliest, -1.0, axis=1)  # whatever is far from 0: it is replaced below
    odds: npt.NDArray[np.float64] = logs - np.log1p(-np.exp(logs))
    of_likeliest = last - top[:, 0] - np.log(np.exp(others - top).sum(axis=1))
    np.put_along_axis(odds, likeliest, of_likeliest[:, None], axis=1)
    return odds


def _auc(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> float | None:
    from sklearn.metrics import roc_auc_score

    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, scores))


def weighted_mean(aucs: Sequence[float | None], weights: npt.NDArray[np.float64]) -> float | None:
    """The mean over the classes that have images; the others weigh nothing."""
    known = [(auc, weight) for auc, weight in zip(aucs, weights, strict=True) if auc is not None]
    if not known:
        return None
    return float(sum(auc * weight for auc, weight in known) / sum(weight for _, weight in known))
