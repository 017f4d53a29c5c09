"""A classifier's metrics on labelled images, whatever runs it: PyTorch, ONNX Runtime or TensorRT.

Dims: N images, B batch, S side of the square network input, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.samples import Sample, classes_of
from ..errors import ArtefactError
from ..images import Transform
from .metrics import Metrics, metrics_of

Predictor = Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]
"""Normalised images (B, 3, S, S) to logits (B, C)."""

BATCH_SIZE = 16


def evaluate(
    predict: Predictor,
    samples: Sequence[Sample],
    labels: Sequence[str],
    transform: Transform,
    *,
    batch_size: int = BATCH_SIZE,
    advance: Callable[[int], None] = lambda images: None,
) -> Metrics:
    """Measures a classifier on image files, each read and transformed as the runtime does it.

    Args:
        predict: the classifier.
        samples: at least one; their class indices are places in ``labels``.
        labels: the classifier's C class names.
        transform: makes an image the classifier's input.
        batch_size: images at a time.
        advance: called after each batch with the number of images in it.

    Raises:
        ImageError: a file cannot be read; the message names it.
        ArtefactError: the classifier gives NaN or infinity.
    """
    scores = logits_of(predict, samples, transform, batch_size=batch_size, advance=advance)
    return metrics_of(scores, classes_of(samples), labels)


def logits_of(
    predict: Predictor,
    samples: Sequence[Sample],
    transform: Transform,
    *,
    batch_size: int = BATCH_SIZE,
    advance: Callable[[int], None] = lambda images: None,
) -> npt.NDArray[Any]:
    """(N, C): a classifier's logits of image files, all of them finite; the arguments are `evaluate`'s.

    Raises:
        ImageError: a file cannot be read; the message names it.
        ArtefactError: the classifier gives NaN or infinity.
    """
    logits = []
    for batch in _batches(samples, batch_size):
        images = np.stack([transform.of(sample.source) for sample in batch])  # (B, 3, S, S)
        logits.append(predict(images))
        advance(len(batch))
    scores = np.concatenate(logits)  # (N, C)
    broken = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(broken):
        raise ArtefactError(
            f"the model's logits of {len(broken)} of {len(samples)} images are not finite, the first is "
            f"'{samples[int(broken[0])].source}': verify it against its checkpoint with 'mmdeploy verify'"
        )
    return scores


def _batches(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]
