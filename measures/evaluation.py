"""A classifier's answers on image files, whatever runs it: PyTorch, ONNX Runtime or TensorRT.

Dims: N images, B batch, S side of the square network input, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.samples import Sample
from ..errors import ArtefactError
from ..images import Transform, read_image

Predictor = Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]
"""Normalised images (B, 3, S, S) to logits (B, C)."""

BATCH_SIZE = 16


def logits_of(
    predict: Predictor,
    samples: Sequence[Sample],
    transform: Transform,
    *,
    batch_size: int = BATCH_SIZE,
    advance: Callable[[int], None] = lambda images: None,
    look: Callable[[npt.NDArray[np.uint8]], None] = lambda pixels: None,
) -> npt.NDArray[Any]:
    """(N, C): a classifier's logits of image files, read and transformed as by the runtime; all are finite.

    Args:
        predict: the classifier.
        samples: at least one.
        transform: makes an image the classifier's input.
        batch_size: images at a time.
        advance: called after each batch with the number of images in it.
        look: is handed the pixels of each image, (H, W, 3), in their order.

    Raises:
        ImageError: a file cannot be read; the message names it.
        ArtefactError: the classifier gives NaN or infinity.
    """
    logits = []
    for batch in _batches(samples, batch_size):
        images = np.empty((len(batch), 3, transform.size, transform.size), np.float32)
        for place, sample in enumerate(batch):
            pixels = read_image(sample.source, white_level=transform.white_level)
            look(pixels)
            images[place] = transform(pixels)
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
