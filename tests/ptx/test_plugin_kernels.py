"""The kernels that the TensorRT plugin ships, launched by the plugin itself, executed in the CPU emulator.

TensorRT's part is played by the test: it hands the plugin descriptions and addresses. The CUDA driver's
part is played by `EmulatedDriver`: the plugin's own grid, block, shared memory and parameters, the
hidden ones included, reach the emulator as they would reach a GPU.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gpu_cases import ARGUMENTS, STATES, ScanCase, truth
from numpy.typing import NDArray

from msmamba.errors import BackendError
from msmamba.plugins import cuda_driver
from msmamba.plugins.selective_scan import gpu_driver, tensorrt_plugin, triton_scan
from msmamba.plugins.selective_scan.gpu_launch import BLOCK_SHAPES
from msmamba.plugins.tensorrt_library import import_tensorrt, link_parser_library
from ptx.emulator import ORDERS, EmulatedKernel, Order, emulate

STREAM = 0x5EA1


class EmulatedDriver:
    """As much of ``cuda.bindings.driver`` as the plugin calls, for an emulated device."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT="multiprocessors",
        CU_DEVICE_ATTRIBUTE_INTEGRATED="integrated",
    )

    def __init__(self, compute_capability: int, multiprocessors: int, cache: Path) -> None:
        self.attributes = {"multiprocessors": multiprocessors, "integrated": 0}
        self.attributes["major"], self.attributes["minor"] = divmod(compute_capability, 10)
        self.cache = cache
        self.ptx: dict[bytes, str] = {}  # by the machine code made from it
        self.buffers: list[NDArray[np.generic]] = []
        self.order: Order = "forward"
        self.ulps = 0
        self.calls: Counter[str] = Counter()

    def _answer(self, call: str, *values: Any) -> tuple[Any, ...]:
        self.calls[call] += 1
        return (SimpleNamespace(value=0, name="CUDA_SUCCESS"), *values)

    def cuCtxGetCurrent(self) -> tuple[Any, ...]:
        return self._answer("cuCtxGetCurrent", id(self))

    def cuCtxGetId(self, context: int) -> tuple[Any, ...]:
        return self._answer("cuCtxGetId", context)

    def cuCtxGetDevice(self) -> tuple[Any, ...]:
        return self._answer("cuCtxGetDevice", 0)

    def cuDeviceGetName(self, length: int, device: int) -> tuple[Any, ...]:
        return self._answer("cuDeviceGetName", b"emulated".ljust(length, b"\0"))

    def cuDeviceGetAttribute(self, name: str, device: int) -> tuple[Any, ...]:
        return self._answer("cuDeviceGetAttribute", self.attributes[name])

    def cuModuleLoadData(self, cubin: bytes) -> tuple[Any, ...]:
        return self._answer("cuModuleLoadData", emulate(self.ptx[cubin], self.cache))

    def cuModuleGetFunction(self, module: EmulatedKernel, name: bytes) -> tuple[Any, ...]:
        assert module.kernel.name == name.decode()
        return self._answer("cuModuleGetFunction", module)

    def cuLaunchKernel(
        self,
        function: EmulatedKernel,
        grid_x: int,
        grid_y: int,
        grid_z: int,
        block_x: int,
        block_y: int,
        block_z: int,
        shared_bytes: int,
        stream: int,
        parameters: int,
        extra: int,
    ) -> tuple[Any, ...]:
        assert (block_y, block_z, stream, extra) == (1, 1, STREAM, 0)
        declared = function.kernel.parameters
        slots = (ctypes.c_void_p * len(declared)).from_address(parameters)
        values = [ctypes.string_at(slot, p.size) for slot, p in zip(slots, declared, strict=True)]
        grid = (grid_x, grid_y, grid_z)
        function.launch(grid, block_x, shared_bytes, values, self.buffers, self.order, self.ulps)
        return self._answer("cuLaunchKernel")


def device_array(size: int, dtype: Any) -> NDArray[np.generic]:
    """``size`` elements, aligned as device memory is, in which every number is NaN."""
    bytes_needed = size * np.dtype(dtype).itemsize
    memory = np.full(bytes_needed + 256, 0xFF, np.uint8)
    start = -memory.ctypes.data % 256
    return memory[start : start + bytes_needed].view(dtype)


@pytest.fixture(scope="module")
def trt() -> Any:
    link_parser_library()
    return import_tensorrt("tensorrt_rtx")


PluginScan = Callable[..., NDArray[np.generic]]


@pytest.fixture
def plugin_scan(trt: Any, ptx_cache: Path, monkeypatch: pytest.MonkeyPatch) -> PluginScan:
    """Runs a scan as an engine would: kernels from the engine, shapes, workspace and stream from TensorRT."""

    def run(
        case: ScanCase,
        inputs: dict[str, NDArray[np.generic]],
        compute_capability: int,
        multiprocessors: int,
        order: Order = "forward",
        ulps: int = 0,
        attach: bool = True,
    ) -> NDArray[np.generic]:
        driver = EmulatedDriver(compute_capability, multiprocessors, ptx_cache)
        for name in triton_scan.KERNELS:
            compiled = triton_scan.compile_kernel(name, case.element_type, STATES, compute_capability)
            driver.ptx[compiled.asm["cubin"]] = compiled.asm["ptx"]
        driver.order, driver.ulps = order, ulps
        monkeypatch.setattr(cuda_driver, "driver", lambda: driver)
        monkeypatch.setattr(gpu_driver, "_LOADED", {})

        package = triton_scan.compile_package(case.element_type, STATES, (compute_capability,))
        data = np.frombuffer(package.to_bytes(), np.int8)
        field = trt.PluginField(tensorrt_plugin.KERNEL_FIELD, data, trt.PluginFieldType.CHAR)
        tensorrt_plugin.register(trt)
        creator = trt.get_plugin_registry().get_creator("SelectiveScan2D", "1", "msmamba")
        fields = trt.PluginFieldCollection([field])
        engine_plugin = creator.create_plugin("scan", fields, trt.TensorRTPhase.RUNTIME)
        plugin = engine_plugin.attach_to_context(None) if attach else engine_plugin

        arrays = []
        for name in ARGUMENTS:
            array = device_array(inputs[name].size, inputs[name].dtype)
            array[:] = inputs[name].reshape(-1)
            array.flags.writeable = False
            arrays.append(array)
        y = device_array(inputs["x"].size, inputs["x"].dtype)
        described = [_described(trt, inputs[name]) for name in ARGUMENTS]
        output = [_described(trt, inputs["x"])]
        plugin.on_shape_change(described, output)
        workspace = device_array(plugin.plan.workspace_bytes // 4, np.float32)
        driver.buffers = [*arrays, y, workspace]

        before = driver.calls.copy()
        addresses = [array.ctypes.data for array in arrays]
        plugin.enqueue(described, output, addresses, [y.ctypes.data], workspace.ctypes.data, STREAM)
        during = driver.calls - before
        assert set(during) == {"cuLaunchKernel"}, "enqueue must launch, and do nothing else"
        assert during["cuLaunchKernel"] == (3 if plugin.plan.chunks > 1 else 2)
        return y.reshape(inputs["x"].shape)

    return run


def _described(trt: Any, array: NDArray[np.generic]) -> Any:
    description = trt.PluginTensorDesc()
    description.dims = array.shape
    description.type = trt.DataType.HALF if array.dtype == np.float16 else trt.DataType.FLOAT
    description.format = trt.TensorFormat.LINEAR
    return description


ONE, MANY = 1, 100  # multiprocessors: a device that needs no split of the lines, and one that does


@pytest.mark.parametrize("element_type", ["float16", "float32"])
@pytest.mark.parametrize("compute_capability", BLOCK_SHAPES)
def test_every_shipped_kernel_in_every_thread_order(
    plugin_scan: PluginScan, compute_capability: int, element_type: str
) -> None:
    """An odd number of channels, lines that end within a tile, and enough of them to be split."""
    case = ScanCase(1, 9, 12, 13, element_type)
    inputs = case.inputs()
    expected = truth(inputs)
    answers = [plugin_scan(case, inputs, compute_capability, MANY, order) for order in ORDERS]
    for answer in answers:
        expected.check(answer)
        np.testing.assert_array_equal(answer, answers[0])


@pytest.mark.parametrize("element_type", ["float16", "float32"])
@pytest.mark.parametrize(
    ("case", "multiprocessors"),
    [
        pytest.param(ScanCase(3, 1, 1, 7), ONE, id="one-token"),
        pytest.param(ScanCase(3, 7, 7, 192), ONE, id="last-stage-49x192-batch-3"),
        pytest.param(ScanCase(1, 14, 14, 96), ONE, id="third-stage-196x96"),
        pytest.param(ScanCase(1, 28, 28, 48), MANY, id="second-stage-784x48-split"),
        pytest.param(ScanCase(1, 5, 3, 24), ONE, id="oblong"),
    ],
)
def test_the_shapes_of_the_network(
    plugin_scan: PluginScan, case: ScanCase, multiprocessors: int, element_type: str
) -> None:
    inputs = ScanCase(case.batch, case.height, case.width, case.channels, element_type).inputs()
    own = ScanCase(case.batch, case.height, case.width, case.channels, element_type)
    truth(inputs).check(plugin_scan(own, inputs, 87, multiprocessors))


@pytest.mark.parametrize("multiprocessors", [ONE, MANY])
def test_the_first_stage(plugin_scan: PluginScan, multiprocessors: int) -> None:
    case = ScanCase(1, 56, 56, 24, "float32")
    inputs = case.inputs()
    truth(inputs).check(plugin_scan(case, inputs, 89, multiprocessors))


def test_float16_bears_the_error_of_a_gpus_functions(plugin_scan: PluginScan) -> None:
    """Exponentials and quotients off by up to two units in the last place, as a GPU's are."""
    case = ScanCase(1, 14, 14, 96, "float16")
    inputs = case.inputs()
    truth(inputs).check(plugin_scan(case, inputs, 87, ONE, ulps=2))


def test_a_builder_may_run_the_layer_without_attaching_it(plugin_scan: PluginScan) -> None:
    case = ScanCase(3, 1, 1, 7)
    inputs = case.inputs()
    truth(inputs).check(plugin_scan(case, inputs, 87, ONE, attach=False))


def test_kernels_for_another_gpu_are_refused_before_anything_is_loaded(
    ptx_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = EmulatedDriver(90, 1, ptx_cache)
    monkeypatch.setattr(cuda_driver, "driver", lambda: driver)
    package = triton_scan.compile_package("float16", STATES, (87,))
    with pytest.raises(BackendError, match=r"for compute capability 8\.7; this device has 9\.0.*--sm 9\.0"):
        gpu_driver.LoadedKernels(package)
    assert driver.calls["cuModuleLoadData"] == 0
