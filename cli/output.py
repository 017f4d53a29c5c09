"""What commands print: text that a terminal shows as it stands, whatever names are in it."""

from __future__ import annotations

import click

from ..text import shown


def say(line: str, *, err: bool = False) -> None:
    """Prints one line, whose control characters are escaped."""
    click.echo(shown(line), err=err)


def say_lines(text: str) -> None:
    """Prints lines that are ended already; names in them are `shown` by whoever wrote the lines."""
    click.echo(shown(text, keep="\n"), nl=False)
