"""Every error that msmamba raises on purpose, in one tree.

    MsmambaError
    ├── InputError            what the user handed in cannot be used
    │   ├── ImageError        an image: missing, corrupt, too large, not an image
    │   ├── SourceError       what frames come from: missing, unfit, gone
    │   └── DataError         a data folder or data set: no classes, too few images, leaking groups
    ├── CheckpointError       a checkpoint: unreadable, of another architecture, NaN weights
    ├── TrainingError         a training run diverged, or is not the one to resume
    ├── ArtefactError         a bundle, ONNX file or engine: incomplete, changed, too new, unlabelled
    ├── ExportError           a model could not be turned into the artefact asked for
    ├── ParityError           an artefact does not answer like the model it came from
    ├── ComparisonError       networks of a comparison came to no end, or lost parity
    ├── DriftError            the microscope, or what is shown to it, is not as at the calibration
    ├── BackendError          a library, device or driver that a backend needs is missing or unfit
    └── TargetError           an output path: exists already, cannot be written, disk full

A message says what was found, what was expected, and what to do, in one line. The command line
prints it after ``error:`` and exits with status 1; the library raises it.
"""

from __future__ import annotations

from collections.abc import Sequence

_NAMES_SHOWN = 5


def some(names: Sequence[str]) -> str:
    """The first few of many names, and how many more there are, for a message."""
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown}, … {len(names) - _NAMES_SHOWN} more"


def reason_of(error: BaseException) -> str:
    """The first line of an exception; of the system's, its words without the number and the file."""
    said: str | None = getattr(error, "strerror", None)  # of PyAV's, too, which are not all OSError
    if said:
        return said[:1].lower() + said[1:]
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


class MsmambaError(Exception):
    """Base of all errors raised on purpose; catch this to catch them all."""


class Note(UserWarning):
    """What there is to say of something that was used all the same; the command line prints it."""


class ArtefactNote(Note):
    """What there is to say of an artefact that was opened; commands tell `Session.notes` in its place."""


class InputError(MsmambaError):
    """What the user handed in cannot be used."""


class ImageError(InputError):
    """An image is missing, corrupt, too large or not an image."""


class DataError(InputError):
    """A data folder cannot be used: no classes, too few images, groups across splits."""


class SourceError(InputError):
    """What frames come from is missing, unfit or gone."""


class CheckpointError(MsmambaError):
    """A checkpoint is unreadable, belongs to another architecture or holds non-finite weights."""


class TrainingError(MsmambaError):
    """A training run diverged, or the run to resume is another one or unreadable."""


class ArtefactError(MsmambaError):
    """A bundle, ONNX file or engine is incomplete, changed, too new or without labels."""


class ExportError(MsmambaError):
    """A model could not be turned into the artefact asked for."""


class ParityError(MsmambaError):
    """An artefact does not answer like the model it came from."""


class ComparisonError(MsmambaError):
    """Some networks of a comparison came to no end, or do not answer like what they were exported from."""


class DriftError(MsmambaError):
    """The microscope, or what is shown to it, is not as it was at the calibration."""


class BackendError(MsmambaError):
    """A library, device or driver that a backend needs is missing or unfit."""


class TargetError(MsmambaError):
    """An output path exists already, cannot be written, or the disk is full."""
