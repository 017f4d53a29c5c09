"""TissueMNIST: 236,386 cells of the human kidney cortex in eight classes, in one file.

Published as ``tissuemnist.npz`` (28x28), ``tissuemnist_64.npz``, ``_128`` and ``_224`` with the keys
``{train,val,test}_{images,labels}``: images (N, S, S) uint8 without a channel axis, labels (N, 1). Patient
and slide are not published.

A member of an npz is a complete ``.npy`` file, maybe deflated. It is unpacked as it is, in small pieces, to
be mapped into memory: no image becomes a file of its own, and none is held in memory. Nothing is unpickled,
and names inside of the archive are never used as paths.

Dims: N images of S pixels a side.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import math
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import DataError, TargetError, reason_of, some
from ...files import atomic_file, open_file, sha256_of, write_atomically
from ...images import NO_ARRAY
from ...schema import SHA256, Kind, by_name, listed, parsed, record
from ..imported import STACK_INDEX, STACK_ROW
from ..splitting import SPLITS
from .examining import value_counts
from .listing import Listed, Listing, refuse_differences

LABELS = (
    "Collecting Duct, Connecting Tubule",
    "Distal Convoluted Tubule",
    "Glomerular endothelial cells",
    "Interstitial endothelial cells",
    "Leukocytes",
    "Podocytes",
    "Proximal Tubule Segments",
    "Thick Ascending Limb",
)
"""Class names, in the order of the numbers that stand for them in the file."""
PUBLISHED = {"train": 165_466, "val": 23_640, "test": 47_280}

MOST_IMAGES, MOST_PIXELS = 10_000_000, 2_048
"""The largest archive that is believed: what a header promises costs nobody memory before it is unpacked."""

DONE = "unpacked.json"
"""What has been unpacked so far; part of an unfinished import only."""

_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError, OverflowError),
    *(NotImplementedError, RuntimeError),  # a compression that Python has not; an encrypted member
)
_DONE = record({"source": listed(Kind("anything", lambda value: True)), "done": by_name(SHA256)})
_ANOTHER = re.compile(r"(?!tissue)[a-z]+mnist", re.IGNORECASE)
"""How the files of MedMNIST's other data sets are called."""
_CHUNK = 1 << 20
_BLOCK = 1 << 24
"""Bytes of pixels that are looked at together."""


@dataclass(frozen=True)
class Stacks:
    """The unpacked images, the published labels, and what is known of them."""

    folder: Path
    shapes: dict[str, tuple[int, ...]]
    """(N, S, S) or (N, S, S, 3) by published split; the file is ``<split>.npy``."""
    labels: dict[str, npt.NDArray[np.uint8]]
    """(N,) by published split."""
    checksums: dict[str, str]
    """SHA-256 by file name."""

    def listing(self) -> Listing:
        """The images by their places in the source."""
        images = [
            Listed(f"{split}_images[{row}]", LABELS[label], split=split)
            for split, labels in self.labels.items()
            for row, label in enumerate(labels.tolist())
        ]
        return Listing(images, LABELS, differences=_differences(self.shapes))

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of every image, pixels."""
        (_, height, width, *_), *_ = self.shapes.values()
        return height, width

    def contents(self) -> list[bytes]:
        """A fingerprint of each image, in the order of the listing: equal for equal pixels."""
        return [
            hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
            for split in self.shapes
            for block in self._blocks(split)
            for pixels in block
        ]

    def channel_means(self, names: npt.NDArray[np.object_]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Means of values and of squares in [0, 1] over the training images, (3,) each.

        Args:
            names: (N,) the split of each image, in the order of the listing.
        """
        counts = np.zeros((3, 256), np.int64)
        place = 0
        for split in self.shapes:
            for block in self._blocks(split):
                chosen = block[names[place : place + len(block)] == "train"]
                counts += value_counts(chosen if chosen.ndim == 4 else chosen[..., None])  # grey: all three
                place += len(block)
        shares = counts / counts.sum(axis=1, keepdims=True)
        values = np.arange(256) / 255
        return shares @ values, shares @ values**2

    def index(self, names: npt.NDArray[np.object_]) -> npt.NDArray[Any]:
        """The rows of the index, in the order of splits and stacks."""
        rows = np.empty(len(names), STACK_ROW)
        rows["split"] = [SPLITS.index(name) for name in names]
        rows["class"] = np.concatenate([*self.labels.values()])
        rows["stack"] = np.repeat(np.arange(len(self.labels)), [len(each) for each in self.labels.values()])
        rows["row"] = np.concatenate([np.arange(len(each)) for each in self.labels.values()])
        return rows[np.argsort(rows["split"], kind="stable")]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the stacks."""
        return tuple(f"{split}.npy" for split in self.shapes)

    def _blocks(self, split: str) -> Iterator[npt.NDArray[np.uint8]]:
        """A stack in pieces: read, not mapped, so that it takes no more memory than a piece."""
        shape = self.shapes[split]
        size = math.prod(shape[1:])
        with open_file(self.folder / f"{split}.npy") as file:
            _header_of(file, split)
            for start in range(0, shape[0], step := max(1, _BLOCK // size)):
                count = min(step, shape[0] - start)
                yield np.frombuffer(file.read(count * size), np.uint8).reshape(count, *shape[1:])


def unpack(source: Path, folder: Path, strict: bool, advance: Callable[[int, int], None]) -> Stacks:
    """Unpacks an npz file's images into ``folder``, those aside that an earlier attempt has unpacked.

    Args:
        source: the file, or a folder that holds one such.
        folder: the folder to write into.
        strict: refuse other numbers of images than the published ones.
        advance: called with the images unpacked and all images.

    Raises:
        DataError: it is no such file, or does not hold what TissueMNIST holds.
        TargetError: there is not enough room.
    """
    path = _find(source)
    if _ANOTHER.match(path.name):
        raise DataError(
            f"{path}: is another of MedMNIST's data sets by its name, whose numbers stand for other classes "
            "than TissueMNIST's: save its images into a folder for each class, and import these as a 'folder'"
        )
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            shapes = {split: _check_images(path, archive, f"{split}_images.npy") for split in SPLITS}
            if len({shape[1:] for shape in shapes.values()}) > 1:
                raise DataError(
                    f"{path}: holds images of several sizes: {some([*map(str, shapes.values())])}"
                )
            if strict:
                refuse_differences(path, _differences(shapes))
            labels = {
                split: _labels(path, archive, f"{split}_labels.npy", shapes[split][0]) for split in SPLITS
            }
            checksums = _unpack_members(path, archive, shapes, folder, advance)
    except _DAMAGE as error:
        raise DataError(f"{path}: cannot be unpacked: {error}: download it again") from error
    except OSError as error:
        if error.filename is not None and Path(error.filename) != path:
            raise
        raise DataError(f"{path}: cannot be read: {reason_of(error)}") from error
    return Stacks(folder, shapes, labels, checksums)


def _differences(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    return [
        f"{split}: {shapes[split][0]:,} images, published {count:,}"
        for split, count in PUBLISHED.items()
        if shapes[split][0] != count
    ]


def _find(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.is_dir():
        raise DataError(f"{source}: does not exist; expected tissuemnist.npz, or the folder it is in")
    try:
        found = sorted(each for each in source.iterdir() if each.match("tissuemnist*.npz"))
    except OSError as error:
        raise DataError(f"the folder '{source}' cannot be read: {reason_of(error)}") from error
    if len(found) != 1:
        which = f"holds {some([path.name for path in found])}: give the one to use" if found else "holds none"
        raise DataError(f"{source}: {which}; expected tissuemnist.npz, or _64, _128 or _224")
    return found[0]


def _unpack_members(
    path: Path,
    archive: zipfile.ZipFile,
    shapes: dict[str, tuple[int, ...]],
    folder: Path,
    advance: Callable[[int, int], None],
) -> dict[str, str]:
    """Writes each member as a file, whole or not at all, and gives their checksums by file name."""
    status = path.stat()
    identity = [str(path.resolve()), status.st_size, status.st_mtime_ns]
    done = _read_done(folder, identity)
    todo = [split for split in shapes if f"{split}.npy" not in done]
    needed = sum(archive.getinfo(f"{split}_images.npy").file_size for split in todo)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise TargetError(
            f"the disk of '{folder.parent.parent}' has {free / 1e9:.1f} GB left, the unpacked images take "
            f"{needed / 1e9:.1f} GB: free some space, or choose another place"
        )
    images = sum(shape[0] for shape in shapes.values())
    before = images - sum(shapes[split][0] for split in todo)
    for split in todo:
        count, info = shapes[split][0], archive.getinfo(f"{split}_images.npy")
        with archive.open(info) as member, atomic_file(folder / f"{split}.npy") as file:
            while chunk := member.read(_CHUNK):
                file.write(chunk)
                advance(before + count * file.tell() // info.file_size, images)
        before += count
        done[f"{split}.npy"] = sha256_of(folder / f"{split}.npy")
        write_atomically(folder / DONE, json.dumps({"source": identity, "done": done}).encode())
    return done


def _read_done(folder: Path, identity: list[Any]) -> dict[str, str]:
    try:
        found = parsed((folder / DONE).read_bytes(), names=True)
    except (OSError, ValueError):
        return {}
    if not _DONE.holds(found) or found["source"] != identity:
        return {}
    done: dict[str, str] = found["done"]
    return {name: digest for name, digest in done.items() if (folder / name).is_file()}


def _header_of(file: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type from the header of a ``.npy`` file, which is read and nothing more."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"{name} has version {version} of the format")


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of a member, which holds exactly that much."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        keys = some(sorted(archive.namelist()))
        raise DataError(
            f"{path}: has no {name.removesuffix('.npy')!r}, but {keys}; expected "
            "{train,val,test}_{images,labels}"
        ) from None
    with archive.open(info) as file:
        try:
            shape, fortran, dtype = _header_of(file, name)
        except NO_ARRAY as error:
            raise DataError(f"{path}: {name} is no array: {reason_of(error)}") from error
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or fortran or size + file.tell() != info.file_size:
            raise DataError(
                f"{path}: {name} is said to hold {'x'.join(map(str, shape))} {dtype} and has "
                f"{info.file_size:,} bytes: it is damaged, or not what was published"
            )
    return shape, dtype


def _check_images(path: Path, archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    shape, dtype = _member(path, archive, name)
    grey, colour = len(shape) == 3, len(shape) == 4 and shape[3] == 3
    found = f"{path}: {name} holds {'x'.join(map(str, shape))} {dtype}"
    if dtype != np.uint8 or not (grey or colour) or min(shape[:3]) < 1 or shape[1] != shape[2]:
        raise DataError(f"{found}; expected (N, S, S) or (N, S, S, 3) uint8")
    if shape[0] > MOST_IMAGES or shape[1] > MOST_PIXELS:
        raise DataError(f"{found}; expected at most {MOST_IMAGES:,} images of {MOST_PIXELS} pixels a side")
    return shape


def _labels(path: Path, archive: zipfile.ZipFile, name: str, count: int) -> npt.NDArray[np.uint8]:
    shape, dtype = _member(path, archive, name)
    if shape not in ((count,), (count, 1)) or dtype.kind not in "ui":
        raise DataError(
            f"{path}: {name} holds {'x'.join(map(str, shape))} {dtype}; expected one number for each of the "
            f"{count:,} images"
        )
    with archive.open(name) as file:
        labels = np.lib.format.read_array(file, allow_pickle=False).reshape(-1)
    if labels.min() < 0 or labels.max() >= len(LABELS):
        raise DataError(f"{path}: {name} has labels of {labels.min()} to {labels.max()}; expected 0 to 7")
    return labels.astype(np.uint8)


def write_index(path: Path, rows: npt.NDArray[Any]) -> None:
    """Writes the index of the stacks."""
    content = io.BytesIO()  # into a file itself NumPy writes past Python, and hides why it could not
    np.save(content, rows, allow_pickle=False)
    write_atomically(path / STACK_INDEX, content.getvalue())
