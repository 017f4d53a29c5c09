"""`mmdeploy bench`: artefacts measured side by side."""

from __future__ import annotations

from typing import Any

import click

from .options import PROVIDERS, steps


@click.command()
@click.argument("artefacts", nargs=-1, required=True)
@click.option("--batch-size", "batch_sizes", type=click.IntRange(1), multiple=True, help="Repeatable; 1.")
@click.option("--threads", type=click.IntRange(1), multiple=True, help="Repeatable; every usable core.")
@click.option("--kernels", type=click.Choice(["auto", "native", "functions"]), multiple=True)
@click.option(
    "--provider", "providers", type=click.Choice(PROVIDERS), multiple=True, help="Repeatable; what executes."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--rounds", type=click.IntRange(1), help="Measured rounds.")
@click.option("--warmup", type=click.IntRange(0), help="Rounds before those, not counted.")
@click.option("--seconds", type=float, help="Begin no further round after that time.")
@click.option("--image", metavar="FILE", help="Image to preprocess; by default one made up of 640x480.")
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table")
@click.option("-o", "--output", metavar="FILE", help="Write all figures there as JSON.")
@click.option("--plot", metavar="FILE", help="Write a chart there as PNG.")
def bench(
    artefacts: tuple[str, ...], output_format: str, output: str | None, plot: str | None, **chosen: Any
) -> None:
    """Measure ARTEFACTS side by side: latency, throughput, memory, and where the time goes.

    Ratios are to the first. With several --batch-size, --threads, --kernels or --provider every
    combination is measured.
    """
    from ..files import write_atomically
    from ..runtime.benchmark import BenchmarkOptions, benchmark

    options = BenchmarkOptions(**{name: value for name, value in chosen.items() if value not in (None, ())})
    with steps() as report:
        result = benchmark(artefacts, options, report=report)
    if output is not None:
        write_atomically(output, result.to_json().encode())
    if plot is not None:
        write_atomically(plot, result.to_png())
    click.echo(result.to_json() if output_format == "json" else result.to_text(), nl=False)
    if result.warning:
        click.echo(f"warning: {result.warning}", err=True)
