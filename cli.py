"""The command `mmdeploy`: each command parses, calls one function of the library and prints.

Exit status: 0 done; 1 failed, with one line ``error: …`` on standard error; 2 wrong usage; 130 interrupted.
The library is imported inside the commands, so that ``--help`` and ``--version`` load nothing.
"""

from __future__ import annotations

from typing import Any

import click

from . import __version__
from .errors import MsmambaError

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class _Commands(click.Group):
    """The one place where errors become lines and exit statuses."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except MsmambaError as error:
            if context.params["debug"]:
                raise
            click.echo(f"error: {error}", err=True)
            context.exit(1)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            context.exit(_INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="msmamba")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def mmdeploy(debug: bool) -> None:
    """Takes Microscopic-Mamba to the machine beside the microscope: train, export, verify, infer."""


def main() -> None:
    """Runs the command and ends the process; what `mmdeploy` and ``python -m msmamba`` call."""
    mmdeploy(prog_name="mmdeploy")
