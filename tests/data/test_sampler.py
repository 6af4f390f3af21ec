"""The order of a run is a function, whoever shares the work and wherever it begins."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.data.planner import RowSize, plan_step
from vistune.data.sampler import Sampler, shuffled


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


def test_the_rows_of_a_step_far_away_are_drawn_without_those_before():
    sampler = Sampler(10**12, 8, seed=5)  # an order that was drawn as a whole would not fit into any memory
    epoch, rows = sampler.rows(10**11 + 3 * sampler.steps_per_epoch).epoch, sampler.rows(10**11).rows
    assert (epoch, len(set(rows))) == (3, 8)
    assert all(0 <= row < 10**12 for row in rows)


def test_any_number_of_processes_trains_on_the_same_rows_in_the_same_steps():
    tokens = [random.Random(row).randrange(50, 2049) for row in range(9000)]
    hashes = set()
    for ranks in (1, 2, 8, 1000):
        sampler, digest = Sampler(len(tokens), 4000, seed=42), hashlib.sha256()
        for step in (0, 1, 2, 3, 7):  # whole steps, the rest of an epoch, the next epoch, and one much later
            rows = sampler.rows(step).rows
            plan = plan_step([RowSize(tokens[row], row % 2) for row in rows], ranks, 8192)
            together = sorted(place for rank in plan for forward in rank for place in forward)
            digest.update(repr([rows[place] for place in together]).encode())
        hashes.add(digest.hexdigest())
    assert len(hashes) == 1
