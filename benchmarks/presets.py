"""Which recipe classifies better on a folder of images: accuracy, AUC and time of each, over several seeds.

    python benchmarks/presets.py DATA OUT [--seeds 5] [--options "--image-size 64"] [--recipe NAME "WORDS"]…

Each recipe is what `mmdeploy train` is told, in quotes, and has a name for the table; without `--recipe`
the `micrographs` preset of version 0.1, written out, is compared with that of this version. `--options`
are added to all. A seed is that of the weights and of the images' order, and of the split where DATA is a
flat folder. All recipes train on a seed before the next one begins, one run at a time with one thread.
Finished runs in OUT are not repeated, so more seeds or recipes can be added later.

Figures are those of the test split (of validation where there is none) with weights chosen by validation:
the mean over seeds with a 95 % interval, the percentile bootstrap that draws seeds, and then images of
each. The last columns are the differences from the first recipe on the same draws. Times are CPU seconds
of whole commands, start included, as a ratio to the first: other work on the machine disturbs them less
than wall time.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from msmamba.measures.predictions import Predictions, read_predictions

BEFORE = (
    "--preset paper --epochs 40 --lr 1e-3 --warm-up 3 --patience 10 --crop-scale 0.4 1 "
    "--horizontal-flip --vertical-flip"
)
RECIPES = [("micrographs 0.1", BEFORE), ("micrographs", "--preset micrographs")]
RESAMPLES = 1000


def train(data: Path, run: Path, words: list[str], seed: int) -> None:
    """Trains unless it is done, and notes the CPU seconds beside the run."""
    if (run / "metrics.json").exists():
        return
    run.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "msmamba", "train", str(data), "-o", str(run), *words]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, "--seed", str(seed), "--threads", "1"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    (run / "cpu_seconds.json").write_text(json.dumps(seconds))
    (run / "last.pt").unlink()  # three times the size of the checkpoint, and no run is resumed here


def tested(run: Path) -> Predictions:
    """What a run says of the images that judge it."""
    splits = read_predictions(run / "predictions.csv")
    return splits.get("test", splits["val"])


def figures(found: Predictions, images: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Accuracy and AUC (NaN where it is not defined) on a selection of the images."""
    own = Predictions(found.labels, (), found.truth[images], found.logits[images]).metrics()
    return own.accuracy, np.nan if own.auc is None else own.auc


def resampled(runs: list[list[Predictions]]) -> npt.NDArray[np.float64]:
    """Mean accuracy and AUC of each recipe as they are, then on resamples: (1 + R, recipes, 2).

    Args:
        runs: for each seed a run of each recipe; a seed's test images are the same for all recipes.
    """
    generator = np.random.default_rng(0)
    everything = [[figures(found, np.arange(len(found.truth))) for found in seed] for seed in runs]
    drawn = [np.mean(everything, axis=0)]
    for _ in range(RESAMPLES):
        values = []
        for seed in generator.integers(len(runs), size=len(runs)):
            count = len(runs[seed][0].truth)
            images = generator.integers(count, size=count)
            values.append([figures(found, images) for found in runs[seed]])
        drawn.append(np.nanmean(values, axis=0))
    return np.array(drawn)


def cell(values: npt.NDArray[np.float64], sign: str = "") -> str:
    """An estimate, the first value, with the interval of the others."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return f"{values[0]:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def main() -> None:
    """Trains, measures and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--options", default="", help="words of `mmdeploy train` for all recipes")
    parser.add_argument("--recipe", nargs=2, action="append", metavar=("NAME", "WORDS"))
    arguments = parser.parse_args()
    recipes = arguments.recipe or RECIPES
    runs, seconds = [], []
    for seed in range(arguments.seeds):
        folders = [arguments.out / name.replace(" ", "_") / str(seed) for name, _ in recipes]
        for folder, (_, words) in zip(folders, recipes, strict=True):
            train(arguments.data, folder, shlex.split(f"{words} {arguments.options}"), seed)
        runs.append([tested(folder) for folder in folders])
        seconds.append([json.loads((folder / "cpu_seconds.json").read_text()) for folder in folders])
        accuracies = (f"{found.metrics().accuracy:.3f}" for found in runs[-1])
        print(f"seed {seed}: accuracy {', '.join(accuracies)}", file=sys.stderr, flush=True)
    values = resampled(runs)  # (1 + R, recipes, 2)
    times = np.array(seconds).mean(axis=0)
    images = sum(len(seed[0].truth) for seed in runs)
    print(f"{arguments.data.name}: {arguments.seeds} seeds, {images} answers\n")
    print("| recipe | accuracy | AUC | CPU time | accuracy gained | AUC gained |\n|---|---|---|---|---|---|")
    for number, (name, _) in enumerate(recipes):
        own, gained = values[:, number], values[:, number] - values[:, 0]
        gains = [cell(gained[:, column], "+") if number else "" for column in range(2)]
        cells = [name, cell(own[:, 0]), cell(own[:, 1]), f"{times[number] / times[0]:.2f}", *gains]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
