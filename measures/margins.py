"""Which images a reference decides: the margin between its two largest logits, beside a bar on their errors.

Where no logit is off by more than the bar, a label can change only on an image whose margin is at most twice
the bar: the one logit sinks, the other rises. On such an image errors that are allowed choose the label, and
another label proves nothing against an artefact.

Dims: N images, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.floating[Any]]


def margins_of(logits: Logits) -> npt.NDArray[np.float64]:
    """The difference of the two largest of each row.

    Args:
        logits: (N, C).

    Returns:
        (N,); infinite where there is one class, NaN where a logit is not finite.
    """
    images, classes = logits.shape
    if classes == 1:
        margins = np.full(images, np.inf)
    else:
        largest = np.partition(logits.astype(np.float64), classes - 2, axis=1)[:, -2:]
        with np.errstate(invalid="ignore"):
            margins = largest[:, 1] - largest[:, 0]
    margins[~np.isfinite(logits).all(axis=1)] = np.nan
    return margins


def undecided_images(reference: Logits, artefact: Logits, max_error: float | None) -> npt.NDArray[np.bool_]:
    """The images that the reference does not decide: whose margin is less than twice the bar.

    An answer that is not finite, of either, is never excused so.

    Args:
        reference: (N, C) logits.
        artefact: (N, C) logits.
        max_error: the bar on the error of a logit; None: there is none, and every image is decided.

    Returns:
        (N,).
    """
    if max_error is None:
        return np.zeros(len(reference), np.bool_)
    close: npt.NDArray[np.bool_] = margins_of(reference) < 2 * max_error  # NaN is not
    return close & np.isfinite(artefact).all(axis=1)
