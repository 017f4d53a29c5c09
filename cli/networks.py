"""`mmdeploy networks`: the networks that can be trained by name."""

from __future__ import annotations

import click

from .help import Command
from .options import tell
from .output import say

_WIDTHS = (8, 8, 8, 8, 9)


@click.command(cls=Command, example="mmdeploy networks")
def networks() -> None:
    """List the networks by name, with their sizes and those that the paper prints.

    Each can be given to `train --network` and `info`; those of timm need the extra `peers`. Parameters are
    for as many classes as the paper's own count tells, mostly 1000. Multiply-adds are for one image of
    224 x 224 pixels: as the paper counts them, which is without attention and scans, and in full.
    """
    from ..model.evaluation.listing import listed_networks

    _say_row("", "", "params M", "", "GMACs", "", "GMACs")
    _say_row("name", "in the paper", "here", "paper", "here", "paper", "in full")
    unavailable: dict[str, int] = {}
    for each in listed_networks():
        count = each.count
        figures = (
            count and count.parameters / 1e6,
            each.printed_parameters,
            count and count.paper_macs / 1e9,
            each.printed_macs,
            count and count.macs / 1e9,
        )
        _say_row(each.name, each.title, *("–" if figure is None else f"{figure:.2f}" for figure in figures))
        if each.unavailable:
            unavailable[each.unavailable] = unavailable.get(each.unavailable, 0) + 1
    tell(f"{networks} of the networks cannot be built: {why}" for why, networks in unavailable.items())


def _say_row(name: str, title: str, *figures: str) -> None:
    columns = "".join(f"{figure:>{width}}" for figure, width in zip(figures, _WIDTHS, strict=True))
    say(f"{name:<22} {title:<20} {columns}".rstrip())
