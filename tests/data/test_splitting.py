"""Dealing images to splits: no group and no copy in two of them, whatever the seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msmamba.data.splitting import deal, deal_together, joined, notes_on_absent, shared_groups
from msmamba.errors import DataError, InputError


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=8, max_size=30),
    seed=st.integers(0, 99),
    folds=st.sampled_from([None, {"train": 3, "val": 1}]),
)
def test_no_group_is_in_two_splits(
    sizes: list[tuple[int, int]], seed: int, folds: dict[str, int] | None
) -> None:
    groups = [f"patient {number}" for number, pair in enumerate(sizes) for _ in range(sum(pair))]
    classes = np.array([label for pair in sizes for label, count in enumerate(pair) for _ in range(count)])
    if min(Counter(classes.tolist()).values()) < 5 or len(Counter(classes.tolist())) < 2:
        return
    names = deal(classes, groups, seed=seed, folds=folds)
    assert shared_groups(groups, names) == {}
    assert set(names) == set(folds or ("train", "val", "test"))


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20)), min_size=1, max_size=40),
)
def test_groups_that_share_a_copy_become_one(pairs: list[tuple[int, int]]) -> None:
    groups, copies = [group for group, _ in pairs], [content for _, content in pairs]
    merged = joined(groups, copies).tolist()
    for values in (groups, copies):  # neither a group nor a content has two numbers
        assert len(set(zip(values, merged, strict=True))) == len(set(values))
    # And nothing else was merged: a number's images hang together, group by content by group.
    for number in set(merged):
        members = [pair for pair, own in zip(pairs, merged, strict=True) if own == number]
        reached = {members[0]}
        while more := {
            pair
            for pair in members
            if pair not in reached and any(pair[0] == one[0] or pair[1] == one[1] for one in reached)
        }:
            reached |= more
        assert reached == set(members)


def test_a_split_that_shares_groups_is_told() -> None:
    names = np.array(["train", "test", "train", "val"], dtype=object)
    assert shared_groups(["a", "a", "b", "b"], names) == {"a": ["test", "train"], "b": ["train", "val"]}


def test_absent_classes_are_told_in_one_note_a_split() -> None:
    names = np.array(["train"] * 12 + ["val"], dtype=object)
    labels = [*"abcdefghijkl"]
    (note,) = notes_on_absent(names, np.array([*range(12), 0]), labels)
    assert note == "the val split has no image of 'b', 'c', 'd', 'e', 'f', … 6 more"


@pytest.mark.parametrize(
    "groups", [None, [str(number // 2) for number in range(40)]], ids=["images", "groups"]
)
def test_the_seed_decides_where_copies_stay_together(groups: list[str] | None) -> None:
    classes, contents = np.tile([0, 1], 20), [*range(39), 0]
    first, again, other = (
        deal_together(classes, contents, groups, seed=seed, folds={"train": 3, "val": 1}).tolist()
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first[0] == first[39]


def test_other_shares_are_kept() -> None:
    names = deal(np.repeat([0, 1], 40), seed=3, folds={"train": 3, "val": 1})
    assert Counter(names) == {"train": 60, "val": 20}


@pytest.mark.parametrize(
    ("sizes", "least"),
    [
        pytest.param([500, 20, 20, 20, 20], 540, id="one-large"),
        pytest.param([200, 100, 50, 25, 12, 6, 3], 237, id="halves"),
        pytest.param([30] * 6, 120, id="one-more-than-shares"),
        pytest.param([30] * 10, 180, id="equal"),
    ],
)
def test_groups_of_unequal_size_come_as_near_to_the_shares_as_they_can(sizes: list[int], least: int) -> None:
    groups = [f"patient {number}" for number, size in enumerate(sizes) for _ in range(size)]
    classes = np.arange(len(groups)) % 2
    for seed in range(6):
        counts = Counter(deal(classes, groups, seed=seed))
        assert counts["train"] >= least
        assert min(counts["val"], counts["test"]) >= 20
    before = [Counter(deal(classes, groups, seed=seed, dealing=1))["train"] for seed in range(6)]
    assert min(before) == least if len(set(sizes)) == 1 and len(sizes) == 10 else min(before) < least


def test_groups_that_copies_join_to_too_few_are_told() -> None:
    groups = [f"patient {number // 4}" for number in range(40)]
    blank = [0 if number % 4 == 0 else number for number in range(40)]  # one image of each is the same
    with pytest.raises(
        DataError, match=r"there are 1 groups .*; copies of images join 10 groups to 1: remove"
    ):
        deal_together(np.arange(40) % 2, blank, groups)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_some_library_does_not_take_is_refused(seed: int) -> None:
    for groups in (None, list("abcdefabcdef")):
        with pytest.raises(InputError, match=f"the seed is {seed}: expected 0 to 4294967295"):
            deal(np.arange(12) % 2, groups, seed=seed)
    assert len(deal(np.arange(12) % 2, list("abcdefabcdef"), seed=2**32 - 1)) == 12


def test_too_few_groups_are_named() -> None:
    with pytest.raises(DataError, match=r"3 groups \(a, b, c\); a 6:2 split .* at least 4"):
        deal(np.zeros(9, int), list("abcabcabc"), folds={"train": 3, "val": 1})
