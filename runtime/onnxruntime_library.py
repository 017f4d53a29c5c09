"""ONNX Runtime imported without its telemetry: what runs beside a microscope tells nobody.

From version 1.29 on it reports to Microsoft on Linux and macOS too, keeps an identifier of the machine in the
home folder, and has a thread for it from its import on, for which a forked process waits for ever when it
ends. ``ORT_DISABLE_TELEMETRY=1`` in the environment, before the import, is its full opt-out. Where somebody
has imported it before, or set the variable, that stands.
"""

from __future__ import annotations

import os
from typing import Any

from ..errors import BackendError

TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"


def import_onnxruntime() -> Any:
    """The module ``onnxruntime``.

    Raises:
        BackendError: it is not installed, or does not load.
    """
    os.environ.setdefault(TELEMETRY_SWITCH, "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"ONNX Runtime cannot be loaded ({error}): pip install onnxruntime") from error
    return onnxruntime
