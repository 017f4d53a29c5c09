"""The screen with mss itself, on an X server of its own: all of it, a part, none, and one that goes away."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
from click.testing import CliRunner

from msmamba.cli import mmdeploy
from msmamba.errors import SourceError
from msmamba.microscope.sources import Frame, open_source

pytest.importorskip("mss")
if shutil.which("Xvfb") is None:
    pytest.skip("there is no Xvfb: 'make test-screen' installs it", allow_module_level=True)

WIDTH, HEIGHT = 640, 480


class Server:
    """Xvfb on a free display."""

    def __init__(self) -> None:
        ready, told = os.pipe()
        screen = ["-screen", "0", f"{WIDTH}x{HEIGHT}x24", "-noreset", "-nolisten", "tcp"]
        self.process = subprocess.Popen(
            ["Xvfb", "-displayfd", str(told), *screen], pass_fds=[told], stderr=subprocess.DEVNULL
        )
        os.close(told)
        with os.fdopen(ready) as said:
            self.display = f":{said.readline().strip()}"

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.end()


@pytest.fixture
def display(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DISPLAY", server.display)
    return server.display


def frames(text: str, count: int = 3) -> list[Frame]:
    with closing(open_source(text).frames()) as items:
        return [item for item in islice(items, count) if isinstance(item, Frame)]


def test_the_whole_screen_and_a_part_of_it(display: str) -> None:
    paint_the_root(display)
    whole = frames("screen")
    assert [frame.number for frame in whole] == [0, 1, 2]
    assert {(frame.pixels.shape, frame.pixels.dtype) for frame in whole} == {
        ((HEIGHT, WIDTH, 3), np.dtype(np.uint8))
    }
    assert whole[0].taken < whole[1].taken < whole[2].taken
    assert list(whole[0].pixels[5, 5]) == [200, 100, 50]
    (part,) = frames("screen:10,20,100,50", 1)
    assert np.array_equal(part.pixels, whole[0].pixels[20:70, 10:110])


def paint_the_root(display: str) -> None:
    """Fills the screen with one colour, through libX11 as any program would."""
    import ctypes
    import ctypes.util

    x11 = ctypes.CDLL(ctypes.util.find_library("X11") or "libX11.so.6")
    x11.XOpenDisplay.restype = ctypes.c_void_p
    x11.XDefaultRootWindow.restype = ctypes.c_ulong
    opened = ctypes.c_void_p(x11.XOpenDisplay(display.encode()))
    root = ctypes.c_ulong(x11.XDefaultRootWindow(opened))
    x11.XSetWindowBackground(opened, root, ctypes.c_ulong(0xC86432))
    x11.XClearWindow(opened, root)
    x11.XSync(opened, 0)
    x11.XCloseDisplay(opened)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("screen:600,400,100,100", "is not on the screen: expected at least 2 x 2 pixels within x 0 to 640"),
        ("screen:0,0,1,9", "is not on the screen"),
        ("screen:2", "there is no screen 2: there are 1"),
        ("screen:a", "expected screen, screen:N or screen:x,y,w,h"),
    ],
    ids=["beyond it", "a line", "another screen", "no place"],
)
def test_what_is_not_on_the_screen_is_named(text: str, said: str, display: str) -> None:
    with pytest.raises(SourceError) as raised:
        frames(text)
    assert said in str(raised.value)


def test_the_list_names_the_screen(display: str) -> None:
    listed = CliRunner().invoke(mmdeploy, ["live", "--list"])
    assert listed.exit_code == 0
    assert f"screen:1  {WIDTH} x {HEIGHT} pixels\n" in listed.stdout


def test_no_screen_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(SourceError, match="the screen cannot be read: ") as raised:
        frames("screen")
    assert "\n" not in str(raised.value)


def test_a_screen_that_goes_away_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Server()
    monkeypatch.setenv("DISPLAY", own.display)
    with closing(open_source("screen").frames()) as items:
        next(items)
        own.end()
        with pytest.raises(SourceError, match="the screen cannot be read"):
            list(islice(items, 3))
