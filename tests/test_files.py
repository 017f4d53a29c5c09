"""Files appear whole or not at all, whatever goes wrong while they are written."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from msmamba.errors import TargetError
from msmamba.files import as_utf8, atomic_file, atomic_folder, resumable_folder, sha256_of, write_atomically


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


def test_a_symbolic_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


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


def test_a_folder_appears_when_complete(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "bundle") as folder:
        assert not (tmp_path / "bundle").exists()
        assert folder.parent == tmp_path
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_bytes(b"a")
    assert (tmp_path / "bundle" / "sub" / "a").read_bytes() == b"a"
    assert names(tmp_path) == ["bundle"]


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

    def refuse_the_new(self: Path, other: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", refuse_the_new)
    with pytest.raises(TargetError):
        fill(target, b"new", force=True)
    assert (target / "manifest.json").read_bytes() == b"old"
    assert names(tmp_path) == ["bundle"]


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


def test_any_text_becomes_utf_8() -> None:
    assert as_utf8("größe") == "größe".encode()
    assert as_utf8("caf\udce9.png") == "caf\ufffd.png".encode()
