"""Training: the recipe, the run folder, and that neither a kill nor a divergence loses anything."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_cells
from preloaded import Preloaded

from msmamba.data.folders import ImageFolder, read_training_folder
from msmamba.data.samples import classes_of
from msmamba.data.seen import Overlap
from msmamba.errors import BackendError, DataError, ImageError, InputError, TargetError, TrainingError
from msmamba.images import Transform
from msmamba.measures.evaluation import logits_of
from msmamba.measures.metrics import metrics_of
from msmamba.model.networks.checkpoint import load_checkpoint
from msmamba.model.networks.microscopic_mamba import Architecture, MicroscopicMamba
from msmamba.model.training import loop as training
from msmamba.model.training.augmentation import Augmentation
from msmamba.model.training.history import Epoch, best_of, is_over
from msmamba.model.training.loop import Hardware, train, train_folder
from msmamba.model.training.recipe import Recipe
from msmamba.model.training.run import RunFolder
from msmamba.model.training.threads import set_threads
from msmamba.plugins.selective_scan import cpu

QUICK = Recipe(
    epochs=3,
    batch_size=5,
    learning_rate=3e-3,
    warmup_epochs=1,
    image_size=32,
    label_smoothing=0.2,
    average_epochs=1.0,
    augmentation=Augmentation(
        crop_scale=(0.6, 1.0), horizontal_flip=True, rotation=180, colour=0.05, focus=0.01
    ),
)
ONE_THREAD = Hardware(threads=1)

pytestmark = pytest.mark.usefixtures("threads_as_before")


def epoch(number: int, *, loss: float = 1.0, accuracy: float = 0.5) -> Epoch:
    return Epoch(number, 1e-4, 1.0, 0.5, loss, accuracy, None, 1.0)


class TestRecipe:
    def test_the_defaults_are_the_papers(self) -> None:
        recipe = Recipe()
        assert (recipe.learning_rate, recipe.weight_decay, recipe.batch_size) == (1e-4, 1e-4, 16)
        assert (recipe.epochs, recipe.warmup_epochs, recipe.patience, recipe.image_size) == (200, 10, 30, 224)
        assert (recipe.label_smoothing, recipe.average_epochs) == (0, 0)
        augmentation = recipe.augmentation
        assert (augmentation.crop_scale, augmentation.crop_ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))
        assert not any(list(asdict(augmentation).values())[2:])

    def test_a_preset_is_a_recipe_that_knows_where_others_depart_from_it(self) -> None:
        assert Recipe.of_preset("paper") == Recipe()
        assert Recipe().overridden() == {}
        changed = Recipe.of_preset("micrographs").with_figures(image_size=64, crop_scale=(0.5, 1.0))
        assert (changed.learning_rate, changed.augmentation.vertical_flip) == (2e-3, True)
        assert changed.overridden() == {
            "image_size": {"preset": 224, "run": 64},
            "crop_scale": {"preset": (0.6, 1.0), "run": (0.5, 1.0)},
        }
        with pytest.raises(ValueError, match="preset is 'vogue', expected one of paper, micrographs"):
            Recipe.of_preset("vogue")

    def test_parts_of_a_batch_keep_two_images(self) -> None:
        assert Recipe(accumulate=8).accumulate == 8
        with pytest.raises(ValueError, match="accumulate is 9, which cuts a batch of 16 into parts of one"):
            Recipe(accumulate=9)

    def test_the_rate_grows_linearly_then_falls_as_a_cosine(self) -> None:
        recipe = Recipe(learning_rate=2.0, epochs=50, warmup_epochs=10)
        assert recipe.learning_rate_at(0) == 0
        assert recipe.learning_rate_at(2.5) == pytest.approx(0.5)
        assert recipe.learning_rate_at(10) == pytest.approx(2.0)
        assert recipe.learning_rate_at(20) == pytest.approx(1 + math.cos(math.pi / 4))
        assert recipe.learning_rate_at(30) == pytest.approx(1.0)
        assert recipe.learning_rate_at(50) == pytest.approx(0.0)

    def test_without_a_warm_up_the_rate_starts_high(self) -> None:
        assert Recipe(epochs=1, warmup_epochs=0).learning_rate_at(0) == 1e-4

    def test_the_average_forgets_by_epochs_and_its_beginning_at_once(self) -> None:
        recipe = Recipe(average_epochs=2.0)
        long = [recipe.average_kept_at(step, 50) for step in range(2001, 2101)]
        assert math.prod(long) == pytest.approx(1 / math.e)
        assert recipe.average_kept_at(1, 50) == pytest.approx(0.1)
        first = math.prod(recipe.average_kept_at(step, 50) for step in range(1, 51))
        assert first < 1e-6

    def test_it_survives_json(self) -> None:
        assert Recipe.from_dict(json.loads(json.dumps(asdict(QUICK)))) == QUICK

    def test_every_wrong_figure_is_named_at_once(self) -> None:
        with pytest.raises(ValueError, match=r"batch_size is 1.*learning_rate is nan.*image_size is 9000"):
            Recipe(batch_size=1, learning_rate=math.nan, image_size=9000)
        with pytest.raises(ValueError, match="seed is 4294967296, expected at most 4294967295"):
            Recipe(seed=2**32)
        with pytest.raises(ValueError, match=r"label_smoothing is 1, .*average_epochs is -1, expected 0 or"):
            Recipe(label_smoothing=1, average_epochs=-1)
        with pytest.raises(
            ValueError, match="warmup_epochs is 10, which leaves none of 10 epochs for the decay: lower it"
        ):
            Recipe(epochs=10)


class TestStopping:
    def test_the_best_epoch_has_the_highest_accuracy_then_the_lowest_loss_then_comes_first(self) -> None:
        history = [
            epoch(1, accuracy=0.9, loss=0.5),
            epoch(2, accuracy=0.9, loss=0.4),
            epoch(3, accuracy=0.9, loss=0.4),
            epoch(4, accuracy=0.8, loss=0.1),
        ]
        assert best_of(history).number == 2

    def test_patience_counts_epochs_without_a_lower_loss(self) -> None:
        recipe = Recipe(patience=3)
        losses = [1.0, 0.5, 0.6, 0.5]
        history = [epoch(number, loss=loss) for number, loss in enumerate(losses, start=1)]
        assert not is_over([], recipe)
        assert not is_over(history, recipe)
        assert is_over([*history, epoch(5, loss=0.51)], recipe)
        assert not is_over([*history, epoch(5, loss=0.49)], recipe)

    def test_the_epochs_are_the_most(self) -> None:
        assert is_over([epoch(1), epoch(2, loss=0.5)], Recipe(epochs=2, warmup_epochs=0))


@pytest.fixture(scope="module")
def data(cells: Path) -> ImageFolder:
    return read_training_folder(cells)


@pytest.fixture(scope="module")
def finished(data: ImageFolder, small: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    train(data, run, small, QUICK, hardware=ONE_THREAD)
    return run


def history_of(run: Path) -> list[dict[str, Any]]:
    """Everything but the wall times."""
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    timed = ("seconds", "images_per_second")
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def assert_same_run(run: Path, other: Path) -> None:
    """Equal bit for bit: the best weights, every figure, and all that a further epoch depends on."""
    assert (run / "best.safetensors").read_bytes() == (other / "best.safetensors").read_bytes()
    assert history_of(run) == history_of(other)
    states = [torch.load(folder / "last.pt", weights_only=True) for folder in (run, other)]
    for group in ("network", "best", "averaged"):
        for name, tensor in states[0][group].items():
            assert torch.equal(tensor, states[1][group][name]), f"{group} {name}"
    moments = [state["optimiser"]["state"] for state in states]
    assert moments[0].keys() == moments[1].keys()
    for index, values in moments[0].items():
        for name, tensor in values.items():
            assert torch.equal(tensor, moments[1][index][name]), f"moment {name} of parameter {index}"
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (run, other)]
    assert metrics[0]["test"] == metrics[1]["test"]


def test_a_run_leaves_everything_and_the_checkpoint_is_the_best_epoch(
    finished: Path, data: ImageFolder
) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "best.safetensors",
        "config.json",
        "confusion.png",
        "curve.png",
        "history.jsonl",
        "last.pt",
        "metrics.json",
        "predictions.csv",
    }
    config = json.loads((finished / "config.json").read_text())
    metrics = json.loads((finished / "metrics.json").read_text())
    history = history_of(finished)
    assert Recipe.from_dict(config["recipe"]) == QUICK
    assert config["kept"] == "averaged weights"
    assert [line["number"] for line in history] == [1, 2, 3]
    assert (
        metrics["best_epoch"]
        == max(history, key=lambda line: (line["val_accuracy"], -line["val_loss"]))["number"]
    )
    assert metrics["val"]["accuracy"] == history[metrics["best_epoch"] - 1]["val_accuracy"]

    checkpoint = load_checkpoint(finished / "best.safetensors")
    assert checkpoint.labels == ("round", "square")
    assert checkpoint.preprocessing is not None
    assert checkpoint.preprocessing.image_size == 32
    assert list(checkpoint.preprocessing.mean) == config["normalisation"]["mean"]
    assert list(checkpoint.preprocessing.std) == config["normalisation"]["std"]

    # It knows the images that made it what it is.
    assert checkpoint.seen is not None
    for split, places in {"train": "trained_on", "val": "chose_the_epoch", "test": ""}.items():
        sources = [sample.source for sample in data.split(split)]
        expected = Overlap((), ())
        if places:
            expected = replace(expected, **{places: tuple(range(len(sources)))})
        assert Overlap.of(sources, checkpoint.seen) == expected

    # The checkpoint with the runtime's own transform gives the figures that training reported.
    transform = Transform(32, checkpoint.preprocessing.mean, checkpoint.preprocessing.std)
    with torch.inference_mode():
        logits = logits_of(
            lambda images: checkpoint.network(torch.from_numpy(images)).numpy(),
            data.split("test"),
            transform,
            batch_size=5,
        )
    measured = metrics_of(logits, classes_of(data.split("test")), data.labels)
    assert json.loads(json.dumps(measured.to_dict())) == metrics["test"]


def test_training_learns(data: ImageFolder, small: Architecture, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", small, replace(QUICK, epochs=12), hardware=ONE_THREAD)
    assert result.test is not None
    assert result.val.accuracy == result.test.accuracy == 1
    # With labels of nine tenths the least loss of training is their entropy; that of validation is 0.
    assert -0.9 * math.log(0.9) - 0.1 * math.log(0.1) < result.history[-1].train_loss
    assert result.history[-1].train_loss < result.history[0].train_loss


def test_what_is_validated_and_kept_are_the_averaged_weights(finished: Path) -> None:
    state = RunFolder(finished).read_state()
    assert state is not None
    kept = load_checkpoint(finished / "best.safetensors").network.state_dict()
    for name, tensor in state.best.items():
        assert torch.equal(tensor, kept[name]), name
    assert best_of(state.history) is state.history[-1]  # so the last average is the best
    changed = 0
    for name, tensor in state.averaged.items():
        assert torch.equal(tensor, kept[name]), name
        changed += not torch.equal(tensor, state.network[name])
    assert changed > 50


def test_an_average_moves_weights_and_statistics_a_share_of_the_way() -> None:
    averaged, network = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([3.0, -1.0]))
        network.running_var.fill_(5.0)
        network.num_batches_tracked.fill_(7)
    training.move_towards(averaged, network, 0.25)
    assert averaged.weight.tolist() == [1.5, 0.5]
    assert averaged.running_var.tolist() == [2.0, 2.0]
    assert averaged.num_batches_tracked == 7


def test_the_seed_and_nothing_else_decides_a_run(
    finished: Path, data: ImageFolder, small: Architecture, tmp_path: Path
) -> None:
    torch.manual_seed(77)  # whatever the program did before
    train(data, tmp_path / "again", small, QUICK, hardware=replace(ONE_THREAD, workers=1, cache_bytes=0))
    assert_same_run(tmp_path / "again", finished)
    train(data, tmp_path / "other", small, replace(QUICK, epochs=2, seed=1), hardware=ONE_THREAD)
    assert history_of(tmp_path / "other")[0] != history_of(finished)[0]


KILLED = """
import os, signal, sys
import torch
from msmamba.model.training import loop as training
from msmamba.data.folders import read_training_folder
from msmamba.model.networks.microscopic_mamba import Architecture
from msmamba.model.training.augmentation import Augmentation
from msmamba.model.training.recipe import Recipe

moment, folder, target = sys.argv[1:]

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

class Listener:
    def on_start(self, plan): pass
    def on_step(self, epoch, step, loss):
        if moment == "epoch %d step %d" % (epoch, step):
            die()
    def on_epoch(self, epoch, is_best):
        if moment == "epoch %d end" % epoch.number:
            die()

writes = 0
save = torch.save

def save_half(state, file):
    global writes
    writes += 1
    if moment == "in write %d" % writes:
        file.write(b"half a state")
        file.flush()
        die()
    save(state, file)

torch.save = save_half
if moment == "before the best":
    training.save_checkpoint = die

arguments = ({arch!r}, {recipe!r})
hardware = training.Hardware(threads=1)
training.train(read_training_folder(folder), target, *arguments, hardware=hardware, listeners=[Listener()])
"""


@pytest.mark.parametrize(
    ("moment", "finished_epochs"),
    [
        ("epoch 1 step 1", 0),
        ("before the best", 1),
        ("epoch 2 step 2", 1),
        ("in write 2", 1),
        ("epoch 2 end", 2),
        ("epoch 3 step 1", 2),
    ],
    ids=lambda value: str(value).replace(" ", "-"),
)
def test_a_killed_run_resumes_as_if_nothing_had_happened(
    moment: str,
    finished_epochs: int,
    preloaded: Preloaded,
    finished: Path,
    cells: Path,
    data: ImageFolder,
    small: Architecture,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    script = KILLED.format(arch=small, recipe=QUICK)
    process = preloaded.run(["-c", script, moment, cells, run])
    assert process.returncode == -signal.SIGKILL, process.stderr
    state = RunFolder(run).read_state()
    assert (0 if state is None else len(state.history)) == finished_epochs
    assert not (run / "metrics.json").exists()

    started: list[int] = []

    class Listener:
        def on_start(self, plan: training.Plan) -> None:
            started.append(plan.done)

        def on_step(self, epoch: int, step: int, loss: float) -> None:
            started.append(epoch)

        def on_epoch(self, epoch: Epoch, is_best: bool) -> None:
            """Nothing to see."""

    train(data, run, small, QUICK, hardware=ONE_THREAD, resume=True, listeners=[Listener()])
    assert started[0] == finished_epochs
    assert min(started[1:]) == finished_epochs + 1
    assert_same_run(run, finished)
    assert not list(run.glob(".*.tmp"))


def test_a_worker_that_the_system_ends_is_told_in_one_line(
    data: ImageFolder, small: Architecture, tmp_path: Path
) -> None:
    class Ending:
        def on_start(self, plan: training.Plan) -> None:
            """Nothing to see."""

        def on_step(self, epoch: int, step: int, loss: float) -> None:
            for worker in multiprocessing.active_children():
                worker.kill()
                worker.join()

        def on_epoch(self, epoch: Epoch, is_best: bool) -> None:
            """Nothing to see."""

    hardware = training.Hardware(threads=1, workers=1)
    with pytest.raises(TrainingError, match=r"reads images is gone \(DataLoader worker .*--resume and fewer"):
        train(data, tmp_path / "run", small, QUICK, hardware=hardware, listeners=[Ending()])


def test_a_finished_run_resumes_to_the_same_results(
    finished: Path, data: ImageFolder, small: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise TargetError(f"cannot write '{path}'")

    before = {name: (finished / name).read_bytes() for name in ("metrics.json", "predictions.csv")}
    (finished / "metrics.json").unlink()
    (finished / "predictions.csv").write_bytes(b"of before")
    with monkeypatch.context() as patched:
        patched.setattr("msmamba.model.training.run.write_confusion_matrix", refuse)
        with pytest.raises(TargetError):
            train(data, finished, small, QUICK, hardware=ONE_THREAD, resume=True)
    assert (finished / "predictions.csv").read_bytes() == b"of before"  # beside which no other file is new
    train(data, finished, small, QUICK, hardware=ONE_THREAD, resume=True)
    assert {name: (finished / name).read_bytes() for name in before} == before


@pytest.mark.skipif(os.name == "nt", reason="making links needs rights there")
def test_nothing_is_written_through_links_out_of_a_run(
    finished: Path, data: ImageFolder, small: Architecture, tmp_path: Path
) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(finished, run)
    outside.mkdir()
    for path in [*run.iterdir()]:
        path.rename(outside / path.name)
        path.symlink_to(outside / path.name)
    before = {path.name: path.read_bytes() for path in outside.iterdir()}
    train(data, run, small, QUICK, hardware=ONE_THREAD, resume=True)
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == before
    assert not (run / "history.jsonl").is_symlink()
    assert (run / "history.jsonl").read_bytes() == before["history.jsonl"]


def test_a_run_is_trained_by_one_process_at_a_time(
    data: ImageFolder, small: Architecture, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    told: list[str] = []

    class Second:
        def on_start(self, plan: training.Plan) -> None:
            with pytest.raises(TargetError, match="is trained by another process") as caught:
                train(data, run, small, QUICK, hardware=ONE_THREAD, resume=True)
            told.append(str(caught.value))
            raise KeyboardInterrupt

        def on_step(self, epoch: int, step: int, loss: float) -> None:
            """Nothing to see."""

        def on_epoch(self, epoch: Epoch, is_best: bool) -> None:
            """Nothing to see."""

    for _ in range(2):  # whoever comes after the first has ended is let in
        with pytest.raises(KeyboardInterrupt):
            train(data, run, small, QUICK, hardware=ONE_THREAD, resume=True, listeners=[Second()])
    assert len(told) == 2


def test_a_run_that_comes_to_nothing_leaves_no_folder(
    data: ImageFolder, small: Architecture, tmp_path: Path
) -> None:
    without_val = replace(data, splits={"train": data.split("train")})
    with pytest.raises(DataError):
        train(without_val, tmp_path / "run", small, QUICK, hardware=ONE_THREAD)
    assert not (tmp_path / "run").exists()


def test_resume_without_a_run_begins_one(data: ImageFolder, small: Architecture, tmp_path: Path) -> None:
    recipe = replace(QUICK, epochs=2)
    assert len(train(data, tmp_path / "run", small, recipe, hardware=ONE_THREAD, resume=True).history) == 2


def test_the_config_names_every_figure_the_preset_and_what_overrides_it(
    cells: Path, small: Architecture, tmp_path: Path
) -> None:
    figures = {"epochs": 2, "warmup_epochs": 1, "image_size": 32, "accumulate": 2}
    arguments: dict[str, Any] = {"switches": {"mifa": False}, "hardware": ONE_THREAD}
    training.train_folder(cells, tmp_path / "run", preset="micrographs", figures=figures, **arguments)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["recipe"].keys() == asdict(Recipe()).keys()
    assert config["recipe"]["preset"] == "micrographs"
    assert config["recipe"]["learning_rate"] == 2e-3
    assert config["overridden"] == {
        "epochs": {"preset": 38, "run": 2},
        "warmup_epochs": {"preset": 3, "run": 1},
        "image_size": {"preset": 224, "run": 32},
        "accumulate": {"preset": 1, "run": 2},
    }
    assert config["architecture"]["mifa"] is False
    assert not load_checkpoint(tmp_path / "run" / "best.safetensors").network.arch.mifa
    # Resumed without a word, it is the same run; with another preset or switch, it is refused.
    training.train_folder(cells, tmp_path / "run", resume=True, hardware=ONE_THREAD)
    with pytest.raises(TrainingError, match=r"--preset was 'micrographs' and is 'paper'"):
        training.train_folder(cells, tmp_path / "run", preset="paper", resume=True)
    with pytest.raises(TrainingError, match=r"--psffn was True and is False"):
        training.train_folder(cells, tmp_path / "run", switches={"psffn": False}, resume=True)


def test_a_run_of_a_version_that_knew_fewer_figures_resumes(
    cells: Path, data: ImageFolder, small: Architecture, tmp_path: Path
) -> None:
    """Also where the preset has changed since: the run goes on with the figures that it has."""
    run = tmp_path / "run"
    recipe = Recipe(
        epochs=2, warmup_epochs=1, image_size=32, preset="micrographs", augmentation=Augmentation((0.4, 1.0))
    )
    train(data, run, small, recipe, hardware=ONE_THREAD)
    config = json.loads((run / "config.json").read_text())
    assert config["kept"] == "trained weights"
    for name in ("accumulate", "label_smoothing", "average_epochs"):
        del config["recipe"][name]
    for name in ("keep_shape", "rotation", "colour", "focus"):
        del config["recipe"]["augmentation"][name]
    (run / "config.json").write_text(json.dumps(config))
    state = torch.load(run / "last.pt", weights_only=True)
    del state["averaged"]
    torch.save(state, run / "last.pt")
    before = (run / "best.safetensors").read_bytes()
    training.train_folder(cells, run, preset="micrographs", resume=True, hardware=ONE_THREAD)
    assert (run / "best.safetensors").read_bytes() == before
    with pytest.raises(TrainingError, match=r"--accumulate was 1 and is 2"):
        train(data, run, small, replace(recipe, accumulate=2), resume=True)
    with pytest.raises(TrainingError, match=r"--rotation was 0\.0 and is 90"):
        training.train_folder(cells, run, figures={"rotation": 90}, resume=True)


def test_a_run_of_a_version_with_the_networks_parts_in_another_order_resumes(
    finished: Path, data: ImageFolder, small: Architecture, tmp_path: Path
) -> None:
    """The optimiser has numbers for parameters: those of merging patches were others before version 0.2.0."""

    class Stopping:
        def on_start(self, plan: training.Plan) -> None:
            """Nothing to see."""

        def on_step(self, epoch: int, step: int, loss: float) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

        def on_epoch(self, epoch: Epoch, is_best: bool) -> None:
            """Nothing to see."""

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(data, run, small, QUICK, hardware=ONE_THREAD, listeners=[Stopping()])
    state = torch.load(run / "last.pt", weights_only=True)
    network = MicroscopicMamba(small)
    spared = set(network.without_weight_decay())
    names = [name for name, _ in network.named_parameters()]
    now, then = (sorted(each, key=spared.__contains__) for each in (names, names[::-1]))
    values, optimiser = state["optimiser"]["state"], state["optimiser"]
    moved = {place: values[now.index(name)] for place, name in enumerate(then) if now.index(name) in values}
    before = {
        **state,
        "network": dict(reversed(state["network"].items())),
        "optimiser": {**optimiser, "state": moved},
    }
    torch.save(before, run / "last.pt")
    train(data, run, small, QUICK, hardware=ONE_THREAD, resume=True)
    assert_same_run(run, finished)
    torch.save({**before, "network": state["network"]}, run / "last.pt")
    with pytest.raises(
        TrainingError, match=r"last\.pt: is not the state .* which is \(.*: begin the run again"
    ):
        train(data, run, small, QUICK, hardware=ONE_THREAD, resume=True)


def test_deterministic_training_sets_pytorch_back(
    finished: Path, data: ImageFolder, small: Architecture, tmp_path: Path
) -> None:
    train(data, tmp_path / "run", small, QUICK, hardware=replace(ONE_THREAD, deterministic=True))
    assert_same_run(tmp_path / "run", finished)
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_algorithm_is_named() -> None:
    with (
        pytest.raises(BackendError, match=r"cannot be deterministic: put_ .*: train without --deterministic"),
        training.deterministic_algorithms(True),
    ):
        torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]), accumulate=False)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("said", [{"copies_together": True}, {}], ids=["second", "first"])
def test_a_run_of_an_earlier_version_keeps_its_split(
    said: dict[str, bool], small: Architecture, tmp_path: Path
) -> None:
    cells = write_cells(tmp_path / "cells")
    for path in [*cells.rglob("*.png")]:  # one patient has more than half of the images, the others two each
        patient = path.parent / f"p{max(0, int(path.stem) - 6)}"
        patient.mkdir(exist_ok=True)
        path.rename(patient / path.name)
    before = read_training_folder(cells, seed=2, dealing=int("copies_together" in said))
    now = read_training_folder(cells, seed=2)
    assert [sum(each.counts()["train"].values()) for each in (before, now)] == [6, 20]
    recipe, run = replace(QUICK, epochs=1, warmup_epochs=0, seed=2), tmp_path / "run"
    train(before, run, small, recipe, hardware=ONE_THREAD)
    config = json.loads((run / "config.json").read_text())
    assert config["data"].pop("dealing") == before.dealing
    config["data"] |= said
    (run / "config.json").write_text(json.dumps(config))
    assert len(train_folder(cells, run, resume=True, hardware=ONE_THREAD).history) == 1


def test_a_run_that_lies_among_its_images_is_no_class(
    small: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = write_cells(tmp_path / "cells")
    before = read_training_folder(cells).labels

    def killed(*of_the_first_epoch: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Trainer, "_run_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        train(read_training_folder(cells), cells / "run", small, QUICK)
    assert (cells / "run" / "config.json").is_file()
    again = read_training_folder(cells)
    assert again.labels == before
    assert "passed over: folders that mmdeploy has written, 1 (run)" in again.notes


def test_a_folder_that_is_taken_is_refused(
    finished: Path, data: ImageFolder, small: Architecture, tmp_path: Path
) -> None:
    with pytest.raises(TargetError, match="holds a run already: resume it with --resume"):
        train(data, finished, small, QUICK)
    with pytest.raises(TargetError, match="holds a run already"):  # before images are looked at
        train_folder(tmp_path / "nowhere", finished)
    (tmp_path / "thesis.txt").touch()
    for resume in (False, True):
        with pytest.raises(TargetError, match=r"holds 'thesis\.txt' and is no run"):
            train(data, tmp_path, small, QUICK, resume=resume)
    with pytest.raises(TargetError, match="cannot make the folder"):
        train(data, tmp_path / "thesis.txt" / "run", small, QUICK)


def test_a_folder_that_cannot_be_written_is_refused_before_the_images(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TargetError, match="what should be its folder is a file"):
        train_folder(tmp_path / "nowhere", tmp_path / "file" / "run")


def test_the_network_says_which_images_it_takes(
    data: ImageFolder, small: Architecture, tmp_path: Path
) -> None:
    recipe = replace(QUICK, epochs=1, warmup_epochs=0, image_size=24)  # two stages shrink by 8, four by 32
    train(data, tmp_path / "run", small, recipe, hardware=ONE_THREAD)
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").preprocessing.image_size == 24
    with pytest.raises(
        InputError, match=r"cannot take them: images are 28x28; .* multiple of 8: resize them"
    ):
        train(data, tmp_path / "other", small, replace(recipe, image_size=28))
    with pytest.raises(InputError, match=r"network 't' cannot take them: .* multiple of 32"):
        train_folder(tmp_path / "nowhere", tmp_path / "other", figures={"image_size": 24})
    assert not (tmp_path / "other").exists()


def test_a_run_is_not_resumed_with_other_figures(
    finished: Path, data: ImageFolder, small: Architecture
) -> None:
    with pytest.raises(TrainingError, match=r"--lr was 0\.003 and is 0\.001"):
        train(data, finished, small, replace(QUICK, learning_rate=1e-3), resume=True)
    with pytest.raises(TrainingError, match=r"--mifa was True and is False"):
        train(data, finished, replace(small, mifa=False), QUICK, resume=True)
    fewer = replace(data, splits={**data.splits, "train": data.splits["train"][1:]})
    with pytest.raises(TrainingError, match="the images of the train split are not those it was begun with"):
        train(fewer, finished, small, QUICK, resume=True)


def archive(pickled: bytes) -> bytes:
    """As PyTorch writes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        written.writestr("archive/data.pkl", pickled)
        written.writestr("archive/version", "3\n")
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"half a state", id="text"),
        pytest.param(b"PK\x03\x04 and no more", id="zip"),
        pytest.param(archive(b"\x80\x02X\x01\x00\x00\x00\xf2."), id="text-that-is-none"),
        pytest.param(archive(b"\x80\x02]."), id="list"),
    ],
)
def test_a_broken_state_is_refused_in_one_line(content: bytes, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(TrainingError, match=r"last\.pt: is not the state of a run") as caught:
        RunFolder(tmp_path).read_state()
    assert "\n" not in str(caught.value)


def test_a_broken_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TrainingError, match=r"config\.json: cannot be read"):
        RunFolder(tmp_path).read_beginning()
    (tmp_path / "config.json").write_text('{"recipe": {"speed": 1}}')
    with pytest.raises(TrainingError, match="is not the config of a run of this version"):
        RunFolder(tmp_path).read_beginning()
    assert RunFolder(tmp_path / "absent").read_beginning() is None
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(
        TrainingError, match=r"config\.json: cannot be read: it is a folder: expected a file$"
    ):
        RunFolder(tmp_path).read_beginning()


def test_divergence_stops_the_run_and_keeps_the_best(
    data: ImageFolder, small: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(100))
    cross_entropy = torch.nn.functional.cross_entropy

    def diverging(logits: torch.Tensor, labels: torch.Tensor, **how: Any) -> torch.Tensor:
        return cross_entropy(logits, labels, **how) * (math.nan if next(steps) == 4 else 1)

    monkeypatch.setattr(training.functional, "cross_entropy", diverging)
    run = tmp_path / "run"
    with pytest.raises(
        TrainingError, match=r"became nan in epoch 2, step 2; .*best\.safetensors keeps epoch 1"
    ):
        train(data, run, small, QUICK, hardware=ONE_THREAD)
    assert load_checkpoint(run / "best.safetensors").labels == ("round", "square")
    assert len(history_of(run)) == 1
    assert (run / "curve.png").exists()


def test_a_rate_far_too_high_diverges_with_an_error(
    data: ImageFolder, small: Architecture, tmp_path: Path
) -> None:
    recipe = replace(QUICK, learning_rate=1e30, warmup_epochs=0)
    with pytest.raises(
        TrainingError, match=r"training diverged: .*; no epoch was finished, .*learning rate \(1e\+30\)"
    ):
        train(data, tmp_path / "run", small, recipe, hardware=ONE_THREAD)


def test_a_bad_image_stops_the_run_by_name(cells: Path, small: Architecture, tmp_path: Path) -> None:
    broken = tmp_path / "cells"
    for path in cells.rglob("*.png"):
        copy = broken / path.relative_to(cells)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (broken / "round" / "5.png").write_bytes((cells / "round" / "5.png").read_bytes()[:200])
    with pytest.raises(ImageError, match=r"round/5\.png.* truncated"):
        train(read_training_folder(broken), tmp_path / "run", small, QUICK)


def test_a_data_set_without_a_test_split_trains(
    data: ImageFolder, small: Architecture, tmp_path: Path
) -> None:
    two = replace(data, splits={name: data.splits[name] for name in ("train", "val")})
    result = train(two, tmp_path / "run", small, replace(QUICK, epochs=2), hardware=ONE_THREAD)
    assert result.test is None
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test"] is None
    assert (tmp_path / "run" / "confusion.png").exists()
    with pytest.raises(DataError, match="no images in a 'val' split"):
        train(replace(data, splits={"train": data.splits["train"]}), tmp_path / "other", small, QUICK)


def test_the_scans_own_parameters_take_no_weight_decay(small: Architecture) -> None:
    network = MicroscopicMamba(small)
    decayed, spared = training._optimiser_of(network, Recipe(weight_decay=0.5)).param_groups
    assert decayed["weight_decay"] == 0.5
    assert spared["weight_decay"] == 0
    own = [tensor for name, tensor in network.named_parameters() if name.endswith(("A_logs", "Ds"))]
    assert {id(tensor) for tensor in spared["params"]} == {id(tensor) for tensor in own}
    assert len(decayed["params"]) + len(own) == len(list(network.parameters()))


def test_threads_limit_pytorch_and_the_compiled_scan() -> None:
    for count in (2, 1):
        set_threads(count)
        assert (torch.get_num_threads(), cpu.threads()) == (count, count)
    with pytest.raises(InputError, match="number of threads is 0"):
        set_threads(0)


def test_hardware_that_is_not_there_is_refused() -> None:
    for device in ("tpu", "cpu:0", "cuda:", "cuda:one", "cuda:-1"):
        with pytest.raises(
            BackendError, match=f"there is no device '{device}': choose cpu, cuda or cuda:<ind"
        ):
            Hardware(device=device)
    with pytest.raises(BackendError, match="mixed precision needs CUDA"):
        Hardware(amp=True)
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match=r"'cuda:0' was asked for, but PyTorch .* finds no CUDA"):
            Hardware(device="cuda:0")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mixed_precision_trains_and_resumes_on_cuda(
    data: ImageFolder, small: Architecture, tmp_path: Path
) -> None:
    hardware = Hardware(device="cuda", amp=True)
    recipe = replace(QUICK, epochs=8)
    result = train(data, tmp_path / "run", small, recipe, hardware=hardware)
    losses = [line["train_loss"] for line in history_of(tmp_path / "run")]
    # Of 24 steps in float16 on a CPU, which end at 0.81 and 0.83 of where two seeds began; four held-out
    # images say nothing yet.
    assert losses[-1] < 0.9 * losses[0]
    again = train(data, tmp_path / "run", small, recipe, hardware=hardware, resume=True)
    assert again.history == result.history
