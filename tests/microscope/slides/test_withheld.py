"""What a guard withholds on a slide: told in every file, hatched on the maps, and logged for drift."""

from __future__ import annotations

import csv
import json
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from slide_files import HALF_A_MICRON, tissue, write_tiff

import msmamba
from msmamba.cli import mmdeploy
from msmamba.errors import TargetError
from msmamba.measures.selective import certainty
from msmamba.microscope.slides import Slide, open_slide, tiles
from msmamba.microscope.slides.engine import TileResult, classify_tiles
from msmamba.microscope.slides.maps import MapGrid, overlay, undecided_map
from msmamba.microscope.slides.ray_engine import RayEngine, _open, _session
from msmamba.microscope.slides.results import UNDECIDED, header, read_rows, row
from msmamba.microscope.slides.run import SlideOptions, classify_slides
from msmamba.microscope.slides.tiling import Tile, read_tile
from msmamba.microscope.slides.tissue import Thumbnail
from msmamba.runtime.drift import drift_log, read_drift
from tests.export.proof.test_guarded import with_guard

OPTIONS = SlideOptions(mpp=0.5, tissue=None, batch_size=4)


class Withheld(NamedTuple):
    """A slide that was classified with a guard that withholds half of it."""

    bundle: Path
    slide: Path
    folder: Path
    log: Path
    scores: dict[tuple[int, int], float]
    """The certainty of each tile, by place."""
    threshold: float


@pytest.fixture(scope="module")
def withheld(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Withheld:
    root = tmp_path_factory.mktemp("withheld")
    write_tiff(root / "slide.tif", tissue(), levels=2, **HALF_A_MICRON)
    slide = open_slide(root / "slide.tif")
    with msmamba.open(bundles["fp32"], threads=1) as session:
        found = list(tiles(slide, 0.5, 32, 0.0))
        images = [session.transform(read_tile(slide, tile, 32)) for tile in found]
        each = [float(certainty(session.run(image[None]))[0]) for image in images]
    slide.close()
    threshold = float(np.median(each))
    bundle = with_guard(bundles["fp32"], root / "bundle", threshold)
    with (
        msmamba.open(bundle, threads=1) as session,
        drift_log(root / "log.jsonl", bundle, session.manifest, "slide") as log,
    ):
        classify_slides(session, bundle, [root / "slide.tif"], root / "out", OPTIONS, log=log)
    scores = {(tile.x, tile.y): score for tile, score in zip(found, each, strict=True)}
    return Withheld(bundle, root / "slide.tif", root / "out", root / "log.jsonl", scores, threshold)


def test_the_csv_says_it_after_wsinfers_columns(withheld: Withheld) -> None:
    path = withheld.folder / "model-outputs-csv" / "slide.csv"
    with path.open(newline="") as file:
        first, *rows = csv.reader(file)
    assert first[:4] == ["minx", "miny", "width", "height"]
    assert first[7:] == ["error", "decided", "reasons", "candidates"]
    for values in rows:
        decided = withheld.scores[int(values[0]), int(values[1])] > withheld.threshold
        assert values[8:10] == (["yes", ""] if decided else ["no", "uncertain"])
        assert values[10]
    again = header(["basophil", "eosinophil", "lymphocyte"], guarded=True)
    assert again + b"".join(row(each, 3, guarded=True) for each in read_rows(path)) == path.read_bytes()


def test_qupath_gets_a_class_of_undecided_tiles(withheld: Withheld) -> None:
    text = (withheld.folder / "model-outputs-geojson" / "slide.geojson").read_text()
    features = json.loads(text)["features"]
    names = [feature["properties"]["classification"]["name"] for feature in features]
    decided = sum(score > withheld.threshold for score in withheld.scores.values())
    assert names.count(UNDECIDED) == len(withheld.scores) - decided > 5
    assert set(names) - {UNDECIDED} <= {"basophil", "eosinophil", "lymphocyte"}
    withheld_one = features[names.index(UNDECIDED)]["properties"]
    assert withheld_one["classification"]["color"] == [128, 128, 128]
    assert set(withheld_one["measurements"]) == {
        f"prob_{each}" for each in ("basophil", "eosinophil", "lymphocyte")
    }


def test_the_summary_and_the_report_count_them(withheld: Withheld) -> None:
    with (withheld.folder / "summary.csv").open(newline="") as file:
        (facts,) = csv.DictReader(file)
    undecided = sum(score <= withheld.threshold for score in withheld.scores.values())
    assert int(facts["undecided"]) == undecided
    shares = [float(value) for name, value in facts.items() if name.startswith("share_")]
    assert sum(shares) == pytest.approx(1 - undecided / len(withheld.scores), abs=1e-5)
    page = (withheld.folder / "report.html").read_text()
    assert "<th>undecided</th>" in page
    assert f"<td>{undecided}</td>" in page


def test_classes_with_ends_of_lines_in_their_names_stop_no_run_from_going_on(
    withheld: Withheld, tmp_path: Path
) -> None:
    """The names are in the first row, and those of candidates in every other."""
    odd = ('two\nlines, "said"', "=carriage\rreturn", "\x1b[31mred\u2028")
    out, counts = tmp_path / "out", []
    with msmamba.open(withheld.bundle, threads=1, labels=odd) as session:

        def classify(stop_at: int = sys.maxsize) -> None:
            def progress(name: str, done: int, total: int) -> None:
                counts.append(done)
                if done >= stop_at:
                    raise KeyboardInterrupt

            classify_slides(session, withheld.bundle, [withheld.slide], out, OPTIONS, progress)

        with pytest.raises(KeyboardInterrupt):
            classify(12)
        torn = out / "partial" / "slide.csv"
        torn.write_bytes(torn.read_bytes()[:-3])
        classify()
        assert counts[:5] == [0, 4, 8, 12, 8]
        done = len(counts)
        classify()
        assert len(counts) == done
    path = out / "model-outputs-csv" / "slide.csv"
    with path.open(newline="") as file:
        assert next(csv.reader(file))[4:7] == [f"prob_{label}" for label in odd]
    assert header(odd, guarded=True) + b"".join(row(each, 3, True) for each in read_rows(path)) == (
        path.read_bytes()
    )
    assert [each.tile for each in read_rows(path)] == [
        each.tile for each in read_rows(withheld.folder / "model-outputs-csv" / "slide.csv")
    ]
    with (out / "summary.csv").open(newline="") as file:
        assert next(csv.reader(file))[-4:-1] == [f"share_{label}" for label in odd]


def test_a_run_goes_on_with_the_same_guard_only(withheld: Withheld) -> None:
    with (
        msmamba.open(withheld.bundle, threads=1, guard=False) as session,
        pytest.raises(TargetError, match="guard is True there and False here"),
    ):
        classify_slides(session, withheld.bundle, [withheld.slide], withheld.folder, OPTIONS)


def test_without_the_guard_all_is_as_before(withheld: Withheld, tmp_path: Path) -> None:
    arguments = ["slide", withheld.bundle, withheld.slide, "-o", tmp_path / "out", "--mpp=0.5", "--no-tissue"]
    result = CliRunner().invoke(mmdeploy, [*map(str, arguments), "--no-guard"])
    assert result.exit_code == 0, result.stderr
    with (tmp_path / "out" / "model-outputs-csv" / "slide.csv").open(newline="") as file:
        assert next(csv.reader(file))[-1] == "error"
    assert "undecided" not in (tmp_path / "out" / "report.html").read_text()


def test_each_tile_is_logged(withheld: Withheld) -> None:
    logged = read_drift(withheld.log)
    assert logged.pictures == len(withheld.scores)
    assert set(logged.session.tolist()) == {0}
    found = sorted(logged.scores["certainty"].tolist())
    assert found == pytest.approx(sorted(withheld.scores.values()), abs=1e-3)


def test_undecided_tiles_are_hatched_and_no_others() -> None:
    grid = MapGrid(64, 32, side=32, stride=32)
    results = [
        TileResult(Tile(0, 0, 32), (0.2, 0.8)),
        TileResult(Tile(32, 0, 32), (0.2, 0.8), decided=False, reasons=("uncertain",)),
    ]
    hatched = undecided_map(results, grid)
    assert hatched.tolist() == [[False, True]]
    white = np.full((120, 240, 3), 255, np.uint8)
    small = Thumbnail(white, 64 / 240, np.zeros(white.shape[:2], bool))
    found = np.ones((1, 2), np.uint8)  # nothing of the class
    picture = np.asarray(overlay(found, 0, grid, small, hatched))
    assert (picture[:, :118] == 255).all()
    share = (picture[:, 122:] < 255).any(axis=2).mean()
    assert 0.2 < share < 0.4
    assert isinstance(overlay(found, 0, grid, small), Image.Image)


class OneProcess:
    """In the place of Ray: a task is done at once, in this process, after its arguments went through pickle.

    It has of Ray what `RayEngine` calls. Ray itself has an environment of its own (`make test-ray`).
    """

    exceptions = SimpleNamespace(RayTaskError=RuntimeError, RayError=RuntimeError)

    @staticmethod
    def init(*_: object, **__: object) -> None: ...

    @staticmethod
    def shutdown() -> None: ...

    @staticmethod
    def cancel(_: object, *, force: bool) -> None: ...

    @staticmethod
    def cluster_resources() -> dict[str, float]:
        return {"CPU": 2.0}

    @staticmethod
    def remote(**_: object) -> Callable[[Callable[..., object]], SimpleNamespace]:
        def of(task: Callable[..., object]) -> SimpleNamespace:
            def done(*arguments: object) -> bytes:
                return pickle.dumps(task(*pickle.loads(pickle.dumps(arguments))))

            return SimpleNamespace(remote=done)

        return of

    get = staticmethod(pickle.loads)


def test_a_cluster_and_lanes_say_and_log_the_same(
    withheld: Withheld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", OneProcess)
    opened: list[Path] = []

    def counted(path: str, **more: Any) -> Slide:
        opened.append(Path(path))
        return open_slide(path, **more)

    monkeypatch.setattr("msmamba.microscope.slides.ray_engine.open_slide", counted)
    monkeypatch.setattr("msmamba.runtime.drift.SLIDE_TILES", 40)  # so that not every tile is logged
    files, lines = [], []
    with RayEngine(withheld.bundle) as cluster, msmamba.open(withheld.bundle, threads=1) as session:
        cluster.tiles_a_task = 8
        for name, engine in (
            ("local", classify_tiles),
            ("lanes", partial(classify_tiles, lanes=2)),
            ("ray", cluster.classify),
        ):
            path, out = tmp_path / f"{name}.jsonl", tmp_path / name
            with drift_log(path, withheld.bundle, session.manifest, "slide") as log:
                classify_slides(
                    session, withheld.bundle, [withheld.slide], out, OPTIONS, log=log, engine=engine
                )
            files.append(
                {
                    below: (out / below / f"slide.{below.rpartition('-')[2]}").read_bytes()
                    for below in ("model-outputs-csv", "model-outputs-geojson")
                }
                | {"undecided": json.loads((out / "run.json").read_text())["slides"]["slide"]["undecided"]}
            )
            lines.append([json.loads(line)["scores"] for line in path.read_text().splitlines()[1:]])
    _session.cache_clear()
    while _open:
        _open.popitem()[1].close()
    assert opened == [withheld.slide]  # by a worker once, not for each of its tasks
    assert files[0]["undecided"] > 5
    assert files[1] == files[0]
    assert files[2] == files[0]
    assert 20 < len(lines[0]) < len(withheld.scores)
    assert lines[1] == lines[0]
    assert lines[2] == lines[0]
