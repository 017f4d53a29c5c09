"""Files and folders that appear whole or not at all, and files of others that are safe to open.

Everything msmamba leaves on disk goes through here: it is written under a temporary name in the target's
own folder, flushed to the device, and renamed. A reader, or a rerun after a kill, never meets half a file.
Only a log is added to in place, by whole lines. What a killed process leaves behind,
``.name.msmamba-1.tmp``, is taken away by the next that writes the same name; a lock tells it from the work of
a process that lives. Nothing is deleted, and no link followed, that msmamba did not make.

What a user names is opened through `open_file`, which takes files only: a pipe would be waited for, and a
device read, for ever, and a pointer of Git LFS be called damaged, whatever it stands for.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import os
import re
import shutil
import stat
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path, PurePath
from threading import local
from typing import IO, Any, AnyStr, BinaryIO, TextIO, TypeVar

from .errors import InputError, TargetError, reason_of

LARGEST_READ = 2**31 - 1
"""Bytes that are read at once: those of the largest ONNX file, which no other file of ours comes near to."""
LONGEST_LINE = 1 << 26
"""Bytes, or characters, of the longest line of a table or log: a hundred times those of ours."""
_CHUNK = 1 << 20
_PAUSE = 0.02  # seconds between looks whether a folder is free

# What a share answers that went away, or was mounted anew by whoever serves it.
_AWAY = frozenset({errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH})
# What a device or a share answers to a write, where the error names no file; another number in a caller's
# block is not about the target and passes through, as does one that names another file.
_WRITE_ERRORS = _AWAY | {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.ENODEV,
    errno.ENXIO,
}

# What a file system answers to a call that it does not know, as some shares do not that of flushing a folder.
_UNKNOWN = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})

_CAUSES = {
    **dict.fromkeys(_AWAY, "the share is gone: connect it again, or choose another place"),
    errno.EIO: "the disk or share fails (input/output error): see to it, or choose another place",
    **dict.fromkeys(
        (errno.ENODEV, errno.ENXIO), "the device is gone: connect it again, or choose another place"
    ),
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EFBIG: "the file system or a limit of this process allows no file that large",
    errno.EROFS: "the file system is read-only: choose another place",
    errno.EACCES: "permission denied: choose another place",
    errno.EPERM: "permission denied: choose another place",
    errno.ENOENT: "its folder does not exist: create it first",
    errno.ENOTDIR: "what should be its folder is a file: choose another place",
    errno.ENAMETOOLONG: "the name is too long",
    **dict.fromkeys(
        (errno.EINVAL, errno.EILSEQ),
        'the file system does not take such a name, as sticks and Windows take none with : ? * < > | " in it:'
        " choose another name",
    ),
    errno.ENOTEMPTY: "it exists already",
    errno.EEXIST: "it exists already",
}

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}

_LFS_POINTER = b"version https://git-lfs"  # how a pointer of Git LFS begins

# A folder under a temporary name holds the folder to be, what stood in its place where a file system cannot
# swap the two at once, and a mark by which the next process knows it for msmamba's.
_CONTENT, _BEFORE, _MARK = "content", "before", ".msmamba"
_MARKED = (
    b"msmamba works here. The next command that writes the same name goes on from it or takes it away.\n"
)
_LEFTOVER = re.compile(r"\..+\.msmamba-\d+\.tmp")


_Made = TypeVar("_Made")


class _Reading(io.FileIO):
    """A file whose name is in what the system says while it is read; by itself that is in no such error."""

    def __init__(self, descriptor: int, path: str | bytes) -> None:
        super().__init__(descriptor, "rb")
        self._path = path

    def readinto(self, buffer: Any, /) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as error:
            error.filename = self._path
            raise

    def readall(self) -> bytes:
        try:
            return super().readall()
        except OSError as error:
            error.filename = self._path
            raise

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:
            error.filename = self._path
            raise


def as_utf8(text: str) -> bytes:
    """The text as UTF-8. What is no Unicode in names of files (bytes that are no UTF-8; on Windows, halves of
    characters) reaches Python as lone surrogates, which no encoder takes; they become U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def alike(name: str) -> str:
    """The same for names that some file system takes for one: by their case, or how accents are composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def identity_of(path: str | os.PathLike[str]) -> tuple[int, int] | str:
    """What is the same for two paths of one file or folder, and of no others.

    Some shares and drives number nothing; what lies there is known by its real path.

    Raises:
        OSError: nothing is there, or it cannot be asked.
    """
    status = os.stat(path)  # noqa: PTH116  # as given
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def as_path(path: str | os.PathLike[str]) -> Path:
    """What a caller has given for a path.

    Raises:
        InputError: it is none.
    """
    try:
        return Path(os.fsdecode(path))
    except TypeError as error:
        raise InputError(f"expected a path, found {type(path).__name__}") from error


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file for reading, and nothing but a file.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe, a device, a socket, or what Git LFS leaves in
            place of a file that was not fetched; ``strerror`` says which.
    """
    _check_path(path)
    # What was a file may be a pipe by now: opening one must not wait for whoever writes into it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _refuse_what_is_no_file(os.fstat(descriptor).st_mode, path)
        file = io.BufferedReader(_Reading(descriptor, os.fspath(path)))
    except BaseException:  # an interruption, too, must leave nothing open or behind
        os.close(descriptor)
        raise
    try:
        if file.peek(len(_LFS_POINTER)).startswith(_LFS_POINTER):
            raise OSError(
                errno.EINVAL,
                "it is a Git LFS pointer, not the file that it stands for: fetch it with 'git lfs pull'",
                os.fspath(path),
            )
    except BaseException:  # as above
        file.close()
        raise
    return file


def open_text(
    path: str | os.PathLike[str],
    *,
    encoding: str = "utf-8",
    errors: str = "strict",
    newline: str | None = None,
) -> TextIO:
    """`open_file` for text; the arguments are those of `io.TextIOWrapper`.

    Raises:
        OSError: whatever `open_file` raises.
    """
    return io.TextIOWrapper(open_file(path), encoding=encoding, errors=errors, newline=newline)


def check_is_file(path: str | os.PathLike[str]) -> None:
    """Checks a path for libraries that open it themselves.

    Raises:
        OSError: whatever `open_file` raises.
    """
    open_file(path).close()


def read_file(path: str | os.PathLike[str]) -> bytes:
    """A file's content.

    Raises:
        OSError: whatever `open_file` raises, or it is larger than `LARGEST_READ`, as a file of holes may be.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_READ:
            raise OSError(
                errno.EFBIG, f"it has {size:,} bytes: expected at most {LARGEST_READ:,}", os.fspath(path)
            )
        return file.read()


def lines_of(file: IO[AnyStr]) -> Iterator[AnyStr]:
    """The lines of an open file, with their ends, as iterating over it gives them.

    Raises:
        OSError: one is longer than `LONGEST_LINE`, as that of a file of holes, which has no end, may be.
    """
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise OSError(errno.EFBIG, f"a line of it is longer than {LONGEST_LINE:,} bytes")
        yield line


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content as 64 lower-case hex digits.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with open_file(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def open_to_extend(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file of ours that grows where it stands, such as rows of results, for reading and writing.

    It is made where there is none. In a folder that came from somebody else a link in its place may lead
    anywhere, and a pipe never end: such things are taken away first.

    Raises:
        TargetError: it cannot be opened.
    """
    shown = Path(path)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        mode = shown.lstat().st_mode if os.path.lexists(shown) else stat.S_IFREG
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            shown.unlink()
        return os.fdopen(os.open(shown, flags, 0o666), "r+b")
    except (OSError, ValueError) as error:
        raise _target_error(shown, error) from error


@contextmanager
def atomic_file(path: str | os.PathLike[str], *, through_links: bool = False) -> Iterator[BinaryIO]:
    """A binary file to write into, which takes the name ``path`` when the block ends well.

    An existing file is replaced. When the block raises, the target is untouched and the temporary is gone.

    Args:
        path: the target.
        through_links: where a symbolic link is at ``path``, replace the file that it leads to, as is right
            for a path that the user has typed. By default the link itself is replaced: in a folder that came
            from somebody else it may lead anywhere.

    Raises:
        TargetError: the target cannot be written; the message names the cause.
    """
    shown = Path(path)
    try:
        target = shown.resolve() if through_links else shown.parent.resolve() / shown.name
        _refuse_unless_writable(shown, target)
        temporary, (file, lock) = _claimed(target, _remove_left_file, _new_file)
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name; links in a circle
        raise _target_error(shown, error) from error
    whole = _WholeFile(shown, target, temporary, lock)
    try:
        with _told_of(shown, temporary), file:
            yield file
            file.flush()
            flush_to_device(file)
        if _together.files is not None:
            _together.files.append(whole)
            return
        whole.take_name()
    except BaseException:  # an interruption, too, must leave nothing open or behind
        whole.close()
        raise
    whole.close()


class _WholeFile:
    """A file under its temporary name, which is to take the target's."""

    def __init__(self, shown: Path, target: Path, temporary: Path, lock: _Lock) -> None:
        self._shown, self.target, self._temporary, self._lock = shown, target, temporary, lock
        self._has_name = False
        self._before: _WholeFile | None = None

    def take_name(self) -> None:
        """Replaces what stands at the target.

        Raises:
            TargetError: it cannot be done.
        """
        with _told_of(self._shown, self._temporary):
            self._temporary.replace(self.target)
            self._has_name = True  # whoever writes the same target next may have the temporary one by now
            _flush_folder(self.target.parent)

    def put_aside(self) -> None:
        """Takes away what stands at the target, for as long as this is not closed.

        Raises:
            TargetError: it cannot be done.
        """
        try:
            if os.path.lexists(self.target):
                aside, (file, lock) = _claimed(self.target, _remove_left_file, _new_file)
                file.close()
                self._before = _WholeFile(self._shown, self.target, aside, lock)
                self.target.replace(aside)
        except OSError as error:
            raise _target_error(self._shown, error) from error

    def put_back(self) -> None:
        """Gives what was put aside its name again, unless something has taken it."""
        if self._before is not None and not os.path.lexists(self.target):
            with suppress(TargetError):
                self._before.take_name()

    def close(self) -> None:
        """Takes away what has no name of its own."""
        if self._before is not None:
            self._before.close()
        if not self._has_name:
            # It would hide what went wrong; who writes the same name next takes it away.
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)
        self._lock.close()


class _Together(local):
    """The files of a thread that are whole and wait for others to be; None where they need not."""

    def __init__(self) -> None:
        self.files: list[_WholeFile] | None = None


_together = _Together()


@contextmanager
def written_together() -> Iterator[None]:
    """Has the files that this thread writes in the block take their names only when all of them are whole.

    What is written there by `atomic_file`, each path once, belongs together. Where one cannot be written, all
    stay as they were. Files of before and of now are never side by side: all but the first are taken away
    before the first gets its name, so a kill in the few steps from there on leaves some missing, which
    the next call makes.

    Raises:
        TargetError: one cannot be written; the message names it and the cause.
    """
    waiting = _together.files = []
    try:
        try:
            yield
        finally:
            _together.files = None
        if waiting:
            _take_names(*waiting)
    finally:
        for each in waiting:
            each.close()


def _take_names(first: _WholeFile, *others: _WholeFile) -> None:
    try:
        for each in others:
            each.put_aside()
        first.take_name()
    except BaseException:  # an interruption, too, must lose nothing
        for each in others:
            each.put_back()
        raise
    with ExitStack() as rest:  # which ends what is begun, whatever happens to one of them
        for each in reversed(others):
            rest.callback(each.take_name)


def write_atomically(
    path: str | os.PathLike[str],
    content: bytes | Callable[[BinaryIO], object],
    *,
    through_links: bool = False,
) -> None:
    """Writes ``content`` to ``path``, whole or not at all.

    Args:
        path: the target; an existing file is replaced.
        content: the bytes, or a function that writes them into the binary file it is handed.
        through_links: as for `atomic_file`.

    Raises:
        TargetError: the target cannot be written; the message names the cause.
    """
    with atomic_file(path, through_links=through_links) as file:
        if callable(content):
            content(file)
        else:
            file.write(content)


def flush_to_device(file: int | IO[bytes]) -> None:
    """Has what was written to a file, or into a folder, reach the device, where its file system can do that.

    Args:
        file: an open file, flushed, or a descriptor.

    Raises:
        OSError: the device fails.
    """
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise


@contextmanager
def standard_output() -> Iterator[None]:
    """Raises what keeps the block from writing to standard output as an error about it.

    A pipe whose reader is gone is no error of anybody's, and is let through.

    Raises:
        TargetError: it cannot be written; the message names the cause.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is not None:
            raise
        raise TargetError(f"cannot write standard output: {cause_of(error)}") from error


class _Untouched(Exception):
    """Ends the block of an `atomic_file` that was opened to see whether it can be."""


def check_writable(path: str | os.PathLike[str], *, through_links: bool = False) -> None:
    """Refuses a file that could not be written in the end, before the work for it begins.

    Args:
        path: the target, which stays as it is.
        through_links: as for `atomic_file`.

    Raises:
        TargetError: it cannot be written; the message names the cause.
    """
    with suppress(_Untouched), atomic_file(path, through_links=through_links):
        raise _Untouched


def check_writable_folder(path: str | os.PathLike[str]) -> None:
    """`check_writable` for a folder that files are written into, and that is made in the end if need be.

    Raises:
        TargetError: it cannot be made or written into; the message names the cause.
    """
    folder = Path(path)
    there = next((each for each in (folder, *folder.parents) if os.path.lexists(each)), Path())
    below = folder.relative_to(there).parts
    try:
        check_writable(there / (below[0] if below else _MARK))
    except TargetError as error:
        cause = error.__cause__
        if below or not isinstance(cause, OSError):
            raise
        raise _target_error(folder, cause) from cause  # the mark is none of the user's


def cause_of(error: Exception) -> str:
    """Why something could not be written, and what to do, where the system's own words do not say it."""
    if not isinstance(error, OSError):
        return str(error)
    return _CAUSES.get(error.errno or 0, reason_of(error))


def make_folder(path: str | os.PathLike[str], *, parents: bool = False, new: bool = False) -> None:
    """Makes a folder, or takes the one that is there.

    Args:
        path: the folder.
        parents: make what it is to be in, too.
        new: nothing may be there.

    Raises:
        TargetError: it cannot be made; the message names the cause.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=parents, exist_ok=not new)
    except FileExistsError as error:
        if new:
            raise TargetError(f"'{folder}' exists already: choose another name") from error
        raise TargetError(f"'{folder}' is there and is no folder: choose another name") from error
    except (OSError, ValueError) as error:  # of values, a NUL in the name
        raise TargetError(f"cannot make the folder '{folder}': {cause_of(error)}") from error


@contextmanager
def appended_lines(
    path: str | os.PathLike[str], head: str, check: Callable[[bytes], None]
) -> Iterator[Callable[[str], None]]:
    """Adds lines to the end of a file, each of them at once and whole.

    Several processes may add to one file. A kill cuts the line that it interrupts, and no other: the next
    call ends what was left of it before it adds its own.

    Args:
        path: the file; where there is none, or an empty one, it begins with ``head``.
        head: its first line, without its end.
        check: is handed the first line of a file that has one, to refuse it; nothing is added then.

    Yields:
        A function that adds a line, which it is handed without its end.

    Raises:
        TargetError: the file cannot be written; the message names the cause.
    """
    shown = Path(path)
    try:
        target = shown.resolve()
        _refuse_unless_writable(shown, target)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        descriptor = os.open(target, flags, 0o666)
    except (OSError, ValueError, RuntimeError) as error:
        raise _target_error(shown, error) from error

    def add(line: str) -> None:
        content = memoryview(as_utf8(line) + b"\n")
        try:
            while content:
                content = content[os.write(descriptor, content) :]
        except OSError as error:
            raise _target_error(shown, error) from error

    try:
        try:
            size = os.fstat(descriptor).st_size
            if size:
                with open_file(target) as file:
                    check(file.readline(LONGEST_LINE))
                    file.seek(size - 1)
                    cut = file.read(1) != b"\n"
        except OSError as error:
            raise _target_error(shown, error) from error
        if not size:
            add(head)
        elif cut:
            add("")
        yield add
    finally:
        try:
            os.close(descriptor)
        except OSError as error:  # by which a share tells that it did not keep what it took
            raise _target_error(shown, error) from error


@contextmanager
def atomic_folder(
    path: str | os.PathLike[str], force: bool = False, *, marker: str = "manifest.json"
) -> Iterator[Path]:
    """A temporary folder to fill, which takes the name ``path`` when the block ends well.

    With ``force``, an existing folder is replaced, and only after the new one is complete: the two are
    swapped in one step where the system can; where it cannot, the old one is renamed aside, and a kill
    before the new one has its name is mended by the next call. So that a mistyped target costs nobody a
    folder of something else, only an empty folder or one that holds a file named ``marker`` is ever replaced;
    this is looked at before the block and again when the name is taken, and what else appeared there
    meanwhile is left alone. The name is taken in a `folder_turn`. Who carries something over from the old
    folder begins one before that, which ends after.

    Args:
        path: the target folder; its parent must exist.
        force: replace an existing folder.
        marker: file by which a replaceable folder is known.

    Yields:
        The temporary folder, on the same file system as the target.

    Raises:
        TargetError: the target exists and may not be replaced, or cannot be written.
    """
    shown = Path(path)
    try:
        target = shown.resolve()
        place, lock = _claimed(target, partial(_remove_left_folder, target=target), _new_place)
    except (OSError, ValueError, RuntimeError) as error:
        raise _target_error(shown, error) from error
    try:
        _refuse_unless_replaceable(shown, target, force, marker)
        with _told_of(shown, place):
            content = place / _CONTENT
            yield content
            for item in sorted(all_below(content)):
                if item.is_file():
                    _flush_file(item)
            _flush_folder(content)
            with folder_turn(target):
                _take_place(shown, content, target, force, marker)
    finally:
        with suppress(OSError):  # what it was to replace cannot be put back now: it stays for the next call
            if _put_back(place, target):
                _remove_place(place)
        lock.close()


@contextmanager
def resumable_folder(
    path: str | os.PathLike[str], force: bool = False, *, marker: str = "manifest.json"
) -> Iterator[Path]:
    """An `atomic_folder` for work that takes long: what a block that was cut off has left is found again.

    The temporary folder stands in ``.name.partial`` beside the target and stays when the block raises or the
    process is killed. The block has to see which of its content is whole, and to flush what it writes
    (`write_atomically` does). A folder of that name that msmamba did not leave is refused.

    Args:
        path: the target folder; its parent must exist.
        force: replace an existing folder.
        marker: file by which a replaceable folder is known.

    Yields:
        The temporary folder, empty or as the last attempt left it.

    Raises:
        TargetError: the target exists and may not be replaced, cannot be written, or is being written.
    """
    shown = Path(path)
    try:
        target = shown.resolve()
        place = target.with_name(f".{_shortened(target.name)}.partial")
        lock = _new_place(place) or _take_up(shown, place, target)
    except (OSError, ValueError, RuntimeError) as error:
        raise _target_error(shown, error) from error
    try:
        _refuse_unless_replaceable(shown, target, force, marker)
        with _told_of(shown, place):
            content = place / _CONTENT
            yield content
            _flush_folder(content)
            with folder_turn(target):
                _take_place(shown, content, target, force, marker)
            _remove_place(place)
    finally:
        with suppress(OSError):
            if not any((place / _CONTENT).iterdir()):  # nothing to go on from
                _remove_place(place)
        lock.close()


@contextmanager
def folder_lock(folder: str | os.PathLike[str], busy: str) -> Iterator[None]:
    """Keeps a second process out of a folder; the lock ends with the process, however it ends.

    Where the file system knows no locks there is none.

    Args:
        folder: a folder that exists.
        busy: the message where another process is in it.

    Raises:
        TargetError: another process is in it, or the folder cannot be opened.
    """
    try:
        lock = _lock_folder(Path(folder))
    except OSError as error:
        raise _target_error(Path(folder), error) from error
    if lock is None:
        raise TargetError(busy)
    try:
        yield
    finally:
        lock.close()


@contextmanager
def folder_turn(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Waits for the others that change a folder, or put another in its place, and keeps them waiting.

    The others are processes and threads: a thread that has a turn may begin another within it. Where the file
    system knows no locks, or on Windows takes no file beside the folder, and where there is no folder, nobody
    waits.

    Args:
        folder: is looked up when its turn comes, so that it is not the one that was replaced meanwhile.

    Raises:
        TargetError: it cannot be opened.
    """
    shown, lock = Path(folder), None
    try:
        target = shown.resolve()
        while target.is_dir() and not _has_turn(target) and (lock := _lock_beside(target)) is None:
            time.sleep(_PAUSE)
    except (OSError, ValueError, RuntimeError) as error:
        raise _target_error(shown, error) from error
    if lock is None:
        yield
        return
    _turns.held.append((target, lock))
    try:
        yield
    finally:
        _turns.held.remove((target, lock))
        lock.close()


def common_folder(folders: Sequence[PurePath]) -> PurePath | None:
    """The deepest folder that all of these are or lie in; None where they lie on several of Windows' drives.

    Args:
        folders: absolute paths, one at least.
    """
    parts: list[str] = []
    for alike in zip(*(folder.parts for folder in folders), strict=False):
        if len({*alike}) > 1:
            break
        parts.append(alike[0])
    return type(folders[0])(*parts) if parts else None


def all_below(folder: Path) -> Iterator[Path]:
    """All files and folders below a folder; no link is followed.

    Raises:
        OSError: a folder cannot be read, which `os.walk` and `Path.rglob` pass over without a word.
    """
    with os.scandir(folder) as entries:
        found = [(folder / each.name, each.is_dir(follow_symlinks=False)) for each in entries]
    for path, is_folder in found:
        yield path
        if is_folder:
            yield from all_below(path)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of processes that were killed while they wrote into a folder."""
    with suppress(OSError):
        for path in folder.iterdir():
            if _LEFTOVER.fullmatch(path.name):
                _remove_left_file(path)


def _claimed(
    target: Path, remove_left: Callable[[Path], bool], make: Callable[[Path], _Made | None]
) -> tuple[Path, _Made]:
    """A temporary name for the target, and what ``make`` made there: the first name, but for processes that
    write the same target at once. What killed ones left under later names goes, too."""
    name = _shortened(target.name)
    names = (target.with_name(f".{name}.msmamba-{number}.tmp") for number in count(1))
    for temporary in names:
        made = make(temporary) if remove_left(temporary) else None
        if made is not None:
            for later in names:
                if not (os.path.lexists(later) and remove_left(later)):
                    break
            return temporary, made
    raise AssertionError("there are as many names as numbers")


def _shortened(name: str) -> str:
    # A name may have 255 bytes, and what surrounds it takes some.
    return os.fsencode(name)[:200].decode("utf-8", "ignore")


class _Lock:
    """The right to work in a folder or on a file, for as long as it is not closed and the process lives."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self.is_certain = descriptor is not None
        """Whether others were really kept out: not every file system knows locks."""

    def close(self) -> None:
        if self._descriptor is not None:
            with suppress(OSError):  # what was written is on the device, and the lock ends all the same
                os.close(self._descriptor)
            self._descriptor = None

    def is_on(self, path: Path) -> bool:
        """Whether it is what stands at a path that is locked."""
        return self._descriptor is not None and os.path.samestat(os.fstat(self._descriptor), path.stat())


class _Turns(local):
    """The turns that a thread has: each folder, and the lock on it or beside it."""

    def __init__(self) -> None:
        self.held: list[tuple[Path, _Lock]] = []


_turns = _Turns()


def _has_turn(folder: Path) -> bool:
    """Whether this thread has it: on Windows by its name, as its lock; elsewhere by what stands there."""
    return any(
        taken == folder if sys.platform == "win32" else lock.is_on(folder) for taken, lock in _turns.held
    )


def _lock_folder(folder: Path) -> _Lock | None:
    """The lock on a folder; None where another process has it."""
    if sys.platform == "win32":  # where folders cannot be locked
        return _lock_by_file(folder / ".lock")
    return _lock_of_what_is_at(folder, os.O_DIRECTORY)


def _lock_beside(folder: Path) -> _Lock | None:
    """`_lock_folder` of a folder that may get another place while it is locked."""
    if sys.platform == "win32":  # where none can that holds an open file
        beside = folder.with_name(f".{_shortened(folder.name)}.lock")
        try:
            return _lock_by_file(beside)
        except OSError:  # nothing may be made beside it, or the last one is just giving it back
            return _Lock(None)
    return _lock_folder(folder)


def _lock_of_what_is_at(path: Path, flags: int) -> _Lock | None:
    """The lock on what is still at a path when it is locked; None where another process has it, or had."""
    descriptor = os.open(path, os.O_RDONLY | flags)
    opened = os.fstat(descriptor)
    lock = _lock(descriptor)
    if lock is not None and not _is_at(path, opened):
        lock.close()  # it has its name, or is gone, and who writes next is at the path
        return None
    return lock


def _is_at(path: Path, opened: os.stat_result) -> bool:
    """Whether what was opened is still at a path; that it has links left does not say so of every drive."""
    try:
        return os.path.samestat(path.stat(), opened)
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import _winapi
    import msvcrt

    def _lock_by_file(path: Path) -> _Lock | None:
        """A file that only its holder can open, and that goes when it is closed; None where another has it.

        Locked bytes of a file that all may open would do for the first look alone: that file goes when any
        of its handles is closed, and who looks again is told that it may not, not that it is locked.

        Raises:
            OSError: it cannot be made.
        """
        share_delete, open_always, delete, delete_on_close, sharing_violation = 4, 4, 0x10000, 0x4000000, 32
        try:
            handle = _winapi.CreateFile(
                str(path), _winapi.GENERIC_WRITE | delete, share_delete, 0, open_always, delete_on_close, 0
            )
        except OSError as error:
            if error.winerror == sharing_violation:
                return None
            raise
        return _Lock(msvcrt.open_osfhandle(handle, 0))


def _lock(descriptor: int) -> _Lock | None:
    """The lock on an open file, which it closes; None where another process has it."""
    if sys.platform != "win32":  # where a file is the lock
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            return None if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK) else _Lock(None)
    return _Lock(descriptor)


def _new_file(temporary: Path) -> tuple[BinaryIO, _Lock] | None:
    """A new file and its lock; None where the name is taken."""
    try:
        file = temporary.open("xb")
    except FileExistsError:
        return None
    if sys.platform == "win32":  # where a file that is open cannot be removed
        return file, _Lock(None)
    # Of its own, since the lock has to last until the file has its name, and the file is closed before.
    lock = _lock(os.dup(file.fileno()))
    if lock is not None and _is_at(temporary, os.fstat(file.fileno())):
        return file, lock
    file.close()  # it was taken for a leftover before it was locked
    if lock is not None:
        lock.close()
    return None


def _new_place(place: Path) -> _Lock | None:
    """Makes a temporary folder, empty but for its mark; None where the name is taken."""
    try:
        place.mkdir()
    except FileExistsError:
        return None
    try:
        lock = _lock_folder(place)
    except FileNotFoundError:
        lock = None
    if lock is None:
        return None  # it was taken for a leftover before it was locked
    try:
        _mark(place)
        (place / _CONTENT).mkdir()
    except BaseException:  # an interruption, too, must leave nothing open or behind
        _remove_place(place)
        lock.close()
        raise
    return lock


def _take_up(shown: Path, place: Path, target: Path) -> _Lock:
    """The lock on what an earlier attempt left at ``place``, once it is known to be msmamba's.

    Raises:
        TargetError: it is something else, or another process works there.
    """
    foreign = TargetError(
        f"cannot write '{shown}': '{place}' is in the way, and msmamba did not leave it there: move it away, "
        "or choose another name"
    )
    if not _is_own_folder(place):
        raise foreign
    lock = _lock_folder(place)
    if lock is None:
        raise TargetError(
            f"'{shown}' is being written by another process: wait for it, or choose another name"
        )
    try:
        if not _is_marked(place) or any(
            path.is_symlink()  # msmamba makes none, and would write through them
            for path in all_below(place)
        ):
            raise foreign
        if _put_back(place, target):
            shutil.rmtree(place / _BEFORE, ignore_errors=True)
        _mark(place)
        (place / _CONTENT).mkdir(exist_ok=True)
    except BaseException:  # an interruption, too, must leave nothing open or behind
        lock.close()
        raise
    return lock


def _remove_left_file(leftover: Path) -> bool:
    """Removes what a killed process left under a temporary name; whether the name is free now."""
    try:
        if not stat.S_ISREG(leftover.lstat().st_mode):
            return False
        if sys.platform == "win32":  # where a file that is open cannot be removed
            leftover.unlink()
            return True
        lock = _lock_of_what_is_at(leftover, os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    if lock is None:
        return False
    try:
        if lock.is_certain:
            leftover.unlink(missing_ok=True)
        return lock.is_certain
    except OSError:
        return False
    finally:
        lock.close()


def _remove_left_folder(leftover: Path, target: Path) -> bool:
    """As `_remove_left_file`; what a folder in it was to replace is put back first where it was."""
    try:
        if not (_is_own_folder(leftover) and _is_marked(leftover)):
            return False
        lock = _lock_folder(leftover)
    except FileNotFoundError:
        return True
    if lock is None:
        return False
    try:
        if not (lock.is_certain and _put_back(leftover, target)):
            return False
        _remove_place(leftover)
        return not leftover.exists()
    except OSError:
        return False
    finally:
        lock.close()


def _is_own_folder(path: Path) -> bool:
    status = path.lstat()
    if sys.platform == "win32" or not stat.S_ISDIR(status.st_mode):
        return stat.S_ISDIR(status.st_mode)
    return status.st_uid == os.geteuid() or status.st_uid == _owner_of_what_is_made_in(path.parent)


def _owner_of_what_is_made_in(folder: Path) -> int:
    """Who owns what this process makes there: on sticks and shares whoever mounted them, or nobody."""
    with tempfile.TemporaryDirectory(prefix=f"{_MARK}-", dir=folder) as made:
        return Path(made).lstat().st_uid


def _mark(place: Path) -> None:
    (place / _MARK).write_bytes(_MARKED)
    _flush_file(place / _MARK)


def _remove_place(place: Path) -> None:
    """Removes a temporary folder, its mark last: what a kill leaves of it is still known."""
    parts = [place / name for name in (_CONTENT, _BEFORE)]
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
    if not any(map(os.path.lexists, parts)):
        shutil.rmtree(place, ignore_errors=True)


def _is_marked(place: Path) -> bool:
    """Whether msmamba made it; a kill before it was marked leaves it empty, which is as good."""
    mark = place / _MARK
    if mark.is_symlink() or not mark.is_file():
        return not any(place.iterdir())
    # A kill while the mark was written leaves some of it.
    with open_file(mark) as file:
        return _MARKED.startswith(file.read(len(_MARKED) + 1))


def _put_back(place: Path, target: Path) -> bool:
    """Ends what a kill between two renames left begun; whether what is left in ``place`` may go."""
    before = place / _BEFORE
    if not before.is_dir():
        return True
    if not os.path.lexists(target):
        _rename_to_new(before, target)
        return True
    return not (place / _CONTENT).is_dir()  # else somebody put another folder there meanwhile


def _check_path(path: str | os.PathLike[str]) -> None:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  # what a Path cannot hold is to be named, too
    except ValueError as error:
        raise OSError(
            errno.EINVAL, f"its name cannot be that of a file ({error})", os.fspath(path)
        ) from error
    _refuse_what_is_no_file(mode, path)


def _refuse_what_is_no_file(mode: int, path: str | os.PathLike[str]) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}: expected a file", os.fspath(path))


def _refuse_unless_writable(shown: Path, target: Path) -> None:
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise TargetError(f"cannot write '{shown}': it is a folder: give a file name")
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise TargetError(f"cannot write '{shown}': it is a device or a pipe: give a file name")


def _refuse_unless_replaceable(shown: Path, target: Path, force: bool, marker: str) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise TargetError(f"cannot write '{shown}': it is a file: give the name of a new folder")
    if not force:
        raise TargetError(f"'{shown}' exists already: choose another name, or replace it with --force")
    try:
        replaceable = (target / marker).is_file() or not any(target.iterdir())
    except OSError as error:
        raise _target_error(shown, error) from error
    if not replaceable:
        raise TargetError(
            f"'{shown}' holds no '{marker}', so it is something else and --force does not replace it: "
            "choose another name, or delete it yourself"
        )


def _take_place(shown: Path, content: Path, target: Path, force: bool, marker: str) -> None:
    """Gives ``content`` the name ``target``; what stood there is left beside where ``content`` was.

    Raises:
        TargetError: what stands there may not be replaced.
    """
    if not force or not os.path.lexists(target):
        try:
            _rename_to_new(content, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            raise TargetError(
                f"'{shown}' appeared while this was at work, and was left alone: choose another name, "
                "or move it away"
            ) from error
    else:
        _refuse_unless_replaceable(shown, target, force, marker)
        before = content.with_name(_BEFORE)
        if _swap(content, target):
            with suppress(OSError):  # it goes in either place
                content.rename(before)
        else:
            target.rename(before)
            try:
                content.rename(target)
            except OSError as error:
                try:
                    before.rename(target)
                except OSError:
                    raise TargetError(
                        f"cannot write '{shown}': {cause_of(error)}; what stood there is '{before}' now: "
                        "the next call puts it back"
                    ) from error
                raise
    _flush_folder(target.parent)


def _rename_to_new(source: Path, target: Path) -> None:
    """Renames a folder, and never onto something.

    Raises:
        OSError: something is there.
    """
    if sys.platform == "win32":
        source.rename(target)
    elif _rename_at_once(source, target, _RENAME_NOREPLACE) is None:
        target.mkdir()  # takes the name, if it is free; an empty folder may be renamed onto, and nothing else
        try:
            source.rename(target)
        except OSError:
            with suppress(OSError):
                target.rmdir()
            raise


def _swap(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step; False where the system cannot."""
    return sys.platform != "win32" and _rename_at_once(one, other, _RENAME_EXCHANGE) is True


_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2  # linux/fs.h
_AT_FDCWD = -100


def _rename_at_once(one: Path, other: Path, flags: int) -> bool | None:
    """Linux's renameat2; None where there is none, or the file system does not know the flag.

    Raises:
        OSError: it was refused.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return None
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return None
    raise OSError(number, os.strerror(number), os.fspath(one), None, os.fspath(other))


@contextmanager
def _told_of(shown: Path, place: Path) -> Iterator[None]:
    """Raises what the disk said of the target, and of nothing else, as an error about it."""
    try:
        yield
    except OSError as error:
        named = [os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None]
        inside = [Path(name) for name in named if name.startswith(str(place))]
        if not inside and (named or error.errno not in _WRITE_ERRORS):
            raise
        content = place / _CONTENT
        if inside and inside[0] != content and inside[0].is_relative_to(content):
            shown = shown / inside[0].relative_to(content)  # which of them it is
        raise _target_error(shown, error) from error


def _flush_file(path: Path) -> None:
    # Windows flushes only what is open for writing; elsewhere a file that was copied may be read-only.
    with path.open("rb+" if sys.platform == "win32" else "rb") as file:
        flush_to_device(file)


def _flush_folder(path: Path) -> None:
    """Makes the names in a folder durable; systems on which a folder cannot be opened have no such call."""
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # it may be written into and not be read, as drop boxes may
        return
    try:
        flush_to_device(descriptor)
    finally:
        os.close(descriptor)


def _target_error(shown: Path, error: Exception) -> TargetError:
    return TargetError(f"cannot write '{shown}': {cause_of(error)}")
