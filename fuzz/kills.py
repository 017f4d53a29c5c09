"""``kill -9`` at random moments: nothing is lost, and nothing is left lying once the command is given again.

Each command is first run undisturbed, for its time and its result. Then it is begun and killed somewhere in
that time, looked at, and run again to its end.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from campaign import Count
from seeds import SIDE, Seeds

EACH = 2
"""Kills of each command at a scale of 1."""


@dataclass(frozen=True)
class Command:
    """What is killed."""

    name: str
    words: Callable[[Seeds, Path], list[str]]
    """Of the command line, by the seeds and the target."""
    again: tuple[str, ...] = ()
    """What the second call needs besides."""
    before: Callable[[Seeds, Path], None] | None = None
    """Puts something at the target that --force is to replace."""
    goes_on: bool = False
    """Whether its result grows where it stands, and the second call goes on in it."""
    exact: bool = False
    """Whether the result is the same to the byte every time."""


def _old_bundle(seeds: Seeds, target: Path) -> None:
    shutil.copytree(seeds.bundle, target)


_EVERYTHING = ("--pixel-for-pixel", "--no-tissue")

COMMANDS = (
    Command(
        "infer",
        lambda seeds, target: ["infer", str(seeds.bundle), str(seeds.cells), "-o", str(target)],
        exact=True,
    ),
    Command(
        "import", lambda seeds, target: ["data", "import", "folder", str(seeds.cells), "-o", str(target)]
    ),
    Command("export", lambda seeds, target: ["export", str(seeds.checkpoint), "-o", str(target)], exact=True),
    Command(
        "replace",
        lambda seeds, target: ["export", str(seeds.checkpoint), "-o", str(target), "--force"],
        before=_old_bundle,
        exact=True,
    ),
    Command(
        "int8",
        lambda seeds, target: [
            *("export", str(seeds.checkpoint), "-o", str(target), "--int8", "--calib", str(seeds.cells)),
            *("--max-flips", "100%", "--max-accuracy-drop", "100", "--calib-images", "12"),
        ],
    ),
    Command(
        "train",
        lambda seeds, target: [
            *("train", str(seeds.cells), "-o", str(target), "--epochs", "3", "--warm-up", "0"),
            *("--image-size", str(SIDE), "--threads", "1"),
        ],
        again=("--resume",),
        goes_on=True,
    ),
    Command(
        "slide",
        lambda seeds, target: [
            *("slide", str(seeds.bundle), str(seeds.cells / "basophil"), "-o", str(target), *_EVERYTHING),
        ],
        goes_on=True,
    ),
    Command(
        "calibrate",
        lambda seeds, target: ["calibrate", str(target), str(seeds.cells), "--max-error", "99%"],
        before=_old_bundle,
        exact=True,
    ),
)


@dataclass(frozen=True)
class _Whole:
    """What an undisturbed call took and left."""

    seconds: float
    names: list[str]
    digest: str


def run(command: Command, seeds: Seeds, out: Path, *, scale: float, seed: int) -> Count:
    """Kills a command some times."""
    count = Count(f"kill-{command.name}")
    work = (out / "kills").resolve()
    shutil.rmtree(work, ignore_errors=True)
    (work / "whole").mkdir(parents=True)
    target = work / "whole" / "result"
    if command.before:
        command.before(seeds, target)
    began = time.monotonic()
    if (answer := _mmdeploy(command.words(seeds, target))).returncode != 0:
        raise RuntimeError(f"{command.name} fails undisturbed: {answer.stderr[-500:]}")
    whole = _Whole(time.monotonic() - began, _names(target), _digest(target))
    finished = 0
    for number in range(max(1, round(EACH * scale))):
        generator = random.Random(f"{command.name} {seed} {number}")
        after = whole.seconds * generator.uniform(0.2, 1.02)
        was_killed, wrong = _kill_once(command, seeds, work / "killed", after, whole)
        count.tried += 1
        finished += not was_killed
        if wrong:
            count.findings += 1
            kept = out / "findings" / f"kill-{command.name}-{seed}-{number}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(work / "killed", kept, symlinks=True)
            (kept / "said.txt").write_text("\n".join(wrong))
            print(f"  {kept}: {wrong[0]}", flush=True)
    shutil.rmtree(out / "kills", ignore_errors=True)
    count.note = f"{count.tried - finished:6} killed, {finished:7} done before"
    return count


def _kill_once(
    command: Command, seeds: Seeds, folder: Path, after: float, whole: _Whole
) -> tuple[bool, list[str]]:
    """Begins, kills, looks, and runs to the end; whether it was killed in time, and what was wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    target = folder / "result"
    if command.before:
        command.before(seeds, target)
    before = _digest(target)
    process = subprocess.Popen(
        [sys.executable, "-m", "msmamba", *command.words(seeds, target)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    wrong = []
    finished = process.returncode == 0
    again = list(command.again)
    if not command.goes_on:
        there = target.exists()
        if there and not finished and _digest(target) != before and not _is(whole, command, target):
            wrong.append(f"killed after {after:.2f} s, a part of the result is there: {_names(target)}")
        if command.before and not there:
            wrong.append(f"killed after {after:.2f} s, what was to be replaced is gone")
        if there and not command.before and target.is_dir():
            again = ["--force"]
    answer = _mmdeploy([*command.words(seeds, target), *again])
    if answer.returncode != 0:
        wrong.append(f"killed after {after:.2f} s, the next call failed: {answer.stderr[-500:]}")
    elif not _is(whole, command, target):
        wrong.append(
            f"killed after {after:.2f} s, the next call left {_names(target)}, expected {whole.names}"
            + ", to the byte" * command.exact
        )
    lying = sorted(path.name for path in folder.iterdir() if path.name not in ("result", "result.calib"))
    if lying:
        wrong.append(f"killed after {after:.2f} s, this is left lying: {lying}")
    return not finished, wrong


def _is(whole: _Whole, command: Command, target: Path) -> bool:
    """Whether a result is that of an undisturbed call."""
    return _names(target) == whole.names and (not command.exact or _digest(target) == whole.digest)


def _mmdeploy(words: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "msmamba", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def _names(target: Path) -> list[str]:
    """The files of a result."""
    if not target.is_dir():
        return [target.name] if target.exists() else []
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir())


def _digest(target: Path) -> str:
    """Of names and contents."""
    digest = hashlib.sha256()
    for name in _names(target):
        path = target / name if target.is_dir() else target
        digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()
