"""The server of the page: newest only, at each viewer's own pace.

The loop hands each result over with `PageServer.show`, which keeps it in the place of the one before and
returns. The server has a thread of its own. Each viewer is sent the newest result once it has taken the one
before: a browser that stops reading has one picture under way, and holds up neither the loop nor others.
A message is one picture with its answer, so the page cannot show the one with the other of another frame.

    to the page     {"hello": …} {"notice": …} {"snapshot": …} {"clock": …} {"end": …}, and pictures:
                    the length of the JSON (4 bytes, little endian), the JSON, the JPEG
    from the page   {"got": number} {"painted": number} {"pause": bool} {"snapshot": number} {"clock": ms}

Who connects and says nothing, or takes nothing, costs a file descriptor, of which the session needs some
itself: connections that are no viewer's are few, and end soon.
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import simplejpeg
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from ....errors import MsmambaError
from ....schema import parsed
from ..loop import Result
from .access import Access, Refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from uvicorn.server import ServerState

_ASSETS = Path(__file__).with_name("assets")
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_LONGEST = 1280  # pixels of a picture's longer side on the page, at most twice that
_QUALITY = 85  # of the JPEG
_SECONDS = 2.0  # over which frames a second are counted, from two at least
_KEPT = 8  # pictures that a viewer has been sent and may ask a snapshot of
_NOTICES = 20  # that wait for a viewer, or greet a new one
_VIEWERS = 16
_LARGEST_MESSAGE = 4096  # bytes; what a page has to say is short
_SHUT_DOWN = 2  # seconds for viewers to take their leave
_LINES = 64  # connections beside those of viewers
_LONGEST_LINE = 20.0  # seconds that one lasts, and that one which is closed may take for what it was sent
_LOOK = 1.0  # seconds between two looks for those that lasted so long

_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Keeper(Protocol):
    """What the page hands back to the session; called from the server's threads."""

    def painted(self, number: int, age_ms: float) -> None:
        """A page has painted a result, which was so old then."""

    def snapshot(self, result: Result, line: dict[str, Any]) -> str:
        """Keeps a picture with its answer, and says under which name.

        Raises:
            MsmambaError: it cannot be kept.
        """


class _Shown:
    """A result as every viewer gets it; encoded once, when the first one wants it."""

    def __init__(self, result: Result, line: dict[str, Any], more: dict[str, Any]) -> None:
        self.result = result
        self.line = line
        self._more = more
        self._message: asyncio.Future[bytes] | None = None

    async def message(self) -> bytes:
        """The picture and its answer."""
        if self._message is None:
            self._message = asyncio.ensure_future(asyncio.to_thread(self._encoded))
        return await asyncio.shield(self._message)

    def _encoded(self) -> bytes:
        pixels = self.result.frame.pixels
        times = math.ceil(max(pixels.shape[:2]) / (2 * _LONGEST) or 1)
        if times > 1:
            pixels = np.asarray(Image.fromarray(pixels).reduce(times))
        picture = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), _QUALITY, "RGB", "420")
        height, width, _ = self.result.frame.pixels.shape
        head = {**self._more, "width": width, "height": height, "result": self.line}
        text = json.dumps(head).encode()
        return len(text).to_bytes(4, "little") + text + picture


class _Viewer:
    """A browser that looks."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self.wake = asyncio.Event()
        self.is_ready = True  # has taken what it was sent
        self.is_paused = False
        self.last: _Shown | None = None
        self.kept: dict[int, _Shown] = {}
        self.notices: deque[dict[str, Any]] = deque(maxlen=2 * _NOTICES)

    def say(self, what: dict[str, Any]) -> None:
        """Leaves a message for it, which older ones make room for."""
        self.notices.append(what)
        self.wake.set()


class PageServer:
    """The page and who looks at it; to be used within `serving`."""

    def __init__(self, access: Access, facts: dict[str, Any], keeper: Keeper) -> None:
        self._access = access
        self._keeper = keeper
        self._hello = {"hello": {"session": secrets.token_hex(8), **facts}}
        self._viewers: set[_Viewer] = set()
        self._newest: _Shown | None = None
        self._said: deque[dict[str, Any]] = deque(maxlen=_NOTICES)
        self._times: deque[tuple[float, int]] = deque()
        self._dropped = 0
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def viewers(self) -> int:
        """How many browsers look."""
        return len(self._viewers)

    # What the session's thread calls.

    def show(self, result: Result, line: dict[str, Any]) -> None:
        """Has the viewers see a result; returns at once.

        Args:
            result: the result.
            line: what is said of it.
        """
        now = time.monotonic()
        self._dropped += result.dropped
        self._times.append((now, result.number))
        while len(self._times) > 2 and now - self._times[0][0] > _SECONDS:
            self._times.popleft()
        (first, number), seconds = self._times[0], max(now - self._times[0][0], 1e-9)
        known = len(self._times) > 1 and now > first
        more = {
            "taken_ms": result.frame.taken * 1e3,
            "frames_a_second": (len(self._times) - 1) / seconds if known else None,
            "taken_a_second": (result.number - number) / seconds if known else None,
            "dropped_in_all": self._dropped,
        }
        self._from_outside(self._renew, _Shown(result, line, more))

    def notice(self, text: str) -> None:
        """Tells the viewers, those that come later as well, what was reported."""
        self._from_outside(self._tell, {"notice": text})

    def end(self, text: str) -> None:
        """Tells the viewers that no more pictures come, and why."""
        self._from_outside(self._tell, {"end": text})

    def _from_outside(self, call: Callable[..., None], *arguments: Any) -> None:
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(call, *arguments)

    # What runs in the server's own thread.

    def _renew(self, shown: _Shown) -> None:
        self._newest = shown
        for viewer in self._viewers:
            viewer.wake.set()

    def _tell(self, what: dict[str, Any]) -> None:
        self._said.append({**what, "at": time.time() * 1e3})
        for viewer in self._viewers:
            viewer.say(self._said[-1])

    def application(self) -> ASGIApp:
        """The routes, behind what a request has to bring."""
        assets = [path for path in _ASSETS.iterdir() if path.suffix in _KINDS and path.name != "index.html"]
        routes = [Route(f"/{path.name}", self._asset(path), methods=["GET"]) for path in assets]
        return _Guarded(
            Starlette(
                routes=[
                    Route("/", self._index, methods=["GET"]),
                    WebSocketRoute("/stream", self._stream),
                    *routes,
                ]
            ),
            self._access,
        )

    def _asset(self, path: Path) -> Callable[[Request], Awaitable[Response]]:
        async def send(request: Request) -> Response:
            if not self._may_look(request.cookies):
                return _refused(_UNKNOWN)
            return FileResponse(path, media_type=_KINDS[path.suffix])

        return send

    async def _index(self, request: Request) -> Response:
        token = request.query_params.get("token")
        if token is not None and self._access.token is not None and self._access.knows(token):
            answer = RedirectResponse("/", 303)  # so that the token stays in no address bar
            answer.set_cookie(self._access.cookie, token, httponly=True, samesite="lax", path="/")
            return answer
        if not self._may_look(request.cookies):
            return _refused(_UNKNOWN)
        # Safari before 15.4 does not take a WebSocket for 'self'; the host has been checked.
        policy = (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
            f"connect-src 'self' ws://{request.headers['host']}; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        return FileResponse(
            _ASSETS / "index.html",
            media_type=_KINDS[".html"],
            headers={"Content-Security-Policy": policy},
        )

    def _may_look(self, cookies: dict[str, str]) -> bool:
        return self._access.knows(cookies.get(self._access.cookie))

    async def _stream(self, socket: WebSocket) -> None:
        if not self._may_look(socket.cookies):
            await socket.send_denial_response(_refused(_UNKNOWN))
            return
        if len(self._viewers) >= _VIEWERS:
            await socket.send_denial_response(_refused(Refusal(503, f"{_VIEWERS} browsers look already")))
            return
        await socket.accept()
        viewer = _Viewer(socket)
        viewer.notices.extend([self._hello, *self._said])
        viewer.wake.set()
        self._viewers.add(viewer)
        sender = asyncio.create_task(self._send(viewer))
        try:
            with suppress(WebSocketDisconnect):
                while True:
                    await self._hear(viewer, await socket.receive_text())
        except (ValueError, TypeError, KeyError):  # what no page of ours says
            with suppress(WebSocketDisconnect, RuntimeError):
                await socket.close(1008)
        finally:
            self._viewers.discard(viewer)
            sender.cancel()
            with suppress(asyncio.CancelledError):
                await sender

    async def _send(self, viewer: _Viewer) -> None:
        """What there is to say, then the newest picture, whenever the viewer has taken the one before."""
        with suppress(WebSocketDisconnect, RuntimeError):  # it went while it was sent something
            while True:
                await viewer.wake.wait()
                viewer.wake.clear()
                while viewer.notices:
                    await viewer.socket.send_text(json.dumps(viewer.notices.popleft()))
                shown = self._newest
                if viewer.is_ready and not viewer.is_paused and shown not in (None, viewer.last):
                    assert shown is not None
                    viewer.is_ready, viewer.last = False, shown
                    viewer.kept[shown.result.number] = shown
                    while len(viewer.kept) > _KEPT:
                        del viewer.kept[next(iter(viewer.kept))]
                    await viewer.socket.send_bytes(await shown.message())

    async def _hear(self, viewer: _Viewer, text: str) -> None:
        """What a page says.

        Raises:
            ValueError, TypeError, KeyError: it makes no sense.
        """
        message = parsed(text)
        if not isinstance(message, dict):
            raise ValueError("a page says one thing at a time, by its name")
        ((what, value),) = message.items()
        if what == "got":
            viewer.is_ready = True
            viewer.wake.set()
        elif what == "painted":
            shown = viewer.kept.get(value)
            if shown is not None:
                age_ms = (time.monotonic() - shown.result.frame.taken) * 1e3
                self._keeper.painted(value, age_ms)
                # It goes forward only: earlier ones are not asked for any more.
                viewer.kept = {number: kept for number, kept in viewer.kept.items() if number >= value}
        elif what == "pause":
            if viewer.is_paused and not value:
                viewer.last = None  # which may have come when the page was paused already, and was let go
            viewer.is_paused = bool(value)
            viewer.wake.set()
        elif what == "snapshot":
            viewer.say({"snapshot": await self._snapshot(viewer.kept.get(value))})
        elif what == "clock":
            viewer.say({"clock": float(value), "server_ms": time.monotonic() * 1e3})
        else:
            raise ValueError(f"'{what}' is nothing that a page says")

    async def _snapshot(self, shown: _Shown | None) -> dict[str, str]:
        if shown is None:
            return {"error": "that picture is not here any more"}
        try:
            return {"name": await asyncio.to_thread(self._keeper.snapshot, shown.result, shown.line)}
        except MsmambaError as error:
            return {"error": str(error)}


class _Line(H11Protocol):
    """A connection that is no viewer's, or not yet: where there are too many, the oldest makes room."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as H11Protocol
        """Is called with each new one."""
        super().connection_made(transport)
        self.made = self.loop.time()
        lines = [each for each in self.connections if isinstance(each, _Line)]
        lines = [each for each in lines if not each.transport.is_closing()]
        if len(lines) > _LINES:
            min(lines, key=lambda each: each.made).transport.abort()


async def _end_old_lines(state: ServerState) -> None:
    """Ends connections that last too long: those of no viewer, and those that should be closed by now.

    Uvicorn waits for ever: for a request, and before it closes one, for what was sent to be taken.
    """
    since: dict[Any, float] = {}
    while True:
        now = asyncio.get_running_loop().time()
        there = [each for each in state.connections if isinstance(each, _Line) or each.transport.is_closing()]
        since = {each: since.get(each, now) for each in there}
        for line, first in since.items():
            if now - first >= _LONGEST_LINE:
                line.transport.abort()
        await asyncio.sleep(_LOOK)


class _Guarded:
    """An application that answers to its own names and pages only, and safely."""

    def __init__(self, application: ASGIApp, access: Access) -> None:
        self._application = application
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_socket = scope["type"] == "websocket"
        refusal = self._access.refusal(Headers(scope=scope), is_socket=is_socket)
        if refusal is None:
            await self._application(scope, receive, _with_headers(send))
        elif is_socket:
            await WebSocket(scope, receive, send).send_denial_response(_refused(refusal))
        else:
            await _refused(refusal)(scope, receive, _with_headers(send))


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message["headers"]}
            more = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
            message["headers"] = [*message["headers"], *(pair for pair in more if pair[0] not in there)]
        await send(message)

    return sending


_UNKNOWN = Refusal(401, "this address is not, or no longer, valid: open the one that mmdeploy printed")


def _refused(refusal: Refusal) -> Response:
    return PlainTextResponse(f"{refusal.reason}\n", refusal.status)


@contextmanager
def serving(
    listener: socket.socket, access: Access, facts: dict[str, Any], keeper: Keeper
) -> Iterator[PageServer]:
    """The page, while the block runs; then viewers are sent away and the port is free again.

    Args:
        listener: from `listen`; it is closed in the end.
        access: from `listen`.
        facts: what the page says of the session: artefact, sha256, labels, colours, source, …
        keeper: what the page hands back.
    """
    page = PageServer(access, facts, keeper)
    server = uvicorn.Server(
        uvicorn.Config(
            page.application(),
            http=_Line,
            backlog=_LINES,  # as many are accepted at once
            ws="websockets-sansio",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="critical",  # what clients do wrong is not the session's to report
            access_log=False,
            server_header=False,
            ws_max_size=_LARGEST_MESSAGE,
            ws_per_message_deflate=False,  # JPEG is compressed
            timeout_graceful_shutdown=_SHUT_DOWN,
        )
    )
    failure: list[BaseException] = []

    async def serve() -> None:
        page.loop = asyncio.get_running_loop()
        ending = asyncio.create_task(_end_old_lines(server.server_state))
        await server.serve(sockets=[listener])
        ending.cancel()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # raised again by whoever waits for the thread
            failure.append(error)

    thread = Thread(target=run, name="page", daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        if failure:
            raise failure.pop()
        yield page
    finally:
        page.end("the session has ended")
        server.should_exit = True  # which it looks at ten times a second, so that is said before
        thread.join()
        listener.close()
        if failure:
            raise failure[0]
