"""What a classifier got right: the paper's metrics from logits and true classes.

Overall accuracy, AUC, and precision, recall and F1 weighted by the classes' sizes (the paper's Tables I to
III give accuracy, AUC and precision). NumPy in, plain values out: PyTorch, ONNX Runtime and TensorRT are
measured by the same lines.

Intervals come from resampling the images (the percentile bootstrap): they say what another test set of the
same kind could have given, not what another training run could.

Dims: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
"""Of a bootstrap: the ends of a 95 % interval then rest on the 50 outermost resamples of each side."""
LEVEL = 0.95


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class ClassMetrics:
    """One class against all others."""

    label: str
    images: int
    """Images of this class."""
    predicted: int
    """Images that were given this class."""
    precision: float
    """Of the images given this class, the share that belongs to it; 0 where none was given it."""
    recall: float
    """Of the images of this class, the share that was given it; 0 where there is none."""
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
    probabilities = np.exp(log_probabilities)  # (N, C)
    predicted = logits.argmax(axis=1)
    indices = list(range(len(labels)))
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, predicted, labels=indices, zero_division=0.0
    )
    aucs = [_auc(truth == index, probabilities[:, index]) for index in indices]
    weights = support / support.sum()
    return Metrics(
        images=len(truth),
        accuracy=float((predicted == truth).mean()),
        auc=aucs[1] if len(labels) == 2 else _weighted(aucs, weights),
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


def _auc(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> float | None:
    from sklearn.metrics import roc_auc_score

    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, scores))


def _weighted(aucs: Sequence[float | None], weights: npt.NDArray[np.float64]) -> float | None:
    """The mean over the classes that have images; the others weigh nothing."""
    known = [(auc, weight) for auc, weight in zip(aucs, weights, strict=True) if auc is not None]
    if not known:
        return None
    return float(sum(auc * weight for auc, weight in known) / sum(weight for _, weight in known))


def bootstrap_interval(
    statistic: Callable[..., float | None],
    *arrays: npt.NDArray[Any],
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    groups: npt.NDArray[Any] | None = None,
) -> Interval | None:
    """The percentile bootstrap: the interval that a statistic of resampled images falls into.

    Args:
        statistic: of the arrays, each with some of the N rows, drawn with replacement and the same in all;
            None or NaN where it has no value (AUC where a resample holds one class only).
        arrays: at least one, each of N rows.
        seed: of the resamples: the same arrays give the same interval.
        resamples: how many are drawn.
        level: share of the statistics that lies within, half of the rest on either side.
        groups: (N,), the patient or slide of each row. Whole groups are drawn then: the images of one patient
            resemble each other, so drawing them one by one makes an interval too narrow.

    Returns:
        None where the statistic has no value in more than half of the resamples.

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
    members: list[npt.NDArray[np.intp]] | None = None
    if groups is not None:
        _, places, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        members = np.split(np.argsort(places, kind="stable"), np.cumsum(sizes)[:-1])
    values = np.full(resamples, np.nan)
    for number in range(resamples):
        if members is None:
            rows = generator.integers(count, size=count)
        else:
            drawn = generator.integers(len(members), size=len(members))
            rows = np.concatenate([members[group] for group in drawn])
        value = statistic(*(array[rows] for array in arrays))
        if value is not None:
            values[number] = value
    if 2 * np.isnan(values).sum() > resamples:
        return None
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def metric_intervals(
    logits: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    groups: npt.NDArray[Any] | None = None,
) -> dict[str, Interval | None]:
    """95 % intervals of what `metrics_of` reports of the same predictions.

    Args:
        logits: (N, C), finite.
        truth: (N,), class indices.
        seed: of the resamples.
        resamples: how many are drawn.
        groups: (N,), the patient or slide of each image (see `bootstrap_interval`).

    Returns:
        By the names of `Metrics`' fields; None where a metric has no value.
    """
    classes = logits.shape[1]
    probabilities = np.exp(log_softmax(logits))
    # Scores as their places in order, equal ones alike: a resample's AUC is then counted, not sorted.
    ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in probabilities.T], axis=1)
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
        return _weighted(aucs, weights)

    def interval(statistic: Callable[..., float | None], *arrays: npt.NDArray[Any]) -> Interval | None:
        return bootstrap_interval(statistic, *arrays, seed=seed, resamples=resamples, groups=groups)

    within = interval(accuracy, truth, predicted)
    return {
        "accuracy": within,
        "auc": interval(auc, truth, ranks),
        "precision": interval(precision, truth, predicted),
        "recall": within,  # weighted by class size, recall is accuracy
        "f1": interval(f1, truth, predicted),
    }


def _auc_of_ranks(positive: npt.NDArray[np.bool_], ranks: npt.NDArray[Any]) -> float | None:
    """The AUC as the share of pairs in order, ties counting half: as `_auc`, a hundred times as fast."""
    positives = np.bincount(ranks[positive], minlength=ranks.max() + 1)
    negatives = np.bincount(ranks[~positive], minlength=ranks.max() + 1)
    pairs = int(positives.sum()) * int(negatives.sum())
    if not pairs:
        return None
    below = np.cumsum(negatives) - negatives / 2
    return float(positives @ below / pairs)
