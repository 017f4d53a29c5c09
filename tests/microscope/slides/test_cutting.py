"""Annotated slides to a data set, to a model that knows its scale, to the slides again."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image
from slide_files import HALF_A_MICRON, box, feature, tissue, write_geojson_of, write_tiff

from msmamba.cli import mmdeploy
from msmamba.data.coverage import Coverage, Spread
from msmamba.data.folders import read_training_folder
from msmamba.data.imported import INDEX, MANIFEST, check_contents, read_imported, read_index
from msmamba.data.published import ImportOptions
from msmamba.errors import DataError, ImageError, InputError
from msmamba.export.bundle import export_bundle
from msmamba.images import read_image, resized
from msmamba.microscope.slides import cutting
from msmamba.microscope.slides.cutting import CutOptions, import_slides
from msmamba.microscope.slides.results import read_rows
from msmamba.model.networks.microscopic_mamba import Architecture
from msmamba.model.training.loop import Hardware, train
from msmamba.model.training.recipe import Recipe

CUT = CutOptions(size=32, mpp=1.0)


def pixels_of(number: int) -> np.ndarray:
    """Tissue on glass that is never quite the same."""
    noise = np.random.default_rng(number).integers(-3, 4, (300, 420, 3))
    return np.clip(tissue().astype(int) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six slides with tissue and glass outlined, and one without annotations; not to be changed."""
    folder = tmp_path_factory.mktemp("annotated")
    for number in range(7):
        write_tiff(folder / f"s{number}.tif", pixels_of(number), levels=2, **HALF_A_MICRON)
        spot = box(52, 60, 210, 240)
        features = [feature("Glass", box(0, 0, 420, 300), spot), feature("a/b", spot), feature(None, spot)]
        if number < 6:
            write_geojson_of(folder / f"s{number}.geojson", *features)
    return folder


def slides_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tif"))


def test_tiles_are_cut_at_their_scale_and_no_slide_is_in_two_splits(annotated: Path, tmp_path: Path) -> None:
    manifest = import_slides(slides_of(annotated), annotated, tmp_path / "data", CUT)
    assert (manifest.kind, manifest.stored, manifest.labels) == ("slides", "made", ("Glass", "a_b"))
    assert manifest.groups == {"train": 4, "val": 1, "test": 1}
    assert manifest.covers == Coverage(Spread(32, 32, 32), Spread(32, 32, 32))
    assert any("1 slides have no annotations: s6" in note for note in manifest.notes)
    assert any("annotations without a class" in note for note in manifest.notes)
    assert check_contents(tmp_path / "data")[1] == {}
    assert {path.name for path in (tmp_path / "data").iterdir()} == {MANIFEST, INDEX, *manifest.counts}
    found = read_imported(tmp_path / "data")
    slides = [set(groups) for groups in found.groups.values()]
    assert sorted(name for each in slides for name in each) == [f"s{number}" for number in range(6)]
    rows = [*read_index(tmp_path / "data")]
    assert {(row.width, row.height) for row in rows} == {(32, 32)}
    for row in rows[:: len(rows) // 9]:
        name, x, y = Path(row.file).stem.split("-")
        assert row.group == name
        inside = 52 <= int(x) + 32 < 210 and 60 <= int(y) + 32 < 240
        assert row.label == ("a_b" if inside else "Glass")
        level = pixels_of(int(name[1:]))[::2, ::2]
        left, top = int(x) // 2, int(y) // 2
        part = np.pad(level, ((0, 32), (0, 32), (0, 0)), "symmetric")[top : top + 32, left : left + 32]
        stored = read_image(tmp_path / "data" / row.file)
        assert (stored[:8, :8] == part[:8, :8]).all()  # the border may be reflected


@pytest.mark.parametrize(("assumed", "microns"), [(None, 32), (0.25, 16)])
def test_without_a_scale_the_slides_pixels_are_taken_as_they_are(
    assumed: float | None, microns: float, annotated: Path, tmp_path: Path
) -> None:
    cut = CutOptions(size=64, assume_mpp=assumed)
    manifest = import_slides(slides_of(annotated), annotated, tmp_path / "data", cut)
    assert manifest.covers is not None
    assert manifest.covers.microns == (microns, microns, microns)
    row, *_ = read_index(tmp_path / "data")
    name, x, y = Path(row.file).stem.split("-")
    part = pixels_of(int(name[1:]))[int(y) : int(y) + 20, int(x) : int(x) + 20]
    assert (read_image(tmp_path / "data" / row.file)[:20, :20] == part).all()


def test_a_killed_import_cuts_no_tile_twice_but_after_a_change(
    annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def counting(*arguments: object) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 50:
            raise ImageError("the disk is gone")
        return read(*arguments)  # type: ignore[arg-type]

    read = cutting.read_tile
    monkeypatch.setattr(cutting, "read_tile", counting)
    with pytest.raises(ImageError, match="gone"):
        import_slides(slides_of(annotated), annotated, tmp_path / "data", CUT)
    assert not (tmp_path / "data").exists()
    first = import_slides(slides_of(annotated), annotated, tmp_path / "data", CUT)
    assert calls == 1 + sum(sum(each.values()) for each in first.counts.values())
    whole = import_slides(slides_of(annotated), annotated, tmp_path / "whole", CUT)
    assert whole.files == first.files


def test_a_killed_import_keeps_no_tile_of_another_white(
    annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(target: Path, content: bytes) -> None:
        kept.append(target)
        if len(kept) == 50:
            raise ImageError("the disk is gone")
        written(target, content)

    kept: list[Path] = []
    written = cutting._write
    monkeypatch.setattr(cutting, "_write", write)
    with pytest.raises(ImageError, match="gone"):
        import_slides(slides_of(annotated), annotated, tmp_path / "data", CUT)
    cut = import_slides(
        slides_of(annotated), annotated, tmp_path / "data", CUT, ImportOptions(white_level=4095)
    )
    assert len(kept) == 50 + sum(sum(each.values()) for each in cut.counts.values())


def test_what_cannot_be_read_is_left_out_where_that_is_asked_for(annotated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    shutil.copytree(annotated, folder)
    (folder / "s5.tif").write_bytes(b"II*\0\xff\xff\xff\x7f")
    with tifffile.TiffFile(folder / "s4.tif") as file:
        offset, size = file.pages[0].dataoffsets[8], file.pages[0].databytecounts[8]
    with (folder / "s4.tif").open("r+b") as damaged:
        damaged.seek(offset)
        damaged.write(b"\x55" * size)
    cut = CutOptions(size=32)  # of level 0, a tile of which is damaged
    with pytest.raises(ImageError, match="s4"):
        import_slides(slides_of(folder), folder, tmp_path / "data", cut)
    manifest = import_slides(slides_of(folder), folder, tmp_path / "data", cut, ImportOptions(skip_bad=True))
    assert sum(manifest.groups.values()) == 5
    notes = "\n".join(manifest.notes)
    assert f"a slide is left out: '{folder / 's5.tif'}' is damaged" in notes
    assert re.search(r"s4\.tif': \d tiles cannot be read and are left out: .*s4\.tif' cannot be read", notes)


def test_tiles_that_are_left_out_are_not_said_to_belong_to_nothing(tmp_path: Path) -> None:
    for number in range(6):
        pixels = pixels_of(number)[60:124, 60:124] if number else np.full((64, 64, 3), 255, np.uint8)
        write_tiff(tmp_path / f"s{number}.tif", pixels, **HALF_A_MICRON)
        halves = feature("a", box(0, 0, 32, 64)), feature("b", box(32, 0, 64, 64))
        write_geojson_of(tmp_path / f"s{number}.geojson", *halves)
    manifest = import_slides(slides_of(tmp_path), tmp_path, tmp_path / "out" / ".." / "data", CutOptions(16))
    about = [note for note in manifest.notes if "s0.tif" in note]
    assert about == [f"'{tmp_path / 's0.tif'}': 16 tiles of a single colour are left out"]
    with pytest.raises(DataError, match=r"and can be used: .*s0.tif': 16 tiles of a single colour"):
        import_slides([tmp_path / "s0.tif"], tmp_path, tmp_path / "none", CutOptions(16))


def test_tiles_of_a_single_colour_join_no_slides(tmp_path: Path) -> None:
    for number in range(5):
        pixels = np.full((64, 128, 3), 255, np.uint8)
        pixels[:, :64] = pixels_of(number)[60:124, 60:124]
        write_tiff(tmp_path / f"s{number}.tif", pixels, **HALF_A_MICRON)
        halves = feature("a", box(0, 0, 32, 64)), feature("b", box(32, 0, 128, 64))
        write_geojson_of(tmp_path / f"s{number}.geojson", *halves)
    manifest = import_slides(slides_of(tmp_path), tmp_path, tmp_path / "out" / ".." / "data", CutOptions(16))
    assert manifest.groups == {"train": 3, "val": 1, "test": 1}
    assert any("16 tiles of a single colour are left out" in note for note in manifest.notes)


@pytest.mark.parametrize(
    ("count", "cut", "options", "error", "said"),
    [
        (4, {}, {}, DataError, "4 slides have tiles of a class: .* at least 5"),
        (7, {"min_cover": 1.0, "size": 300}, {}, DataError, "no tile of s0, .* belongs to an annotation"),
        (7, {}, {"mpp": 0.5}, InputError, "leave such options out"),
        (7, {}, {"group_by": "x"}, InputError, "leave such options out"),
    ],
)
def test_what_cannot_be_made_of_slides_is_one_line(
    count: int,
    cut: dict[str, float],
    options: dict[str, object],
    error: type[Exception],
    said: str,
    annotated: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=said):
        import_slides(
            slides_of(annotated)[:count],
            annotated,
            tmp_path / "data",
            CutOptions(**{"size": 32, "mpp": 1.0, **cut}),  # type: ignore[arg-type]
            ImportOptions(**options),  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("other", ["a:b", "A/b"])
def test_classes_whose_names_make_one_folder_are_not_mixed(other: str, tmp_path: Path) -> None:
    for number, label in enumerate(["a/b", other]):
        write_tiff(tmp_path / f"s{number}.tif", pixels_of(number), levels=2, **HALF_A_MICRON)
        write_geojson_of(tmp_path / f"s{number}.geojson", feature(label, box(0, 0, 420, 300)))
    with pytest.raises(
        DataError, match=f"s1.geojson': the classes 'a/b' and '{other}' would share the folder '._b'"
    ):
        import_slides(slides_of(tmp_path), tmp_path, tmp_path / "data", CUT)


def test_a_slide_that_is_not_there_is_named(annotated: Path, tmp_path: Path) -> None:
    slides = [*slides_of(annotated), tmp_path / "lost.tif"]
    with pytest.raises(InputError, match=r"there is no slide .*lost\.tif"):
        import_slides(slides, annotated, tmp_path / "data", CUT)
    (tmp_path / "other.geojson").write_text("[]")
    with pytest.raises(InputError, match=r"holds no GeoJSON that is called as one of the slides \(s0, s1"):
        import_slides(slides_of(annotated), tmp_path, tmp_path / "data", CUT)


@pytest.mark.parametrize("change", [{"size": 0}, {"mpp": 0.0}, {"overlap": 1.0}, {"min_cover": 0.0}], ids=str)
def test_options_that_cannot_be_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected"):
        CutOptions(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["slides", "x", "-o", "y"], "needs --annotations"),
        (["folder", "x", "-o", "y", "--annotations", "z"], "are for KIND slides"),
        (["folder", "x", "-o", "y", "--size", "32"], "are for KIND slides"),
        (
            ["slides", "x", "-o", "y", "--annotations", "z", "--mpp", "files"],
            "is a number where tiles are cut",
        ),
        (["folder", "x", "-o", "y", "--mpp", "half"], "neither a number"),
        (
            ["slides", "x", "-o", "y", "--annotations", "z", "--group-by", "a", "--strict"],
            "leave --group-by, --strict out",
        ),
    ],
)
def test_options_of_other_imports_are_wrong_usage(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(mmdeploy, ["data", "import", *arguments])
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())


@pytest.mark.usefixtures("threads_as_before")
def test_from_annotations_to_a_map_without_a_word_about_scale(annotated: Path, tmp_path: Path) -> None:
    data, run, bundle, out = (tmp_path / name for name in ("data", "run", "bundle", "out"))
    cut = ["slides", annotated, "--annotations", annotated, "--size", 64, "--mpp", 1.0, "-o", data]
    done = CliRunner().invoke(mmdeploy, ["data", "import", *map(str, cut)])
    assert done.exit_code == 0, done.output
    assert "images of 64 pixels, 64 microns" in done.stdout
    arch = Architecture(depths=(1, 1), dims=(32, 64))
    recipe = Recipe(epochs=1, warmup_epochs=0, image_size=32)
    train(read_training_folder(data), run, arch, recipe, hardware=Hardware(threads=1))
    assert export_bundle(run / "best.safetensors", bundle).manifest.mpp == 2.0
    slide = ["slide", bundle, annotated / "s6.tif", "-o", out, "--no-tissue", "--threads", 1]
    done = CliRunner().invoke(mmdeploy, [*map(str, slide)])
    assert done.exit_code == 0, done.output
    rows = list(read_rows(out / "model-outputs-csv" / "s6.csv"))
    assert {each.tile.side for each in rows} == {128}  # 64 microns of half a micron each


def test_a_tile_is_what_the_network_would_be_shown(annotated: Path, tmp_path: Path) -> None:
    import_slides(slides_of(annotated), annotated, tmp_path / "data", CutOptions(size=40, mpp=0.75))
    row, *_ = read_index(tmp_path / "data")
    name, x, y = Path(row.file).stem.split("-")
    part = pixels_of(int(name[1:]))[int(y) : int(y) + 60, int(x) : int(x) + 60]
    with Image.open(tmp_path / "data" / row.file) as picture:
        assert (np.asarray(picture) == resized(np.ascontiguousarray(part), 40)).all()
