"""`mmdeploy live`: what is under the microscope now, as lines of JSON."""

from __future__ import annotations

from typing import Any

import click

from .help import Command, option
from .options import device_options, tell
from .output import say

_SESSION = "The session"
_GRID = "A grid over the field"


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
@option(
    "--tiles",
    group=_GRID,
    type=click.IntRange(1, 64),
    metavar="N",
    show_default="the field as one picture",
    help="Classify tiles, N of them along the field's shorter side, and map what they say.",
)
@option(
    "--mpp",
    group=_GRID,
    type=float,
    metavar="MICRONS",
    help="Tiles, in which a pixel of the network's input covers so many microns.",
)
@option(
    "--assume-mpp",
    group=_GRID,
    type=float,
    metavar="MICRONS",
    show_default="as the source says",
    help="Microns a pixel of the source.",
)
@option(
    "--fps",
    group=_GRID,
    type=click.FloatRange(0, 1000, min_open=True),
    metavar="F",
    show_default="every tile of each frame",
    help="Classify as many tiles of a frame as leave F frames a second.",
)
@option(
    "--batch-size",
    group=_GRID,
    type=click.IntRange(1),
    metavar="N",
    default=1,
    help="How many tiles go through the network at once.",
)
@device_options
def live(
    artefact: str,
    source: str,
    output: str | None,
    frames: int | None,
    seconds: float | None,
    keep_all: bool,
    tiles: int | None,
    mpp: float | None,
    assume_mpp: float | None,
    fps: float | None,
    batch_size: int,
    **device: Any,
) -> None:
    """Classify what a source shows now: a line of JSON for each result, until Ctrl-C.

    ARTEFACT is a bundle, an ONNX file or an engine. SOURCE is demo (a stage over a drawn smear), demo:IMAGE
    (a stage over that image), watch:FOLDER (the images that come into it), an image file or a folder of them.
    The newest frame wins: older ones are dropped and counted. What cannot be used is reported on standard
    error and stops nothing.
    """
    if tiles is not None and mpp is not None:
        raise click.UsageError("--tiles and --mpp both say how large a tile is: give one of them")
    if fps is not None and tiles is None and mpp is None:
        raise click.UsageError("--fps says for how long tiles are classified: give --tiles or --mpp, too")

    from ..microscope.live.grid import Grid
    from ..microscope.live.run import live as run
    from ..runtime.session import open_session

    with open_session(artefact, **device) as session:
        tell(session.manifest.notes if session.manifest else ())
        run(
            session,
            source,
            say,
            grid=None if tiles is None and mpp is None else Grid(tiles, mpp, fps, batch_size),
            assume_mpp=assume_mpp,
            keep_all=keep_all,
            frames=frames,
            seconds=seconds,
            output=output,
            report=lambda line: tell([line]),
        )
