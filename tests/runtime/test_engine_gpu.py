"""Engines on a device: against PyTorch, replayed against plain, streams, sizes, other libraries' arrays."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msmamba.errors import BackendError, ExportError, InputError
from msmamba.export.engine.build import EngineOptions, buildable
from msmamba.export.engine.engine_bundle import engine_bundle
from msmamba.export.proof.verify import OwnError
from msmamba.model.networks.microscopic_mamba import MicroscopicMamba
from msmamba.plugins import cuda_driver
from msmamba.plugins.tensorrt_library import link_parser_library
from msmamba.runtime import open_session
from msmamba.runtime.session import Session
from msmamba.runtime.tensorrt_backend import TensorRtBackend

pytestmark = pytest.mark.gpu

LARGEST = 5


@pytest.fixture(scope="session")
def options() -> EngineOptions:
    """Options for this machine's GPU, by the first TensorRT library that is here and builds for it.

    It comes before the bundles, whose kernels take a minute to compile for nothing where there is none.
    """
    try:
        device = cuda_driver.device()
    except BackendError as error:
        pytest.skip(str(error))
    link_parser_library()
    for library in ("tensorrt", "tensorrt_rtx"):
        wanted = EngineOptions((device.compute_capability,), library=library, batches=(1, 2, LARGEST))
        with suppress(BackendError, ExportError):
            return buildable(wanted)
    pytest.skip(f"no TensorRT library for compute capability {device.compute_capability / 10:.1f}")


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(
    options: EngineOptions, bundles: dict[str, Path], precision: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return engine_bundle(bundles[precision], tmp_path_factory.mktemp("engine") / precision, options).path


@pytest.fixture(scope="module")
def session(bundle: Path) -> Iterator[Session]:
    with open_session(bundle, provider="engine") as opened:
        yield opened


def images(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 32, 32), np.float32)


@pytest.mark.parametrize("batch", range(1, LARGEST + 1))
def test_an_engine_answers_like_pytorch(
    session: Session, network: MicroscopicMamba, precision: str, batch: int
) -> None:
    import torch

    batch_of = images(batch, batch)
    with torch.no_grad():
        expected = network(torch.from_numpy(batch_of)).numpy()
    bound = 2 * OwnError.of(network, batch_of, precision).logits
    for _ in range(3):  # plainly, then replayed
        np.testing.assert_allclose(session.run(batch_of), expected, rtol=0, atol=bound)


def test_replayed_and_plain_runs_answer_alike(session: Session, bundle: Path) -> None:
    plan = (bundle / "model.engine").read_bytes()
    plain = TensorRtBackend(plan, "plain", session.manifest, graphs=False)
    try:
        for batch in (1, 3, 5, 3, 1):
            session.run(images(batch))
            np.testing.assert_array_equal(session.run(images(batch, 7)), plain.run(images(batch, 7)))
    finally:
        plain.close()
    assert session.path.endswith("CUDA graphs")


def test_two_sessions_run_beside_each_other(bundle: Path) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        with open_session(bundle, provider="engine") as own:
            expected = [own.run(images(batch, seed)) for batch in (1, 4)]
            for _ in range(50):
                found = [own.run(images(batch, seed)) for batch in (1, 4)]
                if any(not np.array_equal(a, b) for a, b in zip(found, expected, strict=True)):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def _torch_array(values: np.ndarray) -> Any:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    return torch.from_numpy(values).cuda() * 1  # on its own stream, not waited for


def _cupy_array(values: np.ndarray) -> Any:
    return pytest.importorskip("cupy").asarray(values) * 1


def _pycuda_array(values: np.ndarray) -> Any:
    pytest.importorskip("pycuda.driver")
    import pycuda.autoprimaryctx
    import pycuda.gpuarray

    return pycuda.gpuarray.to_gpu(values) * 1


@pytest.mark.parametrize("make", [_torch_array, _cupy_array, _pycuda_array], ids=["torch", "cupy", "pycuda"])
def test_arrays_of_other_libraries_are_taken_where_they_lie(session: Session, make: Any) -> None:
    for seed in range(20):
        batch = 1 + seed % LARGEST
        np.testing.assert_array_equal(
            session.run(make(images(batch, seed))), session.run(images(batch, seed))
        )


def test_a_context_of_pycuda_is_used(bundle: Path) -> None:
    driver = pytest.importorskip("pycuda.driver")
    driver.init()
    context = driver.Device(0).make_context()
    try:
        with open_session(bundle, provider="engine") as own:
            own.run(images(2))
        assert driver.Context.get_current() == context
    finally:
        context.pop()


def test_a_batch_beyond_the_profile_is_refused(session: Session) -> None:
    with pytest.raises(InputError, match=f"takes at most {LARGEST}"):
        session.run(images(LARGEST + 1))


def test_memory_is_given_back(bundle: Path) -> None:
    context = cuda_driver.Context()
    with context.entered():
        free = []
        for _ in range(4):
            with open_session(bundle, provider="engine") as own:
                own.run(images(LARGEST))
            free.append(cuda_driver.free_memory_bytes())
    context.close()
    assert free[-1] >= free[1]  # the first session also loads the libraries
