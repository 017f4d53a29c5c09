"""`mmdeploy table`: the paper's tables for the runs at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .help import Command, option
from .options import check_replaces_none, file_format_option, resamples_option, typed
from .output import check_output, columns, say_lines

_ROWS = "Rows"
_RESULTS = "Results"


@click.command(cls=Command, example="mmdeploy table run --peers --format latex -o table.tex")
@click.argument("runs", nargs=-1, metavar="RUN…")
@option(
    "--ablations",
    group=_ROWS,
    is_flag=True,
    help="Count the ablations beside the paper's figures, without any RUN.",
)
@option("--peers", group=_ROWS, is_flag=True, help="Add the other networks of the paper's Table I.")
@option(
    "--published",
    group=_ROWS,
    metavar="FILE",
    help="Take the paper's results from a csv file of yours.",
)
@resamples_option(_ROWS)
@option(
    "-o",
    "--output",
    group=_RESULTS,
    metavar="FILE",
    help="Write to FILE, whole or not at all, instead of printing.",
)
@file_format_option(
    {"text": (), "csv": (".csv",), "markdown": (".md",), "latex": (".tex",)}, "How the table is written."
)
def table(
    runs: tuple[str, ...], output_format: str, ablations: bool, output: str | None, **options: Any
) -> None:
    """Print the paper's tables for your runs, beside the paper's figures.

    Each RUN is a finished run folder of train. Accuracy, AUC and precision come with 95 % bootstrap
    intervals; a † marks what the paper's other figures contradict. --published wants the columns dataset,
    network (t, s, b, "t --no-mifa", …), accuracy, auc and precision.
    """
    if output is None:
        check_output("write the table to a file, with -o")

    from ..files import as_utf8, check_writable, write_atomically
    from ..model.evaluation.table import ablations_table, compare
    from ..model.training.run import FILES

    if ablations == bool(runs):
        raise click.UsageError("give either run folders or --ablations")
    if ablations and (unused := typed("peers", "published", "resamples")):
        raise click.UsageError(f"--ablations counts the paper's own network: leave {unused} out")
    if output is not None:
        of_runs = [Path(run, name) for run in runs for name in FILES]
        check_replaces_none("-o", output, [options["published"], *of_runs])
        check_writable(output, through_links=True)
    result = ablations_table() if ablations else compare(runs, **options)
    text = {
        "text": lambda: result.to_text(None if output is not None else columns()),
        "csv": result.to_csv,
        "markdown": result.to_markdown,
        "latex": result.to_latex,
    }[output_format]()
    if output is not None:
        write_atomically(output, as_utf8(text), through_links=True)
    else:
        say_lines(text)
