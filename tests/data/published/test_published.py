"""The published data sets, in small files of their true layouts: read with every trap, grouped, compared."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_layouts import (
    COLON_REGIONS,
    MALARIA_PATIENTS,
    write_colon,
    write_image,
    write_malaria,
    write_mhist,
    write_rpe,
)

from msmamba.data.folders import read_training_folder
from msmamba.data.imported import read_index
from msmamba.data.published import ImportOptions, import_data_set
from msmamba.data.published.listing import Listing
from msmamba.data.published.malaria import PUBLISHED as MALARIA
from msmamba.data.published.malaria import list_malaria, patient_of
from msmamba.data.published.medfm_colon import PUBLISHED as COLON
from msmamba.data.published.medfm_colon import case_of, list_medfm_colon
from msmamba.data.published.mhist import PARTITIONS, list_mhist
from msmamba.data.published.mhist import PUBLISHED as MHIST
from msmamba.data.published.rpe import PUBLISHED as RPE
from msmamba.data.published.rpe import list_rpe
from msmamba.errors import DataError


def classes(listing: Listing) -> dict[str, int]:
    return dict(Counter(image.label for image in listing.images))


def test_the_published_counts_agree_with_one_another() -> None:
    assert sum(MALARIA.values()) == 27_558
    assert sum(MHIST.values()) == sum(PARTITIONS.values()) == 3_152
    assert sum(COLON.values()) == 10_009
    assert sum(RPE.values()) == 1_862


class TestMalaria:
    def test_cells_are_listed_by_patient_and_the_thumbnails_passed_over(self, tmp_path: Path) -> None:
        listing = list_malaria(write_malaria(tmp_path))
        assert classes(listing) == {"Parasitized": 30, "Uninfected": 30}
        assert {image.group for image in listing.images} == {
            *("C100P61", "C33P1", "C5N", "C1", "C3", "C37BP2", "C68P29N", "C99P60", "C230", "C48P9")
        }
        assert listing.notes == [
            "passed over: files of other kinds, 2 Thumbs.db (read: .bmp, .jpeg, .jpg, .png, .tif, .tiff)"
        ]
        assert listing.differences == [
            "Parasitized: 30 images, published 13,779",
            "Uninfected: 30 images, published 13,779",
        ]

    def test_the_copy_inside_the_copy_is_passed_over(self, tmp_path: Path) -> None:
        listing = list_malaria(write_malaria(tmp_path, nested=True))
        assert classes(listing) == {"Parasitized": 30, "Uninfected": 30}
        assert "cell_images/ holds the same files again and is passed over" in listing.notes
        assert not any("cell_images" in image.origin for image in listing.images)

    def test_an_outer_folder_will_do_and_what_lies_beside_is_told(self, tmp_path: Path) -> None:
        cells = write_malaria(tmp_path / "archive" / "deep")
        assert len(list_malaria(tmp_path / "archive").images) == 60
        for folder in (cells / "Unclear", tmp_path / "archive" / "Uninfected"):
            folder.mkdir()
            write_image(folder / "C9NThinF_IMG_0_cell_0.png", 1)
        listing = list_malaria(tmp_path / "archive")
        assert len(listing.images) == 60
        (note,) = [
            note for note in listing.notes if "2 images are beside the folders of both classes" in note
        ]
        assert "deep" in note
        assert "Uninfected/C9N" in note

    def test_two_copies_that_differ_are_refused(self, tmp_path: Path) -> None:
        cells = write_malaria(tmp_path, nested=True)
        write_image(cells / "cell_images" / "Uninfected" / "C9NThinF_IMG_0_cell_0.png", 1)
        with pytest.raises(DataError, match=r"holds both classes twice, .* and they differ"):
            list_malaria(cells)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            pytest.param(None, "has no folders Parasitized and Uninfected", id="one-class"),
            pytest.param("cell_7.png", r"1 names have no patient .*cell_7\.png", id="no-patient"),
        ],
    )
    def test_what_is_something_else_is_refused(self, tmp_path: Path, name: str | None, message: str) -> None:
        cells = write_malaria(tmp_path)
        if name is None:
            cells /= "Uninfected"
        else:
            write_image(cells / "Uninfected" / name, 3)
        with pytest.raises(DataError, match=message):
            list_malaria(cells)

    @given(st.integers(1, 300), st.integers(1, 150), st.sampled_from(["ThinF", "thinF", "THINF", "_thinF"]))
    def test_a_patient_has_one_spelling(self, case: int, patient: int, stain: str) -> None:
        assert patient_of(f"C{case}P{patient}{stain}_IMG_1_cell_2.png") == f"C{case}P{patient}"
        assert patient_of(f"c{case}p{patient}{stain}_IMG_1_cell_2.png") == f"C{case}P{patient}"


MHIST_CHANGES = {
    "another-label": (b",HP,", b",XX,", r"1 lines make no sense: 'MHIST_\d+\.png' is 'XX' in 'train'"),
    "another-part": (b",train", b",val", r"make no sense: .* in 'val'; expected HP or SSA, in train or"),
    "two-labels": (b"MHIST_003.png", b"MHIST_004.png", "'MHIST_004.png' has two lines that differ"),
    "no-column": (b"Majority Vote Label", b"Vote", "has no column Majority Vote Label; expected a first"),
    "no-text": (b"MHIST_003", b"\xff\xfe\x00", "is no csv file"),
}


class TestMhist:
    def test_lines_with_a_file_are_listed_with_their_partition(self, tmp_path: Path) -> None:
        listing = list_mhist(write_mhist(tmp_path))
        assert classes(listing) == {"HP": 28, "SSA": 12}
        assert Counter(image.split for image in listing.images) == {"train": 30, "test": 10}
        assert listing.grouped_by == ""
        assert listing.notes == []
        assert listing.differences == [
            "HP: 28 images, published 2,162",
            "SSA: 12 images, published 990",
            "train: 30 images, published 2,175",
            "test: 10 images, published 977",
        ]

    def test_missing_files_lines_and_blanks_are_told(self, tmp_path: Path) -> None:
        root = write_mhist(tmp_path)
        (root / "images" / "MHIST_003.png").unlink()
        write_image(root / "images" / "MHIST_stray.png", 5)
        with (root / "annotations.csv").open("ab") as file:
            file.write(b",,,\r\n\r\n")
        listing = list_mhist(root)
        assert len(listing.images) == 39
        assert "1 blank lines of annotations.csv are passed over" in listing.notes
        assert "1 images have no line in annotations.csv: images/MHIST_stray.png" in listing.notes
        assert listing.differences[0] == "1 images of annotations.csv are missing: MHIST_003.png"

    @pytest.mark.parametrize(("old", "new", "message"), MHIST_CHANGES.values(), ids=MHIST_CHANGES)
    def test_lines_that_make_no_sense_are_named(
        self, tmp_path: Path, old: bytes, new: bytes, message: str
    ) -> None:
        table = write_mhist(tmp_path) / "annotations.csv"
        content = table.read_bytes()
        assert old in content
        table.write_bytes(content.replace(old, new, 1))
        with pytest.raises(DataError, match=message):
            list_mhist(tmp_path)

    def test_a_byte_order_mark_does_no_harm(self, tmp_path: Path) -> None:
        table = write_mhist(tmp_path) / "annotations.csv"
        table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
        assert len(list_mhist(tmp_path).images) == 40

    def test_without_annotations_it_is_refused(self, tmp_path: Path) -> None:
        (write_mhist(tmp_path) / "annotations.csv").unlink()
        with pytest.raises(DataError, match=r"has 0 files annotations\.csv"):
            list_mhist(tmp_path)

    def test_the_official_split_keeps_the_test_partition(self, tmp_path: Path) -> None:
        source = write_mhist(tmp_path)
        manifest = import_data_set("mhist", source, tmp_path / "out", ImportOptions(official_split=True))
        assert [sum(counts.values()) for counts in manifest.counts.values()] == [22, 8, 10]
        assert (
            manifest.split
            == "as published; a quarter of train validates, stratified by class, image by image, seed 0"
        )
        published = {image.origin: image.split for image in list_mhist(source).images}
        for row in read_index(tmp_path / "out"):
            assert (row.split == "test") == (published[row.origin] == "test")


class TestMedFmColon:
    def test_both_parts_are_listed_by_patient(self, tmp_path: Path) -> None:
        listing = list_medfm_colon(write_colon(tmp_path))
        assert sum(classes(listing).values()) == 60
        assert Counter(image.split for image in listing.images) == {"train": 45, "test": 15}
        assert "1,000 blank lines are passed over" in listing.notes
        groups = {image.group for image in listing.images}
        assert {"2019-10732", "D201902847", "1902386", "2019-06-11 00_00_50"} <= groups
        assert len(groups) == 3 + 8
        assert f"train part: 45 labelled images, published {5_654:,}" in listing.differences

    def test_the_patient_is_the_tables_and_else_the_files(self, tmp_path: Path) -> None:
        root, name = write_colon(tmp_path), f"{COLON_REGIONS[0]}p0000.png"
        for table in root.rglob("*.csv"):
            text = table.read_bytes().decode()
            for patch, slide in enumerate(("2019-55555-1-1-1", "")):
                image = f"{COLON_REGIONS[0]}p{patch:04}.png"
                text = text.replace(f"{COLON_REGIONS[0]},{image}", f"{slide},{image}")
            table.write_bytes(text.encode())
        groups = {image.origin.rpartition("/")[2]: image.group for image in list_medfm_colon(root).images}
        assert groups[name] == case_of("2019-55555-1-1-1") != case_of(COLON_REGIONS[0])
        assert groups[name.replace("p0000", "p0001")] == case_of(COLON_REGIONS[0])

    def test_labels_come_from_whichever_file_has_them(self, tmp_path: Path) -> None:
        root = write_colon(tmp_path)
        whole = list_medfm_colon(root)
        (root / "MedFMC_trainval_annotation" / "colonpath_published_2.csv").unlink()
        part = list_medfm_colon(root)
        assert len(part.images) == 45
        assert "15 images have a line without a label and are passed over" in part.notes
        assert {(image.origin, image.label) for image in part.images} < {
            (image.origin, image.label) for image in whole.images
        }

    def test_labels_that_contradict_are_refused(self, tmp_path: Path) -> None:
        root = write_colon(tmp_path)
        table = root / "MedFMC_train" / "colon" / "colon_train.csv"
        text = table.read_bytes()
        assert text.count(b",1\r\n") == 15
        table.write_bytes(text.replace(b",1\r\n", b",7\r\n", 1).replace(b",1\r\n", b",0\r\n", 1))
        with pytest.raises(DataError, match=r"2 lines make no sense: .*,7'.*not elsewhere; expected"):
            list_medfm_colon(root)

    def test_two_images_of_one_name_are_refused_unless_they_are_the_same(self, tmp_path: Path) -> None:
        root = write_colon(tmp_path)
        name = f"{COLON_REGIONS[0]}p0000.png"
        original = root / "MedFMC_train" / "colon" / "images" / name
        copy = root / "MedFMC_val" / "colon" / "images" / name
        copy.write_bytes(original.read_bytes())
        assert len(list_medfm_colon(root).images) == 60
        write_image(copy, 999)
        with pytest.raises(DataError, match="have one name and differ"):
            list_medfm_colon(root)

    def test_a_folder_without_a_table_is_refused(self, tmp_path: Path) -> None:
        write_image(tmp_path / "images" / "a.png", 1)
        (tmp_path / "other.csv").write_text("a,b\n1,2\n")
        with pytest.raises(DataError, match="has no csv file that begins with slide_id,img_id,tumor"):
            list_medfm_colon(tmp_path)

    def test_missing_and_unnamed_images_are_told(self, tmp_path: Path) -> None:
        root = write_colon(tmp_path)
        (root / "MedFMC_train" / "colon" / "images" / f"{COLON_REGIONS[0]}p0000.png").unlink()
        write_image(root / "MedFMC_train" / "colon" / "images" / "stray 1.png", 3)
        listing = list_medfm_colon(root)
        assert "1 images have no line: stray 1.png" in listing.notes
        assert listing.differences[0].startswith("1 images with a line are missing: 2019-10732-1-5-5_2019")

    @pytest.mark.parametrize(
        ("slide", "case"),
        [
            ("2019-10732-1-5-5_2019-05-28 16_40_29-lv1-1-2-3-4", "2019-10732"),
            ("D20190284705_2019-06-10 15_10_34-lv1-1-2-3-4", "D201902847"),
            ("1902386002_2019-06-11 12_23_22-lv1-1-2-3-4", "1902386"),
            ("2019-06-11 01_00_50-lv1-1-2-3-4", "2019-06-11 01_00_50"),
            ("something else", "something else"),
        ],
    )
    def test_the_case_is_read_off_the_slide(self, slide: str, case: str) -> None:
        assert case_of(slide) == case

    def test_the_official_split_tells_that_patients_are_on_both_sides(self, tmp_path: Path) -> None:
        source = write_colon(tmp_path / "source")
        options = ImportOptions(official_split=True)
        manifest = import_data_set("medfm-colon", source, tmp_path / "out", options)
        assert sum(manifest.counts["test"].values()) == 15
        (leak,) = [note for note in manifest.notes if "more than one split" in note]
        assert re.match(r"11 groups \(patient\) are in more than one split, .* are too high", leak)


class TestRpe:
    def test_windows_are_listed_by_image(self, tmp_path: Path) -> None:
        listing = list_rpe(write_rpe(tmp_path))
        assert classes(listing) == {"Fusiform": 16, "Epithelioid": 16, "Cobblestone": 16, "Mixed": 16}
        assert len({image.group for image in listing.images}) == 16
        assert listing.differences[-1] == "16 images by the second field of the names, published 195"

    @pytest.mark.parametrize("name", ["0_1_2_5_7.tif", "0_1_2_3.tif", "0_1_2_3_4_5.tif"])
    def test_names_of_another_form_are_refused(self, tmp_path: Path, name: str) -> None:
        write_image(write_rpe(tmp_path) / name, 1)
        with pytest.raises(DataError, match=f"1 names are of another form: Subwindows/{name}; expected"):
            list_rpe(tmp_path)

    def test_a_folder_without_windows_is_refused(self, tmp_path: Path) -> None:
        write_image(tmp_path / "a.png", 1)
        with pytest.raises(DataError, match="has no TIFF files"):
            list_rpe(tmp_path)

    def test_all_windows_in_other_classes_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "Subwindows").mkdir()
        for number in range(1862):  # no image is opened to list it
            (tmp_path / "Subwindows" / f"0_{number // 10}_{number % 10}_{1 + number % 4}_0.tif").touch()
        with pytest.raises(DataError, match="as published, but in other classes: Cobblestone: 465"):
            list_rpe(tmp_path)

    def test_the_published_classes_are_recognised(self, tmp_path: Path) -> None:
        (tmp_path / "Subwindows").mkdir()
        numbers = [1] * 216 + [2] * 547 + [3] * 949 + [4] * 150
        for number, label in enumerate(numbers):
            (tmp_path / "Subwindows" / f"0_{number % 195}_{number}_{label}_0.tif").touch()
        assert list_rpe(tmp_path).differences == []


SETS: dict[str, Callable[[Path], Path]] = {
    "malaria": write_malaria,
    "mhist": write_mhist,
    "medfm-colon": write_colon,
    "rpe": write_rpe,
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", SETS)
def test_each_is_imported_with_no_group_in_two_splits_and_can_be_trained_on(
    tmp_path: Path, kind: str, seed: int
) -> None:
    source = SETS[kind](tmp_path / "source")
    manifest = import_data_set(kind, source, tmp_path / "out", ImportOptions(seed=seed))
    splits = defaultdict(set)
    for row in read_index(tmp_path / "out"):
        splits[row.group or row.origin].add(row.split)
    assert all(len(each) == 1 for each in splits.values())
    assert {*manifest.counts} == {"train", "val", "test"}
    data = read_training_folder(tmp_path / "out")
    assert data.labels == tuple(sorted(data.labels))
    assert (data.groups != {}) == (kind != "mhist")
    assert data.counts() == manifest.counts


def test_a_partial_copy_is_refused_when_strict(tmp_path: Path) -> None:
    source = write_malaria(tmp_path / "source")
    with pytest.raises(DataError, match="Parasitized: 30 images, published 13,779; Uninfected: 30 images"):
        import_data_set("malaria", source, tmp_path / "out", ImportOptions(strict=True))
    assert not (tmp_path / "out").exists()
    assert len(MALARIA_PATIENTS) == import_data_set("malaria", source, tmp_path / "out").groups["train"] + 4
