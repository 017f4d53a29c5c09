"""Our files beside other networks' and beside an earlier version of ours, in one interleaved run.

    python benchmarks/peers.py tiny.fp32 tiny.fp16 --peer RepViT=repvit_m1_0.onnx \
        --before /envs/earlier/bin/python [--threads 2 1] [--batch 1] [--kernels avx2] [--rounds 40] [-o FILE]

Artefacts are bundles or ONNX files of ours, run by `msmamba.open` as `infer` runs them. Peers are ONNX
files of any network that takes float32 images, run by ONNX Runtime with its own defaults; export them
from timm, say, in an environment of its own. ``--before`` is the interpreter of an environment with
another version of msmamba: every artefact is run there, too, but for those that it does not open.

Each environment has one process, which holds its sessions open; a round runs every case once, in an order
shuffled anew, and never two at a time. Figures are of `run` with a batch that lies ready in memory:
medians and minima over the rounds, and ratios of both to the first row with the same threads; and the
least processor time of all threads together, which other work on the machine spoils last. Where a case's
median is more than a tenth above its minimum the row is marked.

``--kernels`` chooses our kernels' instruction set (``avx512``, ``avx2+vnni``, ``avx2``, ``baseline``) in
every environment. ONNX Runtime has no such choice: peers run with all that the processor has.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

NOISY = 0.10
"""How far a median may lie above its minimum before the row is marked."""
PEER_SIDE = 224
"""Side of the images of a file that leaves it open, pixels."""
WARM_UP = 3


@dataclass(frozen=True)
class Case:
    """One row: a file, run by an environment's interpreter with so many threads."""

    name: str
    python: str
    path: str
    is_peer: bool
    threads: int
    batch: int


def opened(case: Case) -> Callable[[], object]:
    """A call that runs the case once."""
    rng = np.random.default_rng(0)
    if case.is_peer:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = case.threads
        # Threads that spin after one case would take the cores from the next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        peer = onnxruntime.InferenceSession(case.path, options, providers=["CPUExecutionProvider"])
        (image,) = peer.get_inputs()
        sides = [side if isinstance(side, int) else PEER_SIDE for side in image.shape[2:]]
        images = rng.standard_normal((case.batch, 3, *sides), np.float32)
        return lambda: peer.run(None, {image.name: images})

    import msmamba

    session = msmamba.open(case.path, device="cpu", threads=case.threads)
    side = session.image_size or PEER_SIDE
    images = rng.standard_normal((case.batch, 3, side, side), np.float32)
    return lambda: session.run(images)


def serve(kernels: str | None) -> None:
    """Opens the cases that the first line names, then runs the one that each further line asks for."""
    from msmamba.errors import MsmambaError

    if kernels is not None:
        from msmamba.plugins.selective_scan import cpu

        cpu.select_kernels(kernels)
    calls: list[Callable[[], object] | None] = []
    refusals: list[str | None] = []
    for each in json.loads(sys.stdin.readline()):
        try:
            calls.append(opened(Case(**each)))
            refusals.append(None)
        except MsmambaError as error:
            calls.append(None)
            refusals.append(str(error))
    import msmamba

    print(json.dumps({"refusals": refusals, "package": msmamba.__file__}), flush=True)
    for line in sys.stdin:
        call = calls[int(line)]
        if call is None:
            raise SystemExit(f"case {line.strip()} is not open")
        start, processor_start = time.perf_counter(), time.process_time()
        call()
        print(time.perf_counter() - start, time.process_time() - processor_start, flush=True)


class Environment:
    """A process of one interpreter that holds its cases open; closed at the end of the stack."""

    def __init__(self, python: str, cases: list[Case], kernels: str | None, stack: ExitStack) -> None:
        command = [python, str(Path(__file__).resolve()), "--serve"]
        command += ["--kernels", kernels] if kernels is not None else []
        self._process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        self._python, self._cases = python, cases
        said = json.loads(self._ask(json.dumps([asdict(case) for case in cases])))
        self.package = said["package"]
        self.refused = {case: reason for case, reason in zip(cases, said["refusals"], strict=True) if reason}

    def milliseconds(self, case: Case) -> tuple[float, float]:
        """Runs a case once: the time that it took, and that of all processors."""
        elapsed, processor = map(float, self._ask(str(self._cases.index(case))).split())
        return elapsed * 1e3, processor * 1e3

    def _ask(self, line: str) -> str:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the process has no pipes")
        stdin.write(line + "\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise SystemExit(f"{self._python} ended: its message stands above")
        return answer


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    """All rows, those of the same number of threads together."""
    here = sys.executable
    files = [(Path(path).name, here, path, False) for path in arguments.artefacts]
    for index, python in enumerate(arguments.before, start=1):
        mark = "before" if len(arguments.before) == 1 else f"before {index}"
        files += [(f"{Path(path).name}, {mark}", python, path, False) for path in arguments.artefacts]
    for peer in arguments.peer:
        name, _, path = peer.rpartition("=")
        files.append((name or Path(path).stem, here, path, True))
    return [Case(*file, threads, arguments.batch) for threads in arguments.threads for file in files]


def measure(cases: list[Case], kernels: str | None, rounds: int) -> dict[Case, list[tuple[float, float]]]:
    """Milliseconds of every case, elapsed and of processors, one a round."""
    taken: dict[Case, list[tuple[float, float]]] = {case: [] for case in cases}
    with ExitStack() as stack:
        environments = {
            python: Environment(python, [case for case in cases if case.python == python], kernels, stack)
            for python in dict.fromkeys(case.python for case in cases)
        }
        found = [environment.package for environment in environments.values()]
        if len(set(found)) < len(found):  # as PYTHONPATH would bring about
            raise SystemExit(f"two interpreters have one msmamba: {', '.join(found)}")
        for environment in environments.values():
            for case, reason in environment.refused.items():
                if case.python == sys.executable:
                    raise SystemExit(reason)
                print(f"{case.name}: left out, since that version refuses it: {reason}", file=sys.stderr)
                del taken[case]
        order, shuffle = list(taken), random.Random(0).shuffle
        for index in range(WARM_UP + rounds):
            shuffle(order)
            for case in order:
                milliseconds = environments[case.python].milliseconds(case)
                if index >= WARM_UP:
                    taken[case].append(milliseconds)
    return taken


def rows_of(taken: dict[Case, list[tuple[float, float]]]) -> list[dict[str, Any]]:
    """The figures of every case; ratios are to the first of its number of threads."""
    rows = []
    for case, samples in taken.items():
        first = next(other for other in taken if other.threads == case.threads)
        median, _ = np.median(samples, axis=0)
        least, processor = np.min(samples, axis=0)
        first_least, first_processor = np.min(taken[first], axis=0)
        rows.append(
            {
                **asdict(case),
                "median_ms": float(median),
                "min_ms": float(least),
                "processor_ms": float(processor),
                "median_ratio": float(median / np.median(taken[first], axis=0)[0]),
                "min_ratio": float(least / first_least),
                "processor_ratio": float(processor / first_processor),
                "noisy": bool(median > (1 + NOISY) * least),
                "samples_ms": samples,
            }
        )
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artefacts", nargs="*", help="our bundles or ONNX files; ratios are to the first")
    parser.add_argument("--peer", action="append", default=[], metavar="[NAME=]FILE.onnx")
    parser.add_argument("--before", action="append", default=[], metavar="PYTHON")
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--kernels")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("-o", "--output", type=Path, help="write all samples there as JSON")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.kernels)
        return
    if not arguments.artefacts:
        parser.error("no artefact to measure: give at least one")

    from rich.console import Console
    from rich.table import Table

    from msmamba import machine
    from msmamba.plugins.selective_scan import cpu

    rows = rows_of(measure(cases_of(arguments), arguments.kernels, arguments.rounds))
    kernels = arguments.kernels or cpu.kernels()
    title = f"{machine.processor()}, {kernels}, batch {arguments.batch}, {arguments.rounds} rounds"
    table = Table(title=title)
    columns = ("case", "threads", "median ms", "min ms", "processor ms")
    for column in (*columns, "ratio of medians", "of minima", "of processor", ""):
        table.add_column(column, justify="left" if column in ("case", "") else "right")
    names = ("median_ms", "min_ms", "processor_ms", "median_ratio", "min_ratio", "processor_ratio")
    for row in rows:
        figures = (f"{row[name]:.2f}" for name in names)
        table.add_row(row["name"], str(row["threads"]), *figures, "noisy" if row["noisy"] else "")
    Console(width=120).print(table)
    if arguments.output is not None:
        everything = {"run": title, "load_average": machine.load_average(), "rows": rows}
        arguments.output.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
