"""The registered PyTorch operator: registration, values, gradients, and arguments that it refuses."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from msmamba.errors import BackendError
from msmamba.model.training.loop import deterministic_algorithms
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


@pytest.fixture
def played_mamba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``mamba_ssm`` that scans on the CPU, taken for every tensor."""
    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = sequence_scan  # type: ignore[attr-defined]  # what mamba_ssm's module has
    monkeypatch.setitem(sys.modules, "mamba_ssm", ModuleType("mamba_ssm"))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops", ModuleType("mamba_ssm.ops"))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    monkeypatch.setattr(operator, "_implementation", lambda *tensors: "mamba_ssm")
    operator._warn_slow.cache_clear()
    yield
    operator._warn_slow.cache_clear()


@pytest.mark.usefixtures("played_mamba")
@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
def test_the_operator_has_gradients_where_mamba_runs_it(is_compiled: bool) -> None:
    inputs = [tensor.requires_grad_() for tensor in arguments(dtype=torch.float64)]
    plain = [tensor.detach() for tensor in inputs]
    grad = torch.linspace(-1, 1, inputs[0].numel(), dtype=torch.float64).view_as(inputs[0])
    if is_compiled:
        y = torch.compile(selective_scan_2d, backend="aot_eager")(*inputs)
        told = pytest.warns(RuntimeWarning, match="mamba_ssm's backward does not run inside a compiled")
    else:
        y, told = selective_scan_2d(*inputs), nullcontext()
    torch.testing.assert_close(y, reference.selective_scan_2d(*plain))
    with told:
        found = torch.autograd.grad(y, inputs, grad)
    expected = reference.selective_scan_2d_backward(grad, *plain)
    for name, ours, truth in zip(NAMES, found, expected, strict=True):
        torch.testing.assert_close(ours, truth, msg=name)


@pytest.mark.usefixtures("played_mamba")
def test_deterministic_training_by_mamba_is_refused() -> None:
    """In the words by which training tells such an error from others."""
    y = selective_scan_2d(*(tensor.requires_grad_() for tensor in arguments()))
    with (
        pytest.raises(BackendError, match="cannot be deterministic: mamba_ssm's backward adds by atomics"),
        deterministic_algorithms(True),
    ):
        y.sum().backward()


@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
def test_the_operator_has_gradients_where_triton_runs_it(
    monkeypatch: pytest.MonkeyPatch, is_compiled: bool
) -> None:
    """Also of tensors that are not contiguous, which the kernels do not take; no warning is given."""
    from msmamba.plugins.selective_scan import triton_scan

    def forward(*tensors: Tensor) -> Tensor:
        assert all(tensor.is_contiguous() for tensor in tensors)
        return reference.selective_scan_2d(*tensors)

    def backward(*tensors: Tensor) -> operator.Gradients:
        assert all(tensor.is_contiguous() for tensor in tensors)
        return reference.selective_scan_2d_backward(*tensors)

    monkeypatch.setattr(operator, "_implementation", lambda *tensors: "triton")
    monkeypatch.setattr(triton_scan, "selective_scan_2d", forward)
    monkeypatch.setattr(triton_scan, "selective_scan_2d_backward", backward)
    strided = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in arguments(dtype=torch.float64)]
    inputs = [tensor.requires_grad_() for tensor in strided]
    scan = torch.compile(selective_scan_2d, backend="aot_eager") if is_compiled else selective_scan_2d
    y = scan(*inputs)
    grad = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
    plain = [tensor.detach() for tensor in inputs]
    expected = reference.selective_scan_2d_backward(grad, *plain)
    for name, ours, truth in zip(NAMES, torch.autograd.grad(y, inputs, grad), expected, strict=True):
        torch.testing.assert_close(ours, truth, msg=name)


def test_an_install_of_mamba_that_does_not_load_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mamba_ssm" / "ops").mkdir(parents=True)
    module = tmp_path / "mamba_ssm" / "ops" / "selective_scan_interface.py"
    module.write_text("raise ImportError('selective_scan_cuda.so: undefined symbol: _ZN3c105Error')")
    monkeypatch.syspath_prepend(tmp_path)
    for function in (mamba_scan.why_unavailable, operator._cuda_implementation):
        function.cache_clear()
    try:
        chosen, obstacle = operator._cuda_implementation(5, 89)
    finally:
        for function in (mamba_scan.why_unavailable, operator._cuda_implementation):
            function.cache_clear()
        for name in [name for name in sys.modules if name.partition(".")[0] == "mamba_ssm"]:
            del sys.modules[name]
    assert chosen == "reference"
    assert "; mamba_ssm does not load (selective_scan_cuda.so: undefined symbol" in obstacle


@pytest.mark.parametrize(
    ("installed", "scan", "expected"),
    [
        pytest.param({"mamba_ssm", "triton"}, (16, 89), ("triton", ""), id="triton-before-mamba"),
        pytest.param({"mamba_ssm"}, (16, 89), ("mamba_ssm", ""), id="no-triton"),
        pytest.param({"mamba_ssm", "triton"}, (5, 70), ("mamba_ssm", ""), id="what-mamba-alone-takes"),
        pytest.param(
            set(),
            (16, 89),
            ("reference", "triton is not installed; mamba_ssm is not installed"),
            id="nothing-installed",
        ),
        pytest.param(
            {"triton"},
            (5, 70),
            (
                "reference",
                "the Triton scan takes a power of two of states, not 5; "
                "the Triton scan has no blocks for compute capability 7.0; "
                "mamba_ssm is not installed",
            ),
            id="what-triton-does-not-take",
        ),
    ],
)
def test_what_runs_on_cuda_is_chosen_by_what_is_there(
    installed: set[str],
    scan: tuple[int, int],
    expected: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operator, "find_spec", lambda name: name in installed or None)
    obstacle = None if "mamba_ssm" in installed else "mamba_ssm is not installed"
    monkeypatch.setattr(mamba_scan, "why_unavailable", lambda: obstacle)
    operator._cuda_implementation.cache_clear()
    try:
        assert operator._cuda_implementation(*scan) == expected
    finally:
        operator._cuda_implementation.cache_clear()


def test_kernels_are_launched_on_the_device_of_their_tensors_and_compiled_as_ahead_of_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from msmamba.plugins.selective_scan import triton_scan

    current = [0]
    launches: list[tuple[str, int, dict[str, Any]]] = []
    ahead: dict[str, dict[str, Any]] = {}

    def exchange(device: int) -> int:
        before = current[0]
        if device >= 0:
            current[0] = device
        return before

    def recording(name: str) -> dict[Any, Any]:
        def launch(*arguments: Any, **named: Any) -> None:
            options = {key: value for key, value in named.items() if key.islower()}
            launches.append((name, current[0], options))

        return defaultdict(lambda: launch)  # any grid

    def compiled(source: Any, target: Any, options: dict[str, Any]) -> None:
        ahead[source.fn.__name__] = options

    monkeypatch.setattr(triton_scan.triton, "compile", compiled)
    kernels = (*triton_scan.KERNELS, *triton_scan.BACKWARD_KERNELS)
    for name in kernels:
        triton_scan.compile_kernel(name, "float32", 16, 86)
    device = SimpleNamespace(major=8, minor=6, multi_processor_count=128)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device_of_x: device)
    monkeypatch.setattr(torch.cuda, "_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", exchange)
    monkeypatch.setattr(triton_scan, "_kernel", recording)
    with FakeTensorMode():  # tensors of a second GPU, of which there is none
        inputs = [tensor.to("cuda:1") for tensor in arguments(1, 56, 56, 24, 16)]
        y = triton_scan.selective_scan_2d(*inputs)  # type: ignore[arg-type]  # mypy counts no starred ones
        gradients = triton_scan.selective_scan_2d_backward(y, *inputs)  # type: ignore[arg-type]  # as above
    assert [(g.device, g.shape, g.dtype) for g in gradients] == [(i.device, i.shape, i.dtype) for i in inputs]
    assert y.device == torch.device("cuda:1")
    assert [name for name, _, _ in launches] == list(kernels)
    assert {device for _, device, _ in launches} == {1}
    assert {name: options for name, _, options in launches} == ahead
    assert current == [0]


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (56, 56, 48, 16)], ids=["ones", "sixteens"])
def test_pytorch_launches_the_very_code_that_is_compiled_ahead_of_time(
    sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the sizes are: Triton compiles for types and constants, and both ways give the same ones."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    from msmamba.plugins.selective_scan import gpu_launch, triton_scan

    ahead: list[Any] = []
    monkeypatch.setattr(triton_scan.triton, "compile", lambda source, **_: ahead.append(source))
    backend = make_backend(GPUTarget("cuda", 90, 32))
    for name in (*triton_scan.KERNELS, *triton_scan.BACKWARD_KERNELS):
        triton_scan.compile_kernel(name, "float32", 16, 90)
        source = ahead.pop()
        kernel = triton_scan._kernel(name)
        pointers = gpu_launch.KERNEL_POINTERS[name]
        block = gpu_launch.BACKWARD_BLOCK if name in triton_scan.BACKWARD_KERNELS else None
        fixed = triton_scan.constants(name, 16, block or gpu_launch.block_shape(90))
        scalars = sizes[: len(kernel.arg_names) - len(pointers) - len(fixed)]
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        tensors = [torch.zeros(4) for _ in pointers]  # aligned to 64 bytes
        _, found, _ = bind(*tensors, *scalars, **fixed, **triton_scan._options(name))
        assert [kind for kind, _ in found] == list(source.signature.values()), name
        assert [detail for kind, detail in found if kind == "constexpr"] == list(source.constants.values())
        aligned = {(i,) for i, (kind, detail) in enumerate(found) if kind != "constexpr" and detail}
        assert aligned == set(source.attrs), name


@pytest.mark.gpu
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["float32", "float16", "bfloat16"]
)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 16), (3, 7, 5, 33, 16), (2, 14, 14, 96, 16)], ids=str)
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
