"""A comparison's figures: paired differences, the front, the sentence, the table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from msmamba.export.comparison.latency import Latencies, Latency
from msmamba.export.comparison.plot import DARK, plot_of
from msmamba.export.comparison.results import Comparison, Difference, Entry, Failure, Scores, front_of
from msmamba.export.comparison.stages import Parity, Trained
from msmamba.export.comparison.table import table_of
from msmamba.measures.predictions import Predictions
from msmamba.measures.uncertainty import Interval, proportion_interval
from msmamba.model.evaluation.table import printed_row
from msmamba.model.networks.registry import architecture_named
from msmamba.model.training.recipe import Recipe


def answers(right: Any, groups: Any = None) -> Predictions:
    """Predictions of two classes that are right where it is said."""
    right = np.asarray(right, bool)
    truth = np.arange(len(right)) % 2
    logits = np.zeros((len(right), 2), np.float32)
    logits[np.arange(len(right)), np.where(right, truth, 1 - truth)] = 1
    images = tuple(f"{number}.png" for number in range(len(right)))
    return Predictions(("a", "b"), images, truth, logits, groups)


def test_a_difference_is_of_paired_images() -> None:
    generator = np.random.default_rng(0)
    best = generator.random(400) < 0.9
    worse = best & (generator.random(400) < 0.95)
    found = Difference.of(answers(worse), answers(best))
    assert found is not None
    assert found.value == pytest.approx(worse.mean() - best.mean())
    assert (found.gained, found.lost) == (0, int((best & ~worse).sum()))
    assert found.is_told
    assert found.p == pytest.approx(2 / 2**found.lost)
    # Of unpaired images the interval would be twice as wide.
    assert found.interval.low == pytest.approx(found.value - 0.02, abs=0.005)


@pytest.mark.parametrize("lost", range(4, 8))
def test_what_mcnemar_does_not_tell_apart_is_not_told_apart(lost: int) -> None:
    found = Difference.of(answers([False] * lost + [True] * 196), answers([True] * (lost + 196)))
    assert found is not None
    assert found.p == pytest.approx(2 / 2**lost)
    assert found.is_told == (found.p < 0.05) == (lost > 5)
    assert (found.interval.high >= 0) == (lost < 6)


def test_few_patients_tell_no_network_from_another() -> None:
    # Three patients of three: the two answers of each, swapped by chance, come out so in 1 of 4.
    best, worse = [True] * 30, ([False] * 3 + [True] * 7) * 3
    groups = tuple("abc"[number // 10] for number in range(30))
    found = Difference.of(answers(worse, groups), answers(best, groups))
    assert found is not None
    assert found.p == 0.25
    assert found.interval.high >= 0
    assert not found.is_told


def test_groups_are_drawn_whole_and_exchanged_whole() -> None:
    best, worse = [True] * 40, [True] * 20 + [False] * 10 + [True] * 10
    groups = tuple("abcd"[number // 10] for number in range(40))
    by_image, by_group = (Difference.of(answers(worse, each), answers(best, each)) for each in (None, groups))
    assert by_image is not None
    assert by_group is not None
    assert by_image.is_told
    assert not by_group.is_told  # it is one patient's images that are worse
    assert (by_image.p, by_group.p) == (pytest.approx(2 / 2**10), 1)


def test_answers_alike_may_differ_elsewhere() -> None:
    right = [True] * 30 + [False] * 10
    alike = Difference.of(answers(right), answers(right))
    assert alike is not None
    most = proportion_interval(0, 40).high
    assert (alike.interval.low, alike.interval.high) == pytest.approx((-most, most))
    assert not alike.is_told


def test_one_patient_tells_no_network_from_another() -> None:
    best, worse, patient = [True] * 40, [False] * 20 + [True] * 20, ("p1",) * 40
    found = Difference.of(answers(worse, patient), answers(best, patient))
    assert found is not None
    assert (found.value, found.interval) == (-0.5, Interval(-1, 1))
    assert not found.is_told


def test_other_images_have_no_difference() -> None:
    assert Difference.of(answers([True] * 3), answers([True] * 4)) is None


@pytest.mark.parametrize(
    ("points", "front"),
    [
        pytest.param({"a": (1, 0.5), "b": (2, 0.6), "c": (3, 0.55)}, {"a", "b"}, id="beaten-in-both"),
        pytest.param({"a": (1, 0.5), "b": (1, 0.6)}, {"b"}, id="as-fast-and-better"),
        pytest.param({"a": (1, 0.5), "b": (2, 0.5)}, {"a"}, id="as-good-and-faster"),
        pytest.param({"a": (1, 0.5), "b": (1, 0.5)}, {"a", "b"}, id="equal"),
        pytest.param({}, set(), id="none"),
    ],
)
def test_the_front_is_what_none_beats(points: dict[str, tuple[float, float]], front: set[str]) -> None:
    assert front_of(points) == front


def entry(name: str, right: Any, took: float, **changes: Any) -> tuple[Entry, Predictions]:
    """A network that is through."""
    predictions = answers(right)
    made = Entry(
        network=name,
        parameters=4_000_000,
        macs=640_000_000,
        scores=Scores.of(Trained(predictions, 3, 2, 60.0), resamples=100),
        parity=Parity(True, 100, 1e-6, 0),
        latency=Latency(took, took * 1.1, took * 0.9, 1000 / took, 16.0, "ONNX Runtime"),
    )
    return replace(made, **changes), predictions


def comparison(*made: tuple[Entry, Predictions], **changes: Any) -> Comparison:
    """A comparison of the entries, on 100 images."""
    entries = tuple(each for each, _ in made)
    whole = Comparison(
        data="cells",
        root="/data/cells",
        split="test",
        counts={"train": 300, "val": 100, "test": 100},
        groups=None,
        recipe=Recipe(),
        precision="fp32",
        entries=entries,
        measured=Latencies(
            {each.network: each.latency for each in entries if each.latency}, 50, 2, "a CPU", None
        ),
    )
    whole, answered = replace(whole, **changes), {each.network: found for each, found in made}
    if whole.best is None:
        return whole
    best = answered[whole.best.network]
    differences = {name: Difference.of(own, best) for name, own in answered.items() if own is not best}
    return replace(
        whole, entries=tuple(replace(each, difference=differences.get(each.network)) for each in entries)
    )


def first(count: int, images: int = 100) -> Any:
    return np.arange(images) < count


SLOW = ("slow", first(90), 30.0)


@pytest.mark.parametrize(
    ("made", "advised", "sentence"),
    [
        pytest.param(
            [SLOW, ("near", first(89), 9.0)], "near", "near is the fastest (9 ms) of those", id="near"
        ),
        pytest.param(
            [SLOW, ("far", first(60), 9.0)], "slow", "suffice to tell every faster one from it", id="far"
        ),
        pytest.param([SLOW, ("far", first(60), 40.0)], "slow", "None is faster than its 30 ms", id="only"),
        pytest.param(
            [SLOW, ("near", first(89), 40.0), ("far", first(60), 9.0)],
            "slow",
            "90.0 %. They do not tell near from it. It takes 30 ms, and these images suffice",
            id="slower",
        ),
    ],
)
def test_the_sentence_names_the_fastest_that_is_as_good(made: Any, advised: str, sentence: str) -> None:
    found = comparison(*(entry(*each) for each in made))
    assert found.best is not None
    assert found.advised is not None
    assert (found.best.network, found.advised.network) == ("slow", advised)
    assert sentence in found.sentence
    assert found.sentence.startswith("slow is the most accurate on these 100 images, 90.0 %.")


def test_what_lost_parity_is_on_no_front_and_not_advised() -> None:
    lost = entry("lost", first(90), 1.0, parity=Parity(False, 100, 3.5, 7, undecided=4))
    found = comparison(entry(*SLOW), lost)
    assert [each.network for each in found.front] == ["slow"]
    assert found.advised is found.best
    assert [each.network for each in found.failed] == ["lost"]
    text = table_of(found).to_text()
    assert "LOST, 7 flips" in text
    assert "'lost/fp32/parity.json' says where (the network itself does not decide 4 of 100 images)" in text


def test_the_table_tells_groups_latencies_and_distances_to_the_best() -> None:
    made = entry(*SLOW), entry("far", first(60), 9.0)
    table, of_images = table_of(comparison(*made, groups=12)), table_of(comparison(*made))
    assert "cells: 100 images in 12 groups (patients, slides, copies) of the test split" in table.to_text()
    assert "interval over whole groups of images, paired" in table.to_text()
    assert "cells: 100 images of the test split" in of_images.to_text()
    assert "interval over images, paired" in of_images.to_text()
    best, far = table.records
    assert {"30", "16.0"} <= {*table.lines[0]}
    assert {"9", "16.0"} <= {*table.lines[1]}
    assert best["to_best"] is best["to_best_low"] is best["to_best_high"] is None
    assert far["to_best"] == pytest.approx(-0.3)
    assert far["to_best_low"] < far["to_best"] < far["to_best_high"] < 0


def test_without_latencies_the_table_says_what_is_not_known_yet() -> None:
    waiting = entry("waiting", first(50), 1.0, scores=None, parity=None, latency=None)
    done = entry("done", first(80), 1.0, latency=None)
    broken = entry("broken", first(80), 1.0, latency=None, failure=Failure("export", "no: way"))
    found = comparison(waiting, done, broken, measured=None)
    text = table_of(found).to_text()
    assert text.splitlines()[2].split() == ["waiting", *"––––", "4.00", "0.64", *"–––"]
    assert "done is the most accurate on these 100 images, 80.0 %.\n" in text
    assert "–: not known yet; the same command goes on." in text
    assert "broken failed in export: no: way" in text
    assert comparison(waiting, measured=None).sentence == "No network is trained yet."


def test_the_papers_results_stand_beside_ours_on_its_data() -> None:
    arch = architecture_named("t", num_classes=2)
    tiny = entry("t", first(80), 5.0, printed=printed_row(arch, "mhist"))
    table = table_of(comparison(tiny, data="mhist"))
    assert table.head[-2:] == ("paper OA %", "paper AUC")
    assert table.lines[0][-2:] == ["87.30†", "0.9349"]
    assert table.footnotes == [
        "† t in the paper, accuracy 87.30: no share of 631 images: 551 of them are 87.32."
    ]
    other = table_of(comparison(entry("t", first(80), 5.0, printed=printed_row(arch, "cells"))))
    assert other.head[-1] == "front"
    assert other.records[0]["paper_parameters_m"] == 4.32


def test_a_plot_of_many_networks_names_each_once() -> None:
    made = [entry(f"network_{number}", first(60 + number % 7), 5.0 + number) for number in range(20)]
    svg = plot_of(comparison(*made), DARK, narrow=True).decode()
    assert svg.count("<!-- network_") == 20
    assert plot_of(comparison(entry("one", first(100), 3.0))).startswith(b"<?xml")  # no range of latencies
