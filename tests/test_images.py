"""Every kind of image file becomes the same RGB pixels, or one clear line; and the transform, exactly."""

from __future__ import annotations

import errno
import io
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from msmamba import images
from msmamba.errors import ImageError, InputError
from msmamba.images import (
    MAX_PIXELS,
    StackedImage,
    Transform,
    load_image,
    noting,
    read_image,
    white_level_of,
)
from msmamba.resize import resize


def picture(height: int = 5, width: int = 7, channels: int = 3, dtype: Any = np.uint8) -> np.ndarray:
    """Random pixels over the whole range of the type."""
    values = np.random.default_rng(height * width + channels)
    shape = (height, width, channels) if channels > 1 else (height, width)
    return values.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def encoded(image: Image.Image | np.ndarray, file_format: str, **options: Any) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def png(pixels: np.ndarray, colour_type: int) -> bytes:
    """A 16-bit PNG, which Pillow cannot write for colour: type 0 grey, 2 RGB, 4 grey with alpha, 6 RGBA."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(pixels: np.ndarray, photometric: int = 1, sample_format: int = 1, order: str = "<") -> bytes:
    """An uncompressed TIFF of one strip, of the kinds that Pillow cannot write."""
    height, width = pixels.shape[:2]
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    bits_at, data_at = 8, 8 + 2 * samples
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, samples, bits_at), (259, 3, 1, 1)]
    tags += [(262, 3, 1, photometric), (273, 4, 1, data_at), (277, 3, 1, samples), (278, 4, 1, height)]
    tags += [(279, 4, 1, len(data)), (339, 3, 1, sample_format)]
    bits = 8 * pixels.dtype.itemsize
    if samples == 1:
        tags[2] = (258, 3, 1, bits)
    out = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, data_at + len(data))
    out += struct.pack(order + f"{samples}H", *[bits] * samples) + data + struct.pack(order + "H", len(tags))
    for tag, kind, count, value in tags:
        short = kind == 3 and count == 1
        packed = struct.pack(order + "HH", value, 0) if short else struct.pack(order + "I", value)
        out += struct.pack(order + "HHI", tag, kind, count) + packed
    return out + struct.pack(order + "I", 0)


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[:, :, None], 3, axis=2)


def on_white(pixels: np.ndarray) -> np.ndarray:
    colour, alpha = pixels[..., :3].astype(np.float64), pixels[..., 3:] / 255
    return np.rint(colour * alpha + 255 * (1 - alpha)).astype(np.uint8)


def burnt(pixels: np.ndarray) -> np.ndarray:
    """With one hot pixel, of a picture that is large enough for it to be few."""
    large = np.tile(pixels, (3, 3, 1))
    large[4, 5] = 65535
    return large


RGB, GREY, RGBA = picture(), picture(channels=1), picture(channels=4)
GREY16, RGB16 = picture(channels=1, dtype=np.uint16), picture(dtype=np.uint16)
RGBA16 = picture(channels=4, dtype=np.uint16)
PALETTE = Image.fromarray(RGB).quantize(16)

KINDS = {
    "png-rgb": (encoded(RGB, "PNG"), RGB),
    "png-grey": (encoded(GREY, "PNG"), grey(GREY)),
    "png-rgba": (encoded(RGBA, "PNG"), on_white(RGBA)),
    "png-palette": (encoded(PALETTE, "PNG"), np.array(PALETTE.convert("RGB"))),
    "png-bilevel": (encoded(Image.fromarray(GREY > 99), "PNG"), grey(np.where(GREY > 99, 255, 0))),
    "png-grey-16": (png(GREY16, 0), grey(GREY16 >> 8)),
    "png-rgb-16": (png(RGB16, 2), RGB16 >> 8),
    "png-rgba-16": (png(RGBA16, 6), on_white(RGBA16 >> 8)),
    "tiff-rgb": (encoded(RGB, "TIFF"), RGB),
    "tiff-grey": (encoded(GREY, "TIFF"), grey(GREY)),
    "tiff-rgba": (encoded(RGBA, "TIFF"), on_white(RGBA)),
    "tiff-palette": (encoded(PALETTE, "TIFF"), np.array(PALETTE.convert("RGB"))),
    "tiff-lzw": (encoded(RGB, "TIFF", compression="tiff_lzw"), RGB),
    "tiff-grey-16": (tiff(GREY16), grey(GREY16 >> 8)),
    "tiff-grey-16-big-endian": (tiff(GREY16, order=">"), grey(GREY16 >> 8)),
    "tiff-grey-16-white-is-zero": (tiff(GREY16, photometric=0), grey(255 - (GREY16 >> 8))),
    "tiff-grey-white-is-zero": (tiff(GREY, photometric=0), grey(255 - GREY)),
    "tiff-rgb-16": (tiff(RGB16, photometric=2), RGB16 >> 8),
    "tiff-rgb-16-big-endian": (tiff(RGB16, photometric=2, order=">"), RGB16 >> 8),
    "bmp-rgb": (encoded(RGB, "BMP"), RGB),
}


@pytest.mark.parametrize(("content", "expected"), KINDS.values(), ids=KINDS.keys())
def test_every_kind_of_file_gives_its_pixels(content: bytes, expected: np.ndarray, tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(content), expected)
    (tmp_path / "no-suffix").write_bytes(content)
    pixels = read_image(tmp_path / "no-suffix")
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


def test_a_jpeg_gives_what_pillow_decodes() -> None:
    content = encoded(picture(40, 50), "JPEG", quality=90)
    np.testing.assert_array_equal(read_image(content), np.array(Image.open(io.BytesIO(content))))


def test_a_grey_jpeg_is_grey_in_three_channels() -> None:
    pixels = read_image(encoded(picture(40, 50, 1), "JPEG"))
    assert (pixels == pixels[:, :, :1]).all()


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(file_format: str, orientation: int) -> None:
    # What the camera stores so that, turned as the tag says, it shows RGB (EXIF 2.3, tag 0x0112).
    stored = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, 1),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(np.ascontiguousarray(stored), file_format, exif=exif)
    np.testing.assert_array_equal(read_image(content), RGB)


def test_the_orientation_of_a_jpeg_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(encoded(picture(10, 30), "JPEG", exif=exif)).shape == (30, 10, 3)


def test_a_16_bit_grey_tiff_is_turned_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    content = encoded(GREY16[::-1, ::-1].copy(), "TIFF", exif=exif)
    np.testing.assert_array_equal(read_image(content), grey(GREY16 >> 8))


def test_of_pages_the_largest_is_read_the_first_of_several_and_the_notes_say_so() -> None:
    others = [Image.fromarray(picture(7, 5)), Image.fromarray(picture(4, 3))]
    image = load_image(encoded(RGB, "TIFF", save_all=True, append_images=others))
    np.testing.assert_array_equal(image.pixels, RGB)
    assert image.notes == ("page 1 of 3",)
    large = picture(9, 9)
    image = load_image(encoded(RGB, "TIFF", save_all=True, append_images=[Image.fromarray(large)]))
    np.testing.assert_array_equal(image.pixels, large)
    assert image.notes == ("page 2 of 2, the largest",)


@pytest.mark.parametrize(
    ("source", "note"),
    [
        (encoded(RGBA, "PNG"), "transparent parts shown on white"),
        (tiff(GREY16 // 16), "12 bits used"),
        (tiff(GREY16 // 256), "8 bits used"),
        (png(RGB16 // 16, 2), "12 bits used"),
        (tiff(RGB16 // 16, photometric=2), "12 bits used"),
        (png(burnt(GREY16[:, :, None] // 16), 0), "all but 1 values .*12 bits used"),
        (encoded(Image.fromarray(RGB).convert("CMYK"), "TIFF"), "CMYK"),
    ],
    ids=["alpha", "12-in-16-bits", "8-in-16-bits", "png-colour", "tiff-colour", "hot-pixel", "cmyk"],
)
def test_notes_say_what_was_decided(source: bytes, note: str) -> None:
    assert any(re.search(note, line) for line in load_image(source).notes)


@pytest.mark.parametrize("name", ["png-rgb", "png-grey", "png-palette", "tiff-grey-16", "tiff-rgb-16"])
def test_most_images_need_no_note(name: str) -> None:
    assert load_image(KINDS[name][0]).notes == ()


def test_opaque_alpha_needs_no_note() -> None:
    opaque = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    image = load_image(encoded(opaque, "PNG"))
    np.testing.assert_array_equal(image.pixels, RGB)
    assert image.notes == ()


def test_a_palette_with_transparency_is_shown_on_white() -> None:
    content = encoded(PALETTE, "PNG", transparency=3)
    index = np.array(PALETTE)
    expected = np.array(PALETTE.convert("RGB"))
    expected[index == 3] = 255
    np.testing.assert_array_equal(read_image(content), expected)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (RGB, RGB),
        (RGB[:, ::-1], RGB[:, ::-1]),
        (GREY, grey(GREY)),
        (GREY[:, :, None], grey(GREY)),
        (GREY > 99, grey(np.where(GREY > 99, 255, 0))),
        (RGBA, on_white(RGBA)),
        (RGB16, RGB16 >> 8),
        (GREY16, grey(GREY16 >> 8)),
    ],
    ids=["rgb", "reversed-view", "grey", "one-channel", "bool", "rgba", "rgb-16", "grey-16"],
)
def test_arrays_follow_the_same_rules_as_files(array: np.ndarray, expected: np.ndarray) -> None:
    pixels = read_image(array)
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.flags.c_contiguous
    assert not np.shares_memory(pixels, array)


@pytest.mark.parametrize(
    ("mode", "said"), [("LAB", r"holds L\*a\*b\* colours"), ("La", "is of Pillow's mode La")]
)
def test_pillow_images_without_a_meaning_in_rgb_are_refused(mode: str, said: str) -> None:
    with pytest.raises(ImageError, match=rf"the image {said}: expected RGB or grey"):
        read_image(Image.new(mode, (3, 2)))


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA"])
def test_pillow_images_follow_the_same_rules_as_files(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    np.testing.assert_array_equal(read_image(image), read_image(encoded(image, "PNG")))


BAD = {
    "empty": (b"", "empty"),
    "text": (b"Sample;Class\n1;2\n" * 9, "not a PNG, JPEG, TIFF or BMP"),
    "zeros": (bytes(4096), "not a PNG, JPEG, TIFF or BMP"),
    "gif": (encoded(RGB, "GIF"), "not a PNG, JPEG, TIFF or BMP"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a PNG, JPEG, TIFF or BMP"),
    "truncated-png": (encoded(picture(64, 64), "PNG")[:900], "truncated or corrupt"),
    "truncated-jpeg": (encoded(picture(64, 64), "JPEG")[:900], "truncated or corrupt"),
    "truncated-tiff": (tiff(picture(64, 64), 2)[:-64], "PNG, JPEG, TIFF or BMP|truncated or corrupt"),
    "float-tiff": (tiff(GREY.astype(np.float32), sample_format=3), "floating-point values.*8 or 16"),
    "int32-tiff": (tiff(GREY.astype(np.int32), sample_format=2), "signed integers.*8 or 16"),
    "one-pixel": (encoded(picture(1, 1), "PNG"), "1x1 pixels: too small"),
    "one-row": (encoded(picture(1, 9), "PNG"), "9x1 pixels: too small"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_gives_one_clear_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "sample.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ImageError, match=message):
        read_image(content)


def test_a_path_that_is_no_file_gives_one_clear_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in [
        (tmp_path / "missing.png", "does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "device or a pipe"),
        (tmp_path / "pipe" / "x", "cannot be read"),
        ("nul\0byte", "cannot be read"),
    ]:
        with pytest.raises(ImageError, match=message):
            read_image(path)


def test_a_decompression_bomb_is_refused_from_its_header() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = 50_000  # 2.5 billion pixels in 70 bytes
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match=f"at most {MAX_PIXELS:,}"):
        read_image(bomb)


def test_the_bound_on_pixels_is_the_callers() -> None:
    content = encoded(RGB, "PNG")
    read_image(content, max_pixels=RGB[..., 0].size)
    for source in (content, RGB, Image.fromarray(RGB)):
        with pytest.raises(ImageError, match="at most 34 in all"):
            read_image(source, max_pixels=RGB[..., 0].size - 1)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (np.zeros((3, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((4, 4, 3), np.float32), "float32.*uint8"),
        (np.zeros((0, 4, 3), np.uint8), "too small"),
    ],
    ids=["two-channels", "batch", "float", "no-rows"],
)
def test_a_bad_array_gives_one_clear_line(array: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_image(array)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "BMP"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_files_are_read_or_refused_and_nothing_else(file_format: str, data: st.DataObject) -> None:
    content = bytearray(encoded(picture(9, 11), file_format))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = read_image(bytes(content))
    except ImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2:] == (3,)


MEAN, STD = (0.7, 0.5, 0.3), (0.1, 0.2, 0.4)


@pytest.mark.parametrize("shape", [(5, 7), (224, 224), (301, 97), (2, 2)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_the_transform_is_the_resize_and_exact_arithmetic(shape: tuple[int, int]) -> None:
    pixels = picture(*shape)
    result = Transform(224, MEAN, STD)(pixels)
    expected = ((resize(pixels, 224).astype(np.float64) / 255 - MEAN) / STD).astype(np.float32)
    np.testing.assert_array_equal(result, expected.transpose(2, 0, 1))
    assert result.dtype == np.float32
    assert result.flags.c_contiguous


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    pixels = picture(33, 33)
    np.testing.assert_array_equal(Transform(33, MEAN, STD).resize(pixels), pixels)


def test_reduction_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert abs(Transform(8, MEAN, STD).resize(stripes).astype(int) - 128).max() <= 8


@pytest.mark.parametrize(
    ("size", "mean", "std", "message"),
    [
        (0, MEAN, STD, "size is 0"),
        (8, (0.5, 0.5), STD, "mean"),
        (8, MEAN, (0.1, 0.0, 0.1), "above zero"),
        (8, (float("nan"),) * 3, STD, "finite"),
    ],
    ids=["no-size", "two-means", "zero-std", "nan-mean"],
)
def test_a_senseless_transform_is_refused(size: int, mean: Any, std: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Transform(size, mean, std)


def test_a_stack_on_a_drive_that_is_away_is_not_said_to_be_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    np.save(tmp_path / "stack.npy", np.full((3, 4, 4), 7, np.uint8))
    for owner, name in ((Path, "stat"), (images, "open_file"), (images._Stack, "read")):
        with monkeypatch.context() as away:
            away.setattr(owner, name, refuse)
            with pytest.raises(ImageError, match=r"stack\.npy' cannot be read: .*not connected"):
                load_image(StackedImage(tmp_path / "stack.npy", 0))
        assert (load_image(StackedImage(tmp_path / "stack.npy", 0)).pixels == 7).all()
        images._stack.cache_clear()


@pytest.mark.parametrize("shape", [f"({2**70}, 1, 1)", "(True, 2, 2)", "-" * 9000 + "1"])
def test_a_stack_whose_header_makes_no_sense_is_one_line(shape: str, tmp_path: Path) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    content = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(16)
    (tmp_path / "stack.npy").write_bytes(content)
    with pytest.raises(ImageError, match=r"stack\.npy' is no stack of images"):
        load_image(StackedImage(tmp_path / "stack.npy", 0))


def test_a_stack_that_is_cut_while_it_is_read_is_one_line(tmp_path: Path) -> None:
    """Mapped, it would end the process."""
    stack = tmp_path / "stack.npy"
    np.save(stack, np.full((3, 64, 64), 7, np.uint8))
    assert (load_image(StackedImage(stack, 2)).pixels == 7).all()
    times = stack.stat()
    os.truncate(stack, 6000)
    os.utime(stack, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (load_image(StackedImage(stack, 0)).pixels == 7).all()
    with pytest.raises(ImageError, match=r"stack\.npy\[2\]' cannot be read: the file ends before"):
        load_image(StackedImage(stack, 2))


def test_a_stack_by_columns_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "stack.npy", np.zeros((3, 4, 5), np.uint8, order="F"))
    with pytest.raises(ImageError, match=r"stack\.npy' is no stack of images: it is stored by columns"):
        load_image(StackedImage(tmp_path / "stack.npy", 0))


def test_a_stack_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    for value in (1, 2):
        np.save(tmp_path / "new.npy", np.full((3, 4, 4), value, np.uint8))
        (tmp_path / "new.npy").rename(tmp_path / "stack.npy")
        assert (load_image(StackedImage(tmp_path / "stack.npy", 1)).pixels == value).all()


@pytest.mark.parametrize("white", [255, 1023, 4095, 16383, 40000, 65535])
def test_16_bits_become_8_by_the_white_level(white: int) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.minimum(values.astype(np.int64) * 256 // (white + 1), 255).astype(np.uint8)
    for source in (values, png(values, 0), tiff(values), tiff(np.dstack([values] * 3), photometric=2)):
        np.testing.assert_array_equal(read_image(source, white_level=white), grey(expected))
    inverted = read_image(tiff(values, photometric=0), white_level=white)
    np.testing.assert_array_equal(inverted, grey(255 - expected))


def test_the_white_level_is_of_16_bits_alone_and_not_of_alpha() -> None:
    for content in (KINDS["png-rgb"][0], KINDS["tiff-grey"][0]):
        np.testing.assert_array_equal(read_image(content, white_level=4095), read_image(content))
    opaque = np.dstack([RGB16 // 16, np.full(RGB16.shape[:2], 65535, np.uint16)])
    np.testing.assert_array_equal(read_image(opaque, white_level=4095), RGB16 >> 8)


def test_a_picture_that_does_not_fit_the_white_level_is_told() -> None:
    fitting = GREY16 // 16
    assert load_image(fitting, white_level=4095).notes == ()
    (above,) = load_image(np.where(fitting == fitting.max(), 5000, fitting), white_level=4095).notes
    assert "1 values, up to 5000, lie above the white level 4095" in above
    (dark,) = load_image(fitting // 16, white_level=4095).notes
    assert "8 bits used" in dark


def test_a_sparse_picture_of_16_bits_needs_no_note() -> None:
    beads = np.zeros((64, 64), np.uint16)
    beads[::9, ::9] = np.linspace(100, 65535, 64).reshape(8, 8)
    assert load_image(beads).notes == ()


def test_the_bits_that_ome_states_are_known_and_compared() -> None:
    description = b'<OME><Image><Pixels SignificantBits="12"/></Image></OME>'
    file = io.BytesIO()
    Image.fromarray(GREY16 // 32).save(file, "TIFF", description=description.decode())
    image = load_image(file.getvalue(), white_level=2047)
    assert image.significant_bits == 12
    assert image.notes == ("16 bit, of which the file says 12 are used, but the white level is 2047",)
    assert load_image(file.getvalue(), white_level=4095).notes == ()


@pytest.mark.parametrize(
    ("images", "white"),
    [
        ([], 65535),
        ([(None, None)], 65535),
        ([(3000, None), (4015, None), (None, None)], 4095),
        ([(4096, None)], 8191),
        ([(90, None)], 255),
        ([(700, 12), (900, 12)], 4095),
        ([(65535, None)], 65535),
    ],
    ids=["none", "8-bit", "12-bit", "13-bit", "7-bit", "stated", "16-bit"],
)
def test_the_white_level_of_a_set_is_that_of_the_bits_it_uses(images: Any, white: int) -> None:
    assert white_level_of(images) == white


@pytest.mark.parametrize("white", [0, 254, 65536])
def test_a_white_level_that_cannot_be_is_refused(white: int) -> None:
    with pytest.raises(InputError, match="white level is"):
        Transform(8, MEAN, STD, white)


def test_notes_are_counted_by_kind_and_image(tmp_path: Path) -> None:
    for name, divisor in (("a", 16), ("b", 32), ("c", 1)):
        (tmp_path / f"{name}.tif").write_bytes(tiff(GREY16 // divisor))
    with noting() as tally:
        for name in "aabbc":
            load_image(tmp_path / f"{name}.tif")
    load_image(tmp_path / "a.tif")
    (line,) = tally.lines()
    assert line.startswith(f"2 images, such as {tmp_path / 'a.tif'}: 16 bit, but the largest value is")
