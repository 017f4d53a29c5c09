"""`mmdeploy train`: a network from scratch."""

from __future__ import annotations

import os
from typing import Any

import click

from .help import Command, option
from .options import ablation_options, given, let_idle_threads_sleep
from .output import say_lines

_RUN = "The run"
_RECIPE = "The recipe (defaults: the paper's)"
_IMAGES = "The images (defaults: the paper's)"
_RUNNING = "How it runs"


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
    help="Microscopic-Mamba's t (tiny), s or b.",
)
@ablation_options
@option(
    "--preset",
    group=_RECIPE,
    type=click.Choice(["paper", "micrographs"]),
    show_default="paper",
    help="The recipe to start from.",
)
@option(
    "--epochs", group=_RECIPE, type=int, metavar="N", show_default="200", help="Stop after so many epochs."
)
@option(
    "--patience",
    group=_RECIPE,
    type=int,
    metavar="EPOCHS",
    show_default="30",
    help="Stop after so many epochs without a lower loss.",
)
@option(
    "--batch-size",
    group=_RECIPE,
    type=int,
    metavar="N",
    show_default="16",
    help="How many images a batch has.",
)
@option(
    "--accumulate",
    group=_RECIPE,
    type=int,
    metavar="PARTS",
    show_default="1",
    help="Cut batches into so many parts, to save memory.",
)
@option(
    "--lr",
    "learning_rate",
    group=_RECIPE,
    type=float,
    metavar="RATE",
    show_default="1e-4",
    help="The highest learning rate, after the warm-up.",
)
@option(
    "--warm-up",
    "warmup_epochs",
    group=_RECIPE,
    type=int,
    metavar="EPOCHS",
    show_default="10",
    help="Raise the rate from 0 over so many epochs.",
)
@option(
    "--weight-decay",
    group=_RECIPE,
    type=float,
    metavar="RATE",
    show_default="1e-4",
    help="The weight decay of Adam.",
)
@option(
    "--label-smoothing",
    group=_RECIPE,
    type=float,
    metavar="SHARE",
    show_default="0",
    help="Deal this share of each label to all classes.",
)
@option(
    "--average",
    "average_epochs",
    group=_RECIPE,
    type=float,
    metavar="EPOCHS",
    show_default="0",
    help="Keep weights averaged over so many epochs.",
)
@option(
    "--seed",
    group=_RECIPE,
    type=int,
    metavar="N",
    show_default="0",
    help="Seed of all that is random, a split included.",
)
@option(
    "--image-size",
    group=_IMAGES,
    type=int,
    metavar="PIXELS",
    show_default="224",
    help="Side of the square input.",
)
@option(
    "--crop-scale",
    group=_IMAGES,
    type=float,
    nargs=2,
    metavar="LOW HIGH",
    show_default="0.08 1",
    help="The share of an image that random crops keep.",
)
@option(
    "--horizontal-flip/--no-horizontal-flip",
    group=_IMAGES,
    default=None,
    help="Mirror half of the images left to right.",
)
@option(
    "--vertical-flip/--no-vertical-flip",
    group=_IMAGES,
    default=None,
    help="Mirror half of the images top to bottom.",
)
@option(
    "--keep-shape/--no-keep-shape",
    group=_IMAGES,
    default=None,
    help="Take crops of about the image's own shape.",
)
@option(
    "--rotation",
    group=_IMAGES,
    type=float,
    metavar="DEGREES",
    show_default="0",
    help="Turn images by up to this angle either way.",
)
@option(
    "--colour",
    group=_IMAGES,
    type=float,
    metavar="SHARE",
    show_default="0",
    help="Change channels and contrast by up to this.",
)
@option(
    "--focus",
    group=_IMAGES,
    type=float,
    metavar="SHARE",
    show_default="0",
    help="Blur by up to this share of the input's side.",
)
@option(
    "--group-by",
    group=_IMAGES,
    metavar="PATTERN",
    help="Find a patient or slide in file names; none is split.",
)
@option(
    "--skip-bad",
    group=_IMAGES,
    is_flag=True,
    help="Read all images first, and leave out those that cannot be read.",
)
@option(
    "--white-level",
    group=_IMAGES,
    type=click.IntRange(255, 65535),
    metavar="VALUE",
    show_default="of the bits in use",
    help="The value of white in 16-bit images.",
)
@option(
    "--mpp",
    group=_IMAGES,
    type=float,
    metavar="MICRONS",
    show_default="an import's",
    help="Microns a pixel of the images as they are stored.",
)
@option(
    "--device", group=_RUNNING, metavar="NAME", default="cpu", help="Train on cpu, on cuda, or on cuda:INDEX."
)
@option(
    "--amp/--no-amp",
    group=_RUNNING,
    default=None,
    show_default="on with CUDA",
    help="Train in mixed precision.",
)
@option(
    "--deterministic",
    group=_RUNNING,
    is_flag=True,
    help="Give the same bits every time on CUDA too, or an error.",
)
@option(
    "--threads",
    group=_RUNNING,
    type=click.IntRange(1),
    metavar="N",
    help="How many CPU threads each process uses.",
)
@option(
    "--workers",
    group=_RUNNING,
    type=click.IntRange(0),
    metavar="N",
    default=0,
    help="How many processes decode images.",
)
def train(
    data: str,
    run: str,
    network: str | None,
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
    """Train a network from scratch on DATA.

    DATA was imported (see data import), or holds {train,val,test}/<class>/* or <class>/*; the last is split
    6:2:2. Without options this is the paper's recipe.

    On N GPUs, or in N processes of a CPU: torchrun --nproc-per-node N -m msmamba train …
    """
    let_idle_threads_sleep()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS picks its algorithms freely

    from rich.console import Console

    from ..errors import ImageError, some
    from ..model.training.loop import Hardware, train_folder
    from ..model.training.parallel import joined
    from ..model.training.progress import shown_on

    with (
        joined(device) as (processes, own),
        shown_on(Console(), tensorboard, processes.is_first) as listeners,
    ):
        hardware = Hardware(
            own, own != "cpu" if amp is None else amp, threads, workers, deterministic=deterministic
        )
        result = train_folder(
            data,
            run,
            network=network,
            switches=given({"mifa": mifa, "parallel": parallel, "psffn": psffn}),
            preset=preset,
            figures=given(figures),
            group_by=group_by,
            hardware=hardware,
            processes=processes,
            resume=resume,
            skip_bad=skip_bad,
            white_level=white_level,
            mpp=mpp,
            listeners=listeners,
        )
    if processes.is_first:
        say_lines(result.to_text() + "\n")
        if result.lost:
            raise ImageError(
                f"the run is finished, but {len(result.lost)} images can no longer be read and are in none "
                f"of its figures: {some(result.lost)}: mend them and measure again with --resume"
            )
