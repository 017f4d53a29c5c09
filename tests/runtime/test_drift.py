"""Logs of scores: whole lines of one artefact, whatever was killed or wrote beside."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import msmamba
from msmamba.errors import InputError, TargetError
from msmamba.files import sha256_of
from msmamba.measures.selective import certainty
from msmamba.runtime.artefact import open_bundle
from msmamba.runtime.drift import (
    MOST_VALUES,
    SCORES,
    CalibratedScores,
    Origin,
    answer_scores,
    drift_log,
    picture_scores,
    read_drift,
)
from msmamba.runtime.guard import network_sha256

LOGITS = np.array([3.0, 1.0, -2.0])


def picture(red: int = 200, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(90, 110, (24, 30, 3))
    pixels[..., 0] += red - 100
    return pixels.astype(np.uint8)


def test_answers_are_told_by_three_scores() -> None:
    rows = np.array([LOGITS, [0.0, 0.0, 500.0]])
    first, other = answer_scores(rows, temperature=2.0)
    assert first["probability"] == pytest.approx(np.exp(1.5) / np.exp([1.5, 0.5, -1]).sum())
    assert first["certainty"] == pytest.approx(certainty(rows)[0])
    assert first["energy"] == pytest.approx(np.log(np.exp(LOGITS).sum()))
    assert other["energy"] == pytest.approx(500)


def stained(stain: tuple[float, float, float], part: int = 20, light: float = 230) -> np.ndarray:
    """A bright field, part of whose rows a stain lets through so much of each channel."""
    pixels = np.full((100, 80, 3), float(light))
    pixels[:part] *= stain
    return pixels.astype(np.uint8)


def test_a_stains_colour_follows_neither_the_lamp_nor_its_amount() -> None:
    eosin = (0.9, 0.4, 0.6)
    one = picture_scores(stained(eosin))
    for other in (stained(eosin, part=50), stained(eosin, light=180)):
        found = picture_scores(other)
        for name in ("stain_red", "stain_blue", "background_red", "background_blue"):
            assert found[name] == pytest.approx(one[name], abs=0.005)
    assert picture_scores(stained((0.5, 0.4, 0.8)))["stain_red"] > one["stain_red"] + 0.1
    assert one["stain_red"] == pytest.approx(np.log(0.9) / np.log(np.prod(eosin)), abs=0.01)


def test_where_nothing_is_stained_there_is_no_stain() -> None:
    assert picture_scores(stained((1.0, 1.0, 1.0)))["stain_red"] is None
    black = picture_scores(np.zeros((9, 9, 3), np.uint8))
    assert (black["background_red"], black["stain_blue"]) == (None, None)
    for dark, known in ((40, False), (60, True)):  # of 10,000 pixels; half a per cent makes a stain
        specks = np.full((100, 100, 3), 220, np.uint8)
        specks.reshape(-1, 3)[:dark] = (180, 60, 120)
        assert (picture_scores(specks)["stain_red"] is not None) == known


def test_lines_come_back(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for number in range(2):
        with drift_log(path, bundle, None, "infer") as log:
            log.add(picture_scores(picture(seed=number)), LOGITS)
    with drift_log(path, bundle, None, "slide") as log:
        log.add(picture_scores(np.zeros((9, 9, 3), np.uint8)), LOGITS)
        log.begin(1)
        log.add(picture_scores(picture()), LOGITS)
    logged = read_drift(path)
    assert logged.pictures == 4
    assert logged.origin == Origin.of(bundle)
    assert logged.by.tolist() == [0, 0, 1, 1]
    assert logged.session.tolist() == [0, 1, 2, 3]
    assert set(logged.scores) == set(SCORES)
    assert np.isnan(logged.scores["background_red"]).tolist() == [False, False, True, False]
    assert logged.scores["certainty"] == pytest.approx(certainty(LOGITS[None])[0], rel=1e-4)
    _, *lines = path.read_text().splitlines()
    times = json.loads(lines[0])["time"], json.loads(lines[-1])["time"]
    assert logged.times == times
    with path.open(
        "a"
    ) as log:  # another command's, whose turn to write came late, or a clock that was set back
        log.write(f"{lines[0]}\n")
    assert read_drift(path).times == times
    assert len(lines) == 4
    assert max(map(len, lines)) < 600


def test_a_slide_gives_a_thousand_lines_at_most_and_a_live_session_one_a_second(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with drift_log(tmp_path / "log.jsonl", bundle, None, "slide") as log:
        for tiles, kept in ((900, 900), (1000, 1000), (1001, 501), (250_000, 1000)):
            log.begin(tiles)
            assert sum(log.wants() for _ in range(tiles)) == kept
    now = 0.0
    monkeypatch.setattr("msmamba.runtime.drift.time.monotonic", lambda: now)
    with drift_log(tmp_path / "log.jsonl", bundle, None, "live") as log:
        wanted = []
        for frame in range(100):
            now = frame / 30
            wanted.append(log.wants())
    assert [place for place, each in enumerate(wanted) if each] == [0, 30, 60, 90]
    with drift_log(tmp_path / "log.jsonl", bundle, None, "infer") as log:
        assert all(log.wants() for _ in range(5))


def test_what_a_kill_cut_is_passed_over_and_nothing_runs_into_it(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with drift_log(path, bundle, None, "infer") as log:
        log.add({}, LOGITS)
    path.write_bytes(path.read_bytes() + b'{"time": "2026-11-')
    with drift_log(path, bundle, None, "infer") as log:
        log.add({}, LOGITS)
    logged = read_drift(path)
    assert (logged.pictures, logged.unread) == (2, 1)
    head, *lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([head, head, *lines, b"\n"]))  # two commands began it, and one was cut at once
    again = read_drift(path)
    assert (again.pictures, again.unread) == (2, 1)


def test_lines_that_are_none_are_counted(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with drift_log(path, bundle, None, "infer") as log:
        log.add({}, LOGITS)
    line = json.loads(path.read_text().splitlines()[1])
    for change in ({"artefact": "ab" * 8}, {"by": "nobody"}, {"scores": {"stain_red": "much"}}, {"time": 5}):
        with path.open("a") as file:
            file.write(json.dumps({**line, **change}) + "\n")
    assert read_drift(path).unread == 4


def test_a_log_is_of_one_artefact(
    bundle: Path, onnx_file: Path, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    with drift_log(path, bundle, None, "infer") as log:
        log.add({}, LOGITS)
    before = path.read_bytes()
    calibrated = tmp_path / "calibrated"
    bundle.rename(calibrated)
    add_scores(calibrated, CalibratedScores.of([{"stain_red": 0.3}]))
    with pytest.raises(InputError, match="another calibration"), drift_log(path, calibrated, None, "infer"):
        pass
    other = make_bundle(labels=("a", "b", "c"))
    with drift_log(path, other, None, "infer"):
        pass  # the same network by another manifest
    assert path.read_bytes() == before
    network = tmp_path / "other"
    content = onnx_file.read_bytes()
    network.write_bytes(content.replace(b"colours", b"colourz"))
    with pytest.raises(InputError, match="another artefact"), drift_log(path, network, None, "infer"):
        pass


def test_a_log_says_by_the_network_what_it_is_of(bundle: Path, onnx_file: Path, tmp_path: Path) -> None:
    """So that a file and a bundle of one network share it; an engine is known by all that it holds."""
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"ftrt" + bytes(20))
    network = network_sha256(onnx_file.read_bytes())
    assert [Origin.of(each).artefact for each in (bundle, onnx_file, engine)] == [
        network,
        network,
        sha256_of(engine),
    ]


def add_scores(bundle: Path, scores: CalibratedScores) -> None:
    """Puts the scores of calibration images into a bundle."""
    (bundle / "scores.json").write_text(json.dumps(scores.to_dict()))
    sealed = open_bundle(bundle).manifest
    files = {**sealed.files, "scores.json": sha256_of(bundle / "scores.json")}
    (bundle / "manifest.json").write_text(replace(sealed, files=files).to_json())


@pytest.mark.parametrize(
    "content", [b"some text\n", b'{"a": 1}\n', b"\xff\xfe\n", b"[" * 100_000, b'{"msmamba_drift": 2}\n']
)
def test_what_is_no_log_is_left_alone(content: bytes, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no log of --drift"), drift_log(path, bundle, None, "infer"):
        pass
    with pytest.raises(InputError, match="is no log of --drift"):
        read_drift(path)
    assert path.read_bytes() == content


def test_where_nothing_can_be_written_it_is_said(bundle: Path, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent" / "log.jsonl", Path("/dev/full")):
        with pytest.raises(TargetError, match="cannot write"), drift_log(path, bundle, None, "infer"):
            pass
    with pytest.raises(InputError, match="cannot read the log: no such file"):
        read_drift(tmp_path / "absent")


def test_many_values_are_kept_as_quantiles() -> None:
    values = np.random.default_rng(0).normal(0, 1, 5000)
    scores = CalibratedScores.of([{"stain_red": float(each), "focus": None} for each in values])
    assert scores.images == 5000
    assert set(scores.scores) == {"stain_red"}
    kept = np.array(scores.scores["stain_red"])
    assert len(kept) == MOST_VALUES
    places = np.searchsorted(np.sort(values), kept) / 5000
    assert np.abs(places - (np.arange(MOST_VALUES) + 0.5) / MOST_VALUES).max() < 0.002
    assert CalibratedScores.from_dict(json.loads(json.dumps(scores.to_dict()))) == scores


@pytest.mark.parametrize(
    "values", [[], {"images": 0, "scores": {}}, {"images": 3, "scores": {"stain_red": []}}, {"images": 3}]
)
def test_scores_that_are_none_are_refused(values: object) -> None:
    with pytest.raises(ValueError, match=r"expected|missing"):
        CalibratedScores.from_dict(values)  # type: ignore[arg-type]  # that is the point


def test_classifying_logs_each_picture_that_was_read(
    bundle: Path, colours: list[np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    sources = [colours[0], tmp_path / "absent.png", *colours[1:]]
    with msmamba.open(bundle) as session, drift_log(path, bundle, session.manifest, "infer") as log:
        results = [result for _, result in session.classify_stream(sources, batch_size=2, log=log)]
    logged = read_drift(path)
    assert (len(results), logged.pictures) == (4, 3)
    found = [result.probability for result in results if isinstance(result, msmamba.runtime.Prediction)]
    assert logged.scores["probability"] == pytest.approx(found, rel=1e-4)
    assert logged.scores["background_red"].argmax() == 0
    assert logged.scores["background_blue"].argmax() == 2
