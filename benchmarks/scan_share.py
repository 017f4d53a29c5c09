"""The scan of exported files by the native kernel and by the file's own function, and the whole of the files.

    python benchmarks/scan_share.py medmamba_s.onnx vmamba_t.onnx [--rounds 9] [--threads 2] [-o FILE]

Files are float32 ONNX. Whatever else of msmamba's operators they have is written out in standard ones first,
so that the kernel and the function compute the same: files as they are take less time. Whole files are timed
without a profiler, native and by functions in turn. What the scans take is read off ONNX Runtime's profile:
the native kernel's nodes, and of the function its loops alone. The profiler notes every operator of every
step of a loop, and adds to what it measures: the last column has the ratio without it, of the whole file by
functions less what is no scan in the native one. All times are the least.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from rich.console import Console
from rich.table import Table

from msmamba import machine
from msmamba.export.graph.onnx_model import flat_model, scan_nodes
from msmamba.plugins.selective_scan import cpu
from msmamba.plugins.selective_scan.onnx_function import OP_TYPE
from msmamba.runtime.onnxruntime_backend import register_native_kernels

PROFILED = 5
KERNELS = ("native", "functions")


def session(model: bytes, kernels: str, threads: int, profile: Path | None = None) -> Any:
    """A session as `msmamba.open` makes it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if kernels == "native" and (obstacle := register_native_kernels(options)) is not None:
        raise SystemExit(obstacle)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def milliseconds(call: Any, image: np.ndarray) -> float:
    """One image's way through a session."""
    began = time.perf_counter()
    call.run(None, {"image": image})
    return 1e3 * (time.perf_counter() - began)


def scan_ms(model: bytes, kernels: str, image: np.ndarray, threads: int, folder: Path) -> float:
    """What the profile gives the scans of one image, each node by its least time."""
    profiled = session(model, kernels, threads, folder / kernels)
    for _ in range(PROFILED):
        profiled.run(None, {"image": image})
    operator = OP_TYPE if kernels == "native" else "Scan"
    least: dict[str, int] = {}
    for event in json.loads(Path(profiled.end_profiling()).read_text()):
        if event["name"].endswith("_kernel_time") and event["args"]["op_name"] == operator:
            least[event["name"]] = min(least.get(event["name"], event["dur"]), event["dur"])
    return sum(least.values()) / 1e3


def measure(path: str, rounds: int, threads: int) -> dict[str, float]:
    """The figures of one file: least milliseconds, and their ratios."""
    flat = flat_model(onnx.load(path))
    model = flat.SerializeToString()
    sessions = {kernels: session(model, kernels, threads) for kernels in KERNELS}
    side = sessions["native"].get_inputs()[0].shape[2]
    image = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
    for each in sessions.values():
        milliseconds(each, image)
    whole = {kernels: float("inf") for kernels in KERNELS}
    for _ in range(rounds):
        for kernels, each in sessions.items():
            whole[kernels] = min(whole[kernels], milliseconds(each, image))
    del sessions
    with tempfile.TemporaryDirectory() as name:
        scans = {kernels: scan_ms(model, kernels, image, threads, Path(name)) for kernels in KERNELS}
    unprofiled = whole["functions"] - (whole["native"] - scans["native"])
    return {
        "scans": len(scan_nodes(flat)),
        "scans_native_ms": scans["native"],
        "scans_functions_ms": scans["functions"],
        "scans_times": scans["functions"] / scans["native"],
        "scans_times_unprofiled": unprofiled / scans["native"],
        "native_ms": whole["native"],
        "functions_ms": whole["functions"],
        "times": whole["functions"] / whole["native"],
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    asked = parser.parse_args()
    run = f"{machine.processor()}, {cpu.kernels()}, {asked.threads} threads, load {machine.load_average()}"
    table = Table(title=run)
    columns = (
        "file",
        "scans",
        "native ms",
        "function ms",
        "times",
        "file native ms",
        "by functions ms",
        "times",
    )
    for column in (*columns, "scans, no profiler"):
        table.add_column(column, justify="left" if column == "file" else "right")
    results = {}
    for path in asked.files:
        results[path] = found = measure(path, asked.rounds, asked.threads)
        table.add_row(
            Path(path).stem,
            f"{found['scans']}",
            f"{found['scans_native_ms']:.1f}",
            f"{found['scans_functions_ms']:.0f}",
            f"{found['scans_times']:.1f}",
            f"{found['native_ms']:.1f}",
            f"{found['functions_ms']:.0f}",
            f"{found['times']:.1f}",
            f"{found['scans_times_unprofiled']:.1f}",
        )
    Console(width=130).print(table)
    if asked.output:
        asked.output.write_text(json.dumps({"run": run, "files": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
