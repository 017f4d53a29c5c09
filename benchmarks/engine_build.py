"""How long TensorRT-RTX takes to build an engine of each network, how large it is, and what it is made of.

    python benchmarks/engine_build.py [--sm 8.6,8.9,12.0] [--networks t s b] [--precisions fp16 fp32]

No GPU is needed. The networks have random weights, four classes and 224x224 images; batches are 1 to 16. The
time is that of parsing and building, with the scan's kernels compiled before. A network that TensorRT-RTX
does not take stands there with its words. Figures of docs/gpu.md and docs/networks.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from msmamba.errors import ExportError
from msmamba.export.bundle import ExportOptions, export_bundle
from msmamba.export.engine.build import EngineOptions
from msmamba.export.engine.engine_bundle import engine_bundle
from msmamba.model import build_network
from msmamba.model.networks.checkpoint import save_checkpoint
from msmamba.plugins.tensorrt_library import link_parser_library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sm", default="8.6,8.9,12.0")
    parser.add_argument("--networks", nargs="+", default=["t", "s", "b"])
    parser.add_argument("--precisions", nargs="+", default=["fp16", "fp32"])
    arguments = parser.parse_args()
    link_parser_library()
    print(f"TensorRT-RTX engines for {arguments.sm}, batches 1 to 16")
    print("| network | precision | scans | plugin layers | MB | s | layers by type | in float32 |")
    print("|---|---|---|---|---|---|---|---|")
    for network in arguments.networks:
        for precision in arguments.precisions:
            print(row(network, precision, arguments.sm.split(",")), flush=True)


def row(name: str, precision: str, compute_capabilities: list[str]) -> str:
    """One engine, as a row of the table."""
    torch.manual_seed(0)
    network = build_network(name, num_classes=4).eval()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, bundle = Path(folder) / "network.safetensors", Path(folder) / "bundle"
        save_checkpoint(
            checkpoint, network, labels=tuple("abcd"), image_size=224, mean=(0.5,) * 3, std=(0.25,) * 3
        )
        scans = export_bundle(checkpoint, bundle, ExportOptions(precision=precision)).scans
        options = EngineOptions.of("tensorrt-rtx", compute_capabilities)
        try:
            engine = engine_bundle(bundle, Path(folder) / "engine", options).engine
        except ExportError as error:
            return f"| {name} | {precision} | {scans} | {error} | | | | |"
    layers = ", ".join(f"{count} {kind}" for kind, count in engine.proof.layers.items())
    return (
        f"| {name} | {precision} | {scans} | {len(engine.proof.plugins)} | {len(engine.plan) / 1e6:.1f} "
        f"| {engine.build_s:.1f} | {layers} | {len(engine.proof.float32_layers)} |"
    )


if __name__ == "__main__":
    main()
