"""PTX instructions to C++ statements: a table, and the few instructions that are more than an expression.

A register is a C++ variable of its width that holds raw bits; ``{1}``, ``{2}`` … in the table are an
instruction's sources and its result goes to its first operand. What the functions mean is in
``runtime.h``. An opcode that is not here is refused, with all its modifiers.
"""

from __future__ import annotations

import re

from .parser import TYPE_BITS, Instruction, Kernel, Label, PtxError

_TWO = "pair(bits({low}), bits({high}))"

EXPRESSIONS: dict[str, str] = {
    # Moves; `mov.b32` and `mov.b64` also pack and unpack, see `_move`.
    **dict.fromkeys(("mov.b16", "mov.u16", "mov.b32", "mov.u32", "mov.b64", "mov.pred"), "{1}"),
    "selp.b32": "{3} ? {1} : {2}",
    "selp.b16": "{3} ? {1} : {2}",
    "selp.f32": "{3} ? {1} : {2}",
    # Integers
    **dict.fromkeys(("add.s32", "add.s64"), "{1} + {2}"),
    **dict.fromkeys(("sub.s32", "sub.s64"), "{1} - {2}"),
    "neg.s32": "0u - {1}",
    "div.s32": "u32(divided({1}, {2}))",
    "div.u32": "u32({2}) == 0 ? ~0u : u32({1}) / u32({2})",
    **dict.fromkeys(("mul.lo.s32", "mul.lo.s64"), "{1} * {2}"),
    **dict.fromkeys(("mad.lo.s32", "mad.lo.s64"), "{1} * {2} + {3}"),
    "mul.wide.s32": "u64(s64(s32({1})) * s32({2}))",
    "mul.wide.u32": "u64(u32({1})) * u32({2})",
    "mad.wide.s32": "u64(s64(s32({1})) * s32({2})) + {3}",
    "mad.wide.u32": "u64(u32({1})) * u32({2}) + {3}",
    "max.s32": "std::max(s32({1}), s32({2}))",
    "max.s64": "std::max(s64({1}), s64({2}))",
    "min.s32": "std::min(s32({1}), s32({2}))",
    **dict.fromkeys(("and.b16", "and.b32", "and.b64", "and.pred"), "{1} & {2}"),
    **dict.fromkeys(("or.b16", "or.b32", "or.b64"), "{1} | {2}"),
    "not.pred": "!{1}",
    "xor.b32": "{1} ^ {2}",
    "shl.b16": "shift_left<u16>({1}, {2})",
    "shl.b32": "shift_left<u32>({1}, {2})",
    "shl.b64": "shift_left<u64>({1}, {2})",
    "shr.u32": "shift_right<u32>({1}, {2})",
    "shr.s32": "shift_right<s32>({1}, {2})",
    "bfe.u32": "extract_bits({1}, {2}, {3})",
    # Comparisons
    "setp.eq.b16": "u16({1}) == u16({2})",
    "setp.eq.b32": "u32({1}) == u32({2})",
    "setp.ne.b32": "u32({1}) != u32({2})",
    "setp.ne.b64": "u64({1}) != u64({2})",
    "setp.lt.s32": "s32({1}) < s32({2})",
    "setp.le.s32": "s32({1}) <= s32({2})",
    "setp.ge.s32": "s32({1}) >= s32({2})",
    "setp.gt.s32": "s32({1}) > s32({2})",
    "setp.lt.u32": "u32({1}) < u32({2})",
    "setp.gt.u32": "u32({1}) > u32({2})",
    "setp.lt.s64": "s64({1}) < s64({2})",
    "setp.lt.u64": "u64({1}) < u64({2})",
    "setp.gt.u64": "u64({1}) > u64({2})",
    "setp.lt.f32": "f32({1}) < f32({2})",
    "setp.ltu.f32": "!(f32({1}) >= f32({2}))",
    "setp.ge.f32": "f32({1}) >= f32({2})",
    "setp.nan.f32": "std::isnan(f32({1})) || std::isnan(f32({2}))",
    # Conversions
    "cvt.u16.u32": "u16({1})",
    "cvt.u32.u16": "u32(u16({1}))",
    "cvt.u32.u64": "u32({1})",
    "cvt.u64.u32": "u64(u32({1}))",
    "cvt.s64.s32": "s64(s32({1}))",
    "cvt.rn.f32.s32": "bits(float(s32({1})))",
    "cvt.rn.f32.u32": "bits(float(u32({1})))",
    "cvt.f32.f16": "bits(from_f16({1}))",
    "cvt.f32.bf16": "bits(from_bf16({1}))",
    "cvt.rn.bf16.f32": "to_bf16(f32({1}))",
    "cvt.rn.f16.f32": "to_f16(f32({1}))",
    "cvt.rn.f16x2.f32": "u32(to_f16(f32({1}))) << 16 | to_f16(f32({2}))",
    # Floating point
    "abs.f32": "{1} & 0x7FFFFFFFu",
    "abs.ftz.f32": "bits(flush(f32({1}))) & 0x7FFFFFFFu",
    "neg.f32": "{1} ^ 0x80000000u",
    "sub.f32": "bits(f32({1}) - f32({2}))",
    "add.f32": "bits(f32({1}) + f32({2}))",
    "mul.f32": "bits(f32({1}) * f32({2}))",
    "fma.rn.f32": "bits(std::fma(f32({1}), f32({2}), f32({3})))",
    "fma.rn.ftz.f32": "bits(flush(std::fma(flush(f32({1})), flush(f32({2})), flush(f32({3})))))",
    # Their first factors, or summand, in half the width
    "add.rn.f32.f16": "bits(from_f16({1}) + f32({2}))",
    "sub.rn.f32.f16": "bits(from_f16({1}) - f32({2}))",
    "add.rn.f32.bf16": "bits(from_bf16({1}) + f32({2}))",
    "fma.rn.f32.f16": "bits(std::fma(from_f16({1}), from_f16({2}), f32({3})))",
    "fma.rn.f32.bf16": "bits(std::fma(from_bf16({1}), from_bf16({2}), f32({3})))",
    "max.f32": "bits(maximum(f32({1}), f32({2})))",
    "div.full.f32": "bits(approximately(double(f32({1})) / f32({2})))",
    "ex2.approx.ftz.f32": "bits(flush(approximately(std::exp2(double(flush(f32({1})))))))",
    "rsqrt.approx.ftz.f32": "bits(flush(approximately(1 / std::sqrt(double(flush(f32({1})))))))",
    # Two float32 in one 64-bit register
    "add.f32x2": _TWO.format(low="lower({1}) + lower({2})", high="upper({1}) + upper({2})"),
    "mul.f32x2": _TWO.format(low="lower({1}) * lower({2})", high="upper({1}) * upper({2})"),
    "sub.f32x2": _TWO.format(low="lower({1}) - lower({2})", high="upper({1}) - upper({2})"),
    "fma.rn.f32x2": _TWO.format(
        low="std::fma(lower({1}), lower({2}), lower({3}))",
        high="std::fma(upper({1}), upper({2}), upper({3}))",
    ),
}

STATEMENTS = {
    "bar.sync": "t.wait_for_block();",
    "bar.warp.sync": "t.wait_for_warp();",
    "shfl.sync.bfly.b32": "{0} = t.shuffle_xor({1}, {2});",
    "shfl.sync.idx.b32": "{0} = t.shuffle_from({1}, {2});",
    "stmatrix.sync.aligned.m8n8.x1.trans.shared.b16": "t.store_matrix_transposed({0}, {1});",
}
"""Instructions in which threads meet. All need the whole warp, or block 0's barrier; `_check_meeting`."""

MATRIX_LOAD = "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
MEMORY = frozenset(
    {"ld.param.b32", "ld.param.s32", "ld.param.b64"}
    | {f"{op}.global.{form}" for op in ("ld", "st") for form in ("b16", "b32", "b64", "v2.b32", "v4.b32")}
    | {"ld.shared.v2.b32", "ld.shared.v4.b32", "st.shared.b64", "st.shared.v2.b32", "st.shared.v2.b64"}
    | {"st.shared.v4.b16", "st.shared.v4.b32", "st.shared.b32", "ld.shared.b32"}
    | {"ld.shared.b16", "ld.shared.v2.b64", "st.shared.b16", "st.shared.v2.b16"}
)
CONTROL = frozenset({"bra", "bra.uni", "ret"})

_SPECIAL = {
    **{f"%tid.{axis}": source for axis, source in (("x", "u32(t.index)"), ("y", "0u"), ("z", "0u"))},
    **{f"%ctaid.{axis}": f"t.block->id[{i}]" for i, axis in enumerate("xyz")},
    **{f"%nctaid.{axis}": f"t.block->grid[{i}]" for i, axis in enumerate("xyz")},
}


def translate(kernel: Kernel) -> str:
    """The kernel as C++ source, to be compiled against ``runtime.h``.

    Raises:
        PtxError: An opcode or operand that is not known; the message has the line.
    """
    lines = [
        '#include "runtime.h"',
        "void run_thread(Thread& t) {",
        *(_declaration(name, bits) for name, bits in kernel.registers.items()),
    ]
    for item in kernel.body:
        if isinstance(item, Label):
            lines.append(f"{_label(item.name)}:;")
            continue
        try:
            statement = _statement(kernel, item)
        except PtxError as error:
            raise PtxError(f"line {item.line}: {item}: {error}") from error
        guard = f"if ({_source(kernel, item.guard)}) " if item.guard else ""
        lines.append(f"{guard}{{ {statement} }}")
    return "\n".join([*lines, "}", ""])


def _declaration(name: str, bits: int) -> str:
    """A register, all ones: NaN if it is read as a number before it is written."""
    return f"bool {name[1:]} = false;" if bits == 1 else f"u{bits} {name[1:]} = u{bits}(~0ull);"


def _statement(kernel: Kernel, instruction: Instruction) -> str:
    opcode, operands = str(instruction), instruction.operands
    here = f"t.line = {instruction.line}; "
    if opcode == "ret":
        return "return;"
    if opcode in ("bra", "bra.uni"):
        return f"goto {_label(_one(operands[0]))};"
    if opcode in ("mov.b32", "mov.b64") and any(isinstance(operand, tuple) for operand in operands):
        return _move(kernel, instruction)
    if opcode in EXPRESSIONS:
        sources = [_source(kernel, operand) for operand in operands]
        return f"{sources[0]} = {EXPRESSIONS[opcode].format(*sources)};"
    if opcode in STATEMENTS:
        _check_meeting(instruction)
        return here + STATEMENTS[opcode].format(*(_source(kernel, operand) for operand in operands))
    if opcode == MATRIX_LOAD:
        targets = [_source(kernel, name) for name in operands[0]]
        fetch = f"u32 loaded[4]; t.load_matrices({_source(kernel, operands[1])}, 4, loaded); "
        return here + fetch + " ".join(f"{name} = loaded[{i}];" for i, name in enumerate(targets))
    if opcode in MEMORY:
        return here + _memory(kernel, instruction)
    raise PtxError("opcode not known to the emulator")


def _move(kernel: Kernel, instruction: Instruction) -> str:
    """``mov`` between one register and the registers that make it up, lowest bits first."""
    target, source = instruction.operands
    total = TYPE_BITS[instruction.opcode[-1]]
    if isinstance(target, tuple):
        part = total // len(target)
        whole = f"u{total} whole = {_source(kernel, source)}; "
        return whole + " ".join(
            f"{_source(kernel, name)} = u{part}(whole >> {i * part});"
            for i, name in enumerate(target)
            if name != "_"
        )
    part = total // len(source)
    pieces = (f"u{total}(u{part}({_source(kernel, name)})) << {i * part}" for i, name in enumerate(source))
    return f"{_source(kernel, target)} = {' | '.join(pieces)};"


def _check_meeting(instruction: Instruction) -> None:
    """Refuses meetings of fewer than all threads."""
    operands = instruction.operands
    name = instruction.opcode[0]
    whole = {"bar": operands[0], "shfl": operands[-1]}.get(name, "-1")
    expected = "0" if str(instruction) == "bar.sync" else "-1"
    if whole != expected or (name == "bar" and len(operands) > 1):
        raise PtxError("only meetings of the whole warp or block are known")
    if name == "shfl" and operands[3] != "31":
        raise PtxError("only shuffles across the whole warp are known")


def _memory(kernel: Kernel, instruction: Instruction) -> str:
    """Loads and stores; a vector is one access, aligned to its whole size."""
    name, space = instruction.opcode[:2]
    bits = TYPE_BITS[instruction.opcode[-1]]
    value, address = instruction.operands if name == "ld" else reversed(instruction.operands)
    registers = [_source(kernel, part) for part in (value if isinstance(value, tuple) else (value,))]
    size = bits // 8 * len(registers)
    if instruction.opcode[2][0] == "v" and len(registers) != int(instruction.opcode[2][1:]):
        raise PtxError(f"{len(registers)} registers for {instruction.opcode[2]}")
    base, offset = _address(_one(address))
    if space == "param":
        names = [parameter.name for parameter in kernel.parameters]
        source = f"t.block->parameters[{names.index(base)}] + {offset}"
        if instruction.opcode[-1] == "s32":  # into a wider register with its sign
            return f"s32 narrow; memcpy(&narrow, {source}, 4); {registers[0]} = s64(narrow);"
        return f"memcpy(&{registers[0]}, {source}, {size});"
    place = f"u{64 if space == 'global' else 32}({_source(kernel, base)} + ({offset}))"
    if name == "ld":
        copies = (f"memcpy(&{r}, from + {i * bits // 8}, {bits // 8});" for i, r in enumerate(registers))
        return f"u8* from = t.{space}({place}, {size}, false); {' '.join(copies)}"
    values = ", ".join(f"u{bits}({register})" for register in registers)
    return (
        f"u{bits} values[] = {{{values}}}; memcpy(t.{space}({place}, {size}, true, values), values, {size});"
    )


def _address(operand: str) -> tuple[str, int]:
    """Base and offset of ``[base+offset]``."""
    match = re.fullmatch(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\d+)\s*)?\]", operand)
    if not match:
        raise PtxError(f"address {operand}")
    return match[1], int(match[2] or 0)


def _label(name: str) -> str:
    return name.replace("$", "_")


def _one(operand: str | tuple[str, ...]) -> str:
    if isinstance(operand, tuple):
        if len(operand) != 1:
            raise PtxError(f"a list of {len(operand)} registers where one is expected")
        return operand[0]
    return operand


def _source(kernel: Kernel, operand: str | tuple[str, ...]) -> str:
    """The C++ expression of an operand's bits."""
    name = _one(operand)
    if name.startswith("!"):
        return f"!{_source(kernel, name[1:])}"
    if name.startswith("["):
        base, offset = _address(name)
        return f"{_source(kernel, base)} + ({offset})"
    if name in kernel.registers:
        return name[1:]
    if name in _SPECIAL:
        return _SPECIAL[name]
    if name in kernel.dynamic_shared:
        return "0u"
    if float_bits := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", name):
        return f"0x{float_bits[1]}u"
    if re.fullmatch(r"-?\d+|0[xX][0-9a-fA-F]+", name):
        return f"u64({name}ll)"
    raise PtxError(f"operand {name}")
