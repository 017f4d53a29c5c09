"""Published data sets, read as they are really published, and imported with their groups kept apart.

Each importer lists images with class, group and published split, and says what differs from what was
published; `importing` does what all of them need: checksums, channel statistics, splits, links, manifest.

No data set is downloaded, and none could be where this was written: the layouts are those of the published
descriptions, and the tests make small files in them.
"""

from __future__ import annotations

from .importing import KINDS, ImportOptions, import_data_set

__all__ = ["KINDS", "ImportOptions", "import_data_set"]
