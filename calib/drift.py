"""Has the microscope changed: a log's scores beside those of the images that an artefact was calibrated on.

Each score is compared by the two-sample test of Kolmogorov and Smirnov. Its figure, D, is the largest
difference of the two shares of pictures below any value: 0 where both are distributed alike, 1 where they do
not overlap. Three things are asked for before a score is called another one: that D is at least `LEAST_D`,
since with enough pictures any two days differ; that values moved by at least `LEAST_SHIFT` on average, since
beside a steady lamp its least flicker has a D of 1; and that it is no chance, at `LEVEL` over all scores
together (Holm, 1979). Features count as changed only where they are less like the calibration's than before.

Neighbouring frames of a session, and tiles of a slide, show nearly the same: a thousand of them may prove no
more than ten. So they count as many independent ones as they are worth, by the autocorrelation of their ranks
within the slide or session, and by how much slides or sessions differ from each other (`_worth`). Pictures of
`infer` count one each, as those of the calibration do.

Dims: N pictures of the log, M images of the calibration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..runtime.artefact import open_bundle
from ..runtime.drift import (
    COMMANDS,
    MOST_VALUES,
    PICTURE_SCORES,
    SCORES,
    UNLIKENESS,
    CalibratedScores,
    Logged,
    Origin,
    read_drift,
)
from ..text import shown

Floats = npt.NDArray[np.float64]

LEAST_D = 0.15
"""The least D that counts: what a shift of a normal score by 0.38 of its standard deviations makes."""
LEAST_SHIFT = {
    **dict.fromkeys(("focus", "coarse_focus", "brightest", "brightness", "black", "white"), 0.01),
    **dict.fromkeys(("emptiness", "probability"), 0.01),
    **dict.fromkeys(("background_red", "background_blue", "stain_red", "stain_blue"), 0.005),
    **dict.fromkeys(("certainty", "energy", UNLIKENESS), 0.05),
}
"""The least mean difference of two distributions' quantiles that counts, in the score's unit."""
LEVEL = 0.01
"""How often all scores together are called changed where nothing has."""
REST = 1 / 6
"""A slide or session whose scores, in their median, deviate by less than this share of the calibration's
shows one field alone: camera noise of two levels over a field of blood makes a tenth of what fields do."""
DETECTED_D = 0.35
"""Where the pictures are too few to show a change as large as this, it is not said that there is none."""

_MOST = 1000
"""Values of a sample that are counted: of more, a D of `LEAST_D` is no chance either."""
_ROUNDING = 1e-9

_FOUND = (1, 7, 9, 11, 15, 20, 30, 50, 60)
_WORTH = (1, 1, 3, 5, 8, 12, 22, 45, 60)
"""Independent values that `independent` finds in short series, and what such were worth of which all is
known: autoregressive ones, and fields that are looked at for a while each. A series that is no longer than
what is slow in it has its own mean, and seems to wander about that."""

# How a score's median moved, in words: down, up.
_WORDS = {
    "focus": ("less sharp", "sharper, or with more noise"),  # which counts as detail
    "coarse_focus": ("less sharp", "sharper"),
    "brightest": ("a darker background", "a brighter background"),
    "brightness": ("darker", "brighter"),
    "black": ("less black", "more black"),
    "white": ("less overexposed", "more overexposed"),
    "emptiness": ("fuller", "emptier"),
    "background_red": ("a less red background", "a redder background"),
    "background_blue": ("a less blue background", "a bluer background"),
    "stain_red": ("a redder stain", "a less red stain"),  # of what it absorbs
    "stain_blue": ("a bluer stain", "a less blue stain"),
    "probability": ("less certain answers", "more certain answers"),
    "certainty": ("less certain answers", "more certain answers"),
    "energy": ("weaker answers", "stronger answers"),
    UNLIKENESS: ("features more like the calibration's", "features less like the calibration's"),
}


@dataclass(frozen=True)
class ScoreDrift:
    """One score of the log beside that of the calibration."""

    name: str
    pictures: int
    """Those that have it."""
    worth: float
    """How many independent ones they are worth."""
    median: float
    calibrated_median: float
    distance: float
    """D of Kolmogorov and Smirnov."""
    shift: float
    """The mean difference of the two distributions' quantiles (Wasserstein's distance)."""
    p: float
    """The chance of so large a D if both were distributed alike, for this score by itself."""
    changed: bool
    """Whether D and the shift are large, and no chance over all scores together."""

    @property
    def words(self) -> str:
        """Which way it went."""
        down, up = _WORDS[self.name]
        if self.median == self.calibrated_median:
            return f"another spread of {self.name}"
        return up if self.median > self.calibrated_median else down


@dataclass(frozen=True)
class Drift:
    """What a log says of the microscope."""

    log: str
    pictures: int
    calibrated: int
    """Images that the artefact was calibrated on."""
    times: tuple[str, ...]
    """The earliest and the latest at which a line was written."""
    scores: tuple[ScoreDrift, ...]
    notes: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """Whether any score is another one."""
        return any(score.changed for score in self.scores)

    @property
    def verdict(self) -> str:
        """``changed``, ``unchanged``, or ``too few`` where the pictures could not show it."""
        if self.changed:
            return "changed"
        weakest = min(score.worth for score in self.scores)
        detected = chance(DETECTED_D, weakest, self.calibrated) * len(self.scores) <= LEVEL
        return "unchanged" if detected else "too few"

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        pictures = [score for score in self.scores if score.changed and score.name in PICTURE_SCORES]
        answers = [score for score in self.scores if score.changed and score.name not in PICTURE_SCORES]
        if pictures:
            found = _listed(pictures)
            also = f"; and {_listed(answers)}" if answers else "; the answers show none"
            return (
                "the microscope has changed, or what is shown to it: the pictures are others than at the "
                f"calibration ({found}){also}: look at lamp, white balance, focus and stain, or calibrate "
                "again"
            )
        if answers:
            return (
                "the pictures show no change, but the network answers otherwise "
                f"({_listed(answers)}): another kind of specimen, or another mix of classes"
            )
        if self.verdict == "unchanged":
            return (
                "no change of the microscope shows: by any score a D of "
                f"{DETECTED_D:g} from the calibration's pictures and answers would have"
            )
        return (
            "no change to be seen, but these pictures are too few, or too alike, to show one: they are "
            f"worth {min(score.worth for score in self.scores):.0f} independent ones"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            **asdict(self),
            "level": LEVEL,
            "least_distance": LEAST_D,
        }

    def to_text(self) -> str:
        """A table of the scores, and the verdict."""
        width = max(len(score.name) for score in self.scores)
        since = f" ({self.times[0]} to {self.times[-1]})" if self.times else ""
        lines = [
            f"{self.pictures} pictures of '{shown(self.log)}'{shown(since)} beside {self.calibrated} of the "
            "calibration",
            "",
            f"{'':{width}}  calibrated       now      D  worth        p",
        ]
        for score in self.scores:
            mark = f"  {score.words}" if score.changed else ""
            lines.append(
                f"{score.name:{width}}  {score.calibrated_median:10.4g}{score.median:10.4g}  "
                f"{score.distance:5.2f}{score.worth:7.0f}{score.p:9.2g}{mark}"
            )
        return "\n".join([*lines, "", f"{self.verdict}: {self.sentence}", ""])


def drift_of(log: str | Path, against: str | Path | None = None) -> Drift:
    """Compares a log with the images that its artefact was calibrated on.

    Args:
        log: what `msmamba.runtime.drift.drift_log` wrote.
        against: a bundle with other calibration scores than the log carries, of the same network or another
            one (one of another precision, say).

    Raises:
        InputError: the log cannot be read, or holds nothing to compare.
        ArtefactError: the bundle cannot be read.
    """
    logged = read_drift(log)
    origin = logged.origin if against is None else Origin.of(open_bundle(against).folder)
    if origin.calibrated is None:
        told = f"'{log}' was logged with an artefact that" if against is None else f"'{against}'"
        raise InputError(
            f"{told} has no scores of calibration images, so there is nothing to compare with: 'mmdeploy "
            "calibrate' the bundle, and give it with --against"
        )
    if not logged.pictures:
        raise InputError(f"'{log}' holds no line of a picture yet: let --drift write some first")
    logged, repeated = without_repeats(logged)
    scores = compared(logged, origin.calibrated)
    if not scores:
        raise InputError(f"'{log}' and the calibration have no score in common, so nothing can be compared")
    notes = []
    if logged.unread:
        notes.append(f"lines passed over, as they are not whole or of another artefact: {logged.unread:,}")
    if repeated:
        notes.append(f"lines of pictures that another run had logged already, which count once: {repeated:,}")
    if origin.artefact != logged.origin.artefact:
        notes.append(
            "the log is of another network than --against, whose answers may differ without any change"
        )
    kept = logged.by != COMMANDS.index("infer")
    if kept.all() and len(set(logged.session.tolist())) == 1:
        notes.append("all lines are of one slide or session: a change may be this specimen's alone")
    return Drift(
        log=str(log),
        pictures=logged.pictures,
        calibrated=origin.calibrated.images,
        times=logged.times,
        scores=scores,
        notes=tuple(notes),
    )


def without_repeats(logged: Logged) -> tuple[Logged, int]:
    """The log with each picture as often as that run has it which has it most often; and how many lines go.

    A folder that is classified again is logged again. Its pictures are known by their scores, which are the
    same to the last of five digits; those that are black or white all over have none to be known by.
    """
    rows = np.ascontiguousarray(np.column_stack([logged.scores[name] for name in PICTURE_SCORES]))
    known = np.isfinite(logged.scores["focus"])
    for name in ("black", "white"):
        known &= logged.scores[name] < 1
    (lines,) = known.nonzero()
    _, pictures = np.unique(rows[lines].view(f"V{rows.itemsize * rows.shape[1]}")[:, 0], return_inverse=True)
    times = np.zeros(len(lines), np.int64)  # that the line's run had the picture before
    for places in parted(pictures * (logged.session.max(initial=0) + 1) + logged.session[lines]).values():
        times[places] = np.arange(len(places))
    _, first = np.unique(np.column_stack([pictures, times]), axis=0, return_index=True)
    kept = ~known
    kept[lines[first]] = True
    scores = {name: values[kept] for name, values in logged.scores.items()}
    left = replace(logged, scores=scores, by=logged.by[kept], session=logged.session[kept])
    return left, int((~kept).sum())


def _listed(scores: Sequence[ScoreDrift]) -> str:
    """Which way scores went, the most different first."""
    ordered = sorted(scores, key=lambda score: -score.distance)
    return ", ".join(dict.fromkeys(score.words for score in ordered))


def compared(logged: Logged, calibrated: CalibratedScores) -> tuple[ScoreDrift, ...]:
    """Each score that a log and the calibration have, those that changed marked."""
    found: list[ScoreDrift] = []
    resting = _resting(logged, calibrated)
    for name in SCORES:
        known = calibrated.scores.get(name, ())
        has = np.isfinite(logged.scores[name])
        values = logged.scores[name][has]
        if not known or not len(values):
            continue
        inside = values.max() >= min(known) and values.min() <= max(known)
        worth = _worth(values, logged.by[has], logged.session[has], resting if inside else frozenset())
        distance = ks_distance(values, np.array(known))
        found.append(
            ScoreDrift(
                name=name,
                pictures=len(values),
                worth=worth,
                median=float(np.median(values)),
                calibrated_median=float(np.median(known)),
                distance=distance,
                shift=quantile_shift(values, np.array(known)),
                p=chance(distance, worth, calibrated.images),
                changed=False,
            )
        )
    significant = holm({score.name: score.p for score in found}, LEVEL)
    return tuple(
        replace(
            score,
            changed=score.name in significant
            and score.distance >= LEAST_D
            and score.shift >= LEAST_SHIFT[score.name]
            # Images of the calibration were compared with nine tenths of it: any others are a little nearer.
            and (score.name != UNLIKENESS or score.median > score.calibrated_median),
        )
        for score in found
    )


def quantile_shift(one: Floats, other: Floats) -> float:
    """The mean absolute difference of two samples' quantiles."""
    places = (np.arange(MOST_VALUES) + 0.5) / MOST_VALUES
    return float(np.abs(np.quantile(one, places) - np.quantile(other, places)).mean())


def ks_distance(one: Floats, other: Floats) -> float:
    """The largest difference between the shares of two samples at or below any value."""
    places = np.concatenate([one, other])
    shares = (np.searchsorted(np.sort(each), places, side="right") / len(each) for each in (one, other))
    return float(np.abs(np.subtract(*shares)).max())


def holm(chances: Mapping[str, float], level: float) -> set[str]:
    """The names whose chance is so small that any is among them by chance at ``level`` only (Holm, 1979)."""
    passed: set[str] = set()
    for rank, name in enumerate(sorted(chances, key=chances.__getitem__)):
        if chances[name] * (len(chances) - rank) > level:
            break
        passed.add(name)
    return passed


def independent(values: Floats) -> float:
    """How many independent values a series of (N,) is worth: N over its autocorrelation time, 1 to N.

    The time is one plus twice the sum of the autocorrelations of the ranks up to that lag at which it is
    largest. That is cautious, and has to be: in a short session slow changes hardly show, and a window such
    as Sokal's finds twice as many independent values as there are. Where few are found they are fewer still.
    """
    count = len(values)
    if (values == values[0]).all():
        return float(count)  # nothing varies by which to tell
    ranks = _ranks(values)
    centred = ranks - ranks.mean()
    size = 1 << (2 * count - 1).bit_length()
    spectrum = np.abs(np.fft.rfft(centred, size)) ** 2
    correlations = np.fft.irfft(spectrum, size)[:count]
    times = 2 * np.cumsum(correlations / correlations[0]) - 1
    time = float(times.max())
    if time <= 1:
        return float(count)
    found = max(count / time, 1.0)
    return float(np.interp(found, _FOUND, _WORTH)) if found < _FOUND[-1] else found


def _resting(logged: Logged, calibrated: CalibratedScores) -> frozenset[int]:
    """The slides or sessions that show one field alone: the noise of their pictures is all that differs."""
    deviations = {name: float(np.std(known)) for name, known in calibrated.scores.items()}
    found = set()
    places = parted(logged.session)
    for session in np.unique(logged.session[logged.by != COMMANDS.index("infer")]).tolist():
        of_it = places[session]
        shares = [
            float(np.nanstd(logged.scores[name][of_it])) / deviation
            for name, deviation in deviations.items()
            if deviation > 0 and name in logged.scores and np.isfinite(logged.scores[name][of_it]).any()
        ]
        if shares and float(np.median(shares)) < REST:
            found.add(session)
    return frozenset(found)


def _worth(
    values: Floats,
    by: npt.NDArray[np.int64],
    sessions: npt.NDArray[np.int64],
    resting: frozenset[int] = frozenset(),
) -> float:
    """How many independent pictures these are worth: of `infer` one each, else by slide or session.

    One that rests at a field is worth one: the noise of its pictures is independent, but not what they show.
    Where there are several slides or sessions it is no more than N over the design effect of drawing them
    whole, 1 + (n - 1) r of n pictures in each with a correlation r of the ranks within (Kish, 1965).
    """
    single = by == COMMANDS.index("infer")
    values, sessions = values[~single], sessions[~single]
    parts = {session: values[places] for session, places in parted(sessions).items()}
    worth = sum(1.0 if session in resting else independent(part) for session, part in parts.items())
    if len(parts) > 1:
        worth = min(worth, len(values) / design_effect(_ranks(values), sessions))
    return float(single.sum()) + worth


def parted(groups: npt.NDArray[np.int64]) -> dict[int, npt.NDArray[np.intp]]:
    """The places of each group in (N,), in their order; the groups in theirs.

    They are sorted once: looked for one after the other, a thousand slides would be read a thousand times.
    """
    order = np.argsort(groups, kind="stable")
    distinct, starts = np.unique(groups[order], return_index=True)
    return dict(zip(distinct.tolist(), np.split(order, starts[1:]), strict=False))


def design_effect(ranks: Floats, groups: npt.NDArray[np.int64]) -> float:
    """By how much the variance of a mean grows where whole groups are drawn, at least 1.

    Args:
        ranks: (N,) values.
        groups: (N,) the group of each; at least two, and more values than groups.
    """
    _, places, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    count, parts = len(ranks), len(sizes)
    if count <= parts:
        return 1.0
    means = np.bincount(places, ranks) / sizes
    between = float(sizes @ (means - ranks.mean()) ** 2) / (parts - 1)
    within = float(((ranks - means[places]) ** 2).sum()) / (count - parts)
    typical = (count - float(sizes @ sizes) / count) / (parts - 1)
    spread = between + (typical - 1) * within
    correlation = (between - within) / spread if spread else 0.0
    return max(1.0, 1 + (float(sizes @ sizes) / count - 1) * correlation)


def _ranks(values: Floats) -> Floats:
    """Places in order, from 0; those of equal values are their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Floats = (ends - (counts + 1) / 2)[inverse]
    return ranks


def chance(distance: float, worth: float, calibrated: int) -> float:
    """The chance of a D at least as large by chance alone: the exact law of two samples (Hodges, 1958).

    All orders in which two samples can mix are as likely where both are distributed alike. An order is a path
    over a grid, a step this way or that for each value, and D is how far the path strays from the diagonal:
    those that stray less are counted.

    Args:
        distance: D.
        worth: how many independent pictures there are; what is over whole ones is left out.
        calibrated: how many there were at the calibration.
    """
    fewer, more = sorted(min(max(int(number), 1), _MOST) for number in (worth, calibrated))
    shares = np.arange(more + 1) / more

    def near(taken: int) -> npt.NDArray[np.bool_]:
        """Where a path may be after so many steps along the shorter side."""
        return np.abs(taken / fewer - shares) < distance - _ROUNDING

    paths = near(0).astype(np.float64)  # to each place, of all that there are to the end of this line
    for taken in range(1, fewer + 1):
        inside = near(taken)
        paths = np.where(inside, np.cumsum(np.where(inside, paths, 0.0)), 0.0) * (taken / (taken + more))
    return max(0.0, 1.0 - float(paths[-1]))
