"""What idle threads of ONNX Runtime should do between two nodes: sleep, or spin for a while first.

    python benchmarks/idle_threads.py tiny.fp32 [--threads 2] [--rounds 60] [-o FILE]

A thread that sleeps has to be woken for every node that is shared out, some tens of microseconds each;
one that spins takes its core from whatever else wants it. Sessions of the same bundle with our native
kernels, which differ in nothing but that, run in turn, in an order shuffled anew each round, a few
milliseconds apart. Figures are elapsed times of one image, and processor time of all threads; ``1
thread`` has none to wait for. Spinning for so many microseconds (``session.intra_op.spin_duration_us``)
needs ONNX Runtime 1.26 or later.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from msmamba import machine
from msmamba.plugins.selective_scan import cpu

SPINS_US = (20, 50, 100, 500)
WARM_UP = 3
APART_SECONDS = 0.003
"""So that a session's threads are asleep, whatever they do, when the next session begins."""


def opened(model: Path, threads: int, **entries: str) -> onnxruntime.InferenceSession:
    """A session with our kernels and these configuration entries."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(cpu.library_path()))
    for name, value in entries.items():
        options.add_session_config_entry(f"session.{name}", value)
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def sessions(model: Path, threads: int) -> dict[str, onnxruntime.InferenceSession]:
    """By what their idle threads do."""
    spinning, sleeping = {"intra_op.allow_spinning": "1"}, {"intra_op.allow_spinning": "0"}
    made = {"1 thread": opened(model, 1), "sleep": opened(model, threads, **sleeping)}
    for duration in SPINS_US:
        entry = {"intra_op.spin_duration_us": str(duration)}
        made[f"spin {duration} us"] = opened(model, threads, **spinning, **entry)
    made["spin through a run"] = opened(model, threads, **spinning, force_spinning_stop="1")
    return made


def measure(
    cases: dict[str, onnxruntime.InferenceSession], images: NDArray[np.float32], rounds: int
) -> dict[str, NDArray[np.float64]]:
    """(rounds, 2) for each case: milliseconds elapsed and of processors."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    order, shuffle = list(cases), random.Random(0).shuffle
    for index in range(WARM_UP + rounds):
        shuffle(order)
        for name in order:
            time.sleep(APART_SECONDS)
            start, processor_start = time.perf_counter(), time.process_time()
            cases[name].run(["logits"], {"image": images})
            if index >= WARM_UP:
                elapsed, processor = time.perf_counter() - start, time.process_time() - processor_start
                taken[name].append((elapsed * 1e3, processor * 1e3))
    return {name: np.array(samples) for name, samples in taken.items()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="a float32 bundle with a hybrid block")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("-o", "--output", type=Path, help="write all samples there as JSON")
    arguments = parser.parse_args()
    cases = sessions(arguments.bundle / "model.onnx", arguments.threads)
    side: Any = cases["sleep"].get_inputs()[0].shape[-1]
    images = np.random.default_rng(0).standard_normal((1, 3, side, side), np.float32)
    taken = measure(cases, images, arguments.rounds)

    load = machine.load_average()
    about = "" if load is None else f", load average {load:.1f}"
    table = Table(title=f"{machine.processor()}, {arguments.threads} threads{about}")
    for column in ("idle threads", "median ms", "min ms", "processor ms, median", "least"):
        table.add_column(column, justify="left" if column == "idle threads" else "right")
    for name, samples in taken.items():
        (median, processor), (least, processor_least) = np.median(samples, axis=0), samples.min(axis=0)
        figures = (f"{value:.2f}" for value in (median, least, processor, processor_least))
        table.add_row(name, *figures)
    Console(width=110).print(table)
    if arguments.output is not None:
        samples_by_case = {name: samples.tolist() for name, samples in taken.items()}
        arguments.output.write_text(json.dumps(samples_by_case) + "\n")


if __name__ == "__main__":
    main()
