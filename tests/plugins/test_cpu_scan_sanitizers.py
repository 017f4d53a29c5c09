"""The native scan under the compiler's sanitizers: memory, undefined behaviour and data races."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "plugins" / "selective_scan" / "native"
DRIVER = Path(__file__).with_name("cpu_scan_driver.cpp")
SOURCES = [NATIVE / name for name in ("scan.cpp", "thread_pool.cpp")]
FLAGS = ["-std=c++17", "-O0", "-g", "-ffp-contract=fast", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
KERNEL_FLAGS = {"kernels_baseline.cpp": []}
if platform.machine() in ("x86_64", "AMD64"):
    KERNEL_FLAGS["kernels_avx2.cpp"] = ["-mavx2", "-mfma", "-mf16c"]
    KERNEL_FLAGS["kernels_avx512.cpp"] = [
        *KERNEL_FLAGS["kernels_avx2.cpp"],
        *("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq"),
    ]


def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found is None:
        pytest.skip("there is no C++ compiler on this machine")
    return found


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {
        "ASAN_OPTIONS": "detect_leaks=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PATH": os.environ["PATH"],
    }
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_awkward_shapes_run_clean(sanitizers: str, tmp_path: Path) -> None:
    flags = [*FLAGS, f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", f"-I{NATIVE}"]
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    if run([compiler(), *flags, str(probe), "-o", str(tmp_path / "probe")]).returncode != 0:
        pytest.skip(f"{compiler()} has no -fsanitize={sanitizers}")

    units = [(DRIVER, []), *((source, []) for source in SOURCES)]
    units += [(NATIVE / name, extra) for name, extra in KERNEL_FLAGS.items()]
    objects = []
    for source, extra in units:
        objects.append(str(tmp_path / f"{source.stem}.o"))
        built = run([compiler(), *flags, *extra, "-c", str(source), "-o", objects[-1]])
        assert built.returncode == 0, built.stderr
    program = str(tmp_path / "driver")
    linked = run([compiler(), *flags, *objects, "-pthread", "-o", program])
    assert linked.returncode == 0, linked.stderr
    result = run([program])
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith(" 0 wrong values\n")
