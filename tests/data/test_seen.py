"""Which images a training saw: known again by content, and kept in little room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msmamba.data.seen import SEEN, Overlap, Seen, checksums_of
from msmamba.errors import ImageError
from msmamba.images import StackedImage


@pytest.fixture
def images(micrographs: Path) -> list[Path]:
    return sorted(micrographs.glob("*.png"))


def test_an_image_is_known_by_its_content_whatever_its_name(images: list[Path], tmp_path: Path) -> None:
    renamed, saved_anew = tmp_path / "renamed.tif", tmp_path / "cell_01.png"
    renamed.write_bytes(images[0].read_bytes())
    Image.open(images[1]).save(saved_anew, compress_level=0)
    seen = Seen.of(images[:4], images[4:6])
    overlap = Overlap.of([saved_anew, renamed, images[5], images[7]], seen)
    assert overlap == Overlap(trained_on=(1,), chose_the_epoch=(2,))


def test_what_was_trained_on_too_did_not_only_choose(images: list[Path]) -> None:
    overlap = Overlap.of(images, Seen.of(images[:2], images[1:3]))
    assert overlap == Overlap(trained_on=(0, 1), chose_the_epoch=(2,))


def test_an_image_of_a_stack_is_known_by_its_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8)
    np.save(tmp_path / "one.npy", pixels)
    np.save(tmp_path / "other.npy", pixels[::-1])
    seen = Seen.of((StackedImage(tmp_path / "one.npy", index) for index in (0, 1)), [])
    found = [StackedImage(tmp_path / "other.npy", index) for index in range(5)]
    assert Overlap.of(found, seen).trained_on == (3, 4)


@pytest.mark.parametrize("name", ["gone.png", "broken.npy", "folder"])
def test_what_cannot_be_read_is_named_not_left_out(name: str, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "folder").mkdir()
    path = tmp_path / name
    source = StackedImage(path, 0) if path.suffix == ".npy" else path
    with pytest.raises(ImageError, match=f"{name}.*' (cannot be read|is no stack of images): "):
        Seen.of([images[0], source], [])


def test_it_comes_back_from_its_text(images: list[Path]) -> None:
    seen = Seen.of([*images[:4], images[0]], images[4:6])
    again = Seen.from_dict(seen.to_dict())
    assert again.trained_on.tolist() == seen.trained_on.tolist() == sorted(set(checksums_of(images[:4])))
    assert again.chose_the_epoch.tolist() == seen.chose_the_epoch.tolist()
    assert SEEN.holds(seen.to_dict())


def test_an_image_takes_eleven_bytes_as_text() -> None:
    many = np.arange(236_386, dtype=np.uint64)
    assert len(Seen(many, many[:0]).to_dict()["train"]) < 11 * len(many)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([], id="list"),
        pytest.param({"train": ""}, id="field-missing"),
        pytest.param({"train": "no base64!", "val": ""}, id="no-base64"),
        pytest.param({"train": "QUJD", "val": ""}, id="cut"),
        pytest.param({"train": "ü", "val": ""}, id="no-ascii"),
        pytest.param({"train": [1, 2], "val": ""}, id="numbers"),
    ],
)
def test_what_is_something_else_is_seen(values: object) -> None:
    assert not SEEN.holds(values)


def test_it_is_told_how_many_and_which() -> None:
    names = [f"{number}.png" for number in range(9)]
    assert Overlap((), (1,)).trained_on_note(names) == ""
    assert Overlap((2,), (1,)).chosen_by_note(names) == "1 of these 9 images chose the epoch (1.png)"
    assert Overlap((2,), ()).chosen_by_note(names) == ""
    told = Overlap(tuple(range(7)), ()).trained_on_note(names)
    assert told == "training saw 7 of these 9 images (0.png, 1.png, 2.png, 3.png, 4.png, … 2 more)"
