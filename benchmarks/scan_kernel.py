"""The scan alone at the four stage shapes of tiny (224 pixels, batch 1): ours, and ONNX `Scan`, in one run.

Ours is measured through both doors of the library, ctypes and ONNX Runtime; theirs is the model-local
function (`onnx_function`) in ONNX Runtime. Cases are interleaved, one call each a round; figures are medians
over rounds, ratios medians of ratios within rounds. A state update is one step of one state of one
channel in one direction, batch * K * L * D * N of them.

    python benchmarks/scan_kernel.py [--rounds 60] [--threads 2] [-o FILE]

The last column is what channels first would cost on top: the time to bring x, delta, B and C from
channels-first memory into the contract's layout. The kernel's vectors hold channels, so it needs them side by
side; from channels first, every step would have to gather its lanes from as many cache lines.
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
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from msmamba import machine
from msmamba.plugins.selective_scan import DIRECTIONS, cpu, onnx_function, reference

STAGES = {  # (batch: the four channel groups, H, W, D, N)
    "stage 1": (4, 56, 56, 24, 16),
    "stage 2": (4, 28, 28, 48, 16),
    "stage 3": (4, 14, 14, 96, 16),
    "stage 4": (4, 7, 7, 192, 16),
}
ROUNDS_PER_FUNCTION_CALL = 4
"""The ONNX function takes most of the time: it runs in every fourth round only."""

Arrays = dict[str, NDArray[np.float32]]


def arguments(batch: int, height: int, width: int, channels: int, states: int) -> Arrays:
    """Inputs distributed as in the network at initialisation."""
    rng = np.random.default_rng(0)
    position = (batch, height, width)
    step = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), (DIRECTIONS, channels)))
    inputs = {
        "x": rng.standard_normal((*position, channels)),
        "delta": rng.standard_normal((*position, DIRECTIONS, channels)),
        "A": -np.arange(1, states + 1) * np.ones((DIRECTIONS, channels, 1)),
        "B": rng.standard_normal((*position, DIRECTIONS, states)),
        "C": rng.standard_normal((*position, DIRECTIONS, states)),
        "D": np.ones((DIRECTIONS, channels)),
        "delta_bias": np.log(np.expm1(step)),
    }
    return {name: array.astype(np.float32) for name, array in inputs.items()}


def library_call(inputs: Arrays) -> Callable[[], object]:
    """The ctypes door, into memory that is there already."""
    y = np.empty_like(inputs["x"])
    batch, height, width, channels = inputs["x"].shape
    shape = cpu.ScanShape(batch, height, width, channels, states=inputs["A"].shape[-1])
    addresses = {name: array.ctypes.data for name, array in inputs.items()}
    return lambda: cpu.forward_pointers(shape, "float32", **addresses, y=y.ctypes.data)


def session_call(inputs: Arrays, threads: int, *, native: bool) -> Callable[[], object]:
    """A model of one scan node in ONNX Runtime, by our kernel or by the model's function."""
    info = onnx.helper.make_tensor_value_info
    single = onnx.TensorProto.FLOAT
    node = onnx.helper.make_node(onnx_function.OP_TYPE, list(inputs), ["y"], domain=onnx_function.DOMAIN)
    graph = onnx.helper.make_graph(
        [node],
        "scan",
        [info(name, single, array.shape) for name, array in inputs.items()],
        [info("y", single, inputs["x"].shape)],
    )
    opsets = {"": 20, onnx_function.DOMAIN: onnx_function.DOMAIN_VERSION}
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        functions=[onnx_function.scan_function(20)],
        ir_version=10,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin after one case would take the cores from the next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if native:
        options.register_custom_ops_library(str(cpu.library_path()))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("y")
    return lambda: session.run_with_iobinding(binding)


def layout_call(inputs: Arrays) -> Callable[[], object]:
    """From channels first (B, D, H, W), (B, K, D, H, W), (B, K, N, H, W) to the contract's layout."""
    pairs = []
    for name in ("x", "delta", "B", "C"):
        last = torch.from_numpy(inputs[name])
        to_first = (0, 3, 1, 2) if name == "x" else (0, 3, 4, 1, 2)
        to_last = (0, 2, 3, 1) if name == "x" else (0, 3, 4, 1, 2)
        first = last.permute(to_first).contiguous()
        pairs.append((torch.empty_like(last), first.permute(to_last)))

    def rearrange() -> None:
        for target, source in pairs:
            target.copy_(source)

    return rearrange


def error_ratio(inputs: Arrays) -> float:
    """Largest error against the float64 reference, over the float32 reference's own."""
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    truth = reference.selective_scan_2d(**{name: tensor.double() for name, tensor in tensors.items()}).numpy()
    single = reference.selective_scan_2d(**tensors).numpy()
    return float(np.abs(cpu.selective_scan_2d(**inputs) - truth).max() / np.abs(single - truth).max())


def measure(sizes: tuple[int, int, int, int, int], rounds: int, threads: int) -> dict[str, Any]:
    """One shape: medians in milliseconds, ratios, ns a state update."""
    inputs = arguments(*sizes)
    batch, height, width, channels, states = sizes
    updates = batch * DIRECTIONS * height * width * channels * states
    with_threads = {
        "library": (library_call(inputs), threads),
        "library, one thread": (library_call(inputs), 1),
        "onnxruntime kernel": (session_call(inputs, threads, native=True), threads),
    }
    function = session_call(inputs, threads, native=False)
    taken: dict[str, list[float]] = {name: [] for name in (*with_threads, "onnxruntime Scan")}
    ratios = []
    function()
    for number in range(-3, rounds):  # the first rounds warm up
        milliseconds = {}
        for name, (call, count) in with_threads.items():
            cpu.set_threads(count)
            milliseconds[name] = _milliseconds(call)
        if number >= 0 and number % ROUNDS_PER_FUNCTION_CALL == 0:
            milliseconds["onnxruntime Scan"] = _milliseconds(function)
            ratios.append(milliseconds["onnxruntime Scan"] / milliseconds["library"])
        if number >= 0:
            for name, value in milliseconds.items():
                taken[name].append(value)
    cpu.set_threads(threads)
    # Apart from the rounds: PyTorch's threads spin for a while after each call and would hold a core.
    rearrange = layout_call(inputs)
    taken["layout"] = [_milliseconds(rearrange) for _ in range(rounds)]
    return {
        "sizes": sizes,
        "updates": updates,
        "median_ms": {name: float(np.median(values)) for name, values in taken.items()},
        "min_ms": {name: min(values) for name, values in taken.items()},
        "ns_per_update": float(np.median(taken["library"])) * 1e6 / updates,
        "ns_per_update_best": min(taken["library"]) * 1e6 / updates,
        "times_onnx_scan": float(np.median(ratios)),
        "error_over_float32_reference": error_ratio(inputs),
    }


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def show(results: dict[str, dict[str, Any]], console: Console) -> None:
    """The table."""
    table = Table(caption="medians, milliseconds; best of all rounds in brackets")
    headings = (
        *("", "H x W x D", "ns/update", "library", "one thread", "ORT kernel", "ORT Scan", "x faster"),
        *("error / float32's", "+ channels first"),
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for stage, result in results.items():
        median, least = result["median_ms"], result["min_ms"]
        _, height, width, channels, _ = result["sizes"]
        table.add_row(
            stage,
            f"{height} x {width} x {channels}",
            f"{result['ns_per_update']:.3f} ({result['ns_per_update_best']:.3f})",
            *(
                f"{median[name]:.2f} ({least[name]:.2f})"
                for name in ("library", "library, one thread", "onnxruntime kernel", "onnxruntime Scan")
            ),
            f"{result['times_onnx_scan']:.0f}",
            f"{result['error_over_float32_reference']:.2f}",
            f"{median['layout']:.2f} ({median['layout'] / median['library']:.0%})",
        )
    console.print(table)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=150)
    context = {
        "processor": machine.processor(),
        "kernels": cpu.kernels(),
        "threads": options.threads,
        "rounds": options.rounds,
        "clock": machine.clock_state(),
        "load_average_before": machine.load_average(),
        "onnxruntime": onnxruntime.__version__,
    }
    results = {stage: measure(sizes, options.rounds, options.threads) for stage, sizes in STAGES.items()}
    context["load_average_after"] = machine.load_average()
    console.print(
        f"{context['processor']}, {context['kernels']}, {options.threads} threads, {options.rounds} rounds, "
        f"load average {context['load_average_before']:.1f} before"
    )
    show(results, console)
    if options.output is not None:
        options.output.write_text(json.dumps({"context": context, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
