"""What certainty is worth: figures known by hand, intervals that hold, and groups that widen them."""

from __future__ import annotations

import numpy as np
import pytest

from msmamba.measures.metrics import log_softmax
from msmamba.measures.trust import risk_coverage, trust_of
from msmamba.measures.uncertainty import proportion_interval, reliability


def two(certainties: list[float], right: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Logits of two classes whose log-odds are given, always for the first, and the true classes."""
    return np.array([[each, 0.0] for each in certainties]), np.array([0 if each else 1 for each in right])


def law(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of three classes that are right as often as they say, and the true classes."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (images, 3))
    shares = np.exp(log_softmax(logits)).cumsum(axis=1)
    return logits, (generator.random((images, 1)) > shares).sum(axis=1)


def test_the_area_is_the_mean_risk_down_to_each_image() -> None:
    logits, truth = two([4, 3, 2, 1], [True, False, True, False])
    area = trust_of(logits, truth, resamples=20).risk_coverage_area
    assert area.value == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    coverage, risk = risk_coverage(logits, truth)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])


def test_images_of_one_certainty_are_answered_together() -> None:
    right = [True, False, True, False]
    one, other = (
        trust_of(*two([2, 1, 1, 1], each), resamples=20) for each in (right, [right[0], *right[:0:-1]])
    )
    assert one.risk_coverage_area.value == other.risk_coverage_area.value == (0 + 3 * 1 / 2) / 4


def test_the_calibration_error_is_that_of_the_reliability_diagram() -> None:
    logits, truth = law(300, seed=1)
    for temperature in (1.0, 0.3):
        probabilities = np.exp(log_softmax(logits / temperature))
        found = trust_of(logits, truth, temperature=temperature, resamples=200).calibration_error
        assert found.value == pytest.approx(reliability(probabilities, truth).error)
        assert found.interval.low < found.value < found.interval.high


def test_decisions_are_counted() -> None:
    logits, truth = law(200, seed=2)
    decided = logits.max(axis=1) > 2
    candidates = [(0, 1) if number % 2 else (2,) for number in range(200)]
    guard = trust_of(logits, truth, decided=decided, candidates=candidates, resamples=20).guard
    assert guard is not None
    assert guard.error is not None
    wrong = (logits.argmax(axis=1) != truth) & decided
    assert (guard.answered, guard.errors) == (decided.sum(), wrong.sum())
    assert guard.coverage.value == decided.mean()
    assert guard.coverage.interval == proportion_interval(decided.sum(), 200)
    assert guard.error.value == pytest.approx(wrong.sum() / decided.sum())
    assert guard.error.interval == proportion_interval(wrong.sum(), decided.sum())
    assert guard.mean_candidates == 1.5
    held = np.where(np.arange(200) % 2, truth < 2, truth == 2)
    assert guard.candidates_hold.value == pytest.approx(held.mean())
    assert guard.candidates_hold.interval == proportion_interval(held.sum(), 200)


def test_nothing_answered_has_no_error() -> None:
    logits, truth = law(20, seed=3)
    nothing = np.zeros(20, bool)
    for groups in (None, ["a", "b"] * 10):
        trust = trust_of(logits, truth, decided=nothing, candidates=[(0,)] * 20, groups=groups, resamples=20)
        assert trust.guard is not None
        assert trust.guard.error is None
        assert trust.guard.coverage.value == 0
        assert "answered" in trust.to_text()


def test_images_of_one_patient_count_as_one_doubt() -> None:
    logits, truth = law(60, seed=4)
    logits, truth = np.repeat(logits, 10, axis=0), np.repeat(truth, 10)
    patients = [f"patient {number // 10}" for number in range(600)]
    decided, candidates = logits.max(axis=1) > 1, [(0, 1)] * 600
    one, other = (
        trust_of(logits, truth, decided=decided, candidates=candidates, groups=groups, resamples=300)
        for groups in (None, patients)
    )
    assert (one.groups, other.groups) == (None, 60)
    for pick in (
        lambda trust: trust.calibration_error,
        lambda trust: trust.risk_coverage_area,
        lambda trust: trust.guard.coverage,
        lambda trust: trust.guard.error,
        lambda trust: trust.guard.candidates_hold,
    ):
        assert pick(one).value == pick(other).value
        assert pick(other).interval.width > 2 * pick(one).interval.width


def test_no_error_among_few_patients_is_no_promise() -> None:
    logits, truth = two([3.0] * 90, [True] * 90)
    patients = [f"{number % 3}" for number in range(90)]
    everything, candidates = np.ones(90, bool), [(0,)] * 90
    guard = trust_of(logits, truth, decided=everything, candidates=candidates, groups=patients).guard
    assert guard is not None
    assert guard.error is not None
    assert guard.error.value == 0
    assert guard.error.interval.high == pytest.approx(1 - 0.025 ** (1 / 3))  # none of three
    assert guard.coverage.interval.low == pytest.approx(0.025 ** (1 / 3))  # all of three


def test_one_patient_excludes_nothing_of_others() -> None:
    logits, truth = law(40, seed=2)
    trust = trust_of(logits, truth, groups=["one"] * 40, resamples=20)
    for figure in (trust.calibration_error, trust.risk_coverage_area):
        assert (figure.interval.low, figure.interval.high) == (0, 1)
    assert "(intervals of 95 %, by 1 group)" in trust.to_text()
    # So it is where one of two alone was answered.
    patients, of_one = ["one"] * 20 + ["other"] * 20, np.arange(40) < 20
    assert 0 < (logits.argmax(axis=1) != truth)[of_one].sum() < 20
    of_two = trust_of(
        logits, truth, decided=of_one, candidates=[(0, 1)] * 40, groups=patients, resamples=20
    ).guard
    assert of_two is not None
    assert of_two.error is not None
    assert (of_two.error.interval.low, of_two.error.interval.high) == (0, 1)


def test_no_error_among_images_leaves_room_for_some_among_others() -> None:
    truth = np.arange(100) % 2
    area = trust_of(3 * np.eye(2)[truth], truth, resamples=20).risk_coverage_area
    assert (area.value, area.interval.low) == (0, 0)
    rate = proportion_interval(0, 100).high
    worst = np.minimum(1, rate / ((np.arange(100_000) + 0.5) / 100_000)).mean()  # errors at the most certain
    assert area.interval.high == pytest.approx(worst, rel=1e-3)


def test_no_right_answer_among_images_leaves_room_for_some_among_others() -> None:
    truth = np.arange(20) % 2
    area = trust_of(3 * np.eye(2)[1 - truth], truth, resamples=20).risk_coverage_area
    assert (area.value, area.interval.high) == (1, 1)
    rate = proportion_interval(20, 20).low
    best = np.maximum(0, 1 - (1 - rate) / ((np.arange(100_000) + 0.5) / 100_000)).mean()
    assert area.interval.low == pytest.approx(best, rel=1e-3)


def test_the_intervals_hold_the_truth() -> None:
    exact = trust_of(*law(200_000, seed=5), resamples=2).risk_coverage_area.value
    held = 0
    for seed in range(60):
        interval = trust_of(*law(150, seed=1000 + seed), resamples=200).risk_coverage_area.interval
        held += interval.low <= exact <= interval.high
    assert held >= 52  # of 57 expected, three deviations


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        trust_of(np.zeros((0, 3)), np.zeros(0, int))
