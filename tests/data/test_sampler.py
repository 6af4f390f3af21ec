"""The order of a run is a function, and micro-batches lose nobody."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.data.sampler import Sampler, pack, shuffled


@given(st.integers(1, 400), st.text(max_size=5))
def test_an_epoch_visits_every_row_once(size: int, key: str):
    assert sorted(shuffled(place, size, key) for place in range(size)) == list(range(size))


def test_the_order_never_changes_between_versions():
    assert [shuffled(place, 10, "42:0") for place in range(10)] == [5, 9, 6, 1, 3, 0, 7, 8, 4, 2]


def test_orders_of_two_epochs_and_of_two_seeds_differ_and_are_well_mixed():
    first, second, other = ([shuffled(place, 1000, key) for place in range(1000)] for key in ("0:0", "0:1", "1:0"))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10
    assert sum(a == b for a, b in zip(first, other, strict=True)) < 10
    assert 400 < sum(first[:500]) / 500 < 600


def test_a_place_outside_the_epoch_is_refused():
    with pytest.raises(IndexError):
        shuffled(10, 10, "0:0")


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 3))
def test_steps_cut_epochs_without_overlap_or_gap(size: int, batch: int, seed: int):
    sampler = Sampler(size, batch, seed)
    steps = [sampler.rows(step) for step in range(2 * sampler.steps_per_epoch)]
    assert all(len(step.rows) <= batch for step in steps)
    for epoch in (0, 1):
        assert Counter(row for step in steps if step.epoch == epoch for row in step.rows) == Counter(range(size))


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 60))
def test_packing_keeps_every_conversation_whole_and_within_the_budget(lengths: list[int], budget: int):
    batches = pack(lengths, budget)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert all(sum(lengths[place] for place in batch) <= budget or len(batch) == 1 for batch in batches)
