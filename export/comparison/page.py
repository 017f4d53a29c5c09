"""A comparison as one page: its plot, its tables, and what the figures rest on."""

from __future__ import annotations

from pathlib import Path

from ...model.evaluation.table import UNKNOWN
from ...model.training.figures import as_typed
from ...pages.page import data_url, page_from_template
from ...text import share_as_text
from .plot import DARK, LIGHT, plot_of
from .results import Comparison
from .table import (
    artefact_as_text,
    doubts_of,
    failures_of,
    notes_on,
    printed_as_text,
    scores_as_text,
)

_TEMPLATE = Path(__file__).with_name("comparison.html.jinja")
_SVG = "image/svg+xml"


def page_of(comparison: Comparison) -> str:
    """The page, complete in itself.

    The plot is on it four times, for light and dark, wide and narrow, of which a browser shows one.
    """
    plots = {}
    if any(entry.point is not None for entry in comparison.entries):
        plots = {
            f"{theme}_{width}": data_url(plot_of(comparison, colours, narrow=width == "narrow"), _SVG)
            for theme, colours in (("light", LIGHT), ("dark", DARK))
            for width in ("wide", "narrow")
        }
    front = {entry.network for entry in comparison.front}
    return page_from_template(
        _TEMPLATE,
        comparison=comparison,
        plots=plots,
        described=_described(comparison),
        rows=[
            {
                "entry": entry,
                "on_front": entry.network in front,
                "scores": [_split(text) for text in scores_as_text(entry)],
                "artefact": artefact_as_text(entry),
                "paper": printed_as_text(entry),
            }
            for entry in comparison.entries
        ],
        notes=notes_on(comparison),
        failures=failures_of(comparison),
        doubts=doubts_of(comparison),
        overridden=[as_typed(name, row["run"]) for name, row in comparison.recipe.overridden().items()],
        unknown=UNKNOWN,
    )


def _described(comparison: Comparison) -> str:
    """The plot in words, for whoever does not see it."""
    points = [
        f"{entry.network} {share_as_text(accuracy)} % in {took:.3g} ms"
        for entry in comparison.entries
        if entry.point is not None
        for took, accuracy in (entry.point,)
    ]
    front = ", ".join(entry.network for entry in comparison.front)
    return f"Accuracy over latency: {'; '.join(points)}. On the front: {front}."


def _split(text: str) -> tuple[str, str]:
    """A figure and its interval."""
    figure, bracket, interval = text.partition("[")
    return figure.strip(), bracket + interval
