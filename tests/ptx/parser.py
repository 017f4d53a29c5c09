"""PTX text to a `Kernel`: parameters, registers, shared memory and a list of labels and instructions.

Only the shape of the language is known here; what an opcode means is the translator's business. Syntax:
the PTX ISA, section 4, as far as LLVM's back-end writes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TYPE_BITS = {
    "pred": 1,
    **{f"{kind}{bits}": bits for kind in "bus" for bits in (8, 16, 32, 64)},
    "f16": 16,
    "f32": 32,
    "f64": 64,
}


class PtxError(Exception):
    """PTX that this emulator does not know, or a kernel that did something wrong."""


@dataclass(frozen=True)
class Parameter:
    """A kernel parameter; pointers are plain 64-bit integers."""

    name: str
    type: str

    @property
    def size(self) -> int:
        """Bytes."""
        return TYPE_BITS[self.type] // 8


@dataclass(frozen=True)
class Label:
    """A place to branch to."""

    name: str


@dataclass(frozen=True)
class Instruction:
    """``@guard opcode operands;`` where an operand in braces is a tuple."""

    line: int
    opcode: tuple[str, ...]  # the name and its modifiers
    operands: tuple[str | tuple[str, ...], ...]
    guard: str | None  # predicate register, with ! where it is negated

    def __str__(self) -> str:
        return ".".join(self.opcode)


@dataclass(frozen=True)
class Kernel:
    """One entry of a PTX module."""

    name: str
    parameters: tuple[Parameter, ...]
    threads: int | None  # .reqntid along x
    registers: dict[str, int]  # name to bits
    dynamic_shared: tuple[str, ...]  # names of the extern shared arrays; all start at offset 0
    body: tuple[Label | Instruction, ...]


_GUARD = re.compile(r"@(!?%\w+)\s+(.*)")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%\w+)<(\d+)>")
_PARAMETER = re.compile(r"\.param\s+\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?([\w$]+)")
_LABEL = re.compile(r"([$\w]+):")


def parse(ptx: str) -> Kernel:
    """The module's only entry.

    Raises:
        PtxError: Not exactly one entry, or something that is not understood; the message has the line.
    """
    lines = _without_comments(ptx)
    text = "\n".join(lines)
    entries = list(re.finditer(r"\.visible\s+\.entry\s+([\w$]+)\(([^)]*)\)([^{]*)\{", text))
    if len(entries) != 1:
        raise PtxError(f"found {len(entries)} entries, expected 1")
    (entry,) = entries
    first_line = text.count("\n", 0, entry.end()) + 1
    end = text.index("\n}", entry.end())
    threads = re.search(r"\.reqntid\s+(\d+)", entry[3])
    registers: dict[str, int] = {}
    body: list[Label | Instruction] = []
    for line, statement in _statements(text[entry.end() : end], first_line):
        if declared := _REGISTERS.fullmatch(statement):
            kind, prefix, count = declared.groups()
            registers |= {f"{prefix}{i}": TYPE_BITS[kind] for i in range(int(count))}
        elif label := _LABEL.fullmatch(statement):
            body.append(Label(label[1]))
        elif statement.startswith("."):
            raise PtxError(f"line {line}: unknown declaration {statement}")
        else:
            body.append(_instruction(line, statement))
    return Kernel(
        name=entry[1],
        parameters=tuple(_parameter(declared) for declared in entry[2].split(",") if declared.strip()),
        threads=int(threads[1]) if threads else None,
        registers=registers,
        dynamic_shared=tuple(re.findall(r"\.extern\s+\.shared\s+[^;]*?([\w$]+)\[\]", text[: entry.start()])),
        body=tuple(body),
    )


def _without_comments(ptx: str) -> list[str]:
    """The module's lines, comments and debug information blanked so that line numbers hold."""
    kept = []
    for line in ptx.split("\n"):
        code = line.split("//")[0].strip()
        if code.startswith(".section"):
            break  # debug sections follow the code
        kept.append("" if re.match(r"\.(loc|file|pragma)\b", code) else code)
    return kept


def _statements(text: str, first_line: int) -> list[tuple[int, str]]:
    """Statements and labels with their lines; inner braces of ``{ ... }`` scopes hold none in our PTX."""
    statements = []
    for number, line in enumerate(text.split("\n"), first_line):
        rest = line
        while label := re.match(r"\s*([$\w]+:)(?!:)", rest):
            statements.append((number, label[1]))
            rest = rest[label.end() :]
        pieces = [piece.strip() for piece in rest.split(";")]
        if pieces[-1]:
            raise PtxError(f"line {number}: {pieces[-1]!r} is not closed by a semicolon")
        statements += [(number, piece) for piece in pieces if piece]
    return statements


def _parameter(declared: str) -> Parameter:
    match = _PARAMETER.fullmatch(declared.strip())
    if not match:
        raise PtxError(f"parameter {declared.strip()!r} is not understood")
    return Parameter(name=match[2], type=match[1])


def _instruction(line: int, statement: str) -> Instruction:
    guard = None
    if guarded := _GUARD.fullmatch(statement):
        guard, statement = guarded.groups()
    name, *rest = statement.split(maxsplit=1)
    return Instruction(line, tuple(name.split(".")), tuple(_operands("".join(rest))), guard)


def _operands(text: str) -> list[str | tuple[str, ...]]:
    """Operands at the commas outside braces and brackets."""
    operands: list[str | tuple[str, ...]] = []
    for operand in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]+", text):
        stripped = operand.strip()
        if stripped.startswith("{"):
            operands.append(tuple(part.strip() for part in stripped[1:-1].split(",")))
        elif stripped:
            operands.append(stripped)
    return operands
