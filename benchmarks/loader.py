"""How fast images of TissueMNIST's form are read for training and evaluation, and in how much memory.

    python benchmarks/loader.py [--images 20000] [--size 28] [--image-size 224] [--rounds 3] [--workers 0 1 2]
        [--preset micrographs]

Makes a file as MedMNIST publishes it (random pixels), imports it as `mmdeploy data import tissuemnist` does,
and reads all of it as `mmdeploy train` does: the training split cropped at random, resized and normalised,
the others resized and normalised, in batches of 16. Nothing is computed from the batches. Each number of
workers has a process of its own. Memory is that of the process and its workers together, shared pages
counted once (PSS, Linux only): what they hold themselves, and the mapped part of the data beside it, which
the system takes back when it needs to.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from msmamba.data.published.tissuemnist import PUBLISHED
from msmamba.machine import peak_memory_bytes

BATCH_SIZE = 16


def make(path: Path, images: int, size: int) -> None:
    """Writes a file of TissueMNIST's form with this many images, split as the published one."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in PUBLISHED.items():
        number = round(images * count / sum(PUBLISHED.values()))
        arrays[f"{split}_images"] = generator.integers(0, 256, (number, size, size), dtype=np.uint8)
        arrays[f"{split}_labels"] = generator.integers(0, 8, (number, 1), dtype=np.uint8)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def memory() -> tuple[int, int]:
    """Bytes that this process and its workers hold themselves, and that are mapped from files."""
    own, mapped = 0, 0
    here = str(Path("/proc/self").resolve().name)
    for process in (here, *(Path(f"/proc/{here}/task/{here}/children").read_text().split())):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
        own += (kilobytes["Pss_Anon"] + kilobytes["Pss_Shmem"]) * 1024
        mapped += kilobytes["Pss_File"] * 1024
    return own, mapped


@contextmanager
def peaks() -> Iterator[dict[str, int]]:
    """The largest memory while the block runs, looked at twenty times a second."""
    found = {"own": 0, "mapped": 0}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            own, mapped = memory()
            found["own"], found["mapped"] = max(found["own"], own), max(found["mapped"], mapped)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


def read(folder: Path, workers: int, image_size: int, rounds: int, preset: str) -> dict[str, Any]:
    """Reads the data set and gives images a second, one of each round, and memory in bytes."""
    from msmamba.data.folders import read_training_folder
    from msmamba.images import Transform
    from msmamba.model.training.loading import (
        Batches,
        EvaluationImages,
        ShuffledBatches,
        TrainingImages,
        images_of,
    )
    from msmamba.model.training.recipe import Recipe

    before = memory()[0]
    data = read_training_folder(folder)
    assert data.statistics is not None
    transform = Transform(image_size, *data.statistics)
    images = images_of(data.splits)
    order = ShuffledBatches(len(images["train"]), BATCH_SIZE, seed=0)
    training = TrainingImages(images["train"], Recipe.of_preset(preset).augmentation, transform, seed=0)
    evaluation = [EvaluationImages(images[name], transform) for name in ("val", "test")]
    batches = {
        "train": [Batches(training, workers, batch_sampler=order)],
        "eval": [Batches(split, workers, batch_size=BATCH_SIZE) for split in evaluation],
    }

    def go_through() -> dict[str, float]:
        rates = {}
        for kind, loaders in batches.items():
            started, seen = time.perf_counter(), 0
            for loader in loaders:
                seen += sum(len(labels) for _, labels in loader)
            rates[kind] = seen / (time.perf_counter() - started)
        return rates

    with peaks() as peak:  # also the round that warms up: looking at the memory takes time
        go_through()
    rates = []
    for order.epoch in range(1, rounds + 1):
        rates.append(go_through())
    return {"rates": rates, "before": before, **peak}


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function of this file in a process of its own, whose memory is then its own."""
    command = [sys.executable, __file__, "--call", function.__name__, json.dumps(arguments, default=str)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def bring_in(source: str, output: str) -> dict[str, Any]:
    """Imports the file and gives the time and the memory."""
    from msmamba.data.published import import_data_set

    before = peak_memory_bytes()
    started = time.perf_counter()
    import_data_set("tissuemnist", source, output)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "before": before, "peak": peak_memory_bytes()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=28, help="side of the images in the file, pixels")
    parser.add_argument("--image-size", type=int, default=224, help="side of the network's input, pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default="paper", help="recipe whose augmentation is measured")
    parser.add_argument("--call", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.call:
        name, values = arguments.call
        print(json.dumps(globals()[name](*json.loads(values))))
        return
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "tissuemnist.npz"), Path(folder, "imported")
        make(source, arguments.images, arguments.size)
        done = in_a_process(bring_in, source, output)
        print(
            f"import of {arguments.images:,} images of {arguments.size}x{arguments.size}: "
            f"{done['seconds']:.1f} s, {done['peak'] / 1e6:.0f} MB at most "
            f"({done['before'] / 1e6:.0f} MB before it begins)"
        )
        print(
            f"\nto {arguments.image_size}x{arguments.image_size}, images a second, median of "
            f"{arguments.rounds}:"
        )
        print("workers   train    eval   MB held   of it before   MB mapped")
        for workers in arguments.workers:
            result = in_a_process(
                read, output, workers, arguments.image_size, arguments.rounds, arguments.preset
            )
            train, evaluation = (
                np.median([rates[kind] for rates in result["rates"]]) for kind in ("train", "eval")
            )
            held, before, mapped = (result[name] / 1e6 for name in ("own", "before", "mapped"))
            print(f"{workers:7} {train:7.0f} {evaluation:7.0f} {held:9.0f} {before:14.0f} {mapped:11.0f}")


if __name__ == "__main__":
    main()
