"""One image through the whole network: msmamba's session, plain PyTorch, and ConvNeXt-tiny, in one run.

All cases are interleaved, one call each a round, so that whatever slows the machine slows all of them, and
ratios are medians of ratios within rounds. The plain recurrence, seconds an image, runs in every tenth round.

    python benchmarks/end_to_end.py [--rounds 40] [-o FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
import torch
from convnext import convnext_tiny
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

import msmamba
from msmamba import machine
from msmamba.export.bundle import ExportOptions, export_bundle
from msmamba.model import MicroscopicMamba
from msmamba.model.networks import ss2d
from msmamba.model.networks.checkpoint import save_checkpoint
from msmamba.model.training.threads import set_threads
from msmamba.plugins.selective_scan import reference

THREADS = 2
PAUSE_S = 0.05
"""Between calls: PyTorch's idle threads spin for a while, and would keep a core from the next."""
RARE = 10
"""Of so many rounds one runs what takes seconds."""


def images(batch: int, size: int = 224) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Noise of the network's input shape."""
    return np.random.default_rng(0).standard_normal((batch, 3, size, size)).astype(np.float32)


def export_tiny(folder: Path, size: int) -> Path:
    """A bundle of tiny with random weights."""
    torch.manual_seed(0)
    checkpoint, bundle = folder / f"t{size}.safetensors", folder / f"t{size}"
    save_checkpoint(
        checkpoint,
        MicroscopicMamba.of_size("t", num_classes=4),
        labels=list("abcd"),
        image_size=size,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    export_bundle(checkpoint, bundle, ExportOptions())
    return bundle


def convnext_session(folder: Path) -> onnxruntime.InferenceSession:
    """ConvNeXt-tiny in ONNX Runtime."""
    path = folder / "convnext.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            convnext_tiny().eval(), (torch.from_numpy(images(1)),), path, dynamo=True, verbose=False
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def one_by_one(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """The scan as the released code walks it: one group, one direction, one position at a time."""
    batch, height, width, channels = x.shape
    y = torch.zeros(batch, height * width, channels)
    for image in range(batch):
        for k, order in enumerate(reference.direction_order(height, width)):
            u = x[image].flatten(0, 1)[order]  # (L, D)
            step = functional.softplus(delta[image, ..., k, :].flatten(0, 1)[order] + delta_bias[k])
            b = B[image, ..., k, :].flatten(0, 1)[order]  # (L, N)
            c = C[image, ..., k, :].flatten(0, 1)[order]
            h = torch.zeros(channels, b.shape[1])
            for t, position in enumerate(order.tolist()):
                h = torch.exp(step[t, :, None] * A[k]) * h + (step[t] * u[t])[:, None] * b[t]
                y[image, position] += h @ c[t] + D[k] * u[t]
    return y.view_as(x)


def with_scan(scan: Callable[..., Tensor], net: MicroscopicMamba, batch: Tensor) -> None:
    """The network in PyTorch with another implementation of its scan."""
    with patch.object(ss2d, "selective_scan_2d", scan), torch.no_grad():
        net(batch)


def compiled_pytorch(net: MicroscopicMamba, batch: Tensor) -> None:
    """The network in PyTorch with the compiled scan."""
    with torch.no_grad():
        net(batch)


def measure(
    cases: dict[str, Callable[[], object]], rare: dict[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of every call, by case; ``rare`` cases run in one of `RARE` rounds."""
    for call in (*cases.values(), *cases.values()):
        call()
    taken: dict[str, list[float]] = {name: [] for name in (*cases, *rare)}
    for number in range(rounds):
        for name, call in {**cases, **(rare if number % RARE == 0 else {})}.items():
            time.sleep(PAUSE_S)
            start = time.perf_counter()
            call()
            taken[name].append(1e3 * (time.perf_counter() - start))
    return taken


def peak_memory_mb(bundle: Path, batch: int) -> float:
    """Resident high-water mark of a process that opens the bundle and runs three batches; 10^6 bytes."""
    request = json.dumps({"artefact": str(bundle), "batch_size": batch, "device": "cpu", "threads": THREADS})
    probe = [sys.executable, "-m", "msmamba.runtime.memory_probe", request]
    return int(subprocess.run(probe, check=True, capture_output=True, text=True).stdout) / 1e6


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("-o", "--output", type=Path, help="write all samples there as JSON")
    arguments = parser.parse_args()
    set_threads(THREADS)  # PyTorch's, and those of the compiled scan in it
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, large = export_tiny(folder, 224), export_tiny(folder, 448)
        memory = peak_memory_mb(small, 1)
        yardstick = convnext_session(folder)
        (input_name,) = (value.name for value in yardstick.get_inputs())
        net = MicroscopicMamba.from_checkpoint(folder / "t224.safetensors")
        one, eight, large_one = images(1), images(8), images(1, 448)
        with (
            msmamba.open(small, device="cpu", threads=THREADS) as session,
            msmamba.open(small, device="cpu", threads=THREADS, kernels="functions") as functions,
            msmamba.open(large, device="cpu", threads=THREADS) as session_448,
        ):
            cases: dict[str, Callable[[], object]] = {
                "tiny 224, session": lambda: session.run(one),
                "ConvNeXt-tiny 224, ONNX Runtime": lambda: yardstick.run(None, {input_name: one}),
                "tiny 448, session": lambda: session_448.run(large_one),
                "tiny 224, session, batch 8": lambda: session.run(eight),
                "tiny 224, PyTorch, compiled scan": lambda: compiled_pytorch(net, torch.from_numpy(one)),
            }
            rare: dict[str, Callable[[], object]] = {
                "tiny 224, ONNX functions": lambda: functions.run(one),
                "tiny 224, PyTorch, plain recurrence, batched": lambda: with_scan(
                    reference.selective_scan_2d, net, torch.from_numpy(one)
                ),
                "tiny 224, PyTorch, plain recurrence, one by one": lambda: with_scan(
                    one_by_one, net, torch.from_numpy(one)
                ),
            }
            taken = measure(cases, rare, arguments.rounds)
            executed_by = session.path

    base = np.array(taken["tiny 224, session"])
    table = Table(title=f"{machine.processor()}, {THREADS} threads, {executed_by}")
    for column in ("case", "median ms", "p90", "min", "ratio to tiny 224"):
        table.add_column(column, justify="left" if column == "case" else "right")
    ratios = {}
    for case, samples in taken.items():
        beside = base if case in cases else base[::RARE]
        ratios[case] = float(np.median(np.array(samples) / beside))
        row = (np.median(samples), np.quantile(samples, 0.9), min(samples), ratios[case])
        table.add_row(case, *(f"{value:.2f}" for value in row))
    Console(width=120).print(table)
    print(f"peak memory of a process that runs tiny 224 without torch: {memory:.0f} MB")
    if arguments.output:
        result = {"samples_ms": taken, "ratios": ratios, "peak_memory_mb": memory, "executed_by": executed_by}
        arguments.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
