"""No standard error, no standard output, latin-1: the work is done, and what cannot be is said."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msmamba.cli import mmdeploy as cli
from msmamba.cli.output import say
from msmamba.errors import TargetError
from msmamba.runtime import open_session
from msmamba.runtime.infer import infer

from ..runtime.conftest import classifier, manifest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="closes streams and names files as Unix does")


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artefact") / "colours.onnx"
    path.write_bytes(classifier(metadata=manifest().to_metadata()).SerializeToString())
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, one of a name that is latin-1 and no UTF-8, and one of a name that latin-1 has not."""
    folder = tmp_path_factory.mktemp("images")
    pixels = Image.fromarray(np.full((9, 9, 3), 120, np.uint8))
    pixels.save(folder / "z… 😀.png")
    shutil.copy(folder / "z… 😀.png", os.fsencode(folder) + b"/l\xe4.png")
    return folder


def mmdeploy(
    *arguments: str | Path, closed: tuple[int, ...] = (), encoding: str = "utf-8"
) -> tuple[int, bytes, bytes]:
    """Exit status, standard output and standard error of a command with streams closed, in an encoding."""
    done = subprocess.run(
        [sys.executable, "-m", "msmamba", *map(str, arguments)],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        preexec_fn=lambda: [os.close(descriptor) for descriptor in closed],
    )
    return done.returncode, done.stdout, done.stderr


def test_without_standard_error_all_is_classified(artefact: Path, images: Path) -> None:
    status, shown, _ = mmdeploy("infer", artefact, images, "--format", "csv", closed=(0, 2))
    assert status == 0
    assert len(shown.splitlines()) == 3


def test_without_standard_output_nothing_is_classified_into_the_void(
    artefact: Path, images: Path, tmp_path: Path
) -> None:
    status, _, said = mmdeploy("infer", artefact, images, closed=(1,))
    assert (status, said) == (1, b"error: standard output is closed: write the results to a file, with -o\n")
    status, _, _ = mmdeploy("infer", artefact, images, "-o", tmp_path / "rows", closed=(0, 1, 2))
    assert status == 0
    assert len((tmp_path / "rows").read_bytes().splitlines()) == 3


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "a.fp32", "cells"],
        ["table", "run"],
        ["bench", "a.fp32"],
        ["live", "a.fp32", "demo", "--no-page"],
    ],
    ids=lambda words: str(words[0]),
)
def test_without_standard_output_no_work_is_begun_that_would_be_lost(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert cli(words, standalone_mode=False) == 1
    assert capsys.readouterr().err.startswith("error: standard output is closed: ")


def test_without_standard_error_a_failure_is_told_by_the_status(tmp_path: Path) -> None:
    assert mmdeploy("infer", tmp_path / "none", "none.png", closed=(2,))[0] == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_what_a_full_standard_error_cannot_take_stops_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with io.TextIOWrapper(Path("/dev/full").open("wb", 0), write_through=True) as full:
        monkeypatch.setattr(sys, "stderr", full)
        say("left: 6 of 24 tiles", err=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_full_standard_error_changes_nothing(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "msmamba", "infer", tmp_path / "none", "a"],
            stderr=full,
            env={**os.environ, "PYTHONUNBUFFERED": ""},  # so that Python has something to flush as it ends
        )
    assert done.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_rows_for_a_full_standard_output_end_in_a_line(artefact: Path, images: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "msmamba", "infer", artefact, images],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
        )
    said = b"error: cannot write standard output: the disk is full: free some space\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_no_encoding_costs_a_row(artefact: Path, images: Path, encoding: str) -> None:
    status, shown, _ = mmdeploy("infer", artefact, images, "--format", "json", encoding=encoding)
    assert status == 0
    names = [json.loads(line)["image"] for line in shown.splitlines()]
    assert names == [f"{images}/l\ufffd.png", f"{images}/z… 😀.png"]


def test_no_encoding_costs_the_line_of_an_error(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/l\xe4 \xce\xa9")
    status, _, said = mmdeploy("infer", name, "a.png", encoding="latin-1")
    assert status == 1
    expected = b"error: '%s/l\xe4 \\u03a9' does not exist" % os.fsencode(tmp_path)
    assert said.startswith(expected)


def test_the_library_needs_no_standard_streams(
    artefact: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    files = sorted(images.iterdir())
    with open_session(artefact) as session:
        infer(session, files, output=tmp_path / "rows")
        with pytest.raises(TargetError, match="standard output is closed"):
            infer(session, files)
    assert len((tmp_path / "rows").read_bytes().splitlines()) == 3
