"""A step is dealt to its ranks whole, in equally many forwards, and evenly."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.data.planner import RowSize, plan_step

ROWS = st.lists(st.builds(RowSize, st.integers(1, 60), st.integers(0, 3)), max_size=60)


@given(ROWS, st.integers(1, 12), st.integers(1, 80))
def test_every_row_travels_once_and_whole_in_a_forward_that_holds_it(sizes: list[RowSize], ranks: int, budget: int):
    plan = plan_step(sizes, ranks, budget)
    forwards = [forward for rank in plan for forward in rank]
    assert sorted(place for forward in forwards for place in forward) == list(range(len(sizes)))
    assert all(len(forward) < 2 or sum(sizes[place].tokens for place in forward) <= budget for forward in forwards)
    assert len(plan) == ranks
    assert len({len(rank) for rank in plan}) == 1  # or some would wait for ever


@given(ROWS, st.integers(1, 12), st.integers(1, 80))
def test_a_plan_depends_on_nothing_but_the_sizes(sizes: list[RowSize], ranks: int, budget: int):
    assert plan_step(sizes, ranks, budget) == plan_step(tuple(RowSize(*size) for size in sizes), ranks, budget)


def test_one_rank_fills_the_first_forward_with_room_in_the_order_of_the_step():
    assert plan_step([RowSize(length) for length in (5, 4, 9, 3, 1, 20, 2)], 1, 10) == (((0, 1, 4), (2,), (3, 6), (5,)),)


def test_a_step_of_no_rows_is_an_empty_forward_for_each_of_several_ranks():
    assert plan_step([], 3, 10) == (((),), ((),), ((),))


def test_there_are_no_more_forwards_than_needed():
    assert {len(rank) for rank in plan_step([RowSize(5)] * 16, 4, 20)} == {1}
    assert {len(rank) for rank in plan_step([RowSize(5)] * 16, 4, 10)} == {2}
    assert {len(rank) for rank in plan_step([RowSize(6)] * 16, 4, 10)} == {4}  # two of them never fit


def test_a_row_of_any_length_travels_alone_beside_full_forwards():
    plan = plan_step([RowSize(100), *[RowSize(5)] * 6], 2, 10)
    assert [[len(forward) for forward in rank] for rank in plan] in ([[1, 2], [2, 2]], [[2, 2], [1, 2]])


def mixed_step(rows: int, seed: int) -> list[RowSize]:
    """Lengths as in a mixture of short answers, dialogues and text without a picture."""
    draw = random.Random(seed)
    sizes = []
    for _ in range(rows):
        text_only = draw.random() < 0.06
        text = draw.lognormvariate(7.0, 0.7) if text_only else draw.lognormvariate(5.3, 0.6)
        sizes.append(RowSize(min(2048, int(text) + 576 * (not text_only)), int(not text_only)))
    return sizes


@pytest.mark.parametrize("ranks", [2, 8, 250])
def test_ranks_get_about_the_same_tokens_squares_and_pictures(ranks: int):
    sizes = mixed_step(ranks * 16, seed=ranks)
    plan = plan_step(sizes, ranks, 32768)

    def unevenness(work: list[int]) -> float:
        loads = sorted(sum(work[place] for forward in rank for place in forward) for rank in plan)
        return loads[int(0.99 * (len(loads) - 1))] * len(loads) / sum(loads)

    assert unevenness([size.tokens for size in sizes]) < 1.02
    assert unevenness([size.tokens**2 for size in sizes]) < 1.15
    assert unevenness([size.images for size in sizes]) < 1.08  # a sixteenth is one picture
    assert {len(rank) for rank in plan} == {1}


def test_the_nth_forwards_of_all_ranks_are_alike():
    sizes = mixed_step(64 * 32, seed=1)
    plan = plan_step(sizes, 64, 8192)
    tokens = [[sum(sizes[place].tokens for place in forward) for forward in rank] for rank in plan]
    waiting = sum(max(together) for together in zip(*tokens, strict=True)) / (sum(map(sum, tokens)) / 64)
    assert waiting < 1.05  # of the time, at most a twentieth is waiting for the slowest rank


def test_who_gets_the_heaviest_forward_gets_a_lighter_one_next():
    sizes = [RowSize(length) for length in (85, 100, 90, 95)]
    plan = plan_step(sizes, 2, 100)
    assert [[sizes[forward[0]].tokens for forward in rank] for rank in plan] == [[100, 85], [95, 90]]


def test_a_great_many_short_rows_are_dealt_without_comparing_all_pairs():
    plan = plan_step([RowSize(1 + place % 7) for place in range(30_000)], 2, 10**6)
    assert [sum(1 + place % 7 for place in rank[0]) for rank in plan] == [pytest.approx(60_000, rel=1e-3)] * 2
