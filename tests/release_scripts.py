"""The scripts in `release/`, which stand outside the package."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "release"


def names_in(script: str) -> dict[str, Any]:
    """The names that a script defines; scripts import each other as if they were started there."""
    sys.path.insert(0, str(FOLDER))
    try:
        return runpy.run_path(str(FOLDER / script))
    finally:
        sys.path.remove(str(FOLDER))
