"""The same words in another zone, language, folder, terminal, home, or way to run Python."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .doors import labelled
from .lab import Lab, Relation, differ
from .slides import FIELD, contents, unlike

PLAIN = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
OTHERS: dict[str, dict[str, str | None]] = {
    "hash": {"PYTHONHASHSEED": "12345"},
    "zone": {"TZ": "Asia/Kathmandu"},
    "german": {"LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8"},
    "turkish": {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin": {"LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0"},
    "homeless": {"HOME": None, "XDG_CACHE_HOME": None, "USER": None},
    "no such home": {"HOME": "/nonexistent", "XDG_CACHE_HOME": None},
    "wide": {"COLUMNS": "300"},
    "narrow": {"COLUMNS": "20"},
    "dumb": {"TERM": "dumb", "NO_COLOR": "1"},
    "coloured": {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1"},
    "warnings": {"PYTHONWARNINGS": "error"},
    "no asserts": {"PYTHONOPTIMIZE": "1"},
    "no docstrings": {"PYTHONOPTIMIZE": "2"},
    "development": {"PYTHONDEVMODE": "1"},
    "no bytecode": {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
}


def ran(
    words: Sequence[object],
    cwd: Path,
    changes: dict[str, str | None],
    *,
    umask: int = 0o022,
    closed: bool = False,
) -> tuple[int, str, str]:
    """The command in a process of its own."""
    around = {name: value for name, value in {**os.environ, **PLAIN, **changes}.items() if value is not None}

    def prepare() -> None:
        os.umask(umask)
        if closed:
            os.close(0)

    done = subprocess.run(
        [sys.executable, "-m", "msmamba", *map(str, words)],
        cwd=cwd,
        env=around,
        capture_output=True,
        preexec_fn=prepare,
        timeout=300,
    )
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


def same_words(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Commands in surroundings of all kinds say and write the same."""
    labelled(lab, chance, work / "in", 12)
    commands: dict[str, list[object]] = {
        "infer": ["infer", lab.guarded, work / "in", "--format", "json", "--top", 3, "--threads", 1],
        "csv": ["infer", lab.guarded, work / "in", "--format", "csv", "--threads", 1],
        "table": ["infer", lab.guarded, work / "in", "--threads", 1],
        "eval": ["eval", lab.guarded, work / "in", "--format", "json", "--threads", 1],
        "info": ["info", lab.checkpoint],
        "live": ["live", lab.guarded, work / "in", "--no-page", "--keep-all", "--threads", 1],
    }
    name = chance.choice([*commands])
    words = commands[name]
    status, out, err = ran(words, work, {})
    yield from differ(f"{name}'s status", (status, err[-300:] if status else ""), (0, ""))
    for each in chance.sample([*OTHERS], 4):
        other = ran(words, work, OTHERS[each])
        yield from differ(
            f"{name}, {each}: status", (other[0], other[2][-500:] if other[0] else ""), (status, "")
        )
        yield from differ(f"{name}, {each}", timeless(other[1]), timeless(out))
    other = ran(words, work, {}, closed=True)
    yield from differ(f"{name}, closed", (other[0], timeless(other[1])), (status, timeless(out)))
    above = [Path(os.path.relpath(w, work / "in")) if isinstance(w, Path) else w for w in words]
    other = ran(above, work / "in", {})
    plain = timeless(other[1]).replace('"image": "..', '"image": ".')
    yield from differ(f"{name}, from there: lines", len(plain.splitlines()), len(out.splitlines()))
    yield from differ(f"{name}, from there", figures(other[1]), figures(out))


def timeless(text: str) -> str:
    """Without what is measured by a clock."""
    text = re.sub(
        r'"(seconds|frame_age_ms|grab|prepare|network|quality|total|taken)": ("[^"]*"|[-0-9.e]+)', "", text
    )
    return re.sub(r'"dropped": \d+', "", text)


def figures(text: str) -> list[str]:
    """The numbers of four decimals or more."""
    return re.findall(r"\d\.\d{4,}", timeless(text))


def same_files(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Bundles, guards, slides and imports are the same bytes in other surroundings, and readable by umask."""
    labelled(lab, chance, work / "in", 24)
    (picture,) = lab.pictures(chance, work / "pictures", 1, least=90, most=200)
    commands: dict[str, list[object]] = {
        "export": ["export", lab.checkpoint, "-o"],
        "slide": ["slide", lab.guarded, picture, *FIELD, "--threads", 1, "-o"],
        "import": ["data", "import", "folder", work / "in", "--copy", "-o"],
        "explain": ["explain", lab.checkpoint, picture, "-o"],
    }
    name = chance.choice([*commands])
    status, _, err = ran([*commands[name], work / "one"], work, {})
    yield from differ(f"{name}'s status", (status, err[-300:] if status else ""), (0, ""))
    one = content(name, work / "one")
    for each in chance.sample([*OTHERS], 2):
        target = work / "two"
        shutil.rmtree(target, ignore_errors=True)
        umask = chance.choice((0o022, 0o077, 0o002))
        status, _, err = ran([*commands[name], "two"], work, OTHERS[each], umask=umask)
        yield from differ(f"{name}, {each}: status", (status, err[-500:] if status else ""), (0, ""))
        yield from differ(f"{name}, {each}", unlike(content(name, target), one), [])
        wanted = 0o666 & ~umask
        modes = {
            oct(p.stat().st_mode & 0o777) for p in target.rglob("*") if p.is_file() and p.suffix != ".png"
        }
        yield from differ(f"{name}, umask {oct(umask)}", modes - {oct(wanted)}, set())


def content(name: str, folder: Path) -> dict[str, bytes]:
    """What is in a folder of results, without what is told of times and places."""
    if name == "slide":
        return contents(folder)
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for each in ("manifest.json", "dataset.json"):
        if each in found:
            told: dict[str, Any] = json.loads(found[each])
            told = {key: value for key, value in told.items() if key not in ("created", "source")}
            found[each] = json.dumps(told, sort_keys=True).encode()
    return found


RELATIONS: dict[str, Relation] = {each.__name__: each for each in (same_words, same_files)}
