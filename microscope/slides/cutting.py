"""Labelled training tiles, cut from slides by QuPath's annotations, in a folder as imports leave it."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...data.imported import DataManifest
from ...data.published.importing import ImportOptions, import_listing
from ...data.published.listing import Listed, Listing
from ...data.scale import check_microns
from ...errors import DataError, ImageError, InputError, reason_of, some
from ...files import alike, common_folder, read_file, sha256_of, write_atomically
from ...images import FULL_WHITE, is_image_size, resized
from .opening import by_name, open_slide, require_libraries
from .regions import check_annotations, file_of, labels_of, read_regions
from .tiling import grid, read_tile, side_of, stride_of

KIND = "slides"
_TILES, _CUT = "cut", "cut.json"
_FEWEST = 5  # slides, of which 3 train, 1 validates and 1 tests


@dataclass(frozen=True)
class CutOptions:
    """How tiles are cut.

    Attributes:
        size: side of the tiles' pictures, pixels.
        mpp: microns that each of their pixels covers; None takes the slides' pixels as they are.
        assume_mpp: the slides' microns a pixel, in place of what the files say.
        overlap: the share of a tile's side that the next one covers again, 0 to 0.9.
        min_cover: the least share of a tile that annotations of its class cover; None asks for its middle.

    Raises:
        InputError: a number is not what it can be.
    """

    size: int = 224
    mpp: float | None = None
    assume_mpp: float | None = None
    overlap: float = 0.0
    min_cover: float | None = None

    def __post_init__(self) -> None:
        check_microns(self.mpp, self.assume_mpp)
        stride_of(1, self.overlap)
        if not is_image_size(self.size) or self.size < 2:
            raise InputError(f"the tiles' size is {self.size!r}: expected a number of pixels")
        if self.min_cover is not None and not 0 < self.min_cover <= 1:
            raise InputError(f"the least cover is {self.min_cover!r}: expected a share of a tile, to 1")


def import_slides(
    slides: Sequence[Path],
    annotations: str | os.PathLike[str],
    output: str | os.PathLike[str],
    cut: CutOptions | None = None,
    options: ImportOptions | None = None,
    *,
    advance: Callable[[int, int], None] = lambda done, images: None,
) -> DataManifest:
    """Cuts tiles of the annotated parts of slides into a new data set, in which no slide is in two splits.

    An import that was killed goes on where it was when it is called again.

    Args:
        slides: paths, of distinct names; those without annotations are passed over.
        annotations: QuPath's GeoJSON: a folder of ``<slide>.geojson``, or one file for one slide.
        output: the folder to write (see `data.imported`).
        cut: the defaults where None.
        options: seed, and how images are read; the microns a pixel are those of the tiles.
        advance: called with the slides cut and all slides, then with the tiles read and all tiles.

    Raises:
        DataError: too few slides or tiles to be split.
        ImageError: a slide or a tile cannot be read; the message names it.
        InputError: annotations that cannot be used, a scale that nobody knows, or options that do not fit.
        TargetError: the output exists or cannot be written.
        BackendError: the extra ``slides`` is not installed.
    """
    require_libraries()
    cut, options = cut or CutOptions(), options or ImportOptions()
    if options.mpp is not None or options.group_by is not None or options.official_split or options.strict:
        raise InputError(
            "tiles are grouped by their slides, and their scale is known: leave such options out"
        )
    named, where = by_name(slides), Path(annotations)
    if missing := [os.fspath(path) for path in named.values() if not path.exists()]:
        raise InputError(f"there is no slide {some(missing)}")
    check_annotations(where, [*named.values()])
    files = {name: file_of(where, path) for name, path in named.items()}
    without = [name for name, file in files.items() if file is None]
    if len(without) == len(named):
        raise InputError(f"'{where}' holds no GeoJSON that is called as one of the slides ({some(without)})")
    if (common := common_folder([path.resolve().parent for path in named.values()])) is None:
        they = some([str(path) for path in named.values()])
        raise InputError(f"the slides {they} lie on several drives: expected those of one")
    white = FULL_WHITE if options.white_level is None else options.white_level

    def fill(folder: Path) -> tuple[Path, Listing]:
        work = _work_folder(folder, cut, white, named, files)
        listing = Listing([], (), grouped_by="slide")
        folders: dict[str, str] = {}
        if without:
            listing.notes.append(f"{len(without)} slides have no annotations: {some(without)}")
        for number, (name, path) in enumerate(named.items()):
            advance(number, len(named))
            if (file := files[name]) is None:
                continue
            try:
                _cut_one(name, path, file, work, cut, white, options.skip_bad, listing, folders)
            except ImageError as error:
                if not options.skip_bad:
                    raise
                listing.notes.append(f"a slide is left out: {error}")
        if hasattr(os, "sync"):  # not on Windows
            os.sync()
        listing.labels = tuple(sorted({image.label for image in listing.images}))
        if not listing.images:
            why = f" and can be used: {some(listing.notes)}" if listing.notes else ""
            raise DataError(f"no tile of {some([*named])} belongs to an annotation that has a class{why}")
        if len({image.group for image in listing.images}) < _FEWEST:
            raise DataError(
                f"{len({image.group for image in listing.images})} slides have tiles of a class: a split of "
                f"whole slides needs at least {_FEWEST}"
            )
        return work, listing

    return import_listing(KIND, str(common), fill, output, options, advance=advance)


def _work_folder(
    folder: Path, cut: CutOptions, white_level: int, named: dict[str, Path], files: dict[str, Path | None]
) -> Path:
    """Where the tiles are cut into; what an earlier attempt has cut otherwise is gone."""
    work = folder / _TILES
    content: dict[str, Any] = {"options": {**asdict(cut), "white_level": white_level}, "slides": {}}
    for name, file in files.items():
        if file is not None:
            try:
                status = named[name].stat()
            except OSError as error:
                why = reason_of(error)
                raise ImageError(f"'{named[name]}' cannot be read: {why}") from error
            content["slides"][name] = [status.st_size, status.st_mtime_ns, sha256_of(file)]
    said = json.dumps(content, sort_keys=True).encode("utf-8", "surrogateescape")
    if not (work / _CUT).is_file() or read_file(work / _CUT) != said:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_atomically(work / _CUT, said)
    return work


def _cut_one(
    name: str,
    path: Path,
    annotations: Path,
    work: Path,
    cut: CutOptions,
    white_level: int,
    skip_bad: bool,
    listing: Listing,
    folders: dict[str, str],
) -> None:
    """Cuts the tiles of one slide that are not there yet, and adds all of them to the listing.

    Args:
        folders: the class that each folder is of, on any file system; added to.

    Raises:
        ImageError: the slide cannot be read; or a tile, and `skip_bad` leaves none out.
        DataError: a class's folder is another's already.
    """
    with closing(open_slide(path, white_level=white_level)) as slide:
        side = side_of(slide, cut.size, cut.mpp, cut.assume_mpp)
        microns = cut.assume_mpp or slide.scale.microns
        bounds = slide.bounds
        regions = read_regions(annotations, bounds.width, bounds.height, bounds.left, bounds.top)
        listing.notes += regions.notes
        if not all(each.label for each in regions.regions):
            listing.notes.append(f"'{annotations}': annotations without a class mark nothing")
        kept = blank = 0
        torn: list[ImageError] = []
        for tile, label in labels_of(grid(slide, side, cut.overlap), regions, cut.min_cover):
            if (other := folders.setdefault(alike(_as_folder(label)), label)) != label:
                raise DataError(
                    f"'{annotations}': the classes {other!r} and {label!r} would share the folder "
                    f"'{_as_folder(label)}': call one of them otherwise in the annotations"
                )
            folder = work / _as_folder(label) / name
            target = folder / f"{name}-{tile.x}-{tile.y}.png"
            if not target.exists():
                try:
                    pixels = read_tile(slide, tile, cut.size)
                except ImageError as error:
                    if not skip_bad:
                        raise
                    torn.append(error)
                    continue
                if (pixels == pixels[0, 0]).all():  # as in the next slide, whose group it would be, too
                    blank += 1
                    continue
                folder.mkdir(parents=True, exist_ok=True)
                _write(target, _picture(pixels, cut.size))
            kept += 1
            listing.images.append(
                Listed(
                    target.relative_to(work).as_posix(),
                    _as_folder(label),
                    name,
                    mpp=None if microns is None else microns * side / cut.size,
                )
            )
        listing.notes += [f"'{path}': {note}" for note in slide.notes]
        if blank:
            listing.notes.append(f"'{path}': {blank} tiles of a single colour are left out")
        if torn:
            listing.notes.append(f"'{path}': {len(torn)} tiles cannot be read and are left out: {torn[0]}")
        if not (kept or blank or torn):
            listing.notes.append(f"'{path}': no tile belongs to an annotation")


def _write(target: Path, content: bytes) -> None:
    """Writes a tile, whole or not at all; `import_slides` has the system flush all of them at once."""
    part = target.with_suffix(".part")
    part.write_bytes(content)
    part.replace(target)


def _picture(pixels: Any, size: int) -> bytes:
    """A tile's pixels as a PNG of so many pixels a side."""
    content = io.BytesIO()
    Image.fromarray(resized(pixels, size)).save(content, "PNG", compress_level=1)
    return content.getvalue()


def _as_folder(label: str) -> str:
    """A class's name as a folder's: what would lead elsewhere, or hide it, becomes a line."""
    name = "".join("_" if each in '/\\:*?"<>|' or not each.isprintable() else each for each in label).strip()
    return f"_{name[1:]}" if name.startswith(".") else name
