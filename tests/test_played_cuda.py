"""`benchmarks/played_cuda.py`: the code around kernels runs through on a CUDA that the processor plays."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytest.importorskip("cuda.bindings.driver")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("nm") or not shutil.which("cc"),
    reason="needs Linux, nm and a C compiler",
)


def test_launches_through_the_driver_are_captured_and_replayed(tmp_path: Path) -> None:
    """The step `launch` of the device check: cuda-bindings, contexts, streams, graphs and memory."""
    log = tmp_path / "log"
    played = [sys.executable, BENCHMARKS / "played_cuda.py", "--log", log, "--"]
    check = [
        sys.executable,
        BENCHMARKS / "device_check.py",
        "-o",
        tmp_path / "out",
        "--steps",
        "machine,launch",
    ]
    done = subprocess.run([*played, *check], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    machine, launch = json.loads((tmp_path / "out" / "device.json").read_text())
    assert [machine["outcome"], launch["outcome"]] == ["done", "done"], launch["printed"]
    found = {row["what"]: row["found"] for row in machine["rows"]}
    assert (found["GPU"], found["compute capability"], found["multiprocessors"]) == ("Played GPU", "9.0", 132)
    assert [row["bytes_lost_in_10_000_runs"] for row in launch["rows"]] == [0, 0]
    lines = log.read_text().splitlines()
    # Once plain and once captured, of each type, before anything is timed.
    assert lines[:7] == [
        *["kernel chunk_state", "kernel scan", "kernel sum_directions", "capture begins"],
        *["kernel chunk_state", "kernel scan", "kernel sum_directions"],
    ]
    assert lines[7] == "capture ends: 3 launches"
    assert lines.count("capture begins") == 2
    assert lines.count("graph launched") > 20_000
    assert not [line for line in lines if line.startswith("in a capture")]
