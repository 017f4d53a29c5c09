"""Files of holes, whose last line has no end, through every reader of lines: refused, not read to the end."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from msmamba import files
from msmamba.data.imported import INDEX, read_index
from msmamba.data.published.listing import rows_of
from msmamba.errors import DataError, InputError, MsmambaError
from msmamba.files import lines_of
from msmamba.measures.predictions import read_predictions
from msmamba.microscope.slides.results import read_rows
from msmamba.model.evaluation.paper import read_published
from msmamba.runtime.drift import read_drift

LONGEST = 200

READERS: dict[str, tuple[type[MsmambaError], bytes, Callable[[Path], object]]] = {
    "predictions": (DataError, b"", read_predictions),
    "listing": (DataError, b"image,label\na.png,cell\n", lambda path: rows_of(path, ["image", "label"])),
    "index": (DataError, b"", lambda path: list(read_index(path.parent))),
    "published": (InputError, b"dataset,network,accuracy,auc,precision\n", read_published),
    "rows": (InputError, b"minx,miny,width,height,prob_a,error\n", lambda path: list(read_rows(path))),
    "drift": (
        InputError,
        b'{"msmamba_drift": 1, "artefact": "%s", "calibrated": null}\n' % (b"a" * 64),
        read_drift,
    ),
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", LONGEST)


@pytest.mark.parametrize("name", READERS)
def test_a_line_without_end_is_refused(name: str, tmp_path: Path) -> None:
    kind, head, read = READERS[name]
    path = tmp_path / INDEX
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(len(head) + 10 * LONGEST)
    with pytest.raises(kind, match=rf"{path.name}'?:? .*a line of it is longer than {LONGEST} bytes"):
        read(path)


@pytest.mark.parametrize("end", ["\n", ""])
def test_lines_are_those_of_the_file(end: str) -> None:
    lines = ["a\n", "\n", "b" * (LONGEST - 1) + "\n", "c" + end]
    assert list(lines_of(io.StringIO("".join(lines)))) == lines
    assert list(lines_of(io.BytesIO("".join(lines).encode()))) == [line.encode() for line in lines]
