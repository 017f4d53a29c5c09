"""`mmdeploy verify`: does an artefact answer like what it was made from."""

from __future__ import annotations

from typing import Any

import click

from ..errors import ParityError
from .options import let_idle_threads_sleep, steps


@click.command()
@click.argument("artefact")
@click.option("--against", "reference", required=True, metavar="REFERENCE", help="What it was made from.")
@click.option("--data", required=True, multiple=True, metavar="DATA", help="Files, folders or patterns.")
@click.option("--split", help="Of labelled DATA, where it has splits. [default: test]")
@click.option("--max-error", type=float, help="Bound on the error of a logit; measured by default.")
@click.option("--max-flips", metavar="COUNT|PER%", help="Images that may change their label. [default: 0]")
@click.option("--max-accuracy-drop", type=click.FloatRange(0), metavar="POINTS", help="Percentage points.")
@click.option("--max-auc-drop", type=click.FloatRange(0), metavar="AREA", help="Of the area under the curve.")
@click.option("--report", "page", metavar="FILE.html", help="Write there what it means for decisions.")
@click.option("--limit", type=click.IntRange(1), help="Compare at most this many images.")
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table")
def verify(artefact: str, output_format: str, max_flips: str | None, **options: Any) -> None:
    """Compare ARTEFACT (a bundle or an ONNX file) with REFERENCE, its checkpoint or another artefact of it.

    On labelled DATA, one folder <class>/* or {train,val,test}/<class>/*, accuracy, AUC, sensitivity,
    calibration and every flipped image are compared too. An int8 artefact is judged by those alone: by
    default it may lose 0.5 points of accuracy and 0.002 of AUC, and flip 1 % of the images.

    The result goes into the bundle as parity.json. The exit status is 1 when the bar is missed.
    """
    let_idle_threads_sleep()

    from ..export.proof.verify import verify as compare
    from ..measures.decision import FlipLimit

    flips = None if max_flips is None else FlipLimit.parse(max_flips)
    with steps() as report:
        parity = compare(
            artefact, options.pop("reference"), options.pop("data"), max_flips=flips, report=report, **options
        )
    click.echo(parity.to_json() if output_format == "json" else parity.to_text(), nl=False)
    if not parity.passed:
        raise ParityError(f"{artefact} does not answer like its reference: {parity.failure}")
