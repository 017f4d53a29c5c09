"""The peak memory of classification, in a process of its own, since a process's peak never falls again."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .. import machine
from .session import open_session

_BATCHES = 3  # the runtime allocates its buffers in the first, and settles


def peak_bytes(artefact: str, batch_size: int, sessions: int = 1, **options: Any) -> int | None:
    """Peak memory of this process after a few batches; None where the system does not tell."""
    with open_session(artefact, **options) as session, ThreadPoolExecutor(sessions) as lanes:
        size = session.image_size or 224
        pixels = np.zeros((2 * size, 2 * size, 3), np.uint8)

        def classify(_lane: int) -> None:
            for _ in range(_BATCHES):
                if session.transform is None:
                    session.run(np.zeros((batch_size, 3, size, size), np.float32))
                else:
                    session.run(np.stack([session.prepare(pixels)[0] for _ in range(batch_size)]))

        list(lanes.map(classify, range(sessions)))
    return machine.peak_memory_bytes()


def main() -> None:
    """What `benchmark` starts: prints the peak, in bytes, of the case that the process's argument, a JSON
    object, describes: an artefact and how it runs."""
    print(json.dumps(peak_bytes(**json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
