"""The same pixels in other files, under other names, in other folders: the same answer."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

from msmamba.text import share_as_text

from .lab import Lab, Pixels, Relation, apart, at_home, differ, save

_NAMES = (
    "a b",
    "ä",
    "İ",
    "x" * 100,
    "-o",
    "--help",
    "a,b",
    "a;b",
    "[1]",
    "*",
    "ﬁ",
    "日本",
    "a'b",
    'a"b',
    "%s",
    "#",
    "~",
)


def same_pixels(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """A picture in every container that keeps its pixels."""
    pixels = lab.picture(chance)
    expected = lab.session.classify([pixels])[0].probabilities
    sources: dict[str, Any] = {
        "array of 16 bits": pixels.astype(np.uint16) << 8 | chance.randrange(256),
        "array of RGBA": np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
        "array in Fortran's order": np.asfortranarray(pixels),
        "array turned back": pixels[::-1, ::-1].copy()[::-1, ::-1],
        "Pillow": Image.fromarray(pixels),
        **containers(pixels, chance, work),
    }
    for name, source in sources.items():
        said = lab.session.classify([source])[0]
        yield from differ(name, said.probabilities, expected)
    rows = lab.inferred(work)
    for row in rows:
        found = {each["label"]: each["probability"] for each in row["top"]}
        yield from differ(row["image"], [found[label] for label in lab.session.labels], list(expected))


def containers(pixels: Pixels, chance: random.Random, work: Path) -> dict[str, Path]:
    """Files of the same pixels, by what they are."""
    height, width, _ = pixels.shape
    image = Image.fromarray(pixels)
    profile = ImageCms.ImageCmsProfile(
        ImageCms.createProfile("LAB" if chance.random() < 0.3 else "sRGB")
    ).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * chance.randrange(100))
    exif = Image.Exif()
    turned = chance.randrange(2, 9)
    exif[0x0112] = turned
    made: dict[str, Path] = {}

    def keep(name: str, **options: Any) -> None:
        picture = options.pop("picture", image)
        made[name] = work / name
        picture.save(made[name], **options)

    keep("plain.png")
    keep("quick.png", compress_level=chance.randrange(10))
    keep("profile.png", icc_profile=profile)
    keep("text.png", pnginfo=text, dpi=(72, 300))
    keep("alpha.png", picture=Image.fromarray(np.dstack([pixels, np.full((height, width), 255, np.uint8)])))
    keep("turned.png", picture=Image.fromarray(stored(pixels, turned)), exif=exif)
    keep("plain.bmp")
    keep("profile.tif", icc_profile=profile, compression="tiff_lzw")
    keep("turned.tif", picture=Image.fromarray(stored(pixels, turned)), tiffinfo={0x0112: turned})
    small = Image.fromarray(pixels[: height // 2 + 1, : width // 2 + 1])
    keep("pages.tif", save_all=True, append_images=[small])
    keep("second.tif", picture=small, save_all=True, append_images=[image])
    made["wrong suffix.jpg"] = Path(save(pixels, work / "wrong suffix.jpg", format="PNG"))
    inks = 255 - pixels
    keep("inks.tif", picture=Image.fromarray(np.dstack([inks, np.zeros((height, width), np.uint8)]), "CMYK"))
    for compression in (None, "lzw", "zlib", "packbits", "zstd", "lzma"):
        for sixteen in (False, True):
            samples = pixels if not sixteen else pixels.astype(np.uint16) << 8 | chance.randrange(256)
            options: dict[str, Any] = {
                "compression": compression,
                "photometric": "rgb",
                "byteorder": chance.choice("<>"),
                "bigtiff": chance.random() < 0.5,
                "planarconfig": (planar := chance.choice(("contig", "separate"))),
                "predictor": compression not in (None, "packbits") and chance.random() < 0.5,
                "metadata": None,
            }
            layout = chance.choice(("strips", "tiles", "one"))
            if layout == "strips":
                options["rowsperstrip"] = chance.randrange(1, height + 5)
            elif layout == "tiles":
                options["tile"] = (16 * chance.randrange(1, 4), 16 * chance.randrange(1, 4))
            if planar == "separate":
                samples = np.ascontiguousarray(np.moveaxis(samples, -1, 0))
            name = f"{compression}-{16 if sixteen else 8}-{planar}-{layout}.tif"
            tifffile.imwrite(work / name, samples, **options)
            made[name] = work / name
    return made


def stored(pixels: Pixels, orientation: int) -> Pixels:
    """The pixels as they are stored by an orientation of EXIF's, for the picture to be as it is."""
    back = {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, 1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }
    return np.ascontiguousarray(back[orientation])


def same_grey(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Grey, by itself, as a palette, with alpha, of few bits, from white, or in three equal channels."""
    grey = lab.picture(chance)[..., 0]
    few = grey >> 6  # of 2 bits
    for levels, kinds in ((grey, "8"), (np.rint(few * 85.0).astype(np.uint8), "2")):
        pixels = np.repeat(levels[..., None], 3, axis=2)
        expected = lab.session.classify([pixels])[0].probabilities
        image = Image.fromarray(levels)
        palette = Image.fromarray(levels).convert("P")
        palette.putpalette([value for value in range(256) for _ in range(3)])
        folder = work / kinds
        folder.mkdir()
        image.save(folder / "grey.png")
        image.save(folder / "grey.tif")
        image.save(folder / "grey.bmp")
        image.convert("LA").save(folder / "alpha.png")
        palette.save(folder / "palette.png")
        palette.save(folder / "palette.bmp")
        palette.save(folder / "palette.tif")
        Image.fromarray(levels.astype(np.uint16) << 8).save(folder / "sixteen.png")
        tifffile.imwrite(folder / "white.tif", 255 - levels, photometric="miniswhite", metadata=None)
        if kinds == "2":
            tifffile.imwrite(
                folder / "two.tif", few, bitspersample=2, photometric="minisblack", metadata=None
            )
        sources: dict[str, Any] = {each.name: each for each in sorted(folder.iterdir())}
        sources |= {"(H, W)": levels, "(H, W, 1)": levels[..., None], "16": levels.astype(np.uint16) << 8}
        for name, source in sources.items():
            yield from differ(
                f"{kinds} bits, {name}", lab.session.classify([source])[0].probabilities, expected
            )
    bits = grey > 127
    expected = lab.session.classify(
        [np.repeat(np.where(bits, 255, 0).astype(np.uint8)[..., None], 3, axis=2)]
    )
    save(bits, work / "bits.png")
    save(bits, work / "bits.tif")
    save(bits, work / "bits.bmp")
    for source in (bits, work / "bits.png", work / "bits.tif", work / "bits.bmp"):
        yield from differ("bits", lab.session.classify([source])[0].probabilities, expected[0].probabilities)


def same_white(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Values of fewer bits by their white level, and the same moved up to sixteen."""
    bits = chance.randrange(9, 16)
    noise = np.random.default_rng(chance.getrandbits(32))
    fine = noise.integers(0, 1 << (bits - 8), (pixels := lab.picture(chance)).shape)
    values = (pixels.astype(np.uint16) << (bits - 8)) | fine.astype(np.uint16)
    tifffile.imwrite(work / "low.tif", values, photometric="rgb", metadata=None)
    tifffile.imwrite(work / "high.tif", values << (16 - bits), photometric="rgb", metadata=None)
    Image.fromarray(pixels).save(work / "eight.png")
    (low,) = lab.inferred(work / "low.tif", "--white-level", (1 << bits) - 1)
    (high,) = lab.inferred(work / "high.tif")
    (eight,) = lab.inferred(work / "eight.png")
    yield from differ(f"{bits} bits by their white level", low["top"], eight["top"])
    yield from differ(f"{bits} bits moved up", high["top"], eight["top"])


def same_alpha(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Transparency is white below: as alpha, as one colour, or by a palette."""
    pixels = lab.picture(chance)
    pixels[pixels.max(axis=2) == pixels.min(axis=2)] ^= 1  # none is the key colour but where it is meant
    clear = np.random.default_rng(chance.getrandbits(32)).random(pixels.shape[:2]) < 0.2
    shown = np.where(clear[..., None], 255, pixels).astype(np.uint8)
    expected = lab.session.classify([shown])[0].probabilities
    alpha = np.where(clear, 0, 255).astype(np.uint8)
    save(np.dstack([pixels, alpha]), work / "alpha.png")
    save(np.dstack([pixels, alpha]), work / "alpha.tif", compression="tiff_lzw")
    keyed = np.where(clear[..., None], (7, 7, 7), pixels).astype(np.uint8)
    Image.fromarray(keyed).save(work / "key.png", transparency=(7, 7, 7))
    wide = np.dstack([pixels, alpha]).astype(np.uint16) * 257
    tifffile.imwrite(work / "wide.tif", wide, photometric="rgb", extrasamples=["unassalpha"], metadata=None)
    for name in ("alpha.png", "alpha.tif", "key.png", "wide.tif"):
        if name == "key.png" and (pixels[~clear] == 7).all(axis=1).any():
            continue
        yield from differ(name, lab.session.classify([work / name])[0].probabilities, expected)
    yield from differ("array", lab.session.classify([np.dstack([pixels, alpha])])[0].probabilities, expected)


def same_names(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """Other names, orders, links and folders: each picture keeps its answer, and comes once."""
    plain = lab.pictures(chance, work / "plain", 5)
    expected = {row["image"]: row["top"] for row in lab.inferred(*plain)}
    by_content = [expected[str(path)] for path in plain]
    moved = work / "moved" / chance.choice(_NAMES) / "deep"
    moved.mkdir(parents=True)
    names: dict[str, list[Any]] = {}
    for path, top in zip(plain, by_content, strict=True):
        name = moved / f"{chance.choice(_NAMES)}{path.stem}{chance.choice(('.png', '.PNG', '.Png'))}"
        how = chance.randrange(3)
        if how == 0:
            os.link(path, name)
        elif how == 1:
            name.write_bytes(path.read_bytes())
        else:
            name.symlink_to(path)
        names[str(name)] = top
    found = {row["image"]: row["top"] for row in lab.inferred(work / "moved")}
    yield from differ("moved", found, names)
    given = [*map(str, plain), str(work / "plain"), f"{work / 'plain'}/", f"{work}/plain/../plain/*.png"]
    chance.shuffle(given)
    rows = lab.inferred(*given)
    yield from differ("given twice", [row["top"] for row in rows], by_content)
    with at_home(work):
        rows = lab.inferred("plain", "./plain/", "plain/0.png")
        yield from differ("from there", [row["top"] for row in rows], by_content)
        yield from differ("pattern", [row["top"] for row in lab.inferred("plain/**/*.png")], by_content)


def same_batches(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """One call or many, other batches and threads."""
    pictures = lab.pictures(chance, work / "in", 9)
    expected = [values(row) for row in lab.inferred(*pictures, "--threads", 1)]
    yield from differ("again", [values(row) for row in lab.inferred(*pictures, "--threads", 1)], expected)
    one_by_one = [values(lab.inferred(path, "--threads", 1)[0]) for path in pictures]
    yield from differ("one by one", one_by_one, expected)
    for words in (("--batch-size", chance.randrange(2, 12)), ("--threads", 2), ("--kernels", "native")):
        yield from apart(str(words), [values(row) for row in lab.inferred(*pictures, *words)], expected)
    words = ("--kernels", "functions")
    yield from apart(str(words), [values(row) for row in lab.inferred(*pictures, *words)], expected, 1e-5)


def values(row: dict[str, Any]) -> list[float]:
    """The probabilities of a row of ``infer``, by the names of the classes."""
    return [
        probability for _, probability in sorted((each["label"], each["probability"]) for each in row["top"])
    ]


def same_formats(lab: Lab, chance: random.Random, work: Path) -> Iterator[str]:
    """What table, CSV and JSON say, on the terminal and in files."""
    import csv

    pictures = lab.pictures(chance, work / "in", 4)
    (work / "in" / "bad.png").write_bytes(b"no picture")
    words = (
        "infer",
        chance.choice((lab.bundle, lab.guarded)),
        work / "in",
        "--top",
        chance.randrange(1, 5),
    )
    said = {kind: lab.mmdeploy(*words, "--format", kind, status=1) for kind in ("json", "csv", "table")}
    for kind, each in said.items():
        path = work / f"out.{kind}"
        lab.mmdeploy(*words, "--format", kind, "-o", path, status=1)
        yield from differ(f"{kind} in a file", path.read_bytes().decode().splitlines(), each.out.splitlines())
    rows = [*csv.DictReader(io.StringIO(said["csv"].out))]
    yield from differ("rows", len(rows), len(pictures) + 1)
    for row, other, line in zip(rows, said["json"].rows, said["table"].out.splitlines()[1:], strict=True):
        yield from differ("names", row["image"], other["image"])
        yield from differ("errors", row["error"], other.get("error", ""))
        if row["error"]:
            continue
        for place, each in enumerate(other["top"], start=1):
            suffix = f"_{place}" if place > 1 else ""
            yield from differ("label", row[f"label{suffix}"], each["label"])
            yield from differ("probability", float(row[f"probability{suffix}"]), each["probability"])
            label = f"{each['label']:<{max(map(len, lab.session.labels))}}"
            if f"{label}  {share_as_text(each['probability'], 4, 1)}" not in line:
                yield f"table: {line!r} has not {each}"
        if "decided" in other:
            yield from differ("decided", row["decided"], "yes" if other["decided"] else "no")
            yield from differ("reasons", row["reasons"], "; ".join(other["reasons"]))
            yield from differ("candidates", row["candidates"], "; ".join(other["candidates"]))
            yield from differ("in the table", "undecided" in line, not other["decided"])


RELATIONS: dict[str, Relation] = {
    each.__name__: each
    for each in (same_pixels, same_grey, same_white, same_alpha, same_names, same_batches, same_formats)
}
