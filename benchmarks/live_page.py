"""How old pictures are when the page of `mmdeploy live` has painted them, in headless Chromium.

    python benchmarks/live_page.py ARTEFACT [--seconds 30] [--threads 2] [--size 1280x800]

The source is ``demo``: 60 frames a second of 512 x 512 pixels, each classified as one picture. An age is
taken by the server when the page reports that it has painted, so the report's way back is in it. Beside it
stands what the same artefact takes for the same picture when nothing else runs.

Chromium runs on the cores that the network runs on, and draws without a GPU, in software: on a machine with
two cores this is the worst case. Needs Debian's packages chromium and chromium-driver, and selenium.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

import msmamba
from msmamba.microscope.sources.demo import drawn_smear

WARM_UP = 5.0  # seconds, not counted
QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
)


def alone(artefact: str, threads: int | None, seconds: float = 4.0) -> tuple[float, float]:
    """Median milliseconds of resizing and of the network, with nothing beside them."""
    pixels = np.ascontiguousarray(drawn_smear()[:512, :512])
    prepare, network = [], []
    with msmamba.open(artefact, threads=threads) as session:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            began = time.monotonic()
            image, _ = session.prepare(pixels)
            ready = time.monotonic()
            session.run(image[None])
            prepare.append((ready - began) * 1e3)
            network.append((time.monotonic() - ready) * 1e3)
    return statistics.median(prepare), statistics.median(network)


def browser(width: int, height: int) -> webdriver.Chrome:
    """Chromium without a display."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in (*QUIET, f"--window-size={width},{height}"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))


def looked_at(artefact: str, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The lines of a session that a browser looked at all the time, without the first seconds."""
    command = [sys.executable, "-m", "msmamba", "live", artefact, "demo", "--port", "0", "-o", str(folder)]
    command += ["--seconds", str(options.seconds + 2 * WARM_UP)]
    if options.threads is not None:
        command += ["--threads", str(options.threads)]
    driver = browser(*map(int, options.size.split("x")))
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            driver.get(process.stdout.readline().removeprefix("the page: ").strip())
            process.communicate()
    finally:
        driver.quit()
    lines = [json.loads(line) for line in (folder / "session.jsonl").read_text().splitlines()]
    first = next(at for at, line in enumerate(lines) if line["painted_age_ms"] is not None)
    moments = [np.datetime64(line["taken"][:-6]) for line in lines]
    begins = moments[first] + np.timedelta64(int(1e3 * WARM_UP), "ms")
    ends = begins + np.timedelta64(int(1e3 * options.seconds), "ms")
    return [line for line, at in zip(lines, moments, strict=True) if begins <= at < ends]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("artefact")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--size", default="1280x800")
    options = parser.parse_args()
    prepare, network = alone(options.artefact, options.threads)
    print(f"by itself: resizing {prepare:.1f} ms, network {network:.1f} ms")
    with tempfile.TemporaryDirectory() as folder:
        lines = looked_at(options.artefact, options, Path(folder) / "session")
    painted = [line["painted_age_ms"] for line in lines if line["painted_age_ms"] is not None]
    dropped = sum(line["dropped"] for line in lines)
    taken = (len(lines) + dropped) / options.seconds
    print(
        f"with the page: {taken:.1f} frames/s taken, {len(lines) / options.seconds:.1f} answered, "
        f"{len(painted) / options.seconds:.1f} painted"
    )
    columns = {
        **{step: [line["latency_ms"][step] for line in lines] for step in lines[0]["latency_ms"]},
        "age when handed over": [line["frame_age_ms"] for line in lines],
        "age when painted": painted,
    }
    print(f"{'milliseconds':<24}{'median':>8}{'95th':>8}")
    for name, values in columns.items():
        print(f"{name:<24}{np.median(values):>8.1f}{np.percentile(values, 95):>8.1f}")


if __name__ == "__main__":
    main()
