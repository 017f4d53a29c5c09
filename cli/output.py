"""What commands print: text that a terminal shows as it stands, whatever names are in it."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress

import click

from ..errors import TargetError
from ..files import standard_output
from ..text import shown

_FEWEST = 40  # columns that are written for, lest a table becomes a column of letters


def columns() -> int | None:
    """How many columns standard output has, a terminal's or as COLUMNS says; None where lines have no end."""
    if "COLUMNS" in os.environ or (sys.stdout is not None and sys.stdout.isatty()):
        return max(shutil.get_terminal_size().columns, _FEWEST)
    return None


def check_output(otherwise: str) -> None:
    """Refuses, before the work, to print what would be lost with it.

    Args:
        otherwise: what to do where there is no standard output.

    Raises:
        TargetError: there is none.
    """
    if sys.stdout is None:
        raise TargetError(f"standard output is closed: {otherwise}")


def say(line: str, *, err: bool = False) -> None:
    """Prints one line, whose control characters are escaped.

    Where standard error is full or gone, what is said there is lost, and the work goes on.

    Raises:
        TargetError: standard output cannot be written.
    """
    if err:
        with suppress(OSError):
            click.echo(shown(line), err=True)
        return
    with standard_output():
        click.echo(shown(line))


def say_lines(text: str) -> None:
    """Prints lines that are ended already; names in them are `shown` by whoever wrote the lines.

    Raises:
        TargetError: standard output cannot be written.
    """
    with standard_output():
        click.echo(shown(text, keep="\n"), nl=False)
