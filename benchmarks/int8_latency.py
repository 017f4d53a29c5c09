"""One image through the float32 file, its flat form and the int8 files, interleaved, and where the time goes.

The flat form is the float32 network in standard operators, with the scan's native kernel. Files with float16
around int8, which are for engines, and operators with int8 in depthwise convolutions are written into it.

    python benchmarks/int8_latency.py CHECKPOINT DATA [--rounds 40] [-o FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from rich.console import Console
from rich.table import Table

from msmamba import machine
from msmamba.export.bundle import ExportOptions, export_bundle
from msmamba.export.graph.int8_options import Int8Options
from msmamba.export.graph.judging import Limits
from msmamba.export.graph.onnx_model import flat_model
from msmamba.export.graph.plan import Plan
from msmamba.export.graph.products import KINDS
from msmamba.measures.decision import ImageLimit
from msmamba.runtime.onnxruntime_backend import register_native_kernels

THREADS = 2
PROFILED = 15
NO_LIMITS = Limits(accuracy_drop=100, flips=ImageLimit(100, per_cent=True))
SHOWN = 9


def session(path: Path, profile: Path | None = None, threads: int = THREADS) -> onnxruntime.InferenceSession:
    """A session with the native kernels, as `msmamba.open` makes it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    obstacle = register_native_kernels(options)
    if obstacle is not None:
        raise SystemExit(obstacle)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def times_by_operator(
    path: Path, image: np.ndarray, folder: Path, threads: int = THREADS
) -> dict[str, float]:
    """Milliseconds an image by operator: the sum of each node's least time."""
    profiled = session(path, folder / "profile", threads)
    for _ in range(PROFILED):
        profiled.run(None, {"image": image})
    events = json.loads(Path(profiled.end_profiling()).read_text())
    least: dict[tuple[str, str], int] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = (event["args"]["op_name"], event["name"])
            least[key] = min(least.get(key, event["dur"]), event["dur"])
    totals: dict[str, float] = {}
    for (operator, _), microseconds in least.items():
        totals[operator] = totals.get(operator, 0) + microseconds / 1e3
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--bundles", type=Path, help="keep the exported files there, or take them from there")
    parser.add_argument("-o", "--output", type=Path, help="write all samples there as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.bundles or Path(name)
        paths = export(arguments.checkpoint, arguments.data, folder)
        sessions = {case: session(path) for case, path in paths.items()}
        size = next(iter(sessions.values())).get_inputs()[0].shape[2]
        image = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)
        for each in (*sessions.values(), *sessions.values()):
            each.run(None, {"image": image})
        taken: dict[str, list[float]] = {case: [] for case in sessions}
        order, shuffle = list(sessions), np.random.default_rng(0).shuffle
        for _ in range(arguments.rounds):
            shuffle(order)
            for case in order:
                started = time.perf_counter()
                sessions[case].run(None, {"image": image})
                taken[case].append(1e3 * (time.perf_counter() - started))
        profiles = {case: times_by_operator(path, image, Path(name)) for case, path in paths.items()}

    base = np.array(taken[next(iter(taken))])
    table = Table(title=f"{machine.processor()}, {THREADS} threads, {' '.join(machine.processor_features())}")
    for column in ("case", "median ms", "least ms", "ratio"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for case, samples in taken.items():
        figures = (np.median(samples), min(samples), np.median(np.array(samples) / base))
        table.add_row(case, *(f"{figure:.2f}" for figure in figures))
    console = Console(width=150)
    console.print(table)
    for case, totals in profiles.items():
        rest = sum(list(totals.values())[SHOWN:])
        shown = ", ".join(f"{operator} {ms:.1f}" for operator, ms in list(totals.items())[:SHOWN])
        console.print(f"{case}: {sum(totals.values()):.1f} ms: {shown}, the rest {rest:.1f}", highlight=False)
    if arguments.output:
        arguments.output.write_text(json.dumps({"samples_ms": taken, "profiles_ms": profiles}, indent=1))


def export(checkpoint: str, data: str, folder: Path) -> dict[str, Path]:
    """The files to measure, by case."""
    cache, plan = folder / "int8.calib", folder / "all.json"
    plan.write_text(Plan(kinds=KINDS).to_json())
    options = {
        "fp32": ExportOptions(),
        "int8": ExportOptions(precision="int8", int8=Int8Options(data, cache=cache)),
        "int8.fp16": ExportOptions(precision="int8", int8=Int8Options(data, cache=cache, half=True)),
        "int8.all": ExportOptions(
            precision="int8", int8=Int8Options(data, cache=cache, plan=plan, limits=NO_LIMITS)
        ),
    }
    for name, chosen in options.items():
        if not (folder / name).exists():
            export_bundle(checkpoint, folder / name, chosen, report=print)
    flat = folder / "flat.onnx"
    if not flat.exists():
        onnx.save(flat_model(onnx.load(folder / "fp32" / "model.onnx")), flat)
    return {
        "float32, native kernels": folder / "fp32" / "model.onnx",
        "float32, flat, native scan": flat,
        "int8, float32 around, blocks as operators": folder / "int8" / "model.onnx",
        "int8, float16 around, flat": folder / "int8.fp16" / "model.onnx",
        "int8, depthwise convolutions too, flat where they are": folder / "int8.all" / "model.onnx",
    }


if __name__ == "__main__":
    main()
