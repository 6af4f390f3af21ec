"""Which rank trains on which rows of a step, and how each rank's rows are cut into forwards. No torch here.

Processes that train together wait for each other in every forward, so each must get the same number of forwards and about the same work in
each: tokens, the squares of the rows' lengths (attention) and pictures (the tower). A plan is a function of the rows' sizes alone; every
rank computes the same one, in whole numbers, and takes its own part of it. What a plan changes is time and memory: the rows of the step,
and so its gradient, are the same however they are dealt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Forwards = tuple[tuple[int, ...], ...]
"""One rank's part of a step: the places, in the step's rows, of each of its forwards. A forward may be empty."""

# N rows of a step · S slots, one for each forward of each rank · K rows of a slot at most · 3 kinds of work: tokens, squares, pictures

_WORTH = np.array([1.0, 0.05, 0.05])
"""What evenness of tokens, squares and pictures is worth: most of the time goes into tokens (attention takes 2-14 % of a step)."""
_UNITS = 2**16
"""The mean work of a slot in whole numbers. Sums of fractions differ in their last bit between processors, and so would plans."""
_EXCHANGES = 8  # rounds; later ones find next to nothing
_EVEN = _UNITS // 200  # slots whose work differs by less are left alone
_CANDIDATES = 64  # rows of a slot that are looked at, the lightest: so many rows are dealt evenly anyway, and pairs grow as the square


class RowSize(NamedTuple):
    """What a row costs: its tokens, those of its pictures among them, and its pictures."""

    tokens: int
    images: int = 0


def plan_step(sizes: Sequence[RowSize], ranks: int, budget: int) -> tuple[Forwards, ...]:
    """Deals the rows of one step to the ranks, and cuts each rank's rows into forwards of at most `budget` tokens.

    Every place of `sizes` is in exactly one forward; rows are never cut, and one that is longer than the budget travels alone. All ranks
    get equally many forwards. A single rank waits for nobody: its rows go, in order, into the first forward that has room.

    Args:
        sizes: the rows of the step, in the step's order.
        ranks: processes that share the step.
        budget: tokens of one forward; a limit of memory.

    Returns:
        For each rank its forwards.
    """
    if ranks == 1:
        return (_first_fit([size.tokens for size in sizes], budget),)
    rows = np.fromiter(chain.from_iterable(sizes), np.int64, 2 * len(sizes)).reshape(-1, 2)
    tokens, images = rows[:, 0], rows[:, 1]
    alone, others = np.flatnonzero(tokens > budget), np.flatnonzero(tokens <= budget)
    # Two rows of more than half a budget never share a forward.
    needed = len(alone) + max(math.ceil(int(tokens[others].sum()) / budget), int((tokens[others] * 2 > budget).sum()))
    forwards = max(1, math.ceil(needed / ranks))
    while True:
        work = _units(np.stack([tokens, tokens * tokens, images], 1), ranks * forwards)
        table = _deal(work[others], ranks * forwards - len(alone))
        _exchange(table, work[others])
        if (_sums(table, tokens[others]) <= budget).all():
            break
        forwards += 1 + forwards // 16
    # Back to places in the step; the last column's -1 and the rows that travel alone keep the table rectangular.
    places = np.full((ranks * forwards, max(1, table.shape[1])), -1, np.int64)
    places[: len(table), : table.shape[1]] = np.where(table >= 0, np.append(others, -1)[table], -1)
    places[len(table) :, 0] = alone
    places = np.sort(places, 1)
    contents = [tuple(slot[empty:]) for slot, empty in zip(places.tolist(), (places < 0).sum(1).tolist(), strict=True)]
    # Slots are dealt like rows: the n-th forwards of all ranks, which run at the same time, are alike, and all together come to the same.
    shares = _deal(_sums(places, work), ranks)  # [ranks, forwards]
    return tuple(tuple(contents[slot] for slot in share) for share in shares.tolist())


def _first_fit(lengths: Sequence[int], budget: int) -> Forwards:
    forwards: list[list[int]] = []
    free: list[int] = []
    for place, length in enumerate(lengths):
        fitting = next((number for number, room in enumerate(free) if length <= room), None)
        if fitting is None:
            forwards.append([place])
            free.append(budget - length)
        else:
            forwards[fitting].append(place)
            free[fitting] -= length
    return tuple(tuple(forward) for forward in forwards)


def _units(amounts: NDArray[np.int64], slots: int) -> NDArray[np.int64]:
    """The three kinds of work on one scale: a slot's even share of each is `_UNITS` times the root of its worth. [N, 3] -> [N, 3].

    The root, because unevenness is summed as squares.
    """
    shares = slots * _UNITS / np.maximum(1, amounts.sum(0)) * np.sqrt(_WORTH)
    return np.rint(amounts * shares).astype(np.int64)


def _sums(table: NDArray[np.int64], amounts: NDArray[np.int64]) -> NDArray[np.int64]:
    """What each slot's rows come to: [S, K] of places or -1, [N, ...] -> [S, ...]."""
    return np.append(amounts, np.zeros_like(amounts[:1], shape=(1, *amounts.shape[1:])), axis=0)[table].sum(1)


def _deal(work: NDArray[np.int64], slots: int) -> NDArray[np.int64]:
    """Deals rows to slots, heaviest rows first, in rounds: in each the heaviest row goes to the slot that has least.

    Returns the rows of each slot, -1 where there is none: [N, 3] -> [S, K].
    """
    cost = work.sum(1)
    order = np.argsort(-cost, kind="stable")
    rounds = math.ceil(len(cost) / max(1, slots))
    table = np.full((slots, rounds), -1, np.int64)
    load = np.zeros(slots, np.int64)
    for turn in range(rounds):
        rows = order[turn * slots : (turn + 1) * slots]
        lightest = np.argsort(load, kind="stable")[: len(rows)]
        table[lightest, turn] = rows
        load[lightest] += cost[rows]
    return table


def _exchange(table: NDArray[np.int64], work: NDArray[np.int64]) -> None:
    """Lets heavy slots exchange a row with light ones, in place, as long as that evens out the three kinds of work.

    The heaviest slot meets the lightest, the second heaviest the second lightest, and so on; of all pairs of their rows (or a row and an
    empty place) the one is exchanged that most lessens the sum of the squares of both slots' work.
    """
    held = np.append(work, np.zeros((1, 3), np.int64), axis=0).astype(np.float64)  # the last is what an empty place, -1, holds
    load = held[table].sum(1)  # [S, 3]; whole numbers far below 2**53, so still exact
    table = table[:, -_CANDIDATES:]
    columns, pairs = table.shape[1], len(table) // 2
    for _ in range(_EXCHANGES if columns else 0):
        order = np.argsort(-load.sum(1), kind="stable")
        heavy, light = order[:pairs], order[::-1][:pairs]
        gap = load[heavy] - load[light]  # [pairs, 3]
        uneven = gap.sum(1) > _EVEN
        if not uneven.any():
            return
        heavy, light, gap = heavy[uneven], light[uneven], gap[uneven, None]
        given, taken = held[table[heavy]], held[table[light]]  # [pairs, K, 3]
        # Moving m = given - taken changes the sum of squares by 2 m·(m - gap); multiplied out, the products are one [pairs, K, K].
        change = (given * (given - gap)).sum(2)[:, :, None] + (taken * (taken + gap)).sum(2)[:, None]
        for kind in range(3):
            change -= 2 * given[:, :, None, kind] * taken[:, None, :, kind]
        change = change.reshape(len(heavy), columns * columns)
        best = change.argmin(1)
        better = np.flatnonzero(change[np.arange(len(best)), best] < 0)
        if not len(better):
            return
        row, other = np.divmod(best[better], columns)
        moved = given[better, row] - taken[better, other]
        heavy, light = heavy[better], light[better]
        load[heavy] -= moved
        load[light] += moved
        table[heavy, row], table[light, other] = table[light, other], table[heavy, row]
