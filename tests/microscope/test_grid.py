"""A grid over the field: tiles at the right place and scale, in the time there is, kept and forgotten."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import msmamba
from msmamba.cli import mmdeploy
from msmamba.data.scale import Scale
from msmamba.errors import ImageError, InputError
from msmamba.images import resized
from msmamba.measures.selective import certainty
from msmamba.microscope import Grid, stream
from msmamba.microscope.live.grid import Mapper, TileMap
from msmamba.microscope.slides.engine import classify_tiles
from msmamba.microscope.slides.field import Field
from msmamba.microscope.slides.tiling import Tile
from msmamba.microscope.sources import Frame
from msmamba.runtime import Session
from msmamba.runtime.drift import drift_log, picture_scores, read_drift
from tests.export.proof.test_guarded import with_guard


@pytest.fixture(scope="module")
def session(bundles: dict[str, Path]) -> Iterator[Session]:
    with msmamba.open(bundles["fp32"], threads=1) as opened:
        yield opened


def field(seed: int = 0, height: int = 96, width: int = 160) -> np.ndarray:
    """Coarse noise, of which a shift by a few pixels is seen."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)


def frame(pixels: np.ndarray, mpp: float | None = None) -> Frame:
    return Frame(pixels, 0, time.monotonic(), 0.0, "a field", mpp)


def known(found: TileMap) -> np.ndarray:
    return ~np.isnan(found.probabilities[..., 0])


def test_each_cell_is_what_the_session_says_of_that_tile(session: Session) -> None:
    pixels = field()
    found = Mapper(session, Grid(tiles=3)).map(frame(pixels))
    assert (found.side, found.microns, found.classified) == (32, None, 15)
    assert found.probabilities.shape == (3, 5, 3)
    tiles = [pixels[y : y + 32, x : x + 32] for y in (0, 32, 64) for x in range(0, 160, 32)]
    expected = [prediction.probabilities for prediction in session.classify(tiles)]
    assert np.allclose(found.probabilities.reshape(15, 3), expected, atol=1e-6)
    assert np.allclose(found.mean, np.mean(expected, axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("mpp", "asked", "side", "shape"),
    [(0.5, 0.5, 32, (3, 5)), (0.25, 0.5, 64, (2, 3)), (1.0, 0.5, 16, (6, 10)), (0.1, 1.0, 320, (1, 1))],
    ids=["as they are", "twice", "half", "more than the field"],
)
def test_tiles_are_cut_in_microns(
    mpp: float, asked: float, side: int, shape: tuple[int, int], session: Session
) -> None:
    found = Mapper(session, Grid(mpp=asked)).map(frame(field(), mpp))
    assert (found.side, found.microns, found.probabilities.shape[:2]) == (side, side * mpp, shape)
    assert found.microns == pytest.approx(32 * asked)
    assert known(found).all()


def test_a_field_at_rest_fills_up_in_the_time_there_is(session: Session) -> None:
    mapper = Mapper(session, Grid(tiles=3, frames_a_second=1000))  # at least one tile, whatever it takes
    counts, still = [], field()
    while not counts or counts[-1] < 15:
        found = mapper.map(frame(still))
        assert found.classified >= 1
        counts.append(int(known(found).sum()))
    assert counts == sorted(counts)
    assert counts[0] < 15
    assert len(counts) > 1


def test_no_tile_is_classified_for_nothing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, through = session.answers, []

    def counted(images: np.ndarray, **more: Any) -> Any:
        through.append(len(images))
        return answers(images, **more)

    monkeypatch.setattr(session, "answers", counted)
    mapper = Mapper(session, Grid(tiles=3, frames_a_second=1000, batch_size=2))
    assert mapper.map(frame(field())).classified == sum(through) == 2


def test_noise_keeps_a_tile_and_another_picture_does_not(session: Session) -> None:
    mapper = Mapper(session, Grid(tiles=3, frames_a_second=1000))
    still, generator = field(), np.random.default_rng(0)
    while not known(mapper.map(frame(still))).all():
        pass
    noisy = np.clip(still + generator.normal(0, 4, still.shape), 0, 255).astype(np.uint8)
    assert known(mapper.map(frame(noisy))).all()
    changed = still.copy()
    changed[:32, :64] = field(1)[:32, :64]  # two tiles
    found = mapper.map(frame(changed))
    assert int((~known(found)).sum()) == 2 - found.classified < 2  # what changed is classified first
    moved = mapper.map(frame(np.roll(still, 4, axis=1)))
    assert int(known(moved).sum()) == moved.classified


@pytest.mark.parametrize("channel", [0, 1, 2], ids=["red", "green", "blue"])
def test_what_changes_in_one_colour_alone_is_another_picture(channel: int, session: Session) -> None:
    """As fluorescence does, whose other channels stay black."""
    mapper = Mapper(session, Grid(tiles=3, frames_a_second=1000))
    before, after = (np.zeros_like(field()) for _ in range(2))
    before[..., channel], after[..., channel] = field(0)[..., 0], field(1)[..., 0]
    while not known(mapper.map(frame(before))).all():
        pass
    found = mapper.map(frame(after))
    assert int(known(found).sum()) == found.classified


def test_a_log_gets_a_tile_of_a_frame_wherever_it_lies(
    session: Session, bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A field is darker at its corners; the first tile of every frame would be one of them."""
    monkeypatch.setattr("msmamba.runtime.drift.LIVE_INTERVAL", 0.0)
    pixels = np.repeat(np.repeat(np.array([[60, 110], [160, 210]], np.uint8), 32, axis=0), 32, axis=1)
    with drift_log(tmp_path / "log.jsonl", bundles["fp32"], None, "live") as log:
        mapper = Mapper(session, Grid(tiles=2), log)
        for _ in range(40):
            mapper.map(frame(np.repeat(pixels[..., None], 3, axis=2)))
    found = read_drift(tmp_path / "log.jsonl").scores["brightness"]
    assert len(found) == 40
    assert len(np.unique(found.round(2))) == 4  # but for chance: 1 in 25,000


def test_another_resolution_or_objective_forgets_everything(session: Session) -> None:
    mapper = Mapper(session, Grid(mpp=0.5, frames_a_second=1000))
    while not known(mapper.map(frame(field(), 0.5))).all():
        pass
    finer = mapper.map(frame(field(), 0.25))
    assert (finer.side, int(known(finer).sum())) == (64, finer.classified)
    smaller = mapper.map(frame(field()[:64], 0.25))
    assert (smaller.probabilities.shape[:2], int(known(smaller).sum())) == ((1, 3), smaller.classified)
    with pytest.raises(ImageError, match="does not say its microns a pixel"):
        mapper.map(frame(field()))
    with pytest.raises(ImageError, match="it is 160 x 1 pixels: expected at least 2 x 2"):
        mapper.map(frame(field()[:1], 0.5))
    assert Mapper(session, Grid(tiles=1)).map(frame(field()[:2, :2])).side == 2


def test_a_source_that_never_knew_its_scale_ends_it(session: Session, tmp_path: Path) -> None:
    Image.fromarray(field()).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="say them with --assume-mpp, or give --tiles") as raised:
        next(stream(session, tmp_path, grid=Grid(mpp=0.5)))
    assert not isinstance(raised.value, ImageError)
    (result,) = stream(session, tmp_path, grid=Grid(mpp=0.5), assume_mpp=0.25)
    assert result.frame.mpp == 0.25
    assert result.tiles is not None
    assert result.tiles.microns == 16


def test_tiles_that_the_guard_withholds_are_told(
    session: Session, bundles: dict[str, Path], tmp_path: Path
) -> None:
    pixels = field()
    tiles = [pixels[y : y + 32, x : x + 32] for y in (0, 32, 64) for x in range(0, 160, 32)]
    logits = session.run(np.stack([session.prepare(each)[0] for each in tiles]))
    scores = certainty(logits).reshape(3, 5)
    threshold = float(np.sort(scores, axis=None)[6:8].mean())  # between two: seven are withheld
    with msmamba.open(with_guard(bundles["fp32"], tmp_path / "guarded", threshold), threads=1) as guarded:
        mapper = Mapper(guarded, Grid(tiles=3))
        mapped = mapper.map(frame(pixels))
        decided = [
            each
            for each, score in zip(guarded.classify(tiles), scores.ravel(), strict=True)
            if score > threshold
        ]
        assert np.allclose(mapped.mean, np.mean([each.probabilities for each in decided], axis=0), atol=1e-6)
        assert (mapped.decided, mapped.reasons) == (True, ("uncertain",))  # eight of fifteen
        found = mapped.as_json()
        assert found["tiles"]["mean_of"] == 8
        assert found["undecided"] == np.argwhere(scores < threshold).tolist()
        assert len(found["undecided"]) == 7
        assert mapper.map(frame(pixels)).as_json()["undecided"] == found["undecided"]
        part = mapper.map(frame(pixels[:, :96]))
        assert part.undecided is not None
        assert part.undecided.tolist() == (scores < threshold)[:, :3].tolist()
    with msmamba.open(with_guard(bundles["fp32"], tmp_path / "lenient", -1e9), threads=1) as lenient:
        mapped = Mapper(lenient, Grid(tiles=3)).map(frame(pixels))
    assert (mapped.decided, mapped.reasons, mapped.as_json()["undecided"]) == (True, (), [])
    of_four = TileMap(32, None, mapped.probabilities[:2, :2], 4, np.array([[True, True], [False, False]]))
    assert of_four.decided
    assert not replace(of_four, undecided=np.array([[True, True], [True, False]])).decided
    with msmamba.open(with_guard(bundles["fp32"], tmp_path / "strict", 1e9), threads=1) as strict:
        Image.fromarray(pixels).save(tmp_path / "a.png")
        (result,) = stream(strict, tmp_path / "a.png", grid=Grid(tiles=3), keep_all=True)
    assert (result.decided, result.reasons) == (False, ("uncertain",))
    assert result.label == result.candidates[0]
    assert set(result.candidates) == {each.label for each in session.classify(tiles)}
    line = result.as_json()
    assert (line["decided"], line["tiles"]["mean_of"]) == (False, 15)
    assert "undecided" not in Mapper(session, Grid(tiles=3)).map(frame(pixels)).as_json()


@pytest.fixture(scope="module")
def trained(session: Session) -> Session:
    """A session whose model was trained on images of 64 microns."""
    assert session.manifest is not None
    assert session.transform is not None
    manifest = replace(session.manifest, covers={"pixels": [40, 48, 60], "microns": [60, 64, 70]})
    return Session(session._backend, "cells", manifest, session.labels, session.transform)


@pytest.mark.parametrize("side", [24, 48, 96, 150])
def test_tiles_are_judged_in_no_more_pixels_than_training_images(
    side: int, trained: Session, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """A level may have several times as many, in which the same tile is less sharp and emptier."""
    pixels = field(height=152, width=152)[:side, :side]
    tile = Tile(0, 0, side)
    slide = Field(Path("a slide"), pixels, Scale(1.0))
    with drift_log(tmp_path / "log.jsonl", bundles["fp32"], None, "slide") as log:
        log.begin(1)
        list(classify_tiles(trained, slide, [tile], 1, log))
    logged = read_drift(tmp_path / "log.jsonl").scores
    expected = picture_scores(resized(pixels, 48) if side > 48 else pixels)
    for name, value in expected.items():
        assert logged[name] == pytest.approx(np.nan if value is None else value, rel=1e-4, nan_ok=True), name


def test_a_grid_is_of_the_models_own_scale(trained: Session, session: Session) -> None:
    found = Mapper(trained, Grid()).map(frame(field(), 2.0))
    assert (found.side, found.microns, found.probabilities.shape[:2]) == (32, 64.0, (3, 5))
    with pytest.raises(InputError, match="the model does not say its microns a pixel"):
        Mapper(session, Grid())


@pytest.mark.parametrize(
    ("grid", "mpp", "said"),
    [
        (None, 0.5, []),  # the field is as large as a square of 124 pixels
        (None, 1.0, ["the field covers 123.9 microns, but a training image 64"]),
        (None, 0.4, ["the field covers 49.57 microns, but a training image 64"]),
        (Grid(), 1.0, []),
        (Grid(tiles=1), 1.0, ["a tile covers 96 microns, but a training image 64"]),
        (Grid(mpp=1.0), 1.0, ["a tile covers 32 microns, but a training image 64"]),
    ],
    ids=["right", "too much", "too little", "own", "tiles", "microns"],
)
def test_another_scale_than_in_training_is_noted_once(
    grid: Grid | None, mpp: float, said: list[str], trained: Session, tmp_path: Path
) -> None:
    for name in "ab":
        Image.fromarray(field()).save(tmp_path / f"{name}.png")
    reports: list[str] = []
    results = stream(trained, tmp_path, grid=grid, assume_mpp=mpp, keep_all=True, report=reports.append)
    assert len(list(results)) == 2
    assert reports == [f"'{tmp_path}': {each}" for each in said]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tiles": 2, "mpp": 1.0}, "either a number of tiles or"),
        ({"tiles": 0}, "0 tiles along a frame: expected 1 to 64"),
        ({"tiles": 2.5}, "2.5 tiles along a frame: expected 1 to 64"),
        ({"tiles": 2, "batch_size": 0}, "the batch size is 0: expected a whole number"),
        ({"mpp": 0.0}, "0.0 microns a pixel cannot be"),
        ({"tiles": 2, "frames_a_second": 0.0}, "0.0 frames a second: expected more than 0"),
    ],
    ids=["both", "no tile", "half a tile", "no batch", "no size", "no time"],
)
def test_what_is_no_grid_is_named(arguments: dict[str, float], said: str) -> None:
    with pytest.raises(InputError) as raised:
        Grid(**arguments)
    assert said in str(raised.value)


def test_the_command_prints_the_map(bundles: dict[str, Path], tmp_path: Path) -> None:
    Image.fromarray(field()).save(tmp_path / "a.png")
    command = ["live", str(bundles["fp32"]), str(tmp_path / "a.png"), "--tiles", "3"]
    command += ["--assume-mpp", "0.5", "--no-page"]
    done = CliRunner().invoke(mmdeploy, command)
    assert done.exit_code == 0, done.output
    line = json.loads(done.stdout)
    assert line["tiles"] == {"side": 32, "microns": 16.0, "classified": 15, "kept": 0, "mean_of": 15}
    assert np.shape(line["map"]) == (3, 5, 3)
    assert np.allclose(np.mean(line["map"], axis=(0, 1)), line["probabilities"], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tiles", "2", "--mpp", "1"], "give one of them"),
        (["--grid", "--tiles", "2"], "give one of them"),
        (["--fps", "10"], "--fps is of tiles: give --grid, --tiles or --mpp, too"),
        (["--batch-size", "4"], "--batch-size is of tiles"),
    ],
    ids=["two sizes", "own size and another", "no tiles", "a batch of none"],
)
def test_options_that_do_not_go_together_are_wrong_usage(options: list[str], said: str) -> None:
    done = CliRunner().invoke(mmdeploy, ["live", "a.fp32", "demo", *options])
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
