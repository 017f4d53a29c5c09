"""The campaign: mutated input through the library's doors, kills, faults of the system, and a soak.

    python fuzz/fuzz.py [TARGET…]        make fuzz

Whatever a door answers to bad input but an `MsmambaError` is a finding: another exception, a dead process,
one that takes too long or too much memory. Findings are kept in ``fuzz-out/findings``, each with the input
and what was said; the exit status is 1 where there are any. So are two runs that should agree and do not.

It takes 21 minutes on two cores. ``FUZZ_SCALE=10`` tries ten times as much, and ``FUZZ_SEED=1`` other
inputs: the same seed and number always give the same input.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import faults
import kills
import relations
import soak
import stops
from campaign import Count, attack
from seeds import Seeds
from targets import TARGETS

OUT = Path("fuzz-out")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or PyTorch's idle threads take the cores
EXTRA: dict[str, Callable[..., Count]] = {
    **{f"same-{area}": partial(relations.run, area) for area in relations.AREAS},
    **{f"kill-{command.name}": partial(kills.run, command) for command in kills.COMMANDS},
    **{f"fault-{command.name}": partial(faults.run, command) for command in faults.COMMANDS},
    "stops": stops.run,
    "soak-runs": soak.run,
    "soak-opens": soak.run_opens,
}


def main(names: list[str]) -> int:
    """Runs the named targets, or all; returns the exit status."""
    unknown = [name for name in names if name not in (*TARGETS, *EXTRA)]
    if unknown:
        print(
            f"there is no {', '.join(unknown)}: choose from {', '.join((*TARGETS, *EXTRA))}", file=sys.stderr
        )
        return 2
    scale, seed = float(os.environ.get("FUZZ_SCALE", "1")), int(os.environ.get("FUZZ_SEED", "0"))
    seeds = Seeds.in_folder(OUT / "seeds")
    counts: list[Count] = []
    for name in names or (*TARGETS, *EXTRA):
        began = time.monotonic()
        if name in TARGETS:
            count = attack(name, seeds, OUT, scale=scale, seed=seed)
        else:
            count = EXTRA[name](seeds, OUT, scale=scale, seed=seed)
        counts.append(count)
        print(f"{count.line()}, {time.monotonic() - began:.0f} s", flush=True)
    findings = sum(count.findings for count in counts)
    print(
        f"{sum(count.tried for count in counts)} tried, {findings} findings"
        + f": {OUT / 'findings'}" * bool(findings)
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
