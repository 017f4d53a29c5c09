"""What a session runs on: the interface that ONNX Runtime's and TensorRT's backends share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


FEATURES = "features"
"""The second output of an exported network: what its head takes, one row an image."""


class Backend(Protocol):
    """One network loaded; owns its memory until `close`."""

    @property
    def image_size(self) -> int | None:
        """Side of the square input in pixels, None where the model leaves it open."""

    @property
    def classes(self) -> int:
        """Number of logits."""

    @property
    def features(self) -> int | None:
        """How many features an image has, which the head takes; None where they are not told."""

    @property
    def max_batch(self) -> int | None:
        """Largest batch, None for any."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself."""

    @property
    def provider(self) -> str:
        """What executes the network: an execution provider of ONNX Runtime, or a TensorRT library."""

    @property
    def path(self) -> str:
        """What executes, in words, and why not something faster."""

    @property
    def takes_device_arrays(self) -> bool:
        """Whether `run` takes a `DeviceArray`."""

    def run(self, images: Any) -> NDArray[np.float32]:
        """(B, 3, S, S) float32, checked, to (B, classes) float32; several threads may call it at once."""

    def run_with_features(self, images: Any) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """As `run`, and the features (B, features), which are not checked; None where they are not told."""

    def close(self) -> None:
        """Frees the network, once calls of `run` that have begun are done; may be called more than once."""
