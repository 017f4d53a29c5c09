"""The page's server, over real sockets: who may look, newest only, and nobody who holds up others."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from live_pages import LABELS, Page, result, served
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from msmamba.cli import mmdeploy
from msmamba.errors import InputError
from msmamba.microscope.live.page import server
from msmamba.microscope.live.page.access import Address, listen, url_of


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with served(Address(0)) as opened:
        yield opened


def hear(viewer: ClientConnection, name: str) -> Any:
    """The next message of a kind."""
    while True:
        message = viewer.recv(timeout=10)
        if isinstance(message, str) and name in (said := json.loads(message)):
            return said


def picture(viewer: ClientConnection, number: int | None = None) -> tuple[dict[str, Any], np.ndarray]:
    """The next picture, or that of a number, and what is said of it; it is not acknowledged."""
    while True:
        message = viewer.recv(timeout=10)
        if isinstance(message, bytes):
            length = int.from_bytes(message[:4], "little")
            head = json.loads(message[4 : 4 + length])
            if number in (None, head["result"]["number"]):
                return head, np.asarray(Image.open(BytesIO(message[4 + length :])))
            say(viewer, got=head["result"]["number"])  # what was the newest before


def say(viewer: ClientConnection, **what: Any) -> None:
    viewer.send(json.dumps(what))


def until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not holds() and time.monotonic() < ends:
        time.sleep(0.01)
    assert holds()


def test_the_page_and_all_that_it_loads_come_from_here(page: Page) -> None:
    index = page.get("/")
    assert index.status == 200
    policy = index.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    waiting, loaded = ["/"], {}
    while waiting:
        path = waiting.pop()
        answer = page.get(path)
        assert answer.status == 200, path
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        loaded[path] = answer.headers["content-type"].partition(";")[0]
        text = answer.text  # type: ignore[attr-defined]
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text), path
        assert not re.findall(r"\sstyle=|\son\w+=|<script(?![^>]*src=)", text) or path.endswith(".js"), path
        waiting += [
            each
            for each in re.findall(r"(?:src|href)=\"(/[^\"]+)|from \"(/[^\"]+)", text)
            for each in each
            if each
        ]
        waiting = [each for each in waiting if each not in loaded]
    assert loaded == {
        "/": "text/html",
        "/icon.svg": "image/svg+xml",
        "/page.css": "text/css",
        "/page.js": "text/javascript",
        "/connection.js": "text/javascript",
        "/picture.js": "text/javascript",
    }


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {"Host": "evil.example"}, 421),
        ("/", {"Host": "evil.example:8420"}, 421),
        ("/", {"Host": "localhost@evil.example"}, 421),
        ("/", {"Host": "127.0.0.1.evil.example"}, 421),
        ("/", {"Host": ""}, 421),
        ("/", {"Host": "localhost:99999999"}, 421),
        ("/page.js", {"Origin": "http://evil.example"}, 403),
        ("/page.js", {"Origin": "null"}, 403),
        ("/page.js", {"Origin": "http://[::1"}, 403),
        ("/", {"Host": "localhost"}, 200),
        ("/", {"Host": "[::1]:8420"}, 200),
        ("/../server.py", {}, 404),
        ("/%2e%2e/server.py", {}, 404),
        ("/index.html", {}, 404),
    ],
)
def test_others_names_and_pages_are_refused(
    page: Page, path: str, headers: dict[str, str], status: int
) -> None:
    assert page.get(path, **headers).status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[::1"}, 403),
    ],
)
def test_sockets_of_other_pages_are_refused(page: Page, headers: dict[str, str], status: int) -> None:
    with pytest.raises(InvalidStatus) as refused:
        page.look(**headers)
    assert refused.value.response.status_code == status


def test_a_picture_comes_with_its_own_answer(page: Page) -> None:
    with page.look() as viewer:
        assert hear(viewer, "hello")["hello"]["labels"] == LABELS
        for number in (7, 9):
            page.show(number)
            head, pixels = picture(viewer, number)
            assert abs(pixels.astype(int) - 4 * number).max() <= 2
            assert (head["width"], head["height"], pixels.shape) == (64, 64, (64, 64, 3))
            say(viewer, got=number)


def test_the_pace_of_slow_pictures_is_known_too(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_SECONDS", 0.01)
    with page.look() as viewer:
        for number in (10, 14):
            page.show(number)
            head, _ = picture(viewer, number)
            say(viewer, got=number)
            time.sleep(0.05)
    assert 0 < head["frames_a_second"] < 20
    assert head["taken_a_second"] == pytest.approx(4 * head["frames_a_second"])


def test_large_pictures_are_sent_smaller(page: Page) -> None:
    page.show(3, side=5200)
    with page.look() as viewer:
        head, pixels = picture(viewer, 3)
    assert (head["width"], pixels.shape) == (5200, (1734, 1734, 3))


def test_who_stops_reading_is_sent_one_picture_and_holds_up_nobody(page: Page) -> None:
    with page.look() as asleep, page.look() as awake:
        page.show(20)
        picture(asleep, 20)
        for number in range(21, 61):
            page.show(number)
            picture(awake, number)
            say(awake, got=number)
        with pytest.raises(TimeoutError):
            asleep.recv(timeout=0.1)
        say(asleep, got=20)
        assert picture(asleep)[0]["result"]["number"] == 60  # the newest, none of those between


def test_who_pauses_is_sent_nothing_until_it_goes_on(page: Page) -> None:
    with page.look() as viewer:
        page.show(1)
        picture(viewer, 1)
        say(viewer, pause=True)
        say(viewer, got=1)
        say(viewer, clock=1.5)
        hear(viewer, "clock")
        page.show(2)
        with pytest.raises(TimeoutError):
            viewer.recv(timeout=0.1)
        say(viewer, pause=False)
        assert picture(viewer)[0]["result"]["number"] == 2


def test_who_goes_on_is_sent_what_came_when_it_paused(page: Page) -> None:
    with page.look() as viewer:
        page.show(1)
        picture(viewer, 1)
        say(viewer, pause=True)  # crossed by the picture, which a paused page lets go
        say(viewer, got=1)
        say(viewer, pause=False)
        assert picture(viewer)[0]["result"]["number"] == 1
        say(viewer, got=1)
        say(viewer, pause=False)
        with pytest.raises(TimeoutError):
            viewer.recv(timeout=0.1)


def test_the_age_is_taken_when_the_page_says_that_it_has_painted(page: Page) -> None:
    with page.look() as viewer:
        page.show(70)
        picture(viewer, 70)
        time.sleep(0.05)
        say(viewer, painted=70)
        say(viewer, painted=71)  # which it was not sent
        until(lambda: 70 in page.keeper.ages)
    assert 50 <= page.keeper.ages[70] < 10_000
    assert 71 not in page.keeper.ages


def test_a_snapshot_is_of_a_picture_that_the_page_has(page: Page) -> None:
    with page.look() as viewer:
        page.show(80)
        picture(viewer, 80)
        say(viewer, snapshot=80)
        assert hear(viewer, "snapshot")["snapshot"] == {"name": "snapshots/80.png"}
        say(viewer, snapshot=81)
        assert hear(viewer, "snapshot")["snapshot"] == {"error": "that picture is not here any more"}
        say(viewer, snapshot=80)
        assert hear(viewer, "snapshot")["snapshot"] == {"error": "the disk is full"}
    assert page.keeper.asked == [80]


def test_the_clocks_can_be_compared(page: Page) -> None:
    with page.look() as viewer:
        say(viewer, clock=12.5)
        said = hear(viewer, "clock")
    assert said["clock"] == 12.5
    assert abs(said["server_ms"] / 1e3 - time.monotonic()) < 10


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        "[]",
        "7",
        "{}",
        '{"got": 1, "painted": 2}',
        '{"dance": 1}',
        '{"clock": {}}',
        '{"painted": []}',
        "[" * 4000,
    ],
)
def test_nonsense_ends_the_connection_and_nothing_else(page: Page, message: str) -> None:
    with page.look() as viewer:
        viewer.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            hear(viewer, "nothing")
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    assert page.get("/").status == 200


def test_a_long_message_ends_the_connection(page: Page) -> None:
    with page.look() as viewer:
        viewer.send(json.dumps({"got": "x" * 5000}))
        with pytest.raises(ConnectionClosed) as closed:
            hear(viewer, "nothing")
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


def test_there_are_not_more_viewers_than_it_serves(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_VIEWERS", 2)
    with ExitStack() as stack:
        for _ in range(2):
            hear(stack.enter_context(page.look()), "hello")
        with pytest.raises(InvalidStatus) as refused:
            page.look()
        assert refused.value.response.status_code == 503
    until(lambda: page.served.viewers == 0)
    with page.look() as viewer:
        hear(viewer, "hello")


def ended(line: socket.socket) -> bool:
    """Whether the other side ends a connection; what it sends before is read."""
    line.settimeout(10)
    try:
        while line.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n1",
    ],
    ids=["nothing", "half a request", "half a body"],
)
def test_who_says_nothing_or_not_all_of_it_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(server, "_LOOK", 0.01)
    with served(Address(0)) as page, page.look() as viewer:
        with socket.create_connection(("127.0.0.1", page.access.port)) as line:
            line.sendall(said)
            monkeypatch.setattr(server, "_LONGEST_LINE", 0.0)
            assert ended(line)
        say(viewer, clock=1.0)  # a viewer stays for as long as it looks
        hear(viewer, "clock")


def test_of_too_many_who_say_nothing_the_oldest_makes_room(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_LINES", 3)
    with page.look() as viewer, ExitStack() as stack:
        lines = [
            stack.enter_context(socket.create_connection(("127.0.0.1", page.access.port))) for _ in range(6)
        ]
        assert all(map(ended, lines[:3]))
        assert page.get("/").status == 200
        assert ended(lines[3])
        assert lines[5].send(b"GET") == 3
        say(viewer, clock=1.0)
        hear(viewer, "clock")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists what a process has open")
def test_who_leaves_and_takes_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path("/proc/self/fd")
    monkeypatch.setattr(server, "_LOOK", 0.01)
    with served(Address(0)) as page, socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        before = len(list(opened.iterdir()))
        line.connect(("127.0.0.1", page.access.port))
        wants = ["GET /stream HTTP/1.1", f"Host: {page.host}", f"Origin: http://{page.host}"]
        wants += ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
        line.sendall("\r\n".join([*wants, f"Sec-WebSocket-Key: {'A' * 22}==", "", ""]).encode())
        until(lambda: page.served.viewers == 1)
        # More than what systems keep of a connection by themselves.
        page.served.show(result(1), {**result(1).as_json(), "note": "x" * (16 << 20)})
        until(lambda: b"xxx" in line.recv(1 << 12))
        line.sendall(b"\x88\x80\0\0\0\0")  # it closes
        until(lambda: page.served.viewers == 0)
        assert len(list(opened.iterdir())) == before + 1
        monkeypatch.setattr(server, "_LONGEST_LINE", 0.0)
        until(lambda: len(list(opened.iterdir())) == before)


def test_what_was_reported_is_told_to_who_comes_later(page: Page) -> None:
    page.served.notice("the cable is out")
    with page.look() as viewer:
        assert hear(viewer, "hello")
        assert hear(viewer, "notice")["notice"] == "the cable is out"


def test_with_a_host_only_who_has_the_token_may_look() -> None:
    with served(Address(0, "127.0.0.1")) as page:
        token = page.access.token
        assert token is not None
        assert url_of(Address(0, "127.0.0.1"), page.access) == f"http://{page.host}/?token={token}"
        assert token not in repr(page.access)
        for path in ("/", "/page.js", "/?token=guess", "/?token=", f"/page.js?token={token}"):
            assert page.get(path).status == 401, path
        with pytest.raises(InvalidStatus) as refused:
            page.look()
        assert refused.value.response.status_code == 401
        entered = page.get(f"/?token={token}")
        assert (entered.status, entered.headers["location"]) == (303, "/")
        cookie, _, kind = entered.headers["set-cookie"].partition("; ")
        assert {"HttpOnly", "SameSite=lax"} <= set(kind.split("; "))
        assert page.get("/", Cookie=cookie).status == 200
        assert page.get("/", Cookie=cookie[:-1]).status == 401
        with page.look(Cookie=cookie) as viewer:
            hear(viewer, "hello")
        with pytest.raises(InvalidStatus):
            page.look(Cookie=cookie, origin="http://evil.example")


def test_the_address_for_all_of_the_network_is_one_that_others_can_open() -> None:
    address = Address(0, "0.0.0.0")
    listener, access = listen(address)
    with closing(listener):
        found = re.fullmatch(r"http://([\d.]+):(\d+)/\?token=(.{43})", url_of(address, access))
        assert found
        assert found[1] != "0.0.0.0"
        assert (int(found[2]), found[3]) == (access.port, access.token)


def test_when_it_ends_viewers_are_told_and_the_port_is_free() -> None:
    with ExitStack() as outside:
        with served(Address(0)) as page:
            viewer = outside.enter_context(page.look())
            asleep = outside.enter_context(page.look())
            page.show(1)
            assert hear(asleep, "hello")
        assert hear(viewer, "end")["end"] == "the session has ended"
        with pytest.raises(ConnectionClosed) as closed:
            hear(viewer, "nothing")
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        with served(Address(page.access.port)):
            pass


def test_a_port_that_is_taken_is_one_line(bundles: dict[str, Path], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = CliRunner().invoke(
            mmdeploy,
            ["live", str(bundles["fp32"]), "demo", "--port", str(port), "-o", str(tmp_path / "session")],
        )
    assert done.exit_code == 1
    assert done.stderr == (
        f"error: port {port} of 127.0.0.1 is taken, perhaps by another session: choose another with --port, "
        "or --port 0 for one that is free\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "host", ["192.0.2.7", "no such host", "http://localhost", "127.0.0.1:8420", "a..b", "a" * 300]
)
def test_a_host_that_is_not_this_machine_is_one_line(host: str) -> None:
    with pytest.raises(InputError, match=f"'{host}' (is no|cannot be looked).* 0.0.0.0 for all") as told:
        listen(Address(0, host))
    assert "rrno" not in str(told.value)


def test_without_the_extra_it_says_what_to_install(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = CliRunner().invoke(mmdeploy, ["live", str(bundles["fp32"]), "demo"])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: the page needs Starlette, Uvicorn, websockets and Jinja")
    assert done.stderr.endswith("pip install 'msmamba[live]', or print lines of JSON with --no-page\n")
    assert list(tmp_path.iterdir()) == []


def test_the_command_has_a_page_and_leaves_a_session(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(
        mmdeploy, ["live", str(bundles["fp32"]), "demo", "--frames", "3", "--port", "0"]
    )
    assert done.exit_code == 0, done.output
    (folder,) = tmp_path.iterdir()
    assert re.fullmatch(r"live-\d{4}(-\d\d){5}", folder.name)
    first, *others = done.stdout.splitlines()
    assert re.fullmatch(r"the page: http://127\.0\.0\.1:\d+/", first)
    assert others == [f"the session: {folder.name}", f"the report: {folder.name}/report.html"]
    assert len((folder / "session.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_the_page_stays_when_the_source_has_ended(
    bundles: dict[str, Path], micrographs: Path, tmp_path: Path
) -> None:
    done = CliRunner().invoke(
        mmdeploy,
        [
            *("live", str(bundles["fp32"]), str(micrographs), "--keep-all", "--seconds", "1", "--port", "0"),
            *("-o", str(tmp_path / "session")),
        ],
    )
    assert done.exit_code == 0, done.output
    assert f"'{micrographs}' has ended; the page stays until Ctrl-C" in done.stderr
    lines = (tmp_path / "session" / "session.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["dropped"] for line in lines] == [0] * 12


@pytest.mark.parametrize("option", ["--port=0", "--host=0.0.0.0"])
def test_the_pages_options_need_a_page(option: str) -> None:
    done = CliRunner().invoke(mmdeploy, ["live", "cells.fp32", "demo", "--no-page", option])
    assert done.exit_code == 2
    assert "--port and --host are the page's" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals to one process")
@pytest.mark.parametrize(
    ("name", "status", "said"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "ended by SIGTERM")]
)
def test_a_signal_ends_it_cleanly_with_a_browser_looking(
    bundles: dict[str, Path], tmp_path: Path, name: str, status: int, said: str
) -> None:
    # As a terminal starts it: what runs these tests may ignore the signal, and children inherit that.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{heeding}; from msmamba.cli import main; main()"]
    command += [
        "live",
        str(bundles["fp32"]),
        "demo",
        "--port",
        "0",
        "-o",
        str(tmp_path / "s"),
        "--threads",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        host = process.stdout.readline().removeprefix("the page: http://").strip("/\n")
        with connect(f"ws://{host}/stream", origin=f"http://{host}", compression=None) as viewer:
            head, _ = picture(viewer)
            say(viewer, painted=head["result"]["number"])
            process.send_signal(getattr(signal, name))
            assert hear(viewer, "end")["end"] == "the session has ended"
            rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (status, f"{said}\n")
    assert rest.splitlines()[-1] == f"the report: {tmp_path / 's' / 'report.html'}"
    lines = (tmp_path / "s" / "session.jsonl").read_text(encoding="utf-8").splitlines()
    (painted,) = [line for line in map(json.loads, lines) if line["painted_age_ms"] is not None]
    assert painted["number"] == head["result"]["number"]
    assert painted["painted_age_ms"] > painted["frame_age_ms"]
