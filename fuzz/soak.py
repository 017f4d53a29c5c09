"""A long run: one session on eight threads, then sessions opened and closed.

Memory, open files and threads stay bounded, and every run gives the same logits.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from campaign import Count
from seeds import SIDE, Seeds

RUNS, THREADS, OPENS = 20_000, 8, 2_000
ALLOWED_BYTES = 64 << 20
"""Of growth after the first tenth: allocators keep what many threads once used."""


def run(seeds: Seeds, out: Path, *, scale: float, seed: int) -> Count:
    """Runs and opens; what grew is a finding."""
    from msmamba.runtime import open_session

    runs, opens = max(THREADS * 10, round(RUNS * scale)), max(10, round(OPENS * scale))
    count = Count("soak", tried=runs + opens)
    images = np.random.default_rng(seed).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)
    notes = []
    with open_session(seeds.bundle, threads=2) as session, ThreadPoolExecutor(THREADS) as pool:
        expected = session.run(images)

        def same(_: int) -> bool:
            return np.array_equal(session.run(images), expected)

        wrong = runs - sum(pool.map(same, range(runs // 10)))
        first = _state()
        wrong -= sum(pool.map(same, range(runs - runs // 10)))
        last = _state()
    count.findings += _grown(first, last, f"{runs} runs on {THREADS} threads", notes)
    if wrong:
        count.findings += 1
        print(f"  {wrong} of {runs} runs gave other logits", flush=True)
    for number in range(opens):
        if number == opens // 10:
            first = _state()
        with open_session(seeds.bundle, threads=2) as session:
            session.run(images)
    count.findings += _grown(first, _state(), f"{opens} opens", notes)
    count.note = "; ".join(notes)
    return count


def _state() -> tuple[int, int, int]:
    """Resident bytes, open descriptors and threads of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return (
        int(status["VmRSS"].split()[0]) << 10,
        len([*Path("/proc/self/fd").iterdir()]),
        int(status["Threads"]),
    )


def _grown(first: tuple[int, int, int], last: tuple[int, int, int], what: str, notes: list[str]) -> int:
    memory, files, threads = (after - before for before, after in zip(first, last, strict=True))
    notes.append(f"{what}: {memory / 1e6:+.1f} MB, {files:+d} descriptors, {threads:+d} threads")
    wrong = memory > ALLOWED_BYTES or files > 0 or threads > 0
    if wrong:
        print(f"  {notes[-1]}", flush=True)
    return int(wrong)
