"""Docstrings stand by themselves: none leans on the name before it, as "Of their choice." does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from test_house import package

_LEANING = re.compile(r"(Of|Likewise|That|Whose|To)\b|At most\.")
_LEANING_FIELD = re.compile(r" +[a-z_]+(, [a-z_]+)*: (of|likewise|that|whose)\b")


def leaning(source: str) -> Iterator[str]:
    """The lines that lean: first lines of docstrings, those of attributes too, and entries of their lists."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                first, *others = text.splitlines()
                yield from filter(_LEANING.match, [first])
                yield from filter(_LEANING_FIELD.match, others)


def test_what_leans_is_found() -> None:
    source = '''
class Choice:
    """How to choose.

    Attributes:
        images: of the split.
        seed: decides which.
    """
    count: int = 1
    """Of images."""
    seed: int = 0
    """Seed of the choice."""
'''
    assert list(leaning(source)) == ["        images: of the split.", "Of images."]


@pytest.mark.parametrize("module", sorted(package()))
def test_docstrings_stand_by_themselves(module: str) -> None:
    assert list(leaning(package()[module].read_text(encoding="utf-8"))) == []
