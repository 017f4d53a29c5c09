"""Micro-Manager's camera, by its configuration file: its core runs in this process, by pymmcore."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BackendError, ImageError, SourceError
from ...images import load_image
from .frame import Frame

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymmcore import CMMCore

ADAPTERS = "MICROMANAGER_PATH"
"""The environment variable that says where Micro-Manager's device adapters are."""

_PAUSE = 0.002  # seconds between two looks for a new picture
_SILENT = 0.1  # seconds without one after which whoever reads is asked whether to go on
_SCALE = 1.0  # seconds between two questions for the pixel size, which go to the hardware
_CLOCK = 10.0  # seconds that a picture's time may lie in the past to be believed


class MicroManager:
    """The pictures of Micro-Manager's current camera."""

    endless = True
    keeps = False
    stalls_after: float | None = 5.0

    def __init__(self, config: Path, white_level: int) -> None:
        """A microscope; nothing is opened yet.

        Args:
            config: Micro-Manager's configuration, a ``.cfg``.
            white_level: the value of white in pictures of more than 8 bits.

        Raises:
            BackendError: the extra ``micromanager`` is not installed.
        """
        require_pymmcore()
        self.name = f"mm:{config}"
        self._config = config
        self._white_level = white_level

    def frames(self) -> Iterator[Frame | ImageError | None]:
        """The newest picture each time, at the camera's pace.

        Raises:
            SourceError: the configuration cannot be loaded, it has no camera, or that stopped.
        """
        core = self._loaded()
        try:
            core.startContinuousSequenceAcquisition(0)
            yield from self._pictures(core)
        except (RuntimeError, OSError) as error:
            raise SourceError(f"'{self.name}' cannot be read on: {_line(error)}") from error
        finally:
            with suppress(RuntimeError, OSError):
                core.stopSequenceAcquisition()
            with suppress(RuntimeError, OSError):
                core.unloadAllDevices()

    def _loaded(self) -> CMMCore:
        import pymmcore

        if not self._config.is_file():
            raise SourceError(f"'{self._config}' is no file: expected a configuration of Micro-Manager")
        core = pymmcore.CMMCore()
        core.setDeviceAdapterSearchPaths(_adapters(self._config))
        try:
            core.loadSystemConfiguration(os.fspath(self._config))
            camera = core.getCameraDevice()
        except (RuntimeError, OSError) as error:
            said = _line(error)
            if "adapter" in said:
                said += (
                    f": device adapters are looked for in ${ADAPTERS}, beside the configuration, and where "
                    "Micro-Manager is installed; their version has to fit pymmcore's "
                    f"({core.getAPIVersionInfo()})"
                )
            raise SourceError(f"'{self._config}' cannot be loaded: {said}") from error
        if not camera:
            raise SourceError(f"'{self._config}' names no camera: expected 'Property,Core,Camera,…' in it")
        return core

    def _pictures(self, core: CMMCore) -> Iterator[Frame | ImageError | None]:
        import pymmcore

        last, number, heard = -1, -1, time.monotonic()
        mpp, asked = _microns(core), heard
        while True:
            tags = pymmcore.Metadata()
            shown = -1
            if core.getRemainingImageCount():
                began = time.monotonic()
                pixels = core.getLastImageMD(tags)
                shown = int(_tag(tags, "ImageNumber", str(last + 1)))
            if shown < 0 or shown == last:
                if not core.isSequenceRunning():
                    raise SourceError(f"'{self.name}' cannot be read on: its camera stopped")
                if time.monotonic() - heard > _SILENT:
                    heard = time.monotonic()
                    yield None
                time.sleep(_PAUSE)
                continue
            # The camera's own count tells of pictures that nobody asked for; it begins anew when it restarts.
            number += shown - last if shown > last else 1
            last, heard = shown, time.monotonic()
            if heard - asked > _SCALE:
                mpp, asked = _microns(core), heard
            taken = _taken(tags, began)
            name = f"{self.name} #{number}"
            try:
                rgb, notes = _rgb(pixels, _tag(tags, "PixelType", ""), self._white_level)
            except ImageError as error:
                yield ImageError(f"{name}: {error}")
                continue
            yield Frame(rgb, number, taken, (time.monotonic() - began) * 1e3, name, mpp, notes)


def require_pymmcore() -> None:
    """Checks that the extra ``micromanager`` is there.

    Raises:
        BackendError: it is not installed.
    """
    try:
        import pymmcore  # noqa: F401  # whether it is there
    except (ImportError, OSError) as error:
        raise BackendError(
            f"Micro-Manager needs pymmcore, which is not here ({error}): pip install 'msmamba[micromanager]'"
        ) from error


def _adapters(config: Path) -> list[str]:
    """Folders in which Micro-Manager's device adapters may be."""
    if sys.platform == "win32":
        programs = Path(os.environ.get("PROGRAMFILES", "C:/Program Files"))
        installed = sorted(programs.glob("Micro-Manager*"), reverse=True)
    elif sys.platform == "darwin":
        installed = sorted(Path("/Applications").glob("Micro-Manager*"), reverse=True)
    else:
        installed = [Path("/usr/local/lib/micro-manager"), Path("/usr/lib/micro-manager")]
    said = os.environ.get(ADAPTERS)
    folders = [*([Path(said)] if said else []), config.resolve().parent, *installed]
    return [os.fspath(folder) for folder in folders if folder.is_dir()]


def _microns(core: CMMCore) -> float | None:
    """Microns a pixel by the objective, magnifier and binning that are in place; None where none is set."""
    return core.getPixelSizeUm() or None


def _rgb(pixels: NDArray[Any], kind: str, white_level: int) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """A picture as Micro-Manager gives it, as (H, W, 3) uint8, and what had to be decided.

    Raises:
        ImageError: it is of 32 bits, to which no white belongs, or of a kind that is not known.
    """
    height, width = pixels.shape[:2]
    if kind in ("RGB32", "RGB64"):  # a pixel is one number: blue, green, red, unused
        single: type[np.unsignedinteger[Any]] = np.uint8 if kind == "RGB32" else np.uint16
        pixels = pixels.view(single).reshape(height, width, 4)[..., 2::-1]
    elif kind not in ("GRAY8", "GRAY16"):
        raise ImageError(
            f"it is {kind or 'of no kind that is known'}: expected GRAY8, GRAY16, RGB32 or RGB64"
        )
    image = load_image(pixels, white_level=white_level)
    return image.pixels, image.notes


def _taken(tags: Any, began: float) -> float:
    """When a picture reached Micro-Manager's core, by the monotonic clock."""
    with suppress(ValueError):
        came = datetime.fromisoformat(_tag(tags, "TimeReceivedByCore", ""))
        age = (datetime.now() - came).total_seconds()
        if 0 <= age <= _CLOCK:
            return time.monotonic() - age
    return began


def _tag(tags: Any, name: str, absent: str) -> str:
    return str(tags.GetSingleTag(name).GetValue()) if tags.HasTag(name) else absent


def _line(error: Exception) -> str:
    """What Micro-Manager says, in one line."""
    return " ".join(str(error).split())
