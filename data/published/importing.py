"""What every import does with the images that its importer lists: read, deal, link, and write down.

Dims: N images.
"""

from __future__ import annotations

import errno
import math
import os
import platform
import re
import shutil
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import __version__ as pillow_version

from ...errors import DataError, InputError, some
from ...files import alike, all_below, identity_of, open_file, resumable_folder, sha256_of, write_atomically
from ...images import FULL_WHITE, Tally, check_white_level, white_level_of, white_note
from ...machine import threads_to_use
from ...version import __version__
from ..copies import note_on_leaks, notes_on_copies
from ..coverage import Coverage
from ..imported import INDEX, MANIFEST, STACK_INDEX, Channels, DataManifest, IndexRow, index_of
from ..scale import check_microns, scale_of
from ..splitting import (
    COUNTED,
    FOLDERS_ARE_GROUPS,
    FOLDS,
    SMALLEST_CLASS,
    SPLITS,
    Names,
    check_class_sizes,
    deal_together,
    notes_on_absent,
)
from .examining import Examined, examine
from .folder import BY_FOLDER, list_folder
from .listing import Listed, Listing, refuse_differences
from .malaria import list_malaria
from .medfm_colon import list_medfm_colon
from .mhist import list_mhist
from .rpe import list_rpe
from .tissuemnist import unpack, write_index

_LISTERS: dict[str, Callable[[Path], Listing]] = {
    "malaria": list_malaria,
    "mhist": list_mhist,
    "medfm-colon": list_medfm_colon,
    "rpe": list_rpe,
}
_STACK, _FOLDER = "tissuemnist", "folder"
KINDS = ("malaria", "mhist", _STACK, "medfm-colon", "rpe", _FOLDER)
"""What can be imported."""

OF_FILES = "files"
"""In place of microns a pixel: those that each file says."""

# Where a hard link is refused because of where the files are, not because something is wrong.
_NO_LINKS = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS})


@dataclass(frozen=True)
class ImportOptions:
    """How a data set is imported."""

    seed: int = 0
    """Seed of the split."""
    official_split: bool = False
    """Keep the published split; what it does not name is dealt."""
    group_by: str | None = None
    """Regular expression that finds a folder's groups in file names, or in paths if it has a ``/``."""
    strict: bool = False
    """Refuse what differs from what was published."""
    skip_bad: bool = False
    """Leave images out that cannot be read."""
    copy: bool = False
    """Copy the images, even where they could be linked."""
    force: bool = False
    """Replace an existing data set."""
    white_level: int | None = None
    """The value of white in 16-bit images; that of the bits that the training images use by default."""
    mpp: float | str | None = None
    """Microns a pixel of the images as they are stored; `OF_FILES` for what each file says."""
    threads: int | None = None
    """How many threads read images; None for one on every core that this process may use."""


def import_data_set(
    kind: str,
    source: str | Path,
    output: str | Path,
    options: ImportOptions | None = None,
    *,
    advance: Callable[[int, int], None] = lambda done, images: None,
) -> DataManifest:
    """Imports a data set into a new folder, which appears whole or not at all.

    An import that was killed goes on where it was when it is called again.

    Args:
        kind: one of `KINDS`.
        source: the data set as it was published.
        output: the folder to write (see `imported`).
        options: the defaults where None.
        advance: called with the images read and all images.

    Raises:
        DataError: the source is something else, is too small to be split, or differs from what was published
            and must not.
        ImageError: an image cannot be read; the message names it.
        InputError: options that do not fit.
        TargetError: the output exists or cannot be written.
    """
    options = options or ImportOptions()
    source, output = Path(source), Path(output)
    if not isinstance(options.mpp, str):
        check_microns(options.mpp)
    elif options.mpp != OF_FILES or kind == _STACK:
        raise InputError(f"{options.mpp!r} microns a pixel cannot be: expected a number")
    if options.group_by is not None and kind != _FOLDER:
        raise InputError(f"what is kept together in {kind} is known: leave the group pattern out")
    if kind != _STACK:  # of which one file is read, whatever stands beside it
        _check_apart(source, output)
    with resumable_folder(output, options.force, marker=MANIFEST) as folder:
        if kind == _STACK:
            return _import_stacks(source, folder, options, advance)
        listing = _list(kind, source, options)
        if options.strict:
            refuse_differences(source, listing.differences)
        return _import_files(kind, str(source.resolve()), source.resolve(), listing, folder, options, advance)


def import_listing(
    kind: str,
    source: str,
    fill: Callable[[Path], tuple[Path, Listing]],
    output: str | os.PathLike[str],
    options: ImportOptions,
    *,
    advance: Callable[[int, int], None] = lambda done, images: None,
) -> DataManifest:
    """Imports images that are made for it, as `import_data_set` does with those that are there.

    Args:
        kind: what the manifest calls the importer.
        source: what it calls that which they were made from.
        fill: makes them below the folder that it is given, where an earlier attempt may have left some, and
            gives the folder that the listing's paths begin at.
        output: the folder to write.
        options: as in `import_data_set`.
        advance: called with the images read and all images.

    Raises:
        DataError: too few images to be split.
        ImageError: an image cannot be read; the message names it.
        TargetError: the output exists or cannot be written.
    """
    with resumable_folder(output, options.force, marker=MANIFEST) as folder:
        root, listing = fill(folder)
        return _import_files(kind, source, root, listing, folder, options, advance, made=True)


def _list(kind: str, source: Path, options: ImportOptions) -> Listing:
    if kind == _FOLDER:
        try:
            pattern = re.compile(options.group_by) if options.group_by is not None else None
        except re.error as error:
            raise InputError(
                f"the group pattern '{options.group_by}' is no regular expression: {error}"
            ) from error
        return list_folder(source, pattern)
    if kind not in _LISTERS:
        raise InputError(f"there is no importer {kind!r}: choose one of {', '.join(KINDS)}")
    return _LISTERS[kind](source)


def _check_apart(source: Path, output: Path) -> None:
    inner, outer = output.resolve(), source.resolve()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise InputError(
            f"'{output}' and '{source}' lie in one another: give an output folder beside the source"
        )


def _import_files(
    kind: str,
    shown: str,
    source: Path,
    listing: Listing,
    folder: Path,
    options: ImportOptions,
    advance: Callable[[int, int], None],
    *,
    made: bool = False,
) -> DataManifest:
    """Fills ``folder`` with a data set of image files."""
    threads = threads_to_use(options.threads)
    origins = [image.origin for image in listing.images]
    white = FULL_WHITE if options.white_level is None else options.white_level
    check_white_level(white)
    found, bad = examine(
        source,
        origins,
        folder,
        threads=threads,
        white_level=white,
        skip_bad=options.skip_bad,
        advance=advance,
    )
    images = [image for image in listing.images if image.origin in found]
    examined = [found[image.origin] for image in images]
    contents = [read.sha256 for read in examined]
    names, notes, how = deal_images(Path(shown), images, contents, listing, options)
    if options.white_level is None:
        training = (read for split, read in zip(names, examined, strict=True) if split == "train")
        white = white_level_of((read.largest, read.significant_bits) for read in training)
    if options.white_level is None and white != FULL_WHITE:  # known only now: what it changes is read again
        deep = [origin for origin in origins if origin in found and found[origin].largest is not None]
        found |= examine(source, deep, folder, threads=threads, white_level=white, advance=advance)[0]
        examined = [found[image.origin] for image in images]
        notes = [white_note(white), *notes]
    tally = Tally()
    for image, read in zip(images, examined, strict=True):
        tally.add(image.origin, read.notes)
    notes = [*notes, *tally.lines()]

    files = _file_names(images, names)
    linked = _place(source, [image.origin for image in images], files, folder, options.copy)
    rows = [
        IndexRow(
            split,
            image.label,
            image.group,
            file,
            read.size,
            read.sha256,
            read.width,
            read.height,
            image.origin,
        )
        for split, image, file, read in zip(names, images, files, examined, strict=True)
    ]
    rows.sort(key=lambda row: (SPLITS.index(row.split), row.file))
    write_atomically(folder / INDEX, index_of(rows))
    trained = [place for place, split in enumerate(names) if split == "train"]
    mean, std = statistics_of([examined[place] for place in trained])
    covers = Coverage.of(
        [(examined[place].height, examined[place].width) for place in trained],
        _scales(source, [images[place] for place in trained], options.mpp),
    )
    return _finish(
        folder,
        DataManifest(
            kind=kind,
            source=shown,
            labels=listing.labels,
            counts=_counts(images, names, listing),
            grouped_by=listing.grouped_by,
            groups=_group_counts(images, names) if listing.grouped_by else {},
            split=how,
            seed=options.seed,
            mean=mean,
            std=std,
            white_level=white,
            covers=covers,
            stored="made" if made else "links" if linked else "copies",
            differences=tuple(listing.differences),
            notes=(
                *listing.notes,
                *notes,
                *(covers.notes if covers else ()),
                *([] if linked or options.copy or made else [_COPIED]),
            ),
            skipped=bad,
            files={INDEX: sha256_of(folder / INDEX)},
            versions=versions(),
        ),
        {INDEX, *files},
    )


def _import_stacks(
    source: Path, folder: Path, options: ImportOptions, advance: Callable[[int, int], None]
) -> DataManifest:
    """Fills ``folder`` with a data set whose images are in few files."""
    stacks = unpack(source, folder, options.strict, advance)
    listing = stacks.listing()
    names, notes, how = deal_images(source, listing.images, stacks.contents(), listing, options)
    write_index(folder, stacks.index(names))
    mean, std = channels_of(*stacks.channel_means(names))
    return _finish(
        folder,
        DataManifest(
            kind=_STACK,
            source=str(source.resolve()),
            labels=listing.labels,
            counts=_counts(listing.images, names, listing),
            grouped_by="",
            groups={},
            split=how,
            seed=options.seed,
            mean=mean,
            std=std,
            covers=Coverage.of([stacks.sides], None if isinstance(options.mpp, str) else options.mpp),
            stored="stack",
            stacks=stacks.files,
            differences=tuple(listing.differences),
            notes=(*listing.notes, *notes),
            files={STACK_INDEX: sha256_of(folder / STACK_INDEX), **stacks.checksums},
            versions=versions(),
        ),
        {STACK_INDEX, *stacks.files},
    )


def _scales(source: Path, images: Sequence[Listed], said: float | str | None) -> float | list[float] | None:
    """The microns a pixel of images; None where nobody knows them."""
    if isinstance(said, str):
        found = {image.origin: scale_of(source / image.origin) for image in images}
        silent = [f"{origin} ({scale.why})" for origin, scale in found.items() if scale.microns is None]
        if silent:
            raise DataError(
                f"{source}: {len(silent)} images do not say their microns a pixel: {some(silent)}: give them "
                "as a number with --mpp, or leave it out"
            )
        return [scale.microns for scale in found.values() if scale.microns is not None]
    known = [image.mpp for image in images if image.mpp is not None]
    return said if said is not None or len(known) < len(images) else known


def _finish(folder: Path, manifest: DataManifest, files: set[str]) -> DataManifest:
    """Leaves the files and the manifest in the folder, and nothing else."""
    _keep_only(folder, files)
    write_atomically(folder / MANIFEST, manifest.to_json().encode("utf-8", "surrogateescape"))
    return manifest


def _counts(images: Sequence[Listed], names: Names, listing: Listing) -> dict[str, dict[str, int]]:
    tally = Counter(zip(names.tolist(), (image.label for image in images), strict=True))
    return {
        split: {label: tally[split, label] for label in listing.labels}
        for split in SPLITS
        if (names == split).any()
    }


def _group_counts(images: Sequence[Listed], names: Names) -> dict[str, int]:
    groups: dict[str, set[str]] = {}
    for image, split in zip(images, names, strict=True):
        groups.setdefault(split, set()).add(image.group)
    return {split: len(groups[split]) for split in SPLITS if split in groups}


_COPIED = "the images were copied, because they cannot be linked (another file system, or not yours)"


def deal_images(
    source: Path,
    images: Sequence[Listed],
    contents: Sequence[Hashable],
    listing: Listing,
    options: ImportOptions,
) -> tuple[Names, list[str], str]:
    """The split of each image, notes on it, and how it came to be, in words.

    Copies of one image stay together, and so do the groups that share a copy.

    Args:
        source: the name to use in messages.
        images: (N,) of the source.
        contents: (N,) equal for equal images.
        listing: what they are of.
        options: seed, and whether a published split is kept.

    Raises:
        DataError: too few images or groups, or no published split to keep.
    """
    position = {label: number for number, label in enumerate(listing.labels)}
    classes = np.array([position[image.label] for image in images], np.int32)
    groups: Sequence[str] = [image.group for image in images]
    published = np.array([image.split for image in images], dtype=object)
    notes = notes_on_copies([image.origin for image in images], [image.label for image in images], contents)
    keep = options.official_split or listing.keeps_split
    if keep and not published.all():
        raise DataError(f"{source}: has no published split that could be kept: leave --official-split out")

    def dealt(chosen: npt.NDArray[np.bool_], folds: dict[str, int]) -> Names:
        counts = np.bincount(classes[chosen], minlength=len(listing.labels)).tolist()
        least = sum(folds.values()) if listing.grouped_by else min(SMALLEST_CLASS, sum(folds.values()))
        left_out = len(listing.images) - len(images)
        why = f"{left_out} images are left out that cannot be read" if left_out else COUNTED
        check_class_sizes(source, listing.labels, counts, least, why=why)
        places = np.flatnonzero(chosen).tolist()
        own = [contents[place] for place in places]
        their = [groups[place] for place in places] if listing.grouped_by else None
        try:
            return deal_together(classes[chosen], own, their, seed=options.seed, folds=folds)
        except DataError as error:
            hint = f"; {FOLDERS_ARE_GROUPS}" if listing.grouped_by == BY_FOLDER else ""
            raise DataError(f"{source}: {error}{hint}") from error

    whole = ", image by image"
    if listing.grouped_by:
        whole = ", whole groups" if options.group_by else f", whole {listing.grouped_by}s"
    if not keep:
        names = dealt(np.ones(len(images), bool), FOLDS)
        how = f"6:2:2, stratified by class{whole}, seed {options.seed}"
    else:
        names = published.copy()
        how = "as published"
        if not (published == "val").any():
            train = published == "train"
            names[train] = dealt(train, {"train": 3, "val": 1})
            how += f"; a quarter of train validates, stratified by class{whole}, seed {options.seed}"
    if not (names == "train").any():
        raise DataError(f"{source}: has no images to train on in its published split")
    if listing.grouped_by:
        notes += note_on_leaks(f"groups ({listing.grouped_by})", groups, names.tolist(), named=True)
    notes += note_on_leaks("images, by content,", contents, names.tolist(), named=False)
    notes += notes_on_absent(names, classes, listing.labels)
    return names, notes, how


def statistics_of(images: Sequence[Examined]) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel, of values in [0, 1], every image weighing the same.

    So they are those of images resized to one size, but for what resizing blurs. A channel without any
    contrast gets a deviation of 1, so that normalising it divides by something.
    """
    weights = np.array([1 / (image.width * image.height) for image in images])
    mean = (weights @ np.array([image.sums for image in images], np.float64)) / len(images) / 255
    square = (weights @ np.array([image.squares for image in images], np.float64)) / len(images) / 255**2
    return channels_of(mean, square)


def channels_of(mean: npt.NDArray[np.float64], square: npt.NDArray[np.float64]) -> tuple[Channels, Channels]:
    """Mean and deviation from the means of values and squares, (3,) each."""
    deviations = [
        math.sqrt(variance) if variance > 1e-12 else 1.0 for variance in (square - mean**2).tolist()
    ]
    red, green, blue = mean.tolist()
    red_std, green_std, blue_std = deviations
    return (red, green, blue), (red_std, green_std, blue_std)


def versions() -> dict[str, str]:
    """The versions of what decides an import's result."""
    return {
        "msmamba": __version__,
        "numpy": np.__version__,
        "pillow": pillow_version,
        "python": platform.python_version(),
    }


def _file_names(images: Sequence[Listed], names: Names) -> list[str]:
    """``<split>/<class>/<name>`` for each image; a name that is taken gets a number.

    So is one that differs in case, or in how accents are composed: many file systems take the two for one.
    """
    taken: set[str] = set()
    last: dict[str, int] = {}  # number given to a name: many folders may each hold an `image.png`
    files = []
    for image, split in zip(images, names, strict=True):
        path = PurePosixPath(image.origin)
        file = wanted = f"{split}/{image.label}/{path.name}"
        number = last.get(alike(wanted), 1)
        while alike(file) in taken:
            number += 1
            file = f"{split}/{image.label}/{path.stem}-{number}{path.suffix}"
        last[alike(wanted)] = number
        taken.add(alike(file))
        files.append(file)
    return files


def _place(source: Path, origins: Sequence[str], files: Sequence[str], folder: Path, copy: bool) -> bool:
    """Links or copies the images to where they belong, and says whether they were linked."""
    links = not copy
    for parent in sorted({(folder / file).parent for file in files}):
        parent.mkdir(parents=True, exist_ok=True)
    for origin, file in zip(origins, files, strict=True):
        image, target = (source / origin).resolve(), folder / file
        if links:
            try:
                _link(image, target)
                continue
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                links = False
        _copy(image, target)
    return links


def _link(image: Path, target: Path) -> None:
    if target.exists():
        if identity_of(target) == identity_of(image):
            return
        target.unlink()
    os.link(image, target)


def _copy(image: Path, target: Path) -> None:
    status = image.stat()
    if target.exists():
        there = target.stat()
        if identity_of(target) != identity_of(image) and (there.st_size, there.st_mtime_ns) == (
            status.st_size,
            status.st_mtime_ns,
        ):
            return
        target.unlink()
    with open_file(image) as content:
        write_atomically(target, lambda file: shutil.copyfileobj(content, file, 1 << 20))
    # The time of change says that the copy is whole: it is set last.
    with suppress(PermissionError):  # as some shares have it, from where it is copied again if need be
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _keep_only(folder: Path, files: set[str]) -> None:
    """Removes what earlier attempts left, and the journal."""
    for path in sorted(all_below(folder), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in files:
            path.unlink()
