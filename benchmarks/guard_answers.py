"""What a bundle says of images for the benchmarks of the guard: logits, features and the pictures' measures.

Of the `val` and `test` images of a labelled folder, of folders of images unlike them, and of the `test`
images after a blur or a turn of the hue. The network takes all the time, so answers are kept in a file, which
says of what they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from msmamba.data.folders import read_evaluation_folder
from msmamba.data.samples import classes_of
from msmamba.files import sha256_of
from msmamba.images import read_image
from msmamba.runtime import Session, open_session
from msmamba.runtime.infer import find_images
from msmamba.runtime.quality import Quality, quality_of

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
Change = Callable[[Pixels], Pixels]

BLURS, TURNS = (1, 2, 4, 8), (10, 30, 90)
"""Standard deviations, in pixels of a picture that is 360 pixels wide; degrees of the colour circle."""

_MEASURES = [field.name for field in fields(Quality)]
_OF = "of"  # the entry of a file that says what its answers are of


class Answers(NamedTuple):
    """Of N images."""

    logits: Floats
    features: Floats
    """(N, features)."""
    measures: Floats
    """(N, measures): a `Quality` in its own order, the background as three; NaN where a picture has none."""
    truth: npt.NDArray[np.int64]
    """-1 where no class of the network is true."""
    names: npt.NDArray[np.str_]

    def of(self, chosen: npt.NDArray[Any]) -> Answers:
        """Some of the images."""
        return Answers._make(part[chosen] for part in self)

    @property
    def qualities(self) -> list[Quality]:
        """The measures as the guard takes them."""
        return [_quality_of(row) for row in self.measures.tolist()]


def _row_of(quality: Quality) -> list[float]:
    """A picture's measures side by side; NaN for None."""
    return np.hstack([np.nan if value is None else value for value in astuple(quality)]).tolist()


def _quality_of(row: list[float]) -> Quality:
    """`_row_of` undone."""
    left: list[Any] = [None if np.isnan(value) else value for value in row]
    colour = _MEASURES.index("background")
    left[colour : colour + 3] = [tuple(left[colour : colour + 3])]
    return Quality(*left)


def blurred(radius: float) -> Change:
    """A Gaussian blur, its deviation in pixels of a picture 360 pixels wide."""

    def change(pixels: Pixels) -> Pixels:
        blur = ImageFilter.GaussianBlur(radius * pixels.shape[1] / 360)
        return np.asarray(Image.fromarray(pixels).filter(blur))

    return change


def turned(degrees: float) -> Change:
    """The hue turned, as another stain or a wrong white balance turns it."""

    def change(pixels: Pixels) -> Pixels:
        values = np.array(Image.fromarray(pixels).convert("HSV"))
        values[..., 0] += np.uint8(round(degrees / 360 * 256))  # it wraps around, as hue does
        return np.asarray(Image.fromarray(values, "HSV").convert("RGB"))

    return change


def answers(session: Session, images: list[Path], truth: npt.NDArray[Any], change: Change) -> Answers:
    """The answers on images that are changed before they are transformed."""
    assert session.transform is not None
    logits, features, measures = [], [], []
    for path in images:
        pixels = change(read_image(path, white_level=session.transform.white_level))
        found, taken = session.run_with_features(session.transform(pixels)[None])
        logits.append(found[0])
        features.append(found[0] if taken is None else taken[0])
        measures.append(_row_of(quality_of(pixels)))
    return Answers(
        np.array(logits, np.float64),
        np.array(features, np.float64),
        np.array(measures, np.float64),
        truth,
        np.array([path.name for path in images]),
    )


def _changes() -> dict[str, Change]:
    blurs = {f"blur {radius}": blurred(radius) for radius in BLURS}
    return blurs | {f"hue {degrees}°": turned(degrees) for degrees in TURNS}


def _all(bundle: str, data: str, unlike: Mapping[str, str], changed: bool) -> Iterator[tuple[str, Answers]]:
    with open_session(bundle, guard=False) as session:
        for split in ("val", "test"):
            ((_, samples),) = read_evaluation_folder(data, split, default=split).splits.items()
            paths, truth = [Path(str(sample.source)) for sample in samples], classes_of(samples)
            yield split, answers(session, paths, truth, lambda pixels: pixels)
        for name, folder in unlike.items():
            found = find_images([folder]).images
            yield name, answers(session, found, np.full(len(found), -1), lambda pixels: pixels)
        for name, change in _changes().items() if changed else ():
            yield name, answers(session, paths, truth, change)


def all_answers(
    cache: Path | None, bundle: str, data: str, unlike: Mapping[str, str], *, changed: bool = False
) -> dict[str, Answers]:
    """`val`, `test` and what is unlike, by name, from the file where there is one.

    The file may have more than is asked for; one of another network or other images is refused.

    Args:
        cache: a ``.npz`` file, written where it does not exist; None for none.
        bundle: the network.
        data: a labelled folder with splits.
        unlike: folders of other images, by name.
        changed: whether the changed `test` images are wanted, too.
    """
    of = {"network": sha256_of(Path(bundle) / "model.onnx"), "data": str(Path(data).resolve())}
    of |= {"measures": ", ".join(_MEASURES)}
    of |= {f"unlike {name}": str(Path(folder).resolve()) for name, folder in unlike.items()}
    if changed:
        of |= {"changes": json.dumps([BLURS, TURNS])}
    if cache is not None and cache.exists():
        with np.load(cache) as content:
            said = json.loads(str(content[_OF])) if _OF in content else {}
            if other := [name for name, value in of.items() if said.get(name) != value]:
                raise SystemExit(f"{cache} was made of another {', '.join(other)}: name another file")
            names = ("val", "test", *unlike, *(_changes() if changed else ()))
            return {
                name: Answers._make(content[f"{name}/{part}"] for part in Answers._fields) for name in names
            }
    found = dict(_all(bundle, data, unlike, changed))
    if cache is not None:
        parts = {
            f"{name}/{part}": getattr(each, part) for name, each in found.items() for part in each._fields
        }
        np.savez(cache, allow_pickle=False, **{**parts, _OF: np.array(json.dumps(of))})
    return found
