"""The compiled scan as ONNX Runtime's own kernel: its bits, its threads, its errors."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from msmamba.plugins.selective_scan import DIRECTIONS, cpu

onnx = pytest.importorskip("onnx", reason="the models under test are made with onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="the door under test is ONNX Runtime's")
from msmamba.plugins.selective_scan import onnx_function  # noqa: E402  after the check for onnx

Arrays = dict[str, NDArray[Any]]
Dimensions = list[int | str | None]

OF_ELEMENT_TYPE = ("x", "delta", "B", "C")
SIZES = (3, 5, 7, 24, 16)


def arguments(sizes: tuple[int, ...] = SIZES, dtype: Any = np.float32) -> Arrays:
    batch, height, width, channels, states = sizes
    rng = np.random.default_rng(0)
    position = (batch, height, width)
    inputs = {
        "x": rng.standard_normal((*position, channels)),
        "delta": rng.standard_normal((*position, DIRECTIONS, channels)) - 3,
        "A": -rng.uniform(0.5, states + 0.5, (DIRECTIONS, channels, states)),
        "B": rng.standard_normal((*position, DIRECTIONS, states)),
        "C": rng.standard_normal((*position, DIRECTIONS, states)),
        "D": rng.standard_normal((DIRECTIONS, channels)),
        "delta_bias": rng.standard_normal((DIRECTIONS, channels)),
    }
    return {
        name: array.astype(dtype if name in OF_ELEMENT_TYPE else np.float32) for name, array in inputs.items()
    }


def scan_model(
    dtype: Any = np.float32, *, function: bool = False, map_dimensions: Dimensions | None = None
) -> bytes:
    """One scan node with TensorRT's attributes; dimensions open but for those given for ``x``."""
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    ranks = {"x": 4, "delta": 5, "A": 3, "B": 5, "C": 5, "D": 2, "delta_bias": 2}
    inputs = [
        onnx.helper.make_tensor_value_info(
            name,
            element if name in OF_ELEMENT_TYPE else onnx.TensorProto.FLOAT,
            map_dimensions if name == "x" and map_dimensions else [None] * rank,
        )
        for name, rank in ranks.items()
    ]
    node = onnx.helper.make_node(
        onnx_function.OP_TYPE,
        list(ranks),
        ["y"],
        domain=onnx_function.DOMAIN,
        **onnx_function.PLUGIN_ATTRIBUTES,
    )
    graph = onnx.helper.make_graph(
        [node], "scan", inputs, [onnx.helper.make_tensor_value_info("y", element, None)]
    )
    opsets = {"": 20, onnx_function.DOMAIN: onnx_function.DOMAIN_VERSION}
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        functions=[onnx_function.scan_function(20)] if function else [],
        ir_version=10,
    )
    return bytes(model.SerializeToString())


def native_session(model: bytes, threads: int = 2) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(cpu.library_path()))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("threads", [1, 2, 5], ids="{}-threads".format)
def test_the_session_gives_the_bits_of_the_library(dtype: Any, threads: int) -> None:
    inputs = arguments(dtype=dtype)
    (y,) = native_session(scan_model(dtype), threads).run(None, inputs)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, cpu.selective_scan_2d(**inputs))


def test_the_kernel_takes_precedence_over_the_model_s_function() -> None:
    inputs = arguments()
    model = scan_model(function=True)
    plain = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    expected = cpu.selective_scan_2d(**inputs)
    (by_function,) = plain.run(None, inputs)
    (by_kernel,) = native_session(model).run(None, inputs)
    np.testing.assert_allclose(by_function, expected, atol=1e-4)
    assert not np.array_equal(by_function, expected)  # otherwise the next line would prove nothing
    np.testing.assert_array_equal(by_kernel, expected)


def test_without_library_or_function_the_model_does_not_open() -> None:
    with pytest.raises(Exception, match="msmamba:SelectiveScan2D"):
        onnxruntime.InferenceSession(scan_model(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("dimensions", "inferred"),
    [
        (["images", 5, 7, 24], ["images", 5, 7, 24]),
        (["images", "side", "side", 24], ["images", "side", "side", 24]),
        ([3, 5, 7, 24], [3, 5, 7, 24]),
    ],
    ids=["named-batch", "named-map", "fixed"],
)
def test_the_output_s_shape_is_inferred(dimensions: Dimensions, inferred: Dimensions) -> None:
    session = native_session(scan_model(map_dimensions=dimensions))
    assert session.get_outputs()[0].shape == inferred


def test_unknown_dimensions_stay_unknown(capfd: pytest.CaptureFixture[str]) -> None:
    (y,) = native_session(scan_model(map_dimensions=[None, 5, 7, 24])).run(None, arguments())
    assert y.shape == (3, 5, 7, 24)
    assert "does not match actual shape" not in capfd.readouterr().err


def test_an_empty_batch_gives_an_empty_map() -> None:
    (y,) = native_session(scan_model()).run(None, arguments((0, 5, 7, 24, 16)))
    assert y.shape == (0, 5, 7, 24)


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "delta_bias"])
def test_a_shape_that_does_not_fit_is_refused_by_name(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    inputs = arguments()
    found = inputs[name] = inputs[name][:, 1:].copy()
    session = native_session(scan_model())
    expected = f"SelectiveScan2D: {name} is {found.shape}, expected ".replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(Exception, match=expected):
        session.run(None, inputs)
    capfd.readouterr()  # what ONNX Runtime logs about it


def test_an_empty_map_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    session = native_session(scan_model())
    with pytest.raises(Exception, match="a dimension other than the batch is empty"):
        session.run(None, arguments((1, 0, 7, 24, 16)))
    capfd.readouterr()


def test_onnx_runtime_before_1_17_is_refused_with_a_status() -> None:
    create_status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    messages: list[bytes] = []

    def remember(code: int, message: bytes) -> int:
        messages.append(message)
        return 0xBAD

    first_slot = create_status(remember)
    slots = (ctypes.c_void_p * 1)(ctypes.cast(first_slot, ctypes.c_void_p))
    only_version_1 = get_api(lambda version: ctypes.addressof(slots) if version == 1 else None)
    base = (ctypes.c_void_p * 2)(ctypes.cast(only_version_1, ctypes.c_void_p), None)
    library = ctypes.CDLL(str(cpu.library_path()))
    library.RegisterCustomOps.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.RegisterCustomOps.restype = ctypes.c_void_p
    assert library.RegisterCustomOps(None, ctypes.addressof(base)) == 0xBAD
    assert messages == [b"msmamba's scan needs ONNX Runtime 1.17 or later"]
