"""Figures of a recipe: what is wrong with them, and the options that they are given by."""

from __future__ import annotations

from collections.abc import Sequence

_OPTIONS = {"learning_rate": "--lr", "warmup_epochs": "--warm-up", "average_epochs": "--average"}
"""The figures that the command line calls by other names."""
_WITHOUT = frozenset({"crop_ratio"})
"""Those that it has no option for."""


class FigureError(ValueError):
    """Figures that make no sense.

    Attributes:
        wrong: the name of each, and what is wrong with it.
    """

    def __init__(self, wrong: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{name} {what}" for name, what in wrong))
        self.wrong = tuple(wrong)

    def by_option(self) -> str:
        """What is wrong, for somebody who has typed options."""
        return "; ".join(f"{option_of(name)} {what}" for name, what in self.wrong)


def option_of(name: str) -> str:
    """The option by which a figure is given; its own name where there is none."""
    return name if name in _WITHOUT else _OPTIONS.get(name, f"--{name.replace('_', '-')}")


def as_typed(name: str, value: object) -> str:
    """A figure as the command line takes it: ``--lr 0.002``, ``--no-keep-shape``, ``--crop-scale 0.6 1``."""
    option = option_of(name)
    if isinstance(value, bool):
        return option if value else option.replace("--", "--no-", 1)
    values = value if isinstance(value, list | tuple) else (value,)
    return " ".join([option, *map(str, values)])
