"""How soon there is an answer: starts of the program from nothing, in one interleaved run.

    python benchmarks/startup.py BUNDLE IMAGE [--before /envs/earlier/bin/python] [--rounds 20]

Each round starts every case once, in an order shuffled anew: an interpreter that does nothing, ``import
msmamba``, ``mmdeploy --help`` and ``mmdeploy infer BUNDLE IMAGE``. ``--before`` is the interpreter of an
environment with another version. Files are in the system's cache. Figures are minima over the rounds: the
time from start to end, and that of all processors, which other work on the machine spoils last.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import time

Sample = tuple[float, float]


def processor_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def start(command: list[str]) -> Sample:
    """Runs a command: the time that it took and that of all processors, seconds."""
    begun, used = time.perf_counter(), processor_seconds()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun, processor_seconds() - used


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("image")
    parser.add_argument("--before", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    programs = {
        "nothing": ["-c", "pass"],
        "import msmamba": ["-c", "import msmamba"],
        "mmdeploy --help": ["-m", "msmamba", "--help"],
        "mmdeploy infer": ["-m", "msmamba", "infer", options.bundle, options.image],
    }
    pythons = {"": sys.executable} | ({", before": options.before} if options.before else {})
    cases = {
        f"{name}{mark}": [python, *words]
        for name, words in programs.items()
        for mark, python in pythons.items()
    }
    taken: dict[str, list[Sample]] = {name: [] for name in cases}
    order, shuffle = list(cases), random.Random(0).shuffle
    for index in range(1 + options.rounds):
        shuffle(order)
        for name in order:
            sample = start(cases[name])
            if index > 0:  # the first fills the system's cache
                taken[name].append(sample)
    for name, samples in taken.items():
        least, processor = (1e3 * min(column) for column in zip(*samples, strict=True))
        print(f"{name:26}{least:8.0f} ms{processor:8.0f} ms of processors")


if __name__ == "__main__":
    main()
