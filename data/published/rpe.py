"""RPE: windows of phase-contrast images of retinal pigment epithelium, in four stages of maturation.

Published as ``Subwindows/<x>_<image>_<window>_<class>_<y>.tif`` of 640x480. What the fields mean is not
published; they are inferred, and the published counts of the classes are the check. Windows of one image
overlap or touch, so the image is the group.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from ...errors import DataError, some
from .listing import Listed, Listing, check_source, images_below

CLASSES = {"1": "Fusiform", "2": "Epithelioid", "3": "Cobblestone", "4": "Mixed"}
PUBLISHED = {"Cobblestone": 949, "Epithelioid": 547, "Fusiform": 216, "Mixed": 150}
IMAGES = 195
"""Phase-contrast images that the windows are of."""

_NAME = re.compile(r"[^_]+_(?P<image>[^_]+)_[^_]+_(?P<class>[^_]+)_[^_]+")


def list_rpe(source: Path) -> Listing:
    """Lists the windows, grouped by image.

    Args:
        source: the folder ``Subwindows``, or one that holds it.

    Raises:
        DataError: names of another form, or as many windows as published but in other classes, so that the
            class is not where it is taken to be.
    """
    origins, notes = images_below(check_source(source))
    windows = [origin for origin in origins if origin.lower().endswith((".tif", ".tiff"))]
    if others := len(origins) - len(windows):
        notes.append(f"{others:,} images that are no TIFF files are passed over")
    images, strange = [], []
    for origin in windows:
        match = _NAME.fullmatch(PurePosixPath(origin).stem)
        if match is None or match["class"] not in CLASSES:
            strange.append(origin)
        else:
            images.append(Listed(origin, CLASSES[match["class"]], match["image"]))
    if strange or not images:
        found = (
            f"{len(strange)} names are of another form: {some(strange)}" if strange else "has no TIFF files"
        )
        raise DataError(
            f"{source}: {found}; expected <x>_<image>_<window>_<class>_<y>.tif with a class of 1 to 4"
        )
    listing = Listing(images, tuple(PUBLISHED), grouped_by="source image", notes=notes)
    listing.compare(PUBLISHED)
    if listing.differences and len(images) == sum(PUBLISHED.values()):
        raise DataError(
            f"{source}: holds as many windows as published, but in other classes: "
            f"{'; '.join(listing.differences)}. So the fourth field of the names is not the class: do "
            "not train "
            "on it"
        )
    if (groups := len({image.group for image in images})) != IMAGES:
        listing.differences.append(f"{groups:,} images by the second field of the names, published {IMAGES}")
    return listing
