"""The command `mmdeploy`: each command parses, calls one function of the library and prints.

Exit status: 0 done; 1 failed, with one line ``error: …`` on standard error; 2 wrong usage; 130 interrupted.
The library is imported inside the commands, so that ``--help`` and ``--version`` load nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from . import __version__
from .errors import MsmambaError, ParityError

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


@mmdeploy.command()
@click.argument("checkpoint")
@click.option("-o", "--output", required=True, metavar="BUNDLE", help="The folder to write.")
@click.option("--fp16", is_flag=True, help="Compute in float16 wherever accuracy allows.")
@click.option("--size", "image_size", type=click.IntRange(32), help="Side of the square input, in pixels.")
@click.option("--opset", type=int, help="Version of the standard ONNX operators.")
@click.option("--labels", metavar="NAMES|FILE", help="Class names, by commas, or a file with one a line.")
@click.option("--mean", type=float, nargs=3, metavar="R G B", help="Channel means, of values in [0, 1].")
@click.option("--std", type=float, nargs=3, metavar="R G B", help="Channel standard deviations.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
def export(checkpoint: str, output: str, fp16: bool, labels: str | None, force: bool, **chosen: Any) -> None:
    """Export CHECKPOINT (safetensors, or the authors' .pth) as a bundle.

    Labels, channel statistics and image size come from the checkpoint; give them where it does not say.
    """
    from .export.bundle import ExportOptions, export_bundle

    given = {name: value for name, value in chosen.items() if value is not None}
    options = ExportOptions(
        precision="fp16" if fp16 else "fp32", labels=_names(labels) if labels else None, **given
    )
    with _steps() as report:
        result = export_bundle(checkpoint, output, options, force=force, report=report)
    nodes = ", ".join(f"{count} {kind}" for kind, count in result.proof.nodes.items())
    click.echo(
        f"{result.path}: {result.bytes / 1e6:.1f} MB, {result.nodes} nodes ({nodes}), {result.scans} scans"
    )
    for reason in sorted(set(result.proof.float32_nodes.values())):
        count = sum(reason == other for other in result.proof.float32_nodes.values())
        click.echo(f"  {count} nodes: {reason}")


@mmdeploy.command()
@click.argument("artefact")
@click.option("--against", "checkpoint", required=True, metavar="CHECKPOINT", help="What it was made from.")
@click.option("--data", required=True, multiple=True, metavar="IMAGES", help="Files, folders or patterns.")
@click.option("--max-error", type=float, help="Bound on the error of a logit; measured by default.")
@click.option("--max-flips", type=click.IntRange(0), default=0, help="Images that may change their label.")
@click.option("--limit", type=click.IntRange(1), help="Compare at most this many images.")
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table")
def verify(artefact: str, output_format: str, **options: Any) -> None:
    """Compare ARTEFACT (a bundle or an ONNX file) with its checkpoint on real images.

    The result goes into the bundle as parity.json. The exit status is 1 when parity is lost.
    """
    from .export.verify import verify as compare

    with _steps() as report:
        parity = compare(artefact, options.pop("checkpoint"), options.pop("data"), report=report, **options)
    click.echo(parity.to_json() if output_format == "json" else parity.to_text(), nl=False)
    if not parity.passed:
        raise ParityError(f"{artefact} does not answer like its checkpoint: {parity.failure}")


@contextmanager
def _steps() -> Iterator[Callable[[str], None]]:
    """Shows what is being done on standard error: one changing line on a terminal, plain lines elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: click.echo(step, err=True)
        return
    with console.status("starting") as status:
        yield status.update


def _names(text: str) -> list[str]:
    """Class names from a comma-separated list, or from a file with one a line."""
    file = Path(text)
    if file.is_file():
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [name.strip() for name in text.split(",")]


@mmdeploy.command()
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text")
@click.pass_context
def doctor(context: click.Context, output_format: str) -> None:
    """Tell what this machine can run, and what the rest would need.

    The exit status is 1 when not even classification on the CPU works.
    """
    from .runtime.doctor import examine

    report = examine()
    click.echo(report.to_json() if output_format == "json" else report.to_text())
    context.exit(0 if report.can_infer else 1)


def main() -> None:
    """Runs the command and ends the process; what `mmdeploy` and ``python -m msmamba`` call."""
    mmdeploy(prog_name="mmdeploy")
