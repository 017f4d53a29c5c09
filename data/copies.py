"""Copies: files that hold the same bytes, found without reading most of them; and what they spoil.

Dims: N images.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from ..errors import Note, reason_of
from ..files import open_file, sha256_of
from .splitting import shared_groups

_GLIMPSE = 4096
"""Bytes from the middle of a file that tell most files of one size apart."""


def contents_of(paths: Sequence[Path]) -> list[int]:
    """A number for each file, equal where the bytes are.

    Only files of one size are looked into, and only those that look alike in the middle are read. One that
    cannot be read is told, and no copy of anything: whoever reads it as an image refuses it or leaves it out.
    """
    same, unread = [[*range(len(paths))]], dict[Path, str]()
    for what in (_size, _glimpse, sha256_of):
        same = [alike for group in same for alike in _parted(group, paths, what, unread)]
    if unread:
        ((first, why), *_), count = unread.items(), len(unread)
        said = f"'{first}' cannot be read: {why}, so nobody knows whether it is a copy of another image"
        if count > 1:
            said = f"{count:,} files cannot be read, such as {said}"
        warnings.warn(said, Note, stacklevel=2)
    numbers = list(range(len(paths)))
    for group in same:
        for place in group:
            numbers[place] = group[0]
    return numbers


def notes_on_copies(names: Sequence[str], labels: Sequence[str], contents: Sequence[Hashable]) -> list[str]:
    """Notes on images that occur more than once, and on those that do in several classes.

    Args:
        names: the names of the N images.
        labels: their class names.
        contents: (N,) equal for equal images.
    """
    seen: dict[Hashable, list[int]] = defaultdict(list)
    for place, content in enumerate(contents):
        seen[content].append(place)
    copies = [same for same in seen.values() if len(same) > 1]
    if not copies:
        return []
    example = " and ".join(names[place] for place in copies[0][:2])
    notes = [f"{len(copies):,} images occur more than once: {example}"]
    contrary = [same for same in copies if len({labels[place] for place in same}) > 1]
    if contrary:
        first = contrary[0]
        other = next(place for place in first if labels[place] != labels[first[0]])
        example = " and ".join(f"{names[place]} ({labels[place]})" for place in (first[0], other))
        notes.append(f"{len(contrary):,} images occur in several classes: {example}")
    return notes


def note_on_leaks(what: str, values: Sequence[Hashable], splits: Sequence[str], named: bool) -> list[str]:
    """Notes on groups, or images by content, that are in more than one split; none where there are none.

    Args:
        what: they are, in the plural.
        values: (N,) the group or content of each image.
        splits: (N,) the split of each.
        named: whether a value says something to a reader.
    """
    shared = shared_groups(values, splits)
    if not shared:
        return []
    first, names = next(iter(shared.items()))
    example = f", {first} for one in {' and '.join(names)}" if named else ""
    return [f"{len(shared):,} {what} are in more than one split{example}: figures on this split are too high"]


def _parted(
    group: Iterable[int], paths: Sequence[Path], what: Callable[[Path], Hashable], unread: dict[Path, str]
) -> list[list[int]]:
    """The places that agree in something with another one. ``unread`` gets what cannot be read, and why."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for place in group:
        try:
            found[what(paths[place])].append(place)
        except OSError as error:
            unread[paths[place]] = reason_of(error)
    return [places for places in found.values() if len(places) > 1]


def _size(path: Path) -> Hashable:
    return path.stat().st_size or path  # an empty file is no copy of anything


def _glimpse(path: Path) -> bytes:
    with open_file(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size // 2 - _GLIMPSE // 2))
        return hashlib.blake2b(file.read(_GLIMPSE), digest_size=16).digest()
