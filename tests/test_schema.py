"""Files of our own with anything in them: one error of the right kind, never another exception."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msmamba.calib import CalibrationSet
from msmamba.calib.activations import _HEADER, _Key, _read
from msmamba.calib.data import CalibrationImage
from msmamba.calib.histogram import BINS
from msmamba.data.imported import DataManifest, read_index
from msmamba.data.published.tissuemnist import unpack
from msmamba.errors import ArtefactError, DataError, InputError, MsmambaError, TrainingError
from msmamba.measures.predictions import read_predictions
from msmamba.runtime.manifest import Manifest
from msmamba.schema import DEEPEST, TEXT, as_json, listed, maybe, number, parsed, record, whole

DEEP = "[" * 100_000 + "]" * 100_000

DATA = DataManifest(
    kind="folder",
    source="cells",
    labels=("a", "b"),
    counts={"train": {"a": 2, "b": 2}},
    grouped_by="",
    groups={},
    split="6:2:2",
    seed=0,
    mean=(0.5, 0.5, 0.5),
    std=(0.1, 0.1, 0.1),
    stored="links",
)
MANIFEST = Manifest(("a", "b"), 32, (0.5, 0.5, 0.5), (0.1, 0.1, 0.1), {"depths": [1]}, "fp32")
METRICS = {"images": 4, "accuracy": 0.5, "precision": 0.5, "auc": None}
CONFIG: dict[str, Any] = {
    "recipe": {"augmentation": {"crop_scale": [0.1, 1.0]}, "epochs": 20},
    "architecture": {"depths": [1, 1], "dims": [32, 64], "num_classes": 2},
    "data": {"labels": ["a", "b"], "group_by": None, "digests": {"train": "x", "val": "y"}},
    "normalisation": {"mean": [0.5, 0.5, 0.5], "std": [0.1, 0.1, 0.1]},
    "root": "cells",
}
RESULT = {"epochs": 1, "best_epoch": 1, "seconds": 2.5, "val": METRICS, "test": None}
PLAN = {"format_version": 1, "kept": ["head"], "kinds": ["linear"]}


def read_config(content: bytes, folder: Path) -> object:
    from msmamba.model.training.run import RunFolder

    (folder / "config.json").write_bytes(content)
    return RunFolder(folder).read_beginning()


def read_metrics(content: bytes, folder: Path) -> object:
    from msmamba.model.training.run import RunFolder

    (folder / "metrics.json").write_bytes(content)
    return RunFolder(folder).read_metrics()


def read_plan(content: bytes, folder: Path) -> object:
    from msmamba.export.graph.plan import Plan

    return Plan.from_json(content, "plan.json")


Reader = Callable[[bytes, Path], object]
READERS: dict[str, tuple[Reader, dict[str, Any], type[MsmambaError]]] = {
    "dataset": (
        lambda content, folder: DataManifest.from_json(content, "dataset.json").to_text(),
        {"format": 1, **json.loads(json.dumps(asdict(DATA)))},
        DataError,
    ),
    "manifest": (
        lambda content, folder: Manifest.from_json(content).to_json().encode(),
        json.loads(MANIFEST.to_json()),
        ArtefactError,
    ),
    "config": (read_config, CONFIG, TrainingError),
    "metrics": (read_metrics, RESULT, TrainingError),
    "plan": (read_plan, PLAN, InputError),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own")


@pytest.mark.parametrize("reader", READERS)
def test_what_we_write_is_read(reader: str, folder: Path) -> None:
    read, values, _ = READERS[reader]
    read(json.dumps(values).encode(), folder)


UNREADABLE = {
    "nothing": b"",
    "half": b'{"format',
    "a-list": b"[]",
    "null": b"null",
    "latin-1": '{"format": "é"}'.encode("latin-1"),
    "utf-16": '{"format": 1}'.encode("utf-16"),
    "NUL": b"\0" * 64,
    "deep": DEEP.encode(),
    "not-so-deep": b'{"a":' * 300 + b"1" + b"}" * 300,
    "digits": b'{"format": ' + b"9" * 5000 + b"}",
    "wide": b'{"format": ' + b"9" * 50 + b"}",
    "infinite": b'{"format": 1e999}',
    "not-a-number": b'{"format": NaN}',
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_such_file_is_one_error(reader: str, content: bytes, folder: Path) -> None:
    read, _, error = READERS[reader]
    with pytest.raises(error) as caught:
        read(content, folder)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**30, 1e308, -1e-320, float("nan"), float("inf")]),
    st.sampled_from(["", "\0", "../x", "/x", "\udc80", "\ud800", "x" * 5000, "[/x]"]),
    st.sampled_from([[], [[]], [None] * 100, {}, {"": 1}, {"a": {"a": {}}}]),
)


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a value."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path] + [way for key, each in inner for way in places(each, (*path, key))]


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_value_in_any_place_is_read_or_one_error(reader: str, folder: Path, data: st.DataObject) -> None:
    read, good, error = READERS[reader]
    values = json.loads(json.dumps(good))
    way = data.draw(st.sampled_from(places(values)[1:]))
    there = values
    for key in way[:-1]:
        there = there[key]
    if data.draw(st.booleans()):
        there[way[-1]] = data.draw(ODD)
    else:
        del there[way[-1]]
    with contextlib.suppress(error):
        read(json.dumps(values).encode(), folder)


CSV = (
    b'split,image,group,true,predicted,logit of a,logit of b\nval,x.png,,a,b,0.5,1.5\nval,"y,.png",,b,b,0,1\n'
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    place=st.integers(0, len(CSV)),
    cut=st.integers(0, 20),
    put=st.sampled_from([b"", b"\0", b'"', b"\xff", b"\n", b",", b"nan", b"1e999", b"9" * 200_000, b"-"]),
)
def test_any_change_of_predictions_is_read_or_one_error(
    folder: Path, place: int, cut: int, put: bytes
) -> None:
    path = folder / "predictions.csv"
    path.write_bytes(CSV[:place] + put + CSV[place + cut :])
    try:
        for found in read_predictions(path).values():
            assert np.isfinite(found.logits).all()
            found.metrics()
    except DataError:
        pass


INDEX = b"split,label,group,file,size,sha256,width,height,origin\ntrain,a,,train/a/x.png,10,00,4,4,a/x.png\n"


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    place=st.integers(0, len(INDEX)),
    cut=st.integers(0, 12),
    put=st.sampled_from([b"", b"\0", b'"', b"\xff", b"\n", b",", b"/..", b"-1", b"9" * 5000]),
)
def test_any_change_of_an_index_is_read_or_one_error(folder: Path, place: int, cut: int, put: bytes) -> None:
    (folder / "index.csv").write_bytes(INDEX[:place] + put + INDEX[place + cut :])
    try:
        for row in read_index(folder):
            assert (folder / row.file).is_relative_to(folder)
            assert "\0" not in row.file
    except DataError:
        pass


def npz(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


KEY = _Key("m", "i", "p", ("x", "y"))
HEADER = {"format_version": 1, "done": 3, **asdict(KEY)}
ARRAYS = {"counts": np.ones((2, BINS), np.int64), "widths": np.ones(2), "largest": np.ones(2)}
CACHES: dict[str, bytes] = {
    "npy": b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }" + b" " * 60,
    "no-header": npz(**ARRAYS),
    "deep": npz(header=np.array(DEEP), **ARRAYS),
    "list": npz(header=np.array("[]"), **ARRAYS),
    "done-below-0": npz(header=np.array(json.dumps({**HEADER, "done": -1})), **ARRAYS),
    "done-too-many": npz(header=np.array(json.dumps({**HEADER, "done": 9})), **ARRAYS),
    "values-a-number": npz(header=np.array(json.dumps({**HEADER, "values": 2})), **ARRAYS),
    "counts-below-0": npz(header=np.array(json.dumps(HEADER)), **{**ARRAYS, "counts": -ARRAYS["counts"]}),
    "bins-of-another-version": npz(
        header=np.array(json.dumps(HEADER)), **{**ARRAYS, "counts": ARRAYS["counts"][:, ::2]}
    ),
    "counts-in-parts": npz(header=np.array(json.dumps(HEADER)), **{**ARRAYS, "counts": ARRAYS["counts"] / 2}),
    "widths-below-0": npz(header=np.array(json.dumps(HEADER)), **{**ARRAYS, "widths": -ARRAYS["widths"]}),
    "widths-nan": npz(header=np.array(json.dumps(HEADER)), **{**ARRAYS, "widths": np.full(2, np.nan)}),
    "widths-text": npz(header=np.array(json.dumps(HEADER)), **{**ARRAYS, "widths": np.array(["1", "2"])}),
    "largest-flat": npz(header=np.array(json.dumps(HEADER)), **{**ARRAYS, "largest": np.array(1.0)}),
}


def test_a_cache_that_we_wrote_is_read(folder: Path) -> None:
    path = folder / "cache.npz"
    path.write_bytes(npz(header=np.array(json.dumps(HEADER)), **ARRAYS))
    histograms, done = _read(path, KEY, 3)
    assert done == 3
    assert len(histograms) == 2
    assert not _HEADER.problems(HEADER)
    assert isinstance(CalibrationSet((CalibrationImage(path, "", "", ""),), 0, 1).digest, str)


@pytest.mark.parametrize("content", CACHES.values(), ids=CACHES)
def test_a_cache_that_makes_no_sense_is_one_error(folder: Path, content: bytes) -> None:
    path = folder / "cache.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="calibration cache"):
        _read(path, KEY, 3)


def tissue() -> bytes:
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.zeros((2, 4, 4), np.uint8)
        arrays[f"{split}_labels"] = np.zeros((2, 1), np.uint8)
    return npz(**arrays)


@settings(max_examples=250, deadline=None, derandomize=True, database=None)
@given(place=st.floats(0, 0.999), value=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_archive_is_unpacked_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, place: float, value: int, cut: bool
) -> None:
    content = bytearray(tissue())
    at = int(place * len(content))
    content[at] ^= value
    path = folder / "tissuemnist.npz"
    path.write_bytes(content[:at] if cut else content)
    target = folder / "stacks"
    target.mkdir(exist_ok=True)
    with contextlib.suppress(DataError):
        unpack(path, target, False, lambda done, images: None)


@pytest.mark.parametrize("shape", ["(9" + "9" * 4000 + ",)", "(" * 300, "(-1, 4, 4)", "('a',)", "None"])
def test_headers_that_make_no_sense_are_one_error(folder: Path, shape: str) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    member = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header
    path = folder / "tissuemnist.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("images", "labels"):
            for split in ("train", "val", "test"):
                archive.writestr(f"{split}_{name}.npy", member)
    with pytest.raises(DataError):
        unpack(path, folder, False, lambda done, images: None)


def test_problems_name_every_field() -> None:
    kind = record(
        {"run": record({"epochs": whole(1)}), "notes": listed(TEXT)}, optional={"rate": maybe(number(0, 1))}
    )
    assert kind.problems({"run": {"epochs": 3}, "notes": [], "rate": None, "more": 1}) == []
    assert kind.problems({"run": {"epochs": True}, "notes": [1], "rate": 2}) == [
        "'run.epochs' is True, expected a whole number of at least 1",
        "'notes' is [1], expected a list of at least 0 (a text each)",
        "'rate' is 2, expected a finite number from 0 to 1, or null",
    ]
    assert kind.problems({"run": {}}) == ["'run.epochs' is missing", "'notes' is missing"]
    assert kind.problems(3) == ["it is 3, expected an object"]


def test_names_of_files_may_be_any_bytes() -> None:
    assert parsed(b'{"a": "\xff"}', names=True) == {"a": "\udcff"}
    assert parsed(b'{"a": "\\udcff"}', names=True) == {"a": "\udcff"}
    with pytest.raises(ValueError, match="it is not UTF-8: byte 7 is 0xff"):
        parsed(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"'a' is .* which is no Unicode text"):
        parsed(b'{"a": "\\udcff"}')


@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")], ids=["lists", "objects"])
def test_what_is_nested_deeper_than_anything_of_ours_is_refused(begin: str, end: str) -> None:
    assert parsed(begin * (DEEPEST // 2) + "1" + end * (DEEPEST // 2))
    for depth in (DEEPEST + 1, 100_000):
        with pytest.raises(ValueError, match="it is nested deeper than any of our files"):
            parsed(begin * depth + "1" + end * depth)


def test_what_is_written_is_json_whatever_the_numbers() -> None:
    value = {"a": [float("inf"), (float("nan"), 1.5)], "b": {"c": -float("inf"), "d": "größe"}, "e": 1}
    written = {"a": [None, [None, 1.5]], "b": {"c": None, "d": "größe"}, "e": 1}
    assert json.loads(as_json(value), parse_constant=pytest.fail) == written
    assert "größe" in as_json(value, indent=2)
