"""`mmdeploy live`: what is under the microscope now, as lines of JSON."""

from __future__ import annotations

from typing import Any

import click

from .help import Command, option
from .options import device_options, tell
from .output import say

_SESSION = "The session"


@click.command(cls=Command, example="mmdeploy live cells.fp32 demo --frames 100 -o session")
@click.argument("artefact")
@click.argument("source")
@option(
    "-o",
    "--output",
    group=_SESSION,
    metavar="DIR",
    help="Keep the lines in DIR/session.jsonl, too, whole or not at all; DIR must be new.",
)
@option(
    "--frames",
    group=_SESSION,
    type=click.IntRange(1),
    metavar="N",
    show_default="no end",
    help="End after N results.",
)
@option(
    "--seconds",
    group=_SESSION,
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    show_default="no end",
    help="End after S seconds.",
)
@option(
    "--keep-all",
    group=_SESSION,
    is_flag=True,
    help="Classify every file of a folder, in place of the newest one each time.",
)
@device_options
def live(
    artefact: str,
    source: str,
    output: str | None,
    frames: int | None,
    seconds: float | None,
    keep_all: bool,
    **device: Any,
) -> None:
    """Classify what a source shows now: a line of JSON for each result, until Ctrl-C.

    ARTEFACT is a bundle, an ONNX file or an engine. SOURCE is demo (a stage over a drawn smear), demo:IMAGE
    (a stage over that image), watch:FOLDER (the images that come into it), an image file or a folder of them.
    The newest frame wins: older ones are dropped and counted. What cannot be used is reported on standard
    error and stops nothing.
    """
    from ..microscope.live.run import live as run
    from ..runtime.session import open_session

    with open_session(artefact, **device) as session:
        tell(session.manifest.notes if session.manifest else ())
        run(
            session,
            source,
            say,
            keep_all=keep_all,
            frames=frames,
            seconds=seconds,
            output=output,
            report=lambda line: tell([line]),
        )
