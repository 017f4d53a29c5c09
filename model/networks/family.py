"""What a network tells of itself, so that all of msmamba trains, exports, verifies, explains and counts it.

A *family* is an architecture in all its sizes. Whoever adds one writes a `Network`, a `Family` that says what
is special to it, and a line in `registry`; nothing outside of this folder asks which family a network is of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

View = Callable[[Tensor], Tensor]
"""How the exported graph shows a module's result, from the module's result."""


def as_it_is(result: Tensor) -> Tensor:
    """The `View` of a module whose result the graph has."""
    return result


@dataclass(frozen=True)
class MapLayout:
    """How a module's result holds a map."""

    shown: View
    """The map, (B, C, H, W), from the result."""
    restored: Callable[[Tensor, Tensor], Tensor]
    """The result again, from the map and what it was taken from."""


CHANNELS_FIRST = MapLayout(as_it_is, lambda shown, result: shown)
CHANNELS_LAST = MapLayout(
    lambda result: result.permute(0, 3, 1, 2),  # (B, H, W, C)
    lambda shown, result: shown.permute(0, 2, 3, 1),
)


@dataclass(frozen=True)
class Architecture:
    """All that a checkpoint's tensors depend on; each family adds its own fields."""

    num_classes: int = 1000
    """Logits of an image."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class Network(nn.Module):
    """A classifier: images (B, 3, S, S) float32, normalised, to logits (B, num_classes)."""

    arch: Architecture

    step: ClassVar[int] = 1
    """What S must be a multiple of, pixels."""

    def check_image_shape(self, shape: tuple[int, ...]) -> None:
        """Refuses batches that the network cannot take.

        Raises:
            ValueError: not (B, 3, S, S) with S a positive multiple of `step`.
        """
        if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or not shape[2]:
            raise ValueError(f"images are {tuple(shape)}; expected (batch, 3, S, S)")
        if shape[2] % self.step:
            raise ValueError(
                f"images are {shape[2]}x{shape[3]}; the side must be a multiple of {self.step}: resize them"
            )

    def without_weight_decay(self) -> list[str]:
        """Names of the parameters that take no weight decay."""
        return []


@dataclass(frozen=True)
class ScanWork:
    """What a forward pass does that layer counters do not see, for one image."""

    projection_macs: int = 0
    """Multiply-adds of the step-size, B and C projections."""
    projection_macs_counted: int = 0
    """How many multiply-adds a counter of matrix products takes them for."""
    state_updates: int = 0
    """Updates of one state at one position, over all directions."""


class Family(ABC):
    """An architecture in all its sizes, and what is special to it."""

    name: ClassVar[str]
    """The name in files: ``microscopic_mamba``."""
    title: ClassVar[str]
    """The name for people: Microscopic-Mamba."""
    architecture_type: ClassVar[type[Architecture]]
    """The class of its architectures; of no other family's."""
    network_type: ClassVar[type[Network]]
    """The class of its networks; of no other family's."""
    head: ClassVar[str] = "head"
    """The module that gives the logits."""
    map_layout: ClassVar[MapLayout] = CHANNELS_FIRST
    """How the results of the modules of `map_layers` hold their maps."""
    unit_types: ClassVar[tuple[type[nn.Module], ...]] = ()
    """The classes of the modules of `units`."""

    def unavailable(self) -> str:
        """Why the family's networks cannot be built here, and what to do; empty where they can."""
        return ""

    @abstractmethod
    def architecture(self, name: str, **changes: Any) -> Architecture:
        """The architecture that the registry knows by this name.

        Args:
            name: one of those that `registry.NETWORKS` maps to this family.
            changes: fields in place of that architecture's own, ``num_classes`` among them.

        Raises:
            ValueError: fields that do not fit together.
            TypeError: there is no such field.
        """

    @abstractmethod
    def architecture_from(self, values: Mapping[str, Any]) -> Architecture:
        """The architecture from its `Architecture.to_dict`, as JSON gives it back.

        Raises:
            TypeError, ValueError: these are not the fields, or they do not fit together.
        """

    def canonical(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A state dict under the names of this implementation, where people publish it under others too.

        State dicts of other families are to be left as they are.
        """
        return state

    @abstractmethod
    def architecture_of(self, state: Mapping[str, Tensor]) -> Architecture:
        """Reads the architecture off the names and shapes of a state dict.

        Raises:
            KeyError: a tensor that every network of the family has is missing.
            ValueError: the shapes do not describe one.
        """

    @abstractmethod
    def name_of(self, arch: Architecture) -> str:
        """The registry's name of an architecture, whatever its classes; the family's where it has none."""

    @abstractmethod
    def build(self, arch: Architecture) -> Network:
        """The network, initialised for training from scratch."""

    def describe(self, arch: Architecture) -> str:
        """The architecture in words, whatever its classes."""
        return self.name_of(arch)

    def scan_work(self, network: Network, image_size: int) -> ScanWork:
        """What one image costs beside convolutions, linear layers, norms and activations."""
        return ScanWork()

    def unused_parameters(self, network: Network) -> int:
        """Weights that are in every checkpoint and in no forward pass."""
        return 0

    def inference_form(self, network: Network, image_size: int) -> nn.Module:
        """What is traced for export: images (B, 3, S, S) to logits, of standard operators and msmamba's own.

        Args:
            network: in evaluation mode; it is left as it is.
            image_size: S, pixels.
        """
        return network

    def probes(self, network: Network) -> Mapping[str, View]:
        """The modules that the exported graph knows by name, so that a departure can be traced to one.

        `head` need not be among them: it is the logits.
        """
        return {}

    def units(self, network: Network) -> Sequence[str]:
        """The modules that int8 takes, or leaves in floating point, as a whole: paths, none inside another.

        Convolutions and linear layers outside of them are units by themselves.
        """
        found: list[str] = []
        for name, module in network.named_modules():  # the outer before the inner
            if isinstance(module, self.unit_types) and not name.startswith(
                tuple(f"{each}." for each in found)
            ):
                found.append(name)
        return found

    def map_layers(self, network: Network) -> Mapping[str, str]:
        """The maps that Grad-CAM can take, by the name that a user gives: paths of modules."""
        return {}

    def default_map_layer(self, network: Network, image_size: int) -> str:
        """The one to take when nobody says; the last."""
        return list(self.map_layers(network))[-1]
