"""A long run: one session on eight threads, then sessions opened and closed.

Memory, open files and threads stay bounded, and every run gives the same logits.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from campaign import Count
from seeds import SIDE, Seeds

RUNS, THREADS, OPENS = 20_000, 8, 2_000
ALLOWED_BYTES = 64 << 20
"""Of growth after the first tenth: allocators keep what many threads once used."""


def run(seeds: Seeds, out: Path, *, scale: float, seed: int) -> Count:
    """Runs one session on many threads; what grew, and other logits, are findings."""
    from msmamba.runtime import open_session

    runs = max(THREADS * 10, round(RUNS * min(scale, 1)))
    count = Count("soak-runs", tried=runs)
    images = _images(seed)
    with open_session(seeds.bundle, threads=2) as session, ThreadPoolExecutor(THREADS) as pool:
        expected = session.run(images)

        def same(_: int) -> bool:
            return np.array_equal(session.run(images), expected)

        wrong = runs - sum(pool.map(same, range(runs // 10)))
        first = _state()
        wrong -= sum(pool.map(same, range(runs - runs // 10)))
        last = _state()
    count.note = f"{THREADS} threads, {_grown(first, last, count)}"
    if wrong:
        count.findings += 1
        print(f"  {wrong} of {runs} runs gave other logits", flush=True)
    return count


def run_opens(seeds: Seeds, out: Path, *, scale: float, seed: int) -> Count:
    """Opens, runs and closes sessions; what grew is a finding."""
    from msmamba.runtime import open_session

    opens = max(10, round(OPENS * min(scale, 1)))
    count = Count("soak-opens", tried=opens)
    images = _images(seed)
    for number in range(opens):
        if number == opens // 10:
            first = _state()
        with open_session(seeds.bundle, threads=2) as session:
            session.run(images)
    count.note = _grown(first, _state(), count)
    return count


def _images(seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)


def _state() -> tuple[int, int, int]:
    """Resident bytes, open descriptors and threads of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return (
        int(status["VmRSS"].split()[0]) << 10,
        len([*Path("/proc/self/fd").iterdir()]),
        int(status["Threads"]),
    )


def _grown(first: tuple[int, int, int], last: tuple[int, int, int], count: Count) -> str:
    """What grew, in words; more than is allowed is counted as a finding."""
    memory, files, threads = (after - before for before, after in zip(first, last, strict=True))
    count.findings += memory > ALLOWED_BYTES or files > 0 or threads > 0
    return f"{memory / 1e6:+.1f} MB, {files:+d} descriptors, {threads:+d} threads"
