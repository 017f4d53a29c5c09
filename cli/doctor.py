"""`mmdeploy doctor`: what this machine can run."""

from __future__ import annotations

import click

from .help import Command
from .options import format_option
from .output import say_lines


@click.command(cls=Command, example="mmdeploy doctor")
@click.argument("artefact", required=False)
@format_option("text", "json", meaning="How the findings are printed.")
@click.pass_context
def doctor(context: click.Context, artefact: str | None, output_format: str) -> None:
    """Tell what this machine is best for, and what the rest would need.

    With ARTEFACT, a bundle, an ONNX file or an engine, also whether pictures become its input as they did
    where it was exported.

    The exit status is 1 when not even classification on the CPU works, when answers may be others than were
    proven (pictures become another input, two packages of ONNX Runtime are mixed), or ARTEFACT cannot be
    opened. What is merely not installed is no error.
    """
    from ..errors import ArtefactError, BackendError
    from ..runtime.doctor import examine

    report = examine(artefact)
    say_lines((report.to_json() if output_format == "json" else report.to_text()) + "\n")
    if report.failure:
        raise (ArtefactError if report.unopened else BackendError)(report.failure)
    context.exit(0 if report.can_infer else 1)
