"""Intervals, paired tests and calibration, against known values and against how often they hold the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import bootstrap, ttest_1samp

from msmamba.measures.metrics import metrics_of
from msmamba.measures.uncertainty import (
    BINS,
    Interval,
    bias_corrected,
    bootstrap_interval,
    calibration_change,
    calibration_error,
    metric_intervals,
    proportion_interval,
    reliability,
    widened,
)


def test_the_interval_is_scipys_bias_corrected_one_where_nothing_is_skewed() -> None:
    values = np.random.default_rng(0).normal(1, 1, 30)
    values = np.r_[values, 2 - values]  # no skewness, and so no acceleration
    theirs = bootstrap((values,), np.mean, n_resamples=999, rng=1)  # BCa by default
    ours = bias_corrected(values.mean(), theirs.bootstrap_distribution)
    assert ends(ours) == pytest.approx(ends(theirs.confidence_interval), abs=1e-9)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        pytest.param(0, 209, 0.0, 1 - 0.025 ** (1 / 209), id="none"),
        pytest.param(209, 209, 0.025 ** (1 / 209), 1.0, id="all"),
        pytest.param(5, 10, 0.1870860, 0.8129140, id="half-of-ten"),  # Clopper and Pearson's tables
        pytest.param(0, 0, 0.0, 1.0, id="nothing-tried"),
    ],
)
def test_a_proportions_exact_interval(successes: int, trials: int, low: float, high: float) -> None:
    interval = proportion_interval(successes, trials)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-6)


def test_the_calibration_error_of_a_model_worked_out_by_hand() -> None:
    # Four images at confidence 0.75, two of them right; two at 1.0, both right: 4/6 * |0.5 - 0.75|.
    probabilities = np.array([[0.75, 0.25]] * 4 + [[1.0, 0.0]] * 2)
    found = reliability(probabilities, np.array([0, 0, 1, 1, 0, 0]), bins=10)
    assert found.error == pytest.approx(4 / 6 * 0.25)
    assert found.images == (0, 0, 0, 0, 0, 0, 0, 4, 0, 2)
    assert found.edges == pytest.approx([edge / 10 for edge in range(11)])
    assert (found.confidence[7], found.accuracy[7]) == (0.75, 0.5)
    assert (found.confidence[9], found.accuracy[9]) == (1.0, 1.0)
    assert found.confidence[0] is found.accuracy[0] is None


def test_confidences_drawn_as_they_say_are_calibrated() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 1, size=20_000)
    truth = (generator.random(20_000) > confidence).astype(int)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    assert reliability(probabilities, truth).error < 0.012
    overconfident = np.stack([confidence**0.25, 1 - confidence**0.25], axis=1)
    assert reliability(overconfident, truth).error == pytest.approx(
        (confidence**0.25 - confidence).mean(), abs=0.01
    )


def test_equal_shares_of_images_are_equal_whatever_their_last_bits() -> None:
    # Differences of shares of 10 images, half of them with an error of one unit in the last place.
    generator = np.random.default_rng(0)
    values = generator.binomial(10, 0.1, 1000) / 10
    noisy = np.nextafter(values, np.where(np.arange(1000) % 2, 1.0, -1.0))
    assert ends(bias_corrected(0.1, noisy)) == pytest.approx(ends(bias_corrected(0.1, values)), abs=1e-12)


# One model, any statistic, and whole patients


def ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def random_predictions(images: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits with ties, and true classes that they often get right."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(classes, size=images)
    return generator.integers(0, 4, size=(images, classes)) + 2.0 * np.eye(classes)[truth], truth


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_intervals_are_of_the_very_metrics_that_are_reported(classes: int) -> None:
    logits, truth = random_predictions(60, classes)
    labels = [str(label) for label in range(classes)]
    # Two groups alike: every resample is the whole set twice, and the interval shrinks to the metric.
    twice, groups = (np.concatenate([logits] * 2), np.concatenate([truth] * 2)), np.repeat([0, 1], 60)
    intervals = metric_intervals(*twice, groups=groups, resamples=2)
    metrics = metrics_of(logits, truth, labels)
    for name, interval in intervals.items():
        assert interval is not None
        assert ends(interval) == pytest.approx((getattr(metrics, name),) * 2), name
    assert intervals.keys() == {"accuracy", "auc", "precision", "recall", "f1"}
    for name, interval in metric_intervals(logits, truth, resamples=300).items():
        assert interval is not None
        assert interval.low < getattr(metrics, name) < interval.high


def test_a_class_that_is_given_once_or_never_is_measured_as_scikit_learn_does() -> None:
    logits, truth = random_predictions(12, 5)
    labels = [str(label) for label in range(5)]
    found = metric_intervals(logits, truth, resamples=40)
    for name in ("precision", "f1"):
        expected = bootstrap_interval(
            lambda rows, true, name=name: getattr(metrics_of(rows, true, labels), name),
            *(logits, truth),
            resamples=40,
        )
        assert ends(found[name]) == pytest.approx(ends(expected))


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    right = np.arange(2000) % 5 > 0
    interval = bootstrap_interval(np.mean, right, resamples=4000)
    error = 1.96 * np.sqrt(0.8 * 0.2 / 2000)
    assert interval is not None
    assert ends(interval) == pytest.approx((0.8 - error, 0.8 + error), abs=0.1 * error)
    narrower = bootstrap_interval(np.mean, right, resamples=4000, level=0.5)
    assert narrower is not None
    assert ends(narrower) == pytest.approx((0.8 - 0.344 * error, 0.8 + 0.344 * error), abs=0.1 * error)


def test_the_seed_decides_an_interval() -> None:
    right = np.arange(50) % 3 > 0
    assert bootstrap_interval(np.mean, right) == bootstrap_interval(np.mean, right)
    assert bootstrap_interval(np.mean, right) != bootstrap_interval(np.mean, right, seed=1)


def test_rows_of_several_arrays_stay_together() -> None:
    first = np.arange(30)
    assert bootstrap_interval(lambda a, b: float((a == b).all()), first, first.copy()) == Interval(1, 1)


def test_images_of_one_patient_widen_the_interval() -> None:
    patients = np.repeat(np.arange(20), 50)
    right = patients % 5 > 0  # a patient's images are all right or all wrong
    alone, together = (bootstrap_interval(np.mean, right, groups=groups) for groups in (None, patients))
    assert alone is not None
    assert together is not None
    assert together.high - together.low > 5 * (alone.high - alone.low)
    # The order of the rows is nobody's business.
    order = np.random.default_rng(0).permutation(1000)
    shuffled = bootstrap_interval(np.mean, right[order], groups=patients[order])
    assert shuffled is not None
    assert ends(shuffled) == pytest.approx(ends(together))


def test_few_patients_widen_the_interval_more_than_resampling_does() -> None:
    right = np.repeat([1.0, 1, 1, 0], [60, 20, 20, 20])  # of four patients one is all wrong
    patients = np.repeat(np.arange(4), [60, 20, 20, 20])
    interval = bootstrap_interval(np.mean, right, groups=patients, bounds=(0, 1))
    assert interval is not None
    assert ends(interval) == (0, 1)
    # Student's quantile of one degree of freedom, and twice the variance: 12.7062 / 1.95996 * sqrt(2).
    assert ends(widened(Interval(0.52, 0.55), 0.53, 2)) == pytest.approx(
        (0.53 - 0.09168, 0.53 + 0.18336), abs=1e-4
    )
    # Resamples that all lie on one side are not drawn away from there.
    assert widened(Interval(0.54, 0.55), 0.53, 2).low == 0.54


def test_a_statistic_without_a_value_is_left_out_or_leaves_no_interval() -> None:
    logits, truth = random_predictions(12, 2)
    one_sick = np.where(np.arange(12) == 3, 1, 0)  # a third of the resamples lack the only sick image
    assert metric_intervals(logits, one_sick)["auc"] is not None
    assert metric_intervals(logits, np.zeros(12, int))["auc"] is None
    assert bootstrap_interval(lambda _: float("nan"), truth) is None


def test_one_patient_or_one_image_leaves_no_interval() -> None:
    logits, truth = random_predictions(30, 3)
    assert set(metric_intervals(logits, truth, groups=np.zeros(30)).values()) == {None}
    assert metric_intervals(logits, truth, groups=np.arange(30) % 2, resamples=50)["accuracy"] is not None
    assert bootstrap_interval(np.mean, np.ones(1)) is None


@pytest.mark.parametrize(("groups", "units"), [(None, 12), (np.arange(12) // 4, 3)], ids=["images", "groups"])
def test_none_or_all_right_has_the_exact_interval(groups: np.ndarray | None, units: int) -> None:
    truth = np.arange(12) % 2
    for right in (True, False):
        logits = np.eye(2)[truth if right else 1 - truth]
        found = metric_intervals(logits, truth, groups=groups, resamples=50)
        assert found["accuracy"] == found["recall"] == proportion_interval(units * right, units)
        assert (found["auc"], found["precision"], found["f1"]) == (None, None, None)


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3, 4\] rows; expected the same number"):
        bootstrap_interval(lambda a, b: 0.0, np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match=r"\[0\] rows; .* at least one"):
        bootstrap_interval(np.mean, np.zeros(0))
    with pytest.raises(ValueError, match=r"\[3, 2\] rows"):
        bootstrap_interval(np.mean, np.zeros(3), groups=np.zeros(2))
    with pytest.raises(ValueError, match="cannot take 10 resamples to a level of 95"):
        bootstrap_interval(np.mean, np.zeros(3), resamples=10, level=95)


@pytest.mark.parametrize("sureness", [1.0, 1.4, 0.6], ids=["calibrated", "too-sure", "not-sure-enough"])
@pytest.mark.parametrize("images", [30, 300])
def test_the_interval_of_a_calibration_error_holds_the_true_one(sureness: float, images: int) -> None:
    generator = np.random.default_rng(0)

    def drawn(count: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """How sure the answers are, and how often each is right."""
        odds = np.abs(generator.normal(0, 2, count))
        return 1 / (1 + np.exp(-sureness * odds)), 1 / (1 + np.exp(-odds))

    confidence, chance = drawn(200_000)
    bins = np.ceil(confidence * BINS).astype(int)
    true = np.abs(np.bincount(bins, chance - confidence)).sum() / len(bins)
    assert (true == pytest.approx(0, abs=1e-9)) == (sureness == 1)
    held = 0
    for _ in range(200):
        confidence, chance = drawn(images)
        error, interval = calibration_error(confidence, generator.random(images) < chance)
        assert interval.low <= error <= interval.high
        held += interval.low <= true + 1e-9 and true <= interval.high
    assert held >= 190


def test_the_calibration_error_of_one_bin_has_the_interval_of_a_mean() -> None:
    right = np.arange(100) < 40
    error, interval = calibration_error(np.full(100, 0.7), right)
    mean = ttest_1samp(right - 0.7, 0).confidence_interval()  # of -0.3, far from 0
    assert error == pytest.approx(0.3)
    assert interval.high == pytest.approx(-mean.low)
    assert interval.low == pytest.approx(-mean.high, abs=0.003)  # of draws


def test_the_chance_of_a_calibration_error_is_that_of_patients_where_they_are_known() -> None:
    generator = np.random.default_rng(0)
    patients = np.repeat(np.arange(30), 20)
    confidence = np.full(600, 0.75)
    right = (generator.random(30) < 0.75)[patients]  # all of a patient's images alike
    (error, of_images), (same, of_patients) = (
        calibration_error(confidence, right, groups) for groups in (None, patients)
    )
    assert error == same
    assert of_patients.width > 3 * of_images.width


@pytest.mark.parametrize(
    ("images", "alike"), [pytest.param(60, 1, id="images"), pytest.param(320, 4, id="copies")]
)
@pytest.mark.parametrize(
    ("sureness", "changed", "noise"),
    [
        pytest.param(1.0, 1.0, 0.01, id="calibrated-and-hardly-changed"),
        pytest.param(1.6, 1.0, 0.2, id="too-sure-and-changed"),
        pytest.param(1.0, 1.6, 0.0, id="made-too-sure"),
        pytest.param(1.6, 1 / 1.6, 0.0, id="made-calibrated"),
        pytest.param(8.0, 1.1, 0.0, id="very-sure"),
    ],
)
def test_the_interval_of_a_change_of_calibration_holds_the_true_one(
    sureness: float, changed: float, noise: float, images: int, alike: int
) -> None:
    generator = np.random.default_rng(0)

    def drawn(count: int) -> tuple[list[npt.NDArray[Any]], npt.NDArray[Any], npt.NDArray[Any]]:
        """The log-odds of two models, how often their answers are right, and whether they are."""
        odds = generator.normal(0, 2, count)
        both = [sureness * odds, changed * sureness * odds + generator.normal(0, noise or 1e-9, count)]
        often = np.array([1 / (1 + np.exp(-odds * np.sign(each))) for each in both])
        is_one = generator.random(count) < 1 / (1 + np.exp(-odds))
        return [1 / (1 + np.exp(-np.abs(each))) for each in both], often, (np.array(both) > 0) == is_one

    sure, often, _ = drawn(200_000)
    errors = [calibration_error(*each, binned_by=sure[0])[0] for each in zip(sure, often, strict=True)]
    true = errors[1] - errors[0]
    groups = np.repeat(np.arange(images // alike), alike)
    held = 0
    for _ in range(100):
        sure, _, right = drawn(images // alike)
        sure, right = [each.repeat(alike) for each in sure], right.repeat(alike, axis=1)
        change, interval = calibration_change(sure, list(right), groups if alike > 1 else None)
        assert -1 <= interval.low <= change <= interval.high <= 1
        held += interval.low <= true <= interval.high
    assert held >= 93  # chance is 2 of the 95


def test_a_change_of_calibration_is_known_better_than_either_error() -> None:
    generator = np.random.default_rng(0)
    odds = generator.normal(0, 2, 1000)
    right = generator.random(1000) < 1 / (1 + np.exp(-np.abs(odds)))
    sure = [1 / (1 + np.exp(-np.abs(each))) for each in (odds, odds + generator.normal(0, 0.003, 1000))]
    _, of_one = calibration_error(sure[0], right)
    change, of_both = calibration_change(sure, [right, right])
    assert abs(change) < 0.001
    assert 0.002 < of_both.width < of_one.width / 4  # that some would change is never excluded


def test_a_change_of_calibration_is_counted_in_bins_of_the_first() -> None:
    # Two bins of the first: two images at 0.75, one of them right; two at 0.95, both right.
    first, second = np.array([0.75, 0.75, 0.95, 0.95]), np.array([0.55, 0.95, 0.95, 0.95])
    right = np.array([True, False, True, True])
    change, interval = calibration_change([first, second], [right, right])
    before, _ = calibration_error(first, right)
    after, _ = calibration_error(second, right, binned_by=first)
    assert before == pytest.approx(2 / 4 * 0.25 + 2 / 4 * 0.05)
    assert after == pytest.approx(before)
    assert change == pytest.approx(0)
    assert calibration_error(second, right)[0] > after
    assert interval.low < 0 < interval.high
    assert calibration_change([first, second], [right, right], np.zeros(4, int))[1] == Interval(-1, 1)
