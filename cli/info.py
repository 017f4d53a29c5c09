"""`mmdeploy info`: parameters and multiply-adds."""

from __future__ import annotations

from pathlib import Path

import click

from .help import Command, option
from .options import ablation_options, given, weights_option
from .output import say

_PAPERS_SIZE = 224


@click.command(cls=Command, example="mmdeploy info t --no-parallel")
@click.argument("model", metavar="CHECKPOINT|NETWORK")
@option(
    "--image-size",
    group="The network",
    type=click.IntRange(32),
    metavar="PIXELS",
    show_default="the checkpoint's, or 224",
    help="Side of the square input to count for.",
)
@ablation_options
@weights_option
def info(model: str, image_size: int | None, weights_of: str | None, **switches: bool | None) -> None:
    """Count parameters and multiply-adds, the paper's way and in full.

    `mmdeploy networks` lists the networks by name. A checkpoint says itself which ablation it is; the
    switches are for Microscopic-Mamba's sizes.
    """
    from ..model.networks.checkpoint import load_checkpoint
    from ..model.networks.complexity import complexity
    from ..model.networks.registry import NETWORKS, architecture_named, family_of

    path = Path(model)
    if model in NETWORKS or (path.name == model and not path.suffix and not path.exists()):
        if weights_of is not None:
            raise click.UsageError(f"{model} is a network by name, without weights: leave --weights-of out")
        arch = architecture_named(model, **given(switches))
    elif given(switches):
        raise click.UsageError(
            f"{model} is a checkpoint, which says itself what it is: leave the switches out"
        )
    else:
        loaded = load_checkpoint(model, weights_of)
        arch = loaded.network.arch
        if image_size is None and loaded.preprocessing is not None:
            image_size = loaded.preprocessing.image_size
    image_size = image_size or _PAPERS_SIZE
    count = complexity(arch, image_size)
    say(f"{family_of(arch).describe(arch)}, {arch.num_classes} classes, {image_size} pixels")
    say(f"parameters      {count.parameters:>13,}  in a checkpoint (the paper's count)")
    say(f"                {count.used_parameters:>13,}  used by the forward pass")
    say(f"multiply-adds   {count.paper_macs:>13,}  the paper's count (ptflops)")
    say(f"                {count.macs:>13,}  in full, with attention and the scan")
    say(f"state updates   {count.state_updates:>13,}  of the scan")
