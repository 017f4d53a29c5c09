"""Regions drawn in QuPath: read as it writes them, mended or left out with a line, and their tiles."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from click.testing import CliRunner
from slide_files import (
    HALF_A_MICRON,
    box,
    check_geojson,
    feature,
    tissue,
    write_geojson_of,
    write_scn,
    write_tiff,
)

from msmamba.cli import mmdeploy
from msmamba.data.imported import read_index
from msmamba.errors import InputError
from msmamba.images import read_image
from msmamba.microscope.slides import (
    Bounds,
    Tile,
    Within,
    open_slide,
    read_regions,
    regions,
    tiles,
    tissue_mask,
)
from msmamba.microscope.slides.cutting import CutOptions, import_slides
from msmamba.microscope.slides.regions import check_annotations, file_of, labels_of
from msmamba.microscope.slides.results import read_rows
from msmamba.microscope.slides.tissue import TissueOptions

KNOT = [[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]


def test_a_hole_is_no_part_of_a_region(tmp_path: Path) -> None:
    path = write_geojson_of(tmp_path / "a.geojson", feature("Tumor", box(0, 0, 90, 90), box(30, 30, 60, 60)))
    regions = read_regions(path, 420, 300)
    assert regions.notes == ()
    assert regions.outline.area == 90 * 90 - 30 * 30
    within = Within(regions)
    assert within.has_tissue(0, 0, 30, 30)
    assert not within.has_tissue(30, 30, 30, 30)
    assert not within.has_tissue(90, 0, 30, 30)


def written(geometry: dict[str, Any], **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


AREA = {"type": "Polygon", "coordinates": [box(0, 0, 10, 10)]}
FORMS: dict[str, tuple[Any, str]] = {
    "collection": ({"type": "FeatureCollection", "features": [feature("A b", box(0, 0, 10, 10))]}, "A b"),
    "list": ([feature("x", box(0, 0, 10, 10))], "x"),
    "one": (feature("x", box(0, 0, 10, 10)), "x"),
    "unclassified": (feature(None, box(0, 0, 10, 10)), ""),
    "names": (written(AREA, classification={"names": ["Tumor", "Positive"]}), "Tumor: Positive"),
    "older": (written(AREA, object_type="annotation", classification={"name": "x", "colorRGB": -1}), "x"),
    "text": (written(AREA, classification=" x "), "x"),
    "bare": ({"type": "Feature", "geometry": AREA}, ""),
    "multi": (
        written({"type": "MultiPolygon", "coordinates": [[box(0, 0, 5, 10)], [box(5, 0, 10, 10)]]}),
        "",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_every_form_that_qupath_has_written_is_read(form: str, packed: bool, tmp_path: Path) -> None:
    content, label = FORMS[form]
    text = json.dumps(content).encode()
    (tmp_path / "a.geojson").write_bytes(gzip.compress(text) if packed else text)
    regions = read_regions(tmp_path / "a.geojson", 420, 300)
    assert [(each.label, each.shape.area) for each in regions.regions] == [(label, 100)]
    assert regions.notes == ()


def nested(depth: int) -> list[Any]:
    """Lists in one another."""
    return [] if not depth else [nested(depth - 1)]


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "outside": (feature("x", box(500, 0, 600, 90)), "lie outside the slide and are left out: region 2 (x)"),
    "empty": (feature("x", box(5, 5, 5, 90)), "are empty"),
    "far": (feature("x", box(5, 5, 10**400, 90)), "have no coordinates that could be read"),
    "overflow": (feature("x", box(-1e308, -1e308, 1e308, 1e308)), "have coordinates that no slide has"),  # type: ignore[arg-type]
    "nothing": (feature("x"), "are empty"),
    "point": (written({"type": "Point", "coordinates": [1, 2]}, name="mark"), "points or lines"),
    "no-type": ({"type": "Feature", "geometry": {"type": {}, "coordinates": []}}, "points or lines"),
    "no-geometry": ({"type": "Feature", "geometry": None}, "points or lines"),
    "short": (feature("x", [[0, 0], [1, 1]]), "no coordinates that could be read"),
    "words": (written({"type": "Polygon", "coordinates": [[["a", "b"]] * 4]}), "no coordinates"),
    "nan": (feature("x", [[0, 0], [9, float("nan")], [9, 9], [0, 0]]), "no coordinates"),  # type: ignore[list-item]
    "tile": (feature("x", box(0, 0, 9, 9), objectType="tile"), "detections or tiles"),
    "deep": (written({"type": "Polygon", "coordinates": nested(700)}), "no coordinates"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_used_is_one_line_and_the_others_are_read(fault: str, tmp_path: Path) -> None:
    bad, said = FAULTS[fault]
    path = write_geojson_of(tmp_path / "a.geojson", feature("good", box(0, 0, 50, 50)), bad)
    regions = read_regions(path, 420, 300)
    assert [each.label for each in regions.regions] == ["good"]
    (note,) = regions.notes
    assert said in note
    assert "a.geojson" in note
    alone = write_geojson_of(tmp_path / "b.geojson", bad)
    with pytest.raises(InputError, match=r"b\.geojson.*draw regions in a slide of 420 x 300 pixels"):
        read_regions(alone, 420, 300)


def test_what_stands_among_features_and_is_none_is_told(tmp_path: Path) -> None:
    odd: list[Any] = [None, {"type": "Feature"}, feature("good", box(0, 0, 50, 50))]
    regions = read_regions(write_geojson_of(tmp_path / "a.geojson", *odd), 420, 300)
    assert [each.label for each in regions.regions] == ["good"]
    (note,) = regions.notes
    assert "are no features of GeoJSON and are left out: region 1, region 2" in note


def test_regions_that_cannot_be_looked_for_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: file name too long"):
        check_annotations(tmp_path / ("x" * 300), [])
    with pytest.raises(InputError, match=r"x\.geojson' cannot be read: file name too long"):
        file_of(tmp_path, Path(f"{'x' * 250}.tif"))


def test_a_region_that_crosses_itself_is_told_and_taken(tmp_path: Path) -> None:
    regions = read_regions(write_geojson_of(tmp_path / "a.geojson", feature("x", KNOT)), 420, 300)
    assert "cross themselves and are taken by the even-odd rule: region 1 (x)" in regions.notes[0]
    assert regions.outline.area == pytest.approx(5000)


def test_what_reaches_over_the_border_is_cut_off(tmp_path: Path) -> None:
    path = write_geojson_of(tmp_path / "a.geojson", feature("x", box(-50, -50, 1000, 100)))
    regions = read_regions(path, 420, 300)
    assert (regions.outline.bounds, regions.notes) == ((0, 0, 420, 100), ())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no GeoJSON"),
        (b"{", "is no GeoJSON"),
        (b"\x1f\x8b\x08junk", "is no GeoJSON"),
        (b"[1]", "expected a collection of features"),
        (b'{"type": "FeatureCollection"}', "expected a collection of features"),
        (b'{"type": "FeatureCollection", "features": []}', "holds no annotation"),
        (b"[" * 100_000, "is no GeoJSON"),
    ],
    ids=["empty", "half", "half-gzip", "numbers", "no-features", "none", "nested"],
)
def test_what_is_no_geojson_is_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.geojson").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_regions(tmp_path / "a.geojson", 420, 300)
    with pytest.raises(InputError, match="cannot be read"):
        read_regions(tmp_path / "missing.geojson", 420, 300)


def test_the_smaller_of_two_regions_is_drawn_into_the_larger(tmp_path: Path) -> None:
    path = write_geojson_of(
        tmp_path / "a.geojson",
        feature("inner", box(20, 20, 40, 40)),
        feature("outer", box(0, 0, 100, 100)),
        feature("outer", box(50, 50, 60, 60)),
    )
    shapes = read_regions(path, 420, 300).by_class
    assert {label: shape.area for label, shape in shapes.items()} == {"inner": 400, "outer": 9600}


@pytest.mark.parametrize(
    ("min_cover", "expected"),
    [
        (None, {0: "left", 10: "left", 30: "right"}),
        (0.5, {0: "left", 10: "left"}),
        (0.3, {0: "left", 10: "left", 30: "right"}),
        (0.7, {0: "left"}),
    ],
)
def test_a_tile_belongs_to_a_class_by_its_middle_or_by_a_share(
    min_cover: float | None, expected: dict[int, str], tmp_path: Path
) -> None:
    path = write_geojson_of(
        tmp_path / "a.geojson",
        feature("left", box(0, 0, 21, 20)),
        feature("right", box(38, 0, 100, 12)),
        feature(None, box(100, 0, 200, 20)),
    )
    regions = read_regions(path, 420, 300)
    found = labels_of(iter(Tile(x, 0, 20) for x in (0, 10, 30, 110)), regions, min_cover)
    assert {tile.x: label for tile, label in found} == expected


def test_tiles_are_kept_for_regions_and_tissue(pyramid: Path, tmp_path: Path) -> None:
    regions = read_regions(
        write_geojson_of(tmp_path / "a.geojson", feature(None, box(0, 0, 210, 150))), 420, 300
    )
    slide = open_slide(pyramid)
    options = TissueOptions(thumbsize=210, median_filter_size=3, min_object_size_um2=200)
    mask = tissue_mask(slide, options)
    inside = set(tiles(slide, None, 30, mask=Within(regions)))
    assert inside == {Tile(x, y, 30) for x in range(0, 195, 30) for y in range(0, 135, 30)}
    assert set(tiles(slide, None, 30, mask=Within(regions, mask))) == inside & set(
        tiles(slide, None, 30, mask=mask)
    )
    slide.close()


def test_the_command_classifies_regions_and_knows_them_again(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in "abc":
        write_tiff(folder / f"{name}.tif", tissue(), **HALF_A_MICRON)
    regions = tmp_path / "regions"
    regions.mkdir()
    write_geojson_of(regions / "a.geojson", feature(None, box(0, 0, 64, 96)), feature(None, KNOT))
    write_geojson_of(regions / "b.tif.geojson", feature(None, box(900, 0, 964, 96)))
    arguments = ["slide", str(bundles["fp32"]), str(folder), "-o", str(tmp_path / "out"), "--threads", "1"]
    arguments += ["--mpp", "0.5", "--no-tissue", "--roi"]
    with pytest.warns(match="cross themselves"):
        done = CliRunner().invoke(mmdeploy, [*arguments, str(regions)])
    assert done.exit_code == 1
    assert "2 of 3 slides could not be classified (b, c)" in done.stderr
    run = json.loads((tmp_path / "out" / "run.json").read_text())["slides"]
    assert "lie outside the slide" in run["b"]["error"]
    assert "holds no regions of" in run["c"]["error"]
    assert any("cross themselves" in note for note in run["a"]["notes"])
    rows = [each.tile for each in read_rows(tmp_path / "out" / "model-outputs-csv" / "a.csv")]
    assert set(rows) == {Tile(x, y, 32) for x in (0, 32) for y in (0, 32, 64)} | {Tile(64, 32, 32)}
    done = CliRunner().invoke(mmdeploy, [*arguments, str(regions / "a.geojson")])
    assert "is one file, and there are 3 slides" in done.stderr
    done = CliRunner().invoke(mmdeploy, [*arguments, str(tmp_path / "nowhere")])
    assert "does not exist: expected QuPath's GeoJSON" in done.stderr
    write_geojson_of(regions / "a.geojson", feature(None, box(0, 0, 64, 96)))
    done = CliRunner().invoke(mmdeploy, [*arguments, str(regions)])
    again = json.loads((tmp_path / "out" / "run.json").read_text())["slides"]
    assert "is not the file with the regions that" in again["a"]["error"]


def test_a_region_without_the_middle_of_a_tile_is_told(bundles: dict[str, Path], tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", tissue(), **HALF_A_MICRON)
    roi = write_geojson_of(tmp_path / "a.geojson", feature(None, box(0, 0, 9, 9)))
    arguments = ["slide", str(bundles["fp32"]), str(path), "-o", str(tmp_path / "out"), "--threads", "1"]
    done = CliRunner().invoke(mmdeploy, [*arguments, "--mpp", "0.5", "--no-tissue", "--roi", str(roi)])
    assert done.exit_code == 1
    assert "no tile has its middle in a region: draw larger ones, let tiles --overlap\n" in done.stderr


@pytest.fixture
def margins(tmp_path: Path) -> Path:
    """A slide whose scanner left 96 pixels out at its left, 64 above, and some at the other sides."""
    return write_scn(tmp_path / "a.scn", tissue(), 96, 64, 640, 480)


def test_qupath_cuts_off_what_the_scanner_left_out(margins: Path, pyramid: Path) -> None:
    slide, whole = open_slide(margins), open_slide(pyramid)
    assert (slide.levels[0].width, slide.levels[0].height) == (640, 480)
    assert slide.bounds == Bounds(96, 64, 420, 300)
    assert (slide.read(0, 96, 64, 420, 300) == tissue()).all()
    assert whole.bounds == Bounds(0, 0, 420, 300)
    slide.close(), whole.close()


def test_regions_and_results_are_where_qupath_shows_them(
    margins: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    write_geojson_of(tmp_path / "a.geojson", feature("Tumor", box(64, 96, 128, 128)))
    asked = ["slide", bundles["fp32"], margins, "--mpp", 0.5, "--no-tissue", "--threads", 1]
    some, every = tmp_path / "some", tmp_path / "every"
    for more in (["--roi", tmp_path / "a.geojson", "-o", some], ["-o", every]):
        done = CliRunner().invoke(mmdeploy, [*map(str, [*asked, *more])])
        assert done.exit_code == 0, done.output
    rows = [each.tile for each in read_rows(some / "model-outputs-csv" / "a.csv")]
    assert rows == [Tile(160, 160, 32), Tile(192, 160, 32)]  # pixels of level 0, as for other programs
    drawn = check_geojson((some / "model-outputs-geojson" / "a.geojson").read_text(), 420, 300)
    assert [each["geometry"]["coordinates"] for each in drawn] == [
        [box(64, 96, 96, 128)],
        [box(96, 96, 128, 128)],
    ]
    features = check_geojson((every / "model-outputs-geojson" / "a.geojson").read_text(), 420, 300)
    assert len(features) == 14 * 10  # of 300 rows: what lies in the margins is not on QuPath's picture
    assert {each["id"] for each in drawn} < {each["id"] for each in features}


def test_annotations_are_where_qupath_shows_them(tmp_path: Path) -> None:
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 256, (64, 128, 3), np.uint8)
        write_scn(tmp_path / f"s{number}.scn", noise, 32, 96, 256, 256)
        halves = feature("a", box(0, 0, 64, 64)), feature("b", box(64, 0, 128, 64))
        write_geojson_of(tmp_path / f"s{number}.geojson", *halves)
    import_slides(sorted(tmp_path.glob("*.scn")), tmp_path, tmp_path / "data", CutOptions(size=32))
    for row in read_index(tmp_path / "data"):
        name, x, y = Path(row.file).stem.split("-")
        noise = np.random.default_rng(int(name[1:])).integers(0, 256, (64, 128, 3), np.uint8)
        left, top = int(x) - 32, int(y) - 96
        assert row.label == ("a" if left < 64 else "b")
        stored = read_image(tmp_path / "data" / row.file)
        assert (stored == noise[top : top + 32, left : left + 32]).all()


def test_what_a_shape_of_many_points_covers_is_found_without_following_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An outline of 50,000 points was followed whole for each tile: ten thousand tiles took 27 seconds."""
    angles = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    radii = 400 * (1 - 0.05 * np.random.default_rng(0).random(2000))
    shape = shapely.Polygon(500 + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1))
    x, y = (each.ravel() for each in np.meshgrid(range(0, 1000, 25), range(0, 1000, 25)))
    boxes = shapely.box(x, y, x + 25, y + 25)
    expected = shapely.area(shapely.intersection(shape, boxes))
    followed = 0
    intersection = shapely.intersection

    def counting(one: Any, others: Any) -> Any:
        nonlocal followed
        followed += shapely.get_num_coordinates(one) * np.size(others)
        return intersection(one, others)

    monkeypatch.setattr(shapely, "intersection", counting)
    assert np.allclose(regions._covered(shape, boxes), expected, rtol=0, atol=1e-9 * 25**2)
    assert followed < 2000 * len(boxes) / 10
