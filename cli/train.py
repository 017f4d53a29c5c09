"""`mmdeploy train`: a network, from scratch or from pretrained weights."""

from __future__ import annotations

from typing import Any

import click

from .help import Command, option
from .options import ablation_options, given, tell
from .output import say_lines
from .training_options import (
    data_options,
    hardware_of,
    hardware_options,
    prepare_training,
    recipe_options,
)

_RUN = "The run"


@click.command(
    cls=Command, example="mmdeploy train cells -o run --image-size 64 --epochs 3 --warm-up 1 --seed 7"
)
@click.argument("data")
@option("-o", "--output", "run", group=_RUN, required=True, metavar="RUN", help="The run folder to write.")
@option("--resume", group=_RUN, is_flag=True, help="Continue the run in RUN by the recipe it began with.")
@option("--tensorboard", group=_RUN, is_flag=True, help="Write curves for TensorBoard too.")
@option(
    "--network",
    "--size",
    "network",
    group="The network",
    metavar="NAME",
    show_default="t",
    help="Microscopic-Mamba's t (tiny), s or b, or one of 'mmdeploy networks'.",
)
@option(
    "--weights",
    group="The network",
    metavar="FILE",
    show_default="from scratch",
    help="Begin with the weights of a published state dict, but for its head.",
)
@option(
    "--weights-of",
    group="The network",
    type=click.Choice(["model", "ema"]),
    show_default="model",
    help="Take its weights, or their moving average, where it has both.",
)
@ablation_options
@recipe_options
@data_options
@hardware_options
def train(
    data: str,
    run: str,
    network: str | None,
    weights: str | None,
    weights_of: str | None,
    mifa: bool | None,
    parallel: bool | None,
    psffn: bool | None,
    preset: str | None,
    group_by: str | None,
    device: str,
    amp: bool | None,
    deterministic: bool,
    threads: int | None,
    workers: int,
    skip_bad: bool,
    white_level: int | None,
    mpp: float | None,
    tensorboard: bool,
    resume: bool,
    **figures: Any,
) -> None:
    """Train a network on DATA, from scratch or from pretrained weights.

    DATA was imported (see data import), or holds {train,val,test}/<class>/* or <class>/*; the last is split
    6:2:2. Without options this is the paper's recipe.

    On N GPUs, or in N processes of a CPU: torchrun --nproc-per-node N -m msmamba train …
    """
    if weights_of and not weights:
        raise click.UsageError("--weights-of tells which weights to take: give their file with --weights")
    prepare_training(deterministic)

    from rich.console import Console

    from ..errors import ImageError, some
    from ..model.training.loop import train_folder
    from ..model.training.parallel import joined
    from ..model.training.progress import shown_on
    from ..model.training.run import RunFolder

    with (
        joined(device) as (processes, own),
        shown_on(Console(), tensorboard, processes.is_first) as listeners,
    ):
        if resume and processes.is_first and RunFolder(run).read_config() is None:
            tell([f"no run has begun in '{run}': a new one begins"])
        result = train_folder(
            data,
            run,
            network=network,
            switches=given({"mifa": mifa, "parallel": parallel, "psffn": psffn}),
            preset=preset,
            figures=given(figures),
            group_by=group_by,
            hardware=hardware_of(own, amp, deterministic, threads, workers),
            processes=processes,
            resume=resume,
            skip_bad=skip_bad,
            white_level=white_level,
            mpp=mpp,
            weights=weights,
            weights_of=weights_of,
            listeners=listeners,
        )
    if processes.is_first:
        say_lines(result.to_text() + "\n")
        if result.lost:
            raise ImageError(
                f"the run is finished, but {len(result.lost)} images can no longer be read and are in none "
                f"of its figures: {some(result.lost)}: mend them and measure again with --resume"
            )
