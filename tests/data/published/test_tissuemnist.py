"""TissueMNIST: one npz file becomes stacks that are mapped, and nothing in it is trusted."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from published_layouts import TISSUES, tissue_arrays

from msmamba.cli import mmdeploy
from msmamba.data.folders import read_evaluation_folder, read_training_folder
from msmamba.data.imported import MANIFEST, STACK_INDEX, STACK_ROW, check_contents
from msmamba.data.published import ImportOptions, import_data_set
from msmamba.data.published import tissuemnist as module
from msmamba.errors import DataError, ImageError, TargetError
from msmamba.files import resumable_folder, sha256_of
from msmamba.images import StackedImage, read_image
from msmamba.model.training.loading import Images, channel_statistics

Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture
def arrays() -> Arrays:
    return tissue_arrays()


def write(folder: Path, arrays: Arrays, name: str = "tissuemnist.npz", packed: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    (np.savez_compressed if packed else np.savez)(folder / name, **arrays)
    return folder / name


@pytest.mark.parametrize("packed", [True, False], ids=["deflated", "stored"])
def test_the_official_split_is_the_files_own(tmp_path: Path, arrays: Arrays, packed: bool) -> None:
    source = write(tmp_path / "source", arrays, packed=packed).parent
    manifest = import_data_set("tissuemnist", source, tmp_path / "out", ImportOptions(official_split=True))
    data = read_training_folder(tmp_path / "out")
    for split in TISSUES:
        samples = data.split(split)
        assert [sample.label for sample in samples] == arrays[f"{split}_labels"].ravel().tolist()
        for sample, pixels in zip(samples, arrays[f"{split}_images"], strict=True):
            np.testing.assert_array_equal(read_image(sample.source), np.repeat(pixels[..., None], 3, axis=2))
    assert data.labels[0] == "Collecting Duct, Connecting Tubule"
    assert manifest.split == "as published"
    assert manifest.differences == (
        "train: 280 images, published 165,466",
        "val: 40 images, published 23,640",
        "test: 80 images, published 47,280",
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("dataset.json", "index.npy", "train.npy", "val.npy", "test.npy")
    }
    assert check_contents(tmp_path / "out")[1] == {}


def test_without_it_all_images_are_dealt(tmp_path: Path, arrays: Arrays) -> None:
    source = write(tmp_path / "source", arrays)
    manifest = import_data_set("tissuemnist", source, tmp_path / "out")
    assert [sum(counts.values()) for counts in manifest.counts.values()] == [240, 80, 80]
    assert all(set(counts.values()) <= {10, 30} for counts in manifest.counts.values())
    data = read_training_folder(tmp_path / "out")
    everything = [sample.source for split in TISSUES for sample in data.split(split)]
    assert len({*everything}) == 400
    measured = channel_statistics(Images(data.split("train")), 28)
    assert data.statistics == (pytest.approx(measured[0], abs=1e-9), pytest.approx(measured[1], abs=1e-9))


def test_copies_of_an_image_share_a_split(tmp_path: Path, arrays: Arrays) -> None:
    arrays["test_images"][:40] = arrays["train_images"][:40]
    source = write(tmp_path / "source", arrays)
    manifest = import_data_set("tissuemnist", source, tmp_path / "dealt", ImportOptions(seed=2))
    data = read_training_folder(tmp_path / "dealt")
    places: dict[bytes, set[str]] = {}
    for split in TISSUES:
        for sample in data.split(split):
            places.setdefault(read_image(sample.source).tobytes(), set()).add(split)
    assert all(len(splits) == 1 for splits in places.values())
    assert manifest.notes == ("40 images occur more than once: train_images[0] and test_images[0]",)
    manifest = import_data_set("tissuemnist", source, tmp_path / "kept", ImportOptions(official_split=True))
    assert manifest.notes[-1] == (
        "40 images, by content, are in more than one split: figures on this split are too high"
    )


def test_images_are_called_by_their_place_and_copies_count_once_for_intervals(
    tmp_path: Path, arrays: Arrays
) -> None:
    arrays["test_images"][40:] = arrays["test_images"][:40]
    options = ImportOptions(official_split=True)
    import_data_set("tissuemnist", write(tmp_path / "source", arrays), tmp_path / "out", options)
    data = read_evaluation_folder(tmp_path / "out")
    assert data.names("test") == tuple(f"test.npy[{place}]" for place in range(80))
    assert data.drawn_together("test") == data.names("test")[:40] * 2
    assert read_evaluation_folder(tmp_path / "out", "val").drawn_together("val") is None


def test_images_in_colour_are_taken_too(tmp_path: Path) -> None:
    arrays = tissue_arrays(16)
    for split in TISSUES:
        arrays[f"{split}_images"] = np.stack([arrays[f"{split}_images"]] * 3, axis=-1)
        arrays[f"{split}_images"][..., 0] //= 2
        arrays[f"{split}_labels"] = arrays[f"{split}_labels"].ravel().astype(np.int64)
    manifest = import_data_set("tissuemnist", write(tmp_path / "source", arrays), tmp_path / "out")
    sample = read_evaluation_folder(tmp_path / "out").split("test")[0]
    assert read_image(sample.source).shape == (28, 28, 3)
    assert manifest.mean[0] == pytest.approx(manifest.mean[1] / 2, rel=0.02)


def damaged(arrays: Arrays, **changes: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        kept = {**arrays, **changes}
        return write(folder, {name: array for name, array in kept.items() if array is not None})

    return make


def cut_short(folder: Path) -> Path:
    path = write(folder, tissue_arrays())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def flipped(folder: Path) -> Path:
    """A bit of the pixels is wrong, which the archive's checksum tells."""
    path = write(folder, tissue_arrays(), packed=False)
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    return path


def with_header(old: bytes, new: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = write(folder, tissue_arrays(), packed=False)
        content = path.read_bytes()
        assert old in content
        assert len(old) == len(new)
        path.write_bytes(content.replace(old, new, 1))
        return path

    return make


def two_files(folder: Path) -> Path:
    write(folder, tissue_arrays(), "tissuemnist_64.npz")
    return write(folder, tissue_arrays()).parent


def no_archive(folder: Path) -> Path:
    folder.mkdir()
    (folder / "tissuemnist.npz").write_bytes(b"PK but not really")
    return folder


SMALL = tissue_arrays(8)
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "absent": (lambda folder: folder / "x.npz", "does not exist; expected tissuemnist.npz"),
    "no-file": (
        lambda folder: write(folder, SMALL, "other.npz").parent,
        "holds none; expected tissuemnist.npz",
    ),
    "other-classes": (
        lambda folder: write(folder, SMALL, "bloodmnist_64.npz"),
        "another of MedMNIST's data sets by its name, whose numbers stand for other classes",
    ),
    "two-files": (two_files, r"holds tissuemnist\.npz, tissuemnist_64\.npz: give the one to use"),
    "no-archive": (no_archive, "cannot be unpacked: File is not a zip file: download it again"),
    "cut-short": (cut_short, "cannot be unpacked"),
    "wrong-bit": (flipped, "cannot be unpacked: Bad CRC-32"),
    "no-header": (with_header(b"(280, 28, 28), }", b"(280, 28, 28, , "), "train_images.npy is no array"),
    "lying-header": (
        with_header(b"(280, 28", b"(999, 28"),
        "is said to hold 999x28x28 uint8 and has .* bytes: it is damaged",
    ),
    "no-key": (damaged(SMALL, val_labels=None), r"has no 'val_labels', but .*; expected {train,val,test}_"),
    "objects": (
        damaged(SMALL, val_labels=np.array([{"a": 1}] * 8, dtype=object)),
        "val_labels.npy is said to hold 8 object|holds 8 object",
    ),
    "floats": (
        damaged(SMALL, test_images=np.zeros((16, 28, 28))),
        r"holds 16x28x28 float64; expected \(N, S, S\)",
    ),
    "flat": (damaged(SMALL, test_images=np.zeros((16, 784), np.uint8)), r"holds 16x784 uint8; expected"),
    "oblong": (
        damaged(SMALL, test_images=np.zeros((16, 28, 29), np.uint8)),
        r"holds 16x28x29 uint8; expected",
    ),
    "sizes": (damaged(SMALL, test_images=np.zeros((16, 64, 64), np.uint8)), "holds images of several sizes"),
    "too-few-labels": (
        damaged(SMALL, test_labels=np.zeros(15, np.uint8)),
        "expected one number for each of the 16",
    ),
    "strange-label": (
        damaged(SMALL, test_labels=np.full((16, 1), 8)),
        "has labels of 8 to 8; expected 0 to 7",
    ),
    "fortran": (
        damaged(SMALL, test_images=np.asfortranarray(SMALL["test_images"])),
        "it is damaged, or not what was published",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_something_else_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        import_data_set("tissuemnist", make(tmp_path / "source"), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out.partial/*/*.json"))


def test_a_part_is_refused_when_strict_before_anything_is_unpacked(tmp_path: Path, arrays: Arrays) -> None:
    with pytest.raises(DataError, match="train: 280 images, published 165,466; val: 40 images"):
        import_data_set(
            "tissuemnist", write(tmp_path / "source", arrays), tmp_path / "out", ImportOptions(strict=True)
        )
    assert list(tmp_path.glob(".*")) == []


def test_names_in_the_archive_are_never_paths(tmp_path: Path, arrays: Arrays) -> None:
    path = write(tmp_path / "source", arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../escaped.npy", b"x")
        archive.writestr("/absolute.npy", b"x")
    import_data_set("tissuemnist", path, tmp_path / "out")
    assert not list(tmp_path.rglob("escaped.npy"))


def test_an_archive_that_promises_too_much_is_not_begun(
    tmp_path: Path, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_IMAGES", 279)
    with pytest.raises(DataError, match="holds 280x28x28 uint8; expected at most 279 images of 2048 pixels"):
        import_data_set("tissuemnist", write(tmp_path / "source", arrays), tmp_path / "out")
    assert list(tmp_path.glob(".*")) == []


def test_too_little_room_is_told_before_anything_is_written(
    tmp_path: Path, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        TargetError, match=r"has 0\.0 GB left, the unpacked images take 0\.0 GB: free some space"
    ):
        import_data_set("tissuemnist", write(tmp_path / "source", arrays), tmp_path / "out")


def test_an_interrupted_import_keeps_what_is_whole(tmp_path: Path, arrays: Arrays) -> None:
    source = write(tmp_path / "source", arrays)

    def stop(done: int, images: int) -> None:
        if done > 280:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_data_set("tissuemnist", source, tmp_path / "out", advance=stop)
    partial = tmp_path / ".out.partial" / "content"
    assert {path.name for path in partial.iterdir()} == {"train.npy", module.DONE}
    first = (partial / "train.npy").stat().st_ino
    import_data_set("tissuemnist", source, tmp_path / "out")
    assert (tmp_path / "out" / "train.npy").stat().st_ino == first
    assert not partial.exists()


def test_what_is_left_of_another_file_does_not_count(tmp_path: Path, arrays: Arrays) -> None:
    def import_another() -> None:
        with resumable_folder(tmp_path / "out") as partial:
            (partial / "train.npy").write_bytes(b"of another file")
            done = {"source": ["x", 1, 2], "done": {"train.npy": "0"}}
            (partial / module.DONE).write_text(json.dumps(done))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_another()
    import_data_set("tissuemnist", write(tmp_path / "source", arrays), tmp_path / "out")
    assert check_contents(tmp_path / "out")[1] == {}


def test_a_damaged_stack_or_index_is_told(tmp_path: Path, arrays: Arrays) -> None:
    out = tmp_path / "out"
    import_data_set("tissuemnist", write(tmp_path / "source", arrays), out)
    source = read_training_folder(out).split("train")[0].source
    assert isinstance(source, StackedImage)
    with pytest.raises(ImageError, match=r"train\.npy\[280\]' does not exist: the stack holds 280 images"):
        read_image(StackedImage(source.stack, 280))
    (out / "val.npy").write_bytes(b"something else")
    assert check_contents(out)[1] == {"val.npy": "has changed"}
    with pytest.raises(ImageError, match=r"val\.npy' is no stack of images: it does not begin as one"):
        read_image(StackedImage(out / "val.npy", 0))
    with pytest.raises(ImageError, match=r"absent\.npy' does not exist"):
        read_image(StackedImage(out / "absent.npy", 0))
    (out / STACK_INDEX).write_bytes(b"something else")
    with pytest.raises(DataError, match="is not the one that was written by the import"):
        read_training_folder(out)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        *((name, value, "names a stack, class or split") for name, value in (("stack", 3), ("class", 8))),
        ("split", 3, "names a stack, class or split"),
        (None, "<u4", "holds uint32, expected"),
        (None, STACK_ROW, r"holds .* expected"),
    ],
    ids=["stack", "class", "split", "kind", "rows-of-rows"],
)
def test_an_index_of_something_else_is_refused_whatever_its_checksum(
    tmp_path: Path, arrays: Arrays, field: str | None, value: Any, said: str
) -> None:
    out = tmp_path / "out"
    import_data_set("tissuemnist", write(tmp_path / "source", arrays), out)
    index = np.load(out / STACK_INDEX)
    if field is None:
        index = np.zeros((2, 2), value) if value is STACK_ROW else np.zeros(len(index), value)
    else:
        index[field][-1] = value
    with (out / STACK_INDEX).open("wb") as file:
        np.lib.format.write_array(file, index, allow_pickle=False)
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["files"][STACK_INDEX] = sha256_of(out / STACK_INDEX)
    (out / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=said):
        read_training_folder(out)


def test_the_command_imports_and_checks(tmp_path: Path, arrays: Arrays) -> None:
    source, out = write(tmp_path / "source", arrays), tmp_path / "out"
    run = CliRunner().invoke(mmdeploy, ["data", "import", "tissuemnist", str(source), "-o", str(out)])
    assert run.exit_code == 0
    assert "Collecting Duct, Connecting Tubule" in run.stdout
    assert "warning: differs from what was published: train: 280 images, published 165,466" in run.stderr
    assert CliRunner().invoke(mmdeploy, ["data", "check", str(out)]).stdout == run.stdout
