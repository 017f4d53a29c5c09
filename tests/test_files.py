"""Files appear whole or not at all, whatever goes wrong while they are written."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from threading import Thread
from typing import Any, BinaryIO

import pytest

from msmamba import files
from msmamba.errors import InputError, TargetError
from msmamba.files import (
    appended_lines,
    as_path,
    as_utf8,
    atomic_file,
    atomic_folder,
    check_is_file,
    check_writable,
    check_writable_folder,
    common_folder,
    flush_to_device,
    folder_lock,
    folder_turn,
    identity_of,
    make_folder,
    open_file,
    open_to_extend,
    read_file,
    remove_leftovers,
    resumable_folder,
    sha256_of,
    write_atomically,
    written_together,
)

on_posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks, pipes and kills")


@pytest.fixture(params=["at-once", "in-two-steps"])
def renaming(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With Linux's renaming that replaces nothing or swaps, and without, as other systems have it."""
    if request.param == "in-two-steps":
        monkeypatch.setattr(files, "_rename_at_once", lambda one, other, flags: None)
    return str(request.param)


def kill_within(code: str, *arguments: Path) -> None:
    """Runs Python code in a process of its own, which kills itself (``kill()``) before it ends."""
    prelude = (
        "import os, signal, sys; from pathlib import Path\n"
        "from msmamba import files; from msmamba.files import *\n"
        "def kill(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", prelude + textwrap.dedent(code), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def fill(target: Path, content: bytes, *, force: bool = False, fail: bool = False) -> None:
    with atomic_folder(target, force) as folder:
        (folder / "manifest.json").write_bytes(content)
        if fail:
            raise ZeroDivisionError


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_is_that_of_the_whole_content(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "f").write_bytes(content[:size])
    assert sha256_of(tmp_path / "f") == hashlib.sha256(content[:size]).hexdigest()


@pytest.mark.parametrize("content", [b"new", lambda file: file.write(b"new")], ids=["bytes", "function"])
def test_write_replaces_the_old_content_and_leaves_nothing_else(tmp_path: Path, content: bytes) -> None:
    target = tmp_path / "out.json"
    target.write_bytes(b"old")
    write_atomically(target, content)
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["out.json"]


def test_a_written_file_follows_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_that_the_user_typed_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", b"new", through_links=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


@pytest.mark.parametrize("leads_to", ["outside/file", "outside", "nowhere", "link"])
def test_any_other_link_is_replaced_and_not_followed(tmp_path: Path, leads_to: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"export PATH")
    (tmp_path / "link").symlink_to(leads_to)
    write_atomically(tmp_path / "link", b"new")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == b"new"
    assert (tmp_path / "outside" / "file").read_bytes() == b"export PATH"
    assert names(tmp_path) == ["link", "outside"]
    assert names(tmp_path / "outside") == ["file"]


def test_an_exception_in_the_block_leaves_the_old_file_alone(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")

    def half(file: BinaryIO) -> None:
        file.write(b"ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "out", half)
    assert (tmp_path / "out").read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    def full(file: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(TargetError, match="disk is full"):
        write_atomically(tmp_path / "out", full)
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_real_full_device_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="disk is full"), atomic_file(tmp_path / "out"):
        Path("/dev/full").write_bytes(b"x")
    assert names(tmp_path) == []


def test_an_error_about_another_file_passes_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "out"):
        (tmp_path / "a missing source").read_bytes()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("target", "cause"),
    [
        ("missing/out", "does not exist"),
        ("file/out", "is a file"),
        ("folder", "is a folder"),
        ("x" * 300, "too long"),
        ("pipe", "device or a pipe"),
    ],
    ids=["missing-folder", "file-as-folder", "folder", "long-name", "pipe"],
)
def test_a_target_that_cannot_be_a_file_is_refused(tmp_path: Path, target: str, cause: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TargetError, match=cause):
        write_atomically(tmp_path / target, b"")
    assert names(tmp_path) == ["file", "folder", "pipe"]


def test_a_read_only_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: str = "r") -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(TargetError, match="read-only"):
        write_atomically(tmp_path / "out", b"")


TOGETHER = """
    folder, kills_at, replace, taken = Path(sys.argv[1]), sys.argv[2], os.replace, [0]
    def counted(*names):
        if taken[0] == int(kills_at):
            kill()
        taken[0] += 1
        replace(*names)
    os.replace = counted
    with written_together():
        for name in "abc":
            write_atomically(folder / name, b"new")
    kill()
"""


@on_posix
@pytest.mark.parametrize("kills_at", range(6))
def test_a_kill_leaves_no_new_file_beside_an_old_one_of_the_same_writing(
    kills_at: int, tmp_path: Path
) -> None:
    for name in "abc":
        write_atomically(tmp_path / name, b"old")
    kill_within(TOGETHER, tmp_path, Path(str(kills_at)))
    found = {path.read_bytes() for path in tmp_path.iterdir() if path.name in "abc"}
    assert found == {b"old" if kills_at < 3 else b"new"}
    with written_together():
        for name in "abc":
            write_atomically(tmp_path / name, b"newer")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys("abc", b"newer")


@pytest.mark.parametrize("fails", ["writing", "putting-aside", "naming"])
def test_of_what_is_written_together_all_or_nothing_is_replaced(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        write_atomically(tmp_path / name, b"old")
    replaced, replace = list[Path](), Path.replace

    def full(file: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(source: Path, target: Path) -> Path:
        replaced.append(source)
        if len(replaced) == {"writing": 0, "putting-aside": 2, "naming": 3}[fails]:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source), None, str(target))
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", refuse)

    def write_all() -> None:
        with written_together():
            for name in "abc":
                write_atomically(tmp_path / name, b"new" if name < "c" or fails != "writing" else full)

    with pytest.raises(TargetError, match=r"cannot write '.*[abc]': the disk"):
        write_all()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys("abc", b"old")


def test_what_is_written_together_is_new_or_replaced(tmp_path: Path) -> None:
    write_atomically(tmp_path / "b", b"old")
    with written_together():
        for name in "abc":
            write_atomically(tmp_path / name, b"new")
        assert names(tmp_path)[-1] == "b"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys("abc", b"new")
    with written_together():
        pass
    write_atomically(tmp_path / "a", b"alone")
    assert (tmp_path / "a").read_bytes() == b"alone"


def test_a_name_that_the_file_system_does_not_take_is_told_with_what_to_do(tmp_path: Path) -> None:
    with (
        pytest.raises(TargetError, match=r"cannot write '.*/out/train/a:b': the file system does not take"),
        atomic_folder(tmp_path / "out") as folder,
    ):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(folder / "train" / "a:b"))
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_into_is_named_and_no_file_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, mode: str = "r") -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(TargetError, match=f"^cannot write '{tmp_path}': the file system is read-only"):
        check_writable_folder(tmp_path)


@on_posix
@pytest.mark.parametrize("lacks", ["links-counted", "numbers"])
def test_a_drive_that_counts_no_links_or_numbers_nothing_is_written_to(
    lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(ask: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def answer(*arguments: Any, **options: Any) -> os.stat_result:
            values = [*ask(*arguments, **options)]
            values[1 if lacks == "numbers" else 3] = 0
            return os.stat_result(values)

        return answer

    made, new = list[Path](), files._new_file

    def counted(temporary: Path) -> Any:
        made.append(temporary)
        assert len(made) < 9, "it looks for a free name for ever"
        return new(temporary)

    (tmp_path / "one").mkdir()
    (tmp_path / "other").symlink_to("one")
    monkeypatch.setattr(files, "_new_file", counted)
    for name in ("stat", "fstat", "lstat"):
        monkeypatch.setattr(os, name, without(getattr(os, name)))
    write_atomically(tmp_path / "a", b"new")
    fill(tmp_path / "b", b"new")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes() == b"new"
    assert names(tmp_path) == ["a", "b", "one", "other"]
    assert identity_of(tmp_path / "one") == identity_of(tmp_path / "other") != identity_of(tmp_path / "b")


@on_posix
def test_what_was_left_on_a_drive_of_one_owner_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As all that lies on a stick belongs to who mounted it, and on many shares to nobody."""

    def begin(number: bytes) -> bytes:
        with suppress(ZeroDivisionError), resumable_folder(tmp_path / "out") as folder:
            with (folder / "log").open("ab") as log:
                log.write(number)
            raise ZeroDivisionError
        return (folder / "log").read_bytes()

    begin(b"1")
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    assert begin(b"2") == b"12"
    monkeypatch.undo()
    if os.geteuid() == 0:  # who alone can give away what is his
        os.chown(tmp_path / ".out.partial", 4711, -1)
        with pytest.raises(TargetError, match="msmamba did not leave it there"):
            begin(b"3")
    assert names(tmp_path) == [".out.partial"]


def test_a_folder_appears_when_complete(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "bundle") as folder:
        assert not (tmp_path / "bundle").exists()
        assert folder.is_relative_to(tmp_path)
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_bytes(b"a")
    assert (tmp_path / "bundle" / "sub" / "a").read_bytes() == b"a"
    assert names(tmp_path) == ["bundle"]


@on_posix
def test_a_folder_may_hold_files_that_are_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def as_for_others(path: Path, mode: str = "r", **options: Any) -> Any:  # root may write them all the same
        if mode == "rb+" and not path.stat().st_mode & 0o222:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", as_for_others)
    with atomic_folder(tmp_path / "bundle") as folder:
        (folder / "model.onnx").write_bytes(b"weights")
        (folder / "model.onnx").chmod(0o444)
    assert (tmp_path / "bundle" / "model.onnx").read_bytes() == b"weights"


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fill(tmp_path / "bundle", b"new", fail=True)
    assert names(tmp_path) == []


def test_a_full_disk_while_filling_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"'.*bundle'.*disk is full"), atomic_folder(tmp_path / "bundle"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_an_existing_folder_is_refused_without_force(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(TargetError, match=r"exists already.*--force"), atomic_folder(tmp_path / "bundle"):
        pytest.fail("the block must not run")


def test_force_replaces_only_after_the_new_one_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    fill(target, b"old")
    with pytest.raises(ZeroDivisionError):
        fill(target, b"new", force=True, fail=True)
    assert (target / "manifest.json").read_bytes() == b"old"
    with atomic_folder(target, force=True) as folder:
        (folder / "other").write_bytes(b"new")
        assert (target / "manifest.json").read_bytes() == b"old"
    assert names(target) == ["other"]
    assert names(tmp_path) == ["bundle"]


def test_force_spares_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_bytes(b"years of work")
    with (
        pytest.raises(TargetError, match=r"no 'manifest\.json'"),
        atomic_folder(tmp_path / "thesis", force=True),
    ):
        pytest.fail("the block must not run")
    assert (tmp_path / "thesis" / "chapter").exists()


def test_force_does_not_replace_a_file_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "notes").write_bytes(b"kept")
    with pytest.raises(TargetError, match="is a file"), atomic_folder(tmp_path / "notes", force=True):
        pytest.fail("the block must not run")
    assert (tmp_path / "notes").read_bytes() == b"kept"


def test_the_old_folder_comes_back_when_the_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    fill(target, b"old")
    rename = Path.rename
    monkeypatch.setattr(files, "_rename_at_once", lambda one, other, flags: None)  # as on macOS

    def refuse_the_new(self: Path, other: Path) -> Path:
        if self.name == "content":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", refuse_the_new)
    with pytest.raises(TargetError):
        fill(target, b"new", force=True)
    assert (target / "manifest.json").read_bytes() == b"old"
    assert names(tmp_path) == ["bundle"]


def test_an_old_folder_that_cannot_be_put_back_is_kept_and_put_back_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    fill(target, b"old")
    rename = Path.rename

    def lose_the_share(self: Path, other: Path) -> Path:
        if self != target:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))
        return rename(self, other)

    with monkeypatch.context() as share:
        share.setattr(files, "_rename_at_once", lambda one, other, flags: None)  # as a share of NFS
        share.setattr(Path, "rename", lose_the_share)
        with pytest.raises(TargetError, match=r"the share is gone: .*; what stood there is '.*before' now"):
            fill(target, b"new", force=True)
    with pytest.raises(ZeroDivisionError):
        fill(target, b"new", force=True, fail=True)
    assert (target / "manifest.json").read_bytes() == b"old"
    assert names(tmp_path) == ["bundle"]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that fails when it is read")
def test_a_read_that_fails_names_its_file_and_not_the_target(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="/proc/self/mem") as caught, atomic_file(tmp_path / "result"):
        open_file("/proc/self/mem")
    assert caught.value.filename == "/proc/self/mem"
    assert caught.value.errno == errno.EIO
    assert names(tmp_path) == []


def test_a_file_system_that_cannot_flush_is_written_to_all_the_same() -> None:
    read, write = os.pipe()  # which knows no such call either
    flush_to_device(write)
    for each in (read, write):
        os.close(each)
    with pytest.raises(OSError, match="descriptor"):
        flush_to_device(write)


def test_a_resumable_folder_finds_what_was_done_and_then_appears(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def begin() -> None:
        with resumable_folder(target) as folder:
            (folder / "first").write_bytes(b"1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        begin()
    assert names(tmp_path) == [".out.partial"]
    with resumable_folder(target) as folder:
        assert names(folder) == ["first"]
        (folder / "manifest.json").write_bytes(b"2")
    assert names(tmp_path) == ["out"]
    assert names(target) == ["first", "manifest.json"]
    with pytest.raises(TargetError, match="exists already"), resumable_folder(target):
        pass
    with resumable_folder(target, force=True) as folder:
        (folder / "manifest.json").write_bytes(b"3")
    assert names(target) == ["manifest.json"]


def test_a_resumable_folder_with_nothing_in_it_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), resumable_folder(tmp_path / "out"):
        raise ZeroDivisionError
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
def test_a_resumable_folder_is_one_processs_at_a_time(tmp_path: Path) -> None:
    with (
        resumable_folder(tmp_path / "out"),
        pytest.raises(TargetError, match="is being written by another process"),
        resumable_folder(tmp_path / "out"),
    ):
        pass
    assert names(tmp_path) == ["out"]


def test_a_full_disk_while_filling_a_resumable_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="the disk is full"), resumable_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("appears", ["folder", "file", "link"])
def test_what_appears_at_the_target_meanwhile_is_left_alone(
    tmp_path: Path, renaming: str, appears: str
) -> None:
    target = tmp_path / "bundle"

    def export() -> None:
        with atomic_folder(target) as folder:
            (folder / "manifest.json").write_bytes(b"new")
            if appears == "folder":
                target.mkdir()
                (target / "precious.txt").write_bytes(b"thesis")
            elif appears == "file":
                target.write_bytes(b"thesis")
            else:
                target.symlink_to("nowhere")

    with pytest.raises(TargetError, match="appeared while this was at work"):
        export()
    assert names(tmp_path) == ["bundle"]
    kept = target / "precious.txt" if appears == "folder" else target
    assert kept.is_symlink() if appears == "link" else kept.read_bytes() == b"thesis"


def test_what_appears_meanwhile_and_is_something_else_is_left_alone_with_force(
    tmp_path: Path, renaming: str
) -> None:
    target = tmp_path / "bundle"

    def export() -> None:
        with atomic_folder(target, force=True) as folder:
            (folder / "manifest.json").write_bytes(b"new")
            target.mkdir()
            (target / "precious.txt").write_bytes(b"thesis")

    with pytest.raises(TargetError, match=r"holds no 'manifest\.json'"):
        export()
    assert (target / "precious.txt").read_bytes() == b"thesis"
    assert names(tmp_path) == ["bundle"]


def test_of_two_writers_of_one_folder_the_second_is_told(tmp_path: Path, renaming: str) -> None:
    target = tmp_path / "bundle"

    def both() -> None:
        with atomic_folder(target) as late:
            (late / "manifest.json").write_bytes(b"late")
            fill(target, b"first")

    with pytest.raises(TargetError, match="appeared while this was at work"):
        both()
    assert (target / "manifest.json").read_bytes() == b"first"
    assert names(tmp_path) == ["bundle"]


def test_force_replaces_in_both_ways_of_renaming(tmp_path: Path, renaming: str) -> None:
    target = tmp_path / "bundle"
    fill(target, b"old")
    fill(target, b"new", force=True)
    assert (target / "manifest.json").read_bytes() == b"new"
    with resumable_folder(target, force=True) as folder:
        (folder / "manifest.json").write_bytes(b"newer")
    assert (target / "manifest.json").read_bytes() == b"newer"
    assert names(tmp_path) == ["bundle"]


@on_posix
@pytest.mark.parametrize("made", ["file", "folder"])
def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path, made: str) -> None:
    target = tmp_path / "out"
    kill_within(f"with atomic_{made}(sys.argv[1]): kill()", target)
    assert names(tmp_path) == [".out.msmamba-1.tmp"]
    if made == "file":
        write_atomically(target, b"whole")
    else:
        fill(target, b"whole")
    assert names(tmp_path) == ["out"]


@on_posix
def test_a_name_of_many_bytes_can_be_written(tmp_path: Path) -> None:
    name = "細" * 80  # 240 bytes of the 255 that a name may have
    write_atomically(tmp_path / name, b"")
    fill(tmp_path / ("胞" * 80), b"")
    assert names(tmp_path) == [name, "胞" * 80]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "out") as one:
        one.write(b"one")
        with atomic_file(tmp_path / "out") as other:
            other.write(b"other")
        assert (tmp_path / "out").read_bytes() == b"other"
    assert (tmp_path / "out").read_bytes() == b"one"
    assert names(tmp_path) == ["out"]


@on_posix
def test_many_writers_of_one_file_all_write_it(tmp_path: Path) -> None:
    failures: list[TargetError] = []

    def write(content: bytes) -> None:
        for _ in range(50):
            try:
                write_atomically(tmp_path / "out", content)
            except TargetError as error:
                failures.append(error)

    writers = [Thread(target=write, args=(content * 1000,)) for content in (b"a", b"b", b"c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failures == []
    assert len(set((tmp_path / "out").read_bytes())) == 1
    assert names(tmp_path) == ["out"]


@on_posix
@pytest.mark.parametrize("make", [atomic_file, atomic_folder], ids=["file", "folder"])
def test_what_took_a_leftovers_name_while_that_was_looked_at_stays(
    make: Callable[[Path], AbstractContextManager[object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One writer ends and another begins between the opening of a leftover and its lock."""
    one, other = make(tmp_path / "out"), make(tmp_path / "out")
    one.__enter__()
    (temporary,) = names(tmp_path)
    lock = files._lock

    def lock_late(descriptor: int) -> object:
        monkeypatch.setattr(files, "_lock", lock)
        one.__exit__(None, None, None)
        if make is atomic_folder:
            (tmp_path / "out").rmdir()
        other.__enter__()
        return lock(descriptor)

    monkeypatch.setattr(files, "_lock", lock_late)
    with make(tmp_path / "out") if make is atomic_file else atomic_folder(tmp_path / "out", True):
        assert temporary in names(tmp_path)
        other.__exit__(None, None, None)
    assert names(tmp_path) == ["out"]


@on_posix
def test_leftovers_of_a_folder_go_and_work_that_goes_on_stays(tmp_path: Path) -> None:
    kill_within("with atomic_file(Path(sys.argv[1], 'last.pt')): kill()", tmp_path)
    (tmp_path / "notes.tmp").write_bytes(b"of somebody else")
    with atomic_file(tmp_path / "curve.png"):
        remove_leftovers(tmp_path)
        assert names(tmp_path) == [".curve.png.msmamba-1.tmp", "notes.tmp"]
    assert names(tmp_path) == ["curve.png", "notes.tmp"]


@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_a_partial_folder_of_others_is_refused_and_kept(tmp_path: Path, kind: str) -> None:
    place = tmp_path / ".out.partial"
    kept = something_of_others(place, kind)
    with (
        pytest.raises(TargetError, match=r"'.*\.out\.partial' is in the way"),
        resumable_folder(tmp_path / "out"),
    ):
        pytest.fail("the block must not run")
    assert kept.read_bytes() == b"thesis"


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_others_gave_a_temporary_name_is_passed_over(tmp_path: Path, kind: str) -> None:
    kept = something_of_others(tmp_path / ".out.msmamba-1.tmp", kind)
    fill(tmp_path / "out", b"")
    assert kept.read_bytes() == b"thesis"
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out").rmdir()
    write_atomically(tmp_path / "out", b"")
    assert kept.read_bytes() == b"thesis"


def something_of_others(place: Path, kind: str) -> Path:
    """Makes a file, a folder, or a link to a folder at ``place``; the file that must survive."""
    if kind == "file":
        place.write_bytes(b"thesis")
        return place
    folder = place.with_name("precious") if kind == "link" else place
    folder.mkdir()
    (folder / "thesis.txt").write_bytes(b"thesis")
    if kind == "link":
        place.symlink_to("precious")
    return folder / "thesis.txt"


def test_a_partial_folder_that_would_be_written_through_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()

    def begin() -> None:
        with resumable_folder(tmp_path / "out") as folder:
            (folder / "train").symlink_to(tmp_path / "precious")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        begin()
    with pytest.raises(TargetError, match="in the way"), resumable_folder(tmp_path / "out"):
        pytest.fail("the block must not run")


def test_what_cannot_be_looked_at_is_not_taken_up_or_taken_for_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is passed over may hold a link to write through, or what has not reached the device."""
    with suppress(ZeroDivisionError), resumable_folder(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        raise ZeroDivisionError
    scandir = os.scandir

    def refuse(folder: Any) -> Any:
        if str(folder).endswith("inner"):  # what removes gives it numbers
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(TargetError, match="permission denied"), resumable_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    with pytest.raises(TargetError, match="permission denied"), atomic_folder(tmp_path / "new") as folder:
        (folder / "inner").mkdir()
    assert names(tmp_path) == [".out.partial"]


def test_an_empty_partial_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    with resumable_folder(tmp_path / "out") as folder:
        (folder / "a").write_bytes(b"")
    assert names(tmp_path) == ["out"]


@on_posix
def test_a_kill_between_two_renames_is_mended_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    fill(target, b"old")
    kill_within(
        """
        files._rename_at_once = lambda one, other, flags: None
        rename = Path.rename
        Path.rename = lambda self, other: kill() if self.name == "content" else rename(self, other)
        with atomic_folder(sys.argv[1], force=True) as folder:
            (folder / "manifest.json").write_bytes(b"new")
        """,
        target,
    )
    assert names(tmp_path) == [".bundle.msmamba-1.tmp"]
    with pytest.raises(TargetError, match="exists already"):
        fill(target, b"newer")
    assert (target / "manifest.json").read_bytes() == b"old"
    assert names(tmp_path) == ["bundle"]


@on_posix
@pytest.mark.parametrize("kind", ["atomic", "resumable"])
def test_a_kill_while_the_replaced_one_is_removed_is_mended_by_the_next(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "data"
    fill(target, b"old")
    kill_within(
        f"""
        files._remove_place = kill
        with {kind}_folder(sys.argv[1], force=True) as folder:
            (folder / "manifest.json").write_bytes(b"new")
        """,
        target,
    )
    assert (target / "manifest.json").read_bytes() == b"new"
    open_again = atomic_folder if kind == "atomic" else resumable_folder
    with pytest.raises(TargetError, match="exists already"), open_again(target):
        pytest.fail("the block must not run")
    assert (target / "manifest.json").read_bytes() == b"new"
    assert names(tmp_path) == ["data"]


@on_posix
def test_a_locked_folder_is_one_processs_and_free_when_that_is_killed(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "somebody trains there"):
        command = "import sys; from msmamba.files import *\nwith folder_lock(sys.argv[1], 'busy there'): pass"
        process = subprocess.run([sys.executable, "-c", command, tmp_path], capture_output=True, text=True)
        assert "TargetError: busy there" in process.stderr
    kill_within("with folder_lock(sys.argv[1], 'busy'): kill()", tmp_path)
    with folder_lock(tmp_path, "busy"):
        pass
    assert names(tmp_path) == []


@on_posix
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pipe", "it is a pipe"),
        ("socket", "it is a socket"),
        ("/dev/zero", "it is a device"),
        ("link", "it is a device"),
        (".", "it is a folder"),
        ("missing", "No such file"),
        ("nul\0", "its name cannot be"),
    ],
)
def test_nothing_but_files_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # the name of a socket must be short
        listener.bind("socket")
        for opened in (open_file, read_file, check_is_file, sha256_of):
            with pytest.raises(OSError, match=said):
                opened(tmp_path / name)


@on_posix
def test_a_pipe_that_takes_a_files_place_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(files, "_check_path", lambda path: None)
    with pytest.raises(OSError, match="it is a pipe"):
        open_file(tmp_path / "pipe")


def test_any_text_becomes_utf_8() -> None:
    assert as_utf8("größe") == "größe".encode()
    assert as_utf8("caf\udce9.png") == "caf\ufffd.png".encode()
    assert as_utf8("caf\udce9\udce9\ud83d.png") == "caf\ufffd\ufffd\ufffd.png".encode()
    assert as_utf8("\U0001f52c") == "\U0001f52c".encode()


def lines_added(path: Path, *lines: str) -> list[bytes]:
    """Adds lines to a log; returns the first lines that were checked."""
    seen: list[bytes] = []
    with appended_lines(path, "head", seen.append) as add:
        for line in lines:
            add(line)
    return seen


def test_lines_are_added_to_a_log_that_begins_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert lines_added(log, "one") == []
    assert lines_added(log, "two", "\udcff") == [b"head\n"]
    assert log.read_bytes() == "head\none\ntwo\n\ufffd\n".encode()


def test_a_line_that_was_cut_ends_before_the_next(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"head\nhalf a li")
    lines_added(log, "whole")
    assert log.read_bytes() == b"head\nhalf a li\nwhole\n"


def test_a_log_that_is_refused_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"of somebody")

    def refuse(line: bytes) -> None:
        raise ValueError(line)

    with pytest.raises(ValueError, match="of somebody"), appended_lines(log, "head", refuse):
        pass
    assert log.read_bytes() == b"of somebody"


def test_several_writers_add_whole_lines_to_one_log(tmp_path: Path) -> None:
    log, lines = tmp_path / "log", 300
    lines_added(log)

    def write(name: str) -> None:
        lines_added(log, *[name * 500] * lines)

    threads = [Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = log.read_text().splitlines()
    assert len(found) == 2 * lines + 1
    assert found.count("a" * 500) == found.count("b" * 500) == lines


@on_posix
@pytest.mark.parametrize("name", [".", "absent/log", "fifo"])
def test_what_is_no_log_cannot_be_added_to(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(TargetError, match="cannot write"):
        lines_added(tmp_path / name)


@on_posix
def test_a_full_disk_is_told_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    limit = (
        "import resource, sys; from pathlib import Path; from msmamba.files import appended_lines\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "with appended_lines(Path(sys.argv[1]), 'head', print) as add:\n"
        "    [add('x' * 30) for _ in range(9)]\n"
    )
    run = subprocess.run([sys.executable, "-c", limit, str(log)], capture_output=True, text=True)
    assert "allows no file that large" in run.stderr
    lines_added(log, "later")
    assert log.read_bytes().splitlines()[-1] == b"later"
    assert log.read_bytes().splitlines()[:3] == [b"head", b"x" * 30, b"x" * 30]


def test_a_file_of_holes_is_not_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(files.LARGEST_READ + 1)
    with pytest.raises(
        OSError, match=r"it has 2,147,483,648 bytes: expected at most 2,147,483,647"
    ) as caught:
        read_file(tmp_path / "large")
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize("path", [None, 5, bytearray(b"a"), ["a"]])
def test_what_is_no_path_is_an_input_error(path: object) -> None:
    with pytest.raises(InputError, match="expected a path, found"):
        as_path(path)  # type: ignore[arg-type]  # as callers without types give it


def test_a_file_is_extended_where_it_stands(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        with open_to_extend(tmp_path / "rows") as file:
            file.seek(0, os.SEEK_END)
            file.write(content)
    assert (tmp_path / "rows").read_bytes() == b"onetwo"
    with pytest.raises(TargetError, match="cannot write"):
        open_to_extend(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there, and there are no pipes in folders")
def test_nothing_is_extended_through_a_link_or_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with open_to_extend(tmp_path / name) as file:
            file.write(b"row")
        assert (tmp_path / name).read_bytes() == b"row"
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_target_is_looked_at_and_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_bytes(b"before")
    for path in ("there", "new"):
        check_writable(path)
    for folder in ("new", "new/below", tmp_path, tmp_path / "new" / "below"):
        check_writable_folder(folder)
    assert [*tmp_path.iterdir()] == [tmp_path / "there"]
    assert (tmp_path / "there").read_bytes() == b"before"
    with pytest.raises(TargetError, match="cannot write 'new/below': its folder does not exist"):
        check_writable("new/below")
    for folder in ("there", "there/below"):
        with pytest.raises(TargetError, match="is a file"):
            check_writable_folder(folder)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("file", {}, "'{}' is there and is no folder: choose another name"),
        ("dangling", {}, "'{}' is there and is no folder: choose another name"),
        ("folder", {"new": True}, "'{}' exists already: choose another name"),
        (
            "file/x",
            {},
            "cannot make the folder '{}': what should be its folder is a file: choose another place",
        ),
        ("no/x", {}, "cannot make the folder '{}': its folder does not exist: create it first"),
        ("a" * 300, {"parents": True}, "cannot make the folder '{}': the name is too long"),
        ("a\0b", {}, "cannot make the folder '{}': embedded null byte"),
    ],
)
def test_a_folder_that_cannot_be_made_is_told_with_what_to_do(
    name: str, options: dict[str, bool], said: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(TargetError) as told:
        make_folder(tmp_path / name, **options)
    assert str(told.value) == said.format(tmp_path / name)


def test_a_folder_is_made_or_taken_as_it_is(tmp_path: Path) -> None:
    for _ in range(2):
        make_folder(tmp_path / "a" / "b", parents=True)
    make_folder(tmp_path / "c", new=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "c"]


@on_posix
def test_who_waits_for_a_folder_gets_the_one_that_stands_there_then(tmp_path: Path) -> None:
    folder, new, old = (tmp_path / name for name in ("bundle", "new", "old"))
    folder.mkdir()
    new.mkdir()

    def write() -> None:
        with folder_turn(folder):
            (folder / "proof").touch()

    second = Thread(target=write)
    with folder_turn(folder):
        second.start()
        second.join(0.1)
        assert second.is_alive()
        folder.rename(old)
        new.rename(folder)
    second.join()
    assert (folder / "proof").exists()
    assert not list(old.iterdir())


@on_posix
@pytest.mark.parametrize("who", ["a thread", "a process"])
def test_a_folder_is_replaced_only_when_those_who_change_it_are_done(
    who: str, renaming: str, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    fill(folder, b"old")
    writer = Thread(target=fill, args=(folder, b"new"), kwargs={"force": True})
    if who == "a thread":
        with folder_turn(folder):
            writer.start()
            writer.join(0.1)
            seen = (folder / "manifest.json").read_bytes()
    else:
        code = """
            import sys; from pathlib import Path; from msmamba.files import folder_turn
            with folder_turn(sys.argv[1]):
                print("in", flush=True)
                input()
                print(Path(sys.argv[1], "manifest.json").read_text())
        """
        command = [sys.executable, "-c", textwrap.dedent(code), str(folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"in\n"
            writer.start()
            writer.join(0.1)
            seen = other.communicate(b"\n")[0].strip()
    writer.join()
    assert seen == b"old"
    assert (folder / "manifest.json").read_bytes() == b"new"
    assert names(tmp_path) == ["bundle"]


@on_posix
def test_who_has_a_turn_may_begin_another_and_replaces_the_folder_within_it(
    renaming: str, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    fill(folder, b"old")
    seen = []

    def see() -> None:
        with folder_turn(folder):
            seen.append((folder / "manifest.json").read_bytes())

    def replace() -> None:
        with folder_turn(folder):
            with folder_turn(tmp_path / "." / "bundle"):
                other.start()
            other.join(0.1)  # the turn within is over, and its own is not
            seen.append(b"nothing" if not seen else b"something")
            fill(folder, b"new", force=True)

    other, thread = Thread(target=see, daemon=True), Thread(target=replace, daemon=True)
    thread.start()
    for each in (thread, other):  # one that waits for itself would do so for ever
        each.join(60)
    assert seen == [b"nothing", b"new"]
    assert names(tmp_path) == ["bundle"]


def test_a_folder_that_is_not_there_keeps_nobody_waiting(tmp_path: Path) -> None:
    with folder_turn(tmp_path / "new"), folder_turn(tmp_path / "new"):
        assert not list(tmp_path.iterdir())


def test_folders_have_a_common_one_but_on_several_drives() -> None:
    assert common_folder(
        [PurePosixPath("/a/b/c"), PurePosixPath("/a/b"), PurePosixPath("/a/bd")]
    ) == PurePosixPath("/a")
    assert common_folder([PureWindowsPath("C:/a/b")]) == PureWindowsPath("C:/a/b")
    assert common_folder([PureWindowsPath("C:/a"), PureWindowsPath("D:/a")]) is None
