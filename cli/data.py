"""`mmdeploy data`: published data sets imported and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..text import shown
from .help import Command, Group, option
from .options import EVERY_CORE, bar
from .output import say, say_lines

_SPLIT = "The split"
_IMAGES = "The images"
_OUTPUT = "Output"

# `data.published.KINDS`, which a test compares; importing it here would load numpy.


_DATA_SETS = ("malaria", "mhist", "tissuemnist", "medfm-colon", "rpe", "folder")


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

    Images are dealt 6:2:2 by the seed, stratified by class, whole groups. Each is read once, for its
    checksum and the channels' mean and deviation, and linked where the file system allows. Killed, the same
    command goes on from there.
    """
    from ..data.published import ImportOptions, import_data_set

    with bar() as advance:
        manifest = import_data_set(kind, source, output, ImportOptions(**chosen), advance=advance)
    say_lines(f"{shown(output)}: {kind}\n\n{manifest.to_text()}")
    for name, reason in manifest.skipped.items():
        say(f"skipped: {reason if name in reason else f'{name}: {reason}'}", err=True)
    for difference in manifest.differences:
        say(f"warning: differs from what was published: {difference}", err=True)
    if manifest.differences:
        say("imported all the same; --strict refuses such a copy", err=True)


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
