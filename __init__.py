"""msmamba: takes Microscopic-Mamba to the machine beside the microscope (import name and install name)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    from .runtime.session import Session

from .version import __version__

__all__ = ["__version__", "open"]


def open(path: str | os.PathLike[str], **options: Any) -> Session:
    """Opens a bundle, an ONNX file or an engine; see `msmamba.runtime.open_session` for the options.

    Example:
        ```python
        with msmamba.open("colon.fp16") as session:
            for prediction in session.classify(["a.png", "b.tif"]):
                print(prediction.label, prediction.probability)
        ```
    """
    from .runtime.session import open_session  # not at the top: importing msmamba must stay light

    return open_session(path, **options)
