"""The tiles of a slide through a session: threads read and classify batches, results come in order.

A thread reads a batch and takes it through the network, so nothing is handed over, and what is decoded is
soon gone. There are more threads than lanes, so that the network does not wait for a disk or a decoder.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...data.scale import check_microns
from ...errors import ImageError, InputError
from ...images import Transform, resized
from ...machine import threads_to_use
from ...runtime.drift import DriftLog, picture_scores
from ...runtime.quality import Quality
from ...runtime.session import BATCH_SIZE, Prediction, Session
from .slide import Slide
from .tiling import Keeps, Tile, read_tile, tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    lanes: int = 1,
) -> Iterator[TileResult]:
    """Classifies the tiles of a slide, row by row, while threads read some batches ahead.

    Args:
        session: an opened artefact that knows its labels, mean and std.
        slide: an open slide; each thread opens a handle of its own.
        mpp: microns that a pixel of the network's input covers; what the artefact says where None.
        pixel_for_pixel: take tiles of the training images' size as they are, whatever the slide's scale.
        overlap: the share of a tile's side that the next one covers again, 0 to 0.9.
        mask: leaves out tiles without tissue, or outside of regions (`Within`); None keeps all.
        assume_mpp: the slide's microns a pixel, in place of what the file says.
        batch_size: tiles that go through the network at once.
        lanes: batches that do so side by side. A session of ``threads=1`` with a lane for each core is the
            fastest on a CPU, where a lane takes the memory of one more batch.

    Raises:
        InputError: the model's or the slide's scale is not known, or a number is not what it can be.
        ArtefactError: the artefact does not say its labels, mean or std, or answers with NaN.
        BackendError: as `Session.run`.
    """
    wanted = wanted_of(session, mpp, pixel_for_pixel)
    found = tiles(slide, wanted.mpp, wanted.size, overlap, mask, assume_mpp=assume_mpp)
    return classify_tiles(session, slide, found, batch_size, lanes=lanes)


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
    covered = trained_on(session)
    if pixel_for_pixel:
        if mpp is not None:
            raise InputError("tiles are taken pixel for pixel or at a number of microns a pixel: choose one")
        return Wanted(round(covers.pixels.median) if covers else size, None, covered)
    if mpp is None and known is None:
        raise InputError(
            "the model does not say its microns a pixel: say with --mpp how many a pixel of its input covers "
            "(and with --assume-mpp those of slides that do not say theirs), or take the slides' pixels as "
            "they are with --pixel-for-pixel"
        )
    notes: tuple[str, ...] = ()
    if mpp is not None and known is not None and differ(mpp, known):
        notes = (f"tiles are read at {mpp:g} microns a pixel, but the model was trained at {known:.4g}",)
    return Wanted(size, mpp or known, covered, notes)


def trained_on(session: Session) -> float | None:
    """Microns that a training image's side covered, in the median; None where the artefact does not say."""
    covers = session.manifest.coverage if session.manifest else None
    return covers.microns.median if covers and covers.microns else None


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
    session: Session,
    slide: Slide,
    found: Iterable[Tile],
    batch_size: int,
    log: DriftLog | None = None,
    *,
    lanes: int = 1,
    readers: int | None = None,
) -> Generator[TileResult]:
    """Classifies these tiles, in their order; see `classify_slide`.

    Args:
        session: an opened artefact that knows its labels, mean and std.
        slide: an open slide.
        found: the tiles.
        batch_size: tiles that go through the network at once.
        log: gets scores of those tiles that it wants.
        lanes: batches that do so side by side.
        readers: threads that read meanwhile; None for one on every core.

    Raises:
        InputError: the batch size or the lanes are less than one.
    """
    asked = ((tile, log is not None and log.wants()) for tile in found)
    with closing(answers_on(session, slide, asked, batch_size, lanes=lanes, readers=readers)) as answers:
        for answer in answers:
            answer.add_to(log)
            yield answer.result


def answers_on(
    session: Session,
    slide: Slide,
    asked: Iterable[tuple[Tile, bool]],
    batch_size: int,
    *,
    lanes: int = 1,
    readers: int | None = None,
) -> Generator[Answer]:
    """What `classify_tiles` makes of tiles, and what a log gets of those that it wants.

    Args:
        session: an opened artefact that knows its labels, mean and std.
        slide: an open slide.
        asked: the tiles, and whether a log wants their scores.
        batch_size: tiles that go through the network at once.
        lanes: batches that do so side by side.
        readers: threads that read meanwhile; None for one on every core.

    Raises:
        InputError: the batch size or the lanes are less than one.
    """
    if batch_size < 1 or lanes < 1:
        raise InputError(f"the batch size is {batch_size}, the lanes are {lanes}: expected at least 1")
    batch_size = min(batch_size, session.max_batch or batch_size)
    threads = lanes + threads_to_use(readers)
    waiting = iter(asked)
    batches = iter(lambda: list(islice(waiting, batch_size)), [])
    with _Workers(session, slide, lanes, threads) as workers:
        ahead = deque(map(workers.classify, islice(batches, 2 * threads)))
        while ahead:
            answers = ahead.popleft().result()
            ahead.extend(map(workers.classify, islice(batches, 1)))
            yield from answers


class _Input(NamedTuple):
    """A tile on its way to the network."""

    image: NDArray[np.float32]
    """(3, S, S)."""
    quality: Quality | None
    """None where neither a guard nor a log looks at it."""
    scores: Mapping[str, float | None] | None
    """`picture_scores` of it, where a log wants them."""


class Answer(NamedTuple):
    """A tile on its way back."""

    result: TileResult
    scores: Mapping[str, float | None] | None = None
    """`picture_scores` of it, where a log wants them."""
    logits: NDArray[np.float32] | None = None
    """(classes,), where a log wants them."""
    distance: float | None = None
    """`Prediction.distance`, where a log wants it."""

    def add_to(self, log: DriftLog | None) -> None:
        """Gives a log what it wants of the tile."""
        if log is not None and self.scores is not None and self.logits is not None:
            log.add(self.scores, self.logits, self.distance)


class _Workers:
    """Threads that read and classify, each by a handle of its own; a context manager that closes these."""

    def __init__(self, session: Session, slide: Slide, lanes: int, threads: int) -> None:
        self._session = session
        self._slide = slide
        self._transform = transform_of(session)
        covers = session.manifest.coverage if session.manifest else None
        self._judged = max(2, round(covers.pixels.median)) if covers else None
        self._lanes = threading.Semaphore(lanes)
        self._own = threading.local()
        self._handles: list[Slide] = []
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="msmamba-tiles")

    def classify(self, asked: list[tuple[Tile, bool]]) -> Future[list[Answer]]:
        """The answers on a batch, some time."""
        return self._pool.submit(self._classify, asked)

    def _classify(self, asked: list[tuple[Tile, bool]]) -> list[Answer]:
        inputs = [self._input(*each) for each in asked]
        readable = [each for each in inputs if not isinstance(each, ImageError)]
        answered = self._answered(readable) if readable else iter(())
        answers = []
        for (tile, scored), each in zip(asked, inputs, strict=True):
            if isinstance(each, ImageError):
                answers.append(Answer(TileResult(tile, error=" ".join(str(each).splitlines()))))
                continue
            logits, one = next(answered)
            result = TileResult(tile, one.probabilities, "", one.decided, one.reasons, one.candidates)
            answers.append(Answer(result, each.scores, logits, one.distance) if scored else Answer(result))
        return answers

    def _answered(self, read: Sequence[_Input]) -> Iterator[tuple[NDArray[np.float32], Prediction]]:
        images = np.stack([each.image for each in read])
        qualities = [each.quality for each in read if each.quality is not None]
        judged = self._session.judges_pictures
        with self._lanes:
            logits, said = self._session.answers(images, qualities=qualities if judged else None)
        return zip(logits, said, strict=True)

    def _input(self, tile: Tile, scored: bool) -> _Input | ImageError:
        """What the network and the log get of a tile, or why there is nothing."""
        if not hasattr(self._own, "handle"):
            self._own.handle = self._slide.reopened()
            self._handles.append(self._own.handle)
        try:
            pixels = read_tile(self._own.handle, tile, self._transform.size)
            quality, scores = None, None
            if self._session.judges_pictures or scored:
                picture = self._as_in_training(pixels)
                quality = self._session.quality_of(picture)
                scores = picture_scores(picture, quality) if scored else None
            return _Input(self._transform(pixels), quality, scores)
        except ImageError as error:
            return error

    def _as_in_training(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A tile in no more pixels than a training image, which those of calibration are like.

        It is read from a level that may have several times as many, in which it is less sharp and emptier.
        One that has fewer is not enlarged: that would blur it.
        """
        if self._judged is None or self._judged >= len(pixels):
            return pixels
        return resized(pixels, self._judged)

    def __enter__(self) -> _Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        for handle in self._handles:
            if handle is not self._slide:
                handle.close()
