"""An artefact is known by its content, whatever it is called; a changed or cut one is refused."""

from __future__ import annotations

import errno
import io
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msmamba.errors import ArtefactError
from msmamba.runtime.artefact import Kind, open_bundle, recognise

from .conftest import classifier


def test_every_artefact_is_recognised(bundle: Path, onnx_file: Path, tmp_path: Path) -> None:
    assert recognise(bundle) is Kind.BUNDLE
    assert recognise(onnx_file) is Kind.ONNX
    for magic in (b"ftrt", b"vtrt"):
        (tmp_path / "engine.onnx").write_bytes(magic + bytes(100))
        assert recognise(tmp_path / "engine.onnx") is Kind.ENGINE


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"content")
    return file.getvalue()


CHECKPOINTS = {
    "safetensors": struct.pack("<Q", 2) + b"{}",
    "pytorch-zip": zipped("archive/data.pkl"),
    "pytorch-pickle": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
}


@pytest.mark.parametrize("content", CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_a_checkpoint_is_told_how_to_become_an_artefact(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=f"is a checkpoint.*mmdeploy export {path} -o BUNDLE"):
        recognise(path)


OTHERS = {
    "text": b"{} is not a model",
    "zeros": bytes(1000),
    "zip": zipped("report.txt"),
    "numpy": b"\x93NUMPY\x01\x00",
    "tensor": onnx.numpy_helper.from_array(np.zeros(3, np.float32), "lonely").SerializeToString(),
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS.keys())
def test_something_else_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ArtefactError, match="is neither a bundle nor"):
        recognise(tmp_path / "model.onnx")


def test_nothing_and_emptiness_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="does not exist"):
        recognise(tmp_path / "missing")
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ArtefactError, match="is empty"):
        recognise(tmp_path / "empty.onnx")
    with pytest.raises(ArtefactError, match=r"folder without 'manifest\.json'"):
        recognise(tmp_path)


def test_the_folder_of_a_run_is_told_from_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").touch()
    with pytest.raises(ArtefactError, match=r"folder of a run, not a bundle: .*best\.safetensors', of which"):
        recognise(tmp_path)


@pytest.mark.parametrize("missing", [1, 7, 100])
def test_a_truncated_onnx_file_is_called_that(onnx_file: Path, missing: int) -> None:
    onnx_file.write_bytes(onnx_file.read_bytes()[:-missing])
    with pytest.raises(ArtefactError, match="truncated ONNX file"):
        recognise(onnx_file)


def test_a_bundles_file_is_read_after_its_checksum(bundle: Path) -> None:
    assert open_bundle(bundle).read("model.onnx") == (bundle / "model.onnx").read_bytes()


def test_a_changed_file_is_named(bundle: Path) -> None:
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[-1] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"model\.onnx' was changed after export"):
        open_bundle(bundle).read("model.onnx")


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    with pytest.raises(ArtefactError, match=r"model\.onnx' is missing"):
        open_bundle(bundle).read("model.onnx")


def test_a_folder_that_may_not_be_looked_into_is_one_line(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> bool:  # root may look into any
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refused)
    for read in (open_bundle, recognise):
        with pytest.raises(ArtefactError, match="cannot be read: permission denied"):
            read(bundle)


def test_an_unlisted_file_is_not_read(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle(files={})
    with pytest.raises(ArtefactError, match=r"lists no 'model\.onnx'"):
        open_bundle(folder).read("model.onnx")


def test_a_broken_manifest_is_named_by_its_path(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{")
    with pytest.raises(
        ArtefactError, match=r"colours\.bundle/manifest\.json' cannot be read: it is not JSON"
    ):
        open_bundle(bundle)


@settings(max_examples=300, deadline=None)
@given(
    content=st.sampled_from([b"", *CHECKPOINTS.values(), *OTHERS.values(), classifier().SerializeToString()]),
    data=st.data(),
)
def test_whatever_the_bytes_a_kind_or_one_line_comes_out(content: bytes, data: st.DataObject) -> None:
    mutated = bytearray(content or data.draw(st.binary(max_size=60)))
    for _ in range(data.draw(st.integers(0, 3)) if mutated else 0):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.NamedTemporaryFile() as file:
        file.write(mutated)
        file.flush()
        try:
            assert recognise(file.name) in Kind
        except ArtefactError as error:
            message = str(error)
        else:
            return
    assert len(message.splitlines()) == 1
