"""A session classifies what it is given, says what it runs on, and refuses the rest in one line."""

from __future__ import annotations

import ctypes
import gc
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import msmamba
from msmamba.errors import ArtefactError, BackendError, ImageError, InputError
from msmamba.images import Transform, read_image
from msmamba.plugins.selective_scan import cpu, gpu_operator
from msmamba.runtime import Prediction, Session, onnxruntime_backend, onnxruntime_cuda, open_session

from .conftest import LABELS, SIZE, classifier, manifest

CTYPES = {"c_int": ctypes.c_int, "byref": ctypes.byref}
"""What a played driver leaves of the module."""


@pytest.fixture
def session(bundle: Path) -> Iterator[Session]:
    with open_session(bundle) as opened:
        yield opened


def batch(count: int = 1, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, size, size), np.float32)


def test_bundle_and_bare_file_say_the_same(bundle: Path, onnx_file: Path, colours: list[np.ndarray]) -> None:
    with msmamba.open(bundle) as one, msmamba.open(onnx_file) as other:
        assert one.labels == other.labels == LABELS
        assert one.transform == other.transform == manifest().transform
        assert other.manifest == manifest()
        assert one.classify(colours) == other.classify(colours)


def test_run_gives_the_networks_logits(session: Session) -> None:
    images = batch(3)
    logits = session.run(images)
    np.testing.assert_allclose(logits, images.mean(axis=(2, 3))[:, ::-1], atol=1e-6)
    assert logits.dtype == np.float32


def test_classify_names_the_colours(session: Session, colours: list[np.ndarray]) -> None:
    predictions = session.classify(colours)
    assert [prediction.label for prediction in predictions] == ["red", "green", "blue"]
    for prediction in predictions:
        assert prediction.label == LABELS[prediction.index]
        assert prediction.probability == max(prediction.probabilities)
        assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
def test_the_batch_size_changes_nothing(session: Session, colours: list[np.ndarray], batch_size: int) -> None:
    images = colours * 3
    alone = [session.classify([image])[0] for image in images]
    for expected, found in zip(alone, session.classify(images, batch_size=batch_size), strict=True):
        assert found.label == expected.label
        np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-6)


def test_all_kinds_of_sources_are_taken(session: Session, colours: list[np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.fromarray(colours[0]).save(path)
    with Image.open(path) as opened:
        sources = [path, str(path), path.read_bytes(), colours[0], opened]
        assert len(set(session.classify(sources, batch_size=1))) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((73, 74, 3), np.uint8), "array 73x74x3.*as one, .*list.*as a stack"),
        (np.zeros((3, 73, 74), np.uint8), "array 3x73x74"),
        (np.zeros((2, 73, 74, 3), np.uint8), "array 2x73x74x3"),
        ("a.png", r"'a\.png' was given where a list.*image.. takes it as one$"),
        (Path("a.png"), r"'a\.png' was given"),
        (b"abc", "3 bytes"),
        (bytearray(b"abc"), "3 bytes"),
        (memoryview(b"abc"), "3 bytes"),
        (Image.new("RGB", (5, 4)), "Pillow image 5x4"),
        (None, "found NoneType"),
        (5, "found int"),
    ],
    ids=[
        "rgb",
        "channels-first",
        "stack",
        "text",
        "path",
        "bytes",
        "bytearray",
        "view",
        "pillow",
        "none",
        "int",
    ],
)
def test_one_image_is_not_taken_for_many(session: Session, source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        session.classify(source)
    with pytest.raises(InputError, match=message):
        session.classify_stream(source)


@pytest.mark.parametrize("source", [None, 5, bytearray(b"abc"), ["a.png"], np.ma.zeros((5, 5, 3), np.uint8)])
def test_what_is_no_image_is_said_of_its_place(
    session: Session, colours: list[np.ndarray], source: Any
) -> None:
    results = list(session.classify_stream([colours[0], source, colours[1]]))
    assert [isinstance(result, ImageError) for _, result in results] == [False, True, False]


@pytest.mark.parametrize("number", [0, -1, None, "2", 2.0, True])
def test_numbers_must_be_such(session: Session, colours: list[np.ndarray], number: Any) -> None:
    with pytest.raises(InputError, match=r"the batch size is .*: expected a whole number"):
        session.classify(colours, batch_size=number)
    with pytest.raises(InputError, match="the largest number of pixels is"):
        session.classify(colours, max_pixels=number)
    with pytest.raises(InputError, match="the largest number of pixels is"):
        session.prepare(colours[0], max_pixels=number)


@pytest.mark.parametrize(
    "logits",
    [None, [1.0, 2.0, 3.0], np.zeros((1, 4)), np.zeros((1, 3), int), "x"],
    ids=["none", "one-dim", "four", "whole", "text"],
)
def test_predictions_are_made_of_logits(session: Session, logits: Any) -> None:
    with pytest.raises(InputError, match=r"the logits are .*: expected floats \(B, 3\)"):
        session.predictions(logits)


def test_notes_are_as_many_as_rows(session: Session) -> None:
    with pytest.raises(InputError, match="notes of 1 images for 2 rows"):
        session.predictions(np.zeros((2, 3)), [()])


def test_nothing_to_classify_gives_nothing(session: Session) -> None:
    assert session.classify([]) == []


def test_the_transform_is_the_shared_one(session: Session) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (31, 17, 3), np.uint8)
    prepared, notes = session.prepare(pixels)
    expected = Transform(SIZE, manifest().mean, manifest().std)(read_image(pixels))
    np.testing.assert_array_equal(prepared, expected)
    assert notes == ()


def test_the_softmax_stands_large_logits(session: Session) -> None:
    (prediction,) = session.predictions(np.array([[3e4, -3e4, 3e4 + 1]], np.float32))
    expected = 1 / (1 + np.exp(-1.0))
    assert prediction == Prediction("red", 2, prediction.probability, prediction.probabilities)
    assert prediction.probability == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(session: Session, value: float) -> None:
    with pytest.raises(ArtefactError, match="NaN or infinite logits"):
        session.predictions(np.array([[0, value, 0]], np.float32))


def test_notes_of_reading_reach_the_prediction(session: Session, tmp_path: Path) -> None:
    page = Image.new("RGB", (5, 5))
    page.save(tmp_path / "two.tif", save_all=True, append_images=[page])
    assert session.classify([tmp_path / "two.tif"])[0].notes == ("page 1 of 2",)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_the_stream_keeps_the_order_and_goes_on_after_bad_images(
    session: Session, colours: list[np.ndarray], batch_size: int
) -> None:
    sources: list[Any] = [b"no image", colours[0], colours[1], b"", b"no image", colours[2], b"no"]
    results = list(session.classify_stream(sources, batch_size))
    assert [source is given for (source, _), given in zip(results, sources, strict=True)] == [True] * 7
    labels = [None if isinstance(result, ImageError) else result.label for _, result in results]
    assert labels == [None, "red", "green", None, None, "blue", None]


def test_classify_raises_the_first_bad_image(session: Session, colours: list[np.ndarray]) -> None:
    with pytest.raises(ImageError, match=r"'gone\.png' does not exist"):
        session.classify([colours[0], "gone.png", b""])


def test_the_stream_reads_only_a_little_ahead(session: Session, colours: list[np.ndarray]) -> None:
    taken = []

    def endless() -> Iterator[np.ndarray]:
        while True:
            taken.append(None)
            yield colours[0]

    stream = session.classify_stream(endless(), batch_size=3)
    for _ in range(10):
        next(stream)
    assert len(taken) <= 10 + 2 * 3 + 3


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_images_before_what_their_source_raises_are_answered(
    session: Session, colours: list[np.ndarray], batch_size: int
) -> None:
    def failing() -> Iterator[np.ndarray]:
        yield from colours
        raise RuntimeError("the camera is gone")

    stream = session.classify_stream(failing(), batch_size)
    assert [next(stream)[1].label for _ in colours] == ["red", "green", "blue"]
    with pytest.raises(RuntimeError, match="the camera is gone"):
        next(stream)


@pytest.mark.parametrize("sides", [("height", "width"), ("side", "side")], ids=["two-names", "one-name"])
def test_a_file_that_leaves_its_size_open_takes_squares(tmp_path: Path, sides: tuple[str, str]) -> None:
    model = classifier(size="side")
    for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], sides, strict=True):
        dim.dim_param = name
    (tmp_path / "open").write_bytes(model.SerializeToString())
    with open_session(tmp_path / "open") as session:
        assert session.image_size is None
        assert session.run(batch(size=SIZE + 2)).shape == (1, 3)


def test_an_abandoned_stream_leaves_no_thread(session: Session, colours: list[np.ndarray]) -> None:
    stream = session.classify_stream(colours * 9, batch_size=1)
    next(stream)
    del stream
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("msmamba-images")]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (batch(size=SIZE + 2), rf"3x11x11; .* takes 3x{SIZE}x{SIZE}: resize, or export with --image-size 11"),
        (batch()[0], r"shape \(3, 9, 9\)"),
        (batch()[:, :1], r"shape \(1, 1, 9, 9\)"),
        (batch()[..., :-1], r"shape \(1, 3, 9, 8\)"),
        (batch()[:0], "empty batch"),
        (batch().astype(np.float64), "float64.*float32"),
        (np.full((1, 3, SIZE, SIZE), np.nan, np.float32), "NaN"),
        (np.full((1, 3, SIZE, SIZE), -np.inf, np.float32), "infinite"),
        ([[1.0]], "is a list"),
        (np.ma.masked_array(batch()), "masked"),
    ],
    ids=["size", "no-batch", "grey", "not-square", "empty", "float64", "nan", "inf", "list", "masked"],
)
def test_run_refuses_what_the_network_cannot_take(session: Session, images: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        session.run(images)
    assert len(str(caught.value).splitlines()) == 1


def test_run_names_every_mismatch(session: Session) -> None:
    with pytest.raises(InputError, match=r"3x4x4.*float64"):
        session.run(np.zeros((1, 3, 4, 4)))


def test_run_takes_arrays_that_are_not_contiguous(session: Session) -> None:
    images = np.ascontiguousarray(batch(2)[..., ::-1])[..., ::-1]
    np.testing.assert_array_equal(session.run(images), session.run(images.copy()))


def test_many_threads_may_run_at_once(session: Session) -> None:
    batches = [batch(count) for count in range(1, 33)]
    with ThreadPoolExecutor(8) as pool:
        for images, logits in zip(batches, pool.map(session.run, batches), strict=True):
            np.testing.assert_allclose(logits, images.mean(axis=(2, 3))[:, ::-1], atol=1e-6)


def test_a_closed_session_says_so(bundle: Path, colours: list[np.ndarray]) -> None:
    with open_session(bundle) as session:
        pass
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run(batch())
    with pytest.raises(BackendError, match="closed"):
        session.classify(colours)


def test_the_session_says_what_it_runs_on(session: Session) -> None:
    assert session.provider == "CPUExecutionProvider"
    assert session.path.startswith("onnxruntime CPU, ")
    assert session.classes == 3
    assert session.image_size == SIZE
    assert session.max_batch is None
    assert session.path in repr(session)


def test_functions_can_be_asked_for(bundles: dict[str, Path]) -> None:
    with open_session(bundles["fp32"], kernels="functions") as session:
        assert session.path == "onnxruntime CPU, ONNX functions (asked for)"


@pytest.mark.parametrize("kernels", ["auto", "functions"])
def test_a_file_without_our_operators_claims_no_kernels_of_ours(bundle: Path, kernels: str) -> None:
    with open_session(bundle, kernels=kernels) as session:
        assert session.path == "onnxruntime CPU, standard operators"


def test_native_kernels_cannot_be_asked_for_where_there_is_nothing_for_them(bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"were asked for, but '.*' has no operator that they run: leave"):
        open_session(bundle, kernels="native")


def bare(path: Path, **options: Any) -> Path:
    path.write_bytes(classifier(**options).SerializeToString())
    return path


def test_a_file_without_metadata_runs_only(tmp_path: Path, colours: list[np.ndarray]) -> None:
    with open_session(bare(tmp_path / "m.onnx")) as session:
        assert session.manifest is None
        assert session.run(batch()).shape == (1, 3)
        with pytest.raises(ArtefactError, match=r"no labels and no mean and std.*mmdeploy export.*labels="):
            session.classify(colours)


def test_what_a_file_does_not_carry_can_be_given(tmp_path: Path, colours: list[np.ndarray]) -> None:
    given = {"labels": LABELS, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    with open_session(bare(tmp_path / "m.onnx"), **given) as session:
        assert [prediction.label for prediction in session.classify(colours)] == ["red", "green", "blue"]


def test_given_labels_replace_the_carried_ones(bundle: Path, colours: list[np.ndarray]) -> None:
    with open_session(bundle, labels=["blau", "grün", "rot"]) as session:
        assert session.classify(colours)[0].label == "rot"


def test_labels_must_fit_the_logits(bundle: Path) -> None:
    with pytest.raises(ArtefactError, match="2 labels for 3 logits"):
        open_session(bundle, labels=["a", "b"])


def test_a_manifest_must_fit_its_network(make_bundle: Callable[..., Path]) -> None:
    with pytest.raises(ArtefactError, match=f"2 labels for 3 logits; .*says 64 pixels .* takes {SIZE}"):
        open_session(make_bundle(labels=("a", "b"), image_size=64))


def test_a_fixed_batch_of_one_is_classified_one_by_one(tmp_path: Path, colours: list[np.ndarray]) -> None:
    path = bare(tmp_path / "m.onnx", batch=1, metadata=manifest().to_metadata())
    with open_session(path) as session:
        assert session.max_batch == 1
        assert [each.label for each in session.classify(colours, batch_size=3)] == ["red", "green", "blue"]
        with pytest.raises(InputError, match="at most 1"):
            session.run(batch(2))


def test_a_network_of_any_size_takes_the_manifests(tmp_path: Path, colours: list[np.ndarray]) -> None:
    path = bare(tmp_path / "m.onnx", size="side", metadata=manifest(image_size=13).to_metadata())
    with open_session(path) as session:
        assert session.prepare(colours[0])[0].shape == (3, 13, 13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 4}, r"expected \(batch, 3, S, S\)"),
        ({"batch": 4}, "batches of exactly 4"),
        ({"size": 1_000_000}, "1000000x1000000 pixels, expected 1 to 8192"),
    ],
    ids=["four-channels", "fixed-batch", "size"],
)
def test_a_file_that_is_no_such_classifier_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArtefactError, match=message):
        open_session(bare(tmp_path / "m.onnx", **options))


def answering(*nodes: onnx.NodeProto, promised: tuple[int | str, ...] = ("batch", 3)) -> bytes:
    """A file whose logits are what nodes make of ``logits``, under the name ``y``."""
    model = classifier()
    model.graph.node.extend(nodes)
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, promised))
    for name, values in {"first": [0], "last": [1], "rows": [0], "twice": [2, 1]}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values), name))
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("nodes", "images", "found"),
    [
        ([onnx.helper.make_node("Slice", ["logits", "first", "last", "rows"], ["y"])], 2, r"\(1, 3\)"),
        ([onnx.helper.make_node("Tile", ["logits", "twice"], ["y"])], 2, r"\(4, 3\)"),
        ([onnx.helper.make_node("Slice", ["logits", "last", "last", "rows"], ["y"])], 1, r"\(0, 3\)"),
        ([onnx.helper.make_node("Transpose", ["logits"], ["y"], perm=[1, 0])], 2, r"\(3, 2\)"),
    ],
    ids=["one-row", "twice-the-rows", "no-row", "transposed"],
)
def test_another_number_of_rows_than_images_is_an_error(
    tmp_path: Path, nodes: list[onnx.NodeProto], images: int, found: str
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(answering(*nodes, promised=("rows", 3)))
    with (
        open_session(path) as session,
        pytest.raises(ArtefactError, match=f"answers {images} images with 'y' of shape {found}"),
    ):
        session.run(batch(images))


def test_a_network_that_fails_while_it_runs_is_an_error_in_one_line(tmp_path: Path) -> None:
    second = onnx.helper.make_node("Gather", ["logits", "last"], ["y"], axis=0)
    (tmp_path / "m.onnx").write_bytes(answering(second, promised=("rows", 3)))
    with open_session(tmp_path / "m.onnx") as session:
        with pytest.raises(BackendError, match=r"^ONNX Runtime failed: .*out of data bounds.*$"):
            session.run(batch(1))
        with pytest.raises(ArtefactError, match="answers 2 images with 'y' of shape"):
            session.run(batch(2))  # nothing stays broken


def test_numbers_of_another_type_than_float32_are_refused(tmp_path: Path) -> None:
    model = classifier()
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    model.graph.node[0].input[0] = "pixels"
    cast = onnx.helper.make_node("Cast", ["image"], ["pixels"], to=onnx.TensorProto.FLOAT)
    model.graph.node.insert(0, cast)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match=r"'image' is tensor\(uint8\), expected tensor\(float\)"):
        open_session(tmp_path / "m.onnx")


def test_a_single_class_is_none(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(
        answering(
            onnx.helper.make_node("Slice", ["logits", "first", "last", "last"], ["y"]), promised=("b", 1)
        )
    )
    with pytest.raises(ArtefactError, match=r"expected \(batch, classes\) and at least two classes"):
        open_session(path)


def test_a_file_onnxruntime_refuses_gives_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = classifier()
    model.graph.node[0].op_type = "NoSuchOperator"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match=r"ONNX Runtime cannot load .*NoSuchOperator") as caught:
        open_session(tmp_path / "m.onnx")
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr().err == ""


def test_an_engine_is_told_what_to_open_instead(no_gpu: None, tmp_path: Path) -> None:
    (tmp_path / "m.engine").write_bytes(b"ftrt" + bytes(100))
    with pytest.raises(
        BackendError, match=r"is a TensorRT engine, which needs a GPU: no NVIDIA driver.*or its model\.onnx"
    ):
        open_session(tmp_path / "m.engine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device 'tpu' is unknown"),
        ({"kernels": "fast"}, "kernels 'fast' is unknown"),
    ],
    ids=["device", "kernels"],
)
def test_options_are_checked(bundle: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        open_session(bundle, **options)


@pytest.mark.parametrize("threads", [0, -1, True, 2.5, "2", 10**6])
def test_odd_numbers_of_threads_are_refused(bundle: Path, threads: Any) -> None:
    with pytest.raises(InputError, match=f"the number of threads is {threads!r}: expected a whole number"):
        open_session(bundle, threads=threads)


@pytest.mark.parametrize("labels", ["abc", ["a", "a", "b"], [1, 2, 3], 5, [], ["a", "", "b"]])
def test_labels_must_be_names(bundle: Path, labels: Any) -> None:
    with pytest.raises(InputError, match=r"the labels are .*: expected a list of distinct names"):
        open_session(bundle, labels=labels)


@pytest.mark.parametrize("path", [None, 5, ["a"]])
def test_a_path_must_be_one(path: Any) -> None:
    with pytest.raises(InputError, match="expected the path of an artefact, found"):
        msmamba.open(path)


def test_a_path_that_no_system_takes_is_refused() -> None:
    with pytest.raises(ArtefactError, match=r"cannot be read: file name too long$"):
        msmamba.open("x" * 300)


def test_a_path_of_bytes_is_one(bundle: Path) -> None:
    msmamba.open(str(bundle).encode()).close()


def test_cuda_without_cuda_says_what_to_install(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match="pip install onnxruntime-gpu"):
        open_session(bundle, device="cuda")


@pytest.fixture
def played_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """ONNX Runtime with CUDA and a driver with one GPU; CUDA's libraries are not all there, so that a session
    falls back to the CPU, as `onnxruntime-gpu` does. Gives the providers of each session."""
    import onnxruntime

    asked: list[Any] = []
    open_one = onnxruntime.InferenceSession

    def session(model: Any, options: Any, providers: Any, **named: Any) -> Any:
        asked.append(providers)
        return open_one(model, options, providers=["CPUExecutionProvider"], **named)

    def count(pointer: Any) -> int:
        pointer._obj.value = 1
        return 0

    def attribute(pointer: Any, number: int, device: Any) -> int:
        pointer._obj.value = {75: 8, 76: 9}[number]  # compute capability 8.9
        return 0

    driver = SimpleNamespace(
        cuInit=lambda flags: 0,
        cuDeviceGetCount=count,
        cuDeviceGet=lambda pointer, number: 0,
        cuDeviceGetAttribute=attribute,
    )
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    missing = "Failed to load libcublasLt.so.13: cannot open shared object file"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print(missing))
    monkeypatch.setattr(onnxruntime_backend, "ctypes", SimpleNamespace(CDLL=lambda name: driver, **CTYPES))
    onnxruntime_backend._preload.cache_clear()
    yield asked
    onnxruntime_backend._preload.cache_clear()


def test_cuda_that_does_not_start_leaves_the_native_kernels(
    bundle: Path, played_cuda: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with open_session(bundle, device="cpu") as session:
        on_cpu = session.path
    played_cuda.clear()
    with open_session(bundle) as session:
        assert session.path == (
            f"{on_cpu}; CUDAExecutionProvider does not start (Failed to load libcublasLt.so.13: cannot open "
            "shared object file): 'mmdeploy doctor' shows the driver and libraries that it needs"
        )
    plain_float32 = ("CUDAExecutionProvider", {"use_tf32": "0"})
    assert played_cuda == [
        [plain_float32, ("CPUExecutionProvider", {})],
        [("CPUExecutionProvider", {})],
    ]
    assert capsys.readouterr().out == ""  # where commands write their answers


def test_cuda_libraries_are_found_in_another_folder_than_onnx_runtimes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's own look-up ends at the folder that it was installed into."""
    import onnxruntime

    for name in ("cu13/lib/libcublas.so.13", "cu13/lib/libcublasLt.so.13", "cudnn/lib/libcudnn.so.9"):
        (tmp_path / "nvidia" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nvidia" / name).touch()
    loaded: list[str] = []
    loader = SimpleNamespace(CDLL=loaded.append)
    monkeypatch.setattr(onnxruntime_backend, "ctypes", loader)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: loaded.append("its own"), raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    onnxruntime_backend._preload.cache_clear()
    try:
        assert onnxruntime_backend._preload(onnxruntime) == ""
    finally:
        onnxruntime_backend._preload.cache_clear()
    here = [Path(path).name for path in loaded if path.startswith(str(tmp_path))]
    assert here == ["libcublasLt.so.13", "libcublas.so.13", "libcudnn.so.9"]  # the second needs the first
    assert loaded[-1] == "its own"


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"provider": "cuda"}], ids=["device", "provider"])
def test_cuda_that_is_asked_for_and_does_not_start_says_why(
    bundle: Path, played_cuda: list[Any], options: dict[str, str]
) -> None:
    with pytest.raises(
        BackendError, match=r"CUDAExecutionProvider does not start \(Failed to load libcublas"
    ):
        open_session(bundle, **options)


def test_cuda_that_breaks_leaves_the_native_kernels(
    bundle: Path, played_cuda: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

    falls_back = onnxruntime.InferenceSession

    def breaks(model: Any, options: Any, providers: Any, **named: Any) -> Any:
        if len(providers) > 1:
            raise RuntimeException("CUDA failure 35: CUDA driver version is insufficient")
        return falls_back(model, options, providers, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", breaks)
    with open_session(bundle, device="cpu") as session:
        on_cpu = session.path
    with open_session(bundle) as session:
        assert session.path.startswith(f"{on_cpu}; ONNX Runtime cannot load ")
        assert session.path.endswith("CUDA failure 35: CUDA driver version is insufficient")


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        pytest.param(None, r"no (nvcuda\.dll|libcuda\.so\.1), NVIDIA's driver", id="no-driver"),
        pytest.param((100, 0), "NVIDIA's driver gives error 100: check nvidia-smi", id="driver-fails"),
        pytest.param((0, 0), "NVIDIA's driver shows no GPU: check nvidia-smi", id="no-gpu"),
    ],
)
def test_without_a_gpu_no_session_is_tried_on_cuda(
    bundle: Path,
    played_cuda: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    driver: tuple[int, int] | None,
    message: str,
) -> None:
    def library(name: str) -> Any:
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return SimpleNamespace(cuInit=lambda flags: driver[0], cuDeviceGetCount=lambda pointer: 0)

    monkeypatch.setattr(onnxruntime_backend, "ctypes", SimpleNamespace(CDLL=library, **CTYPES))
    with pytest.raises(BackendError, match=message):
        open_session(bundle, device="cuda")
    with open_session(bundle) as session:
        assert re.search(message, session.path)
        assert session.path.startswith("onnxruntime CPU, ")
    assert played_cuda == [[("CPUExecutionProvider", {})]]


def test_a_network_with_a_scan_stays_on_the_cpu_unless_cuda_is_asked_for(
    bundles: dict[str, Path], played_cuda: list[Any]
) -> None:
    if cpu.why_unavailable() is not None:
        pytest.skip("the native library is not built")
    for artefact in (bundles["fp32"], bundles["fp32"] / "model.onnx"):
        with open_session(artefact) as session:
            assert re.fullmatch(
                r"onnxruntime CPU, native kernels .*; not CUDA, where the scan's .*: device 'cuda' insists",
                session.path,
            )
    assert played_cuda == [[("CPUExecutionProvider", {})]] * 2
    with pytest.raises(BackendError, match="CUDAExecutionProvider does not start"):
        open_session(bundles["fp32"], device="cuda")
    with open_session(bundles["fp32"], kernels="functions") as session:
        assert "CUDAExecutionProvider does not start" in session.path


class OnGpu:
    """A session that says it is on CUDA, and runs on the CPU, by the kernels for it."""

    def __init__(self, model: Any, options: Any, providers: Any, **named: Any) -> None:
        import onnxruntime
        from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession

        self.asked = providers
        own = onnxruntime.SessionOptions()
        own.register_custom_ops_library(str(cpu.library_path()))
        self._session = InferenceSession(model, own, providers=["CPUExecutionProvider"], **named)

    def get_providers(self) -> list[str]:
        return [name for name, _ in self.asked]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture
def started_cuda(played_cuda: list[Any], monkeypatch: pytest.MonkeyPatch) -> list[OnGpu]:
    """CUDA that starts, on a GPU of compute capability 8.9; its memory is the CPU's. Gives the sessions."""
    import onnxruntime

    sessions: list[OnGpu] = []

    def session(*arguments: Any, **named: Any) -> OnGpu:
        sessions.append(OnGpu(*arguments, **named))
        return sessions[-1]

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime_cuda, "DEVICE", "cpu")
    functions = (1,) * len(gpu_operator.DRIVER_FUNCTIONS)  # addresses that nobody calls
    monkeypatch.setattr(gpu_operator, "_driver_functions", lambda driver: functions)
    return sessions


@pytest.fixture
def on_gpu(bundles: dict[str, Path]) -> Path:
    """A bundle with the scan's kernels."""
    if cpu.why_unavailable() is not None:
        pytest.skip("the native library is not built")
    if not list(bundles["fp32"].glob("scan.*.kernels")):
        pytest.skip("Triton is not installed")
    return bundles["fp32"]


def test_on_cuda_the_scan_runs_by_the_bundles_kernels_in_graphs(
    on_gpu: Path, started_cuda: list[OnGpu]
) -> None:
    """More shapes of batches than are kept, each of them twice, and the features beside."""
    images = np.random.default_rng(0).standard_normal((6, 3, 32, 32), np.float32)
    with open_session(on_gpu, device="cpu") as session:
        expected, features = session.run_with_features(images)
    started_cuda.clear()
    with open_session(on_gpu, device="cuda") as session:
        assert (
            session.path
            == "onnxruntime CUDA, native kernels the scan's and the block's, by the CUDA driver, CUDA graphs"
        )
        for batch in (6, 1, 2, 3, 4, 5, 6, 1, 5):
            np.testing.assert_allclose(session.run(images[:batch]), expected[:batch], atol=1e-4)
        found = session.run_with_features(images)
        np.testing.assert_allclose(found[1], features, atol=1e-4)
    plain = {"use_tf32": "0"}
    asked = [session.asked[0] for session in started_cuda]
    assert asked == [
        ("CUDAExecutionProvider", plain),
        ("CUDAExecutionProvider", {**plain, "enable_cuda_graph": "1"}),
    ]


def test_runs_that_cannot_be_captured_run_plainly_and_say_why(
    on_gpu: Path, started_cuda: list[OnGpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    def refused(session: OnGpu, *arguments: Any) -> None:
        if "enable_cuda_graph" in session.asked[0][1]:
            raise Fail("[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature")
        session._session.run_with_iobinding(*arguments)

    monkeypatch.setattr(OnGpu, "run_with_iobinding", refused, raising=False)
    with open_session(on_gpu, device="cuda") as session:
        assert session.path.endswith("no CUDA graphs (This session cannot use the graph capture feature)")
        assert session.run(np.zeros((2, 3, 32, 32), np.float32)).shape == (2, 3)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_keeps_the_scans_kernels_from_cuda_is_told(
    on_gpu: Path,
    bundles: dict[str, Path],
    started_cuda: list[OnGpu],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    """A file without its bundle, and a GPU that there are no kernels for: functions, unless they must not."""
    cases = [(bundles[precision] / "model.onnx", 89, "carries no scan kernels: open a bundle")]
    cases += [(bundles[precision], 70, r"this GPU has 7\.0: export the bundle again")]
    for artefact, capability, message in cases:
        monkeypatch.setattr(onnxruntime_backend, "compute_capability", lambda found=capability: found)
        with open_session(artefact, device="cuda") as session:
            assert re.search(rf"ONNX functions \(.*{message}.*no CUDA graphs \(a loop", session.path)
        with pytest.raises(BackendError, match=f"native kernels were asked for, but .*{message}"):
            open_session(artefact, device="cuda", kernels="native")


def test_a_network_without_a_scan_needs_no_kernels_on_cuda(bundle: Path, started_cuda: list[OnGpu]) -> None:
    with open_session(bundle) as session:
        assert session.path == "onnxruntime CUDA, standard operators, CUDA graphs"


def test_native_kernels_asked_for_are_run_where_they_can_be(
    bundles: dict[str, Path], played_cuda: list[Any]
) -> None:
    if cpu.why_unavailable() is not None:
        pytest.skip("the native library is not built")
    with open_session(bundles["fp32"], kernels="native") as session:
        assert "native kernels" in session.path
    assert played_cuda == [[("CPUExecutionProvider", {})]]


@pytest.mark.parametrize(
    "values",
    [(0.5, 0.5), (0.0, 1.0, 1.0), (1e-300, 1.0, 1.0), (1.0, float("nan"), 1.0), 0.5, "abc", (True, 1.0, 1.0)],
    ids=["two", "zero", "minute", "nan", "number", "text", "bool"],
)
def test_senseless_deviations_are_refused(bundle: Path, values: Any) -> None:
    with pytest.raises(InputError, match="the channels' std is"):
        open_session(bundle, std=values)


@pytest.mark.parametrize("values", [(1e300, 0.0, 0.0), (10**400, 0, 0), (float("inf"),) * 3, ("a",) * 3])
def test_senseless_means_are_refused(bundle: Path, values: Any) -> None:
    with pytest.raises(InputError, match="the channels' mean is"):
        open_session(bundle, mean=values)


def test_metadata_wins_nothing_over_a_bundles_manifest(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle(labels=("x", "y", "z"))
    model = onnx.load(folder / "model.onnx")
    assert not model.metadata_props
    with open_session(folder) as session:
        assert session.labels == ("x", "y", "z")


def test_the_runtime_sees_what_training_evaluates_on(session: Session, tmp_path: Path) -> None:
    from msmamba.data.folders import Sample
    from msmamba.model.training.loading import EvaluationImages, Images

    values = np.random.default_rng(0)
    files = {
        "grey-16.tif": Image.fromarray(values.integers(0, 65536, (40, 21), np.uint16)),
        "rgba.png": Image.fromarray(values.integers(0, 256, (7, 13, 4), np.uint8)),
        "photo.jpg": Image.fromarray(values.integers(0, 256, (64, 48, 3), np.uint8)),
        "palette.png": Image.fromarray(values.integers(0, 256, (9, 9, 3), np.uint8)).quantize(7),
    }
    for name, image in files.items():
        image.save(tmp_path / name)
    samples = [Sample(tmp_path / name, 0) for name in files]
    evaluated = EvaluationImages(Images(samples), manifest().transform)
    for number, sample in enumerate(samples):
        image, _ = evaluated[number]
        np.testing.assert_array_equal(session.prepare(sample.source)[0], image)


def test_weights_in_a_file_beside_the_model_are_found(tmp_path: Path) -> None:
    onnx.save_model(
        classifier(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=60
    )
    assert (tmp_path / "m.data").exists()
    with open_session(tmp_path / "m.onnx") as session:
        images = batch(2)
        np.testing.assert_allclose(session.run(images), images.mean(axis=(2, 3))[:, ::-1], atol=1e-6)


def test_a_bundle_has_no_weights_that_its_manifest_does_not_know(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = classifier()
    onnx.save_model(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=60
    )
    content = (tmp_path / "m.onnx").read_bytes()
    folder = make_bundle({"model.onnx": content})
    monkeypatch.chdir(tmp_path)  # where ONNX Runtime would look for them
    with pytest.raises(ArtefactError, match=r"model\.onnx' has weights in files beside it \(m\.data\)"):
        open_session(folder)
    monkeypatch.setattr("msmamba.runtime.session.files_beside", lambda content: set())  # as in an inner graph
    with pytest.raises(ArtefactError, match="ONNX Runtime cannot load"):
        open_session(folder)


def test_the_public_surface_is_this() -> None:
    import msmamba.runtime

    assert set(msmamba.runtime.__all__) == {"Manifest", "Prediction", "Session", "open_session"}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_opens_or_gives_one_line(data: st.DataObject) -> None:
    content = bytearray(classifier(metadata=manifest().to_metadata()).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            open_session(file.name, threads=1).close()
        except ArtefactError as error:
            message = str(error)
        else:
            return
    assert len(message.splitlines()) == 1


def test_features_are_told_where_the_file_gives_them(tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE), np.float32)
    with open_session(bare(tmp_path / "m.onnx", features=True)) as session:
        assert session.features == 3
        logits, features = session.run_with_features(images)
        np.testing.assert_allclose(features, images.mean(axis=(2, 3)), rtol=1e-5)
        np.testing.assert_array_equal(logits, session.run(images))
    with open_session(bare(tmp_path / "older.onnx")) as session:
        assert session.features is None
        assert session.run_with_features(images)[1] is None


def test_a_second_output_that_is_no_features_is_refused(tmp_path: Path) -> None:
    model = classifier(features=True)
    model.graph.output[1].name = model.graph.node[0].output[0] = model.graph.node[1].input[0] = "map"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match=r"1 inputs and 2 outputs: .* with 'features' as a second output"):
        open_session(tmp_path / "m.onnx")


@pytest.mark.parametrize("dims", [("batch", 3, 1), ("batch",)], ids=["a-dim-more", "a-dim-less"])
def test_features_that_are_no_rows_are_refused(dims: tuple[int | str, ...], tmp_path: Path) -> None:
    model = classifier(features=True)
    shape = model.graph.output[1].type.tensor_type.shape
    del shape.dim[:]
    for each in dims:
        shape.dim.add(**{"dim_value" if isinstance(each, int) else "dim_param": each})
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match=r"'features' has shape .*expected \(batch, features\)"):
        open_session(tmp_path / "m.onnx")
