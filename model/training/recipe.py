"""The recipe: every figure, besides the data and the architecture, that decides a network's weights.

`PRESETS` are recipes by name. A recipe remembers the one that it was made from, and says where it departs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ...data.splitting import LARGEST_SEED
from ...images import MAX_SIZE, is_image_size
from .augmentation import Augmentation
from .figures import FigureError

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "micrographs": {
        "epochs": 38,
        "learning_rate": 2e-3,
        "warmup_epochs": 3,
        "label_smoothing": 0.1,
        "average_epochs": 8.0,
        "crop_scale": (0.6, 1.0),
        "horizontal_flip": True,
        "vertical_flip": True,
        "keep_shape": True,
        "colour": 0.05,
        "focus": 0.005,
    },
}
"""What recipes by name change of the paper's; ``micrographs`` is for a few hundred, of one object each."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the defaults are the paper's (section III; its code where it is silent).

    Raises:
        FigureError: figures that make no sense; all of them are named.
    """

    epochs: int = 200
    """The most epochs that a run has."""
    batch_size: int = 16
    learning_rate: float = 1e-4
    """Adam's learning rate at its highest: after the warm-up, before the cosine decay to 0."""
    weight_decay: float = 1e-4
    """Adam's weight decay; the scans' `A_logs` and `Ds` take none."""
    warmup_epochs: int = 10
    """Epochs over which the learning rate grows linearly, step by step."""
    patience: int = 30
    """Epochs without a lower validation loss after which training stops."""
    image_size: int = 224
    """Side of the square network input, pixels; which sides it may be is the network's to say."""
    label_smoothing: float = 0.0
    """Share of each training image's label that is dealt evenly to all classes, in the loss of training."""
    average_epochs: float = 0.0
    """Epochs that the averaged weights look back: in as many they forget all but 1/e of what they were. They
    are what is validated and kept; 0 keeps the trained ones themselves."""
    accumulate: int = 1
    """Parts that a batch goes through the network in, one after the other, before the weights change: less
    memory, and batch norm then sees a part at a time."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    """Seed of the weights, the order, the augmentation and stochastic depth."""
    preset: str = "paper"
    """Name of the preset that this was made from."""

    def __post_init__(self) -> None:
        smallest = {
            "epochs": 1,
            "batch_size": 2,
            "warmup_epochs": 0,
            "patience": 1,
            "seed": 0,
            "accumulate": 1,
        }
        wrong = [
            (name, f"is {getattr(self, name)}, expected at least {least}")
            for name, least in smallest.items()
            if getattr(self, name) < least
        ]
        if self.accumulate > max(1, self.batch_size // 2):
            parts = f"is {self.accumulate}, which cuts a batch of {self.batch_size} into parts of one image"
            wrong.append(("accumulate", f"{parts}, and batch norm needs two"))
        if not 0 < self.learning_rate < math.inf:
            wrong.append(("learning_rate", f"is {self.learning_rate}, expected a number above 0"))
        if not 0 <= self.weight_decay < math.inf:
            wrong.append(("weight_decay", f"is {self.weight_decay}, expected 0 or more"))
        if not 0 <= self.label_smoothing < 1:
            wrong.append(
                ("label_smoothing", f"is {self.label_smoothing}, expected 0 or more and less than 1")
            )
        if not 0 <= self.average_epochs < math.inf:
            wrong.append(("average_epochs", f"is {self.average_epochs}, expected 0 or more"))
        if 1 <= self.epochs <= self.warmup_epochs:
            lacking = f"leaves none of {self.epochs} epochs for the decay"
            wrong.append(("warmup_epochs", f"is {self.warmup_epochs}, which {lacking}: lower it"))
        if self.preset not in PRESETS:
            wrong.append(("preset", f"is {self.preset!r}, expected one of {', '.join(PRESETS)}"))
        if not is_image_size(self.image_size):
            wrong.append(("image_size", f"is {self.image_size}, expected 1 to {MAX_SIZE}"))
        if self.seed > LARGEST_SEED:
            wrong.append(("seed", f"is {self.seed}, expected at most {LARGEST_SEED}"))
        if wrong:
            raise FigureError(wrong)

    def learning_rate_at(self, epoch: float) -> float:
        """The learning rate at a moment of a run.

        Args:
            epoch: epochs done so far, with a fraction.
        """
        if epoch < self.warmup_epochs:
            return self.learning_rate * epoch / self.warmup_epochs
        decayed = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        return self.learning_rate * (1 + math.cos(math.pi * decayed)) / 2

    def average_kept_at(self, step: int, steps_per_epoch: int) -> float:
        """The share of the averaged weights that a step keeps.

        The first steps keep less, so that the weights from before training are soon forgotten.

        Args:
            step: the step of the whole run, counting from 1.
            steps_per_epoch: batches in an epoch.
        """
        return min(math.exp(-1 / (self.average_epochs * steps_per_epoch)), step / (step + 9))

    def with_figures(self, **figures: Any) -> Recipe:
        """This recipe with other figures, those of the augmentation included.

        Raises:
            FigureError: figures that make no sense; all of them are named.
        """
        names = {field.name for field in fields(Augmentation)}
        drawn = {name: value for name, value in figures.items() if name in names}
        own = {name: value for name, value in figures.items() if name not in names}
        wrong: list[tuple[str, str]] = []
        augmentation, recipe = self.augmentation, self
        try:
            augmentation = replace(self.augmentation, **drawn)
        except FigureError as error:
            wrong += error.wrong
        try:
            recipe = replace(self, augmentation=augmentation, **own)
        except FigureError as error:
            wrong += error.wrong
        if wrong:
            raise FigureError(wrong)
        return recipe

    def overridden(self) -> dict[str, dict[str, Any]]:
        """The figures that are not the preset's, by name: ``{"preset": …, "run": …}`` each."""
        was, now = (_figures(recipe) for recipe in (Recipe.of_preset(self.preset), self))
        return {
            name: {"preset": was[name], "run": value} for name, value in now.items() if value != was[name]
        }

    @classmethod
    def of_preset(cls, name: str) -> Recipe:
        """The recipe ``paper`` or ``micrographs``.

        Raises:
            FigureError: no such preset.
        """
        return cls(preset=name).with_figures(**PRESETS.get(name, {}))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The inverse of ``dataclasses.asdict``, also after a trip through JSON."""
        augmentation: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values["augmentation"].items()
        }
        return cls(**{**values, "augmentation": Augmentation(**augmentation)})


def _figures(recipe: Recipe) -> dict[str, Any]:
    """All of a recipe's figures by name, those of the augmentation beside the others."""
    values = asdict(recipe)
    return {**values.pop("augmentation"), **values}
