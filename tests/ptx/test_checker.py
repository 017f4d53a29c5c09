"""Does the emulator notice? Mutants of the shipped scan kernel, and small kernels that do one thing wrong."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from gpu_cases import ARGUMENTS, STATES, ScanCase, truth
from numpy.typing import NDArray

from msmamba.plugins.selective_scan.gpu_launch import KERNEL_POINTERS, ScanShape, block_shape, launch_plan
from msmamba.plugins.selective_scan.triton_scan import compile_kernel
from ptx.emulator import ORDERS, emulate
from ptx.parser import PtxError, parse
from ptx.translator import translate

CASE = ScanCase(1, 9, 12, 13, "float16")
SM = 87


@pytest.fixture(scope="module")
def scan_ptx() -> str:
    """The scan kernel as Triton compiles it."""
    ptx: str = compile_kernel("scan", "float16", STATES, SM).asm["ptx"]
    return ptx


def _partial_outputs(ptx: str, cache: Path, order: str = "forward") -> NDArray[np.float32]:
    """What a scan kernel writes for `CASE`: (batch, K, H, W, D).

    Raises:
        PtxError: The checker found something.
    """
    inputs = CASE.inputs()
    shape = ScanShape(CASE.batch, CASE.height, CASE.width, CASE.channels, STATES)
    plan = launch_plan(shape, block_shape(SM), 1)
    (launch,) = (launch for launch in plan.launches if launch.kernel == "scan")
    arrays: dict[str, NDArray[np.generic]] = {}
    for name in ARGUMENTS:
        arrays[name] = _aligned_copy(inputs[name])
        arrays[name].flags.writeable = False
    partial = np.full(plan.partial_bytes // 4, np.nan, np.float32)
    arrays["partial"] = _aligned_copy(partial)
    arrays["state"] = arrays["decay"] = _aligned_copy(partial[:16])
    pointers = [arrays[name].ctypes.data for name in KERNEL_POINTERS["scan"]]
    arguments = [
        *(pointer.to_bytes(8, "little") for pointer in pointers),
        *(scalar.to_bytes(4, "little") for scalar in launch.scalars),
        *(bytes(8),) * 2,
    ]
    kernel = emulate(ptx, cache)
    kernel.launch(launch.grid, 32, 1024, arguments, list(arrays.values()), order=order)  # type: ignore[arg-type]
    return arrays["partial"].view(np.float32).reshape(CASE.batch, 4, CASE.height, CASE.width, CASE.channels)


def _aligned_copy(array: NDArray[np.generic]) -> NDArray[np.generic]:
    memory = np.zeros(array.nbytes + 256, np.uint8)
    start = -memory.ctypes.data % 256
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _without(ptx: str, pattern: str, which: int) -> str:
    """The module with the ``which``-th instruction that matches ``pattern`` taken out."""
    match = list(re.finditer(pattern, ptx))[which]
    return ptx[: match.start()] + ptx[match.end() :]


def _check(ptx: str, cache: Path, order: str = "forward") -> None:
    """Fails, in one way or another, unless ``ptx`` is a correct scan."""
    y = _partial_outputs(ptx, cache, order).sum(axis=1).astype(CASE.element_type)
    truth(CASE.inputs()).check(y)


@pytest.mark.parametrize("order", ORDERS)
def test_the_kernel_itself_passes(scan_ptx: str, ptx_cache: Path, order: str) -> None:
    _check(scan_ptx, ptx_cache, order)


BARRIER = r"\tbar\.(?:warp\.)?sync[^;]*;\n"


def test_dropping_every_barrier_is_a_race(scan_ptx: str, ptx_cache: Path) -> None:
    with pytest.raises(PtxError, match="race in shared memory"):
        _check(re.sub(BARRIER, "", scan_ptx), ptx_cache)


@pytest.mark.parametrize("which", [1, 2, 5, 9])
def test_dropping_one_barrier_is_a_race(scan_ptx: str, ptx_cache: Path, which: int) -> None:
    """Only the first of ten barriers, number 0, is redundant: each thread overwrites what it read itself."""
    with pytest.raises(PtxError, match="race in shared memory"):
        _check(_without(scan_ptx, BARRIER, which), ptx_cache)


def test_a_wrong_shuffle_is_caught(scan_ptx: str, ptx_cache: Path) -> None:
    """Lanes that should hold copies of one sum disagree about it when they store it."""
    mutant, count = re.subn(r"(shfl\.sync\.bfly\.b32[^;]*), 2, 31, -1;", r"\1, 4, 31, -1;", scan_ptx, count=1)
    assert count == 1
    with pytest.raises(PtxError, match="race in shared memory, write"):
        _check(mutant, ptx_cache)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        pytest.param(r"@%p\d+ (?=ld\.global\.b16)", "global read out of bounds", id="of-a-load"),
        pytest.param(r"@%p\d+ (?=st\.global\.b32)", "race in global memory|out of bounds", id="of-a-store"),
    ],
)
def test_a_dropped_mask_is_caught(scan_ptx: str, ptx_cache: Path, pattern: str, message: str) -> None:
    mutant, count = re.subn(pattern, "", scan_ptx)
    assert count
    with pytest.raises(PtxError, match=message):
        _check(mutant, ptx_cache)


def test_a_dropped_fill_value_is_not_a_number(scan_ptx: str, ptx_cache: Path) -> None:
    """What masked lanes take instead of a value: without it they compute with an unwritten register."""
    mutant, count = re.subn(r"\tmov\.(u|b)16\s+%rs\d+, (0x0|0);\n", "", scan_ptx)
    assert count
    with pytest.raises(AssertionError, match="not finite"):
        _check(mutant, ptx_cache)


HEADER = """
.version 8.8
.target sm_87
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry small(
  .param .u64 .ptr .global .align 1 buffer,
  .param .u32 count
)
.reqntid 64
{
  .reg .pred %p<4>;
  .reg .b32 %r<8>;
  .reg .b64 %rd<8>;
  ld.param.b64 %rd1, [buffer];
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, %ctaid.x;
  mad.wide.u32 %rd2, %r1, 4, %rd1;
"""
"""Two warps a block; %r1 thread, %r2 block, %rd2 the thread's place in the buffer."""


def _launch_small(body: str, cache: Path, blocks: int = 1, writable: bool = True) -> NDArray[np.uint32]:
    buffer = np.zeros(64, np.uint32)
    buffer.flags.writeable = writable
    arguments = [buffer.ctypes.data.to_bytes(8, "little"), (64).to_bytes(4, "little")]
    emulate(f"{HEADER}{body}\n  ret;\n}}\n", cache).launch((blocks, 1, 1), 64, 256, arguments, [buffer])
    return buffer


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param("st.global.b32 [%rd2+4], %r1;", "global write out of bounds", id="past-the-end"),
        pytest.param("st.global.b32 [%rd2+2], %r1;", "misaligned global access", id="misaligned"),
        pytest.param("st.global.b32 [%rd1], %r1;", "race in global memory, write", id="one-word-for-all"),
        pytest.param("ld.shared.b32 %r3, [%r1];", "misaligned shared access", id="misaligned-shared"),
        pytest.param("st.shared.b32 [256], %r1;", "shared access out of bounds", id="past-shared"),
        pytest.param(
            "setp.lt.s32 %p1, %r1, 7;\n @%p1 shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1;",
            "deadlock",
            id="lanes-that-never-come",
        ),
        pytest.param(
            "setp.lt.s32 %p1, %r1, 7;\n @%p1 bra $other;\n bar.warp.sync -1;\n ret;\n"
            "$other:\n bar.warp.sync -1;",
            "different instructions",
            id="lanes-at-two-barriers",
        ),
        pytest.param(
            "mul.lo.s32 %r3, %r1, 4;\n st.shared.b32 [%r3], %r1;\n bar.warp.sync -1;\n"
            "sub.s32 %r4, 252, %r3;\n ld.shared.b32 %r5, [%r4];",
            "race in shared memory",
            id="a-warp-barrier-between-two-warps",
        ),
    ],
)
def test_what_a_kernel_may_not_do(ptx_cache: Path, body: str, message: str) -> None:
    with pytest.raises(PtxError, match=message):
        _launch_small(body, ptx_cache)


def test_two_blocks_may_not_write_one_place(ptx_cache: Path) -> None:
    body = "add.s32 %r3, %r1, %r2;\n  st.global.b32 [%rd2], %r3;"
    np.testing.assert_array_equal(_launch_small(body, ptx_cache), np.arange(64))
    with pytest.raises(PtxError, match="race in global memory, write"):
        _launch_small(body, ptx_cache, blocks=2)


def test_inputs_are_read_only(ptx_cache: Path) -> None:
    with pytest.raises(PtxError, match="write to a read-only buffer"):
        _launch_small("st.global.b32 [%rd2], %r1;", ptx_cache, writable=False)


@pytest.mark.parametrize(
    ("arguments", "threads", "message"),
    [
        pytest.param([bytes(8)], 64, "arguments of", id="missing-parameter"),
        pytest.param([bytes(8), bytes(8)], 64, "arguments of", id="wide-parameter"),
        pytest.param([bytes(8), bytes(4)], 32, "32 threads for a kernel that requires 64", id="threads"),
    ],
)
def test_a_launch_must_fit_the_kernel(
    ptx_cache: Path, arguments: list[bytes], threads: int, message: str
) -> None:
    with pytest.raises(PtxError, match=message):
        emulate(f"{HEADER}  ret;\n}}\n", ptx_cache).launch((1, 1, 1), threads, 0, arguments, [])


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        pytest.param("add.sat.s32 %r1, %r1, %r1;", "add.sat.s32: opcode not known", id="modifier"),
        pytest.param("atom.global.add.u32 %r1, [%rd1], 1;", "opcode not known", id="opcode"),
        pytest.param("bar.sync 1;", "whole warp or block", id="another-barrier"),
        pytest.param("bar.sync 0, 32;", "whole warp or block", id="partial-barrier"),
        pytest.param("shfl.sync.bfly.b32 %r3, %r1, 1, 31, 15;", "whole warp or block", id="member-mask"),
        pytest.param("shfl.sync.bfly.b32 %r3, %r1, 1, 7, -1;", "across the whole warp", id="clamped-shuffle"),
        pytest.param("mov.u32 %r1, %clock;", "operand %clock", id="special-register"),
        pytest.param(".local .b8 stack[16];", "unknown declaration", id="local-memory"),
        pytest.param("ld.global.v4.b32 {%r1, %r2}, [%rd1];", "2 registers for v4", id="short-vector"),
    ],
)
def test_what_is_not_known_is_refused(statement: str, message: str) -> None:
    with pytest.raises(PtxError, match=message):
        translate(parse(f"{HEADER}  {statement}\n  ret;\n}}\n"))
