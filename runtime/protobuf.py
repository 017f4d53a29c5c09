"""As much of protobuf's wire format as it takes to look into an ONNX file, and to change its metadata.

A message is a sequence of fields: a varint ``number << 3 | type``, then the value: a varint (type 0), or
bytes after their length (type 2). ONNX has other types in tensors and attributes only, which nobody enters.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

VARINT, LENGTH_DELIMITED = 0, 2

Buffer: TypeAlias = "bytes | memoryview | mmap.mmap"


@dataclass(frozen=True)
class Field:
    """One field of a message, its value not looked at.

    Attributes:
        number: by which the message's type knows it.
        wire_type: `VARINT` or `LENGTH_DELIMITED`.
        start, end: where the value lies in the buffer.
    """

    number: int
    wire_type: int
    start: int
    end: int


def fields(content: Buffer, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """The fields of the message that lies in ``content[start:end]``, those in its fields not.

    Raises:
        EOFError: it ends inside a field, or is not protobuf.
    """
    end = len(content) if end is None else end
    position = start
    while position < end:
        key, position = _varint(content, position, end)
        number, wire_type = key >> 3, key & 7
        first = position
        if wire_type == VARINT:
            _, position = _varint(content, position, end)
        elif wire_type == LENGTH_DELIMITED:
            length, first = _varint(content, position, end)
            position = first + length
        else:
            raise EOFError
        if position > end:
            raise EOFError
        yield Field(number, wire_type, first, position)


def encoded(number: int, value: bytes) -> bytes:
    """A field of bytes, or of a message that is encoded already."""
    return _encoded_varint(number << 3 | LENGTH_DELIMITED) + _encoded_varint(len(value)) + value


def _encoded_varint(value: int) -> bytes:
    content = bytearray()
    while value >= 0x80:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    content.append(value)
    return bytes(content)


def _varint(content: Buffer, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= end or shift > 63:
            raise EOFError
        byte = content[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
