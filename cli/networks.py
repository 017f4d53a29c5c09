"""`mmdeploy networks`: the networks that can be trained by name."""

from __future__ import annotations

import click

from ..text import table_lines
from .help import Command
from .options import tell
from .output import columns, say_lines

_HEAD = (
    *("name", "in the paper"),
    *("params M\nhere", "params M\npaper", "GMACs\nhere", "GMACs\npaper", "GMACs\nin full"),
)


@click.command(cls=Command, example="mmdeploy networks")
def networks() -> None:
    """List the networks by name, with their sizes and those that the paper prints.

    Each can be given to `train --network` and `info`; those of timm need the extra `peers`. Parameters are
    for as many classes as the paper's own count tells, mostly 1000. Multiply-adds are for one image of
    224 x 224 pixels: as the paper counts them, which is without attention and scans, and in full.
    """
    from ..model.evaluation.listing import listed_networks

    rows, unavailable = [], dict[str, int]()
    for each in listed_networks():
        count = each.count
        figures = (
            count and count.parameters / 1e6,
            each.printed_parameters,
            count and count.paper_macs / 1e9,
            each.printed_macs,
            count and count.macs / 1e9,
        )
        rows.append([each.name, each.title, *("–" if each is None else f"{each:.2f}" for each in figures)])
        if each.unavailable:
            unavailable[each.unavailable] = unavailable.get(each.unavailable, 0) + 1
    say_lines("".join(f"{line}\n" for line in table_lines(_HEAD, rows, (0, 1), columns())))
    tell(f"{networks} of the networks cannot be built: {why}" for why, networks in unavailable.items())
