"""The networks by name: the one place that lists them.

build_network("t", num_classes=4)             Microscopic-Mamba tiny; ``s`` small, ``b`` base
build_network("pvt_small", num_classes=4)     one that the paper compares it with (Table I)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError, some
from .family import Architecture, Family, Network
from .medmamba import MedMambaFamily
from .microscopic_mamba import SIZES
from .microscopic_mamba_family import MicroscopicMambaFamily
from .mpvit import MPViTFamily
from .pvt import PVTFamily
from .smt import SMTFamily
from .timm_networks import (
    ConvNeXtFamily,
    FastViTFamily,
    MobileOneFamily,
    RepViTFamily,
    SwiftFormerFamily,
    TwinsFamily,
    ViTFamily,
)
from .uniformer import UniFormerFamily
from .vmamba import VMambaFamily

DEFAULT = "t"
"""The network where nobody says which."""

NETWORKS: dict[str, Family] = {
    **dict.fromkeys(SIZES, MicroscopicMambaFamily()),
    **dict.fromkeys(PVTFamily.sizes, PVTFamily()),
    **dict.fromkeys(MPViTFamily.sizes, MPViTFamily()),
    **dict.fromkeys(UniFormerFamily.sizes, UniFormerFamily()),
    **dict.fromkeys(SMTFamily.sizes, SMTFamily()),
    **dict.fromkeys(MedMambaFamily.sizes, MedMambaFamily()),
    **dict.fromkeys(VMambaFamily.sizes, VMambaFamily()),
    **dict.fromkeys(ConvNeXtFamily.sizes, ConvNeXtFamily()),
    **dict.fromkeys(RepViTFamily.sizes, RepViTFamily()),
    **dict.fromkeys(MobileOneFamily.sizes, MobileOneFamily()),
    **dict.fromkeys(TwinsFamily.sizes, TwinsFamily()),
    **dict.fromkeys(ViTFamily.sizes, ViTFamily()),
    **dict.fromkeys(FastViTFamily.sizes, FastViTFamily()),
    **dict.fromkeys(SwiftFormerFamily.sizes, SwiftFormerFamily()),
}
"""The families by the names of their networks. A new network is a line here."""


def family_named(name: str) -> Family:
    """The family of a network's name, or of its own.

    Raises:
        InputError: there is none.
    """
    for network, family in NETWORKS.items():
        if name in (network, family.name):
            return family
    raise InputError(_no_network(name))


def architecture_named(name: str, **changes: Any) -> Architecture:
    """The architecture of a network's name, with any field changed.

    Raises:
        InputError: there is no such network, it has no such field, or the fields do not fit together.
    """
    if name not in NETWORKS:
        raise InputError(_no_network(name))
    family = NETWORKS[name]
    try:
        _check_fields(family, changes)
        return family.architecture(name, **changes)
    except (TypeError, ValueError) as error:
        raise InputError(f"network '{name}' cannot be built so: {error}") from error


def _no_network(name: str) -> str:
    """What to say where a name is nobody's: those like it, or where all of them stand."""
    like = get_close_matches(name.lower().replace("-", "_"), NETWORKS)
    meant = f"did you mean {' or '.join(like)}? " if like else ""
    return f"there is no network '{name}': {meant}'mmdeploy networks' lists all names"


def with_switches(arch: Architecture, switches: Mapping[str, Any]) -> Architecture:
    """An architecture with some of its fields changed.

    Raises:
        InputError: it has no such field, or the fields do not fit together.
    """
    family = family_of(arch)
    try:
        _check_fields(family, switches)
        return replace(arch, **switches)
    except (TypeError, ValueError) as error:
        raise InputError(f"{family.describe(arch)}: cannot be changed so: {error}") from error


def _check_fields(family: Family, named: Iterable[str]) -> None:
    """Refuses what is no field of a family's architectures.

    Raises:
        ValueError: some are none; all of them are named.
    """
    known = [field.name for field in fields(family.architecture_type)]
    if strange := [name for name in named if name not in known]:
        raise ValueError(f"{family.title} has no {', '.join(strange)}: it has {', '.join(known)}")


def build_network(name: str, *, num_classes: int, **changes: Any) -> Network:
    """A network, initialised for training from scratch.

    Args:
        name: one of `NETWORKS`: ``t``, ``s``, ``b`` …
        num_classes: logits of an image.
        changes: further fields of its architecture, such as ``mifa=False``.

    Raises:
        InputError: there is no such network, it has no such field, or the fields do not fit together.
        BackendError: it is timm's, which is not installed.
    """
    arch = architecture_named(name, num_classes=num_classes, **changes)
    return family_of(arch).build(arch)


def outline(arch: Architecture, image_size: int) -> Network:
    """A network without weights, which takes images of a size.

    Args:
        arch: the network's.
        image_size: side of the square images, pixels.

    Raises:
        InputError: the network takes no such images.
        BackendError: it cannot be built here.
    """
    family = family_of(arch)
    with torch.device("meta"):
        network = family.build(arch)
    try:
        network.check_image_shape((1, 3, image_size, image_size))
    except ValueError as error:
        raise InputError(f"network '{family.name_of(arch)}' cannot take them: {error}") from error
    return network


def family_of(of: Network | Architecture) -> Family:
    """The family that a network, or an architecture, is of.

    Raises:
        ValueError: its class is not registered.
    """
    for family in NETWORKS.values():
        if isinstance(of, family.network_type | family.architecture_type):
            return family
    raise ValueError(f"{type(of).__name__} is of no registered network")


def canonical(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A state dict under the names that its network has here, where it is published under others too."""
    for family in dict.fromkeys(NETWORKS.values()):
        state = family.canonical(state)
    return state


def recognise(state: Mapping[str, Tensor], name: str | None = None) -> tuple[Family, Architecture]:
    """The family and the architecture that a state dict is of.

    Args:
        state: by tensor names that are `canonical`.
        name: the network that it is said to be of, or its family; None where the tensors have to tell.

    Raises:
        ValueError: of no network that is known, or not of that which was named; why it is not of each.
        InputError: there is no network of that name.
    """
    unlike, wrong = [], []
    for family in dict.fromkeys(NETWORKS.values()) if name is None else (family_named(name),):
        try:
            arch = family.architecture_of(state)
            if name not in (None, family.name, family.name_of(arch)):
                raise ValueError(f"it is of {family.name_of(arch)} ({family.describe(arch)}), not of {name}")
            return family, arch
        except KeyError as error:
            unlike.append(f"not a {family.title} checkpoint: it has no tensor {error}")
        except (ValueError, IndexError, TypeError) as error:
            wrong.append(f"not a {family.title} checkpoint: {error}")
    if name is not None and not wrong and (other := recognised(state)):
        raise ValueError(f"it is of {other}, not of {name}")
    # One that has a family's tensors, and not as they should be, is hardly of another family.
    raise ValueError(some(wrong or unlike))


def recognised(state: Mapping[str, Tensor]) -> str:
    """The name of the network that a state dict is of; empty where it is of none that is known."""
    try:
        family, arch = recognise(state)
    except ValueError:
        return ""
    return family.name_of(arch)
