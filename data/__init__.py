"""Labelled images on disk, without torch: folders, imported and published data sets, groups and splits."""
