"""What there is to say of an artefact and of its images is said once, on standard error, by every command."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file

from msmamba.cli import mmdeploy
from msmamba.errors import ArtefactNote
from msmamba.model.networks.checkpoint_file import METADATA_KEY

PILLOWS = "its network was trained with Pillow's resize, of a version that it does not say"
OTHERS = "here decodes JPEG to other pixels than the machine that exported it: answers may not be those that"

pytestmark = pytest.mark.usefixtures("threads_as_before")


@pytest.fixture(scope="module")
def older_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint from before the resize was msmamba's own."""
    path = tmp_path_factory.mktemp("older") / "older.safetensors"
    described = {"labels": ["basophil", "eosinophil", "lymphocyte"], "image_size": 32}
    described |= {"mean": [0.6, 0.5, 0.7], "std": [0.2, 0.25, 0.15]}
    save_file(load_file(checkpoint), path, metadata={METADATA_KEY: json.dumps(described)})
    return path


@pytest.fixture
def changed(bundles: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A bundle whose manifest says something else."""

    def change(**fields: object) -> Path:
        bundle = Path(shutil.copytree(bundles["fp32"], tmp_path / "changed"))
        manifest = json.loads((bundle / "manifest.json").read_text())
        (bundle / "manifest.json").write_text(json.dumps({**manifest, **fields}))
        return bundle

    return change


@pytest.fixture
def elsewhere(changed: Callable[..., Path]) -> Path:
    """A bundle of a machine that decodes a picture otherwise."""
    return changed(probe={"probe_1.jpg": {"pixels": "ab" * 32, "tensor": "ab" * 32}})


def called(*words: object) -> Result:
    """A command as `cli.main` runs it: notes on artefacts are left to the commands."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ArtefactNote)
        return CliRunner().invoke(mmdeploy, [*map(str, words)])


def arguments_of(name: str, bundle: Path, checkpoint: Path, labelled: Path, work: Path) -> list[object]:
    """Of a command that shows pictures to an artefact."""
    image = labelled / "val" / "basophil" / "0.png"
    two_batches = ("--rounds", "1", "--warmup", "0", "--batch-size", "1", "--batch-size", "2")
    words: dict[str, list[object]] = {
        "infer": [bundle, labelled / "val"],
        "eval": [bundle, labelled, "--split", "val"],
        "verify": [bundle, "--against", checkpoint, "--data", labelled, "--split", "val"],
        "bench": [bundle, bundle, *two_batches],
        "calibrate": [bundle, labelled, "--split", "train", "--max-error", "99%"],
        "slide": [bundle, image, "--pixel-for-pixel", "--no-tissue", "-o", work / "results"],
        "live": [bundle, image, "--no-page"],
    }
    return words[name]


COMMANDS = ("infer", "eval", "verify", "bench", "calibrate", "slide", "live")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_note_on_an_older_artefact_is_told_once(
    name: str, changed: Callable[..., Path], checkpoint: Path, labelled: Path, tmp_path: Path
) -> None:
    bundle = changed(resize="bilinear-antialias-square")
    result = called(name, *arguments_of(name, bundle, checkpoint, labelled, tmp_path))
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count(PILLOWS) == 1
    assert PILLOWS not in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_that_pictures_become_other_values_here_is_a_note_like_others(
    name: str, elsewhere: Path, checkpoint: Path, labelled: Path, tmp_path: Path
) -> None:
    result = called(name, *arguments_of(name, elsewhere, checkpoint, labelled, tmp_path))
    assert result.exit_code == 0, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if OTHERS in line]
    assert line.startswith("note: ")
    assert OTHERS not in result.stdout


@pytest.mark.parametrize("name", ["eval", "verify", "bench", "calibrate"])
def test_results_as_json_have_it_too(
    name: str, elsewhere: Path, checkpoint: Path, labelled: Path, tmp_path: Path
) -> None:
    words = arguments_of(name, elsewhere, checkpoint, labelled, tmp_path)
    notes = json.loads(called(name, *words, "--format", "json").stdout)["notes"]
    assert sum(OTHERS in note for note in notes) == 1


def test_verify_tells_it_of_an_artefact_as_the_reference(
    elsewhere: Path, bundles: dict[str, Path], labelled: Path
) -> None:
    half = bundles["fp16"] / "model.onnx"
    result = called("verify", half, "--against", elsewhere, "--data", labelled, "--split", "val")
    assert result.exit_code == 0, result.stderr
    assert f"note: {elsewhere}: " in result.stderr
    assert result.stderr.count(OTHERS) == 1


@pytest.mark.parametrize("name", ["eval", "export", "verify"])
def test_the_note_on_an_older_checkpoint_is_told_once(
    name: str, older_checkpoint: Path, labelled: Path, tmp_path: Path
) -> None:
    words: dict[str, list[object]] = {
        "eval": [older_checkpoint, labelled, "--split", "val"],
        "export": [older_checkpoint, "-o", tmp_path / "bundle"],
        "verify": [tmp_path / "bundle", "--against", older_checkpoint, "--data", labelled, "--split", "val"],
    }
    if name == "verify":
        called("export", *words["export"])
    result = called(name, *words[name])
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count(PILLOWS) == 1


def test_explain_tells_it_of_an_older_checkpoint(
    older_checkpoint: Path, labelled: Path, tmp_path: Path
) -> None:
    image = labelled / "val" / "basophil" / "0.png"
    with pytest.warns(match=PILLOWS):
        called("explain", older_checkpoint, image, "--method", "occlusion", "-o", tmp_path / "maps")


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``<class>/*`` of a 12-bit camera, four dim ones a class, and a translucent PNG."""
    root = tmp_path_factory.mktemp("camera")
    generator = np.random.default_rng(3)
    for index, label in enumerate(("basophil", "eosinophil", "lymphocyte")):
        (root / label).mkdir()
        for number in range(4):
            pixels = generator.integers(500 * index, 4000, (36, 40), np.uint16)
            tifffile.imwrite(root / label / f"{number}.tif", pixels, metadata=None)
        Image.new("RGBA", (9, 9), (200, 90 * index, 30, 128)).save(root / label / "pale.png")
    return root


def test_verify_tells_what_reading_had_to_decide(
    changed: Callable[..., Path], checkpoint: Path, camera: Path
) -> None:
    bundle = changed()
    result = called("verify", bundle, "--against", checkpoint, "--data", camera)
    assert result.exit_code == 0, result.stderr
    assert "note: 12 images, such as " in result.stderr
    assert "read as dark, since white is 65535" in result.stderr
    assert "note: 3 images, such as " in result.stderr
    assert len(json.loads((bundle / "parity.json").read_text())["notes"]) == 2


def test_the_calibration_of_int8_tells_it_and_the_bundle_keeps_it(
    checkpoint: Path, camera: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "flat"  # without those of one colour, which no ranges are measured on
    shutil.copytree(camera, flat, ignore=shutil.ignore_patterns("pale.png"))
    loose = ["--method", "minmax", "--max-flips", "100%", "--max-accuracy-drop", "100"]
    words: list[object] = [
        "export",
        checkpoint,
        "--int8",
        "--calib",
        flat,
        *loose,
        "-o",
        tmp_path / "cells.int8",
    ]
    result = called(*words)
    assert result.exit_code == 0, result.stderr
    assert "read as dark, since white is 65535" in result.stderr
    manifest = json.loads((tmp_path / "cells.int8" / "manifest.json").read_text())
    kept = manifest["precision_proven"]["int8"]["calibration"]["notes"]
    assert any("read as dark" in note for note in kept)
    # And not with the white level that the camera has.
    words[-1] = tmp_path / "white.int8"
    result = called(*words, "--white-level", 4095)
    assert result.exit_code == 0, result.stderr
    assert "read as dark" not in result.stderr
