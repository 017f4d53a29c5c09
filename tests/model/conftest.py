"""A network small enough to train in a test."""

from __future__ import annotations

import pytest

from msmamba.model.networks.microscopic_mamba import Architecture


@pytest.fixture(scope="session")
def small() -> Architecture:
    """Two stages of one block."""
    return Architecture(depths=(1, 1), dims=(32, 64), num_classes=2)
