"""Imported data sets, read: what train and eval see of them, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msmamba.data.folders import match_labels, read_evaluation_folder, read_training_folder
from msmamba.data.imported import (
    INDEX,
    MANIFEST,
    IndexRow,
    check_contents,
    index_of,
    read_index,
    read_manifest,
)
from msmamba.data.published import ImportOptions, import_data_set
from msmamba.data.published.folder import list_folder
from msmamba.errors import DataError
from msmamba.files import sha256_of
from msmamba.model.training.loading import Images, channel_statistics


@pytest.fixture
def imported(cells: Path, tmp_path: Path) -> Path:
    """The flat folder of two classes, imported; its files are copies, so that tests may damage them."""
    import_data_set("folder", cells, tmp_path / "imported", ImportOptions(copy=True))
    return tmp_path / "imported"


def change_manifest(root: Path, **values: object) -> None:
    manifest = json.loads((root / MANIFEST).read_text())
    (root / MANIFEST).write_text(json.dumps({**manifest, **values}))


def change_index(root: Path, old: str, new: str) -> None:
    """Changes the index and its checksum, as somebody who forges a data set would."""
    text = (root / INDEX).read_text()
    assert old in text
    (root / INDEX).write_text(text.replace(old, new, 1))
    change_manifest(root, files={INDEX: sha256_of(root / INDEX)})


def test_training_takes_the_split_the_statistics_and_the_contents_from_the_import(imported: Path) -> None:
    data = read_training_folder(imported)
    assert data.labels == ("round", "square")
    assert data.counts() == {
        "train": {"round": 8, "square": 8},
        "val": {"round": 2, "square": 2},
        "test": {"round": 2, "square": 2},
    }
    assert data == read_training_folder(imported, seed=7)  # the import's seed counts
    assert data.digest == sha256_of(imported / INDEX)
    # All images are 40x40, so nothing is blurred: the statistics are those that training would measure.
    measured = channel_statistics(Images(data.split("train")), 40)
    assert data.statistics == (pytest.approx(measured[0], abs=1e-9), pytest.approx(measured[1], abs=1e-9))


def test_an_import_among_the_images_that_it_was_made_of_is_no_class(
    cells: Path, imported: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(cells, tmp_path / "cells"))
    before = read_training_folder(data)
    for inside in (data / "imported", data / "round" / "imported"):  # moved there: an import refuses to be
        shutil.copytree(imported, inside)
    (data / "round" / "theirs").mkdir()
    (data / "round" / "theirs" / MANIFEST).write_text('{"channel_names": {"0": "RGB"}, "kind": "other"}')
    after = read_training_folder(data)
    assert (after.labels, after.counts()) == (before.labels, before.counts())
    assert "passed over: data sets that mmdeploy has imported, 2 (imported, imported)" in after.notes
    assert read_evaluation_folder(data).labels == before.labels
    listing = list_folder(data)
    assert sorted({image.label for image in listing.images}) == [*before.labels]
    assert len(listing.images) == sum(map(len, before.splits.values()))

    (tmp_path / "sets").mkdir()
    (data / "imported").rename(tmp_path / "sets" / "cells")
    with pytest.raises(DataError, match=r"no class folders \(passed over: data sets that .*, 1 \(cells\)\)"):
        read_training_folder(tmp_path / "sets")
    assert read_training_folder(tmp_path / "sets" / "cells").labels == before.labels


def test_evaluation_takes_one_split_and_matches_classes(imported: Path) -> None:
    data = read_evaluation_folder(imported)
    assert list(data.splits) == ["test"]
    assert list(read_evaluation_folder(imported, "val").splits) == ["val"]
    matched = match_labels(data, ("other", "square", "round"))
    assert [sample.label for sample in matched.split("test")] == [2, 2, 1, 1]
    assert [sample.source for sample in matched.split("test")] == [
        sample.source for sample in data.split("test")
    ]
    with pytest.raises(DataError, match="no images in a 'train' split"):
        data.split("train")


def test_samples_are_a_sequence(imported: Path) -> None:
    samples = read_training_folder(imported).split("train")
    assert samples[-1] == samples[len(samples) - 1]
    assert samples[2:4] == [samples[2], samples[3]]
    assert [sample.label for sample in samples] == [0] * 8 + [1] * 8
    with pytest.raises(IndexError, match="sample 16 of 16"):
        samples[16]


def test_the_groups_were_settled_by_the_import(imported: Path) -> None:
    import re

    with pytest.raises(DataError, match="whose groups were settled by the import"):
        read_training_folder(imported, group_by=re.compile("x"))


def test_a_changed_file_is_found_and_named(imported: Path) -> None:
    assert check_contents(imported)[1] == {}
    rows = list(read_index(imported))
    (imported / rows[0].file).write_bytes(b"something else")
    (imported / rows[1].file).unlink()
    assert check_contents(imported)[1] == {
        rows[0].file: "has changed",
        rows[1].file: "no such file or directory",
    }


REFUSED = {
    "newer": (lambda root: change_manifest(root, format=99), "has format 99, this version reads up to 1"),
    "no-json": (
        lambda root: (root / MANIFEST).write_text("{"),
        "is not the manifest of an imported data set",
    ),
    "a-list": (
        lambda root: (root / MANIFEST).write_text("[]"),
        "is not the manifest of an imported data set",
    ),
    "no-labels": (lambda root: change_manifest(root, labels=[]), "is not the manifest"),
    "a-std-of-zero": (lambda root: change_manifest(root, std=[0.1, 0.0, 0.1]), "is not the manifest"),
    "no-index": (lambda root: (root / INDEX).unlink(), "index.csv: cannot be read"),
    "changed-index": (
        lambda root: (root / INDEX).write_text("split\n"),
        "is not the one that was written by the import",
    ),
    "out-of-the-folder": (
        lambda root: change_index(root, "test/round/", "test/../../"),
        "leads out of the data set",
    ),
    "absolute": (lambda root: change_index(root, ",test/round/", ",/etc/"), "leads out of the data set"),
    "strange-split": (lambda root: change_index(root, "test,", "exam,"), "is of no split or class"),
    "strange-class": (lambda root: change_index(root, ",round,", ",oval,"), "is of no split or class"),
    "no-number": (
        lambda root: change_index(root, ",40,40,", ",wide,40,"),
        r"index.csv: line \d+ makes no sense",
    ),
}


@pytest.mark.parametrize(("damage", "message"), REFUSED.values(), ids=REFUSED)
def test_a_damaged_data_set_is_refused(imported: Path, damage: object, message: str) -> None:
    damage(imported)  # type: ignore[operator]
    with pytest.raises(DataError, match=message) as caught:
        read_training_folder(imported)
    assert "\n" not in str(caught.value)


def test_a_folder_that_was_not_imported_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no dataset\.json: expected .* 'mmdeploy data import'"):
        check_contents(tmp_path)


@pytest.mark.parametrize("name", ["..\\..\\outside", "C:/outside", "C:outside", "\\outside", "/outside"])
def test_on_windows_backslashes_and_drives_lead_out_too(
    imported: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msmamba.data.imported.PurePath", PureWindowsPath)
    check_contents(imported)
    change_manifest(imported, files={**read_manifest(imported).files, name: "0" * 64})
    with pytest.raises(DataError, match="leads out of the data set"):
        check_contents(imported)


def test_only_files_of_the_data_set_are_checked(imported: Path) -> None:
    change_manifest(imported, files={**read_manifest(imported).files, "../../outside": "0" * 64})
    with pytest.raises(DataError, match=r"'\.\./\.\./outside' leads out of the data set"):
        check_contents(imported)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(name=NAMES, label=NAMES, group=NAMES)
def test_any_name_survives_the_index(
    tmp_path_factory: pytest.TempPathFactory, name: str, label: str, group: str
) -> None:
    root = tmp_path_factory.mktemp("index")
    row = IndexRow("train", label, group, f"train/x/{name.replace('..', '')}.png", 1, "0", 2, 3, name)
    odd = IndexRow("val", label, "", 'val/\udcff, "quoted".png', 1, "0", 2, 3, "")  # a name that is no UTF-8
    (root / INDEX).write_bytes(index_of([row, odd]))
    assert list(read_index(root)) == [row, odd]


def test_a_quarter_of_a_million_samples_take_few_megabytes() -> None:
    import tracemalloc

    from msmamba.data.samples import FileSamples, StackedSamples

    count = 236_386
    tracemalloc.start()
    classes = np.arange(count) % 8
    files = FileSamples(Path("/data"), (f"train/class/{number:06}.png" for number in range(count)), classes)
    stacked = StackedSamples([Path("/data/train.npy")], np.zeros(count), np.arange(count), classes)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 20e6
    assert files[count - 1].source == Path("/data/train/class/236385.png")
    assert str(stacked[5].source) == "/data/train.npy[5]"
