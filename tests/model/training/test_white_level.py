"""The white level of 16-bit images: taken from the data, kept with the model, applied by every reader."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

from msmamba.cli import mmdeploy
from msmamba.data.folders import read_training_folder
from msmamba.data.published import ImportOptions, import_data_set
from msmamba.errors import CheckpointError, InputError, Note
from msmamba.export.bundle import ExportOptions, _manifest, export_bundle
from msmamba.images import FULL_WHITE, read_image
from msmamba.model.networks.checkpoint import load_checkpoint
from msmamba.model.networks.described import Described, described_by
from msmamba.model.networks.microscopic_mamba import Architecture
from msmamba.model.networks.pretrained import Pretrained
from msmamba.model.training.loop import Hardware, train
from msmamba.model.training.recipe import Recipe
from msmamba.runtime import open_session
from msmamba.runtime.manifest import Manifest

pytestmark = pytest.mark.usefixtures("threads_as_before")

QUICK = Recipe(epochs=1, batch_size=4, warmup_epochs=0, image_size=32)
ONE_THREAD = Hardware(threads=1)


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of ten images of a 12-bit camera, grey and colour; one is a stack of two planes."""
    root = tmp_path_factory.mktemp("camera") / "cells"
    for number in range(20):
        random = np.random.default_rng(number)
        shape = (24, 20, 3) if number % 3 == 0 else (24, 20)
        pixels = (random.integers(0, 4096, shape) * (0.5 + number % 2 / 2)).astype(np.uint16)
        pixels[0, 0] = 4095
        path = root / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        planes = np.stack([pixels, pixels]) if number == 5 else pixels
        tifffile.imwrite(path, planes, photometric="rgb" if len(shape) == 3 else "minisblack", metadata=None)
    return root


@pytest.fixture(scope="module")
def run(camera: Path, small: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(read_training_folder(camera), folder, small, QUICK, hardware=ONE_THREAD)
    return folder


def test_training_takes_the_white_of_the_bits_in_use_and_the_config_keeps_what_was_decided(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    assert config["normalisation"]["white_level"] == 4095
    assert config["normalisation"]["mean"][0] > 0.3  # and not near black
    assert any("use 12 bits, so white is 4095" in note for note in config["notes"])
    assert any("1 image, such as" in note and "page 1 of 2" in note for note in config["notes"])
    assert not any("read as dark" in note for note in config["notes"])


def test_the_checkpoint_carries_it_and_reads_as_training_did(run: Path, camera: Path) -> None:
    loaded = load_checkpoint(run / "best.safetensors")
    assert loaded.preprocessing is not None
    assert loaded.preprocessing.white_level == 4095
    labels, transform = described_by(loaded, Described(), "the checkpoint")
    path = camera / "a" / "2.tif"
    expected = transform(np.repeat((tifffile.imread(path) >> 4).astype(np.uint8)[..., None], 3, axis=2))
    np.testing.assert_array_equal(transform.of(path), expected)
    manifest = _manifest(loaded, ExportOptions(precision="fp32"), "the checkpoint")
    assert manifest.labels == labels
    assert Manifest.from_metadata(manifest.to_metadata()).transform == transform


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(run / "best.safetensors", tmp_path_factory.mktemp("exported") / "cells").path


def test_an_exported_bundle_opens_with_it_and_reads_as_training_did(bundle: Path, camera: Path) -> None:
    path = camera / "a" / "2.tif"
    expected = np.repeat((tifffile.imread(path) >> 4).astype(np.uint8)[..., None], 3, axis=2)
    for artefact in (bundle, bundle / "model.onnx"):
        with open_session(artefact) as session:
            assert session.transform is not None
            assert session.transform.white_level == 4095
            assert session.notes == ()
            np.testing.assert_array_equal(session.prepare(path)[0], session.transform(expected))
            assert session.classify([path]) == session.classify([expected])


def test_what_is_given_in_its_place_is_taken_and_told(bundle: Path, camera: Path) -> None:
    path = camera / "a" / "2.tif"
    with open_session(bundle, white_level=FULL_WHITE) as session:
        assert session.notes == ("white is 65535 of 16-bit images, as asked, not 4095",)
        assert "read as dark, since white is 65535" in session.classify([path])[0].notes[0]
    with open_session(bundle, white_level=4095) as session:
        assert session.notes == ()
        assert session.transform is not None
        mean, std = session.transform.mean, session.transform.std
    with open_session(bundle, mean=(0.1, 0.2, 0.3), std=std) as session:
        assert session.notes == (f"the channels' mean is (0.1, 0.2, 0.3), as asked, not {mean}",)
    with open_session(bundle, labels=["b", "a"]) as session:
        assert session.notes == ("the classes are called b, a, as asked, not a, b",)
    with open_session(bundle, labels=["a", "b"]) as session:
        assert session.notes == ()


def test_what_is_given_in_the_place_of_a_checkpoint_s_is_told(run: Path, camera: Path) -> None:
    arguments = ["eval", str(run / "best.safetensors"), str(camera), "--std", "0.5", "0.5", "0.5"]
    result = CliRunner().invoke(mmdeploy, arguments)
    assert "note: the channels' std is (0.5, 0.5, 0.5), as asked, not (" in result.stderr
    result = CliRunner().invoke(mmdeploy, [*arguments[:3], "--labels", "b,a"])
    assert "note: the classes are called b, a, as asked, not a, b" in result.stderr


@pytest.mark.parametrize("labels", ["a,a", "a,"])
def test_labels_that_are_no_distinct_names_are_refused(labels: str, run: Path, camera: Path) -> None:
    arguments = ["eval", str(run / "best.safetensors"), str(camera), "--labels", labels]
    result = CliRunner().invoke(mmdeploy, arguments)
    assert result.exit_code == 1
    assert "error: the labels are ['a', '" in result.stderr


def test_what_a_run_is_resumed_from_is_no_checkpoint(run: Path) -> None:
    for read in (load_checkpoint, Pretrained.read):
        with pytest.raises(CheckpointError, match=r"resumed from: .* are in best\.safetensors beside it"):
            read(run / "last.pt")


@pytest.mark.parametrize("white", [254, 65536, True, 4095.0, float("nan"), "4095", 10**400])
def test_what_is_no_white_level_is_refused(white: Any, bundle: Path) -> None:
    with pytest.raises(InputError, match=r"the white level is .*: expected a whole number from 255 to 65535"):
        open_session(bundle, white_level=white)


@pytest.mark.parametrize("name", ["infer", "eval", "explain", "slide", "live"])
def test_commands_that_read_images_take_it(
    name: str, run: Path, bundle: Path, camera: Path, tmp_path: Path
) -> None:
    image, checkpoint = str(camera / "a" / "2.tif"), str(run / "best.safetensors")
    words = {
        "infer": [str(bundle), image],
        "eval": [checkpoint, str(camera)],
        "explain": [checkpoint, image, "--method", "occlusion", "-o", str(tmp_path / "maps")],
        "slide": [str(bundle), image, "--pixel-for-pixel", "--no-tissue", "-o", str(tmp_path / "results")],
        "live": [str(bundle), image, "--no-page"],
    }[name]
    said = "white is 65535 of 16-bit images, as asked, not 4095"
    # Warnings, which `cli.main` prints as notes.
    warned = {"explain": said, "slide": "read as dark, since white is 65535"}
    with pytest.warns(Note, match=warned[name]) if name in warned else nullcontext():
        result = CliRunner().invoke(mmdeploy, [name, *words, "--white-level", "65535"])
    if name != "explain":
        assert f"note: {said}" in result.stderr
    assert result.exit_code == 0, result.stderr
    result = CliRunner().invoke(mmdeploy, [name, *words, "--white-level", "254"])
    assert result.exit_code == 2
    assert "254" in result.stderr


def test_results_of_slides_with_another_white_are_not_mixed(
    bundle: Path, camera: Path, tmp_path: Path
) -> None:
    words = ["slide", str(bundle), str(camera / "a" / "2.tif"), "--pixel-for-pixel", "--no-tissue", "-o"]
    assert CliRunner().invoke(mmdeploy, [*words, str(tmp_path / "out")]).exit_code == 0
    result = CliRunner().invoke(mmdeploy, [*words, str(tmp_path / "out"), "--white-level", "65535"])
    assert result.exit_code == 1
    assert "white_level is 4095 there and 65535 here" in result.stderr


def test_an_export_may_be_told_and_an_exported_bundle_not(run: Path, bundle: Path, tmp_path: Path) -> None:
    words = ["export", str(run / "best.safetensors"), "-o", str(tmp_path / "out"), "--white-level", "1023"]
    assert CliRunner().invoke(mmdeploy, words).exit_code == 0
    with open_session(tmp_path / "out") as session:
        assert session.manifest is not None
        assert session.manifest.white_level == 1023
    words[1] = str(bundle)
    result = CliRunner().invoke(mmdeploy, [*words, "--target", "tensorrt-rtx", "--sm", "8.6"])
    assert result.exit_code == 2
    assert "settled --white-level: leave it out" in result.stderr


def test_older_artefacts_mean_all_16_bits() -> None:
    manifest = Manifest(("a", "b"), 32, (0.5,) * 3, (0.2,) * 3, {}, "fp32")
    older = json.loads(manifest.to_json())
    del older["white_level"]
    assert Manifest.from_json(json.dumps(older)).transform.white_level == FULL_WHITE


def test_it_can_be_said_and_is_not_changed_later(
    run: Path, camera: Path, small: Architecture, tmp_path: Path
) -> None:
    data = read_training_folder(camera)
    train(data, tmp_path / "run", small, QUICK, hardware=ONE_THREAD, white_level=16383)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["normalisation"]["white_level"] == 16383
    assert any("12 bits used" in note for note in config["notes"])
    with pytest.raises(InputError, match="white level 16383, not 4095"):
        train(data, tmp_path / "run", small, QUICK, hardware=ONE_THREAD, resume=True, white_level=4095)


def test_an_import_measures_and_notes_it_and_training_takes_it_over(
    camera: Path, small: Architecture, tmp_path: Path
) -> None:
    manifest = import_data_set("folder", camera, tmp_path / "data", ImportOptions(seed=2))
    assert manifest.white_level == 4095
    assert any("page 1 of 2" in note for note in manifest.notes)
    assert not any("read as dark" in note for note in manifest.notes)
    data = read_training_folder(tmp_path / "data")
    pixels = [read_image(sample.source, white_level=4095) for sample in data.split("train")]
    assert manifest.mean[0] == pytest.approx(
        np.mean([each.mean() for each in pixels], axis=0) / 255, abs=0.05
    )
    train(data, tmp_path / "run", small, replace(QUICK), hardware=ONE_THREAD)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["normalisation"] == {
        "mean": list(manifest.mean),
        "std": list(manifest.std),
        "white_level": 4095,
    }
    said = import_data_set("folder", camera, tmp_path / "said", ImportOptions(white_level=65535))
    assert said.white_level == FULL_WHITE
    assert any("20 images" in note and "12 bits used" in note for note in said.notes)


def test_evaluating_tells_what_reading_decided(run: Path, camera: Path) -> None:
    result = CliRunner().invoke(mmdeploy, ["eval", str(run / "best.safetensors"), str(camera)])
    assert result.exit_code == 0, result.output
    assert "note: 1 image, such as" in result.stderr
    assert "page 1 of 2" in result.stderr
    assert "read as dark" not in result.stderr


def test_explaining_tells_it_too(run: Path, camera: Path, tmp_path: Path) -> None:
    stack = str(camera / "b" / "5.tif")
    arguments = ["explain", str(run / "best.safetensors"), stack, "-o", str(tmp_path / "maps")]
    result = CliRunner().invoke(mmdeploy, arguments)
    assert result.exit_code == 0, result.output
    assert f"note: 1 image, such as {stack}: page 1 of 2" in result.stderr
