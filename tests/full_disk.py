"""A full disk, played by the system's own limit of a file's size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """What a full disk is to a writer: at this size, bytes, the system takes no more."""
    resource = pytest.importorskip("resource", reason="limits a file's size as Unix does")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
