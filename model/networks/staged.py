"""What families of networks in stages share: depths and widths as fields, and sizes by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar, TypeVar, cast

from torch import Tensor

from .family import CHANNELS_LAST, Architecture, Family, Network

Staged = TypeVar("Staged", bound="StagedArchitecture")


@dataclass(frozen=True)
class StagedArchitecture(Architecture):
    """Stages of blocks, each stage on a coarser map of more channels.

    Raises:
        ValueError: fields of another kind, or that do not fit together; all of them are named.
    """

    depths: tuple[int, ...] = (2, 2, 2, 2)
    """Blocks of each stage."""
    dims: tuple[int, ...] = (64, 128, 320, 512)
    """Channels of each stage."""
    drop_path_rate: float = 0.1
    """Stochastic depth of the last block; it grows linearly from 0."""

    def __post_init__(self) -> None:
        wrong = self.of_other_kinds() or self.misfits()
        if wrong:
            raise ValueError("; ".join(wrong))

    def of_other_kinds(self) -> list[str]:
        """The fields that are not what they are declared to be."""
        wrong = []
        for name, value in vars(self).items():
            expected = getattr(type(self), name)
            if isinstance(expected, tuple):
                if not isinstance(value, tuple) or not all(type(each) is int and each > 0 for each in value):
                    wrong.append(f"{name} are {value!r}, expected a tuple of whole numbers above 0")
            elif isinstance(expected, bool):
                if type(value) is not bool:
                    wrong.append(f"{name} is {value!r}, expected True or False")
            elif isinstance(expected, float):
                if type(value) not in (int, float) or not 0 <= value < 1:
                    wrong.append(f"{name} is {value!r}, expected a number from 0 to below 1")
            elif type(value) is not int:
                wrong.append(f"{name} is {value!r}, expected a whole number")
        return wrong

    def misfits(self) -> list[str]:
        """The fields, of the right kinds, that do not fit together."""
        wrong = []
        if len(self.depths) != len(self.dims) or not self.dims:
            wrong.append(f"depths {self.depths} and dims {self.dims} must name the same stages")
        if self.num_classes < 1:
            wrong.append(f"num_classes is {self.num_classes}, expected at least 1")
        return wrong

    def without_stages(self, stages: int, *names: str) -> list[str]:
        """A line where fields do not name so many stages each."""
        wrong = [f"{name} {getattr(self, name)}" for name in names if len(getattr(self, name)) != stages]
        return [f"{' and '.join(wrong)} must name {stages} stages"] if wrong else []

    def without_whole_heads(self, width: int, first: int = 0) -> list[str]:
        """A line where channels are no multiples of a head's width, from a stage on."""
        if not any(dim % width for dim in self.dims[first:]):
            return []
        must = "end in" if first else "be"
        return [f"dims {self.dims} must {must} multiples of {width}, the width of a head"]

    def drop_paths(self) -> Iterator[list[float]]:
        """The rates of stochastic depth of each stage's blocks."""
        blocks = sum(self.depths)
        rates = iter(self.drop_path_rate * block / max(1, blocks - 1) for block in range(blocks))
        return (list(islice(rates, depth)) for depth in self.depths)


class StagedNetwork(Network, ABC):
    """A network in stages: images (B, 3, S, S) to logits, S a multiple of 32."""

    arch: StagedArchitecture

    step = 32  # one position of the last map

    @abstractmethod
    def features(self, images: Tensor) -> list[Tensor]:
        """The output of every stage: (B, H, W, C), channels last.

        Raises:
            ValueError: the images are of another shape (see `check_image_shape`).
        """


class StagedFamily(Family):
    """A family with sizes by name; whoever adds one gives `sizes` and reads architectures off state dicts."""

    sizes: ClassVar[Mapping[str, StagedArchitecture]]
    """The architectures by the registry's names, of 1000 classes."""
    map_layout = CHANNELS_LAST

    def architecture(self, name: str, **changes: Any) -> StagedArchitecture:
        return replace(self.sizes[name], **changes)

    def architecture_from(self, values: Mapping[str, Any]) -> StagedArchitecture:
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        build = cast(Any, self.architecture_type)
        arch: StagedArchitecture = build(**fields)
        return arch

    def name_of(self, arch: Architecture) -> str:
        return next((name for name, size in self.sizes.items() if _same(size, arch)), self.name)

    def build(self, arch: Architecture) -> Network:
        build = cast(Any, self.network_type)
        network: Network = build(arch)
        return network

    def describe(self, arch: Architecture) -> str:
        arch = cast(StagedArchitecture, arch)
        return f"depths {arch.depths}, dims {arch.dims}"

    def as_named(self, arch: Staged) -> Staged:
        """An architecture read off tensors, with the stochastic depth of the size that it is."""
        named = self.sizes.get(self.name_of(arch))
        return arch if named is None else replace(arch, drop_path_rate=named.drop_path_rate)


def _same(size: StagedArchitecture, arch: Architecture) -> bool:
    """Whether two architectures have the same tensors, but for the classes."""
    own = cast(StagedArchitecture, arch)
    return replace(size, num_classes=own.num_classes, drop_path_rate=own.drop_path_rate) == own


def widths_in(state: Mapping[str, Tensor], name: str, stages: Iterable[int]) -> tuple[int, ...]:
    """The first axis of a tensor that each stage has.

    Args:
        state: a state dict.
        name: the tensor's, with ``{}`` for the stage.
        stages: their numbers.

    Raises:
        KeyError: a stage has no such tensor.
    """
    return tuple(state[name.format(stage)].shape[0] for stage in stages)


def ratios(hidden: Iterable[int], dims: Iterable[int]) -> tuple[int, ...]:
    """How many times wider the hidden layers of the stages' MLPs are than the stages."""
    return tuple(each // dim for each, dim in zip(hidden, dims, strict=True))


def depths_in(state: Mapping[str, Tensor], prefix: str, stages: Iterable[int]) -> tuple[int, ...]:
    """How many blocks each stage has, by what stands before their numbers, with ``{}`` for the stage."""
    return tuple(count(state, prefix.format(stage)) for stage in stages)


def count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many of ``prefix0.``, ``prefix1.``, … begin a name."""
    number = 0
    while any(name.startswith(f"{prefix}{number}.") for name in state):
        number += 1
    return number
