"""What `save_checkpoint` writes beside the tensors, and whether a file's metadata is that."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...data.coverage import COVERAGE
from ...data.labels import are_labels
from ...data.seen import SEEN
from ...errors import CheckpointError
from ...images import FULL_WHITE, LEAST_WHITE, MAX_SIZE, are_deviations, are_means, is_image_size
from ...resize import RULES
from ...schema import is_whole

FORMAT_VERSION = 1


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


# For every field: what is expected, in words, and whether a value is that.
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "format_version": (f"{FORMAT_VERSION}", lambda value: type(value) is int and value == FORMAT_VERSION),
    "network": ("a name", lambda value: isinstance(value, str) and value != ""),
    "architecture": ("an object", lambda value: isinstance(value, dict)),
    "labels": ("distinct names, at least one", are_labels),
    "image_size": (f"1 to {MAX_SIZE} pixels", is_image_size),
    "mean": ("three finite numbers", are_means),
    "std": ("three numbers above zero", are_deviations),
    "resize": (f"one of {', '.join(RULES)}", lambda value: value in tuple(RULES)),
    "white_level": (
        f"a whole number from {LEAST_WHITE} to {FULL_WHITE}",
        lambda value: is_whole(value, LEAST_WHITE, FULL_WHITE),
    ),
    "covers": ("the least, median and most pixels and microns of training images", COVERAGE.holds),
    "versions": ("package names with versions", _is_texts),
    "seen": (SEEN.words, SEEN.holds),
}
_REQUIRED = ("labels", "image_size", "mean", "std")  # earlier files lack some of the others


def problems_of(description: Mapping[str, Any]) -> list[str]:
    """Every way in which a description is not one; fields that are not known count for nothing."""
    problems = [f"'{name}' is missing" for name in _REQUIRED if name not in description]
    for name, (expected, holds) in _RULES.items():
        if name in description and not holds(description[name]):
            found = repr(description[name])
            problems.append(
                f"'{name}' is {found if len(found) <= 60 else f'{found[:57]}...'}, expected {expected}"
            )
    return problems


def read_description(text: str, path: Path) -> dict[str, Any]:
    """The description in a file's metadata.

    Raises:
        CheckpointError: it was made by a newer msmamba, or is no description; every mismatch is named.
    """
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: nested for malice
        raise CheckpointError(f"{path}: its metadata is not JSON: {error}") from error
    if not isinstance(description, dict):
        raise CheckpointError(f"{path}: its metadata holds no JSON object")
    version = description.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format {version}, this msmamba reads up to {FORMAT_VERSION}: upgrade msmamba"
        )
    problems = problems_of(description)
    if problems:
        raise CheckpointError(
            f"{path}: its metadata is not what save_checkpoint writes: {'; '.join(problems)}"
        )
    return description
