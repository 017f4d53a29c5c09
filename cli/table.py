"""`mmdeploy table`: the paper's tables for the runs at hand."""

from __future__ import annotations

from typing import Any

import click


@click.command()
@click.argument("runs", nargs=-1, metavar="RUN…")
@click.option("--format", "output_format", type=click.Choice(["text", "csv", "latex"]), default="text")
@click.option("--ablations", is_flag=True, help="Count the ablations beside the paper's figures; no RUN.")
@click.option("--peers", is_flag=True, help="Add the other networks of the paper's Table I.")
@click.option("--published", metavar="FILE", help="The paper's results, copied into a csv file.")
@click.option("--resamples", type=click.IntRange(100), default=2000, help="Of the bootstrap; 2000.")
@click.option("-o", "--output", metavar="FILE", help="Write there, whole or not at all.")
def table(
    runs: tuple[str, ...], output_format: str, ablations: bool, output: str | None, **options: Any
) -> None:
    """Print the paper's tables for the RUNs at hand, beside the paper's own figures.

    Each RUN is a finished run folder of train. Accuracy, AUC and precision come with 95 % bootstrap
    intervals. --published wants the columns dataset, network (t, s, b, "t --no-mifa", …), accuracy, auc and
    precision.
    """
    from ..files import write_atomically
    from ..model.evaluation.table import ablations_table, compare

    if ablations == bool(runs):
        raise click.UsageError("give either run folders or --ablations")
    result = ablations_table() if ablations else compare(runs, **options)
    text = {"text": result.to_text, "csv": result.to_csv, "latex": result.to_latex}[output_format]()
    if output is not None:
        write_atomically(output, text.encode())
    else:
        click.echo(text, nl=False)
