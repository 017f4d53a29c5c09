"""Runs of ONNX Runtime on fixed memory: batches of NumPy's and of a GPU's memory, by the real ONNX Runtime.

The GPU's memory is played (`recording_gpu`); on the CPU, ONNX Runtime works on it as it is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from recording_gpu import LEGACY, Array, RecordingDriver

from msmamba.errors import BackendError, InputError
from msmamba.plugins import cuda_driver
from msmamba.runtime.device_arrays import DeviceArray
from msmamba.runtime.onnxruntime_backend import OnnxRuntimeBackend
from msmamba.runtime.onnxruntime_cuda import BoundRuns
from msmamba.runtime.onnxruntime_library import failure_of

from .conftest import classifier

SIDE = 9


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingDriver]:
    """The GPU; whatever a test leaves on it, but memory of ONNX Runtime's, fails the test."""
    recording = RecordingDriver(89)
    monkeypatch.setattr(cuda_driver, "driver", lambda: recording)
    yield recording
    recording.check_nothing_is_left()


@pytest.fixture
def runs(driver: RecordingDriver) -> Iterator[BoundRuns]:
    """A session whose values lie in the driver's memory."""
    taken: list[int] = []

    def value(shape: list[int], dtype: Any, device: str, number: int) -> Any:
        assert (device, number) == ("cuda", 0)
        size = int(np.prod(shape)) * 4
        taken.append(driver.allocate("device", size))
        memory = (ctypes.c_byte * size).from_address(taken[-1])
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.frombuffer(memory, dtype).reshape(shape))

    maker = SimpleNamespace(ortvalue_from_shape_and_type=value)
    runtime = SimpleNamespace(OrtValue=maker, RunOptions=onnxruntime.RunOptions)
    model = classifier(features=True).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    yield BoundRuns(runtime, session, "image", {"logits": 3, "features": 3}, graphs=True)
    for address in taken:
        driver._release("device", address)


def test_a_run_that_has_begun_when_the_backend_is_closed_ends() -> None:
    backend = OnnxRuntimeBackend(classifier().SerializeToString(), "colours")
    logits = np.ones((1, 3), np.float32)
    backend._bound = SimpleNamespace(run=lambda images: [logits])  # type: ignore[assignment]

    class Images:
        @property
        def shape(self) -> tuple[int, ...]:
            backend.close()
            return (1, 3, SIDE, SIDE)

    np.testing.assert_array_equal(backend.run(Images()), logits)  # type: ignore[arg-type]


def pictures(batch: int) -> NDArray[np.float32]:
    return np.random.default_rng(batch).standard_normal((batch, 3, SIDE, SIDE), np.float32)


@pytest.mark.parametrize("stream", [None, LEGACY], ids=["ready", "awaited"])
def test_images_in_the_gpus_memory_are_copied_there(
    runs: BoundRuns, driver: RecordingDriver, stream: int | None
) -> None:
    for batch in (2, 1, 2):
        images = pictures(batch)
        array = Array(driver, images, stream=stream)
        taken = DeviceArray.of(array)
        assert taken is not None
        logits, features = runs.run(taken)
        array.free()
        np.testing.assert_allclose(features, images.mean((2, 3)), atol=1e-6)
        np.testing.assert_allclose(logits, features[:, ::-1], atol=1e-6)
    assert driver.calls.count("cuStreamWaitEvent") == (3 if stream else 0)


def test_images_on_another_gpu_are_refused(runs: BoundRuns, driver: RecordingDriver) -> None:
    array = Array(driver, pictures(1))
    driver.ordinals[array.address] = 1
    taken = DeviceArray.of(array)
    assert taken is not None
    with pytest.raises(InputError, match="lies on GPU 1; this session runs on GPU 0: copy it there"):
        runs.run(taken)
    array.free()


def test_answers_are_the_callers_own(runs: BoundRuns) -> None:
    """The memory that they were made in is used again."""
    first, _ = runs.run(pictures(1))
    kept = first.copy()
    runs.run(-pictures(1))
    np.testing.assert_array_equal(first, kept)


def test_a_run_that_fails_is_one_of_our_errors(runs: BoundRuns) -> None:
    """ONNX Runtime raises a plain RuntimeError there, by which a graph that fails would have ended `open`."""
    with pytest.raises(BackendError, match=r"ONNX Runtime failed: .*nvalid dimensions"):
        runs.run(np.zeros((1, 3, SIDE + 1, SIDE + 1), np.float32))


SOURCES = "/onnxruntime_src/onnxruntime/core/providers/cuda"
CALLED = (
    f"{SOURCES}/cuda_call.cc:146 std::conditional_t<…> onnxruntime::CudaCall(…) [with ERRTYPE = cudaError] "
)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            f"Error in execution: {CALLED}{CALLED}CUDA failure 900: operation not permitted when stream is "
            f"capturing ; GPU=0 ; hostname=scope ; file={SOURCES}/cuda_graph.cc ; line=56 ; "
            "expr=cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal); ",
            "CUDA failure 900: operation not permitted when stream is capturing in cudaStreamBeginCapture",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while "
            "running MatMul node. Name:'head/MatMul' Status Message: CUBLAS failure 13: the program failed "
            f"; GPU=0 ; hostname=scope ; file={SOURCES}/math/matmul.cc ; line=427 ; "
            "expr=cublasGemmHelper( GetCublasHandle(ctx), transB, static_cast<int>(helper.N())); ",
            "CUBLAS failure 13: the program failed in cublasGemmHelper, MatMul node 'head/MatMul'",
        ),
        (
            "Error in execution: Non-zero status code returned while running Conv node. Name:'a/Conv' Status "
            "Message: CUDA error cudaErrorLaunchFailure:unspecified launch failure",
            "Non-zero status code returned while running Conv node. Name:'a/Conv' Status "
            "Message: CUDA error cudaErrorLaunchFailure:unspecified launch failure",
        ),
        ("[ONNXRuntimeError] : 10 : INVALID_GRAPH : no such operator", "no such operator"),
    ],
    ids=["capture", "node", "kernel", "file"],
)
def test_a_failure_of_cuda_is_told_without_the_machine(said: str, told: str) -> None:
    """Texts of `onnxruntime-gpu` 1.31.1 on a played CUDA, with CUDA's own words for the errors."""
    assert failure_of(RuntimeError(said)) == told


@pytest.mark.parametrize("name", ["n" * 3_000_000, "a failure 1: " * 300_000], ids=["word", "failures"])
def test_a_failure_at_a_node_with_an_endless_name_is_told_in_a_line(name: str) -> None:
    assert len(failure_of(RuntimeError(f"no such node: {name}"))) < 5000
