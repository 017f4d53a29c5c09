"""The command `mmdeploy`: each command parses, calls one function of the library and prints.

Exit status: 0 done; 1 failed, with one line ``error: …`` on standard error; 2 wrong usage; 130 interrupted,
143 ended by SIGTERM.
The library is imported inside the commands, so that ``--help`` and ``--version`` load nothing.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import click

from ..errors import ArtefactNote, MsmambaError, Note, reason_of
from ..text import shown
from ..version import __version__
from .bench import bench
from .calibrate import calibrate
from .compare import compare
from .data import data
from .doctor import doctor
from .drift import drift
from .evaluate import evaluate
from .explain import explain
from .export import export
from .help import SETTINGS, Group
from .infer import infer
from .info import info
from .live import live
from .networks import networks
from .output import say
from .slide import slide
from .stopping import Terminated, end_as_interrupted
from .streams import drop_what_is_lost, prepare_streams
from .table import table
from .train import train
from .verify import verify

_WANTED = {
    "compare": "'msmamba[train,export]'",
    "eval": "'msmamba[export]'",
    "export": "'msmamba[export]' (onnx alone, to build an engine from a bundle)",
    "live": "'msmamba[live,camera]'",
    "slide": "'msmamba[slides]'",
    "verify": "'msmamba[export]'",
}
"""What to install for the commands that need more than the core, where that is not what training needs."""
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_EXAMPLE = """\
mmdeploy train cells -o run
mmdeploy export run/best.safetensors --fp16 -o cells.fp16
mmdeploy verify cells.fp16 --against run/best.safetensors --data cells
mmdeploy infer cells.fp16 'new/*.png'"""


class _Commands(Group):
    """The one place where errors become lines and exit statuses."""

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        """The context; on the way to it ``--help`` and ``--version`` are answered."""
        try:
            return super().make_context(*arguments, **settings)
        except MsmambaError as error:
            say(f"error: {error}", err=True)
            raise click.exceptions.Exit(1) from error

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except click.UsageError as error:
            raise click.UsageError(shown(error.format_message()), error.ctx) from error
        except BrokenPipeError:
            raise  # whoever read the output has seen enough; click ends quietly
        except (MsmambaError, OSError) as error:
            if context.params["debug"]:
                raise
            say(f"error: {_told(error)}", err=True)
            context.exit(1)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if context.params["debug"] or package in ("", __package__.partition(".")[0]):
                raise
            name = context.invoked_subcommand
            wanted = _WANTED.get(name or "", "'msmamba[train]'")
            say(
                f"error: 'mmdeploy {name}' needs {package}, which is not installed: pip install {wanted}",
                err=True,
            )
            context.exit(1)
        except (KeyboardInterrupt, RuntimeError) as error:
            # An interrupt that comes while a lock is waited for may end as an error of that lock.
            stop = error.__context__ if isinstance(error, RuntimeError) else error
            if isinstance(stop, Terminated):
                say(f"ended by {stop}", err=True)
                context.exit(128 + stop.number)
            if not isinstance(stop, KeyboardInterrupt):
                raise
            say("interrupted", err=True)
            context.exit(_INTERRUPTED)


def _told(error: MsmambaError | OSError) -> str:
    """What went wrong; of what the system says, without its number, which file it is about, if any."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    said = reason_of(error)
    return said if error.filename is None else f"'{error.filename}' cannot be used: {said}"


@click.group(cls=_Commands, context_settings=SETTINGS, example=_EXAMPLE)
@click.version_option(__version__, package_name="msmamba")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def mmdeploy(debug: bool) -> None:
    """Takes Microscopic-Mamba to the machine beside the microscope: train, export, verify, infer."""


for _command in (
    data,
    train,
    evaluate,
    compare,
    table,
    explain,
    networks,
    info,
    export,
    verify,
    calibrate,
    infer,
    slide,
    live,
    drift,
    bench,
    doctor,
):
    mmdeploy.add_command(_command)


def main() -> None:
    """Runs the command and ends the process; what `mmdeploy` and ``python -m msmamba`` call."""
    prepare_streams()
    # Pillow warns of oddities in files that it reads all the same, and raises for the others.
    warnings.filterwarnings("ignore", module="PIL")
    warnings.simplefilter("ignore", ArtefactNote)  # commands tell `Session.notes`
    show = warnings.showwarning

    def show_note(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, Note):
            say(f"note: {message}", err=True)
        else:
            show(message, category, *where, **more)

    warnings.showwarning = show_note
    end_as_interrupted()
    try:
        mmdeploy(prog_name="mmdeploy")
    except SystemExit as end:
        drop_what_is_lost(sys.stderr)
        if end.code:
            drop_what_is_lost(sys.stdout)
        raise
