"""A run over slides that is killed again and again: it ends with the bytes of one that is left alone.

Ten kills in a row at a scale of 1, each at a random moment, from the program's start to the report; what a
kill leaves is what the next one starts from. A run that ends too soon is followed by another, until there
were as many.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import tifffile
from campaign import Count
from seeds import Seeds

KILLS = 10
SAME = ("model-outputs-csv", "model-outputs-geojson", "heat-maps", "masks", "thumbnails")
"""The folders of which every byte has to be the same."""


def run(seeds: Seeds, out: Path, *, scale: float, seed: int) -> Count:
    """Kills until there were enough, and compares what came of it."""
    count, wanted = Count("stops"), max(1, round(KILLS * scale))
    generator = random.Random(f"stops {seed}")
    work = (out / "stops").resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    slides = [_slide(work / f"{name}.tif", number) for number, name in enumerate(("left", "right"))]
    began = time.monotonic()
    _command(seeds, slides, work / "whole").wait()
    seconds = time.monotonic() - began
    whole = _content(work / "whole")
    runs = 0
    while count.tried < wanted:
        runs += 1
        target = work / f"killed-{runs}"
        while True:
            process = _command(seeds, slides, target)
            if count.tried < wanted:
                try:
                    process.wait(seconds * generator.uniform(0.05, 0.6))
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    count.tried += 1
            if process.wait() != -signal.SIGKILL:
                break
        found = _content(target)
        differing = sorted(name for name in {*whole, *found} if whole.get(name) != found.get(name))
        if process.returncode or differing:
            count.findings += 1
            kept = out / "findings" / f"stops-{seed}-{runs}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(work, kept)
            (kept / "said.txt").write_text(f"status {process.returncode}; differing: {', '.join(differing)}")
            print(f"  {kept}: status {process.returncode}, {len(differing)} files differ", flush=True)
    count.note = f"kills in {runs} runs of {seconds:.1f} s when left alone, {len(whole)} files compared"
    shutil.rmtree(work)
    return count


def _slide(path: Path, number: int) -> Path:
    """Tissue of noise on glass, 2000 x 1400 at half a micron a pixel, in tiles."""
    generator = np.random.default_rng(number)
    pixels = np.full((1400, 2000, 3), 243, np.uint8)
    spot = pixels[200:1200, 300:1700]
    spot[:] = np.clip(generator.normal((205, 110, 175), 18, spot.shape), 0, 255)
    tifffile.imwrite(
        path,
        pixels,
        tile=(256, 256),
        photometric="rgb",
        compression="deflate",
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
    )
    return path


def _command(seeds: Seeds, slides: list[Path], target: Path) -> subprocess.Popen[bytes]:
    words = ["slide", str(seeds.bundle), *map(str, slides), "-o", str(target)]
    options = ["--mpp", "0.5", "--overlap", "0.5", "--batch-size", "4", "--threads", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "msmamba", *words, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _content(folder: Path) -> dict[str, bytes]:
    """What has to be the same, by name."""
    files = (path for name in SAME for path in (folder / name).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
