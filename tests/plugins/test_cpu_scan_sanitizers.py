"""The native scan under the compiler's sanitizers: memory, undefined behaviour and data races."""

from __future__ import annotations

from pathlib import Path

import pytest
from native_builds import KERNEL_FLAGS, PLUGINS, run, sanitized

NATIVE = PLUGINS / "selective_scan" / "native"
FLAGS = ["-O0", "-g", "-ffp-contract=fast", "-Wall", "-Wextra", "-Werror"]
SOURCES = {NATIVE / name: [] for name in ("scan.cpp", "thread_pool.cpp")}
SOURCES |= {NATIVE / f"kernels_{name}.cpp": flags for name, flags in KERNEL_FLAGS.items()}


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_awkward_shapes_run_clean(sanitizers: str, sanitizer_cache: Path) -> None:
    driver = Path(__file__).with_name("cpu_scan_driver.cpp")
    result = run(sanitized(driver, SOURCES, sanitizers, FLAGS, sanitizer_cache))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith(" 0 wrong values\n")
