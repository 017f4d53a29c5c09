"""Metrics against figures worked out by hand, and evaluation whatever runs the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msmamba.data.folders import read_evaluation_folder
from msmamba.data.samples import classes_of
from msmamba.errors import ImageError
from msmamba.images import Transform
from msmamba.measures.decision import decide
from msmamba.measures.evaluation import logits_of
from msmamba.measures.metrics import log_odds, log_softmax, metrics_of
from msmamba.measures.uncertainty import metric_intervals


def test_three_classes_by_hand() -> None:
    truth = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 1, 0])
    metrics = metrics_of(np.eye(3)[predicted] * 4, truth, ("a", "b", "c"))
    assert metrics.images == 6
    assert metrics.accuracy == pytest.approx(4 / 6)
    assert metrics.confusion == ((2, 1, 0), (0, 2, 0), (1, 0, 0))
    assert metrics.precision == pytest.approx((3 * 2 / 3 + 2 * 2 / 3 + 0) / 6)
    assert metrics.recall == pytest.approx((3 * 2 / 3 + 2 * 1 + 0) / 6)
    assert metrics.f1 == pytest.approx((3 * 2 / 3 + 2 * 4 / 5 + 0) / 6)
    # By pairs, ties half. a: 9 pairs, b: 8, c: 5 (c's only image has the score of all that are not c).
    a = (2 * 2 + 2 * 0.5 + 0 + 1 * 0 + 2 * 0.5) / 9
    b = (2 * 3 + 2 * 0.5) / 8
    assert metrics.classes[0].auc == pytest.approx(a)
    assert metrics.classes[1].auc == pytest.approx(b)
    assert metrics.classes[2].auc == pytest.approx(0.5)
    assert metrics.auc == pytest.approx((3 * a + 2 * b + 0.5) / 6)
    assert [(row.label, row.images, row.predicted) for row in metrics.classes] == [
        ("a", 3, 3),
        ("b", 2, 3),
        ("c", 1, 0),
    ]


def test_two_classes_take_the_auc_of_the_second() -> None:
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    metrics = metrics_of(np.stack([-scores, scores], axis=1), np.array([0, 0, 1, 1]), ("healthy", "sick"))
    assert metrics.auc == pytest.approx(0.75)
    reversed_metrics = metrics_of(
        np.stack([scores, -scores], axis=1), np.array([0, 0, 1, 1]), ("healthy", "sick")
    )
    assert reversed_metrics.auc == pytest.approx(0.25)


@pytest.mark.parametrize("classes", [2, 3], ids=["two", "three"])
def test_certainty_beyond_what_probabilities_tell_apart_is_in_order(classes: int) -> None:
    logits = np.zeros((6, classes))
    logits[:, 1] = [40.0, 41.0, 45.0, 60.0, 61.0, 900.0]  # probabilities of 1, rounded
    truth = np.array([0, 0, 0, 1, 1, 1])
    labels = ("a", "b", "c")[:classes]
    metrics = metrics_of(logits, truth, labels)
    assert metrics.classes[1].auc == 1
    assert metrics.classes[0].auc == 1
    change = decide(logits, -logits, truth, labels=labels, images=list("123456")).auc
    assert change is not None
    assert (change.reference, change.artefact) == (metrics.auc, metrics_of(-logits, truth, labels).auc)
    intervals = metric_intervals(logits, truth, resamples=20)
    assert intervals["auc"] is None  # 1 in every resample


def test_log_odds_are_those_of_the_probabilities() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (50, 4)).astype(np.float32)
    probabilities = np.exp(log_softmax(logits))
    np.testing.assert_allclose(log_odds(logits), np.log(probabilities / (1 - probabilities)), rtol=1e-9)
    assert log_odds(np.zeros((2, 2))).tolist() == [[0, 0], [0, 0]]
    assert np.isinf(log_odds(np.zeros((2, 1)))).all()


def test_a_class_without_images_weighs_nothing_and_one_class_has_no_auc() -> None:
    logits = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.5]])
    metrics = metrics_of(logits, np.array([0, 1]), ("a", "b", "absent"))
    assert metrics.auc == 1
    assert metrics.classes[2].auc is None
    assert metrics_of(logits, np.array([1, 1]), ("a", "b", "absent")).auc is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_loss_is_the_cross_entropy_and_survives_large_logits(dtype: type) -> None:
    logits = np.array([[1000.0, 0.0], [0.0, 2.0]], dtype=dtype)
    metrics = metrics_of(logits, np.array([0, 0]), ("a", "b"))
    assert metrics.loss == pytest.approx((0 + np.log1p(np.exp(2.0))) / 2)
    assert np.exp(log_softmax(logits)).sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize(
    ("logits", "truth", "message"),
    [
        pytest.param(np.zeros((0, 2)), [], "at least one image", id="no-image"),
        pytest.param(np.zeros((3, 3)), [0, 1, 1], "2 classes", id="another-class-count"),
        pytest.param(np.zeros((2, 2)), [0, 1, 1], "3 images", id="another-image-count"),
        pytest.param(
            np.array([[0, 1], [np.nan, 0]]), [0, 1], "1 images are not finite, the first is image 1", id="nan"
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(logits: np.ndarray, truth: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics_of(logits, np.array(truth, dtype=int), ("a", "b"))


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """Grey images of two classes, dark and light, five each."""
    for label, base in (("dark", 40), ("light", 200)):
        for number in range(5):
            (tmp_path / label).mkdir(exist_ok=True)
            Image.new("L", (9 + number, 7), base + number).save(tmp_path / label / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("batch_size", [1, 3, 10, 16])
def test_logits_are_of_every_image_once_whatever_the_batch(shades: Path, batch_size: int) -> None:
    data = read_evaluation_folder(shades)
    batches: list[tuple[int, ...]] = []

    def predict(images: np.ndarray) -> np.ndarray:
        batches.append(images.shape)
        light = images.mean(axis=(1, 2, 3))
        return np.stack([np.zeros_like(light), light], axis=1)

    seen: list[int] = []
    transform = Transform(8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    samples = data.split("all")
    logits = logits_of(predict, samples, transform, batch_size=batch_size, advance=seen.append)
    metrics = metrics_of(logits, classes_of(samples), data.labels)
    assert metrics.accuracy == metrics.auc == 1
    assert metrics.confusion == ((5, 0), (0, 5))
    assert all(shape[1:] == (3, 8, 8) and shape[0] <= batch_size for shape in batches)
    assert sum(seen) == 10


def test_logits_name_an_image_that_cannot_be_read(shades: Path) -> None:
    (shades / "dark" / "3.png").write_bytes(b"not an image")
    data = read_evaluation_folder(shades)
    transform = Transform(8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    with pytest.raises(ImageError, match=r"dark/3\.png"):
        logits_of(lambda images: np.zeros((len(images), 2)), data.split("all"), transform)
