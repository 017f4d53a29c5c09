"""A frame, and what gives frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ...errors import ImageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Frame:
    """A picture and when it was taken.

    Attributes:
        pixels: (H, W, 3) uint8, RGB; not changed by anybody.
        number: its place among the frames that this opening of the source took, from 0.
        taken: when it was there to be read, by ``time.monotonic()``.
        grab_ms: how long reading it took.
        name: what it is called in reports.
        mpp: microns a pixel; None where the source does not know.
        notes: what reading it had to decide.
    """

    pixels: NDArray[np.uint8]
    number: int
    taken: float
    grab_ms: float
    name: str
    mpp: float | None = None
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """Gives frames; each call of `frames` opens it, and closing the iterator closes it.

    Attributes:
        name: what it is called in reports.
        endless: whether an end of its frames is a fault, after which it is opened again.
        keeps: whether frames that nobody has asked for yet are still there later, as files are.
        stalls_after: seconds without a frame that are a fault; None where it may be silent.
    """

    # Properties, so that a constant of a class will do: whoever reads a source changes none of them.
    @property
    def name(self) -> str: ...

    @property
    def endless(self) -> bool: ...

    @property
    def keeps(self) -> bool: ...

    @property
    def stalls_after(self) -> float | None: ...

    def frames(self) -> Iterator[Frame | ImageError | None]:
        """The frames as they come; an error for one that cannot be used, None where there is none yet.

        It yields at least every few tenths of a second where it can, so that whoever reads it may stop.

        Raises:
            SourceError: the source is not there, is busy, or went away.
        """
