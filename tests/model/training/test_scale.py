"""Microns a pixel: said at the import or at training, kept with the model, and found in the artefact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from msmamba.data.coverage import Coverage, Spread
from msmamba.data.folders import read_training_folder
from msmamba.data.imported import DataManifest, read_manifest
from msmamba.data.published import ImportOptions, import_data_set
from msmamba.errors import ArtefactError, DataError, InputError
from msmamba.export.bundle import ExportOptions, _manifest
from msmamba.model.networks.checkpoint import load_checkpoint
from msmamba.model.networks.description import problems_of
from msmamba.model.networks.microscopic_mamba import Architecture
from msmamba.model.training.loop import Hardware, train
from msmamba.model.training.recipe import Recipe
from msmamba.runtime.manifest import Manifest

pytestmark = pytest.mark.usefixtures("threads_as_before")

QUICK = Recipe(epochs=1, batch_size=4, warmup_epochs=0, image_size=32)
ONE_THREAD = Hardware(threads=1)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of ten images of 36 x 49 pixels, half a micron each, and a quarter in one of them."""
    root = tmp_path_factory.mktemp("cells") / "cells"
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (36, 49, 3)).astype(np.uint8)
        path = root / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        dots = 40_000 if number == 0 else 20_000
        tifffile.imwrite(
            path,
            pixels,
            photometric="rgb",
            metadata=None,
            resolution=(dots, dots),
            resolutionunit="CENTIMETER",
        )
    return root


def test_training_learns_it_and_the_artefact_knows_it(
    cells: Path, small: Architecture, tmp_path: Path
) -> None:
    train(read_training_folder(cells), tmp_path / "run", small, QUICK, hardware=ONE_THREAD, mpp=0.5)
    loaded = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert loaded.preprocessing is not None
    assert loaded.preprocessing.covers == Coverage(Spread(42, 42, 42), Spread(21, 21, 21))
    manifest = _manifest(loaded, ExportOptions(), "the checkpoint")
    again = Manifest.from_metadata(manifest.to_metadata())
    assert again.coverage == loaded.preprocessing.covers
    assert again.mpp == pytest.approx(21 / 32)
    # A larger input sees the same field, so its pixels are smaller.
    assert _manifest(loaded, ExportOptions(image_size=64), "the checkpoint").mpp == pytest.approx(21 / 64)


def test_a_run_that_was_begun_without_it_learns_it_when_it_goes_on(
    cells: Path, small: Architecture, tmp_path: Path
) -> None:
    data, run = read_training_folder(cells), tmp_path / "run"
    train(data, run, small, QUICK, hardware=ONE_THREAD)
    config = json.loads((run / "config.json").read_text())
    assert config["covers"] == {"pixels": [42, 42, 42], "microns": None}
    del config["covers"]  # as an earlier version wrote it
    (run / "config.json").write_text(json.dumps(config))
    train(data, run, small, QUICK, hardware=ONE_THREAD, resume=True, mpp=0.5)
    assert json.loads((run / "config.json").read_text())["covers"]["microns"] == [21, 21, 21]
    preprocessing = load_checkpoint(run / "best.safetensors").preprocessing
    assert preprocessing is not None
    assert preprocessing.covers is not None
    assert preprocessing.covers.microns == (21, 21, 21)
    with pytest.raises(InputError, match=r"was begun with .* 21 microns, not with 0.25"):
        train(data, run, small, QUICK, hardware=ONE_THREAD, resume=True, mpp=0.25)


def test_an_import_takes_it_from_the_files_and_training_takes_it_over(
    cells: Path, small: Architecture, tmp_path: Path
) -> None:
    manifest = import_data_set("folder", cells, tmp_path / "data", ImportOptions(mpp="files", seed=1))
    assert manifest.covers is not None
    assert manifest.covers.microns in (Spread(10.5, 21, 21), Spread(21, 21, 21))  # by the split
    assert "scale     images of 42 pixels" in manifest.to_text()
    data = read_training_folder(tmp_path / "data")
    assert data.covers == manifest.covers
    train(data, tmp_path / "run", small, QUICK, hardware=ONE_THREAD)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert Coverage.from_dict(config["covers"]) == manifest.covers
    assert config["notes"].count(*manifest.covers.notes or [""]) == len(manifest.covers.notes)


def test_a_number_stands_for_all_images_and_an_older_import_is_measured_by_its_index(
    cells: Path, tmp_path: Path
) -> None:
    import_data_set("folder", cells, tmp_path / "data", ImportOptions(mpp=0.25))
    manifest = read_manifest(tmp_path / "data")
    assert manifest.covers == Coverage(Spread(42, 42, 42), Spread(10.5, 10.5, 10.5))
    older = json.loads(manifest.to_json())
    del older["covers"]
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(older))
    assert read_training_folder(tmp_path / "data").covers == Coverage(Spread(42, 42, 42))


def test_files_that_do_not_say_it_are_named(cells: Path, tmp_path: Path) -> None:
    source = tmp_path / "cells"
    for path in cells.rglob("*.tif"):
        target = source / path.relative_to(cells)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    for path in source.rglob("*.tif"):
        tifffile.imwrite(path, tifffile.imread(path), photometric="rgb", metadata=None)
    with pytest.raises(DataError, match=r"do not say their microns a pixel: .*\.tif .*--mpp"):
        import_data_set("folder", source, tmp_path / "data", ImportOptions(mpp="files"))
    with pytest.raises(InputError, match="expected"):
        import_data_set("folder", source, tmp_path / "data", ImportOptions(mpp=0.0))


def test_artefacts_of_earlier_versions_do_not_say_it() -> None:
    manifest = Manifest(("a", "b"), 32, (0.5,) * 3, (0.2,) * 3, {}, "fp32")
    older = json.loads(manifest.to_json())
    del older["covers"]
    again = Manifest.from_json(json.dumps(older))
    assert (again.coverage, again.mpp) == (None, None)


def test_what_is_no_coverage_is_named(cells: Path, tmp_path: Path) -> None:
    wrong = {"pixels": [1, 2]}
    with pytest.raises(ArtefactError, match=r"'covers' is .* expected nothing, or the least"):
        Manifest(("a", "b"), 32, (0.5,) * 3, (0.2,) * 3, {}, "fp32", covers=wrong)
    assert any("'covers'" in each for each in problems_of({"covers": wrong}))
    values = json.loads(import_data_set("folder", cells, tmp_path / "data").to_json())
    with pytest.raises(DataError, match=r"covers"):
        DataManifest.from_json(json.dumps({**values, "covers": wrong}), "dataset.json")
