"""Options that several commands share, and how they show that they are at work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..text import shown
from .help import option
from .output import say

if TYPE_CHECKING:
    from ..runtime.drift import DriftLog
    from ..runtime.session import Session

# The same as in `runtime.onnxruntime_backend`; a test keeps the two alike.
PROVIDERS = ("auto", "engine", "cpu", "cuda", "tensorrt", "nv-tensorrt-rtx")
EVERY_CORE = "every usable core"

_RUNNING = "How it runs"
_ABLATIONS = "Ablations"
_NOT_SAID = "What the model does not say itself"


def device_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of `open_session` that every command which runs an artefact takes."""
    for decorate in (
        option(
            "--trust-engine-code",
            group=_RUNNING,
            is_flag=True,
            help="Run the library that a --version-compatible engine carries.",
        ),
        option(
            "--kernels",
            group=_RUNNING,
            type=click.Choice(["auto", "native", "functions"]),
            default="auto",
            help="Run by compiled kernels, or as plain ONNX.",
        ),
        option(
            "--threads",
            group=_RUNNING,
            type=click.IntRange(1),
            metavar="N",
            show_default=EVERY_CORE,
            help="How many CPU threads to use.",
        ),
        option(
            "--provider",
            group=_RUNNING,
            type=click.Choice(PROVIDERS),
            default="auto",
            help="Insist on an engine or ONNX Runtime provider.",
        ),
        option(
            "--device",
            group=_RUNNING,
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            help="Run on the CPU or on an NVIDIA GPU.",
        ),
    ):
        command = decorate(command)
    return command


def guard_option(command: Callable[..., None]) -> Callable[..., None]:
    """Whether an artefact's guard is applied."""
    decorate = option(
        "--no-guard",
        group=_RUNNING,
        is_flag=True,
        help="Leave out the guard that the artefact carries.",
    )
    return decorate(command)


def drift_option(command: Callable[..., None]) -> Callable[..., None]:
    """A log of scores for 'mmdeploy drift'."""
    decorate = option(
        "--drift",
        group="Results",
        metavar="FILE",
        help="Add scores of each picture to FILE, for 'mmdeploy drift'; no pictures.",
    )
    return decorate(command)


def drift_logged(
    path: str | None, artefact: str, session: Session, by: str
) -> AbstractContextManager[DriftLog | None]:
    """The log at a path, open to be added to; none where no path was given."""
    from ..runtime.drift import drift_log

    return nullcontext() if path is None else drift_log(path, artefact, session.manifest, by)


def weights_option(command: Callable[..., None]) -> Callable[..., None]:
    """Which weights are read from a checkpoint."""
    decorate = option(
        "--weights-of",
        group=_NOT_SAID,
        type=click.Choice(["model", "ema"]),
        show_default="model",
        help="Take a checkpoint's weights, or their moving average, where it has both.",
    )
    return decorate(command)


def ablation_options(command: Callable[..., None]) -> Callable[..., None]:
    """The switches of `Architecture`."""
    for name, meaning in (
        ("psffn", "End the scan's block in PSFFN, or without it in a linear layer."),
        ("parallel", "Scan four groups of channels by a shared block, or all by one."),
        ("mifa", "Weigh the two branches by MIFA, or just concatenate them."),
    ):
        command = option(f"--{name}/--no-{name}", group=_ABLATIONS, default=None, help=meaning)(command)
    return command


def white_option(command: Callable[..., None]) -> Callable[..., None]:
    """The value of white, which an artefact or a checkpoint says itself if it is of this version."""
    decorate = option(
        "--white-level",
        group=_NOT_SAID,
        type=click.IntRange(255, 65535),
        metavar="VALUE",
        show_default="the model's",
        help="The value of white in 16-bit images.",
    )
    return decorate(command)


def described_options(command: Callable[..., None]) -> Callable[..., None]:
    """The fields of `Described`: what a checkpoint may leave unsaid."""
    for decorate in (
        white_option,
        option(
            "--std",
            group=_NOT_SAID,
            type=float,
            nargs=3,
            metavar="R G B",
            help="Standard deviations of the channels, of values in [0, 1].",
        ),
        option(
            "--mean",
            group=_NOT_SAID,
            type=float,
            nargs=3,
            metavar="R G B",
            help="Means of the channels, of values in [0, 1].",
        ),
        option(
            "--labels",
            group=_NOT_SAID,
            metavar="NAMES|FILE",
            help="Class names, by commas, or a file with one a line.",
        ),
        option(
            "--size",
            "image_size",
            group=_NOT_SAID,
            type=click.IntRange(32),
            metavar="PIXELS",
            help="Side of the square input.",
        ),
    ):
        command = decorate(command)
    return command


def let_idle_threads_sleep() -> None:
    """Idle OpenMP threads spin by default: beside other busy processes PyTorch is six to eight times as slow.

    To be called before PyTorch is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that were given: the library has the defaults."""
    return {name: value for name, value in options.items() if value is not None}


def tell(notes: Iterable[str]) -> None:
    """Says on standard error what there is to say about the data."""
    for note in notes:
        say(f"note: {note}", err=True)


@contextmanager
def told() -> Iterator[None]:
    """Says on standard error what reading had to decide of the images that are read meanwhile."""
    from ..images import noting

    with noting() as tally:
        try:
            yield
        finally:
            tell(tally.lines())


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """Shows on standard error what is being done and for how long: one changing line, or plain lines."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        started, last = time.monotonic(), ""

        def show(step: str) -> None:
            nonlocal last
            if step != last:
                say(f"{time.monotonic() - started:6.1f} s  {step}", err=True)
            last = step

        yield show
        return
    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda step: progress.update(task, description=shown(step))


@contextmanager
def bar() -> Iterator[Callable[[int, int], None]]:
    """Shows how many images of all are done, on standard error and only where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("images", total=None)
        yield lambda done, images: progress.update(task, completed=done, total=images)


def names(text: str) -> list[str]:
    """Class names from a comma-separated list, or from a file with one a line.

    Raises:
        InputError: the file cannot be read, or is not text in UTF-8.
    """
    from ..errors import InputError
    from ..files import read_file

    if not Path(text).is_file():
        return [name.strip() for name in text.split(",")]
    try:
        lines = read_file(text).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{text}: cannot read the labels: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{text}: is not text in UTF-8: expected one label a line") from error
    return [line.strip() for line in lines if line.strip()]
