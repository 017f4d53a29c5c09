"""The TensorRT libraries that the plugins serve, imported without their traps.

``tensorrt_rtx`` 1.7.1 has one: its ONNX parser loads ``libtensorrt_rtx.so`` by name, the wheel ships only
``libtensorrt_rtx.so.1``, and the process aborts in the middle of parsing. The parser looks beside itself, so
a symlink there cures it; `import_tensorrt` refuses to import without it and `link_parser_library` makes it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import BackendError, reason_of
from ..text import as_word

LIBRARIES = ("tensorrt", "tensorrt_rtx")
_LINK, _LIBRARY = "libtensorrt_rtx.so", "libtensorrt_rtx.so.1"


def _rtx_folder() -> Path | None:
    """The folder where the wheel keeps its libraries, if it is installed as one."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    return Path(spec.origin).parent if spec and spec.origin else None


def missing_parser_link() -> Path | None:
    """The symlink that the RTX parser needs and does not have; None where all is well."""
    folder = _rtx_folder()
    if folder is None or not (folder / _LIBRARY).exists():
        return None
    searched = [folder, *(Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry)]
    return None if any((place / _LINK).exists() for place in searched) else folder / _LINK


def link_command(link: Path) -> str:
    """The shell command that makes the parser's link; in another folder where the wheel's is read-only."""
    if os.access(link.parent, os.W_OK):
        return f"ln -s {_LIBRARY} {as_word(link)}"
    own = "~/.local/lib/tensorrt_rtx"
    return (
        f"mkdir -p {own} && ln -s {as_word(link.with_name(_LIBRARY))} {own}/{_LINK}, then start with "
        f"LD_LIBRARY_PATH={own}:$LD_LIBRARY_PATH"
    )


def link_parser_library() -> Path | None:
    """Makes the symlink that the RTX parser needs.

    Returns:
        The link that was made; None where none was missing.

    Raises:
        BackendError: The folder cannot be written; the message says what to do instead.
    """
    link = missing_parser_link()
    if link is None:
        return None
    try:
        link.symlink_to(_LIBRARY)
    except OSError as error:
        raise BackendError(
            f"cannot make {link} ({reason_of(error)}): in a folder of your own make a link of that name to "
            f"{link.with_name(_LIBRARY)}, and put the folder on LD_LIBRARY_PATH before starting"
        ) from error
    return link


def import_tensorrt(name: str, *, to_parse: bool = True) -> ModuleType:
    """Imports ``tensorrt`` or ``tensorrt_rtx``.

    Args:
        name: the library's import name.
        to_parse: whether ONNX files are to be parsed; only then does it matter that a parser would abort.

    Raises:
        BackendError: It is not installed, does not load, or would abort the process later.
    """
    if name not in LIBRARIES:
        raise BackendError(f"unknown TensorRT library {name!r}: expected {' or '.join(LIBRARIES)}")
    link = missing_parser_link() if name == "tensorrt_rtx" and to_parse else None
    if link is not None:
        raise BackendError(
            f"tensorrt_rtx's ONNX parser would abort this process: {link.name} is missing from "
            f"{link.parent}; run: {link_command(link)}"
        )
    try:
        return importlib.import_module(name)
    except ImportError as error:
        remedy = (
            "pip install tensorrt-rtx"
            if name == "tensorrt_rtx"
            else "install TensorRT (on a Jetson it comes with JetPack), or copy an ONNX bundle to the device "
            "and run there: mmdeploy export BUNDLE --target tensorrt -o OUT"
        )
        raise BackendError(f"{name} does not import ({error}): {remedy}") from error


def collecting_logger(trt: ModuleType) -> Any:
    """A logger that keeps what it is told: ``lines`` for a log, ``errors`` for messages.

    Args:
        trt: the module; its base class exists only once it is imported.
    """

    class Logger(trt.ILogger):  # type: ignore[misc,name-defined]  # TensorRT's classes carry no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.INFO:
                self.lines.append(f"{severity.name}: {message}")
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

    return Logger()
