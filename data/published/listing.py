"""What an importer hands over: images with class, group and published split; and how it finds them.

A source is untrusted: it may be an unpacked archive of anybody's. Nothing outside of it is read, and archives
are not unpacked here.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import DataError, reason_of, some
from ...files import lines_of, open_text
from .. import finding
from ..finding import Passed

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


@dataclass(frozen=True)
class Listed:
    """One image of a source."""

    origin: str
    """Path below the source, with ``/``."""
    label: str
    """Class name."""
    group: str = ""
    """What must share a split with it; empty where nothing is known."""
    split: str = ""
    """The split it was published in; empty where that is not known."""
    mpp: float | None = None
    """Its microns a pixel, where the importer knows them."""


@dataclass
class Listing:
    """The images of a source, and what there is to say about it."""

    images: list[Listed]
    labels: tuple[str, ...]
    """Class names, sorted; there may be classes without images."""
    grouped_by: str = ""
    """What the groups are: ``patient``, say."""
    notes: list[str] = field(default_factory=list)
    """What was passed over or decided."""
    differences: list[str] = field(default_factory=list)
    """How the copy differs from what was published."""
    keeps_split: bool = False
    """The published split is part of the layout, and kept without being asked for."""

    def compare(self, published: Mapping[str, int]) -> None:
        """Adds what differs from the published numbers of images of each class."""
        found = Counter(image.label for image in self.images)
        self.differences += [
            f"{label}: {found[label]:,} images, published {count:,}"
            for label, count in published.items()
            if found[label] != count
        ]


def refuse_differences(source: Path, differences: Sequence[str]) -> None:
    """Refuses a copy that differs from what was published.

    Raises:
        DataError: there are differences; all of them are named.
    """
    if differences:
        raise DataError(
            f"{source}: differs from what was published: {'; '.join(differences)}. Import it without "
            "--strict "
            "to use it all the same"
        )


def check_source(source: Path) -> Path:
    """The folder to import from, links in its own name resolved.

    Raises:
        DataError: it is not there, or a file.
    """
    if not source.exists():
        raise DataError(f"{source}: does not exist; expected the data set's folder")
    if source.is_file():
        if source.name.lower().endswith(_ARCHIVES):
            raise DataError(f"{source}: is an archive: unpack it, and give the folder it makes")
        raise DataError(f"{source}: is a file; expected the data set's folder")
    return source.resolve()


def images_below(source: Path, tables: Collection[Path] = ()) -> tuple[list[str], list[str]]:
    """The images below a folder, as paths below it with ``/``, and notes on what was passed over.

    Args:
        source: the folder, links in its own name resolved.
        tables: files that are read as something else, and so not passed over.

    Raises:
        DataError: a link leads out of the folder.
    """
    passed = Passed()
    found = finding.images_below(source, passed, within=source, tables=tables)
    images = [path.relative_to(source).as_posix() for path in found]
    return images, [*passed.notes()]


def rows_of(path: Path, columns: Sequence[str]) -> tuple[list[dict[str, str]], int]:
    """The rows of a csv file by column name, and how many blank ones there were.

    Line ends, a byte order mark, blanks around values and columns besides the expected ones do no harm.

    Raises:
        DataError: it cannot be read, or lacks a column.
    """
    rows, blank = [], 0
    try:
        with open_text(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(lines_of(file), strict=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            missing = [name for name in columns if name not in header]
            if missing:
                raise DataError(
                    f"{path}: has no column {some(missing)}; expected a first line {','.join(columns)}"
                )
            reader.fieldnames = header
            for row in reader:
                values = {name: (row.get(name) or "").strip() for name in columns}
                if any(values.values()):
                    rows.append(values)
                else:
                    blank += 1
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason_of(error)}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is no csv file: {error}") from error
    return rows, blank
