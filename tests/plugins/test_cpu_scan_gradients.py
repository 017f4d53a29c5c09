"""The compiled scan's gradients against autograd through the reference, and against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from msmamba.plugins.selective_scan import DIRECTIONS, cpu

torch = pytest.importorskip("torch", reason="the reference recurrence is written in PyTorch")
from msmamba.plugins.selective_scan import reference  # noqa: E402  after the check for torch

Arrays = dict[str, NDArray[Any]]

NAMES = ("x", "delta", "A", "B", "C", "D", "delta_bias")
CASES = {
    "one-token": (1, 1, 1, 1, 1),
    "one-row": (1, 1, 19, 3, 2),
    "one-column": (2, 17, 1, 5, 16),
    "odd": (3, 5, 7, 23, 16),
    "five-states": (2, 6, 5, 33, 5),
    "twenty-one-states": (1, 4, 5, 6, 21),
    "wide-and-narrow": (2, 11, 9, 24, 16),
    "whole-vectors": (2, 4, 4, 64, 16),
    "long": (1, 29, 23, 9, 6),
}


pytestmark = pytest.mark.usefixtures("default_settings")


def arguments(sizes: tuple[int, ...]) -> tuple[NDArray[np.float32], Arrays]:
    """Gradient of the result, and the inputs."""
    batch, height, width, channels, states = sizes
    rng = np.random.default_rng(0)
    position = (batch, height, width)
    inputs = {
        "x": rng.standard_normal((*position, channels)),
        "delta": rng.standard_normal((*position, DIRECTIONS, channels)),
        "A": -rng.uniform(0.5, states + 0.5, (DIRECTIONS, channels, states)),
        "B": rng.standard_normal((*position, DIRECTIONS, states)),
        "C": rng.standard_normal((*position, DIRECTIONS, states)),
        "D": rng.standard_normal((DIRECTIONS, channels)),
        "delta_bias": rng.uniform(-6, -2, (DIRECTIONS, channels)),
    }
    dy = rng.standard_normal((*position, channels)).astype(np.float32)
    return dy, {name: array.astype(np.float32) for name, array in inputs.items()}


def reference_gradients(dy: NDArray[np.float32], inputs: Arrays, dtype: Any) -> Arrays:
    """Autograd through the reference, computed in ``dtype``."""
    tensors = [torch.from_numpy(inputs[name]).to(dtype).requires_grad_() for name in NAMES]
    y = reference.selective_scan_2d(*tensors)
    gradients = torch.autograd.grad(y, tensors, torch.from_numpy(dy).to(dtype))
    return {name: grad.double().numpy() for name, grad in zip(NAMES, gradients, strict=True)}


def gradients_into_nan(dy: NDArray[np.float32], inputs: Arrays) -> Arrays:
    """The gradients through bare pointers, into arrays that are NaN wherever they are not written."""
    gradients = {name: np.full_like(inputs[name], np.nan) for name in NAMES}
    cpu.backward_pointers(
        cpu.ScanShape(*inputs["x"].shape, states=inputs["A"].shape[-1]),
        dy=dy.ctypes.data,
        inputs=[inputs[name].ctypes.data for name in NAMES],
        gradients=[gradients[name].ctypes.data for name in NAMES],
    )
    return gradients


def typical_error(found: NDArray[Any], truth: NDArray[Any]) -> float:
    """Root mean square of the difference; NaN if there is one."""
    return float(np.sqrt(np.mean((found.astype(np.float64) - truth) ** 2)))


@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES.keys())
def test_errors_are_at_most_twice_the_float32_reference_s(sizes: tuple[int, ...], kernels: str) -> None:
    dy, inputs = arguments(sizes)
    truth = reference_gradients(dy, inputs, torch.float64)
    single = reference_gradients(dy, inputs, torch.float32)
    found = gradients_into_nan(dy, inputs)
    for name in NAMES:
        allowed = 2 * typical_error(single[name], truth[name])
        # Two roundings, for the few values in which the reference is right by luck.
        rounding = 2 * np.finfo(np.float32).eps * np.abs(truth[name]).max()
        assert typical_error(found[name], truth[name]) <= max(allowed, rounding), name


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_slopes_of_the_scan(name: str, kernels: str) -> None:
    """The gradient gives the float64 reference's central difference along a random direction."""
    dy, inputs = arguments((2, 5, 4, 7, 3))
    along = np.random.default_rng(1).standard_normal(inputs[name].shape)

    def loss(distance: float) -> float:
        moved = {key: torch.from_numpy(array).double() for key, array in inputs.items()}
        moved[name] = moved[name] + distance * torch.from_numpy(along)
        y = reference.selective_scan_2d(**moved)
        return float((y.numpy() * dy).sum())

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert slope != 0
    found = float((gradients_into_nan(dy, inputs)[name] * along).sum())
    assert found == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES.keys())
def test_the_number_of_threads_changes_no_bit(sizes: tuple[int, ...]) -> None:
    dy, inputs = arguments(sizes)
    cpu.set_threads(1)
    alone = gradients_into_nan(dy, inputs)
    for count in (2, 5):
        cpu.set_threads(count)
        for name, gradient in gradients_into_nan(dy, inputs).items():
            np.testing.assert_array_equal(gradient, alone[name], err_msg=name)


@pytest.mark.parametrize("name", ["dy", *NAMES])
def test_nan_reaches_the_gradients_it_concerns(name: str) -> None:
    dy, inputs = arguments((2, 4, 3, 20, 16))
    poisoned = dy if name == "dy" else inputs[name]
    poisoned[(1,) * poisoned.ndim] = np.nan
    truth = reference_gradients(dy, inputs, torch.float64)
    found = gradients_into_nan(dy, inputs)
    assert any(np.isnan(array).any() for array in truth.values())
    for key in NAMES:
        np.testing.assert_array_equal(np.isnan(found[key]), np.isnan(truth[key]), err_msg=key)


def test_strided_arrays_are_copied() -> None:
    dy, inputs = arguments((1, 3, 4, 5, 2))
    expected = gradients_into_nan(dy, inputs)
    strided = {key: np.repeat(array, 2, axis=-1)[..., ::2] for key, array in inputs.items()}
    found = cpu.selective_scan_2d_backward(np.repeat(dy, 2, axis=-1)[..., ::2], **strided)
    for name in NAMES:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_gradient_that_does_not_fit_is_refused() -> None:
    dy, inputs = arguments((1, 3, 4, 5, 2))
    with pytest.raises(ValueError, match=r"dy is float32 \(1, 3, 4, 4\)"):
        cpu.selective_scan_2d_backward(dy[..., 1:], **inputs)
    with pytest.raises(ValueError, match="dy is float64"):
        cpu.selective_scan_2d_backward(dy.astype(np.float64), **inputs)
    half = {name: inputs[name].astype(np.float16) for name in ("x", "delta", "B", "C")}
    with pytest.raises(ValueError, match="x float16"):
        cpu.selective_scan_2d_backward(dy, **(inputs | half))
    with pytest.raises(ValueError, match="C is"):
        cpu.selective_scan_2d_backward(dy, **(inputs | {"C": inputs["C"][..., 1:]}))
