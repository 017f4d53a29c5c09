"""Measuring activations: the right numbers, resumed after a kill, and never from a stale cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from msmamba.calib import CalibrationSet, Histogram, choose, measure
from msmamba.errors import ArtefactError, InputError
from msmamba.export.graph.onnx_model import flat_model
from msmamba.images import Transform, read_image

VALUES = ("image", "patch_embed.1", "layers.3.blocks.0.pvm_layer/ScanFeatures:features")
TRANSFORM = Transform(32, (0.6, 0.5, 0.7), (0.2, 0.25, 0.15))


@pytest.fixture(scope="module")
def model(small_onnx: onnx.ModelProto) -> bytes:
    return flat_model(small_onnx).SerializeToString(deterministic=True)


@pytest.fixture(scope="module")
def images(labelled: Path) -> CalibrationSet:
    folder = labelled / "train"
    samples = [(path, path.parent.name) for path in sorted(folder.glob("*/*"))]
    return choose(folder, samples, ("basophil", "eosinophil", "lymphocyte"), count=7)


def plain(histograms: dict[str, Histogram]) -> dict[str, tuple[list[int], float, float]]:
    return {name: (each.counts.tolist(), each.width, each.largest) for name, each in histograms.items()}


def test_the_largest_values_are_those_that_onnxruntime_gives(
    model: bytes, images: CalibrationSet, tmp_path: Path
) -> None:
    found = measure(model, VALUES, images, TRANSFORM, tmp_path / "cache")
    assert tuple(found) == VALUES
    graph = onnx.load_from_string(model)
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in VALUES[1:])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options)
    batch = np.stack([TRANSFORM(read_image(image.source)) for image in images.images])
    expected = [batch, *session.run(list(VALUES[1:]), {"image": batch})]
    for histogram, values in zip(found.values(), expected, strict=True):
        assert histogram.largest == pytest.approx(np.abs(values).max(), rel=1e-4)
        assert histogram.counts.sum() == values.size


def test_a_killed_run_goes_on_where_it_was(
    model: bytes, images: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msmamba.calib.activations.SAVE_SECONDS", 0)

    def killed(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, VALUES, images, TRANSFORM, tmp_path / "cache", advance=killed)
    seen: list[int] = []
    resumed = measure(
        model, VALUES, images, TRANSFORM, tmp_path / "cache", advance=lambda done, total: seen.append(done)
    )
    assert seen == [3, 4, 5, 6, 7]  # the fourth was counted, but not yet kept
    assert plain(resumed) == plain(measure(model, VALUES, images, TRANSFORM, tmp_path / "other"))


def test_a_finished_cache_runs_nothing(model: bytes, images: CalibrationSet, tmp_path: Path) -> None:
    first = measure(model, VALUES, images, TRANSFORM, tmp_path / "cache")
    seen: list[int] = []
    again = measure(
        model, VALUES, images, TRANSFORM, tmp_path / "cache", advance=lambda done, total: seen.append(done)
    )
    assert seen == [7]
    assert plain(again) == plain(first)


def test_a_stale_cache_is_refused_and_says_what_changed(
    model: bytes, images: CalibrationSet, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    measure(model, VALUES, images, TRANSFORM, cache)
    before = cache.read_bytes()
    fewer = CalibrationSet(images.images[:3], images.seed, images.available)
    darker = Transform(32, (0.5, 0.5, 0.7), TRANSFORM.std)
    white, whiter = (replace(TRANSFORM, white_level=level) for level in (4095, 1023))
    measure(model, VALUES[1:2], fewer, white, tmp_path / "white")
    calls: dict[str, Callable[[], object]] = {
        "the images changed": lambda: measure(model, VALUES, fewer, TRANSFORM, cache),
        "the preprocessing changed": lambda: measure(model, VALUES, images, darker, cache),
        "the preprocessing": lambda: measure(model, VALUES[1:2], fewer, whiter, tmp_path / "white"),
        "the model and the images": lambda: measure(b"other", VALUES, fewer, TRANSFORM, cache),
        "the list of activations": lambda: measure(model, VALUES[:2], images, TRANSFORM, cache),
    }
    for message, call in calls.items():
        with pytest.raises(InputError, match=f"is stale: {message}.*delete it, or name another"):
            call()
    assert cache.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"", b"no cache", b"PK\x03\x04 and no more"], ids=["empty", "text", "cut"]
)
def test_what_is_no_cache_is_refused(
    content: bytes, model: bytes, images: CalibrationSet, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_bytes(content)
    with pytest.raises(InputError, match=r"no calibration cache that can be read \(it holds no arrays\)"):
        measure(model, VALUES, images, TRANSFORM, tmp_path / "cache")
    assert (tmp_path / "cache").read_bytes() == content


def test_a_cache_damaged_anywhere_is_refused_or_as_good_as_whole(
    model: bytes, images: CalibrationSet, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    whole = plain(measure(model, VALUES, images, TRANSFORM, cache))
    content = cache.read_bytes()
    refused = 0
    for place in range(0, len(content), max(1, len(content) // 97)):
        cache.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            assert plain(measure(model, VALUES, images, TRANSFORM, cache)) == whole  # a date, say
        except InputError:
            refused += 1
    assert refused > 50


def test_a_cache_of_other_arrays_is_refused(
    model: bytes, images: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    measure(model, VALUES, images, TRANSFORM, cache)
    with np.load(cache) as arrays:
        held = {name: arrays[name] for name in arrays.files}
    for name, other in (
        ("counts", held["counts"][:1]),
        ("counts", held["counts"].astype(np.float64)),
        ("widths", held["widths"][:, None]),
        ("largest", held["largest"].astype(np.int64)),
    ):
        with cache.open("wb") as file:
            np.savez(file, **{**held, name: other})
        with pytest.raises(InputError, match="its arrays are of other shapes or types"):
            measure(model, VALUES, images, TRANSFORM, cache)
    for name, other in (
        ("counts", held["counts"] - 1),
        ("widths", held["widths"] * np.nan),
        ("largest", -held["largest"]),
    ):
        with cache.open("wb") as file:
            np.savez(file, **{**held, name: other})
        with pytest.raises(InputError, match="it counts below 0, or measured what is no number"):
            measure(model, VALUES, images, TRANSFORM, cache)
    with cache.open("wb") as file:
        np.savez(file, **held)
    monkeypatch.setattr("msmamba.calib.activations._MOST_BYTES", 1000)
    with pytest.raises(InputError, match="it is larger than any cache"):
        measure(model, VALUES, images, TRANSFORM, cache)


def test_another_npz_file_is_refused(model: bytes, images: CalibrationSet, tmp_path: Path) -> None:
    with (tmp_path / "cache").open("wb") as file:
        np.savez(file, weights=np.zeros(3))
    with pytest.raises(InputError, match="no calibration cache"):
        measure(model, VALUES, images, TRANSFORM, tmp_path / "cache")


def test_a_model_that_overflows_is_refused_with_the_place(
    model: bytes, images: CalibrationSet, tmp_path: Path
) -> None:
    broken = onnx.load_from_string(model)
    weight = next(tensor for tensor in broken.graph.initializer if tensor.name == "patch_embed.0.bias")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full(weight.dims, np.inf, np.float32), weight.name))
    with pytest.raises(ArtefactError, match=r"not finite at patch_embed\.1 for '.*\.png'"):
        measure(broken.SerializeToString(), VALUES, images, TRANSFORM, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
