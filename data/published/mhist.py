"""MHIST: colorectal polyps, hyperplastic (HP) or sessile serrated adenomas (SSA), by the majority of seven.

Published as ``annotations.csv`` and ``images/*.png`` of 224x224, with a partition into train and test.
Neither patient nor slide is published.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

from ...errors import DataError, some
from ..finding import Passed, files_below
from .listing import Listed, Listing, check_source, images_below, rows_of

PUBLISHED = {"HP": 2_162, "SSA": 990}
PARTITIONS = {"train": 2_175, "test": 977}

_NAME, _LABEL, _PARTITION = COLUMNS = ("Image Name", "Majority Vote Label", "Partition")


def list_mhist(source: Path) -> Listing:
    """Lists the images that have a line in ``annotations.csv`` and a file.

    Args:
        source: the folder with both, or one that holds it.

    Raises:
        DataError: there is no or more than one annotation file, or a line makes no sense.
    """
    root = check_source(source)
    tables = [path for path in files_below(root, Passed(), within=root) if path.name == "annotations.csv"]
    if len(tables) != 1:
        raise DataError(f"{source}: has {len(tables)} files annotations.csv; expected one, and images/*.png")
    rows, blank = rows_of(tables[0], COLUMNS)
    origins, notes = images_below(root, tables)
    files: dict[str, list[str]] = {}
    for origin in origins:
        files.setdefault(PurePosixPath(origin).name, []).append(origin)

    images: dict[str, Listed] = {}
    strange, missing = [], []
    for row in rows:
        if row[_LABEL] not in PUBLISHED or row[_PARTITION] not in PARTITIONS:
            strange.append(f"{row[_NAME]!r} is {row[_LABEL]!r} in {row[_PARTITION]!r}")
            continue
        if row[_NAME] not in files:
            missing.append(row[_NAME])
            continue
        if len(files[row[_NAME]]) > 1:
            raise DataError(f"{source}: has {some(files[row[_NAME]])}; expected one file of that name")
        image = Listed(files[row[_NAME]][0], row[_LABEL], split=row[_PARTITION])
        if images.setdefault(image.origin, image) != image:
            strange.append(f"{row[_NAME]!r} has two lines that differ")
    if strange:
        raise DataError(
            f"{tables[0]}: {len(strange)} lines make no sense: {some(strange)}; expected HP or SSA, "
            "in train or "
            "test"
        )
    listing = Listing([*images.values()], tuple(PUBLISHED), notes=notes)
    if blank:
        notes.append(f"{blank:,} blank lines of annotations.csv are passed over")
    if unnamed := sorted(set(origins) - images.keys()):
        notes.append(f"{len(unnamed):,} images have no line in annotations.csv: {some(unnamed)}")
    if missing:
        listing.differences.append(f"{len(missing):,} images of annotations.csv are missing: {some(missing)}")
    listing.compare(PUBLISHED)
    found = Counter(image.split for image in listing.images)
    listing.differences += [
        f"{name}: {found[name]:,} images, published {count:,}"
        for name, count in PARTITIONS.items()
        if found[name] != count
    ]
    return listing
