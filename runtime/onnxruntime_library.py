"""ONNX Runtime imported without its telemetry: what runs beside a microscope tells nobody.

From version 1.29 on it reports to Microsoft on Linux and macOS too, keeps an identifier of the machine in the
home folder, and has a thread for it from its import on, for which a forked process waits for ever when it
ends. ``ORT_DISABLE_TELEMETRY=1`` in the environment, before the import, is its full opt-out. Where somebody
has imported it before, or set the variable, that stands.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Any

from ..errors import BackendError, reason_of

TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"
PACKAGES = ("onnxruntime", "onnxruntime-gpu")
"""They install into the same folder: whichever is uninstalled takes the other's files with it."""
_LONGEST = 4000  # characters of what it says, in which a file's names may be as long as they like


def import_onnxruntime() -> Any:
    """The module ``onnxruntime``.

    Raises:
        BackendError: it is not installed, or does not load.
    """
    os.environ.setdefault(TELEMETRY_SWITCH, "1")
    try:
        import onnxruntime

        if not hasattr(onnxruntime, "InferenceSession"):
            raise ImportError(
                f"{', '.join(onnxruntime.__path__)} holds nothing of it, as after uninstalling one of two"
            )
    except ImportError as error:
        raise BackendError(f"ONNX Runtime cannot be loaded ({error}): {how_to_install()}") from error
    return onnxruntime


def failure_of(error: Exception) -> str:
    """What ONNX Runtime says of a failure, without its own prefixes.

    Of CUDA's failures it names the C++ function, the line and the machine's host name, which is nobody's
    business where a bundle's proof says what ran it: here, what failed, in which call and at which node.
    """
    said = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", reason_of(error)[:_LONGEST])
    failure = re.search(r"(\b\w+ failure \d+: .*?) ; GPU=.*?(?: ; expr=(\w+).*)?$", said)
    if failure is None:
        return said.removeprefix("Error in execution: ")
    node = re.search(r"while running (\w+) node\. Name:'([^']*)'", said)
    call = f" in {failure[2]}" if failure[2] else ""
    return failure[1] + call + (f", {node[1]} node '{node[2]}'" if node else "")


def versions() -> dict[str, str]:
    """The version of each of `PACKAGES` that pip takes for installed."""
    from importlib.metadata import PackageNotFoundError, version  # not at the top: loads sockets and e-mail

    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def how_to_install() -> str:
    """The command after which one package alone has the folder: the one for GPUs, if that was there."""
    found = versions()
    if not found:
        return "pip install onnxruntime"
    return f"pip uninstall -y {' '.join(PACKAGES)}; pip install {list(found)[-1]}"
