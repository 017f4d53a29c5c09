"""What every target has."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Protocol

from seeds import Seeds


class Target(Protocol):
    """One kind of input and the door that it comes through."""

    inputs: int
    """How many are tried at a scale of 1."""

    def __init__(self, seeds: Seeds) -> None:
        """Reads the good files."""

    def make(self, generator: random.Random, folder: Path) -> Path:
        """Writes an input into an empty folder; what to open."""

    def open(self, path: Path) -> object:
        """Takes it through the door; raises an `MsmambaError` where it is refused."""


def written(path: Path, content: bytes) -> Path:
    """Writes a file and gives its path."""
    path.write_bytes(content)
    return path
