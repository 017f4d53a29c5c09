"""How ``--help`` looks: whole lines, options under headings, an example for each command.

`option` takes the heading that an option stands under; what ``click.option`` makes stands under "Options".
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from ..files import standard_output

if TYPE_CHECKING:
    from click.types import OptionHelpExtra  # not in click 8.1

MAX_WIDTH = 100
"""Columns that help takes at most, however wide the terminal is."""
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": MAX_WIDTH, "show_default": True}
"""Context settings of the group `mmdeploy`, which its commands inherit."""

_TERM_WIDTH = 30  # columns of an option's names; click gives longer ones a line of their own
_OTHERS = "Options"
_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


class Option(click.Option):
    """An option with the heading that it stands under in its command's help.

    A default that the library has, not the command line, is told by ``show_default="128"``.
    """

    def __init__(self, *names: Any, group: str, **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.group = group

    def type_cast_value(self, context: click.Context, value: Any) -> Any:
        """The value as its type has it; "nan", which every range and every bar lets pass, is no number."""
        found = super().type_cast_value(context, value)
        for each in found if isinstance(found, tuple) else (found,):
            if isinstance(each, float) and math.isnan(each):
                raise click.BadParameter("nan is not a number.", context, self)
        return found

    def get_help_extra(self, context: click.Context) -> OptionHelpExtra:
        """The default as it is written, without click's brackets; no range, which an error tells."""
        extra = super().get_help_extra(context)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default
        extra.pop("range", None)
        return extra


def option(*names: str, group: str, **settings: Any) -> Callable[[_Decorated], _Decorated]:
    """``click.option`` under a heading."""
    return click.option(*names, cls=Option, group=group, **settings)


class Command(click.Command):
    """A command whose help has its options under headings and ends in an example.

    Args:
        example: lines to type, as they stand.
    """

    def __init__(self, *arguments: Any, example: str = "", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.example = example

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        """The context; on the way to it ``--help`` is answered."""
        with standard_output():
            return super().make_context(*arguments, **settings)

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Refuses what is empty, an unset variable of a shell: as a path it would be the current folder."""
        rest = super().parse_args(context, args)
        for each in self.params:
            value = context.params.get(each.name or "")
            typed = context.get_parameter_source(each.name or "") is ParameterSource.COMMANDLINE
            if typed and "" in (value if isinstance(value, tuple) else (value,)):
                raise click.BadParameter("it is empty.", context, each)
        return rest

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The headings in the order of their first options, what has none last, all in the same columns."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None and isinstance(parameter, click.Option):
                groups.setdefault(getattr(parameter, "group", _OTHERS), []).append(record)
        groups[_OTHERS] = groups.pop(_OTHERS)  # --help is there always
        width = min(_TERM_WIDTH, max(len(names) for records in groups.values() for names, _ in records))
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl([(names.ljust(width), text) for names, text in records], _TERM_WIDTH)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The example, after all else."""
        write_example(formatter, self.example)


class Group(click.Group):
    """Commands in the order in which they were added, each with the first sentence of its help, whole.

    Args:
        example: lines to type, as they stand.
    """

    command_class = Command

    def __init__(self, *arguments: Any, example: str = "", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.example = example

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        """The context; on the way to it ``--help`` is answered."""
        with standard_output():
            return super().make_context(*arguments, **settings)

    def list_commands(self, context: click.Context) -> list[str]:
        """The names, in the order of work."""
        return list(self.commands)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands; click would cut their sentences to one line."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(sys.maxsize)) for name, command in self.commands.items()]
            )

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The example, after all else."""
        write_example(formatter, self.example)


def write_example(formatter: click.HelpFormatter, lines: str) -> None:
    """A section of lines that are not wrapped, so that they can be copied."""
    with formatter.section("Example"):
        for line in lines.splitlines():
            formatter.write(f"{'':{formatter.current_indent}}{line}\n")
