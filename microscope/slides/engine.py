"""The tiles of a slide through a session: threads read ahead, the network runs, results come in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...data.scale import check_microns
from ...errors import ImageError, InputError
from ...images import Transform
from ...machine import threads_to_use
from ...runtime.drift import DriftLog, picture_scores
from ...runtime.quality import Quality, quality_of
from ...runtime.session import BATCH_SIZE, Prediction, Session
from .slide import Slide
from .tiles import Keeps, Tile, read_tile, tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    _Read = tuple[NDArray[np.float32], Quality | None]


@dataclass(frozen=True)
class TileResult:
    """What the network says of one tile.

    Attributes:
        tile: where it is, pixels of level 0.
        probabilities: the probability of every class, in the order of the session's labels; empty where the
            tile cannot be read.
        error: why it cannot, one line; empty where it can.
        decided: whether the likeliest class is an answer, by the artefact's guard; without one it always is.
        reasons: why it is none; empty where it is one.
        candidates: names of the classes that it may be, the likeliest first; empty without a guard.
    """

    tile: Tile
    probabilities: tuple[float, ...] = ()
    error: str = ""
    decided: bool = True
    reasons: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()

    @property
    def likeliest(self) -> int:
        """The place of the likeliest class, the first of several."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)


def classify_slide(
    session: Session,
    slide: Slide,
    *,
    mpp: float | None = None,
    pixel_for_pixel: bool = False,
    overlap: float = 0.0,
    mask: Keeps | None = None,
    assume_mpp: float | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[TileResult]:
    """Classifies the tiles of a slide, row by row, while threads read at most two batches ahead.

    Args:
        session: an opened artefact that knows its labels, mean and std.
        slide: an open slide; each thread opens a handle of its own.
        mpp: microns that a pixel of the network's input covers; what the artefact says where None.
        pixel_for_pixel: take tiles of the training images' size as they are, whatever the slide's scale.
        overlap: the share of a tile's side that the next one covers again, 0 to 0.9.
        mask: leaves out tiles without tissue, or outside of regions (`Within`); None keeps all.
        assume_mpp: the slide's microns a pixel, in place of what the file says.
        batch_size: tiles that go through the network at once.

    Raises:
        InputError: the model's or the slide's scale is not known, or a number is not what it can be.
        ArtefactError: the artefact does not say its labels, mean or std, or answers with NaN.
        BackendError: as `Session.run`.
    """
    wanted = wanted_of(session, mpp, pixel_for_pixel)
    found = tiles(slide, wanted.mpp, wanted.size, overlap, mask, assume_mpp=assume_mpp)
    return classify_tiles(session, slide, found, batch_size)


def transform_of(session: Session) -> Transform:
    """The session's transform.

    Raises:
        ArtefactError: the artefact does not say its labels, mean or std.
    """
    session.predictions(np.empty((0, session.classes), np.float32))  # says what is missing
    assert session.transform is not None  # else that would have raised
    return session.transform


_LIKE = 1.25  # scales within a quarter of each other are alike


@dataclass(frozen=True)
class Wanted:
    """What a tile is to cover.

    Attributes:
        size: pixels of its side.
        mpp: microns that each of them covers; None: pixels of level 0.
        trained_on: microns that a training image's side covered; None where nobody has said.
        notes: what there is to say of that.
    """

    size: int
    mpp: float | None
    trained_on: float | None = None
    notes: tuple[str, ...] = ()


def wanted_of(session: Session, mpp: float | None = None, pixel_for_pixel: bool = False) -> Wanted:
    """What a tile has to cover to be what the session's network was trained on.

    Args:
        session: an opened artefact that knows its labels, mean and std.
        mpp: microns that a pixel of the network's input covers; what the artefact says where None.
        pixel_for_pixel: tiles of the training images' size, or the network's where that is not known.

    Raises:
        InputError: neither the artefact nor `mpp` says the scale, or both `mpp` and `pixel_for_pixel` do.
        ArtefactError: the artefact does not say its labels, mean or std.
    """
    check_microns(mpp)
    size = transform_of(session).size
    covers = session.manifest.coverage if session.manifest else None
    known = covers.mpp(size) if covers else None
    trained_on = None if known is None else known * size
    if pixel_for_pixel:
        if mpp is not None:
            raise InputError("tiles are taken pixel for pixel or at a number of microns a pixel: choose one")
        return Wanted(round(covers.pixels.median) if covers else size, None, trained_on)
    if mpp is None and known is None:
        raise InputError(
            "the model does not say its microns a pixel: say with --mpp how many a pixel of its input covers "
            "(and with --assume-mpp those of slides that do not say theirs), or take the slides' pixels as "
            "they are with --pixel-for-pixel"
        )
    notes: tuple[str, ...] = ()
    if mpp is not None and known is not None and differ(mpp, known):
        notes = (f"tiles are read at {mpp:g} microns a pixel, but the model was trained at {known:.4g}",)
    return Wanted(size, mpp or known, trained_on, notes)


def differ(one: float, other: float) -> bool:
    """Whether two scales differ by more than a network is used to: by more than a quarter."""
    return max(one, other) > _LIKE * min(one, other)


def scale_notes(slide: Slide, wanted: Wanted, assume_mpp: float | None = None) -> tuple[str, ...]:
    """What there is to say of the scale that a slide's tiles are read at; nothing where it is right."""
    said, microns = slide.scale.microns, assume_mpp or slide.scale.microns
    notes = []
    if assume_mpp and said and differ(assume_mpp, said):
        notes.append(f"'{slide.path}' says {said:.4g} microns a pixel, and {assume_mpp:g} are assumed")
    if microns is None:
        return tuple(notes)
    if wanted.mpp is None:
        covered = microns * wanted.size
        if wanted.trained_on is not None and differ(covered, wanted.trained_on):
            notes.append(
                f"'{slide.path}': a tile covers {covered:.4g} microns, but a training image "
                f"{wanted.trained_on:.4g}"
            )
    elif microns > _LIKE * wanted.mpp:
        notes.append(
            f"'{slide.path}' has {microns:.4g} microns a pixel at best, and the model wants "
            f"{wanted.mpp:.4g}: tiles are enlarged {microns / wanted.mpp:.2g} times and show less than in "
            "training"
        )
    return tuple(notes)


def classify_tiles(
    session: Session, slide: Slide, found: Iterable[Tile], batch_size: int, log: DriftLog | None = None
) -> Generator[TileResult]:
    """Classifies these tiles, in their order; see `classify_slide`. A log gets scores of those it wants."""
    if batch_size < 1:
        raise InputError(f"the batch size is {batch_size}: expected at least 1")
    batch_size = min(batch_size, session.max_batch or batch_size)
    waiting = iter(found)
    workers = threads_to_use(None)
    with _Readers(slide, transform_of(session), session.judges_pictures, workers) as readers:
        ahead = deque((tile, readers.read(tile, log)) for tile in islice(waiting, 2 * batch_size + workers))
        while ahead:
            batch = [ahead.popleft() for _ in range(min(batch_size, len(ahead)))]
            inputs = [_outcome(reading) for _, reading in batch]
            ahead.extend((tile, readers.read(tile, log)) for tile in islice(waiting, len(batch)))
            readable = [each for each in inputs if not isinstance(each, ImageError)]
            predictions: Iterator[Prediction] = iter(())
            if readable:
                images = np.stack([each.image for each in readable])
                qualities = [each.quality for each in readable if each.quality is not None]
                logits, said = session.answers(
                    images, qualities=qualities if session.judges_pictures else None
                )
                predictions = iter(said)
                for each, own in zip(readable, logits, strict=True):
                    if log is not None and each.scores is not None:
                        log.add(each.scores, own)
            for (tile, _), outcome in zip(batch, inputs, strict=True):
                if isinstance(outcome, ImageError):
                    yield TileResult(tile, error=str(outcome))
                else:
                    one = next(predictions)
                    yield TileResult(tile, one.probabilities, "", one.decided, one.reasons, one.candidates)


class _Input(NamedTuple):
    """A tile on its way to the network."""

    image: NDArray[np.float32]
    """(3, S, S)."""
    quality: Quality | None
    """None where neither a guard nor a log looks at it."""
    scores: Mapping[str, float | None] | None
    """`picture_scores` of it, where a log wants them."""


class _Readers:
    """Threads that read tiles, each through a handle of its own; a context manager that closes them."""

    def __init__(self, slide: Slide, transform: Transform, judged: bool, workers: int) -> None:
        self._slide = slide
        self._transform = transform
        self._judged = judged
        self._own = threading.local()
        self._handles: list[Slide] = []
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="msmamba-tiles")

    def read(self, tile: Tile, log: DriftLog | None) -> Future[_Input]:
        """The network's input of a tile, some time."""
        return self._pool.submit(self._input, tile, log is not None and log.wants())

    def _input(self, tile: Tile, scored: bool) -> _Input:
        if not hasattr(self._own, "handle"):
            self._own.handle = self._slide.reopened()
            self._handles.append(self._own.handle)
        pixels = read_tile(self._own.handle, tile, self._transform.size)
        quality = quality_of(pixels) if self._judged or scored else None
        return _Input(self._transform(pixels), quality, picture_scores(pixels, quality) if scored else None)

    def __enter__(self) -> _Readers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        for handle in self._handles:
            if handle is not self._slide:
                handle.close()


def _outcome(reading: Future[_Input]) -> _Input | ImageError:
    try:
        return reading.result()
    except ImageError as error:
        return error
