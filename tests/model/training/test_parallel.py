"""Several processes train as one would, and none waits for one that is gone."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from preloaded import Preloaded
from torch import nn

from msmamba.data.folders import read_training_folder
from msmamba.errors import BackendError
from msmamba.model.networks.layers import DropPath
from msmamba.model.training import parallel
from msmamba.model.training.loading import ShuffledBatches, in_batches
from msmamba.model.training.loop import Hardware, train
from msmamba.model.training.parallel import Part, Processes, Shards, SyncedBatchNorm, dealt

SCRIPT = Path(__file__).with_name("together.py")
PATIENCE = 120
"""Seconds after which processes count as hanging."""


@pytest.fixture(scope="module")
def together() -> ModuleType:
    """The script as a module: the same recipe for runs in this process."""
    spec = importlib.util.spec_from_file_location("together", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launch(
    preloaded: Preloaded, count: int, *arguments: str | Path
) -> list[subprocess.CompletedProcess[str]]:
    """Runs the script in ``count`` processes, which nobody ends when one dies, as torchrun would.

    ``<rank>`` in an argument is the process's.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    running = [
        preloaded.start(
            [SCRIPT, *(str(each).replace("<rank>", str(rank)) for each in arguments)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]
    return [process.wait(PATIENCE) for process in running]


counts = st.integers(1, 9)


@settings(deadline=None)
@given(images=st.integers(1, 60), batch_size=st.integers(2, 17), parts=counts, count=counts)
def test_shares_together_are_the_batches_of_one_process(
    images: int, batch_size: int, parts: int, count: int
) -> None:
    order = ShuffledBatches(images, batch_size, seed=3)
    order.epoch = 2
    everyones = [Shards(order, parts, Processes(rank, count)) for rank in range(count)]
    shares = [list(shards) for shards in everyones]
    assert all(len(list_of) == len(shards) for list_of, shards in zip(shares, everyones, strict=True))
    position = 0
    for batch, *steps in zip(order, *(shards.steps for shards in everyones), strict=True):
        rebuilt = []
        for number, part in enumerate(steps[0]):
            assert part.whole >= min(2, len(batch))
            own = [shares[rank][position + number] for rank in range(count)]
            assert all(
                len(keys) == step[number].stop - step[number].start
                for keys, step in zip(own, steps, strict=True)
            )
            assert max(map(len, own)) - min(map(len, own)) <= 1
            assert min(map(len, own)) > 0
            if part.copies > 1:
                assert part.whole < count == part.copies
                assert all(keys == own[0] for keys in own)
                own = own[:1]
            rebuilt += [key for keys in own for key in keys]
        assert rebuilt == batch
        position += len(steps[0])


@settings(deadline=None)
@given(images=st.integers(1, 40), batch_size=st.integers(1, 9), count=counts)
def test_batches_dealt_for_evaluation_are_collected_in_order(
    images: int, batch_size: int, count: int
) -> None:
    batches = in_batches(images, batch_size)
    shares = [list(dealt(batches, Processes(rank, count))) for rank in range(count)]

    class Told(Processes):
        def gather(self, value: Any) -> list[Any]:
            assert value == shares[self.rank]
            return shares

    assert parallel.collected(shares[0], Told(0, count)) == batches
    assert [index for batch in batches for index in batch] == list(range(images))


def test_one_process_alone_changes_nothing(make_network: Callable[..., nn.Module]) -> None:
    network = make_network()
    assert parallel.ALONE.replicate(network) is network
    assert not any(isinstance(module, SyncedBatchNorm) for module in network.modules())
    with parallel.joined() as (processes, device):
        assert (processes, device) == (parallel.ALONE, "cpu")


def test_stochastic_depth_draws_for_all_and_keeps_its_own() -> None:
    drop, images = DropPath(0.5).train(), torch.ones(9, 2, 2, 3)
    torch.manual_seed(5)
    whole = drop(images)
    assert 0 < (whole == 0).double().mean() < 1
    for start, stop in ((0, 4), (4, 9)):
        torch.manual_seed(5)
        parallel.take(drop, Part(9, start, stop))
        assert torch.equal(drop(images[start:stop]), whole[start:stop])


# Measured in float64: gradients within 1.2e-7 of a tensor's largest (the scan adds up in float32), running
# statistics and losses within 9e-16.
@pytest.mark.parametrize(
    ("name", "count", "sizes", "parts"),
    [("t", 2, "7,5", 2), ("t", 3, "7,2", 1), ("smt_s", 2, "7,5", 2)],
    ids=["accumulated", "more-processes-than-images", "another-network"],
)
def test_gradients_and_statistics_are_those_of_one_process(
    name: str, count: int, sizes: str, parts: int, preloaded: Preloaded
) -> None:
    for process in launch(preloaded, count, "compare_steps", name, sizes, str(parts)):
        assert process.returncode == 0, process.stderr
        assert not process.stderr  # PyTorch warns where it looks for unused weights and there are none
        errors = json.loads(process.stdout)
        assert errors["gradient"] < 2.4e-7
        assert errors["statistic"] < 2e-15
        assert errors["loss"] < 2e-15


def test_synchronised_norms_err_no_more_than_pytorchs_in_half_precision() -> None:
    """Output and gradients of a map in float16, against float64; one process, so that both see the same."""
    generator = torch.Generator().manual_seed(4)
    x = (torch.randn(8, 6, 14, 14, generator=generator) * 2 + 3).half()
    grad = torch.randn(x.shape, generator=generator).half()
    plain = nn.BatchNorm2d(6)
    with torch.no_grad():
        plain.weight.uniform_(0.5, 2, generator=generator)
    exact = nn.BatchNorm2d(6).double()
    exact.load_state_dict(plain.state_dict())
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        errors = []
        answers = []
        for norm, images in ((exact, x.double()), (plain, x), (SyncedBatchNorm.of(plain), x)):
            images.requires_grad_()
            y = norm(images)
            found = torch.autograd.grad(y, (images, norm.weight, norm.bias), grad.to(y.dtype))
            answers.append([y.detach(), *found])
            errors.append(
                [(a.double() - b).abs().max() for a, b in zip(answers[-1], answers[0], strict=True)]
            )
            images.requires_grad_(False)
    finally:
        torch.distributed.destroy_process_group()
    for ours, theirs, name in zip(errors[2], errors[1], ("y", "x", "weight", "bias"), strict=True):
        assert ours <= theirs * 1.01 + 1e-6, name


@pytest.fixture(scope="module")
def alone(cells: Path, together: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    run = tmp_path_factory.mktemp("runs") / "alone"
    data = read_training_folder(cells)
    before = torch.get_num_threads()
    train(data, run, together.SMALL, together.STEADY, hardware=Hardware(threads=1))
    torch.set_num_threads(before)
    return run


@pytest.fixture(scope="module")
def shared(preloaded: Preloaded, cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes."""
    run = tmp_path_factory.mktemp("runs") / "shared"
    for rank, process in enumerate(launch(preloaded, 2, "train", cells, run, "never")):
        assert process.returncode == 0, process.stderr
        assert json.loads(process.stdout) == [rank, 3]
        assert "Warning" not in process.stderr
    return run


def history_of(run: Path) -> list[dict[str, Any]]:
    """Everything but the wall times."""
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    timed = ("seconds", "images_per_second")
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def assert_as_of_one(run: Path, alone: Path) -> None:
    """Equal up to the order of additions.

    Measured over three epochs: figures within 3e-8; weights within 8e-7, where one process with another
    number of threads is 6e-7 away.
    """
    for found, expected in zip(history_of(run), history_of(alone), strict=True):
        assert found == pytest.approx(expected, abs=6e-8), expected["number"]
    states = [torch.load(folder / "last.pt", weights_only=True) for folder in (run, alone)]
    assert states[0]["optimiser"]["state"].keys() == states[1]["optimiser"]["state"].keys()
    for group in ("network", "averaged"):
        for name, tensor in states[1][group].items():
            error = (states[0][group][name] - tensor).double().abs().max()
            assert error < 1.6e-6, f"{group} {name}"


def test_two_processes_train_as_one(shared: Path, alone: Path) -> None:
    assert_as_of_one(shared, alone)
    assert {path.name for path in shared.iterdir()} == {path.name for path in alone.iterdir()}
    assert json.loads((shared / "config.json").read_text())["hardware"]["processes"] == 2


@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_process_ends_the_others_and_the_run_resumes(
    victim: int,
    preloaded: Preloaded,
    cells: Path,
    shared: Path,
    alone: Path,
    together: ModuleType,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    processes = launch(
        preloaded, 2, "train", cells, run, f"{victim}:6"
    )  # in the last of three steps of the second epoch
    survivor = processes[1 - victim]
    assert processes[victim].returncode == -9
    assert survivor.returncode == 1
    assert survivor.stderr.splitlines()[-1].startswith(f"error: process {1 - victim} of 2 lost the others (")
    assert survivor.stderr.splitlines()[-1].endswith("continue the run with --resume")
    assert len(history_of(run)) == 1
    if victim:  # by one process
        train(read_training_folder(cells), run, together.SMALL, together.STEADY, resume=True)
        assert_as_of_one(run, alone)
        return
    for process in launch(preloaded, 2, "train", cells, run, "never", "resume"):
        assert process.returncode == 0, process.stderr
    assert history_of(run) == history_of(shared)
    assert (run / "best.safetensors").read_bytes() == (shared / "best.safetensors").read_bytes()


def test_what_stops_the_first_process_stops_all_with_its_words(
    preloaded: Preloaded, cells: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").touch()
    first, second = launch(preloaded, 2, "train", cells, tmp_path, "never")
    said = f"'{tmp_path}' holds 'thesis.txt' and is no run: choose a new folder"
    assert (first.returncode, first.stderr.splitlines()[-1]) == (1, f"error: {said}")
    assert second.stderr.splitlines()[-1] == f"error: process 1 of 2 stops with the first: {said}"


def test_processes_that_find_other_images_do_not_train_together(
    preloaded: Preloaded, cells: Path, tmp_path: Path
) -> None:
    for rank in range(2):
        shutil.copytree(cells, tmp_path / f"cells{rank}")
    label = next(path for path in (tmp_path / "cells1").iterdir() if path.is_dir())
    image = min(label.glob("*.png"))
    image.rename(image.with_name("another.png"))
    for process in launch(preloaded, 2, "train", tmp_path / "cells<rank>", tmp_path / "run", "never"):
        assert process.returncode == 1
        assert "process 1 of 2 finds other images there than the first" in process.stderr
    assert not (tmp_path / "run").exists()


def test_an_image_that_one_process_cannot_read_ends_all(
    preloaded: Preloaded, cells: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(cells, tmp_path / "cells")
    for path in broken.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:300] if path.stem == "5" else path.read_bytes())
    processes = launch(preloaded, 2, "train", broken, tmp_path / "run", "never")
    assert [process.returncode for process in processes] == [1, 1]
    assert any("5.png" in process.stderr for process in processes)


def test_torchrun_starts_the_command(preloaded: Preloaded, cells: Path, tmp_path: Path) -> None:
    """The dearest here: what torchrun starts are bare processes."""
    options = ("--image-size", "32", "--epochs", "1", "--warm-up", "0", "--accumulate", "2", "--workers", "1")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "msmamba", "train", cells, "-o", tmp_path / "run", *options]
    done = preloaded.run(command, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "each step shared by 2 processes" in done.stdout
    assert done.stdout.count("best epoch") == 1
    assert len(history_of(tmp_path / "run")) == 1


def test_gpus_that_cannot_be_shared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "9", "RANK": "8", "LOCAL_RANK": "8", "LOCAL_WORLD_SIZE": "9"}.items():
        monkeypatch.setenv(name, value)
    refused = pytest.raises(
        BackendError, match="9 processes cannot share device 'cuda:0': give --device cuda"
    )
    with refused, parallel.joined("cuda:0"):
        pass
    if torch.cuda.device_count() < 9:
        refused = pytest.raises(BackendError, match=r"9 processes were started on a machine with \d GPUs")
        with refused, parallel.joined("cuda"):
            pass
