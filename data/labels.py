"""What can be the names of classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, some

_HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")  # a lone surrogate, which JSON can hold and no file can


def are_labels(value: Any) -> bool:
    """Whether a value can be the names of classes: distinct texts, not empty, that UTF-8 can hold."""
    named = isinstance(value, (list, tuple)) and all(isinstance(label, str) and label for label in value)
    return named and 0 < len(value) == len(set(value)) and not any(map(_HALF_A_CHARACTER.search, value))


def check_labels(root: Path, labels: Sequence[str]) -> None:
    """Refuses names of folders that no checkpoint could keep as classes.

    Args:
        root: the data, for the message.
        labels: class names.

    Raises:
        DataError: names are no UTF-8; all of them are named.
    """
    if strange := [ascii(label) for label in labels if _HALF_A_CHARACTER.search(label)]:
        raise DataError(f"{root}: names of classes have to be UTF-8: rename the folder {some(strange)}")
