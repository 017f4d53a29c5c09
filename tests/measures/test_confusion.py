"""The picture of a confusion matrix: names of any characters, and many classes."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from msmamba.errors import Note
from msmamba.measures import confusion
from msmamba.measures.confusion import write_confusion_matrix
from msmamba.measures.metrics import Metrics, metrics_of


def of(labels: list[str]) -> Metrics:
    truth = np.arange(len(labels))
    return metrics_of(np.eye(len(labels)), truth, labels)


def test_names_are_no_formulas(tmp_path: Path) -> None:
    write_confusion_matrix(tmp_path / "a.png", of([r"$\foo$", r"\bar$", "c"]), r"model$\foo$, test")
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 300


def test_characters_that_the_font_lacks_are_told_once(tmp_path: Path) -> None:
    with pytest.warns(Note) as told:
        write_confusion_matrix(tmp_path / "a.png", of(["細胞", "a"]), "test")
    (note,) = told
    assert str(note.message) == "a.png: the font of pictures has no 細胞, drawn as boxes"
    assert (tmp_path / "a.png").is_file()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_confusion_matrix(tmp_path / "b.png", of(["α-β", "naïve"]), "test")


@pytest.mark.parametrize(
    ("classes", "cells", "names", "lines"), [(5, 25, 5, 6), (100, 100, 100, 101), (101, 0, 51, 0)]
)
def test_of_many_classes_no_more_is_written_than_can_be_read(
    classes: int, cells: int, names: int, lines: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(confusion, "write_figure", lambda path, figure: drawn.append(figure))
    write_confusion_matrix(tmp_path / "a.png", of([str(number) for number in range(classes)]), "test")
    (axes,) = drawn[0].axes
    assert len(axes.texts) == cells
    assert len(axes.get_xticks()) == len(axes.get_yticks()) == names
    assert len(axes.get_xticks(minor=True)) == len(axes.get_yticks(minor=True)) == lines
