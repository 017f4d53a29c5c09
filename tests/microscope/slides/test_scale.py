"""A tile covers what a training image covered: as the model says, or a user in its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image
from slide_files import tissue, write_tiff

import msmamba
from msmamba.cli import mmdeploy
from msmamba.errors import InputError, Note
from msmamba.microscope.slides import classify_slide, open_slide
from msmamba.microscope.slides.engine import Wanted, scale_notes, wanted_of
from msmamba.microscope.slides.results import read_rows
from msmamba.microscope.slides.run import SlideOptions, classify_slides
from msmamba.runtime.session import Session

MICRONS = {"pixels": [48, 48, 48], "microns": [24, 24, 24]}
"""Images of 48 pixels at 0.5 µm: 0.75 for each of 32 of the input."""


def bundle_saying(bundles: dict[str, Path], folder: Path, covers: dict[str, Any]) -> Path:
    """A copy of a bundle whose manifest says what its training images covered."""
    shutil.copytree(bundles["fp32"], folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "covers": covers}))
    return folder


@pytest.fixture(scope="module")
def knowing(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_saying(bundles, tmp_path_factory.mktemp("knowing") / "bundle", MICRONS)


@pytest.fixture(scope="module")
def session(knowing: Path) -> Iterator[Session]:
    with msmamba.open(knowing, threads=1) as opened:
        yield opened


def test_the_model_says_it(session: Session, pyramid: Path) -> None:
    assert wanted_of(session) == Wanted(32, 0.75, 24)
    slide = open_slide(pyramid)
    assert next(classify_slide(session, slide)).tile.side == 48
    assert next(classify_slide(session, slide, assume_mpp=0.25)).tile.side == 96
    assert next(classify_slide(session, slide, pixel_for_pixel=True)).tile.side == 48
    assert next(classify_slide(session, slide, mpp=1.0)).tile.side == 64
    slide.close()


@pytest.mark.parametrize("covers", [{}, {"pixels": [48, 48, 48], "microns": None}], ids=["older", "unsaid"])
def test_what_neither_says_names_every_way_out(
    covers: dict[str, Any], bundles: dict[str, Path], tmp_path: Path
) -> None:
    with msmamba.open(bundle_saying(bundles, tmp_path / "b", covers), threads=1) as session:
        with pytest.raises(InputError, match=r"--mpp .*--assume-mpp .*--pixel-for-pixel"):
            wanted_of(session)
        assert wanted_of(session, 0.5) == Wanted(32, 0.5)
        assert wanted_of(session, pixel_for_pixel=True) == Wanted(48 if covers else 32, None)


@pytest.mark.parametrize("none", [{"batch_size": 0}, {"lanes": 0}], ids=str)
def test_no_batch_or_lane_is_refused(none: dict[str, int], session: Session, pyramid: Path) -> None:
    with closing(open_slide(pyramid)) as slide, pytest.raises(InputError, match="expected at least 1"):
        next(classify_slide(session, slide, **none))


def test_one_of_two_has_to_be_chosen(session: Session) -> None:
    with pytest.raises(InputError, match="choose one"):
        wanted_of(session, 0.5, pixel_for_pixel=True)


@pytest.mark.parametrize(("mpp", "told"), [(0.6, False), (0.93, False), (0.59, True), (0.95, True)])
def test_another_scale_than_the_models_is_told_from_a_quarter_on(
    mpp: float, told: bool, session: Session
) -> None:
    assert bool(wanted_of(session, mpp).notes) == told


@pytest.mark.parametrize(
    ("file", "options", "assumed", "said"),
    [
        (0.5, {}, None, ""),
        (0.9, {}, None, ""),
        (1.0, {}, None, "has 1 microns a pixel at best, and the model wants 0.75"),
        (None, {}, 1.0, "has 1 microns a pixel at best"),
        (0.5, {}, 0.7, "says 0.5 microns a pixel, and 0.7 are assumed"),
        (0.5, {"pixel_for_pixel": True}, None, ""),
        (0.25, {"pixel_for_pixel": True}, None, "a tile covers 12 microns, but a training image 24"),
        (None, {"pixel_for_pixel": True}, None, ""),
    ],
)
def test_a_slide_that_is_not_of_the_models_scale_is_told(
    file: float | None,
    options: dict[str, Any],
    assumed: float | None,
    said: str,
    session: Session,
    tmp_path: Path,
) -> None:
    scale = {} if file is None else {"resolution": (10_000 / file,) * 2, "resolutionunit": "CENTIMETER"}
    slide = open_slide(write_tiff(tmp_path / "a.tif", tissue(64, 64), metadata=None, **scale))
    notes = scale_notes(slide, wanted_of(session, **options), assumed)
    assert [said in note for note in notes] == ([True] if said else [])
    slide.close()


def test_it_is_told_and_kept_with_the_slide(session: Session, knowing: Path, tmp_path: Path) -> None:
    path = write_tiff(
        tmp_path / "a.tif", tissue(), metadata=None, resolution=(10_000,) * 2, resolutionunit="CENTIMETER"
    )
    with pytest.warns(Note, match="tiles are enlarged 1.3 times"):
        classify_slides(session, knowing, [path], tmp_path / "out", SlideOptions(tissue=None))
    facts = json.loads((tmp_path / "out" / "run.json").read_text())["slides"]["a"]
    assert (facts["tile"], len(facts["notes"])) == (24, 1)


def test_the_command_needs_no_scale_of_a_model_that_knows_it(
    knowing: Path, bundles: dict[str, Path], pyramid: Path, tmp_path: Path
) -> None:
    arguments = [str(pyramid), "-o", str(tmp_path / "out"), "--no-tissue", "--threads", "1"]
    done = CliRunner().invoke(mmdeploy, ["slide", str(bundles["fp32"]), *arguments])
    assert done.exit_code == 1
    assert "the model does not say its microns a pixel" in done.stderr
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(mmdeploy, ["slide", str(knowing), *arguments])
    assert done.exit_code == 0, done.stderr
    rows = read_rows(tmp_path / "out" / "model-outputs-csv" / "pyramid.csv")
    assert {each.tile.side for each in rows} == {48}


def test_fields_go_by_the_size_of_training_images(knowing: Path, tmp_path: Path) -> None:
    Image.fromarray(tissue(96, 96)).save(tmp_path / "field.png")
    arguments = [str(tmp_path / "field.png"), "-o", str(tmp_path / "out"), "--no-tissue", "--threads", "1"]
    done = CliRunner().invoke(mmdeploy, ["slide", str(knowing), *arguments, "--pixel-for-pixel"])
    assert done.exit_code == 0, done.stderr
    assert len(list(read_rows(tmp_path / "out" / "model-outputs-csv" / "field.csv"))) == 4
