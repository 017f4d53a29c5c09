"""A guard as one page: how sure the model is and how often right, what it answers, and what is withheld.

Dims: N images, C classes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..data.samples import Source
from ..files import as_utf8, write_atomically
from ..measures.metrics import log_softmax
from ..measures.selective import certainty
from ..measures.uncertainty import Reliability, reliability
from ..pages.figures import FAINT, INK, TRAIN_COLOUR, VAL_COLOUR
from ..pages.page import data_url, page_from_template, thumbnail
from ..runtime.guard import REASONS, UNCERTAIN, Guard, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURES_SHOWN = 60
"""Withheld images pictured for each reason, so that the page stays some megabytes."""
THUMBNAIL = 144
"""Side of a picture on the page, pixels."""
_TEMPLATE = Path(__file__).with_name("guard.html.jinja")


@dataclass(frozen=True)
class Evidence:
    """The images that a guard was fitted on, and what it says of them."""

    guard: Guard
    labels: tuple[str, ...]
    sources: Sequence[Source]
    logits: npt.NDArray[Any]
    """(N, C)."""
    truth: npt.NDArray[np.integer[Any]]
    """(N,), class indices."""
    verdicts: Sequence[Verdict]
    white_level: int
    groups: int | None = None
    """How many patients, slides or the like the images are of; None where nothing is known of such."""

    @property
    def given(self) -> npt.NDArray[np.intp]:
        """(N,): the likeliest class of each image."""
        return self.logits.argmax(axis=1)

    @property
    def decided(self) -> npt.NDArray[np.bool_]:
        """(N,): whether nothing withholds it."""
        return np.array([not each.reasons for each in self.verdicts])

    def probabilities(self, temperature: float) -> npt.NDArray[np.float64]:
        """(N, C), at a temperature."""
        return np.exp(log_softmax(np.asarray(self.logits, np.float64) / temperature))


@dataclass(frozen=True)
class ClassRow:
    """One class on the page, by the class that is given."""

    label: str
    images: int
    answered: int
    wrong: int
    """Wrong answers among those."""
    errors: str
    """Calibration error before and after, in words."""


@dataclass(frozen=True)
class _Picture:
    url: str
    name: str
    given: str
    truth: str
    probability: float
    candidates: str
    reasons: str

    @property
    def right(self) -> bool:
        return self.given == self.truth


def write_page(
    path: str | Path, evidence: Evidence, errors_by_class: Mapping[str, str], **words: str
) -> None:
    """Writes the page.

    Args:
        path: the HTML file; it appears whole or not at all.
        evidence: the images; those that are withheld are read again.
        errors_by_class: calibration error before and after in words, by the class that was given.
        words: ``bundle``, ``data``, ``split``, and ``errors``, the calibration error of all images.

    Raises:
        ImageError: a withheld image cannot be read any more.
        TargetError: the file cannot be written.
    """
    given, decided = evidence.given, evidence.decided
    rows = [
        ClassRow(
            label=label,
            images=int(chosen.sum()),
            answered=int((chosen & decided).sum()),
            wrong=int((chosen & decided & (given != evidence.truth)).sum()),
            errors=errors_by_class[label],
        )
        for index, label in enumerate(evidence.labels)
        if (chosen := given == index).any()
    ]
    by_reason = {
        reason: [index for index, each in enumerate(evidence.verdicts) if reason in each.reasons]
        for reason in REASONS
    }
    probabilities = evidence.probabilities(evidence.guard.temperature)
    page = page_from_template(
        _TEMPLATE,
        guard=evidence.guard,
        groups=evidence.groups,
        rows=rows,
        counts={reason: len(found) for reason, found in by_reason.items() if found},
        withheld=int((~decided).sum()),
        pictures={
            reason: [_picture(evidence, probabilities, index) for index in found[:PICTURES_SHOWN]]
            for reason, found in by_reason.items()
            if found
        },
        reliability=data_url(_reliability_svg(evidence), "image/svg+xml"),
        risk=data_url(_risk_svg(evidence), "image/svg+xml"),
        **words,
    )
    write_atomically(path, as_utf8(page), through_links=True)


def _picture(evidence: Evidence, probabilities: npt.NDArray[np.float64], index: int) -> _Picture:
    source, verdict = evidence.sources[index], evidence.verdicts[index]
    given = int(evidence.logits[index].argmax())
    return _Picture(
        url=thumbnail(source, THUMBNAIL, evidence.white_level),
        name=source.name,
        given=evidence.labels[given],
        truth=evidence.labels[int(evidence.truth[index])],
        probability=float(probabilities[index, given]),
        candidates=" or ".join(evidence.labels[each] for each in verdict.candidates),
        reasons=", ".join(verdict.reasons),
    )


def _reliability_svg(evidence: Evidence) -> bytes:
    """Accuracy against confidence by bins, before and after, above the number of images in each bin."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes, counts = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, zorder=0)
    axes.text(0.03, 0.09, "as often right as sure", color="#8a8a8a", fontsize=8, rotation=33)
    for temperature, colour, marker, name, shift in (
        (1.0, TRAIN_COLOUR, "s", "before", -0.2),
        (evidence.guard.temperature, VAL_COLOUR, "o", "after", 0.2),
    ):
        found = reliability(evidence.probabilities(temperature), evidence.truth)
        _plot_bins(axes, counts, found, colour, marker, name, shift)
    axes.set_ylabel("accuracy of the bin")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    axes.set_ylim(-0.03, 1.03)
    counts.set_ylabel("images")
    counts.set_xlabel("confidence: probability of the label given")
    counts.set_xlim(0, 1.02)
    return _svg(figure, axes, counts)


def _plot_bins(
    axes: Axes, counts: Axes, found: Reliability, colour: str, marker: str, name: str, shift: float
) -> None:
    width = found.edges[1] - found.edges[0]
    points = [
        (confidence, accuracy)
        for confidence, accuracy in zip(found.confidence, found.accuracy, strict=True)
        if confidence is not None and accuracy is not None
    ]
    axes.plot(
        [confidence for confidence, _ in points],
        [accuracy for _, accuracy in points],
        color=colour,
        marker=marker,
        linewidth=1,
        alpha=0.85,
        label=f"{name}: calibration error {100 * found.error:.1f} %",
    )
    centres = [edge + width * (0.5 + shift) for edge in found.edges[:-1]]
    counts.bar(centres, found.images, width=0.4 * width, color=colour)


def _risk_svg(evidence: Evidence) -> bytes:
    """The share of wrong answers over the share of images that are answered, and where the guard stands."""
    from matplotlib.figure import Figure

    guard = evidence.guard
    passing = np.array([set(each.reasons) <= {UNCERTAIN} for each in evidence.verdicts])
    order = np.argsort(-certainty(evidence.logits)[passing], kind="stable")
    wrong = np.cumsum((evidence.given != evidence.truth)[passing][order])
    answered = np.arange(1, len(order) + 1)
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(100 * answered / guard.images, 100 * wrong / answered, color=VAL_COLOUR, linewidth=1.4)
    axes.axhline(100 * guard.max_error, color=TRAIN_COLOUR, linewidth=1, linestyle="--")
    axes.text(0.5, 100 * guard.max_error, " promised", color=TRAIN_COLOUR, fontsize=8, va="bottom")
    place = 100 * guard.answered / guard.images
    axes.plot([place], [100 * guard.errors / guard.answered], color=VAL_COLOUR, marker="o")
    axes.annotate(
        "the guard",
        (place, 100 * guard.errors / guard.answered),
        xytext=(-6, 10),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=INK,
    )
    axes.set_xlabel("answered, % of all images, the most certain first")
    axes.set_ylabel("wrong, % of the answered")
    axes.set_xlim(0, 101)
    axes.set_ylim(bottom=0)
    return _svg(figure, axes)


def _svg(figure: Any, *all_axes: Axes) -> bytes:
    for axes in all_axes:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(colors=INK)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})  # the same guard gives the same page
    return buffer.getvalue()
