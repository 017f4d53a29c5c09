"""The session on disk: every result, the pictures that stand for it, and a report however it ended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from click.testing import CliRunner
from full_disk import no_file_larger_than
from PIL import Image

from msmamba.cli import mmdeploy
from msmamba.errors import InputError, Note, TargetError
from msmamba.microscope import Result
from msmamba.microscope.live.record import Record, recording
from msmamba.microscope.live.report import write_session_report
from msmamba.microscope.slides.results import colour_of
from msmamba.microscope.sources import Frame
from msmamba.runtime.quality import Quality
from msmamba.schema import as_json

LABELS = ["basophil", "eosinophil", "lymphocyte"]
FACTS = {
    "msmamba": "1.0",
    "artefact": "<b>small</b>.fp32",
    "artefact_sha256": "a" * 64,
    "labels": LABELS,
    "source": "demo & more",
    "runs_by": "CPU",
}
SHARP = Quality(0.6, 0.9, 0.7, 0.0, 0.0, 0.1, (0.9, 0.9, 0.9))
LATENCY = {"grab": 0.5, "prepare": 1.0, "network": 2.0, "quality": 1.0, "total": 5.0}


def result(number: int, at: float = 0.0, label: int = 0, probability: float = 0.75) -> Result:
    pixels = np.full((40, 60, 3), number % 256, np.uint8)
    frame = Frame(pixels, number, at, 0.5, f"#{number}")
    rest = (1 - probability) / 2
    probabilities = tuple(probability if index == label else rest for index in range(3))
    return Result(frame, number, LABELS[label], probability, probabilities, LATENCY, 5.0, 2, SHARP)


def line_of(shown: Result) -> dict[str, object]:
    return {"taken": "2026-11-27T18:00:00+00:00", **shown.as_json(), "painted_age_ms": None}


def add(record: Record, *results: Result) -> None:
    for each in results:
        record.add(each, line_of(each))


def pictures(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "thumbnails").iterdir())


def silent(line: str) -> None:
    raise AssertionError(line)


def test_the_most_certain_pictures_some_seconds_apart_stand_for_a_class(tmp_path: Path) -> None:
    with recording(tmp_path / "s", FACTS, 0.0, silent) as record:
        add(record, result(0, 0.0, probability=0.6), result(1, 2.0, probability=0.8), result(2, 4.0))
        add(record, result(3, 3.0, label=1), result(4, 60.0, probability=0.5))
        record.tick()
        assert pictures(tmp_path / "s") == [1, 3, 4]  # of 0, 1 and 2, within five seconds, the most certain
        blurred = replace(result(5, 61.0, probability=0.99), quality=replace(SHARP, focus=0.1))
        add(record, blurred)  # which is worth less, however certain
        add(record, *(result(10 + each, 100.0 + 10 * each, probability=0.9) for each in range(8)))
        add(record, *(result(20 + each, 200.0 + 5 * each, label=2) for each in range(2)))
        add(record, result(22, 204.0, label=2, probability=0.8))  # within five seconds of both
    assert pictures(tmp_path / "s") == [3, *range(10, 18), 22]
    with Image.open(tmp_path / "s" / "thumbnails" / "0000010.jpg") as picture:
        assert abs(np.asarray(picture).astype(int) - 10).max() <= 2


def test_an_age_that_was_reported_in_time_is_in_the_line(tmp_path: Path) -> None:
    with recording(tmp_path / "s", FACTS, 60.0, silent) as record:
        add(record, result(0), result(1))
        record.painted(0, 30.123)
        record.painted(0, 99.0)  # another page, later
        record.painted(7, 1.0)
        record.tick()
        assert not (tmp_path / "s" / "session.jsonl").exists()  # they wait
    lines = (tmp_path / "s" / "session.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["painted_age_ms"] for line in lines] == [30.12, None]


def test_without_a_page_a_line_is_there_at_once(tmp_path: Path) -> None:
    with recording(tmp_path / "s", FACTS, 0.0, silent) as record:
        add(record, result(0))
        assert (tmp_path / "s" / "session.jsonl").read_bytes().endswith(b"}\n")


def test_a_snapshot_is_the_picture_pixel_for_pixel(tmp_path: Path) -> None:
    with recording(tmp_path / "s", FACTS, 0.0, silent) as record:
        shown = result(12)
        add(record, shown)
        assert record.snapshot(shown, line_of(shown)) == "snapshots/0000012.png"
        assert record.snapshot(shown, line_of(shown)) == "snapshots/0000012.png"
    with Image.open(tmp_path / "s" / "snapshots" / "0000012.png") as picture:
        assert (np.asarray(picture) == shown.frame.pixels).all()
    kept = json.loads((tmp_path / "s" / "snapshots" / "0000012.json").read_bytes())
    assert kept == line_of(shown)


def test_a_snapshot_that_finds_no_room_leaves_no_answer_without_its_picture(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)  # which nothing compresses
    shown = replace(result(12), frame=replace(result(12).frame, pixels=pixels))
    with recording(tmp_path / "s", FACTS, 0.0, silent) as record:
        add(record, shown)
        with no_file_larger_than(len(as_json(line_of(shown), indent=2)) + 10), pytest.raises(TargetError):
            record.snapshot(shown, line_of(shown))
    assert list((tmp_path / "s" / "snapshots").iterdir()) == []


def test_a_session_that_showed_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with recording(tmp_path / "s", FACTS, 0.0, silent) as record:
        record.event("there is no camera")
        record.tick()
        assert (tmp_path / "s" / "events.jsonl").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("there", "exists already: choose another name"), ("no/where", "its folder does not exist")],
)
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(TargetError, match=message), recording(tmp_path / name, FACTS, 0.0, silent):
        pass
    assert list((tmp_path / "there").iterdir()) == []


def test_a_session_that_cannot_be_written_goes_on_and_says_so_once(tmp_path: Path) -> None:
    said: list[str] = []
    keeping = recording(tmp_path / "s", FACTS, 0.0, said.append)
    record = keeping.__enter__()
    (tmp_path / "s" / "session.jsonl").mkdir()
    add(record, result(0), result(1))
    record.tick()
    problem = f"the session in '{tmp_path / 's'}' is not whole: is a directory"
    assert said == [f"{problem}; it goes on without being kept"]
    with pytest.raises(TargetError, match=problem):
        keeping.__exit__(None, None, None)


def kept(folder: Path) -> Path:
    """A session of ten seconds: two classes, a snapshot, an event, ages of some pictures."""
    with recording(folder, FACTS, 60.0, silent) as record:
        for number in range(20):
            shown = result(number, number / 2, label=int(number >= 15), probability=0.7 + number / 100)
            line = line_of(shown) | {"taken": f"2026-11-27T18:00:{number // 2:02}+00:00"}
            record.add(shown, line)
            if number == 3:
                record.snapshot(shown, line)
                record.painted(3, 40.0)
        record.event("'<camera>' went away")
    return folder


def test_the_report_has_the_session(tmp_path: Path) -> None:
    page = write_session_report(kept(tmp_path / "s")).read_text(encoding="utf-8")
    assert "&lt;b&gt;small&lt;/b&gt;.fp32" in page
    assert "demo &amp; more" in page
    assert "<camera>" not in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    for words in (
        "length 9.0 s",
        "pictures shown 20 2.1 a second",
        "dropped for newer ones 40 66.7 % of those taken",
        "age when painted 40.0 ms 95th percentile 40.0 ms",
        "basophil 15 75.0 % 0.770",
        "eosinophil 5 25.0 % 0.870",
        "lymphocyte 0 0.0 % —",
        "no fault 20 100.0 %",
        "Focus: median 0.60, 5th percentile 0.60, most 0.60.",
        "network 2.0 2.0 2.0 2.0",
        "basophil 0.730 snapshots/0000003.png",
        "'&lt;camera&gt;' went away",
    ):
        assert words in text.replace("&#39;", "'"), words
    assert page.count('src="data:image/jpeg') == 1 + len(pictures(tmp_path / "s"))


def test_a_clock_that_is_set_back_makes_no_session_an_hour_longer(tmp_path: Path) -> None:
    with recording(tmp_path / "s", FACTS, 60.0, silent) as record:
        for number, taken in enumerate(("18:00:00", "18:00:01", "17:00:02", "17:00:03")):
            shown = result(number, number)
            record.add(shown, line_of(shown) | {"taken": f"2026-11-27T{taken}+00:00"})
    page = write_session_report(tmp_path / "s").read_text(encoding="utf-8")
    assert "length 2.0 s pictures shown 4 1.5 a second" in re.sub(r"(\s|<[^>]+>)+", " ", page)


def test_the_time_line_has_what_was_seen_when(tmp_path: Path) -> None:
    with recording(tmp_path / "s", FACTS, 60.0, silent) as record:
        for number, (second, label, focus) in enumerate(
            [(0, 0, 0.2), (1, 1, 0.4), (2, 1, None), (8, 2, 0.6)]
        ):
            shown = result(number, second, label=label)
            line = line_of(shown)
            quality = {**shown.as_json()["quality"], "focus": focus}
            record.add(shown, line | {"taken": f"2026-11-27T18:00:{second:02}+00:00", "quality": quality})
    page = write_session_report(tmp_path / "s").read_text(encoding="utf-8")
    bars = re.findall(r'<rect x="(.+?)" y="(.+?)" width="1.02" height="(.+?)" fill="rgb(.+?)"', page)
    colours = [str(colour_of(index)) for index in range(3)]
    assert bars == [
        ("0", "0.5000", "0.5000", colours[0]),
        ("0", "0.0000", "0.5000", colours[1]),
        ("1", "0.0000", "1.0000", colours[1]),
        ("3", "0.0000", "1.0000", colours[2]),
    ]
    focus = re.findall(r'<polyline points="(.+?) "', page)
    assert focus == ["0.0,0.7000 0.5,0.7000", "3.0,0.4000 3.5,0.4000"]


def test_the_report_says_how_many_answers_the_guard_withheld(tmp_path: Path) -> None:
    with recording(tmp_path / "s", FACTS, 0.0, silent) as record:
        for number in range(4):
            decided = number > 0
            shown = replace(
                result(number, 10.0 * number, probability=0.9 - number / 10),
                decided=decided,
                reasons=() if decided else ("uncertain",),
                candidates=tuple(LABELS[:2]),
            )
            record.add(shown, line_of(shown))
        for number in range(4, 12):
            add(record, result(number, 10.0 * number, probability=0.5))
    assert 0 not in pictures(tmp_path / "s")  # however certain, it was no answer
    page = write_session_report(tmp_path / "s").read_text(encoding="utf-8")
    assert "answers withheld by the guard" in page
    assert "1 of 4;" in page


def test_a_picture_whose_answer_was_withheld_stands_last_and_says_so(tmp_path: Path) -> None:
    with recording(tmp_path / "s", FACTS, 0.0, silent) as record:
        for number, probability in enumerate((0.9, 0.6)):
            shown = replace(
                result(number, 10.0 * number, probability=probability),
                decided=bool(number),
                candidates=tuple(LABELS),
            )
            record.add(shown, line_of(shown))
    page = write_session_report(tmp_path / "s").read_text(encoding="utf-8")
    captions = re.findall(r'alt="basophil, ([0-9.]+)".*?<small>[^<]*UTC([^<]*)</small>', page)
    assert captions == [("0.600", ""), ("0.900", ", withheld")]


def test_lines_that_are_torn_or_damaged_are_counted_and_left_out(tmp_path: Path) -> None:
    folder = kept(tmp_path / "s")
    path = folder / "session.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b"basophil", b"nobody")
    lines[5] = b"\0" * 40 + b"\n"
    lines[6] = lines[6].replace(b'"dropped": 2', b'"dropped": -2')
    lines[7] = re.sub(rb'"taken": "[^"]*"', b'"taken": "0001-01-01T00:00:00"', lines[7])
    path.write_bytes(b"".join(lines[:19]) + lines[19][:50])
    page = write_session_report(folder).read_text(encoding="utf-8")
    assert "5 lines are not counted" in page
    assert "<dd>15<" in page


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that fails when it is read")
def test_a_picture_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    folder = kept(tmp_path / "s")
    lost = sorted((folder / "thumbnails").iterdir())[-1]
    lost.unlink()
    lost.symlink_to("/proc/self/mem")
    with pytest.warns(Note, match=rf"the report lacks a picture: '.*{lost.name}' cannot be read: input/out"):
        write_session_report(folder)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
def test_a_pipe_among_the_snapshots_is_not_waited_for(tmp_path: Path) -> None:
    folder = kept(tmp_path / "s")
    os.mkfifo(folder / "snapshots" / "0000099.png")
    assert "0000099" not in write_session_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts.unlink(), "holds no session"),
        (lambda facts: facts.write_text("{"), "it is not JSON"),
        (lambda facts: facts.write_text('{"labels": []}'), "'labels' is"),
        (lambda facts: (facts.parent / "session.jsonl").write_text(""), "nothing was shown"),
        (lambda facts: (facts.parent / "session.jsonl").unlink(), "nothing was shown"),
    ],
)
def test_what_is_no_session_is_one_line(tmp_path: Path, change, message: str) -> None:
    folder = kept(tmp_path / "s")
    change(folder / "session.json")
    with pytest.raises(InputError, match=message):
        write_session_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_session_gives_its_report(bundles: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "s"
    command = [sys.executable, "-m", "msmamba", "live", str(bundles["fp32"]), "demo", "--no-page"]
    command += ["-o", str(folder), "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        shown = [process.stdout.readline()]
        while not list(folder.glob("thumbnails/*.jpg")):
            shown.append(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    assert not (folder / "report.html").exists()
    done = CliRunner().invoke(mmdeploy, ["live", "report", str(folder)])
    assert (done.exit_code, done.stdout) == (0, f"the report: {folder / 'report.html'}\n")
    kept_lines = (folder / "session.jsonl").read_text(encoding="utf-8")
    assert kept_lines.startswith("".join(shown))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "the most certain pictures" in page
    assert page.rstrip().endswith("</html>")


def test_the_report_of_what_is_no_session_is_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(mmdeploy, ["live", "report", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: '{tmp_path}' holds no session ('session.json' is missing)")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an interval timer")
def test_an_interrupt_at_any_moment_loses_no_result_that_was_shown(
    tmp_path: Path,
) -> None:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for delay in np.random.default_rng(0).uniform(1e-4, 5e-3, 25).tolist():
            folder, shown = tmp_path / str(delay), 0
            with suppress(KeyboardInterrupt), recording(folder, FACTS, 0.0, silent) as record:
                signal.setitimer(signal.ITIMER_REAL, delay)
                for number in range(10_000):
                    add(record, result(number))
                    shown += 1
            path = folder / "session.jsonl"
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            numbers = [json.loads(line)["number"] for line in lines]
            assert numbers == list(range(len(numbers)))
            assert len(numbers) in (shown, shown + 1)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_interrupt_that_leaves_the_lock_taken_ends_the_session_all_the_same(tmp_path: Path) -> None:
    def interrupted() -> None:
        with suppress(KeyboardInterrupt), recording(tmp_path / "s", FACTS, 0.0, silent) as record:
            add(record, result(0))
            record._changed.acquire()  # as one between the lock's taking and the block leaves it
            raise KeyboardInterrupt

    thread = Thread(target=interrupted, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert len((tmp_path / "s" / "session.jsonl").read_text(encoding="utf-8").splitlines()) == 1


def test_long_sessions_take_little_memory_while_they_run(tmp_path: Path) -> None:
    with recording(tmp_path / "s", FACTS, 0.05, silent) as record:
        for number in range(1000):
            add(record, result(number, number / 25))
        time.sleep(0.1)
        record.tick()
        assert record.waiting == 0
    assert len(pictures(tmp_path / "s")) == 8
