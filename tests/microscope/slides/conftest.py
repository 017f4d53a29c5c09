"""A slide that several modules read."""

from __future__ import annotations

from pathlib import Path

import pytest
from slide_files import HALF_A_MICRON, tissue, write_tiff


@pytest.fixture(scope="session")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tissue` as a plain tiled pyramid of three levels, half a micron a pixel; not to be changed."""
    return write_tiff(tmp_path_factory.mktemp("slides") / "pyramid.tif", tissue(), levels=3, **HALF_A_MICRON)
