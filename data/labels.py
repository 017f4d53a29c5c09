"""What can be the names of classes."""

from __future__ import annotations

import re
from typing import Any

_HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")  # a lone surrogate, which JSON can hold and no file can


def are_labels(value: Any) -> bool:
    """Whether a value can be the names of classes: distinct texts, not empty, that UTF-8 can hold."""
    named = isinstance(value, (list, tuple)) and all(isinstance(label, str) and label for label in value)
    return named and 0 < len(value) == len(set(value)) and not any(map(_HALF_A_CHARACTER.search, value))
