"""A session's page, from what is on disk: a session that was killed has one, too.

Dims: ``N`` results, ``bins`` of the time line.
"""

from __future__ import annotations

import io
import os
import warnings
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ...errors import InputError, Note, reason_of
from ...files import as_utf8, lines_of, open_file, read_file, write_atomically
from ...pages.page import data_url, page_from_template
from ...runtime.quality import OUT_OF_FOCUS
from ...schema import LABELS, NAME, SHA256, TRUTH, listed, maybe, number, one_of, parsed, record, whole
from ..slides.results import colour_of
from .record import EVENTS_NAME, FACTS_NAME, FORMAT, SESSION_NAME, SNAPSHOTS, THUMBNAILS

if TYPE_CHECKING:
    from numpy.typing import NDArray

REPORT_NAME = "report.html"

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_BINS = 200  # of the time line, at most
_PICTURE = 264  # pixels of a snapshot's longer side on the page
_SNAPSHOTS = 60  # that the page shows; the folder has all
_EVENTS = 100  # likewise

_FACTS = record(
    {
        "format_version": one_of(FORMAT),
        "msmamba": NAME,
        "artefact": NAME,
        "artefact_sha256": SHA256,
        "labels": LABELS,
        "source": NAME,
        "began": NAME,
    }
)
_TEXT = NAME
_PART = number(0, 1)
_LINE = record(
    {
        "taken": NAME,
        "number": whole(),
        "label": NAME,
        "probability": number(0, 1 + 1e-6),
        "latency_ms": record({step: number() for step in ("grab", "prepare", "network", "quality", "total")}),
        "frame_age_ms": number(),
        "dropped": whole(),
        "quality": record({"focus": maybe(_PART), "faults": listed(_TEXT)}),
    },
    optional={"painted_age_ms": maybe(number()), "decided": TRUTH},
)
_EVENT = record({"at": NAME, "text": NAME})


def write_session_report(folder: str | os.PathLike[str]) -> Path:
    """Writes ``report.html`` into a session's folder, whole or not at all.

    Lines that were cut off when the session was, or are damaged, are counted and left out.

    Returns:
        The page's path.

    Raises:
        InputError: it is no session's folder, or nothing was shown in it.
        TargetError: the page cannot be written.
    """
    folder = Path(folder)
    facts = _facts(folder)
    session = _Session(facts["labels"])
    thumbnails = {path.stem: path for path in _files_in(folder / THUMBNAILS, ".jpg")}
    for line in _lines(folder / SESSION_NAME):
        session.add(line, f"{line['number']:07}" in thumbnails if line else False)
    if not session.taken:
        raise InputError(f"nothing was shown in the session '{folder}': there is nothing to report")
    page = page_from_template(
        _TEMPLATE,
        facts=facts,
        colours=[colour_of(index) for index in range(len(facts["labels"]))],
        limit=OUT_OF_FOCUS,
        events=_events(folder / EVENTS_NAME),
        thumbnails=_thumbnails(session, thumbnails),
        snapshots=_snapshots(folder / SNAPSHOTS),
        **session.summary(),
    )
    path = folder / REPORT_NAME
    write_atomically(path, as_utf8(page))
    return path


@dataclass
class _Session:
    """What a session's lines come to, some forty bytes each."""

    labels: list[str]
    unreadable: int = 0
    taken: array[float] = field(default_factory=lambda: array("d"))
    classes: array[int] = field(default_factory=lambda: array("l"))
    probability: array[float] = field(default_factory=lambda: array("f"))
    focus: array[float] = field(default_factory=lambda: array("f"))
    dropped: array[int] = field(default_factory=lambda: array("l"))
    steps: dict[str, array[float]] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    faulty: int = 0
    guarded: int = 0
    withheld: int = 0
    pictured: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)

    def add(self, line: dict[str, Any] | None, has_picture: bool) -> None:
        """Counts a line in.

        Args:
            line: None where it cannot be read.
            has_picture: whether there is a thumbnail of its frame.
        """
        taken = None if line is None else _seconds(line["taken"])
        if line is None or taken is None or line["label"] not in self.labels:
            self.unreadable += 1
            return
        index = self.labels.index(line["label"])
        self.taken.append(taken)
        self.classes.append(index)
        self.probability.append(line["probability"])
        focus = line["quality"]["focus"]
        self.focus.append(np.nan if focus is None else focus)
        self.dropped.append(line["dropped"])
        ages = {"shown": line["frame_age_ms"], "painted": line.get("painted_age_ms")}
        for step, value in {**line["latency_ms"], **ages}.items():
            if value is not None:
                self.steps.setdefault(step, array("f")).append(value)
        self.guarded += "decided" in line
        self.withheld += not line.get("decided", True)
        faults = line["quality"]["faults"]
        self.faults.update(faults)
        self.faulty += bool(faults)
        if has_picture:
            self.pictured[f"{line['number']:07}"] = (index, line)

    def summary(self) -> dict[str, Any]:
        """What the page says."""
        taken, classes = np.array(self.taken), np.array(self.classes)
        # Where the clock was set back, time goes on from there: the session took no hour for that.
        taken -= np.cumsum(np.minimum(np.diff(taken, prepend=taken[:1]), 0))
        count, seconds = len(taken), float(taken.max() - taken.min())
        dropped = int(sum(self.dropped))
        probability, focus = np.array(self.probability), np.array(self.focus)
        known = focus[~np.isnan(focus)]
        rows = []
        for index, label in enumerate(self.labels):
            own = probability[classes == index]
            rows.append(
                {
                    "label": label,
                    "results": len(own),
                    "share": len(own) / count,
                    "probability": float(own.mean()) if len(own) else None,
                }
            )
        return {
            "results": count,
            "seconds": seconds,
            "rate": (count - 1) / seconds if seconds > 0 else None,
            "dropped": dropped,
            "dropped_share": dropped / (dropped + count),
            "unreadable": self.unreadable,
            "classes": rows,
            "steps": {step: _percentiles(values) for step, values in self.steps.items()},
            "focus": _percentiles(known) if len(known) else None,
            "faults": self.faults.most_common(),
            "faulty": self.faulty,
            "guarded": self.guarded,
            "withheld": self.withheld,
            "line": self._time_line(taken, classes, focus),
        }

    def _time_line(
        self, taken: NDArray[np.float64], classes: NDArray[np.int_], focus: NDArray[np.float32]
    ) -> dict[str, Any]:
        """The session in bins of equal time: each class's share of the results, and the median focus."""
        bins = min(_BINS, len(taken))
        span = max(float(taken.max() - taken.min()), 1e-9)
        place = np.minimum(((taken - taken.min()) / span * bins).astype(int), bins - 1)
        counts = np.zeros((bins, len(self.labels)))
        np.add.at(counts, (place, classes), 1)
        totals = counts.sum(axis=1, keepdims=True)
        shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
        tops = np.cumsum(shares, axis=1)
        medians = [_median(focus[place == each]) for each in range(bins)]
        return {
            "bins": bins,
            "bars": [
                {"bin": each, "class": index, "top": float(1 - tops[each, index]), "height": float(share)}
                for each in range(bins)
                for index, share in enumerate(shares[each])
                if share > 0
            ],
            "focus": [
                [(each + 0.5, 1 - value) for each, value in run] for run in _runs(list(enumerate(medians)))
            ],
        }


def _median(values: NDArray[np.float32]) -> float | None:
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else None


def _runs(values: list[tuple[int, float | None]]) -> Iterator[list[tuple[int, float]]]:
    """The stretches in which every value is known."""
    run: list[tuple[int, float]] = []
    for place, value in values:
        if value is not None:
            run.append((place, value))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _percentiles(values: array[float] | NDArray[np.float32]) -> dict[str, float]:
    found = np.percentile(np.asarray(values), [5, 50, 95, 99, 100])
    return dict(zip(("p5", "p50", "p95", "p99", "most"), map(float, found), strict=True))


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS_NAME
    try:
        facts = parsed(read_file(path))
    except FileNotFoundError as error:
        raise InputError(
            f"'{folder}' holds no session ('{FACTS_NAME}' is missing): expected a folder of mmdeploy live"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' cannot be read: {reason_of(error)}") from error
    if problems := _FACTS.problems(facts):
        raise InputError(f"'{path}' is not what mmdeploy live writes: {'; '.join(problems)}")
    return dict(facts)


def _lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """The lines of a session as they come; None for one that cannot be read."""
    try:
        with open_file(path) as file:
            for content in lines_of(file):
                yield _checked(content, _LINE)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {reason_of(error)}") from error


def _checked(content: bytes, kind: Any) -> dict[str, Any] | None:
    try:
        value = parsed(content)
    except ValueError:
        return None
    return value if kind.holds(value) else None


def _seconds(text: str) -> float | None:
    """A moment in seconds since 1970; None where it is none, or one that the system's clock never shows."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _events(path: Path) -> dict[str, Any]:
    """The first events, and how many more there are."""
    shown: list[dict[str, Any]] = []
    more = 0
    try:
        with open_file(path) as file:
            for content in lines_of(file):
                event = _checked(content, _EVENT)
                if event is None:
                    continue
                if len(shown) < _EVENTS:
                    shown.append(event)
                else:
                    more += 1
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {reason_of(error)}") from error
    return {"shown": shown, "more": more}


def _thumbnails(session: _Session, paths: dict[str, Path]) -> list[dict[str, Any]]:
    """The pictures of each class, the likeliest first, and those that the guard withheld last."""
    groups: list[dict[str, Any]] = []
    for index, label in enumerate(session.labels):
        own = [(name, line) for name, (place, line) in session.pictured.items() if place == index]
        own.sort(key=lambda each: (not each[1].get("decided", True), -each[1]["probability"]))
        pictures = []
        for name, line in own:
            try:
                url = data_url(read_file(paths[name]), "image/jpeg")
            except FileNotFoundError:  # the session goes on, and a better one took its place
                continue
            except OSError as error:
                why = f"'{paths[name]}' cannot be read: {reason_of(error)}"
                warnings.warn(f"the report lacks a picture: {why}", Note, stacklevel=2)
                continue
            facts = {"probability": line["probability"], "taken": line["taken"]}
            pictures.append({"url": url, "decided": line.get("decided", True), **facts})
        if pictures:
            groups.append({"label": label, "pictures": pictures})
    return groups


def _files_in(folder: Path, suffix: str) -> list[Path]:
    """The files of a kind in a folder, by name; none where there is no such folder.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return sorted(each for each in folder.iterdir() if each.suffix == suffix)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"the folder '{folder}' cannot be read: {reason_of(error)}") from error


def _snapshots(folder: Path) -> dict[str, Any]:
    """The snapshots in the order of the frames, small."""
    paths = _files_in(folder, ".png")
    shown = []
    for path in paths[:_SNAPSHOTS]:
        try:
            with open_file(path) as file, Image.open(file) as picture:
                picture.thumbnail((_PICTURE, _PICTURE))
                content = io.BytesIO()
                picture.convert("RGB").save(content, "JPEG", quality=85)
            line = _checked(read_file(path.with_suffix(".json")), _LINE)
        except (OSError, ValueError):  # somebody changed it; the others are as good
            continue
        shown.append({"name": path.name, "url": data_url(content.getvalue(), "image/jpeg"), "line": line})
    return {"shown": shown, "more": len(paths) - len(shown)}
