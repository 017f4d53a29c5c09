"""The picture of a run: its training curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...pages.figures import FAINT, INK, TRAIN_COLOUR, VAL_COLOUR, write_figure
from ...text import share_as_text
from .history import Epoch

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    accuracy.set_title(f"Accuracy, %: best {share_as_text(best.val_accuracy)} in epoch {best.number}")
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
    write_figure(path, figure)


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
