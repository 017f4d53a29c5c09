"""The kernels of the scan's gradients, launched by the product's own code, executed in the CPU emulator.

PyTorch's and Triton's launcher is played: the arrays, grids and sums are the product's, on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_cases import ARGUMENTS, STATES, ScanCase, gradient_truth, in_type
from numpy.typing import NDArray
from torch import Tensor

from msmamba.model.training.loop import deterministic_algorithms
from msmamba.plugins.selective_scan import gpu_launch, triton_scan
from msmamba.plugins.selective_scan.gpu_launch import BLOCK_SHAPES, BlockShape, Launch
from ptx.emulator import ORDERS, Order, emulate

Arrays = dict[str, NDArray[np.generic]]


@pytest.fixture
def emulated_gradients(ptx_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Arrays]:
    """Computes a case's gradients by the code for a compute capability; bfloat16 comes back in float32."""

    def run(
        inputs: Arrays, element_type: str, compute_capability: int, order: Order = "forward", ulps: int = 0
    ) -> Arrays:
        def launch_all(
            launches: Sequence[Launch], tensors: Mapping[str, Tensor], states: int, block: BlockShape
        ) -> None:
            assert (states, block) == (STATES, gpu_launch.BACKWARD_BLOCK)
            bits = {2: torch.int16, 4: torch.int32}
            arrays = {name: t.view(bits[t.element_size()]).numpy() for name, t in tensors.items()}
            for name in (*ARGUMENTS, "grad"):
                arrays[name].flags.writeable = False
            for launch in launches:
                kernel = launch.kernel
                compiled = triton_scan.compile_kernel(kernel, element_type, states, compute_capability)
                emulated = emulate(compiled.asm["ptx"], ptx_cache)
                buffers = [arrays[name] for name in gpu_launch.KERNEL_POINTERS[kernel]]
                values = [array.ctypes.data.to_bytes(8, "little") for array in buffers]
                values += [scalar.to_bytes(4, "little") for scalar in launch.scalars]
                values += [bytes(8)] * (len(emulated.kernel.parameters) - len(values))  # Triton's own
                threads, shared = compiled.metadata.num_warps * gpu_launch.WARP, compiled.metadata.shared
                emulated.launch(launch.grid, threads, shared, values, buffers, order, ulps)

        monkeypatch.setattr(triton_scan, "run_launches", launch_all)
        dtype = getattr(torch, element_type)
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        for name in tensors.keys() - {"A", "D", "delta_bias"}:
            tensors[name] = tensors[name].to(dtype)
        with deterministic_algorithms(True):  # so that what is not written is NaN
            found = triton_scan.selective_scan_2d_backward(**tensors)
        named = zip(ARGUMENTS, found, strict=True)
        return {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in named}

    return run


# Half precision differs in its loads and stores alone: it is tried where these are made in other ways.
CASES = [
    *((compute_capability, "float32") for compute_capability in BLOCK_SHAPES),
    *(
        (compute_capability, half)
        for compute_capability in (75, 80, 90, 120)
        for half in ("float16", "bfloat16")
    ),
]


@pytest.mark.parametrize(("compute_capability", "element_type"), CASES)
def test_every_kernel_of_the_gradients_in_every_thread_order(
    emulated_gradients: Callable[..., Arrays], compute_capability: int, element_type: str
) -> None:
    """Two blocks of channels, the second of five, and lines of nine and twelve, which end within a tile."""
    case = ScanCase(1, 9, 12, 13)
    dtype = getattr(torch, element_type)
    inputs = in_type({**case.inputs(), "grad": case.output_gradient()}, dtype)
    expected = gradient_truth(inputs, inputs["grad"], dtype)
    answers = [emulated_gradients(inputs, element_type, compute_capability, order) for order in ORDERS]
    expected.check(answers[0])
    for answer in answers[1:]:
        for name in ARGUMENTS:
            np.testing.assert_array_equal(answer[name], answers[0][name])
