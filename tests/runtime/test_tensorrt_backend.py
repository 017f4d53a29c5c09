"""Engines behind a session: order of calls, lifetimes, graphs, other libraries' arrays, refusals.

CUDA and TensorRT's runtime are played (see `recording_gpu`); plans, headers and versions are real.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from recording_gpu import LEGACY, Array, Engine, Operation, RecordingDriver, RecordingTensorRT, Stream, owned

from msmamba.errors import ArtefactError, BackendError, InputError
from msmamba.plugins import cuda_driver
from msmamba.runtime import open_session, tensorrt_backend
from msmamba.runtime.device_arrays import DeviceArray
from msmamba.runtime.manifest import EngineFacts
from msmamba.runtime.session import Session
from msmamba.runtime.tensorrt_engine import MOST_CONTEXTS

from .conftest import LABELS, SIZE

BATCHES = (1, 2, 4)
VERSION = (1, 7, 1, 116)


def plan(magic: bytes = b"vtrt", version: tuple[int, ...] = VERSION, targets: int = 0b001000) -> bytes:
    """A plan as far as it is read: 64 bytes of header in TensorRT-RTX's layout, and something behind."""
    body = b"weights" * 30
    size = 64 + len(body)
    return (
        (magic + bytes(4) + (2).to_bytes(8, "little") + size.to_bytes(8, "little"))
        + (bytes(version) + magic + targets.to_bytes(4, "little")).ljust(40, b"\0")
        + body
    )


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RecordingDriver]:
    """The GPU: compute capability 8.9. Whatever a test leaves on it fails the test."""
    recording = RecordingDriver(89)
    monkeypatch.setattr(cuda_driver, "driver", lambda: recording)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield recording
    recording.check_nothing_is_left()


@pytest.fixture
def engine(driver: RecordingDriver) -> Engine:
    return Engine(driver, SIZE, BATCHES)


@pytest.fixture
def trt(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> RecordingTensorRT:
    played = RecordingTensorRT(engine, version=".".join(map(str, VERSION)))
    monkeypatch.setattr(tensorrt_backend, "import_tensorrt", lambda name, to_parse: played)
    return played


@pytest.fixture
def engine_file(trt: RecordingTensorRT, tmp_path: Path) -> Path:
    path = tmp_path / "a name that does not tell"
    path.write_bytes(plan())
    return path


@pytest.fixture
def session(engine_file: Path) -> Iterator[Session]:
    with open_session(engine_file, labels=LABELS, mean=(0.5,) * 3, std=(0.25,) * 3) as opened:
        yield opened


def images(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, SIZE, SIZE), np.float32)


def logits_of(batch: np.ndarray) -> np.ndarray:
    return batch.mean(axis=(2, 3))[:, ::-1]


def test_a_session_runs_an_engine_as_it_runs_anything(session: Session, colours: list[np.ndarray]) -> None:
    assert (session.max_batch, session.image_size, session.classes) == (4, SIZE, 3)
    assert session.provider == "tensorrt_rtx"
    assert session.path == ("TensorRT-RTX 1.7.1.116 on Recording, no scan plugin, CUDA graphs")
    assert [prediction.label for prediction in session.classify(colours)] == ["red", "green", "blue"]
    assert [item.label for item in session.classify(colours, batch_size=100)] == ["red", "green", "blue"]


def test_the_first_run_of_a_batch_size_is_plain_and_the_next_ones_are_replayed(
    session: Session, driver: RecordingDriver, engine: Engine
) -> None:
    def all_enqueued() -> int:
        return sum(context.enqueued for context in engine.contexts)

    for seed, batch in enumerate([1, 1, 3, 3, 1, 3, 3]):
        driver.calls.clear()
        enqueued = all_enqueued()
        found = session.run(images(batch, seed))
        np.testing.assert_allclose(found, logits_of(images(batch, seed)), rtol=1e-6)
        first = seed in (0, 2)
        assert driver.calls.count("cuGraphLaunch") == (0 if first else 1)
        assert driver.calls.count("cuGraphInstantiate") == (1 if first else 0)
        # Plainly, and once more into the capture; a replay does not touch the engine.
        assert all_enqueued() - enqueued == (2 if first else 0)
        assert driver.calls.count("cuStreamSynchronize") == 1
        assert not {"cuMemAlloc", "cuMemHostAlloc", "cuMemFree", "cuStreamCreate"} & set(driver.calls)


def test_features_are_copied_only_where_they_are_asked_for(
    engine: Engine, engine_file: Path, driver: RecordingDriver
) -> None:
    engine.shapes["features"], engine.dtypes["features"] = (-1, 3), "FLOAT"
    with open_session(engine_file) as session:
        assert session.features == 3
        for seed, batch in enumerate([1, 3, 3, 1]):  # plainly and from a graph
            given = images(batch, seed)
            logits, features = session.run_with_features(given)
            np.testing.assert_allclose(logits, logits_of(given), rtol=1e-6)
            np.testing.assert_allclose(features, logits_of(given)[:, ::-1], rtol=1e-6)
        driver.calls.clear()
        session.run(given)
        asked_for_logits = driver.calls.count("cuStreamSynchronize"), driver.calls.count("cuMemcpyDtoHAsync")
        driver.calls.clear()
        session.run_with_features(given)
        asked_for_both = driver.calls.count("cuStreamSynchronize"), driver.calls.count("cuMemcpyDtoHAsync")
    assert (asked_for_logits, asked_for_both) == ((1, 0), (2, 1))  # the graph copies the logits


def test_an_engine_without_features_tells_none(session: Session) -> None:
    logits, features = session.run_with_features(images(1))
    assert session.features is features is None
    np.testing.assert_array_equal(logits, session.run(images(1)))


def test_more_batch_sizes_than_contexts_answer_too(
    engine: Engine, engine_file: Path, driver: RecordingDriver
) -> None:
    engine.batches = (1, 4, 7)
    with open_session(engine_file) as session:
        for batch in (1, 2, 3, 4, 5, 6, 7, 5, 1, 6, 2):
            found = session.run(images(batch, batch))
            np.testing.assert_allclose(found, logits_of(images(batch, batch)), rtol=1e-6)
        assert len(engine.contexts) == MOST_CONTEXTS + 1
    assert driver.calls.count("cuGraphInstantiate") == MOST_CONTEXTS


def test_what_fails_to_open_gives_everything_back(engine_file: Path, driver: RecordingDriver) -> None:
    for options, error in (
        ({"labels": ["only one"]}, ArtefactError),
        ({"mean": (1,), "std": (1,)}, InputError),
    ):
        with pytest.raises(error):
            open_session(engine_file, **options)


def test_closing_gives_back_what_it_can(engine_file: Path, driver: RecordingDriver) -> None:
    session = open_session(engine_file)
    session.run(images(1))
    driver.failing["cuGraphExecDestroy"] = "CUDA_ERROR_ILLEGAL_ADDRESS"
    with pytest.raises(BackendError, match="cuGraphExecDestroy"):
        session.close()
    driver.executables.clear()  # the one that could not be destroyed


def test_what_a_failed_run_has_enqueued_is_waited_for(
    engine: Engine, engine_file: Path, driver: RecordingDriver
) -> None:
    with open_session(engine_file) as session:
        engine.contexts[0].fails = True
        with pytest.raises(BackendError):
            session.run(images(2))


def test_memory_that_linux_gives_back_counts_as_free(
    engine: Engine, engine_file: Path, driver: RecordingDriver
) -> None:
    engine.device_memory_size_v2 = 1 << 50
    with pytest.raises(BackendError, match="of GPU memory"):
        open_session(engine_file)
    driver.integrated = 1
    open_session(engine_file).close()


def test_replayed_and_plain_runs_answer_alike(engine_file: Path, driver: RecordingDriver) -> None:
    backend = tensorrt_backend.TensorRtBackend(engine_file.read_bytes(), "plain", graphs=False)
    assert backend.path.endswith("no CUDA graphs (asked for)")
    plain = [backend.run(images(batch, batch)) for batch in (1, 4, 1, 4)]
    backend.close()
    assert "cuStreamBeginCapture" not in driver.calls
    with open_session(engine_file) as session:
        replayed = [session.run(images(batch, batch)) for batch in (1, 4, 1, 4)]
    np.testing.assert_array_equal(np.concatenate(plain), np.concatenate(replayed))


def test_answers_are_the_callers_to_keep(session: Session) -> None:
    first = session.run(images(2, seed=1))
    kept = first.copy()
    session.run(images(2, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_threads_take_turns(session: Session) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        batch = 1 + seed % 4
        for _ in range(20):
            if not np.allclose(session.run(images(batch, seed)), logits_of(images(batch, seed)), rtol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(("batch", "said"), [(5, "batch of 5"), (0, "empty batch")])
def test_a_batch_outside_the_profile_is_refused_with_the_range(
    session: Session, batch: int, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        session.run(images(batch))


def test_the_backend_itself_says_the_range(session: Session) -> None:
    with pytest.raises(InputError, match=r"batch of 5; this engine takes 1 to 4: .*--batches 1 1 5"):
        session._backend.run(images(5))


def test_a_batch_below_the_engines_least_is_filled_up(
    engine: Engine, engine_file: Path, driver: RecordingDriver
) -> None:
    engine.batches = (3, 3, 4)
    with open_session(engine_file) as session:
        for batch in (1, 2, 3, 4, 1):
            np.testing.assert_allclose(
                session.run(images(batch, batch)), logits_of(images(batch, batch)), rtol=1e-6
            )
    assert driver.calls.count("cuGraphInstantiate") == 2  # for batches of 3 and of 4


# Arrays of other libraries


@pytest.mark.parametrize("batch", [1, 4])
def test_an_array_on_the_gpu_does_not_pass_through_the_host(
    session: Session, driver: RecordingDriver, batch: int
) -> None:
    for seed in range(3):  # plain, then replayed
        array = Array(driver, images(batch, seed))
        driver.calls.clear()
        found = session.run(array)
        assert "cuMemcpyHtoDAsync" not in driver.calls
        assert driver.calls.count("cuMemcpyDtoDAsync") == 1
        array.free()  # fails if anything enqueued still needs it
        np.testing.assert_allclose(found, logits_of(images(batch, seed)), rtol=1e-6)


@pytest.mark.parametrize(
    ("says", "stream"),
    [
        pytest.param(0xABC, 0xABC, id="its-own-stream"),
        pytest.param(1, LEGACY, id="legacy-default-stream"),
        pytest.param(..., LEGACY, id="not-said"),
    ],
)
def test_the_arrays_own_stream_is_waited_for(
    session: Session, driver: RecordingDriver, says: Any, stream: int
) -> None:
    """The array is still being computed when it is handed over."""
    driver.streams.setdefault(stream, Stream())
    array = Array(driver, np.zeros((1, 3, SIZE, SIZE), np.float32), stream=says)
    ready = images(1)

    def compute() -> None:
        driver.allocation(array.address).memory[:] = np.frombuffer(ready.tobytes(), np.uint8)

    driver.enqueue(stream, Operation("their kernel", compute, (array.address,)))
    np.testing.assert_allclose(session.run(array), logits_of(ready), rtol=1e-6)
    array.free()
    if stream != LEGACY:
        del driver.streams[stream]


def test_an_array_that_is_ready_is_not_waited_for(session: Session, driver: RecordingDriver) -> None:
    array = Array(driver, images(1), stream=None)
    driver.calls.clear()
    session.run(array)
    assert "cuStreamWaitEvent" not in driver.calls
    array.free()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"typestr": "<f8"}, "holds float64; this artefact takes float32", id="type"),
        pytest.param({"shape": (1, 3, SIZE, SIZE + 1)}, r"has shape \(1, 3, 9, 10\)", id="shape"),
        pytest.param({"strides": (4, 4, 4, 4)}, "is strided: expected C order", id="strides"),
        pytest.param({"mask": object()}, "masked array", id="mask"),
        pytest.param({"stream": 0}, "stream 0, which is ambiguous", id="stream-zero"),
        pytest.param({"data": ...}, "cannot be read: KeyError", id="no-data"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(
    session: Session, driver: RecordingDriver, changes: dict[str, Any], message: str
) -> None:
    array = Array(driver, images(1), **changes)
    with pytest.raises(InputError, match=message):
        session.run(array)
    array.free()


def test_a_dim_of_one_may_have_any_stride(session: Session, driver: RecordingDriver) -> None:
    array = Array(driver, images(1), strides=(12345, SIZE * SIZE * 4, SIZE * 4, 4))
    np.testing.assert_allclose(session.run(array), logits_of(images(1)), rtol=1e-6)
    array.free()


def test_an_array_on_another_gpu_is_refused(session: Session, driver: RecordingDriver) -> None:
    array = Array(driver, images(1))
    driver.ordinals[array.address] = 1
    with pytest.raises(InputError, match="lies on GPU 1; this session runs on GPU 0: copy it there"):
        session.run(array)
    array.free()


def test_an_array_that_its_owner_withholds_is_refused(session: Session) -> None:
    class Tensor:
        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad.")

    with pytest.raises(InputError, match=r"not handed out by its owner: .*requires grad"):
        session.run(Tensor())


def test_what_is_no_array_at_all_is_refused(session: Session) -> None:
    with pytest.raises(InputError, match="that cannot be read: AttributeError"):
        session.run(SimpleNamespace(__cuda_array_interface__=5))


@pytest.mark.parametrize(("current", "awaited"), [(0xABC, 0xABC), (0, 1)], ids=["side", "default"])
def test_a_tensor_of_pytorch_is_awaited_on_its_current_stream(
    current: int, awaited: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's interface names no stream, whichever the tensor is made on."""
    import torch

    class Tensor(torch.Tensor):
        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            return {"shape": (1,), "typestr": "<f4", "data": (256, False), "version": 2}

    stream = SimpleNamespace(cuda_stream=current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    array = DeviceArray.of(Tensor())
    assert array is not None
    assert array.stream == awaited


def test_onnx_runtime_takes_no_array_on_the_gpu(onnx_file: Path, driver: RecordingDriver) -> None:
    array = Array(driver, images(1))
    with (
        open_session(onnx_file) as session,
        pytest.raises(InputError, match="lies in a GPU's memory, and this session runs on onnxruntime CPU"),
    ):
        session.run(array)
    array.free()


def test_pytorch_tensors_of_the_cpu_are_not_taken_for_arrays_on_the_gpu(session: Session) -> None:
    import torch

    with pytest.raises(InputError, match="is a Tensor: expected an array"):
        session.run(torch.zeros(1, 3, SIZE, SIZE))


# Contexts


def test_a_context_that_is_current_is_used_and_left_current(
    engine_file: Path, driver: RecordingDriver
) -> None:
    with owned(0xC0, driver), open_session(engine_file) as session:
        session.run(images(1))
        assert driver.stack == [0xC0]
    assert "cuDevicePrimaryCtxRetain" not in driver.calls


def test_without_one_the_primary_context_is_retained_and_given_back(
    engine_file: Path, driver: RecordingDriver
) -> None:
    with open_session(engine_file) as session:
        assert (driver.retained, driver.stack) == (1, [])
        session.run(images(1))
        assert driver.stack == []
    assert driver.retained == 0


# Closing, and failing


def test_closing_twice_is_closing_once_and_running_afterwards_is_refused(session: Session) -> None:
    session.run(images(1))
    session.close()
    session.close()
    with pytest.raises(BackendError, match="session is closed"):
        session.run(images(1))


@pytest.mark.parametrize("call", ["cuMemAlloc", "cuMemHostAlloc"])
def test_memory_that_cannot_be_had_leaves_nothing_behind(
    engine_file: Path, driver: RecordingDriver, call: str
) -> None:
    driver.failing[call] = "CUDA_ERROR_OUT_OF_MEMORY"
    with pytest.raises(BackendError, match=r"OUT_OF_MEMORY: the GPU's memory is full: .*smaller batches"):
        open_session(engine_file)


def test_an_engine_that_needs_more_memory_than_is_free_is_not_started(
    engine_file: Path, engine: Engine, driver: RecordingDriver
) -> None:
    engine.device_memory_size_v2, driver.free = 3_000_000_000, 2_000_000_000
    with pytest.raises(BackendError, match=r"needs 3000 MB .* 2000 MB are free: .*smaller batches than 4"):
        open_session(engine_file)
    assert engine.contexts == []


def test_a_context_that_tensorrt_does_not_make_is_said(engine_file: Path, engine: Engine) -> None:
    engine.starts = False
    with pytest.raises(BackendError, match="cannot start in tensorrt_rtx"):
        open_session(engine_file)


def test_a_plan_that_does_not_load_is_said_with_tensorrts_reason(
    engine_file: Path, trt: RecordingTensorRT
) -> None:
    trt.engine, trt.says = None, ["Cuda failure\n 35", "weights are gone"]
    with pytest.raises(
        BackendError, match=r"does not load in tensorrt_rtx 1\.7\.1\.116: Cuda failure 35; weights"
    ):
        open_session(engine_file)


def test_a_failing_run_is_said_and_the_next_one_works(session: Session, engine: Engine) -> None:
    (context,) = engine.contexts
    context.fails = True
    with pytest.raises(BackendError, match="failed in tensorrt_rtx"):
        session.run(images(1))
    context.fails = False
    np.testing.assert_allclose(session.run(images(1)), logits_of(images(1)), rtol=1e-6)


@pytest.mark.parametrize("call", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_where_capture_fails_batches_run_plainly_and_the_path_says_why(
    session: Session, driver: RecordingDriver, call: str
) -> None:
    driver.failing[call] = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
    with pytest.warns(RuntimeWarning, match="running without CUDA graphs, slower"):
        first = session.run(images(2))
    driver.streams[session._backend._loaded._stream.handle].captured = None
    np.testing.assert_allclose(first, logits_of(images(2)), rtol=1e-6)
    np.testing.assert_allclose(session.run(images(2, 1)), logits_of(images(2, 1)), rtol=1e-6)
    assert f"no CUDA graphs (CUDA driver call {call} failed" in session.path
    driver.graphs.clear()


def test_an_engine_that_fails_in_capture_leaves_the_stream_usable(session: Session, engine: Engine) -> None:
    engine.contexts[0].fails_captured = True
    with pytest.warns(RuntimeWarning, match=r"running without CUDA graphs.*failed in tensorrt_rtx"):
        session.run(images(2))
    np.testing.assert_allclose(session.run(images(2, 1)), logits_of(images(2, 1)), rtol=1e-6)
    assert "no CUDA graphs ('" in session.path


def test_an_engine_that_cannot_be_captured_runs_plainly(session: Session, engine: Engine) -> None:
    engine.capturable = False
    with pytest.warns(RuntimeWarning, match="cannot be captured"):
        session.run(images(1))
    np.testing.assert_allclose(session.run(images(1, 1)), logits_of(images(1, 1)), rtol=1e-6)
    assert "no CUDA graphs (TensorRT-RTX says" in session.path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"shapes": {"image": (-1, 1, 9, 9), "logits": (-1, 3)}},
            "expected \\(batch, 3, S, S\\)",
            id="grey",
        ),
        pytest.param(
            {"shapes": {"image": (-1, 3, 9, 9), "logits": (-1, 3, 1)}},
            "expected \\(batch, classes\\)",
            id="map",
        ),
        pytest.param(
            {"shapes": {"image": (-1, 3, 9, 9), "logits": (-1, 1)}},
            "and at least two classes",
            id="one-class",
        ),
        pytest.param(
            {"dtypes": {"image": "HALF", "logits": "FLOAT"}}, "'image' is HALF, expected FLOAT", id="half"
        ),
        pytest.param(
            {
                "shapes": {"image": (), "logits": (), "more": ()},
                "dtypes": dict.fromkeys(("image", "logits", "more"), "FLOAT"),
            },
            "1 inputs and 2 outputs",
            id="three",
        ),
        pytest.param(
            {
                "shapes": {"image": (-1, 3, 9, 9), "logits": (-1, 3), "features": (-1, 3, 4, 4)},
                "dtypes": dict.fromkeys(("image", "logits", "features"), "FLOAT"),
            },
            "expected \\(batch, features\\)",
            id="features-of-a-map",
        ),
    ],
)
def test_an_engine_that_is_no_classifier_is_refused(
    engine_file: Path, engine: Engine, change: dict[str, Any], message: str
) -> None:
    for name, value in change.items():
        setattr(engine, name, value)
    with pytest.raises(ArtefactError, match=message):
        open_session(engine_file)


# TensorRT-RTX's own


def test_compiled_kernels_are_kept_for_the_next_process(
    engine_file: Path, engine: Engine, driver: RecordingDriver, tmp_path: Path
) -> None:
    with open_session(engine_file) as session:
        session.run(images(1))
        session.run(images(2))
    (kept,) = (tmp_path / "cache" / "msmamba").iterdir()
    assert kept.suffix == ".rtx-cache"
    assert len(kept.read_bytes()) == 16
    with open_session(engine_file):
        assert engine.configs[-1].cache.content == kept.read_bytes()


def test_where_they_cannot_be_kept_it_is_said_once(
    engine_file: Path, tmp_path: Path, driver: RecordingDriver
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.warns(RuntimeWarning, match="compile its kernels again in the next process"):
        session = open_session(engine_file)
    with session:
        session.run(images(1))
        session.run(images(2))


def test_where_they_cannot_be_written_the_answers_come_and_it_is_said_once(
    engine_file: Path, tmp_path: Path, driver: RecordingDriver
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "msmamba").symlink_to(tmp_path / "gone")
    with open_session(engine_file) as session:
        with pytest.warns(RuntimeWarning, match="compile its kernels again in the next process"):
            session.run(images(1))
        session.run(images(2))  # a second warning would be an error


def test_without_a_home_there_is_no_cache_and_an_answer(
    engine_file: Path, driver: RecordingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it is for a user without one
    with pytest.warns(RuntimeWarning, match="again in the next process: Could not determine home"):
        session = open_session(engine_file)
    with session:
        session.run(images(1))


def test_a_relative_cache_folder_counts_for_nothing(
    engine_file: Path, driver: RecordingDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with open_session(engine_file) as session:
        session.run(images(1))
    assert not (tmp_path / "cache").exists()
    assert (tmp_path / "home" / ".cache" / "msmamba").is_dir()


def test_the_cache_outlives_the_context_that_uses_it(session: Session, engine: Engine) -> None:
    """TensorRT-RTX crashes otherwise."""
    gc.collect()
    loaded = session._backend._loaded.engine
    assert loaded._cache is engine.configs[-1].cache
    assert "EAGER" in str(engine.configs[-1].dynamic_shapes_kernel_specialization_strategy)


def test_a_cache_that_tensorrt_does_not_hand_out_is_not_kept(
    session: Session, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.configs[-1].cache, "serialize", lambda: None)
    np.testing.assert_allclose(session.run(images(2)), logits_of(images(2)), rtol=1e-6)
    assert session._backend._loaded.engine.runtime_cache() is None
    assert not list((tmp_path / "cache").rglob("*.rtx-cache"))


def test_tensorrt_itself_has_neither_cache_nor_configuration(
    trt: RecordingTensorRT, engine: Engine, tmp_path: Path, driver: RecordingDriver
) -> None:
    trt.__name__, trt.__version__ = "tensorrt", "10.3.0.30"
    (tmp_path / "orin").write_bytes(plan(b"ftrt", version=(0, 0, 0, 0), targets=0))
    with open_session(tmp_path / "orin") as session:
        assert session.provider == "tensorrt"
        np.testing.assert_allclose(session.run(images(2)), logits_of(images(2)), rtol=1e-6)
        np.testing.assert_allclose(session.run(images(2, 1)), logits_of(images(2, 1)), rtol=1e-6)
    assert engine.configs == []
    assert not (tmp_path / "cache").exists()


# Bundles: the engine where it runs, else the ONNX file, and the path says why

FACTS = {
    "library": "tensorrt_rtx",
    "version": "1.7.1.116",
    "plugin_version": "",
    "batches": [1, 2, 4],
    "version_compatible": False,
    "hardware_compatibility": "none",
}


@pytest.fixture
def engine_bundle(make_bundle: Callable[..., Path], trt: RecordingTensorRT) -> Callable[..., Path]:
    """Makes a bundle with an engine beside its ONNX file; both are the same classifier."""

    def make(content: bytes | None = None, **facts: Any) -> Path:
        return make_bundle(
            extra={"model.engine": plan() if content is None else content},
            engine={**FACTS, **facts},
            compute_capabilities=("8.9",),
        )

    return make


def test_a_bundles_engine_runs_where_it_fits(
    engine_bundle: Callable[..., Path], colours: list[np.ndarray], driver: RecordingDriver
) -> None:
    with open_session(engine_bundle()) as session:
        assert session.provider == "tensorrt_rtx"
        assert EngineFacts.of(session.manifest).batches == BATCHES
        assert [item.label for item in session.classify(colours)] == ["red", "green", "blue"]


def test_a_library_inside_an_engine_runs_only_where_it_is_trusted(
    engine_bundle: Callable[..., Path], driver: RecordingDriver
) -> None:
    bundle = engine_bundle(version_compatible=True)
    with open_session(bundle) as session:
        assert session.provider == "CPUExecutionProvider"
        assert "carries a library that would run in this process" in session.path
    with pytest.raises(BackendError, match="trust_engine_code=True"):
        open_session(bundle, provider="engine")
    with open_session(bundle, provider="engine", trust_engine_code=True) as session:
        assert session.provider == "tensorrt_rtx"


@pytest.mark.parametrize("trusted", [False, True])
def test_a_library_inside_a_bare_engine_never_runs(
    engine_file: Path, trt: RecordingTensorRT, trusted: bool
) -> None:
    with open_session(engine_file, trust_engine_code=trusted):
        (runtime,) = trt.runtimes
        assert not hasattr(runtime, "engine_host_code_allowed")


@pytest.mark.parametrize(
    ("options", "why"),
    [({"device": "cpu"}, "not the engine: asked for the CPU"), ({"provider": "cpu"}, "")],
    ids=["device", "provider"],
)
def test_the_cpu_may_be_asked_for(
    engine_bundle: Callable[..., Path], driver: RecordingDriver, options: dict[str, str], why: str
) -> None:
    with open_session(engine_bundle(), **options) as session:
        assert session.provider == "CPUExecutionProvider"
        assert session.path.endswith(why)
    assert driver.calls == []


def test_where_the_engine_does_not_fit_the_file_runs_and_says_why(
    engine_bundle: Callable[..., Path], driver: RecordingDriver
) -> None:
    bundle = engine_bundle()
    driver.capability = 86
    with open_session(bundle) as session:
        assert session.provider == "CPUExecutionProvider"
        assert f"this GPU, Recording, has 8.6: build it again: mmdeploy export {bundle}" in session.path
    with pytest.raises(BackendError, match=r"for compute capability 8\.9 and this GPU, Recording, has 8\.6"):
        open_session(bundle, provider="engine")
    with pytest.raises(BackendError, match=r"needs ONNX Runtime with CUDA.*; and not the engine: .*has 8\.6"):
        open_session(bundle, device="cuda")


def test_without_a_gpu_the_file_runs_and_says_why(no_gpu: None, make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle(extra={"model.engine": plan()}, engine=FACTS, compute_capabilities=("8.9",))
    with open_session(bundle) as session:
        assert session.provider == "CPUExecutionProvider"
        assert "not the engine: no NVIDIA driver on this machine" in session.path


def test_a_changed_engine_is_refused_and_not_passed_over(
    engine_bundle: Callable[..., Path], driver: RecordingDriver
) -> None:
    bundle = engine_bundle()
    content = bytearray((bundle / "model.engine").read_bytes())
    content[-1] ^= 1
    (bundle / "model.engine").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"model\.engine' was changed after export"):
        open_session(bundle)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"provider": "engine"}, "holds none: build one by mmdeploy export", id="no-engine"),
        pytest.param(
            {"provider": "npu"}, "provider 'npu' is unknown: choose one of auto, engine", id="unknown"
        ),
        pytest.param({"provider": "cpu", "device": "cuda"}, "exclude each other", id="cpu-on-cuda"),
        pytest.param({"provider": "tensorrt", "device": "cpu"}, "exclude each other", id="tensorrt-on-cpu"),
    ],
)
def test_providers_that_cannot_be_had_are_refused(
    bundle: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        open_session(bundle, **options)


def test_a_bundles_engine_and_the_cpu_exclude_each_other(engine_bundle: Callable[..., Path]) -> None:
    with pytest.raises(BackendError, match="exclude each other: an engine runs on a GPU"):
        open_session(engine_bundle(), provider="engine", device="cpu")


@pytest.mark.parametrize(
    ("provider", "name", "remedy"),
    [
        ("cuda", "CUDAExecutionProvider", "pip install onnxruntime-gpu"),
        ("tensorrt", "TensorrtExecutionProvider", "pip install onnxruntime-gpu .* and TensorRT"),
        ("nv-tensorrt-rtx", "NvTensorRTRTXExecutionProvider", "pip install onnxruntime-ep-nv-tensorrt-rtx"),
    ],
)
def test_an_execution_provider_that_is_missing_says_how_to_get_it(
    onnx_file: Path, provider: str, name: str, remedy: str
) -> None:
    import onnxruntime

    if name in onnxruntime.get_available_providers():
        pytest.skip(f"{name} is here")
    with pytest.raises(BackendError, match=f"ONNX Runtime's {name}.*CPUExecutionProvider: {remedy}"):
        open_session(onnx_file, provider=provider)


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"provider": "cuda"}], ids=["device", "provider"])
def test_a_bare_engine_runs_on_nothing_but_a_gpu(engine_file: Path, options: dict[str, str]) -> None:
    with pytest.raises(BackendError, match="runs by itself on a GPU and nowhere else"):
        open_session(engine_file, **options)


def test_kernels_that_there_are_not_are_refused_of_an_engine_too(engine_file: Path) -> None:
    with pytest.raises(BackendError, match="kernels 'quick' is unknown: choose one of"):
        open_session(engine_file, kernels="quick")


def test_a_bare_engine_without_a_gpu_says_so(no_gpu: None, tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(plan())
    with pytest.raises(BackendError, match="no NVIDIA driver on this machine"):
        open_session(tmp_path / "engine")


def test_without_cuda_bindings_the_error_says_what_to_install(
    engine_bundle: Callable[..., Path], driver: RecordingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match=r"cuda-bindings, which does not import .*: pip install"):
        open_session(engine_bundle(), provider="engine")


def test_without_the_library_of_the_engine_the_error_says_what_to_install(
    tmp_path: Path, driver: RecordingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    (tmp_path / "orin").write_bytes(plan(b"ftrt"))
    with pytest.raises(BackendError, match=r"tensorrt does not import .*JetPack"):
        open_session(tmp_path / "orin")


def test_a_machine_without_devices_says_so(driver: RecordingDriver, engine_file: Path) -> None:
    driver.devices = 0
    with pytest.raises(BackendError, match="finds no CUDA device: check nvidia-smi and CUDA_VISIBLE_DEVICES"):
        open_session(engine_file)
