"""The checksums of a release, `SHA256SUMS`: written, and compared both ways.

The format is that of `sha256sum`, so users check it without this. Only the standard library is needed: it
runs where the key is, too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

SUMS = "SHA256SUMS"
SIGNATURE = f"{SUMS}.sig"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\\]+)")


def sums_text(files: Mapping[str, bytes]) -> str:
    """The content of SHA256SUMS for files, by name."""
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))


def wrong_sums(dist: Path) -> list[str]:
    """How a folder differs from its SHA256SUMS: files that are other, missing or not named."""
    if not dist.is_dir():
        return [f"there is no folder '{dist}': make wheels"]
    if not (dist / SUMS).is_file():
        return [f"there is no {SUMS} in '{dist}': make wheels"]
    wrong, named = [], dict[str, str]()
    for number, line in enumerate((dist / SUMS).read_text(errors="replace").splitlines(), start=1):
        parts = _LINE.fullmatch(line)
        if parts is None:
            wrong.append(f"{SUMS}, line {number}: expected a checksum, two spaces and a file's name")
        elif parts[2] in named:
            wrong.append(f"{SUMS}, line {number}: names {parts[2]} once more")
        else:
            named[parts[2]] = parts[1]
    found = {path.name: path for path in dist.iterdir() if path.name not in (SUMS, SIGNATURE)}
    wrong += [f"there is no {name}, which {SUMS} names" for name in sorted(named.keys() - found.keys())]
    wrong += [f"{name} is not named in {SUMS}" for name in sorted(found.keys() - named.keys())]
    for name in sorted(named.keys() & found.keys()):
        if not found[name].is_file():
            wrong.append(f"{name} is no file")
        elif hashlib.sha256(found[name].read_bytes()).hexdigest() != named[name]:
            wrong.append(f"{name} is not the file whose checksum stands in {SUMS}")
    return wrong
