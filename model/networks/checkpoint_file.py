"""A checkpoint's file: its tensors and what its metadata says, and a network filled with them.

Nothing in a checkpoint is ever executed: safetensors hold tensors and text, and PyTorch files are read
with ``weights_only=True``.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import CheckpointError, some
from ...files import open_file
from .family import Network

FORMAT_VERSION = 1
METADATA_KEY = "msmamba"

AnyNetwork = TypeVar("AnyNetwork", bound=Network)


@dataclass(frozen=True)
class CheckpointFile:
    """What a checkpoint's file holds."""

    path: Path
    state: Mapping[str, Tensor]
    description: Mapping[str, Any]
    """What `save_checkpoint` wrote beside the tensors; empty in foreign files."""


def read_checkpoint_file(path: str | Path) -> CheckpointFile:
    """Reads a checkpoint, recognised by content: safetensors, or a PyTorch state dict.

    State dicts may be wrapped in ``{"model": …}`` or ``{"state_dict": …}`` and prefixed ``module.``.

    Raises:
        CheckpointError: missing, unreadable, or no state dict.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder, not a checkpoint: expected a .safetensors or .pth file, such as a run's "
            "best.safetensors or the one that a bundle was made from"
        )
    try:
        with open_file(path) as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the checkpoint: {error.strerror}") from error
    if head[8:] == b"{":
        state, description = _read_safetensors(path)
    else:
        state, description = _read_state_dict(path), {}
    return CheckpointFile(path, state, description)


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
    if differences:
        raise CheckpointError(
            f"{path}: {len(differences)} tensors differ from those of {type(network).__name__} with "
            f"{network.arch}: {some(sorted(differences))}"
        )
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{path}: {len(broken)} tensors hold NaN or infinity ({some(sorted(broken))}): "
            f"the training diverged, use an earlier checkpoint"
        )
    state = {name: tensor.to(wanted[name].dtype) for name, tensor in state.items()}
    network.load_state_dict(state, assign=True)
    network.eval()
    return network


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error
    try:
        description = json.loads(metadata.get(METADATA_KEY, "{}"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: its metadata is not JSON: {error}") from error
    if description.get("format_version", FORMAT_VERSION) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format {description['format_version']}, this msmamba reads up to "
            f"{FORMAT_VERSION}: upgrade msmamba"
        )
    return state, description


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        with open_file(path) as file:  # by its name, PyTorch would judge it by its suffix
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        # PyTorch's own words recommend the unsafe way to load; they stay out of the message.
        raise CheckpointError(
            f"{path}: neither safetensors nor a PyTorch state dict that loads without running code: "
            f"give a file that save_checkpoint or torch.save(network.state_dict()) wrote"
        ) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, expected a state dict of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}
