"""Importing: what every kind of data set goes through, shown on plain folders."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from published_layouts import write_image

from msmamba.cli import mmdeploy
from msmamba.cli.data import _DATA_SETS, _OF_SLIDES
from msmamba.data.folders import read_training_folder
from msmamba.data.imported import INDEX, MANIFEST, IndexRow, check_contents, read_index, read_manifest
from msmamba.data.published import KINDS, ImportOptions, import_data_set
from msmamba.data.published.examining import JOURNAL
from msmamba.data.published.folder import list_folder
from msmamba.data.published.importing import deal_images
from msmamba.data.published.listing import Listed, Listing
from msmamba.data.splitting import joined, shared_groups
from msmamba.errors import DataError, ImageError, InputError, TargetError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes of ten patients with two images each."""
    root = tmp_path / "source"
    for number in range(40):
        label, patient = "ab"[number % 2], number // 4
        write_image(root / label / f"P{patient}_{number}.png", number)
    (root / "a" / "Thumbs.db").write_bytes(b"x")
    return root


def rows_of(output: Path) -> list[IndexRow]:
    return list(read_index(output))


def test_the_command_knows_the_kinds() -> None:
    assert (*KINDS, _OF_SLIDES) == _DATA_SETS


def test_a_folder_becomes_the_authors_layout_with_whole_groups(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    manifest = import_data_set("folder", source, output, ImportOptions(group_by=r"^(P\d+)_", seed=4))
    assert manifest == read_manifest(output)
    assert manifest.labels == ("a", "b")
    assert {split: sum(counts.values()) for split, counts in manifest.counts.items()} == {
        "train": 24,
        "val": 8,
        "test": 8,
    }
    assert manifest.groups == {"train": 6, "val": 2, "test": 2}
    assert manifest.split == "6:2:2, stratified by class, whole groups, seed 4"
    assert manifest.notes == (
        "passed over: files of other kinds, 1 Thumbs.db (read: .bmp, .jpeg, .jpg, .png, .tif, .tiff)",
    )
    splits: dict[str, set[str]] = {}
    for row in rows_of(output):
        splits.setdefault(row.group, set()).add(row.split)
        assert row.file == f"{row.split}/{row.label}/{Path(row.origin).name}"
        assert (output / row.file).samefile(source / row.origin)  # a hard link
        assert (row.width, row.height) == (12, 10)
    assert len(splits) == 10
    assert all(len(each) == 1 for each in splits.values())
    assert sorted(path.name for path in output.iterdir()) == [
        "dataset.json",
        "index.csv",
        "test",
        "train",
        "val",
    ]
    assert list(tmp_path.glob(".*")) == []


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(60, 150),
    patients=st.integers(20, 40),
    contents=st.integers(120, 2000),
    grouped=st.booleans(),
    seed=st.integers(0, 999),
)
def test_neither_a_group_nor_an_image_is_ever_in_two_splits(
    images: int, patients: int, contents: int, grouped: bool, seed: int
) -> None:
    """Whatever is drawn: patients of unequal size, and images of which several patients have the same."""
    generator = np.random.default_rng(seed)
    who = (patients * generator.random(images) ** 2).astype(int).tolist()
    what = generator.integers(contents, size=images).tolist()
    listed = [
        Listed(f"{number}.png", "ab"[number % 2], f"P{patient}" if grouped else "")
        for number, patient in enumerate(who)
    ]
    listing = Listing(listed, ("a", "b"), grouped_by="patient" if grouped else "")
    if grouped and len({*joined(who, what).tolist()}) < 5:
        return  # copies have joined nearly all patients; that this is refused is shown elsewhere
    names, _, _ = deal_images(Path("x"), listed, what, listing, ImportOptions(seed=seed))
    assert shared_groups(what, names) == {}
    assert not grouped or shared_groups(who, names) == {}


def test_the_seed_decides(source: Path, tmp_path: Path) -> None:
    dealt = []
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        import_data_set("folder", source, tmp_path / name, ImportOptions(seed=seed))
        dealt.append(rows_of(tmp_path / name))
    assert dealt[0] == dealt[1] != dealt[2]


def test_a_split_that_is_there_is_kept(tmp_path: Path) -> None:
    for number, split in enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 3):
        for label in "ab":
            write_image(tmp_path / "source" / split / label / "deeper" / f"{number}.png", number)
    manifest = import_data_set("folder", tmp_path / "source", tmp_path / "out")
    assert [sum(counts.values()) for counts in manifest.counts.values()] == [12, 4, 6]
    assert manifest.split == "as published"
    assert all(row.origin.startswith(row.split) for row in rows_of(tmp_path / "out"))


def test_a_split_without_training_images_is_refused(tmp_path: Path) -> None:
    for number in range(8):
        write_image(tmp_path / "source" / "val" / "ab"[number % 2] / f"{number}.png", number)
    with pytest.raises(DataError, match="has no images to train on in its published split"):
        import_data_set("folder", tmp_path / "source", tmp_path / "out")


def test_without_a_val_split_a_quarter_of_train_validates(tmp_path: Path) -> None:
    for number in range(24):
        write_image(tmp_path / "source" / "train" / "ab"[number % 2] / f"{number}.png", number)
        write_image(tmp_path / "source" / "test" / "ab"[number % 2] / f"{number}.png", 100 + number)
    manifest = import_data_set("folder", tmp_path / "source", tmp_path / "out")
    assert [sum(counts.values()) for counts in manifest.counts.values()] == [18, 6, 24]


@pytest.mark.parametrize("group_by", [None, r"^(P\d+)_"], ids=["alone", "grouped"])
def test_copies_of_an_image_share_a_split(source: Path, tmp_path: Path, group_by: str | None) -> None:
    for number in range(0, 20, 2):  # each patient's first image occurs again as another patient's
        copy = (source / "a" / f"P{number // 4}_{number}.png").read_bytes()
        (source / "a" / f"P{20 + number}_copy.png").write_bytes(copy)
    manifest = import_data_set("folder", source, tmp_path / "out", ImportOptions(group_by=group_by, seed=1))
    by_content: dict[str, set[str]] = {}
    by_group: dict[str, set[str]] = {}
    for row in rows_of(tmp_path / "out"):
        by_content.setdefault(row.sha256, set()).add(row.split)
        by_group.setdefault(row.group, set()).add(row.split)
    assert all(len(splits) == 1 for splits in by_content.values())
    assert group_by is None or all(len(splits) == 1 for splits in by_group.values())
    assert any("10 images occur more than once" in note for note in manifest.notes)


def test_a_published_split_that_leaks_is_told(tmp_path: Path) -> None:
    for number, split in enumerate(["train"] * 8 + ["val"] * 2 + ["test"] * 2):
        for label in "ab":
            write_image(tmp_path / "source" / split / label / f"P{number % 9}_{number}{label}.png", number)
    manifest = import_data_set(
        "folder", tmp_path / "source", tmp_path / "out", ImportOptions(group_by=r"^(P\d)_")
    )
    assert manifest.notes == (
        "12 images occur more than once: test/a/P1_10a.png and test/b/P1_10b.png",
        "12 images occur in several classes: test/a/P1_10a.png (a) and test/b/P1_10b.png (b)",
        r"3 groups (pattern ^(P\d)_) are in more than one split, P1 for one in test and train: "
        "figures on this split are too high",
    )


def test_names_that_clash_are_numbered(source: Path, tmp_path: Path) -> None:
    for number in range(6):
        write_image(source / "a" / f"slide{number}" / "0.png", 100 + number)
    import_data_set("folder", source, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert len({row.file for row in rows}) == len(rows) == 46
    assert len({row.origin for row in rows}) == 46


def test_images_are_copied_when_asked_or_when_there_is_no_link(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = import_data_set("folder", source, tmp_path / "asked", ImportOptions(copy=True))
    assert manifest.stored == "copies"
    assert len(manifest.notes) == 1

    def refuse(*_: object) -> None:
        raise OSError(18, os.strerror(18))  # EXDEV

    monkeypatch.setattr(os, "link", refuse)
    manifest = import_data_set("folder", source, tmp_path / "needed")
    assert manifest.stored == "copies"
    assert any("were copied, because they cannot be linked" in note for note in manifest.notes)
    for name in ("asked", "needed"):
        for row in rows_of(tmp_path / name):
            copy = tmp_path / name / row.file
            assert copy.read_bytes() == (source / row.origin).read_bytes()
            assert not copy.samefile(source / row.origin)


def test_a_corrupt_image_stops_the_import_or_is_skipped_and_named(source: Path, tmp_path: Path) -> None:
    (source / "a" / "P0_0.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ImageError, match=r"a/P0_0\.png' is (not a PNG|truncated).*--skip-bad"):
        import_data_set("folder", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    manifest = import_data_set("folder", source, tmp_path / "out", ImportOptions(skip_bad=True))
    assert list(manifest.skipped) == ["a/P0_0.png"]
    assert sum(sum(counts.values()) for counts in manifest.counts.values()) == 39
    shown = CliRunner().invoke(
        mmdeploy,
        ["data", "import", "folder", str(source), "-o", str(tmp_path / "again"), "--skip-bad"],
    )
    assert shown.exit_code == 0
    assert "skipped: " in shown.stderr
    assert "P0_0.png" in shown.stderr


REFUSED = {
    "absent": (lambda root: root / "absent", DataError, "does not exist"),
    "archive": (lambda root: root / "a" / "x.zip", DataError, "is an archive: unpack it"),
    "a-file": (lambda root: root / "a" / "P0_0.png", DataError, "is a file; expected the data set's folder"),
    "no-images": (lambda root: root / "empty", DataError, "has no images in folders of classes"),
    "no-class": (
        lambda root: root / "a",
        DataError,
        r"passed over: images in no class's folder, 20 \(P0_0\.png.*; expected <class>/\*",
    ),
}


@pytest.mark.parametrize(("which", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_sources_that_are_refused(
    source: Path, tmp_path: Path, which: object, kind: type[Exception], message: str
) -> None:
    (source / "a" / "x.zip").write_bytes(b"PK")
    (source / "empty").mkdir()
    with pytest.raises(kind, match=message):
        import_data_set("folder", which(source), tmp_path / "out")  # type: ignore[operator]
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".*")) == []


def test_images_in_no_class_are_passed_over_and_told(source: Path, tmp_path: Path) -> None:
    write_image(source / "overview.png", 77)
    manifest = import_data_set("folder", source, tmp_path / "out")
    assert "passed over: images in no class's folder, 1 (overview.png)" in manifest.notes
    assert sum(sum(counts.values()) for counts in manifest.counts.values()) == 40
    for split in ("train", "val", "test"):
        shutil.copytree(source, tmp_path / "split" / split, ignore=shutil.ignore_patterns("overview.png"))
    for beside in ("test/overview.png", "overview.png", "notes/page.png"):
        (tmp_path / "split" / beside).parent.mkdir(exist_ok=True)
        write_image(tmp_path / "split" / beside, 78)
    listed = list_folder(tmp_path / "split")
    assert len(listed.images) == 120
    assert "passed over: images in no class's folder, 2 (overview.png, test/overview.png)" in listed.notes
    assert "notes/ is beside the splits and is passed over" in listed.notes


def test_too_small_a_class_is_refused(source: Path, tmp_path: Path) -> None:
    write_image(source / "c" / "P0_only.png", 77)
    with pytest.raises(DataError, match="every class needs at least 4 images, but 'c' has 1"):
        import_data_set("folder", source, tmp_path / "out")


def test_an_import_is_not_imported_again_without_its_groups(source: Path, tmp_path: Path) -> None:
    options = ImportOptions(group_by=r"^(P\d+)_")
    import_data_set("folder", source, tmp_path / "once", options)
    with pytest.raises(DataError, match=r"whose groups \(pattern .*\) would be lost: train on it as it is"):
        import_data_set("folder", tmp_path / "once", tmp_path / "twice")
    again = import_data_set("folder", tmp_path / "once", tmp_path / "twice", options)
    assert again.groups == read_manifest(tmp_path / "once").groups


def test_options_that_make_no_sense_are_refused(source: Path, tmp_path: Path) -> None:
    for options, message in (
        (ImportOptions(group_by="("), "is no regular expression"),
        (ImportOptions(group_by="x(y)"), "40 paths do not match the group pattern"),
        (ImportOptions(official_split=True), "has no published split that could be kept"),
    ):
        with pytest.raises(InputError, match=message):
            import_data_set("folder", source, tmp_path / "out", options)
    with pytest.raises(InputError, match="there is no importer 'x'"):
        import_data_set("x", source, tmp_path / "out")


def test_the_output_and_the_source_are_apart(source: Path, tmp_path: Path) -> None:
    for output in (source / "out", tmp_path, source):
        with pytest.raises(InputError, match="lie in one another"):
            import_data_set("folder", source, output)


def test_only_a_data_set_is_replaced_and_only_when_asked(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    import_data_set("folder", source, output)
    with pytest.raises(TargetError, match="exists already"):
        import_data_set("folder", source, output)
    assert import_data_set("folder", source, output, ImportOptions(force=True, seed=5)).seed == 5
    (output / MANIFEST).unlink()
    with pytest.raises(TargetError, match=r"holds no 'dataset\.json'"):
        import_data_set("folder", source, output, ImportOptions(force=True))


@pytest.mark.parametrize("to", ["file", "folder"])
def test_a_link_out_of_the_source_is_refused(source: Path, tmp_path: Path, to: str) -> None:
    outside = tmp_path / "outside"
    write_image(outside / "secret.png", 5)
    (source / "a" / "link.png").symlink_to(outside / "secret.png" if to == "file" else outside)
    with pytest.raises(DataError, match=r"link\.png: is a link to '.*outside.*', outside of the source"):
        import_data_set("folder", source, tmp_path / "out")


def test_a_link_inside_the_source_is_followed_once(source: Path, tmp_path: Path) -> None:
    (source / "a" / "again.png").symlink_to(source / "a" / "P0_0.png")
    (source / "b" / "loop").symlink_to(source)
    import_data_set("folder", source, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 41
    assert not any((tmp_path / "out" / row.file).is_symlink() for row in rows)


SLOW_IMPORT = """
import sys, time
from msmamba.data.published import ImportOptions, examining, import_data_set
read = examining.load_image
def slowly(path, **options):
    time.sleep(0.02)
    return read(path, **options)
examining.load_image = slowly
import_data_set("folder", sys.argv[1], sys.argv[2], ImportOptions(threads=2, seed=3, group_by=r"^(P\\d+)_"))
"""


def test_a_killed_import_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = tmp_path / "source", tmp_path / "out"
    for number in range(300):
        write_image(source / "ab"[number % 2] / f"P{number // 10}_{number}.png", number)
    journal = tmp_path / ".out.partial" / "content" / JOURNAL
    process = subprocess.Popen([sys.executable, "-c", SLOW_IMPORT, str(source), str(output)])
    try:
        deadline = time.monotonic() + 60
        while not (journal.is_file() and journal.read_bytes().count(b"\n") > 60):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.wait()
    assert not output.exists()
    with journal.open("ab") as file:
        file.write(b'["a/P0_0.png", 12')  # the line that a kill may cut off
    done = journal.read_bytes().count(b"\n") - 1

    from msmamba.data.published import examining

    read: list[Path] = []
    original = examining._examined
    monkeypatch.setattr(
        examining, "_examined", lambda white, path: (read.append(path), original(white, path))[1]
    )
    options = ImportOptions(seed=3, group_by=r"^(P\d+)_")
    import_data_set("folder", source, output, options)
    assert len(read) == 300 - done
    assert list(tmp_path.glob(".*")) == []

    import_data_set("folder", source, tmp_path / "uninterrupted", options)
    assert (output / INDEX).read_bytes() == (tmp_path / "uninterrupted" / INDEX).read_bytes()
    assert (output / MANIFEST).read_bytes() == (tmp_path / "uninterrupted" / MANIFEST).read_bytes()


def test_a_journal_of_another_source_or_a_changed_file_does_not_count(source: Path, tmp_path: Path) -> None:
    bad = source / "b" / "P9_39.png"
    good = bad.read_bytes()
    bad.write_bytes(b"broken")
    with pytest.raises(ImageError):
        import_data_set("folder", source, tmp_path / "out")
    changed = source / "a" / "P0_0.png"
    write_image(changed, 1000, (9, 9))
    bad.write_bytes(good)
    import_data_set("folder", source, tmp_path / "out")
    assert {(row.width, row.height) for row in rows_of(tmp_path / "out") if row.origin == "a/P0_0.png"} == {
        (9, 9)
    }


def test_a_second_import_into_the_same_folder_waits_for_nobody(source: Path, tmp_path: Path) -> None:
    from msmamba.files import resumable_folder

    with (
        resumable_folder(tmp_path / "out"),
        pytest.raises(TargetError, match="is being written by another process"),
    ):
        import_data_set("folder", source, tmp_path / "out")


def test_the_command_prints_what_it_made(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = CliRunner().invoke(
        mmdeploy, ["data", "import", "folder", str(source), "-o", str(output), "--group-by", r"^(P\d+)_"]
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"{output}: folder"
    assert lines[2].split() == ["train", "val", "test", "all"]
    assert lines[3].split() == ["images", "24", "8", "8", "40"]
    assert result.stderr == ""
    check = CliRunner().invoke(mmdeploy, ["data", "check", str(output)])
    assert (check.exit_code, check.stdout) == (0, result.stdout)
    (output / rows_of(output)[0].file).unlink()
    check = CliRunner().invoke(mmdeploy, ["data", "check", str(output)])
    assert check.exit_code == 1
    assert "1 files are not what was imported: train/a/P0_0.png no such" in check.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
def test_names_that_are_not_utf_8_are_imported_and_trained_on(source: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(source / "a") + b"/P0_k\xf6rper.png"))
    shutil.copy(source / "a" / "P0_0.png", odd)  # a copy, which the manifest's notes name
    import_data_set("folder", source, tmp_path / "out", ImportOptions())
    manifest = read_manifest(tmp_path / "out")
    assert any("\udcf6" in note for note in manifest.notes)
    assert check_contents(tmp_path / "out")[1] == {}
    data = read_training_folder(tmp_path / "out")
    assert sum(len(samples) for samples in data.splits.values()) == 41
    assert len(read_training_folder(source).digest) == 64


@pytest.mark.parametrize("pattern", ["", r"^(Q\d)?"], ids=["empty", "optional"])
def test_a_pattern_that_finds_no_group_deals_nobody_apart(pattern: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="40 paths do not match the group pattern"):
        import_data_set("folder", source, tmp_path / "out", ImportOptions(group_by=pattern))
    with pytest.raises(DataError, match="40 file names do not match the group pattern"):
        read_training_folder(source, group_by=re.compile(pattern))


def test_many_images_of_one_name_get_numbers_of_their_own(tmp_path: Path) -> None:
    for number in range(12):
        write_image(tmp_path / "source" / "ab"[number % 2] / f"case {number}" / "image.png", number)
    import_data_set("folder", tmp_path / "source", tmp_path / "out", ImportOptions())
    files = [row.file for row in rows_of(tmp_path / "out")]
    assert len(files) == len(set(files)) == 12
    assert {Path(file).name for file in files} >= {"image.png", "image-2.png"}


def test_names_that_some_file_system_takes_for_one_get_numbers(tmp_path: Path) -> None:
    names = ("Image.png", "image.png", "IMAGE.PNG", "cafe\u0301.png", "caf\u00e9.png")
    source = tmp_path / "source"
    for label in "ab":
        for number in range(10):
            write_image(source / label / f"p{number}" / names[number % 5], 10 * number + (label == "a"))
    import_data_set("folder", source, tmp_path / "out")
    files = [row.file for row in read_index(tmp_path / "out")]
    assert len(files) == len({unicodedata.normalize("NFC", file).lower() for file in files}) == 20
