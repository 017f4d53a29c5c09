"""Any folder with a folder of images for each class, or with ``train``, ``val`` and ``test`` of that kind."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from ...errors import DataError, some
from ..splitting import SPLITS, group_in
from .listing import Listed, Listing, check_source, images_below

LAYOUT = "<class>/* or {train,val,test}/<class>/*"


def list_folder(source: Path, group_by: re.Pattern[str] | None = None) -> Listing:
    """Lists a folder; folders below a class's folder belong to the class.

    Args:
        source: ``<class>/**`` or ``{train,val,test}/<class>/**``. The splits of the latter are kept.
        group_by: finds the group in a file name, or in the path below ``source`` where the pattern has a
            ``/``: its first group, or the whole match where it has none.

    Raises:
        DataError: no classes, images beside the classes, or names without a group.
    """
    root = check_source(source)
    origins, notes = images_below(root)
    has_splits = any((root / split).is_dir() for split in SPLITS)
    depth = 3 if has_splits else 2  # a class's folder and a file; and the split's folder
    stray = [origin for origin in origins if len(PurePosixPath(origin).parts) < depth]
    if stray or not origins:
        expected = f"expected {LAYOUT}"
        found = f"{some(stray)} is in no class's folder" if stray else "has no images in folders of classes"
        raise DataError(f"{source}: {found}; {expected}")
    images = []
    for origin in origins:
        parts = PurePosixPath(origin).parts
        split = parts[0] if has_splits else ""
        if has_splits and split not in SPLITS:
            notes.append(f"{split}/ is beside the splits and is passed over")
            continue
        images.append(Listed(origin, parts[depth - 2], _group(origin, group_by), split))
    ungrouped = [image.origin for image in images if group_by is not None and not image.group]
    if ungrouped:
        raise DataError(
            f"{source}: {len(ungrouped)} paths do not match the group pattern "
            f"{group_by.pattern if group_by else ''!r}: {some(ungrouped)}"
        )
    return Listing(
        images,
        tuple(sorted({image.label for image in images})),
        grouped_by=f"pattern {group_by.pattern}" if group_by else "",
        notes=list(dict.fromkeys(notes)),
        keeps_split=has_splits,
    )


def _group(origin: str, group_by: re.Pattern[str] | None) -> str:
    if group_by is None:
        return ""
    return group_in(origin if "/" in group_by.pattern else PurePosixPath(origin).name, group_by)
