"""The resize by its definition: values by hand, checksums that hold everywhere, and Pillow's two passes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image
from resize_cases import CASES, picture

from msmamba import images
from msmamba.errors import InputError
from msmamba.resize import Box, coefficients, columns_first, resize

# SHA-256 of the squares of `CASES`, first 16 digits: those of Pillow 13.0 and, where the rows come first, of
# 10.3 to 12.3 too.
GOLDEN = {
    "one-pixel": "2c8d07cd986f58eb",
    "one-pixel-enlarged": "46b0d061bc674ded",
    "one-row": "6a5d12480ce70c63",
    "one-column": "bea3203c784a5be7",
    "to-one": "c32819db79d4ee8e",
    "odd": "807e552aa4856193",
    "narrower-than-a-vector": "500204c8c66a8197",
    "enlarged": "48ce8069c7056ac5",
    "wide": "1a7845c6b1f33aff",
    "tall": "5540f6d514ba2ad7",
    "wider-and-lower": "927713ff05e0f931",
    "same": "90608c234bde06ba",
    "same-width": "46572f55578cf369",
    "same-height": "1ce10ab0d8bc6c84",
    "just-rows-first": "fd5d711115c48a59",
    "just-columns-first": "4828fcffb4c18d87",
    "landscape": "a091d8d9983e4f8f",
    "on-threads": "9828024b955c5dfa",
    "on-threads-tall": "7ec95c4e2d1f6234",
    "part": "3a140112c4b1feeb",
    "part-enlarged": "eea1de9f08dfb79c",
    "part-of-tall": "3cc755d7cc3562aa",
    "part-of-its-size": "702bbb900cfb7768",
}


def pillow_in_two_passes(pixels: np.ndarray, size: int, box: Box | None) -> np.ndarray:
    """Pillow along one direction, then along the other, which every version answers alike."""
    height, width, _ = pixels.shape
    left, top, right, bottom = box or (0, 0, width, height)
    image, bilinear = Image.fromarray(pixels), Image.Resampling.BILINEAR
    if columns_first(height, width, size):
        image = image.resize((width, size), bilinear, (0, top, width, bottom))
        return np.asarray(image.resize((size, size), bilinear, (left, 0, right, size)))
    image = image.resize((size, height), bilinear, (left, 0, right, height))
    return np.asarray(image.resize((size, size), bilinear, (0, top, size, bottom)))


@pytest.mark.parametrize("name", CASES)
def test_the_bits_are_the_same_everywhere(name: str) -> None:
    height, width, size, box = CASES[name]
    resized = resize(picture(height, width), size, box)
    assert (resized.shape, resized.dtype, resized.flags.c_contiguous) == ((size, size, 3), np.uint8, True)
    assert hashlib.sha256(resized.tobytes()).hexdigest()[:16] == GOLDEN[name]


@pytest.mark.parametrize("name", CASES)
def test_each_pass_is_pillows(name: str) -> None:
    height, width, size, box = CASES[name]
    pixels = picture(height, width)
    np.testing.assert_array_equal(resize(pixels, size, box), pillow_in_two_passes(pixels, size, box))


def test_coefficients_by_hand() -> None:
    # Seven pixels to two: the weight falls from 14 at the centre of a value, in quarters of a pixel.
    first, factors = coefficients(7, 0, 7, 2, 0)
    weights = np.array([14 - abs(2 * (2 * x + 1) - 7) for x in range(5)])
    assert first == 0
    np.testing.assert_array_equal(factors, np.floor(weights * 2**22 / weights.sum() + 0.5))
    first, factors = coefficients(7, 0, 7, 2, 1)
    assert (first, factors.tolist()) == (2, coefficients(7, 0, 7, 2, 0)[1][::-1].tolist())


def test_halves_are_rounded_up() -> None:
    line = np.array([[[0, 1, 254], [1, 2, 255]]], np.uint8)
    assert resize(line, 1).tolist() == [[[1, 2, 255]]]


def test_a_part_of_its_own_size_is_cut_out() -> None:
    pixels = picture(40, 50)
    np.testing.assert_array_equal(resize(pixels, 16, (7, 5, 23, 21)), pixels[5:21, 7:23])


@pytest.mark.parametrize(
    ("height", "width", "first"),
    [
        (480, 640, False),
        (640, 480, False),
        (224, 3, False),
        (225, 3, True),
        (225, 224, True),
        (1000, 612, False),
        (1001, 612, True),
    ],
)
def test_columns_come_first_where_the_height_shrinks_much_more(height: int, width: int, first: bool) -> None:
    assert columns_first(height, width, 224) is first


@pytest.mark.parametrize("native", [True, False], ids=["as-installed", "reference"])
@pytest.mark.parametrize(
    ("pixels", "size", "box", "message"),
    [
        (np.zeros((4, 4), np.uint8), 2, None, r"picture is uint8 \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), 2, None, r"\(4, 4, 4\)"),
        (np.zeros((4, 0, 3), np.uint8), 2, None, r"\(4, 0, 3\)"),
        (np.zeros((4, 4, 3), np.float32), 2, None, "picture is float32"),
        (np.zeros((4, 4, 3), np.uint8), 0, None, "resized to 0 pixels"),
        (np.zeros((4, 5, 3), np.uint8), 2, (0, 0, 6, 4), "box is 0 to 6 and 0 to 4: expected a part of 5x4"),
        (np.zeros((4, 5, 3), np.uint8), 2, (2, 0, 2, 4), "box is 2 to 2"),
        (np.zeros((4, 5, 3), np.uint8), 2, (0, -1, 5, 4), "box is 0 to 5 and -1 to 4"),
    ],
    ids=["grey", "rgba", "empty", "float", "no-size", "too-wide", "no-width", "above"],
)
def test_what_is_no_picture_or_part_is_refused(
    pixels: np.ndarray, size: int, box: Box | None, message: str, native: bool
) -> None:
    with pytest.raises(InputError, match=message):
        (images.resized if native else resize)(pixels, size, box)


def test_images_answer_alike_with_and_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = images.Transform(33, (0.7, 0.5, 0.3), (0.1, 0.2, 0.4))
    pixels = picture(90, 41)
    as_installed = transform(pixels), images.resized(pixels, 33, (3, 4, 30, 80))
    monkeypatch.setattr(images, "native_resize", lambda: None)
    for expected, found in zip(
        as_installed, (transform(pixels), images.resized(pixels, 33, (3, 4, 30, 80))), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
