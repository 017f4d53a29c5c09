"""Sources: a stage over an image, image files, and a folder that a slow writer fills."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from msmamba.errors import ImageError, InputError, SourceError
from msmamba.images import load_image
from msmamba.microscope.sources import Frame, Source, demo, open_source, stills
from msmamba.microscope.sources.demo import Demo
from msmamba.microscope.sources.stills import Watched


def save(path: Path, value: int, width: int = 30) -> Path:
    Image.fromarray(np.full((20, width, 3), value, np.uint8)).save(path)
    return path


def awaited(items: Iterator[Frame | ImageError | None]) -> object:
    """The next frame or error, within ten seconds."""
    ends = time.monotonic() + 10
    for item in items:
        if item is not None:
            return item
        assert time.monotonic() < ends
    raise AssertionError("the source has ended")


def test_the_demo_wanders_at_its_pace() -> None:
    image = np.random.default_rng(0).integers(0, 256, (300, 900, 3), dtype=np.uint8)
    before = time.monotonic()
    frames = [
        frame
        for frame in islice(Demo("demo", image, frames_a_second=100).frames(), 21)
        if isinstance(frame, Frame)
    ]
    assert [frame.number for frame in frames] == list(range(21))
    assert {frame.pixels.shape for frame in frames} == {(300, 300, 3)}
    assert {frame.pixels.dtype for frame in frames} == {np.dtype(np.uint8)}
    assert before <= frames[0].taken < frames[-1].taken <= time.monotonic()
    assert frames[-1].taken - before >= 0.2  # a tick may be late, and none comes early
    assert not np.array_equal(frames[0].pixels, frames[-1].pixels)


def test_a_demo_needs_no_image() -> None:
    (frame,) = islice(open_source("demo").frames(), 1)
    assert isinstance(frame, Frame)
    assert frame.pixels.shape == (512, 512, 3)


def test_a_demo_over_an_image_shows_that_image(tmp_path: Path) -> None:
    (frame,) = islice(open_source(f"demo:{save(tmp_path / 'a.png', 77)}").frames(), 1)
    assert isinstance(frame, Frame)
    assert np.array_equal(frame.pixels, np.full((20, 20, 3), 77))


def test_a_demo_is_over_the_mosaic_where_there_is_one(tmp_path: Path) -> None:
    mosaic = save(tmp_path / "mosaic.png", 55)
    (frame,) = islice(open_source("demo", mosaic=mosaic).frames(), 1)
    assert isinstance(frame, Frame)
    assert np.array_equal(frame.pixels, np.full((20, 20, 3), 55))
    (drawn,) = islice(open_source("demo", mosaic=tmp_path / "none.png").frames(), 1)
    assert isinstance(drawn, Frame)
    assert drawn.pixels.shape == (512, 512, 3)


def test_a_demo_over_a_slide_takes_the_part_with_the_most_stain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_PART", 256)
    pixels = np.full((768, 1024, 3), 240, np.uint8)
    pixels[400:600, 700:900] = (180, 80, 160)
    path = tmp_path / "slide.btf"
    size = {f"PhysicalSize{axis}": 0.5 for axis in "XY"}
    unit = {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    tifffile.imwrite(
        path, pixels, ome=True, tile=(256, 256), photometric="rgb", metadata={"axes": "YXS", **size, **unit}
    )
    part, mpp = demo.stage_over(path, 65535)
    assert (part.shape, mpp) == ((256, 256, 3), 0.5)
    stained = int((np.ptp(part, axis=2) > 20).sum())
    assert stained == 200 * 200
    (frame,) = islice(open_source(f"demo:{path}").frames(), 1)
    assert isinstance(frame, Frame)
    assert frame.mpp == 0.5


def test_files_are_frames_in_their_order_and_bad_ones_errors(tmp_path: Path) -> None:
    for number, name in enumerate("cab"):
        save(tmp_path / f"{name}.png", number)
    (tmp_path / "b.png").write_bytes(b"no image")
    first, second, third = open_source(tmp_path).frames()
    assert isinstance(first, Frame)
    assert isinstance(third, Frame)
    assert [(frame.number, int(frame.pixels[0, 0, 0])) for frame in (first, third)] == [(0, 1), (1, 0)]
    assert isinstance(second, ImageError)
    assert "b.png" in str(second)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nowhere", "'nowhere' is no source: expected a camera's number or device, rtsp://"),
        ("watch:", "'watch:' names nothing: expected watch:FOLDER"),
        (".", "holds no image; to wait for some, say watch:"),
        ("", "no source is named: expected a camera's number"),
        ("x" * 5000, "is no source: file name too long"),
    ],
    ids=["nothing there", "no folder", "empty folder", "nothing", "too long"],
)
def test_what_is_no_source_is_named(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as raised:
        open_source(text)
    assert said in str(raised.value)


@pytest.mark.parametrize("what", ["nothing", "a file"])
def test_a_folder_that_is_none_cannot_be_watched(what: str, tmp_path: Path) -> None:
    path = tmp_path / "folder" if what == "nothing" else save(tmp_path / "a.png", 1)
    with pytest.raises(SourceError, match="expected a folder to watch"):
        next(iter(open_source(f"watch:{path}").frames()))


def test_a_file_is_taken_once_its_size_rests(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.png", 9).read_bytes()
    folder = tmp_path / "folder"
    folder.mkdir()
    save(folder / "before.png", 1)
    items = Watched(folder, 65535, rest=0.4).frames()
    assert next(items) is None  # what was there before is no news
    with (folder / "new.png").open("wb") as slow:
        for start in range(0, len(whole), -(-len(whole) // 8)):
            slow.write(whole[start : start + -(-len(whole) // 8)])
            slow.flush()
            assert next(items) is None
    frame = awaited(items)
    assert isinstance(frame, Frame)
    assert (frame.name, frame.number, int(frame.pixels[0, 0, 0])) == (str(folder / "new.png"), 0, 9)
    assert next(items) is None  # and once only


def test_a_file_that_never_rests_is_told_of_once(tmp_path: Path) -> None:
    items = Watched(tmp_path, 65535, rest=0.1).frames()
    assert next(items) is None
    found = []
    for size in range(8, 48):  # another picture at each look, as of a program with a picture of the moment
        save(tmp_path / "latest.png", 9, size)
        found.append(next(items))
    (told,) = [item for item in found if item is not None]
    assert isinstance(told, ImageError)
    assert "latest.png' is written to all the time: it is taken once it rests for 0.1 s" in str(told)
    assert isinstance(awaited(items), Frame)


def test_a_file_that_is_written_again_is_taken_again(tmp_path: Path) -> None:
    items = Watched(tmp_path, 65535, rest=0.1).frames()
    next(items)
    for number, value in enumerate((3, 200)):
        save(tmp_path / "latest.tif", value)
        frame = awaited(items)
        assert isinstance(frame, Frame)
        assert (frame.number, int(frame.pixels[0, 0, 0])) == (number, value)


def test_a_file_that_is_written_while_it_is_read_is_taken_when_it_rests_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(*arguments: Any) -> Any:
        found = load_image(*arguments)
        monkeypatch.undo()
        save(tmp_path / "latest.tif", 200, width=40)  # by the microscope's program, meanwhile
        return found

    monkeypatch.setattr("msmamba.microscope.sources.stills.load_image", overtaken)
    items = Watched(tmp_path, 65535, rest=0.1).frames()
    next(items)
    save(tmp_path / "latest.tif", 3)
    frame = awaited(items)
    assert isinstance(frame, Frame)
    assert (frame.number, int(frame.pixels[0, 0, 0])) == (0, 200)


@pytest.mark.parametrize("what", ["{}", "watch:{}"])
def test_files_say_their_microns_a_pixel(what: str, tmp_path: Path) -> None:
    items = open_source(what.format(tmp_path)).frames() if "watch" in what else iter(())
    next(items, None)
    tifffile.imwrite(
        tmp_path / "field.ome.tif",
        np.zeros((20, 30, 3), np.uint8),
        photometric="rgb",
        metadata={"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25},
    )
    frame = awaited(items if "watch" in what else open_source(tmp_path).frames())
    assert isinstance(frame, Frame)
    assert frame.mpp == 0.25


def test_a_damaged_file_is_named_and_stops_nothing(tmp_path: Path) -> None:
    items = Watched(tmp_path, 65535, rest=0.1).frames()
    next(items)
    (tmp_path / "half.png").write_bytes(save(tmp_path / "a.txt.png", 1).read_bytes()[:40])
    found = [awaited(items), awaited(items)]
    assert sorted(type(item).__name__ for item in found) == ["Frame", "ImageError"]


def test_files_that_are_there_are_not_looked_at_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session of a day leaves a million, of which each look took ten seconds."""
    (tmp_path / "old").mkdir()
    for number in range(100):
        (tmp_path / "old" / f"{number}.png").write_bytes(b"what was there before")
    monkeypatch.setattr(stills, "_BETWEEN", 1e6)
    asked: Counter[str] = Counter()
    stamp_of = stills._stamp_of

    def counting(path: Path) -> Any:
        asked[path.parent.name] += 1
        return stamp_of(path)

    items = Watched(tmp_path, 65535, rest=0.05).frames()
    next(items)
    monkeypatch.setattr(stills, "_stamp_of", counting)
    (tmp_path / "old" / "late.png").touch()  # which stays empty for a while
    assert next(items) is None
    save(tmp_path / "old" / "new.png", 5)
    assert getattr(awaited(items), "name", "") == str(tmp_path / "old" / "new.png")
    save(tmp_path / "old" / "late.png", 6)
    assert getattr(awaited(items), "name", "") == str(tmp_path / "old" / "late.png")
    assert asked["old"] < 100  # some looks at two files
    (tmp_path / "come").mkdir()
    save(tmp_path / "come" / "first.png", 7)  # all are looked at once, for what is in a folder that came
    assert getattr(awaited(items), "name", "") == str(tmp_path / "come" / "first.png")
    assert 100 <= asked["old"] < 200
    save(tmp_path / "come" / "second.png", 8)
    assert getattr(awaited(items), "name", "") == str(tmp_path / "come" / "second.png")


def test_a_folder_that_vanished_and_came_back_is_read_on(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    watched = Watched(folder, 65535, rest=0.1)
    items = watched.frames()
    next(items)
    shutil.rmtree(folder)
    with pytest.raises(SourceError, match="does not exist"):
        next(items)
    folder.mkdir()
    save(folder / "new.png", 5)  # before it is opened again, and still news
    assert isinstance(awaited(watched.frames()), Frame)


def test_a_source_may_be_any_object_that_has_what_it_takes() -> None:
    class Constant:
        name = "constant"
        endless = False
        keeps = False
        stalls_after = None

        def frames(self) -> Iterator[Frame | ImageError | None]:
            yield None

    source: Source = Constant()  # for the types, too
    assert open_source(source) is source


def test_what_a_source_lacks_is_named() -> None:
    with pytest.raises(InputError, match=r"found SimpleNamespace: it has no endless, stalls_after$"):
        open_source(SimpleNamespace(name="a", keeps=True, frames=lambda: iter(())))


@pytest.mark.parametrize("source", [None, 5, bytearray(b"a"), ["a"]])
def test_what_is_no_string_is_refused(source: Any) -> None:
    with pytest.raises(InputError, match="expected a source or its name, found"):
        open_source(source)
