"""From an exported artefact to predictions: what a machine beside a microscope installs.

Needs numpy, Pillow and ONNX Runtime; never imports `model`, `export`, `calib` or torch. `open_session` is
what `msmamba.open` calls.
"""

from __future__ import annotations

from .manifest import Manifest
from .session import Prediction, Session, open_session

__all__ = ["Manifest", "Prediction", "Session", "open_session"]
