"""Slides over Ray's workers: the same rows as in one process, whatever becomes of a worker.

`make test-ray` runs this in an environment of its own; elsewhere Ray is not installed.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from slide_files import HALF_A_MICRON, tissue, write_tiff

ray = pytest.importorskip("ray", reason="Ray is not installed: make test-ray")

import onnx  # noqa: E402  after Ray, without which it is not needed
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import msmamba  # noqa: E402
from msmamba.errors import BackendError, ImageError  # noqa: E402
from msmamba.microscope.slides.engine import classify_tiles  # noqa: E402
from msmamba.microscope.slides.ray_engine import RayEngine  # noqa: E402
from msmamba.microscope.slides.run import SlideOptions, classify_slides  # noqa: E402
from msmamba.runtime.drift import drift_log  # noqa: E402
from msmamba.runtime.manifest import Manifest  # noqa: E402
from msmamba.runtime.session import Session  # noqa: E402

SIDE = 32
OPTIONS = SlideOptions(mpp=0.5, overlap=0.5, tissue=None, batch_size=3)

# Ray's services leave pipes and sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("default::ResourceWarning")


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution of random weights and its mean, which takes a moment; there is no PyTorch here."""
    weight = np.random.default_rng(0).normal(size=(64, 3, 7, 7)).astype(np.float32)
    head = np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["found"]),
        helper.make_node("Relu", ["found"], ["positive"]),
        helper.make_node("ReduceMean", ["positive", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "head"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(head, "head"),
        numpy_helper.from_array(np.array([2, 3]), "axes"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "tissue", [image], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    says = Manifest(
        labels=("a", "b", "c"),
        image_size=SIDE,
        mean=(0.7, 0.5, 0.7),
        std=(0.2, 0.2, 0.2),
        architecture={},
        precision_asked="fp32",
    )
    helper.set_model_props(model, says.to_metadata())
    path = tmp_path_factory.mktemp("artefact") / "tissue.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def session(artefact: Path) -> Iterator[Session]:
    with msmamba.open(artefact, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiff(tmp_path_factory.mktemp("slide") / "a.tif", tissue(), levels=2, **HALF_A_MICRON)


@pytest.fixture(scope="module")
def local(session: Session, artefact: Path, slide: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The rows of one process."""
    out = tmp_path_factory.mktemp("local") / "out"
    classify_slides(session, artefact, [slide], out, OPTIONS)
    return (out / "model-outputs-csv" / "a.csv").read_bytes()


@pytest.fixture(scope="module")
def engine(artefact: Path) -> Iterator[RayEngine]:
    """Two workers of one thread, three batches a task; starting them takes seconds."""
    with RayEngine(artefact, cpus=2) as opened:
        opened.tiles_a_task = 8
        yield opened


def workers() -> list[int]:
    """The processes of this test's cluster that have a task."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(b"ray::_answers_of_task"):
                found.append(int(process.name))
        except OSError:  # ended meanwhile
            continue
    return found


def test_rows_are_those_of_one_process(
    engine: RayEngine, session: Session, artefact: Path, slide: Path, local: bytes, tmp_path: Path
) -> None:
    classify_slides(session, artefact, [slide], tmp_path / "out", OPTIONS, engine=engine.classify)
    assert (tmp_path / "out" / "model-outputs-csv" / "a.csv").read_bytes() == local


def test_a_log_gets_the_scores_of_one_process(
    engine: RayEngine, session: Session, artefact: Path, slide: Path, tmp_path: Path
) -> None:
    scores = []
    for name, taken in (("local", classify_tiles), ("ray", engine.classify)):
        path = tmp_path / f"{name}.jsonl"
        with drift_log(path, artefact, session.manifest, "slide") as log:
            classify_slides(session, artefact, [slide], tmp_path / name, OPTIONS, log=log, engine=taken)
        scores.append([json.loads(line)["scores"] for line in path.read_text().splitlines()[1:]])
    assert len(scores[0]) > 100
    assert scores[1] == scores[0]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="workers are found as Linux shows them")
def test_a_worker_that_is_killed_is_made_good(
    engine: RayEngine, session: Session, artefact: Path, slide: Path, local: bytes, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill(name: str, done: int, total: int) -> None:
        """One of two workers in the middle of its task, once there are rows."""
        at_work = workers()
        if done and not killed and at_work:
            os.kill(at_work[0], signal.SIGKILL)
            killed.append(at_work[0])
            assert done < total

    classify_slides(session, artefact, [slide], tmp_path / "out", OPTIONS, kill, engine=engine.classify)
    assert len(killed) == 1
    assert killed[0] not in workers()
    assert (tmp_path / "out" / "model-outputs-csv" / "a.csv").read_bytes() == local


def test_what_a_worker_cannot_read_is_told_as_here(
    engine: RayEngine, session: Session, artefact: Path, slide: Path, tmp_path: Path
) -> None:
    """The slide goes after it was opened here: for the workers it is not there."""
    path = tmp_path / "gone.tif"
    path.write_bytes(slide.read_bytes())

    def remove(name: str, done: int, total: int) -> None:
        path.unlink(missing_ok=True)

    with pytest.raises(ImageError, match=r"gone\.tif"):
        classify_slides(session, artefact, [path], tmp_path / "out", OPTIONS, remove, engine=engine.classify)


def test_a_cluster_that_is_not_there_is_told(artefact: Path) -> None:
    with pytest.raises(BackendError, match="no Ray cluster at 'no-such-scheme://x'"):
        RayEngine(artefact, address="no-such-scheme://x")
