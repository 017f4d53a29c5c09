"""What a network said of every image, as a csv file: intervals, and any later look at errors, rest on it.

One line for each image: split, image, group (its patient, where one is known, or what it is a copy of), true
class, predicted class, and the logit of each class, to the last bit of float32.

Dims: N images, C classes.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import DataError, reason_of
from ..files import as_utf8, lines_of, open_text, write_atomically
from ..text import as_cell, as_row, from_cell
from .metrics import Metrics, metrics_of
from .uncertainty import RESAMPLES, Interval, metric_intervals

PREDICTIONS = "predictions.csv"
_FIXED = ("split", "image", "group", "true", "predicted")
_LOGIT = "logit of "


@dataclass(frozen=True)
class Predictions:
    """A network's answers on one set of images."""

    labels: tuple[str, ...]
    """The C class names."""
    images: tuple[str, ...]
    """The N images' names, paths below the data folder."""
    truth: npt.NDArray[np.int64]
    """(N,) class indices."""
    logits: npt.NDArray[np.float32]
    """(N, C)."""
    groups: tuple[str, ...] | None = None
    """What the N images belong to, a patient or a slide, joined by copies; None where each image counts."""

    def metrics(self) -> Metrics:
        """What is right among them."""
        return metrics_of(self.logits, self.truth, self.labels)

    def intervals(self, resamples: int = RESAMPLES) -> dict[str, Interval | None]:
        """95 % intervals of the metrics, by whole groups where they are known."""
        groups = None if self.groups is None else np.array(self.groups)
        return metric_intervals(self.logits, self.truth, resamples=resamples, groups=groups)


def write_predictions(path: Path, splits: Mapping[str, Predictions]) -> None:
    """Writes the predictions of splits, at least one, of the same classes.

    Raises:
        TargetError: the file cannot be written.
    """
    labels = next(iter(splits.values())).labels
    rows = [as_row([*_FIXED, *(f"{_LOGIT}{label}" for label in labels)])]
    for split, found in splits.items():
        groups = found.groups or ("",) * len(found.images)
        predicted = found.logits.argmax(axis=1)
        for number, (image, group) in enumerate(zip(found.images, groups, strict=True)):
            true, said = labels[found.truth[number]], labels[predicted[number]]
            # The shortest decimal that gives the same float32 back.
            logits = [np.format_float_positional(logit, trim="-") for logit in found.logits[number]]
            rows.append(as_row([*map(as_cell, (split, image, group, true, said)), *logits]))
    write_atomically(path, as_utf8("".join(rows)))


def read_predictions(path: Path) -> dict[str, Predictions]:
    """Reads what `write_predictions` wrote.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    try:
        with open_text(path, newline="") as file:
            head, *rows = list(csv.reader(lines_of(file), strict=True)) or [[]]
        fixed, labels = head[: len(_FIXED)], tuple(name.removeprefix(_LOGIT) for name in head[len(_FIXED) :])
        if tuple(fixed) != _FIXED or not labels:
            raise ValueError(f"its columns are {', '.join(head) or 'none'}")
        if len(set(labels)) < len(labels):
            raise ValueError(f"two of its classes have one name: {', '.join(labels)}")
        uneven = [number for number, row in enumerate(rows, start=2) if len(row) != len(head)]
        if uneven:
            raise ValueError(f"row {uneven[0]} has not as many cells as the first")
        unknown = [row[3] for row in rows if from_cell(row[3]) not in labels]
        if unknown:
            raise ValueError(f"it has an image of '{unknown[0]}' and no logits of that class")
        logits = np.array([row[len(_FIXED) :] for row in rows], np.float64)
        if not (np.abs(logits) <= np.finfo(np.float32).max).all():
            raise ValueError("some of its logits are no finite float32 numbers")
        splits: dict[str, Predictions] = {}
        for split in dict.fromkeys(row[0] for row in rows):
            own = [row for row in rows if row[0] == split]
            groups = tuple(from_cell(row[2]) for row in own)
            splits[split] = Predictions(
                labels,
                tuple(from_cell(row[1]) for row in own),
                np.array([labels.index(from_cell(row[3])) for row in own]),
                np.array([row[len(_FIXED) :] for row in own], np.float32),
                groups if any(groups) else None,
            )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason_of(error)}") from error
    except (csv.Error, ValueError) as error:  # of values, UnicodeDecodeError is one
        raise DataError(f"{path}: is not a file of predictions of this version: {error}") from error
    return splits
