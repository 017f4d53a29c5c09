"""Names of others on terminals and in spreadsheets."""

from __future__ import annotations

import csv
import io
import json
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from msmamba.errors import ArtefactError, SourceError
from msmamba.microscope.sources import open_source
from msmamba.runtime.artefact import recognise
from msmamba.text import as_cell, as_row, as_word, from_cell, share_as_text, shown, table_lines, wrapped


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("red\x1b[31m.jpg", "red\\u001b[31m.jpg"),
        ("x.jpg  benign  1.0000\nforged.jpg", "x.jpg  benign  1.0000\\u000aforged.jpg"),
        ("\x9b2J", "\\u009b2J"),
        ("gpj.\u202ecod", "gpj.\\u202ecod"),
        ("a\u2028b", "a\\u2028b"),
        ("latin \udc9b", "latin \\udc9b"),
        ("größe 細胞 caf\udce9.png", "größe 細胞 caf\udce9.png"),
    ],
)
def test_control_characters_are_escaped_and_letters_are_not(name: str, said: str) -> None:
    assert shown(name) == said


@pytest.mark.parametrize(
    ("share", "asked", "said"),
    [
        (4999 / 5000, (), ">99.9"),
        (1 / 5000, (), "<0.1"),
        (1299 / 1300, (), "99.9"),
        (1, (), "100.0"),
        (sum([1 / 7] * 7), (), "100.0"),  # 0.9999999999999998
        (0, (), "0.0"),
        (0.9996, (0,), ">99"),
        (0.99999, (4, 1), ">0.9999"),
        (0.0005, (2,), "0.05"),
    ],
)
def test_a_share_is_none_or_all_only_where_it_is(share: float, asked: tuple[int, ...], said: str) -> None:
    assert share_as_text(share, *asked) == said


@given(st.text())
def test_json_means_the_same_when_it_is_shown(text: str) -> None:
    line = json.dumps({"image": text}, ensure_ascii=False) + "\n"
    assert json.loads(shown(line, keep="\n")) == {"image": text}


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@A1", "\t=1", "\r=1", "\n=1", "＝1"])
def test_no_cell_is_a_formula(name: str) -> None:
    assert as_cell(name) == f"'{name}"


@pytest.mark.parametrize("name", ["", "a=1", "'", "'tis.png", "细.png", "1-2.png"])
def test_other_cells_stay_as_they_are(name: str) -> None:
    assert as_cell(name) == name == from_cell(name)


@given(st.text(alphabet="'=+-@\ta", max_size=6) | st.text())
def test_a_cell_gives_its_text_back(text: str) -> None:
    assert from_cell(as_cell(text)) == text
    assert as_cell(text)[:1] not in tuple("=+-@\t\r\n")


@given(st.lists(st.text(alphabet='\r\n",a\u2028') | st.text(), min_size=1))
def test_a_row_gives_its_cells_back(cells: list[str]) -> None:
    line = as_row(cells)
    assert line.endswith("\n")
    assert list(csv.reader(io.StringIO(line, newline=""), strict=True)) == [cells]


HEAD = ("network", "accuracy %", "to the best", "AUC", "params M", "run by")
ROWS = [
    [
        "mamba",
        "90.0 [83.0, 96.0]",
        "leads",
        "0.900 [0.831, 0.960]",
        "4.00",
        "onnxruntime CPU, native kernels",
    ],
    ["細胞 " * 20, "8.0 [7.5, 9.0]", "-10.0 [-17.0, -5.0]", "0.8 [0.7, 0.9]", "400.00", "-"],
]


def tables_of(lines: list[str]) -> list[list[str]]:
    """The tables that are under one another, with the columns of each cut at its rule."""
    return [part.split("\n") for part in "\n".join(lines).split("\n\n")]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200, 1000, None])
def test_a_table_is_as_wide_as_the_terminal_and_no_figure_is_cut(width: int | None) -> None:
    lines = table_lines(HEAD, ROWS, (0, 5), width)
    assert width is None or max(map(cell_len, lines)) <= width
    tables = tables_of(lines)
    assert (len(tables) == 1) == (width is None or width > 100)
    for head, *_ in (["\n".join(table).split("─")[0]] for table in tables):
        assert "network" in head
    told = "\n".join(lines)
    for row in ROWS:
        for figure in row[1:5]:
            assert told.count(figure) == 1
    assert told.count("細胞") == 20 * len(tables)


def test_a_table_that_fits_is_left_whole() -> None:
    assert table_lines(HEAD, ROWS, (0, 5)) == table_lines(HEAD, ROWS, (0, 5), 1000)
    assert table_lines(["a", "b c"], [["x", "1"]], (0,), 6) == ["a  b c", "──────", "x    1"]
    assert table_lines(["a", "b\nc"], [["x", "1"]], (0,), 4) == ["   b", "a  c", "────", "x  1"]


def test_notes_are_wrapped_and_names_in_them_stay_whole() -> None:
    assert wrapped("one two-three four", 9) == "one\ntwo-three\nfour"
    assert wrapped("one two-three four") == "one two-three four"
    assert wrapped("a   one two three", 10, 4) == "a   one\n    two\n    three"


@pytest.mark.skipif(sys.platform == "win32", reason="its command line has other quotes")
@pytest.mark.parametrize("name", ["cells", "my cells", "it's", "a;b", "$HOME", "größe"])
def test_commands_in_messages_may_be_typed_whatever_files_are_called(name: str, tmp_path: Path) -> None:
    assert shlex.split(f"mmdeploy info {as_word(name)}") == ["mmdeploy", "info", name]
    folder = tmp_path / name
    folder.mkdir()
    with pytest.raises(SourceError) as empty:
        open_source(str(folder))
    assert shlex.split(str(empty.value).rpartition(", say ")[2]) == [f"watch:{folder}"]
    checkpoint = folder / "best.pt"
    checkpoint.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ArtefactError) as found:
        recognise(checkpoint)
    command = str(found.value).rpartition("export it: ")[2]
    assert shlex.split(command) == ["mmdeploy", "export", str(checkpoint), "-o", "BUNDLE"]
