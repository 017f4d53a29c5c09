"""Cameras, network streams and video files, through PyAV, which has FFmpeg in it.

A read from a file or the network has a time limit, which FFmpeg keeps itself: a server that hangs ends in an
error, not in a thread that never returns. A camera's driver may block all the same; the loop tells of that.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BackendError, ImageError, SourceError, reason_of
from ...images import MAX_PIXELS, load_image
from .frame import Frame

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from numpy.typing import NDArray

SUFFIXES = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv"),
        *(".flv", ".ogv", ".mjpg", ".mjpeg", ".h264", ".h265", ".hevc", ".y4m", ".gif"),
    }
)
"""Suffixes, in lower case, by which a file is a video."""

PROTOCOLS = ("rtsp", "rtsps", "http", "https")
"""Protocols of streams from the network."""

_SECRET = re.compile(
    r"([^=&/?#]*(?:(?:pas|psw|pwd|auth|token|secret|key|credential|session)[^=&/?#]*|pw|sid)=)[^&]+",
    re.IGNORECASE,
)
"""A parameter whose value logs in, by the names of many makers; some cameras have it in the path."""
_HOST = re.compile(r"[^:]*(:\d*)?|\[.*")
"""A host, and its port."""

_OPENING, _READING = 10.0, 5.0  # seconds that opening, and waiting for the next picture, may take
_LATE = 0.2  # seconds that a video's pictures may lag before its clock is put back
_SLICE = 0.1  # seconds slept at once: whoever reads may stop
_CLOCK = 10.0  # seconds that a camera's time stamp may lie in the past to be one of this machine's clock

_DEVICES = {"linux": "v4l2", "win32": "dshow", "darwin": "avfoundation"}
"""FFmpeg's name of a system's cameras."""


class Stream:
    """A camera, or a stream from the network: its pictures as they come."""

    endless = True
    keeps = False
    stalls_after: float | None = _READING

    def __init__(
        self, name: str, file: str, kind: str | None, options: dict[str, str], white_level: int
    ) -> None:
        """A stream; nothing is opened yet.

        Args:
            name: what it is called in reports.
            file: the address, or the device, as FFmpeg has it.
            kind: FFmpeg's name of the kind of device; None for addresses.
            options: FFmpeg's.
            white_level: the value of white in 16-bit grey.

        Raises:
            BackendError: the extra ``camera`` is not installed.
        """
        require_av()
        self.name = name
        self._file = file
        self._kind = kind
        self._options = {"fflags": "nobuffer", "flags": "low_delay", **options}
        self._white_level = white_level

    def frames(self) -> Iterator[Frame | ImageError | None]:
        """A frame for each picture that can be decoded.

        Raises:
            SourceError: it is not there, is busy, has no picture, hangs or went away.
        """
        with _opened(self.name, self._file, self._kind, self._options) as container:
            number = 0
            for packet, came in _packets(container, self.name):
                for picture in _decoded(packet, f"{self.name} #{number}"):
                    if isinstance(picture, ImageError):
                        yield picture
                        continue
                    taken = _taken(packet, came) if self._kind else came
                    item = _frame(picture, f"{self.name} #{number}", number, taken, self._white_level)
                    number += isinstance(item, Frame)
                    yield item


class Video:
    """A video file, once: at its own pace, or every picture as it is asked for."""

    endless = False
    keeps = True
    stalls_after: float | None = None

    def __init__(self, path: Path, white_level: int, paced: bool) -> None:
        """A video file.

        Args:
            path: the file.
            white_level: the value of white in 16-bit grey.
            paced: whether its pictures come when they are due, as from a camera.

        Raises:
            BackendError: the extra ``camera`` is not installed.
        """
        require_av()
        self.name = os.fspath(path)
        self._white_level = white_level
        self._paced = paced

    def frames(self) -> Iterator[Frame | ImageError | None]:
        """A frame for each picture that can be decoded.

        Raises:
            SourceError: it is no video, or ends in the middle of one.
        """
        # A file may be called as an address is, or as one of FFmpeg's ways to read others.
        with _opened(self.name, f"file:{self.name}", None, {}) as container:
            (stream, *_) = container.streams.video
            interval = float(1 / (stream.average_rate or 25))
            number, start = 0, time.monotonic()
            first: float | None = None
            for packet, came in _packets(container, self.name):
                for picture in _decoded(packet, f"{self.name} #{number}"):
                    if isinstance(picture, ImageError):
                        yield picture
                        continue
                    taken = came
                    if self._paced:
                        at = picture.time if picture.time is not None else number * interval
                        first = at if first is None else first
                        taken = start + at - first
                        while (left := taken - time.monotonic()) > 0:
                            time.sleep(min(left, _SLICE))
                            if left > _SLICE:
                                yield None
                        if -left > _LATE:
                            start, taken = start - left, taken - left
                    item = _frame(picture, f"{self.name} #{number}", number, taken, self._white_level)
                    number += isinstance(item, Frame)
                    yield item


def camera(text: str, white_level: int) -> Stream:
    """A camera by its number, its device file or its name.

    Raises:
        BackendError: the extra ``camera`` is not installed.
        SourceError: this system's cameras cannot be opened, or it has no such number.
    """
    require_av()
    kind = _DEVICES.get(sys.platform)
    if kind is None:
        raise SourceError(f"'{text}': cameras are opened on Linux, Windows and macOS, not on {sys.platform}")
    options: dict[str, str] = {}
    if kind == "v4l2":
        file = f"/dev/video{text}" if text.isdecimal() else text
    elif kind == "dshow":
        names = [name for name, _ in cameras()]
        if text.isdecimal() and int(text) >= len(names):
            raise SourceError(f"there is no camera {text}: 'mmdeploy live --list' names those that are there")
        file = f"video={names[int(text)] if text.isdecimal() else text}"
    else:
        file, options = f"{text}:none", {"framerate": "30"}
    return Stream(text, file, kind, options, white_level)


def address(text: str, white_level: int) -> Stream:
    """A stream from the network, by its address: RTSP over TCP, MJPEG and others over HTTP.

    Raises:
        BackendError: the extra ``camera`` is not installed.
    """
    options = {"rtsp_transport": "tcp"} if text.startswith("rtsp") else {}
    return Stream(_without_password(text), text, None, options, white_level)


def _without_password(text: str) -> str:
    """An address as it may stand in reports, in sessions and on the page."""
    scheme, slashes, rest = text.partition("://")
    place = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" not in place and not _HOST.fullmatch(place):
        place = rest  # a password with one of these characters, which opens nothing, and whose error is told
    who, at, _ = place.rpartition("@")
    after = _SECRET.sub(r"\1…", rest[len(who + at) :])
    return f"{scheme}{slashes}{who.partition(':')[0]}{at}{after}"


def cameras() -> list[tuple[str, str]]:
    """The cameras that are there: what to type for each, and what its driver calls it.

    Raises:
        BackendError: the extra ``camera`` is not installed.
    """
    require_av()
    from av.device import enumerate_input_devices

    kind = _DEVICES.get(sys.platform)
    found = enumerate_input_devices(kind) if kind else []
    return [
        (each.description if kind == "dshow" else each.name, each.description)
        for each in found
        if not each.media_types or "video" in each.media_types
    ]


def require_av() -> None:
    """Checks that the extra ``camera`` is there, and keeps FFmpeg's own messages off standard error.

    Raises:
        BackendError: it is not installed.
    """
    try:
        import av.logging
    except (ImportError, OSError) as error:
        raise BackendError(
            f"cameras, streams and videos need PyAV, which is not here ({error}): pip install "
            "'msmamba[camera]'"
        ) from error
    av.logging.set_level(None)


@contextmanager
def _opened(name: str, file: str, kind: str | None, options: dict[str, str]) -> Iterator[InputContainer]:
    """The opened stream or file, which has a picture.

    Raises:
        SourceError: it cannot be opened, or has none.
    """
    import av

    try:
        container = av.open(file, format=kind, options=options, timeout=(_OPENING, _READING))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise SourceError(f"'{name}' cannot be opened: {_reason(error, kind is not None)}") from error
    with container:
        if not container.streams.video:
            raise SourceError(f"'{name}' has no picture in it: expected a video")
        stream = container.streams.video[0]
        if (stream.width or 0) * (stream.height or 0) > MAX_PIXELS:
            raise SourceError(
                f"'{name}' has pictures of {stream.width} x {stream.height} pixels: expected at most "
                f"{MAX_PIXELS:,}"
            )
        # Threads by picture would hold pictures back, and take the network's cores.
        stream.thread_type = "NONE"
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # of those that come larger later
        yield container


def _packets(container: InputContainer, name: str) -> Iterator[tuple[Packet[Any], float]]:
    """What the stream holds, picture by picture, and when each came.

    Raises:
        SourceError: the stream hangs or went away.
    """
    import av

    try:
        for packet in container.demux(container.streams.video[0]):
            yield packet, time.monotonic()
    except av.EOFError:
        return
    except (av.FFmpegError, OSError) as error:
        raise SourceError(f"'{name}' cannot be read on: {_reason(error, False)}") from error


def _decoded(packet: Packet[Any], name: str) -> Iterator[VideoFrame | ImageError]:
    """The pictures that a packet completes, mostly one, or why there is none."""
    import av

    try:
        pictures = packet.decode()
    except (av.FFmpegError, ValueError):
        yield ImageError(f"{name} is damaged: it cannot be decoded")
        return
    for picture in pictures:
        yield ImageError(f"{name} is damaged: parts of it are missing") if picture.is_corrupt else picture


def _frame(picture: VideoFrame, name: str, number: int, taken: float, white_level: int) -> Frame | ImageError:
    import av

    began = time.monotonic()
    notes: tuple[str, ...] = ()
    try:
        if picture.format.name.startswith("gray16"):  # 10 and 12 bits that their own formats name are scaled
            image = load_image(picture.to_ndarray(), white_level=white_level)
            pixels, notes = image.pixels, image.notes
        else:
            pixels = np.asarray(picture.to_ndarray(format="rgb24"), np.uint8)
        pixels = _upright(pixels, picture)
    except (av.FFmpegError, ValueError) as error:
        return ImageError(f"{name} cannot be made RGB from {picture.format.name}: {_reason(error, False)}")
    return Frame(pixels, number, taken, (time.monotonic() - began) * 1e3, name, notes=notes)


def _upright(pixels: NDArray[np.uint8], picture: VideoFrame) -> NDArray[np.uint8]:
    """As phones film upright, and mirrored; players turn it, and so does EXIF's orientation a photograph."""
    try:
        matrix: Any = picture.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 knows no EXIF, which FFmpeg puts beside a JPEG's picture, and gives nothing
        return np.ascontiguousarray(np.rot90(pixels, round(picture.rotation / 90) % 4))
    if matrix is None:
        return pixels
    across, across_down, _, down_across, down = struct.unpack_from("=5i", bytes(matrix))  # where x, y lead
    if abs(across) + abs(down) < abs(across_down) + abs(down_across):
        pixels, across, down = pixels.transpose(1, 0, 2), down_across, across_down
    return np.ascontiguousarray(pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


def _taken(packet: Packet[Any], came: float) -> float:
    """When a camera's picture was taken: its driver's time stamp where that is of this machine's clock."""
    if packet.pts is not None and packet.time_base is not None:
        stamp = float(packet.pts * packet.time_base)
        for now in (time.monotonic(), time.time()):
            if 0 <= (age := now - stamp) <= _CLOCK:
                return time.monotonic() - age
    return came


def _reason(error: Exception, is_camera: bool) -> str:
    """Says what went wrong in words, and what to do."""
    import av

    if isinstance(error, av.error.ExitError):
        return "it gives nothing for too long"
    if is_camera and isinstance(error, FileNotFoundError):
        return "there is no such camera: 'mmdeploy live --list' names those that are there"
    if is_camera and isinstance(error, PermissionError):
        return "this user may not: on Linux, become a member of the group 'video'"
    if is_camera and getattr(error, "errno", None) == 16:
        return "it is busy: close the program that uses it"
    if isinstance(error, av.error.InvalidDataError):
        return "no video can be read from it"
    return reason_of(error)
