"""The compiled scan against the reference, on every instruction set here, and against bad input."""

from __future__ import annotations

import multiprocessing
import platform
import re
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scan_cases import (
    CASES,
    KERNELS,
    Arrays,
    arguments,
    decay_inputs,
    extreme_inputs,
    inputs_with_nan,
    softplus_inputs,
    ulps,
)

from msmamba.errors import BackendError
from msmamba.plugins.selective_scan import cpu

torch = pytest.importorskip("torch", reason="the reference recurrence is written in PyTorch")
from msmamba.plugins.selective_scan import reference  # noqa: E402  after the check for torch

CPUINFO = Path("/proc/cpuinfo")


pytestmark = pytest.mark.usefixtures("default_settings")


def reference_scan(inputs: Arrays, dtype: Any) -> NDArray[np.float64]:
    """The reference, computed in ``dtype``."""
    tensors = {name: torch.from_numpy(array).to(dtype) for name, array in inputs.items()}
    return reference.selective_scan_2d(**tensors).double().numpy()


def scan_into_nan(inputs: Arrays) -> NDArray[Any]:
    """The scan through bare pointers, into a result that is NaN wherever it is not written."""
    x = inputs["x"]
    y = np.full_like(x, np.nan)
    shape = cpu.ScanShape(*x.shape, states=inputs["A"].shape[-1])
    addresses = {name: array.ctypes.data for name, array in inputs.items()}
    cpu.forward_pointers(shape, x.dtype.name, **addresses, y=y.ctypes.data)
    return y


def largest_error(found: NDArray[Any], truth: NDArray[np.float64]) -> float:
    """Largest difference; NaN if there is one."""
    return float(np.abs(found.astype(np.float64) - truth).max())


@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES.keys())
def test_error_is_at_most_twice_the_float32_reference_s(sizes: tuple[int, ...], kernels: str) -> None:
    inputs = arguments(sizes)
    truth = reference_scan(inputs, torch.float64)
    allowed = 2 * largest_error(reference_scan(inputs, torch.float32), truth)
    rounding = float(np.finfo(np.float32).eps * np.abs(truth).max())  # where the reference is right by luck
    assert largest_error(scan_into_nan(inputs), truth) <= max(allowed, rounding)


@pytest.mark.parametrize("sizes", [CASES["odd"], CASES["wide-and-narrow"]], ids=["odd", "wide-and-narrow"])
def test_float16_accumulates_in_float32(sizes: tuple[int, ...], kernels: str) -> None:
    inputs = arguments(sizes, dtype=np.float16)
    truth = reference_scan(inputs, torch.float64)
    y = scan_into_nan(inputs)
    assert y.dtype == np.float16
    # Only the result's own rounding may show: half a unit in its last place, and the float32 sum's errors.
    half_ulp = np.spacing(np.abs(truth).astype(np.float16)).astype(np.float64) / 2
    assert np.all(np.abs(y.astype(np.float64) - truth) <= half_ulp * 1.01 + 1e-5)


@pytest.mark.parametrize("sizes", [CASES["odd"], CASES["wide-and-narrow"]], ids=["odd", "wide-and-narrow"])
def test_bfloat16_accumulates_in_float32(sizes: tuple[int, ...], kernels: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy knows bfloat16 through ml_dtypes only")
    inputs = arguments(sizes, dtype=ml_dtypes.bfloat16)
    widened = {name: array.astype(np.float32) for name, array in inputs.items()}
    truth = reference_scan(widened, torch.float64)
    y = scan_into_nan(inputs)
    assert np.all(np.abs(y.astype(np.float64) - truth) <= np.abs(truth) * 2.0**-8 * 1.01 + 1e-5)


def test_half_precision_edges_survive_the_round_trip(kernels: str) -> None:
    # One position, B = 0: y is the sum of the skip weights times x, so x goes in and comes out unchanged.
    every_half = np.arange(0x10000, dtype=np.uint16).view(np.float16)
    inputs = arguments((1, 1, 1, every_half.size, 1), dtype=np.float16)
    finite = np.isfinite(every_half)
    inputs["x"] = np.where(finite, every_half, np.float16(0)).reshape(1, 1, 1, -1)
    inputs["B"][:] = 0
    inputs["D"][:] = 0.25
    np.testing.assert_array_equal(scan_into_nan(inputs), inputs["x"])
    inputs["D"][:] = 0.5  # doubles: overflows to infinity where it must
    with np.errstate(over="ignore"):
        expected = (inputs["x"].astype(np.float32) * 2).astype(np.float16)
    np.testing.assert_array_equal(scan_into_nan(inputs), expected)


def test_softplus_is_within_3_5_ulp(kernels: str) -> None:
    inputs, truth = softplus_inputs()
    assert ulps(scan_into_nan(inputs)[0, 0, 0], truth) <= 3.5


def test_decay_is_within_2_5_ulp(kernels: str) -> None:
    inputs, exponent = decay_inputs()
    found = scan_into_nan(inputs)[0, 0, 1]
    errors = [ulps(found, np.exp2(exponent.astype(np.float32).astype(np.float64)))]
    if kernels != "baseline":
        errors.append(ulps(found, np.exp2(exponent)))
    assert min(errors) <= 2.5


def test_extreme_steps_and_rates_stay_what_they_are_in_the_reference(kernels: str) -> None:
    inputs = extreme_inputs()
    truth = reference_scan(inputs, torch.float64)
    assert np.all(np.isfinite(truth))
    np.testing.assert_allclose(scan_into_nan(inputs), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["x", "delta", "A", "B", "C", "D", "delta_bias"])
def test_nan_reaches_the_output_it_concerns_and_no_other(name: str, kernels: str) -> None:
    inputs = inputs_with_nan(name)
    truth = reference_scan(inputs, torch.float64)
    assert 0 < np.isnan(truth).sum() < truth.size
    np.testing.assert_array_equal(np.isnan(scan_into_nan(inputs)), np.isnan(truth))


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 36], ids="{}-bytes-off".format)
def test_any_address_will_do(offset: int, kernels: str) -> None:
    inputs = arguments((2, 3, 5, 19, 16))
    expected = scan_into_nan(inputs)
    moved = {}
    for name, array in inputs.items():
        memory = np.empty(array.nbytes + 128, np.uint8)
        start = -memory.ctypes.data % 64 + offset
        moved[name] = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        moved[name][...] = array
    np.testing.assert_array_equal(scan_into_nan(moved), expected)


def test_strided_arrays_are_copied() -> None:
    inputs = arguments((1, 6, 8, 10, 4))
    expected = cpu.selective_scan_2d(
        **{name: array[..., ::2].copy() for name, array in inputs.items()} | _short(inputs)
    )
    found = cpu.selective_scan_2d(
        **{name: array[..., ::2] for name, array in inputs.items()} | _short(inputs)
    )
    np.testing.assert_array_equal(found, expected)


def _short(inputs: Arrays) -> Arrays:
    """``A`` with every second channel and state, to go with arrays whose last axis was halved."""
    return {"A": inputs["A"][:, ::2, ::2]}


@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES.keys())
def test_the_number_of_threads_changes_no_bit(sizes: tuple[int, ...]) -> None:
    inputs = arguments(sizes)
    cpu.set_threads(1)
    alone = scan_into_nan(inputs)
    for count in (2, 3, 7):
        cpu.set_threads(count)
        np.testing.assert_array_equal(scan_into_nan(inputs), alone)


def test_callers_from_several_threads_do_not_disturb_each_other() -> None:
    cpu.set_threads(2)
    cases = [arguments((2, 9, 7, 24, 16), seed=seed) for seed in range(4)]
    expected = [scan_into_nan(inputs) for inputs in cases]
    wrong: list[int] = []

    def call(index: int) -> None:
        for _ in range(50):
            if not np.array_equal(scan_into_nan(cases[index]), expected[index]):
                wrong.append(index)

    callers = [threading.Thread(target=call, args=(index,)) for index in range(len(cases))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_child_scans_too() -> None:
    cpu.set_threads(2)
    inputs = arguments((2, 9, 7, 24, 16))
    expected = scan_into_nan(inputs)  # starts the pool, whose threads the child will not have
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sending.send(scan_into_nan(inputs)))
    child.start()
    assert receiving.poll(30), "the child hangs"
    np.testing.assert_array_equal(receiving.recv(), expected)
    child.join()


BAD_INPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "rank-of-x": ({"x": np.zeros((3, 4, 5), np.float32)}, r"expected \(batch, H, W, D\)"),
    "rank-of-A": ({"A": np.zeros((4, 5), np.float32)}, r"A is \(4, 5\)"),
    "channels-of-delta": (
        {"delta": np.zeros((1, 3, 4, 4, 6), np.float32)},
        r"delta is .* expected \(1, 3, 4, 4, 5\)",
    ),
    "three-directions": ({"B": np.zeros((1, 3, 4, 3, 2), np.float32)}, r"B is .* expected \(1, 3, 4, 4, 2\)"),
    "mixed-types": ({"C": np.zeros((1, 3, 4, 4, 2), np.float16)}, "C is float16, expected float32"),
    "float64-A": ({"A": np.zeros((4, 5, 2), np.float64)}, "A is float64, expected float32"),
    "float64-x": ({"x": np.zeros((1, 3, 4, 5), np.float64)}, "x is float64, expected one of float32"),
    "integers": ({"x": np.zeros((1, 3, 4, 5), np.int32)}, "x is int32"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_what_breaks_the_contract_is_refused(changes: Arrays, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cpu.selective_scan_2d(**(arguments((1, 3, 4, 5, 2)) | changes))


@pytest.mark.parametrize(
    "sizes", [(0, 3, 4, 5, 2), (1, 0, 4, 5, 2), (1, 3, 4, 0, 2), (1, 3, 4, 5, 0)], ids="{}".format
)
def test_empty_input_is_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no empty dimension"):
        cpu.selective_scan_2d(**arguments(sizes))


def test_every_mismatch_is_named_at_once() -> None:
    changes = {"B": np.zeros((1, 3, 4, 4, 3), np.float32), "D": np.zeros((4, 5), np.float64)}
    with pytest.raises(ValueError, match=r"B is .*; D is float64"):
        cpu.selective_scan_2d(**(arguments((1, 3, 4, 5, 2)) | changes))


def test_unknown_names_and_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="no 'mmx' kernels"):
        cpu.select_kernels("mmx")
    with pytest.raises(ValueError, match="at least 1"):
        cpu.set_threads(0)
    with pytest.raises(ValueError, match="element type 'float64'"):
        cpu.forward_pointers(
            cpu.ScanShape(1, 1, 1, 1, 1), "float64", x=0, delta=0, A=0, B=0, C=0, D=0, delta_bias=0, y=0
        )


def test_the_default_is_the_best_this_machine_has() -> None:
    available = []
    for name in KERNELS:
        try:
            cpu.select_kernels(name)
        except ValueError:
            continue
        available.append(name)
    assert available[-1] in ("baseline", "neon")
    assert cpu.why_unavailable() is None


@pytest.mark.skipif(
    not CPUINFO.is_file() or platform.machine() != "x86_64", reason="Linux tells of x86-64 in /proc/cpuinfo"
)
def test_the_kernels_are_those_that_linux_says_the_processor_runs() -> None:
    found = re.search(r"^flags\s*:\s*(.+)$", CPUINFO.read_text(), re.MULTILINE)
    assert found is not None
    flags = set(found.group(1).split())
    avx2 = flags >= {"avx2", "fma", "f16c"}
    avx512 = avx2 and flags >= {"avx512f", "avx512vl", "avx512bw", "avx512dq"}
    vnni = avx2 and "avx_vnni" in flags
    for name, expected in {"avx512": avx512, "avx2+vnni": vnni, "avx2": avx2, "baseline": True}.items():
        said = re.escape(f"no '{name}' kernels")
        with nullcontext() if expected else pytest.raises(ValueError, match=said):
            cpu.select_kernels(name)


def test_a_missing_or_broken_library_is_explained(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "_native.so"
    broken.write_bytes(b"not a library")
    for path, reason in [(None, "was not built"), (broken, "does not load")]:
        cpu._library.cache_clear()
        monkeypatch.setattr(cpu, "library_path", lambda path=path: path)
        assert reason in (cpu.why_unavailable() or "")
        with pytest.raises(BackendError, match=reason):
            cpu.threads()
    monkeypatch.undo()
    assert cpu.why_unavailable() is None
