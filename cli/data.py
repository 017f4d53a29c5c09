"""`mmdeploy data`: published data sets imported and checked."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..text import shown
from .help import Command, Group, option
from .options import EVERY_CORE, bar, given, tell, typed
from .output import say, say_lines

if TYPE_CHECKING:
    from ..data.imported import DataManifest

_SPLIT = "The split"
_IMAGES = "The images"
_SLIDES = "Tiles of slides (KIND slides)"
_OUTPUT = "Output"

# `data.published.KINDS`, which a test compares; importing it here would load numpy. Slides are cut by others.
_OF_SLIDES = "slides"
_DATA_SETS = ("malaria", "mhist", "tissuemnist", "medfm-colon", "rpe", "folder", _OF_SLIDES)


def _microns(text: str) -> float | str:
    """A number, or the word for what each file says."""
    try:
        return text if text == "files" else float(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is neither a number of microns nor 'files'.") from error


@click.group(
    cls=Group,
    example="mmdeploy data import malaria cell_images -o malaria\nmmdeploy data check malaria",
)
def data() -> None:
    """Import published data sets and check them.

    No patient, slide or source image gets into two splits.
    """


@data.command(
    "import", cls=Command, example="mmdeploy data import folder micrographs -o cells --group-by 'patient\\d+'"
)
@click.argument("kind", type=click.Choice(_DATA_SETS), metavar="KIND")
@click.argument("source")
@option("-o", "--output", group=_OUTPUT, required=True, metavar="DATA", help="The folder to write.")
@option("--force", group=_OUTPUT, is_flag=True, help="Replace an imported data set.")
@option("--seed", group=_SPLIT, type=click.IntRange(0), metavar="N", default=0, help="Seed of the split.")
@option(
    "--official-split", group=_SPLIT, is_flag=True, help="Keep the published split instead of dealing 6:2:2."
)
@option(
    "--group-by",
    group=_SPLIT,
    metavar="PATTERN",
    help="Find a patient or slide in each file name; for KIND folder.",
)
@option("--strict", group=_IMAGES, is_flag=True, help="Refuse a copy that differs from what was published.")
@option(
    "--skip-bad", group=_IMAGES, is_flag=True, help="Leave out images that cannot be read, and name them."
)
@option(
    "--white-level",
    group=_IMAGES,
    type=click.IntRange(255, 65535),
    metavar="VALUE",
    show_default="of the bits in use",
    help="The value of white in 16-bit images.",
)
@option(
    "--mpp",
    group=_IMAGES,
    type=_microns,
    metavar="MICRONS|files",
    help="Microns a pixel of images or tiles; 'files': as each says.",
)
@option(
    "--annotations",
    group=_SLIDES,
    metavar="GEOJSON|DIR",
    help="QuPath's annotations, or a folder of <slide>.geojson.",
)
@option(
    "--size",
    group=_SLIDES,
    type=int,
    metavar="PIXELS",
    show_default="224",
    help="Side of the tiles' pictures.",
)
@option(
    "--assume-mpp",
    group=_SLIDES,
    type=float,
    metavar="MICRONS",
    help="Microns a pixel of the slides, in place of what they say.",
)
@option(
    "--overlap",
    group=_SLIDES,
    type=float,
    metavar="SHARE",
    show_default="0",
    help="The share of a tile's side that the next one covers.",
)
@option(
    "--min-cover",
    group=_SLIDES,
    type=float,
    metavar="SHARE",
    show_default="its middle",
    help="The least share of a tile that its class covers.",
)
@option("--copy", group=_IMAGES, is_flag=True, help="Copy the images instead of linking them.")
@option(
    "--threads",
    group=_IMAGES,
    type=click.IntRange(1),
    metavar="N",
    show_default=EVERY_CORE,
    help="How many threads read images.",
)
def import_data(kind: str, source: str, output: str, **chosen: Any) -> None:
    """Read a data set as it was published into a folder to train on.

    \b
    KIND         SOURCE holds                                     kept together
    malaria      cell_images/{Parasitized,Uninfected}/*.png       patient
    mhist        annotations.csv, images/*.png                    (none published)
    tissuemnist  tissuemnist.npz, or _64, _128, _224              (none published)
    medfm-colon  images, csv files with slide_id,img_id,tumor     patient or slide
    rpe          Subwindows/*.tif                                 image
    folder       <class>/* or {train,val,test}/<class>/*          --group-by
    slides       slides, annotated in QuPath (--annotations)      slide

    Images are dealt 6:2:2 by the seed, stratified by class, whole groups. Each is read once, for its
    checksum and the channels' mean and deviation, and linked where the file system allows. Killed, the same
    command goes on from there.
    """
    from ..data.published import ImportOptions, import_data_set

    cut = {name: chosen.pop(name) for name in ("size", "assume_mpp", "overlap", "min_cover")}
    annotations, mpp = chosen.pop("annotations"), chosen.pop("mpp")
    if (kind == _OF_SLIDES) != (annotations is not None) or (kind != _OF_SLIDES and given(cut)):
        raise click.UsageError(
            f"KIND {_OF_SLIDES} needs --annotations"
            if kind == _OF_SLIDES
            else f"--annotations and the options of tiles are for KIND {_OF_SLIDES}"
        )
    if kind == _OF_SLIDES and (of_images := typed("group_by", "official_split", "strict")):
        raise click.UsageError(
            f"tiles are grouped by their slides, and by nobody else: leave {of_images} out"
        )
    with bar() as advance:
        if kind == _OF_SLIDES:
            if isinstance(mpp, str):
                raise click.UsageError("--mpp is a number where tiles are cut; slides say theirs themselves")
            manifest = _tiles_of(source, annotations, output, {**given(cut), "mpp": mpp}, chosen, advance)
        else:
            options = ImportOptions(**chosen, mpp=mpp)
            manifest = import_data_set(kind, source, output, options, advance=advance)
    say_lines(f"{shown(output)}: {kind}\n\n{manifest.to_text()}")
    for name, reason in manifest.skipped.items():
        say(f"skipped: {reason if name in reason else f'{name}: {reason}'}", err=True)
    for difference in manifest.differences:
        say(f"warning: differs from what was published: {difference}", err=True)
    if manifest.differences:
        say("imported all the same; --strict refuses such a copy", err=True)


def _tiles_of(
    source: str,
    annotations: str,
    output: str,
    cut: dict[str, Any],
    chosen: dict[str, Any],
    advance: Callable[[int, int], None],
) -> DataManifest:
    """Cuts the tiles of slides that are annotated."""
    # What tifffile logs of a damaged file is raised, too.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)

    from ..data.published import ImportOptions
    from ..microscope.slides.cutting import CutOptions, import_slides
    from ..microscope.slides.opening import SUFFIXES
    from ..runtime.infer import find_images

    found = find_images([source], SUFFIXES)
    tell(found.notes)
    return import_slides(
        found.images, annotations, output, CutOptions(**cut), ImportOptions(**chosen), advance=advance
    )


@data.command("check", cls=Command, example="mmdeploy data check malaria")
@click.argument("folder", metavar="DATA")
def check_data(folder: str) -> None:
    """Compare every file of an imported data set with its checksum.

    DATA is a folder that data import wrote.
    """
    from ..data.imported import check_contents
    from ..errors import DataError, some

    with bar() as advance:
        manifest, wrong = check_contents(Path(folder), advance)
    say_lines(f"{shown(folder)}: {shown(manifest.kind)}\n\n{manifest.to_text()}")
    if wrong:
        found = some([f"{name} {what}" for name, what in wrong.items()])
        raise DataError(f"{folder}: {len(wrong)} files are not what was imported: {found}: import it again")
