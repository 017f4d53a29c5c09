"""`mmdeploy verify`: does an artefact answer like what it was made from."""

from __future__ import annotations

from typing import Any

import click

from ..errors import ParityError
from .help import Command, option
from .options import (
    check_replaces_none,
    device_options,
    format_option,
    guard_option,
    let_idle_threads_sleep,
    steps,
    tell,
    weights_option,
)
from .output import columns, say_lines

_COMPARED = "What is compared"
_BAR = "The bar"
_RESULTS = "Results"


@click.command(
    cls=Command,
    example="mmdeploy verify cells.fp16 --against run/best.safetensors --data cells --report decision.html",
)
@click.argument("artefact")
@option(
    "--against",
    "reference",
    group=_COMPARED,
    required=True,
    metavar="REFERENCE",
    help="The checkpoint, or another artefact of it.",
)
@option(
    "--data",
    group=_COMPARED,
    required=True,
    multiple=True,
    metavar="DATA",
    help="Images, folders or patterns; repeatable.",
)
@option(
    "--split",
    group=_COMPARED,
    metavar="NAME",
    show_default="test",
    help="Which split to take, where DATA has splits.",
)
@option(
    "--limit",
    group=_COMPARED,
    type=click.IntRange(1),
    metavar="N",
    help="Compare at most N images, spread evenly over those found.",
)
@option(
    "--max-error",
    group=_BAR,
    type=float,
    metavar="ERROR",
    show_default="measured",
    help="How far a logit may be off.",
)
@option(
    "--max-flips",
    group=_BAR,
    metavar="COUNT|PER%",
    show_default="0; int8: 1%",
    help="How many labels may change.",
)
@option(
    "--max-undecided",
    group=_BAR,
    metavar="COUNT|PER%",
    show_default="2%",
    help="How many images the reference may leave undecided where one of them flips.",
)
@option(
    "--max-accuracy-drop",
    group=_BAR,
    type=click.FloatRange(0),
    metavar="POINTS",
    show_default="none; int8: 0.5",
    help="How much accuracy may be lost.",
)
@option(
    "--max-auc-drop",
    group=_BAR,
    type=click.FloatRange(0),
    metavar="AREA",
    show_default="none; int8: 0.002",
    help="How much AUC may be lost.",
)
@option(
    "--report",
    "page",
    group=_RESULTS,
    metavar="FILE.html",
    help="Write a page on what the differences mean for decisions.",
)
@option(
    "--force",
    group=_RESULTS,
    is_flag=True,
    help="Replace a bundle's proof by this one although it says less.",
)
@format_option("table", "json")
@guard_option
@weights_option
@device_options
def verify(
    artefact: str,
    output_format: str,
    max_flips: str | None,
    max_undecided: str | None,
    no_guard: bool,
    **options: Any,
) -> None:
    """Prove that an artefact answers like the checkpoint it was made from.

    ARTEFACT is a bundle or an ONNX file. On labelled DATA, one folder <class>/* or
    {train,val,test}/<class>/*, accuracy, AUC, sensitivity, calibration and every flipped image are compared
    too. An int8 artefact is judged by those alone.

    An image whose two largest logits differ in REFERENCE by less than twice the bound on a logit's error is
    undecided: it is listed, and a flip there is not held against ARTEFACT, unless too many are undecided.

    Where ARTEFACT carries a guard ('mmdeploy calibrate'), both answers are put through it, and images that
    are answered by one and withheld by the other are counted.

    ARTEFACT runs as 'mmdeploy infer' would run it here, or as you ask; what ran is in the result.

    The result goes into the bundle as parity.json, unless it has a fuller one already (of more images, say):
    that is kept, and a note says so. The exit status is 1 when the bar is missed.
    """
    check_replaces_none("--report", options["page"], (artefact, options["reference"], *options["data"]))
    let_idle_threads_sleep()

    from ..export.proof.verify import verify as compare
    from ..measures.decision import ImageLimit

    options["max_flips"] = None if max_flips is None else ImageLimit.parse(max_flips)
    options["max_undecided"] = None if max_undecided is None else ImageLimit.parse(max_undecided, "undecided")
    with steps() as report:
        parity = compare(
            artefact,
            options.pop("reference"),
            options.pop("data"),
            guard=not no_guard,
            report=report,
            **options,
        )
    tell(parity.notes)
    say_lines(parity.to_json() if output_format == "json" else parity.to_text(columns()))
    if not parity.passed:
        raise ParityError(f"{artefact} does not answer like its reference: {parity.failure}")
