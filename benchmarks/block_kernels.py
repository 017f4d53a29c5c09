"""The hybrid block's operators, and patch merging, at tiny's four stages: native, and as ONNX functions.

Native is the ctypes door of the library; the function of standard operators runs in plain ONNX Runtime. The
scan without its projections, as files of earlier versions have it, is measured beside them. Cases are
interleaved, one call each a round; figures are medians and minima over rounds, ratios medians of ratios
within rounds. Weights are those of a fresh network.

    python benchmarks/block_kernels.py [--rounds 60] [--threads 2] [--batch 1] [--side 56] [--kernels avx2]
        [--native-only] [-o FILE]

GFLOP/s counts two operations for each multiply-add of the matrix products (1x1 convolutions and linear
layers) and nothing else, and of the scan eight multiply-adds (or multiplications) a state update, over the
operator's shortest time; the peak beside it is ONNX Runtime's product of two matrices of 1,024 x 1,024,
measured just before. The last rows add up what the blocks of tiny take. With one thread all times are
processor time, to which other work on the machine adds little.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from msmamba import machine
from msmamba.model import MicroscopicMamba
from msmamba.model.networks.microscopic_mamba_inference import InferenceForm
from msmamba.plugins.hybrid_block import DOMAIN, cpu
from msmamba.plugins.hybrid_block.onnx_functions import block_functions
from msmamba.plugins.selective_scan import DIRECTIONS
from msmamba.plugins.selective_scan import cpu as scan
from msmamba.plugins.selective_scan.onnx_function import scan_function

GROUPS = 4
OPERATORS = ("LocalBranch", "ScanFeatures", "ProjectedScan2D", "ScanOutputs", "MIFA", "PatchMerging")
BEFORE = ("ScanInputs", "SelectiveScan2D")
"""What files of earlier versions have in place of the second and third."""
ROUNDS_PER_FUNCTION_CALL = 4
"""The functions take most of the time: they run in every fourth round only."""
SCAN_MULTIPLY_ADDS = 8
"""Of a state update: five for the decay, three for state and output. (Additions, a look-up and a scaling are
beside them.)"""
BLOCKS = (2, 2, 4, 2)
"""Of tiny, by stage."""
MERGINGS = (1, 1, 1)
"""Likewise, behind every stage but the last."""
PEAK_SIDE = 1024
OPSET = 20

Arrays = dict[str, NDArray[np.float32]]


def weights_of(stage: Any) -> dict[str, Arrays]:
    """The weights of a stage in the exported form: its first block's operators, and the merging behind it."""

    def arrays(weights: Any) -> Arrays:
        return {name: getattr(weights, name).numpy() for name in weights.names}

    block = stage.blocks[0]
    branch = block.pvm_layer
    before, scan, after = arrays(branch.before), arrays(branch.scan), arrays(branch.after)
    states = ("A", "D", "delta_bias")
    projections = {name: array for name, array in scan.items() if name not in states}
    merging = {} if stage.downsample is None else {"PatchMerging": arrays(stage.downsample.weights)}
    return {
        **merging,
        "LocalBranch": arrays(block.Conv_branch.weights),
        "ScanFeatures": before,
        "ProjectedScan2D": scan,
        "ScanInputs": before | projections,
        "SelectiveScan2D": {name: scan[name] for name in states},
        "ScanOutputs": after,
        "MIFA": arrays(block.MIFA.weights),
    }


def maps_of(half: int, batch: int, side: int) -> dict[str, Arrays]:
    """Noise for the maps of every operator."""
    rng = np.random.default_rng(0)
    image, grouped, d = (batch, side, side), (batch * GROUPS, side, side), half // GROUPS
    shapes = {
        "LocalBranch": {"x": (*image, 2 * half)},
        "ScanFeatures": {"x": (*image, 2 * half)},
        "ProjectedScan2D": {"features": (*grouped, 2 * d)},
        "ScanInputs": {"x": (*image, 2 * half)},
        "ScanOutputs": {"y": (*grouped, 2 * d), "gate": (*grouped, 2 * d), "tokens": (*grouped, d)},
        "MIFA": {"local": (*image, half), "scanned": (*image, half)},
        "PatchMerging": {"x": (*image, 2 * half)},
    }
    return {
        op_type: {name: rng.standard_normal(shape).astype(np.float32) for name, shape in maps.items()}
        for op_type, maps in shapes.items()
    }


def product_flops(op_type: str, half: int, positions: int, states: int = 16) -> int:
    """Operations of the matrix products; ``positions`` of all images."""
    d, K = half // GROUPS, DIRECTIONS
    D, rank = 2 * d, -(-d // 16)
    before, after = d * 2 * D, D * d
    projections = D * K * rank + rank * K * D + 2 * D * K * states
    scan = K * D * states * SCAN_MULTIPLY_ADDS
    multiply_adds = {
        "LocalBranch": 2 * half * half,
        "ScanFeatures": GROUPS * before,
        "ProjectedScan2D": GROUPS * (projections + scan),
        "ScanInputs": GROUPS * (before + projections),
        "SelectiveScan2D": GROUPS * scan,
        "ScanOutputs": GROUPS * after,
        "MIFA": 0,
        "PatchMerging": 8 * half * half,  # 8h to 4h at every fourth position
    }
    return 2 * positions * multiply_adds[op_type]


def aligned_zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Memory that begins at a cache line, as ONNX Runtime's does: large outputs then bypass the caches."""
    count = int(np.prod(shape))
    memory = np.zeros(count + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    return memory[first : first + count].reshape(shape)


def native_call(op_type: str, weights: Arrays, maps: Arrays, batch: int) -> Callable[[], object]:
    """The ctypes door, into memory that is there already."""
    operator = cpu.BlockOperator(op_type, weights)
    inputs = list(maps.values())
    side = inputs[0].shape[1]
    if op_type == "ProjectedScan2D":
        batch *= GROUPS
    outputs = [aligned_zeros(shape) for shape in operator.output_shapes(batch, side, side)]
    return lambda: operator.run(batch, inputs, outputs)


def scan_call(features: Arrays, weights: Arrays) -> Callable[[], object]:
    """The scan behind ScanInputs."""
    y = np.zeros_like(features["x"])
    batch, height, width, channels = features["x"].shape
    shape = scan.ScanShape(batch, height, width, channels, states=weights["A"].shape[-1])
    addresses = {name: array.ctypes.data for name, array in (features | weights).items()}
    held = [features, weights]  # as long as their addresses
    return lambda: scan.forward_pointers(shape, "float32", **addresses, y=y.ctypes.data) if held else None


def function_call(op_type: str, weights: Arrays, maps: Arrays, threads: int) -> Callable[[], object]:
    """The function of standard operators in plain ONNX Runtime."""
    conv = {"LocalBranch": "scale"}.get(op_type, "conv_bias")
    attributes = {"channels": weights[conv].shape[0]} if conv in weights else {}
    if op_type.startswith("Scan"):
        attributes["groups"] = GROUPS
    outputs = {"ScanFeatures": ["tokens", "gate", "features"]}.get(op_type, ["y_out"])
    single = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op_type, [*maps, *weights], outputs, domain=DOMAIN, **attributes)],
        op_type,
        [onnx.helper.make_tensor_value_info(name, single, array.shape) for name, array in maps.items()],
        [onnx.helper.make_tensor_value_info(name, single, None) for name in outputs],
        [onnx.numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )
    return session_call(graph, maps, threads)


def session_call(graph: onnx.GraphProto, inputs: Arrays, threads: int) -> Callable[[], object]:
    """A graph in plain ONNX Runtime."""
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, 1)],
        functions=[*block_functions(OPSET), scan_function(OPSET)],
        ir_version=10,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin after one case would take the cores from the next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, inputs)


def measured_peak(threads: int, clock: Callable[[], float]) -> float:
    """GFLOP/s of a product that nothing but arithmetic limits."""
    square = [PEAK_SIDE, PEAK_SIDE]
    single, info = onnx.TensorProto.FLOAT, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["a", "b"], ["product"])],
        "peak",
        [info(name, single, square) for name in ("a", "b")],
        [info("product", single, square)],
    )
    call = session_call(graph, dict.fromkeys("ab", np.ones(square, np.float32)), threads)
    seconds = []
    for _ in range(40):
        start = clock()
        call()
        seconds.append(clock() - start)
    return 2 * PEAK_SIDE**3 / min(seconds) / 1e9


def stage_calls(
    stage: Any, half: int, batch: int, side: int, threads: int, native_only: bool
) -> dict[str, Callable[[], object]]:
    """Calls by operator and ``native`` or ``function``, such as ``"MIFA native"``."""
    weights, maps = weights_of(stage), maps_of(half, batch, side)
    calls: dict[str, Callable[[], object]] = {}
    for op_type in filter(weights.__contains__, OPERATORS):
        calls[f"{op_type} native"] = native_call(op_type, weights[op_type], maps[op_type], batch)
        if native_only:
            continue
        calls[f"{op_type} function"] = function_call(op_type, weights[op_type], maps[op_type], threads)
    calls["ScanInputs native"] = native_call("ScanInputs", weights["ScanInputs"], maps["ScanInputs"], batch)
    with cpu.BlockOperator("ScanInputs", weights["ScanInputs"]) as operator:
        _, _, x, delta, B, C = operator(batch, *maps["ScanInputs"].values())
    calls["SelectiveScan2D native"] = scan_call(
        {"x": x, "delta": delta, "B": B, "C": C}, weights["SelectiveScan2D"]
    )
    return calls


def interleaved(
    calls: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, NDArray[np.float64]]:
    """Seconds of each call by round; NaN in rounds that left it out."""
    seconds = {name: np.full(rounds, np.nan) for name in calls}
    for call in calls.values():
        call()
    for index in range(rounds):
        for name, call in calls.items():
            if name.endswith("function") and index % ROUNDS_PER_FUNCTION_CALL:
                continue
            start = clock()
            call()
            seconds[name][index] = clock() - start
    return seconds


def figures(seconds: dict[str, NDArray[np.float64]], half: int, positions: int) -> list[dict[str, Any]]:
    """One row an operator: times in ms, the ratio to the function, GFLOP/s of the products at the minimum."""
    rows = []
    for op_type in (*OPERATORS, *BEFORE):
        if (native := seconds.get(f"{op_type} native")) is None:
            continue
        row: dict[str, Any] = {
            "operator": op_type,
            "median_ms": 1e3 * float(np.median(native)),
            "min_ms": 1e3 * float(native.min()),
        }
        if f"{op_type} function" in seconds:
            function = seconds[f"{op_type} function"]
            row["function_ms"] = 1e3 * float(np.nanmedian(function))
            row["ratio"] = float(np.nanmedian(function / native))
        flops = product_flops(op_type, half, positions)
        row["gflops"] = flops / float(native.min()) / 1e9 if flops else None
        rows.append(row)
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--side", type=int, default=56, help="of the first stage's map: 56 at 224 pixels")
    parser.add_argument("--kernels", help="avx512, avx2+vnni, avx2 or baseline")
    parser.add_argument("--native-only", action="store_true", help="leave the functions out")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    if options.side % 8:
        parser.error(f"the side is {options.side}: expected a multiple of 8, which three mergings halve")
    scan.set_threads(options.threads)
    if options.kernels is not None:
        scan.select_kernels(options.kernels)
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    context = {
        "processor": machine.processor(),
        "kernels": scan.kernels(),
        "threads": options.threads,
        "batch": options.batch,
        "rounds": options.rounds,
        "clock": machine.clock_state(),
        "load_average_before": machine.load_average(),
        "onnxruntime": onnxruntime.__version__,
    }
    form = InferenceForm(MicroscopicMamba.of_size("t", num_classes=4).eval())
    stages: Any = form.layers
    results = []
    for index, stage in enumerate(stages, start=1):
        side = options.side >> (index - 1)
        half = stage.blocks[0].Conv_branch.channels
        peak = measured_peak(options.threads, clock)
        calls = stage_calls(stage, half, options.batch, side, options.threads, options.native_only)
        seconds = interleaved(calls, options.rounds, clock)
        rows = figures(seconds, half, options.batch * side * side)
        results.append({"stage": index, "peak_gflops": peak, "operators": rows})
    context["load_average_after"] = machine.load_average()
    show(results, context)
    if options.output is not None:
        options.output.write_text(json.dumps({"context": context, "results": results}, indent=1) + "\n")


def show(results: list[dict[str, Any]], context: dict[str, Any]) -> None:
    """The table, and what it was measured on."""
    table = Table("stage", "operator", "ms", "min ms", "function ms", "ratio", "GFLOP/s", "of peak")
    for stage in results:
        for row in stage["operators"]:
            gflops, ratio = row.get("gflops"), row.get("ratio")
            table.add_row(
                str(stage["stage"]),
                row["operator"],
                f"{row['median_ms']:.3f}",
                f"{row['min_ms']:.3f}",
                f"{row['function_ms']:.2f}" if ratio else "",
                f"{ratio:.1f}" if ratio else "",
                f"{gflops:.0f}" if gflops else "",
                f"{100 * gflops / stage['peak_gflops']:.0f} %" if gflops else "",
            )
    for op_type in (*OPERATORS, *BEFORE):
        of_stages = [row for stage in results for row in stage["operators"] if row["operator"] == op_type]
        counts = MERGINGS if op_type == "PatchMerging" else BLOCKS
        sums = (
            sum(count * row[name] for count, row in zip(counts, of_stages, strict=True))
            for name in ("median_ms", "min_ms")
        )
        table.add_row("tiny", op_type, *(f"{value:.2f}" for value in sums))
    console = Console(width=100)
    console.print(
        f"{context['processor']}, {context['kernels']}, {context['threads']} threads"
        f"{' (processor time)' if context['threads'] == 1 else ''}, "
        f"batch {context['batch']}, {context['rounds']} rounds, "
        f"load average {context['load_average_before']:.1f} before"
    )
    console.print(table)


if __name__ == "__main__":
    main()
