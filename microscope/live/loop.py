"""Grab, infer and show, each at its own pace.

One thread reads frames from the source, one runs the network, and whoever iterates over `stream` shows the
results. Between two of them stands a `Channel` with room for one: while the network is at work on a
frame, the next one is replaced by newer ones, so an answer is about what is under the objective now.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from itertools import pairwise
from threading import Event, Thread
from typing import Any, NamedTuple

from ...data.scale import check_microns
from ...errors import ImageError, InputError, SourceError
from ...images import FULL_WHITE
from ...runtime.drift import DriftLog, picture_scores
from ...runtime.quality import Quality, quality_of
from ...runtime.session import Session
from ..slides.engine import differ, trained_on
from ..sources import Frame, Source, open_source
from .channel import Channel, Ended
from .grid import Grid, Mapper, TileMap

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0  # seconds before a source that went away is opened again
_LOOK = 0.1  # seconds between two looks at what there is to report
_HANGS = 2.0  # seconds that a source has for closing which may hang: it was silent for as long
_CLOSING = 15.0  # and one that does not, as a microscope whose devices are shut down one by one
_NUMBER = re.compile(r"#\d+")  # of a frame, in its name
_REPORTS = 100  # that wait for somebody to hear them; older ones go
_Verdict = tuple[bool, tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Result:
    """What the network says of a frame.

    Attributes:
        frame: the frame.
        number: its place among the frames that the source took, from 0, however often it was opened.
        label: name of the likeliest class.
        probability: the probability of that class.
        probabilities: the probability of every class, in the order of the labels; they sum to 1. With a
            grid, the mean over the tiles that count (`TileMap.counted`).
        latency_ms: milliseconds by step: ``grab`` (reading it), ``prepare`` (resizing it; with a grid that
            is done beside the network, and counted there), ``network``, ``quality`` (judging the picture),
            and ``total``, from when it was taken until all was known, waiting included.
        frame_age_ms: milliseconds from when the frame was taken until the result was handed over.
        dropped: frames that the source took since the result before this one and that nobody saw.
        quality: what the picture is worth.
        tiles: what is known of each tile; None without a grid.
        decided: whether the label is an answer, by the artefact's guard; without one it always is. With a
            grid, whether the guard decides at least half of the tiles.
        reasons: why it is none; empty where it is one.
        candidates: the classes that the frame may show, the likeliest first; empty without a guard. With a
            grid, those that are the likeliest of some tile.
    """

    frame: Frame
    number: int
    label: str
    probability: float
    probabilities: tuple[float, ...]
    latency_ms: dict[str, float]
    frame_age_ms: float
    dropped: int
    quality: Quality
    tiles: TileMap | None = None
    decided: bool = True
    reasons: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """All but the pixels; ``map`` and ``tiles`` with a grid only, ``decided`` and so on with a guard."""
        guard = {
            "decided": self.decided,
            "reasons": list(self.reasons),
            "candidates": list(self.candidates),
        }
        return {
            "number": self.number,
            "name": self.frame.name,
            "label": self.label,
            "probability": self.probability,
            "probabilities": list(self.probabilities),
            "latency_ms": {step: round(value, 2) for step, value in self.latency_ms.items()},
            "frame_age_ms": round(self.frame_age_ms, 2),
            "dropped": self.dropped,
            "mpp": self.frame.mpp,
            "quality": self.quality.as_json(),
            "notes": list(self.frame.notes),
            **(self.tiles.as_json() if self.tiles else {}),
            **(guard if self.candidates else {}),
        }


@dataclass(frozen=True)
class _Answer:
    """A frame with what was found of it, before somebody asks."""

    frame: Frame
    number: int
    label: str
    probabilities: tuple[float, ...]
    latency_ms: dict[str, float]
    quality: Quality
    tiles: TileMap | None
    verdict: _Verdict
    """The guard's: ``decided``, ``reasons`` and ``candidates`` of a `Result`."""


class _Looks(NamedTuple):
    """By what frames of a camera are alike."""

    width: int
    height: int
    mpp: float | None

    def __str__(self) -> str:
        scale = "an unknown scale" if self.mpp is None else f"{self.mpp:g} microns a pixel"
        return f"{self.width} x {self.height} pixels at {scale}"


def stream(
    session: Session,
    source: Source | str | os.PathLike[str],
    *,
    grid: Grid | None = None,
    assume_mpp: float | None = None,
    keep_all: bool = False,
    seconds: float | None = None,
    report: Callable[[str], None] = lambda line: None,
    log: DriftLog | None = None,
) -> Generator[Result, None, None]:
    """Classifies the frames of a source as they come; the newest one wins, and older ones are dropped.

    A source that goes away is opened again, after half a second and then less and less often; a frame that
    cannot be used stops nothing. The iterator ends where the source does; closing it closes the source.

    Args:
        session: an opened artefact that knows its labels.
        source: what `msmamba.microscope.sources.open_source` takes, or a `Source`.
        grid: cuts each frame into tiles; None classifies it as one picture.
        assume_mpp: the frames' microns a pixel, in place of what the source says.
        keep_all: drop no frame: the source waits until the one before has been taken. For files only.
        seconds: time after which to end, whether frames come or not; None for no end.
        report: is told of each frame that cannot be used and of a source that stalls, went away or is back,
            one line each, by the thread that iterates; and once, where field or tiles cover over a quarter
            more or less than a training image.
        log: gets scores of the frames that it wants; where it cannot be written any more, that is reported
            and stops nothing.

    Raises:
        SourceError: the source could not be opened at first, cannot keep its frames, or is a file that cannot
            be read on.
        InputError: the source, the microns or the seconds are none, or the grid needs microns that nobody
            knows.
        ArtefactError: the artefact does not say its labels, mean or std, or answers with NaN.
        BackendError: the network failed.
    """
    check_microns(assume_mpp)
    if seconds is not None and not seconds >= 0:
        raise InputError(f"{seconds!r} seconds: expected how long to go on, 0 or more")
    white = session.transform.white_level if session.transform else FULL_WHITE
    opened = open_source(source, white, keep_all=keep_all)
    if keep_all and not opened.keeps:
        raise SourceError(f"'{opened.name}' does not keep its frames until they are asked for: only files do")
    mapper = Mapper(session, grid, log) if grid else None
    return _Loop(session, opened, mapper, assume_mpp, keep_all, report, log).results(seconds)


class _Loop:
    """The two threads of a `stream`, and what they share with the one that iterates."""

    def __init__(
        self,
        session: Session,
        source: Source,
        mapper: Mapper | None,
        assume_mpp: float | None,
        keep_all: bool,
        report: Callable[[str], None],
        log: DriftLog | None,
    ) -> None:
        self._log = log
        self._session = session
        self._source = source
        self._mapper = mapper
        self._assume_mpp = assume_mpp
        self._report = report
        self._frames: Channel[tuple[int, Frame]] = Channel(keep_all)
        self._answers: Channel[_Answer] = Channel(keep_all)
        self._reports: deque[str] = deque(maxlen=_REPORTS)
        if log is not None:
            log.on_failure = self._reports.append
        self._stop = Event()
        self._last_frame = time.monotonic()
        self._heard = -math.inf  # when the source gave something last, were it that there is nothing yet
        self._gone = False
        self._looks: _Looks | None = None
        self._scale_told = False
        self._fault = ""

    def results(self, seconds: float | None) -> Generator[Result, None, None]:
        """The results as they are asked for, for so long."""
        ends = math.inf if seconds is None else time.monotonic() + seconds
        threads = [Thread(target=step, daemon=True) for step in (self._grab, self._infer)]
        for thread in threads:
            thread.start()
        shown, stalled = -1, False
        try:
            while time.monotonic() < ends:
                try:
                    answer = self._answers.get(_LOOK)
                except Ended:
                    return
                finally:
                    self._tell()
                stalled = self._tell_of_a_stall(stalled)
                if answer is None:
                    continue
                yield Result(
                    answer.frame,
                    answer.number,
                    answer.label,
                    max(answer.probabilities),
                    answer.probabilities,
                    answer.latency_ms,
                    (time.monotonic() - answer.frame.taken) * 1e3,
                    answer.number - shown - 1,
                    answer.quality,
                    answer.tiles,
                    *answer.verdict,
                )
                shown = answer.number
        finally:
            self._stop.set()
            self._frames.end()
            self._answers.end()
            threads[1].join()  # it uses the session, which whoever iterates may close next
            hangs = time.monotonic() - self._heard > _HANGS
            # So that a camera is given back; a read that hangs ends by itself.
            threads[0].join(_HANGS if hangs else _CLOSING)

    def _tell(self) -> None:
        while self._reports:
            self._report(self._reports.popleft())

    def _tell_of_a_stall(self, stalled: bool) -> bool:
        limit = self._source.stalls_after
        if limit is None or self._gone or time.monotonic() - self._last_frame < limit:
            return False
        if not stalled:
            self._report(f"'{self._source.name}' has given no frame for {limit:g} seconds: waiting for it")
        return True

    def _tell_of_a_change(self, frame: Frame) -> None:
        """Reports another resolution or another objective in the middle."""
        height, width, _ = frame.pixels.shape
        looks = _Looks(width, height, frame.mpp)
        if self._looks not in (None, looks) and not self._source.keeps:
            self._reports.append(f"'{self._source.name}' now gives {looks}; before, {self._looks}")
            self._scale_told = False
        self._looks = looks

    def _tell_of_the_scale(self, frame: Frame, tiles: TileMap | None) -> None:
        """Reports that pictures are of another scale than in training: once, or once an objective."""
        trained = trained_on(self._session)
        if trained is None or frame.mpp is None or self._scale_told:
            return
        height, width, _ = frame.pixels.shape
        side = math.sqrt(height * width) if tiles is None else tiles.side  # as those of training are measured
        if differ(side * frame.mpp, trained):
            self._reports.append(
                f"'{self._source.name}': {'the field' if tiles is None else 'a tile'} covers "
                f"{side * frame.mpp:.4g} microns, but a training image {trained:.4g}"
            )
        self._scale_told = True

    def _leave_out(self, frame: Frame, fault: str) -> None:
        """Reports a frame that cannot be used; of several in a row that have the same fault, the first."""
        if fault != self._fault:
            self._reports.append(f"a frame was left out: {frame.name}: {fault}")
        self._fault = fault

    def _grab(self) -> None:
        """Reads frames until the source ends or nobody wants any."""
        first, pause, was_open, left_out = 0, _FIRST_PAUSE, False, ""
        try:
            while not self._stop.is_set():
                number = first - 1
                reason = "its frames ended"
                try:
                    for item in self._source.frames():
                        if self._stop.is_set():
                            return
                        was_open, self._heard = True, time.monotonic()
                        if self._gone:
                            self._reports.append(f"'{self._source.name}' is back")
                            self._gone, self._last_frame = False, time.monotonic()
                        if isinstance(item, Frame):
                            number, pause = first + item.number, _FIRST_PAUSE
                            self._last_frame = time.monotonic()
                            self._tell_of_a_change(item)
                            self._frames.put((number, item))
                            left_out = ""
                        elif item is not None:
                            fault = _NUMBER.sub("", str(item))
                            if fault != left_out:
                                self._reports.append(f"a frame was left out: {item}")
                            left_out = fault
                    if not self._source.endless:
                        break
                except SourceError as error:
                    # A file would begin anew, and end there again.
                    if not was_open or not self._source.endless:
                        raise
                    reason = str(error).removeprefix(f"'{self._source.name}' ")
                first, self._gone = number + 1, True
                self._reports.append(
                    f"'{self._source.name}' went away: {reason}; trying again in {pause:g} s"
                )
                self._stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            self._frames.end()
        except BaseException as error:  # whatever it is, whoever iterates has to know
            self._frames.end(error)

    def _infer(self) -> None:
        """Answers on frames until none come."""
        try:
            while True:
                found = self._frames.get(_LOOK)
                if found is not None:
                    try:
                        self._answers.put(self._answer(*found))
                    except ImageError as error:
                        self._leave_out(found[1], str(error))
                    else:
                        self._fault = ""
        except Ended:
            self._answers.end()
        except BaseException as error:
            self._answers.end(error)

    def _answer(self, number: int, frame: Frame) -> _Answer:
        if self._assume_mpp is not None:
            frame = replace(frame, mpp=self._assume_mpp)
        times = [time.monotonic()]
        quality = quality_of(frame.pixels)
        times.append(time.monotonic())
        tiles = None
        verdict: _Verdict
        if self._mapper is None:
            image, _ = self._session.prepare(frame.pixels)
            times.append(time.monotonic())
            by_guard = self._session.quality_of(frame.pixels, quality)
            logits, (prediction,) = self._session.answers(image[None], qualities=[by_guard])
            if self._log is not None and self._log.wants():
                self._log.add(picture_scores(frame.pixels, by_guard), logits[0], prediction.distance)
            label, probabilities = prediction.label, prediction.probabilities
            verdict = (prediction.decided, prediction.reasons, prediction.candidates)
        else:
            times.append(times[-1])
            tiles = self._mapper.map(frame, times[-1] - times[0])
            probabilities, labels = tiles.mean, self._session.labels or ()
            label = labels[probabilities.index(max(probabilities))]
            verdict = (True, (), ())
            if tiles.undecided is not None:
                candidates = tuple(labels[index] for index in tiles.candidates)
                verdict = (tiles.decided, () if tiles.decided else tiles.reasons, candidates)
        times.append(time.monotonic())
        self._tell_of_the_scale(frame, tiles)
        judged, prepare, network = ((after - before) * 1e3 for before, after in pairwise(times))
        latency_ms = {
            "grab": frame.grab_ms,
            "prepare": prepare,
            "network": network,
            "quality": judged,
            "total": (times[-1] - frame.taken) * 1e3,
        }
        return _Answer(frame, number, label, probabilities, latency_ms, quality, tiles, verdict)
