"""Any folder with a folder of images for each class, or with ``train``, ``val`` and ``test`` of that kind."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ...errors import DataError, some
from ..finding import Passed, class_folders
from ..imported import is_imported, read_manifest
from ..labels import check_labels
from ..splitting import SPLITS, check_no_splits, folder_groups, group_in, on_empty_classes
from .listing import Listed, Listing, check_source, images_below

BY_FOLDER = "folder"
"""What groups are called that are the folders inside of the classes' folders."""
LAYOUT = "<class>/* or {train,val,test}/<class>/*"


def list_folder(source: Path, group_by: re.Pattern[str] | None = None) -> Listing:
    """Lists a folder; folders below a class's folder belong to the class, and are its groups.

    Args:
        source: ``<class>/**`` or ``{train,val,test}/<class>/**``. The splits of the latter are kept.
        group_by: finds the group in a file name, or in the path below ``source`` where the pattern has a
            ``/``, in place of the folders.

    Raises:
        DataError: no images in classes, or in one of them, names of classes that are no UTF-8 or those of
            splits, images without a group, or an import whose groups would be lost.
    """
    root = check_source(source)
    if group_by is None and is_imported(root) and (kept := read_manifest(root).grouped_by):
        raise DataError(
            f"{source}: is an imported data set, whose groups ({kept}) would be lost: train on it as it is, "
            "import again what it was made from, or find them with --group-by"
        )
    origins, notes = images_below(root)
    has_splits = any((root / split).is_dir() for split in SPLITS)
    depth = 3 if has_splits else 2  # a class's folder and a file; and the split's folder
    passed = Passed()
    images, inner = [], []
    for origin in origins:
        parts = PurePosixPath(origin).parts
        split = parts[0] if has_splits and len(parts) > 1 else ""
        if split and split not in SPLITS:
            notes.append(f"{split}/ is beside the splits and is passed over")
            continue
        if len(parts) < depth:
            passed.add("images in no class's folder", origin)
            continue
        group = "" if group_by is None else group_in(origin, group_by)
        images.append(Listed(origin, parts[depth - 2], group, split))
        inner.append("/".join(parts[depth - 1 :]))
    notes += passed.notes()
    if not images:
        found = f"; {'; '.join(passed.notes())}" if passed.notes() else ""
        raise DataError(f"{source}: has no images in folders of classes{found}; expected {LAYOUT}")
    labels = tuple(sorted({image.label for image in images}))
    if empty := on_empty_classes(_class_names(root, has_splits), labels):
        raise DataError(f"{source}: {empty}")
    check_labels(source, labels)
    if not has_splits:
        check_no_splits(source, labels)
    ungrouped = [image.origin for image in images if not image.group]
    if group_by is not None and ungrouped:
        raise DataError(
            f"{source}: {len(ungrouped)} paths do not match the group pattern '{group_by.pattern}': "
            f"{some(ungrouped)}"
        )
    grouped_by = f"pattern {group_by.pattern}" if group_by else ""
    if group_by is None and (groups := folder_groups([image.label for image in images], inner)) is not None:
        images = [replace(image, group=group) for image, group in zip(images, groups, strict=True)]
        grouped_by = BY_FOLDER
    return Listing(
        images,
        labels,
        grouped_by=grouped_by,
        notes=list(dict.fromkeys(notes)),
        keeps_split=has_splits,
    )


def _class_names(root: Path, has_splits: bool) -> list[str]:
    """The names of the classes' folders, whatever they hold."""
    names = []
    for place in [root / split for split in SPLITS if (root / split).is_dir()] if has_splits else [root]:
        with suppress(DataError):  # a split without any
            names += [folder.name for folder in class_folders(place, Passed())]
    return names
