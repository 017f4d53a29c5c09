"""Importing TensorRT without its traps; the wheel's folder is imitated."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from msmamba.errors import BackendError
from msmamba.plugins import tensorrt_library
from msmamba.plugins.tensorrt_library import import_tensorrt, link_parser_library, missing_parser_link

LIBRARY, LINK = "libtensorrt_rtx.so.1", "libtensorrt_rtx.so"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The libraries' folder as the wheel installs it: without the link."""
    folder = tmp_path / "tensorrt_rtx_libs"
    folder.mkdir()
    (folder / LIBRARY).touch()
    monkeypatch.setattr(tensorrt_library, "_rtx_folder", lambda: folder)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    return folder


def test_import_names_the_command_instead_of_letting_the_process_abort(wheel: Path) -> None:
    with pytest.raises(BackendError, match=f"run: ln -s {LIBRARY} {wheel / LINK}"):
        import_tensorrt("tensorrt_rtx")


def test_the_link_is_made_once(wheel: Path) -> None:
    assert link_parser_library() == wheel / LINK
    assert (wheel / LINK).resolve() == wheel / LIBRARY
    assert link_parser_library() is None


def test_a_link_on_the_library_path_will_do(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / LINK).symlink_to(wheel / LIBRARY)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/elsewhere:{own}")
    assert missing_parser_link() is None


def test_a_read_only_folder_is_answered_with_another_way(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(self: Path, target: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "symlink_to", read_only)
    with pytest.raises(BackendError, match=r"permission denied.*LD_LIBRARY_PATH"):
        link_parser_library()


def test_the_command_for_a_read_only_folder_needs_none_of_it(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(BackendError, match=rf"ln -s {wheel / LIBRARY} .*LD_LIBRARY_PATH"):
        import_tensorrt("tensorrt_rtx")


def test_running_engines_wants_no_parser(wheel: Path) -> None:
    assert import_tensorrt("tensorrt_rtx", to_parse=False).__name__ == "tensorrt_rtx"


def test_nothing_is_missing_where_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_library, "_rtx_folder", lambda: None)
    assert missing_parser_link() is None


def test_an_absent_library_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"tensorrt does not import .*JetPack"):
        import_tensorrt("tensorrt")


def test_an_unknown_library_is_refused() -> None:
    with pytest.raises(BackendError, match="'torch'"):
        import_tensorrt("torch")
