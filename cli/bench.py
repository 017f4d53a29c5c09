"""`mmdeploy bench`: artefacts measured side by side."""

from __future__ import annotations

from typing import Any

import click

from .help import Command, option
from .options import EVERY_CORE, PROVIDERS, check_replaces_none, format_option, rounds_option, steps, tell
from .output import check_output, columns, say, say_lines

_CASES = "What is measured (each may be given several times)"
_MEASURING = "How it is measured"
_RESULTS = "Results"


@click.command(cls=Command, example="mmdeploy bench cells.fp32 cells.fp16 --rounds 10 --plot bench.png")
@click.argument("artefacts", nargs=-1, required=True)
@option(
    "--batch-size",
    "batch_sizes",
    group=_CASES,
    type=click.IntRange(1),
    multiple=True,
    metavar="N",
    show_default="1",
    help="How many images go through the network at once.",
)
@option(
    "--threads",
    group=_CASES,
    type=click.IntRange(1),
    multiple=True,
    metavar="N",
    show_default=EVERY_CORE,
    help="How many CPU threads to use, in each session.",
)
@option(
    "--sessions",
    group=_CASES,
    type=click.IntRange(1),
    multiple=True,
    metavar="N",
    show_default="1",
    help="How many batches to run side by side; they share the cores.",
)
@option(
    "--kernels",
    group=_CASES,
    type=click.Choice(["auto", "native", "functions"]),
    multiple=True,
    show_default="auto",
    help="Run by compiled kernels, or as plain ONNX.",
)
@option(
    "--provider",
    "providers",
    group=_CASES,
    type=click.Choice(PROVIDERS),
    multiple=True,
    show_default="auto",
    help="Insist on an engine or ONNX Runtime provider.",
)
@option(
    "--device",
    group=_MEASURING,
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Run on the CPU or on an NVIDIA GPU.",
)
@rounds_option(_MEASURING)
@option(
    "--warmup",
    group=_MEASURING,
    type=click.IntRange(0),
    metavar="N",
    show_default="5",
    help="How many rounds to run before those, not counted.",
)
@option(
    "--seconds",
    group=_MEASURING,
    type=click.FloatRange(0),
    metavar="S",
    show_default="120",
    help="Begin no further round after so many seconds.",
)
@option(
    "--image",
    group=_MEASURING,
    metavar="FILE",
    show_default="one made up, of 640x480",
    help="The image to preprocess.",
)
@option("-o", "--output", group=_RESULTS, metavar="FILE", help="Also write all figures to FILE as JSON.")
@option("--plot", group=_RESULTS, metavar="FILE", help="Also draw a chart into FILE as PNG.")
@format_option("table", "json")
def bench(
    artefacts: tuple[str, ...], output_format: str, output: str | None, plot: str | None, **chosen: Any
) -> None:
    """Measure artefacts side by side: latency, throughput, memory.

    ARTEFACTS are bundles, ONNX files or engines; ratios are to the first. Every combination of what is
    given under the first heading is measured.
    """
    if output is None:
        check_output("write the figures to a file, with -o")

    from ..files import as_utf8, check_writable, write_atomically, written_together
    from ..pages.figures import check_can_draw
    from ..runtime.benchmark import BenchmarkOptions, benchmark

    for name, file in (("-o", output), ("--plot", plot)):
        check_replaces_none(name, file, (*artefacts, chosen["image"]))
    check_replaces_none("--plot", plot, [output])
    for file in filter(None, (output, plot)):
        check_writable(file, through_links=True)
    if plot is not None:
        check_can_draw()
    options = BenchmarkOptions(**{name: value for name, value in chosen.items() if value not in (None, ())})
    with steps() as report:
        result = benchmark(artefacts, options, report=report)
    with written_together():
        if output is not None:
            write_atomically(output, as_utf8(result.to_json()), through_links=True)
        if plot is not None:
            write_atomically(plot, result.to_png(), through_links=True)
    tell(result.notes)
    say_lines(result.to_json() if output_format == "json" else result.to_text(columns()))
    if result.warning:
        say(f"warning: {result.warning}", err=True)
