"""Every opcode that the emulator knows, on 32 lanes of awkward values, against NumPy.

The cases are instructions of one generated kernel: case ``c`` loads its operands from ``inputs[c]``,
executes, and stores its result in ``outputs[c]``; a lane's values lie 8 bytes apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptx import translator
from ptx.emulator import ORDERS, emulate

LANES = np.arange(32)
Bits = NDArray[np.uint64]

INTEGERS = np.resize(
    np.array([0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 255, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 0xDEADBEEF]),
    32,
).astype(np.uint64)
SHIFTED = np.roll(INTEGERS, 5)
WIDE = INTEGERS << np.uint64(31) | SHIFTED
FLOATS = np.resize(
    np.array(
        [0.0, -0.0, 1.0, -1.0, 0.1, 3.5, -7.25, 1e-3, 1e30, -1e30, 1e-40, np.inf, -np.inf, np.nan, 126.5]
    ),
    32,
).astype(np.float32)
HALVES = np.array([0, 1, 0x3C00, 0xC000, 0x7BFF, 0x7C00, 0x8001, 0x0400] * 4, np.uint64)


def _bits(values: NDArray[np.generic]) -> Bits:
    """Raw bits of float32 or integer values, in 64 bits each."""
    same_size = values.view(f"u{values.itemsize}") if values.dtype.kind == "f" else values
    return same_size.astype(np.uint64)


def _f32(values: Bits) -> NDArray[np.float32]:
    return (values & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)


def _f16(values: Bits) -> NDArray[np.float32]:
    return values.astype(np.uint16).view(np.float16).astype(np.float32)


def _bf16(values: Bits) -> NDArray[np.float32]:
    return _f32(values << np.uint64(16))


def _rounded_to_bf16(values: Bits) -> Bits:
    """As PyTorch rounds; a NaN to the one that GPUs give."""
    rounded = torch.from_numpy(_f32(values).copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)
    return np.where(np.isnan(_f32(values)), 0x7FFF, rounded).astype(np.uint64)


def _s32(values: Bits) -> NDArray[np.int64]:
    return values.astype(np.uint32).view(np.int32).astype(np.int64)


def _u32(values: Bits) -> Bits:
    return values & np.uint64(0xFFFFFFFF)


def _float_case(function: Callable[..., NDArray[np.float32]]) -> Callable[..., Bits]:
    return lambda *sources: _bits(function(*(_f32(s) for s in sources)).astype(np.float32))


def _pairs(function: Callable[..., NDArray[np.float32]]) -> Callable[..., Bits]:
    """The same on both halves of 64-bit sources."""

    def both(*sources: Bits) -> Bits:
        low = _bits(function(*(_f32(s) for s in sources)))
        high = _bits(function(*(_f32(s >> np.uint64(32)) for s in sources)))
        return high << np.uint64(32) | low

    return both


def _fma(a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32]) -> NDArray[np.float32]:
    """One rounding: a product of float32 is exact in float64, and our sums round once more at most."""
    wide = a.astype(np.longdouble) * b.astype(np.longdouble) + c.astype(np.longdouble)
    return wide.astype(np.float32)


def _flushed(a: NDArray[np.float32]) -> NDArray[np.float32]:
    """Subnormals as zeros of their sign."""
    return np.where(np.abs(a) < np.float32(2**-126), np.copysign(np.float32(0), a), a)


def _ex2(a: NDArray[np.float32]) -> NDArray[np.float32]:
    return _flushed(np.exp2(_flushed(a).astype(np.float64)).astype(np.float32))


def _rsqrt(a: NDArray[np.float32]) -> NDArray[np.float32]:
    return _flushed((1 / np.sqrt(_flushed(a).astype(np.float64))).astype(np.float32))


def _divided(a: Bits, b: Bits) -> NDArray[np.int64]:
    """Towards zero; -1 by zero, as our emulator has it."""
    pairs = zip(_s32(a).tolist(), _s32(b).tolist(), strict=True)
    return np.array([-1 if y == 0 else abs(x) // abs(y) * (1 if x * y >= 0 else -1) for x, y in pairs])


def _shift_left(width: int) -> Callable[[Bits, Bits], Bits]:
    return lambda a, n: np.array(
        [(int(x) << int(s)) & (2**width - 1) if s < width else 0 for x, s in zip(a, _u32(n), strict=True)],
        np.uint64,
    )


def _bfe(a: Bits, start: Bits, count: Bits) -> Bits:
    fields = zip(_u32(a), start & np.uint64(255), count & np.uint64(255), strict=True)
    return np.array([(int(x) >> int(s)) & (2 ** int(n) - 1) for x, s, n in fields], np.uint64)


def _wrapped(function: Callable[..., NDArray[np.generic]], width: int = 32) -> Callable[..., Bits]:
    mask = np.uint64(2**width - 1)
    return lambda *sources: function(*sources).astype(np.int64).view(np.uint64) & mask


@dataclass(frozen=True)
class Case:
    """One instruction: registers are named by type and position, results and sources given in bits."""

    result: str  # type of the destination
    sources: tuple[tuple[str, Bits], ...]  # type and values
    expected: Callable[..., Bits]


def _case(result: str, types: str, values: tuple[Bits, ...], expected: Callable[..., Bits]) -> Case:
    return Case(result, tuple(zip(types.split(), values, strict=True)), expected)


_F, _G, _H = _bits(FLOATS), _bits(np.roll(FLOATS, 3)), _bits(np.roll(FLOATS, 7))
_FF, _GG, _HH = _F << np.uint64(32) | _G, _G << np.uint64(32) | _H, _H << np.uint64(32) | _F
_FLAGS = (LANES % 3 == 0).astype(np.uint64)
_OTHER = (LANES % 2 == 0).astype(np.uint64)
_SHORT = np.roll(HALVES, 3)
_MOST = np.uint64(0xFFFFFFFF)
_TWO, _TWO64 = (INTEGERS, SHIFTED), (WIDE, np.roll(WIDE, 1))

CASES: dict[str, Case] = {
    **{f"mov.{t}": _case(t, t, (INTEGERS & np.uint64(0xFFFF),), lambda a: a) for t in ("b16", "u16")},
    **{f"mov.{t}": _case(t, t, (INTEGERS,), lambda a: a) for t in ("b32", "u32")},
    "mov.b64": _case("b64", "b64", (WIDE,), lambda a: a),
    "mov.pred": _case("pred", "pred", (_FLAGS,), lambda a: a),
    "selp.b32": _case("b32", "b32 b32 pred", (*_TWO, _FLAGS), lambda a, b, p: np.where(p == 1, a, b)),
    "selp.f32": _case("b32", "b32 b32 pred", (_F, _G, _FLAGS), lambda a, b, p: np.where(p == 1, a, b)),
    "selp.b16": _case(
        "b16", "b16 b16 pred", (HALVES, _SHORT, _FLAGS), lambda a, b, p: np.where(p == 1, a, b)
    ),
    "not.pred": _case("pred", "pred", (_FLAGS,), lambda p: p == 0),
    "add.s32": _case("b32", "b32 b32", _TWO, lambda a, b: _u32(a + b)),
    "add.s64": _case("b64", "b64 b64", _TWO64, lambda a, b: a + b),
    "sub.s32": _case("b32", "b32 b32", _TWO, lambda a, b: _u32(a - b)),
    "sub.s64": _case("b64", "b64 b64", _TWO64, lambda a, b: a - b),
    "neg.s32": _case("b32", "b32", (INTEGERS,), _wrapped(lambda a: -_s32(a))),
    "div.s32": _case("b32", "b32 b32", _TWO, _wrapped(_divided)),
    "div.u32": _case("b32", "b32 b32", _TWO, lambda a, b: np.where(b == 0, _MOST, a // np.maximum(b, 1))),
    "mul.lo.s32": _case("b32", "b32 b32", _TWO, lambda a, b: _u32(a * b)),
    "mul.lo.s64": _case("b64", "b64 b64", _TWO64, lambda a, b: a * b),
    "mad.lo.s32": _case("b32", "b32 b32 b32", (*_TWO, _F), lambda a, b, c: _u32(a * b + c)),
    "mad.lo.s64": _case("b64", "b64 b64 b64", (*_TWO64, _F), lambda a, b, c: a * b + c),
    "mul.wide.s32": _case("b64", "b32 b32", _TWO, _wrapped(lambda a, b: _s32(a) * _s32(b), 64)),
    "mul.wide.u32": _case("b64", "b32 b32", _TWO, lambda a, b: a * b),
    "mad.wide.s32": _case(
        "b64", "b32 b32 b64", (*_TWO, WIDE), lambda a, b, c: (_s32(a) * _s32(b)).view(np.uint64) + c
    ),
    "mad.wide.u32": _case("b64", "b32 b32 b64", (*_TWO, WIDE), lambda a, b, c: a * b + c),
    "max.s32": _case("b32", "b32 b32", _TWO, _wrapped(lambda a, b: np.maximum(_s32(a), _s32(b)))),
    "max.s64": _case(
        "b64", "b64 b64", _TWO64, lambda a, b: np.maximum(a.view(np.int64), b.view(np.int64)).view(np.uint64)
    ),
    "min.s32": _case("b32", "b32 b32", _TWO, _wrapped(lambda a, b: np.minimum(_s32(a), _s32(b)))),
    "and.b32": _case("b32", "b32 b32", _TWO, lambda a, b: a & b),
    "and.b16": _case("b16", "b16 b16", (HALVES, _SHORT), lambda a, b: a & b),
    "and.b64": _case("b64", "b64 b64", _TWO64, lambda a, b: a & b),
    "and.pred": _case("pred", "pred pred", (_FLAGS, _OTHER), lambda a, b: a & b),
    "or.b32": _case("b32", "b32 b32", _TWO, lambda a, b: a | b),
    "or.b16": _case("b16", "b16 b16", (HALVES, _SHORT), lambda a, b: a | b),
    "xor.b32": _case("b32", "b32 b32", _TWO, lambda a, b: a ^ b),
    "shl.b16": _case("b16", "b16 b32", (HALVES, INTEGERS), _shift_left(16)),
    "or.b64": _case("b64", "b64 b64", _TWO64, lambda a, b: a | b),
    "shl.b32": _case("b32", "b32 b32", _TWO, _shift_left(32)),
    "shl.b64": _case("b64", "b64 b32", (WIDE, INTEGERS), _shift_left(64)),
    "shr.u32": _case("b32", "b32 b32", _TWO, lambda a, n: np.where(n > 31, 0, a >> np.minimum(n, 31))),
    "shr.s32": _case(
        "b32", "b32 b32", _TWO, _wrapped(lambda a, n: _s32(a) >> np.minimum(n, 31).astype(np.int64))
    ),
    "bfe.u32": _case("b32", "b32 b32 b32", (*_TWO, np.roll(INTEGERS, 2)), _bfe),
    "setp.eq.b32": _case("pred", "b32 b32", (INTEGERS, np.sort(INTEGERS)), lambda a, b: a == b),
    "setp.eq.b16": _case("pred", "b16 b16", (HALVES, np.sort(HALVES)), lambda a, b: a == b),
    "setp.ne.b32": _case("pred", "b32 b32", (INTEGERS, np.sort(INTEGERS)), lambda a, b: a != b),
    "setp.ne.b64": _case("pred", "b64 b64", (WIDE, np.sort(WIDE)), lambda a, b: a != b),
    "setp.lt.s32": _case("pred", "b32 b32", _TWO, lambda a, b: _s32(a) < _s32(b)),
    "setp.le.s32": _case("pred", "b32 b32", (INTEGERS, np.sort(INTEGERS)), lambda a, b: _s32(a) <= _s32(b)),
    "setp.ge.s32": _case("pred", "b32 b32", _TWO, lambda a, b: _s32(a) >= _s32(b)),
    "setp.gt.s32": _case("pred", "b32 b32", _TWO, lambda a, b: _s32(a) > _s32(b)),
    "setp.lt.u32": _case("pred", "b32 b32", _TWO, lambda a, b: a < b),
    "setp.gt.u32": _case("pred", "b32 b32", _TWO, lambda a, b: a > b),
    "setp.lt.s64": _case("pred", "b64 b64", _TWO64, lambda a, b: a.view(np.int64) < b.view(np.int64)),
    "setp.lt.u64": _case("pred", "b64 b64", _TWO64, lambda a, b: a < b),
    "setp.gt.u64": _case("pred", "b64 b64", _TWO64, lambda a, b: a > b),
    "setp.lt.f32": _case("pred", "b32 b32", (_F, _G), lambda a, b: _f32(a) < _f32(b)),
    "setp.ltu.f32": _case("pred", "b32 b32", (_F, _G), lambda a, b: ~(_f32(a) >= _f32(b))),
    "setp.ge.f32": _case("pred", "b32 b32", (_F, _G), lambda a, b: _f32(a) >= _f32(b)),
    "setp.nan.f32": _case("pred", "b32 b32", (_F, _G), lambda a, b: np.isnan(_f32(a)) | np.isnan(_f32(b))),
    "cvt.u16.u32": _case("b16", "b32", (INTEGERS,), lambda a: a & np.uint64(0xFFFF)),
    "cvt.u32.u16": _case("b32", "b16", (HALVES,), lambda a: a),
    "cvt.u32.u64": _case("b32", "b64", (WIDE,), _u32),
    "cvt.u64.u32": _case("b64", "b32", (INTEGERS,), lambda a: a),
    "cvt.s64.s32": _case("b64", "b32", (INTEGERS,), lambda a: _s32(a).view(np.uint64)),
    "cvt.rn.f32.s32": _case("b32", "b32", (INTEGERS,), lambda a: _bits(_s32(a).astype(np.float32))),
    "cvt.rn.f32.u32": _case("b32", "b32", (INTEGERS,), lambda a: _bits(_u32(a).astype(np.float32))),
    "cvt.f32.f16": _case(
        "b32", "b16", (HALVES,), lambda a: _bits(a.astype(np.uint16).view(np.float16).astype(np.float32))
    ),
    "cvt.f32.bf16": _case("b32", "b16", (HALVES,), lambda a: a << np.uint64(16)),
    "cvt.rn.bf16.f32": _case("b16", "b32", (_F,), _rounded_to_bf16),
    "cvt.rn.f16.f32": _case("b16", "b32", (_F,), lambda a: _bits(_f32(a).astype(np.float16))),
    "cvt.rn.f16x2.f32": _case(
        "b32",
        "b32 b32",
        (_F, _G),
        lambda a, b: _bits(_f32(a).astype(np.float16)) << np.uint64(16) | _bits(_f32(b).astype(np.float16)),
    ),
    "abs.f32": _case("b32", "b32", (_F,), lambda a: a & np.uint64(0x7FFFFFFF)),
    "abs.ftz.f32": _case("b32", "b32", (_F,), lambda a: _bits(_flushed(_f32(a))) & np.uint64(0x7FFFFFFF)),
    "neg.f32": _case("b32", "b32", (_F,), lambda a: a ^ np.uint64(0x80000000)),
    "sub.f32": _case("b32", "b32 b32", (_F, _G), _float_case(np.subtract)),
    "add.f32": _case("b32", "b32 b32", (_F, _G), _float_case(np.add)),
    "mul.f32": _case("b32", "b32 b32", (_F, _G), _float_case(np.multiply)),
    "fma.rn.f32": _case("b32", "b32 b32 b32", (_F, _G, _H), _float_case(_fma)),
    "fma.rn.ftz.f32": _case(
        "b32",
        "b32 b32 b32",
        (_F, _G, _H),
        _float_case(lambda a, b, c: _flushed(_fma(_flushed(a), _flushed(b), _flushed(c)))),
    ),
    "add.rn.f32.f16": _case("b32", "b16 b32", (HALVES, _F), lambda a, b: _bits(_f16(a) + _f32(b))),
    "sub.rn.f32.f16": _case("b32", "b16 b32", (HALVES, _F), lambda a, b: _bits(_f16(a) - _f32(b))),
    "add.rn.f32.bf16": _case("b32", "b16 b32", (HALVES, _F), lambda a, b: _bits(_bf16(a) + _f32(b))),
    "fma.rn.f32.f16": _case(
        "b32",
        "b16 b16 b32",
        (HALVES, np.roll(HALVES, 3), _F),
        lambda a, b, c: _bits(_fma(_f16(a), _f16(b), _f32(c))),
    ),
    "fma.rn.f32.bf16": _case(
        "b32",
        "b16 b16 b32",
        (HALVES, np.roll(HALVES, 3), _F),
        lambda a, b, c: _bits(_fma(_bf16(a), _bf16(b), _f32(c))),
    ),
    "max.f32": _case("b32", "b32 b32", (_F, _G), _float_case(np.fmax)),
    "div.full.f32": _case("b32", "b32 b32", (_F, _G), _float_case(np.divide)),
    "ex2.approx.ftz.f32": _case("b32", "b32", (_F,), _float_case(_ex2)),
    "rsqrt.approx.ftz.f32": _case("b32", "b32", (_F,), _float_case(_rsqrt)),
    "add.f32x2": _case("b64", "b64 b64", (_FF, _GG), _pairs(np.add)),
    "mul.f32x2": _case("b64", "b64 b64", (_FF, _GG), _pairs(np.multiply)),
    "sub.f32x2": _case("b64", "b64 b64", (_FF, _GG), _pairs(np.subtract)),
    "fma.rn.f32x2": _case("b64", "b64 b64 b64", (_FF, _GG, _HH), _pairs(_fma)),
}
"""The opcodes of the translator's table."""

_PREFIX = {"pred": "p", "b16": "rs", "u16": "rs", "b32": "r", "u32": "r", "b64": "rd"}
HEADER = """
.version 8.8
.target sm_87
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry cases(
  .param .u64 .ptr .global .align 1 inputs,
  .param .u64 .ptr .global .align 1 outputs
)
.reqntid 32
{
  .reg .pred %p<9>;
  .reg .b16 %rs<9>;
  .reg .b32 %r<29>;
  .reg .b64 %rd<9>;
  ld.param.b64 %rd7, [inputs];
  ld.param.b64 %rd8, [outputs];
  mov.u32 %r8, %tid.x;
  mad.wide.u32 %rd7, %r8, 8, %rd7;
  mad.wide.u32 %rd8, %r8, 8, %rd8;
"""


def _load(kind: str, register: int, offset: int) -> str:
    if kind == "pred":
        return (
            f"  ld.global.b32 %r{register}, [%rd7+{offset}];\n  setp.ne.b32 %p{register}, %r{register}, 0;\n"
        )
    width = kind.replace("u", "b")
    return f"  ld.global.{width} %{_PREFIX[kind]}{register}, [%rd7+{offset}];\n"


def _store(kind: str, register: int, offset: int) -> str:
    if kind == "pred":
        return (
            f"  selp.b32 %r{register}, 1, 0, %p{register};\n  st.global.b32 [%rd8+{offset}], %r{register};\n"
        )
    return f"  st.global.{kind.replace('u', 'b')} [%rd8+{offset}], %{_PREFIX[kind]}{register};\n"


@pytest.fixture(scope="module")
def results(ptx_cache: Path) -> dict[str, Bits]:
    """What the emulator makes of every case."""
    text, inputs = HEADER, np.zeros((len(CASES), 3, 32), np.uint64)
    for index, (opcode, case) in enumerate(CASES.items()):
        operands = [f"%{_PREFIX[case.result]}0"]
        for position, (kind, values) in enumerate(case.sources):
            inputs[index, position] = values
            text += _load(kind, position + 1, (3 * index + position) * 256)
            operands.append(f"%{_PREFIX[kind]}{position + 1}")
        text += f"  {opcode} {', '.join(operands)};\n" + _store(case.result, 0, index * 256)
    outputs = np.zeros((len(CASES), 32), np.uint64)
    inputs.flags.writeable = False
    arguments = [array.ctypes.data.to_bytes(8, "little") for array in (inputs, outputs)]
    emulate(text + "  ret;\n}\n", ptx_cache).launch((1, 1, 1), 32, 0, arguments, [inputs, outputs])
    return dict(zip(CASES, outputs, strict=True))


@pytest.mark.parametrize("opcode", CASES)
@np.errstate(all="ignore")
def test_opcode(results: dict[str, Bits], opcode: str) -> None:
    case = CASES[opcode]
    expected = case.expected(*(values for _, values in case.sources)).astype(np.uint64)
    if ".f32" in opcode and not opcode.startswith(("cvt", "selp", "abs", "setp")):
        halves = (0, 32) if opcode.endswith("x2") else (0,)
        for shift in halves:  # one NaN is as good as another
            np.testing.assert_array_equal(
                _f32(results[opcode] >> np.uint64(shift)), _f32(expected >> np.uint64(shift))
            )
    elif opcode == "cvt.rn.f16.f32" or opcode == "cvt.rn.f16x2.f32":
        for shift in (0, 16):
            got, want = (
                ((bits >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.uint16).view(np.float16)
                for bits in (results[opcode], expected)
            )
            np.testing.assert_array_equal(got, want)
    else:
        np.testing.assert_array_equal(results[opcode], expected)


def test_every_opcode_of_the_table_has_a_case() -> None:
    assert set(CASES) == set(translator.EXPRESSIONS)


def _run(body: str, inputs: NDArray[np.generic], ptx_cache: Path, shared_bytes: int = 4096) -> Bits:
    """A kernel of one warp; its addresses are ``inputs`` and ``outputs`` at the lane's 64 bits."""
    kernel = emulate(f"{HEADER}{body}\n  ret;\n}}\n", ptx_cache)
    inputs = inputs.copy()
    inputs.flags.writeable = False
    answers = []
    for order in ORDERS:
        outputs = np.zeros(128, np.uint64)
        arguments = [array.ctypes.data.to_bytes(8, "little") for array in (inputs, outputs)]
        kernel.launch((1, 1, 1), 32, shared_bytes, arguments, [inputs, outputs], order=order)
        answers.append(outputs)
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    return answers[0]


@pytest.mark.parametrize(("opcode", "parts"), [("mov.b32", "rs"), ("mov.b64", "r")])
def test_mov_unpacks_and_packs(ptx_cache: Path, opcode: str, parts: str) -> None:
    whole = {"mov.b32": "r", "mov.b64": "rd"}[opcode]
    width = opcode[-3:]
    body = f"""
  ld.global.{width} %{whole}0, [%rd7];
  {opcode} {{%{parts}1, %{parts}2}}, %{whole}0;
  {opcode} {{%{parts}3, _}}, %{whole}0;
  {opcode} %{whole}4, {{%{parts}2, %{parts}3}};
  st.global.{width} [%rd8], %{whole}4;"""
    bits, half = int(width[1:]), np.uint64(int(width[1:]) // 2)
    values = WIDE if bits == 64 else INTEGERS
    low_mask = np.uint64(2 ** (bits // 2) - 1)
    swapped = (values & low_mask) << half | values >> half
    np.testing.assert_array_equal(_run(body, values, ptx_cache)[:32], swapped)


@pytest.mark.parametrize("distance", [1, 2, 16])
def test_shfl_exchanges_lanes(ptx_cache: Path, distance: int) -> None:
    body = f"""
  ld.global.b32 %r0, [%rd7];
  shfl.sync.bfly.b32 %r1, %r0, {distance}, 31, -1;
  st.global.b32 [%rd8], %r1;"""
    np.testing.assert_array_equal(_run(body, INTEGERS, ptx_cache)[:32], INTEGERS[LANES ^ distance])


def test_shfl_takes_from_a_lane(ptx_cache: Path) -> None:
    body = """
  ld.global.b32 %r0, [%rd7];
  mul.lo.s32 %r2, %r8, 5;
  shfl.sync.idx.b32 %r1, %r0, %r2, 31, -1;
  st.global.b32 [%rd8], %r1;"""
    np.testing.assert_array_equal(_run(body, INTEGERS, ptx_cache)[:32], INTEGERS[5 * LANES % 32])


@pytest.mark.parametrize(
    ("form", "registers", "lane_bytes", "barrier"),
    [
        ("b32", "%r1", 4, "bar.sync 0;"),
        ("v2.b32", "{%r1, %r2}", 8, "bar.warp.sync -1;"),
        ("v4.b32", "{%r1, %r2, %r3, %r4}", 16, "bar.warp.sync -1;"),
        ("b64", "%rd1", 8, "bar.sync 0;"),
        ("v2.b64", "{%rd1, %rd2}", 16, "bar.warp.sync -1;"),
        ("b16", "%rs1", 2, "bar.warp.sync -1;"),
        ("v2.b16", "{%rs1, %rs2}", 4, "bar.warp.sync -1;"),
        ("v4.b16", "{%rs1, %rs2, %rs3, %rs4}", 8, "bar.warp.sync -1;"),
    ],
)
def test_shared_memory_carries_values_across_a_barrier(
    ptx_cache: Path, form: str, registers: str, lane_bytes: int, barrier: str
) -> None:
    """Lanes write their own values and read those of the lane opposite, in 32-bit pieces."""
    width = form.split(".")[-1]
    names = registers.strip("{}").split(", ")
    size = int(width[1:]) // 8
    loads = "".join(f"  ld.global.{width} {name}, [%rd7+{i * size}];\n" for i, name in enumerate(names))
    # Up to 16 bytes a lane: the lane's 8-byte address is doubled.
    back = "".join(
        f"  ld.shared.b32 %r{20 + i}, [%r7+{4 * i}];\n  st.global.b32 [%rd8+{4 * i}], %r{20 + i};\n"
        for i in range(lane_bytes // 4)
    )
    if lane_bytes == 2:
        back = "  ld.shared.b16 %rs8, [%r7];\n  st.global.b16 [%rd8], %rs8;\n"
    body = f"""
  mad.wide.u32 %rd7, %r8, 8, %rd7;
  mad.wide.u32 %rd8, %r8, 8, %rd8;
{loads}
  mov.b32 %r5, global_smem;
  mad.lo.s32 %r6, %r8, {lane_bytes}, %r5;
  sub.s32 %r7, 31, %r8;
  mad.lo.s32 %r7, %r7, {lane_bytes}, %r5;
  st.shared.{form} [%r6], {registers};
  {barrier}
{back}"""
    values = np.random.default_rng(0).integers(0, 2**63, 64, dtype=np.uint64)
    answer = _run(body, values, ptx_cache)[:64].view(np.uint8).reshape(32, 16)[:, :lane_bytes]
    np.testing.assert_array_equal(answer, values.view(np.uint8).reshape(32, 16)[::-1, :lane_bytes])


@pytest.mark.parametrize("width", ["v2.b32", "v4.b32"])
def test_vectors_from_global_and_shared_memory(ptx_cache: Path, width: str) -> None:
    count = int(width[1])
    registers = ", ".join(f"%r{1 + i}" for i in range(count))
    body = f"""
  mad.wide.u32 %rd7, %r8, 8, %rd7;
  mad.wide.u32 %rd8, %r8, 8, %rd8;
  ld.global.{width} {{{registers}}}, [%rd7];
  mul.lo.s32 %r6, %r8, {4 * count};
  st.shared.{width} [%r6], {{{registers}}};
  ld.shared.{width} {{{registers}}}, [%r6];
  st.global.{width} [%rd8], {{{registers}}};"""
    values = np.random.default_rng(1).integers(0, 2**63, 64, dtype=np.uint64)
    answer = _run(body, values, ptx_cache)[:64].view(np.uint32).reshape(32, 4)[:, :count]
    np.testing.assert_array_equal(answer, values.view(np.uint32).reshape(32, 4)[:, :count])


MATRIX = np.random.default_rng(2).integers(0, 2**16, (4, 8, 8), dtype=np.uint16)
"""Four matrices of 8x8 16-bit elements; a row is 16 bytes."""


def test_ldmatrix_hands_out_rows(ptx_cache: Path) -> None:
    """The PTX ISA: lane i names row i; lane i receives elements 2 * (i % 4) and the next of row i / 4."""
    body = """
  mad.wide.u32 %rd7, %r8, 8, %rd7;
  mad.wide.u32 %rd8, %r8, 8, %rd8;
  ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd7];
  mul.lo.s32 %r6, %r8, 16;
  st.shared.v4.b32 [%r6], {%r1, %r2, %r3, %r4};
  bar.warp.sync -1;
  ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r6];
  st.global.v4.b32 [%rd8], {%r1, %r2, %r3, %r4};"""
    answer = _run(body, MATRIX.reshape(-1).view(np.uint64), ptx_cache)[:64]
    expected = MATRIX.reshape(4, 8, 4, 2).transpose(1, 2, 0, 3)  # row, pair of columns, matrix, element
    np.testing.assert_array_equal(answer.view(np.uint16), expected.reshape(-1))


def test_stmatrix_writes_columns(ptx_cache: Path) -> None:
    """With .trans lane i < 8 names column i, of eight 16-bit elements."""
    body = """
  ld.global.b32 %r1, [%rd7];
  and.b32 %r6, %r8, 7;
  mul.lo.s32 %r6, %r6, 16;
  stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%r6], {%r1};
  bar.warp.sync -1;
  mul.lo.s32 %r7, %r8, 4;
  ld.shared.b32 %r2, [%r7];
  st.global.b32 [%rd8], %r2;"""
    lanes = MATRIX[0].reshape(32, 2).view(np.uint32).reshape(32)
    answer = _run(body, lanes.astype(np.uint64), ptx_cache)[:32].astype(np.uint32)
    np.testing.assert_array_equal(answer.view(np.uint16).reshape(8, 8), MATRIX[0].T)


def test_branches_guards_and_special_registers(ptx_cache: Path) -> None:
    """A loop that runs lane + 1 times, with a guarded addition."""
    body = """
  mov.u32 %r0, 0;
  mov.u32 %r1, 0;
  mov.u32 %r3, %nctaid.x;
$again:
  add.s32 %r0, %r0, 2;
  add.s32 %r1, %r1, 1;
  setp.lt.s32 %p1, %r8, %r1;
  @!%p1 bra $again;
  @%p1 add.s32 %r0, %r0, %r3;
  st.global.b32 [%rd8], %r0;"""
    np.testing.assert_array_equal(_run(body, INTEGERS, ptx_cache)[:32], 2 * (LANES + 1) + 1)


def test_a_signed_parameter_fills_a_wider_register(ptx_cache: Path) -> None:
    text = (
        HEADER.replace("outputs\n)", "outputs,\n  .param .u32 first,\n  .param .u32 second\n)")
        + """
  ld.param.s32 %rd1, [first];
  ld.param.s32 %rd2, [second];
  st.global.b64 [%rd8], %rd1;
  st.global.b64 [%rd8+256], %rd2;
  bra.uni $end;
$end:
  ret;
}
"""
    )
    outputs = np.zeros(64, np.uint64)
    arguments = [outputs.ctypes.data.to_bytes(8, "little")] * 2
    arguments += [value.to_bytes(4, "little", signed=True) for value in (7, -7)]
    emulate(text, ptx_cache).launch((1, 1, 1), 32, 0, arguments, [outputs])
    np.testing.assert_array_equal(outputs.view(np.int64), [7] * 32 + [-7] * 32)


def test_every_statement_and_memory_form_is_exercised_here() -> None:
    """All that is not in the table of expressions stands in a test's PTX above or in the shipped kernels."""
    text = Path(__file__).read_text()
    for opcode in (*translator.STATEMENTS, translator.MATRIX_LOAD):
        assert opcode in text
