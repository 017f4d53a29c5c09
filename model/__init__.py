"""The network, its checkpoints, its data and its training.

Importing this package costs nothing; PyTorch is loaded when a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .networks.microscopic_mamba import MicroscopicMamba

__all__ = ["MicroscopicMamba"]


def __getattr__(name: str) -> Any:
    if name == "MicroscopicMamba":
        from .networks.microscopic_mamba import MicroscopicMamba

        return MicroscopicMamba
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
