"""What a path holds, told from its content: a bundle, an ONNX file, an engine, a checkpoint.

Suffixes are not trusted, and nothing here loads a model: a folder is looked at, a file's first bytes are
read, and an ONNX file's outermost fields are walked so that a truncated download is known before a runtime
fails on it.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from .. import files
from ..data.seen import Checksums, Seen, calibrated_images, quantised_images
from ..errors import ArtefactError, reason_of
from ..schema import parsed
from ..text import as_word
from .manifest import Manifest
from .protobuf import Buffer, Field, fields

MANIFEST_NAME = "manifest.json"
MODEL_NAME = "model.onnx"
ENGINE_NAME = "model.engine"
PARITY_NAME = "parity.json"
SEEN_NAME = "seen.json"
"""Which images the training saw (`data.seen`); bundles of checkpoints that do not say have none."""
CALIBRATED_NAME = "calibrated.json"
"""Which images the guard was fitted on; bundles that earlier versions calibrated have none."""
CALIBRATION_NAME = "calibration.json"
"""With int8, the ranges and the images that it was calibrated and judged on."""
SCORES_NAME = "scores.json"
"""Scores of the images that the bundle was calibrated on (`runtime.drift`)."""

_TRAINED = "best.safetensors"  # the weights in the folder of a run

Made = TypeVar("Made")

ENGINE_MAGICS = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
"""First bytes of a plan, and the library that it is for."""

# Field numbers of ModelProto and their wire types, onnx.proto3; 0 is a varint, 2 bytes with their length.
_MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_GRAPH_FIELD = 7
# Of GraphProto, TensorProto and StringStringEntryProto.
_INITIALISER, _EXTERNAL_DATA, _KEY, _VALUE = 5, 13, 1, 2
_LOCATION = b"location"  # the key of the file that a tensor's data lies in


class Kind(Enum):
    """What an artefact is; the value reads in a sentence."""

    BUNDLE = "a bundle"
    ONNX = "an ONNX file"
    ENGINE = "a TensorRT engine"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, its manifest read and checked, its files not yet.

    Attributes:
        folder: the bundle's folder.
        manifest: what ``manifest.json`` says.
    """

    folder: Path
    manifest: Manifest

    @property
    def seen(self) -> Seen | None:
        """The images that the training saw; None where that is not known.

        Raises:
            ArtefactError: the file that says it was changed, or is none.
        """
        return self.parsed(SEEN_NAME, Seen.from_dict, "export the bundle again")

    @property
    def calibrated_on(self) -> Checksums | None:
        """The images that the guard was fitted on; None without one, and where that is not known.

        Raises:
            ArtefactError: as `seen`.
        """
        return self.parsed(
            CALIBRATED_NAME, calibrated_images, "fit the guard again with 'mmdeploy calibrate'"
        )

    @property
    def quantised_on(self) -> Checksums | None:
        """The images that int8 was calibrated and judged on; None of another precision.

        Raises:
            ArtefactError: as `seen`.
        """
        return self.parsed(CALIBRATION_NAME, quantised_images, "export the bundle again", names=True)

    def parsed(
        self, name: str, made_of: Callable[[Any], Made], cure: str, *, names: bool = False
    ) -> Made | None:
        """What one of the bundle's JSON files holds, None where the bundle has none of that name.

        Args:
            name: the file.
            made_of: makes it of the file's value; raises ValueError where that is something else.
            cure: what to do then.
            names: whether it holds names of files (see `schema.parsed`).

        Raises:
            ArtefactError: the file was changed, or holds something else.
        """
        if name not in self.manifest.files:
            return None
        try:
            return made_of(parsed(self.read(name), names=names))
        except ValueError as error:
            raise ArtefactError(f"'{self.folder / name}' cannot be used: {error}: {cure}") from error

    def read(self, name: str) -> bytes:
        """The content of one of the bundle's files, after its checksum.

        Raises:
            ArtefactError: the file is missing, unlisted, unreadable or not as it was exported.
        """
        if name not in self.manifest.files:
            listed = ", ".join(sorted(self.manifest.files)) or "nothing"
            raise ArtefactError(f"'{self.folder}' lists no '{name}' in its manifest (it lists {listed})")
        content = read_file(self.folder / name)
        found, expected = hashlib.sha256(content).hexdigest(), self.manifest.files[name]
        if found != expected:
            raise ArtefactError(
                f"'{self.folder / name}' was changed after export: its SHA-256 is {found[:12]}…, "
                f"the manifest says {expected[:12]}…: copy or export the bundle again"
            )
        return content


def open_bundle(path: str | Path) -> Bundle:
    """Reads a bundle's manifest.

    Raises:
        ArtefactError: there is no bundle, or its manifest is not valid.
    """
    folder = Path(path)
    manifest = folder / MANIFEST_NAME
    try:
        is_bundle = manifest.is_file()
    except OSError as error:  # a folder that may not be looked into
        raise ArtefactError(f"'{folder}' cannot be read: {reason_of(error)}") from error
    if not is_bundle:
        raise ArtefactError(f"'{folder}' is no bundle: it holds no '{MANIFEST_NAME}'")
    return Bundle(folder, Manifest.from_json(read_file(manifest), f"'{manifest}'"))


def recognise(path: str | Path) -> Kind:
    """What can be opened at ``path``.

    Raises:
        ArtefactError: nothing is there, it is truncated, it is a checkpoint (not exported yet), or it is
            something else; the message says which and what to do.
    """
    path = Path(path)
    try:
        return _kind_of(path)
    except OSError as error:
        raise ArtefactError(f"'{path}' cannot be read: {reason_of(error)}") from error


def _kind_of(path: Path) -> Kind:
    if path.is_dir():
        if (path / MANIFEST_NAME).is_file():
            return Kind.BUNDLE
        if (path / _TRAINED).is_file():
            raise ArtefactError(
                f"'{path}' is the folder of a run, not a bundle: its network is the checkpoint "
                f"'{path / _TRAINED}', of which 'mmdeploy export' makes one"
            )
        raise ArtefactError(
            f"'{path}' is a folder without '{MANIFEST_NAME}': expected a bundle of 'mmdeploy export'"
        )
    if not path.exists():
        raise ArtefactError(f"'{path}' does not exist: expected a bundle, an ONNX file or an engine")
    with files.open_file(path) as file:
        head = file.read(16)
        if not head:
            raise ArtefactError(f"'{path}' is empty: copy or export it again")
        if head[:4] in ENGINE_MAGICS:
            return Kind.ENGINE
        if is_checkpoint(path):
            raise ArtefactError(
                f"'{path}' is a checkpoint, and the runtime needs an exported artefact: "
                f"export it: mmdeploy export {as_word(path)} -o BUNDLE"
            )
        with _mapped(file, path) as content:
            if is_onnx(content, str(path)):
                return Kind.ONNX
    raise ArtefactError(f"'{path}' is neither a bundle nor an ONNX file nor a TensorRT engine")


def is_checkpoint(path: str | Path) -> bool:
    """Whether a file is safetensors (a length, then JSON) or PyTorch's (a zipped pickle, or a pickle).

    Raises:
        ArtefactError: it cannot be read.
    """
    path = Path(path)
    try:
        with files.open_file(path) as file:
            head = file.read(9)
    except OSError as error:
        raise ArtefactError(f"'{path}' cannot be read: {reason_of(error)}") from error
    header_bytes = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header_bytes <= path.stat().st_size:
        return True
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                return any(Path(name).name == "data.pkl" for name in archive.namelist())
        except (zipfile.BadZipFile, NotImplementedError, ValueError):  # corrupt, or unknown to zipfile
            return False
    return head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")


def is_onnx(content: Buffer, name: str) -> bool:
    """Whether the outermost fields are those of an ONNX model, up to the last byte.

    Raises:
        ArtefactError: they begin as a model's and then break off: the file is truncated.
    """
    numbers = set()
    try:
        for field in fields(content):
            if _MODEL_FIELDS.get(field.number) != field.wire_type:
                return False
            numbers.add(field.number)
    except EOFError as error:
        if 1 in numbers:  # ir_version, which writers put first
            raise ArtefactError(f"'{name}' is a truncated ONNX file: copy or export it again") from error
        return False
    return _GRAPH_FIELD in numbers


def model_bytes(path: str | Path) -> int:
    """The size of an ONNX file, with the files beside it that hold its weights, or of an engine.

    Raises:
        OSError: it cannot be read.
    """
    path = Path(path)
    with files.open_file(path) as file, _mapped(file, path) as content:
        beside = [] if content[:4] in ENGINE_MAGICS else files_beside(content)
        return len(content) + sum((path.parent / name).stat().st_size for name in beside)


def _mapped(file: BinaryIO, path: Path) -> mmap.mmap:
    """A file's content in memory; that it cannot be, as on some shares, is an error about the file."""
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        error.filename = os.fspath(path)
        raise


def files_beside(content: bytes | mmap.mmap) -> set[str]:
    """The files that an ONNX file's initialisers lie in, by their names below its folder."""
    found: set[str] = set()
    if content.find(_LOCATION) < 0:
        return found
    with suppress(EOFError):  # what ONNX Runtime reads and this does not has none that are known
        for graph in _of(content, _GRAPH_FIELD, fields(content)):
            for tensor in _of(content, _INITIALISER, graph):
                for entry in _of(content, _EXTERNAL_DATA, tensor):
                    said = {each.number: bytes(content[each.start : each.end]) for each in entry}
                    where = said.get(_VALUE, b"")
                    if said.get(_KEY) == _LOCATION and b"\0" not in where:  # such a name no file has
                        found.add(os.fsdecode(where))
    return found


def _of(content: Buffer, number: int, message: Iterable[Field]) -> Iterator[Iterator[Field]]:
    """The messages in a message's field of that number."""
    return (fields(content, each.start, each.end) for each in message if each.number == number)


def artefact_sha256(path: str | os.PathLike[str]) -> str:
    """By what results name the artefact they are of: a file's checksum, or that of a bundle's manifest, which
    has its files'.

    Raises:
        OSError: it cannot be read.
    """
    path = Path(path)
    return files.sha256_of(path / MANIFEST_NAME if path.is_dir() else path)


def read_file(path: str | Path) -> bytes:
    """A file's content.

    Raises:
        ArtefactError: it cannot be read.
    """
    path = Path(path)
    try:
        return files.read_file(path)
    except FileNotFoundError as error:
        raise ArtefactError(f"'{path}' is missing: copy or export it again") from error
    except OSError as error:
        raise ArtefactError(f"'{path}' cannot be read: {reason_of(error)}") from error
