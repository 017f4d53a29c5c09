"""What CHANGELOG.md has to say of a release. Only the standard library is needed."""

from __future__ import annotations

import datetime
import re


def wrong_changelog(changelog: str, version: str) -> list[str]:
    """How the changelog fails to tell of a version: its newest, under ``## VERSION - YEAR-MONTH-DAY``."""
    headings = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    told = next((heading for heading in headings if heading != "Unreleased"), "")
    name, _, date = told.partition(" - ")
    if name != version:
        newest = f"'## {told}'" if told else "no version"
        return [f"CHANGELOG.md tells of {newest} first, expected '## {version} - DATE' as version.py says"]
    try:
        datetime.date.fromisoformat(date)
    except ValueError:
        return [f"CHANGELOG.md: '## {told}' has no date, expected '## {version} - YEAR-MONTH-DAY'"]
    return []


def unreleased(changelog: str) -> int:
    """How many entries stand under ``## Unreleased``."""
    found = re.search(r"^## Unreleased$(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    return len(re.findall(r"^- ", found[1], re.MULTILINE)) if found else 0
