"""The wheels' kernels for ARM64 and Windows against references in float64, as this machine's elsewhere.

Tolerances are those of `test_cpu_scan`, `test_cpu_scan_gradients` and `test_hybrid_block`: twice the error of
a reference in float32. The resize is in integers and has none.
"""

from __future__ import annotations

from dataclasses import astuple
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from block_cases import (
    BlockCase,
    block_model,
    exact_outputs,
    int8_products,
    weights_of_the_largest_integers,
)
from numpy.typing import NDArray
from resize_cases import CASES as RESIZE_CASES
from resize_cases import picture
from scan_cases import CASES as SCAN_CASES
from scan_cases import (
    Arrays,
    arguments,
    decay_inputs,
    extreme_inputs,
    inputs_with_nan,
    softplus_inputs,
    ulps,
)

from msmamba.plugins.hybrid_block import INT8_OPERATORS, OPERATORS
from msmamba.plugins.hybrid_block.cpu import BlockSizes
from msmamba.plugins.selective_scan import reference
from msmamba.resize import resize

from .conftest import BACKWARD, BLOCK, FORWARD, RESIZE, Call, Library, Results

EPSILON = float(np.finfo(np.float32).eps)
GRADIENTS = ("one-token", "one-column", "odd", "five-states", "wide-and-narrow", "long")
HALF = ("odd", "wide-and-narrow")
NAN = ("x", "delta", "A", "B", "C", "D", "delta_bias")
ELEMENT_TYPES = {"float32": 0, "float16": 1}
BLOCKS = {
    f"{case}-{'float16' if case.float16 else 'float32'}": case
    for case in (
        BlockCase(16, side=1),
        BlockCase(16, side=2, groups=1, states=3),
        BlockCase(24, batch=3, side=2),
        BlockCase(48, batch=2, side=9),
        BlockCase(8, batch=3, side=12, groups=2, states=1),
        BlockCase(96, side=7, groups=2),
        BlockCase(24, batch=2, side=7, float16=True),
    )
}
INT8_BLOCKS = [name for name, case in BLOCKS.items() if not case.float16]
LARGEST = "2x9x9x48-4-groups-16-states-float32"
"""The case that is multiplied with the largest integers, too."""
RESIZES = ("one-pixel", "odd", "enlarged", "tall", "on-threads", "part")


def forward_call(inputs: Arrays) -> Call:
    """The scan of inputs in the contract's order."""
    x = inputs["x"]
    sizes = (ELEMENT_TYPES[x.dtype.name], *x.shape, inputs["A"].shape[-1])
    return Call(FORWARD, sizes, [*inputs.values()], [(x.shape, x.dtype)])


def gradient_of_result(inputs: Arrays) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal(inputs["x"].shape).astype(np.float32)


def backward_call(inputs: Arrays) -> Call:
    arrays = [gradient_of_result(inputs), *inputs.values()]
    outputs = [(array.shape, np.float32) for array in inputs.values()]
    return Call(BACKWARD, (*inputs["x"].shape, inputs["A"].shape[-1]), arrays, outputs)


def element_type(case: BlockCase) -> Any:
    return np.float16 if case.float16 else np.float32


@cache
def exact_block(op_type: str, name: str) -> list[NDArray[np.float64]]:
    return exact_outputs(op_type, BLOCKS[name])


@cache
def by_function(op_type: str, name: str) -> list[NDArray[Any]]:
    """The function of standard operators in plain ONNX Runtime, in the case's precision."""
    case = BLOCKS[name]
    dtype = element_type(case)
    model = block_model(op_type, case, dtype=dtype).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    maps = {key: array.astype(dtype) for key, array in case.maps(op_type).items()}
    outputs: list[NDArray[Any]] = session.run(None, maps)
    return outputs


def block_call(op_type: str, name: str, weights: Arrays | None = None) -> Call:
    """An operator with the case's weights, or others of their sizes."""
    case = BLOCKS[name]
    if weights is None:
        weights = case.weights(op_type)
    maps = [array.astype(element_type(case)) for array in case.maps(op_type).values()]
    sizes = astuple(BlockSizes.of_weights(op_type, weights))
    shape = (*case.map_shape(op_type), maps[0].shape[-1], len(weights))
    outputs = [(array.shape, element_type(case)) for array in by_function(op_type, name)]
    number = (*OPERATORS, *INT8_OPERATORS).index(op_type)
    numbers = (number, ELEMENT_TYPES[element_type(case).__name__], *sizes, *shape)
    packed = [weight.astype(np.float32) for weight in weights.values()]
    return Call(BLOCK, numbers, [*packed, *maps], outputs)


def every_half() -> Arrays:
    """Inputs of float16 whose result is twice x, which is every number that float16 has."""
    numbers = np.arange(0x10000, dtype=np.uint16).view(np.float16)
    inputs = arguments((1, 1, 1, numbers.size, 1), dtype=np.float16)
    inputs["x"] = np.where(np.isfinite(numbers), numbers, np.float16(0)).reshape(1, 1, 1, -1)
    inputs["B"][:] = 0
    inputs["D"][:] = 0.5
    return inputs


def resize_call(name: str) -> Call:
    height, width, size, box = RESIZE_CASES[name]
    left, top, right, bottom = box or (0, 0, width, height)
    numbers = (height, width, left, top, right - left, bottom - top, size)
    return Call(RESIZE, numbers, [picture(height, width)], [((size, size, 3), np.uint8)])


@pytest.fixture(scope="module")
def results(library: Library) -> dict[str, Results]:
    """What the machine makes of all cases."""
    calls = {f"forward-{name}": forward_call(arguments(sizes)) for name, sizes in SCAN_CASES.items()}
    for name in HALF:
        calls[f"half-{name}"] = forward_call(arguments(SCAN_CASES[name], dtype=np.float16))
    calls["softplus"] = forward_call(softplus_inputs()[0])
    calls["decay"] = forward_call(decay_inputs()[0])
    calls["extreme"] = forward_call(extreme_inputs())
    for name in NAN:
        calls[f"nan-{name}"] = forward_call(inputs_with_nan(name))
    calls["every-half"] = forward_call(every_half())
    for name in GRADIENTS:
        calls[f"backward-{name}"] = backward_call(arguments(SCAN_CASES[name]))
    for op_type in OPERATORS:
        for name in BLOCKS:
            calls[f"{op_type}-{name}"] = block_call(op_type, name)
    for op_type in INT8_OPERATORS:
        for name in INT8_BLOCKS:
            calls[f"{op_type}-{name}"] = block_call(op_type, name)
    calls["largest"] = block_call("ScanInputsInt8", LARGEST, weights_of_the_largest_integers(48))
    for name in RESIZES:
        calls[f"resize-{name}"] = resize_call(name)
    return library(calls)


def by_reference(inputs: Arrays, dtype: torch.dtype) -> list[NDArray[np.float64]]:
    """The scan and, after it, its gradients, computed in ``dtype``."""
    tensors = [torch.from_numpy(array).to(dtype) for array in inputs.values()]
    gradient = torch.from_numpy(gradient_of_result(inputs)).to(dtype)
    found = [
        reference.selective_scan_2d(*tensors),
        *reference.selective_scan_2d_backward(gradient, *tensors),
    ]
    return [tensor.double().numpy() for tensor in found]


def typical(error: NDArray[Any]) -> float:
    """Root mean square; NaN if there is one."""
    return float(np.sqrt(np.mean(error**2)))


@pytest.mark.parametrize("name", SCAN_CASES)
def test_the_scan(name: str, results: dict[str, Results]) -> None:
    inputs = arguments(SCAN_CASES[name])
    exact, single = (by_reference(inputs, dtype)[0] for dtype in (torch.float64, torch.float32))
    (found,) = results[f"forward-{name}"]
    allowed = max(2 * np.abs(single - exact).max(), EPSILON * np.abs(exact).max())
    assert np.abs(found - exact).max() <= allowed


@pytest.mark.parametrize("name", HALF)
def test_the_scan_of_float16(name: str, results: dict[str, Results]) -> None:
    inputs = arguments(SCAN_CASES[name], dtype=np.float16)
    exact = by_reference(inputs, torch.float64)[0]
    (found,) = results[f"half-{name}"]
    half_ulp = np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64) / 2
    assert np.all(np.abs(found.astype(np.float64) - exact) <= half_ulp * 1.01 + 1e-5)


def test_every_float16_is_read_and_written(results: dict[str, Results]) -> None:
    with np.errstate(over="ignore"):
        expected = (every_half()["x"].astype(np.float32) * 2).astype(np.float16)
    np.testing.assert_array_equal(results["every-half"][0], expected)


def test_softplus_is_within_3_5_ulp(results: dict[str, Results]) -> None:
    assert ulps(results["softplus"][0][0, 0, 0], softplus_inputs()[1]) <= 3.5


def test_decay_is_within_2_5_ulp(results: dict[str, Results]) -> None:
    """Of the exponents, or of what they are rounded to where multiply-adds are not fused."""
    exponent, found = decay_inputs()[1], results["decay"][0][0, 0, 1]
    rounded = exponent.astype(np.float32).astype(np.float64)
    assert min(ulps(found, np.exp2(exponent)), ulps(found, np.exp2(rounded))) <= 2.5


def test_extreme_steps_and_rates_stay_what_they_are_in_the_reference(results: dict[str, Results]) -> None:
    exact = by_reference(extreme_inputs(), torch.float64)[0]
    np.testing.assert_allclose(results["extreme"][0], exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAN)
def test_nan_reaches_the_output_it_concerns_and_no_other(name: str, results: dict[str, Results]) -> None:
    exact = by_reference(inputs_with_nan(name), torch.float64)[0]
    assert 0 < np.isnan(exact).sum() < exact.size
    np.testing.assert_array_equal(np.isnan(results[f"nan-{name}"][0]), np.isnan(exact))


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_scan_s_gradients(name: str, results: dict[str, Results]) -> None:
    inputs = arguments(SCAN_CASES[name])
    exact, single = (by_reference(inputs, dtype)[1:] for dtype in (torch.float64, torch.float32))
    for label, found, truth, other in zip(inputs, results[f"backward-{name}"], exact, single, strict=True):
        allowed = max(2 * typical(other - truth), 2 * EPSILON * np.abs(truth).max())
        assert typical(found - truth) <= allowed, label


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("op_type", OPERATORS)
def test_the_block(op_type: str, name: str, results: dict[str, Results]) -> None:
    references = zip(exact_block(op_type, name), by_function(op_type, name), strict=True)
    for found, (exact, other) in zip(results[f"{op_type}-{name}"], references, strict=True):
        rounding = float(np.finfo(found.dtype).eps) * np.abs(exact).max()
        allowed = max(2 * np.abs(other - exact).max(), 4 * rounding)
        np.testing.assert_allclose(found, exact, rtol=0, atol=allowed)


@pytest.mark.parametrize("name", INT8_BLOCKS)
def test_int8_products_of_scan_inputs_are_those_of_the_integers_bit_for_bit(
    name: str, results: dict[str, Results]
) -> None:
    weights = BLOCKS[name].weights("ScanInputsInt8")
    for found, expected in int8_products(weights, results[f"ScanInputsInt8-{name}"]):
        np.testing.assert_array_equal(found, expected)


def test_int8_products_of_the_largest_integers_are_exact(results: dict[str, Results]) -> None:
    for found, expected in int8_products(weights_of_the_largest_integers(48), results["largest"]):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", INT8_BLOCKS)
@pytest.mark.parametrize("op_type", INT8_OPERATORS)
def test_operators_with_int8_products_agree_with_their_functions(
    op_type: str, name: str, results: dict[str, Results]
) -> None:
    for found, expected in zip(results[f"{op_type}-{name}"], by_function(op_type, name), strict=True):
        off = np.abs(found - expected) > 1e-4 * np.abs(expected).max()
        # A value between two integers, told apart by its last bit, may be rounded to either.
        assert off.mean() < 0.02
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.1 * np.abs(expected).max())


@pytest.mark.parametrize("name", RESIZES)
def test_the_resize(name: str, results: dict[str, Results]) -> None:
    height, width, size, box = RESIZE_CASES[name]
    expected = resize(picture(height, width), size, box)
    np.testing.assert_array_equal(results[f"resize-{name}"][0], expected)
