"""Builds a release once more and compares it with the first, byte for byte: `make rebuild`.

The second build has a clone in another folder, an environment of its own with an empty cache of the compiler,
another time zone, language and umask. So whoever has the repository finds out whether wheels, the
maintainers' too, are made of what it holds.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

from sums import SIGNATURE, SUMS, wrong_sums

ROOT = Path(__file__).parent.parent
ELSEWHERE = {"TZ": "Pacific/Kiritimati", "LC_ALL": "C"}


def run(*command: str | Path, cwd: Path) -> None:
    """Runs a command as somebody else would, and ends where it fails."""
    words = [str(word) for word in command]
    if subprocess.run(words, cwd=cwd, env={**os.environ, **ELSEWHERE}, umask=0o077, check=False).returncode:
        sys.exit(f"{' '.join(words)} failed")


def build_again(commit: str, work: Path) -> Path:
    """Builds a commit in a new clone and environment below ``work``; returns the folder with its files."""
    tree, python = work / "tree", work / "environment" / "bin" / "python"
    run("git", "clone", "--quiet", "--no-checkout", ROOT, tree, cwd=work)
    run("git", "checkout", "--quiet", "--detach", commit, cwd=tree)
    venv.create(work / "environment")
    install = ("-m", "uv", "pip", "install", "--quiet", "--python", python, "--requirement")
    run(sys.executable, *install, tree / "release" / "requirements.txt", cwd=work)
    for step in ("wheels.py", "bills.py"):
        run(python, tree / "release" / step, work / "dist", cwd=tree)
    return work / "dist"


def entries(content: bytes) -> dict[str, bytes]:
    """What is in a wheel, by name; nothing in other files."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def difference(first: bytes, second: bytes) -> str:
    """What two files of a name differ in, in words; empty where they are the same."""
    if first == second:
        return ""
    one, two = entries(first), entries(second)
    others = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
    return f"other bytes in {', '.join(others)}" if others else "other bytes"


def compare(first: Path, second: Path) -> dict[str, str]:
    """For each file of two releases what it differs in, but for the signature; empty where nothing does."""
    names = {path.name for folder in (first, second) for path in folder.iterdir()} - {SIGNATURE}
    return {
        name: difference((first / name).read_bytes(), (second / name).read_bytes())
        if (first / name).is_file() and (second / name).is_file()
        else f"is in {first if (first / name).is_file() else second} alone"
        for name in sorted(names)
    }


def main() -> None:
    """Builds again, compares, and ends with status 1 where a byte is another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dist", type=Path, help="folder of the first build")
    parser.add_argument("--commit", default="HEAD", help="what it was built of (default: HEAD)")
    options = parser.parse_args()
    wrong = wrong_sums(options.dist)
    if wrong:
        sys.exit("\n".join(wrong))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(options.dist, build_again(options.commit, Path(folder)))
    for name, told in found.items():
        print(f"{name}: {told or 'the same bytes'}")
    minutes = (time.monotonic() - began) / 60
    if any(found.values()):
        sys.exit(
            f"{sum(map(bool, found.values()))} of {len(found)} files are not the same ({minutes:.0f} min)"
        )
    print(f"all {len(found)} files are the same, {SUMS} included ({minutes:.0f} min)")


if __name__ == "__main__":
    main()
