"""Image files to network input: the one definition that training, evaluation and the runtime share.

Dims: ``H`` and ``W`` pixels of the file, ``S`` pixels of the network's square input; colours are R, G, B.

Reading gives ``(H, W, 3)`` uint8, by rules that hold for every file:

- **Formats**: PNG, JPEG, TIFF and BMP, recognised by content (`decoding`); all else is refused.
- **Orientation**: the EXIF or TIFF orientation is applied.
- **16 bit**: ``v * 256 // (white + 1)``, at most 255, where ``white`` is the white level: for all 16 bits,
  65535, that is the high byte. It belongs to the model, not to the image: stretching each to its own extremes
  would make a colour depend on the brightest speck. The notes say when a picture does not fit it.
- **Grey and palette** images become RGB.
- **Transparency** is shown on white, the background of bright-field microscopy and of image viewers.
- **CMYK** is converted without its colour profile.
- **Several pages**: the largest picture; of several as large, the first.
- **Refused**: 32-bit integers and floats (no scale to 8 bits is implied), sides of a single pixel, more
  pixels than `MAX_PIXELS` (read from the header, before anything is decoded), and whatever is damaged.

`Transform` is the evaluation transform: the bilinear, antialiased resize of the 8-bit RGB image to ``S x S``
that `msmamba.resize` defines (the aspect ratio is not kept), then ``(v / 255 - mean) / std`` per channel,
computed in float64 and rounded once to float32. The compiled library does both where it is built, with the
same bits.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from threading import Lock
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeGuard

import numpy as np
from PIL import Image, TiffImagePlugin

from . import resize as reference
from .decoding import Raster, blocks, check_sides, pixels_of, raster_of_file
from .errors import ImageError, InputError, reason_of
from .files import open_file
from .resize import Box
from .schema import is_whole, shortened

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class StackedImage:
    """One image of a stack: a ``.npy`` file of (N, H, W) or (N, H, W, 3) uint8.

    Hundreds of thousands of small images are then one file, of which no more is read than what is asked for.
    """

    stack: Path
    index: int

    @property
    def name(self) -> str:
        """The file's name and the place."""
        return f"{self.stack.name}[{self.index}]"

    def __str__(self) -> str:
        return f"{self.stack}[{self.index}]"


MAX_SIZE = 8192
"""Largest side of a network's square input, in pixels (805 MB of float32)."""

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | NDArray[Any] | Image.Image | StackedImage"
"""What an image can be read from: a path, an encoded file's bytes, an array of pixels, a Pillow image, a
place in a stack."""

MAX_PIXELS = 89_000_000
"""Default bound on the pixels of an image (267 MB decoded); just under the one at which Pillow warns."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
"""Suffixes, in lower case, by which image files are found in folders (they are opened by content)."""

FULL_WHITE = 65535
"""The white level of pictures that use all of 16 bits."""

LEAST_WHITE = 255
"""The least white level: 8 bits of 16."""

NO_ARRAY = (
    *(ValueError, TypeError, EOFError, SyntaxError, TokenError),
    *(MemoryError, OverflowError, RecursionError),
)
"""What NumPy raises of a file that is no array: its header is a Python literal."""

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")

_LARGE = 1e6  # no mean or deviation of values in [0, 1] is near it

_GREY_16 = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})

_ARRAY = b"\x93NUMPY"  # how a file of one array begins
_FEW = 0.02
"""The share of a picture that may be brighter than all else, as scale bars and hot pixels are."""

_TRANSPARENT = "transparent parts shown on white"


@dataclass(frozen=True)
class LoadedImage:
    """An image as the network sees it before resizing.

    Attributes:
        pixels: (H, W, 3) uint8, RGB.
        notes: what reading had to decide, one phrase each ("page 1 of 5"); empty for most images.
        largest: the largest value of a 16-bit image's colours; None of others.
        significant_bits: how many of the 16 bits are used, where the file says so.
        turned: whether it is stored otherwise than upright, and was turned as its orientation says.
    """

    pixels: NDArray[np.uint8]
    notes: tuple[str, ...] = ()
    largest: int | None = None
    significant_bits: int | None = None
    turned: bool = False


@dataclass(frozen=True)
class Transform:
    """The evaluation transform, from RGB pixels to network input.

    Attributes:
        size: ``S``, pixels of the square output.
        mean: the channels' means, of pixels scaled to [0, 1].
        std: the channels' standard deviations, of pixels scaled to [0, 1].
        white_level: the value of white in 16-bit images.

    Raises:
        InputError: a size that `is_image_size` refuses, or means and deviations that are not three numbers
            of a sensible magnitude (see `are_means`, `are_deviations`).
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    white_level: int = FULL_WHITE

    def __post_init__(self) -> None:
        check_white_level(self.white_level)
        if not is_image_size(self.size):
            raise InputError(f"the image size is {self.size!r}: expected 1 to {MAX_SIZE} pixels")
        if not are_means(self.mean):
            raise InputError(f"the channels' mean is {self.mean!r}: expected three finite numbers")
        if not are_deviations(self.std):
            raise InputError(f"the channels' std is {self.std!r}: expected three finite numbers above zero")

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Network input of one image.

        Args:
            pixels: (H, W, 3) uint8, RGB.

        Returns:
            (3, S, S) float32, contiguous.
        """
        if (native := native_resize()) is not None:
            return native.prepare(pixels, self.size, self._tables)
        return self.normalise(self.resize(pixels))

    def of(self, source: ImageSource) -> NDArray[np.float32]:
        """Network input of an image that is read as `read_image` does, (3, S, S).

        Raises:
            ImageError: it cannot be used; the message names the source and the cause.
        """
        return self(read_image(source, white_level=self.white_level))

    def resize(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) to (S, S, 3), uint8: `resized`."""
        return resized(pixels, self.size)

    def normalise(
        self, pixels: NDArray[np.uint8], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """(S, S, 3) uint8 to (3, S, S) float32: scaled, centred, channels first; into ``out`` where given."""
        if out is None:
            out = np.empty((3, *pixels.shape[:2]), np.float32)
        if (native := native_resize()) is not None:
            native.normalise(pixels, self._tables, out)
            return out
        for channel, table in enumerate(self._tables):
            np.take(table, pixels[..., channel], out=out[channel], mode="clip")  # clip: no bounds buffer
        return out

    @cached_property
    def _tables(self) -> NDArray[np.float32]:
        """(3, 256): the input value of every pixel value; exact in float64, rounded once."""
        values = np.arange(256, dtype=np.float64) / 255
        mean, std = np.array(self.mean)[:, None], np.array(self.std)[:, None]
        return np.ascontiguousarray((values - mean) / std, dtype=np.float32)


def resized(pixels: NDArray[np.uint8], size: int, box: Box | None = None) -> NDArray[np.uint8]:
    """A picture, or a part of it, as the network is shown it: (H, W, 3) to (size, size, 3), uint8.

    The definition is `msmamba.resize`'s; arguments and errors too.
    """
    return (native_resize() or reference).resize(pixels, size, box)


@cache
def native_resize() -> Any | None:
    """The compiled resize (`plugins.image_resize.cpu`), None where it is not built.

    The ground floor knows no plugins but this one, and not before an image is resized.
    """
    from .plugins.image_resize import cpu

    return cpu if cpu.why_unavailable() is None else None


def is_image_size(value: object) -> bool:
    """Whether a value can be the side of a network's square input: a whole number from 1 to `MAX_SIZE`."""
    return type(value) is int and 1 <= value <= MAX_SIZE


def are_means(value: Any) -> bool:
    """Whether a value can be the means of three channels: numbers below a million (they are below 1)."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(isinstance(item, (int, float, np.floating)) and -_LARGE < item < _LARGE for item in value)
        and not any(isinstance(item, bool) for item in value)
    )


def are_deviations(value: Any) -> bool:
    """Whether a value can be the standard deviations of three channels: numbers of 1e-6 to 1e6."""
    return are_means(value) and min(value) >= 1 / _LARGE


def is_source(value: object) -> TypeGuard[ImageSource]:
    """Whether a value is of a kind that stands for one image."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, Image.Image, StackedImage)
    return isinstance(value, kinds)


def check_white_level(white: int) -> None:
    """Refuses what no 16-bit image has for white.

    Raises:
        InputError: it is no whole number from `LEAST_WHITE` to `FULL_WHITE`.
    """
    if not is_whole(white, LEAST_WHITE, FULL_WHITE):
        raise InputError(
            f"the white level is {shortened(white)}: expected a whole number from {LEAST_WHITE} to "
            f"{FULL_WHITE}"
        )


def white_level_of(images: Iterable[tuple[int | None, int | None]]) -> int:
    """The white level of a set of images: that of the bits they say they use, else of those that they do use.

    Whole bits, because a camera has a whole number of them, and the next picture may be brighter than these.

    Args:
        images: `LoadedImage.largest` and `LoadedImage.significant_bits` of each.
    """
    said = used = 0
    for largest, bits in images:
        if largest is not None:
            used = max(used, largest.bit_length())
            said = max(said, bits or 0)
    bits = said or used
    return (1 << max(bits, LEAST_WHITE.bit_length())) - 1 if bits else FULL_WHITE


def white_note(white: int) -> str:
    """What is to be said of a white level that was taken from the images."""
    return (
        f"16-bit images use {white.bit_length()} bits, so white is {white} of them and of all that the model "
        "will see; --white-level changes it"
    )


def white_as_asked(asked: int | None, said: int | None) -> str:
    """What is to be said of a white level that was given in place of the model's; empty if it is that.

    Args:
        asked: the level that was given, if any.
        said: the model's; None where it has none, and so means all 16 bits.
    """
    said = FULL_WHITE if said is None else said
    return "" if asked in (None, said) else f"white is {asked} of 16-bit images, as asked, not {said}"


def as_channels(name: str, values: Sequence[float]) -> tuple[float, float, float]:
    """What somebody gave as the channels' statistics.

    Args:
        name: which.
        values: three numbers in any sequence.

    Raises:
        InputError: they are none, or of no sensible magnitude (see `are_means`).
    """
    found = tuple(values) if isinstance(values, Iterable) else ()
    if not are_means(found):
        raise InputError(f"the channels' {name} is {values!r}: expected three finite numbers")
    red, green, blue = map(float, found)
    return red, green, blue


def channels_as_asked(name: str, asked: Sequence[float] | None, said: Sequence[float] | None) -> str:
    """The same of the channels' statistics.

    Args:
        name: which.
        asked: the three that were given, if any.
        said: the model's, if it says them.
    """
    if asked is None or said is None or (given := as_channels(name, asked)) == tuple(said):
        return ""
    return f"the channels' {name} is {given}, as asked, not {tuple(said)}"


def read_image(
    source: ImageSource, max_pixels: int = MAX_PIXELS, white_level: int = FULL_WHITE
) -> NDArray[np.uint8]:
    """The pixels of an image, by the rules at the top of this module.

    Args:
        source: path, encoded bytes, array (see `load_image`), Pillow image or place in a stack.
        max_pixels: larger images are refused before they are decoded.
        white_level: the value of white in 16-bit images.

    Returns:
        (H, W, 3) uint8, RGB, contiguous.

    Raises:
        ImageError: there is no such file, or it cannot be used; the message names the source and the cause.
    """
    return load_image(source, max_pixels, white_level).pixels


def load_image(
    source: ImageSource, max_pixels: int = MAX_PIXELS, white_level: int = FULL_WHITE
) -> LoadedImage:
    """Reads as `read_image` does, and adds notes on what reading had to decide.

    Arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), grey, RGB or RGBA, of uint8, uint16 or bool.
    """
    image = _shown(_raster(source, max_pixels), white_level)
    for tally in _TALLIES if image.notes else ():
        tally.add(describe_source(source), image.notes)
    return image


class PartsSeen:
    """Reads a picture in parts, and keeps what there is to say of all that was read: for one thread.

    Args:
        white_level: as `read_image` takes it.
        zero_is_white, premultiplied, white: what its file says of its samples (`Raster`).
        absent: the value of all channels where nothing was scanned, of which nothing is said.
    """

    def __init__(
        self,
        white_level: int,
        *,
        zero_is_white: bool = False,
        premultiplied: bool = False,
        white: int | None = None,
        absent: int | None = None,
    ) -> None:
        self._white_level = white_level
        self._absent = absent
        self._zero_is_white = zero_is_white
        self._premultiplied = premultiplied
        self._white = white
        self._largest = 0
        self._said: dict[str, None] = {}  # in the order in which it was said first

    def read(self, part: NDArray[Any]) -> NDArray[np.uint8]:
        """What `read_image` gives of a part, of any number of pixels."""
        if part.ndim == 3 and part.shape[2] == 2:  # grey and alpha
            part = part[..., (0, 0, 0, 1)]
        raster = replace(
            _from_array(part, part.size),
            zero_is_white=self._zero_is_white,
            premultiplied=self._premultiplied,
            white=self._white,
        )
        image = _shown(raster, self._white_level)
        self._said |= {note: None for note in image.notes if image.largest is None or note == _TRANSPARENT}
        largest = image.largest or 0
        if largest == self._absent:
            colours = part[..., :3]
            largest = int(colours.max(initial=0, where=(colours != largest).any(-1, keepdims=True)))
        self._largest = max(self._largest, largest)
        return image.pixels

    @property
    def notes(self) -> tuple[str, ...]:
        """One phrase each; a part by itself may be dark."""
        white = self._white_level
        if self._largest > white:
            return (
                *self._said,
                f"16 bit, but values, up to {self._largest}, lie above the white level {white}",
            )
        return (*self._said, *_dim(self._largest, white))


def is_masked(array: object) -> bool:
    """Whether it is a masked array of NumPy's, asked without loading what has them for every other."""
    return (
        isinstance(array, np.ndarray)
        and type(array) is not np.ndarray
        and isinstance(array, np.ma.MaskedArray)
    )


def _raster(source: ImageSource, max_pixels: int) -> Raster:
    if is_masked(source):
        raise ImageError(
            "the array is masked, and there is no colour for what is masked: expected one without"
        )
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return _from_pillow(source, "the image", max_pixels)
    if isinstance(source, bytes):
        if not source:
            raise ImageError("the image's bytes are empty")
        return raster_of_file(io.BytesIO(source), "the image", max_pixels)
    if isinstance(source, StackedImage):
        return _from_array(pixels_in_stack(source), max_pixels, f"'{source}'")
    if isinstance(source, (str, os.PathLike)):
        return _from_path(Path(os.fsdecode(source)), max_pixels)
    raise ImageError(
        f"a {type(source).__name__} is no image: expected a path, the bytes of a file, an array or a Pillow "
        "image"
    )


class Tally:
    """What reading had to decide, of many images: each kind of note with the images that it was said of."""

    def __init__(self) -> None:
        self._images: dict[str, set[str]] = {}
        self._examples: dict[str, str] = {}
        self._lock = Lock()

    def add(self, name: str, notes: Iterable[str]) -> None:
        """Counts the notes on an image; read again, it counts as the same one."""
        with self._lock:
            for note in notes:
                kind = re.sub(r"\d+", "0", note)
                self._images.setdefault(kind, set()).add(name)
                self._examples.setdefault(kind, f"{name}: {note}")

    def lines(self) -> tuple[str, ...]:
        """A line for each kind, those of most images first: how many, and one of them."""
        kinds = sorted(self._images, key=lambda kind: -len(self._images[kind]))
        return tuple(
            f"{len(self._images[kind]):,} image{'s' * (len(self._images[kind]) > 1)}, such as "
            f"{self._examples[kind]}"
            for kind in kinds
        )


_TALLIES: list[Tally] = []


@contextmanager
def noting() -> Iterator[Tally]:
    """Counts the notes on all images that this process reads meanwhile, in whatever thread."""
    tally = Tally()
    _TALLIES.append(tally)
    try:
        yield tally
    finally:
        _TALLIES.remove(tally)


def describe_source(source: ImageSource) -> str:
    """A short name of a source for messages and tables: the path, or what kind of object it is."""
    if isinstance(source, np.ndarray):
        return f"array {'x'.join(map(str, source.shape))}"
    if isinstance(source, Image.Image):
        return f"Pillow image {source.width}x{source.height}"
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)
    if isinstance(source, StackedImage):
        return str(source)
    return f"{len(source)} bytes"


def pixels_in_stack(source: StackedImage) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3): one image of a stack, as it is stored; not to be changed.

    It is read, not mapped: a drive that fails under a mapping ends the process, and here it is an error.

    Raises:
        ImageError: the file cannot be read, is no stack, or holds no such image.
    """
    try:
        status = source.stack.stat()
        stack = _stack(source.stack, (status.st_ino, status.st_mtime_ns))
        if not 0 <= source.index < stack.images:
            raise ImageError(f"'{source}' does not exist: the stack holds {stack.images} images")
        content = stack.read(source.index)
    except FileNotFoundError as error:
        raise ImageError(f"'{source.stack}' does not exist") from error
    except OSError as error:
        _stack.cache_clear()  # a share that was away needs to be opened anew
        raise ImageError(f"'{source.stack}' cannot be read: {reason_of(error)}") from error
    if len(content) < stack.bytes_each:
        raise ImageError(f"'{source}' cannot be read: the file ends before")
    return np.frombuffer(content, np.uint8).reshape(stack.shape)


class _Stack:
    """An open stack of images."""

    def __init__(self, file: BinaryIO, shape: tuple[int, ...], begin: int) -> None:
        self._file, self._begin, self._turn = file, begin, Lock()
        weakref.finalize(self, file.close)  # when others have taken its place among those that are kept
        self.images, self.shape = shape[0], shape[1:]
        self.bytes_each = math.prod(self.shape)

    def read(self, index: int) -> bytes:
        """The bytes of an image, or fewer where the file ends."""
        place = self._begin + index * self.bytes_each
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), self.bytes_each, place)
        with self._turn:  # of Windows
            self._file.seek(place)
            return self._file.read(self.bytes_each)


@lru_cache(maxsize=16)
def _stack(path: Path, identity: tuple[int, int]) -> _Stack:
    """A stack, opened once in each process for each ``identity``, so that one which was replaced is seen.

    Raises:
        OSError: it cannot be read.
        ImageError: it is no stack.
    """
    file = open_file(path)
    try:
        if file.read(len(_ARRAY)) != _ARRAY:  # of which NumPy would say how to load it without safety
            raise ValueError("it does not begin as one")
        stack = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(stack, np.memmap) or stack.dtype != np.uint8 or stack.ndim not in (3, 4):
            raise ValueError("expected (N, H, W) or (N, H, W, 3) uint8")
        if not stack.flags.c_contiguous:
            raise ValueError("it is stored by columns: expected C order, of 'numpy.ascontiguousarray'")
    except NO_ARRAY as error:
        file.close()
        raise ImageError(f"'{path}' is no stack of images: {reason_of(error)}") from error
    except OSError:
        file.close()
        raise
    return _Stack(file, stack.shape, int(stack.offset))


def _from_path(path: Path, max_pixels: int) -> Raster:
    name = f"'{path}'"
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name} is a folder, not an image file")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
            raise ImageError(f"{name} is a device or a pipe, not an image file")
        if status.st_size == 0:
            raise ImageError(f"{name} is empty")
        with open_file(path) as file:
            return raster_of_file(file, name, max_pixels)
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ImageError(f"{name} cannot be read: {reason_of(error)}") from error


def _from_pillow(image: Image.Image, name: str, max_pixels: int) -> Raster:
    check_sides(image.height, image.width, name, max_pixels)
    file: Any = getattr(image, "fp", None)
    raster = None
    if file is not None and getattr(image, "tile", None) and image.format in _FORMATS and not image.tell():
        place = file.tell()  # not decoded yet, so it is read as its file is
        raster = raster_of_file(file, name, max_pixels)
        file.seek(place)
    try:
        image.load()
        pages = getattr(image, "n_frames", 1)
        orientation = image.getexif().get(0x0112, 1)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise ImageError(f"{name} cannot be read: {reason_of(error)}") from error
    if raster is not None:
        return raster
    notes = [f"page {image.tell() + 1} of {pages}"] if pages > 1 else []
    if image.mode == "CMYK":
        notes.append("CMYK, converted without its colour profile")
    return Raster(
        _pillow_samples(image, name),
        premultiplied=image.mode == "RGBa",
        zero_is_white=_is_uninverted_white_zero(image),
        orientation=orientation if orientation in range(1, 9) else 1,
        notes=tuple(notes),
    )


def _pillow_samples(image: Image.Image, name: str) -> NDArray[Any]:
    """(H, W, C) of a decoded Pillow image.

    Raises:
        ImageError: its pixels are of a kind for which no scale to 8 bits is defined.
    """
    if image.mode in _GREY_16 or (image.mode == "I" and image.format == "PNG"):  # "I": Pillow before 11
        return pixels_of(image).astype(np.uint16)
    if image.mode in ("F", "I"):
        kind = "floating-point values" if image.mode == "F" else "signed or 32-bit integers"
        raise ImageError(
            f"{name} holds {kind}: expected 8 or 16 bits a channel: save it as 8 or 16-bit first"
        )
    if image.mode == "LAB":  # some versions of Pillow convert it
        raise ImageError(f"{name} holds L*a*b* colours: expected RGB or grey")
    try:
        if "transparency" in image.info or image.mode == "PA":
            image = image.convert("RGBA")
        elif image.mode not in ("L", "LA", "RGB", "RGBA", "RGBa"):
            image = image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"{name} is of Pillow's mode {image.mode}: expected RGB or grey") from error
    return pixels_of(image)


def _is_uninverted_white_zero(image: Image.Image) -> bool:
    """Whether 0 means white in a 16-bit TIFF; Pillow inverts such images up to 8 bits only."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    return image.mode in _GREY_16 and image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


def _from_array(array: NDArray[Any], max_pixels: int, name: str = "the array") -> Raster:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(
            f"{name} has shape {array.shape}: expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        )
    if array.dtype not in (np.uint8, np.uint16, np.bool_):
        raise ImageError(f"{name} holds {array.dtype}: expected uint8 (0 to 255), uint16 or bool")
    check_sides(array.shape[0], array.shape[1], name, max_pixels)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    return Raster(array.reshape(*array.shape[:2], -1))


def _shown(raster: Raster, white_level: int) -> LoadedImage:
    """A picture's samples as RGB of 8 bits: on white, and turned upright."""
    samples, notes = raster.samples, list(raster.notes)
    height, width, channels = samples.shape
    largest = None
    if samples.dtype == np.uint16 and raster.white is None:
        colours = samples[..., : 1 if channels <= 2 else 3]
        largest = int(colours.max())
        notes += _misfits(colours, largest, white_level, raster.significant_bits)
    pixels = np.empty((height, width, 3), np.uint8)
    translucent = False
    for rows in blocks(height, width):
        shown, alpha = _eight_bits(samples[rows], raster, white_level)
        if alpha is not None and alpha.min() < 255:
            translucent = True
            shown = _on_white(shown, alpha, raster.premultiplied)
        pixels[rows] = shown
    if translucent:
        notes.append(_TRANSPARENT)
    upright = _upright(pixels, raster.orientation)
    return LoadedImage(upright, tuple(notes), largest, raster.significant_bits, raster.orientation != 1)


def _eight_bits(
    samples: NDArray[Any], raster: Raster, white_level: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """The colours (h, W, 1 or 3) of some rows, and their alpha (h, W, 1)."""
    if raster.palette is not None:
        samples = raster.palette[samples[..., 0]]
    count = 1 if samples.shape[2] <= 2 else 3
    colours, alpha = samples[..., :count], samples[..., count:] if samples.shape[2] > count else None
    if samples.dtype == np.uint16:
        colours = _levels(raster.white or white_level)[colours]
        alpha = None if alpha is None else _levels(raster.white or FULL_WHITE)[alpha]
    return 255 - colours if raster.zero_is_white else colours, alpha


@lru_cache(maxsize=16)
def _levels(white: int) -> NDArray[np.uint8]:
    """(65536,): the level of 8 bits that each value of 16 bits becomes."""
    values = np.arange(1 << 16, dtype=np.int64) * 256 // (white + 1)
    return np.minimum(values, 255).astype(np.uint8)


def _misfits(colours: NDArray[np.uint16], largest: int, white: int, bits: int | None) -> list[str]:
    """What is to be said of a 16-bit picture whose values are not those of this white level."""
    notes = []
    if bits is not None and (1 << bits) - 1 != white:
        notes.append(f"16 bit, of which the file says {bits} are used, but the white level is {white}")
    dim = (white + 1) // 4
    rows = list(blocks(*colours.shape[:2]))
    if largest > white:
        above = sum(int(np.count_nonzero(colours[part] > white)) for part in rows)
        notes.append(f"16 bit, but {above} values, up to {largest}, lie above the white level {white}")
    if dark := _dim(largest, white):
        return [*notes, *dark]
    # A scale bar or a hot pixel far above all others must not hide that.
    bright = sum(int(np.count_nonzero(colours[part] >= dim)) for part in rows)
    if not 0 < bright <= _FEW * colours.size:
        return notes
    largest = max(int(np.where(colours[part] < dim, colours[part], 0).max()) for part in rows)
    used = largest.bit_length()
    if largest and not any(np.any((colours[part] >= dim) & (colours[part] < 2 << used)) for part in rows):
        notes.append(
            f"16 bit, but all but {bright} values lie at {largest} or below ({used} bits used): "
            f"{_dark(white)}"
        )
    return notes


def _dim(largest: int, white: int) -> list[str]:
    """What is to be said of a largest value that uses at least two bits less than there are."""
    if not 0 < largest < (white + 1) // 4:
        return []
    used = largest.bit_length()
    return [f"16 bit, but the largest value is {largest} ({used} bits used): {_dark(white)}"]


def _dark(white: int) -> str:
    return f"read as dark, since white is {white}"


def _on_white(colours: NDArray[np.uint8], alpha: NDArray[np.uint8], premultiplied: bool) -> NDArray[np.uint8]:
    """``colour * alpha + white * (1 - alpha)``, rounded; (h, W, 1 or 3) and (h, W, 1) to (h, W, 1 or 3)."""
    if premultiplied:
        return np.minimum(colours.astype(np.uint16) + (255 - alpha), 255).astype(np.uint8)
    wide = alpha.astype(np.uint32)
    return ((colours * wide + 255 * (255 - wide) + 127) // 255).astype(np.uint8)


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """A picture turned as its orientation says (EXIF 2.3, tag 0x0112)."""
    if orientation >= 5:  # rows are columns
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
