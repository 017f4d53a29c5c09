"""What the epochs of a run came to, which of them is the best, and when a run is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...measures.metrics import Metrics
from .recipe import Recipe


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to."""

    number: int
    """The epoch's number, from 1."""
    learning_rate: float
    """The learning rate at the epoch's last step."""
    train_loss: float
    """Mean cross-entropy, nats, of augmented images while the weights change."""
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    val_auc: float | None
    seconds: float
    """Wall time, validation included."""
    images_per_second: float | None = None
    """Training images over the wall time of their pass; None in runs of versions that did not measure it."""


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    history: tuple[Epoch, ...]
    best_epoch: int
    val: Metrics
    """The best weights' metrics on the validation split."""
    test: Metrics | None
    """The best weights' metrics on the test split; None where the data has none."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Images of all splits that were left out because they cannot be read, with the reason."""
    lost: tuple[str, ...] = ()
    """Why images could not be read in the end that could be read before the first epoch."""

    def to_text(self) -> str:
        """The figures of the best weights, a line for each split."""
        splits = {"val": self.val} if self.test is None else {"val": self.val, "test": self.test}
        lines = [f"best epoch {self.best_epoch} of {len(self.history)}, {self.seconds:.0f} s in all"]
        for name, metrics in splits.items():
            auc = "-" if metrics.auc is None else f"{metrics.auc:.4f}"
            lines.append(
                f"{name}: accuracy {metrics.accuracy:.4f}  AUC {auc}  precision {metrics.precision:.4f}  "
                f"recall {metrics.recall:.4f}  F1 {metrics.f1:.4f}  ({metrics.images} images)"
            )
        return "\n".join(lines)

    @property
    def seconds(self) -> float:
        """Wall time of all epochs, those before a resumption included."""
        return sum(epoch.seconds for epoch in self.history)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "epochs": len(self.history),
            "best_epoch": self.best_epoch,
            "seconds": round(self.seconds, 3),
            "val": self.val.to_dict(),
            "test": None if self.test is None else self.test.to_dict(),
            "skipped": dict(self.skipped),
        }


def best_of(history: Sequence[Epoch]) -> Epoch:
    """The epoch of the highest validation accuracy; among equals that of the lowest loss, then the first."""
    return max(history, key=lambda epoch: (epoch.val_accuracy, -epoch.val_loss, -epoch.number))


def is_over(history: Sequence[Epoch], recipe: Recipe) -> bool:
    """Whether the epochs are used up, or the validation loss has not fallen for the recipe's patience."""
    if len(history) >= recipe.epochs:
        return True
    if not history:
        return False
    lowest = min(history, key=lambda epoch: epoch.val_loss)
    return len(history) - lowest.number >= recipe.patience
