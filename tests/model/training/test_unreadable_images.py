"""Images that cannot be read, before a run and in the end of one: its epochs are never lost for them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from msmamba.cli import mmdeploy
from msmamba.data.folders import read_training_folder
from msmamba.data.readable import unreadable_images, without
from msmamba.errors import ImageError, TrainingError
from msmamba.measures.predictions import read_predictions
from msmamba.model.networks.microscopic_mamba import Architecture
from msmamba.model.training.history import Epoch, Result
from msmamba.model.training.loop import Hardware, Plan, train
from msmamba.model.training.recipe import Recipe
from msmamba.model.training.run import RunFolder

SMALL = Architecture(depths=(1, 1), dims=(32, 64), num_classes=2)
QUICK = Recipe(epochs=2, batch_size=8, warmup_epochs=0, image_size=32)
UNCACHED = Hardware(threads=1, cache_bytes=0)
"""Images are read in every epoch, as those that do not fit into the cache are."""
SHORT = ["--threads", "1", "--image-size", "32", "--batch-size", "4", "--epochs", "2", "--warm-up", "0"]
BROKEN = "test/round/2.png"

pytestmark = pytest.mark.usefixtures("threads_as_before")


@pytest.fixture
def layout(cells: Path, tmp_path: Path) -> Path:
    """The authors' layout with four images of each class in each split."""
    root = tmp_path / "data"
    for place, split in enumerate(("train", "val", "test")):
        for label in ("round", "square"):
            (root / split / label).mkdir(parents=True)
            for number in range(4):
                shutil.copy(
                    cells / label / f"{4 * place + number}.png", root / split / label / f"{number}.png"
                )
    return root


class Breaking:
    """Breaks an image after the first epoch."""

    def __init__(self, *paths: Path) -> None:
        self.paths = paths

    def on_start(self, plan: Plan) -> None:
        """Nothing."""

    def on_step(self, epoch: int, step: int, loss: float) -> None:
        """Nothing."""

    def on_epoch(self, epoch: Epoch, is_best: bool) -> None:
        for path in self.paths:
            path.write_bytes(b"broken")


def run_of(layout: Path, run: Path, *, resume: bool = False, breaking: tuple[Path, ...] = ()) -> Result:
    data = read_training_folder(layout)
    listeners = [Breaking(*breaking)]
    return train(data, run, SMALL, QUICK, hardware=UNCACHED, resume=resume, listeners=listeners)


def test_an_image_to_test_with_is_missed_before_the_first_epoch(layout: Path, tmp_path: Path) -> None:
    (layout / BROKEN).write_bytes(b"broken")
    (layout / "val" / "square" / "1.png").write_bytes(b"")
    done = CliRunner().invoke(mmdeploy, ["train", str(layout), "-o", str(tmp_path / "run"), *SHORT])
    assert done.exit_code == 1
    assert re.search(
        r"val/square/1\.png.*test/round/2\.png.*: 2 of .* leave them out with --skip-bad", done.stderr
    )
    assert not (tmp_path / "run").exists()


def test_an_image_to_train_on_stops_the_run_and_tells_how_to_go_on(layout: Path, tmp_path: Path) -> None:
    (layout / "train" / "square" / "1.png").write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"train/square/1\.png.*: mend or remove it, or .* --skip-bad$"):
        run_of(layout, tmp_path / "run")


def test_one_that_breaks_meanwhile_is_left_out_of_the_figures(layout: Path, tmp_path: Path) -> None:
    whole = (layout / BROKEN).read_bytes()
    run = tmp_path / "run"
    result = run_of(layout, run, breaking=(layout / BROKEN,))
    assert len(result.history) == 2
    assert result.test is not None
    assert result.test.images == 7
    assert list(result.skipped) == [BROKEN]
    assert len(result.lost) == 1
    assert json.loads((run / "metrics.json").read_text())["skipped"] == dict(result.skipped)
    predictions = read_predictions(run / "predictions.csv")
    assert BROKEN not in predictions["test"].images
    assert len(predictions["test"].images) == 7

    # Mended, the same run measures it.
    (layout / BROKEN).write_bytes(whole)
    again = run_of(layout, run, resume=True)
    assert again.test is not None
    assert again.test.images == 8
    assert again.skipped == {}

    # Removed, the rest is measured, and that it is another test split is said.
    (layout / BROKEN).unlink()
    plans: list[Plan] = []

    class Listening(Breaking):
        def on_start(self, plan: Plan) -> None:
            plans.append(plan)

    data = read_training_folder(layout)
    train(data, run, SMALL, QUICK, hardware=UNCACHED, resume=True, listeners=[Listening()])
    assert plans[0].notes == ("the images of the test split are not those that the run was begun with",)


def test_all_that_there_was_to_test_with_may_break(layout: Path, tmp_path: Path) -> None:
    result = run_of(layout, tmp_path / "run", breaking=tuple((layout / "test").glob("*/*")))
    assert result.test is None
    assert result.val.images == 8
    assert len(result.lost) == 8


@pytest.mark.parametrize("is_old", [False, True], ids=["", "of-an-earlier-version"])
def test_a_run_that_stumbled_is_finished_with_skip_bad(layout: Path, tmp_path: Path, is_old: bool) -> None:
    run, broken = tmp_path / "run", layout / "val" / "round" / "0.png"
    with pytest.raises(ImageError, match=r"val/round/0\.png' is not a PNG"):
        run_of(layout, run, breaking=(broken,))
    if is_old:
        data = read_training_folder(layout)
        config = json.loads((run / "config.json").read_text())
        config["data"] = {
            "labels": data.labels,
            "group_by": None,
            "counts": data.counts(),
            "digest": data.digest,
        }
        (run / "config.json").write_text(json.dumps(config))
    arguments = ["train", str(layout), "-o", str(run), "--threads", "1", "--resume"]
    stopped = CliRunner().invoke(mmdeploy, arguments)
    assert stopped.exit_code == 1
    assert "mend it and continue the run with --resume, or leave it out" in stopped.stderr
    done = CliRunner().invoke(mmdeploy, [*arguments, "--skip-bad"])
    assert done.exit_code == 0, done.stderr
    state = RunFolder(run).read_state()
    assert state is not None
    assert len(state.history) == 2
    config = json.loads((run / "config.json").read_text())
    assert list(config["skipped"]) == ["val/round/0.png"]

    # From then on it need not be said, and another image may break.
    (layout / BROKEN).write_bytes(b"broken")
    done = CliRunner().invoke(mmdeploy, arguments)
    assert done.exit_code == 0, done.stderr
    assert list(json.loads((run / "metrics.json").read_text())["skipped"]) == ["val/round/0.png", BROKEN]


def test_an_image_that_is_mended_meanwhile_changes_no_run(layout: Path, tmp_path: Path) -> None:
    broken = {path: path.read_bytes() for path in (layout / "train/round/1.png", layout / "val/round/0.png")}
    for path in broken:
        path.write_bytes(b"broken")
    arguments = ["train", str(layout), *SHORT]
    for run in ("whole", "stopped"):
        done = CliRunner().invoke(mmdeploy, [*arguments, "-o", str(tmp_path / run), "--skip-bad"])
        assert done.exit_code == 0, done.stderr
    stopped = RunFolder(tmp_path / "stopped")
    # As after a kill in the first epoch.
    for path in stopped.path.iterdir():
        if path.name != "config.json":
            path.unlink()
    for path, content in broken.items():
        path.write_bytes(content)
    done = CliRunner().invoke(mmdeploy, [*arguments, "-o", str(stopped.path), "--resume"])
    assert done.exit_code == 0, done.stderr
    assert "note: 2 images stay left out, as the run was begun without them: train/round/1.png" in done.stderr
    once, again = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("whole", "stopped"))
    assert {**again, "seconds": 0} == {**once, "seconds": 0}
    assert len(again["skipped"]) == 2


def test_the_command_says_so_in_the_end(
    layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run_of(layout, run)
    (layout / BROKEN).write_bytes(b"broken")
    (layout / "train" / "round" / ".hidden.png").touch()
    done = CliRunner().invoke(mmdeploy, ["train", str(layout), "-o", str(run), "--threads", "1", "--resume"])
    assert done.exit_code == 1
    assert "note: passed over: hidden files, 1 (.hidden.png)" in done.stderr
    assert "error: the run is finished, but 1 images can no longer be read" in done.stderr
    assert "test: accuracy" in done.stdout


def test_other_images_to_train_on_are_another_run(layout: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_of(layout, run)
    (layout / "train" / "round" / "0.png").unlink()
    with pytest.raises(TrainingError, match="the images of the train split are not those it was begun with"):
        run_of(layout, run, resume=True)


def test_what_was_left_out_twice_is_named_once_each(layout: Path) -> None:
    (layout / BROKEN).write_bytes(b"broken")
    data = read_training_folder(layout)
    once = without(data, unreadable_images(data))
    (layout / "val" / "square" / "1.png").write_bytes(b"")
    twice = without(once, unreadable_images(once))
    assert [*twice.skipped] == [BROKEN, "val/square/1.png"]
    assert twice.whole is data
    assert replace(once, whole=None).digest_of("train") == data.digest_of("train")
