"""A session at the microscope, on a page or as lines of JSON, and on disk: what `mmdeploy live` does."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import BackendError, SourceError
from ...files import as_utf8
from ...images import FULL_WHITE
from ...runtime.artefact import artefact_sha256
from ...runtime.drift import DriftLog
from ...runtime.session import Session
from ...schema import as_json
from ...version import __version__
from ..slides.results import colour_of
from ..sources import Source, open_source
from ..sources.demo import MOSAIC
from .grid import Grid
from .loop import Result, stream
from .page.access import Access, Address, listen, url_of
from .record import PAINT_WAIT, SESSION_NAME, Record, recording
from .report import REPORT_NAME, write_session_report

if TYPE_CHECKING:
    from .page.server import PageServer

_LOOK = 0.2  # seconds between two looks at whether the time is up, once no more pictures come
_MANY = 20_000  # results of which a report takes about a second


def live(
    session: Session,
    artefact: str | os.PathLike[str],
    source: Source | str,
    say: Callable[[str], None],
    *,
    grid: Grid | None = None,
    assume_mpp: float | None = None,
    page: Address | None = None,
    output: str | os.PathLike[str] | None = None,
    keep_all: bool = False,
    frames: int | None = None,
    seconds: float | None = None,
    report: Callable[[str], None] = lambda line: None,
    log: DriftLog | None = None,
) -> None:
    """Shows what the network says of each frame, until the source ends or enough were shown.

    Where the source ends and a page is open, the last picture stays on it until an interrupt, or ``seconds``.

    Args:
        session: an opened artefact that knows its labels.
        artefact: its path.
        source: as for `stream`; ``demo`` is over the ``mosaic.png`` beside the artefact, where there is one.
        say: is handed each line to print, without its end: where the page is and what was kept or, without a
            page, each result as JSON.
        grid: as for `stream`.
        assume_mpp: as for `stream`.
        page: where the page is to be; None for lines of JSON.
        output: a new folder for the session (`msmamba.microscope.live.record` says what is in it); None for
            one in the working folder named by date and time, or none where there is no page.
        keep_all: as for `stream`.
        frames: results after which to end.
        seconds: as for `stream`.
        report: as for `stream`, and is told when the session cannot be kept; by any thread.
        log: as for `stream`.

    Raises:
        TargetError: the folder exists already or cannot be written.
        SourceError: a folder, an image or a video has ended before anything was classified, or as `stream`.
        InputError: the page's port is taken, or its host is none of this machine's.
        BackendError: the extra ``live`` is not installed, or as `stream`.
        MsmambaError: whatever else `stream` raises.
    """
    _require_libraries(page=page is not None, report=page is not None or output is not None)
    white_level = session.transform.white_level if session.transform else FULL_WHITE
    mosaic = Path(artefact).parent / MOSAIC
    opened = open_source(source, white_level, keep_all=keep_all, mosaic=mosaic)
    facts = {
        "msmamba": __version__,
        "artefact": Path(artefact).name,
        "artefact_sha256": artefact_sha256(artefact),
        "labels": list(session.labels or ()),
        "source": opened.name,
        "runs_by": session.path,
    }
    if page is not None and output is None:
        output = f"live-{datetime.now().astimezone():%Y-%m-%d-%H-%M-%S}"
    record: Record | None = None
    shown_on: PageServer | None = None

    def tell(line: str) -> None:
        report(line)
        if record is not None:
            record.event(line)
        if shown_on is not None:
            shown_on.notice(line)

    ends = math.inf if seconds is None else time.monotonic() + seconds
    with ExitStack() as stack:
        listening = None if page is None else stack.enter_context(_listening(page))
        if output is not None:
            record = stack.enter_context(_kept(Path(output), facts, page is not None, say, tell))
        if page is not None and listening is not None and record is not None:
            from .page.server import serving

            shown_on = stack.enter_context(serving(*listening, _hello(facts, opened, record), record))
            say(f"the page: {url_of(page, listening[1])}")
            say(f"the session: {record.folder}")

        remaining = None if seconds is None else max(ends - time.monotonic(), 0.0)
        results = stream(
            session,
            opened,
            grid=grid,
            assume_mpp=assume_mpp,
            keep_all=keep_all,
            seconds=remaining,
            report=tell,
            log=log,
        )
        stack.enter_context(closing(results))
        shown = 0
        for shown, result in enumerate(results, 1):
            line = _line_of(result)
            if shown_on is not None:
                line["painted_age_ms"] = None
            if record is not None:
                record.add(result, line)  # before it is shown: an interrupt loses nothing that somebody saw
            if shown_on is not None:
                shown_on.show(result, line)
            else:
                say(as_utf8(as_json(line)).decode())
            if shown == frames:
                return
        if not shown and time.monotonic() < ends and not opened.endless:
            raise SourceError(f"'{opened.name}' has ended, and no frame of it could be classified")
        if shown_on is not None and time.monotonic() < ends:
            shown_on.end(f"'{opened.name}' has ended")
            report(f"'{opened.name}' has ended; the page stays until Ctrl-C")
            while time.monotonic() < ends:
                time.sleep(_LOOK)


@contextmanager
def _listening(page: Address) -> Iterator[tuple[socket.socket, Access]]:
    listener, access = listen(page)
    with closing(listener):
        yield listener, access


@contextmanager
def _kept(
    folder: Path,
    facts: dict[str, Any],
    has_page: bool,
    say: Callable[[str], None],
    report: Callable[[str], None],
) -> Iterator[Record]:
    """A session's record, and its report however the session ends."""
    results = 0
    try:
        with recording(folder, facts, PAINT_WAIT if has_page else 0.0, report) as record:
            try:
                yield record
            finally:
                results = record.results
    finally:
        if results and (folder / SESSION_NAME).is_file():  # not where the disk was full from the start
            if results >= _MANY:
                report(f"writing the report of {results:,} results")  # lest it be taken for hanging
            write_session_report(folder)
            if has_page:
                say(f"the report: {folder / REPORT_NAME}")


def _line_of(result: Result) -> dict[str, Any]:
    taken = datetime.now(timezone.utc) - timedelta(milliseconds=result.frame_age_ms)
    return {"taken": taken.isoformat(), **result.as_json()}


def _hello(facts: dict[str, Any], source: Source, record: Record) -> dict[str, Any]:
    """What the page says of the session, and in which colours."""
    return {
        **facts,
        "colours": [list(colour_of(index)) for index in range(len(facts["labels"]))],
        # A folder may be silent for an hour; a camera may not.
        "may_be_silent": source.stalls_after is None,
        "folder": record.folder.name,
    }


def _require_libraries(*, page: bool, report: bool) -> None:
    """Checks that the extra ``live`` is there, where it is needed.

    Raises:
        BackendError: it is not installed.
    """
    try:
        if report:
            import jinja2  # noqa: F401  # whether it is there; so are the others
        if page:
            import starlette  # noqa: F401
            import uvicorn  # noqa: F401
            import websockets  # noqa: F401
    except ImportError as error:
        what = "the page needs Starlette, Uvicorn, websockets and Jinja" if page else "the report needs Jinja"
        without = ", or print lines of JSON with --no-page" if page else ", or leave out -o"
        raise BackendError(
            f"{what}, which are not all here ({error}): pip install 'msmamba[live]'{without}"
        ) from error
