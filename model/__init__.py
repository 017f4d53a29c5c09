"""The networks, their checkpoints, their training, and what runs came to.

Importing this package costs nothing; PyTorch is loaded when a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .networks.microscopic_mamba import MicroscopicMamba
    from .networks.registry import build_network

__all__ = ["MicroscopicMamba", "build_network"]


def __getattr__(name: str) -> Any:
    if name == "MicroscopicMamba":
        from .networks.microscopic_mamba import MicroscopicMamba

        return MicroscopicMamba
    if name == "build_network":
        from .networks.registry import build_network

        return build_network
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
