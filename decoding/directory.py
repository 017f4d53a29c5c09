"""TIFF's directories of tags (TIFF 6.0, section 2; BigTIFF), read strictly; EXIF blocks have them too."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

MOST_DIRECTORIES = 100_000
"""Directories that are read of one file: a stack of more pages is no picture to classify."""

_SUB_DIRECTORIES = 330
_BYTES = (1, 2, 7)
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_FRACTIONS = {5: "II", 10: "ii"}
_NUMBERS = {**_INTEGERS, **_FRACTIONS, 11: "f", 12: "d"}


class DirectoryError(ValueError):
    """A directory that is not whole, or a tag that is not what it must be."""


@dataclass(frozen=True)
class Tag:
    """Where the values of one tag lie: their type, how many, and their place in the file."""

    kind: int
    count: int
    offset: int


class Directory:
    """The tags of one picture of a TIFF file. Values are read when they are asked for.

    Attributes:
        order: ``<`` or ``>``, as `struct` has it.
        page: the place among the file's pages, from 0.
        is_sub: it hangs below its page, as a raw picture below its preview, or a pyramid's levels.
    """

    def __init__(self, file: BinaryIO, order: str, tags: dict[int, Tag], page: int, is_sub: bool) -> None:
        self.order = order
        self.page = page
        self.is_sub = is_sub
        self._file = file
        self._tags = tags

    def __contains__(self, tag: int) -> bool:
        return tag in self._tags

    def integers(self, tag: int, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """The values of a tag.

        Raises:
            DirectoryError: it is missing and has no default, or they are no integers or lie outside the file.
        """
        if tag not in self._tags:
            if default is None:
                raise DirectoryError(f"tag {tag} is missing")
            return default
        found = self._tags[tag]
        if found.kind not in _INTEGERS or not found.count:
            raise DirectoryError(f"tag {tag} holds no integers")
        letter = _INTEGERS[found.kind]
        content = self._content(tag, struct.calcsize(letter))
        return struct.unpack(f"{self.order}{found.count}{letter}", content)

    def integer(self, tag: int, default: int | None = None) -> int:
        """The only value of a tag."""
        values = self.integers(tag, None if default is None else (default,))
        if len(values) != 1:
            raise DirectoryError(f"tag {tag} holds {len(values)} values: expected one")
        return values[0]

    def number(self, tag: int) -> float:
        """The only value of a tag that holds a number or a fraction; 0 where it is missing or none.

        Raises:
            DirectoryError: it lies outside the file.
        """
        found = self._tags.get(tag)
        if found is None or found.kind not in _NUMBERS or found.count != 1:
            return 0.0
        letters = f"{self.order}{_NUMBERS[found.kind]}"
        values = struct.unpack(letters, self._content(tag, struct.calcsize(letters)))
        if found.kind in _FRACTIONS:
            return values[0] / values[1] if values[1] else 0.0
        return float(values[0]) if math.isfinite(values[0]) else 0.0

    def content(self, tag: int) -> bytes:
        """The bytes of a tag that holds bytes or text; empty where it is missing."""
        if tag not in self._tags:
            return b""
        if self._tags[tag].kind not in _BYTES:
            raise DirectoryError(f"tag {tag} holds no bytes")
        return self._content(tag, 1)

    def _content(self, tag: int, size: int) -> bytes:
        found = self._tags[tag]
        return read_exactly(self._file, found.offset, found.count * size, f"tag {tag}")


def read_exactly(file: BinaryIO, offset: int, size: int, what: str) -> bytes:
    """``size`` bytes at ``offset``.

    Raises:
        DirectoryError: they lie outside the file. Nothing is reserved for them then.
    """
    if offset < 0 or size < 0 or offset + size > file_size(file):
        raise DirectoryError(f"{what} lies outside the file")
    file.seek(offset)
    return file.read(size)


def file_size(file: BinaryIO) -> int:
    """The size of an open file, in bytes."""
    return file.seek(0, os.SEEK_END)


def directories(file: BinaryIO) -> Iterator[Directory]:
    """Every directory of a file: each page, followed by what hangs below it.

    Raises:
        DirectoryError: one of them is damaged, or they lead round in a circle.
    """
    order, big, offset = _header(file)
    seen: set[int] = set()
    page = 0
    while offset:
        directory, following = _directory(file, order, big, offset, page, False, seen)
        yield directory
        below = list(directory.integers(_SUB_DIRECTORIES, ()))[::-1]
        listed = set(below)  # which writers link with one another, too
        while below:
            sub, after = _directory(file, order, big, below.pop(), page, True, seen)
            yield sub
            deeper = sub.integers(_SUB_DIRECTORIES, ())[::-1]
            listed.update(deeper)
            below += [*([after] if after and after not in listed else []), *deeper]
        offset, page = following, page + 1


def _header(file: BinaryIO) -> tuple[str, bool, int]:
    """The byte order, whether it is a BigTIFF, and where the first directory lies."""
    start = read_exactly(file, 0, 8, "the header")
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None:
        raise DirectoryError("no TIFF header")
    version, offset = struct.unpack(f"{order}HI", start[2:])
    if version == 42:
        return order, False, offset
    if version != 43 or start[4:] != struct.pack(f"{order}HH", 8, 0):
        raise DirectoryError("no TIFF header")
    return order, True, struct.unpack(f"{order}Q", read_exactly(file, 8, 8, "the header"))[0]


def _directory(
    file: BinaryIO, order: str, big: bool, offset: int, page: int, is_sub: bool, seen: set[int]
) -> tuple[Directory, int]:
    """One directory, and where the next one lies (0: nowhere)."""
    if offset in seen:
        raise DirectoryError("its directories lead round in a circle")
    if len(seen) == MOST_DIRECTORIES:
        raise DirectoryError(f"it has more than {MOST_DIRECTORIES:,} directories")
    seen.add(offset)
    number, entry, pointer = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    head = struct.calcsize(f"{order}{number}")
    (count,) = struct.unpack(f"{order}{number}", read_exactly(file, offset, head, "a directory"))
    room = struct.calcsize(pointer)  # values that fit stand in the entry itself
    size = struct.calcsize(f"{order}{entry}") + room
    content = read_exactly(file, offset + head, count * size + room, "a directory")
    tags: dict[int, Tag] = {}
    for place in range(count):
        tag, kind, values = struct.unpack_from(f"{order}{entry}", content, place * size)
        at = offset + head + (place + 1) * size - room
        width = struct.calcsize(f"={_NUMBERS[kind]}") if kind in _NUMBERS else 1
        if (kind in _NUMBERS or kind in _BYTES) and values * width > room:
            (at,) = struct.unpack_from(f"{order}{pointer}", content, (place + 1) * size - room)
        if tag in tags:
            raise DirectoryError(f"tag {tag} stands twice in a directory")
        tags[tag] = Tag(kind, values, at)
    (following,) = struct.unpack_from(f"{order}{pointer}", content, count * size)
    return Directory(file, order, tags, page, is_sub), following
