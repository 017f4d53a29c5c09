"""What compilers make of the native kernels' innermost loops on ARM64: instructions counted in the assembly.

No ARM machine is needed, and no time comes out. zig's compiler turns the kernels of this tree, and of another
one where it is given, into assembly with the flags of the wheels; the loops are found by the function that
they stand in, and counted as they stand, with all that is done in them beside the arithmetic.

    make .venv-wheels/build.stamp
    .venv-wheels/bin/python benchmarks/neon_instructions.py [--before TREE]

Whole loops are counted, and told for a unit of their work: a state update is one step of one state of four
channels, a vector.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TARGET = "aarch64-linux-gnu.2.17"  # as in release/wheels.py
MULTIPLY_ADDS = ("fmla",)

Instructions = Sequence[str]


@dataclass(frozen=True)
class Loop:
    """An innermost loop that is counted.

    Attributes:
        title: what one unit of its work is.
        source: the kernels' source, in whose assembly it is looked for.
        function: a pattern of the mangled names of the functions that it may stand in.
        units: how many units of work a round of it does.
    """

    title: str
    source: str
    function: str
    units: int


SCAN = "plugins/selective_scan/native/kernels_baseline.cpp"
ADVANCE = r"advance_tileILi4ELNS_5DecayE{}.*ForwardScanILi4ELi4EfE"
LOOPS = (
    Loop("a state update", SCAN, ADVANCE.format(1), units=16),
    Loop("a state update, decays of any size", SCAN, ADVANCE.format(0), units=16),
    Loop("the operands of a step (softplus)", SCAN, r"ForwardScanILi4ELi4EfE11fill_vectorILi4ELb1E", units=4),
)


def assembly(tree: Path, source: str, folder: Path) -> list[str]:
    """A source of the kernels as assembly, in lines."""
    build = runpy.run_path(str(tree / "setup.py"))
    (flags,) = (
        flags for ending, flags in build["kernel_flags"]("aarch64").items() if f"{ending}.cpp" in source
    )
    cache = str(Path(sys.prefix) / "zig-cache")
    caches = {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
    made = folder / "kernels.s"
    command = [sys.executable, "-m", "ziglang", "c++", "-target", TARGET, *build["COMPILE_FLAGS"], *flags]
    command += ["-fPIC", "-S", source, "-o", str(made), "-Wno-unused-command-line-argument"]
    subprocess.run(command, cwd=tree, env={**os.environ, **caches}, check=True)
    return made.read_text().splitlines()


def functions(lines: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The functions in an assembly: mangled names, and their instructions and labels (ending in a colon)."""
    name, body = "", list[str]()
    for line in lines:
        if begun := re.search(r"-- Begin function (\S+)", line):
            name, body = begun[1], []
        elif "-- End function" in line:
            yield name, body
        elif label := re.match(r"(\.LBB\w+:)", line):
            body.append(label[1])
        elif re.match(r"\t[a-z]", line):
            body.append(line.partition("//")[0].strip())


def innermost_loops(body: Sequence[str]) -> Iterator[Instructions]:
    """The instructions of each loop that has none inside: from a label to the last branch back to it."""
    places = {line[:-1]: place for place, line in enumerate(body) if line.endswith(":")}
    spans = []
    for place, line in enumerate(body):
        if branch := re.match(r"(?:b|b\.\w+|cbn?z|tbn?z)\t.*?(\.LBB\w+)$", line):
            start = places.get(branch[1], place)
            if start < place:
                spans.append((start, place))
    for start, end in spans:
        if not any(start <= a and b <= end and (a, b) != (start, end) for a, b in spans):
            yield [line for line in body[start : end + 1] if not line.endswith(":")]


def kind(instruction: str) -> str:
    """What an instruction is: "arithmetic" or "copies" of vectors, "memory", or "other"."""
    name, _, operands = instruction.partition("\t")
    if name.startswith(("ld", "st", "prf")):
        return "memory"
    if name in ("mov", "dup", "fmov", "movi", "mvni", "ins"):
        return "copies" if re.search(r"\bv\d+\.", operands) else "other"
    return "arithmetic" if re.search(r"\bv\d+\.", operands) else "other"


def found_loop(wanted: Loop, lines: Sequence[str]) -> Instructions:
    """The loop with the most multiply-adds among those that are meant."""
    found = [
        loop
        for name, body in functions(lines)
        if re.search(wanted.function, name)
        for loop in innermost_loops(body)
    ]
    if not found:
        sys.exit(f"there is no loop in a function like {wanted.function} of {wanted.source}")
    return max(found, key=multiply_adds)


def multiply_adds(loop: Instructions) -> int:
    """How many multiply-adds of vectors a loop has."""
    return sum(line.split("\t")[0] in MULTIPLY_ADDS for line in loop)


def row(wanted: Loop, loop: Instructions) -> list[str]:
    """A loop's instructions for a unit of its work: all of them, then of each kind."""
    counts = Counter(map(kind, loop))
    kinds = (counts[each] for each in ("arithmetic", "copies", "memory", "other"))
    return [f"{count / wanted.units:.1f}" for count in (len(loop), *kinds)]


def main() -> None:
    """Compiles, counts, and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--before", type=Path, metavar="TREE", help="an earlier checkout to compare with")
    options = parser.parse_args()
    trees = {"before": options.before, "after": ROOT} if options.before else {"": ROOT}
    print("| for | | instructions | arithmetic | copies | memory | other |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        made = {
            (label, source): assembly(tree.resolve(), source, Path(name))
            for label, tree in trees.items()
            for source in dict.fromkeys(loop.source for loop in LOOPS)
        }
    for wanted in LOOPS:
        for label in trees:
            cells = row(wanted, found_loop(wanted, made[label, wanted.source]))
            print(f"| {wanted.title} | {label} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
