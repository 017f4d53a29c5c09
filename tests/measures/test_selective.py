"""The temperature, the threshold and the candidates, on logits whose law is known."""

from __future__ import annotations

import numpy as np
import pytest

from msmamba.measures.metrics import log_softmax
from msmamba.measures.selective import (
    candidate_bound,
    certainty,
    errors_allowed,
    images_needed,
    limits,
    masses_above,
    select,
    temperature,
)

CLASSES = 4


def drawn(images: int, seed: int, lift: float = 3.2) -> tuple[np.ndarray, np.ndarray]:
    """Logits with unit noise whose true class is lifted; the true probabilities are the softmax of lift x."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(CLASSES, size=images)
    logits = generator.normal(size=(images, CLASSES))
    logits[np.arange(images), truth] += lift
    return logits, truth


def test_certainty_is_the_log_odds_of_the_likeliest() -> None:
    logits, _ = drawn(50, 0)
    top = np.exp(log_softmax(logits)).max(axis=1)
    np.testing.assert_allclose(certainty(logits), np.log(top / (1 - top)), rtol=1e-9)


def test_certainty_does_not_saturate() -> None:
    assert certainty(np.array([[900.0, 0, 0], [1000.0, 0, 0]])).tolist() == pytest.approx(
        [900 - np.log(2), 1000 - np.log(2)]
    )


def test_masses_above_leave_the_class_itself_out() -> None:
    masses = masses_above(np.log([[0.2, 0.5, 0.3]]))
    np.testing.assert_allclose(masses, [[0.8, 0, 0.5]], atol=1e-12)


def test_no_mass_is_more_than_all() -> None:
    """A bound of 1 has to let all classes be candidates, those that are nearly impossible, too."""
    logits = np.random.default_rng(0).normal(0, 3, (1000, 8))
    logits[:, 7] -= 60
    assert masses_above(logits).max() == 1


@pytest.mark.parametrize("factor", [0.25, 1.0, 6.0])
def test_the_temperature_of_a_known_law_is_found(factor: float) -> None:
    # Of a lift of 3.2 and unit noise the likelihood ratio of two classes is exp(3.2 x their difference).
    logits, truth = drawn(40_000, 1)
    assert temperature(logits * 3.2 * factor, truth) == pytest.approx(factor, rel=0.05)


def test_a_likelihood_without_a_maximum_leaves_the_logits_as_they_are() -> None:
    assert temperature(np.eye(3)[[0, 1, 2]] * 4, np.array([0, 1, 2])) == 1.0


def test_a_threshold_keeps_its_promise_and_answers_nearly_as_much_as_the_best() -> None:
    logits, truth = drawn(200_000, 2)
    scores, right = certainty(logits), logits.argmax(axis=1) == truth
    order = np.argsort(-scores)
    ordered, risks = scores[order], np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
    generator = np.random.default_rng(3)
    for max_error in (0.01, 0.02):
        best = np.flatnonzero(risks <= max_error).max() + 1
        kept, coverages = 0, []
        for _ in range(200):
            chosen = generator.integers(len(order), size=2000)
            selection = select(scores[chosen], right[chosen], max_error, 0.95)
            assert selection is not None
            bound = -np.inf if selection.threshold is None else selection.threshold
            answered = np.searchsorted(-ordered, -bound)
            kept += risks[answered - 1] <= max_error
            coverages.append(answered / best)
        assert kept >= 190
        assert np.mean(coverages) >= 0.8


def test_candidates_hold_the_truth_at_the_rate_that_was_asked() -> None:
    generator = np.random.default_rng(4)
    logits, truth = drawn(100_000, 5, lift=1.5)
    true_masses = masses_above(logits)[np.arange(len(truth)), truth]
    held = []
    for _ in range(200):
        chosen = generator.integers(len(truth), size=99)
        bound = candidate_bound(true_masses[chosen], 0.1)
        assert bound is not None
        held.append((true_masses <= bound).mean())
    assert 0.895 <= np.mean(held) <= 0.925


def test_candidates_need_enough_images() -> None:
    assert candidate_bound(np.zeros(18), 0.05) is None
    assert candidate_bound(np.zeros(19), 0.05) == 0


def test_one_prefix_is_tested_by_the_exact_bound() -> None:
    # Clopper and Pearson's upper bounds at 95 %: of 0 errors in 59 it is 4.95 %, of 2 in 124 4.99 %.
    assert [errors_allowed((size,), 0.05, 0.05).item() for size in (58, 59, 123, 124)] == [-1, 0, 1, 2]


def test_a_coin_that_errs_at_the_promised_rate_passes_as_often_as_the_doubt_allows() -> None:
    sizes = np.unique(np.round(np.geomspace(59, 1000, 40)).astype(int))
    allowed = errors_allowed(tuple(sizes.tolist()), 0.05, 0.05)
    wrong = np.cumsum(np.random.default_rng(6).random((20_000, 1000)) < 0.05, axis=1)[:, sizes - 1]
    passed = (wrong <= allowed).any(axis=1).mean()
    assert 0.04 <= passed <= 0.054  # whole numbers of errors fall short of 5 %; 20,000 coins tell it to 0.2


def test_an_early_error_does_not_forbid_what_more_images_show() -> None:
    right = np.ones(2000, np.bool_)
    right[:2] = False  # the two most certain ones of all
    selection = select(-np.arange(2000.0), right, 0.01, 0.95)
    assert selection is not None
    assert selection.coverage == 1


def test_limits_leave_out_the_share_that_was_asked_for() -> None:
    assert limits(np.arange(1000.0), 0.01) == (9.0, 990.0)
    assert limits(np.arange(98.0), 0.05) == (3.0, 94.0)  # of 99 with a new one 5 would be more than 5 %
    assert limits(np.arange(5.0), 0.01) == (0.0, 4.0)
    fresh = np.random.default_rng(7).normal(size=(4000, 100))
    bounds = np.array([limits(row[:99], 0.05) for row in fresh])
    assert (fresh[:, 99] < bounds[:, 0]).mean() == pytest.approx(0.05, abs=0.01)
    assert (fresh[:, 99] > bounds[:, 1]).mean() == pytest.approx(0.05, abs=0.01)


def test_equal_scores_are_answered_alike() -> None:
    scores = np.repeat([3.0, 2.0, 1.0], 400)
    right = np.ones(1200, np.bool_)
    right[800:] = False
    selection = select(scores, right, 0.05, 0.95)
    assert selection is not None
    assert selection.threshold == 1.0
    assert (selection.answered, selection.errors, selection.coverage) == (800, 0, 2 / 3)


def test_where_all_can_be_answered_there_is_no_threshold() -> None:
    selection = select(np.arange(500.0), np.ones(500, np.bool_), 0.05, 0.95)
    assert selection is not None
    assert (selection.threshold, selection.answered) == (None, 500)


@pytest.mark.parametrize("images", [5, 58])
def test_too_few_images_promise_nothing_and_it_is_said_how_many_would(images: int) -> None:
    scores, right = np.arange(float(images)), np.ones(images, np.bool_)
    assert select(scores, right, 0.05, 0.95) is None
    needed = images_needed(scores, right, 0.05, 0.95)
    assert needed is not None
    assert needed >= 59
    assert select(np.arange(float(needed)), np.ones(needed, np.bool_), 0.05, 0.95) is not None


def test_no_number_helps_where_the_most_certain_are_wrong_too() -> None:
    right = np.arange(1000) % 2 == 0
    assert select(np.arange(1000.0), right, 0.05, 0.95) is None
    assert images_needed(np.arange(1000.0), right, 0.05, 0.95) is None


def _by_patients(seed: int, patients: int, differ: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1,000 certainties, which are right, and of whom they are: 6 % are wrong, the less certain the more."""
    generator = np.random.default_rng(seed)
    members = np.arange(1000) % patients
    scores = generator.exponential(2, 1000)
    factors = generator.gamma(1, 1, patients)[members] if differ else 1.0
    return scores, generator.random(1000) >= 0.18 * np.exp(-scores) * factors, members


def test_a_promise_is_kept_of_patients_who_differ() -> None:
    # Of the answers above t a share of 0.06 exp(-t) is wrong over all patients: 5 % at t = log(1.2).
    broken = {"by image": 0, "by patient": 0}
    for seed in range(30):
        scores, right, members = _by_patients(seed, 5, differ=True)
        for way, of in zip(broken, (None, members), strict=True):
            selection = select(scores, right, 0.05, 0.95, of)
            assert selection is not None or of is not None
            if selection is not None:
                broken[way] += selection.threshold is None or selection.threshold < np.log(1.2)
    assert broken["by patient"] <= 1 < 5 <= broken["by image"]


def test_patients_who_are_alike_cost_little() -> None:
    found = []
    for seed in range(5):
        scores, right, members = _by_patients(seed, 50, differ=False)
        found.append([select(scores, right, 0.05, 0.95, of) for of in (None, members)])
    by_image, by_patient = (
        np.mean([0 if each is None else each.answered for each in way]) for way in zip(*found, strict=True)
    )
    assert 0.97 * by_image < by_patient <= by_image


def test_images_of_one_patient_each_promise_as_images_do() -> None:
    scores, right, _ = _by_patients(0, 5, differ=False)
    by_image = select(scores, right, 0.05, 0.95)
    assert select(scores, right, 0.05, 0.95, np.arange(1000)) == by_image
    assert select(scores, right, 0.05, 0.95, np.zeros(1000, np.intp)) == by_image  # of itself


def test_more_patients_promise_what_few_do_not() -> None:
    members = np.repeat(np.arange(4), 50)
    right = np.ones(200, np.bool_)
    right[:10] = False  # of the first patient one image in five
    scores = np.random.default_rng(8).permutation(np.arange(200.0))
    assert select(scores, right, 0.1, 0.95) is not None
    assert select(scores, right, 0.1, 0.95, members) is None
    needed = images_needed(scores, right, 0.1, 0.95, members)
    assert needed is not None
    times = needed // 200
    more = np.add.outer(4 * np.arange(times), members).ravel()
    assert times > 1
    assert select(np.tile(scores, times), np.tile(right, times), 0.1, 0.95, more) is not None


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_few_errors_of_few_patients_promise_as_no_error_does(wrong: int) -> None:
    """They tell nothing of how patients differ, which must not be taken for that they differ without end."""
    right = np.ones(1000, np.bool_)
    right[500 : 500 + wrong] = False
    selection = select(-np.arange(1000.0), right, 0.05, 0.95, np.arange(1000) % 5)
    assert selection is not None
    assert selection.coverage == 1


def test_without_an_error_patients_may_differ_all_the_same() -> None:
    right, scores = np.ones(60, np.bool_), np.arange(60.0)
    assert select(scores, right, 0.05, 0.95) is not None
    assert select(scores, right, 0.05, 0.95, np.arange(60) % 5) is None
