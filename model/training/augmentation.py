"""What is drawn at random for a training image: a crop, a turn, flips, colour and focus.

All of it is drawn from the generator that is passed in. A figure that is off draws nothing, so that a new one
leaves the images of recipes without it as they were.

Dims: H W an image's own size, S side of the square network input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from ...images import resized
from .figures import FigureError

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right (excluded) and bottom (excluded), pixels."""

CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class Augmentation:
    """What is drawn at random for a training image.

    Raises:
        FigureError: ranges that make no sense; all of them are named.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that a crop covers, lowest and highest."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a crop, lowest and highest."""
    horizontal_flip: bool = False
    """Mirror half of the images left to right."""
    vertical_flip: bool = False
    """Mirror half of the images top to bottom."""
    keep_shape: bool = False
    """Take `crop_ratio` relative to the image's own: a crop is then squeezed into the square as much as the
    whole image is for evaluation."""
    rotation: float = 0.0
    """Turn by up to this angle either way, degrees; 180 is any angle."""
    colour: float = 0.0
    """Multiply each channel, and the contrast, by up to this share more or less."""
    focus: float = 0.0
    """Deviation of the widest Gaussian blur, as a share of the side of the input."""

    def __post_init__(self) -> None:
        wrong = [
            (name, f"is {low} to {high}, expected two numbers above 0 in order, at most {most}")
            for name, (low, high), most in (
                ("crop_scale", self.crop_scale, 1.0),
                ("crop_ratio", self.crop_ratio, math.inf),
            )
            if not 0 < low <= high <= most
        ]
        wrong += [
            (name, f"is {value}, expected 0 to {most}")
            for name, value, most in (
                ("rotation", self.rotation, 180),
                ("colour", self.colour, 0.9),
                ("focus", self.focus, 0.1),
            )
            if not 0 <= value <= most
        ]
        if wrong:
            raise FigureError(wrong)

    def crop_box(self, width: int, height: int, generator: np.random.Generator) -> Box:
        """A crop.

        Area and log ratio are uniform; after ten draws that do not fit, the largest central crop of an
        allowed ratio (the rule of torchvision's ``RandomResizedCrop``).
        """
        own = width / height if self.keep_shape else 1.0
        lowest, highest = (ratio * own for ratio in self.crop_ratio)
        for _ in range(CROP_ATTEMPTS):
            area = width * height * generator.uniform(*self.crop_scale)
            ratio = math.exp(generator.uniform(math.log(lowest), math.log(highest)))
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                left = int(generator.integers(width - crop_width, endpoint=True))
                top = int(generator.integers(height - crop_height, endpoint=True))
                return left, top, left + crop_width, top + crop_height
        crop_width = min(width, max(1, round(height * highest)))
        crop_height = min(height, max(1, round(width / lowest)))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
        return left, top, left + crop_width, top + crop_height

    def __call__(self, pixels: Pixels, size: int, generator: np.random.Generator) -> Pixels:
        """An RGB image as training sees it: (H, W, 3) to (size, size, 3).

        The resize is the runtime's; at a crop's edges it sees the pixels around it, as it would in the image.
        """
        height, width, _ = pixels.shape
        image = resized(pixels, size, self.crop_box(width, height, generator))
        if self.horizontal_flip and generator.random() < 0.5:
            image = image[:, ::-1]
        if self.vertical_flip and generator.random() < 0.5:
            image = image[::-1]
        if self.rotation:
            image = turned(image, generator.uniform(-self.rotation, self.rotation))
        if self.colour:
            image = recoloured(image, generator.uniform(1 - self.colour, 1 + self.colour, 4))
        if self.focus:
            image = blurred(image, generator.uniform(0, self.focus) * size)
        return np.ascontiguousarray(image)


def turned(image: Pixels, angle: float) -> Pixels:
    """A square RGB image turned about its centre, anticlockwise, by an angle in degrees.

    What comes in at the corners is its mirror image beyond the edges.
    """
    size = len(image)
    reach = abs(math.cos(math.radians(angle))) + abs(math.sin(math.radians(angle)))  # 1 to the root of 2
    margin = math.ceil(size * (reach - 1) / 2) + 1
    wider = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    whole = Image.fromarray(wider).rotate(angle, Image.Resampling.BICUBIC)
    return np.asarray(whole)[margin : margin + size, margin : margin + size]


def recoloured(image: Pixels, factors: npt.NDArray[np.float64]) -> Pixels:
    """An RGB image with its channels multiplied by the first three factors, and its contrast by the fourth.

    Contrast is the distance from the mean of all channels.
    """
    mean = image.mean()
    contrasted = (np.arange(256) - mean) * factors[3] + mean
    tables = (factors[:3, None] * contrasted).round().clip(0, 255).astype(np.uint8)  # (3, 256)
    return np.stack([table[image[..., channel]] for channel, table in enumerate(tables)], axis=-1)


def blurred(image: Pixels, deviation: float) -> Pixels:
    """An RGB image out of focus: a Gaussian of this standard deviation, pixels."""
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(image)).filter(ImageFilter.GaussianBlur(deviation))
    )
