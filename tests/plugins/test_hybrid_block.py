"""The hybrid block's native operators against their definition in standard operators, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scan_cases import KERNELS

from msmamba.errors import BackendError
from msmamba.plugins.hybrid_block import INT8, INT8_OPERATORS, OPERATORS
from msmamba.plugins.hybrid_block import cpu as block
from msmamba.plugins.selective_scan import cpu as scan

pytest.importorskip("onnx", reason="the operators are defined as ONNX functions")
onnxruntime = pytest.importorskip("onnxruntime", reason="gives the error of a float32 reference")
from block_cases import (  # noqa: E402  after the check for onnx
    BlockCase,
    block_model,
    exact_outputs,
    int8_products,
    weights_of_the_largest_integers,
)

pytestmark = pytest.mark.skipif(
    scan.library_path() is None, reason="the native library is not built: install with a C++ compiler"
)

CASES = [
    BlockCase(16, side=1),
    BlockCase(16, side=2, groups=1, states=3, passed=0),
    BlockCase(24, batch=3, side=2),
    BlockCase(40, side=5),
    BlockCase(48, batch=2, side=9),
    BlockCase(8, batch=3, side=12, groups=2, states=1),
    BlockCase(96, side=7, groups=2, passed=5),
    BlockCase(272, side=3),
]

each_operator = pytest.mark.parametrize("op_type", OPERATORS)
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_type = pytest.mark.parametrize("float16", [False, True], ids=["float32", "float16"])


@pytest.fixture(autouse=True)
def _restore_settings() -> Iterator[None]:
    kernels, threads = scan.kernels(), scan.threads()
    yield
    scan.select_kernels(kernels)
    scan.set_threads(threads)


@cache
def exact(op_type: str, case: BlockCase) -> list[NDArray[np.float64]]:
    return exact_outputs(op_type, case)


@cache
def by_function(op_type: str, case: BlockCase) -> list[NDArray[Any]]:
    """The function of standard operators in plain ONNX Runtime, in the case's precision."""
    dtype = np.float16 if case.float16 else np.float32
    model = block_model(op_type, case, dtype=dtype).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    maps = {name: array.astype(dtype) for name, array in case.maps(op_type).items()}
    outputs: list[NDArray[Any]] = session.run(None, maps)
    return outputs


def at_odd_address(shape: tuple[int, ...], fill: Any, dtype: Any) -> NDArray[Any]:
    """An array that is aligned to its elements and no more."""
    array = np.empty(int(np.prod(shape)) + 1, dtype)[1:].reshape(shape)
    array[...] = fill
    return array


def run(op_type: str, case: BlockCase) -> list[NDArray[Any]]:
    """The native operator over awkwardly placed maps, its outputs filled with NaN before."""
    dtype = np.float16 if case.float16 else np.float32
    maps = [at_odd_address(array.shape, array, dtype) for array in case.maps(op_type).values()]
    with block.BlockOperator(op_type, case.weights(op_type), dtype) as operator:
        shapes = operator.output_shapes(*case.map_shape(op_type))
        outputs = [at_odd_address(shape, np.nan, dtype) for shape in shapes]
        operator.run(case.map_shape(op_type)[0], maps, outputs)
    return outputs


def select_kernels(name: str) -> None:
    try:
        scan.select_kernels(name)
    except ValueError as reason:
        pytest.skip(str(reason))


@each_case
@each_operator
@each_type
@pytest.mark.parametrize("kernels", KERNELS)
def test_agrees_with_the_definition(op_type: str, case: BlockCase, float16: bool, kernels: str) -> None:
    select_kernels(kernels)
    assert_agrees(op_type, replace(case, float16=float16))


@each_type
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("op_type", ["ScanFeatures", "ProjectedScan2D"])
def test_all_of_many_channels_agree_with_the_definition(op_type: str, float16: bool, kernels: str) -> None:
    """As in networks that scan without groups: MedMamba, VMamba."""
    select_kernels(kernels)
    assert_agrees(op_type, BlockCase(388, side=5, groups=1, passed=0, float16=float16))


def assert_agrees(op_type: str, case: BlockCase) -> None:
    references = zip(exact(op_type, case), by_function(op_type, case), strict=True)
    for found, (expected, reference) in zip(run(op_type, case), references, strict=True):
        assert found.shape == expected.shape
        assert found.dtype == reference.dtype
        # Twice the reference's own error; where luck made that small, a few roundings.
        rounding = np.finfo(found.dtype).eps * np.abs(expected).max()
        tolerance = max(2 * np.abs(reference - expected).max(), 4 * rounding)
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@each_case
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("op_type", ["ScanInputsInt8", "ScanFeaturesInt8"])
def test_int8_products_before_the_scan_are_those_of_the_integers_bit_for_bit(
    op_type: str, case: BlockCase, kernels: str
) -> None:
    select_kernels(kernels)
    for found, expected in int8_products(case.weights(op_type), run(op_type, case)):
        np.testing.assert_array_equal(found, expected)


@each_case
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("threads", [1, 3, 40])
@pytest.mark.parametrize("form", ["", INT8], ids=["float", "int8"])
def test_the_scan_of_features_is_that_of_their_projections_bit_for_bit(
    form: str, threads: int, case: BlockCase, kernels: str
) -> None:
    """By sequences alone or in pairs, in all directions or each by itself: as the threads have it."""
    select_kernels(kernels)
    scan.set_threads(threads)
    features, delta, B, C = run(f"ScanInputs{form}", case)[2:]
    weights = case.weights("ProjectedScan2D") | case.weights(f"ScanInputs{form}")
    expected = scan.selective_scan_2d(
        features, delta, weights["A"], B, C, weights["D"], weights["delta_bias"]
    )
    with block.BlockOperator(f"ProjectedScan2D{form}", weights) as operator:
        (y,) = operator(len(features), features)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_step_sizes_from_another_direction_s_step_features_are_taken_as_they_are(threads: int) -> None:
    scan.set_threads(threads)
    case = BlockCase(48, side=4)
    weights = case.weights("ProjectedScan2D")
    weights["step_expand"][0, -1] = 0.5  # the first direction's to the last one's
    features = case.maps("ProjectedScan2D")["features"]
    delta = (features @ weights["step_weight"] @ weights["step_expand"]).reshape(*features.shape[:3], 4, -1)
    states = (*features.shape[:3], 4, case.states)
    B, C = ((features @ weights[name]).reshape(states) for name in ("input_weight", "output_weight"))
    expected = scan.selective_scan_2d(
        features, delta, weights["A"], B, C, weights["D"], weights["delta_bias"]
    )
    with block.BlockOperator("ProjectedScan2D", weights) as operator:
        (y,) = operator(len(features), features)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kernels", KERNELS)
def test_int8_products_of_the_largest_integers_are_exact(kernels: str) -> None:
    select_kernels(kernels)
    case, weights = BlockCase(48, batch=2), weights_of_the_largest_integers(48)
    maps = [*case.maps("ScanInputs").values()]
    with block.BlockOperator("ScanInputsInt8", weights) as operator:
        outputs = operator(case.batch, *maps)
    for found, expected in int8_products(weights, outputs):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("channels", [8, 24, 272])
@pytest.mark.parametrize("kernels", KERNELS)
def test_int8_patch_merging_multiplies_the_integers_bit_for_bit(channels: int, kernels: str) -> None:
    """Its norm gives the bias alone, so that both sides of the product are known."""
    select_kernels(kernels)
    case, generator = BlockCase(channels, side=3), np.random.default_rng(channels)
    weights = case.weights("PatchMergingInt8")
    integers = generator.integers(-128, 128, 4 * channels)
    weights["norm_weight"] = np.zeros_like(weights["norm_weight"])
    weights["norm_bias"] = integers.astype(np.float32) / 64
    weights["normed_scale"] = np.float32(1 / 64)
    sums = integers @ weights["reduction_weight"].astype(np.int64)
    expected = sums.astype(np.float32) * (weights["normed_scale"] * weights["reduction_weight_scale"])
    with block.BlockOperator("PatchMergingInt8", weights) as operator:
        (y,) = operator(1, *case.maps("PatchMergingInt8").values())
    np.testing.assert_array_equal(y, np.broadcast_to(expected, y.shape))


@pytest.mark.parametrize("half", [8, 24, 40, 272])
@pytest.mark.parametrize("kernels", KERNELS)
def test_an_int8_local_branch_of_whole_numbers_gives_the_function_s_bits(half: int, kernels: str) -> None:
    """All that stands before its product is exact there, and so are both of its scales."""
    select_kernels(kernels)
    case, generator = BlockCase(half, side=5), np.random.default_rng(half)
    weights = case.weights("LocalBranchInt8")
    for name, array in weights.items():
        whole = generator.integers(-2, 3, array.shape).astype(np.float32)
        weights[name] = array if array.dtype == np.int8 else whole
    weights["scale"] = np.ones_like(weights["scale"])
    weights["project_weight_scale"] = np.full_like(weights["project_bias"], 1 / 64)
    weights |= {"expanded_kept_scale": np.float32(1), "projected_scale": np.float32(4)}
    x = generator.integers(-2, 3, (1, 5, 5, 2 * half)).astype(np.float32)
    model = block_model("LocalBranchInt8", case, constant_weights=False).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x, **{name: np.asarray(each) for name, each in weights.items()}})
    with block.BlockOperator("LocalBranchInt8", weights) as operator:
        (local,) = operator(1, x)
    np.testing.assert_array_equal(local, expected)
    assert len(np.unique(local)) > 10


@pytest.mark.parametrize("kernels", KERNELS)
def test_values_beyond_int8_are_held_however_large(kernels: str) -> None:
    select_kernels(kernels)
    weights = BlockCase(16, side=1).weights("LocalBranchInt8")
    for name in ("shift", "depthwise_bias", "expand_bias", "depthwise_weight", "expand_weight"):
        weights[name] = np.zeros_like(weights[name])
    weights["scale"] = np.ones_like(weights["scale"])
    for name in ("depthwise_weight", "expand_weight"):
        weights[name][:, 0, 1, 1] = 1  # the map's only position as it is
    found = []
    with block.BlockOperator("LocalBranchInt8", weights) as operator:
        for value in (1e3, 1e38, np.inf):  # divided by its scale, the second is infinite too
            (local,) = operator(1, np.full((1, 1, 1, 32), value, np.float32))
            found.append(local)
    assert found[0].any()
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


@each_case
@pytest.mark.parametrize("op_type", INT8_OPERATORS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_operators_with_int8_products_agree_with_their_functions(
    op_type: str, case: BlockCase, kernels: str
) -> None:
    select_kernels(kernels)
    for found, expected in zip(run(op_type, case), by_function(op_type, case), strict=True):
        off = np.abs(found - expected) > 1e-4 * np.abs(expected).max()
        # A value between two integers, told apart by its last bit, may be rounded to either; one of a patch
        # reaches all channels of its position.
        assert off.mean() < (0.1 if op_type == "PatchMergingInt8" else 0.02)
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.1 * np.abs(expected).max())


@each_case
@each_operator
@each_type
def test_threads_do_not_change_a_bit(op_type: str, case: BlockCase, float16: bool) -> None:
    case = replace(case, float16=float16)
    scan.set_threads(1)
    alone = run(op_type, case)
    for threads in (2, 3):
        scan.set_threads(threads)
        for found, expected in zip(run(op_type, case), alone, strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "odd"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_large_maps_that_bypass_the_caches_are_the_same(kernels: str, offset: int) -> None:
    select_kernels(kernels)
    alone = BlockCase(16, side=32)
    x = alone.maps("ScanInputs")["x"]
    together = np.concatenate([x] * 4)  # delta, B and C of one image are 2.6 MB, of four 10.5
    with block.BlockOperator("ScanInputs", alone.weights("ScanInputs")) as operator:
        expected = operator(1, x)
        outputs = []
        for shape in operator.output_shapes(4, 32, 32):
            memory = np.full(int(np.prod(shape)) + 17, np.nan, np.float32)
            first = -memory.ctypes.data % 64 // 4 + offset
            outputs.append(memory[first : first + memory.size - 17].reshape(shape))
        operator.run(4, [together], outputs)
    for found, of_one in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(found, np.concatenate([of_one] * 4))


def test_the_norm_s_shift_stays_inside_the_map() -> None:
    """LocalBranch pads with zeros after its batch norm, so a border sees less of the shift."""
    case = BlockCase(16, side=3)
    weights = case.weights("LocalBranch") | {"shift": np.full(16, 10, np.float32)}
    weights["depthwise_weight"] = np.abs(weights["depthwise_weight"])
    weights["expand_weight"] = np.abs(weights["expand_weight"])
    weights["project_weight"] = np.abs(weights["project_weight"])
    with block.BlockOperator("LocalBranch", weights) as operator:
        (local,) = operator(1, np.zeros((1, 3, 3, 32), np.float32))
    centre, edge, corner = local[0, 1, 1], local[0, 0, 1], local[0, 0, 0]
    assert (centre > edge).all()
    assert (edge > corner).all()


@pytest.mark.parametrize("value", [np.inf, np.nan], ids=str)
def test_values_that_are_not_finite_stay_where_they_are(value: float) -> None:
    """A position outside its neighbourhood cannot be reached by one that is not finite."""
    case = BlockCase(16, side=9)
    maps = case.maps("LocalBranch")
    maps["x"][0, 0, 0, :] = value
    with block.BlockOperator("LocalBranch", case.weights("LocalBranch")) as operator:
        (local,) = operator(1, maps["x"])
    assert np.isfinite(local[0, 3:, :]).all()
    assert np.isfinite(local[0, :, 3:]).all()


def test_weights_are_copied() -> None:
    case = BlockCase(16)
    weights = case.weights("MIFA")
    maps = list(case.maps("MIFA").values())
    with block.BlockOperator("MIFA", weights) as operator:
        (before,) = operator(1, *maps)
        for weight in weights.values():
            weight[...] = np.nan
        (after,) = operator(1, *maps)
    np.testing.assert_array_equal(after, before)


def test_a_map_of_another_shape_is_refused() -> None:
    case = BlockCase(16)
    with (
        block.BlockOperator("MIFA", case.weights("MIFA")) as operator,
        pytest.raises(ValueError, match=r"MIFA: found float32 \(1, 5, 5, 17\), expected .* \(1, 5, 5, 16\)"),
    ):
        operator(1, np.zeros((1, 5, 5, 16), np.float32), np.zeros((1, 5, 5, 17), np.float32))


def test_a_missing_weight_is_named() -> None:
    weights = BlockCase(16).weights("MIFA")
    del weights["conv_bias"]
    with pytest.raises(ValueError, match="MIFA is missing weights: conv_bias"):
        block.BlockOperator("MIFA", weights)


def test_an_unknown_operator_is_refused() -> None:
    with pytest.raises(ValueError, match="'Softmax' is no operator of the block"):
        block.BlockOperator("Softmax", {})


def test_maps_of_another_type_are_refused() -> None:
    weights = BlockCase(16).weights("MIFA")
    with pytest.raises(ValueError, match="MIFA has maps of float32 or float16, not of float64"):
        block.BlockOperator("MIFA", weights, np.float64)
    with (
        block.BlockOperator("MIFA", weights, np.float16) as operator,
        pytest.raises(ValueError, match=r"MIFA: found float32 .*, expected contiguous float16"),
    ):
        operator.run(1, [np.zeros((1, 5, 5, 16), np.float32)] * 2, [np.zeros((1, 5, 5, 32), np.float16)])


def test_a_closed_operator_is_refused() -> None:
    case = BlockCase(16)
    operator = block.BlockOperator("MIFA", case.weights("MIFA"))
    operator.close()
    with pytest.raises(ValueError, match="closed"):
        operator(1, *case.maps("MIFA").values())


def test_a_missing_library_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "why_unavailable", lambda: "it was not built")
    block._library.cache_clear()
    try:
        with pytest.raises(BackendError, match="it was not built"):
            block.BlockOperator("MIFA", BlockCase(16).weights("MIFA"))
    finally:
        block._library.cache_clear()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("far", [-90.0, -1e4, -1e30, -1e38, float(-np.finfo(np.float32).max)])
def test_silu_and_gelu_are_nothing_far_below_zero(kernels: str, far: float) -> None:
    select_kernels(kernels)
    case = BlockCase(16, side=3)
    for op_type, output in (("ScanInputs", 2), ("MIFA", 0)):
        outputs = []
        for bias in (far, -60.0):  # of both, SiLU and GELU are 0 but for a rounding
            weights = case.weights(op_type)
            weights["conv_bias"] = np.full_like(weights["conv_bias"], bias)
            with block.BlockOperator(op_type, weights) as operator:
                outputs.append(operator(case.batch, *case.maps(op_type).values())[output])
        np.testing.assert_allclose(outputs[0], outputs[1], rtol=0, atol=1e-5)
