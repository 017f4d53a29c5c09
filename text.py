"""Names and messages of others made safe to show: on a terminal, and in a cell of a spreadsheet.

A file, a class or a slide may bear any name. One with an escape sequence colours, hides or overwrites what a
terminal shows, one with a line end forges a row, one that begins with ``=`` is computed by the spreadsheet
that opens a csv file.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable

# Control characters, of which 0x80 to 0x9f begin sequences, too; marks and overrides of the direction of
# writing; line and paragraph separators; bytes of names that are no UTF-8 and control characters in latin-1.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\udc80-\udc9f]")

# What makes a spreadsheet take a cell for a formula, the wide forms of Chinese and Japanese text included.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


def shown(text: str, keep: str = "") -> str:
    r"""The text without control characters: ``\u001b`` in place of ESC, as JSON has it.

    Args:
        text: anything.
        keep: control characters that may stay, such as line ends between rows.
    """
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else f"\\u{ord(found[0]):04x}", text)


def as_cell(text: str) -> str:
    """Text that a spreadsheet takes for text: an apostrophe stands before what it would take for a formula.

    What looks as if it had such an apostrophe gets another, so that `from_cell` gives the text back.
    """
    return f"'{text}" if text[:1] in _FORMULA or _is_quoted(text) else text


def as_row(cells: Iterable[object]) -> str:
    """A line of a csv file, with its end. Whatever ends a line is quoted, so that a name with it is read as
    it was written: where lines end in a line feed, Python up to 3.12 leaves a carriage return bare."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def from_cell(cell: str) -> str:
    """The text that `as_cell` was given."""
    return cell[1:] if _is_quoted(cell) else cell


def _is_quoted(cell: str) -> bool:
    return cell[:1] == "'" and cell[1:2] in (*_FORMULA, "'")
