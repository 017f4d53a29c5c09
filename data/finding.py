"""The files in folders: found in one order by one rule for every command, and what was passed over is told.

Folders below a folder are read, and so are folders that a link leads to, each once, under its own name where
it has one in there. Passed over, counted and told are: hidden files and folders, folders that programs leave
(`LEFT_BY_PROGRAMS`), folders that our own commands wrote, whose pictures are of what was classified before,
data sets that were imported, which are data by themselves and mostly of the images beside them, pictures that
our commands drew among the images, files of other kinds, links that lead nowhere, and what is no file.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import re
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError, reason_of, some
from ..files import all_below, as_utf8, identity_of, open_file
from ..images import SUFFIXES

LEFT_BY_PROGRAMS = frozenset(
    {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
"""Folders that archives, interpreters, storage boxes and file systems leave beside what one put there."""

_FIRST = {
    **dict.fromkeys(("run.json", "session.json"), b'"artefact_sha256"'),
    "config.json": b'"warmup_epochs"',
    "comparison.json": b'"labels"',
}
"""What `slide`, `live`, `train` and `compare` write first into a folder, and what it holds early on."""
_OF_AN_IMPORT = ("dataset.json", b',\n  "kind": "')
"""What `data import` writes into a folder, and how its second line begins: others have such files, too."""
_GLIMPSE = 4096
_OF_TRAINING = (("config.json", "history.jsonl"), ("comparison.json", "results.json"))
"""What `train` and `compare` leave beside their pictures; those of earlier versions, too."""

HEAT_MAPS = (".gradcam.png", ".occlusion.png")
"""How the names of `explain`'s pictures end."""
_DRAWN_BESIDE = {
    **dict.fromkeys(("confusion.png", "risk.png", "curve.png"), "metrics.json"),
    "sensitivity.png": "sensitivity.json",
}
"""The pictures of `eval`, `train` and `export`, and what lies beside each."""

_IS_NONE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.ENAMETOOLONG}
)
"""What opening a name answers where no file is, or something that is none."""
_EXAMPLES = 5


class Passed:
    """What was passed over, by reason: how many, and the first few names.

    Args:
        read: suffixes, in lower case, of the files that are looked for.
    """

    def __init__(self, read: Collection[str] = SUFFIXES) -> None:
        self.read = read
        self._counts: Counter[str] = Counter()
        self._names: dict[str, list[str]] = {}
        self._suffixes: Counter[str] = Counter()

    def add(self, reason: str, name: str) -> None:
        """Counts one.

        Args:
            reason: what it is, in the plural: ``hidden files``.
            name: its path.
        """
        self._counts[reason] += 1
        names = self._names.setdefault(reason, [])
        if len(names) < _EXAMPLES:
            names.append(name)

    def add_other(self, path: Path) -> None:
        """Counts a file that is none of those that were looked for."""
        self._suffixes[path.name if path.name == "Thumbs.db" else path.suffix.lower() or "other"] += 1

    def looked_into(self, folder: Path, names: Iterable[str]) -> None:
        """Is told of each folder that is read, and of the names in it."""

    def notes(self) -> tuple[str, ...]:
        """A line for each reason."""
        others = [f"{count:,} {suffix}" for suffix, count in sorted(self._suffixes.items())]
        expected = ", ".join(sorted(self.read))
        return (
            *([f"passed over: files of other kinds, {some(others)} (read: {expected})"] if others else []),
            *(
                f"passed over: {reason}, {count:,} ({_shown(self._names[reason], count)})"
                for reason, count in self._counts.items()
            ),
        )


def files_below(folder: Path, passed: Passed, *, within: Path | None = None) -> Iterator[Path]:
    """All files below a folder: its own, then those of each folder in it, by name, then what links lead to.

    Args:
        folder: where to look.
        passed: is told what is passed over, by its path below ``folder``.
        within: a folder that no link may lead out of, its own name resolved; None lets links lead anywhere.

    Raises:
        DataError: a folder cannot be read, or a link leads out.
    """
    waiting, links, seen = [folder], deque[Path](), set[tuple[int, int] | str]()
    while waiting or links:
        here = waiting.pop() if waiting else links.popleft()
        try:
            identity = identity_of(here)
            found = _entries(here)
        except OSError as error:
            raise DataError(f"the folder '{here}' cannot be read: {reason_of(error)}") from error
        if identity in seen:
            passed.add("links to folders that are read already", _below(folder, here))
            continue
        seen.add(identity)
        passed.looked_into(here, (each.path.name for each in found))
        inner: list[Path] = []
        for path, is_link, is_folder, is_file in found:
            if is_folder and (reason := why_no_folder_of_images(path)):
                passed.add(reason, _below(folder, path))
                continue
            if path.name.startswith("."):
                # What systems keep in every folder is no news; an image that is not read is.
                if path.suffix.lower() in passed.read:
                    passed.add("hidden files", _below(folder, path))
                continue
            if is_link and within is not None:
                _check_link(within, path)
            if is_folder:
                (links if is_link else inner).append(path)
            elif is_file:
                yield path
            else:
                kind = "links that lead nowhere" if is_link else "devices, pipes and sockets"
                passed.add(kind, _below(folder, path))
        waiting.extend(reversed(inner))


def images_below(
    folder: Path, passed: Passed, *, within: Path | None = None, tables: Collection[Path] = ()
) -> Iterator[Path]:
    """The files below a folder that have one of the suffixes in `Passed.read`, in the order of `files_below`.

    Args:
        folder: where to look.
        passed: is told what is passed over.
        within: as for `files_below`.
        tables: files that are read as something else, and so not passed over.

    Raises:
        DataError: as `files_below`.
    """
    for path in files_below(folder, passed, within=within):
        if path.suffix.lower() in passed.read:
            if _is_drawn_by_us(path):
                passed.add("pictures that mmdeploy has drawn", _below(folder, path))
            else:
                yield path
        elif path not in tables:
            passed.add_other(path)


def matching(pattern: str, passed: Passed) -> list[Path]:
    """What a pattern matches, by name: as `glob.glob` has it, hidden names only where the pattern begins so.

    `glob.glob` passes over folders that cannot be read as if they were empty. Here they are told.

    Args:
        pattern: with ``*``, ``?``, ``[…]``, and ``**`` for any number of folders, links to some among them.
        passed: is told of folders that cannot be read.
    """
    anchor, parts = Path(pattern).anchor, Path(pattern).parts
    parts = parts[1:] if anchor else parts
    found = {Path(anchor): True}  # whether each is a folder
    for number, part in enumerate(parts, start=1):
        if part == "**":
            steps = (each for place in found for each in _any_depth(place, found[place], (), passed))
        elif glob.has_magic(part):
            fits = re.compile(fnmatch.translate(os.path.normcase(part))).match
            steps = (
                (path, is_folder)
                for place in found
                for path, is_folder in _listed(place, passed)
                if fits(os.path.normcase(path.name)) and part.startswith(".") >= path.name.startswith(".")
            )
        else:
            below = (place / part for place in found)
            steps = ((path, os.path.isdir(path)) for path in below if os.path.lexists(path))  # noqa: PTH112  # which raises nothing
        only_folders = number < len(parts) or pattern.endswith(("/", os.sep))
        found = {path: is_folder for path, is_folder in steps if is_folder or not only_folders}
    return sorted(found.keys() - {Path()})


def _any_depth(
    path: Path, is_folder: bool, above: tuple[tuple[int, int] | str, ...], passed: Passed
) -> Iterator[tuple[Path, bool]]:
    """A path, and all below it but what is hidden; no link is followed to a folder that it lies in."""
    yield path, is_folder
    if not is_folder:
        return
    with suppress(OSError):  # which listing it meets, too, and tells
        here = identity_of(path)
        if here in above:
            return
        above = (*above, here)
    for inner, is_folder_too in _listed(path, passed):
        if not inner.name.startswith("."):
            yield from _any_depth(inner, is_folder_too, above, passed)


def _listed(folder: Path, passed: Passed) -> list[tuple[Path, bool]]:
    """What is in a folder, and whether it is one; what cannot be read is told."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                path, is_folder = folder / entry.name, False
                try:
                    is_folder = path.is_dir() if entry.is_symlink() else entry.is_dir()
                except OSError:
                    passed.add("links that cannot be followed", str(path))
                found.append((path, is_folder))
    except OSError as error:
        if error.errno != errno.ENOENT:
            passed.add("folders that cannot be read", str(folder))
    return found


def is_image_by_name(path: Path) -> bool:
    """Whether `images_below` gives a file that lies in a folder that it reads."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not _is_drawn_by_us(path)


def class_folders(root: Path, passed: Passed) -> list[Path]:
    """The folders in a folder, one for each class, by name; the rest is passed over.

    Raises:
        DataError: there are none, or the folder cannot be read.
    """
    folders = []
    try:
        entries = _entries(root)
    except OSError as error:
        raise DataError(f"the folder '{root}' cannot be read: {reason_of(error)}") from error
    for path, _, is_folder, _ in entries:
        if is_folder:
            if reason := why_no_folder_of_images(path):
                passed.add(reason, path.name)
            else:
                folders.append(path)
        elif path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            passed.add("images in no class's folder", path.name)
    if not folders:
        beside = f" ({'; '.join(notes)})" if (notes := passed.notes()) else ""
        raise DataError(f"{root}: has no class folders{beside}; expected one folder of images for each class")
    return folders


def why_no_folder_of_images(folder: Path) -> str:
    """Why a folder is passed over, in the plural; empty where it is not."""
    if folder.name in LEFT_BY_PROGRAMS:
        return "folders that programs leave"
    if folder.name.startswith("."):
        return "hidden folders"
    if _begins_with(folder, *_OF_AN_IMPORT):
        return "data sets that mmdeploy has imported"
    return "folders that mmdeploy has written" if _is_written_by_us(folder) else ""


def _begins_with(folder: Path, name: str, mark: bytes) -> bool:
    """Whether a file of a folder holds a mark early on.

    Raises:
        DataError: it is there and cannot be read, so that nobody knows what the folder is.
    """
    try:
        with open_file(folder / name) as file:
            return mark in file.read(_GLIMPSE)
    except OSError as error:
        if error.errno in _IS_NONE:
            return False
        raise DataError(f"'{folder / name}' cannot be read: {reason_of(error)}") from error


def _is_written_by_us(folder: Path) -> bool:
    """Whether it holds results, among them pictures, of one of our commands."""
    if any(_begins_with(folder, name, mark) for name, mark in _FIRST.items()):
        return True
    with suppress(OSError):  # of a folder that cannot be read, which whoever reads it says
        return any(
            all((folder / name).is_file() for name in names) for names in _OF_TRAINING
        ) or _holds_drawings_alone(folder)
    return False


def _holds_drawings_alone(folder: Path) -> bool:
    """Whether there are images below a folder, and all of them are pictures that our commands drew."""
    found = False
    for path in all_below(folder):  # ends at the first that is none
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            if not _is_drawn_by_us(path):
                return False
            found = True
    return found


def _is_drawn_by_us(path: Path) -> bool:
    """Whether one of our commands drew a picture."""
    beside = _DRAWN_BESIDE.get(path.name)
    return path.name.endswith(HEAT_MAPS) or (beside is not None and (path.parent / beside).is_file())


class _Entry(NamedTuple):
    """What is in a folder."""

    path: Path
    is_link: bool
    is_folder: bool
    is_file: bool


def _entries(folder: Path) -> list[_Entry]:
    """What is in a folder, by name.

    The system says with the names what they are of, so none but links are asked about one by one: on a
    network drive each question takes a way there and back.
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path, is_link = folder / entry.name, entry.is_symlink()
            at: Path | os.DirEntry[str] = path if is_link else entry  # which raises of links in a ring
            found.append(_Entry(path, is_link, at.is_dir(), at.is_file()))
    return found


def _check_link(source: Path, link: Path) -> None:
    target = link.resolve()
    if not target.is_relative_to(source):
        raise DataError(
            f"{link}: is a link to '{target}', outside of the source: put the file itself there, or remove it"
        )


def _below(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _shown(names: list[str], count: int) -> str:
    more = f", … {count - len(names):,} more" if count > len(names) else ""
    return as_utf8(", ".join(names) + more).decode()
