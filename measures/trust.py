"""How far answers can be trusted: what certainty is worth, and what a guard's decisions came to.

- *Calibration error*: the mean distance between confidence and accuracy (`uncertainty.reliability`).
- *Area under the risk-coverage curve* (Geifman and El-Yaniv, 2017): with the images in the order of their
  certainty, the mean over all images of the share of wrong answers down to each; 0 where no answer is wrong,
  and of two models with the same errors smaller for the one that is less certain of them.
- *Coverage* and *error among answered* of the images that a guard decides.

Images of one patient resemble each other, so where groups are known whole ones are drawn for the intervals.
One group, or one image, tells nothing of others: the interval is then all that can be.

Dims: N images, C classes, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..pages.figures import INK, TRAIN_COLOUR, VAL_COLOUR, write_figure
from ..text import share_as_text
from .metrics import log_softmax
from .selective import certainty
from .uncertainty import (
    RESAMPLES,
    SEED,
    Interval,
    bias_corrected,
    calibration_error,
    proportion_interval,
    widened,
)

CURVE_POINTS = 200

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Figure:
    """A figure of the images as they are, and its 95 % interval."""

    value: float
    interval: Interval

    def to_text(self, scale: float = 100, unit: str = " %") -> str:
        """Both, in per cent by default."""
        low, high = (scale * end for end in (self.interval.low, self.interval.high))
        return f"{share_as_text(self.value, 2, scale)}{unit} ({low:.2f} to {high:.2f})"


@dataclass(frozen=True)
class Answered:
    """What a guard's decisions came to."""

    answered: int
    errors: int
    """Wrong ones among the answered."""
    coverage: Figure
    error: Figure | None
    """The share of wrong answers among those that were given; None where none was."""
    mean_candidates: float
    """Candidates an image."""
    candidates_hold: Figure
    """The share of images whose true class is among the candidates, decided or not."""


@dataclass(frozen=True)
class Trust:
    """What certainty is worth on some images."""

    images: int
    groups: int | None
    """How many patients, slides or the like, copies counted once; None where each image counts."""
    calibration_error: Figure
    risk_coverage_area: Figure
    guard: Answered | None
    """None without a guard."""
    risk_by_coverage: tuple[tuple[float, float], ...]
    """The risk-coverage curve (`risk_coverage`), at no more than `CURVE_POINTS` places."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """Lines for a terminal."""
        lines = {
            "calibration error": self.calibration_error.to_text(),
            "area under risk and coverage": self.risk_coverage_area.to_text(),
        }
        if (guard := self.guard) is not None:
            wrong = "" if guard.error is None else f", wrong {guard.errors} of them: {guard.error.to_text()}"
            lines["answered"] = f"{guard.answered} of {self.images}: {guard.coverage.to_text()}{wrong}"
            lines["candidates"] = (
                f"{guard.mean_candidates:.2f} classes an image; they hold the true one of "
                f"{guard.candidates_hold.to_text()}"
            )
        width = max(map(len, lines))
        drawn = "images"
        if self.groups is not None:
            drawn = f"{self.groups} {'group' if self.groups == 1 else 'groups'}"
        return "".join(f"{name:<{width}}  {text}\n" for name, text in lines.items()) + (
            f"{'':<{width}}  (intervals of 95 %, by {drawn})\n"
        )


def trust_of(
    logits: npt.NDArray[Any],
    truth: npt.NDArray[np.integer[Any]],
    *,
    temperature: float = 1.0,
    decided: Flags | None = None,
    candidates: Sequence[Sequence[int]] | None = None,
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Trust:
    """Measures what certainty is worth.

    Args:
        logits: (N, C), finite.
        truth: (N,), class indices.
        temperature: what logits are divided by before they become probabilities; certainty, by which
            risk is ordered, is of the logits as they are.
        decided: (N,), the images that a guard decides; None without one.
        candidates: (N,) class indices that it names, with ``decided``.
        groups: (N,), the patient or slide of each image.
        resamples: R.
        seed: decides the draws.

    Raises:
        ValueError: no image, or shapes that do not fit together.
    """
    images = len(truth)
    if not images or logits.ndim != 2 or len(logits) != images:
        raise ValueError(f"logits are {logits.shape} for {images} images; expected (N, C) with N at least 1")
    rows = np.asarray(logits, np.float64)
    right = rows.argmax(axis=1) == truth
    confidence = np.exp(log_softmax(rows / temperature)).max(axis=1)
    figures: dict[str, Callable[[Floats], float]] = {"area": _risk_coverage_area(certainty(rows), right)}
    shares: dict[str, tuple[Flags, Flags]] = {}
    if decided is not None and candidates is not None:
        everything = np.ones(images, np.bool_)
        held = np.array([label in row for label, row in zip(truth.tolist(), candidates, strict=True)])
        shares = {
            "coverage": (decided, everything),
            "error": (~right & decided, decided),
            "held": (held, everything),
        }
        figures |= {name: _share(*flags) for name, flags in shares.items() if groups is not None}
    members = None if groups is None else np.unique(np.array(groups), return_inverse=True)[1]
    count = None if members is None else int(members.max()) + 1
    values = {name: np.empty(resamples) for name in figures}
    for place, weights in enumerate(_draws(images, members, resamples, np.random.default_rng(seed))):
        for name, figure in figures.items():
            values[name][place] = figure(weights)

    def of(name: str) -> Figure:
        flags, among = shares.get(name, (right, np.ones(images, np.bool_)))
        units = int(among.sum()) if members is None else len(np.unique(members[among]))
        if name in shares and (members is None or _is_one_sided(flags, among)):
            found = int(flags.sum()) if members is None else units * bool(flags.any())
            return Figure(float(flags.sum() / among.sum()), proportion_interval(found, units))
        if name == "area" and _is_one_sided(right, among):  # in every resample, too
            return _area_of_none_or_all(units, wrong=not right.any())
        if units < 2:  # one image or patient excludes nothing of others
            return Figure(figures[name](np.ones(images)), Interval(0.0, 1.0))
        drawn = values[name][np.isfinite(values[name])]
        estimate = figures[name](np.ones(images))
        interval = bias_corrected(estimate, drawn)
        return Figure(estimate, interval if members is None else widened(interval, estimate, units))

    answered = None
    if decided is not None and candidates is not None:
        answered = Answered(
            answered=int(decided.sum()),
            errors=int((~right & decided).sum()),
            coverage=of("coverage"),
            error=of("error") if decided.any() else None,
            mean_candidates=float(np.mean([len(row) for row in candidates])),
            candidates_hold=of("held"),
        )
    coverages, risks = risk_coverage(logits, truth)
    places = np.unique(np.linspace(0, len(risks) - 1, CURVE_POINTS).round().astype(int))
    curve = tuple(zip(coverages[places].tolist(), risks[places].tolist(), strict=True))
    return Trust(
        images, count, Figure(*calibration_error(confidence, right, members)), of("area"), answered, curve
    )


def write_risk_coverage(path: Path, trust: Trust, title: str, max_error: float | None = None) -> None:
    """Draws the risk-coverage curve: the wrong ones among the answers where only the most certain are given.

    Args:
        path: the PNG file.
        trust: what was measured.
        title: what it was measured of.
        max_error: the share of wrong answers that a guard promises.

    Raises:
        TargetError: the file cannot be written.
    """
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(5.6, 4.2), layout="constrained")
    axes = picture.add_subplot()
    coverages, risks = (np.array(each) * 100 for each in zip(*trust.risk_by_coverage, strict=True))
    axes.plot(coverages, risks, color=VAL_COLOUR, linewidth=1.6, drawstyle="steps-pre")
    if max_error is not None:
        axes.axhline(100 * max_error, color=TRAIN_COLOUR, linewidth=1, linestyle="--")
        axes.text(1, 100 * max_error, "promised", color=TRAIN_COLOUR, fontsize=8, va="bottom")
    if trust.guard is not None and trust.guard.error is not None:
        coverage, error = trust.guard.coverage, trust.guard.error
        axes.errorbar(
            100 * coverage.value,
            100 * error.value,
            xerr=_whiskers(coverage),
            yerr=_whiskers(error),
            color=INK,
            marker="o",
            linewidth=1,
            label="what the guard answers",
        )
        axes.legend(frameon=False, loc="upper left")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, None)
    axes.set_xlabel("images answered, the most certain first, %")
    axes.set_ylabel("wrong among them, %")
    axes.spines[["top", "right"]].set_visible(False)
    picture.suptitle(title, parse_math=False)
    write_figure(path, picture)


def _whiskers(figure: Figure) -> list[list[float]]:
    """How far an interval reaches below and above its figure, per cent."""
    low, high = figure.interval.low, figure.interval.high
    return [[100 * max(figure.value - low, 0)], [100 * max(high - figure.value, 0)]]


def risk_coverage(logits: npt.NDArray[Any], truth: npt.NDArray[np.integer[Any]]) -> tuple[Floats, Floats]:
    """The risk-coverage curve, by distinct certainty from the largest on.

    Returns:
        The share of images that are as certain or more, and the share of these that is wrong.
    """
    rows = np.asarray(logits, np.float64)
    order, ends = _by_certainty(certainty(rows))
    answered = np.cumsum(np.ones(len(order)))[ends]
    wrong = np.cumsum((rows.argmax(axis=1) != truth)[order])[ends]
    return answered / len(order), wrong / answered


def _by_certainty(scores: Floats) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The images from the most certain on, and where those of one certainty end."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    return order, np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])


def _risk_coverage_area(scores: Floats, right: Flags) -> Callable[[Floats], float]:
    order, ends = _by_certainty(scores)
    wrong = ~right[order]

    def figure(weights: Floats) -> float:
        ordered = weights[order]
        answered = np.cumsum(ordered)[ends]
        errors = np.cumsum(ordered * wrong)[ends]
        risks = errors / np.maximum(answered, 1)
        return float(np.diff(answered, prepend=0) @ risks / answered[-1])

    return figure


def _area_of_none_or_all(units: int, *, wrong: bool) -> Figure:
    """The area where all of so many images, or patients, are right, or wrong, and what it may be on others.

    At an error rate of e, min(1, e / c) of the most certain share c of images can be wrong at most, and
    max(0, 1 - (1 - e) / c) at least; the means of these over c are e (1 - ln e) and e + (1 - e) ln(1 - e).
    """
    if wrong:
        least = proportion_interval(units, units).low
        return Figure(1.0, Interval(least + (1 - least) * math.log1p(-least), 1.0, exact=True))
    most = proportion_interval(0, units).high
    return Figure(0.0, Interval(0.0, most * (1 - math.log(most)), exact=True))


def _share(flags: Flags, among: Flags) -> Callable[[Floats], float]:
    def figure(weights: Floats) -> float:
        asked = float(weights @ among)
        return float(weights @ flags) / asked if asked else np.nan

    return figure


def _is_one_sided(flags: Flags, among: Flags) -> bool:
    """Whether a share is none or all, where resampling would show no doubt."""
    return int(flags.sum()) in (0, int(among.sum()))


def _draws(
    images: int, groups: npt.NDArray[np.intp] | None, resamples: int, generator: np.random.Generator
) -> Iterator[Floats]:
    """How often each image is in each of R resamples, (N,), by whole groups where there are some."""
    count = images if groups is None else int(groups.max()) + 1
    for _ in range(resamples):
        drawn = np.bincount(generator.integers(count, size=count), minlength=count).astype(np.float64)
        yield drawn if groups is None else drawn[groups]
