"""Which images are calibrated on: balanced, seeded, looked at, and known by their content."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
from PIL import Image

from msmamba.calib import CalibrationSet, choose
from msmamba.data.folders import below
from msmamba.errors import DataError, ImageError
from msmamba.files import sha256_of
from msmamba.images import StackedImage

LABELS = ("basophil", "eosinophil", "lymphocyte")


def samples(folder: Path) -> list[tuple[Path, str]]:
    return [(path, path.parent.name) for path in sorted(folder.glob("*/*.png"))]


def chosen(folder: Path, count: int, seed: int = 0) -> CalibrationSet:
    return choose(folder, samples(folder), LABELS, count=count, seed=seed)


@pytest.fixture
def cells(labelled: Path, tmp_path: Path) -> Path:
    """Six images of each class, to be changed."""
    return Path(shutil.copytree(labelled / "train", tmp_path / "cells"))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        pytest.param(1, {"basophil": 1}, id="one"),
        pytest.param(7, {"basophil": 3, "eosinophil": 2, "lymphocyte": 2}, id="seven"),
        pytest.param(18, dict.fromkeys(LABELS, 6), id="all"),
        pytest.param(500, dict.fromkeys(LABELS, 6), id="more-than-there-are"),
    ],
)
def test_classes_have_as_many_images_as_one_another(
    cells: Path, count: int, expected: dict[str, int]
) -> None:
    found = chosen(cells, count)
    assert Counter(image.label for image in found.images) == expected
    assert found.available == 18
    assert all(image.name == f"{image.label}/{image.source.name}" for image in found.images)


def test_a_small_class_gives_all_it_has(cells: Path) -> None:
    for name in "12345":
        (cells / "eosinophil" / f"{name}.png").unlink()
    by_class = Counter(image.label for image in chosen(cells, 9).images)
    assert by_class == {"basophil": 4, "eosinophil": 1, "lymphocyte": 4}


def test_the_seed_decides_and_fewer_images_are_the_first_of_more(cells: Path) -> None:
    assert chosen(cells, 12).images[:5] == chosen(cells, 5).images
    assert chosen(cells, 12, seed=1).digest != chosen(cells, 12).digest


def test_the_digest_follows_content_and_not_place(cells: Path, tmp_path: Path) -> None:
    before = chosen(cells, 6)
    moved = Path(shutil.move(cells, tmp_path / "elsewhere"))
    assert chosen(moved, 6).digest == before.digest
    changed = moved / before.images[0].name
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(changed)
    assert chosen(moved, 6).digest != before.digest


def test_images_are_named_below_the_folder_as_on_every_system(cells: Path) -> None:
    names = {image.name for image in chosen(cells, 18).images}
    assert names == {path.relative_to(cells).as_posix() for path in cells.rglob("*.png")}
    windows = PureWindowsPath(r"C:\cells")
    assert below(windows, windows / "basophil" / "1.png") == "basophil/1.png"  # type: ignore[arg-type]


def test_images_of_one_colour_are_named(cells: Path) -> None:
    for name in ("0", "1", "2", "3"):
        Image.new("RGB", (40, 40), "pink").save(cells / "basophil" / f"{name}.png")
    message = r"4 of 18 calibration images show a single colour: .*\.png, .*\.png, .*\.png, .*"
    with pytest.raises(DataError, match=message):
        chosen(cells, 18)


def test_a_class_without_images_is_named(cells: Path) -> None:
    shutil.rmtree(cells / "lymphocyte")
    with pytest.raises(DataError, match="no images of 'lymphocyte'"):
        chosen(cells, 6)


def test_an_image_that_cannot_be_read_is_named(cells: Path) -> None:
    (cells / "basophil" / "3.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(ImageError, match=r"3\.png"):
        chosen(cells, 18)


def test_no_images_are_refused(cells: Path) -> None:
    with pytest.raises(DataError, match="0 calibration images"):
        chosen(cells, 0)


def test_images_of_a_stack_are_known_by_their_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    digests = []
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, pixels)
        stacked = [(StackedImage(tmp_path / name, i), LABELS[i % 3]) for i in range(6)]
        found = choose(tmp_path, stacked, LABELS, count=6)
        assert found.images[0].name.startswith(f"{name}[")
        digests.append(found.digest)
    assert digests[0] == digests[1]
    assert len({image.sha256 for image in found.images}) == 6


def test_images_of_files_are_known_by_what_the_files_hold(cells: Path) -> None:
    assert all(image.sha256 == sha256_of(cells / image.name) for image in chosen(cells, 6).images)
