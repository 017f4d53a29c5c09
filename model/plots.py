"""The pictures of a run: its training curve and its confusion matrix, as PNG files.

Figures are drawn without pyplot, so nothing global is touched and no display is needed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..files import write_atomically
from .metrics import Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .run import Epoch

TRAIN_COLOUR, VAL_COLOUR = "#8c6bb1", "#1b7837"
INK, FAINT = "#333333", "#d9d9d9"
DOTS_PER_INCH = 130


def write_training_curve(path: Path, history: Sequence[Epoch], best: Epoch) -> None:
    """Draws loss and accuracy of both splits, and the learning rate, by epoch.

    Args:
        path: the PNG; it appears whole or not at all.
        history: the epochs so far, at least one.
        best: the epoch whose weights are kept.

    Raises:
        TargetError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    epochs = [epoch.number for epoch in history]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    marker = "o" if len(epochs) == 1 else None  # a line of one point is invisible

    loss.plot(
        epochs, [epoch.train_loss for epoch in history], color=TRAIN_COLOUR, marker=marker, label="training"
    )
    loss.plot(
        epochs, [epoch.val_loss for epoch in history], color=VAL_COLOUR, marker=marker, label="validation"
    )
    loss.set_title("Cross-entropy")
    loss.set_ylim(bottom=0)
    loss.legend(frameon=False)

    accuracy.plot(
        epochs, [100 * epoch.train_accuracy for epoch in history], color=TRAIN_COLOUR, marker=marker
    )
    accuracy.plot(epochs, [100 * epoch.val_accuracy for epoch in history], color=VAL_COLOUR, marker=marker)
    accuracy.plot(best.number, 100 * best.val_accuracy, "o", color=VAL_COLOUR, clip_on=False)
    accuracy.set_title(f"Accuracy, %: best {100 * best.val_accuracy:.1f} in epoch {best.number}")
    accuracy.set_ylim(top=100)

    rate.plot(epochs, [epoch.learning_rate for epoch in history], color=INK, marker=marker)
    rate.set_title("Learning rate")
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))

    for axes in (loss, accuracy, rate):
        _plain(axes)
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, epochs[-1] + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
    _write(path, figure)


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
    for row, column in np.ndindex(counts.shape):
        count, share = counts[row, column], shares[row, column]
        axes.text(
            column,
            row,
            f"{count}\n{100 * share:.0f} %" if count and classes <= 12 else str(count),
            ha="center",
            va="center",
            fontsize=font_size,
            color="white" if share > 0.55 else INK if count else "#b0b0b0",
        )
    labels = [result.label for result in metrics.classes]
    crowded = max(map(len, labels)) * classes > 48
    axes.set_xticks(
        range(classes),
        labels,
        rotation=40 if crowded else 0,
        ha="right" if crowded else "center",
        rotation_mode="anchor",
        parse_math=False,  # names may hold dollar signs
    )
    axes.set_yticks(range(classes), labels, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.suptitle(f"{title}: {metrics.images} images, accuracy {100 * metrics.accuracy:.1f} %")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    _write(path, figure)


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _write(path: Path, figure: Figure) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    write_atomically(path, buffer.getvalue())
