"""Looks at what `make wheels` made before anyone else gets it: `make release-check`.

Everything is compared with the commit that is checked out: the wheels hold what it tracks of the package,
byte for byte, a library that suits the platform, and the licences of what is linked into that; the source
distribution holds what compiles; RECORD and SHA256SUMS are right both ways; the version is the same
everywhere and the changelog's; an index would take the metadata (twine); and each wheel has its bill of
materials. All that is wrong is told at once, and nothing is written.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

from changelog import unreleased, wrong_changelog
from libraries import read_library
from sign import SIGNERS, may_sign
from sums import SIGNATURE, SUMS, wrong_sums
from wheels import (
    LARGEST,
    LIBRARY,
    PLATFORMS,
    ROOT,
    Platform,
    bill_name,
    build_epoch,
    entry_time,
    expected_functions,
    linked_in,
    misfits,
    wheel_name,
    zig_licences,
)

OUTSIDE = ("tests", "benchmarks", "demo", "fuzz", "release", "docs", ".ci")
"""Folders of the repository that are not in the package."""
OF_ANOTHER = "is of another commit, by the times of its entries: make wheels"


@dataclass(frozen=True)
class Source:
    """What a release is made of: a commit's files by name, and the time that the wheels' entries have."""

    files: Mapping[str, bytes]
    epoch: int

    @property
    def version(self) -> str:
        """From the one place that knows it."""
        found = re.search(rb'^__version__ = "([^"]+)"$', self.files["version.py"], re.MULTILINE)
        if found is None:
            sys.exit('version.py: expected a line __version__ = "…"')
        return found[1].decode()

    @property
    def package(self) -> dict[str, bytes]:
        """What of it a wheel holds, by the wheel's names: all but what is compiled."""
        return {
            f"msmamba/{name}": content
            for name, content in self.files.items()
            if (name.partition("/")[0] not in OUTSIDE if "/" in name else name.endswith((".py", "py.typed")))
            if "native" not in name.split("/") and name != "setup.py"
        }

    @property
    def compiled(self) -> dict[str, bytes]:
        """What the source distribution has beside the package."""
        beside = ("setup.py", "pyproject.toml", "LICENSE", "README.md")
        return {
            name: content
            for name, content in self.files.items()
            if name in beside or "native" in name.split("/")
        }


def committed() -> Source:
    """The commit that is checked out."""
    packed = subprocess.run(
        ["git", "archive", "--format=tar", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    ).stdout
    return Source(unpacked(tarfile.open(fileobj=io.BytesIO(packed))), build_epoch())


def unpacked(archive: tarfile.TarFile) -> dict[str, bytes]:
    """The files of an archive, by name."""
    with archive:
        held = ((entry.name, archive.extractfile(entry)) for entry in archive if entry.isfile())
        return {name: file.read() for name, file in held if file is not None}


def wrong_tree(root: Path = ROOT) -> list[str]:
    """What is not committed: nobody else could build that. What is not tracked gets into nothing."""
    command = ["git", "status", "--porcelain", "--untracked-files=no"]
    lines = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [f"{line[3:]} is not committed" for line in lines.splitlines()]


def digest_of(content: bytes) -> str:
    """As RECORD has it."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def wrong_record(contents: Mapping[str, bytes], record: str) -> list[str]:
    """How the files of a wheel differ from its list of them, both ways."""
    rows = [row for row in csv.reader(io.StringIO(contents.get(record, b"").decode(errors="replace"))) if row]
    recorded = {row[0]: tuple(row[1:]) for row in rows}
    expected = {name: (digest_of(content), str(len(content))) for name, content in contents.items()}
    expected[record] = ("", "")
    return [
        f"{name} is not as RECORD says"
        for name in sorted(recorded.keys() | expected.keys())
        if recorded.get(name) != expected.get(name)
    ]


def wrong_wheel(path: Path, platform: Platform, source: Source, licences: Mapping[str, bytes]) -> list[str]:
    """What is wrong with a wheel but for its library: contents, licences, metadata, size.

    ``licences`` are those of what is linked in, by their names in the folder of licences.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            contents = {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        return [f"cannot be read: {error}"]
    if {entry.date_time for entry in entries} != {entry_time(source.epoch)}:
        return [OF_ANOTHER]
    info = f"msmamba-{source.version}.dist-info"
    texts = {"LICENSE": source.files["LICENSE"], **licences}
    known = source.package | {f"{info}/licenses/{name}": text for name, text in texts.items()}
    made = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "top_level.txt", "entry_points.txt")}
    made.add(f"{LIBRARY}{platform.suffix}")
    wrong = [f"lacks {name}" for name in sorted((known.keys() | made) - contents.keys())]
    wrong += [f"holds {name}, which is not tracked" for name in sorted(contents.keys() - known.keys() - made)]
    wrong += [
        f"{name} is not the file that is tracked"
        for name in sorted(known.keys() & contents.keys())
        if contents[name] != known[name]
    ]
    if len(entries) != len(contents):
        wrong.append("holds a name twice")
    if path.stat().st_size > LARGEST:
        wrong.append(f"has {path.stat().st_size:,} bytes, expected {LARGEST:,} at most")
    wrong += wrong_record(contents, f"{info}/RECORD")
    wheel = message_from_bytes(contents.get(f"{info}/WHEEL", b""))
    if wheel.get_all("Tag") != [f"py3-none-{platform.tag}"]:
        wrong.append(f"its tags are {wheel.get_all('Tag')}, expected py3-none-{platform.tag}")
    metadata = message_from_bytes(contents.get(f"{info}/METADATA", b""))
    if (metadata["Name"], metadata["Version"]) != ("msmamba", source.version):
        wrong.append(
            f"its metadata is of {metadata['Name']} {metadata['Version']}, expected msmamba {source.version}"
        )
    if set(metadata.get_all("License-File", [])) != texts.keys():
        wrong.append(f"its metadata names the licences {metadata.get_all('License-File')}")
    return wrong


def wrong_library(path: Path, platform: Platform) -> list[str]:
    """What keeps a wheel's library from being its platform's."""
    with zipfile.ZipFile(path) as archive:
        content = archive.read(f"{LIBRARY}{platform.suffix}")
    try:
        faults = misfits(platform, read_library(content), expected_functions(ROOT))
    except ValueError as error:
        faults = [f"is none: {error}"]
    return [f"the library {fault}" for fault in faults]


def wrong_sdist(path: Path, source: Source) -> list[str]:
    """How a source distribution differs from what is tracked."""
    try:
        with tarfile.open(path) as archive:
            times = {entry.mtime for entry in archive}
            contents = unpacked(archive)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        return [f"cannot be read: {error}"]
    if times != {source.epoch}:
        return [OF_ANOTHER]
    top = f"msmamba-{source.version}/"
    package = {name.removeprefix("msmamba/"): content for name, content in source.package.items()}
    expected = {top + name: content for name, content in (package | source.compiled).items()}
    wrong = [f"lacks {name}" for name in sorted(expected.keys() - contents.keys())]
    for name in sorted(contents):
        inside = name.removeprefix(top)
        # What setuptools writes itself: setup.cfg gets a section that is its own.
        if inside in ("PKG-INFO", "setup.cfg") or inside.startswith("msmamba.egg-info/"):
            continue
        if contents[name] != source.files.get(inside):
            wrong.append(f"{name} is not the file that is tracked")
    return wrong


def wrong_bill(path: Path, wheel: Path, platform: Platform, source: Source) -> list[str]:
    """How a bill of materials fails to be a wheel's."""
    try:
        bill = json.loads(path.read_bytes())
        subject, parts = bill["metadata"]["component"], bill["components"]
        found = (subject["name"], subject["version"])
        hashes = [each["content"] for each in subject["hashes"]]
        listed = {re.sub(r"[-_.]+", "-", part["name"]).lower() for part in parts}
        inside = {part["name"] for part in subject["components"]}
    except (ValueError, KeyError, TypeError) as error:
        return [f"is no bill of materials ({type(error).__name__}: {error})"]
    wrong = []
    if found != ("msmamba", source.version):
        wrong.append(f"is of {' '.join(found)}, expected msmamba {source.version}")
    if hashes != [hashlib.sha256(wheel.read_bytes()).hexdigest()]:
        wrong.append(f"is of another file than {wheel.name}")
    with zipfile.ZipFile(wheel) as archive:
        metadata = message_from_bytes(archive.read(f"msmamba-{source.version}.dist-info/METADATA"))
    needs = [need for need in metadata.get_all("Requires-Dist", []) if ";" not in need]
    for need in needs:
        name = re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", need)[0]).lower()
        if name not in listed:
            wrong.append(f"does not list {name}")
    unlisted = (part.name for part in linked_in(platform) if part.name not in inside)
    wrong += [f"does not list {name}, which is linked in" for name in unlisted]
    return wrong


def wrong_release(
    dist: Path, source: Source, licences: Callable[[Platform], Mapping[str, bytes]] = zig_licences
) -> list[str]:
    """All that is wrong with the files of a release, in words."""
    wrong = wrong_changelog(source.files["CHANGELOG.md"].decode(), source.version) + wrong_sums(dist)
    if not dist.is_dir():
        return wrong
    sdist = f"msmamba-{source.version}.tar.gz"
    names = {sdist}
    if (dist / sdist).is_file():
        wrong += [f"{sdist}: {fault}" for fault in wrong_sdist(dist / sdist, source)]
    for platform in PLATFORMS:
        name = wheel_name(source.version, platform)
        bill = bill_name(name)
        names |= {name, bill}
        if not (dist / name).is_file():
            continue
        faults = wrong_wheel(dist / name, platform, source, licences(platform))
        wrong += [f"{name}: {fault}" for fault in faults or wrong_library(dist / name, platform)]
        if not faults and (dist / bill).is_file():
            wrong += [f"{bill}: {fault}" for fault in wrong_bill(dist / bill, dist / name, platform, source)]
    found = {path.name for path in dist.iterdir()} - {SUMS, SIGNATURE}
    wrong += [f"there is no {name}" for name in sorted(names - found)]
    wrong += [f"there is {name}, which is not of version {source.version}" for name in sorted(found - names)]
    return wrong


def main() -> None:
    """Checks everything, and tells what is wrong or what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dist", type=Path, help="folder of `make wheels`")
    dist: Path = parser.parse_args().dist
    source = committed()
    wrong = wrong_tree() + wrong_release(dist, source)
    if wrong:
        sys.exit("\n".join(dict.fromkeys(wrong)))
    packed = [path for path in sorted(dist.iterdir()) if path.suffix in (".whl", ".gz")]
    rendered = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, packed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if rendered.returncode:
        sys.exit(f"an index would not take the metadata:\n{rendered.stdout}")
    signature = dist / SIGNATURE
    if signature.is_file():
        refused = may_sign(SIGNERS, (dist / SUMS).read_bytes(), signature)
        if refused is not None:
            sys.exit(f"{SIGNATURE} is not of {SUMS} as it is: {refused}")
    for path in packed:
        print(f"{path.name}: as it should be")
    print(f"{SUMS}: {'signed' if signature.is_file() else 'not signed'}")
    waiting = unreleased(source.files["CHANGELOG.md"].decode())
    if waiting:
        print(f"CHANGELOG.md has {waiting} entries under 'Unreleased': a release has none")


if __name__ == "__main__":
    main()
