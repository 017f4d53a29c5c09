"""Videos and MJPEG over HTTP with PyAV itself: at their pace or all, damaged, hanging, gone and back."""

from __future__ import annotations

import io
import struct
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import msmamba
from msmamba.cli import mmdeploy
from msmamba.errors import BackendError, ImageError, SourceError
from msmamba.microscope import stream
from msmamba.microscope.sources import Frame, open_source, video
from msmamba.runtime import Session

PICTURES, RATE = 12, 50


@pytest.fixture(scope="module")
def session(bundles: dict[str, Path]) -> Iterator[Session]:
    with msmamba.open(bundles["fp32"], threads=1) as opened:
        yield opened


def write_video(path: Path, codec: str, form: str, pictures: Sequence[np.ndarray]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = form
        for pixels in pictures:
            kind = "rgb24" if pixels.ndim == 3 else "gray16le"
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format=kind)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def flat(value: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "stage.mp4"
    return write_video(path, "mpeg4", "yuv420p", [flat(20 * number) for number in range(PICTURES)])


def greys(items: Sequence[Frame | ImageError | None]) -> list[int]:
    return [round(float(item.pixels.mean())) for item in items if isinstance(item, Frame)]


def test_a_video_comes_at_its_own_pace(film: Path) -> None:
    frames = [item for item in open_source(film).frames() if isinstance(item, Frame)]
    assert [frame.number for frame in frames] == list(range(PICTURES))
    assert np.allclose(greys(frames), [20 * number for number in range(PICTURES)], atol=3)
    assert frames[-1].taken - frames[0].taken >= (PICTURES - 1) / RATE - 1e-6
    assert all(frame.taken <= time.monotonic() for frame in frames)


def test_colours_are_read_as_a_video_says_and_where_it_does_not_by_bt_601(tmp_path: Path) -> None:
    green = np.zeros((720, 1280, 3), np.uint8)
    green[:] = (0, 170, 0)
    (bt_709, bt_601, unspecified) = 1, 5, 2
    picture = av.VideoFrame.from_ndarray(green, format="rgb24").reformat(
        format="yuv420p", dst_colorspace=bt_709
    )
    found = {}
    for said in (bt_709, bt_601, unspecified):
        path = tmp_path / f"{said}.mp4"
        with av.open(str(path), "w") as container:
            track = container.add_stream("libx264", rate=RATE)
            track.width, track.height, track.pix_fmt = 1280, 720, "yuv420p"
            track.codec_context.colorspace = said
            bare = av.VideoFrame.from_ndarray(picture.to_ndarray(), format="yuv420p")
            for packet in (*track.encode(bare), *track.encode()):
                container.mux(packet)
        (frame,) = (item for item in open_source(path).frames() if isinstance(item, Frame))
        found[said] = frame.pixels[360, 640].astype(int)
    assert np.abs(found[bt_709] - (0, 170, 0)).max() <= 2
    assert np.abs(found[bt_601] - (13, 199, 5)).max() <= 2  # the same bytes by the other matrix
    assert (found[unspecified] == found[bt_601]).all()


def test_all_of_a_video_is_classified_where_that_is_asked_for(film: Path, session: Session) -> None:
    results = list(stream(session, film, keep_all=True))
    assert [result.number for result in results] == list(range(PICTURES))
    assert [result.dropped for result in results] == [0] * PICTURES


def test_grey_of_16_bits_is_read_by_the_white_level(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 4095, 64).astype(np.uint16), (48, 1))
    path = write_video(tmp_path / "grey.mkv", "ffv1", "gray16le", [ramp])
    (frame,) = open_source(path, white_level=4095).frames()
    assert isinstance(frame, Frame)
    assert np.array_equal(frame.pixels[..., 0], (ramp.astype(np.uint32) * 256 // 4096).astype(np.uint8))


@pytest.mark.parametrize(
    ("across", "down", "expected"),
    [
        ((0, 1), (-1, 0), lambda pixels: np.rot90(pixels, 3)),
        ((-1, 0), (0, -1), lambda pixels: np.rot90(pixels, 2)),
        ((0, -1), (1, 0), np.rot90),
        ((-1, 0), (0, 1), lambda pixels: pixels[:, ::-1]),
        ((1, 0), (0, -1), lambda pixels: pixels[::-1]),
        ((0, 1), (1, 0), lambda pixels: pixels.transpose(1, 0, 2)),
        ((0, -1), (-1, 0), lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2)),
    ],
    ids=["right", "upside-down", "left", "mirrored", "flipped", "right-mirrored", "left-mirrored"],
)
def test_a_video_is_turned_as_its_file_says(
    across: tuple[int, int],
    down: tuple[int, int],
    expected: Callable[[np.ndarray], np.ndarray],
    tmp_path: Path,
) -> None:
    """By the matrix of its track (ISO 14496-12, 8.3.2), as phones write it, held upright or mirrored."""
    pixels = flat(20)
    pixels[:24, :32] = 220
    path = write_video(tmp_path / "a.mp4", "mpeg4", "yuv420p", [pixels] * 2)
    content, one = path.read_bytes(), 1 << 16
    upright = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", *(one * each for each in (*across, 0, *down, 0)), 0, 0, 1 << 30)
    at = content.index(upright, content.index(b"tkhd"))
    path.write_bytes(content[:at] + turned + content[at + len(turned) :])
    (first, *_) = (item for item in open_source(path, keep_all=True).frames() if isinstance(item, Frame))
    assert np.allclose(first.pixels, expected(pixels), atol=30)


def test_mjpeg_is_turned_as_the_exif_of_its_pictures_says(tmp_path: Path) -> None:
    pixels = flat(20)
    pixels[:24, :32] = 220
    exif, content = Image.Exif(), io.BytesIO()
    exif[274] = 6
    Image.fromarray(pixels).save(content, "JPEG", quality=95, exif=exif)
    (tmp_path / "a.mjpg").write_bytes(content.getvalue() * 2)
    (first, *_) = open_source(tmp_path / "a.mjpg", keep_all=True).frames()
    assert isinstance(first, Frame)
    assert np.allclose(first.pixels, np.rot90(pixels, 3), atol=30)


def test_damaged_pictures_of_a_video_are_left_out(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", "mjpeg", "yuvj420p", [flat(20 * each) for each in range(PICTURES)])
    whole = path.read_bytes()
    second = whole.index(b"\xff\xd8\xff", whole.index(b"\xff\xd8\xff") + 3) + 200  # amid its tables
    path.write_bytes(whole[:second] + b"\0" * 300 + whole[second + 300 :])
    items = list(open_source(path, keep_all=True).frames())
    (torn,) = [str(item) for item in items if isinstance(item, ImageError)]
    assert torn == f"{path} #1 is damaged: it cannot be decoded"
    assert len(greys(items)) == PICTURES - 1


def test_a_video_that_cannot_be_read_on_ends_there(session: Session, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.y4m", "rawvideo", "yuv420p", [flat(90)] * PICTURES)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"FRAME", b"FRA\0E", 6).replace(b"FRA\0E", b"FRAME", 5))
    results = stream(session, path, keep_all=True, seconds=20)
    shown = [next(results).number for _ in range(5)]
    assert shown == [*range(5)]
    with pytest.raises(SourceError, match=r"a\.y4m' cannot be read on: no video can be read from it"):
        next(results)


@pytest.mark.parametrize("what", ["text", "half", "sound"])
def test_what_is_no_video_is_named(what: str, film: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    if what == "sound":
        with wave.open(str(path), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(bytes(1600))
    else:
        path.write_bytes(b"no video" * 50 if what == "text" else film.read_bytes()[:600])
    with pytest.raises(SourceError) as raised:
        list(open_source(path).frames())
    assert str(raised.value).startswith(f"'{path}'")
    assert ("no picture" if what == "sound" else "no video can be read from it") in str(raised.value)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no colons in names")
@pytest.mark.parametrize("name", ["http://127.0.0.1:1/a.mp4", "pipe:0.mp4", "subfile,,start,9,end,0,,:a.mp4"])
def test_a_file_is_read_whatever_it_is_called(
    name: str, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(name)
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_bytes(film.read_bytes())
    monkeypatch.chdir(tmp_path)
    shown = video.Video(path, 65535, paced=False)
    assert sum(isinstance(each, Frame) for each in shown.frames()) == PICTURES


def test_pictures_that_are_too_large_are_not_made_room_for(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("P", (8, 8)).save(content, "GIF")
    raw = bytearray(content.getvalue())
    struct.pack_into("<HH", raw, 6, 9600, 9600)
    (tmp_path / "a.gif").write_bytes(raw)
    with pytest.raises(SourceError, match="has pictures of 9600 x 9600 pixels: expected at most 89,000,000"):
        list(open_source(tmp_path / "a.gif").frames())


def test_a_camera_that_is_not_there_is_named() -> None:
    with pytest.raises(SourceError, match=r"there is no such camera: 'mmdeploy live --list' names"):
        next(open_source("97").frames())
    with pytest.raises(SourceError, match="connection refused"):
        next(open_source("rtsp://127.0.0.1:1/none").frames())


def test_a_device_gives_frames_as_a_camera_does() -> None:
    drawn = video.Stream("camera", "color=red:size=64x48:rate=50", "lavfi", {}, 65535)  # FFmpeg's own device
    with closing(drawn.frames()) as items:
        frames = [item for item in islice(items, 3) if isinstance(item, Frame)]
    assert [frame.number for frame in frames] == [0, 1, 2]
    assert {frame.pixels.shape for frame in frames} == {(48, 64, 3)}
    assert np.allclose(frames[0].pixels[20, 30], (255, 0, 0), atol=3)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("rtsp://me:secret@127.0.0.1:1/one@two", "rtsp://me@127.0.0.1:1/one@two"),
        ("http://me@127.0.0.1:1", "http://me@127.0.0.1:1"),
        ("http://127.0.0.1:1/a:b", "http://127.0.0.1:1/a:b"),
        (
            "http://127.0.0.1:1/cgi?cmd=Snap&user=me&password=secret&channel=1",
            "http://127.0.0.1:1/cgi?cmd=Snap&user=me&password=…&channel=1",
        ),
        ("rtsp://me:secret@127.0.0.1:1/?auth=secret==", "rtsp://me@127.0.0.1:1/?auth=…"),
        ("rtsp://me:my?secret@127.0.0.1:1/one", "rtsp://me@127.0.0.1:1/one"),
        ("rtsp://me:my/secret@127.0.0.1:1/one", "rtsp://me@127.0.0.1:1/one"),
        (
            "http://127.0.0.1:1/snap?loginuse=me&loginpas=secret",
            "http://127.0.0.1:1/snap?loginuse=me&loginpas=…",
        ),
        (
            "rtsp://127.0.0.1:1/user=me&password=secret&channel=1&stream=0.sdp?",
            "rtsp://127.0.0.1:1/user=me&password=…&channel=1&stream=0.sdp?",
        ),
        ("rtsp://127.0.0.1:1/user=me_password=secret_channel=1", "rtsp://127.0.0.1:1/user=me_password=…"),
        (
            "rtsp://127.0.0.1:1/live?a@b&channel=1&subtype=0",
            "rtsp://127.0.0.1:1/live?a@b&channel=1&subtype=0",
        ),
    ],
)
def test_a_password_in_an_address_stands_in_no_report(text: str, name: str) -> None:
    source = open_source(text)
    assert source.name == name
    with pytest.raises(SourceError) as error:
        next(source.frames())
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "library", "extra"),
    [("0", "av", "camera"), ("screen", "mss", "screen"), ("mm:a.cfg", "pymmcore", "micromanager")],
    ids=["camera", "screen", "Micro-Manager"],
)
def test_a_missing_library_is_named_with_what_to_install(
    text: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [each for each in sys.modules if each.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    with pytest.raises(BackendError, match=rf"pip install 'msmamba\[{extra}\]'"):
        open_source(text)
    listed = CliRunner().invoke(mmdeploy, ["live", "--list"])
    assert listed.exit_code == 0
    assert f"pip install 'msmamba[{extra}]'" in listed.stdout


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


Serve = Callable[[Callable[[bytes], None]], None]


class Camera:
    """A server as OpenFlexure's: MJPEG as ``multipart/x-mixed-replace``; one script a connection, in turn."""

    def __init__(self, *scripts: Serve) -> None:
        waiting = iter(scripts)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                script = next(waiting, None)
                if script is None:
                    self.send_error(503)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()

                def send(picture: bytes) -> None:
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                    self.wfile.write(head.encode() + picture + b"\r\n")
                    time.sleep(0.01)

                try:
                    script(send)
                except OSError:  # whoever watched has gone
                    return

            def log_message(self, *arguments: object) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/api/v2/streams/mjpeg"

    def __enter__(self) -> Camera:
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def shows(*pictures: bytes) -> Serve:
    def script(send: Callable[[bytes], None]) -> None:
        for picture in pictures:
            send(picture)

    return script


def test_mjpeg_over_http_gives_frames_as_they_come() -> None:
    with Camera(shows(*(jpeg(flat(10 * number)) for number in range(20)))) as camera:
        before = time.monotonic()
        with closing(open_source(camera.url).frames()) as items:
            frames = list(islice(items, 8))
    assert [frame.number for frame in frames if isinstance(frame, Frame)] == list(range(8))
    values = greys(frames)
    assert values == sorted(values)
    assert len(set(values)) == 8
    assert all(before <= frame.taken <= time.monotonic() for frame in frames if isinstance(frame, Frame))


def test_a_damaged_picture_and_another_resolution_stop_nothing(session: Session) -> None:
    good, large = jpeg(flat(100)), jpeg(flat(100, 80, 96))
    pictures = [*[good] * 4, b"\xff\xd8 no picture", *[large] * 200]
    said: list[str] = []
    with (
        Camera(shows(*pictures)) as camera,
        closing(stream(session, camera.url, report=said.append)) as results,
    ):
        for result in results:
            if result.frame.pixels.shape == (80, 96, 3):
                break
    assert any(line.startswith("a frame was left out: ") and "is damaged" in line for line in said), said
    changed = "now gives 96 x 80 pixels at an unknown scale; before, 64 x 48 pixels at an unknown scale"
    assert any(changed in line for line in said), said


def test_a_stream_that_hangs_is_given_up_and_opened_again(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "_READING", 0.4)
    hung, over = threading.Event(), threading.Event()

    def hangs(send: Callable[[bytes], None]) -> None:
        for _ in range(4):
            send(jpeg(flat(50)))
        hung.set()
        over.wait(20)

    said: list[str] = []
    with Camera(hangs, shows(*[jpeg(flat(200))] * 300)) as camera:
        before = threading.active_count()
        with closing(stream(session, camera.url, report=said.append)) as results:
            for result in results:
                if result.frame.pixels.mean() > 150:
                    break
            running = threading.active_count()
        over.set()
    assert hung.is_set()
    assert said == [
        f"'{camera.url}' went away: cannot be read on: it gives nothing for too long; trying again in 0.5 s",
        f"'{camera.url}' is back",
    ]
    assert running - before <= 4  # the two of the loop, and the server's, one for each connection


def test_a_stream_that_ends_or_is_refused_is_tried_again(session: Session) -> None:
    said: list[str] = []
    with (
        Camera(shows(*[jpeg(flat(50))] * 5)) as camera,
        closing(stream(session, camera.url, seconds=1.0, report=said.append)) as results,
    ):
        assert len(list(results)) >= 1
    assert "cannot be read on: " in said[0]
    assert "503" in said[1] or "server" in said[1].lower()
    assert said[1].endswith("trying again in 1 s")
