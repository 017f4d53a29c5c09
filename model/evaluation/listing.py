"""The networks that can be built by name, with their sizes and those that the paper prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..networks.complexity import Complexity, complexity
from ..networks.registry import NETWORKS, architecture_named, family_of
from .paper import NAMES, PEERS, PUBLISHED

PAPER_SIZE = 224
"""Side of the images that multiply-adds are counted for, pixels."""


@dataclass(frozen=True)
class Listed:
    """A network by name."""

    name: str
    title: str
    """The paper's name; the family's where the paper does not have it."""
    classes: int
    """How many classes it has here: as many as the paper's count tells."""
    count: Complexity | None
    """What one image of 224 x 224 pixels costs; None where the network cannot be built here."""
    printed_parameters: float | None
    """What the paper prints, in millions; None where it does not have the network."""
    printed_macs: float | None
    """The same in 10^9."""
    unavailable: str = ""
    """Why the network cannot be built here."""


def listed_networks(names: Iterable[str] | None = None) -> Iterator[Listed]:
    """The networks of these names, or all that `registry.NETWORKS` has; counting takes a moment for each.

    Raises:
        InputError: there is no network of a name.
    """
    peers = {peer.network: peer for peer in PEERS}
    for name in NETWORKS if names is None else names:
        peer, own = peers.get(name), PUBLISHED.get(name)
        printed = peer or own
        classes = printed.classes if printed else 1000
        arch = architecture_named(name, num_classes=classes)
        family = family_of(arch)
        unavailable = family.unavailable()
        yield Listed(
            name=name,
            title=peer.name if peer else NAMES.get(name, family.title),
            classes=classes,
            count=None if unavailable else complexity(arch, PAPER_SIZE),
            printed_parameters=printed.parameters if printed else None,
            printed_macs=printed.macs if printed else None,
            unavailable=unavailable,
        )
