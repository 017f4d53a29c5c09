"""Image files to network input: the one definition that training, evaluation and the runtime share.

Dims: ``H`` and ``W`` pixels of the file, ``S`` pixels of the network's square input; colours are R, G, B.

Reading gives ``(H, W, 3)`` uint8, by rules that hold for every file:

- **Formats**: PNG, JPEG, TIFF and BMP, recognised by content. No other decoder is reachable.
- **Orientation**: the EXIF or TIFF orientation is applied.
- **16 bit**: the high byte of each value is kept (``v // 256``), for grey and colour alike: a fixed rule,
  since stretching each image to its own extremes would make a picture's colours depend on its
  brightest speck. Values of a 10, 12 or 14-bit camera stored unscaled come out dark; the notes say so.
- **Grey and palette** images become RGB.
- **Transparency** is shown on white, the background of bright-field microscopy and of image viewers.
- **CMYK** is converted without its colour profile.
- **Several pages**: the first one.
- **Refused**: 32-bit integers and floats (no scale to 8 bits is implied), sides of a single pixel, more
  pixels than `MAX_PIXELS` (read from the header, before anything is decoded), truncated data.

`Transform` is the evaluation transform: the bilinear, antialiased resize of the 8-bit RGB image to ``S x S``
that `msmamba.resize` defines (the aspect ratio is not kept), then ``(v / 255 - mean) / std`` per channel,
computed in float64 and rounded once to float32. The compiled library does both where it is built, with the
same bits.
"""

from __future__ import annotations

import io
import math
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from . import resize as reference
from .errors import ImageError, InputError
from .files import check_is_file
from .resize import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class StackedImage:
    """One image of a stack: a ``.npy`` file of (N, H, W) or (N, H, W, 3) uint8 that is mapped into memory.

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


ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | NDArray[Any] | Image.Image | StackedImage"
"""What an image can be read from: a path, an encoded file's bytes, an array of pixels, a Pillow image, a
place in a stack."""

MAX_PIXELS = 89_000_000
"""Default bound on the pixels of an image (267 MB decoded); just under the one at which Pillow warns."""

MIN_SIDE = 2
"""Smallest side of an image, in pixels: one pixel is a colour, and one row is a line, not a picture."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
"""Suffixes, in lower case, by which image files are found in folders (they are opened by content)."""

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")

# Modes that become RGB by Pillow's own conversion, without a choice to be made.
_PLAIN_MODES = frozenset({"RGB", "RGBX", "1", "L", "P", "YCbCr", "CMYK"})
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa"})
_GREY_16 = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})

# What Pillow's decoders raise on broken files, found by feeding them mutated ones (tests/test_images.py).
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
    ZeroDivisionError,
    MemoryError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class LoadedImage:
    """An image as the network sees it before resizing.

    Attributes:
        pixels: (H, W, 3) uint8, RGB.
        notes: what reading had to decide, one phrase each ("page 1 of 5"); empty for most images.
    """

    pixels: NDArray[np.uint8]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Transform:
    """The evaluation transform, from RGB pixels to network input.

    Attributes:
        size: ``S``, pixels of the square output.
        mean: per channel, of pixels scaled to [0, 1].
        std: per channel, of pixels scaled to [0, 1].

    Raises:
        InputError: a size below 1, or means and deviations that are not three finite numbers (the
            deviations above zero).
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"the image size is {self.size}: expected at least 1 pixel")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise InputError(f"the channels' {name} is {values}: expected three finite numbers")
        if min(self.std) <= 0:
            raise InputError(f"the channels' std is {self.std}: expected numbers above zero")

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


def read_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The pixels of an image, by the rules at the top of this module.

    Args:
        source: path, encoded bytes, array (see `load_image`), Pillow image or place in a stack.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        (H, W, 3) uint8, RGB, contiguous.

    Raises:
        ImageError: there is no such file, or it cannot be used; the message names the source and the cause.
    """
    return load_image(source, max_pixels).pixels


def load_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """As `read_image`, together with notes on what reading had to decide.

    Arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), grey, RGB or RGBA, of uint8, uint16 or bool.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        with _decoding("the image", max_pixels):
            return _from_pillow(source, "the image", max_pixels)
    if isinstance(source, bytes):
        if not source:
            raise ImageError("the image's bytes are empty")
        return _from_file(io.BytesIO(source), "the image", max_pixels)
    if isinstance(source, StackedImage):
        return _from_array(_stacked_pixels(source), max_pixels, f"'{source}'")
    return _from_path(Path(source), max_pixels)


def describe_source(source: ImageSource) -> str:
    """A short name of a source for messages and tables: the path, or what kind of object it is."""
    if isinstance(source, np.ndarray):
        return f"array {'x'.join(map(str, source.shape))}"
    if isinstance(source, Image.Image):
        return f"Pillow image {source.width}x{source.height}"
    if isinstance(source, bytes):
        return f"{len(source)} bytes"
    if isinstance(source, StackedImage):
        return str(source)
    return os.fspath(source)


def _stacked_pixels(source: StackedImage) -> NDArray[np.uint8]:
    try:
        status = source.stack.stat()
    except OSError as error:
        raise ImageError(f"'{source.stack}' does not exist") from error
    stack = _mapped_stack(source.stack, (status.st_ino, status.st_mtime_ns))
    if not 0 <= source.index < len(stack):
        raise ImageError(f"'{source}' does not exist: the stack holds {len(stack)} images")
    return stack[source.index]


@lru_cache(maxsize=16)
def _mapped_stack(path: Path, identity: tuple[int, int]) -> NDArray[np.uint8]:
    """A stack, mapped once in each process for each ``identity``, so that one which was replaced is seen.

    It counts as memory only while the system has room for it.
    """
    try:
        check_is_file(path)
        stack = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ImageError(f"'{path}' does not exist") from error
    except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:
        raise ImageError(f"'{path}' is no stack of images: {_reason(error)}") from error
    if not isinstance(stack, np.ndarray) or stack.dtype != np.uint8 or stack.ndim not in (3, 4):
        raise ImageError(f"'{path}' is no stack of images: expected (N, H, W) or (N, H, W, 3) uint8")
    return stack


def _from_path(path: Path, max_pixels: int) -> LoadedImage:
    name = f"'{path}'"
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name} is a folder, not an image file")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
            raise ImageError(f"{name} is a device or a pipe, not an image file")
        if status.st_size == 0:
            raise ImageError(f"{name} is empty")
        with path.open("rb") as file:
            return _from_file(file, name, max_pixels)
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ImageError(f"{name} cannot be read: {_reason(error)}") from error


def _from_file(file: BinaryIO, name: str, max_pixels: int) -> LoadedImage:
    with _decoding(name, max_pixels), Image.open(file, formats=_FORMATS) as image:
        return _from_pillow(image, name, max_pixels)


@contextmanager
def _decoding(name: str, max_pixels: int) -> Iterator[None]:
    """Translates what Pillow raises while it opens and decodes the image ``name``."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a PNG, JPEG, TIFF or BMP image that can be read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} has too many pixels: expected at most {max_pixels:,}") from error
    except _DECODER_ERRORS as error:
        raise ImageError(f"{name} is truncated or corrupt: {_reason(error)}") from error


def _from_pillow(image: Image.Image, name: str, max_pixels: int) -> LoadedImage:
    _check_sides(image.height, image.width, name, max_pixels)
    notes: list[str] = []
    pages = getattr(image, "n_frames", 1)
    if pages > 1:
        notes.append(f"page 1 of {pages}")
        image.seek(0)
    sixteen_bits = _is_16_bit_grey(image, name)
    inverted = _is_uninverted_white_zero(image)
    upright = ImageOps.exif_transpose(image)
    if sixteen_bits:
        pixels = _high_bytes(np.asarray(upright), notes)
        grey = 255 - pixels if inverted else pixels
        return LoadedImage(np.repeat(grey[:, :, None], 3, axis=2), tuple(notes))
    if upright.mode in _ALPHA_MODES or "transparency" in upright.info:
        return LoadedImage(_on_white(np.asarray(upright.convert("RGBA")), notes), tuple(notes))
    if upright.mode == "CMYK":
        notes.append("CMYK, converted without its colour profile")
    return LoadedImage(np.array(upright.convert("RGB")), tuple(notes))


def _from_array(array: NDArray[Any], max_pixels: int, name: str = "the array") -> LoadedImage:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(
            f"{name} has shape {array.shape}: expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        )
    if array.dtype not in (np.uint8, np.uint16, np.bool_):
        raise ImageError(f"{name} holds {array.dtype}: expected uint8 (0 to 255), uint16 or bool")
    _check_sides(array.shape[0], array.shape[1], name, max_pixels)
    notes: list[str] = []
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = _high_bytes(array, notes)
    array = array.reshape(*array.shape[:2], -1)
    if array.shape[2] == 4:
        return LoadedImage(_on_white(array, notes), tuple(notes))
    return LoadedImage(np.array(np.broadcast_to(array, (*array.shape[:2], 3)), order="C"), tuple(notes))


def _check_sides(height: int, width: int, name: str, max_pixels: int) -> None:
    if min(height, width) < MIN_SIDE:
        raise ImageError(
            f"{name} has {width}x{height} pixels: too small to classify, at least 2x2 are needed"
        )
    if height * width > max_pixels:
        raise ImageError(
            f"{name} has {width}x{height} pixels: expected at most {max_pixels:,} in all: "
            "classify tiles of it instead"
        )


def _is_16_bit_grey(image: Image.Image, name: str) -> bool:
    """Whether the image is grey with 16 unsigned bits.

    Raises:
        ImageError: its pixels are of a kind for which no scale to 8 bits is defined.
    """
    if image.mode in _GREY_16 or (image.mode == "I" and image.format == "PNG"):  # "I": Pillow before 11
        return True
    if image.mode in _PLAIN_MODES or image.mode in _ALPHA_MODES:
        return False
    kind = {"F": "floating-point values", "I": "signed or 32-bit integers"}.get(
        image.mode, f"mode {image.mode}"
    )
    raise ImageError(f"{name} holds {kind}: expected 8 or 16 bits a channel: save it as 8 or 16-bit first")


def _is_uninverted_white_zero(image: Image.Image) -> bool:
    """Whether 0 means white in a 16-bit TIFF; Pillow inverts such images up to 8 bits only."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    return image.mode in _GREY_16 and image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


def _high_bytes(values: NDArray[Any], notes: list[str]) -> NDArray[np.uint8]:
    largest = int(values.max())
    if 0 < largest < 1 << 14:
        notes.append(
            f"16 bit, but the largest value is {largest} ({largest.bit_length()} bits used): "
            "read as dark; scale it to the full range if the model was trained on such images"
        )
    return (values >> 8).astype(np.uint8)


def _on_white(pixels: NDArray[np.uint8], notes: list[str]) -> NDArray[np.uint8]:
    """(H, W, 4) RGBA to (H, W, 3): ``colour * alpha + white * (1 - alpha)``, rounded."""
    alpha = pixels[..., 3:].astype(np.uint32)
    if alpha.min() < 255:
        notes.append("transparent parts shown on white")
    mixed = pixels[..., :3] * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _reason(error: BaseException) -> str:
    """The first line of an exception, without the path that the caller has named already."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
