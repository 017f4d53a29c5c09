"""The command `mmdeploy`: each command parses, calls one function of the library and prints.

Exit status: 0 done; 1 failed, with one line ``error: …`` on standard error; 2 wrong usage; 130 interrupted.
The library is imported inside the commands, so that ``--help`` and ``--version`` load nothing.
"""

from __future__ import annotations

from collections.abc import Callable
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


def _device_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of `open_session` that every command which runs an artefact takes."""
    for option in (
        click.option("--kernels", type=click.Choice(["auto", "native", "functions"]), default="auto"),
        click.option("--threads", type=click.IntRange(1), help="Default: every core this process may use."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto"),
    ):
        command = option(command)
    return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="msmamba")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def mmdeploy(debug: bool) -> None:
    """Takes Microscopic-Mamba to the machine beside the microscope: train, export, verify, infer."""


@mmdeploy.command()
@click.argument("artefact")
@click.argument("images", nargs=-1, required=True)
@click.option("--format", "output_format", type=click.Choice(["table", "json", "csv"]), default="table")
@click.option("-o", "--output", metavar="FILE", help="Write there, whole or not at all.")
@click.option("--top", type=click.IntRange(1), default=1, help="Classes to name for each image.")
@click.option("--batch-size", type=click.IntRange(1), help="Images that go through the network at once.")
@_device_options
def infer(
    artefact: str,
    images: tuple[str, ...],
    output_format: str,
    output: str | None,
    top: int,
    batch_size: int | None,
    **device: Any,
) -> None:
    """Classify IMAGES: files, folders (with all below them) or quoted patterns.

    ARTEFACT is a bundle or an ONNX file. An image that cannot be used gets a row with the reason, and the
    exit status is 1 in the end.
    """
    from .runtime.infer import find_images
    from .runtime.infer import infer as classify
    from .runtime.session import open_session

    found = find_images(images)
    with open_session(artefact, **device) as session:
        classify(
            session,
            found,
            output_format=output_format,
            output=output,
            top=top,
            batch_size=batch_size,
        )


def main() -> None:
    """Runs the command and ends the process; what `mmdeploy` and ``python -m msmamba`` call."""
    mmdeploy(prog_name="mmdeploy")
