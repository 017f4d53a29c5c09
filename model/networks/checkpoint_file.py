"""A checkpoint's file: its tensors and what its metadata says, and a network filled with them.

Nothing in a checkpoint is ever executed: safetensors hold tensors and text, and PyTorch files are read
with ``weights_only=True``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import CheckpointError, reason_of, some
from ...files import open_file
from .description import read_description
from .family import Network
from .weights import read_pytorch_file, weights_in

METADATA_KEY = "msmamba"
BEST = "best.safetensors"
"""The checkpoint in the folder of a run."""

AnyNetwork = TypeVar("AnyNetwork", bound=Network)


@dataclass(frozen=True)
class CheckpointFile:
    """What a checkpoint's file holds."""

    path: Path
    state: Mapping[str, Tensor]
    description: Mapping[str, Any]
    """What `save_checkpoint` wrote beside the tensors; empty in foreign files."""
    weights_of: str
    """Which weights were taken: ``model``, or ``ema``, their moving average."""
    notes: tuple[str, ...] = ()
    """What reading it had to decide."""


def read_checkpoint_file(path: str | Path, weights_of: str | None = None) -> CheckpointFile:
    """Reads a checkpoint, recognised by content: safetensors, or a PyTorch state dict.

    State dicts may be wrapped in dictionaries and prefixed as DataParallel, torch.compile and Lightning do.

    Args:
        path: the file.
        weights_of: ``model`` or ``ema``, where a file holds weights and their moving average.

    Raises:
        CheckpointError: missing, unreadable, or no state dict of plain tensors.
    """
    path = Path(path)
    if path.is_dir():
        if (path / BEST).is_file():
            raise CheckpointError(f"{path} is the folder of a run: its network is {path / BEST}")
        raise CheckpointError(
            f"{path} is a folder, not a checkpoint: expected a .safetensors or .pth file, such as a run's "
            "best.safetensors or the one that a bundle was made from"
        )
    try:
        with open_file(path) as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the checkpoint: {reason_of(error)}") from error
    description: dict[str, Any] = {}
    if head[8:9] == b"{":
        content, description = _read_safetensors(path)
    else:
        content = read_pytorch_file(path)
    state, taken, notes = weights_in(content, path, weights_of)
    return CheckpointFile(path, state, description, taken, notes)


def checkpoint_network(
    file: CheckpointFile, network_for: Callable[[Mapping[str, Tensor]], AnyNetwork]
) -> AnyNetwork:
    """The network of a checkpoint, in evaluation mode, float32, on the CPU.

    Args:
        file: the checkpoint.
        network_for: builds the network that a state dict is of; what it raises means that it is of none.

    Raises:
        CheckpointError: of another architecture (the tensors that differ are named), or with weights that are
            not finite.
    """
    state, path = file.state, file.path
    try:
        with torch.device("meta"):
            network = network_for(state)
    except KeyError as error:
        raise CheckpointError(
            f"{path}: it has no tensor {error} (it begins with {some(sorted(state))})"
        ) from error
    except (ValueError, IndexError, TypeError) as error:
        raise CheckpointError(f"{path}: {error} (it begins with {some(sorted(state))})") from error
    wanted = network.state_dict()
    differences = [f"{name} is missing" for name in wanted.keys() - state.keys()]
    differences += [f"{name} is unknown" for name in state.keys() - wanted.keys()]
    differences += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted.keys() & state.keys()
        if state[name].shape != wanted[name].shape
    ]
    differences += [
        f"{name} is {state[name].dtype}, expected {wanted[name].dtype}"
        for name in wanted.keys() & state.keys()
        if wanted[name].is_floating_point() and not state[name].is_floating_point()
    ]
    if differences:
        raise CheckpointError(
            f"{path}: {len(differences)} tensors differ from those of {type(network).__name__} with "
            f"{network.arch}: {some(sorted(differences))}"
        )
    check_shared(network, state, path)
    state = {name: tensor.to(wanted[name].dtype) for name, tensor in state.items()}
    check_finite(state, path)
    network.load_state_dict(state, assign=True)
    network.eval()
    return network


def check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuses tensors that hold NaN or infinity.

    Args:
        state: the tensors.
        path: their file, for messages.

    Raises:
        CheckpointError: some do; they are named.
    """
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{path}: {len(broken)} tensors hold NaN or infinity ({some(sorted(broken))}): "
            f"the training diverged, use an earlier checkpoint"
        )


def check_shared(network: Network, state: Mapping[str, Tensor], path: Path) -> None:
    """Refuses a state dict that has two values for one weight, which modules share under several names.

    Args:
        network: what it is for.
        state: tensors of the network's shapes; names may be missing.
        path: their file, for messages.

    Raises:
        CheckpointError: it has; the names are told.
    """
    first: dict[int, str] = {}
    differing = []
    for name, tensor in network.state_dict(keep_vars=True).items():
        if name not in state:
            continue
        other = first.setdefault(id(tensor), name)
        if other != name and not torch.equal(state[name], state[other]):
            differing.append(f"{name} is not {other}")
    if differing:
        raise CheckpointError(
            f"{path}: {len(differing)} tensors should be equal, as {type(network).__name__} shares them: "
            f"{some(differing)}"
        )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {reason_of(error)}") from error
    except (OSError, RuntimeError, MemoryError) as error:  # also PyTorch's, which opens it, and the mapping's
        raise CheckpointError(f"{path}: cannot read the checkpoint: {reason_of(error)}") from error
    text = metadata.get(METADATA_KEY)
    return state, {} if text is None else read_description(text, path)
