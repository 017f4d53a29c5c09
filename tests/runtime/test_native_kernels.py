"""The real network through ONNX Runtime: native kernels and ONNX functions give the same answers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from msmamba.export.graph.onnx_model import flat_model
from msmamba.plugins.hybrid_block import OF_EARLIER_FILES, OPERATORS
from msmamba.plugins.selective_scan import cpu
from msmamba.runtime import open_session
from msmamba.runtime.onnxruntime_backend import OnnxRuntimeBackend, register_native_kernels

pytestmark = pytest.mark.skipif(
    cpu.why_unavailable() is not None, reason=f"the native kernels cannot be used: {cpu.why_unavailable()}"
)


def images(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, size, size), np.float32)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("batch", [1, 3])
def test_native_kernels_answer_like_the_functions(
    bundles: dict[str, Path], precision: str, batch: int
) -> None:
    with (
        open_session(bundles[precision], kernels="native", threads=2) as native,
        open_session(bundles[precision], kernels="functions", threads=2) as plain,
    ):
        assert native.path == f"onnxruntime CPU, native kernels ({cpu.kernels()})"
        given = images(batch, native.image_size or 0)
        found, expected = native.run(given), plain.run(given)
    # float16 rounds where the two form their sums in another order, and by functions what kernels keep in
    # float32: three units at the size of the logits.
    bound = 1e-5 if precision == "fp32" else 3 * float(np.spacing(np.abs(expected).max().astype(np.float16)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_native_kernels_are_what_runs(bundles: dict[str, Path], precision: str, tmp_path: Path) -> None:
    operators = {}
    for name in ("native", "functions"):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / name)
        options.log_severity_level = 3
        if name == "native":
            assert register_native_kernels(options) is None
        onnxruntime.InferenceSession(
            bundles[precision] / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        graph = onnx.load(tmp_path / name).graph
        operators[name] = Counter(node.op_type for node in graph.node if node.domain == "msmamba")
    # One of each a block, and one between stages; functions are written out before they run.
    native = dict.fromkeys({*OPERATORS} - {*OF_EARLIER_FILES}, 4) | {"PatchMerging": 3}
    assert operators == {"native": native, "functions": {}}


def test_a_float16_file_of_standard_operators_and_the_scan_runs_as_it_did(bundles: dict[str, Path]) -> None:
    """As bundles were made before their blocks stayed operators."""
    flat = flat_model(onnx.load(bundles["fp16"] / "model.onnx")).SerializeToString()
    given = images(2, 32)
    answers = {}
    for kernels in ("native", "functions"):
        backend = OnnxRuntimeBackend(flat, "flat", kernels=kernels, threads=2)
        answers[kernels] = backend.run(given)
    with open_session(bundles["fp16"], kernels="functions", threads=2) as session:
        np.testing.assert_array_equal(answers["functions"], session.run(given))
    bound = 2 * float(np.spacing(np.abs(answers["functions"]).max().astype(np.float16)))
    np.testing.assert_allclose(answers["native"], answers["functions"], rtol=0, atol=bound)


def test_a_batch_gives_what_its_images_give_alone(bundles: dict[str, Path]) -> None:
    with open_session(bundles["fp32"], kernels="native") as session:
        given = images(3, session.image_size or 0)
        alone = np.concatenate([session.run(image[None]) for image in given])
        np.testing.assert_allclose(session.run(given), alone, rtol=0, atol=1e-5)


def test_the_number_of_threads_changes_nothing(bundles: dict[str, Path]) -> None:
    answers = []
    for threads in (1, 2):
        with open_session(bundles["fp32"], kernels="native", threads=threads) as session:
            answers.append(session.run(images(2, session.image_size or 0)))
    np.testing.assert_allclose(answers[0], answers[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("version", "threads", "expected"),
    [
        ("1.32.0", 2, {"allow_spinning": "1", "spin_duration_us": "20"}),
        ("1.26.0.dev1", 16, {"allow_spinning": "1", "spin_duration_us": "20"}),
        ("1.25.1", 2, {"allow_spinning": "0"}),
        ("1.32.0", 1, {"allow_spinning": "0"}),
    ],
    ids=["two", "many", "an-ONNX-Runtime-that-would-spin-on", "one"],
)
def test_idle_threads_spin_briefly_where_they_can(
    version: str,
    threads: int,
    expected: dict[str, str],
    bundles: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = onnxruntime.SessionOptions()
    monkeypatch.setattr(onnxruntime, "SessionOptions", lambda: made)
    monkeypatch.setattr(onnxruntime, "__version__", version)
    model = str(bundles["fp32"] / "model.onnx")
    OnnxRuntimeBackend(model, "fp32", device="cpu", threads=threads).close()
    for name, value in expected.items():
        assert made.get_session_config_entry(f"session.intra_op.{name}") == value
    if "spin_duration_us" not in expected:
        with pytest.raises(RuntimeError, match="spin_duration_us"):
            made.get_session_config_entry("session.intra_op.spin_duration_us")
