"""`mmdeploy compare`: several networks on one's own data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from ..errors import ComparisonError
from .help import Command, option
from .options import format_option, given, resamples_option, rounds_option, steps
from .output import columns, say, say_lines
from .training_options import (
    data_options,
    hardware_of,
    hardware_options,
    prepare_training,
    recipe_options,
)

if TYPE_CHECKING:
    from ..export.comparison.stages import Watch
    from ..model.training.loop import Listener

_COMPARED = "What is compared"


@click.command(
    cls=Command,
    example="mmdeploy compare cells --networks t,pvt_small,medmamba_s --image-size 64 -o compared",
)
@click.argument("data")
@option(
    "--networks",
    group=_COMPARED,
    required=True,
    metavar="NAMES",
    help="The networks, by commas; 'mmdeploy networks' lists them.",
)
@option("--fp16", group=_COMPARED, is_flag=True, help="Export in float16, not float32.")
@option("-o", "--output", group="Results", required=True, metavar="DIR", help="The folder of the comparison.")
@format_option("text", "json", "csv", "markdown", meaning="How the table is printed.")
@resamples_option("Results")
@recipe_options
@data_options
@rounds_option("How latency is measured")
@hardware_options
def compare(
    data: str,
    networks: str,
    output: str,
    fp16: bool,
    output_format: str,
    resamples: int,
    preset: str | None,
    group_by: str | None,
    skip_bad: bool,
    white_level: int | None,
    mpp: float | None,
    rounds: int | None,
    device: str,
    amp: bool | None,
    deterministic: bool,
    threads: int | None,
    workers: int,
    **figures: Any,
) -> None:
    """Train, export, verify and time networks on DATA, and say which is best.

    Each network is trained from scratch by the same recipe on the same split (see 'mmdeploy train'), tested,
    exported and verified; then all are timed side by side on this machine. DIR gets a page, report.html, and
    for each network its run and its bundle.

    Stopped at any moment, the same command goes on with what is missing; with other --networks it trains
    those that are not trained yet. A network that fails stops no other; the exit status is 1 then.
    """
    prepare_training(deterministic)

    from ..export.comparison.folder import PAGE
    from ..export.comparison.run import compare_networks
    from ..export.comparison.table import table_of
    from ..runtime.benchmark import BenchmarkOptions
    from ..schema import as_json

    comparison = compare_networks(
        data,
        output,
        [name.strip() for name in networks.split(",") if name.strip()],
        preset=preset,
        figures=given(figures),
        group_by=group_by,
        skip_bad=skip_bad,
        white_level=white_level,
        mpp=mpp,
        hardware=hardware_of(device, amp, deterministic, threads, workers),
        precision="fp16" if fp16 else "fp32",
        bench=BenchmarkOptions(threads=(threads,), **given({"rounds": rounds})),
        resamples=resamples,
        watch=_watch(),
    )
    table = table_of(comparison)
    say_lines(
        {
            "text": lambda: table.to_text(columns()),
            "json": lambda: as_json(comparison.to_dict(), indent=2) + "\n",
            "csv": table.to_csv,
            "markdown": table.to_markdown,
        }[output_format]()
    )
    say(f"page: {output}/{PAGE}", err=True)
    if comparison.failed:
        names = ", ".join(entry.network for entry in comparison.failed)
        raise ComparisonError(
            f"{len(comparison.failed)} of {len(comparison.entries)} networks failed: {names}: the table says "
            "why, and the same command tries them again"
        )


def _watch() -> Watch:
    """Shows on standard error how it goes; what a training is about to do once, as all do the same."""
    from rich.console import Console

    from ..export.comparison.stages import Watch
    from ..model.training.progress import shown_on

    class Shown(Watch):
        plan_told = False

        def on_stage(self, network: str, stage: str) -> None:
            say(f"{network}: {stage}" if network else stage, err=True)

        def training(self) -> AbstractContextManager[Sequence[Listener]]:
            told, self.plan_told = self.plan_told, True
            return shown_on(Console(stderr=True), plan=not told)

        def working(self) -> AbstractContextManager[Callable[[str], None]]:
            return steps()

    return Shown()
