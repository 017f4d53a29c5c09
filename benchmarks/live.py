"""How old pictures are when `mmdeploy live --no-page` writes their line, and whether its memory grows.

    python benchmarks/live.py ARTEFACT [--seconds 30] [--threads 2] [--soak SMALL --frames 20000]

The source is ``demo``: pictures of 512 x 512 pixels at a steady rate, each classified as one picture. An age
is taken when the line has been written. Beside it stand what `mmdeploy bench` measures of the same artefact,
just before and just after, and the bar: the time to prepare and to run as measured so, one frame's interval,
and 10 ms; for the 95th percentile 15 ms more. The soak runs a small artefact over many frames and looks at
the process's memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import msmamba
from msmamba.microscope import Result, stream
from msmamba.microscope.sources.demo import Demo, drawn_smear
from msmamba.runtime.benchmark import BenchmarkOptions, benchmark

WARM_UP = 3.0  # seconds, not counted
MEDIAN_MS, LAST_MS = 10.0, 15.0  # of the bar


def resident_mb() -> float:
    """The memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


def bench_ms(artefact: str, threads: int) -> float:
    """Median milliseconds of the network, as `mmdeploy bench` measures them."""
    options = BenchmarkOptions(threads=(threads,), seconds=6, rounds=200)
    return benchmark([artefact], options).results[0].network_ms.median


def prepare_ms(artefact: str) -> float:
    """Median milliseconds of resizing a picture of the demo."""
    pixels = np.ascontiguousarray(drawn_smear()[:512, :512])
    with msmamba.open(artefact) as session:
        times = []
        for _ in range(50):
            began = time.perf_counter()
            session.prepare(pixels)
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def written(results: Iterator[Result]) -> Iterator[tuple[Result, float]]:
    """Each result, and the age of its picture in milliseconds when its line has been written."""
    with Path("/dev/null").open("w", encoding="utf-8") as file:
        for result in results:
            file.write(json.dumps(result.as_json()) + "\n")
            file.flush()
            yield result, (time.monotonic() - result.frame.taken) * 1e3


def measure(artefact: str, rate: float, threads: int, seconds: float) -> tuple[list[Result], list[float]]:
    """Results of so many seconds, and their pictures' ages."""
    found, ages = [], []
    with msmamba.open(artefact, threads=threads) as session:
        source = Demo("demo", drawn_smear(), frames_a_second=rate)
        with closing(stream(session, source, seconds=WARM_UP + seconds)) as results:
            began = time.monotonic()
            for result, age in written(results):
                if time.monotonic() - began > WARM_UP:
                    found.append(result)
                    ages.append(age)
    return found, ages


def soak(artefact: str, threads: int, frames: int) -> list[float]:
    """The process's memory after each twentieth of so many results."""
    held = []
    with msmamba.open(artefact, threads=threads) as session:
        source = Demo("demo", drawn_smear(), frames_a_second=1000)
        with closing(stream(session, source)) as results:
            for number, _ in enumerate(islice(written(results), frames), 1):
                if number % (frames // 20) == 0:
                    held.append(resident_mb())
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("artefact")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rates", type=float, nargs="*", default=[60, 100])
    parser.add_argument("--soak", metavar="ARTEFACT")
    parser.add_argument("--frames", type=int, default=20_000)
    arguments = parser.parse_args()

    table = Table(title="milliseconds; source in frames a second")
    for name in (
        "source",
        "results/s",
        "dropped",
        "bench",
        "prepare",
        "network",
        "quality",
        "age",
        "at most",
    ):
        table.add_column(name, justify="right")
    for name in ("95th", "at most", "first half", "second half"):
        table.add_column(name, justify="right")
    prepare = prepare_ms(arguments.artefact)
    bench = [bench_ms(arguments.artefact, arguments.threads)] if arguments.rates else []
    rows = []
    for rate in arguments.rates:
        rows.append((rate, *measure(arguments.artefact, rate, arguments.threads, arguments.seconds)))
        bench.append(bench_ms(arguments.artefact, arguments.threads))
    for (rate, results, ages), before, after in zip(rows, bench[:-1], bench[1:], strict=True):
        alone = (before + after) / 2
        bar = prepare + alone + 1e3 / rate + MEDIAN_MS
        steps = [
            statistics.median(result.latency_ms[step] for result in results)
            for step in ("prepare", "network", "quality")
        ]
        dropped = sum(result.dropped for result in results)
        half = len(ages) // 2
        table.add_row(
            f"{rate:g}",
            f"{len(results) / arguments.seconds:.1f}",
            f"{dropped / (dropped + len(results)):.0%}",
            f"{before:.1f}, {after:.1f}",
            *(f"{value:.1f}" for value in steps),
            f"{statistics.median(ages):.1f}",
            f"{bar:.1f}",
            f"{np.percentile(ages, 95):.1f}",
            f"{bar + LAST_MS:.1f}",
            *(f"{statistics.median(part):.1f}" for part in (ages[:half], ages[half:])),
        )
    if rows:
        Console(width=150).print(table)
    if arguments.soak:
        held = soak(arguments.soak, arguments.threads, arguments.frames)
        print(f"memory over {arguments.frames} results, MB: {', '.join(f'{value:.1f}' for value in held)}")


if __name__ == "__main__":
    main()
