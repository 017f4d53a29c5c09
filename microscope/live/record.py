"""A session on disk, as it goes on: what is there when the process is killed gives its report all the same.

    session.json      what was asked: artefact, labels, source, when it began
    session.jsonl     every result that was shown, one line each
    events.jsonl      what was reported, one line each
    thumbnails/       NUMBER.jpg: the most certain pictures of each class, some seconds apart
    snapshots/        NUMBER.png, the picture pixel for pixel, and NUMBER.json, its line
    report.html       at the end

Lines are added and flushed, and reach the device about once a second; all other files appear whole or not at
all. A line whose age when painted may still be reported waits for that.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from threading import Thread
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ...errors import TargetError
from ...files import as_utf8, cause_of, flush_to_device, make_folder, write_atomically, written_together
from ...schema import as_json
from .channel import Changed, give_back
from .loop import Result

if TYPE_CHECKING:
    from numpy.typing import NDArray

FACTS_NAME, SESSION_NAME, EVENTS_NAME = "session.json", "session.jsonl", "events.jsonl"
THUMBNAILS, SNAPSHOTS = "thumbnails", "snapshots"
FORMAT = 1

PAINT_WAIT = 1.0
"""Seconds that a line waits to hear when a page has painted it."""

_TICK = 1.0  # seconds between two times that what is new reaches the device
_THUMBNAILS, _APART = 8, 5.0  # of each class, and the seconds between two of them at least
_SIDE = 176  # pixels of a thumbnail's longer side


@dataclass
class _Thumbnail:
    """A picture that stands for its class."""

    number: int
    taken: float
    rank: tuple[bool, bool, float]
    pixels: NDArray[np.uint8] | None  # until it is on disk


class Record:
    """Keeps a session; to be used within `recording`.

    What cannot be written is reported once and lost; the session goes on.
    """

    def __init__(self, folder: Path, paint_wait: float, report: Callable[[str], None]) -> None:
        self.folder = folder
        self.results = 0
        self.failure: TargetError | None = None
        self._paint_wait = paint_wait
        self._report = report
        self._changed = Changed()
        self._dealt_with = 0  # results whose lines are written, or could not be
        self._done = False
        self._lines: deque[tuple[float, dict[str, Any]]] = deque()
        self._events: list[dict[str, Any]] = []
        self._best: dict[str, list[_Thumbnail]] = {}
        self._files: dict[str, IO[bytes]] = {}

    def add(self, result: Result, line: dict[str, Any]) -> None:
        """Keeps a result.

        Args:
            result: the result; a small copy of its picture may be kept.
            line: what is said of it.
        """
        with self._changed:
            self.results += 1
            self._lines.append((time.monotonic(), line))
            self._consider(result)
            if not self._paint_wait:
                # Written by the other thread, which no interrupt stops in the middle.
                number = self.results
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._done or self._dealt_with >= number)

    @property
    def waiting(self) -> int:
        """Lines that are not on disk yet."""
        return len(self._lines)

    def painted(self, number: int, age_ms: float) -> None:
        """Notes how old a result was when a page had painted it; the first page counts."""
        with self._changed:
            for _, line in reversed(self._lines):
                if line["number"] == number:
                    if line["painted_age_ms"] is None:
                        line["painted_age_ms"] = round(age_ms, 2)
                    return

    def event(self, text: str) -> None:
        """Keeps what was reported."""
        with self._changed:
            self._events.append({"at": now(), "text": text})

    def snapshot(self, result: Result, line: dict[str, Any]) -> str:
        """Keeps a picture, pixel for pixel, with its answer; the name of the file below the folder.

        Raises:
            TargetError: it cannot be written.
        """
        path = self.folder / SNAPSHOTS / f"{result.number:07}.png"
        make_folder(path.parent)
        content = io.BytesIO()
        # Level 1 takes a third of the time of 6, and a tenth more bytes.
        Image.fromarray(result.frame.pixels).save(content, "PNG", compress_level=1)
        with self._changed:
            text = as_json(line, indent=2)
        with written_together():
            write_atomically(path.with_suffix(".json"), as_utf8(text + "\n"))
            write_atomically(path, content.getvalue())
        return f"{SNAPSHOTS}/{path.name}"

    def keep(self) -> None:
        """Writes what comes, until `finish` is called; what a thread of its own runs."""
        tick = time.monotonic() + _TICK
        done = False
        try:
            while not done:
                with self._changed:
                    self._changed.wait_for(self._has_work, max(tick - time.monotonic(), 0.0))
                    done = self._done
                self._write(sync=False)
                if done or time.monotonic() >= tick:
                    self.tick(last=done)
                    tick = time.monotonic() + _TICK
        finally:
            self.finish()  # nobody waits for a thread that failed

    def finish(self) -> None:
        """Has `keep` end, once all is written."""
        give_back(self._changed)
        with self._changed:
            self._done = True
            self._changed.notify_all()

    def _has_work(self) -> bool:
        return self._done or bool(self._lines and not self._paint_wait)

    def tick(self, *, last: bool = False) -> None:
        """Has what is new reach the device.

        Args:
            last: whether nothing comes any more, so that no line waits.
        """
        self._write(sync=True, last=last)
        with self._changed:
            new = [each for best in self._best.values() for each in best if each.pixels is not None]
            pictures = [(each, each.pixels) for each in new]
            wanted = {_name(each) for best in self._best.values() for each in best}
            for each in new:
                each.pixels = None
        with self._told():
            for each, pixels in pictures:
                assert pixels is not None
                write_atomically(self.folder / THUMBNAILS / _name(each), _jpeg(pixels))
            for path in [*(self.folder / THUMBNAILS).iterdir()]:
                if path.suffix == ".jpg" and path.name not in wanted:
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            with suppress(OSError):
                file.close()

    def _consider(self, result: Result) -> None:
        """Takes a picture among the most certain of its class, or leaves it."""
        rank = (result.decided, not result.quality.faults, result.probability)
        best = self._best.setdefault(result.label, [])
        near = [each for each in best if abs(each.taken - result.frame.taken) < _APART]
        if not near and len(best) == _THUMBNAILS:
            near = [min(best, key=lambda each: each.rank)]
        if any(rank <= each.rank for each in near):
            return
        for each in near:
            best.remove(each)
        pixels = result.frame.pixels
        step = max(max(pixels.shape[:2]) // (2 * _SIDE), 1)
        small = np.ascontiguousarray(pixels[::step, ::step])
        best.append(_Thumbnail(result.number, result.frame.taken, rank, small))

    def _write(self, *, sync: bool, last: bool = False) -> None:
        with self._told(), self._changed:
            until = time.monotonic() - self._paint_wait
            due = []
            while self._lines and (last or self._lines[0][0] <= until):
                due.append(self._lines.popleft()[1])
            self._dealt_with += len(due)
            self._changed.notify_all()  # who waits for it goes on once this lock is free
            events, self._events = self._events, []
            for name, lines in ((SESSION_NAME, due), (EVENTS_NAME, events)):
                if lines:
                    file = self._files.get(name) or self._open(name)
                    file.write(b"".join(as_utf8(as_json(each) + "\n") for each in lines))
                    file.flush()
        if sync:
            with self._told():
                for file in list(self._files.values()):
                    flush_to_device(file)

    def _open(self, name: str) -> IO[bytes]:
        self._files[name] = (self.folder / name).open("ab")
        return self._files[name]

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Reports the first thing that cannot be written, and goes on."""
        try:
            yield
        except (OSError, TargetError) as error:
            if self.failure is None:
                reason = error if isinstance(error, TargetError) else cause_of(error)
                self.failure = TargetError(f"the session in '{self.folder}' is not whole: {reason}")
                self._report(f"{self.failure}; it goes on without being kept")


@contextmanager
def recording(
    folder: Path, facts: dict[str, Any], paint_wait: float, report: Callable[[str], None]
) -> Iterator[Record]:
    """Keeps a session in a new folder while the block runs; one that showed nothing leaves no folder.

    Args:
        folder: it must not exist.
        facts: what was asked.
        paint_wait: seconds that a line waits to hear of its being painted; 0 where no page is.
        report: is told, by any thread, once, when the folder cannot be written any more.

    Raises:
        TargetError: the folder exists, or cannot be made; or, in the end, it could not be written.
    """
    make_folder(folder, new=True)
    record = Record(folder, paint_wait, report)
    thread = Thread(target=record.keep, name="record", daemon=True)
    try:
        make_folder(folder / THUMBNAILS)
        content = as_json({"format_version": FORMAT, **facts, "began": now()}, indent=2)
        write_atomically(folder / FACTS_NAME, as_utf8(content + "\n"))
        thread.start()
        yield record
    finally:
        record.finish()
        if thread.ident is not None:
            thread.join()
        record.close()
        if not record.results:
            _remove(folder)
    if record.failure is not None:
        raise record.failure


def now() -> str:
    """This moment in UTC, as the files have it."""
    return datetime.now(timezone.utc).isoformat()


def _remove(folder: Path) -> None:
    """Removes what a session that showed nothing has made, and nothing else."""
    with suppress(OSError):
        for name in (FACTS_NAME, EVENTS_NAME):
            (folder / name).unlink(missing_ok=True)
        (folder / THUMBNAILS).rmdir()
        folder.rmdir()


def _name(thumbnail: _Thumbnail) -> str:
    return f"{thumbnail.number:07}.jpg"


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=88)
    return content.getvalue()
