"""Slides and videos as scanners and cameras write them: what is read is what was written, or refused."""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tifffile

from .lab import Lab, Pixels, Relation, apart, differ

sys.path.append(str(Path(__file__).parents[2] / "tests"))

from scanner_files import Frame, Part, tiles_of, write_czi_of, write_dicom

MANY = 20
"""Files in a situation."""
MICRONS = (0.25, 0.5, 0.23, 0.7, 1.0)


class Expected(NamedTuple):
    """What a file holds: its levels, the finest first, and microns a pixel; without levels it is refused."""

    levels: Sequence[npt.NDArray[Any]] = ()
    microns: float | None = None


def noise(chance: random.Random, height: int, width: int, *more: int, deep: bool = False) -> npt.NDArray[Any]:
    """Pixels in which each place is another."""
    generator = np.random.default_rng(chance.getrandbits(32))
    return generator.integers(
        0, 65536 if deep else 256, (height, width, *more), np.uint16 if deep else np.uint8
    )


def shown(pixels: npt.NDArray[Any]) -> Pixels:
    """Pixels as slides give them: 8 bits, red, green and blue."""
    eight = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    return np.repeat(eight[..., None], 3, 2) if eight.ndim == 2 else eight


def as_written(
    what: str, path: Path, expected: Expected, chance: random.Random, seams: bool = False
) -> Iterator[str]:
    """Says where a slide is not what was written: its levels, their pixels, its scale.

    Args:
        what: the slide.
        path: its file.
        expected: what was written.
        chance: chooses regions.
        seams: whether a row and a column where parts of a coarser level meet may be those beside them.
    """
    from msmamba.errors import ImageError
    from msmamba.microscope.slides import open_slide

    try:
        slide = open_slide(path)
    except ImageError as error:
        if expected.levels:
            yield f"{what}: {error}"
        return
    with closing(slide):
        if not expected.levels:
            yield f"{what}: read, and not refused"
            return
        sides = [(level.height, level.width) for level in slide.levels]
        yield from differ(f"{what}: levels", sides, [level.shape[:2] for level in expected.levels])
        yield from apart(f"{what}: microns", slide.scale.microns or 0, expected.microns or 0, 1e-6)
        for place, level in enumerate(expected.levels[: len(sides)]):
            height, width = level.shape[:2]
            left, top = chance.randrange(width), chance.randrange(height)
            for x, y, w, h in ((0, 0, width, height), (left, top, width - left, height - top)):
                found = slide.read(place, x, y, w, h)
                wrong = int((found != shown(level[y : y + h, x : x + w])).any(2).sum())
                if wrong > (w + h if seams and place else 0):
                    yield f"{what}: {wrong} other pixels of level {place} at {x}, {y}"


def as_dicom(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """DICOM: frames and files in any order, some missing, several for a place, several pictures in one."""
    for number in range(MANY):
        folder = work / str(number)
        folder.mkdir()
        side, sparse, wrong = chance.choice((16, 40, 64)), chance.random() < 0.6, chance.random() * 4
        # OpenSlide interpolates in levels that are not a whole number of times coarser.
        height, width, mpp = 4 * chance.randint(18, 40), 4 * chance.randint(18, 40), chance.choice(MICRONS)
        sizes = [(height // step, width // step) for step in (1, 2, 4)[: chance.randint(1, 3)]]
        if other := wrong < 0.5:
            sizes.append((height // 2, width // 4))
        levels, paths = [], []
        instances = chance.sample(range(1, 9), len(sizes))
        several = chance.randrange(len(sizes)) if 0.5 <= wrong < 1 else None
        for place, (down, across) in enumerate(sizes):
            pixels = noise(chance, down, across, 3)
            frames = tiles_of(pixels, side)
            if sparse:
                frames = [frame for frame in frames if chance.random() < 0.9] or frames
                chance.shuffle(frames)
            white = np.full_like(pixels, 255)
            for frame in frames:
                y, x = frame.row * side, frame.column * side
                part = white[y : y + side, x : x + side]
                part[:] = frame.pixels[: part.shape[0], : part.shape[1]]
            if place == several:
                frames += [
                    Frame(each.row, each.column, 1, 255 - each.pixels) for each in tiles_of(pixels, side)
                ]
            levels.append(white)
            path = folder / f"{chance.randrange(1000)}-{place}.dcm"
            scale = mpp * width / across
            write_dicom(path, pixels, frames, side=side, mpp=scale, number=instances[place], sparse=sparse)
            paths.append(path)
        # Of coarser levels OpenSlide does not tell how many frames they have.
        if several and sparse:
            continue
        expected = Expected() if other or several == 0 else Expected(levels, mpp)
        what = f"{number}: {sizes}, tiles of {side}, sparse {sparse}, several {several}"
        yield from as_written(what, chance.choice(paths), expected, chance)


def as_czi(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """CZI: parts that overlap, scenes, levels of any kind, some of which are not whole, several planes."""
    try:
        import pylibCZIrw  # noqa: F401  # whether it is there
    except ImportError:
        return
    for number in range(MANY):
        kind, deep = chance.choice(((), (3,))), chance.random() < 0.4
        left, top, side = chance.randint(-500, 500), chance.randint(-500, 500), chance.choice((32, 50, 64))
        height, width = chance.randint(64, 200), chance.randint(64, 200)
        step, lacks, several = chance.choice((2, 3, 4)), chance.random() < 0.2, chance.random() < 0.2
        place = {} if chance.random() < 0.5 else {"S": chance.randrange(4)}
        if several:
            place[chance.choice("ZTRIHVB")] = 0
        levels, parts = [noise(chance, height, width, *kind, deep=deep)], []
        if chance.random() < 0.6:
            levels.append(noise(chance, height // step, width // step, *kind, deep=deep))
        for scale, pixels in zip((1, step), levels, strict=False):
            rows, columns = range(0, pixels.shape[0], side), range(0, pixels.shape[1], side)
            for tile, (y, x) in enumerate(product(rows, columns)):
                part = pixels[y : y + side, x : x + side]
                tiles = {**place, "M": tile} if scale == 1 else place
                parts.append(Part(part, left + x * scale, top + y * scale, scale, tiles))
        if scene := "S" in place and chance.random() < 0.5:  # beside the first, and without its level
            beside = noise(chance, side, side, *kind, deep=deep)
            parts.append(Part(beside, left + width + 5 * step, top, 1, {**place, "S": 5, "M": 0}))
            whole = np.full((max(height, side), width + 5 * step + side, *kind), np.iinfo(beside.dtype).max)
            whole = whole.astype(beside.dtype)
            whole[:height, :width], whole[:side, -side:] = levels[0], beside
            levels = [whole]
        if not scene:  # one that lies over others, by its number
            over = noise(chance, 20, 30, *kind, deep=deep)
            parts.append(Part(over, left + 10, top + 10, 1, {**place, "M": 9_999}))
            levels[0][10:30, 10:40] = over
        coarse = [part for part in parts if part.scale > 1]
        if lacks and len(coarse) > 1:
            removed = chance.choice([part for part in coarse if min(part.pixels.shape[:2]) > 4])
            parts = [part for part in parts if part is not removed]
            levels = levels[:1]
        if several:
            name = next(name for name in place if name not in "SM")
            parts.append(parts[0]._replace(place={**parts[0].place, name: 1}))
        chance.shuffle(parts)
        mpp = chance.choice(MICRONS)
        path = write_czi_of(work / f"{number}.czi", parts, mpp)
        expected = Expected() if several else Expected(levels, mpp)
        what = f"{number}: {height} x {width} {kind} {deep}, by {step}, {place}, scene {scene}, lacks {lacks}"
        if not (scene and coarse):
            yield from as_written(what, path, expected, chance, seams=True)


def as_ome(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """OME-TIFF: several pictures of any size and scale, levels below them in any order, and what is none."""
    from msmamba.data.scale import scale_of
    from msmamba.images import load_image

    for number in range(MANY):
        pictures: list[tuple[list[npt.NDArray[Any]], float]] = []
        path, width = work / f"{number}.ome.tif", chance.randint(64, 200)
        with tifffile.TiffWriter(path, ome=True, bigtiff=chance.random() < 0.3) as file:
            for _ in range(chance.randint(1, 3)):
                kind, deep = chance.choice(((), (3,))), chance.random() < 0.4
                down, across = chance.randint(64, 200), chance.choice((width, chance.randint(64, 200)))
                if any(down * across == each[0][0].shape[0] * each[0][0].shape[1] for each in pictures):
                    continue
                mpp, unit = chance.choice(MICRONS), chance.choice((("µm", 1.0), ("nm", 1e3), ("mm", 1e-3)))
                said: dict[str, Any] = {f"PhysicalSize{axis}": mpp * unit[1] for axis in "XY"}
                said |= {f"PhysicalSize{axis}Unit": unit[0] for axis in "XY"}
                levels = [noise(chance, down, across, *kind, deep=deep)]
                levels += [noise(chance, down // n, across // n, *kind, deep=deep) for n in (2, 4)]
                levels = levels[: chance.randint(1, 3)]
                below = [*levels[1:]]
                if chance.random() < 0.3:
                    below.append(noise(chance, down // 2, across // 5, *kind, deep=deep))
                if chance.random() < 0.3:
                    below.append(noise(chance, down // 2, across // 2, *kind, deep=not deep))
                chance.shuffle(below)
                photometric = "rgb" if kind else "minisblack"
                options: dict[str, Any] = {"photometric": photometric, "tile": (chance.choice((16, 64)),) * 2}
                options["compression"] = chance.choice((None, "zlib", "lzw"))
                file.write(levels[0], metadata=said, subifds=len(below), **options)
                for pixels in below:
                    file.write(pixels, metadata=None, subfiletype=1, **options)
                pictures.append((levels, mpp))
        levels, mpp = max(pictures, key=lambda each: each[0][0].shape[0] * each[0][0].shape[1])
        sides = [[level.shape for level in each] for each, _ in pictures]
        yield from as_written(f"{number}: {sides}", path, Expected(levels, mpp), chance)
        yield from differ(
            f"{number}: as a picture", (load_image(path).pixels != shown(levels[0])).sum().item(), 0
        )
        yield from apart(f"{number}: microns of the picture", scale_of(path).microns or 0, mpp, 1e-6)


_ONE = 1 << 16
TURNS: dict[tuple[int, int, int, int], Callable[[Pixels], Pixels]] = {
    (1, 0, 0, 1): lambda pixels: pixels,
    (0, 1, -1, 0): lambda pixels: np.rot90(pixels, 3),
    (-1, 0, 0, -1): lambda pixels: np.rot90(pixels, 2),
    (0, -1, 1, 0): lambda pixels: np.rot90(pixels),
    (-1, 0, 0, 1): lambda pixels: pixels[:, ::-1],
    (1, 0, 0, -1): lambda pixels: pixels[::-1],
    (0, 1, 1, 0): lambda pixels: pixels.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
}
"""Matrices of a track (ISO 14496-12, 8.3.2): where x and y of the stored picture lead, and what is shown."""
MATRICES = {"BT.601": (5, 0.299, 0.114), "BT.709": (1, 0.2126, 0.0722), "BT.2020": (9, 0.2627, 0.0593)}
"""FFmpeg's number of a matrix, and what red and blue weigh in its brightness."""


def as_film(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Videos: colours by the matrix and the range that they say, of odd sides, turned and mirrored."""
    try:
        import av
    except ImportError:
        return
    for number in range(MANY):
        height, width = chance.randint(17, 90), chance.randint(17, 90)
        pixels = noise(chance, -(-height // 8), -(-width // 8), 3).repeat(8, 0).repeat(8, 1)[:height, :width]
        name, full, bits = chance.choice([*MATRICES]), chance.random() < 0.5, chance.choice((8, 10))
        code, red, blue = MATRICES[name]
        high = (1 << bits) - 1
        part = pixels / 255
        grey = part @ (red, 1 - red - blue, blue)
        differences = [(part[..., c] - grey) / (2 * (1 - w)) for c, w in ((2, blue), (0, red))]
        above = 1 << (bits - 8)
        planes = [grey * high if full else (16 + 219 * grey) * above]
        planes += [(each * high if full else 224 * each * above) + (128 * above) for each in differences]
        form = "yuv444p" if bits == 8 else f"yuv444p{bits}le"
        frame = av.VideoFrame(width, height, form)
        kind = np.uint8 if bits == 8 else np.uint16
        for plane, values in zip(frame.planes, planes, strict=True):
            padded = np.zeros((height, plane.line_size // np.dtype(kind).itemsize), kind)
            padded[:, :width] = np.clip(np.rint(values), 0, high)
            plane.update(padded.tobytes())
        frame.colorspace, frame.color_range, frame.pts = code, 2 if full else 1, 0
        path = work / f"{number}.mp4"
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("libx264", rate=10, options={"qp": "0"})  # lossless
            stream.width, stream.height, stream.pix_fmt = width, height, form
            stream.codec_context.colorspace = code
            stream.codec_context.color_range = 2 if full else 1
            container.mux([*stream.encode(frame), *stream.encode()])
        turn = chance.choice([*TURNS])
        across, across_down, down_across, down = (_ONE * each for each in turn)
        upright = struct.pack(">9i", _ONE, 0, 0, 0, _ONE, 0, 0, 0, 1 << 30)
        turned = struct.pack(">9i", across, across_down, 0, down_across, down, 0, 0, 0, 1 << 30)
        content = path.read_bytes()
        at = content.index(upright, content.index(b"tkhd"))
        path.write_bytes(content[:at] + turned + content[at + len(turned) :])
        what = f"{number}: {height} x {width}, {name}, full {full}, {bits} bits, {turn}"
        yield from as_filmed(what, path, TURNS[turn](pixels))


def as_filmed(what: str, path: Path, expected: Pixels) -> Iterator[str]:
    """Says where a video's first picture is another, by more than rounding."""
    from msmamba.microscope.sources import Frame as Picture
    from msmamba.microscope.sources import open_source

    pictures = [each for each in open_source(path, keep_all=True).frames() if each is not None]
    if len(pictures) != 1 or not isinstance(pictures[0], Picture):
        yield f"{what}: {pictures[0] if pictures else 'no picture'}"
        return
    found = pictures[0].pixels
    if found.shape != expected.shape:
        yield f"{what}: {found.shape}, expected {expected.shape}"
        return
    yield from apart(what, found.astype(int), expected.astype(int), 3)


RELATIONS: dict[str, Relation] = {each.__name__: each for each in (as_dicom, as_czi, as_ome, as_film)}
