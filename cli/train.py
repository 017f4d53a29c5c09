"""`mmdeploy train`: a network from scratch."""

from __future__ import annotations

import os
from typing import Any

import click

from .options import ablation_options, given, let_idle_threads_sleep


@click.command()
@click.argument("data")
@click.option("-o", "--output", "run", required=True, metavar="RUN", help="The run folder to write.")
@click.option(
    "--network",
    "--size",
    "network",
    metavar="NAME",
    help="The network: t (tiny, the default), s or b of Microscopic-Mamba.",
)
@ablation_options
@click.option(
    "--preset",
    type=click.Choice(["paper", "micrographs"]),
    help="The recipe that options change: the paper's, whose figures are given here (the default), "
    "or one for some hundred micrographs.",
)
@click.option("--epochs", type=int, help="At most. [paper: 200]")
@click.option("--batch-size", type=int, help="[paper: 16]")
@click.option("--lr", "learning_rate", type=float, help="At its highest. [paper: 1e-4]")
@click.option("--weight-decay", type=float, help="[paper: 1e-4]")
@click.option("--warm-up", "warmup_epochs", type=int, metavar="EPOCHS", help="[paper: 10]")
@click.option("--patience", type=int, metavar="EPOCHS", help="Without a lower loss. [paper: 30]")
@click.option("--image-size", type=int, help="Side of the square input, in pixels. [paper: 224]")
@click.option("--crop-scale", type=float, nargs=2, metavar="LOW HIGH", help="Area of crops. [paper: 0.08 1]")
@click.option(
    "--horizontal-flip/--no-horizontal-flip", default=None, help="Mirror half of the training images."
)
@click.option("--vertical-flip/--no-vertical-flip", default=None, help="Likewise, top to bottom.")
@click.option(
    "--accumulate",
    type=int,
    metavar="PARTS",
    help="That a batch goes through in, to save memory. [default: 1]",
)
@click.option("--seed", type=int, help="Of all that is random, a flat folder's split included. [default: 0]")
@click.option("--group-by", metavar="PATTERN", help="Finds a patient or slide in a file name; none is split.")
@click.option("--device", default="cpu", help="cpu, cuda or cuda:INDEX.")
@click.option("--amp/--no-amp", default=None, help="Mixed precision. [default: on with CUDA]")
@click.option("--deterministic", is_flag=True, help="The same bits every time on CUDA too, or an error.")
@click.option("--threads", type=click.IntRange(1), help="Of the CPU, for each process.")
@click.option("--workers", type=click.IntRange(0), default=0, help="Processes that decode images.")
@click.option("--skip-bad", is_flag=True, help="Read all images first; leave out what cannot be read.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's curves too.")
@click.option("--resume", is_flag=True, help="Continue the run in RUN; its recipe is read from there.")
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
    tensorboard: bool,
    resume: bool,
    **figures: Any,
) -> None:
    """Train a network from scratch on DATA.

    DATA was imported (see data import), or holds {train,val,test}/<class>/* or <class>/*; the last is split
    6:2:2. Without options this is
    the paper's recipe. On N GPUs, or N processes of a CPU: torchrun --nproc-per-node N -m msmamba train …
    """
    let_idle_threads_sleep()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS picks its algorithms freely

    from rich.console import Console

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
            listeners=listeners,
        )
    if processes.is_first:
        click.echo(result.to_text())
