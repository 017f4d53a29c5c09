"""A worker that runs the Triton scan in Triton's interpreter: one line of standard input per scan.

The interpreter is chosen while the kernels are imported, so it needs a process of its own. A line is a
JSON object: ``inputs`` (an .npz of the operator's arguments, with ``grad`` among them for the gradients),
``output`` (the .npz to write), ``chunks``, ``block`` (channels, steps). Every buffer the kernels write is
filled with NaN first. The answer is a line ``done``.

While a kernel runs, Triton's language is replaced by the interpreter's. Triton 3.9 does that at the kernel's
start and again in every call of a function, which takes two fifths of the time and finds something to replace
in the first call into a module only: the others are spared it here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction

from msmamba.plugins.selective_scan import triton_scan
from msmamba.plugins.selective_scan.gpu_launch import BlockShape

ARGUMENTS = ("x", "delta", "A", "B", "C", "D", "delta_bias")
patched: set[str] = set()
"""The modules whose functions have been called."""


def call(function: InterpretedFunction[Any], *arguments: Any, **named: Any) -> Any:
    """A kernel's call of a function."""
    module = function.fn.__module__
    if module not in patched:
        interpreter._patch_lang(function.fn)
        patched.add(module)
    return function.rewrite()(*arguments, **named)


def main() -> None:
    InterpretedFunction.__call__ = call
    torch.use_deterministic_algorithms(True)  # torch.empty then fills with NaN
    for line in sys.stdin:
        job: dict[str, Any] = json.loads(line)
        with np.load(job["inputs"]) as file:
            tensors = {name: torch.from_numpy(file[name]) for name in file.files}
        block = {"block": BlockShape(*job["block"])} if job["block"] else {}
        if "grad" in tensors:
            found = triton_scan.selective_scan_2d_backward(**tensors, **block)
            answers = dict(zip(ARGUMENTS, found, strict=True))
        else:
            answers = {"y": triton_scan.selective_scan_2d(**tensors, chunks=job["chunks"], **block)}
        np.savez(Path(job["output"]), **{name: tensor.numpy() for name, tensor in answers.items()})
        print("done", flush=True)


if __name__ == "__main__":
    main()
