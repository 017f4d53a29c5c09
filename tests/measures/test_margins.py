"""Which images a reference decides: margins on both sides of twice the bar, exactly at it, and odd logits."""

from __future__ import annotations

import numpy as np
import pytest

from msmamba.measures.margins import margins_of, undecided_images

BAR = 0.25
NAN, INF = np.nan, np.inf


def test_a_margin_is_that_of_the_two_largest_logits() -> None:
    logits = np.array([[1, 3, 2.5], [-1, -2, -8], [2, 2, 0], [7, 1, 5]], np.float32)
    assert margins_of(logits).tolist() == [0.5, 1, 0, 2]
    many = np.random.default_rng(0).normal(0, 1, (50, 9))
    *_, second, first = np.sort(many, axis=1).T
    np.testing.assert_array_equal(margins_of(many), first - second)


@pytest.mark.parametrize(
    ("row", "margin"),
    [
        pytest.param([5.0], INF, id="one-class"),
        pytest.param([NAN], NAN, id="one-class-not-a-number"),
        pytest.param([3, NAN, 1], NAN, id="not-a-number"),
        pytest.param([INF, 2, 1], NAN, id="infinite"),
        pytest.param([3, 2, -INF], NAN, id="minus-infinite-though-smallest"),
    ],
)
def test_the_margin_of_odd_logits(row: list[float], margin: float) -> None:
    np.testing.assert_array_equal(margins_of(np.array([row], np.float32)), [margin])


@pytest.mark.parametrize(
    ("margin", "undecided"),
    [
        pytest.param(0, True, id="tie"),
        pytest.param(np.nextafter(np.float32(0.5), np.float32(0)), True, id="just-below"),
        pytest.param(0.5, False, id="exactly-twice-the-bar"),
        pytest.param(np.nextafter(np.float32(0.5), np.float32(1)), False, id="just-above"),
        pytest.param(0.3, True, id="above-the-bar-but-not-twice"),
    ],
)
def test_an_image_is_decided_from_twice_the_bar_on(margin: float, undecided: bool) -> None:
    reference = np.array([[0, margin, -3], [margin, -3, 0]], np.float32)
    assert undecided_images(reference, reference, BAR).tolist() == [undecided, undecided]


def test_without_a_bar_every_image_is_decided() -> None:
    tie = np.ones((2, 3), np.float32)
    assert not undecided_images(tie, tie, None).any()


def test_one_class_is_always_decided() -> None:
    logits = np.ones((2, 1), np.float32)
    assert not undecided_images(logits, logits, 1e9).any()


def test_an_answer_that_is_not_finite_is_never_excused() -> None:
    tie = np.ones((4, 2), np.float32)
    broken = tie.copy()
    broken[1, 0], broken[2, 1] = NAN, INF
    assert undecided_images(tie, broken, BAR).tolist() == [True, False, False, True]
    assert undecided_images(broken, tie, BAR).tolist() == [True, False, False, True]


def test_within_the_bar_only_undecided_images_can_flip() -> None:
    """The reason for the rule: errors of at most the bar, in whatever direction."""
    generator = np.random.default_rng(0)
    reference = generator.normal(0, 1, (20_000, 3))
    artefact = reference + generator.uniform(-BAR, BAR, reference.shape)
    flipped = reference.argmax(1) != artefact.argmax(1)
    assert flipped.sum() > 500
    assert undecided_images(reference, artefact, BAR)[flipped].all()
