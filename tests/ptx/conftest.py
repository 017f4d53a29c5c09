"""Fixtures of the emulator's tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ptx_cache(pytestconfig: pytest.Config) -> Path:
    """Where kernels compiled for the emulator are kept between runs; named by their content."""
    cache = pytestconfig.cache
    assert cache is not None
    return cache.mkdir("ptx")
