"""Predictions survive a file to the last bit, whatever classes and images are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msmamba.errors import DataError
from msmamba.measures.predictions import Predictions, read_predictions, write_predictions

AWKWARD = ("Collecting Duct, Connecting Tubule", 'said "so"', "línea\n2\r")


FORMULAS = ("=cmd", "-1", "'=quoted")


def predictions(images: int, seed: int = 0, groups: bool = False) -> Predictions:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(images, 3)).astype(np.float32) * np.float32(10.0) ** generator.integers(
        -30, 30, size=(images, 3)
    ).astype(np.float32)
    return Predictions(
        AWKWARD,
        tuple(f"{AWKWARD[1]}/{number}, of {images}.png" for number in range(images)),
        generator.integers(3, size=images),
        logits,
        tuple(f"patient {number // 3}" for number in range(images)) if groups else None,
    )


@settings(deadline=None)
@given(images=st.integers(1, 20), seed=st.integers(0, 9), groups=st.booleans())
def test_what_is_written_is_read_back(
    images: int, seed: int, groups: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("predictions") / "predictions.csv"
    written = {"val": predictions(images, seed, groups), "test": predictions(2, seed + 1, groups)}
    write_predictions(path, written)
    read = read_predictions(path)
    assert list(read) == ["val", "test"]
    for split, found in read.items():
        assert (found.labels, found.images, found.groups) == (
            written[split].labels,
            written[split].images,
            written[split].groups,
        )
        assert np.array_equal(found.truth, written[split].truth)
        assert found.logits.dtype == np.float32
        assert np.array_equal(found.logits, written[split].logits)
        assert found.metrics() == written[split].metrics()


def test_no_name_is_a_formula_and_every_one_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    written = Predictions(FORMULAS, FORMULAS, np.arange(3), np.eye(3, dtype=np.float32), FORMULAS)
    write_predictions(path, {"test": written})
    cells = [row.split(",")[1:5] for row in path.read_text().splitlines()[1:]]
    assert cells == [[f"'{name}"] * 4 for name in FORMULAS]
    read = read_predictions(path)["test"]
    assert (read.labels, read.images, read.groups) == (FORMULAS, FORMULAS, FORMULAS)


def test_intervals_draw_whole_patients_where_they_are_known() -> None:
    alone, together = predictions(60), predictions(60, groups=True)
    assert alone.intervals(200) != together.intervals(200)
    assert alone.intervals(200) == alone.intervals(200)


HEAD = "split,image,group,true,predicted,logit of a"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param("", "its columns are none", id="empty"),
        pytest.param("split,image\n", "its columns are split, image", id="columns"),
        pytest.param(
            HEAD.removesuffix(",logit of a") + "\n",
            "its columns are split, image, group, true, predicted",
            id="no-class",
        ),
        pytest.param(f"{HEAD},logit of a\n", "two of its classes have one name: a, a", id="class-twice"),
        pytest.param(
            f"{HEAD}\nval,1.png,,b,a,0.5\n", "an image of 'b' and no logits of that class", id="class"
        ),
        pytest.param(f"{HEAD}\nval,1.png,,a,a,high\n", "'high'", id="no-number"),
        pytest.param(f"{HEAD}\nval,1.png,,a,a,nan\n", "some of its logits are no finite float32", id="nan"),
        pytest.param(f"{HEAD}\nval,1.png,,a,a,1e39\n", "some of its logits are no finite float32", id="1e39"),
        pytest.param(
            f"{HEAD},logit of b\nval,1.png,,a,a,1,2\nval,2.png,,a,a,1\n",
            "row 3 has not as many cells as the first",
            id="short-line",
        ),
    ],
)
def test_another_file_is_refused_in_one_line(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text(content)
    with pytest.raises(DataError, match="is not a file of predictions of this version") as caught:
        read_predictions(tmp_path / "predictions.csv")
    assert "\n" not in str(caught.value)
    assert reason in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: no such file"):
        read_predictions(tmp_path / "predictions.csv")
