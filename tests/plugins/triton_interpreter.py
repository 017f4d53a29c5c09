"""A worker that runs the Triton scan in Triton's interpreter: one line of standard input per scan.

The interpreter is chosen while the kernels are imported, so it needs a process of its own. A line is a
JSON object: ``inputs`` (an .npz of the operator's arguments), ``output`` (the .npy to write), ``chunks``,
``block`` (channels, steps). Every buffer the kernels write is filled with NaN first. The answer is a
line ``done``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from msmamba.plugins.selective_scan import triton_scan
from msmamba.plugins.selective_scan.gpu_launch import BlockShape


def main() -> None:
    torch.use_deterministic_algorithms(True)  # torch.empty then fills with NaN
    for line in sys.stdin:
        job: dict[str, Any] = json.loads(line)
        with np.load(job["inputs"]) as file:
            tensors = {name: torch.from_numpy(file[name]) for name in file.files}
        y = triton_scan.selective_scan_2d(
            **tensors, chunks=job["chunks"], block=BlockShape(*job["block"]) if job["block"] else None
        )
        np.save(Path(job["output"]), y.numpy())
        print("done", flush=True)


if __name__ == "__main__":
    main()
