"""The registered PyTorch operator: registration, values, gradients, and arguments that it refuses."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from msmamba.plugins.selective_scan import DIRECTIONS, mamba_scan, operator, reference
from msmamba.plugins.selective_scan.operator import selective_scan_2d

NAMES = ("x", "delta", "A", "B", "C", "D", "delta_bias")


def arguments(
    batch: int = 2,
    height: int = 3,
    width: int = 5,
    channels: int = 4,
    states: int = 2,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Random arguments of the contract, in its order; the states' three stay at least float32."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return [
        normal(batch, height, width, channels),
        normal(batch, height, width, DIRECTIONS, channels) - 1,
        -torch.exp(normal(DIRECTIONS, channels, states, dtype=wide)),
        normal(batch, height, width, DIRECTIONS, states),
        normal(batch, height, width, DIRECTIONS, states),
        normal(DIRECTIONS, channels, dtype=wide),
        normal(DIRECTIONS, channels, dtype=wide),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_opcheck_passes(dtype: torch.dtype) -> None:
    inputs = [tensor.requires_grad_() for tensor in arguments(dtype=dtype)]
    torch.library.opcheck(torch.ops.msmamba.selective_scan_2d.default, inputs)


def test_gradcheck_passes_for_every_input() -> None:
    inputs = [tensor.requires_grad_() for tensor in arguments(1, 2, 3, 2, 2, dtype=torch.float64)]
    assert torch.autograd.gradcheck(selective_scan_2d, inputs)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((1, 1, 1, 1, 1), id="one-of-everything"),
        pytest.param((1, 1, 9, 17, 16), id="one-row"),
        pytest.param((3, 7, 5, 33, 16), id="odd"),
        pytest.param((2, 4, 4, 24, 5), id="five-states"),
    ],
)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["float32", "float16", "bfloat16"]
)
def test_values_and_gradients_are_as_exact_as_the_reference(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype
) -> None:
    inputs = [tensor.requires_grad_() for tensor in arguments(*shape, dtype=dtype)]
    grad = torch.linspace(-1, 1, inputs[0].numel()).view_as(inputs[0]).to(dtype)
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    exact = reference.selective_scan_2d(*exact_inputs)
    exact_grads = torch.autograd.grad(exact, exact_inputs, grad.double())
    plain = [tensor.detach() for tensor in inputs]
    own = [reference.selective_scan_2d(*plain), *reference.selective_scan_2d_backward(grad, *plain)]

    y = selective_scan_2d(*inputs)
    found = [y.detach(), *torch.autograd.grad(y, inputs, grad)]
    for name, value, ours, truth in zip(
        ("y", *NAMES), found, own, (exact.detach(), *exact_grads), strict=True
    ):
        allowed = 2 * (ours.double() - truth).abs().max()
        # Where the reference happens to be exact, a few units in the last place are still allowed.
        allowed += 4 * torch.finfo(value.dtype).eps * truth.abs().max()
        assert (value.double() - truth).abs().max() <= allowed, name


def test_inputs_that_are_not_contiguous_give_the_same() -> None:
    inputs = arguments()
    strided = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in inputs]
    assert not strided[0].is_contiguous()
    assert torch.equal(selective_scan_2d(*strided), selective_scan_2d(*inputs))


def test_nan_stays_where_the_scan_carries_it() -> None:
    inputs = arguments(batch=2)
    inputs[0][0, 0, 0, 1] = float("nan")
    y = selective_scan_2d(*inputs)
    assert torch.isnan(y[0, ..., 1]).all()  # every position comes after it in some direction
    assert torch.isfinite(y[0, ..., [0, 2, 3]]).all()
    assert torch.isfinite(y[1]).all()


def changed(name: str, value: Tensor) -> list[Tensor]:
    return [value if given == name else tensor for given, tensor in zip(NAMES, arguments(), strict=True)]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        pytest.param(changed("x", torch.zeros(3, 5, 4)), "x as (batch, H, W, D)", id="rank"),
        pytest.param(changed("delta", torch.zeros(2, 3, 5, 4)), "delta is (2, 3, 5, 4)", id="delta"),
        pytest.param(changed("B", torch.zeros(2, 3, 5, 4, 3)), "B is (2, 3, 5, 4, 3)", id="states"),
        pytest.param(
            changed("C", torch.zeros(2, 3, 5, 4, 2).half()), "C is torch.float16, expected", id="mixed-types"
        ),
        pytest.param(changed("x", torch.zeros(2, 3, 5, 4).long()), "expected a floating type", id="integers"),
        pytest.param(arguments(height=0), "no empty dimension", id="zero-length"),
        pytest.param(arguments(states=0), "no empty dimension", id="no-states"),
    ],
)
def test_arguments_that_break_the_contract_are_named(inputs: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        selective_scan_2d(*inputs)


def test_every_mismatch_is_named_at_once() -> None:
    inputs = arguments()
    inputs[1], inputs[5] = inputs[1][:1], inputs[5][:2]
    with pytest.raises(ValueError, match=r"delta is .*; D is "):
        selective_scan_2d(*inputs)


def sequence_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """What ``mamba_ssm.selective_scan_fn`` computes, step by step (mamba_ssm itself wants a GPU)."""
    assert delta_softplus
    batch, dim, length = u.shape
    step = torch.nn.functional.softplus(delta + delta_bias[:, None])
    repeats = dim // B.shape[1]
    into, out = (tensor.repeat_interleave(repeats, 1) for tensor in (B, C))  # (batch, dim, N, L)
    state = u.new_zeros(batch, dim, A.shape[1])
    outputs = []
    for t in range(length):
        decay = torch.exp(step[..., t, None] * A)
        state = decay * state + (step[..., t] * u[..., t])[..., None] * into[..., t]
        outputs.append((state * out[..., t]).sum(-1))
    return torch.stack(outputs, -1) + D[:, None] * u


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 3, 5, 4, 2), (1, 4, 4, 3, 16)], ids=str)
def test_the_scan_by_sequences_is_the_scan_in_value_and_gradient(
    shape: tuple[int, int, int, int, int],
) -> None:
    inputs = [tensor.requires_grad_() for tensor in arguments(*shape, dtype=torch.float64)]
    y = mamba_scan.selective_scan_2d(*inputs, sequence_scan=sequence_scan)
    expected = reference.selective_scan_2d(*inputs)
    torch.testing.assert_close(y, expected)
    grad = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
    plain = [tensor.detach() for tensor in inputs]
    for name, found, truth in zip(
        NAMES,
        torch.autograd.grad(y, inputs, grad),
        reference.selective_scan_2d_backward(grad, *plain),
        strict=True,
    ):
        torch.testing.assert_close(found, truth, msg=name)


@pytest.mark.parametrize(
    ("installed", "scan", "expected"),
    [
        pytest.param(
            {"mamba_ssm", "triton"}, (torch.bfloat16, 5, 70), ("mamba_ssm", ""), id="mamba-takes-all"
        ),
        pytest.param({"triton"}, (torch.float16, 16, 89), ("triton", ""), id="triton"),
        pytest.param(
            set(),
            (torch.float32, 16, 89),
            ("reference", "neither mamba_ssm nor triton is installed"),
            id="nothing-installed",
        ),
        pytest.param(
            {"triton"},
            (torch.bfloat16, 5, 70),
            (
                "reference",
                "the Triton scan takes float32 and float16, not bfloat16; "
                "the Triton scan takes a power of two of states, not 5; "
                "the Triton scan has no blocks for compute capability 7.0",
            ),
            id="what-triton-does-not-take",
        ),
    ],
)
def test_what_runs_on_cuda_is_chosen_by_what_is_there(
    installed: set[str],
    scan: tuple[torch.dtype, int, int],
    expected: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (mamba_scan, operator):
        monkeypatch.setattr(module, "find_spec", lambda name: name in installed or None)
    operator._cuda_implementation.cache_clear()
    try:
        assert operator._cuda_implementation(*scan) == expected
    finally:
        operator._cuda_implementation.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 16), (3, 7, 5, 33, 16), (2, 14, 14, 96, 16)], ids=str)
@pytest.mark.filterwarnings("ignore:scanning by the slow plain recurrence:RuntimeWarning")
def test_on_cuda_values_and_gradients_are_as_exact_as_the_reference(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch finds no CUDA device")
    on_cpu = arguments(*shape, dtype=dtype)
    grad = torch.linspace(-1, 1, on_cpu[0].numel()).view_as(on_cpu[0]).to(dtype)
    exact_inputs = [tensor.double() for tensor in on_cpu]
    exact = [
        reference.selective_scan_2d(*exact_inputs),
        *reference.selective_scan_2d_backward(grad.double(), *exact_inputs),
    ]
    own = [reference.selective_scan_2d(*on_cpu), *reference.selective_scan_2d_backward(grad, *on_cpu)]
    inputs = [tensor.cuda().requires_grad_() for tensor in on_cpu]
    y = selective_scan_2d(*inputs)
    found = [y.detach(), *torch.autograd.grad(y, inputs, grad.cuda())]
    for name, value, ours, truth in zip(("y", *NAMES), found, own, exact, strict=True):
        allowed = 2 * (ours.double() - truth).abs().max()
        allowed += 4 * torch.finfo(value.dtype).eps * truth.abs().max()
        assert (value.cpu().double() - truth).abs().max() <= allowed, name


@pytest.mark.gpu
def test_opcheck_passes_on_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch finds no CUDA device")
    inputs = [tensor.cuda() for tensor in arguments(states=16)]
    torch.library.opcheck(torch.ops.msmamba.selective_scan_2d.default, inputs)
