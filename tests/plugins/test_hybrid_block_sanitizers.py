"""The hybrid block's native operators under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from native_builds import DOT_PRODUCT_FLAGS, KERNEL_FLAGS, PLUGINS, run, runnable_sets, sanitized

from msmamba.plugins.selective_scan import cpu as scan

NATIVE = PLUGINS / "hybrid_block" / "native"
# Unoptimised: the same accesses, compiled in a quarter of the time.
FLAGS = ["-O0", "-g1"]


@pytest.mark.skipif(scan.why_unavailable() is not None, reason="the native library is not built")
def test_nothing_is_read_or_written_out_of_bounds(sanitizer_cache: Path) -> None:
    sources = {NATIVE / "block.cpp": []}
    kernels = KERNEL_FLAGS | DOT_PRODUCT_FLAGS
    sources |= {NATIVE / f"block_kernels_{name}.cpp": flags for name, flags in kernels.items()}
    driver = Path(__file__).with_name("hybrid_block_driver.cpp")
    program = sanitized(driver, sources, "address,undefined", FLAGS, sanitizer_cache)
    result = run(program, *runnable_sets())
    assert (result.stdout, result.stderr, result.returncode) == ("done\n", "", 0)
