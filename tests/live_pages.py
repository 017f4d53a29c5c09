"""A page that is served to sockets and browsers, and results to show on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from msmamba.errors import TargetError
from msmamba.microscope import Result
from msmamba.microscope.live.page.access import Access, Address, listen
from msmamba.microscope.live.page.server import PageServer, serving
from msmamba.microscope.sources import Frame
from msmamba.runtime.quality import quality_of

LABELS = ["basophil", "eosinophil"]
FACTS = {
    "msmamba": "1.0",
    "artefact": "small.fp32",
    "artefact_sha256": "a" * 64,
    "labels": LABELS,
    "source": "demo",
    "runs_by": "CPU",
    "colours": [[213, 94, 0], [0, 114, 178]],
    "may_be_silent": False,
    "folder": "session",
}
LATENCY = {"grab": 0.5, "prepare": 1.0, "network": 2.0, "quality": 1.0, "total": 5.0}


def result(number: int, side: int = 64) -> Result:
    """A frame of one grey, by which it is known: its number times four."""
    pixels = np.full((side, side, 3), 4 * number % 256, np.uint8)
    frame = Frame(pixels, number, time.monotonic(), 0.5, f"#{number}")
    return Result(frame, number, LABELS[0], 0.75, (0.75, 0.25), LATENCY, 5.0, 0, quality_of(pixels))


class Keeper:
    """Notes what the page hands back."""

    def __init__(self) -> None:
        self.ages: dict[int, float] = {}
        self.asked: list[int] = []

    def painted(self, number: int, age_ms: float) -> None:
        self.ages[number] = age_ms

    def snapshot(self, shown: Result, line: dict[str, Any]) -> str:
        assert line["number"] == shown.number
        if self.asked:
            raise TargetError("the disk is full")
        self.asked.append(shown.number)
        return f"snapshots/{shown.number}.png"


class Page:
    """A served page and what is known of it."""

    def __init__(self, served: PageServer, access: Access, keeper: Keeper) -> None:
        self.served = served
        self.access = access
        self.keeper = keeper
        self.host = f"127.0.0.1:{access.port}"

    def show(self, number: int, *, side: int = 64, **said: Any) -> None:
        """Shows a result, and says of it what is given beside."""
        shown = result(number, side)
        self.served.show(shown, {**shown.as_json(), "painted_age_ms": None, **said})

    def get(self, path: str, **headers: str) -> HTTPResponse:
        with closing(HTTPConnection("127.0.0.1", self.access.port, timeout=10)) as connection:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            answer.text = answer.read().decode()  # type: ignore[attr-defined]
            return answer

    def look(self, **headers: str) -> ClientConnection:
        wanted = {"origin": f"http://{self.host}", **headers}
        origin = wanted.pop("origin") or None
        return connect(
            f"ws://{self.host}/stream",
            origin=origin,
            additional_headers=wanted,
            compression=None,
            max_size=None,
        )


@contextmanager
def served(address: Address) -> Iterator[Page]:
    listener, access = listen(address)
    keeper = Keeper()
    with serving(listener, access, FACTS, keeper) as page:
        yield Page(page, access, keeper)
