"""What is kept of answers so that a change of the microscope shows: scores as lines of JSON, never a picture.

A log's first line says which network's scores it holds, and those of the images that the artefact was
calibrated on, where it has them; each further line is of one picture. `mmdeploy drift` compares the two.

Of the answer, from its logits: the largest probability (at the guard's temperature), the certainty (log-odds
of the likeliest class) and the energy (log-sum-exp of the logits; Liu et al., 2020), and of its features how
unlike those of the calibration they are, where the guard compares them (`likeness`). Of the picture: what
`quality` measures, the shares of red and blue in its background, and the shares of red and blue in what it
absorbs, so that a stain's colour hides neither behind brightness nor behind how much of it there is.

Dims: B images of a batch, C classes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, TargetError, reason_of
from ..files import appended_lines, lines_of, open_file
from ..measures.metrics import log_softmax
from ..measures.selective import certainty
from ..schema import SHA256, TEXT, Kind, by_name, listed, maybe, number, one_of, parsed, record, whole
from .artefact import MODEL_NAME, SCORES_NAME, Bundle, open_bundle, read_file, recognise
from .artefact import Kind as Artefact
from .guard import network_sha256
from .manifest import Manifest
from .quality import Quality, quality_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

ANSWER_SCORES = ("probability", "certainty", "energy")
_OF_QUALITY = ("focus", "coarse_focus", "brightest", "brightness", "black", "white", "emptiness")
PICTURE_SCORES = (*_OF_QUALITY, "background_red", "background_blue", "stain_red", "stain_blue")
UNLIKENESS = "unlikeness"
"""The natural logarithm of `Prediction.distance`, so that a difference is a share of it."""
SCORES = (*PICTURE_SCORES, *ANSWER_SCORES, UNLIKENESS)
COMMANDS = ("infer", "slide", "live")

MOST_VALUES = 400
"""Values that are kept of a score's distribution: of more images, as many quantiles."""
LIVE_INTERVAL = 1.0
"""Seconds between two lines of a live session: 30 frames a second would say the same thing 30 times."""
SLIDE_TILES = 1000
"""Tiles of a slide that are kept at most, spread evenly."""

_FORMAT = 1
_LINES = 128  # rows, and columns, of a picture that are looked at for its colours at least
_STAINED = 0.3  # the optical density, summed over the channels, from which a pixel counts as stained
_LEAST_STAINED = 0.005  # the part of pixels that must be, to speak of a stain
_LEAST_DISTANCE = 1e-6  # squared, in deviations: only a class's very mean is nearer
_DIGITS = 5
_CALIBRATED = record(
    {"images": whole(1), "scores": by_name(Kind("numbers in order", listed(number(), 1, MOST_VALUES).holds))}
)
_HEAD = record(
    {"msmamba_drift": whole(_FORMAT, _FORMAT), "artefact": SHA256, "calibrated": maybe(_CALIBRATED)}
)
_LINE = record(
    {
        "time": TEXT,
        "by": one_of(*COMMANDS),
        "session": TEXT,
        "artefact": TEXT,
        "scores": by_name(maybe(number())),
    }
)


@dataclass(frozen=True)
class CalibratedScores:
    """How scores are distributed over the images that an artefact was calibrated on."""

    images: int
    scores: Mapping[str, tuple[float, ...]]
    """By name, in ascending order: every value, or `MOST_VALUES` evenly spread quantiles of more."""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, float | None]]) -> CalibratedScores:
        """Those of the scores of images, one row each; a score that no image has is left out."""
        found = {name: np.sort([row[name] for row in rows if row.get(name) is not None]) for name in SCORES}
        return cls(len(rows), {name: _bounded(values) for name, values in found.items() if len(values)})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"images": self.images, "scores": {name: list(each) for name, each in self.scores.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CalibratedScores:
        """The inverse of `to_dict`.

        Raises:
            ValueError: it is something else; every mismatch is named.
        """
        if problems := _CALIBRATED.problems(values):
            raise ValueError("; ".join(problems))
        return cls(values["images"], {name: tuple(sorted(each)) for name, each in values["scores"].items()})


@dataclass(frozen=True)
class Origin:
    """The network whose scores a log holds, and what they are to be compared with."""

    artefact: str
    """`network_sha256` of an ONNX file, SHA-256 of an engine that stands by itself."""
    calibrated: CalibratedScores | None
    """None where the artefact was not calibrated, or by an earlier version."""

    @classmethod
    def of(cls, artefact: str | os.PathLike[str]) -> Origin:
        """What an artefact says of itself.

        Raises:
            ArtefactError: it cannot be read, or was changed.
        """
        path = Path(artefact)
        kind = recognise(path)
        if kind is Artefact.BUNDLE:
            bundle = open_bundle(path)
            return cls(network_sha256(bundle.read(MODEL_NAME)), calibrated_scores(bundle))
        content = read_file(path)
        return cls(
            network_sha256(content) if kind is Artefact.ONNX else hashlib.sha256(content).hexdigest(), None
        )


class DriftLog:
    """A log that is being written; see `drift_log`."""

    def __init__(self, write: Callable[[str], None], origin: Origin, by: str, temperature: float) -> None:
        """Use `drift_log`."""
        self._write = write
        self._artefact = origin.artefact[:16]
        self._by = by
        self._temperature = temperature
        self._last = -np.inf
        self.on_failure: Callable[[str], None] | None = None
        """Is told that the log cannot be written any more, in place of an error; nothing is logged then."""
        self._failed = False
        self.begin(1)

    def begin(self, pictures: int) -> None:
        """What follows is of another slide or session.

        Args:
            pictures: how many there are to be, of a slide.
        """
        self._session = secrets.token_hex(4)
        self._seen = 0
        self._stride = -(-pictures // SLIDE_TILES) if self._by == "slide" else 1

    def wants(self) -> bool:
        """Whether the picture that comes next is to be logged; to be asked once of each.

        Of a live session one in `LIVE_INTERVAL` is, of a slide `SLIDE_TILES` at most, of files each.
        """
        self._seen += 1
        if self._failed:
            return False
        if self._by != "live":
            return (self._seen - 1) % self._stride == 0
        now = time.monotonic()
        if now - self._last < LIVE_INTERVAL:
            return False
        self._last = now
        return True

    def add(
        self, picture: Mapping[str, float | None], logits: NDArray[Any], distance: float | None = None
    ) -> None:
        """One line.

        Args:
            picture: `picture_scores` of it.
            logits: (C,), finite.
            distance: its features' (`Prediction.distance`), where the guard compares them.

        Raises:
            TargetError: it cannot be written, and nobody is to be told otherwise.
        """
        scores = {**picture, **answer_scores(logits[None], self._temperature)[0], **unlikeness(distance)}
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": now, "by": self._by, "session": self._session, "artefact": self._artefact}
        try:
            self._write(json.dumps({**line, "scores": {name: _short(each) for name, each in scores.items()}}))
        except TargetError as error:
            if self.on_failure is None:
                raise
            self._failed = True
            self.on_failure(f"no more scores are logged: {error}")


@contextmanager
def drift_log(
    path: str | os.PathLike[str], artefact: str | os.PathLike[str], manifest: Manifest | None, by: str
) -> Iterator[DriftLog]:
    """A log to add to: a new file, or one that has lines of the same artefact already.

    Lines are written whole, one by one, so several commands may add to one file at once, and a kill
    loses no more than the line that it interrupts.

    Args:
        path: the file.
        artefact: the artefact whose answers it takes.
        manifest: what the artefact says of itself. Probabilities are at its guard's temperature, as those of
            the calibration are, whether the guard is applied or not.
        by: the command, one of `COMMANDS`.

    Raises:
        InputError: the file is no log, or one of another artefact, or of another calibration of this one.
        TargetError: it cannot be written.
        ArtefactError: the artefact cannot be read.
    """
    origin = Origin.of(artefact)
    calibrated = None if origin.calibrated is None else origin.calibrated.to_dict()
    head = json.dumps({"msmamba_drift": _FORMAT, "artefact": origin.artefact, "calibrated": calibrated})
    temperature = float(manifest.guard["temperature"]) if manifest and manifest.guard else 1.0
    with appended_lines(path, head, lambda line: _check_same(path, line, origin)) as write:
        yield DriftLog(write, origin, by, temperature)


def _check_same(path: str | os.PathLike[str], line: bytes, origin: Origin) -> None:
    found = _origin(path, line)
    if found != origin:
        what = "another artefact" if found.artefact != origin.artefact else "another calibration"
        raise InputError(f"'{path}' holds scores of {what}: give another file to --drift")


def _origin(path: str | os.PathLike[str], line: bytes) -> Origin:
    try:
        values = parsed(line)
        problems = "; ".join(_HEAD.problems(values))
    except ValueError as error:
        problems = str(error)
    if problems:
        raise InputError(f"'{path}' is no log of --drift: {problems}: give another file")
    said = values["calibrated"]
    return Origin(values["artefact"], None if said is None else CalibratedScores.from_dict(said))


@dataclass(frozen=True)
class Logged:
    """What a log holds.

    Attributes:
        origin: the network that gave them.
        scores: by name, in the order of the lines; NaN where a picture has none.
        by: the command of each line, as a place in `COMMANDS`.
        session: the slide or session of each line, counted from 0.
        times: the earliest and the latest at which lines say they were written; empty where there is none.
        unread: lines that are not whole, or of another artefact.
    """

    origin: Origin
    scores: Mapping[str, NDArray[np.float64]]
    by: NDArray[np.int64]
    session: NDArray[np.int64]
    times: tuple[str, ...]
    unread: int

    @property
    def pictures(self) -> int:
        """How many there are."""
        return len(self.by)


def read_drift(path: str | os.PathLike[str]) -> Logged:
    """Reads a log; lines that a kill cut are counted and passed over.

    Raises:
        InputError: it cannot be read, or is no log.
    """
    rows = array("d")  # numbers alone, not objects: a log may have a million lines
    by: list[int] = []
    sessions: list[int] = []
    times: list[str] = []
    unread = 0
    known: dict[str, int] = {}
    try:
        with open_file(path) as file:
            lines = lines_of(file)
            head = next(lines, b"")
            origin = _origin(path, head)
            for line in lines:
                if line in (head, b"\n"):  # two commands began the file at once, or one was cut
                    continue
                try:
                    values = parsed(line)
                    whole_line = not _LINE.problems(values)
                except ValueError:
                    whole_line = False
                if not whole_line or not origin.artefact.startswith(values["artefact"]):
                    unread += 1
                    continue
                scores = values["scores"]
                rows.extend(np.nan if scores.get(name) is None else scores[name] for name in SCORES)
                by.append(COMMANDS.index(values["by"]))
                sessions.append(known.setdefault(values["session"], len(known)))
                times = [min([*times, values["time"]]), max([*times, values["time"]])]
    except OSError as error:
        raise InputError(f"'{path}': cannot read the log: {reason_of(error)}") from error
    table = np.array(rows, np.float64).reshape(-1, len(SCORES))
    return Logged(
        origin,
        {name: table[:, place] for place, name in enumerate(SCORES)},
        np.array(by, np.int64),
        np.array(sessions, np.int64),
        tuple(times),
        unread,
    )


def calibrated_scores(bundle: Bundle) -> CalibratedScores | None:
    """The scores of the images that a bundle was calibrated on; None where it has none.

    Raises:
        ArtefactError: the file that holds them was changed, or is none.
    """
    return bundle.parsed(SCORES_NAME, CalibratedScores.from_dict, "calibrate the bundle again")


def picture_scores(pixels: NDArray[np.uint8], quality: Quality | None = None) -> dict[str, float | None]:
    """What is kept of a picture.

    Args:
        pixels: (H, W, 3) uint8, RGB; not changed.
        quality: its quality, where that is known already.
    """
    quality = quality or quality_of(pixels)
    background = np.array(quality.background)
    shares: dict[str, float | None] = {}
    for part, (red, green, blue) in (
        ("background", background.tolist()),
        ("stain", _absorbed(pixels, 255 * background).tolist()),
    ):
        total = red + green + blue
        shares[f"{part}_red"] = red / total if total else None
        shares[f"{part}_blue"] = blue / total if total else None
    return {**{name: getattr(quality, name) for name in _OF_QUALITY}, **shares}


def _absorbed(pixels: NDArray[np.uint8], background: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,): the optical density by channel of what is darker than the background; 0 where little is."""
    step = max(1, int(np.sqrt(pixels.shape[0] * pixels.shape[1]) / _LINES))
    sample = pixels[::step, ::step].reshape(-1, 3)
    density = np.maximum(np.log1p(background) - np.log1p(sample.astype(np.float64)), 0)
    stained = density.sum(axis=1) > _STAINED
    return density[stained].sum(axis=0) if stained.mean() > _LEAST_STAINED else np.zeros(3)


def answer_scores(logits: NDArray[Any], temperature: float) -> list[dict[str, float]]:
    """What is kept of answers, (B, C) logits."""
    rows = np.asarray(logits, np.float64)
    largest = rows.max(axis=1, keepdims=True)
    values = (
        np.exp(log_softmax(rows / temperature)).max(axis=1),
        certainty(rows),
        np.log(np.exp(rows - largest).sum(axis=1)) + largest[:, 0],
    )
    return [dict(zip(ANSWER_SCORES, map(float, row), strict=True)) for row in zip(*values, strict=True)]


def unlikeness(distance: float | None) -> dict[str, float]:
    """What is kept of a distance of features; nothing where there is none."""
    return {} if distance is None else {UNLIKENESS: math.log(max(distance, _LEAST_DISTANCE))}


def _bounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    if len(values) > MOST_VALUES:
        values = np.quantile(values, (np.arange(MOST_VALUES) + 0.5) / MOST_VALUES, method="inverted_cdf")
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values.tolist())


def _short(value: float | None) -> float | None:
    """Five digits; what is not finite, the certainty of a single class say, is none."""
    return float(f"{value:.{_DIGITS}g}") if value is not None and np.isfinite(value) else None
