"""Micro-Manager's core with its own demo camera: kinds of pixels, the scale, objectives, configurations."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import msmamba
from msmamba.errors import ImageError, SourceError
from msmamba.microscope import stream
from msmamba.microscope.sources import Frame, open_source
from msmamba.microscope.sources.micro_manager import MicroManager

pytest.importorskip("pymmcore", reason="Micro-Manager's core has no wheel for this machine")
adapters = pytest.importorskip(
    "mm_test_adapters", reason="Micro-Manager's demo camera has no wheel for this machine"
)


@pytest.fixture
def write_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Micro-Manager's demo configuration, with settings of the camera that it starts with."""
    folder = Path(adapters.device_adapter_path())
    monkeypatch.setenv("MICROMANAGER_PATH", str(folder))
    base = (folder / "MMConfig_demo.cfg").read_text(encoding="utf-8")

    def write(*settings: str) -> Path:
        path = tmp_path / "microscope.cfg"
        lines = "".join(f"ConfigGroup,System,Startup,Camera,{each}\n" for each in settings)
        path.write_text(base + lines, encoding="utf-8")
        return path

    return write


def first(source: MicroManager) -> Frame | ImageError:
    with closing(source.frames()) as items:
        return next(item for item in items if item is not None)


def test_frames_say_when_they_were_taken_their_count_and_their_scale(write_config) -> None:
    source = open_source(f"mm:{write_config('Exposure,5')}", white_level=4095)
    before = time.monotonic()
    with closing(source.frames()) as items:
        frames = []
        while len(frames) < 5:
            frames += [item for item in [next(items)] if isinstance(item, Frame)]
    assert {(frame.pixels.shape, frame.pixels.dtype, frame.mpp) for frame in frames} == {
        ((512, 512, 3), np.dtype(np.uint8), 1.0)
    }
    numbers, times = [frame.number for frame in frames], [frame.taken for frame in frames]
    assert numbers == sorted(set(numbers))
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= time.monotonic()


@pytest.mark.parametrize(
    ("kind", "settings", "white"),
    [
        ("grey of 8 bits", ["BitDepth,8", "PixelType,8bit"], 4095),
        ("grey of 16 bits", ["PixelType,16bit"], 8191),
        ("colour of 8 bits", ["BitDepth,8", "PixelType,32bitRGB"], 4095),
        ("colour of 16 bits", ["PixelType,64bitRGB"], 8191),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_of_pixel_becomes_rgb(kind: str, settings: list[str], white: int, write_config) -> None:
    frame = first(open_source(f"mm:{write_config(*settings)}", white_level=white))
    assert isinstance(frame, Frame), frame
    assert frame.pixels.shape == (512, 512, 3)
    red, green, blue = (frame.pixels[..., channel].astype(int) for channel in range(3))
    assert (np.array_equal(red, green) and np.array_equal(green, blue)) == kind.startswith("grey")
    assert frame.pixels.max() > (15 if "8" in kind else 150)  # of 16 bits it is scaled by the white level


def test_blue_green_red_is_put_right(write_config) -> None:
    config = write_config("BitDepth,8", "PixelType,32bitRGB", "Mode,Color Test Pattern")
    frame = first(open_source(f"mm:{config}"))
    assert isinstance(frame, Frame)
    upper, lower = frame.pixels[60, 500], frame.pixels[200, 500]
    assert list(upper) == [0, 0, 250]
    assert list(lower) != list(upper)


def test_32_bits_are_refused_and_stop_nothing(write_config) -> None:
    found = first(open_source(f"mm:{write_config('PixelType,32bit')}"))
    assert isinstance(found, ImageError)
    assert "it is GRAY32: expected GRAY8, GRAY16, RGB32 or RGB64" in str(found)


def test_another_objective_is_noticed(
    write_config, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cores, load = [], MicroManager._loaded

    def loaded(source: MicroManager) -> object:
        cores.append(load(source))
        return cores[-1]

    monkeypatch.setattr(MicroManager, "_loaded", loaded)  # to turn the turret that the source has hold of
    said: list[str] = []
    source = f"mm:{write_config('BitDepth,8', 'PixelType,8bit', 'Exposure,20')}"
    with (
        msmamba.open(bundles["fp32"], threads=1) as session,
        closing(stream(session, source, report=said.append)) as results,
    ):
        assert next(results).frame.mpp == 1.0
        cores[0].setProperty("Objective", "Label", "Nikon 40X Plan Fluor ELWD")
        for result in results:
            if result.frame.mpp == 0.25:
                break
        next(results)
    assert any("at 0.25 microns a pixel; before, 512 x 512 pixels at 1 microns" in line for line in said), (
        said
    )


def test_a_camera_that_stops_is_a_fault(write_config, monkeypatch: pytest.MonkeyPatch) -> None:
    cores, load = [], MicroManager._loaded

    def loaded(source: MicroManager) -> object:
        cores.append(load(source))
        return cores[-1]

    monkeypatch.setattr(MicroManager, "_loaded", loaded)
    with closing(open_source(f"mm:{write_config('Exposure,5')}").frames()) as items:
        next(items)
        cores[0].stopSequenceAcquisition()
        with pytest.raises(SourceError, match="its camera stopped"):
            list(islice(items, 1000))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is no file: expected a configuration of Micro-Manager"),
        ("Device,Camera,NoSuchAdapter,DCam\n", "device adapters are looked for in $MICROMANAGER_PATH"),
        ("Property,Core,Initialize,0\n", "names no camera"),
    ],
    ids=["no file", "no adapter", "no camera"],
)
def test_a_configuration_that_cannot_be_used_is_one_line(text: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.cfg"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(SourceError) as raised:
        next(open_source(f"mm:{path}").frames())
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
