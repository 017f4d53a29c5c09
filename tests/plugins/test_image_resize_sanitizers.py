"""The native resize under the compiler's sanitizers: memory, undefined behaviour and data races."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import msmamba
from msmamba.plugins.selective_scan import cpu as scan

NATIVE = Path(msmamba.__file__).parent / "plugins" / "image_resize" / "native"
FLAGS = {
    "avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "baseline": [],
}


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.skipif(scan.why_unavailable() is not None, reason="the native library is not built")
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_nothing_is_read_or_written_out_of_bounds_or_twice(sanitizers: str, tmp_path: Path) -> None:
    names = list(FLAGS)[list(FLAGS).index(scan.kernels()) :]  # those that this machine runs
    flags = [
        "-std=c++17",
        "-O1",
        "-g1",
        f"-fsanitize={sanitizers}",
        "-fno-sanitize-recover=all",
        "-Wno-psabi",
    ]
    sources = {
        Path(__file__).with_name("image_resize_driver.cpp"): [f"-I{NATIVE}"],
        NATIVE / "resize.cpp": [],
        **{NATIVE / f"resize_kernels_{name}.cpp": extra for name, extra in FLAGS.items()},
    }
    objects = [tmp_path / f"{source.stem}.o" for source in sources]
    compiling = [
        subprocess.Popen(["g++", *flags, *extra, "-c", str(source), "-o", str(target)])
        for (source, extra), target in zip(sources.items(), objects, strict=True)
    ]
    assert [process.wait() for process in compiling] == [0] * len(objects)
    program = tmp_path / "driver"
    subprocess.run(["g++", *flags, "-pthread", *objects, "-o", program], check=True)
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1"}
    result = subprocess.run([program, *names], env=environment, capture_output=True, text=True)
    assert (result.stdout, result.stderr, result.returncode) == ("done\n", "", 0)
