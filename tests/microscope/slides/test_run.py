"""From slides to a folder of results: right rows, the same bytes after every stop, no slide stops another."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from full_disk import no_file_larger_than
from PIL import Image
from slide_files import HALF_A_MICRON, box, check_geojson, feature, tissue, write_geojson_of, write_tiff

import msmamba
from msmamba.cli import mmdeploy
from msmamba.errors import ImageError, InputError, Note, TargetError
from msmamba.microscope.slides import classify_slide, open_slide, report, run, tiles
from msmamba.microscope.slides.engine import TileResult
from msmamba.microscope.slides.report import most_certain
from msmamba.microscope.slides.results import colour_of, header, read_rows, row
from msmamba.microscope.slides.run import SlideOptions, classify_slides
from msmamba.microscope.slides.slide import Slide
from msmamba.microscope.slides.tiling import Tile
from msmamba.microscope.slides.tissue import TissueOptions
from msmamba.runtime.session import Session

SMALL = TissueOptions(thumbsize=210, median_filter_size=3, closing_kernel_size=3, min_object_size_um2=200)
OPTIONS = SlideOptions(mpp=0.5, overlap=0.25, tissue=SMALL, batch_size=3)
AS_OPTIONS = [
    *("--threads", "1", "--mpp", "0.5", "--overlap", "0.25", "--batch-size", "3", "--seg-thumbsize", "210"),
    *("--seg-median-filter-size", "3", "--seg-closing-kernel-size", "3", "--seg-min-object-size-um2", "200"),
]
"""`OPTIONS` as the command takes them."""
NAMES = ("left", "right")


@pytest.fixture(scope="module")
def session(bundles: dict[str, Path]) -> Iterator[Session]:
    with msmamba.open(bundles["fp32"], threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two slides of which the second is the first, mirrored; not to be changed."""
    folder = tmp_path_factory.mktemp("two")
    for name, pixels in zip(NAMES, (tissue(), tissue()[:, ::-1]), strict=True):
        write_tiff(folder / f"{name}.tif", pixels, levels=2, **HALF_A_MICRON)
    return [folder / f"{name}.tif" for name in NAMES]


@pytest.fixture(scope="module")
def results(
    session: Session, bundles: dict[str, Path], slides: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The results of both slides in one go; not to be changed."""
    folder = tmp_path_factory.mktemp("results") / "out"
    classify_slides(session, bundles["fp32"], slides, folder, OPTIONS)
    return folder


def outputs(folder: Path) -> dict[str, bytes]:
    """What has to be the same whenever the slides are."""
    kinds = ("model-outputs-csv", "model-outputs-geojson", "masks", "heat-maps")
    files = (path for kind in kinds for path in (folder / kind).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_tile_is_classified_as_its_pixels_are(session: Session, slides: list[Path]) -> None:
    slide = open_slide(slides[0])
    found = list(classify_slide(session, slide, mpp=0.5, overlap=0.25, batch_size=3))
    assert [result.tile for result in found] == list(tiles(slide, 0.5, 32, 0.25))
    for result in found[:: len(found) // 7]:
        x, y, side = result.tile.x, result.tile.y, result.tile.side
        padded = np.pad(tissue(), ((0, side), (0, side), (0, 0)), "symmetric")
        (expected,) = session.classify([np.ascontiguousarray(padded[y : y + side, x : x + side])])
        # The reflection at the border begins at the border, as it does in the padded picture.
        assert result.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    slide.close()


def test_the_csv_has_wsinfers_columns(results: Path, session: Session) -> None:
    with (results / "model-outputs-csv" / "left.csv").open(newline="") as file:
        first, *rows = csv.reader(file)
    assert first == ["minx", "miny", "width", "height", *(f"prob_{each}" for each in session.labels), "error"]
    assert len(rows) > 20
    for values in rows:
        assert values[2:4] == ["32", "32"]
        assert sum(map(float, values[4:7])) == pytest.approx(1, abs=3e-6)
        assert values[7] == ""
    assert len({(values[0], values[1]) for values in rows}) == len(rows)


def test_a_row_is_read_as_it_was_written(session: Session, results: Path, tmp_path: Path) -> None:
    content = (results / "model-outputs-csv" / "right.csv").read_bytes()
    again = b"".join(row(each, 3) for each in read_rows(results / "model-outputs-csv" / "right.csv"))
    assert header(session.labels) + again == content


def test_the_geojson_is_what_qupath_reads(results: Path, session: Session) -> None:
    features = check_geojson((results / "model-outputs-geojson" / "left.geojson").read_text(), 420, 300)
    rows = list(read_rows(results / "model-outputs-csv" / "left.csv"))
    assert len(features) == len(rows)
    for drawn, each in zip(features, rows, strict=True):
        assert drawn["geometry"]["coordinates"][0][0] == [each.tile.x, each.tile.y]
        likeliest = int(np.argmax(each.probabilities))
        assert drawn["properties"]["classification"] == {
            "name": session.labels[likeliest],
            "color": list(colour_of(likeliest)),
        }
        assert list(drawn["properties"]["measurements"].values()) == list(each.probabilities)


def test_each_class_has_a_map_with_its_scale_and_a_picture(results: Path, session: Session) -> None:
    folder = results / "heat-maps" / "left"
    rows = list(read_rows(results / "model-outputs-csv" / "left.csv"))
    for index, label in enumerate(session.labels):
        slide = open_slide(folder / f"{index}-{label}.ome.tif")
        assert slide.scale.microns == pytest.approx(0.5 * 24 / 6)  # a stride of 24 pixels in 6 of the map
        level = slide.levels[0]
        assert (level.width, level.height) == (105, 75)
        first = next(each for each in rows if each.tile.x and each.tile.y)
        x, y = first.tile.x // 4, first.tile.y // 4
        assert slide.read(0, x, y, 8, 8).min() > 0
        slide.close()
        with Image.open(folder / f"{index}-{label}.png") as picture:
            assert picture.size == (210, 150)
    assert len(list(folder.iterdir())) == 2 * len(session.labels)


def test_what_the_guard_withholds_is_not_among_the_surest() -> None:
    sure, withheld, torn = (
        TileResult(Tile(0, 0, 8), (0.1, 0.9), ""),
        TileResult(Tile(8, 0, 8), (0.05, 0.95), "", decided=False, reasons=("uncertain",)),
        TileResult(Tile(16, 0, 8), (), "unreadable"),
    )
    assert most_certain([sure, withheld, torn], 2, 6) == [[], [sure]]


def test_the_report_is_one_page_with_the_surest_tiles(results: Path, session: Session) -> None:
    page = (results / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    rows = list(read_rows(results / "model-outputs-csv" / "left.csv"))
    groups = most_certain(iter(rows), 3, 6)
    for index, group in enumerate(groups):
        of_class = [each for each in rows if each.likeliest == index]
        best = sorted((each.probabilities[index] for each in of_class), reverse=True)[:6]
        assert [each.probabilities[index] for each in group] == best
        for each in group:
            assert f"{each.probabilities[index]:.4f} at {each.tile.x}, {each.tile.y}" in page
    tiles = sum(
        len(group) for group in most_certain(read_rows(results / "model-outputs-csv" / "right.csv"), 3, 6)
    )
    classes = len(session.labels)
    pictures = 2 * (2 + classes)  # thumbnail, mask and maps of two slides
    assert page.count("<img ") == pictures + tiles + sum(map(len, groups))
    # Each map lies over its own slide, whose picture is in the page once more for all of them.
    for number in (1, 2):
        (below,) = re.findall(rf'\.slide-{number} {{ background-image: url\("([^"]*)"\)', page)
        assert page.count(f'src="{below}"') == 1
        assert page.count(f'<div class="compare slide-{number}">') == classes
    assert page.count('<input type="range"') == 2 * classes
    assert "420 x 300 pixels of 0.5 µm, in tiles of 32 (16 µm), read by OpenSlide" in page


def test_every_class_has_a_colour_of_its_own() -> None:
    assert len({colour_of(index) for index in range(40)}) == 40


def test_gzip_holds_the_same_geojson(
    session: Session, bundles: dict[str, Path], slides: list[Path], results: Path, tmp_path: Path
) -> None:
    options = SlideOptions(**{**vars(OPTIONS), "gzip": True})
    classify_slides(session, bundles["fp32"], slides[:1], tmp_path / "out", options)
    packed = (tmp_path / "out" / "model-outputs-geojson" / "left.geojson.gz").read_bytes()
    assert gzip.decompress(packed) == (results / "model-outputs-geojson" / "left.geojson").read_bytes()
    assert packed[4:8] == b"\0\0\0\0"  # no time in it


def test_the_run_and_the_summary_say_what_became_of_each_slide(results: Path) -> None:
    run = json.loads((results / "run.json").read_text())
    assert run["interrupted"] is False
    assert len(run["artefact_sha256"]) == 64
    assert run["slides"]["left"]["microns_a_pixel"] == pytest.approx(0.5)
    with (results / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [each["slide"] for each in rows] == list(NAMES)
    for each in rows:
        shares = [float(value) for column, value in each.items() if column.startswith("share_")]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert float(each["tissue"]) == pytest.approx(0.225, abs=0.03)
        lines = (results / "model-outputs-csv" / f"{each['slide']}.csv").read_text().count("\n")
        assert int(each["tiles"]) == lines - 1
    assert list((results / "partial").iterdir()) == []


class Stop(Exception):
    """Stands for a kill: nothing is cleaned up after the last flush."""


@pytest.mark.parametrize("seed", range(3))
def test_stopped_at_any_moment_it_ends_with_the_same_bytes(
    seed: int, session: Session, bundles: dict[str, Path], slides: list[Path], results: Path, tmp_path: Path
) -> None:
    generator = np.random.default_rng(seed)
    stops = 0
    while True:
        left = int(generator.integers(1, 14))

        def stop(name: str, done: int, total: int) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Stop

        try:
            classify_slides(session, bundles["fp32"], slides, tmp_path / "out", OPTIONS, stop)
            break
        except Stop:
            stops += 1
            assert json.loads((tmp_path / "out" / "run.json").read_text())["interrupted"] is True
            for partial in (tmp_path / "out" / "partial").iterdir():  # a kill tears the last rows
                content = partial.read_bytes()
                partial.write_bytes(content[: len(content) - int(generator.integers(0, 120))])
    assert stops >= 3
    assert outputs(tmp_path / "out") == outputs(results)


def test_of_many_slides_what_was_found_is_told_after_some_tiles(
    session: Session,
    bundles: dict[str, Path],
    slides: list[Path],
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "_FEW", -1_000_000)  # as if slides were so many
    killed = tmp_path / "killed"

    def copied(name: str, done: int, total: int) -> None:
        if name == "right" and done and not killed.exists():
            shutil.copytree(tmp_path / "out", killed)

    def stop(name: str, done: int, total: int) -> None:
        if name == "right" and done:
            raise Stop

    classify_slides(session, bundles["fp32"], slides, tmp_path / "out", OPTIONS, copied)
    assert outputs(tmp_path / "out") == outputs(results)

    # What a kill would have left: the first slide's rows, of which nobody says what file they are of.
    assert json.loads((killed / "run.json").read_text())["slides"] == {}
    assert (killed / "partial" / "left.csv").exists()
    shutil.copytree(killed, tmp_path / "of another")
    (tmp_path / "other").mkdir()
    other = Path(shutil.copy(slides[1], tmp_path / "other" / "left.tif"))
    classify_slides(session, bundles["fp32"], [other], tmp_path / "of another", OPTIONS)
    found, expected = (
        folder / "model-outputs-csv" / f"{name}.csv"
        for folder, name in ((tmp_path / "of another", "left"), (results, "right"))
    )
    assert found.read_bytes() == expected.read_bytes()
    classify_slides(session, bundles["fp32"], slides, killed, OPTIONS)
    assert outputs(killed) == outputs(results)

    # An error tells what was found before it.
    with pytest.raises(Stop):
        classify_slides(session, bundles["fp32"], slides, tmp_path / "stopped", OPTIONS, stop)
    assert "shares" in json.loads((tmp_path / "stopped" / "run.json").read_text())["slides"]["left"]
    assert (tmp_path / "stopped" / "model-outputs-csv" / "left.csv").exists()


def test_killed_and_started_again_it_ends_with_the_same_bytes(
    session: Session, bundles: dict[str, Path], slides: list[Path], tmp_path: Path
) -> None:
    """Two real SIGKILLs in the middle of a slide, so two processes, of a second or two each."""
    options = replace(OPTIONS, overlap=0.75)
    classify_slides(session, bundles["fp32"], slides[:1], tmp_path / "whole", options)
    arguments = ["slide", str(bundles["fp32"]), str(slides[0]), "-o", str(tmp_path / "out"), *AS_OPTIONS]
    arguments[arguments.index("--overlap") + 1] = "0.75"
    partial = tmp_path / "out" / "partial" / "left.csv"
    for rows in (20, 120):
        process = subprocess.Popen([sys.executable, "-m", "msmamba", *arguments], stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if partial.exists() and partial.read_bytes().count(b"\n") > rows:
                process.kill()
            time.sleep(0.002)
        assert process.returncode == -signal.SIGKILL
        assert partial.exists()
    done = CliRunner().invoke(mmdeploy, arguments)
    assert done.exit_code == 0, done.stderr
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")


def test_a_full_disk_is_told_with_what_to_do_and_the_run_goes_on_from_there(
    session: Session, bundles: dict[str, Path], slides: list[Path], results: Path, tmp_path: Path
) -> None:
    before_rows = [results / "run.json", results / "thumbnails" / "left.png", results / "masks" / "left.png"]
    options = replace(OPTIONS, overlap=0.9)  # so many rows that they are larger than all that
    with (
        no_file_larger_than(max(path.stat().st_size for path in before_rows) + 4096),
        pytest.raises(TargetError, match=r"left\.csv': the file system or a limit of this process allows no"),
    ):
        classify_slides(session, bundles["fp32"], slides[:1], tmp_path / "out", options)
    classify_slides(session, bundles["fp32"], slides[:1], tmp_path / "out", options)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["interrupted"] is False


def test_what_is_done_is_not_done_again(
    session: Session, bundles: dict[str, Path], slides: list[Path], tmp_path: Path
) -> None:
    told: list[str] = []
    classify_slides(session, bundles["fp32"], slides[:1], tmp_path / "out", OPTIONS)
    classify_slides(
        session,
        bundles["fp32"],
        slides,
        tmp_path / "out",
        OPTIONS,
        lambda name, done, total: told.append(name),
    )
    assert set(told) == {"right"}


def test_slides_of_earlier_calls_stay_in_the_summary_and_on_the_page(
    session: Session,
    bundles: dict[str, Path],
    slides: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So does what they show: by a path from another working folder another file may be meant."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    shutil.copy2(slides[0], tmp_path / "here" / "left.tif")
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path / "here")
    classify_slides(session, bundles["fp32"], [Path("left.tif")], out, OPTIONS)
    monkeypatch.chdir(tmp_path / "there")
    shutil.copy(slides[1], "left.tif")
    classify_slides(session, bundles["fp32"], slides[1:], out, OPTIONS)
    with (out / "summary.csv").open(newline="") as file:
        assert [row["slide"] for row in csv.DictReader(file)] == ["right", "left"]
    right, left = (out / "report.html").read_text().split("<h2>right</h2>")[1].split("<h2>left</h2>")
    assert "most certain" in right
    assert "map of" in left
    assert "most certain" not in left
    classify_slides(session, bundles["fp32"], [tmp_path / "here" / "left.tif"], out, OPTIONS)
    left, right = (out / "report.html").read_text().split("<h2>left</h2>")[1].split("<h2>right</h2>")
    assert "most certain" in left
    assert "most certain" in right


@pytest.mark.parametrize(
    ("change", "said"),
    [({"overlap": 0.5}, "overlap is 0.25 there and 0.5 here"), ({"mpp": 0.6}, "mpp is 0.5 there and 0.6")],
)
def test_results_of_other_options_are_not_added_to(
    change: dict[str, Any],
    said: str,
    session: Session,
    bundles: dict[str, Path],
    slides: list[Path],
    results: Path,
) -> None:
    with pytest.raises(TargetError, match=said):
        classify_slides(
            session, bundles["fp32"], slides, results, SlideOptions(**{**vars(OPTIONS), **change})
        )


def test_results_of_another_model_are_not_added_to(
    session: Session, bundles: dict[str, Path], slides: list[Path], results: Path
) -> None:
    with pytest.raises(TargetError, match="artefact_sha256"):
        classify_slides(session, bundles["fp16"], slides, results, OPTIONS)


def test_a_folder_of_something_else_is_left_alone(
    session: Session, bundles: dict[str, Path], slides: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(TargetError, match="something else"):
        classify_slides(session, bundles["fp32"], slides, tmp_path, OPTIONS)
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_slide_that_was_replaced_is_told(
    session: Session, bundles: dict[str, Path], tmp_path: Path
) -> None:
    path = write_tiff(tmp_path / "a.tif", tissue(), **HALF_A_MICRON)
    classify_slides(session, bundles["fp32"], [path], tmp_path / "out", OPTIONS)
    before = outputs(tmp_path / "out")
    write_tiff(path, tissue(200, 200), **HALF_A_MICRON)
    for _ in range(2):
        with pytest.raises(ImageError, match="is not the file"):
            classify_slides(session, bundles["fp32"], [path], tmp_path / "out", OPTIONS)
    assert outputs(tmp_path / "out") == before


def test_two_slides_of_one_name_are_refused(
    session: Session, bundles: dict[str, Path], tmp_path: Path
) -> None:
    for other in ("b/x.tif", "a/X.svs"):  # the results of the latter take each other's place on Windows
        with pytest.raises(InputError, match=rf"a/x\.svs.*{other}.*same name"):
            classify_slides(
                session, bundles["fp32"], [Path("a/x.svs"), Path(other)], tmp_path / "out", OPTIONS
            )


def damage_a_tile(path: Path) -> None:
    with tifffile.TiffFile(path) as file:
        offset, size = file.pages[0].dataoffsets[8], file.pages[0].databytecounts[8]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x55" * size)


def test_bad_slides_and_tiles_stop_nothing_and_are_told(
    bundles: dict[str, Path], slides: list[Path], results: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "right.tif").write_bytes(slides[1].read_bytes())
    write_tiff(folder / "torn.tif", tissue(), **HALF_A_MICRON)
    damage_a_tile(folder / "torn.tif")
    (folder / "cut.svs").write_bytes(b"II*\0\xff\xff\xff\x7f")
    Image.fromarray(tissue()).save(folder / "unscaled.png")
    (folder / "notes.txt").write_text("passed over")
    arguments = ["slide", str(bundles["fp32"]), str(folder), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(mmdeploy, [*arguments, *AS_OPTIONS])
    assert done.exit_code == 1
    assert "error: 2 of 4 slides could not be classified (cut, unscaled): " in done.stderr
    assert "1 .txt (read: .bif," in done.stderr
    assert "right: 0 of" in done.stderr
    run = json.loads((tmp_path / "out" / "run.json").read_text())["slides"]
    assert "damaged" in run["cut"]["error"]
    assert "--assume-mpp" in run["unscaled"]["error"]
    assert "--pixel-for-pixel" in run["unscaled"]["error"]
    assert run["torn"]["unreadable"] > 0
    rows = list(read_rows(tmp_path / "out" / "model-outputs-csv" / "torn.csv"))
    unread = [each for each in rows if each.error]
    assert len(unread) == run["torn"]["unreadable"] < len(rows)
    assert all(each.probabilities == () and "torn.tif" in each.error for each in unread)
    features = check_geojson(
        (tmp_path / "out" / "model-outputs-geojson" / "torn.geojson").read_text(), 420, 300
    )
    assert len(features) == len(rows) - len(unread)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('class="error"') == 2
    name = "model-outputs-csv/right.csv"
    assert (tmp_path / "out" / name).read_bytes() == (results / name).read_bytes()


def test_a_slide_of_which_no_tile_can_be_read_is_not_done(
    session: Session, bundles: dict[str, Path], tmp_path: Path
) -> None:
    path, out = write_tiff(tmp_path / "a.ome.tif", tissue(), ome=True, metadata=None), tmp_path / "out"
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        offsets, sizes = file.pages[0].dataoffsets, file.pages[0].databytecounts
    with path.open("r+b") as torn:
        for offset, size in zip(offsets, sizes, strict=True):
            torn.seek(offset)
            torn.write(b"\x55" * size)
    options = SlideOptions(pixel_for_pixel=True, tissue=SMALL)
    with pytest.raises(
        ImageError, match=r"none of its 140 tiles can be read: '.*a\.ome\.tif' cannot be read: tile"
    ):
        classify_slides(session, bundles["fp32"], [path], out, options)
    assert [each.name for each in out.rglob("a.ome*")] == ["a.ome.png"] * 2
    path.write_bytes(whole)
    classify_slides(session, bundles["fp32"], [path], out, options)
    assert all(not each.error for each in read_rows(out / "model-outputs-csv" / "a.ome.csv"))


@pytest.mark.parametrize("sub", [False, True], ids=["openslide", "tifffile"])
@pytest.mark.parametrize("goes", [True, False], ids=["goes-away", "is-written-to"])
def test_a_slide_that_changes_while_it_is_read_is_not_done(
    goes: bool, sub: bool, session: Session, bundles: dict[str, Path], tmp_path: Path
) -> None:
    slide = write_tiff(tmp_path / "left.tif", tissue(), levels=2, sub=sub, compression=None, **HALF_A_MICRON)
    whole, status = slide.read_bytes(), slide.stat()

    def lose(name: str, done: int, tiles: int) -> None:
        if done == OPTIONS.batch_size:
            os.truncate(slide, 1000)  # what is open is the same file, as on a drive that answers no more
            if goes:
                slide.unlink()

    folder = tmp_path / "out"
    with pytest.raises(ImageError, match=r"1 of 1 slides could not be classified \(left\): .*left\.tif' "):
        classify_slides(session, bundles["fp32"], [slide], folder, OPTIONS, lose)
    assert not outputs(folder).keys() & {f"model-outputs-{kind}/left.{kind}" for kind in ("csv", "geojson")}

    slide.write_bytes(whole)
    os.utime(slide, ns=(status.st_atime_ns, status.st_mtime_ns))
    classify_slides(session, bundles["fp32"], [slide], folder, OPTIONS)
    classify_slides(session, bundles["fp32"], [slide], tmp_path / "fresh", OPTIONS)
    assert outputs(folder) == outputs(tmp_path / "fresh")


def test_tiles_that_could_not_be_read_are_read_again_by_the_next_call(
    session: Session, bundles: dict[str, Path], slides: list[Path], results: Path, tmp_path: Path
) -> None:
    """As after Ctrl-C while a drive was away."""
    folder = tmp_path / "out"
    shutil.copytree(results, folder)
    done, partial = (folder / kind / "left.csv" for kind in ("model-outputs-csv", "partial"))
    first, *rows = done.read_text().splitlines(keepends=True)
    at = 2 * OPTIONS.batch_size + 1
    place = ",".join(rows[at].split(",")[:4])
    partial.write_text(
        "".join([first, *rows[:at], f"{place},,,,the drive is away\n", *rows[at + 1 : at + 5]])
    )
    done.unlink()
    begun: list[int] = []
    classify_slides(
        session, bundles["fp32"], slides[:1], folder, OPTIONS, lambda name, done, tiles: begun.append(done)
    )
    assert begun[0] == 2 * OPTIONS.batch_size
    assert outputs(folder) == outputs(results)


def test_what_reading_a_slide_had_to_decide_is_told_and_kept(
    session: Session, bundles: dict[str, Path], tmp_path: Path
) -> None:
    dark = tissue().astype(np.uint16) << 4
    slide = write_tiff(tmp_path / "dark.ome.tif", dark, ome=True, metadata={"axes": "YXS"})
    options = replace(OPTIONS, tissue=None, mpp=None, pixel_for_pixel=True)
    said = "dark.ome.tif': 16 bit, but the largest value is 4080 (12 bits used): read as dark"
    with pytest.warns(Note, match=re.escape(said)):
        classify_slides(session, bundles["fp32"], [slide], tmp_path / "out", options)
    (note,) = json.loads((tmp_path / "out" / "run.json").read_text())["slides"]["dark.ome"]["notes"]
    assert said in note
    assert "16 bit, but the largest value is 4080" in (tmp_path / "out" / "report.html").read_text()


def test_a_name_that_the_results_drive_does_not_take_stops_no_other_slide(
    session: Session, bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def as_on_a_stick(path: Path, *arguments: Any, **options: Any) -> Any:
        if ":" in path.name and path.is_relative_to(tmp_path / "out"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))
        return opened(path, *arguments, **options)

    one, other = (write_tiff(tmp_path / f"{name}.tif", tissue()) for name in ("a:1", "b"))
    options = SlideOptions(pixel_for_pixel=True, tissue=None)
    monkeypatch.setattr(Path, "open", as_on_a_stick)
    with pytest.raises(
        ImageError, match=r"1 of 2 slides .*'a:1.geojson' cannot be a file of results: the file"
    ):
        classify_slides(session, bundles["fp32"], [one, other], tmp_path / "out", options)
    assert (tmp_path / "out" / "model-outputs-csv" / "b.csv").exists()


@pytest.mark.parametrize("roi", [False, True], ids=["all", "roi"])
def test_a_name_that_is_too_long_for_results_stops_no_other_slide(
    roi: bool, session: Session, bundles: dict[str, Path], tmp_path: Path
) -> None:
    long, short = (write_tiff(tmp_path / f"{name}.tif", tissue()) for name in ("a" * 250, "b"))
    write_geojson_of(tmp_path / "b.geojson", feature("x", box(0, 0, 64, 64)))
    options = SlideOptions(pixel_for_pixel=True, tissue=None, roi=tmp_path if roi else None)
    with pytest.raises(ImageError, match=r"1 of 2 slides could not be classified .*: file name too long"):
        classify_slides(session, bundles["fp32"], [long, short], tmp_path / "out", options)
    assert [*(tmp_path / "out" / "partial").iterdir()] == []
    (done,) = (tmp_path / "out" / "model-outputs-csv").iterdir()
    assert done.name == "b.csv"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mpp", "0.5", "--pixel-for-pixel"], "leave --mpp out"),
        (["--mpp", "0.5", "--no-tissue", "--min-tissue", "0.5"], "no other option of tissue"),
        (["--mpp", "0.5", "--ray-address", "auto"], "--executor ray"),
    ],
    ids=["two-scales", "no-tissue", "no-ray"],
)
def test_options_that_do_not_go_together_are_wrong_usage(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(mmdeploy, ["slide", "x", "y", "-o", "z", *arguments])
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())


def test_a_field_that_is_stored_turned_is_told(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(tissue()).save(tmp_path / "phone.png", exif=exif)
    slide = open_slide(tmp_path / "phone.png")
    assert (slide.levels[0].width, slide.levels[0].height) == (300, 420)
    (note,) = slide.notes
    assert "positions are of it upright" in note
    slide.close()


def test_a_field_goes_pixel_for_pixel(bundles: dict[str, Path], tmp_path: Path) -> None:
    Image.fromarray(tissue(70, 100)).save(tmp_path / "field.png")
    arguments = ["slide", str(bundles["fp32"]), str(tmp_path / "field.png"), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(mmdeploy, [*arguments, "--pixel-for-pixel", "--no-tissue", "--threads", "1"])
    assert done.exit_code == 0, done.stderr
    assert f"report: {tmp_path / 'out' / 'report.html'}" in done.stderr
    assert len(list(read_rows(tmp_path / "out" / "model-outputs-csv" / "field.csv"))) == 12
    assert list((tmp_path / "out" / "masks").iterdir()) == []


def test_without_the_extra_the_command_says_what_to_install(
    bundles: dict[str, Path], slides: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    arguments = ["slide", str(bundles["fp32"]), str(slides[0]), "-o", str(tmp_path / "out"), "--mpp", "0.5"]
    done = CliRunner().invoke(mmdeploy, arguments)
    assert done.exit_code == 1
    assert "pip install 'msmamba[slides]'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_ray_the_command_says_what_to_install(
    bundles: dict[str, Path], slides: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["slide", str(bundles["fp32"]), str(slides[0]), "-o", str(tmp_path / "out"), "--mpp", "0.5"]
    done = CliRunner().invoke(mmdeploy, [*arguments, "--executor", "ray"])
    assert done.exit_code == 1
    assert "pip install 'msmamba[slides,ray]'" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change", [{"mpp": 0.0}, {"assume_mpp": -1.0}, {"overlap": 1.0}, {"batch_size": 0}], ids=str
)
def test_options_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected"):
        SlideOptions(**{"mpp": 0.5, **change})


CSV, PARTIAL = Path("model-outputs-csv/left.csv"), Path("partial/left.csv")


@pytest.fixture
def kept(results: Path, tmp_path: Path) -> Path:
    """A copy of the results, to be changed."""
    return Path(shutil.copytree(results, tmp_path / "kept"))


def said_of(kept: Path, **changes: object) -> None:
    """Lets ``run.json`` say something else of a slide."""
    content = json.loads((kept / "run.json").read_text())
    content["slides"]["left"].update(changes)
    (kept / "run.json").write_text(json.dumps(content))


def again(session: Session, bundles: dict[str, Path], slides: list[Path], kept: Path) -> None:
    classify_slides(session, bundles["fp32"], slides, kept, OPTIONS)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[1]", b"[" * 100_000, b"\xff", b"{}"),
        b'{"format_version": 1, "options": [1], "slides": {}}',
        b'{"format_version": 1, "options": {}, "slides": [1, 2]}',
        b'{"format_version": 1, "options": {}, "slides": {"left": 5}}',
    ],
)
def test_a_record_of_results_that_is_none_is_refused(
    content: bytes, session: Session, bundles: dict[str, Path], slides: list[Path], kept: Path
) -> None:
    (kept / "run.json").write_bytes(content)
    with pytest.raises(TargetError, match=r"run\.json' is damaged"):
        again(session, bundles, slides, kept)


def test_a_record_that_cannot_be_read_is_told_without_numbers_of_the_system(
    session: Session, bundles: dict[str, Path], slides: list[Path], kept: Path
) -> None:
    (kept / "run.json").unlink()
    (kept / "run.json").mkdir()
    with pytest.raises(
        TargetError, match=r"run\.json' is damaged \(it is a folder: expected a file\): choose"
    ):
        again(session, bundles, slides, kept)


@pytest.mark.parametrize(
    "changes",
    [
        {"shares": {"basophil": "x"}},
        {"shares": {"basophil": float("nan")}},
        {"path": 5},
        {"error": ["a"]},
        {"tiles": "x"},
        {"tissue": "<b>"},
        {"seconds": "=1+1"},
        {"content": "x"},
        {"reader": {}},
        {"tile": "32"},
        {"microns_a_pixel": "x"},
    ],
    ids=str,
)
def test_facts_of_other_types_are_refused(
    changes: dict[str, Any], session: Session, bundles: dict[str, Path], slides: list[Path], kept: Path
) -> None:
    said_of(kept, **changes)
    with pytest.raises(TargetError, match=r"run\.json' is damaged"):
        again(session, bundles, slides, kept)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0,1\n", b"minx\n0,0,32,32,1,0,0,\n"], ids=str)
def test_rows_that_are_none_are_named_and_stop_no_other_slide(
    content: bytes, session: Session, bundles: dict[str, Path], slides: list[Path], kept: Path
) -> None:
    (kept / CSV).write_bytes(content)
    with pytest.raises(
        ImageError, match=r"1 of 2 slides could not be.*left.csv' is not what slide has written"
    ):
        again(session, bundles, slides, kept)
    assert "right" in (kept / "summary.csv").read_text()


@pytest.mark.parametrize("gone", ["shares", "size", "tile", "reader", "tissue"])
def test_a_record_that_lacks_what_was_found_is_named_and_stops_no_other_slide(
    gone: str, session: Session, bundles: dict[str, Path], slides: list[Path], kept: Path
) -> None:
    content = json.loads((kept / "run.json").read_text())
    del content["slides"]["left"][gone]
    (kept / "run.json").write_text(json.dumps(content))
    with pytest.raises(ImageError, match=r"1 of 2 slides could not be.*does not say what was found there"):
        again(session, bundles, slides, kept)
    assert (kept / "report.html").exists()


def test_shares_of_other_classes_are_named_and_stop_no_other_slide(
    session: Session, bundles: dict[str, Path], slides: list[Path], kept: Path
) -> None:
    said_of(kept, shares={"basophil": 1.0})
    with pytest.raises(ImageError, match=r"1 of 2 slides could not be.*does not say what was found there"):
        again(session, bundles, slides, kept)
    assert (kept / "report.html").exists()


def test_rows_behind_which_a_hole_gapes_are_gone_on_from(
    session: Session,
    bundles: dict[str, Path],
    slides: list[Path],
    kept: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = (kept / CSV).read_bytes()
    (kept / CSV).rename(kept / PARTIAL)
    with (kept / PARTIAL).open("r+b") as file:
        file.truncate(len(whole) // 2)
        file.truncate(2 * len(whole))
    monkeypatch.setattr("msmamba.microscope.slides.run.LONGEST_LINE", 200)
    again(session, bundles, slides, kept)
    assert (kept / CSV).read_bytes() == whole


@pytest.mark.parametrize(
    "cells",
    [
        *("a,0,32,32,1,0,0,", "0,0,32,32,1,0,0", "0,0,32,32,nan,0,0,", "0,0,32,32,2,0,0,", "0,0,0,0,1,0,0,"),
        *("0,0,32,31,1,0,0,", "-1,0,32,32,1,0,0,", f"{'9' * 5000},0,32,32,1,0,0,", "0,0,32,32,,,,"),
    ],
)
def test_cells_that_are_none_are_one_error(cells: str, session: Session, tmp_path: Path) -> None:
    path = tmp_path / "left.csv"
    path.write_bytes(header(session.labels or ()) + f"0,0,32,32,1,0,0,\n{cells}\n".encode())
    with pytest.raises(InputError, match=r"left\.csv' is not what slide has written: row 2: "):
        list(read_rows(path))


def test_pictures_that_are_gone_or_damaged_are_left_out_of_the_page(
    session: Session, bundles: dict[str, Path], slides: list[Path], kept: Path
) -> None:
    before = (kept / "report.html").read_text().count("<img")
    (kept / "thumbnails" / "left.png").unlink()
    (kept / "masks" / "left.png").write_bytes(b"no picture")
    with pytest.warns(Note, match=r"the report shows no picture: '.*left\.png' is not a"):
        again(session, bundles, slides, kept)
    assert (kept / "report.html").read_text().count("<img") == before - 2


def test_the_page_of_many_slides_pictures_the_first(
    session: Session,
    bundles: dict[str, Path],
    slides: list[Path],
    kept: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thousand slides were half a gigabyte, and each call opened all of them anew."""
    opened: list[str] = []

    def counting(path: str, **options: Any) -> Slide:
        opened.append(Path(path).name)
        return open_slide(path, **options)

    monkeypatch.setattr(report, "_ROOM", 1)
    monkeypatch.setattr(report, "open_slide", counting)
    again(session, bundles, slides, kept)
    page = (kept / "report.html").read_text()
    first, second = slides
    assert opened == [first.name]
    assert f"<h2>{first.stem}</h2>" in page
    assert f"<h2>{second.stem}</h2>" not in page
    assert f"<tr><td>{second.stem}</td>" in page
    assert "1 of them has its row here alone" in page
    assert not report.has_room({"left": [{"tiles": [{"url": "data:"}]}]})


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_nothing_is_written_through_links_in_a_folder_of_results(
    session: Session, bundles: dict[str, Path], slides: list[Path], results: Path, kept: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious\n")
    (kept / CSV).unlink()
    for name in (PARTIAL, "summary.csv", "report.html", "thumbnails/left.png"):
        (kept / name).unlink(missing_ok=True)
        (kept / name).symlink_to(precious)
    again(session, bundles, slides, kept)
    assert precious.read_text() == "precious\n"
    assert not (kept / CSV).is_symlink()
    assert outputs(kept) == outputs(results)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
@pytest.mark.parametrize("name", ["partial", "heat-maps", "model-outputs-csv", "heat-maps/left"])
def test_folders_of_results_are_no_links(
    name: str, session: Session, bundles: dict[str, Path], slides: list[Path], kept: Path, tmp_path: Path
) -> None:
    (kept / CSV).unlink()
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(kept / name)
    (kept / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TargetError, match="is a link: expected a folder of results"):
        again(session, bundles, slides, kept)
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
def test_a_pipe_in_the_place_of_rows_is_taken_away(
    session: Session, bundles: dict[str, Path], slides: list[Path], results: Path, kept: Path
) -> None:
    (kept / CSV).unlink()
    os.mkfifo(kept / PARTIAL)
    again(session, bundles, slides, kept)
    assert outputs(kept) == outputs(results)


@pytest.mark.parametrize("slides", [None, "a.tif", Path("a.tif"), [None], [5]])
def test_what_is_no_list_of_slides_is_refused(
    slides: Any, session: Session, bundles: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"expected a (list of slides|path), found"):
        classify_slides(session, bundles["fp32"], slides, tmp_path / "out", OPTIONS)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are Unicode")
def test_a_name_that_is_not_utf_8_gets_results_like_others(bundles: dict[str, Path], tmp_path: Path) -> None:
    field = tmp_path / os.fsdecode(b"\xff.png")
    Image.fromarray(tissue(64, 96)).save(field)
    words = ["slide", str(bundles["fp32"]), str(field), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(mmdeploy, [*words, "--pixel-for-pixel", "--no-tissue", "--threads", "1"])
    assert done.exit_code == 0, done.stderr
