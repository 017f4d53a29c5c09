"""Image files as frames: those that are there, and those that come into a folder."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ...data.finding import Passed, images_below, is_image_by_name
from ...data.scale import scale_of
from ...errors import DataError, ImageError, SourceError
from ...images import MAX_PIXELS, load_image
from .frame import Frame

_RESTLESS = 10  # times the rest that a file may change without one before it is told of
_POLL = 0.1  # seconds between two looks at a folder; polling works on network drives, too
_PAUSES = 4  # times as long as a look for new files takes, in which none follows, where that is more
_BETWEEN = 9  # times as long as a look at all files takes, in which it is looked for new ones alone


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


class _Names(Passed):
    """The names in the folders that were read; what was passed over is nobody's concern."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[Path, set[str]] = {}

    def looked_into(self, folder: Path, names: Iterable[str]) -> None:
        self.of[folder] = {*names}


class Watched:
    """The images that come into a folder, or below it, from now on; those that are there are passed over.

    A file is taken once its size and time have rested, so that nobody reads half of it, and again when it
    is written again. Reading goes on where it was when the folder went away and came back.

    A session of a day leaves a million files there. So all of them are looked at for a tenth of the time, and
    in between, for no more than a fifth, those names that are new.
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
        self._names: dict[Path, set[str]] = {}  # in each folder
        self._new: set[Path] = set()  # images that came since all were looked at
        self._all_again = 0.0  # when all are looked at again

    def frames(self) -> Iterator[Frame | ImageError | None]:
        """A frame for each file that has come to rest, the one that rested first before the others."""
        if self._taken is None:
            self._taken = self._look()
        self._all_again = 0.0  # the folder may have been away
        resting: dict[Path, tuple[_Stamp, float]] = {}
        restless: dict[Path, float] = {}  # since when it changes
        number = 0
        while True:
            began = time.monotonic()
            there = self._look_for_new(resting) if began < self._all_again else None
            if there is None:
                there = self._look()
                self._taken = {path: stamp for path, stamp in self._taken.items() if path in there}
                self._all_again = time.monotonic() + _BETWEEN * (time.monotonic() - began)
                pause = _POLL
            else:
                pause = max(_POLL, _PAUSES * (time.monotonic() - began))
            now = time.monotonic()
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
                time.sleep(pause)

    def _look_for_new(self, resting: Iterable[Path]) -> dict[Path, _Stamp] | None:
        """The images that came since all were looked at, and those that have not rested yet.

        None where all have to be looked at: a folder came, or a link, or one cannot be read.
        """
        for folder, known in self._names.items():
            try:
                names = {*os.listdir(folder)}  # noqa: PTH208  # names alone, of a hundred thousand
            except OSError:
                return None
            for name in names - known:
                path = folder / name
                if path.is_symlink() or path.is_dir():
                    return None
                if is_image_by_name(path):
                    self._new.add(path)
            known |= names
        stamps = {path: _stamp_of(path) for path in (*self._new, *resting)}
        return {path: stamp for path, stamp in stamps.items() if stamp and stamp.size}

    def _look(self) -> dict[Path, _Stamp]:
        """The images that are there, but for empty ones.

        Raises:
            SourceError: there is no such folder, or it cannot be read.
        """
        if not self._folder.is_dir():
            kind = "is a file" if self._folder.exists() else "does not exist"
            raise SourceError(f"'{self._folder}' {kind}: expected a folder to watch")
        found, names = {}, _Names()
        try:
            for path in images_below(self._folder, names):
                if (stamp := _stamp_of(path)) and stamp.size:
                    found[path] = stamp
        except DataError as error:
            raise SourceError(str(error)) from error
        self._names, self._new = names.of, set()
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
