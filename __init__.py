"""msmamba: takes Microscopic-Mamba to the machine beside the microscope (import name and install name)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from .runtime.session import Session

from .version import __version__

__all__ = ["__version__", "open"]


def open(
    path: str | os.PathLike[str],
    *,
    device: str = "auto",
    threads: int | None = None,
    kernels: str = "auto",
    provider: str = "auto",
    trust_engine_code: bool = False,
    labels: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    white_level: int | None = None,
    guard: bool = True,
) -> Session:
    """Opens a bundle, an ONNX file or an engine; `msmamba.runtime.open_session` tells what the options are.

    Example:
        ```python
        with msmamba.open("colon.fp16") as session:
            for prediction in session.classify(["a.png", "b.tif"]):
                print(prediction.label, prediction.probability)
        ```
    """
    from .runtime.session import open_session  # not at the top: importing msmamba must stay light

    return open_session(
        path,
        device=device,
        threads=threads,
        kernels=kernels,
        provider=provider,
        trust_engine_code=trust_engine_code,
        labels=labels,
        mean=mean,
        std=std,
        white_level=white_level,
        guard=guard,
    )
