"""A network that takes milliseconds to train, export and run, for tests of what any network goes through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from msmamba.model.networks import family
from msmamba.model.networks.family import Family, Network, View


@dataclass(frozen=True)
class ToyArchitecture(family.Architecture):
    width: int = 8


class Toy(Network):
    """One convolution, a ReLU, and the mean of its map through a linear layer."""

    def __init__(self, arch: ToyArchitecture) -> None:
        super().__init__()
        self.arch = arch
        self.stem = nn.Conv2d(3, arch.width, 3, stride=4)
        self.last = nn.Linear(arch.width, arch.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        self.check_image_shape(tuple(images.shape))
        logits: Tensor = self.last(self.stem(images).relu().mean((2, 3)))
        return logits


class ToyFamily(Family):
    name, title, head = "toy", "Toy", "last"
    architecture_type, network_type = ToyArchitecture, Toy

    def architecture(self, name: str, **changes: Any) -> ToyArchitecture:
        return ToyArchitecture(**{"width": {"toy_thin": 4, "toy_wide": 16}[name], **changes})

    def architecture_from(self, values: Mapping[str, Any]) -> ToyArchitecture:
        return ToyArchitecture(**values)

    def architecture_of(self, state: Mapping[str, Tensor]) -> ToyArchitecture:
        classes, width = state["last.weight"].shape
        return ToyArchitecture(classes, width)

    def name_of(self, arch: family.Architecture) -> str:
        assert isinstance(arch, ToyArchitecture)
        return {4: "toy_thin", 16: "toy_wide"}.get(arch.width, self.name)

    def build(self, arch: family.Architecture) -> Toy:
        assert isinstance(arch, ToyArchitecture)
        return Toy(arch)

    def probes(self, network: Network) -> Mapping[str, View]:
        return {"stem": lambda result: result}

    def map_layers(self, network: Network) -> Mapping[str, str]:
        return {"stem": "stem"}


TOYS = ("toy_thin", "toy_wide")
"""The names that a test registers `ToyFamily` under."""
