"""One target under attack: inputs made in a process of its own, watched by this one.

A native library may take the process with it or never come back; so a child runs the inputs one after the
other, says which it begins, and is replaced when it is dead or silent.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from seeds import Seeds
from targets import TARGETS

from msmamba.errors import MsmambaError

SECONDS_EACH = 30.0
"""Of the processor's time for one input: that of the slowest good one, several times over."""
WAIT_SECONDS = 300.0
"""Of anybody's time for one input, which may wait for the processor, and for nothing else."""
MEMORY_BYTES = 6 << 30
"""Of address space that a child may use beyond its start: nothing tried here needs a tenth of it."""
FINDINGS_KEPT = 20
"""Of each target: a kind of fault is seen from a few."""


@dataclass
class Count:
    """What came of a target."""

    name: str
    tried: int = 0
    refused: int = 0
    findings: int = 0
    note: str = ""

    def line(self) -> str:
        """For the terminal."""
        taken = self.tried - self.refused - self.findings
        how = self.note or f"{self.refused:6} refused, {taken:6} taken"
        return f"{self.name:14} {self.tried:6} tried, {how}, {self.findings} findings"


def attack(name: str, seeds: Seeds, out: Path, *, scale: float, seed: int) -> Count:
    """Tries a target's inputs.

    Args:
        name: of the target.
        seeds: good files to start from.
        out: findings are kept in its folder ``findings``.
        scale: times the target's own number of inputs.
        seed: of all inputs.
    """
    count = Count(name)
    total = max(1, round(TARGETS[name].inputs * scale))
    kinds: dict[str, int] = {}
    first = 0
    while first < total:
        first = _watch(name, seeds, out, seed, first, total, count, kinds)
    return count


def _watch(
    name: str, seeds: Seeds, out: Path, seed: int, first: int, total: int, count: Count, kinds: dict[str, int]
) -> int:
    """Runs a child from an input on until it ends, in one way or another; the input to go on from."""
    work = out / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    words = [sys.executable, __file__, name, str(seeds.folder), str(work), str(seed), str(first), str(total)]
    with (
        (out / "child.log").open("wb") as log,
        subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        index, said, begun = first, "", False
        since, used = time.monotonic() + WAIT_SECONDS, SECONDS_EACH  # its start takes longer than an input
        while True:
            if not select.select([child.stdout], [], [], 1.0)[0]:
                spent, waited = _processor_seconds(child.pid) - used, time.monotonic() - since
                if child.poll() is None and (spent > SECONDS_EACH or waited > WAIT_SECONDS):
                    child.kill()
                    said = f"did not end in {spent:.0f} s of the processor's time, {waited:.0f} s in all"
                    break
                continue
            line = child.stdout.readline()
            if not line:
                status = child.wait()
                if status == 0:
                    return total
                told = (out / "child.log").read_text(errors="replace")[-2000:]
                said = f"{told}\nthe process ended with {_status(status)}"
                break
            event, begun = json.loads(line), True
            since, used = time.monotonic(), _processor_seconds(child.pid)
            index = event["input"]
            if event["outcome"] == "begun":
                continue
            count.tried += 1
            count.refused += event["outcome"] == "refused"
            if event["outcome"] == "finding":
                _keep(out, work, name, seed, index, event["said"], count, kinds)
                child.stdin.write(b"kept\n")
    count.tried += 1
    _keep(out, work, name, seed, index, said, count, kinds)
    return index + 1 if begun else total  # a target that does not come to its first input never will


def _processor_seconds(process: int) -> float:
    """That a process has used; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"


def _keep(
    out: Path, work: Path, name: str, seed: int, index: int, said: str, count: Count, kinds: dict[str, int]
) -> None:
    """Keeps a finding: its input, and what was said."""
    count.findings += 1
    kind = re.sub(r"\d+|'[^']*'", "", said.strip().splitlines()[-1] if said.strip() else "")
    kinds[kind] = kinds.get(kind, 0) + 1
    if kinds[kind] > 3 or count.findings > FINDINGS_KEPT:
        return
    folder = out / "findings" / f"{name}-{seed}-{index}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(work, folder, symlinks=True)
    (folder / "said.txt").write_text(said, encoding="utf-8", errors="backslashreplace")
    print(f"  {folder}: {said.strip().splitlines()[-1][:200] if said.strip() else '?'}", flush=True)


def _child(name: str, seeds: Seeds, work: Path, seed: int, first: int, total: int) -> None:
    """Tries inputs one after the other, and says what came of each on standard output."""
    # The door's own prints must not be mistaken for events.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    target = TARGETS[name](seeds)
    limit = _address_space() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def tell(index: int, outcome: str, said: str = "") -> None:
        events.write(json.dumps({"input": index, "outcome": outcome, "said": said}) + "\n")
        if outcome == "finding":
            sys.stdin.readline()  # until the input is kept

    for index in range(first, total):
        tell(index, "begun")
        for left in work.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        path = target.make(random.Random(f"{name} {seed} {index}"), work)
        try:
            target.open(path)
        except MsmambaError as error:
            # The whole tree of errors is told in one line.
            several = "\n" in str(error) or not str(error)
            tell(index, "finding" if several else "refused", f"not one line: {str(error)!r}")
        except Exception:  # whatever else comes out is what the campaign looks for
            tell(index, "finding", traceback.format_exc())
        else:
            tell(index, "taken")


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    _name, _folder, _work, *_numbers = sys.argv[1:]
    _child(_name, Seeds(Path(_folder)), Path(_work), *map(int, _numbers))
