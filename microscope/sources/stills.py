"""Image files as frames: those that are there, and those that come into a folder."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ...data.finding import Passed, images_below
from ...data.scale import scale_of
from ...errors import DataError, ImageError, SourceError
from ...images import MAX_PIXELS, load_image
from .frame import Frame

_RESTLESS = 10  # times the rest that a file may change without one before it is told of
_POLL = 0.1  # seconds between two looks at a folder; polling works on network drives, too


class _Stamp(NamedTuple):
    """By what a file that is still being written is known."""

    changed: int
    size: int


class Stills:
    """Image files, one after the other, once."""

    endless = False
    keeps = True
    stalls_after: float | None = None

    def __init__(self, name: str, paths: Sequence[Path], white_level: int) -> None:
        self.name = name
        self._paths = paths
        self._white_level = white_level

    def frames(self) -> Iterator[Frame | ImageError | None]:
        """A frame for each file, or why there is none."""
        number = 0
        for path in self._paths:
            item = _frame_of(path, number, self._white_level)
            number += isinstance(item, Frame)
            yield item


class Watched:
    """The images that come into a folder, or below it, from now on; those that are there are passed over.

    A file is taken once its size and time have rested, so that nobody reads half of it, and again when it
    is written again. Reading goes on where it was when the folder went away and came back.
    """

    endless = True
    keeps = True
    stalls_after: float | None = None

    def __init__(self, folder: Path, white_level: int, rest: float = 0.5) -> None:
        """A folder to watch.

        Args:
            folder: may be on a network drive.
            white_level: the value of white in 16-bit images.
            rest: seconds without a change after which a file counts as whole.
        """
        self.name = f"watch:{folder}"
        self._folder = folder
        self._white_level = white_level
        self._rest = rest
        self._taken: dict[Path, _Stamp] | None = None

    def frames(self) -> Iterator[Frame | ImageError | None]:
        """A frame for each file that has come to rest, the one that rested first before the others."""
        if self._taken is None:
            self._taken = self._look()
        resting: dict[Path, tuple[_Stamp, float]] = {}
        restless: dict[Path, float] = {}  # since when it changes
        number = 0
        while True:
            there, now = self._look(), time.monotonic()
            self._taken = {path: stamp for path, stamp in self._taken.items() if path in there}
            before, resting = resting, {}
            for path, stamp in there.items():
                if self._taken.get(path) != stamp:
                    known, since = before.get(path, (None, now))
                    resting[path] = (stamp, since if known == stamp else now)
            restless = {path: restless.get(path, now) for path in resting}
            ready = [path for path, (_, since) in resting.items() if now - since >= self._rest]
            for path in sorted(ready, key=lambda path: (there[path].changed, path)):
                self._taken[path] = there[path]
                item = _frame_of(path, number, self._white_level)
                if _stamp_of(path) not in (there[path], None):  # half of one picture and half of the next
                    continue  # it is taken when it rests again
                number += isinstance(item, Frame)
                yield item
            for path in restless.keys() - {*ready}:
                if now - restless[path] >= _RESTLESS * self._rest:
                    restless[path] = math.inf  # told once
                    yield ImageError(
                        f"'{path}' is written to all the time: it is taken once it rests for "
                        f"{self._rest:g} s, so have it written less often, or each picture under its own name"
                    )
            if not ready:
                yield None
                time.sleep(_POLL)

    def _look(self) -> dict[Path, _Stamp]:
        """The images that are there, but for empty ones.

        Raises:
            SourceError: there is no such folder, or it cannot be read.
        """
        if not self._folder.is_dir():
            kind = "is a file" if self._folder.exists() else "does not exist"
            raise SourceError(f"'{self._folder}' {kind}: expected a folder to watch")
        found = {}
        try:
            for path in images_below(self._folder, Passed()):
                if (stamp := _stamp_of(path)) and stamp.size:
                    found[path] = stamp
        except DataError as error:
            raise SourceError(str(error)) from error
        return found


def _stamp_of(path: Path) -> _Stamp | None:
    """None of a file that is gone, as temporary files go."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _Stamp(status.st_mtime_ns, status.st_size)


def _frame_of(path: Path, number: int, white_level: int) -> Frame | ImageError:
    taken = time.monotonic()
    try:
        image = load_image(path, MAX_PIXELS, white_level)
    except ImageError as error:
        return error
    mpp = None
    with suppress(ImageError):  # somebody took it away, now that it is written
        mpp = scale_of(path).microns
    grab_ms = (time.monotonic() - taken) * 1e3
    return Frame(image.pixels, number, taken, grab_ms, str(path), mpp, image.notes)
