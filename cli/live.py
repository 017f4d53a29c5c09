"""`mmdeploy live`: what is under the microscope now, on a page or as lines of JSON."""

from __future__ import annotations

from typing import Any

import click

from .help import Command, option
from .options import device_options, drift_logged, drift_option, given, guard_option, tell, white_option
from .output import check_output, say

_SESSION = "The session"
_PAGE = "The page"
_GRID = "A grid over the field"
_REPORT = "report"


def _list(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from ..microscope.sources.listing import sources_there

        for line in sources_there():
            say(line)
        context.exit()


class _Live(Command):
    """A command that has another one below it: ``live report DIR``."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of the command that the first word names."""
        if args[:1] == [_REPORT]:
            return report.make_context(f"{info_name} {_REPORT}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=_Live, example="mmdeploy live cells.fp32 demo\nmmdeploy live report session")
@click.argument("artefact")
@click.argument("source")
@option(
    "--port",
    group=_PAGE,
    type=click.IntRange(0, 65535),
    metavar="PORT",
    show_default="8420",
    help="Have the page on another port; 0 takes one that is free.",
)
@option(
    "--host",
    group=_PAGE,
    metavar="NAME",
    show_default="this machine only",
    help="Show the page to other machines, too, behind a token: listen on NAME, or 0.0.0.0 for all.",
)
@option("--no-page", group=_PAGE, is_flag=True, help="Print a line of JSON for each result instead.")
@option(
    "--list",
    group=_SESSION,
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list,
    help="Name the cameras and screens that are there, say what is missing for other sources, and end.",
)
@option(
    "-o",
    "--output",
    group=_SESSION,
    metavar="DIR",
    show_default="named by date and time; with --no-page none",
    help="Keep the session in DIR, which must be new.",
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
    help="Classify every file of a folder or picture of a video, in place of the newest one each time.",
)
@option(
    "--grid",
    "own_scale",
    group=_GRID,
    is_flag=True,
    help="Classify tiles that cover as many microns as a training image did, and map what they say.",
)
@option(
    "--tiles",
    group=_GRID,
    type=click.IntRange(1, 64),
    metavar="N",
    show_default="the field as one picture",
    help="Tiles, N of them along the field's shorter side.",
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
    show_default="1",
    help="How many tiles go through the network at once.",
)
@white_option
@guard_option
@drift_option
@device_options
def live(
    artefact: str,
    source: str,
    port: int | None,
    host: str | None,
    no_page: bool,
    output: str | None,
    frames: int | None,
    seconds: float | None,
    keep_all: bool,
    own_scale: bool,
    tiles: int | None,
    mpp: float | None,
    assume_mpp: float | None,
    fps: float | None,
    batch_size: int | None,
    no_guard: bool,
    drift: str | None,
    **device: Any,
) -> None:
    """Classify what a source shows now, on a page in the browser, until Ctrl-C.

    ARTEFACT is a bundle, an ONNX file or an engine. SOURCE is a camera (0, /dev/video0), rtsp://… or http://…,
    screen or screen:x,y,w,h, mm:CONFIG.cfg (Micro-Manager), watch:FOLDER (the images that come into it), demo
    or demo:IMAGE (a stage that wanders over an image or slide), a video, an image file or a folder of them.
    The newest frame wins: older ones are dropped and counted. What cannot be used is reported on standard
    error and stops nothing.

    The session is kept in a folder: its results, snapshots and a report. "mmdeploy live report DIR" writes
    the report of one that was killed.
    """
    if no_page and (port is not None or host is not None):
        raise click.UsageError("--port and --host are the page's: leave out --no-page, or leave them out")
    sizes = own_scale + (tiles is not None) + (mpp is not None)
    if sizes > 1:
        raise click.UsageError("--grid, --tiles and --mpp all say how large a tile is: give one of them")
    for name, value in (("--fps", fps), ("--batch-size", batch_size)):
        if value is not None and not sizes:
            raise click.UsageError(f"{name} is of tiles: give --grid, --tiles or --mpp, too")

    if no_page and output is None:
        check_output("keep the session in a folder, with -o")

    from ..microscope.live.grid import Grid
    from ..microscope.live.page.access import PORT, Address
    from ..microscope.live.run import live as run
    from ..runtime.session import open_session

    with (
        open_session(artefact, guard=not no_guard, **device) as session,
        drift_logged(drift, artefact, session, "live") as log,
    ):
        tell(session.notes)
        run(
            session,
            artefact,
            source,
            say,
            page=None if no_page else Address(PORT if port is None else port, host),
            output=output,
            grid=Grid(tiles, mpp, fps, **given({"batch_size": batch_size})) if sizes else None,
            assume_mpp=assume_mpp,
            keep_all=keep_all,
            frames=frames,
            seconds=seconds,
            report=lambda line: tell([line]),
            log=log,
        )


@click.command(_REPORT, cls=Command, example="mmdeploy live report session")
@click.argument("folder", metavar="DIR")
def report(folder: str) -> None:
    """Write the report of a session that was kept in DIR, however it ended."""
    from ..microscope.live.report import write_session_report

    say(f"the report: {write_session_report(folder)}")
