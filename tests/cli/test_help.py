"""Help that one can read: whole lines, sentences that stand alone, examples that work, true defaults."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from msmamba.cli import mmdeploy
from msmamba.cli.export import _INT8_OPTIONS
from msmamba.cli.help import MAX_WIDTH, Command, Group
from msmamba.export.bundle import ExportOptions
from msmamba.export.graph.int8_options import Int8Options
from msmamba.export.graph.judging import Limits
from msmamba.measures.decision import INT8_BAR
from msmamba.microscope.slides.tissue import TissueOptions
from msmamba.model.training.augmentation import Augmentation
from msmamba.model.training.figures import as_typed, option_of
from msmamba.model.training.recipe import PRESETS, Recipe
from msmamba.runtime.benchmark import BenchmarkOptions

_STUMPS = ("Of", "Likewise", "As", "Whose", "That", "Which of", "At most", "To", "See")
"""Beginnings of a text that can only be understood with the option's name before it."""


def contexts(command: click.Command, parent: click.Context | None = None) -> Iterator[click.Context]:
    """A command and those below it, as click would see them."""
    context = click.Context(command, parent, command.name, **command.context_settings)
    yield context
    if isinstance(command, click.Group):
        for below in command.commands.values():
            yield from contexts(below, context)


CONTEXTS = list(contexts(mmdeploy))
FLOATS = [
    pytest.param(context, parameter, id=f"{context.info_name}-{parameter.name}")
    for context in CONTEXTS
    for parameter in context.command.params
    if isinstance(parameter.type, click.types.FloatParamType | click.types.FloatRange)
]
"""Every option whose value is a number that need not be whole."""
every_command = pytest.mark.parametrize(
    "context", CONTEXTS, ids=[context.command_path.replace(" ", "-") for context in CONTEXTS]
)


def shown(context: click.Context, columns: int) -> list[str]:
    """The lines of a command's help in a terminal of so many columns."""
    arguments = [*context.command_path.split()[1:], "--help"]
    done = CliRunner(env={"COLUMNS": str(columns)}).invoke(mmdeploy, arguments)
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


@every_command
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_lines_are_short_and_whole(context: click.Context, columns: int) -> None:
    lines = shown(context, columns)
    assert max(map(len, lines)) <= MAX_WIDTH
    assert not [line for line in lines if re.search(r"[a-z,]\.\.\.$", line)]  # click's mark of a cut sentence


@every_command
def test_every_option_says_what_it_is_for_in_a_sentence(context: click.Context) -> None:
    for parameter in context.command.get_params(context):
        if isinstance(parameter, click.Option):
            assert re.fullmatch(r"[A-Z].*\.", parameter.help or ""), parameter.opts
            assert not re.match(rf"({'|'.join(_STUMPS)})\b", parameter.help or ""), parameter.help


@every_command
def test_every_command_says_what_it_does_in_a_sentence(context: click.Context) -> None:
    short = context.command.get_short_help_str(10**6)
    assert re.fullmatch(r"[A-Z].*\.", short)
    assert context.parent is None or len(short) <= MAX_WIDTH - len("  explain  ")


@every_command
def test_the_example_can_be_typed(context: click.Context) -> None:
    assert isinstance(context.command, (Command, Group))
    lines = [shlex.split(line) for line in context.command.example.splitlines()]
    assert lines
    for line in lines:
        assert line[: len(path := context.command_path.split())] == path
        command, words = mmdeploy, line[1:]
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        command.make_context(command.name, words)  # raises for what the command does not take
        assert f"  {shlex.join(line)}" in [
            f"  {shlex.join(shlex.split(text))}"
            for text in shown(context, 60)
            if text.startswith("  mmdeploy")
        ]


def test_options_stand_under_their_headings() -> None:
    export = next(context for context in CONTEXTS if context.info_name == "export")
    lines = shown(export, 100)
    headings = [line for line in lines if re.fullmatch(r"\S.*:", line)]
    assert headings[0] == "Output:"
    assert headings[-2:] == ["Options:", "Example:"]
    calib = next(number for number, line in enumerate(lines) if line.startswith("  --calib DATA"))
    assert lines[calib - 1] == "Quantisation to int8:"
    begins = {len(found[0]) for line in lines if (found := re.match(r"  -[^ ]+( [A-Z%|]+)?  +(?=\S)", line))}
    assert len(begins) == 1  # one column of texts, whatever the heading


def test_an_option_that_click_makes_is_shown_too() -> None:
    @click.command(cls=Command, example="mmdeploy new --plain 3")
    @click.option("--plain", type=click.IntRange(1), help="Take it as it is.")
    def new(plain: int) -> None: ...

    lines = CliRunner().invoke(new, ["--help"]).output.splitlines()
    assert lines[lines.index("Options:") + 1].split() == [
        *("--plain", "INTEGER", "RANGE", "Take", "it", "as", "it", "is.", "[x>=1]")
    ]


def figures(text: str) -> Any:
    """What a default in a help says: a switch, a number, several, or a word."""
    if text in ("on", "off"):
        return text == "on"
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        return text
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def library_defaults() -> dict[str, dict[str, Any]]:
    """What the library takes where the command line does not say."""
    recipe = asdict(Recipe())
    recipe |= recipe.pop("augmentation")
    int8 = asdict(Int8Options(data="cells"))
    limits, bar = Limits(), INT8_BAR
    bench = {
        name: value[0] if isinstance(value, tuple) else value
        for name, value in vars(BenchmarkOptions()).items()
    }
    return {
        "train": recipe,
        "compare": {**recipe, "rounds": BenchmarkOptions().rounds},
        "export": {
            **vars(ExportOptions()),
            **{option: int8[name] for option, name in _INT8_OPTIONS.items()},
            "max_flips": str(limits.flips).replace(" ", ""),
            "max_accuracy_drop": limits.accuracy_drop,
        },
        "verify": {"max_accuracy_drop": bar.max_accuracy_drop, "max_auc_drop": bar.max_auc_drop},
        "slide": vars(TissueOptions()),
        "bench": bench,
    }


@pytest.mark.parametrize("name", ["train", "compare", "export", "verify", "slide", "bench"])
def test_defaults_are_those_of_the_library(name: str) -> None:
    context = next(context for context in CONTEXTS if context.info_name == name)
    told = {
        parameter.name: figures(parameter.show_default.removeprefix("none; int8: "))
        for parameter in context.command.params
        if isinstance(parameter, click.Option) and isinstance(parameter.show_default, str)
    }
    defaults = library_defaults()[name]
    compared = {option: value for option, value in told.items() if defaults.get(str(option)) is not None}
    assert len(compared) >= 2
    assert compared == {option: defaults[str(option)] for option in compared}


@pytest.mark.parametrize(("context", "parameter"), FLOATS)
def test_nan_is_no_number(context: click.Context, parameter: click.Parameter) -> None:
    """Every comparison with it is false, so it would be within any range and miss or meet any bar."""
    value = ("nan",) * parameter.nargs
    with pytest.raises(click.BadParameter, match="nan"):
        parameter.type_cast_value(
            context, value if parameter.nargs > 1 else (value if parameter.multiple else "nan")
        )


def test_figures_of_a_recipe_are_called_by_their_options() -> None:
    train = mmdeploy.commands["train"]
    options = {each.name: each.opts for each in train.params if isinstance(each, click.Option)}
    figures = {each.name for each in (*fields(Recipe), *fields(Augmentation))} - {
        "augmentation",
        "crop_ratio",
    }
    assert figures <= options.keys()
    for name in figures:
        assert option_of(name) in options[name]
    for name in ("network", "mifa", "parallel", "psffn", "white_level", "mpp", "group_by"):
        assert option_of(name) in options[name]


def test_what_departs_from_a_preset_is_told_as_it_is_typed() -> None:
    overridden = {**PRESETS["micrographs"], "keep_shape": False, "crop_ratio": (1, 2)}
    words = [word for name, value in overridden.items() for word in as_typed(name, value).split()]
    ratio = words.index("crop_ratio")
    assert words[ratio : ratio + 3] == ["crop_ratio", "1", "2"]  # which no option gives
    del words[ratio : ratio + 3]
    context = mmdeploy.commands["train"].make_context("train", ["data", "-o", "run", *words])
    del overridden["crop_ratio"]
    assert {name: context.params[name] for name in overridden} == overridden


def test_every_wrong_figure_is_named_as_it_was_typed(tmp_path: Path) -> None:
    wrong = ["--lr", "-1", "--average", "-2", "--epochs", "3", "--crop-scale", "1", "2", "--colour", "1"]
    done = CliRunner().invoke(mmdeploy, ["train", str(tmp_path), "-o", str(tmp_path / "run"), *wrong])
    assert done.exit_code == 1
    assert done.stderr == (
        "error: the recipe makes no sense: --crop-scale is 1.0 to 2.0, expected two numbers above 0 in "
        "order, at most 1.0; --colour is 1.0, expected 0 to 0.9; --lr is -1.0, expected a number above 0; "
        "--average is -2.0, expected 0 or more; --warm-up is 10, which leaves none of 3 epochs for the "
        "decay: lower it\n"
    )
