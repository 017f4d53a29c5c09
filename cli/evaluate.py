"""`mmdeploy eval`: a model measured on labelled images."""

from __future__ import annotations

from typing import Any

import click

from .help import Command, option
from .options import (
    bar,
    described_options,
    device_options,
    format_option,
    guard_option,
    let_idle_threads_sleep,
    names,
    tell,
    weights_option,
)
from .output import check_output, say_lines

_RESULTS = "Results"
_IMAGES = "The images"


@click.command("eval", cls=Command, example="mmdeploy eval run/best.safetensors cells -o measured")
@click.argument("model")
@click.argument("data")
@option(
    "-o",
    "--output",
    group=_RESULTS,
    metavar="DIR",
    help="Also write metrics.json and two pictures into DIR.",
)
@format_option("table", "json")
@guard_option
@option(
    "--split",
    group=_IMAGES,
    show_default="test",
    metavar="NAME",
    help="Which split to take, where DATA has splits.",
)
@option(
    "--skip-bad",
    group=_IMAGES,
    is_flag=True,
    help="Read all images first, and leave out those that cannot be read.",
)
@described_options
@weights_option
@option(
    "--batch-size",
    group="How it runs",
    type=click.IntRange(1),
    metavar="N",
    default=16,
    help="How many images go through the network at once.",
)
@device_options
def evaluate(
    model: str,
    data: str,
    output_format: str,
    output: str | None,
    labels: str | None,
    image_size: int | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    white_level: int | None,
    network: str | None,
    weights_of: str | None,
    no_guard: bool,
    **options: Any,
) -> None:
    """Measure a model on labelled images: accuracy, AUC, confusion, certainty.

    MODEL is a checkpoint, a bundle, an ONNX file or an engine. DATA was imported, or holds
    {train,val,test}/<class>/* or <class>/*. Labels and preprocessing come from the model; give them where it
    does not say.

    Where MODEL carries a guard ('mmdeploy calibrate'), it is told what that answers and how much is wrong.
    """
    if not output:
        check_output("write the figures into a folder, with -o")
    let_idle_threads_sleep()

    from ..export.proof.evaluate import check_report_folder, evaluate_model
    from ..model.networks.described import Described
    from ..pages.figures import check_can_draw

    described = Described(
        names(labels) if labels else None, mean, std, image_size, weights_of, white_level, network
    )
    if output:
        check_report_folder(output)
        check_can_draw()
    with bar() as advance:
        evaluation = evaluate_model(
            model, data, described=described, guard=not no_guard, advance=advance, **options
        )
    tell(evaluation.notes)
    if output:
        evaluation.write(output)
    say_lines(evaluation.to_json() if output_format == "json" else evaluation.to_text())
