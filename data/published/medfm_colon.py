"""MedFM Colon: patches of colon tissue, with tumour and without.

Published as ``MedFMC_train/colon`` and ``MedFMC_val/colon``, each with ``images/*.png`` of 1024x1024 (names
with spaces) and a csv file ``slide_id,img_id,tumor``. The labels of the second part came later, in a csv
file of both. One file has CRLF line ends; one has empty labels and a thousand blank lines ``,,``.

A ``slide_id`` names a region, not a slide: what stands before ``-lv1-`` is the slide, several regions share
one, and most slides' names begin with the patient's case, of which there are several slides::

    2019-10732-1-5-5_2019-05-28 16_40_29-lv1-19373-12112-8943-4506   case 2019-10732, slide 1-5-5
    D20190284705_2019-06-10 15_10_34-lv1-15598-12648-5733-5319       case D201902847, slide 05
    1902386002_2019-06-11 12_23_22-lv1-22824-31253-5676-4175         case 1902386, slide 002
    2019-06-11 01_00_50-lv1-1956-12720-11095-7901                    a slide without a case
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from filecmp import cmp
from pathlib import Path, PurePosixPath

from ...errors import DataError, some
from ...files import open_file
from ..finding import Passed, files_below
from .listing import Listed, Listing, check_source, images_below, rows_of

PUBLISHED = {"normal": 6_711, "tumor": 3_298}
LABELS = {"0": "normal", "1": "tumor"}
PARTS = {"train": 5_654, "test": 4_355}
"""The second is the published validation part; the published test part was never released."""

_SLIDE, _IMAGE, _TUMOR = COLUMNS = ("slide_id", "img_id", "tumor")
_CASES = [re.compile(pattern) for pattern in (r"(\d{4}-\d{5})-", r"(D\d{9})\d\d_", r"(\d{7})\d{3}_")]


def list_medfm_colon(source: Path) -> Listing:
    """Lists the labelled images, grouped by patient, or by slide where a name has no case.

    Args:
        source: a folder that holds the images and the csv files, however deep.

    Raises:
        DataError: no csv file, or lines that make no sense.
    """
    root = check_source(source)
    tables = [
        path
        for path in files_below(root, Passed(), within=root)
        if path.suffix.lower() == ".csv" and _is_table(path)
    ]
    if not tables:
        raise DataError(f"{source}: has no csv file that begins with {','.join(COLUMNS)}")
    origins, notes = images_below(root, tables)
    files = _by_name(root, origins)

    images: dict[str, Listed] = {}
    strange, missing, blanks = [], set(), 0
    for table in tables:
        rows, blank = rows_of(table, COLUMNS)
        blanks += blank
        part = _part_of(table)
        for row in rows:
            name, label = row[_IMAGE], LABELS.get(row[_TUMOR], "")
            if not name or (row[_TUMOR] and not label):
                strange.append(f"{table.name}: {','.join(row.values())!r}")
            elif name not in files:
                missing.add(name)
            else:
                earlier = images.get(name, Listed(files[name], ""))
                if {earlier.label, label} == {*PUBLISHED} or {earlier.split, part} == {*PARTS}:
                    strange.append(f"{table.name}: {name} is {label or part} here and not elsewhere")
                images[name] = replace(
                    earlier,
                    label=label or earlier.label,
                    split=part or earlier.split,
                    group=case_of(row[_SLIDE] or name),
                )
    if strange:
        raise DataError(
            f"{source}: {len(strange)} lines make no sense: {some(strange)}; expected an image, and 0 or 1"
        )
    labelled = [image for image in images.values() if image.label]
    listing = Listing(
        sorted(labelled, key=lambda image: image.origin), tuple(PUBLISHED), grouped_by="patient", notes=notes
    )
    if blanks:
        notes.append(f"{blanks:,} blank lines are passed over")
    if unlabelled := len(images) - len(labelled):
        notes.append(f"{unlabelled:,} images have a line without a label and are passed over")
    if unnamed := sorted(set(files) - images.keys()):
        notes.append(f"{len(unnamed):,} images have no line: {some(unnamed)}")
    if missing:
        listing.differences.append(
            f"{len(missing):,} images with a line are missing: {some(sorted(missing))}"
        )
    listing.compare(PUBLISHED)
    if any(image.split for image in labelled):
        found = Counter(image.split for image in labelled)
        listing.differences += [
            f"{'validation' if part == 'test' else part} part: {found[part]:,} labelled images, "
            f"published {count:,}"
            for part, count in PARTS.items()
            if found[part] != count
        ]
    return listing


def case_of(slide_id: str) -> str:
    """The patient's case in a slide's name, or the slide where it has none."""
    slide = re.split(r"-lv\d+-", slide_id)[0]
    for pattern in _CASES:
        if match := pattern.match(slide):
            return match[1]
    return slide


def _is_table(path: Path) -> bool:
    with open_file(path) as file:
        first = file.readline(1 << 12).decode("utf-8-sig", "replace").strip()
    return all(column in first.split(",") for column in COLUMNS)


def _part_of(table: Path) -> str:
    name = table.stem.lower()
    return "train" if "train" in name else "test" if "val" in name else ""


def _by_name(root: Path, origins: list[str]) -> dict[str, str]:
    """Images by file name; a second file of a name has to be the same."""
    files: dict[str, str] = {}
    for origin in origins:
        name = PurePosixPath(origin).name
        if name in files and not cmp(root / files[name], root / origin, shallow=False):
            raise DataError(f"{root}: '{files[name]}' and '{origin}' have one name and differ: remove one")
        files.setdefault(name, origin)
    return files
