"""Forward plus backward of tiny: the compiled scan against the plain recurrence; and the step of Adam.

    python benchmarks/training_step.py [--image-size 128] [--batch 8] [--rounds 5] [--no-recurrence]

The plain recurrence keeps every state for its backward pass, about 15 GB at 224 pixels and batch 8, hence
the smaller default.
"""

from __future__ import annotations

import argparse
import time
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.nn import functional

from msmamba.model import MicroscopicMamba
from msmamba.model.networks import ss2d
from msmamba.model.training.threads import set_threads
from msmamba.plugins.selective_scan import operator, reference

THREADS = 2
ADAMS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
SCANS = {
    "compiled": operator.selective_scan_2d,
    "plain recurrence": reference.selective_scan_2d,
}


def step(net: MicroscopicMamba, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Seconds of one forward and backward pass."""
    net.zero_grad()
    start = time.perf_counter()
    functional.cross_entropy(net(images), labels).backward()
    return time.perf_counter() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-recurrence", action="store_true", help="time the compiled scan alone")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    set_threads(THREADS)  # PyTorch's, and those of the compiled scan
    net = MicroscopicMamba.of_size("t", num_classes=4).train()
    images = torch.randn(arguments.batch, 3, arguments.image_size, arguments.image_size)
    labels = torch.randint(0, 4, (arguments.batch,))
    scans = dict(list(SCANS.items())[:1]) if arguments.no_recurrence else SCANS
    adams = {
        name: torch.optim.Adam(net.parameters(), lr=1e-6, weight_decay=1e-4, **how)
        for name, how in ADAMS.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in (*scans, *adams)}
    for number in range(arguments.rounds + 1):  # the first round warms up
        for name, scan in scans.items():
            with patch.object(ss2d, "selective_scan_2d", scan):
                seconds = step(net, images, labels)
            if number:
                taken[name].append(seconds)
        for name, adam in adams.items():
            start = time.perf_counter()
            adam.step()
            if number:
                taken[name].append(time.perf_counter() - start)
    for name, samples in taken.items():
        shown = f"Adam, {name}" if name in adams else name
        print(f"{shown:17} median {np.median(samples):8.4f} s  min {min(samples):8.4f} s")
    if arguments.no_recurrence:
        return
    ratio = np.median(np.array(taken["plain recurrence"]) / np.array(taken["compiled"]))
    print(f"ratio within rounds, median: {ratio:.1f}")


if __name__ == "__main__":
    main()
