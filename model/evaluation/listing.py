"""The networks that can be built by name, with their sizes and those that the paper prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..networks.complexity import complexity
from ..networks.registry import NETWORKS, architecture_named
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
    parameters: int
    macs: int
    """Multiply-adds of one image of 224 x 224 pixels, attention and the scan included."""
    paper_macs: int
    """The same as the paper counts."""
    printed_parameters: float | None
    """What the paper prints, in millions; None where it does not have the network."""
    printed_macs: float | None
    """The same in 10^9."""


def listed_networks() -> Iterator[Listed]:
    """The networks, as `registry.NETWORKS` has them; counting takes a moment for each."""
    peers = {peer.network: peer for peer in PEERS}
    for name, family in NETWORKS.items():
        peer, own = peers.get(name), PUBLISHED.get(name)
        classes = own.classes if own else 1000
        count = complexity(architecture_named(name, num_classes=classes), PAPER_SIZE)
        printed = peer or own
        yield Listed(
            name=name,
            title=peer.name if peer else NAMES.get(name, family.title),
            classes=classes,
            parameters=count.parameters,
            macs=count.macs,
            paper_macs=count.paper_macs,
            printed_parameters=printed.parameters if printed else None,
            printed_macs=printed.macs if printed else None,
        )
