"""How much of a change `mmdeploy drift` notices, and how often it takes other pictures for one.

    python benchmarks/drift_changes.py IMAGES [--draws 200]

Halves of the images below a folder are compared with each other, as they are and changed: darker, out of
focus, of another hue, of another white balance. Only scores of pictures take part, so no network is needed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from msmamba.calib.drift import LEAST_D, LEAST_SHIFT, LEVEL, chance, holm, ks_distance, quantile_shift
from msmamba.images import read_image
from msmamba.runtime.drift import PICTURE_SCORES, picture_scores

SIZES = (30, 100, 300)


def _hue(image: Image.Image, degrees: float) -> Image.Image:
    hue, *others = image.convert("HSV").split()
    moved = hue.point(lambda value: (value + round(degrees * 256 / 360)) % 256)
    return Image.merge("HSV", [moved, *others]).convert("RGB")


def _balance(image: Image.Image, blue: float) -> Image.Image:
    *others, last = image.split()
    return Image.merge("RGB", [*others, last.point(lambda value: blue * value)])


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "none": lambda image: image,
    "3 % darker": lambda image: image.point(lambda value: 0.97 * value),
    "10 % darker": lambda image: image.point(lambda value: 0.9 * value),
    "blur of 1 pixel": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "blur of 2 pixels": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "hue by 5 degrees": lambda image: _hue(image, 5),
    "hue by 15 degrees": lambda image: _hue(image, 15),
    "3 % less blue": lambda image: _balance(image, 0.97),
}


def scores_of(pictures: list[Image.Image]) -> dict[str, np.ndarray]:
    rows = [picture_scores(np.asarray(picture)) for picture in pictures]
    return {
        name: np.array([np.nan if row[name] is None else row[name] for row in rows], np.float64)
        for name in PICTURE_SCORES
    }


def changed(known: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> set[str]:
    """The scores that `drift` calls changed, of pictures that count one each."""
    chances, large = {}, set()
    for name in PICTURE_SCORES:
        one, other = (each[name][np.isfinite(each[name])] for each in (found, known))
        if not len(one) or not len(other):
            continue
        distance = ks_distance(one, other)
        chances[name] = chance(distance, len(one), len(other))
        if distance >= LEAST_D and quantile_shift(one, other) >= LEAST_SHIFT[name]:
            large.add(name)
    return holm(chances, LEVEL) & large


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--limit", type=int, default=800, help="images to take, spread evenly")
    options = parser.parse_args()
    paths = sorted(
        path for path in options.images.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".tif")
    )
    places = np.unique(np.linspace(0, len(paths) - 1, options.limit).round().astype(int))
    pictures = [Image.fromarray(read_image(paths[place])) for place in places]
    scores = {name: scores_of([change(each) for each in pictures]) for name, change in CHANGES.items()}
    print(f"{len(pictures)} images; noticed in % of {options.draws} draws, by how many pictures are logged")
    print(f"{'change':20}" + "".join(f"{size:>8}" for size in SIZES) + "   first noticed in")
    for name, found in scores.items():
        shares, by = [], dict.fromkeys(PICTURE_SCORES, 0)
        for size in SIZES:
            if size > len(pictures) // 2:  # the half that is compared has not so many
                shares.append(np.nan)
                continue
            generator, noticed = np.random.default_rng(0), 0
            for _ in range(options.draws):
                order = generator.permutation(len(pictures))
                half = len(order) // 2
                known = {key: values[order[:half]] for key, values in scores["none"].items()}
                drawn = {key: values[order[half : half + size]] for key, values in found.items()}
                hits = changed(known, drawn)
                noticed += bool(hits)
                for hit in hits:
                    by[hit] += 1
            shares.append(100 * noticed / options.draws)
        most = sorted((key for key in by if by[key]), key=lambda key: -by[key])[:2]
        print(
            f"{name:20}"
            + "".join(f"{'–':>8}" if np.isnan(share) else f"{share:8.1f}" for share in shares)
            + f"   {', '.join(most)}"
        )


if __name__ == "__main__":
    main()
