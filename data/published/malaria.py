"""NIH malaria, which the paper calls SARS: single red blood cells, with and without parasites.

Published as ``cell_images/{Parasitized,Uninfected}/*.png``, a ``Thumbs.db`` in each; a widespread copy holds
the same again in ``cell_images/cell_images``. A name begins with the patient, in several spellings::

    C100P61ThinF_IMG_…    C33P1thinF_IMG_…    C5NThinF_IMG_…    C1_thinF_IMG_…    C3thin_original_IMG_…
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from ...errors import DataError, some
from .listing import Listed, Listing, check_source, images_below

PUBLISHED = {"Parasitized": 13_779, "Uninfected": 13_779}

_PATIENT = re.compile(r"(.+?)_?thin", re.IGNORECASE)


def list_malaria(source: Path) -> Listing:
    """Lists the cells, grouped by patient.

    Args:
        source: the folder with the two classes, or one that holds it.

    Raises:
        DataError: the two classes are not there, or names have no patient.
    """
    origins, notes = images_below(check_source(source))
    found: dict[PurePosixPath, list[Listed]] = {}
    for origin in origins:
        path = PurePosixPath(origin)
        if path.parent.name in PUBLISHED:
            image = Listed(origin, path.parent.name, patient_of(path.name))
            found.setdefault(path.parent.parent, []).append(image)
    complete = [folder for folder, images in found.items() if {each.label for each in images} == {*PUBLISHED}]
    if not complete:
        raise DataError(
            f"{source}: has no folders {' and '.join(PUBLISHED)} with images beside one another: "
            "expected the unpacked cell_images"
        )
    first, *others = sorted(complete, key=lambda folder: (len(folder.parts), folder))
    for other in others:
        if {_below(first, each) for each in found[first]} != {_below(other, each) for each in found[other]}:
            raise DataError(
                f"{source}: holds both classes twice, in '{first}' and '{other}', and they differ: "
                "give the one "
                "that is meant"
            )
        notes.append(f"{other}/ holds the same files again and is passed over")
    listed = {each.origin for folder in complete for each in found[folder]}
    if elsewhere := [origin for origin in origins if origin not in listed]:
        notes.append(
            f"{len(elsewhere):,} images are beside the folders of both classes and are passed over: "
            f"{some(elsewhere)}"
        )
    images = found[first]
    nameless = [image.origin for image in images if not image.group]
    if nameless:
        raise DataError(
            f"{source}: {len(nameless)} names have no patient before 'thin': {some(nameless)}; "
            "expected names "
            "like C100P61ThinF_IMG_20150918_144104_cell_162.png"
        )
    listing = Listing(images, tuple(PUBLISHED), grouped_by="patient", notes=notes)
    listing.compare(PUBLISHED)
    return listing


def patient_of(name: str) -> str:
    """The patient in a file name, in one spelling; empty where there is none."""
    match = _PATIENT.match(name)
    return match[1].upper() if match else ""


def _below(folder: PurePosixPath, image: Listed) -> PurePosixPath:
    return PurePosixPath(image.origin).relative_to(folder)
