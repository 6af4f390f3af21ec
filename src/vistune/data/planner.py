"""Which rank trains on which rows of a step, and how each rank's rows are cut into forwards. No torch here.

Processes that train together wait for each other in every forward, so each must get the same number of forwards and about the same work in
each: tokens, the squares of the rows' lengths (attention) and pictures (the tower). A plan is a function of the rows' sizes alone; every
rank computes the same one and takes its own part of it. What a plan changes is time and memory: the rows of the step, and so its gradient,
are the same however they are dealt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Forwards = tuple[tuple[int, ...], ...]
"""One rank's part of a step: the places, in the step's rows, of each of its forwards. A forward may be empty."""

# N rows of a step · S slots (rank × forward) · 3 kinds of work: tokens, squared lengths, pictures

_WEIGHTS = (1.0, 0.1, 0.1)
"""What evenness of tokens, squared lengths and pictures is worth: nearly all time goes into tokens (attention 2-14 % of a step)."""


class RowSize(NamedTuple):
    """What a row costs: its tokens, pictures' tokens among them, and its pictures (views that the tower encodes)."""

    tokens: int
    images: int = 0


def plan_step(sizes: Sequence[RowSize], ranks: int, budget: int) -> tuple[Forwards, ...]:
    """Deals the rows of one step to the ranks, and cuts each rank's rows into forwards of at most `budget` tokens.

    Every place of `sizes` is in exactly one forward; rows are never cut, and one that is longer than the budget travels alone. All ranks
    get equally many forwards. A single rank waits for nobody: its rows go in order into the fewest forwards that first fit finds.

    Args:
        sizes: the rows of the step, in the step's order.
        ranks: processes that share the step.
        budget: tokens of one forward; a limit of memory.

    Returns:
        For each rank its forwards.
    """
    if ranks == 1:
        return (_first_fit([size.tokens for size in sizes], budget),)
    tokens = np.array([size.tokens for size in sizes], np.int64)
    images = np.array([size.images for size in sizes], np.int64)
    work = np.stack([tokens, tokens * tokens, images], 1) / np.maximum(1, [tokens.sum(), (tokens * tokens).sum(), images.sum()]) * _WEIGHTS
    alone, others = np.flatnonzero(tokens > budget), np.flatnonzero(tokens <= budget)
    # Two rows of more than half a budget never share a forward.
    needed = len(alone) + max(math.ceil(int(tokens[others].sum()) / budget), int((tokens[others] * 2 > budget).sum()))
    forwards = max(1, math.ceil(needed / ranks))
    while True:
        slots = _deal(work[others].sum(1), ranks * forwards - len(alone))
        filled = np.where(slots >= 0, tokens[others][slots], 0).sum(1)
        if (filled <= budget).all():
            break
        forwards += 1 + forwards // 16
    contents = [(int(place),) for place in alone] + [tuple(int(place) for place in others[np.sort(row[row >= 0])]) for row in slots]
    # Snake: the heaviest slots go to different ranks, and each rank that got a heavier one before gets a lighter one next.
    cost = [float(work[list(places)].sum()) for places in contents]
    order = sorted(range(len(contents)), key=lambda slot: (-cost[slot], slot))
    shares: list[list[tuple[int, ...]]] = [[] for _ in range(ranks)]
    for number, slot in enumerate(order):
        turn, rank = divmod(number, ranks)
        shares[ranks - 1 - rank if turn % 2 else rank].append(contents[slot])
    return tuple(tuple(share) for share in shares)


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


def _deal(cost: NDArray[np.float64], slots: int) -> NDArray[np.int64]:
    """Deals rows to slots in rounds, heaviest rows first: in each the heaviest goes to the slot that has least. [N] -> [S, rounds].

    Greedy by longest processing time, but a round at a time, which is array arithmetic. Where a slot gets no row, the table says -1.
    """
    order = np.argsort(-cost, kind="stable")
    rounds = math.ceil(len(cost) / max(1, slots))
    table = np.full((slots, rounds), -1, np.int64)
    load = np.zeros(slots)
    for turn in range(rounds):
        rows = order[turn * slots : (turn + 1) * slots]
        lightest = np.argsort(load, kind="stable")[: len(rows)]
        table[lightest, turn] = rows
        load[lightest] += cost[rows]
    return table
