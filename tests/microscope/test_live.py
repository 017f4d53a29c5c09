"""The loop: the newest frame wins, what goes wrong is reported and stops nothing, sessions are kept whole."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import msmamba
from msmamba.cli import mmdeploy
from msmamba.errors import ImageError, InputError, SourceError, TargetError
from msmamba.microscope import stream
from msmamba.microscope.live.channel import Changed, Channel
from msmamba.microscope.sources import Frame
from msmamba.microscope.sources.demo import Demo
from msmamba.runtime import Session
from msmamba.runtime.drift import COMMANDS, DriftLog, Origin, drift_log, read_drift
from tests.export.proof.test_guarded import with_guard


@pytest.fixture(scope="module")
def session(bundles: dict[str, Path]) -> Iterator[Session]:
    with msmamba.open(bundles["fp32"], threads=1) as opened:
        yield opened


def picture(value: int) -> np.ndarray:
    return np.random.default_rng(value).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_a_result_says_what_the_guard_says(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = with_guard(bundles["fp32"], tmp_path / "guarded", threshold=1e6)
    Image.fromarray(picture(1)).save(tmp_path / "a.png")
    with msmamba.open(bundle, threads=1) as guarded:
        (result,) = stream(guarded, tmp_path / "a.png")
    assert (result.decided, result.reasons) == (False, ("uncertain",))
    assert result.candidates[0] == result.label
    assert result.as_json()["candidates"] == list(result.candidates)
    arguments = ["live", "--no-page", str(bundle), str(tmp_path / "a.png")]
    (line,) = CliRunner().invoke(mmdeploy, arguments).stdout.splitlines()
    assert json.loads(line)["decided"] is False
    (line,) = CliRunner().invoke(mmdeploy, [*arguments, "--no-guard"]).stdout.splitlines()
    assert not {"decided", "reasons", "candidates"} & set(json.loads(line))


class Camera:
    """Frames at a pace, in parts: between two of them it goes away."""

    name = "camera"
    endless = True
    keeps = False
    stalls_after: float | None = None

    def __init__(self, *parts: list[Frame | ImageError | None], pause: float = 0.0) -> None:
        self.parts = iter(parts)
        self.pause = pause
        self.closed = 0

    def frames(self) -> Iterator[Frame | ImageError | None]:
        part = next(self.parts, None)
        if part is None:
            raise SourceError("there is no camera")
        try:
            for item in part:
                time.sleep(self.pause)
                yield item
            raise SourceError("the cable is out")
        finally:
            self.closed += 1


def frame(number: int) -> Frame:
    return Frame(picture(number), number, time.monotonic(), 0.5, f"#{number}")


def test_a_result_says_what_the_session_says(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture(1)).save(path)
    (result,) = stream(session, path)
    (expected,) = session.classify([path])
    assert (result.label, result.probability) == (expected.label, expected.probability)
    assert result.probabilities == expected.probabilities
    assert (result.number, result.dropped, result.frame.name) == (0, 0, str(path))
    steps = result.latency_ms
    assert list(steps) == ["grab", "prepare", "network", "quality", "total"]
    assert sum(steps.values()) - steps["total"] <= steps["total"] + 0.1 <= result.frame_age_ms + 0.2
    assert result.quality.focus is not None


def test_the_newest_frame_wins_and_old_ones_are_counted(session: Session) -> None:
    image = np.random.default_rng(0).integers(0, 256, (80, 200, 3), dtype=np.uint8)
    shown = []
    with closing(stream(session, Demo("demo", image, frames_a_second=200))) as results:
        for result in islice(results, 5):
            shown.append(result)
            time.sleep(0.2)  # somebody who looks slowly
    numbers = [result.number for result in shown]
    assert [after - before - 1 for before, after in zip([-1, *numbers], numbers, strict=False)] == [
        result.dropped for result in shown
    ]
    assert sum(result.dropped for result in shown[1:]) > 10


def test_keep_all_drops_none(session: Session, micrographs: Path) -> None:
    results = []
    for result in stream(session, micrographs, keep_all=True):
        results.append(result)
        time.sleep(0.01)
    assert [Path(result.frame.name) for result in results] == sorted(micrographs.iterdir())
    assert [result.dropped for result in results] == [0] * len(results)


def test_a_source_that_went_away_is_opened_again(session: Session) -> None:
    camera = Camera([frame(0), None, frame(1)], [frame(0)], pause=0.1)
    said: list[str] = []
    with closing(stream(session, camera, report=said.append)) as results:
        numbers = [next(results).number]
        while numbers[-1] < 2:
            numbers.append(next(results).number)
    assert numbers == [0, 1, 2]
    assert said[:2] == ["'camera' went away: the cable is out; trying again in 0.5 s", "'camera' is back"]


def test_a_frame_that_cannot_be_used_stops_nothing(session: Session) -> None:
    line = Frame(np.zeros((1, 9, 3), np.uint8), 0, time.monotonic(), 0.0, "a line")
    camera = Camera([ImageError("torn"), line, frame(1)], pause=0.2)
    said: list[str] = []
    with closing(stream(session, camera, report=said.append)) as results:
        result = next(results)
    assert (result.number, result.dropped) == (1, 1)
    assert said[0] == "a frame was left out: torn"
    assert said[1].startswith("a frame was left out: a line: ")


def test_of_frames_with_the_same_fault_the_first_is_reported(session: Session) -> None:
    faults = [ImageError(f"camera #{number} is torn") for number in range(3)]
    camera = Camera([*faults, frame(0), ImageError("camera #1 is torn"), frame(1)], pause=0.05)
    said: list[str] = []
    with closing(stream(session, camera, report=said.append)) as results:
        while next(results).number < 1:
            pass
    assert [line for line in said if "torn" in line] == [
        "a frame was left out: camera #0 is torn",
        "a frame was left out: camera #1 is torn",
    ]


def test_a_source_that_stalls_is_reported_once(session: Session) -> None:
    camera = Camera([frame(0), *[None] * 8, frame(1)], pause=0.1)
    camera.stalls_after = 0.3
    said: list[str] = []
    with closing(stream(session, camera, report=said.append)) as results:
        assert [next(results).number, next(results).number] == [0, 1]
    (stall,) = [line for line in said if "went away" not in line]
    assert stall == "'camera' has given no frame for 0.3 seconds: waiting for it"


def test_a_source_that_never_was_there_ends_it(session: Session) -> None:
    with pytest.raises(SourceError, match="there is no camera"):
        next(stream(session, Camera()))


def test_closing_closes_the_source_and_ends_what_runs(session: Session) -> None:
    camera = Camera([frame(number) for number in range(10_000)], pause=0.001)
    with closing(stream(session, camera)) as results:
        next(results)
    assert camera.closed == 1


def test_a_source_that_does_not_hang_is_waited_for(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msmamba.microscope.live.loop._HANGS", 0.1)
    closed = []

    class Slow(Camera):
        def frames(self) -> Iterator[Frame | ImageError | None]:
            try:
                yield frame(0)
                while True:
                    time.sleep(0.01)
                    yield None
            finally:
                time.sleep(0.4)  # as hardware that is shut down
                closed.append(True)

    with closing(stream(session, Slow([]))) as results:
        next(results)
    assert closed == [True]


def test_only_files_keep_their_frames(session: Session) -> None:
    with pytest.raises(InputError, match="'demo' does not keep its frames"):
        stream(session, "demo", keep_all=True)


def test_seconds_end_it_where_no_frame_comes(session: Session, tmp_path: Path) -> None:
    before = time.monotonic()
    assert list(stream(session, f"watch:{tmp_path}", seconds=0.3)) == []
    assert 0.3 <= time.monotonic() - before < 5


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_seconds_that_are_none_are_refused(seconds: float, session: Session, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seconds: expected"):
        stream(session, f"watch:{tmp_path}", seconds=seconds)


def test_files_of_which_none_can_be_used_are_a_failure(bundles: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    command = ["live", str(bundles["fp32"]), str(tmp_path), "--no-page"]
    done = CliRunner().invoke(mmdeploy, command)
    assert done.exit_code == 1
    assert "has ended, and no frame of it could be classified" in done.stderr
    Image.fromarray(picture(1)).save(tmp_path / "b.png")
    assert CliRunner().invoke(mmdeploy, command).exit_code == 0


def test_a_page_is_not_kept_for_files_of_which_none_can_be_used(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    command = ["live", bundles["fp32"], tmp_path, "--port", 0, "-o", tmp_path / "s", "--seconds", 20]
    done = CliRunner().invoke(mmdeploy, [*map(str, command)])
    assert "the page stays" not in done.stderr
    assert (done.exit_code, [*tmp_path.iterdir()]) == (1, [tmp_path / "a.png"])
    assert "has ended, and no frame of it could be classified" in done.stderr


def test_the_command_prints_lines_and_keeps_them(bundles: dict[str, Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(
        mmdeploy,
        ["live", str(bundles["fp32"]), "demo", "--no-page", "--frames", "3", "-o", str(tmp_path / "s")],
    )
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 3
    assert (tmp_path / "s" / "session.jsonl").read_text(encoding="utf-8") == done.stdout
    assert lines[0].keys() >= {
        *("taken", "number", "name", "label", "probability", "probabilities", "latency_ms", "frame_age_ms"),
        *("dropped", "mpp", "quality", "notes"),
    }
    assert sum(lines[0]["probabilities"]) == pytest.approx(1)


def test_a_report_that_takes_a_while_is_told(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msmamba.microscope.live.run._MANY", 2)
    command = ["live", str(bundles["fp32"]), "demo", "--no-page"]
    for frames, said in (("1", ""), ("2", "note: writing the report of 2 results\n")):
        options = ["-o", str(tmp_path / frames), "--frames", frames]
        done = CliRunner().invoke(mmdeploy, [*command, *options])
        assert (done.exit_code, done.stderr) == (0, said)
        assert (tmp_path / frames / "report.html").exists()


def test_what_is_no_source_is_one_line_and_leaves_no_folder(bundles: dict[str, Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(
        mmdeploy,
        ["live", str(bundles["fp32"]), str(tmp_path / "none"), "--no-page", "-o", str(tmp_path / "s")],
    )
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
def test_an_interrupted_session_is_kept_whole(bundles: dict[str, Path], tmp_path: Path) -> None:
    # As a terminal starts it: what runs these tests may ignore the signal, and children inherit that.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{heeding}; from msmamba.cli import main; main()"]
    command += [
        "live",
        str(bundles["fp32"]),
        "demo",
        "--no-page",
        "-o",
        str(tmp_path / "s"),
        "--threads",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "interrupted\n")
    kept = (tmp_path / "s" / "session.jsonl").read_text(encoding="utf-8")
    assert kept.startswith(first + rest)  # and perhaps one that was kept and not shown any more
    assert all(json.loads(line) for line in kept.splitlines())


def test_scores_of_a_session_are_logged_once_a_second(
    session: Session, bundles: dict[str, Path], tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    with drift_log(log, bundles["fp32"], session.manifest, "live") as lines:
        for result in stream(session, Camera([frame(number) for number in range(5)]), log=lines, seconds=5):
            if result.number == 4:
                break
    logged = read_drift(log)
    assert logged.pictures == 1
    assert logged.by.tolist() == [COMMANDS.index("live")]


def test_a_log_that_cannot_be_written_stops_no_session(session: Session, tmp_path: Path) -> None:
    def full(line: str) -> None:
        raise TargetError("cannot write 'log': the disk is full")

    Image.fromarray(picture(1)).save(tmp_path / "a.png")
    Image.fromarray(picture(2)).save(tmp_path / "b.png")
    reports: list[str] = []
    log = DriftLog(full, Origin("ab" * 32, None), "infer", 1.0)
    found = list(stream(session, tmp_path, keep_all=True, log=log, report=reports.append))
    assert len(found) == 2
    assert reports == ["no more scores are logged: cannot write 'log': the disk is full"]


def test_an_interrupt_that_leaves_no_lock_to_give_back_is_an_interrupt() -> None:
    changed = Changed()
    release = changed._release_save  # type: ignore[attr-defined]

    def interrupted() -> None:
        release()
        raise KeyboardInterrupt  # before the line from which on the lock is taken again

    changed._release_save = interrupted  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt), changed:
        changed.wait(1)
    with pytest.raises(RuntimeError, match="un-acquired"), changed:  # a fault of ours is not hidden
        changed.release()


def test_an_interrupt_that_leaves_the_lock_taken_ends_a_channel_all_the_same() -> None:
    channel: Channel[int] = Channel(keep_all=True)
    channel.put(0)
    waiting = Thread(target=channel.put, args=(1,), daemon=True)
    waiting.start()
    channel._changed.acquire()  # as one between the lock's taking and the block leaves it
    channel.end()
    waiting.join(20)
    assert not waiting.is_alive()
