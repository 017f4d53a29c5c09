"""`mmdeploy networks`: the networks that can be trained by name."""

from __future__ import annotations

import click

from .help import Command
from .output import say

_UNKNOWN = "–"
_WIDTHS = (8, 8, 8, 8, 9)


@click.command(cls=Command, example="mmdeploy networks")
def networks() -> None:
    """List the networks by name, with their sizes and those that the paper prints.

    Each can be given to `train --network` and `info`. Parameters are for as many classes as the paper's own
    count tells, mostly 1000. Multiply-adds are for one image of 224 x 224 pixels: as the paper counts them,
    which is without attention and scans, and in full.
    """
    from ..model.evaluation.listing import listed_networks

    _say_row("", "", "params M", "", "GMACs", "", "GMACs")
    _say_row("name", "in the paper", "here", "paper", "here", "paper", "in full")
    for each in listed_networks():
        printed = [
            _UNKNOWN if figure is None else f"{figure:.2f}"
            for figure in (each.printed_parameters, each.printed_macs)
        ]
        counted = (f"{figure:.2f}" for figure in (each.paper_macs / 1e9, each.macs / 1e9))
        as_paper, in_full = counted
        _say_row(
            each.name, each.title, f"{each.parameters / 1e6:.2f}", printed[0], as_paper, printed[1], in_full
        )


def _say_row(name: str, title: str, *figures: str) -> None:
    columns = "".join(f"{figure:>{width}}" for figure, width in zip(figures, _WIDTHS, strict=True))
    say(f"{name:<16} {title:<20} {columns}".rstrip())
