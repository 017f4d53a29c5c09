"""What the tests of several processes run in each: ``python together.py MODE ARGUMENT…``.

As `mmdeploy` does, a mode that fails ends with ``error: …`` on standard error and status 1.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from msmamba.data.folders import read_training_folder
from msmamba.errors import MsmambaError
from msmamba.model.networks.family import Network
from msmamba.model.networks.microscopic_mamba import Architecture
from msmamba.model.networks.registry import build_network
from msmamba.model.training import loop as training
from msmamba.model.training import parallel
from msmamba.model.training.augmentation import Augmentation
from msmamba.model.training.loading import ShuffledBatches
from msmamba.model.training.recipe import Recipe

SIZES: dict[str, dict[str, Any]] = {
    "t": {"depths": (1, 1), "dims": (32, 64)},  # some of its weights are in no forward pass
    "smt_s": {"depths": (1, 1, 2, 1), "dims": (32, 32, 32, 32)},
}
SMALL = Architecture(num_classes=2, **SIZES["t"])
# A rate so small that what differs is the arithmetic: Adam turns the rounding errors of gradients that are
# zero in exact numbers (those of biases before batch norms) into steps of full length.
STEADY = Recipe(
    epochs=3,
    batch_size=5,
    learning_rate=1e-6,
    warmup_epochs=1,
    image_size=32,
    label_smoothing=0.1,
    average_epochs=0.5,
    augmentation=Augmentation(crop_scale=(0.6, 1.0), horizontal_flip=True),
)


def small(name: str) -> Network:
    """A small network of a family, its head behind a norm of vectors, as RepViT has it; in float64."""
    network = build_network(name, num_classes=2, **SIZES[name])
    network.head = nn.Sequential(nn.BatchNorm1d(SIZES[name]["dims"][-1]), network.head)
    return network.double().train()


def step(network: nn.Module, own: Network, batch: int, parts: int, processes: parallel.Processes) -> float:
    """The gradients of one batch of noise, as `model.training.loop` takes them: the loss of all processes."""
    generator = torch.Generator().manual_seed(batch)
    images, labels = torch.randn(batch, 3, 32, 32, generator=generator).double(), torch.arange(batch) % 2
    shards = parallel.Shards(ShuffledBatches(batch, batch, seed=0), parts, processes)
    torch.manual_seed(batch)  # of stochastic depth
    network.zero_grad()
    total = 0.0
    for keys, part in zip(shards, shards.steps[0], strict=True):
        rows = [index for _, index in keys]
        parallel.take(own, part)
        with parallel.averaging_gradients(network, part is shards.steps[0][-1]):
            losses = functional.cross_entropy(network(images[rows]), labels[rows], reduction="sum")
            loss = losses / (batch * part.copies)
            (loss * processes.count).backward()
        total += loss.item()
    return processes.total(total)[0]


def compare_steps(name: str, batches: str, parts: str) -> None:
    """Prints how far gradients, statistics and losses are from those of one process, in float64."""
    with parallel.joined() as (processes, _):
        torch.manual_seed(0)
        alone, shared = small(name), small(name)
        shared.load_state_dict(alone.state_dict())
        replica = processes.replicate(shared)
        errors = {"gradient": 0.0, "statistic": 0.0, "loss": 0.0}
        for batch in map(int, batches.split(",")):
            expected = step(alone, alone, batch, int(parts), parallel.ALONE)
            found = step(replica, shared, batch, int(parts), processes)
            errors["loss"] = max(errors["loss"], abs(found - expected))
            for (name, one), many in zip(alone.named_parameters(), shared.parameters(), strict=True):
                assert (one.grad is None) == (many.grad is None), name
                if one.grad is not None:
                    error = (one.grad - many.grad).abs().max() / one.grad.abs().max().clamp(min=1e-6)
                    errors["gradient"] = max(errors["gradient"], float(error))
            for one, many in zip(alone.buffers(), shared.buffers(), strict=True):
                errors["statistic"] = max(errors["statistic"], float((one - many).abs().max()))
        print(json.dumps(errors))


def train(folder: str, run: str, dies: str, *flags: str) -> None:
    """Trains steadily; ``dies`` is ``RANK:PART``, when one process kills itself, or ``never``."""
    rank, _, moment = dies.partition(":")
    seen = 0
    take = parallel.take

    def take_or_die(network: nn.Module, part: parallel.Part) -> None:
        nonlocal seen
        seen += 1
        if moment and os.environ["RANK"] == rank and seen == int(moment):
            os.kill(os.getpid(), signal.SIGKILL)
        take(network, part)

    training.take = take_or_die
    with parallel.joined() as (processes, _):
        data = read_training_folder(folder)
        result = training.train(data, run, SMALL, STEADY, processes=processes, resume="resume" in flags)
        print(json.dumps([processes.rank, len(result.history)]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        {"compare_steps": compare_steps, "train": train}[sys.argv[1]](*sys.argv[2:])
    except MsmambaError as error:
        sys.exit(f"error: {error}")
