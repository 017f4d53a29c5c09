"""Pretrained weights: a published state dict put into a network that is to be trained on, all but its head.

The head is what depends on the number of classes. It is trained anew, even for as many classes as the state
dict has, since they are others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError, some
from ...files import sha256_of
from ...schema import SHA256, TEXT, record
from .checkpoint_file import check_finite, check_shared, read_checkpoint_file
from .family import Network
from .registry import canonical, family_of, recognised

LEAST_SHARE = 0.5
"""The share of a network's tensors without its head that must fit; fewer are of another network."""
PRETRAINED = record({"file": TEXT, "sha256": SHA256, "weights_of": TEXT})
"""What `Pretrained.to_dict` writes."""


@dataclass(frozen=True)
class Pretrained:
    """A file of weights to begin a training with."""

    path: Path
    sha256: str
    """Checksum of the file."""
    weights_of: str
    """Which of its weights are taken: ``model``, or ``ema``, their moving average."""
    state: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()
    """What reading it had to decide."""

    @classmethod
    def read(cls, path: str | Path, weights_of: str | None = None) -> Pretrained:
        """Reads the file, safetensors or a PyTorch state dict, in any wrapper (see `read_checkpoint_file`).

        Args:
            path: the file.
            weights_of: ``model`` or ``ema``, where it holds weights and their moving average.

        Raises:
            CheckpointError: missing, unreadable, or no state dict of plain tensors.
        """
        file = read_checkpoint_file(path, weights_of)
        return cls(file.path, sha256_of(file.path), file.weights_of, canonical(file.state), file.notes)

    def to_dict(self) -> dict[str, Any]:
        """What a run keeps of it, for JSON."""
        return {"file": str(self.path.resolve()), "sha256": self.sha256, "weights_of": self.weights_of}

    def fill(self, network: Network) -> tuple[str, ...]:
        """Puts the weights into a network on the CPU, but for its head.

        Args:
            network: what does not fit keeps its values.

        Returns:
            What was taken and what did not fit, a line each.

        Raises:
            CheckpointError: they are of another network, are not finite, or differ where the network
                shares them.
        """
        own: dict[str, Tensor] = network.state_dict()
        head = _head_of(network)
        wanted = {name: tensor for name, tensor in own.items() if name not in head}
        fitting = {
            name: self.state[name]
            for name, tensor in wanted.items()
            if name in self.state
            and self.state[name].shape == tensor.shape
            and self.state[name].is_floating_point() == tensor.is_floating_point()
        }
        missing = [
            f"{name} is {tuple(self.state[name].shape)}, expected {tuple(tensor.shape)}"
            if name in self.state
            else f"{name} is missing"
            for name, tensor in wanted.items()
            if name not in fitting and tensor.is_floating_point()  # older files lack batch norms' counters
        ]
        title = family_of(network).name_of(network.arch)
        if len(fitting) < LEAST_SHARE * len(wanted):
            if (other := recognised(self.state)) not in ("", title):
                raise CheckpointError(
                    f"{self.path}: has weights of {other}, and the network is {title}: give its weights"
                )
            raise CheckpointError(
                f"{self.path}: has {len(fitting)} of the {len(wanted)} tensors that {title} has beside its "
                f"head: {some(missing)} (it begins with {some(sorted(self.state))}): give weights of {title}"
            )
        check_finite(fitting, self.path)
        check_shared(network, fitting, self.path)
        network.load_state_dict(fitting, strict=False)
        left_out = [name for name in self.state if name not in own]
        notes = [f"{self.path}: {len(fitting)} of {len(wanted)} tensors are taken; the head is trained anew"]
        if missing:
            notes.append(f"{len(missing)} tensors begin at random, as the file does not fit: {some(missing)}")
        if left_out:
            notes.append(f"{len(left_out)} tensors of the file have no place in {title}: {some(left_out)}")
        return (*self.notes, *notes)


def _head_of(network: Network) -> set[str]:
    """The tensors of a network's state dict whose shapes depend on the number of classes."""
    arch = replace(network.arch, num_classes=network.arch.num_classes + 1)
    with torch.device("meta"):
        other: dict[str, Tensor] = family_of(network).build(arch).state_dict()
    return {name for name, tensor in network.state_dict().items() if tensor.shape != other[name].shape}
