"""Checkpoints: safetensors with the labels and preprocessing inside, and the authors' ``.pth`` state dicts.

Nothing in a checkpoint is ever executed: safetensors hold tensors and text, and PyTorch files are read
with ``weights_only=True``. The architecture is read off the tensors' names and shapes, so a published
state dict needs no description beside it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ...data.coverage import Coverage
from ...data.seen import Seen
from ...errors import CheckpointError, InputError, Note
from ...files import sha256_of, write_atomically
from ...images import FULL_WHITE
from ...resize import PILLOW_RULE, RULE
from ...version import __version__
from .checkpoint_file import (
    METADATA_KEY,
    CheckpointFile,
    checkpoint_network,
    read_checkpoint_file,
)
from .description import FORMAT_VERSION, problems_of
from .family import Architecture, Network
from .registry import canonical, family_of, recognise


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint expects of an image."""

    image_size: int
    """Side of the square the image is resized to, pixels."""
    mean: tuple[float, ...]
    """Channel means of the training split, of values in [0, 1]."""
    std: tuple[float, ...]
    """Channel standard deviations of the training split, of values in [0, 1]."""
    resize: str = PILLOW_RULE
    """The rule by which images were resized for the training: `msmamba.resize.RULE`, or Pillow's of whatever
    version where the checkpoint is older than that."""
    white_level: int = FULL_WHITE
    """The value of white in 16-bit images."""
    covers: Coverage | None = None
    """What the training images covered; None where nobody has said."""


@dataclass(frozen=True)
class Checkpoint:
    """A network with all that is needed to use it on an image file."""

    network: Network
    """The network in evaluation mode, float32, on the CPU."""
    sha256: str
    """Checksum of the file."""
    weights_of: str
    """Which of its weights were taken: ``model``, or ``ema``, their moving average."""
    labels: tuple[str, ...] | None = None
    """Class names by index; None where the checkpoint has none (the authors' state dicts)."""
    preprocessing: Preprocessing | None = None
    """None where the checkpoint does not say."""
    notes: tuple[str, ...] = ()
    """What reading it had to decide, a line each."""
    seen: Seen | None = None
    """The images that training saw; None where the checkpoint does not say."""

    @property
    def resize(self) -> str:
        """The rule by which images were resized for its training, one of `msmamba.resize.RULES`."""
        return self.preprocessing.resize if self.preprocessing else PILLOW_RULE


def save_checkpoint(
    path: str | Path,
    network: Network,
    *,
    labels: tuple[str, ...] | list[str],
    image_size: int,
    mean: tuple[float, ...] | list[float],
    std: tuple[float, ...] | list[float],
    white_level: int = FULL_WHITE,
    covers: Coverage | None = None,
    seen: Seen | None = None,
) -> None:
    """Writes a network as safetensors, with what is needed to use it in its metadata.

    Args:
        path: the file; it appears whole or not at all.
        network: (on any device).
        labels: class names by index.
        image_size: side of the square that images are resized to, pixels.
        mean: channel means, three, of values in [0, 1].
        std: channel standard deviations, three.
        white_level: the value of white in 16-bit images.
        covers: what the training images covered.
        seen: the images that training saw, where it was on images.

    Raises:
        InputError: the labels, the size or the statistics are not what they can be; every one is named.
        TargetError: the file cannot be written.
    """
    if len(labels) != network.arch.num_classes:
        raise InputError(f"{len(labels)} labels for {network.arch.num_classes} classes")
    description = {
        "format_version": FORMAT_VERSION,
        "network": family_of(network).name_of(network.arch),
        "architecture": network.arch.to_dict(),
        "labels": list(labels),
        "image_size": image_size,
        "mean": list(mean),
        "std": list(std),
        "resize": RULE,
        "white_level": white_level,
        **({} if covers is None else {"covers": covers.to_dict()}),
        "versions": {"msmamba": __version__, "torch": torch.__version__},
        **({} if seen is None else {"seen": seen.to_dict()}),
    }
    if problems := problems_of(description):
        raise InputError(f"cannot be saved as a checkpoint: {'; '.join(problems)}")
    write_atomically(Path(path), save(_tensors(network), metadata={METADATA_KEY: json.dumps(description)}))


def load_checkpoint(
    path: str | Path, weights_of: str | None = None, network: str | None = None
) -> Checkpoint:
    """Reads a checkpoint of any network that the registry knows (see `read_checkpoint_file`).

    Args:
        path: the file.
        weights_of: ``model`` or ``ema``, where it holds weights and their moving average; where nobody says,
            the weights, with a note.
        network: the name of the network that it is of, or of its family; where nobody says, the tensors tell.

    Raises:
        CheckpointError: missing, unreadable, of another architecture (the tensors that differ are
            named), or with weights that are not finite.
        InputError: there is no network of that name.
        BackendError: the library that the network is built with is missing.
    """
    file = read_checkpoint_file(path, weights_of)
    for note in file.notes:
        warnings.warn(note, Note, stacklevel=2)
    file = replace(file, state=canonical(file.state))
    built = checkpoint_network(file, lambda state: _network_of(state, network))
    labels, preprocessing = _what_it_says(file.description)
    if labels is not None and len(labels) != built.arch.num_classes:
        raise CheckpointError(
            f"{path}: {len(labels)} labels, but its tensors have {built.arch.num_classes} classes"
        )
    _take_what_tensors_do_not_say(built, file)
    said = file.description.get("seen")
    seen = None if said is None else Seen.from_dict(said)
    return Checkpoint(built, sha256_of(Path(path)), file.weights_of, labels, preprocessing, file.notes, seen)


def _tensors(network: Network) -> dict[str, Tensor]:
    """A network's state dict on the CPU, with weights that modules share under every name that they have."""
    tensors: dict[str, Tensor] = {}
    kept: set[int] = set()
    for name, tensor in network.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        # Safetensors hold no tensor twice, but readers of published names look for all of them.
        tensors[name] = tensor.clone() if tensor.data_ptr() in kept else tensor
        kept.add(tensor.data_ptr())
    return tensors


def _network_of(state: Mapping[str, Tensor], name: str | None) -> Network:
    family, arch = recognise(state, name)
    return family.build(arch)


def _take_what_tensors_do_not_say(network: Network, file: CheckpointFile) -> None:
    """Fields of the architecture that shape no tensor, such as stochastic depth, as the metadata has them."""
    said = file.description.get("architecture")
    if not said:
        return
    try:
        arch = family_of(network).architecture_from({**network.arch.to_dict(), **said})
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file.path}: its metadata is not what save_checkpoint writes: {error}"
        ) from error
    shaping = _shaping(network.arch)
    differing = [name for name, value in _shaping(arch).items() if value != shaping.get(name)]
    if differing:
        raise CheckpointError(
            f"{file.path}: its metadata and its tensors are of two architectures, which differ in "
            f"{', '.join(differing)}: use the checkpoint as training wrote it"
        )
    network.arch = arch


def _shaping(arch: Architecture) -> dict[str, Any]:
    """The fields that tensors show: counts, widths and switches. Rates shape nothing."""
    return {name: value for name, value in arch.to_dict().items() if not isinstance(value, float)}


def _what_it_says(description: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, Preprocessing | None]:
    if not description:
        return None, None
    mean, std = (tuple(map(float, description[name])) for name in ("mean", "std"))
    resize = description.get("resize", PILLOW_RULE)
    return tuple(description["labels"]), Preprocessing(
        description["image_size"],
        mean,
        std,
        resize,
        description.get("white_level", FULL_WHITE),
        Coverage.from_dict(description.get("covers")),
    )
