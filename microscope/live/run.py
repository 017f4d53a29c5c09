"""A session at the microscope as lines of JSON: what `mmdeploy live` does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone

from ...files import as_utf8, atomic_folder
from ...runtime.session import Session
from ..sources import Source
from .grid import Grid
from .loop import stream

SESSION_NAME = "session.jsonl"


def live(
    session: Session,
    source: Source | str,
    show: Callable[[str], None],
    *,
    grid: Grid | None = None,
    assume_mpp: float | None = None,
    keep_all: bool = False,
    frames: int | None = None,
    seconds: float | None = None,
    output: str | os.PathLike[str] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Shows each result as a line of JSON, until the source ends or enough were shown.

    Args:
        session: an opened artefact that knows its labels.
        source: as for `stream`.
        show: is handed each line, without its end.
        grid: as for `stream`.
        assume_mpp: as for `stream`.
        keep_all: as for `stream`.
        frames: results after which to end.
        seconds: as for `stream`.
        output: a new folder for ``session.jsonl``, the lines that were shown; it appears whole when the
            session ends, by an interrupt, too, or not at all.
        report: as for `stream`.

    Raises:
        TargetError: the folder exists already or cannot be written.
        MsmambaError: whatever `stream` raises.
    """
    results = stream(
        session,
        source,
        grid=grid,
        assume_mpp=assume_mpp,
        keep_all=keep_all,
        seconds=seconds,
        report=report,
    )
    with _recorded(output) as record, closing(results):
        for shown, result in enumerate(results, 1):
            taken = datetime.now(timezone.utc) - timedelta(milliseconds=result.frame_age_ms)
            line = json.dumps({"taken": taken.isoformat(), **result.as_json()}, ensure_ascii=False)
            line = as_utf8(line).decode()
            show(line)
            record(line)
            if shown == frames:
                return


@contextmanager
def _recorded(output: str | os.PathLike[str] | None) -> Iterator[Callable[[str], object]]:
    """Keeps lines in ``session.jsonl``; an interrupt is how sessions end, and what was shown is kept."""
    if output is None:
        yield lambda line: None
        return
    interrupt = None
    with atomic_folder(output) as folder, (folder / SESSION_NAME).open("w", encoding="utf-8") as file:
        try:
            yield lambda line: file.write(f"{line}\n")
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
