"""A decision as one page that a clinician and an engineer both can read."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from ...data.samples import Source
from ...files import as_utf8, write_atomically
from ...images import FULL_WHITE
from ...measures.decision import Decision, Proportion
from ...measures.decision_text import figure_rows
from ...pages.figures import FAINT, INK, TRAIN_COLOUR, VAL_COLOUR
from ...pages.page import data_url, page_from_template, thumbnail
from ...text import share_as_text
from .guarded import GuardParity, Ruling
from .parity import Parity

PICTURES_SHOWN = 240
"""Flipped images pictured on the page, so that it stays some megabytes; ``parity.json`` has all."""
UNDECIDED_SHOWN = 60
"""Undecided images listed on the page, those that get another label first."""
THUMBNAIL = 144
"""Side of a picture on the page, pixels."""
_TEMPLATE = Path(__file__).with_name("decision.html.jinja")


def write_page(
    path: str | Path, parity: Parity, sources: Iterable[Source], white_level: int = FULL_WHITE
) -> None:
    """Writes the page: verdict, figures, images that flip or are undecided, confusion, calibration, method.

    Args:
        path: the HTML file; it appears whole or not at all.
        parity: has a decision.
        sources: the images that were compared; those that flipped are read again.
        white_level: the value of white in 16-bit images.

    Raises:
        ImageError: a flipped image cannot be read any more.
        TargetError: the file cannot be written.
    """
    decision = parity.decision
    assert decision is not None
    shown = {flip.image: flip for flip in decision.flips[:PICTURES_SHOWN]}
    pictures = {
        str(each): (thumbnail(each, THUMBNAIL, white_level), each.name)
        for each in sources
        if str(each) in shown
    }
    pictured = [(flip, *pictures[image]) for image, flip in shown.items()]
    page = page_from_template(
        _TEMPLATE,
        parity=parity,
        decision=decision,
        rows=figure_rows(decision),
        pictured=pictured,
        undecided=parity.undecided_images[:UNDECIDED_SHOWN],
        rulings=[] if parity.guard is None else _rulings(parity.guard),
        harms=defaultdict(str, ((flip.image, flip.outcome) for flip in decision.flips)),
        reliability=data_url(_reliability_svg(decision), "image/svg+xml"),
        interval_text=_proportion_text,
    )
    write_atomically(path, as_utf8(page), through_links=True)


def _rulings(guard: GuardParity) -> list[Ruling]:
    """The images that the guard decides otherwise, those at its threshold last."""
    differing = [each for each in guard.at_threshold_images if each.differs]
    return [*guard.differing_images, *differing][:UNDECIDED_SHOWN]


def _proportion_text(share: Proportion) -> str:
    """A share with its interval, per cent."""
    if share.value is None:
        return "-"
    return (
        f"{share_as_text(share.value)} % ({100 * share.interval.low:.1f} to {100 * share.interval.high:.1f})"
    )


def _reliability_svg(decision: Decision) -> bytes:
    """Accuracy against confidence by the reference's bins, both models, above the images in each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes, counts = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, zorder=0)
    axes.text(0.03, 0.09, "as often right as sure", color="#8a8a8a", fontsize=8, rotation=33)
    reference, artefact = decision.reference_reliability, decision.artefact_reliability
    width = reference.edges[1] - reference.edges[0]
    for each, colour, marker, name in (
        (reference, VAL_COLOUR, "o", "reference"),
        (artefact, TRAIN_COLOUR, "s", "artefact"),
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
    centres = [edge + width / 2 for edge in reference.edges[:-1]]
    counts.bar(centres, reference.images, width=0.8 * width, color=FAINT)
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
