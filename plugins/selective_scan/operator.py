"""The 2D selective scan as a registered PyTorch operator, ``torch.ops.msmamba.selective_scan_2d``.

Importing this module registers the operator with its gradient and its shape rule, so that autograd,
``torch.compile`` and ``torch.export`` treat it as one node. Shapes and meaning: the package's contract.

On the CPU it runs the compiled scan (`cpu`), on CUDA the Triton kernels (`triton_scan`), both forward and
backward. What Triton does not take (it is not installed, say, or the states are not a power of two) goes to
``mamba_ssm``'s kernel where that loads (`mamba_scan`), outside of compiled graphs backward, too. The plain
recurrence (`reference`) computes what none of them takes: float64, other devices, and machines where the
package was installed without a compiler. Whatever is slow is said once. Nothing on CUDA has been executed
yet, so which of the two kernels there is faster is not known; Triton's is taken first since it is
deterministic and copies no map.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from . import DIRECTIONS, ScanShape, cpu, mamba_scan, reference
from .gpu_launch import BLOCK_SHAPES

_NAMES = ("x", "delta", "A", "B", "C", "D", "delta_bias")
_COMPILED_TYPES = (torch.float32, torch.float16, torch.bfloat16)

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def check_arguments(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> None:
    """Refuses arguments that break the contract, naming every mismatch at once.

    Raises:
        ValueError: ranks, shapes, types or devices do not fit together, or the map is empty.
    """
    if x.dim() != 4 or A.dim() != 3:
        raise ValueError(
            f"selective_scan_2d takes x as (batch, H, W, D) and A as (K, D, N); "
            f"found x {tuple(x.shape)} and A {tuple(A.shape)}"
        )
    batch, height, width, channels = x.shape
    states = A.shape[-1]
    projection = (batch, height, width, DIRECTIONS, states)
    expected = {
        "delta": (delta, (batch, height, width, DIRECTIONS, channels)),
        "A": (A, (DIRECTIONS, channels, states)),
        "B": (B, projection),
        "C": (C, projection),
        "D": (D, (DIRECTIONS, channels)),
        "delta_bias": (delta_bias, (DIRECTIONS, channels)),
    }
    wrong = [
        f"{name} is {tuple(tensor.shape)}, expected {shape}"
        for name, (tensor, shape) in expected.items()
        if tuple(tensor.shape) != shape
    ]
    wrong += [
        f"{name} is {tensor.dtype}, expected {x.dtype} as x"
        for name, tensor in (("delta", delta), ("B", B), ("C", C))
        if tensor.dtype != x.dtype
    ]
    wrong += [
        f"{name} is on {tensor.device}, expected {x.device} as x"
        for name, (tensor, _) in expected.items()
        if tensor.device != x.device
    ]
    if not x.is_floating_point():
        wrong.append(f"x is {x.dtype}, expected a floating type")
    if 0 in x.shape or states == 0:
        wrong.append(f"x is {tuple(x.shape)} with {states} states, expected no empty dimension")
    if wrong:
        raise ValueError("selective_scan_2d: " + "; ".join(wrong))


@torch.library.custom_op("msmamba::selective_scan_2d", mutates_args=())
def selective_scan_2d(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """The scan; (batch, H, W, D) in ``x``'s type.

    Raises:
        ValueError: the arguments break the contract.
    """
    check_arguments(x, delta, A, B, C, D, delta_bias)
    inputs = (x, delta, A, B, C, D, delta_bias)
    chosen = _implementation(x, A, D, delta_bias)
    if chosen == "mamba_ssm":
        return mamba_scan.selective_scan_2d(*inputs)
    if chosen == "triton":
        from .triton_scan import selective_scan_2d as on_gpu  # imports Triton

        held_x, *rest = (tensor.contiguous() for tensor in inputs)
        return on_gpu(held_x, *rest)  # type: ignore[arg-type]  # mypy counts no starred arguments
    if chosen == "reference":
        return reference.selective_scan_2d(*inputs)
    held = {name: tensor.contiguous() for name, tensor in zip(_NAMES, inputs, strict=True)}
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    pointers = {name: tensor.data_ptr() for name, tensor in held.items()}
    cpu.forward_pointers(_shape(x, A), str(x.dtype).removeprefix("torch."), **pointers, y=y.data_ptr())
    return y


@torch.library.custom_op("msmamba::selective_scan_2d_backward", mutates_args=())
def selective_scan_2d_backward(
    grad: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Gradients:
    """The gradients of ``x, delta, A, B, C, D, delta_bias``, each in its input's shape and type.

    Half-precision inputs are widened to float32 and their gradients rounded back.
    """
    inputs = (x, delta, A, B, C, D, delta_bias)
    chosen = _implementation(x, A, D, delta_bias)
    if chosen == "triton":
        from .triton_scan import selective_scan_2d_backward as on_gpu  # imports Triton

        held_x, *rest = (tensor.contiguous() for tensor in inputs)
        return on_gpu(grad.to(x.dtype).contiguous(), held_x, *rest)  # type: ignore[arg-type]  # as above
    if chosen == "mamba_ssm":  # otherwise `_backward` computes it
        _warn_slow("mamba_ssm's backward does not run inside a compiled graph: train without torch.compile")
    if chosen != "cpu":
        return reference.selective_scan_2d_backward(grad, *inputs)
    held = [tensor.float().contiguous() for tensor in (grad, *inputs)]
    gradients = [torch.empty_like(tensor) for tensor in held[1:]]
    cpu.backward_pointers(
        _shape(x, A),
        dy=held[0].data_ptr(),
        inputs=[tensor.data_ptr() for tensor in held[1:]],
        gradients=[tensor.data_ptr() for tensor in gradients],
    )
    dx, ddelta, dA, dB, dC, dD, dbias = (
        gradient.to(tensor.dtype) for gradient, tensor in zip(gradients, inputs, strict=True)
    )
    return dx, ddelta, dA, dB, dC, dD, dbias


@selective_scan_2d.register_fake
def _(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@selective_scan_2d_backward.register_fake
def _(
    grad: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Gradients:
    return (
        x.new_empty(x.shape),
        delta.new_empty(delta.shape),
        A.new_empty(A.shape),
        B.new_empty(B.shape),
        C.new_empty(C.shape),
        D.new_empty(D.shape),
        delta_bias.new_empty(delta_bias.shape),
    )


def _implementation(x: Tensor, A: Tensor, *states: Tensor) -> str:
    """What runs these tensors; says once why a slower one runs in the place of a fast one.

    Returns:
        ``cpu``, ``mamba_ssm``, ``triton`` or ``reference``.
    """
    if x.dtype not in _COMPILED_TYPES or any(tensor.dtype != torch.float32 for tensor in (A, *states)):
        return "reference"
    if x.device.type == "cpu":
        return "cpu" if _is_compiled() else "reference"
    if x.device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(x.device)
        chosen, obstacle = _cuda_implementation(A.shape[-1], 10 * major + minor)
    else:
        chosen, obstacle = "reference", f"tensors on {x.device.type} have no faster implementation"
    if obstacle:
        _warn_slow(obstacle)
    return chosen


@cache
def _cuda_implementation(states: int, compute_capability: int) -> tuple[str, str]:
    """What runs a scan on CUDA, and why nothing faster, which is empty where something fast does."""
    wrong = []
    if find_spec("triton") is None:
        wrong.append("triton is not installed")
    if states < 2 or states & (states - 1):
        wrong.append(f"the Triton scan takes a power of two of states, not {states}")
    if compute_capability not in BLOCK_SHAPES:
        wrong.append(f"the Triton scan has no blocks for compute capability {compute_capability / 10:.1f}")
    if not wrong:
        return "triton", ""
    obstacle = mamba_scan.why_unavailable()
    return ("mamba_ssm", "") if obstacle is None else ("reference", "; ".join([*wrong, obstacle]))


@cache
def _warn_slow(reason: str) -> None:
    """Warns once for each reason."""
    warnings.warn(f"scanning by the slow plain recurrence: {reason}", RuntimeWarning, stacklevel=2)


@cache
def _is_compiled() -> bool:
    reason = cpu.why_unavailable()
    if reason is not None:
        _warn_slow(reason)
    return reason is None


def _shape(x: Tensor, A: Tensor) -> ScanShape:
    batch, height, width, channels = x.shape
    return ScanShape(batch, height, width, channels, A.shape[-1])


def _save_inputs(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor
) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> Gradients:
    inputs = ctx.saved_tensors
    x, _, A, _, _, D, delta_bias = inputs
    # Tracing hands in tensors of its own kinds, and what they go through must be one operator.
    is_traced = torch.compiler.is_compiling() or type(grad) is not Tensor
    if not is_traced and _implementation(x, A, D, delta_bias) == "mamba_ssm":
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("mamba_ssm's backward adds by atomics and has no deterministic algorithm")
        # Here and not in the operator: its body runs below autograd, which records nothing there.
        with torch.enable_grad():
            leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs)
            y = mamba_scan.selective_scan_2d(*leaves)
        return torch.autograd.grad(y, leaves, grad)  # type: ignore[return-value]  # as many as leaves
    return selective_scan_2d_backward(grad, *inputs)


selective_scan_2d.register_autograd(_backward, setup_context=_save_inputs)
