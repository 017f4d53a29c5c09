"""Folders of labelled images: what is read, how it is split, what is refused."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msmamba.data import copies
from msmamba.data.folders import (
    SPLITS,
    ImageFolder,
    match_labels,
    read_evaluation_folder,
    read_training_folder,
)
from msmamba.data.published.folder import list_folder
from msmamba.errors import DataError
from msmamba.files import open_file

EACH = ".+/.+"
PATIENT = re.compile(r"^(P\d+)_")


def make(root: Path, *names: str) -> Path:
    """Empty files: reading a folder opens no image."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def numbered(folder: str, count: int, suffix: str = ".png") -> list[str]:
    return [f"{folder}/{number:03}{suffix}" for number in range(count)]


def names_of(data: ImageFolder, split: str) -> list[str]:
    return [sample.source.relative_to(data.root).as_posix() for sample in data.splits[split]]


def test_images_have_names_and_groups(tmp_path: Path) -> None:
    images = ("P1_a.png", "P1_b.png", "P2_a.png", "P3_a.png", "P4_a.png", "P5_a.png")
    make(tmp_path, *(f"{label}/{name}" for label in ("x", "y") for name in images))
    data = read_training_folder(tmp_path, group_by=PATIENT)
    for split in ("train", "val", "test"):
        names, groups = data.names(split), data.groups_of(split)
        assert groups is not None
        assert [name[2:4] for name in names] == list(groups)
        assert {name[0] for name in names} == {"x", "y"}
    assert read_training_folder(tmp_path).groups_of("val") is None


def test_the_authors_layout_is_read_in_order_with_sorted_classes(tmp_path: Path) -> None:
    make(
        tmp_path,
        *(name for split in SPLITS for label in ("b", "a") for name in numbered(f"{split}/{label}", 2)),
    )
    data = read_training_folder(tmp_path)
    assert data.labels == ("a", "b")
    assert names_of(data, "val") == ["val/a/000.png", "val/a/001.png", "val/b/000.png", "val/b/001.png"]
    assert [sample.label for sample in data.splits["val"]] == [0, 0, 1, 1]
    assert data.counts()["test"] == {"a": 2, "b": 2}


def test_hidden_files_thumbs_and_non_images_are_passed_over_and_told(tmp_path: Path) -> None:
    make(
        tmp_path,
        *numbered("a", 4),
        *numbered("b", 4, ".JPEG"),
        "a/Thumbs.db",
        "a/.000.png",
        "a/._001.png",
        "a/notes.txt",
        "a/@eaDir/000.png/thumbnail.png",
        ".ipynb_checkpoints/x.png",
        "__MACOSX/x.png",
        "README.md",
        "beside.png",
    )
    data = read_training_folder(tmp_path)
    assert data.labels == ("a", "b")
    found = sorted(name for split in SPLITS for name in names_of(data, split))
    assert found == sorted([*numbered("a", 4), *numbered("b", 4, ".JPEG")])
    assert data.notes == (
        "passed over: files of other kinds, 1 .txt, 1 Thumbs.db (read: .bmp, .jpeg, .jpg, .png, .tif, .tiff)",
        "passed over: hidden folders, 1 (.ipynb_checkpoints)",
        "passed over: folders that programs leave, 2 (__MACOSX, @eaDir)",
        "passed over: images in no class's folder, 1 (beside.png)",
        "passed over: hidden files, 2 (.000.png, ._001.png)",
    )


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(4, 40), min_size=2, max_size=4), seed=st.integers(0, 9))
def test_a_flat_folder_is_split_in_each_class_6_to_2_to_2(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int
) -> None:
    root = tmp_path_factory.mktemp("flat")
    make(root, *(name for label, size in enumerate(sizes) for name in numbered(f"class {label}", size)))
    data = read_training_folder(root, seed=seed)
    everything = [name for split in SPLITS for name in names_of(data, split)]
    assert len(everything) == len(set(everything)) == sum(sizes)
    for label, size in enumerate(sizes):
        counts = {split: data.counts()[split][f"class {label}"] for split in SPLITS}
        assert counts["val"] == counts["test"] >= 1
        assert abs(counts["val"] - size / 5) <= 2 / 3
        assert counts["train"] >= 2


def test_the_seed_decides_the_split(tmp_path: Path) -> None:
    make(tmp_path, *numbered("a", 20), *numbered("b", 20))
    first, again, other = (read_training_folder(tmp_path, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.digest == again.digest
    assert first.digest != other.digest
    assert names_of(first, "test") != names_of(other, "test")


@settings(max_examples=40, deadline=None)
@given(
    patients=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=8, max_size=20),
    seed=st.integers(0, 9),
)
def test_no_group_is_in_two_splits(
    tmp_path_factory: pytest.TempPathFactory, patients: list[tuple[int, int]], seed: int
) -> None:
    root = tmp_path_factory.mktemp("grouped")
    for patient, counts in enumerate(patients):
        for label, count in zip("ab", counts, strict=True):
            make(root, *(f"{label}/P{patient}_{number}.png" for number in range(count)))
    data = read_training_folder(root, seed=seed, group_by=PATIENT)
    groups = {split: {name.split("/")[1].split("_")[0] for name in names_of(data, split)} for split in SPLITS}
    assert Counter(group for split in SPLITS for group in groups[split]) == Counter(
        f"P{patient}" for patient in range(len(patients))
    )
    assert all(groups.values())


def test_groups_of_equal_size_keep_6_to_2_to_2(tmp_path: Path) -> None:
    make(
        tmp_path,
        *(f"{label}/P{patient}_{n}.png" for label in "ab" for patient in range(20) for n in range(5)),
    )
    data = read_training_folder(tmp_path, group_by=PATIENT)
    assert data.counts() == {
        "train": {"a": 60, "b": 60},
        "val": {"a": 20, "b": 20},
        "test": {"a": 20, "b": 20},
    }


def test_a_pattern_without_a_group_uses_its_whole_match(tmp_path: Path) -> None:
    make(
        tmp_path, *(f"{label}/P{patient}_{n}.png" for label in "ab" for patient in range(9) for n in range(2))
    )
    whole, part = (
        read_training_folder(tmp_path, group_by=re.compile(pattern)) for pattern in (r"^P\d+_", r"^(P\d+)_")
    )
    assert whole.splits == part.splits
    assert (whole.group_by, part.group_by) == (r"^P\d+_", r"^(P\d+)_")


def test_groups_that_leak_in_the_authors_layout_are_named(tmp_path: Path) -> None:
    for split, patients in {"train": (1, 2), "val": (3, 4), "test": (5, 2)}.items():
        make(tmp_path, *(f"{split}/{label}/P{patient}_0.png" for label in "ab" for patient in patients))
    with pytest.raises(DataError, match="1 groups are in more than one split: 'P2' in test and train"):
        read_training_folder(tmp_path, group_by=PATIENT)
    assert read_training_folder(tmp_path).labels == ("a", "b")


EMPTY = r"'b' has no image \(files ending in \.bmp, .* count\): add some, or take the folder away"

REFUSED = {
    "nothing-there": ([], "has no class folders"),
    "files-only": (["a.png"], "has no class folders"),
    "one-class": (numbered("a", 9), "has one class, 'a'; training needs at least two"),
    "an-empty-class": ([*numbered("a", 9), "b/readme.txt"], EMPTY),
    "an-empty-class-of-splits": (
        [name for split in SPLITS for name in (*numbered(f"{split}/a", 3), f"{split}/b/readme.txt")],
        EMPTY,
    ),
    "one-image": ([*numbered("a", 9), *numbered("b", 1)], "at least 4 images, but 'b' has 1"),
    "one-training-image": (
        [name for split in SPLITS for name in (*numbered(f"{split}/a", 3), f"{split}/b/x.png")],
        "at least 2 training images, but 'b' has 1",
    ),
    "no-val": (
        [*numbered("train/a", 3), *numbered("train/b", 3)],
        "no images in a 'val' split: .* import",
    ),
    "no-train": (
        [*numbered("val/a", 3), *numbered("val/b", 3)],
        r"no images in a 'train' split \(splits with images: val\)",
    ),
    "empty-test": (
        [
            *(
                name
                for split in ("train", "val")
                for label in "ab"
                for name in numbered(f"{split}/{label}", 2)
            ),
            "test/a/readme.txt",
        ],
        "has no images in a 'test' split",
    ),
    "strange-class": (
        [
            *(
                name
                for split in ("train", "val")
                for label in "ab"
                for name in numbered(f"{split}/{label}", 2)
            ),
            "val/c/0.png",
        ],
        "val/c is no class of 'train', which has a, b",
    ),
}


@pytest.mark.parametrize(("names", "message"), REFUSED.values(), ids=REFUSED)
def test_folders_that_cannot_be_trained_on(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_training_folder(make(tmp_path, *names))


def test_an_empty_class_is_told_by_one_sentence_everywhere(tmp_path: Path) -> None:
    make(tmp_path / "flat", *numbered("a", 9), *numbered("c", 9), "b/readme.txt")
    make(tmp_path / "splits", *numbered("test/a", 2), *numbered("train/c", 2), "test/b/readme.txt")
    for root in (tmp_path / "flat", tmp_path / "splits"):
        with pytest.raises(DataError, match=f"^{re.escape(str(root))}: {EMPTY}$"):
            list_folder(root)
        data = read_evaluation_folder(root)
        assert "b" not in data.labels
        assert re.fullmatch(EMPTY, data.notes[-1])


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: does not exist"):
        read_training_folder(tmp_path / "absent")
    with pytest.raises(DataError, match="is not a folder"):
        read_evaluation_folder(make(tmp_path, "file.png") / "file.png")


def test_class_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no images in its class folders \(files ending in \.bmp, "):
        read_evaluation_folder(make(tmp_path, "a/readme.txt", "b/readme.txt"))


def test_names_without_a_group_are_named(tmp_path: Path) -> None:
    make(tmp_path, *(f"{label}/P{n}_0.png" for label in "ab" for n in range(9)), "a/stray.png")
    with pytest.raises(DataError, match=r"1 file names do not match .* a/stray\.png"):
        read_training_folder(tmp_path, group_by=PATIENT)


def test_too_few_groups_are_refused(tmp_path: Path) -> None:
    make(tmp_path, *(f"{label}/P{n % 4}_{n}.png" for label in "ab" for n in range(12)))
    with pytest.raises(
        DataError, match=r"4 groups \(P0, P1, P2, P3\); a 6:2:2 split of whole groups needs at least 5"
    ):
        read_training_folder(tmp_path, group_by=PATIENT)


def test_evaluation_takes_the_test_split_or_the_whole_flat_folder(tmp_path: Path) -> None:
    layout = make(tmp_path / "layout", *(f"{split}/{label}/0.png" for split in SPLITS for label in "ab"))
    flat = make(tmp_path / "flat", "a/0.png")
    assert names_of(read_evaluation_folder(layout), "test") == ["test/a/0.png", "test/b/0.png"]
    assert names_of(read_evaluation_folder(layout, "train"), "train") == ["train/a/0.png", "train/b/0.png"]
    assert names_of(read_evaluation_folder(flat), "all") == ["a/0.png"]
    with pytest.raises(DataError, match="has class folders but no 'val' folder"):
        read_evaluation_folder(flat, "val")


def test_labels_are_matched_by_name(tmp_path: Path) -> None:
    data = read_evaluation_folder(make(tmp_path, "cell/0.png", "debris/0.png"))
    matched = match_labels(data, ("debris", "dust", "cell"))
    assert matched.labels == ("debris", "dust", "cell")
    assert [sample.label for sample in matched.splits["all"]] == [2, 0]
    with pytest.raises(
        DataError, match=r"1 classes are unknown to the model: debris \(it knows cell, dust\)"
    ):
        match_labels(data, ("cell", "dust"))


def test_folders_inside_of_a_class_are_its_groups(tmp_path: Path) -> None:
    make(
        tmp_path,
        *(f"{label}/patient {p}/{n}/{m}.png" for label in "ab" for p in range(8) for n in "xy" for m in "12"),
        *numbered("a", 3),
        *numbered("b", 3),
    )
    data = read_training_folder(tmp_path)
    assert sum(len(samples) for samples in data.splits.values()) == 2 * 8 * 4 + 6
    groups = {split: set(data.groups_of(split) or ()) for split in SPLITS}
    assert sum(map(len, groups.values())) == 8 + 6  # none in two splits; those in no folder each for itself
    assert "patient 0" in set.union(*groups.values())
    assert any("are taken for groups" in note for note in data.notes)
    by_patient = re.compile(r"/patient (\d)|(?:/\d{3})")
    with pytest.raises(
        DataError, match=r"6 file names do not match the group pattern '/patient \(\\d\)\|\(\?:/\\d\{3\}\)':"
    ):
        read_training_folder(tmp_path, group_by=by_patient)
    alone = read_training_folder(tmp_path, group_by=re.compile(".+/.+"))
    assert not any("are taken for groups" in note for note in alone.notes)


def test_a_class_of_one_group_that_is_dealt_elsewhere_is_told(tmp_path: Path) -> None:
    make(tmp_path, *(f"{label}/{label}{n % 2}_{n}.png" for label in "abcde" for n in range(8)))
    message = (
        r"at least 2 training images, but .* \(whole groups share a split: --group-by says what a group is"
    )
    with pytest.raises(DataError, match=message):
        read_training_folder(tmp_path, group_by=re.compile("^[a-e]"))


def test_all_is_no_split_of_a_folder_that_comes_with_splits(tmp_path: Path) -> None:
    make(tmp_path, *(f"{split}/{label}/{n}.png" for split in SPLITS for label in "ab" for n in range(2)))
    with pytest.raises(
        DataError, match=r"no images in a 'all' split \(splits with images: train, val, test\)"
    ):
        read_evaluation_folder(tmp_path, "all")


def test_few_folders_inside_of_classes_are_refused_with_the_way_out(tmp_path: Path) -> None:
    make(tmp_path, *(f"{label}/{label}{n % 2}/{n}.png" for label in "ab" for n in range(9)))
    with pytest.raises(DataError, match=r"4 groups .* --group-by '\.\+/\.\+' takes each image for itself"):
        read_training_folder(tmp_path)
    alone = read_training_folder(tmp_path, group_by=re.compile(EACH))
    assert sum(map(len, alone.splits.values())) == 18


def test_names_that_recur_are_no_group_where_each_image_is_one(tmp_path: Path) -> None:
    make(
        tmp_path, *(f"{label}/{patient}/{n}.png" for label in "ab" for patient in range(6) for n in range(3))
    )
    alone = read_training_folder(tmp_path, group_by=re.compile(EACH))
    assert len({group for groups in alone.groups.values() for group in groups}) == 36


def test_classes_that_a_split_lacks_are_told(tmp_path: Path) -> None:
    patients = (f"{label}/{patient}/{n}.png" for label in "ab" for patient in range(6) for n in range(3))
    make(tmp_path, *patients, *(f"rare/0/{n}.png" for n in range(6)))
    data = read_training_folder(tmp_path)
    absent = {split for split in ("val", "test") if not data.counts()[split]["rare"]}
    assert absent
    assert {f"the {split} split has no image of 'rare'" for split in absent} <= set(data.notes)


def test_groups_of_a_folder_that_comes_with_splits_are_not_said_to_be_kept(tmp_path: Path) -> None:
    make(tmp_path, *(f"{split}/{label}/p{n}/{n}.png" for split in SPLITS for label in "ab" for n in range(3)))
    leaking, taken = read_training_folder(tmp_path).notes
    assert leaking.startswith("3 groups are in more than one split")
    assert taken == (
        "the folders inside of the classes' folders are taken for groups (patients, say), by which intervals "
        "are drawn: --group-by '.+/.+' takes each image for itself"
    )


def test_classes_that_are_called_like_splits_are_refused(tmp_path: Path) -> None:
    make(
        tmp_path,
        *(f"{split}/{label}/{n}.png" for split in ("Train", "Test") for label in "abcde" for n in "1"),
    )
    message = "its folders 'Test', 'Train' are called like splits, .*: name them train, val, test"
    with pytest.raises(DataError, match=message):
        read_training_folder(tmp_path)
    with pytest.raises(DataError, match=message):
        list_folder(tmp_path)


def test_classes_whose_names_no_checkpoint_keeps_are_refused(tmp_path: Path) -> None:
    try:
        make(tmp_path, *numbered("a", 5), *numbered("b\udcff", 5))
    except (OSError, UnicodeError):
        pytest.skip("this file system takes no such names")
    for read in (read_training_folder, list_folder):
        with pytest.raises(DataError, match=r"have to be UTF-8: rename the folder 'b\\udcff'"):
            read(tmp_path)


def test_copies_and_patients_count_once_for_intervals(tmp_path: Path) -> None:
    make(tmp_path, *(f"test/{label}/{n}.png" for label in "ab" for n in range(3)))
    assert read_evaluation_folder(tmp_path).drawn_together("test") is None
    for name in ("a/0.png", "a/2.png", "b/1.png"):
        (tmp_path / "test" / name).write_bytes(b"the same")
    first, *rest = read_evaluation_folder(tmp_path).drawn_together("test") or ()
    assert (first, rest) == (
        "test/a/0.png",
        ["test/a/1.png", "test/a/0.png", "test/b/0.png", "test/a/0.png", "test/b/2.png"],
    )
    patients = make(tmp_path / "grouped", *(f"{label}/p{n}/{n}.png" for label in "ab" for n in range(4)))
    assert len(set(read_evaluation_folder(patients).drawn_together("all") or ())) == 4
    for name in ("a/p0/0.png", "b/p3/3.png"):
        (patients / name).write_bytes(b"the same")
    assert len(set(read_evaluation_folder(patients).drawn_together("all") or ())) == 3
    two = make(tmp_path / "two", *(f"{label}/p{n % 2}/{n}.png" for label in "ab" for n in range(4)))
    assert read_evaluation_folder(two).drawn_together("all") == ("p0", "p0", "p1", "p1") * 2


def test_a_folder_that_holds_all_images_is_no_group(tmp_path: Path) -> None:
    make(tmp_path, *(f"{label}/images/{n}.png" for label in "ab" for n in range(9)))
    data = read_training_folder(tmp_path)
    assert data.groups_of("train") is None
    assert data.notes == ()


def test_copies_across_splits_and_classes_are_told(tmp_path: Path) -> None:
    make(tmp_path, *(name for split in SPLITS for label in "ab" for name in numbered(f"{split}/{label}", 3)))
    for name in ("train/a/000.png", "val/b/001.png", "test/a/002.png"):
        (tmp_path / name).write_bytes(b"the same")
    expected = (
        "1 images occur more than once: train/a/000.png and val/b/001.png",
        "1 images occur in several classes: train/a/000.png (a) and val/b/001.png (b)",
        "1 images, by content, are in more than one split: figures on this split are too high",
    )
    assert read_training_folder(tmp_path).notes == expected
    assert read_evaluation_folder(tmp_path).notes == expected


def test_copies_share_a_split_of_a_flat_folder(tmp_path: Path) -> None:
    make(tmp_path, *numbered("a", 30), *numbered("b", 30))
    for number in range(15):
        for copy in (number, number + 15):
            (tmp_path / "a" / f"{copy:03}.png").write_bytes(b"%d" % number)
    data = read_training_folder(tmp_path)
    split_of = {name: split for split in SPLITS for name in names_of(data, split)}
    assert all(split_of[f"a/{n:03}.png"] == split_of[f"a/{n + 15:03}.png"] for n in range(15))
    assert len(data.notes) == 1
    assert data.notes[0].startswith("15 images occur more than once: ")
    apart = read_training_folder(tmp_path, dealing=0)
    assert any("in more than one split" in note for note in apart.notes)


def test_files_are_looked_into_once_for_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *numbered("a", 5), *numbered("b", 5))
    for path in tmp_path.rglob("*.png"):
        path.write_text("of one size", "ascii")
    opened: Counter[str] = Counter()

    def counting(path: Path) -> BinaryIO:
        opened[str(path)] += 1
        return open_file(path)

    monkeypatch.setattr(copies, "open_file", counting)
    data = read_training_folder(tmp_path, group_by=re.compile(EACH), dealing=0)
    assert data.notes[0].startswith("1 images occur more than once")
    assert set(opened.values()) == {1}


def test_what_left_a_class_so_few_images_is_told(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    make(flat, *numbered("a", 9), *numbered("b", 9))
    for number in range(9):
        (flat / "a" / f"{number:03}.png").write_bytes(b"%d" % (number % 2))
    with pytest.raises(DataError, match=r"'a' has 0 \(copies of an image share a split"):
        read_training_folder(flat)

    # With splits nothing is dealt, whatever folders there are.
    layout = tmp_path / "layout"
    make(layout, *(f"{split}/a/{n}/x.png" for split in ("train", "val") for n in range(3)))
    make(layout, "train/b/0/x.png", "val/b/0/x.png")
    with pytest.raises(DataError, match=r"'b' has 1 \(files ending in"):
        read_training_folder(layout)


def test_evaluation_asks_no_other_split_for_its_classes(tmp_path: Path) -> None:
    make(tmp_path, "val/a/0.png", "test/a/0.png", "test/b/0.png", "notes/b/0.png")
    data = read_evaluation_folder(tmp_path)
    assert data.labels == ("a", "b")
    assert data.notes == ("passed over: folders beside the splits, 1 (notes/)",)
    assert read_evaluation_folder(tmp_path, "val").labels == ("a",)
