"""The screen, or a part of it: the way into any vendor's program."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import numpy as np

from ...errors import BackendError, ImageError, SourceError, reason_of
from .frame import Frame

if TYPE_CHECKING:
    from mss import MSS

_RATE = 30.0  # pictures a second
_WHAT = re.compile(r"screen(?::(?:(?P<screen>\d+)|(?P<box>-?\d+,-?\d+,\d+,\d+)))?")


class Screen:
    """Pictures of the screen at a steady pace."""

    endless = True
    keeps = False
    stalls_after: float | None = 5.0

    def __init__(self, text: str) -> None:
        """A screen or a part of it; nothing is opened yet.

        Args:
            text: ``screen`` (the first one), ``screen:N``, or ``screen:x,y,w,h`` in pixels.

        Raises:
            SourceError: the text is something else.
            BackendError: the extra ``screen`` is not installed.
        """
        found = _WHAT.fullmatch(text)
        if found is None:
            raise SourceError(f"'{text}' is no part of a screen: expected screen, screen:N or screen:x,y,w,h")
        require_mss()
        self.name = text
        self._screen = int(found["screen"] or 1)
        self._box = (
            dict(zip(_SIDES, map(int, found["box"].split(",")), strict=True)) if found["box"] else None
        )

    def frames(self) -> Iterator[Frame | ImageError | None]:
        """A frame at each tick; ticks that went by while the reader was busy are left out.

        Raises:
            SourceError: there is no screen, or not this part of it.
        """
        with _opened() as screens:
            box = self._box or self._whole(screens)
            self._check(box, screens)
            number, due = 0, time.monotonic()
            while True:
                time.sleep(max(0.0, due - time.monotonic()))
                taken = time.monotonic()
                shot = screens.grab(box)
                raw = np.frombuffer(shot.raw, np.uint8).reshape(shot.height, shot.width, 4)
                pixels = np.ascontiguousarray(raw[..., 2::-1])  # blue, green, red, unused
                grab_ms = (time.monotonic() - taken) * 1e3
                yield Frame(pixels, number, taken, grab_ms, f"{self.name} #{number}")
                number += 1
                due = max(due + 1 / _RATE, time.monotonic())

    def _whole(self, screens: MSS) -> dict[str, int]:
        there = len(screens.monitors) - 1  # the first entry is all of them together
        if not 1 <= self._screen <= there:
            raise SourceError(f"there is no screen {self._screen}: there are {there}, the first one is 1")
        found = screens.monitors[self._screen]
        return {side: int(found[side]) for side in _SIDES}

    def _check(self, box: dict[str, int], screens: MSS) -> None:
        whole = {side: int(screens.monitors[0][side]) for side in _SIDES}
        inside = all(
            box[side] >= 2 and whole[at] <= box[at] and box[at] + box[side] <= whole[at] + whole[side]
            for at, side in (("left", "width"), ("top", "height"))
        )
        if not inside:
            raise SourceError(
                f"'{self.name}' is not on the screen: expected at least 2 x 2 pixels within x "
                f"{whole['left']} to {whole['left'] + whole['width']}, y {whole['top']} to "
                f"{whole['top'] + whole['height']}"
            )


_SIDES = ("left", "top", "width", "height")


def screens_there() -> list[str]:
    """What to type for each screen, with its size.

    Raises:
        SourceError: there is none.
        BackendError: the extra ``screen`` is not installed.
    """
    require_mss()
    with _opened() as screens:
        return [
            f"screen:{number}  {found['width']} x {found['height']} pixels"
            for number, found in enumerate(screens.monitors[1:], 1)
        ]


def require_mss() -> None:
    """Checks that the extra ``screen`` is there.

    Raises:
        BackendError: it is not installed.
    """
    try:
        from mss import MSS  # noqa: F401  # whether it is there, and new enough
    except (ImportError, OSError) as error:
        raise BackendError(
            f"the screen needs mss, which is not here ({error}): pip install 'msmamba[screen]'"
        ) from error


@contextmanager
def _opened() -> Iterator[MSS]:
    """The screens; for one thread.

    Raises:
        SourceError: there are none, or they went away.
    """
    from mss import MSS, ScreenShotError

    screens = None
    try:
        screens = MSS()
        yield screens
    except (ScreenShotError, AssertionError, OSError) as error:  # a lost X server fails an assertion of mss
        reason = reason_of(error) if str(error) else "it went away"
        raise SourceError(f"the screen cannot be read: {reason}") from error
    finally:
        if screens is not None:
            with suppress(ScreenShotError, AssertionError, OSError):
                screens.close()
