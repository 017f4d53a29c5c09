"""What compilers make of the native kernels' innermost loops on ARM64: instructions counted in the assembly.

No ARM machine is needed, and no time comes out. zig's compiler turns the kernels of this tree, and of another
one where it is given, into assembly with the flags of the wheels; the loops are found by the function that
they stand in, and counted as they stand, with all that is done in them beside the arithmetic.

    make .venv-wheels/build.stamp
    .venv-wheels/bin/python benchmarks/neon_instructions.py [--before TREE]

Whole loops are counted, and told for a unit of their work: a state update is one step of one state of four
channels, a vector; a tile of products has 96 of them, eight rows by three vectors, and is looked for in
LocalBranch, since every operator multiplies alike.
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
PRODUCTS = {"fmla": 4, "mla": 4, "smull": 8, "smull2": 8, "sdot": 16}
"""How many numbers an instruction multiplies."""

Instructions = Sequence[str]


def _local_branch(arithmetic: str) -> str:
    """A source of LocalBranch's second phase alone, by float32 or int8 products."""
    headers = ("selective_scan/native/baseline.h", "hybrid_block/native/local_branch.h")
    kernel = f"LocalBranch<4, {arithmetic}<4>>::project<float>"
    lines = [*(f'#include "plugins/{header}"' for header in headers), "namespace probed {"]
    return "\n".join(
        [*lines, f"extern decltype(&{kernel}) kernel;", f"decltype(&{kernel}) kernel = {kernel};", "}"]
    )


SOURCES = {
    "scan": '#include "plugins/selective_scan/native/kernels_baseline.cpp"',
    "float32": _local_branch("Floats"),
    "int8": _local_branch("Integers"),
    "dotprod": f"#define MSMAMBA_DOT_PRODUCTS\n{_local_branch('Integers')}",
    "resize": '#include "plugins/image_resize/native/resize_kernels_baseline.cpp"',
}
"""What is compiled, none of which has flags of its own on ARM64."""


@dataclass(frozen=True)
class Loop:
    """An innermost loop that is counted.

    Attributes:
        title: what one unit of its work is.
        source: a name among `SOURCES`.
        function: a pattern of the mangled names of the functions that it may stand in.
        units: how many units of work a round of it does; 0 where these are its products.
        products: how many products a unit has then.
        by: the instructions that make them.
    """

    title: str
    source: str
    function: str
    units: int = 0
    products: int = 96
    by: tuple[str, ...] = ("fmla",)


INTEGER = ("mla", "smull", "smull2", "sdot")
ADVANCE = r"advance_tileILi4ELNS_5DecayE{}.*ForwardScanILi4ELi4EfE"
LOOPS = (
    Loop("a state update", "scan", ADVANCE.format(1), units=16),
    Loop("a state update, decays of any size", "scan", ADVANCE.format(0), units=16),
    Loop(
        "the operands of a step (softplus)", "scan", r"ForwardScanILi4ELi4EfE11fill_vectorILi4ELb1E", units=4
    ),
    Loop("a tile of float32 products", "float32", "project"),
    Loop("a tile of int8 products", "int8", "project", by=INTEGER),
    Loop("a tile of int8 products, dotprod", "dotprod", "project", by=INTEGER),
    Loop("16 bytes of a resize's rows", "resize", "along_rows", products=16, by=INTEGER),
    Loop("16 bytes of a resize's columns", "resize", "along_columns", products=16, by=INTEGER),
)


def assembly(tree: Path, source: str, folder: Path) -> list[str]:
    """Kernels of a checkout as assembly, in lines."""
    flags = runpy.run_path(str(tree / "setup.py"))["COMPILE_FLAGS"]
    cache = str(Path(sys.prefix) / "zig-cache")
    caches = {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
    text, made = folder / "kernels.cpp", folder / "kernels.s"
    text.write_text(f"{source}\n")
    command = [sys.executable, "-m", "ziglang", "c++", "-target", TARGET, *flags]
    command += ["-fPIC", f"-I{tree}", "-S", str(text), "-o", str(made), "-Wno-unused-command-line-argument"]
    subprocess.run(command, env={**os.environ, **caches}, check=True)
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
            body.append(re.sub(r"\s+", "\t", line.partition("//")[0].strip(), count=1))


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
    """The loop with the most products among those that are meant."""
    found = [
        loop
        for name, body in functions(lines)
        if re.search(wanted.function, name)
        for loop in innermost_loops(body)
    ]
    if not found:
        sys.exit(f"there is no loop in a function like {wanted.function} of {SOURCES[wanted.source]}")
    return max(found, key=lambda loop: products(loop, wanted.by))


def products(loop: Instructions, by: Sequence[str]) -> int:
    """How many products a loop has that some instructions make."""
    return sum(PRODUCTS[name] for line in loop if (name := line.split("\t")[0]) in by)


def row(wanted: Loop, loop: Instructions) -> list[str]:
    """A loop's instructions for a unit of its work: all of them, then of each kind."""
    units = wanted.units or products(loop, wanted.by) / wanted.products
    counts = Counter(map(kind, loop))
    kinds = (counts[each] for each in ("arithmetic", "copies", "memory", "other"))
    return [f"{count / units:.1f}" for count in (len(loop), *kinds)]


def main() -> None:
    """Compiles, counts, and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--before", type=Path, metavar="TREE", help="an earlier checkout to compare with")
    options = parser.parse_args()
    trees = {"before": options.before, "after": ROOT} if options.before else {"": ROOT}
    print("| for | | instructions | arithmetic | copies | memory | other |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        made = {
            (label, key): assembly(tree.resolve(), source, Path(name))
            for label, tree in trees.items()
            for key, source in SOURCES.items()
        }
    for wanted in LOOPS:
        for label in trees:
            cells = row(wanted, found_loop(wanted, made[label, wanted.source]))
            print(f"| {wanted.title} | {label} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
