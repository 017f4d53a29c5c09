"""What the tests of the compiled scan share: each of its instruction sets, and settings given back."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest
from native_builds import shared_library
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


@pytest.fixture(scope="session")
def driver_file(pytestconfig: pytest.Config) -> Path:
    """The played driver, compiled once."""
    cache = pytestconfig.cache
    assert cache is not None
    return shared_library(Path(__file__).with_name("played_cuda.cpp"), cache.mkdir("played"))


@pytest.fixture
def driver(driver_file: Path) -> Iterator[ctypes.CDLL]:
    """The played driver of a GPU of compute capability 8.7, which must not be misused."""
    driver = ctypes.CDLL(str(driver_file))
    driver.played_log.restype = driver.played_problem.restype = ctypes.c_char_p
    driver.played_buffer.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int]
    driver.played_reset(87, 1)
    yield driver
    assert driver.played_problem() == b""
    assert driver.played_allocations() == 0, "memory of the GPU is left behind"
