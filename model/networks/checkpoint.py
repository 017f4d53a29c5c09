"""Checkpoints: safetensors with the labels and preprocessing inside, and the authors' ``.pth`` state dicts.

Nothing in a checkpoint is ever executed: safetensors hold tensors and text, and PyTorch files are read
with ``weights_only=True``. The architecture is read off the tensors' names and shapes, so a published
state dict needs no description beside it.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ...errors import CheckpointError
from ...files import sha256_of, write_atomically
from ...version import __version__
from .microscopic_mamba import GROUPS, Architecture, MicroscopicMamba

FORMAT_VERSION = 1
METADATA_KEY = "msmamba"

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint expects of an image."""

    image_size: int
    """Side of the square the image is resized to, pixels."""
    mean: tuple[float, ...]
    """Channel means of the training split, of values in [0, 1]."""
    std: tuple[float, ...]
    """Channel standard deviations of the training split, of values in [0, 1]."""


@dataclass(frozen=True)
class Checkpoint:
    """A network with all that is needed to use it on an image file."""

    network: MicroscopicMamba
    """In evaluation mode, float32, on the CPU."""
    sha256: str
    """Of the file."""
    labels: tuple[str, ...] | None = None
    """Class names by index; None where the checkpoint has none (the authors' state dicts)."""
    preprocessing: Preprocessing | None = None
    """None where the checkpoint does not say."""


def save_checkpoint(
    path: str | Path,
    network: MicroscopicMamba,
    *,
    labels: tuple[str, ...] | list[str],
    image_size: int,
    mean: tuple[float, ...] | list[float],
    std: tuple[float, ...] | list[float],
) -> None:
    """Writes a network as safetensors, with what is needed to use it in its metadata.

    Args:
        path: the file; it appears whole or not at all.
        network: (on any device).
        labels: class names by index.
        image_size: side of the square that images are resized to, pixels.
        mean: channel means, three, of values in [0, 1].
        std: channel standard deviations, three.

    Raises:
        ValueError: the number of labels is not the number of classes.
        TargetError: the file cannot be written.
    """
    if len(labels) != network.arch.num_classes:
        raise ValueError(f"{len(labels)} labels for {network.arch.num_classes} classes")
    description = {
        "format_version": FORMAT_VERSION,
        "architecture": network.arch.to_dict(),
        "labels": list(labels),
        "image_size": image_size,
        "mean": list(mean),
        "std": list(std),
        "versions": {"msmamba": __version__, "torch": torch.__version__},
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_atomically(Path(path), save(tensors, metadata={METADATA_KEY: json.dumps(description)}))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint, recognised by content: safetensors, or a PyTorch state dict.

    State dicts may be wrapped in ``{"model": …}`` or ``{"state_dict": …}`` and prefixed ``module.``.

    Raises:
        CheckpointError: missing, unreadable, of another architecture (the tensors that differ are
            named), or with weights that are not finite.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder, not a checkpoint: expected a .safetensors or .pth file, such as a run's "
            "best.safetensors or the one that a bundle was made from"
        )
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the checkpoint: {error.strerror}") from error
    if head[8:] == b"{":
        state, description = _read_safetensors(path)
    else:
        state, description = _read_state_dict(path), {}
    network = _network_of(state, path)
    labels, preprocessing = _read_description(description, path)
    if labels is not None and len(labels) != network.arch.num_classes:
        raise CheckpointError(
            f"{path}: {len(labels)} labels, but head.weight has {network.arch.num_classes} classes"
        )
    if drop_path := description.get("architecture", {}).get("drop_path_rate"):
        network.arch = replace(network.arch, drop_path_rate=float(drop_path))
    return Checkpoint(network.eval(), sha256_of(path), labels, preprocessing)


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
        content = torch.load(path, map_location="cpu", weights_only=True)
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


def _read_description(
    description: dict[str, Any], path: Path
) -> tuple[tuple[str, ...] | None, Preprocessing | None]:
    if not description:
        return None, None
    try:
        labels = tuple(str(label) for label in description["labels"])
        preprocessing = Preprocessing(
            image_size=int(description["image_size"]),
            mean=tuple(float(value) for value in description["mean"]),
            std=tuple(float(value) for value in description["std"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its metadata is not what save_checkpoint writes: {error!r}"
        ) from error
    return labels, preprocessing


def architecture_of(state: Mapping[str, Tensor]) -> Architecture:
    """Reads the architecture off the names and shapes of a state dict.

    Raises:
        KeyError: a tensor that every Microscopic-Mamba has is missing.
        ValueError: the shapes do not describe a network.
    """
    stages = _count(state, "layers.")
    depths = tuple(_count(state, f"layers.{i}.blocks.") for i in range(stages))
    widest = state["head.weight"].shape[1]
    first = "layers.0.blocks.0"
    half = state[f"{first}.Conv_branch.0.weight"].shape[0]
    d_model = state[f"{first}.pvm_layer.mamba.in_proj.weight"].shape[1]
    if d_model not in (half, half // GROUPS):
        raise ValueError(f"{first}.pvm_layer.mamba works on {d_model} of {half} channels")
    return Architecture(
        depths=depths,
        dims=tuple(widest // 2 ** (stages - 1 - i) for i in range(stages)),
        num_classes=state["head.weight"].shape[0],
        d_state=state[f"{first}.pvm_layer.mamba.A_logs"].shape[1],
        mifa=f"{first}.MIFA.DWConv.weight" in state,
        parallel=d_model != half,
        psffn=f"{first}.pvm_layer.mamba.PSFFN.conv_0.weight" in state,
    )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many of ``prefix0.``, ``prefix1.``, … begin a name."""
    number = 0
    while any(name.startswith(f"{prefix}{number}.") for name in state):
        number += 1
    return number


def _network_of(state: dict[str, Tensor], path: Path) -> MicroscopicMamba:
    try:
        arch = architecture_of(state)
    except KeyError as error:
        raise CheckpointError(
            f"{path}: not a Microscopic-Mamba checkpoint: it has no tensor {error} "
            f"(it begins with {_some(sorted(state))})"
        ) from error
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: not a Microscopic-Mamba checkpoint: {error}") from error
    with torch.device("meta"):
        network = MicroscopicMamba(arch)
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
            f"{path}: {len(differences)} tensors differ from Microscopic-Mamba with depths {arch.depths} and "
            f"dims {arch.dims}: {_some(sorted(differences))}"
        )
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{path}: {len(broken)} tensors hold NaN or infinity ({_some(sorted(broken))}): "
            f"the training diverged, use an earlier checkpoint"
        )
    state = {name: tensor.to(wanted[name].dtype) for name, tensor in state.items()}
    network.load_state_dict(state, assign=True)
    return network


def _some(items: list[str]) -> str:
    shown = ", ".join(items[:_NAMES_SHOWN])
    return shown if len(items) <= _NAMES_SHOWN else f"{shown}, … {len(items) - _NAMES_SHOWN} more"
