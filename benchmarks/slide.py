"""`mmdeploy slide` on 60,000 x 60,000 pixels: tiles a second beside what the network alone can, and memory.

    python benchmarks/slide.py WORK REGION [--seconds 60] [--batch-size 1] [--only 0 1]
        [--wsinfer PYTHON] [--tiatoolbox PYTHON]

REGION is a slide with tissue, such as `make demo` leaves at demo-out/cmu_small_region.svs. Slides are made of
it in WORK once: a mosaic of its pixels in JPEG tiles of quality 90, with levels of a quarter and a sixteenth,
at 0.25 µm a pixel; the network is tiny at 224 pixels with random weights. Then, one after the other, each as
a process of its own that is stopped after so many seconds:

- what `mmdeploy bench` finds for the artefact at batches of 1, 4 and 8, by one thread and by all;
- the command with `--mpp 0.25`, where a level has the model's scale, and with `--mpp 0.5`, where the best
  level is twice as fine; and the first on a slide of 20,000 x 20,000, for its memory;
- the same network in PyTorch, with its compiled kernels, fed by a DataLoader whose processes read by
  OpenSlide, in batches of 32: how WSInfer and TIAToolbox go about it, written out here;
- where an interpreter is given that has it, WSInfer and TIAToolbox themselves (slide_peers.py).

Tiles are counted from the first rows on. Memory is the high-water mark of the resident set, for the
DataLoader the sum over its processes, what they share counted once (PSS).
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openslide
from PIL import Image
from tifffile import TiffWriter

from msmamba import machine

SIDES, TILE, PATTERN = (60_000, 20_000), 256, 4096
FACTORS = (1, 4, 16)  # of the levels
MODEL_PIXELS = 224
PEERS = ("wsinfer", "tiatoolbox")
BATCH = 32  # of the DataLoader, as WSInfer's default


def pattern_of(region: Path) -> npt.NDArray[np.uint8]:
    """(4096, 4096, 3): the region and its reflections."""
    with openslide.OpenSlide(region) as slide:
        pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    height, width, _ = pixels.shape
    return np.pad(pixels, ((0, PATTERN - height), (0, PATTERN - width), (0, 0)), "symmetric")


def encoded(pattern: npt.NDArray[np.uint8], factor: int) -> list[list[bytes]]:
    """The pattern at a level, as rows of JPEG tiles."""
    side = PATTERN // factor
    level = Image.fromarray(pattern).resize((side, side), Image.Resampling.BOX)
    rows = []
    for y in range(0, side, TILE):
        row = []
        for x in range(0, side, TILE):
            content = io.BytesIO()
            level.crop((x, y, x + TILE, y + TILE)).save(content, "JPEG", quality=90)
            row.append(content.getvalue())
        rows.append(row)
    return rows


def write_slide(path: Path, pattern: npt.NDArray[np.uint8], side: int) -> None:
    """A plain pyramid of repeated patterns; a tile of the file is in memory at a time."""
    with TiffWriter(path, bigtiff=True) as writer:
        for factor in FACTORS:
            tiles, length = encoded(pattern, factor), -(-side // factor)

            def all_tiles(tiles: list[list[bytes]], count: int) -> Iterator[bytes]:
                for row in range(count):
                    for column in range(count):
                        yield tiles[row % len(tiles)][column % len(tiles)]

            writer.write(
                all_tiles(tiles, -(-length // TILE)),
                shape=(length, length, 3),
                dtype="uint8",
                tile=(TILE, TILE),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=0 if factor == 1 else 1,
                resolution=(40_000 / factor, 40_000 / factor),
                resolutionunit="CENTIMETER",
                metadata=None,
            )


def alone(artefact: Path, out: Path) -> float:
    """The most images a second that the network alone does."""
    threads = sorted({1, machine.usable_cores()})
    cases = [word for count in threads for word in ("--threads", str(count))]
    command = [sys.executable, "-m", "msmamba", "bench", str(artefact), "-o", str(out)]
    cases += [word for count in (1, 4, 8) for word in ("--batch-size", str(count))]
    subprocess.run([*command, *cases, "--seconds", "40"], check=True, stdout=subprocess.DEVNULL)
    results = json.loads(out.read_text())["results"]
    for each in results:
        case = each["case"]
        rate = each["images_per_second"]
        print(f"  batch {case['batch_size']}, {case['threads']} threads: {rate:.1f} images/s")
    return max(each["images_per_second"] for each in results)


def sampled(process: subprocess.Popen[bytes], done: Path, seconds: float) -> tuple[float, float]:
    """Tiles a second by the lines of a file, and the most MB, of a process that is stopped then."""
    counts: list[tuple[float, int]] = []
    peak = 0.0
    while process.poll() is None and (not counts or counts[-1][0] - counts[0][0] < seconds):
        time.sleep(0.5)
        peak = max(peak, memory_mb(process.pid))
        rows = done.read_bytes().count(b"\n") - 1 if done.exists() else 0
        if rows > 0:
            counts.append((time.monotonic(), rows))
    process.kill()
    process.wait()
    (began, first), (ended, last) = counts[0], counts[-1]
    return (last - first) / (ended - began), peak


def memory_mb(pid: int) -> float:
    """What a process and its children hold now: the high-water mark of one alone, the PSS of several.

    One that is about to end holds nothing.
    """
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if not children:
        return kilobytes(Path(f"/proc/{pid}/status"), "VmHWM:") / 1000
    return sum(kilobytes(Path(f"/proc/{each}/smaps_rollup"), "Pss:") for each in (pid, *children)) / 1000


def kilobytes(facts: Path, name: str) -> int:
    """A line of what the system says of a process; 0 where it says nothing any more."""
    try:
        lines = facts.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def command(
    artefact: Path, slide: Path, mpp: float, out: Path, options: argparse.Namespace
) -> tuple[float, float]:
    """The command's tiles a second and MB."""
    words = ["slide", str(artefact), str(slide), "--mpp", str(mpp), "-o", str(out)]
    words += ["--batch-size", str(options.batch_size)]
    process = subprocess.Popen([sys.executable, "-m", "msmamba", *words], stderr=subprocess.DEVNULL)
    return sampled(process, out / "partial" / f"{slide.stem}.csv", options.seconds)


def dataloader(
    checkpoint: Path, slide: Path, mpp: float, out: Path, options: argparse.Namespace
) -> tuple[float, float]:
    """PyTorch's tiles a second and MB; at the scale of level 0, whatever the microns are."""
    words = [str(checkpoint), str(slide), str(out)]
    process = subprocess.Popen([sys.executable, str(Path(__file__)), "--dataloader", *words])
    return sampled(process, out, options.seconds)


def of_peer(
    tool: str, checkpoint: Path, slide: Path, mpp: float, out: Path, options: argparse.Namespace
) -> tuple[float, float]:
    """Another tool's tiles a second and MB; at the scale of level 0, whatever the microns are."""
    words = [str(Path(__file__).with_name("slide_peers.py")), tool, str(checkpoint), str(slide), str(out)]
    return sampled(subprocess.Popen([getattr(options, tool), *words]), out, options.seconds)


def run_dataloader(checkpoint: str, slide: str, out: str) -> None:
    """Classifies tile after tile until it is stopped, and writes a line for each."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    from msmamba.model import MicroscopicMamba

    class Tiles(Dataset[torch.Tensor]):
        """Tiles row by row; each process opens the slide itself."""

        handle: openslide.OpenSlide | None = None

        def __len__(self) -> int:
            return (SIDES[0] // MODEL_PIXELS) ** 2

        def __getitem__(self, index: int) -> torch.Tensor:
            self.handle = self.handle or openslide.OpenSlide(slide)
            row, column = divmod(index, SIDES[0] // MODEL_PIXELS)
            place = (column * MODEL_PIXELS, row * MODEL_PIXELS)
            tile = self.handle.read_region(place, 0, (MODEL_PIXELS, MODEL_PIXELS)).convert("RGB")
            pixels = torch.from_numpy(np.array(tile)).permute(2, 0, 1).contiguous().float() / 255
            return (pixels - 0.7) / 0.2

    network = MicroscopicMamba.from_checkpoint(checkpoint).eval()
    loader = DataLoader(Tiles(), batch_size=BATCH, num_workers=machine.usable_cores())
    with torch.inference_mode(), Path(out).open("w") as file:
        file.write("first line\n")
        for batch in loader:
            file.writelines(f"{row}\n" for row in network(batch).softmax(1).tolist())
            file.flush()


def main() -> None:
    """Makes what is missing, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("region", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--batch-size", type=int, default=1)
    for tool in PEERS:
        parser.add_argument(f"--{tool}", metavar="PYTHON", help="An interpreter that has it.")
    parser.add_argument("--only", type=int, nargs="*", default=range(6), help="Of the runs, by their place.")
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    bundle, checkpoint = work / "t224", work / "t224.safetensors"
    if not bundle.exists():
        from end_to_end import export_tiny

        export_tiny(work, MODEL_PIXELS)
    pattern = pattern_of(options.region)
    slides = {side: work / f"{side}.tif" for side in SIDES}
    for side, path in slides.items():
        if not path.exists():
            began = time.monotonic()
            write_slide(path, pattern, side)
            print(f"{path}: {path.stat().st_size / 1e6:.0f} MB, made in {time.monotonic() - began:.0f} s")
    print(f"{machine.processor()}, {machine.usable_cores()} cores; the network alone:")
    best = alone(bundle, work / "bench.json")
    large, small = (slides[side] for side in SIDES)
    runs = [
        ("level of the model's scale", command, bundle, large, 0.25),
        ("level twice as fine", command, bundle, large, 0.5),
        ("model's scale, 20,000 x 20,000", command, bundle, small, 0.25),
        ("PyTorch and a DataLoader", dataloader, checkpoint, large, 0.25),
    ]
    runs += [(tool, partial(of_peer, tool), checkpoint, large, 0.25) for tool in PEERS]
    for number, (name, measured, model, slide, mpp) in enumerate(runs):
        if number not in options.only or (name in PEERS and getattr(options, name) is None):
            continue
        rate, peak = measured(model, slide, mpp, work / f"out-{number}-{time.time_ns()}", options)
        print(f"{name:30} {rate:6.1f} tiles/s, {rate / best:.2f} of the network alone, {peak:4.0f} MB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--dataloader"]:
        run_dataloader(*sys.argv[2:])
    else:
        main()
