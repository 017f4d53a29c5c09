"""A decision as tables for a terminal, and its figures as text for any page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..text import share_as_text, shown, table_lines, wrapped
from .decision import Change, Criterion, Decision, Proportion
from .uncertainty import Interval

FLIPS_SHOWN = 10
"""Flipped images named on a terminal; ``parity.json`` has all."""
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
    criteria = {criterion.name: criterion for criterion in decision.criteria}
    accuracy, share = decision.accuracy, decision.flip_share.interval
    flips, decided = decision.decided_flips, decision.images - decision.undecided
    return [
        FigureRow(
            "accuracy",
            f"{share_as_text(accuracy.reference, 2)} %",
            f"{share_as_text(accuracy.artefact, 2)} %",
            f"{_signed(100 * accuracy.change, 2)} points",
            _signed_interval(accuracy.change_interval, 2, scale=100),
            *_verdict(criteria.get("accuracy drop")),
        ),
        FigureRow("AUC", "-", "-", "-", "one class only", *_verdict(criteria.get("AUC drop")))
        if decision.auc is None
        else FigureRow("AUC", *_figures(decision.auc), *_verdict(criteria.get("AUC drop"))),
        FigureRow(
            "flips",
            "",
            "",
            f"{flips} ({share_as_text(flips / max(decided, 1), 2)} %)",
            f"{100 * share.low:.2f} to {100 * share.high:.2f} %",
            *_verdict(criteria.get("flips")),
        ),
        *([_undecided_row(decision, criteria.get("undecided"))] if decision.undecided else []),
        FigureRow(
            "lost, gained",
            "",
            "",
            f"{decision.lost}, {decision.gained}",
            f"McNemar p = {decision.mcnemar_p:.3g}",
        ),
        FigureRow("calibration error", *_figures(decision.calibration_error)),
    ]


def decision_text(decision: Decision, width: int | None = None) -> str:
    """Tables for a terminal of so many columns, lines ended; None: as wide as need be, to a bound."""
    lines = [wrapped(shown(decision.sentence), width)]
    for head, rows in _tables(decision):
        lines += ["", *table_lines(head, rows, range(len(head)), width or _TEXT_WIDTH)]
    if decision.notes:
        lines.append("")
    lines += [wrapped(f"note: {shown(note)}", width) for note in decision.notes]
    return "".join(f"{line}\n" for line in lines)


def _undecided_row(decision: Decision, criterion: Criterion | None) -> FigureRow:
    flips = len(decision.flips) - decision.decided_flips
    return FigureRow(
        "undecided",
        "",
        "",
        f"{decision.undecided} ({share_as_text(decision.undecided / decision.images, 2)} %)",
        f"{flips or 'none'} of them {'flips' if flips < 2 else 'flip'}",
        *_verdict(criterion),
    )


def _verdict(criterion: Criterion | None) -> tuple[str, str]:
    if criterion is None:
        return "", ""
    allowed = f"{criterion.allowed:g} {criterion.unit}".strip()
    if criterion.found is None:
        return allowed, "not defined"
    return allowed, "met" if criterion.met else "MISSED"


def _figures(change: Change) -> tuple[str, str, str, str]:
    return (
        share_as_text(change.reference, 4, 1),
        share_as_text(change.artefact, 4, 1),
        _signed(change.change, 4),
        _signed_interval(change.change_interval, 4),
    )


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # + 0.0: never a negative zero


def _signed_interval(interval: Interval, digits: int, scale: float = 1) -> str:
    return f"{_signed(scale * interval.low, digits)} to {_signed(scale * interval.high, digits)}"


def _tables(decision: Decision) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The head of each table, and its rows."""
    head = ["", "reference", "artefact", "change", f"{100 * decision.level:g} % interval"]
    head += ["allowed", ""] if decision.criteria else []
    cells = (
        [row.name, row.reference, row.artefact, row.change, row.interval, row.allowed, row.verdict]
        for row in figure_rows(decision)
    )
    yield head, [row[: len(head)] for row in cells]
    yield (
        ["class", "images", "sensitivity", "specificity", "flips", "lost", "gained"],
        [
            [
                shown(each.label),
                str(each.images),
                f"{_share(each.reference_sensitivity)} -> {_share(each.artefact_sensitivity)}",
                f"{_share(each.reference_specificity)} -> {_share(each.artefact_specificity)}",
                *map(str, (each.flips, each.lost, each.gained)),
            ]
            for each in decision.classes
        ],
    )
    if not decision.flips:
        return
    flips = [
        [
            shown(flip.image),
            shown(flip.truth),
            f"{shown(flip.reference)} {share_as_text(flip.reference_probability, 2, 1)}",
            f"{shown(flip.artefact)} {share_as_text(flip.artefact_probability, 2, 1)}",
            f"{flip.margin:.3g}",
            f"{flip.outcome}, undecided" if flip.undecided else flip.outcome,
        ]
        for flip in decision.flips[:FLIPS_SHOWN]
    ]
    if len(decision.flips) > FLIPS_SHOWN:
        flips.append([f"… {len(decision.flips) - FLIPS_SHOWN} more", *[""] * 5])
    yield ["flipped image", "truth", "reference", "artefact", "margin", "outcome"], flips


def _share(share: Proportion) -> str:
    return "-" if share.value is None else f"{share_as_text(share.value)} %"
