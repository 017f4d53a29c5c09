"""Files and folders that appear whole or not at all, and their checksums.

Everything msmamba leaves on disk goes through here: it is written under a temporary name in the
target's own folder, flushed to the device, and renamed. A reader, or a rerun after a kill, never meets
half a file. A killed process can leave the temporary behind: a hidden ``.name.<random>.tmp``.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import TargetError

_CHUNK = 1 << 20

# What a device answers to a write; an OSError with another number in a caller's block (a source file it
# could not open, say) is not about the target and passes through.
_WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

_CAUSES = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EFBIG: "the file system or a limit of this process allows no file that large",
    errno.EROFS: "the file system is read-only: choose another place",
    errno.EACCES: "permission denied: choose another place",
    errno.EPERM: "permission denied: choose another place",
    errno.ENOENT: "its folder does not exist: create it first",
    errno.ENOTDIR: "what should be its folder is a file: choose another place",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOTEMPTY: "it exists already",
    errno.EEXIST: "it exists already",
}


def as_utf8(text: str) -> bytes:
    """The text as UTF-8. Bytes of file names that are not UTF-8 reach Python as lone surrogates, which no
    encoder takes; they become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode()


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content as 64 lower-case hex digits.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write into, which takes the name ``path`` when the block ends well.

    An existing file is replaced; a symbolic link keeps pointing where it did, at the new content. When the
    block raises, the target is untouched and the temporary is gone.

    Raises:
        TargetError: the target cannot be written; the message names the cause.
    """
    shown, target = Path(path), Path(path).resolve()
    temporary = _sibling(target, "tmp")
    try:
        if target.is_dir():
            raise TargetError(f"cannot write '{shown}': it is a folder: give a file name")
        if target.exists() and not target.is_file():
            raise TargetError(f"cannot write '{shown}': it is a device or a pipe: give a file name")
        file = temporary.open("xb")
    except OSError as error:
        raise _target_error(shown, error) from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        _flush_folder(target.parent)
    except OSError as error:
        if error.errno in _WRITE_ERRORS or str(temporary) in (error.filename, error.filename2):
            raise _target_error(shown, error) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], object]) -> None:
    """Writes ``content`` to ``path``, whole or not at all.

    Args:
        path: the target; an existing file is replaced.
        content: the bytes, or a function that writes them into the binary file it is handed.

    Raises:
        TargetError: the target cannot be written; the message names the cause.
    """
    with atomic_file(path) as file:
        if callable(content):
            content(file)
        else:
            file.write(content)


@contextmanager
def atomic_folder(
    path: str | os.PathLike[str], force: bool = False, *, marker: str = "manifest.json"
) -> Iterator[Path]:
    """A temporary folder to fill, which takes the name ``path`` when the block ends well.

    With ``force``, an existing folder is replaced, and only after the new one is complete: it is renamed
    aside, the new one takes its name, then it is deleted. A kill between the two renames leaves the old
    one as ``.name.<random>.old``. So that a mistyped target costs nobody a folder of something else, only
    an empty folder or one that holds a file named ``marker`` is ever replaced.

    Args:
        path: the target folder; its parent must exist.
        force: replace an existing folder.
        marker: file by which a replaceable folder is known.

    Yields:
        The temporary folder, beside the target and on the same file system.

    Raises:
        TargetError: the target exists and may not be replaced, or cannot be written.
    """
    shown, target = Path(path), Path(path).resolve()
    temporary = _sibling(target, "tmp")
    try:
        _refuse_unless_replaceable(shown, target, force, marker)
        temporary.mkdir()
    except OSError as error:
        raise _target_error(shown, error) from error
    try:
        yield temporary
        for item in sorted(temporary.rglob("*")):
            if item.is_file():
                _flush_file(item)
        _flush_folder(temporary)
        _take_place(temporary, target)
        _flush_folder(target.parent)
    except OSError as error:
        named = (str(name) for name in (error.filename, error.filename2) if name is not None)
        if error.errno in _WRITE_ERRORS or any(name.startswith(str(temporary)) for name in named):
            raise _target_error(shown, error) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def resumable_folder(
    path: str | os.PathLike[str], force: bool = False, *, marker: str = "manifest.json"
) -> Iterator[Path]:
    """As `atomic_folder`, for work that takes long: what a block that was cut off has left is found again.

    The temporary folder has a fixed name, ``.name.partial`` beside the target, and stays when the block
    raises or the process is killed. The block has to see which of its content is whole, and to flush what
    it writes (`write_atomically` does).

    Args:
        path: the target folder; its parent must exist.
        force: replace an existing folder.
        marker: file by which a replaceable folder is known.

    Yields:
        The temporary folder, empty or as the last attempt left it.

    Raises:
        TargetError: the target exists and may not be replaced, cannot be written, or is being written.
    """
    shown, target = Path(path), Path(path).resolve()
    temporary = target.with_name(f".{target.name[:200]}.partial")
    try:
        _refuse_unless_replaceable(shown, target, force, marker)
        temporary.mkdir(exist_ok=True)
    except OSError as error:
        raise _target_error(shown, error) from error
    try:
        with _locked(temporary, shown):
            try:
                yield temporary
                _flush_folder(temporary)
                _take_place(temporary, target)
                _flush_folder(target.parent)
            finally:
                with suppress(OSError):
                    temporary.rmdir()  # where nothing is in it to go on from
    except OSError as error:
        named = (str(name) for name in (error.filename, error.filename2) if name is not None)
        if error.errno in _WRITE_ERRORS or any(name.startswith(str(temporary)) for name in named):
            raise _target_error(shown, error) from error
        raise


@contextmanager
def _locked(folder: Path, shown: Path) -> Iterator[None]:
    """Keeps a second process out of a folder; the lock ends with the process, however it ends."""
    if os.name == "nt":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TargetError(
                f"'{shown}' is being written by another process: wait for it, or choose another name"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _refuse_unless_replaceable(shown: Path, target: Path, force: bool, marker: str) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise TargetError(f"cannot write '{shown}': it is a file: give the name of a new folder")
    if not force:
        raise TargetError(f"'{shown}' exists already: choose another name, or replace it with --force")
    if any(target.iterdir()) and not (target / marker).is_file():
        raise TargetError(
            f"'{shown}' holds no '{marker}', so it is something else and --force does not replace it: "
            "choose another name, or delete it yourself"
        )


def _take_place(temporary: Path, target: Path) -> None:
    """Renames ``temporary`` to ``target``; what stood there is put back if that fails, else deleted."""
    if not target.exists():
        temporary.rename(target)
        return
    old = _sibling(target, "old")
    target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sibling(target: Path, suffix: str) -> Path:
    # 200: a name may have 255 bytes, and the random part and the suffix take a few.
    return target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.{suffix}")


def _flush_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Makes the names in a folder durable; systems on which a folder cannot be opened have no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _target_error(shown: Path, error: OSError) -> TargetError:
    cause = _CAUSES.get(error.errno or 0, error.strerror or str(error))
    return TargetError(f"cannot write '{shown}': {cause}")
