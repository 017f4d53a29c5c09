"""`mmdeploy eval`: a model measured on labelled images."""

from __future__ import annotations

from typing import Any

import click

from .options import bar, device_options, let_idle_threads_sleep, names


@click.command("eval")
@click.argument("model")
@click.argument("data")
@click.option("--split", help="Of DATA, where it has splits. [default: test]")
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table")
@click.option("-o", "--output", metavar="DIR", help="Write metrics.json and confusion.png there.")
@click.option("--batch-size", type=click.IntRange(1), default=16, help="Images a batch.")
@click.option("--skip-bad", is_flag=True, help="Read all images first; leave out what cannot be read.")
@click.option("--size", "image_size", type=click.IntRange(32), help="Side of the square input, in pixels.")
@click.option("--labels", metavar="NAMES|FILE", help="Class names, by commas, or a file with one a line.")
@click.option("--mean", type=float, nargs=3, metavar="R G B", help="Channel means, of values in [0, 1].")
@click.option("--std", type=float, nargs=3, metavar="R G B", help="Channel standard deviations.")
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
    **options: Any,
) -> None:
    """Measure MODEL, a checkpoint, a bundle or an ONNX file, on the labelled images in DATA.

    DATA was imported, or holds {train,val,test}/<class>/* or <class>/*. Labels and preprocessing come from
    the model; give them where it does not say.
    """
    let_idle_threads_sleep()

    from ..export.proof.evaluate import evaluate_model
    from ..model.networks.described import Described

    described = Described(names(labels) if labels else None, mean, std, image_size)
    with bar() as advance:
        evaluation = evaluate_model(model, data, described=described, advance=advance, **options)
    if output:
        evaluation.write(output)
    click.echo(evaluation.to_json() if output_format == "json" else evaluation.to_text(), nl=False)
