"""What the guard costs, in microseconds an image, beside the network.

    python benchmarks/guard_cost.py BUNDLE IMAGES… [--rounds 101]

BUNDLE has a guard. Each round times, on the next image: the network for logits, the network for logits and
features, the picture's quality, the distance of the features, and the verdict with its candidates. Told are
medians of processor time, with one thread (set OMP_NUM_THREADS=1 for NumPy), which other work disturbs less
than wall time. The figures stand in docs/guard.md.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from msmamba.images import read_image
from msmamba.runtime import open_session
from msmamba.runtime.infer import find_images
from msmamba.runtime.quality import quality_of


def main() -> None:
    """Prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--rounds", type=int, default=101)
    options = parser.parse_args()
    times = defaultdict[str, list[float]](list)

    def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        begun = time.process_time()
        found = call(*arguments)
        times[name].append(time.process_time() - begun)
        return found

    with open_session(options.bundle, threads=1) as session:
        guard, transform = session.guard, session.transform
        assert guard is not None
        assert transform is not None
        for path in itertools.islice(itertools.cycle(find_images(options.images).images), options.rounds):
            pixels = read_image(path, white_level=transform.white_level)
            image = transform(pixels)[None]
            timed("network, logits", session.run, image)
            logits, features = timed("network, logits and features", session.run_with_features, image)
            quality = timed("quality of the picture", quality_of, pixels)
            distances = timed("distance of the features", guard.distances, features)
            timed("verdict and candidates", guard.judge, logits, [quality], distances)
    for name, values in times.items():
        print(f"{name:30} {1e6 * np.median(values):10.0f} us")


if __name__ == "__main__":
    main()
