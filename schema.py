"""What our own files hold, field by field: read within bounds, checked before anything is computed from them.

A file on disk may be anybody's, or half of itself. Its reader parses it (`parsed`), describes what it expects
as a `Kind`, and raises one error that names every field which is something else (`Kind.problems`).

    _RUN = record({"epochs": whole(1), "split": one_of("val", "test")}, optional={"note": TEXT})
    if problems := _RUN.problems(parsed(content)): raise …
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

DEEPEST = 64
"""Lists and objects in one another that any of our files holds, by far."""
LARGEST_WHOLE = 2**63 - 1

_SHOWN = 60


def parsed(content: str | bytes, *, names: bool = False) -> Any:
    """The value of JSON that holds nothing that later steps stumble over.

    Args:
        content: text, or UTF-8.
        names: whether it may hold names of files, which need not be UTF-8 and are lone surrogates then.

    Raises:
        ValueError: it is no JSON, or nested deeper than `DEEPEST`, or holds numbers that are not finite or
            too large, or text that is no Unicode.
    """
    try:
        text = content
        if isinstance(content, bytes):
            text = content.decode("utf-8-sig", "surrogateescape" if names else "strict")
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"it is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}"
        ) from error
    except RecursionError as error:
        raise ValueError("it is nested deeper than any of our files") from error
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    level = [("", value)]
    for _ in range(DEEPEST):
        if not level:
            return value
        level = [inner for name, each in level for inner in _inside(name, each, names)]
    raise ValueError("it is nested deeper than any of our files")


def as_json(value: Any, *, indent: int | None = None) -> str:
    """JSON as its standard has it, which knows no number that is not finite: these become null.

    Args:
        value: plain values, and tuples.
        indent: blanks a level; None: one line.
    """
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _inside(name: str, value: Any, names: bool) -> list[tuple[str, Any]]:
    """What a value holds, by name; raises ValueError where it is one that is not wanted."""
    wrong = ""
    if isinstance(value, dict):
        keys = [(f"a name in '{name}'", key) for key in value]
        return keys + [(f"{name}.{key}" if name else key, each) for key, each in value.items()]
    if isinstance(value, list):
        return [(name, each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        wrong = "no finite number"
    elif isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        wrong = "a number of more than 64 bits"
    elif isinstance(value, str):
        try:
            value.encode("utf-8", "surrogateescape" if names else "strict")
        except UnicodeEncodeError:
            wrong = "no Unicode text"
    if wrong:
        raise ValueError(f"'{ascii(name)[1:-1]}' is {ascii(shortened(value))[1:-1]}, which is {wrong}")
    return []


@dataclass(frozen=True)
class Kind:
    """What a value has to be."""

    words: str
    """What is expected, for a message."""
    holds: Callable[[Any], bool]
    fields: Mapping[str, Kind] | None = None
    """The kinds of the fields, where it is an object with fields of its own."""
    optional: frozenset[str] = frozenset()
    """Names of the fields that may be missing."""

    def problems(self, value: Any, name: str = "") -> list[str]:
        """Every way in which a value is something else, in the order of the fields; none where it fits.

        Args:
            value: from JSON, or from a dataclass.
            name: what messages call the value.
        """
        if self.fields is None or not isinstance(value, dict):
            found = f"'{name}' is" if name else "it is"
            return [] if self.holds(value) else [f"{found} {shortened(value)}, expected {self.words}"]
        return [
            problem
            for field, kind in self.fields.items()
            for problem in (
                kind.problems(value[field], f"{name}.{field}" if name else field)
                if field in value
                else []
                if field in self.optional
                else [f"'{name}.{field}' is missing" if name else f"'{field}' is missing"]
            )
        ]


def shortened(value: Any) -> str:
    """A value in a message."""
    if isinstance(value, (list, dict, tuple)) and len(value) > _SHOWN:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value):,}"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python writes, or deep nesting
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def is_whole(value: Any, least: int = 0, most: int = LARGEST_WHOLE) -> bool:
    """Whether a value is a whole number between two; a truth value is none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    """Whether a value is a finite number between two; a truth value is none."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) < math.inf
        and least <= value <= most
    )


def whole(least: int = 0, most: int = LARGEST_WHOLE) -> Kind:
    """A whole number."""
    above = f"of at least {least}" if most == LARGEST_WHOLE else f"from {least} to {most}"
    return Kind(f"a whole number {above}", lambda value: is_whole(value, least, most))


def number(least: float = -math.inf, most: float = math.inf) -> Kind:
    """A finite number."""
    between = "" if (least, most) == (-math.inf, math.inf) else f" from {least:g} to {most:g}"
    return Kind(f"a finite number{between}", lambda value: is_number(value, least, most))


def one_of(*values: Any) -> Kind:
    """One of a few values."""
    return Kind(f"one of {', '.join(map(str, values))}", lambda value: any(value == each for each in values))


def listed(kind: Kind, least: int = 0, most: int | None = None) -> Kind:
    """A list of as many values as that."""
    count = f"{least}" if most == least else f"at least {least}" if most is None else f"{least} to {most}"
    return Kind(
        f"a list of {count} ({kind.words} each)",
        lambda value: (
            isinstance(value, (list, tuple))
            and least <= len(value)
            and (most is None or len(value) <= most)
            and all(map(kind.holds, value))
        ),
    )


def by_name(kind: Kind) -> Kind:
    """An object of any names with values of one kind."""
    return Kind(
        f"an object ({kind.words} each)",
        lambda value: (
            isinstance(value, dict)
            and all(isinstance(name, str) and kind.holds(each) for name, each in value.items())
        ),
    )


def maybe(kind: Kind) -> Kind:
    """A value or null."""
    return Kind(
        f"{kind.words}, or null", lambda value: value is None or kind.holds(value), kind.fields, kind.optional
    )


def record(required: Mapping[str, Kind], optional: Mapping[str, Kind] | None = None) -> Kind:
    """An object with fields of its own; others are ignored."""
    fields = {**required, **(optional or {})}
    kind = Kind("an object", lambda value: False, fields, frozenset(optional or ()))
    return Kind(
        kind.words, lambda value: isinstance(value, dict) and not kind.problems(value), fields, kind.optional
    )


TEXT = Kind("a text", lambda value: isinstance(value, str))
NAME = Kind("a text that is not empty", lambda value: isinstance(value, str) and bool(value))
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
SHA256 = Kind(
    "a SHA-256",
    lambda value: isinstance(value, str) and len(value) == 64 and not value.strip("0123456789abcdef"),
)
CHANNELS = Kind("three finite numbers", listed(number(-1e6, 1e6), 3, 3).holds)
"""A mean for each of R, G and B; means of values in [0, 1] are far from these bounds."""
SPREADS = Kind("three numbers above zero", listed(number(1e-6, 1e6), 3, 3).holds)
"""A deviation for each of R, G and B."""
LABELS = Kind(
    "distinct names, at least one",
    lambda value: (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(map(NAME.holds, value))
        and len(set(value)) == len(value)
    ),
)
"""Class names."""
