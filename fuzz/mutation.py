"""Good input turned into bad: by bytes, and by what JSON and csv consist of. A generator decides it all."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

TELLING = [
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"\n",
    b'"',
    b"{",
]
"""Bytes that lengths, signs and ends of texts are made of."""

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3.5, 1e308, -1e308, 2**31, 2**63, 10**400, float("nan"), float("inf")),
    *("", "x", "\0", "a\nb", "../../etc/passwd", "/dev/zero", "\ud800", "é" * 300, "1e5", "NaN", "=1+1"),
    *([], [[]], [0], [None], ["a", "a"], {}, {"": None}, {"a": {"a": {"a": []}}}),
]
"""What stands where something else was expected."""


def mutated(content: bytes, generator: random.Random) -> bytes:
    """A few changes to bytes: flipped, replaced, cut, repeated, moved."""
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 4, 16))):
        place = _place(len(changed), generator)
        length = min(len(changed) - place, generator.choice((1, 2, 4, 8, 64, 1024)))
        match generator.randrange(8):
            case 0 | 1 if changed:
                changed[place % len(changed)] ^= 1 << generator.randrange(8)
            case 2 if changed:
                changed[place : place + length] = generator.randbytes(length)
            case 3:
                changed[place:place] = generator.choice(TELLING)
            case 4:
                told = generator.choice(TELLING)
                changed[place : place + len(told)] = told
            case 5:
                del changed[place : place + length]
            case 6:
                changed[place:place] = changed[place : place + length] * generator.choice((1, 2, 16))
            case 7:
                del changed[place:]
    return bytes(changed)


def _place(length: int, generator: random.Random) -> int:
    """Somewhere: often in the head, where formats say what follows."""
    near = generator.random() < 0.5
    return generator.randrange(min(length, 512) + 1) if near else generator.randrange(length + 1)


def mutated_json(document: Any, generator: random.Random) -> bytes:
    """A JSON document with values, keys or types exchanged; now and then broken as text."""
    document = copy.deepcopy(document)
    for _ in range(generator.choice((1, 1, 2, 5))):
        holders = list(_holders(document))
        if not holders:
            break
        holder, key = generator.choice(holders)
        match generator.randrange(6):
            case 0 | 1 | 2:
                holder[key] = copy.deepcopy(generator.choice(VALUES))
            case 3:
                del holder[key]
            case 4:
                holder[key] = nested(generator.choice((10, 200, 3000, 100_000)))
            case 5:
                other, there = generator.choice(holders)
                holder[key] = copy.deepcopy(other[there])
    if document is not None and generator.random() < 0.02:
        document = copy.deepcopy(generator.choice(VALUES))
    text = _dumped(document).encode("utf-8", "surrogatepass")
    return mutated(text, generator) if generator.random() < 0.25 else text


class nested:  # stands for a value
    """Lists in lists, so many that no reader may follow them by calling itself."""

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def __deepcopy__(self, memo: dict[int, Any]) -> nested:
        return self


def _dumped(document: Any) -> str:
    marks: list[nested] = []

    def default(value: Any) -> Any:
        marks.append(value)
        return f"nested {len(marks) - 1}"

    text = json.dumps(document, default=default)
    for number, value in enumerate(marks):
        text = text.replace(f'"nested {number}"', "[" * value.depth + "]" * value.depth, 1)
    return text


def _holders(document: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    rest = [document]
    while rest:
        value = rest.pop()
        items = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for key, inner in items:
            found.append((value, key))
            rest.append(inner)
    return found


def mutated_table(text: str, generator: random.Random) -> bytes:
    """A csv file with cells, rows or the head exchanged; now and then broken as bytes."""
    rows = [line.split(",") for line in text.splitlines()]
    for _ in range(generator.choice((1, 1, 2, 5))):
        row = generator.choice(rows)
        match generator.randrange(7):
            case 0 | 1 | 2 if row:
                row[generator.randrange(len(row))] = str(generator.choice(VALUES))
            case 3:
                rows.remove(row)
            case 4:
                row.append("more")
            case 5 if row:
                row.pop()
            case 6:
                rows.insert(generator.randrange(len(rows) + 1), list(generator.choice(rows or [[""]])))
        rows = rows or [[]]
    end = generator.choice(("\n", "\n", "\r\n", "\r"))
    content = end.join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")
    return mutated(content, generator) if generator.random() < 0.25 else content
