"""The picture of a confusion matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..pages.figures import INK, write_figure
from ..text import share_as_text
from .metrics import Metrics

_ZEROS_SHOWN = 30
"""Classes up to which cells without an image are written in: of a hundred classes there would be 10,000."""
_LEGIBLE = 100
"""Classes up to which counts can be read, and names along a side: of more, cells have colours alone, without
lines between them, which would be wider than the cells and cover the picture."""


def write_confusion_matrix(path: Path, metrics: Metrics, title: str) -> None:
    """Draws the confusion matrix: a count and its share of the true class in each cell.

    Raises:
        TargetError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    counts = np.array(metrics.confusion)
    classes = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(4.2, 1.6 + 0.85 * classes), 16)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Purples", vmin=0, vmax=1)
    font_size = min(11.0, 62 * side / 5 / classes)
    legible = classes <= _LEGIBLE
    cells = np.ndindex(counts.shape) if classes <= _ZEROS_SHOWN else map(tuple, np.argwhere(counts))
    for row, column in cells if legible else ():
        count, share = counts[row, column], shares[row, column]
        axes.text(
            column,
            row,
            f"{count}\n{share_as_text(share, 0)} %" if count and classes <= 12 else str(count),
            ha="center",
            va="center",
            fontsize=font_size,
            color="white" if share > 0.55 else INK if count else "#b0b0b0",
        )
    named = range(0, classes, -(-classes // _LEGIBLE))
    labels = [metrics.classes[place].label for place in named]
    crowded = max(map(len, labels)) * len(labels) > 48
    axes.set_xticks(
        named,
        labels,
        rotation=40 if crowded else 0,
        ha="right" if crowded else "center",
        rotation_mode="anchor",
        parse_math=False,  # names may hold dollar signs
    )
    axes.set_yticks(named, labels, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    said = f"{title}: {metrics.images} images, accuracy {share_as_text(metrics.accuracy)} %"
    figure.suptitle(said, parse_math=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if legible:
        axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=2)
        axes.tick_params(which="minor", length=0)
    write_figure(path, figure)
