"""The hybrid block's native operators under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import msmamba
from msmamba.plugins.selective_scan import cpu as scan

PACKAGE = Path(msmamba.__file__).parent
NATIVE = PACKAGE / "plugins" / "hybrid_block" / "native"
FLAGS = {
    "avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "baseline": [],
}
# Unoptimised: the same accesses, compiled in a quarter of the time.
SANITIZE = ["-std=c++17", "-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def runnable_sets() -> list[str]:
    """The instruction sets that this machine runs, of those that the library holds."""
    best = scan.kernels()
    names = list(FLAGS)
    return names[names.index(best) :]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.skipif(scan.why_unavailable() is not None, reason="the native library is not built")
def test_nothing_is_read_or_written_out_of_bounds(tmp_path: Path) -> None:
    sources = {
        Path(__file__).parent / "hybrid_block_driver.cpp": [f"-I{NATIVE}"],
        NATIVE / "block.cpp": [],
        **{NATIVE / f"block_kernels_{name}.cpp": flags for name, flags in FLAGS.items()},
    }
    objects = [tmp_path / f"{source.stem}.o" for source in sources]
    compiling = [
        subprocess.Popen(["g++", *SANITIZE, *flags, "-Wno-psabi", "-c", str(source), "-o", str(target)])
        for (source, flags), target in zip(sources.items(), objects, strict=True)
    ]
    assert [process.wait() for process in compiling] == [0] * len(objects)
    program = tmp_path / "driver"
    subprocess.run(["g++", *SANITIZE, "-pthread", *objects, "-o", program], check=True)
    result = subprocess.run(
        [program, *runnable_sets()],
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=1"},
        capture_output=True,
        text=True,
    )
    assert (result.stdout, result.stderr, result.returncode) == ("done\n", "", 0)
