"""The hybrid block's operators as ONNX Runtime's own kernels: their bits, their threads, their errors."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msmamba.errors import BackendError
from msmamba.plugins.hybrid_block import INT8_OPERATORS, OPERATORS
from msmamba.plugins.hybrid_block import cpu as block
from msmamba.plugins.selective_scan import cpu as scan

onnx = pytest.importorskip("onnx", reason="the models under test are made with onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="the door under test is ONNX Runtime's")
from block_cases import IN_FLOAT32, BlockCase, block_model  # noqa: E402  after the check for onnx

pytestmark = pytest.mark.skipif(
    scan.library_path() is None, reason="the native library is not built: install with a C++ compiler"
)

CASE = BlockCase(24, batch=3, side=6)
each_operator = pytest.mark.parametrize("op_type", OPERATORS)
each_type = pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float32", "float16"])


def native_session(model: Any, threads: int = 2) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(scan.library_path()))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def by_library(op_type: str, case: BlockCase = CASE, dtype: Any = np.float32) -> Any:
    weights = case.weights(op_type)
    if dtype == np.float16:
        weights = of_type(weights, dtype)
    with block.BlockOperator(op_type, weights, dtype) as operator:
        return operator(case.map_shape(op_type)[0], *of_type(case.maps(op_type), dtype).values())


def of_type(arrays: dict[str, Any], dtype: Any) -> dict[str, Any]:
    return {name: array if name in IN_FLOAT32 else array.astype(dtype) for name, array in arrays.items()}


def assert_same(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@each_operator
@each_type
@pytest.mark.parametrize("threads", [1, 2, 5], ids="{}-threads".format)
def test_the_session_gives_the_bits_of_the_library(op_type: str, dtype: Any, threads: int) -> None:
    session = native_session(block_model(op_type, CASE, dtype=dtype, function=False), threads)
    feeds = of_type(CASE.maps(op_type), dtype)
    assert_same(session.run(None, feeds), by_library(op_type, dtype=dtype))


@each_operator
@each_type
def test_the_kernel_takes_precedence_over_the_model_s_function(op_type: str, dtype: Any) -> None:
    model = block_model(op_type, CASE, dtype=dtype)
    feeds = of_type(CASE.maps(op_type), dtype)
    function = model.functions[-1]  # made one that gives its first input back, so that its answers are others
    del function.node[:]
    for output in function.output:
        function.node.append(onnx.helper.make_node("Identity", function.input[:1], [output]))
    plain = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert_same(plain.run(None, feeds)[:1], list(feeds.values())[:1])
    assert_same(native_session(model).run(None, feeds), by_library(op_type, dtype=dtype))


@pytest.mark.parametrize("form", ["", "Int8"], ids=["float", "int8"])
def test_a_runtime_that_has_a_kernel_for_the_scan_alone_finds_it_in_the_projected_scan_s_function(
    form: str, tmp_path: Path
) -> None:
    """So does CUDA, whose library has no other operator; here the outer one has a name that none knows."""
    model = block_model(f"ProjectedScan2D{form}", CASE)
    model.graph.node[0].op_type = model.functions[-1].name = "Unknown"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.register_custom_ops_library(str(scan.library_path()))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    assert [node.op_type for node in nodes if node.domain == "msmamba"] == ["SelectiveScan2D"]
    (found,) = session.run(None, CASE.maps("ProjectedScan2D"))
    (expected,) = by_library(f"ProjectedScan2D{form}")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@each_operator
@each_type
def test_weights_may_be_inputs_of_the_graph(op_type: str, dtype: Any) -> None:
    session = native_session(block_model(op_type, CASE, dtype=dtype, function=False, constant_weights=False))
    feeds = of_type(CASE.maps(op_type) | CASE.weights(op_type), dtype)
    assert_same(session.run(None, feeds), by_library(op_type, dtype=dtype))


@each_operator
def test_an_empty_batch_gives_empty_maps(op_type: str) -> None:
    empty = {name: array[:0] for name, array in CASE.maps(op_type).items()}
    outputs = native_session(block_model(op_type, CASE, function=False)).run(None, empty)
    assert [output.shape[0] for output in outputs] == [0] * len(outputs)


@each_operator
def test_one_session_serves_several_threads_at_once(op_type: str) -> None:
    case = BlockCase(48, side=28)
    session = native_session(block_model(op_type, case, function=False))
    expected, maps = by_library(op_type, case), case.maps(op_type)
    with ThreadPoolExecutor(4) as threads:
        for outputs in threads.map(lambda _: session.run(None, maps), range(16)):
            assert_same(outputs, expected)


@pytest.mark.parametrize("op_type", [each for each in OPERATORS if each != "ScanFeatures"])
def test_a_map_of_another_width_is_refused(op_type: str) -> None:
    """ScanFeatures takes the last channels of however many."""
    maps = CASE.maps(op_type)
    name, array = next(iter(maps.items()))
    width = array.shape[-1]
    maps[name] = np.zeros((*array.shape[:3], width + 1), np.float32)
    session = native_session(block_model(op_type, CASE, function=False))
    with pytest.raises(Exception, match=rf"{op_type}: {name} is .* {width + 1}\), expected .* {width}\)"):
        session.run(None, maps)


@each_operator
def test_weights_that_do_not_fit_together_are_refused_when_the_session_is_made(op_type: str) -> None:
    model = block_model(op_type, CASE, function=False)
    weight = model.graph.initializer[-1]
    longer = np.zeros([side + 1 for side in weight.dims], np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(longer, weight.name))
    with pytest.raises(Exception, match=rf"{op_type}: \w+ is \(.*\), expected \("):
        native_session(model)


def test_channels_that_cannot_be_shuffled_are_refused() -> None:
    with pytest.raises(Exception, match=r"MIFA: .* not a multiple of 4"):
        native_session(block_model("MIFA", BlockCase(18), function=False))


def test_a_map_that_is_not_square_is_refused_where_height_and_width_are_swapped() -> None:
    maps = {name: array[:, 1:] for name, array in CASE.maps("ScanOutputs").items()}
    session = native_session(block_model("ScanOutputs", CASE, function=False))
    with pytest.raises(Exception, match="ScanOutputs: the map is not square"):
        session.run(None, maps)


@pytest.mark.parametrize("odd", [np.s_[:, 1:], np.s_[:, :, 1:]], ids=["height", "width"])
def test_a_map_with_an_odd_side_is_not_merged(odd: Any) -> None:
    maps = {name: array[odd] for name, array in CASE.maps("PatchMerging").items()}
    session = native_session(block_model("PatchMerging", CASE, function=False))
    with pytest.raises(Exception, match="PatchMerging: the map's height or width is odd"):
        session.run(None, maps)
    with (
        block.BlockOperator("PatchMerging", CASE.weights("PatchMerging")) as operator,
        pytest.raises(BackendError, match="PatchMerging failed: the map's height or width is odd"),
    ):
        operator(CASE.batch, *maps.values())


def test_a_map_of_fewer_channels_than_its_norm_is_refused() -> None:
    (x,) = CASE.maps("ScanFeatures").values()
    session = native_session(block_model("ScanFeatures", CASE, function=False))
    with pytest.raises(Exception, match="ScanFeatures: the map has fewer channels than the norm"):
        session.run(None, {"x": x[..., : CASE.half - 1]})
    with (
        block.BlockOperator("ScanFeatures", CASE.weights("ScanFeatures")) as operator,
        pytest.raises(ValueError, match=r"found float32 \(3, 6, 6, 23\), expected .*\(3, 6, 6, 24\)"),
    ):
        operator(CASE.batch, x[..., : CASE.half - 1])


def test_groups_that_do_not_fill_an_image_are_refused() -> None:
    maps = {name: array[1:] for name, array in CASE.maps("ScanOutputs").items()}
    session = native_session(block_model("ScanOutputs", CASE, function=False))
    with pytest.raises(Exception, match=r"ScanOutputs: y is \(11, 6, 6, 12\), expected \(8, 6, 6, 12\)"):
        session.run(None, maps)


def test_a_map_without_positions_is_refused() -> None:
    maps = {name: array[:, :0] for name, array in CASE.maps("MIFA").items()}
    session = native_session(block_model("MIFA", CASE, function=False))
    with pytest.raises(Exception, match="MIFA: the map is empty"):
        session.run(None, maps)


SIZES = {"h": (40, 80), "d": (8,), "D": (16, 32, 64), "K*R": (4,), "K*N": (12,)}
"""Of a case in which no two sizes are equal: what the sides of the weights that they fix are."""
DISTINCT = BlockCase(40, batch=2, groups=5, states=3)


def weights_without(size: str, op_type: str) -> dict[str, Any]:
    gone = SIZES[size]
    return {
        name: np.zeros([0 if side in gone else side for side in weight.shape], np.float32)
        for name, weight in DISTINCT.weights(op_type).items()
    }


@pytest.mark.parametrize(
    ("op_type", "size"),
    [
        *(("LocalBranch", "h"), ("MIFA", "h")),
        *(("ScanInputs", size) for size in SIZES),
        *(("ScanOutputs", size) for size in ("h", "d", "D")),
        *(("ScanFeatures", size) for size in ("h", "d", "D")),
        ("ProjectedScan2D", "D"),
    ],
)
def test_weights_without_a_size_are_refused_by_name_whenever_they_are_known(op_type: str, size: str) -> None:
    weights, named = weights_without(size, op_type), rf"{op_type}: .*\b{re.escape(size)} = 0"
    dynamic = native_session(block_model(op_type, DISTINCT, function=False, constant_weights=False))
    with pytest.raises(Exception, match=named):
        dynamic.run(None, DISTINCT.maps(op_type) | weights)
    constant = block_model(op_type, DISTINCT, function=False)
    for initializer in constant.graph.initializer:
        initializer.CopyFrom(onnx.numpy_helper.from_array(weights[initializer.name], initializer.name))
    with pytest.raises(Exception, match=named):
        native_session(constant)
    with pytest.raises(ValueError, match=f"{op_type}: "):
        block.BlockOperator(op_type, weights)


@each_operator
def test_every_dimension_of_every_input_is_checked(op_type: str) -> None:
    session = native_session(block_model(op_type, DISTINCT, function=False, constant_weights=False))
    whole = DISTINCT.maps(op_type) | DISTINCT.weights(op_type)
    for name, array in whole.items():
        if name in (
            "x",
            "y",
            "local",
            "features",
        ):  # the first map says how many images there are, and how large
            continue
        for axis, side in enumerate(array.shape):
            for other in (0, side + 4):
                shape = (*array.shape[:axis], other, *array.shape[axis + 1 :])
                with pytest.raises(Exception, match=f"{op_type}: "):
                    session.run(None, whole | {name: np.zeros(shape, np.float32)})


@each_operator
def test_arrays_of_nothing_whose_sides_overflow_are_refused(op_type: str) -> None:
    session = native_session(block_model(op_type, DISTINCT, function=False, constant_weights=False))
    whole = DISTINCT.maps(op_type) | DISTINCT.weights(op_type)
    for name, array in whole.items():
        for axis in range(1, array.ndim):
            shape = [1] * array.ndim
            shape[0], shape[axis] = 1 << 60, 0
            with pytest.raises(Exception, match=f"{op_type}: "):
                session.run(None, whole | {name: np.zeros(shape, np.float32)})


def test_maps_without_images_or_positions_end_no_process_through_the_other_door() -> None:
    with block.BlockOperator("MIFA", CASE.weights("MIFA")) as operator:
        assert operator(0, *(array[:0] for array in CASE.maps("MIFA").values()))[0].shape == (0, 6, 6, 48)
        with pytest.raises(BackendError, match="the map is empty"):
            operator(3, *(array[:, :0] for array in CASE.maps("MIFA").values()))


each_int8_operator = pytest.mark.parametrize("op_type", INT8_OPERATORS)


@each_int8_operator
@pytest.mark.parametrize("constant_weights", [True, False], ids=["constants", "inputs"])
def test_int8_products_come_in_through_the_session_with_the_library_s_bits(
    op_type: str, constant_weights: bool
) -> None:
    model = block_model(op_type, CASE, constant_weights=constant_weights)
    feeds = CASE.maps(op_type) | ({} if constant_weights else CASE.weights(op_type))
    assert_same(native_session(model).run(None, feeds), by_library(op_type))


@each_int8_operator
def test_every_dimension_of_int8_operators_is_checked(op_type: str) -> None:
    session = native_session(block_model(op_type, DISTINCT, function=False, constant_weights=False))
    whole = DISTINCT.maps(op_type) | DISTINCT.weights(op_type)
    for name, array in whole.items():
        if name in ("x", "y", "features"):  # the first map says how many images there are, and how large
            continue
        for axis, side in enumerate(array.shape):
            for other in (0, side + 3):
                shape = (*array.shape[:axis], other, *array.shape[axis + 1 :])
                with pytest.raises(Exception, match=f"{op_type}: "):
                    session.run(None, whole | {name: np.zeros(shape, array.dtype)})


STATED = [
    ("LocalBranch", "channels", 40),
    ("ScanInputs", "groups", 5),
    ("ScanInputs", "channels", 16),
    ("ScanFeatures", "groups", 5),
    ("ScanFeatures", "channels", 16),
    ("ScanOutputs", "groups", 5),
    ("ScanOutputs", "channels", 2),
    ("MIFA", "channels", 40),
]
"""The attributes of each operator, and what they are of the case in which no two sizes are equal."""


@pytest.mark.parametrize(("op_type", "name", "right"), STATED)
@pytest.mark.parametrize("wrong", [-1, 0, 1, 1 << 62])
def test_attributes_that_contradict_the_weights_are_refused_whenever_these_are_known(
    op_type: str, name: str, right: int, wrong: int
) -> None:
    said = rf"{op_type}: attribute {name} is {wrong}, expected {right} by the weights' shapes"
    for constant_weights in (True, False):
        model = block_model(op_type, DISTINCT, function=False, constant_weights=constant_weights)
        (attribute,) = (each for each in model.graph.node[0].attribute if each.name == name)
        assert attribute.i == right
        attribute.i = wrong
        with pytest.raises(Exception, match=said):
            native_session(model).run(None, DISTINCT.maps(op_type) | DISTINCT.weights(op_type))


@pytest.mark.parametrize(("op_type", "name"), [(op_type, name) for op_type, name, _ in STATED])
def test_attributes_that_are_missing_are_named(op_type: str, name: str) -> None:
    model = block_model(op_type, DISTINCT, function=False)
    kept = [each for each in model.graph.node[0].attribute if each.name != name]
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.extend(kept)
    with pytest.raises(Exception, match=name):
        native_session(model)
