"""Options that several commands share, and how they show that they are at work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..files import identity_of
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


_Command = Callable[..., None]


def together(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Several options as one decorator, shown in this order."""

    def decorate(command: _Command) -> _Command:
        for each in reversed(options):
            command = each(command)
        return command

    return decorate


def format_option(
    *formats: str, meaning: str = "How the figures are printed."
) -> Callable[[_Command], _Command]:
    """How results are printed or written, as ``output_format``; the first format where nobody says."""
    return option(
        "--format",
        "output_format",
        group="Results",
        type=click.Choice(formats),
        default=formats[0],
        help=meaning,
    )


def file_format_option(
    formats: Mapping[str, Collection[str]], meaning: str
) -> Callable[[_Command], _Command]:
    """How results are written to ``-o FILE`` or a terminal, as ``output_format``.

    Where nobody says, as FILE's suffix does, else in the first format.

    Args:
        formats: the formats, each with the suffixes of files that are written in it.
        meaning: what ``--help`` says.
    """
    first = next(iter(formats))

    def of_the_file(context: click.Context, parameter: click.Parameter, asked: str | None) -> str:
        suffix = Path(context.params.get("output") or "").suffix.lower()
        return asked or next((name for name, suffixes in formats.items() if suffix in suffixes), first)

    return option(
        "--format",
        "output_format",
        group="Results",
        type=click.Choice(tuple(formats)),
        callback=of_the_file,
        show_default=f"as FILE's suffix says, else {first}",
        help=meaning,
    )


def resamples_option(group: str) -> Callable[[_Command], _Command]:
    """How many resamples a bootstrap draws."""
    return option(
        "--resamples",
        group=group,
        type=click.IntRange(100),
        metavar="N",
        default=2000,
        help="How many resamples the intervals rest on.",
    )


def rounds_option(group: str) -> Callable[[_Command], _Command]:
    """How many rounds a benchmark measures."""
    return option(
        "--rounds",
        group=group,
        type=click.IntRange(1),
        metavar="N",
        show_default="50",
        help="How many rounds to measure.",
    )


device_options = together(
    option(
        "--device",
        group=_RUNNING,
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        help="Run on the CPU or on an NVIDIA GPU.",
    ),
    option(
        "--provider",
        group=_RUNNING,
        type=click.Choice(PROVIDERS),
        default="auto",
        help="Insist on an engine or ONNX Runtime provider.",
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
        "--kernels",
        group=_RUNNING,
        type=click.Choice(["auto", "native", "functions"]),
        default="auto",
        help="Run by compiled kernels, or as plain ONNX.",
    ),
    option(
        "--trust-engine-code",
        group=_RUNNING,
        is_flag=True,
        help="Run the library that a bundle's --version-compatible engine carries.",
    ),
)
"""Options of `open_session` that every command which runs an artefact takes."""


guard_option = option(
    "--no-guard",
    group=_RUNNING,
    is_flag=True,
    help="Leave out the guard that the artefact carries.",
)
"""Whether an artefact's guard is applied."""


drift_option = option(
    "--drift",
    group="Results",
    metavar="FILE",
    help="Add scores of each picture to FILE, for 'mmdeploy drift'; no pictures.",
)
"""A log of scores for 'mmdeploy drift'."""


def drift_logged(
    path: str | None, artefact: str, session: Session, by: str
) -> AbstractContextManager[DriftLog | None]:
    """The log at a path, open to be added to; none where no path was given."""
    from ..runtime.drift import drift_log

    return nullcontext() if path is None else drift_log(path, artefact, session.manifest, by)


weights_option = option(
    "--weights-of",
    group=_NOT_SAID,
    type=click.Choice(["model", "ema"]),
    show_default="model",
    help="Take a checkpoint's weights, or their moving average, where it has both.",
)
"""Which weights are read from a checkpoint."""


ablation_options = together(
    *(
        option(f"--{name}/--no-{name}", group=_ABLATIONS, default=None, show_default="on", help=meaning)
        for name, meaning in (
            ("mifa", "Weigh the two branches by MIFA, or just concatenate them."),
            ("parallel", "Scan four groups of channels by a shared block, or all by one."),
            ("psffn", "End the scan's block in PSFFN, or without it in a linear layer."),
        )
    )
)
"""The switches of `Architecture`."""


white_option = option(
    "--white-level",
    group=_NOT_SAID,
    type=click.IntRange(255, 65535),
    metavar="VALUE",
    show_default="the model's",
    help="The value of white in 16-bit images.",
)
"""The value of white, which an artefact or a checkpoint says itself if it is of this version."""


described_options = together(
    option(
        "--network",
        group=_NOT_SAID,
        metavar="NAME",
        show_default="told by its tensors",
        help="The network that a bare state dict is of.",
    ),
    option(
        "--image-size",
        "--size",
        "image_size",
        group=_NOT_SAID,
        type=click.IntRange(32),
        metavar="PIXELS",
        help="Side of the square input.",
    ),
    option(
        "--labels",
        group=_NOT_SAID,
        metavar="NAMES|FILE",
        help="Class names, by commas, or a file with one a line.",
    ),
    option(
        "--mean",
        group=_NOT_SAID,
        type=click.FloatRange(0, 1),
        nargs=3,
        metavar="R G B",
        help="Means of the channels, of values in [0, 1].",
    ),
    option(
        "--std",
        group=_NOT_SAID,
        type=click.FloatRange(0, 1, min_open=True),
        nargs=3,
        metavar="R G B",
        help="Standard deviations of the channels, of values in [0, 1].",
    ),
    white_option,
)
"""The fields of `Described`: what a checkpoint may leave unsaid."""


def let_idle_threads_sleep() -> None:
    """Idle OpenMP threads spin by default: beside other busy processes PyTorch is six to eight times as slow.

    To be called before PyTorch is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def check_replaces_none(name: str, output: str | None, others: Iterable[str | Path | None]) -> None:
    """Refuses a file to write that goes with the command: what it reads, or writes otherwise.

    Args:
        name: the option that names it.
        output: what it names; None where it was not given.
        others: the paths of the others; of a folder, its images, and the files of the bundle that it is.

    Raises:
        click.UsageError: it is one of them; by another path, too.
    """
    if output is None:
        return
    path, there = Path(output), None
    with suppress(OSError, ValueError):  # not there yet, or no file's name, which whoever writes it says
        there = identity_of(path)
    for other in map(Path, (each for each in others if each is not None)):
        same = path == other
        if there is not None:
            with suppress(OSError, ValueError):
                same = same or identity_of(other) == there
                same = same or (other.is_dir() and _is_of(path, other))
        if same:
            raise click.UsageError(
                f"{name} would replace '{path}', which goes with this command: name another"
            )


def _is_of(path: Path, folder: Path) -> bool:
    """Whether an existing file is an image below a folder, or one of the files of the bundle that it is."""
    from ..errors import ArtefactError
    from ..images import SUFFIXES
    from ..runtime.artefact import MANIFEST_NAME, PARITY_NAME, open_bundle

    target, top = path.resolve(), folder.resolve()
    if top not in target.parents:
        return False
    if target.suffix.lower() in SUFFIXES:
        return True
    with suppress(ArtefactError):  # no bundle
        return target.parent == top and target.name in {
            *open_bundle(top).manifest.files,
            MANIFEST_NAME,
            PARITY_NAME,
        }
    return False


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that were given: the library has the defaults."""
    return {name: value for name, value in options.items() if value is not None}


def typed(*names: str) -> str:
    """Those of some options of the command at work that were typed, as they are written; empty for none.

    Args:
        names: the names of their parameters.
    """
    context = click.get_current_context()
    found = []
    for each in context.command.params:
        if each.name in names and context.get_parameter_source(each.name) is ParameterSource.COMMANDLINE:
            is_off = context.params.get(each.name) is False
            found.append(each.secondary_opts[0] if is_off and each.secondary_opts else each.opts[0])
    return ", ".join(found)


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
        InputError: the file is missing, cannot be read, or is not text in UTF-8.
    """
    from ..errors import InputError, reason_of
    from ..files import read_file

    if not Path(text).is_file():
        if "," not in text and Path(text).suffix in (".txt", ".csv"):
            raise InputError(f"there is no file '{text}': expected one label a line, or labels by commas")
        return [name.strip() for name in text.split(",")]
    try:
        lines = read_file(text).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{text}: cannot read the labels: {reason_of(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{text}: is not text in UTF-8: expected one label a line") from error
    return [line.strip() for line in lines if line.strip()]
