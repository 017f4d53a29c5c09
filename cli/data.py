"""`mmdeploy data`: published data sets imported and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import bar

# `data.published.KINDS`, which a test compares; importing it here would load numpy.


_DATA_SETS = ("malaria", "mhist", "tissuemnist", "medfm-colon", "rpe", "folder")


@click.group()
def data() -> None:
    """Import published data sets, with no patient or slide in two splits, and check them.

    \b
    mmdeploy data import malaria cell_images -o malaria
    mmdeploy train malaria -o run
    """


@data.command("import", short_help="Read a data set as it was published into a folder to train on.")
@click.argument("kind", type=click.Choice(_DATA_SETS), metavar="KIND")
@click.argument("source")
@click.option("-o", "--output", required=True, metavar="DATA", help="The folder to write.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the split.")
@click.option("--official-split", is_flag=True, help="Keep the published split instead of dealing 6:2:2.")
@click.option("--group-by", metavar="PATTERN", help="Of a folder: finds a patient or slide in a file name.")
@click.option("--strict", is_flag=True, help="Refuse a copy that differs from what was published.")
@click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be read, and name them.")
@click.option("--copy", is_flag=True, help="Copy the images instead of linking them.")
@click.option("--threads", type=click.IntRange(1), help="That read images. [default: every usable core]")
@click.option("--force", is_flag=True, help="Replace an imported data set.")
def import_data(kind: str, source: str, output: str, **chosen: Any) -> None:
    """Read the data set SOURCE of KIND, as published, into a folder that train, eval and verify take.

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
    click.echo(f"{output}: {kind}\n\n{manifest.to_text()}", nl=False)
    for name, reason in manifest.skipped.items():
        click.echo(f"skipped: {reason if name in reason else f'{name}: {reason}'}", err=True)
    for difference in manifest.differences:
        click.echo(f"warning: differs from what was published: {difference}", err=True)
    if manifest.differences:
        click.echo("imported all the same; --strict refuses such a copy", err=True)


@data.command("check", short_help="Compare every file with its checksum.")
@click.argument("folder", metavar="DATA")
def check_data(folder: str) -> None:
    """Compare every file of the imported data set DATA with its checksum."""
    from ..data.imported import check_contents
    from ..errors import DataError, some

    with bar() as advance:
        manifest, wrong = check_contents(Path(folder), advance)
    click.echo(f"{folder}: {manifest.kind}\n\n{manifest.to_text()}", nl=False)
    if wrong:
        found = some([f"{name} {what}" for name, what in wrong.items()])
        raise DataError(f"{folder}: {len(wrong)} files are not what was imported: {found}: import it again")
