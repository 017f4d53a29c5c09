"""What can be the names of classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, InputError, some

_HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")  # a lone surrogate, which JSON can hold and no file can


def are_labels(value: Any) -> bool:
    """Whether a value can be the names of classes: distinct texts, not empty, that UTF-8 can hold."""
    named = isinstance(value, (list, tuple)) and all(isinstance(label, str) and label for label in value)
    return named and 0 < len(value) == len(set(value)) and not any(map(_HALF_A_CHARACTER.search, value))


def as_labels(labels: Any) -> tuple[str, ...]:
    """What somebody gave as the names of classes.

    Raises:
        InputError: it cannot be them.
    """
    found = tuple(labels) if isinstance(labels, Iterable) and not isinstance(labels, str) else ()
    if not are_labels(found):
        raise InputError(f"the labels are {labels!r}: expected a list of distinct names, one for each class")
    return found


def labels_as_asked(asked: Sequence[str] | None, said: Sequence[str] | None) -> str:
    """What is to be said of class names that were given in place of the model's; empty if they are those.

    Args:
        asked: the names that were given, if any.
        said: the model's, if it says them.
    """
    if asked is None or said is None or tuple(asked) == tuple(said):
        return ""
    return f"the classes are called {some(asked)}, as asked, not {some(said)}"


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
