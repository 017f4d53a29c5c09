"""Options of `train` and `compare`: the recipe, the images, and what a run is computed on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from .help import option
from .options import let_idle_threads_sleep, together

if TYPE_CHECKING:
    from ..model.training.loop import Hardware

_RECIPE = "The recipe (defaults: the paper's)"
_IMAGES = "The images (defaults: the paper's)"
_RUNNING = "How it runs"

recipe_options = together(
    option(
        "--preset",
        group=_RECIPE,
        type=click.Choice(["paper", "micrographs"]),
        show_default="paper",
        help="The recipe to start from.",
    ),
    option(
        "--epochs",
        group=_RECIPE,
        type=int,
        metavar="N",
        show_default="200",
        help="Stop after so many epochs.",
    ),
    option(
        "--patience",
        group=_RECIPE,
        type=int,
        metavar="EPOCHS",
        show_default="30",
        help="Stop after so many epochs without a lower loss.",
    ),
    option(
        "--batch-size",
        group=_RECIPE,
        type=int,
        metavar="N",
        show_default="16",
        help="How many images a batch has.",
    ),
    option(
        "--accumulate",
        group=_RECIPE,
        type=int,
        metavar="PARTS",
        show_default="1",
        help="Cut batches into so many parts, to save memory.",
    ),
    option(
        "--lr",
        "learning_rate",
        group=_RECIPE,
        type=float,
        metavar="RATE",
        show_default="1e-4",
        help="The highest learning rate, after the warm-up.",
    ),
    option(
        "--warm-up",
        "warmup_epochs",
        group=_RECIPE,
        type=int,
        metavar="EPOCHS",
        show_default="10",
        help="Raise the rate from 0 over so many epochs.",
    ),
    option(
        "--weight-decay",
        group=_RECIPE,
        type=float,
        metavar="RATE",
        show_default="1e-4",
        help="The weight decay of Adam.",
    ),
    option(
        "--label-smoothing",
        group=_RECIPE,
        type=float,
        metavar="SHARE",
        show_default="0",
        help="Deal this share of each label to all classes.",
    ),
    option(
        "--average",
        "average_epochs",
        group=_RECIPE,
        type=float,
        metavar="EPOCHS",
        show_default="0",
        help="Keep weights averaged over so many epochs.",
    ),
    option(
        "--seed",
        group=_RECIPE,
        type=int,
        metavar="N",
        show_default="0",
        help="Seed of all that is random, a split included.",
    ),
    option(
        "--image-size",
        group=_IMAGES,
        type=int,
        metavar="PIXELS",
        show_default="224",
        help="Side of the square input.",
    ),
    option(
        "--crop-scale",
        group=_IMAGES,
        type=float,
        nargs=2,
        metavar="LOW HIGH",
        show_default="0.08 1",
        help="The share of an image that random crops keep.",
    ),
    option(
        "--horizontal-flip/--no-horizontal-flip",
        group=_IMAGES,
        default=None,
        show_default="off",
        help="Mirror half of the images left to right.",
    ),
    option(
        "--vertical-flip/--no-vertical-flip",
        group=_IMAGES,
        default=None,
        show_default="off",
        help="Mirror half of the images top to bottom.",
    ),
    option(
        "--keep-shape/--no-keep-shape",
        group=_IMAGES,
        default=None,
        show_default="off",
        help="Take crops of about the image's own shape.",
    ),
    option(
        "--rotation",
        group=_IMAGES,
        type=float,
        metavar="DEGREES",
        show_default="0",
        help="Turn images by up to this angle either way.",
    ),
    option(
        "--colour",
        group=_IMAGES,
        type=float,
        metavar="SHARE",
        show_default="0",
        help="Change channels and contrast by up to this.",
    ),
    option(
        "--focus",
        group=_IMAGES,
        type=float,
        metavar="SHARE",
        show_default="0",
        help="Blur by up to this share of the input's side.",
    ),
)
"""A preset, and figures of `Recipe` and its `Augmentation` by their names; None where not given."""

data_options = together(
    option(
        "--group-by",
        group=_IMAGES,
        metavar="PATTERN",
        help="Find a patient or slide in file names; none is split.",
    ),
    option(
        "--skip-bad",
        group=_IMAGES,
        is_flag=True,
        help="Read all images first, and leave out those that cannot be read.",
    ),
    option(
        "--white-level",
        group=_IMAGES,
        type=click.IntRange(255, 65535),
        metavar="VALUE",
        show_default="of the bits in use",
        help="The value of white in 16-bit images.",
    ),
    option(
        "--mpp",
        group=_IMAGES,
        type=float,
        metavar="MICRONS",
        show_default="an import's",
        help="Microns a pixel of the images as they are stored.",
    ),
)
"""How the training images are read."""

hardware_options = together(
    option(
        "--device",
        group=_RUNNING,
        metavar="NAME",
        default="cpu",
        help="Train on cpu, on cuda, or on cuda:INDEX.",
    ),
    option(
        "--amp/--no-amp",
        group=_RUNNING,
        default=None,
        show_default="on with CUDA",
        help="Train in mixed precision.",
    ),
    option(
        "--deterministic",
        group=_RUNNING,
        is_flag=True,
        help="Give the same bits every time on CUDA too, or an error.",
    ),
    option(
        "--threads",
        group=_RUNNING,
        type=click.IntRange(1),
        metavar="N",
        help="How many CPU threads each process uses.",
    ),
    option(
        "--workers",
        group=_RUNNING,
        type=click.IntRange(0),
        metavar="N",
        default=0,
        help="How many processes decode images.",
    ),
)
"""The fields of `Hardware`."""


def prepare_training(deterministic: bool) -> None:
    """What has to be settled before PyTorch is loaded."""
    let_idle_threads_sleep()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS picks its algorithms freely


def hardware_of(
    device: str, amp: bool | None, deterministic: bool, threads: int | None, workers: int
) -> Hardware:
    """What `hardware_options` ask for; on a device of its own where several processes train together.

    Raises:
        BackendError: a device that is not there, or mixed precision without CUDA.
    """
    from ..model.training.loop import Hardware

    mixed = device != "cpu" if amp is None else amp
    return Hardware(device, mixed, threads, workers, deterministic=deterministic)
