"""One place between two threads: never a queue that grows."""

from __future__ import annotations

from contextlib import suppress
from threading import Condition
from types import TracebackType
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class Ended(Exception):
    """Nothing comes any more."""


class Changed(Condition):
    """A condition that lets an interrupt through which comes while it is waited for.

    One that comes when `wait` has given the lock back, and would take it again only from its next line on,
    leaves none to give back: the end of the block would raise a `RuntimeError` in the interrupt's place.
    """

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, value, trace)
        except RuntimeError:
            if value is None:
                raise


def give_back(changed: Condition) -> None:
    """Gives back a lock that an interrupt has left the calling thread with.

    One that comes between the taking of a lock and the block that would give it back leaves it taken, and the
    other thread would wait for it forever.
    """
    with suppress(RuntimeError):  # that it is not taken
        while True:
            changed.release()


class Channel(Generic[_Item]):
    """Holds one item: a newer one takes its place, or waits until it is taken."""

    def __init__(self, keep_all: bool) -> None:
        """A channel.

        Args:
            keep_all: whether whoever puts an item waits until the one before is taken.
        """
        self._keep_all = keep_all
        self._changed = Changed()
        self._items: list[_Item] = []  # none or one
        self._ended = False
        self._error: BaseException | None = None

    def put(self, item: _Item) -> bool:
        """Leaves an item for the other thread; False where the channel has ended."""
        with self._changed:
            if self._keep_all:
                self._changed.wait_for(lambda: self._ended or not self._items)
            if not self._ended:
                self._items = [item]
                self._changed.notify_all()
            return not self._ended

    def get(self, timeout: float) -> _Item | None:
        """The item that is there, or comes within so many seconds.

        Raises:
            Ended: nothing comes any more.
            BaseException: what the other thread ended with.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._items, timeout)
            if self._items:
                self._changed.notify_all()
                return self._items.pop()
            if self._error is not None:
                raise self._error
            if self._ended:
                raise Ended
            return None

    def end(self, error: BaseException | None = None) -> None:
        """Lets nothing in any more; what is there may still be taken, and then ``error`` is raised."""
        give_back(self._changed)
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
                self._changed.notify_all()
