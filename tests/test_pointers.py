"""What Git LFS leaves in place of a file that was not fetched is called so, whatever the file would be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import msmamba
from msmamba.calib.activations import _read
from msmamba.data.imported import MANIFEST, read_manifest
from msmamba.data.published.tissuemnist import unpack
from msmamba.errors import MsmambaError, Note
from msmamba.export.bundle import export_bundle
from msmamba.export.graph.int8_options import _read_plan
from msmamba.export.proof.evaluate import evaluate_model
from msmamba.export.proof.verify import verify
from msmamba.files import check_is_file, open_file, read_file
from msmamba.images import StackedImage, load_image
from msmamba.model.networks.checkpoint import load_checkpoint
from msmamba.model.training.run import STATE, RunFolder

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
SAID = "is a Git LFS pointer, not the file that it stands for: fetch it with 'git lfs pull'"


def pointer(path: Path, number: int = 1) -> Path:
    path.write_text(POINTER.format(f"{number:064x}", 12345))
    return path


def never(*_: object) -> None:
    raise AssertionError


@pytest.mark.parametrize("opened", [open_file, read_file, check_is_file])
def test_the_ground_floor_opens_none(opened: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(OSError, match=SAID) as caught:
        opened(pointer(tmp_path / "x"))
    assert caught.value.filename == str(tmp_path / "x")


@pytest.mark.parametrize("content", [b"", b"v", b"version https://git-hub", b" version https://git-lfs"])
def test_other_files_are_read_from_their_beginning(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    assert read_file(tmp_path / "x") == content


DOORS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "an image": ("a.png", load_image),
    "a stack of images": ("a.npy", lambda path: load_image(StackedImage(path, 0))),
    "an ONNX file or engine": ("model.onnx", msmamba.open),
    "a checkpoint": ("best.pth", load_checkpoint),
    "a checkpoint to export": ("best.safetensors", lambda path: export_bundle(path, path.parent / "b")),
    "a data set's description": (MANIFEST, lambda path: read_manifest(path.parent)),
    "the published npz": ("t.npz", lambda path: unpack(path, path.parent / "o", True, never)),
    "a plan": ("plan.json", _read_plan),
    "a calibration cache": ("c.npz", lambda path: _read(path, {}, 1)),  # type: ignore[arg-type]
    "a run's state": (STATE, lambda path: RunFolder(path.parent).read_state()),
}


@pytest.mark.parametrize(("name", "door"), DOORS.values(), ids=DOORS.keys())
def test_every_reader_names_it(name: str, door: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(MsmambaError, match=SAID):
        door(pointer(tmp_path / name))


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_it_is_named_in_a_bundle(name: str, bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(bundles["fp32"], tmp_path / "b"))
    pointer(bundle / name)
    with pytest.raises(MsmambaError, match=rf"{name}.*{SAID}"):
        msmamba.open(bundle)


def test_commands_that_take_checkpoints_and_artefacts_name_it(
    bundles: dict[str, Path], labelled: Path, tmp_path: Path
) -> None:
    unfetched = pointer(tmp_path / "x.safetensors")
    with pytest.raises(MsmambaError, match=SAID):
        evaluate_model(unfetched, labelled, split="val")
    with pytest.raises(MsmambaError, match=SAID):
        verify(bundles["fp32"], unfetched, [labelled], split="val")


def test_images_that_were_not_fetched_are_named_or_left_out(
    bundles: dict[str, Path], labelled: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(labelled, tmp_path / "cells"))
    unfetched = sorted(data.rglob("0.png"))
    for number, image in enumerate(unfetched):
        pointer(image, number)
    whose = f"^{len(unfetched)} files cannot be read, such as .*, so nobody knows whether it is a copy"
    with pytest.warns(Note, match=whose), pytest.raises(MsmambaError, match=SAID):
        evaluate_model(bundles["fp32"], data, split="val")
    with pytest.warns(Note, match=whose):
        left_out = evaluate_model(bundles["fp32"], data, split="val", skip_bad=True).skipped
    assert len(left_out) == len(unfetched) // 2
    assert all(reason.endswith(SAID) for reason in left_out.values())
