"""The native resize under the compiler's sanitizers: memory, undefined behaviour and data races."""

from __future__ import annotations

from pathlib import Path

import pytest
from native_builds import KERNEL_FLAGS, PLUGINS, run, runnable_sets, sanitized

from msmamba.plugins.selective_scan import cpu as scan

NATIVE = PLUGINS / "image_resize" / "native"
FLAGS = ["-O1", "-g1"]


@pytest.mark.skipif(scan.why_unavailable() is not None, reason="the native library is not built")
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_nothing_is_read_or_written_out_of_bounds_or_twice(sanitizers: str, sanitizer_cache: Path) -> None:
    sources = {NATIVE / "resize.cpp": []}
    sources |= {NATIVE / f"resize_kernels_{name}.cpp": flags for name, flags in KERNEL_FLAGS.items()}
    driver = Path(__file__).with_name("image_resize_driver.cpp")
    result = run(sanitized(driver, sources, sanitizers, FLAGS, sanitizer_cache), *runnable_sets())
    assert (result.stdout, result.stderr, result.returncode) == ("done\n", "", 0)
