"""Text for people: names and messages of others made safe to show, rows of spreadsheets, tables.

A file, a class or a slide may bear any name. One with an escape sequence colours, hides or overwrites what a
terminal shows, one with a line end forges a row, one that begins with ``=`` is computed by the spreadsheet
that opens a csv file.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence

# Control characters, of which 0x80 to 0x9f begin sequences, too; marks and overrides of the direction of
# writing; line and paragraph separators; bytes of names that are no UTF-8 and control characters in latin-1.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\udc80-\udc9f]")

_ROUNDING = 1e-12  # of sums of shares
_NARROWEST = 16  # columns that words are wrapped into
_GAP = 2  # between two columns of a table that is cut

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


def share_as_text(share: float, decimals: int = 1, scale: float = 100) -> str:
    """A share of so many decimals, in per cent by default, that is none or all only where the share is.

    One image of 5,000 is ``<0.1`` % of them and the others ``>99.9`` %: 0.0 and 100.0 would say that there
    is none. What sums of shares round to counts as none or all.
    """
    text = f"{scale * share:.{decimals}f}"
    least = 10.0**-decimals
    if share > _ROUNDING and float(text) == 0:
        return f"<{least:.{decimals}f}"
    if share < 1 - _ROUNDING and float(text) == scale:
        return f">{scale - least:.{decimals}f}"
    return text


def as_word(text: str | os.PathLike[str]) -> str:
    """A name as one word of a command that a message tells to type: in the system's quotes where need be."""
    name = os.fspath(text)
    return subprocess.list2cmdline([name]) if sys.platform == "win32" else shlex.quote(name)


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


def table_lines(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: Collection[int],
    width: int | None = None,
) -> list[str]:
    """The lines of a table, whose cells are shown as they are.

    One that is too wide is cut into several under one another, each of which begins with the first column:
    a terminal would wrap its lines, and a figure that is cut off is a wrong one.

    Args:
        head: a name for each column, of several lines if need be.
        rows: as many cells each.
        words: the columns of words, which begin at the left and may be wrapped; others end at the right.
        width: columns of the terminal; None: as wide as need be.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    widths = [
        max(cell_len(line) for row in (head, *rows) for line in row[number].split("\n"))
        for number in range(len(head))
    ]
    parts = [list(range(len(head)))]
    if width is not None and _together(widths) > width:
        head = list(head)
        for number, name in enumerate(head):
            longest = max(cell_len(each) for each in ("", *name.split()))
            widths[number] = max([longest, *(cell_len(row[number]) for row in rows)])
            head[number] = textwrap.fill(name, widths[number], break_long_words=False) if name else ""
        whole = {
            number: max((cell_len(word) for row in rows for word in row[number].split()), default=0)
            for number in words
        }
        widths, parts = _fitted(widths, whole, width)
    lines: list[str] = []
    for part in parts:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, _GAP - 1, 0, 0))
        for number in part:
            of_words = number in words
            table.add_column(
                head[number],
                justify="left" if of_words else "right",
                no_wrap=not of_words,
                overflow="fold",
                width=widths[number],
            )
        for row in rows:
            table.add_row(*(Text(row[number]) for number in part))  # names are no markup
        text = io.StringIO()
        Console(file=text, width=1000).print(table)
        lines += [""] if lines else []
        lines += [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]
    return lines


def _together(widths: Iterable[int]) -> int:
    """How wide columns are beside one another."""
    return sum(width + _GAP for width in widths) - _GAP


def _fitted(widths: list[int], whole: Mapping[int, int], width: int) -> tuple[list[int], list[list[int]]]:
    """The widths that columns get, and the columns, by number, of each of the tables that one is cut into.

    Words are wrapped as far as they must be for one table, or, where that does not do, to a third of the
    width; a word itself only where it is longer than half of it. Each table has the first column, and as many
    others as fit.
    """
    third = max(width // 3, _NARROWEST)
    for most in (*range(max(widths), _NARROWEST - 1, -1), third):
        narrowed = widths.copy()
        for number, longest in whole.items():
            narrowed[number] = min(widths[number], max(most, min(longest, width // 2)))
        if _together(narrowed) <= width:
            return narrowed, [list(range(len(widths)))]
    parts: list[list[int]] = []
    for number in range(1, len(widths)):
        if parts and _together(narrowed[each] for each in (*parts[-1], number)) <= width:
            parts[-1].append(number)
        else:
            parts.append([0, number])
    return narrowed, parts or [[0]]


def wrapped(line: str, width: int | None = None, indent: int = 0) -> str:
    """A line of text as several that are no wider than that; None leaves it as it is.

    Args:
        line: the text.
        width: columns.
        indent: those that are left free at the beginning of each line but the first.
    """
    if width is None or len(line) <= width:
        return line
    indent = min(indent, width // 2)
    return textwrap.fill(line, width, subsequent_indent=" " * indent, break_on_hyphens=False)
