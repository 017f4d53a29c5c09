"""A grid over the field: as many tiles of a frame as its time allows, and a map of what they say.

The tiles are those of slides: squares from the frame's corner, those at the right and lower border
completed by reflection. Where a frame's time ends before all of them are classified, those whose picture
has changed come first, and of these the ones that waited longest. A tile that was not reached keeps what an
earlier frame said of it for as long as its picture stays the same; where it changed, the map has nothing. So
a field at rest fills up, and one in motion shows what is known of it.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ...data.scale import Scale, check_microns
from ...errors import ImageError, InputError
from ...runtime.drift import DriftLog
from ...runtime.guard import REASONS
from ...runtime.session import BATCH_SIZE, Session
from ...schema import is_whole
from ..slides.engine import answers_on, trained_on, transform_of
from ..slides.field import Field
from ..slides.tiling import Tile, grid, side_of
from ..sources import Frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_TILES = 64
"""Tiles along the shorter side of a frame."""

_GIST = 8  # a tile's picture is compared by the means of so many squares a side at most
_LEAST_SQUARE = 8  # pixels a side of such a square at least: a mean over fewer moves with the noise
_HALF = 0.5
_CHANGED = 3  # of 255: noise of deviation 5 moves a mean by 2 at most, the stage by a fortieth of a tile by 5


@dataclass(frozen=True)
class Grid:
    """How frames are cut into tiles, and for how long they are classified.

    Attributes:
        tiles: how many lie along the shorter side of a frame; or
        mpp: microns that a pixel of the network's input covers, for frames whose scale is known. Where
            neither is given, tiles cover what the artefact says that a training image covered.
        frames_a_second: how many maps a second there are to be, each of as many tiles as its time allows;
            None classifies all tiles of each frame.
        batch_size: tiles that go through the network at once.

    Raises:
        InputError: a number is not what it can be, or ``tiles`` and ``mpp`` are both given.
    """

    tiles: int | None = None
    mpp: float | None = None
    frames_a_second: float | None = None
    batch_size: int = BATCH_SIZE

    def __post_init__(self) -> None:
        if self.tiles is not None and self.mpp is not None:
            raise InputError(
                "a grid takes either a number of tiles or the microns a pixel of the network's input"
            )
        if self.tiles is not None and not is_whole(self.tiles, 1, MOST_TILES):
            raise InputError(
                f"{self.tiles!r} tiles along a frame: expected 1 to {MOST_TILES}, a whole number"
            )
        if not is_whole(self.batch_size, 1):
            raise InputError(f"the batch size is {self.batch_size!r}: expected a whole number of at least 1")
        check_microns(self.mpp)
        rate = self.frames_a_second
        if rate is not None and not 0 < rate <= 1000:
            raise InputError(f"{rate!r} frames a second: expected more than 0, and at most 1000")


@dataclass(frozen=True)
class TileMap:
    """What is known of a frame, tile by tile.

    Attributes:
        side: the side of a tile, pixels of the frame; tiles at the right and lower border
            reach over it.
        microns: the same in microns; None where the frame's scale is not known.
        probabilities: (rows, columns, classes) float32, in the order of the labels; NaN where nothing is
            known.
        classified: how many tiles of this very frame went through the network; the others that have
            something keep it from earlier frames, of the same picture.
        undecided: (rows, columns) of bool: tiles whose likeliest class is no answer, by the artefact's guard;
            None without one.
        reasons: why, for at least half of these.
    """

    side: int
    microns: float | None
    probabilities: NDArray[np.float32]
    classified: int
    undecided: NDArray[np.bool_] | None = None
    reasons: tuple[str, ...] = ()

    @property
    def known(self) -> NDArray[np.bool_]:
        """(rows, columns): of which tiles something is known."""
        return ~np.isnan(self.probabilities[..., 0])

    @property
    def counted(self) -> NDArray[np.bool_]:
        """(rows, columns): the tiles that the mean is of: those decided; all that are known where none is."""
        known = self.known
        decided = known if self.undecided is None else known & ~self.undecided
        return decided if decided.any() else known

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean probability of each class over the tiles that count."""
        return tuple(self.probabilities[self.counted].mean(axis=0, dtype=np.float64).tolist())

    @property
    def decided(self) -> bool:
        """Whether the guard decides at least half of the tiles of which something is known."""
        return self.undecided is None or 2 * int(self.undecided.sum()) <= int(self.known.sum())

    @property
    def candidates(self) -> tuple[int, ...]:
        """The classes that are the likeliest of some tile, those of a larger mean first."""
        found = set(self.probabilities[self.known].argmax(axis=1).tolist())
        order = np.argsort([-share for share in self.mean], kind="stable")
        return tuple(index for index in order.tolist() if index in found)

    def as_json(self) -> dict[str, Any]:
        """``map``: rows of columns of probabilities, None where nothing is known; and ``tiles``.

        With a guard ``undecided``, too: row and column of each tile that it withholds.
        """
        known = self.known
        cells = np.round(self.probabilities.astype(np.float64), 4).tolist()
        return {
            "map": [
                [cell if there else None for cell, there in zip(*row, strict=True)]
                for row in zip(cells, known.tolist(), strict=True)
            ],
            "tiles": {
                "side": self.side,
                "microns": None if self.microns is None else round(self.microns, 3),
                "classified": self.classified,
                "kept": int(known.sum()) - self.classified,
                "mean_of": int(self.counted.sum()),
            },
            **({} if self.undecided is None else {"undecided": np.argwhere(self.undecided).tolist()}),
        }


class Mapper:
    """Makes maps of frames, and remembers what the frames before said."""

    def __init__(self, session: Session, grid: Grid, log: DriftLog | None = None) -> None:
        """A mapper.

        Args:
            session: an opened artefact that knows its labels, mean and std.
            grid: how frames are cut.
            log: gets scores of a tile of those frames that it wants.

        Raises:
            InputError: the grid is to be of the model's scale, which the artefact does not say.
            ArtefactError: the artefact does not say its labels, mean or std.
        """
        if grid.tiles is None and grid.mpp is None:
            known = trained_on(session)
            if known is None:
                raise InputError(
                    "the model does not say its microns a pixel, so tiles cannot be cut at its scale: say "
                    "with --mpp how many a pixel of its input covers, or give --tiles"
                )
            grid = replace(grid, mpp=known / transform_of(session).size)
        self._session = session
        self._grid = grid
        self._log = log
        self._size = transform_of(session).size
        self._shape: tuple[int, ...] = ()  # of the frame, and the side of its tiles: what memory is of
        self._probabilities = np.empty((0, 0, session.classes), np.float32)
        self._reasons = np.empty((0, 0, len(REASONS)), np.bool_)  # why each tile is withheld
        self._gists = np.empty((0, 0, *_shape_of_gist(0)), np.int16)  # of the pictures that were classified
        self._turns = np.empty((0, 0), np.int64)  # the frame in which a tile was classified last
        self._frames = 0
        self._generator = np.random.default_rng()

    def map(self, frame: Frame, other: float = 0.0) -> TileMap:
        """The map of a frame.

        Args:
            frame: the frame.
            other: seconds of the frame's time that something else takes.

        Raises:
            InputError: the very first frame does not say its scale, and the grid asks for microns.
            ImageError: a later one does not, or cannot be cut.
            ArtefactError: the network answers with NaN.
            BackendError: the network failed.
        """
        began = time.monotonic()
        height, width, _ = frame.pixels.shape
        if min(height, width) < 2:
            raise ImageError(f"it is {width} x {height} pixels: expected at least 2 x 2")
        field = Field(Path(frame.name), frame.pixels, Scale(frame.mpp))
        side = self._side(field, frame)
        tiles = list(grid(field, side, 0.0))
        self._make_room(field, side)
        gists = np.stack([_gist(frame.pixels, tile) for tile in tiles])
        changed = self._forget_what_changed(gists)
        # What changed first; of it, and of the rest, what has waited longest.
        order = np.lexsort((self._turns.ravel(), ~changed))
        rate = self._grid.frames_a_second
        ends = math.inf if rate is None else began + 1 / rate - other
        done = self._classify(field, [(int(place), tiles[place]) for place in order], gists, ends)
        self._frames += 1
        microns = None if frame.mpp is None else side * frame.mpp
        found = self._probabilities.copy()
        if self._session.guard is None:
            return TileMap(side, microns, found, done)
        why = self._reasons & ~np.isnan(found[..., :1])
        withheld = np.asarray(why.any(axis=2))
        shares = why[withheld].mean(axis=0) if withheld.any() else np.zeros(len(REASONS))
        reasons = tuple(reason for reason, share in zip(REASONS, shares, strict=True) if share >= _HALF)
        return TileMap(side, microns, found, done, withheld, reasons)

    def _side(self, field: Field, frame: Frame) -> int:
        if self._grid.tiles is not None:
            return max(2, -(-min(frame.pixels.shape[:2]) // self._grid.tiles))
        try:
            if frame.mpp is None:
                raise InputError(
                    "the source does not say its microns a pixel, without which tiles cannot be cut by "
                    "microns: say them with --assume-mpp, or give --tiles"
                )
            return side_of(field, self._size, self._grid.mpp)
        except InputError as error:
            if not self._frames:
                raise
            raise ImageError(str(error)) from error

    def _make_room(self, field: Field, side: int) -> None:
        """Forgets everything where frames have another size or scale than before."""
        width, height = field.levels[0].width, field.levels[0].height
        shape = -(-height // side), -(-width // side)
        if (height, width, side) != self._shape:
            self._shape = height, width, side
            self._probabilities = np.full((*shape, self._session.classes), np.nan, np.float32)
            self._reasons = np.zeros((*shape, len(REASONS)), np.bool_)
            self._gists = np.zeros((*shape, *_shape_of_gist(side)), np.int16)
            self._turns = np.full(shape, -1, np.int64)

    def _forget_what_changed(self, gists: NDArray[np.int16]) -> NDArray[np.bool_]:
        """(tiles,): which tiles have nothing now, because their picture is another, or never had."""
        flat = self._probabilities.reshape(len(gists), -1)
        difference = np.abs(gists - self._gists.reshape(gists.shape)).max(axis=(1, 2, 3))
        flat[difference > _CHANGED] = np.nan
        return np.isnan(flat[:, 0])

    def _classify(
        self, field: Field, order: list[tuple[int, Tile]], gists: NDArray[np.int16], ends: float
    ) -> int:
        """Classifies tiles, the first ones first, until the time is up: at least one batch of them."""
        columns, batch = self._turns.shape[1], self._grid.batch_size
        # Where time may end it, a batch by itself: what is begun ahead would be waited for and thrown away.
        size = len(order) if ends == math.inf else batch
        last = time.monotonic()
        logged = int(self._generator.integers(len(order)))
        for start in range(0, len(order), size):
            part = order[start : start + size]
            asked = ((tile, self._wants(place == logged)) for place, tile in part)
            answers = answers_on(self._session, field, asked, batch)
            with closing(answers):
                for (place, _), answer in zip(part, answers, strict=True):
                    result = answer.result
                    answer.add_to(self._log)
                    at = divmod(place, columns)
                    self._probabilities[at] = result.probabilities
                    self._reasons[at] = [reason in result.reasons for reason in REASONS]
                    self._gists[at] = gists[place]
                    self._turns[at] = self._frames
            now = time.monotonic()
            if now + (now - last) > ends:  # the next batch would be late
                return start + len(part)
            last = now
        return len(order)

    def _wants(self, is_chosen: bool) -> bool:
        """Whether the log gets a tile: of a frame one at random, as the corners of a field are darker."""
        return is_chosen and self._log is not None and self._log.wants()


def _shape_of_gist(side: int) -> tuple[int, int, int]:
    """The squares along both sides of a tile of so many pixels, and the channels."""
    squares = min(max(side // _LEAST_SQUARE, 1), _GIST)
    return squares, squares, 3


def _gist(pixels: NDArray[np.uint8], tile: Tile) -> NDArray[np.int16]:
    """The means of a tile's squares, in each channel: what fluoresces may be in one alone."""
    size = _shape_of_gist(tile.side)[:2]
    part = np.ascontiguousarray(pixels[tile.y : tile.y + tile.side, tile.x : tile.x + tile.side])
    return np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BOX), np.int16)
