"""What the tests of the compiled scan share: each of its instruction sets, and settings given back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scan_cases import KERNELS

from msmamba.plugins.selective_scan import cpu


@pytest.fixture
def default_settings() -> Iterator[None]:
    """Leaves the process with the kernels and threads it had."""
    before = cpu.kernels(), cpu.threads()
    yield
    cpu.select_kernels(before[0])
    cpu.set_threads(before[1])


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest, default_settings: None) -> str:
    """The compiled scan with the kernels of one instruction set."""
    name: str = request.param
    try:
        cpu.select_kernels(name)
    except ValueError:
        pytest.skip(f"this machine has no {name}")
    return name


@pytest.fixture(scope="session")
def sanitizer_cache(pytestconfig: pytest.Config) -> Path:
    """Where programs under sanitizers are kept between runs; named by their content."""
    cache = pytestconfig.cache
    assert cache is not None
    return cache.mkdir("sanitizers")
