"""Two models on the same images, by image and by patient: known values, and how often the truth is held."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from msmamba.measures.metrics import log_odds, metrics_of
from msmamba.measures.paired import Auc, mcnemar_p, members_of, share_change, share_interval
from msmamba.measures.uncertainty import Interval, proportion_interval


def ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def flags_of(*counts: int, of: int) -> np.ndarray:
    """The flags of units of so many images, so many of each flagged."""
    return np.concatenate([np.arange(of) < count for count in counts])


@pytest.mark.parametrize(("counted", "images"), [(0, 9), (1, 30), (17, 40), (9, 9)])
def test_the_share_of_independent_images_has_the_exact_interval(counted: int, images: int) -> None:
    flags = np.arange(images) < counted
    for groups in (None, [f"patient {number}" for number in range(images)]):
        found = share_interval(flags, members_of(groups, images))
        assert ends(found) == pytest.approx(ends(proportion_interval(counted, images)))
        assert found.exact


def test_units_that_are_alike_inside_count_once() -> None:
    members = np.repeat(np.arange(20), 50)
    alike = members % 4 == 0
    assert ends(share_interval(alike, members)) == pytest.approx(ends(proportion_interval(5, 20)))
    for flags, counted in ((np.zeros(1000, bool), 0), (np.ones(1000, bool), 20)):  # which may be alike
        assert ends(share_interval(flags, members)) == pytest.approx(ends(proportion_interval(counted, 20)))
    apart = share_interval(np.arange(1000) % 4 == 0, members)  # hardly a patient differs from another
    assert ends(apart) == pytest.approx(ends(proportion_interval(250, 1000)), abs=1e-9)
    between = share_interval(flags_of(*[5, 10, 15, 20] * 5, of=50), members)
    assert apart.width < between.width < share_interval(alike, members).width


def test_a_share_is_of_the_images_and_units_that_are_asked_for() -> None:
    members, among = np.repeat(np.arange(8), 5), np.arange(40) < 20
    found = share_interval(np.zeros(40, bool), members, among)
    assert ends(found) == pytest.approx(ends(proportion_interval(0, 4)))
    assert ends(share_interval(np.zeros(40, bool), members, np.zeros(40, bool))) == (0, 1)
    assert ends(share_interval(np.ones(3, bool), np.zeros(3, int))) == (0, 1)  # one patient


def test_a_change_of_none_may_be_as_large_as_what_was_not_seen() -> None:
    none = np.zeros(60, bool)
    most = 1 - 0.025 ** (1 / 60)
    assert ends(share_change(none, none, np.arange(60))) == pytest.approx((-most, most))
    most = 1 - 0.025 ** (1 / 12)
    assert ends(share_change(none, none, np.arange(60) // 5)) == pytest.approx((-most, most))
    assert ends(share_change(none, none, np.zeros(60, int))) == (-1, 1)


def test_a_change_is_made_of_the_shares_of_lost_and_gained() -> None:
    lost, gained = np.arange(200) < 5, np.arange(200) >= 198
    less, more = proportion_interval(5, 200), proportion_interval(2, 200)
    # Of single images what is lost is not gained: nearly independent, by -0.016.
    alike = -np.sqrt(5 * 2 / (195 * 198))
    reach = [
        np.sqrt(a * a + b * b - 2 * alike * a * b)
        for a, b in ((0.01 - more.low, less.high - 0.025), (more.high - 0.01, 0.025 - less.low))
    ]
    found = share_change(lost, gained, np.arange(200))
    assert ends(found) == pytest.approx((-0.015 - reach[0], -0.015 + reach[1]))
    assert ends(share_change(gained, lost, np.arange(200))) == pytest.approx((-found.high, -found.low))
    assert not found.exact


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [
        pytest.param(0, 0, 1.0, id="no-image-differs"),
        pytest.param(1, 0, 1.0, id="one-image"),
        pytest.param(5, 0, 2 / 2**5, id="five-to-none"),
        pytest.param(2, 10, 2 * (1 + 12 + 66) / 2**12, id="two-to-ten"),
        pytest.param(10, 2, 2 * (1 + 12 + 66) / 2**12, id="either-way-round"),
        pytest.param(7, 7, 1.0, id="even"),
    ],
)
def test_mcnemars_exact_p(lost: int, gained: int, p: float) -> None:
    places = np.arange(20)
    assert mcnemar_p(places < lost, places >= 20 - gained, places) == pytest.approx(p)


def test_mcnemars_p_exchanges_whole_patients() -> None:
    lost = flags_of(4, 3, 1, 0, 0, of=4)
    gained = flags_of(0, 0, 0, 2, 0, of=4) & ~lost
    nets = (4, 3, 1, -2)
    sums = [sum(a * b for a, b in zip(nets, signs, strict=True)) for signs in product((1, -1), repeat=4)]
    expected = np.mean([abs(each) >= 6 for each in sums])
    assert mcnemar_p(lost, gained, np.arange(20) // 4) == pytest.approx(expected)


@pytest.mark.parametrize("classes", [pytest.param(2, id="two-classes"), pytest.param(5, id="five-classes")])
def test_the_area_is_that_of_the_metrics_and_its_influence_its_slope(classes: int) -> None:
    generator = np.random.default_rng(0)
    truth = np.r_[np.arange(classes), generator.integers(classes, size=40)]
    logits = np.round(generator.normal(size=(len(truth), classes)) + np.eye(classes)[truth])  # with ties
    scores = log_odds(logits)
    found = Auc.of(scores, truth, np.arange(len(truth)))
    assert found.value == pytest.approx(metrics_of(logits, truth, [*map(str, range(classes))]).auc)

    def area(weights: np.ndarray) -> float:
        judged = [1] if classes == 2 else range(classes)
        shares = [(truth == index).mean() for index in judged]
        areas = [roc_auc_score(truth == index, scores[:, index], sample_weight=weights) for index in judged]
        return float(np.dot(shares, areas) / sum(shares))

    for index in range(classes):  # weight moved from an image of a class to all of it
        own = np.flatnonzero(truth == index)
        weights = np.ones(len(truth))
        weights[own] -= 1e-5 / len(own)
        weights[own[0]] += 1e-5
        assert (area(weights) - found.value) / 1e-5 == pytest.approx(found.influence[own[0]], abs=1e-6)
        assert found.influence[own].mean() == pytest.approx(0)


def test_an_area_of_all_in_order_promises_what_as_many_pairs_do() -> None:
    truth, scores = np.repeat([0, 1], [30, 20]), np.arange(50.0)[:, None] * [-1, 1]
    assert ends(Auc.of(scores, truth, np.arange(50)).interval()) == pytest.approx((0.025 ** (1 / 20), 1))
    assert ends(Auc.of(-scores, truth, np.arange(50)).interval()) == pytest.approx((0, 1 - 0.025 ** (1 / 20)))
    assert ends(Auc.of(scores, truth, np.arange(50) // 5).interval()) == pytest.approx((0.025 ** (1 / 4), 1))
    alone = Auc.of(scores, truth, np.arange(50) // 30)  # a patient of each class
    assert ends(Auc.of(np.roll(scores, 1, axis=0), truth, alone.members).interval()) == (0, 1)
    assert ends(alone.change_interval(alone)) == (-1, 1)


def test_a_change_of_the_area_is_paired_and_never_certain() -> None:
    generator = np.random.default_rng(0)
    truth = np.repeat([0, 1], 100)
    score = generator.normal(size=200) + 2 * (truth - 0.5)
    first, same, noisy = (
        Auc.of(np.stack([-each, each], axis=1), truth, np.arange(200))
        for each in (score, score, score + generator.normal(scale=0.05, size=200))
    )
    paired = first.change_interval(noisy)
    assert paired.low < noisy.value - first.value < paired.high
    assert paired.width < first.interval().width / 5
    assert 0 < first.change_interval(same).width < paired.width
    assert ends(noisy.change_interval(first))[0] < 0


def test_intervals_of_patients_hold_the_truth_as_often_as_they_say() -> None:
    """Scores of patients of ten images: accuracy and AUC, and their change by a shift of the patient's."""
    generator = np.random.default_rng(0)
    held = dict.fromkeys(("accuracy", "auc", "change"), 0)
    shifted = 0.3
    for _ in range(150):
        truth = generator.integers(0, 2, 400)
        patients = np.arange(400) // 10
        score = 2 * (truth - 0.5) + generator.normal(0, 0.6, 40)[patients] + generator.normal(0, 0.8, 400)
        other = score + generator.normal(0, shifted, 40)[patients]
        right = (score > 0) == truth
        after = (other > 0) == truth
        known = norm.cdf(1), norm.cdf(np.sqrt(2)), norm.cdf(1 / np.sqrt(1 + shifted**2)) - norm.cdf(1)
        area = Auc.of(np.stack([-score, score], axis=1), truth, patients)
        found = (
            share_interval(right, patients),
            area.interval(),
            share_change(right & ~after, after & ~right, patients),
        )
        for name, interval, true in zip(held, found, known, strict=True):
            held[name] += interval.low <= true <= interval.high
    assert all(count >= 140 for count in held.values()), held
