"""The tiles of a slide over a Ray cluster: coordinates go out, answers come back, pixels never travel.

A task is a range of whole batches that begin where they would begin in one process, so rows are the same.
Every worker opens artefact and slide once, from the paths of the process that asks: they have to lie on a
disk that all machines see. A task whose worker or machine is lost is done again.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from ...errors import BackendError, MsmambaError
from ...runtime.drift import DriftLog
from ...runtime.session import Session, open_session
from ...version import __version__
from .engine import Answer, TileResult, answers_on, transform_of
from .opening import open_slide
from .slide import Slide
from .tiling import Tile

TILES_A_TASK = 64
_AHEAD = 2  # tasks for each worker, at work or waiting for it
_RETRIES = 5  # of a task whose worker is lost

_open: dict[tuple[str, int, tuple[int, ...]], Slide] = {}
"""A worker's slide, by its path, white level, size and time; none or one."""


class RayEngine:
    """Classifies tiles on a Ray cluster; a context manager that leaves the cluster, or ends its own.

    Attributes:
        tiles_a_task: how many tiles go out at once, rounded up to whole batches.
    """

    tiles_a_task = TILES_A_TASK

    def __init__(
        self,
        artefact: str | os.PathLike[str],
        *,
        address: str | None = None,
        cpus: int | None = None,
        **options: Any,
    ) -> None:
        """Joins a cluster, or starts one of this machine.

        Args:
            artefact: what the workers open, a path that all machines see.
            address: the cluster's, as `ray.init` takes it; None starts one of this machine.
            cpus: cores of the cluster that is started; None for all.
            options: what `msmamba.open` takes, for each worker; one has one thread, and every core has one.

        Raises:
            BackendError: Ray is not installed, or the cluster cannot be had.
        """
        try:
            import ray  # ships only with the extra
        except ImportError as error:
            raise BackendError(
                f"--executor ray needs Ray, which is not here ({error}): pip install 'msmamba[slides,ray]'"
            ) from error
        self._ray = ray
        self._artefact = os.path.abspath(artefact)  # noqa: PTH100  # links stay as they are: others see them so
        self._options = {**options, "threads": 1}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or the cluster would report to Ray's makers
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves them beside any other process
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        try:
            with _termination_kept():
                if address is None:
                    ray.init("local", num_cpus=cpus, include_dashboard=False, **settings)
                else:
                    ray.init(address, **settings)
        except Exception as error:  # whatever its services stumble over
            raise BackendError(
                f"no Ray cluster {f'at {address!r}' if address else 'could be started'}: {_line(error)}"
            ) from error
        # Ray calls a worker's death, and a machine's, a failure of the system, and tries elsewhere.
        self._task = ray.remote(
            num_cpus=1,
            num_gpus=1 if options.get("device") == "cuda" else 0,
            max_retries=_RETRIES,
        )(_answers_of_task)

    def classify(
        self,
        session: Session,
        slide: Slide,
        found: Iterable[Tile],
        batch_size: int,
        log: DriftLog | None = None,
    ) -> Generator[TileResult]:
        """Classifies tiles as `classify_tiles` does, in their order.

        No more tasks are out than the cluster's cores take, and as many again.

        Raises:
            BackendError: a task failed more often than it is tried, or a worker has another version.
            MsmambaError: as `classify_tiles`.
        """
        batch_size = min(batch_size, session.max_batch or batch_size)
        size = -(-self.tiles_a_task // batch_size) * batch_size
        white_level = transform_of(session).white_level
        job = (__version__, self._artefact, self._options, os.path.abspath(slide.path), white_level)  # noqa: PTH100  # as above
        level = slide.levels[0]
        waiting = iter(found)
        out: deque[Any] = deque()

        def fill() -> None:
            workers = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
            while len(out) < _AHEAD * workers:
                tiles = list(islice(waiting, size))
                if not tiles:
                    return
                asked = [(tile, log is not None and log.wants()) for tile in tiles]
                out.append(self._task.remote(job, (level.width, level.height), asked, batch_size))

        fill()
        try:
            while out:
                answers = self._answers(out.popleft())
                fill()
                for answer in answers:
                    answer.add_to(log)
                    yield answer.result
        finally:
            for reference in out:
                self._ray.cancel(reference, force=False)

    def _answers(self, reference: Any) -> list[Answer]:
        try:
            return list(self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, MsmambaError):
                raise error.cause from None
            raise BackendError(f"a Ray worker failed: {_line(error.cause or error)}") from error
        except self._ray.exceptions.RayError as error:
            raise BackendError(
                f"a Ray task was lost {_RETRIES + 1} times ({_line(error)}): look at the workers, and start "
                "again to go on"
            ) from error

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.shutdown()


@contextmanager
def _termination_kept() -> Iterator[None]:
    """Puts back what SIGTERM does in this process, in whose place Ray puts something of its own."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not signal.getsignal(signal.SIGTERM):
            signal.signal(signal.SIGTERM, before)


def _answers_of_task(
    job: tuple[str, str, dict[str, Any], str, int],
    size: tuple[int, int],
    asked: list[tuple[Tile, bool]],
    batch_size: int,
) -> list[Answer]:
    """A worker's task: what becomes of each tile, with its scores where a log wants them."""
    version, artefact, options, path, white_level = job
    if version != __version__:
        raise BackendError(
            f"a Ray worker has msmamba {__version__}: expected {version}, as where it was asked"
        )
    slide = _slide(path, white_level)
    level = slide.levels[0]
    if (level.width, level.height) != size:
        raise BackendError(f"'{path}' is another slide for a Ray worker than where it was asked")
    session = _session(artefact, tuple(options.items()))
    return list(answers_on(session, slide, asked, batch_size, readers=1))


def _slide(path: str, white_level: int) -> Slide:
    """A worker's slide, open from task to task: a picture of one piece is decoded once, not for each."""
    stamp: tuple[int, ...] = ()
    with suppress(OSError):  # opening it says what is wrong
        status = Path(path).stat()
        stamp = status.st_size, status.st_mtime_ns
    key = path, white_level, stamp
    if key not in _open:
        while _open:
            _open.popitem()[1].close()
        _open[key] = open_slide(path, white_level=white_level)
    return _open[key]


@lru_cache(maxsize=1)
def _session(artefact: str, options: tuple[tuple[str, Any], ...]) -> Session:
    """A worker's session, kept from task to task."""
    return open_session(Path(artefact), **dict(options))


def _line(error: BaseException) -> str:
    """The first line of what an error says, its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
