"""Every image read once: its checksum, size and channel sums, in threads, and written down as it goes.

After a kill, what stands in the journal is not done again: a file counts as the one that was read when its
size and time of change are the same.

Dims: H W pixels of an image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import ImageError, reason_of
from ...files import lines_of, sha256_of
from ...images import FULL_WHITE, load_image

JOURNAL = "journal.jsonl"

_BLOCK_PIXELS = 1 << 20
_IMAGES_A_THREAD = 16
"""How many images are read between two writes of the journal."""

_Key = tuple[str, int, int]


@dataclass(frozen=True)
class Examined:
    """What is known of an image file once it has been read."""

    sha256: str
    size: int
    """Bytes."""
    width: int
    height: int
    sums: tuple[int, int, int]
    """Sums of the values of each channel."""
    squares: tuple[int, int, int]
    """Sums of the squares of those values."""
    largest: int | None = None
    """The largest value of a 16-bit image."""
    significant_bits: int | None = None
    """How many of 16 bits the file says it uses."""
    notes: tuple[str, ...] = ()
    """What reading had to decide."""


def examine(
    root: Path,
    origins: Sequence[str],
    folder: Path,
    *,
    threads: int,
    white_level: int = FULL_WHITE,
    skip_bad: bool = False,
    advance: Callable[[int, int], None] = lambda done, images: None,
) -> tuple[dict[str, Examined], dict[str, str]]:
    """Reads image files, those aside that an earlier attempt has read.

    Args:
        root: the folder that the paths begin at.
        origins: their paths below it.
        folder: where the journal is, or will be.
        threads: how many images are read at once.
        white_level: by which 16-bit images are read.
        skip_bad: go on after an image that cannot be read.
        advance: called with the images done and all images.

    Returns:
        What is known of the images, and of those that cannot be read the reason, both by path below ``root``.

    Raises:
        ImageError: an image cannot be read; the message names it.
    """
    known = _Journal(folder / JOURNAL, root, white_level)
    found: dict[str, Examined] = {}
    bad: dict[str, str] = {}
    todo = []
    for origin in origins:
        if (earlier := known.get(_key(root, origin))) is not None:
            found[origin] = earlier
        else:
            todo.append(origin)
    advance(len(found), len(origins))
    with ThreadPoolExecutor(threads) as pool, known:
        remaining = iter(todo)
        while chunk := list(islice(remaining, threads * _IMAGES_A_THREAD)):
            # Before they are read: one that is replaced meanwhile is then read again the next time.
            keys = [_key(root, origin) for origin in chunk]
            results = pool.map(partial(_examined, white_level), [root / origin for origin in chunk])
            for origin, key, result in zip(chunk, keys, results, strict=True):
                if isinstance(result, Examined):
                    known.add(key, result)
                    found[origin] = result
                else:
                    bad[origin] = str(result)
            known.flush()
            if bad and not skip_bad:
                raise ImageError(
                    f"{next(iter(bad.values()))}: mend or remove it and give the same command again, which "
                    "goes on from there; or leave such images out with --skip-bad"
                )
            advance(len(found) + len(bad), len(origins))
    return found, bad


class _Journal:
    """A line for each image of this source that was read; a last one that a kill cut off does not count."""

    def __init__(self, path: Path, root: Path, white_level: int) -> None:
        # Sums differ by white level: what was read by one is of no use to another.
        self._path = path if white_level == FULL_WHITE else path.with_suffix(f".{white_level}{path.suffix}")
        self._header = json.dumps({"source": str(root), "of": [each.name for each in fields(Examined)]})
        self._known = dict(self._read())
        self._file: Any = None

    def get(self, key: _Key) -> Examined | None:
        return self._known.get(key)

    def __enter__(self) -> _Journal:
        # Written anew, so that what comes next never stands behind half a line.
        self._file = self._path.open("w", encoding="utf-8", errors="surrogateescape")
        self._file.write(self._header + "\n")
        for key, image in self._known.items():
            self.add(key, image)
        self.flush()
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, key: _Key, image: Examined) -> None:
        self._file.write(json.dumps([*key, *vars(image).values()], ensure_ascii=False) + "\n")

    def flush(self) -> None:
        self._file.flush()

    def _read(self) -> Iterator[tuple[_Key, Examined]]:
        if not self._path.is_file():
            return
        with suppress(OSError), self._path.open(encoding="utf-8", errors="surrogateescape") as file:
            lines = lines_of(file)
            if next(lines, "") != self._header + "\n":
                return
            for line in lines:
                try:
                    origin, size, changed, sha256, _, width, height, sums, squares, *more = json.loads(line)
                    largest, bits, notes = more
                    sizes = sha256, size, width, height, tuple(sums), tuple(squares)
                    yield (origin, size, changed), Examined(*sizes, largest, bits, tuple(notes))
                except (ValueError, TypeError):
                    return


def _key(root: Path, origin: str) -> _Key:
    try:
        status = (root / origin).stat()
    except OSError:
        return origin, -1, -1
    return origin, status.st_size, status.st_mtime_ns


def _examined(white_level: int, path: Path) -> Examined | ImageError:
    try:
        image = load_image(path, white_level=white_level)
        digest, size = sha256_of(path), path.stat().st_size
    except ImageError as error:
        return error
    except OSError as error:
        return ImageError(f"'{path}' cannot be read: {reason_of(error)}")
    pixels = image.pixels
    height, width, _ = pixels.shape
    counts = value_counts(pixels)
    values = np.arange(256)
    red, green, blue = (counts @ values).tolist()
    red_squares, green_squares, blue_squares = (counts @ values**2).tolist()
    return Examined(
        digest,
        size,
        width,
        height,
        (red, green, blue),
        (red_squares, green_squares, blue_squares),
        image.largest,
        image.significant_bits,
        image.notes,
    )


def value_counts(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """How often each value occurs in each channel: (…, channels) to (channels, 256)."""
    channels = pixels.shape[-1]
    flat = pixels.reshape(-1, channels)
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(flat), _BLOCK_PIXELS):  # a block, because counting widens the values
        for channel in range(channels):
            block = flat[start : start + _BLOCK_PIXELS, channel]
            counts[channel] += np.bincount(block, minlength=256)
    return counts
