"""The system fails, call by call: a full disk, a share that goes away, a folder that nobody may read.

Each command is first run undisturbed and watched by strace, which tells every call that touches a file of the
user's. Then it is run again and again, and each time one of these calls, or all from one on, is answered with
an error, by strace's own injection. What comes of it has to be whole and right, or told in one line that
names a file; what was there before stays, nothing is left lying, and the next call gives what an undisturbed
one gives.

Python and the libraries are loaded once, in a process of its own; each run is a fork of it, which strace is
attached to. Without strace, as everywhere but on Linux, nothing is tried.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import json
import os
import pkgutil
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from campaign import Count
from seeds import SIDE, Seeds

EACH, EACH_SLOW = 12, 3
"""Faults of each command at a scale of 1."""
SECONDS = 180.0
"""For one run under strace: that of the slowest, many times over."""
_SHOWN = bool(os.environ.get("FUZZ_SHOWN"))  # whether what is no finding is printed, too

_READS = ("EIO", "ESTALE")
_NAMES = ("EACCES", "EIO", "ESTALE")
_SPACE = ("ENOSPC", "EIO", "EDQUOT")
ERRORS = {
    **dict.fromkeys(("read", "pread64", "readv", "preadv", "getdents64"), _READS),
    **dict.fromkeys(("stat", "lstat", "fstat", "newfstatat", "statx", "readlink", "access"), _NAMES),
    **dict.fromkeys(("write", "pwrite64", "writev", "pwritev", "fsync"), _SPACE),
    **dict.fromkeys(("ftruncate", "fallocate", "copy_file_range", "sendfile"), ("ENOSPC", "EIO")),
    **dict.fromkeys(("rename", "renameat"), ("EIO", "EACCES", "ENOSPC")),
    "renameat2": ("ENOSYS", "EINVAL", "EIO", "EACCES"),
    **dict.fromkeys(("mkdir", "mkdirat"), ("ENOSPC", "EACCES", "EROFS")),
    **dict.fromkeys(("link", "linkat", "symlink", "symlinkat"), ("EPERM", "EOPNOTSUPP", "EMLINK")),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), ("EIO", "EACCES")),
    **dict.fromkeys(("chmod", "fchmod", "utimensat"), ("EPERM",)),
    "close": ("EIO",),
    "openat": ("EACCES", "EIO", "EMFILE", "ESTALE"),
    "openat to write": ("ENOSPC", "EROFS", "EACCES", "EDQUOT"),
    "flock": ("ENOLCK", "EOPNOTSUPP", "EINTR", "EIO"),
    "mmap": ("ENODEV", "ENOMEM"),
}
"""What the system may answer to each call."""
_LASTING = ("EIO", "ESTALE", "ENOSPC", "EROFS", "ENOLCK")
"""What may also go on: from then on every such call is answered so."""


@dataclass(frozen=True)
class Command:
    """What is disturbed. Words name ``{in}``, where the user's files are, and ``{out}``, the result."""

    name: str
    words: str
    rows: bool = False
    """Whether what cannot be used becomes a row of the result, which is whole then, too."""
    again: str = ""
    """What the second call needs besides where the first one succeeded or began."""
    before: str = ""
    """What of the user's files stands at the target beforehand."""
    takes: tuple[str, ...] = ("small.fp32", "cells")
    """The user's files."""
    unlike: tuple[str, ...] = ()
    """Files that may say how the result was made, as what is printed may then, or be changed before it is."""
    goes_on: bool = False
    """Whether the result grows where it stands."""
    is_slow: bool = False
    """Whether fewer faults have to do, and no surroundings."""
    is_new: bool = False
    """Whether the next call needs another target."""


_QUICK = "--epochs 2 --warm-up 0 --threads 1"
COMMANDS = (
    Command("infer", "infer {in}/small.fp32 {in}/cells -o {out} --format csv --threads 1", rows=True),
    Command("infer-print", "infer {in}/small.fp32 {in}/cells --threads 1"),
    Command("infer-pattern", "infer {in}/small.fp32 {in}/cells/*/*.png {in}/cells/**/1.png --threads 1"),
    Command("infer-drift", "infer {in}/small.fp32 {in}/cells --drift {out} --threads 1", goes_on=True),
    Command(
        "export",
        "export {in}/small.safetensors -o {out}",
        again="--force",
        is_slow=True,
        takes=("small.safetensors",),
    ),
    Command(
        "replace",
        "export {in}/small.safetensors -o {out} --force",
        before="small.fp32",
        is_slow=True,
        takes=("small.safetensors", "small.fp32"),
    ),
    Command(
        "int8",
        "export {in}/small.safetensors -o {out} --int8 --calib {in}/cells --max-flips 100% "
        "--max-accuracy-drop 100 --calib-images 6",
        again="--force",
        is_slow=True,
        takes=("small.safetensors", "cells"),
    ),
    Command(
        "calibrate",
        "calibrate {out} {in}/more --max-error 99% --threads 1",
        before="small.fp32",
        takes=("small.fp32", "more"),
    ),
    Command(
        "import",
        "data import folder {in}/more -o {out}",
        again="--force",
        takes=("more",),
        unlike=("dataset.json",),
    ),
    Command(
        "import-slides",
        "data import slides {in}/annotated --annotations {in}/annotations -o {out} --size 32 --assume-mpp 1 "
        "--mpp 1 --threads 1",
        again="--force",
        takes=("annotated", "annotations"),
    ),
    Command("check", "data check {in}/imported", takes=("imported",)),
    Command(
        "slide",
        "slide {in}/small.fp32 {in}/slides -o {out} --pixel-for-pixel --no-tissue --threads 1",
        takes=("small.fp32", "slides"),
        goes_on=True,
    ),
    Command(
        "live",
        "live {in}/small.fp32 {in}/cells --keep-all --no-page -o {out} --threads 1",
        takes=("small.fp32", "cells"),
        goes_on=True,
        is_new=True,
    ),
    Command(
        "train",
        f"train {{in}}/more -o {{out}} {_QUICK} --image-size {SIDE}",
        again="--resume",
        is_slow=True,
        takes=("more",),
        goes_on=True,
    ),
    Command(
        "resume",
        "train {in}/more -o {out} --resume --threads 1",
        before="run",
        takes=("run", "more"),
        goes_on=True,
    ),
    Command(
        "eval",
        "eval {in}/small.fp32 {in}/cells -o {out} --threads 1",
        goes_on=True,
        unlike=("metrics.json",),  # it has the seconds, which are now and then the same twice
    ),
    Command(
        "eval-imported", "eval {in}/small.fp32 {in}/imported --threads 1", takes=("small.fp32", "imported")
    ),
    Command(
        "verify",
        "verify {in}/small.fp32 --against {in}/small.safetensors --data {in}/cells --report {out} "
        "--threads 1 --max-undecided 100%",
        takes=("small.fp32", "small.safetensors", "cells"),
        unlike=("small.fp32/manifest.json",),  # which calls the bundle unproven while its proof is replaced
    ),
    Command(
        "explain",
        "explain {in}/small.safetensors {in}/cells -o {out}",
        rows=True,
        takes=("small.safetensors", "cells"),
    ),
    Command("table", "table {in}/run -o {out}", takes=("run",)),
    Command("info", "info {in}/small.safetensors", takes=("small.safetensors",)),
    Command("drift", "drift {in}/log.jsonl --against {in}/calibrated", takes=("log.jsonl", "calibrated")),
    Command("bench", "bench {in}/small.fp32 --rounds 1 --warmup 0 -o {out}", takes=("small.fp32",)),
)


class Call(NamedTuple):
    """One call of a command, as strace finds it again."""

    name: str
    """With what it is for, where that decides what it may be answered."""
    path: str
    number: int
    """Among the calls of that name which touch the path, in one thread."""


@dataclass
class Seen:
    """What came of a run."""

    status: int
    printed: str
    told: str
    result: dict[str, str] = field(default_factory=dict)
    """What is at the target: a digest for each name."""
    inputs: dict[str, str] = field(default_factory=dict)
    lying: list[str] = field(default_factory=list)
    """What is beside the target."""


def run(command: Command, seeds: Seeds, out: Path, *, scale: float, seed: int) -> Count:
    """Disturbs a command some times."""
    count = Count(f"fault-{command.name}")
    if shutil.which("strace") is None:
        count.note = "strace is not installed"
        return count
    words = [sys.executable, __file__, command.name, str(seeds.folder), str(out), str(scale), str(seed)]
    answer = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    *found, last = answer.stdout.splitlines()
    for line in found:
        print(line, flush=True)
    figures = json.loads(last)
    count.tried, count.findings, count.note = figures["tried"], figures["findings"], figures["note"]
    return count


class _Place:
    """A folder in which a command is run: the user's files, the target, and a home and a place for
    temporary files that are empty."""

    def __init__(self, folder: Path, pristine: Path, command: Command) -> None:
        self.folder, self.pristine, self.command = folder, pristine, command
        self.target = folder / "out" / "result"
        self.begin()

    def begin(self, *, anew: bool = True) -> None:
        """Makes everything as it is at first; what is not anew keeps the user's files, which are whole."""
        for name in ("in", "out", "home", "tmp")[not anew :]:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir(parents=True)
        for name in self.command.takes * anew:
            _copy(self.pristine / name, self.folder / "in" / name)
        if self.command.before:
            _copy(self.pristine / self.command.before, self.target)

    def run(self, *more: str, through: list[str] | None = None, where: str = "") -> Seen:
        """Runs the command in a fork, under strace with the given options, or by itself.

        Args:
            more: words that are added.
            through: strace's options.
            where: one of `SURROUNDINGS`.
        """
        words = self.command.words.format(**{"in": self.folder / "in", "out": self.target}).split()
        printed, told, ready = self.folder.with_suffix(".out"), self.folder.with_suffix(".err"), os.pipe()
        sys.stdout.flush()
        process = os.fork()
        if not process:
            _child([*words, *more], self.folder, printed, told, ready[0], where)
        tracer = None
        if through is not None:
            tracer = subprocess.Popen(
                ["strace", "-f", "-qq", "-p", str(process), *through], stderr=subprocess.DEVNULL
            )
            status = Path(f"/proc/{process}/status")
            while tracer.poll() is None and "TracerPid:\t0\n" in status.read_text():
                time.sleep(0.001)
        os.write(ready[1], b"g")
        code = _waited_for(process)
        if tracer is not None:
            tracer.wait()
        for each in ready:
            os.close(each)
        return Seen(
            code,
            printed.read_text(errors="replace").replace(str(self.folder), "PLACE"),
            told.read_text(errors="replace").replace(str(self.folder), "PLACE"),
            _content(self.target),
            _content(self.folder / "in"),
            sorted(
                path.relative_to(self.folder).as_posix()
                for name in ("out", "home", "tmp")
                for path in (self.folder / name).iterdir()
                if path != self.target and not path.name.startswith("torchinductor_")  # which PyTorch makes
            ),
        )


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def _waited_for(process: int) -> int:
    """The status of a fork, which is killed when it takes too long: -9 then."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _child(words: list[str], folder: Path, printed: Path, told: Path, ready: int, where: str) -> None:
    """Becomes ``mmdeploy`` with these words, once it may begin; does not come back."""
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        for number, path in ((1, printed), (2, told)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
        if where:
            SURROUNDINGS[where]()
        sys.stderr = open(2, "w", 1, closefd=False)  # noqa: SIM115  # for the process's life
        if sys.stdout is not None:
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  # as above
        os.read(ready, 1)
        from msmamba.cli import main

        sys.argv = ["mmdeploy", *words]
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        # What Python does in the end.
        threading._shutdown()  # type: ignore[attr-defined]  # the way to wait for threads that Python has itself
        atexit._run_exitfuncs()
        if sys.stdout is not None:
            try:
                sys.stdout.flush()
            except OSError:
                code = 120
    except BaseException:
        code = 1
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def _onto(number: int, path: str) -> None:
    os.dup2(os.open(path, os.O_WRONLY), number)


def _nobody_reads() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def _no_output() -> None:
    os.close(1)
    sys.stdout = None  # as Python has it then


SURROUNDINGS: dict[str, Callable[[], object]] = {
    "output full": lambda: _onto(1, "/dev/full"),
    "output closed": _no_output,
    "output that nobody reads": _nobody_reads,
    "errors full": lambda: _onto(2, "/dev/full"),
    "no home": lambda: os.environ.pop("HOME"),
    "no temporary folder": lambda: os.environ.update(TMPDIR="/nowhere"),
}
"""What a command may be begun in."""


def _content(path: Path) -> dict[str, str]:
    """A digest for each name at and below a path; empty where nothing is."""
    if not os.path.lexists(path):
        return {}
    if not path.is_dir():
        return {".": hashlib.sha256(path.read_bytes()).hexdigest()}
    return {
        each.relative_to(path).as_posix(): hashlib.sha256(each.read_bytes()).hexdigest()
        if each.is_file()
        else ""
        for each in path.rglob("*")
    }


_LINE = re.compile(r"(\d+) +(\w+)\((.*)")
_QUOTED, _OPEN = re.compile(r'"((?:[^"\\]|\\.)*)"'), re.compile(r"\d<([^<>]*)>")
_TRACED = ",".join(f"?{name}" for name in ERRORS if " " not in name)


def calls_of(log: Path, folder: Path) -> list[Call]:
    """The calls in strace's log that touch something below a folder, each once."""
    counts: Counter[tuple[str, str, str]] = Counter()
    found: dict[Call, None] = {}
    for line in log.read_text(errors="replace").splitlines():
        if (match := _LINE.match(line)) is None:
            continue
        thread, name, said = match.groups()
        paths = dict.fromkeys(
            path for path in (*_QUOTED.findall(said), *_OPEN.findall(said)) if path.startswith(f"{folder}/")
        )
        for path in paths:
            counts[thread, name, path] += 1
        if paths:
            first = next(iter(paths))
            use = (
                f"{name} to write" if name == "openat" and re.search(r"O_(WRONLY|RDWR|CREAT)", said) else name
            )
            found.setdefault(Call(use, first, counts[thread, name, first]))
    return list(found)


def _disturbed(place: _Place, call: Call, error: str, log: Path) -> Seen | None:
    """A run in which a call is answered with an error; None where the call was not made this time."""
    name = call.name.partition(" ")[0]
    words = ["-o", str(log), "-P", call.path, "-e", f"trace={name}"]
    seen = place.run(
        through=[
            *words,
            "-e",
            f"inject={name}:error={error.rstrip('+')}:when={call.number}{'+' * error.endswith('+')}",
        ]
    )
    return seen if "(INJECTED)" in log.read_text(errors="replace") else None


class _Whole:
    """What undisturbed runs give: of two, what is the same both times."""

    def __init__(self, place: _Place) -> None:
        runs = []
        for _ in range(2):
            place.begin()
            runs.append(place.run())
            time.sleep(1.1)  # so that times differ
        first, second = runs
        if first.status or second.status:
            raise RuntimeError(
                f"{place.command.name} fails undisturbed: {first.told[-500:]}{second.told[-500:]}"
            )
        if first.result.keys() != second.result.keys():
            raise RuntimeError(
                f"{place.command.name} gives {sorted({*first.result} ^ {*second.result})} once"
            )
        self.names = first.result.keys()
        unlike = place.command.unlike
        self.result = {
            name: value
            for name, value in first.result.items()
            if second.result[name] == value and name not in unlike
        }
        self.printed = first.printed if first.printed == second.printed and not unlike else None
        self.has_output = bool(first.printed)
        self.inputs, self.told, self.lying = first.inputs, first.told, first.lying

    def differs(self, seen: Seen) -> str:
        """How what a run gives is another; empty where it is the same."""
        if self.printed is not None and seen.printed != self.printed:
            return "it prints something else"
        return self.lacks(seen)

    def lacks(self, seen: Seen) -> str:
        """How a run's result is another; empty where it is the same."""
        if seen.result.keys() != self.names:
            return f"the result has other names: {sorted({*seen.result} ^ {*self.names})[:5]}"
        if changed := [name for name, value in self.result.items() if seen.result[name] != value]:
            return f"the result differs in {changed[:5]}"
        return ""


_RAW = re.compile(r"Traceback|Exception ignored|^\w*(Error|Exception)\b", re.MULTILINE)


def _wrong_in(where: str, command: Command, seen: Seen, whole: _Whole) -> str:
    """What is wrong with a run in other surroundings; empty where nothing is."""
    if _RAW.search(seen.told) or seen.status < 0 or seen.status == 120:
        return f"status {seen.status}, {seen.told[-300:]!r}"
    if seen.status == 0 and whole.lacks(seen):
        return f"status 0, but {whole.lacks(seen)}"
    if where == "output full" and whole.has_output and "standard output" not in seen.told:
        return f"what it prints is lost: status {seen.status}, {seen.told[-300:]!r}"
    if not where.startswith("output") and (seen.status or whole.differs(seen)):
        return f"status {seen.status}, {whole.differs(seen)}, {seen.told[-300:]!r}"
    return ""


_TO_REMOVE = (
    "unlink",
    "unlinkat",
    "rmdir",
    "openat",
    "getdents64",
    "stat",
    "lstat",
    "fstat",
    "newfstatat",
    "statx",
)


def _wrong(command: Command, call: Call, before: dict[str, str], seen: Seen, whole: _Whole) -> list[str]:
    """What is wrong with a disturbed run."""
    wrong = []
    lines = [line for line in seen.told.splitlines() if line.startswith("error: ")]
    notes = [line for line in seen.told.splitlines() if line.startswith("note: ")]
    if seen.status < 0:
        wrong.append(f"it ended with {signal.Signals(-seen.status).name}")
    if _RAW.search(seen.told):
        wrong.append(f"a traceback: {seen.told.strip().splitlines()[-1]}")
    elif seen.status == 0:
        difference = whole.differs(seen)
        if difference and seen.told == whole.told:
            wrong.append(f"status 0, but {difference}")
        elif difference and not any(Path(call.path).name in note for note in notes):
            wrong.append(f"status 0, told, but {difference}: {seen.told[-300:]}")
    elif len(lines) != 1:
        wrong.append(f"status {seen.status} and not one line: {seen.told[-500:]!r}")
    elif not any(
        name in lines[0]
        for name in ("s say why", "result", Path(call.path).name, Path(call.path).parent.name)
    ):
        wrong.append(f"the line names nothing: {lines[0]}")
    if seen.inputs != whole.inputs:
        changed = [
            name
            for name in {*seen.inputs, *whole.inputs}
            if seen.inputs.get(name) != whole.inputs.get(name) and name not in command.unlike
        ]
        if changed:
            wrong.append(f"the user's files changed: {changed[:5]}")
    if (
        seen.status
        and not command.goes_on
        and not command.rows
        and seen.result != before
        and whole.lacks(seen)
    ):
        wrong.append(f"a part of the result is there: {sorted(seen.result)[:5]}")
    # What cannot be looked into or removed stays, and goes with the next call.
    is_in_the_way = ".msmamba-" in call.path and call.name in _TO_REMOVE
    is_in_the_way |= seen.lying == ["out/.result.partial"]  # from where the next call goes on
    if not {*seen.lying} <= {*whole.lying} and not is_in_the_way:
        wrong.append(f"this is left lying: {seen.lying}")
    return wrong


def _mixed(faults: list[tuple[Call, str]], generator: random.Random) -> list[tuple[Call, str]]:
    """In an order of chance, in which no kind of call waits for all of another."""
    generator.shuffle(faults)
    counts: Counter[str] = Counter()
    places = []
    for call, error in faults:
        counts[call.name] += 1
        places.append((counts[call.name], call, error))
    return [(call, error) for _, call, error in sorted(places, key=lambda each: each[0])]


def _disturb(command: Command, seeds: Seeds, out: Path, scale: float, seed: int) -> dict[str, object]:
    """Disturbs a command; prints a line for each finding, and gives the figures."""
    work = (out / "faults" / command.name).resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    place = _Place(work / "place", _pristine(seeds, out), command)
    whole = _Whole(place)
    tried = findings = failed = 0
    for where in () if command.is_slow else SURROUNDINGS:
        place.begin()
        seen: Seen | None = place.run(where=where)
        tried += 1
        assert seen is not None
        failed += bool(seen.status)
        if wrong_in := _wrong_in(where, command, seen, whole):
            findings += 1
            print(f"  {command.name}, {where}: {wrong_in}", flush=True)
        elif _SHOWN:
            print(f"    {where}: status {seen.status}, {seen.told[-300:]!r}", flush=True)
    log = work / "calls.txt"
    place.begin()
    place.run(through=["-y", "-s", "0", "-o", str(log), "-e", f"trace={_TRACED}"])
    calls = calls_of(log, place.folder)
    faults = [(call, error) for call in calls for error in ERRORS[call.name]]
    faults += [(call, f"{error}+") for call, error in faults if error in _LASTING]
    faults = _mixed(faults, random.Random(f"{command.name} {seed}"))
    seen = None
    for call, error in faults[: max(1, round((EACH_SLOW if command.is_slow else EACH) * scale))]:
        place.begin(anew=seen is not None and seen.inputs != whole.inputs)
        before = _content(place.target)
        seen = _disturbed(place, call, error, log)
        if seen is None:
            continue
        tried += 1
        failed += bool(seen.status)
        wrong = _wrong(command, call, before, seen, whole)
        if command.is_new:
            shutil.rmtree(place.target, ignore_errors=True)
        began = not command.before and place.target.is_dir()
        again = place.run(*command.again.split() * began)
        if again.status:
            wrong.append(f"the next call fails: {again.told[-300:]!r}")
        elif difference := whole.differs(again):
            wrong.append(f"after the next call {difference}")
        elif not {*again.lying} <= {*whole.lying} and not call.name.startswith("unlink"):
            wrong.append(f"after the next call this is left lying: {again.lying}")
        elif again.inputs != whole.inputs:
            wrong.append("after the next call the user's files have changed")
        said = f"{call.name} {call.path.replace(str(place.folder), 'PLACE')} {call.number}: {error}"
        if wrong:
            findings += 1
            kept = out / "findings" / f"fault-{command.name}-{seed}-{tried}"
            kept.mkdir(parents=True, exist_ok=True)
            (kept / "said.txt").write_text("\n".join([said, *wrong, "", seen.told]), encoding="utf-8")
            print(f"  {kept}: {said}: {'; '.join(wrong)}", flush=True)
        elif _SHOWN:
            print(f"    {said}: status {seen.status}, {seen.told[-300:]!r}", flush=True)
    shutil.rmtree(work)
    note = f"{failed:6} failed, {tried - failed:6} done, of {len(faults)} faults in {len(calls)} calls"
    return {"tried": tried, "findings": findings, "note": note}


def _pristine(seeds: Seeds, out: Path) -> Path:
    """The user's files, made once."""
    folder = (out / "faults" / "pristine").resolve()
    if (folder / "done").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("small.fp32", "small.safetensors", "run", "imported"):
        _copy(seeds.folder / name, folder / name)
    _copy(seeds.cells, folder / "more")
    for path in sorted(seeds.cells.glob("*/[012].png")):
        (folder / "cells" / path.parent.name).mkdir(parents=True, exist_ok=True)
        _copy(path, folder / "cells" / path.parent.name / path.name)
    _slides(folder)
    _copy(folder / "small.fp32", folder / "calibrated")
    for words in (
        f"calibrate {folder}/calibrated {folder}/more --max-error 99%",
        f"infer {folder}/calibrated {folder}/more --drift {folder}/log.jsonl",
    ):
        subprocess.run(
            [sys.executable, "-m", "msmamba", *words.split()], check=True, stdout=subprocess.DEVNULL
        )
    (folder / "done").touch()
    return folder


def _slides(folder: Path) -> None:
    """Small slides in tiles and a field; and slides with annotations of two classes."""
    import numpy as np
    import tifffile
    from PIL import Image

    generator = np.random.default_rng(0)
    for names, place in ((("left", "right"), "slides"), ("abcdef", "annotated")):
        (folder / place).mkdir()
        for name in names:
            pixels = generator.integers(0, 256, (128, 192, 3), np.uint8)
            file = folder / place / f"{name}.tif"
            tifffile.imwrite(file, pixels, tile=(64, 64), photometric="rgb", compression="deflate")
    Image.fromarray(generator.integers(0, 256, (64, 96, 3), np.uint8)).save(folder / "slides" / "field.png")
    (folder / "annotations").mkdir()
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[left, 0], [left + 96, 0], [left + 96, 128], [left, 128], [left, 0]]],
            },
            "properties": {"objectType": "annotation", "classification": {"name": label}},
        }
        for left, label in ((0, "gland"), (96, "stroma"))
    ]
    for name in "abcdef":
        content = json.dumps({"type": "FeatureCollection", "features": features})
        (folder / "annotations" / f"{name}.geojson").write_text(content, encoding="utf-8")


_PARTS = ("cli", "runtime", "data", "export", "calib", "microscope", "model", "decoding", "pages", "measures")
_LIBRARIES = (
    *(
        "torch",
        "onnx",
        "onnxruntime",
        "matplotlib.pyplot",
        "jinja2",
        "tifffile",
        "scipy.stats",
        "scipy.optimize",
    ),
    *("sklearn.metrics", "rich.progress", "rich.table", "simplejpeg", "safetensors.torch"),
)


def _load() -> None:
    """Loads what commands load, so that a fork finds it loaded."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    for part in _PARTS:
        package = importlib.import_module(f"msmamba.{part}")
        for found in _modules(package.__path__, f"msmamba.{part}."):
            try:
                importlib.import_module(found)
            except ImportError:  # of something that no command here needs
                continue


def _modules(path: Iterable[str], prefix: str) -> Iterator[str]:
    for found in pkgutil.walk_packages(path, prefix, onerror=lambda _: None):
        yield found.name


if __name__ == "__main__":
    _name, _folder, _out, _scale, _seed = sys.argv[1:]
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    _load()
    _command = next(each for each in COMMANDS if each.name == _name)
    print(json.dumps(_disturb(_command, Seeds(Path(_folder)), Path(_out), float(_scale), int(_seed))))
