"""What it does to colours and answers that a video without a word on its YCbCr matrix is read as BT.601.

Each image is made YCbCr 4:2:0 of 8 bits, by BT.709 as the encoders of many HD cameras do, and read as a
frame of `mmdeploy live` that says nothing; and made so by BT.601, which costs the subsampling and rounding
alone. The figures stand in docs/live.md.

    python benchmarks/untagged_video.py BUNDLE DATA [--split test]
"""

from __future__ import annotations

import argparse

import av
import numpy as np
from av.video.reformatter import Colorspace

import msmamba
from msmamba.data.folders import match_labels, read_evaluation_folder
from msmamba.images import load_image
from msmamba.microscope.sources.frame import Frame
from msmamba.microscope.sources.video import _frame

MATRICES = {"BT.601": Colorspace.ITU601, "BT.709": Colorspace.ITU709}
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = _TO_XYZ.sum(axis=1)


def as_read(pixels: np.ndarray, matrix: Colorspace) -> np.ndarray:
    """(H, W, 3) uint8, of even sides, made YCbCr and read again."""
    made = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
        format="yuv420p", dst_colorspace=matrix
    )
    found = _frame(av.VideoFrame.from_ndarray(made.to_ndarray(), format="yuv420p"), "", 0, 0, 255)
    assert isinstance(found, Frame)
    return found.pixels


def lab(pixels: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of sRGB, uint8."""
    values = pixels / 255
    linear = np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)
    xyz = linear @ _TO_XYZ.T / _WHITE
    roots = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(roots, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def main() -> None:
    """Prints a line for each matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("data")
    parser.add_argument("--split", default=None)
    options = parser.parse_args()
    with msmamba.open(options.bundle, guard=False) as session:
        assert session.labels is not None
        folder = match_labels(read_evaluation_folder(options.data, options.split), session.labels)
        ((_, samples),) = folder.splits.items()
        pictures = [load_image(sample.source).pixels for sample in samples]
        pictures = [each[: len(each) // 2 * 2, : each.shape[1] // 2 * 2] for each in pictures]
        truth = np.array([sample.label for sample in samples])
        as_they_are = session.classify(pictures)
        before = np.array([each.probabilities for each in as_they_are])
        print(f"as they are: {len(truth)} images, {100 * (before.argmax(1) == truth).mean():.2f} % right")
        for name, matrix in MATRICES.items():
            read = [as_read(each, matrix) for each in pictures]
            levels = [
                np.abs(one.astype(int) - other).mean() for one, other in zip(read, pictures, strict=True)
            ]
            apart = np.concatenate(
                [
                    np.linalg.norm(lab(one) - lab(other), axis=-1).ravel()
                    for one, other in zip(read, pictures, strict=True)
                ]
            )
            after = np.array([each.probabilities for each in session.classify(read)])
            moved = np.abs(after - before).max(axis=1)
            others = (after.argmax(1) != before.argmax(1)).sum()
            print(
                f"made by {name}: {np.mean(levels):.2f} levels apart, delta E {np.median(apart):.1f} in the "
                f"median, {np.quantile(apart, 0.95):.1f} of 5 % and more; {others} other labels, "
                f"{100 * (after.argmax(1) == truth).mean():.2f} % right, probabilities moved by "
                f"{np.median(moved):.4f} in the median, {moved.max():.3f} at most"
            )


if __name__ == "__main__":
    main()
