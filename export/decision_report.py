"""A decision as tables for a terminal and as one page that a clinician and an engineer both can read."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import as_utf8, write_atomically
from ..model.plots import FAINT, INK, TRAIN_COLOUR, VAL_COLOUR
from ..model.samples import Source
from ..model.uncertainty import Interval
from .decision import Change, Criterion, Decision, Proportion
from .page import data_url, page_from_template, thumbnail

if TYPE_CHECKING:
    from rich.table import Table

    from .verify import Parity

FLIPS_SHOWN = 10
"""Flipped images named on a terminal; ``parity.json`` has all."""
PICTURES_SHOWN = 240
"""Flipped images pictured on the page, so that it stays some megabytes; ``parity.json`` has all."""
THUMBNAIL = 144
"""Side of a picture on the page, pixels."""

_TEMPLATE = Path(__file__).with_name("decision.html.jinja")
_TEXT_WIDTH = 118


@dataclass(frozen=True)
class FigureRow:
    """One figure of both models as text."""

    name: str
    reference: str
    artefact: str
    change: str
    interval: str
    allowed: str = ""
    verdict: str = ""
    """``met``, ``MISSED``, ``not defined``, or empty where it is not judged."""


def figure_rows(decision: Decision) -> list[FigureRow]:
    """What the decision rests on, accuracy first."""
    judged = {criterion.name: criterion for criterion in decision.criteria}
    accuracy, share = decision.accuracy, decision.flip_share.interval
    flips = len(decision.flips)
    return [
        FigureRow(
            "accuracy",
            f"{100 * accuracy.reference:.2f} %",
            f"{100 * accuracy.artefact:.2f} %",
            f"{_signed(100 * accuracy.change, 2)} points",
            _signed_interval(accuracy.change_interval, 2, scale=100),
            *_verdict(judged.get("accuracy drop")),
        ),
        FigureRow("AUC", "-", "-", "-", "one class only", *_verdict(judged.get("AUC drop")))
        if decision.auc is None
        else FigureRow("AUC", *_figures(decision.auc), *_verdict(judged.get("AUC drop"))),
        FigureRow(
            "flips",
            "",
            "",
            f"{flips} ({100 * flips / decision.images:.2f} %)",
            f"{100 * share.low:.2f} to {100 * share.high:.2f} %",
            *_verdict(judged.get("flips")),
        ),
        FigureRow(
            "lost, gained",
            "",
            "",
            f"{decision.lost}, {decision.gained}",
            f"McNemar p = {decision.mcnemar_p:.3g}",
        ),
        FigureRow("calibration error", *_figures(decision.calibration_error)),
    ]


def decision_text(decision: Decision) -> str:
    """Tables for a terminal, lines ended."""
    from rich.console import Console

    file = io.StringIO()
    console = Console(file=file, width=_TEXT_WIDTH, color_system=None, highlight=False, markup=False)
    console.print(decision.sentence, soft_wrap=True)
    for table in _tables(decision):
        console.print()
        console.print(table)
    if decision.notes:
        console.print()
    for note in decision.notes:
        console.print(f"note: {note}", soft_wrap=True)
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def write_page(path: str | Path, parity: Parity, sources: Iterable[Source]) -> None:
    """Writes the page: verdict, figures, every flipped image, confusion, calibration, tensor errors, method.

    Args:
        path: the HTML file; it appears whole or not at all.
        parity: has a decision.
        sources: of the images that were compared; those that flipped are read again.

    Raises:
        ImageError: a flipped image cannot be read any more.
        TargetError: the file cannot be written.
    """
    decision = parity.decision
    assert decision is not None
    shown = {flip.image: flip for flip in decision.flips[:PICTURES_SHOWN]}
    pictures = {str(each): (thumbnail(each, THUMBNAIL), each.name) for each in sources if str(each) in shown}
    pictured = [(flip, *pictures[image]) for image, flip in shown.items()]
    page = page_from_template(
        _TEMPLATE,
        parity=parity,
        decision=decision,
        rows=figure_rows(decision),
        pictured=pictured,
        reliability=data_url(_reliability_svg(decision), "image/svg+xml"),
        interval_text=_proportion_text,
    )
    write_atomically(path, as_utf8(page))


def _verdict(criterion: Criterion | None) -> tuple[str, str]:
    if criterion is None:
        return "", ""
    allowed = f"{criterion.allowed:g} {criterion.unit}".strip()
    if criterion.found is None:
        return allowed, "not defined"
    return allowed, "met" if criterion.met else "MISSED"


def _figures(change: Change) -> tuple[str, str, str, str]:
    return (
        f"{change.reference:.4f}",
        f"{change.artefact:.4f}",
        _signed(change.change, 4),
        _signed_interval(change.change_interval, 4),
    )


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # + 0.0: never a negative zero


def _signed_interval(interval: Interval, digits: int, scale: float = 1) -> str:
    return f"{_signed(scale * interval.low, digits)} to {_signed(scale * interval.high, digits)}"


def _tables(decision: Decision) -> Iterator[Table]:
    figures = _table("", "reference", "artefact", "change", f"{100 * decision.level:g} % interval")
    if decision.criteria:
        figures.add_column("allowed")
        figures.add_column("")
    for row in figure_rows(decision):
        cells = (row.name, row.reference, row.artefact, row.change, row.interval, row.allowed, row.verdict)
        figures.add_row(*cells[: len(figures.columns)])
    yield figures
    classes = _table("class", "images", "sensitivity", "specificity", "flips", "lost", "gained")
    for each in decision.classes:
        classes.add_row(
            each.label,
            str(each.images),
            f"{_share(each.reference_sensitivity)} -> {_share(each.artefact_sensitivity)}",
            f"{_share(each.reference_specificity)} -> {_share(each.artefact_specificity)}",
            *map(str, (each.flips, each.lost, each.gained)),
        )
    yield classes
    if not decision.flips:
        return
    flips = _table("flipped image", "truth", "reference", "artefact", "outcome")
    for flip in decision.flips[:FLIPS_SHOWN]:
        flips.add_row(
            flip.image,
            flip.truth,
            f"{flip.reference} {flip.reference_probability:.2f}",
            f"{flip.artefact} {flip.artefact_probability:.2f}",
            flip.outcome,
        )
    if len(decision.flips) > FLIPS_SHOWN:
        flips.add_row(f"… {len(decision.flips) - FLIPS_SHOWN} more")
    yield flips


def _table(first: str, *others: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for name in (first, *others):
        table.add_column(name, overflow="fold")
    return table


def _share(share: Proportion) -> str:
    return "-" if share.value is None else f"{100 * share.value:.1f} %"


def _proportion_text(share: Proportion) -> str:
    """A share with its interval, per cent."""
    if share.value is None:
        return "-"
    return f"{100 * share.value:.1f} % ({100 * share.interval.low:.1f} to {100 * share.interval.high:.1f})"


def _reliability_svg(decision: Decision) -> bytes:
    """Accuracy against confidence by bins, both models, above the number of images in each bin."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes, counts = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, zorder=0)
    axes.text(0.03, 0.09, "as often right as sure", color="#8a8a8a", fontsize=8, rotation=33)
    reference, artefact = decision.reference_reliability, decision.artefact_reliability
    width = reference.edges[1] - reference.edges[0]
    for each, colour, marker, name, shift in (
        (reference, VAL_COLOUR, "o", "reference", -0.2),
        (artefact, TRAIN_COLOUR, "s", "artefact", 0.2),
    ):
        points = [
            (confidence, accuracy, images)
            for confidence, accuracy, images in zip(each.confidence, each.accuracy, each.images, strict=True)
            if confidence is not None and accuracy is not None
        ]
        axes.plot(
            [point[0] for point in points],
            [point[1] for point in points],
            color=colour,
            marker=marker,
            linewidth=1,
            alpha=0.85,
            label=f"{name}: calibration error {each.error:.3f}",
        )
        counts.bar(
            [edge + width * (0.5 + shift) for edge in each.edges[:-1]],
            each.images,
            width=0.4 * width,
            color=colour,
        )
    axes.set_ylabel("accuracy of the bin")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    axes.set_ylim(-0.03, 1.03)
    counts.set_ylabel("images")
    counts.set_xlabel("confidence: probability of the label given")
    counts.set_xlim(0, 1.02)
    if max(reference.images) > 20:
        counts.set_yscale("symlog", linthresh=1)
        counts.yaxis.set_major_formatter("{x:g}")
    for each_axes in (axes, counts):
        for side in ("top", "right"):
            each_axes.spines[side].set_visible(False)
        each_axes.tick_params(colors=INK)
    buffer = io.BytesIO()
    # Without a date the same decision gives the same page.
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
