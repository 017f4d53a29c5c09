"""The distance of features: what it is, that a file keeps it, and what cannot be told."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from msmamba.errors import ArtefactError
from msmamba.runtime.likeness import DIRECTIONS, Likeness

FEATURES, CLASSES = 60, 3


def drawn(images: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features that differ most along a few directions, about a mean for each class."""
    generator = np.random.default_rng(seed)
    truth = np.arange(images) % CLASSES
    spread = np.where(np.arange(FEATURES) < 5, 3.0, 0.5)
    return 4 * np.eye(CLASSES, FEATURES)[truth] + spread * generator.normal(size=(images, FEATURES)), truth


def likeness_of(features: np.ndarray, truth: np.ndarray) -> Likeness:
    found = Likeness.of(features, truth)
    assert found is not None
    return found


def test_the_distance_is_mahalanobis_where_all_directions_but_one_are_kept() -> None:
    features, truth = drawn()
    features = features[:, :8]
    means = np.stack([features[truth == index].mean(axis=0) for index in range(CLASSES)])
    within = features - means[truth]
    inverse = np.linalg.inv(within.T @ within / (len(features) - CLASSES))
    given, _ = drawn(20, seed=1)
    away = given[:, None, :8] - means
    expected = np.einsum("bcf,fg,bcg->bc", away, inverse, away).min(axis=1)
    np.testing.assert_allclose(likeness_of(features, truth).distances(given[:, :8]), expected, rtol=1e-3)


def test_images_of_the_kind_are_near_and_others_far() -> None:
    likeness = likeness_of(*drawn())
    assert likeness.directions.shape == (DIRECTIONS, FEATURES)
    like, _ = drawn(200, seed=2)
    assert np.median(likeness.distances(like)) == pytest.approx(FEATURES, rel=0.15)
    shifted = like + 2 * np.eye(1, FEATURES, FEATURES - 1)  # four deviations in a quiet direction
    assert (likeness.distances(shifted) > likeness.distances(like)).mean() > 0.9


def test_more_features_than_images_will_do() -> None:
    features, truth = drawn(30)
    found = likeness_of(features, truth)
    assert len(found.directions) == 30 - CLASSES - 1
    assert np.isfinite(found.distances(features)).all()


@pytest.mark.parametrize(
    ("features", "truth"),
    [
        pytest.param(np.ones((9, 4)), np.arange(9) % 3, id="all-alike"),
        pytest.param(np.eye(3), np.arange(3), id="one-a-class"),
    ],
)
def test_what_cannot_be_told_is_none(features: np.ndarray, truth: np.ndarray) -> None:
    assert Likeness.of(features, truth) is None


def test_a_file_keeps_it_bit_for_bit() -> None:
    features, truth = drawn()
    likeness = likeness_of(features, truth)
    kept = Likeness.from_text(likeness.to_text(), "a bundle")
    np.testing.assert_array_equal(kept.distances(features), likeness.distances(features))


def encoded(*values: float) -> str:
    return base64.b64encode(np.array(values, "<f4").tobytes()).decode()


WHOLE = likeness_of(*drawn()).to_text()
HEAD = WHOLE.partition(":")[0] + ":"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param(WHOLE[:-8], id="cut"),
        pytest.param(HEAD + "?" + WHOLE[len(HEAD) :], id="no-base64"),
        pytest.param("0x0x0:", id="empty"),
        pytest.param("-1x2x3:AAAA", id="negative"),
        pytest.param("1x1x1:" + encoded(np.nan, 1, 1, 1), id="nan-mean"),
        pytest.param("1x1x1:" + encoded(1, 1, np.nan, 1), id="nan-variance"),
        pytest.param("1x1x1:" + encoded(1, 1, 0, 1), id="flat-along"),
        pytest.param("1x1x1:" + encoded(1, 1, 1, 0), id="flat-beside"),
        pytest.param("1x1x0:" + encoded(1, 1), id="no-directions"),
    ],
)
def test_what_is_damaged_is_named(text: str) -> None:
    with pytest.raises(ArtefactError, match="what the guard of 'a bundle' compares images with is damaged"):
        Likeness.from_text(text, "a bundle")
