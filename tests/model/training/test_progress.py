"""What a user sees of a run: lines, bars, TensorBoard."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from msmamba.errors import BackendError, TargetError
from msmamba.images import Transform
from msmamba.model.training.history import Epoch
from msmamba.model.training.loop import Listener, Plan
from msmamba.model.training.progress import BarProgress, describe_epoch, shown_on
from msmamba.model.training.recipe import Recipe

EPOCH = Epoch(
    number=1,
    learning_rate=5e-5,
    train_loss=1.05,
    train_accuracy=0.5,
    val_loss=0.9,
    val_accuracy=0.75,
    val_auc=0.8125,
    seconds=2.5,
)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(
        run=tmp_path,
        counts={"train": {"a": 3, "b": 4}, "val": {"a": 1, "b": 1}},
        transform=Transform(32, (0.5, 0.25, 0.125), (0.1, 0.2, 0.3)),
        parameters=1234,
        epochs=20,
        steps=2,
        done=0,
        recipe=Recipe(image_size=32),
    )


def run_through(listeners: list[Listener], plan: Plan) -> None:
    for listener in listeners:
        listener.on_start(plan)
        listener.on_step(1, 1, 1.1)
        listener.on_step(1, 2, 1.0)
        listener.on_epoch(EPOCH, True)
        listener.on_epoch(replace(EPOCH, number=2, val_auc=None), False)


def test_a_log_gets_one_plain_line_for_each_epoch(plan: Plan) -> None:
    log = io.StringIO()
    with shown_on(Console(file=log)) as listeners:
        run_through(listeners, plan)
    assert log.getvalue().splitlines() == [
        "train: 7 images (a 3, b 4)",
        "val: 2 images (a 1, b 1)",
        "input 32x32, channel mean 0.5000 0.2500 0.1250, std 0.1000 0.2000 0.3000",
        "recipe: paper, but --image-size 32",
        "1,234 parameters, at most 20 epochs of 2 steps",
        "epoch  1/20  train loss 1.0500 acc 0.500  val loss 0.9000 acc 0.750 auc 0.8125 * lr 5.0e-05  2.5 s",
        "epoch  2/20  train loss 1.0500 acc 0.500  val loss 0.9000 acc 0.750 auc      -   lr 5.0e-05  2.5 s",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_log_that_is_full_is_told_as_what_it_is(plan: Plan) -> None:
    with (
        io.TextIOWrapper(Path("/dev/full").open("wb", 0), write_through=True) as full,
        shown_on(Console(file=full)) as listeners,
        pytest.raises(TargetError, match="cannot write standard output: the disk is full"),
    ):
        run_through(listeners, plan)


def test_a_resumed_run_says_so(plan: Plan) -> None:
    log = io.StringIO()
    with shown_on(Console(file=log)) as listeners:
        run_through(listeners, replace(plan, done=1))
    assert "resumed after epoch 1" in log.getvalue().splitlines()


def test_a_terminal_gets_bars_and_the_same_lines(plan: Plan) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, color_system=None)
    with shown_on(console) as listeners:
        (progress,) = (each for each in listeners if isinstance(each, BarProgress))
        run_through(listeners, plan)
        bars = progress._progress.tasks
        assert [bar.description for bar in bars] == ["epochs", "steps"]
        assert [(bar.completed, bar.total) for bar in bars] == [(2, 20), (0, 2)]
    assert describe_epoch(EPOCH, 20, True) in screen.getvalue()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_tensorboard_that_is_missing_is_named() -> None:
    with pytest.raises(BackendError, match="pip install tensorboard"), shown_on(Console(), tensorboard=True):
        pass


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs the package tensorboard")
def test_tensorboard_gets_a_file_of_events(plan: Plan) -> None:
    with shown_on(Console(file=io.StringIO()), tensorboard=True) as listeners:
        run_through(listeners, plan)
    assert list((plan.run / "tensorboard").glob("events.*"))
