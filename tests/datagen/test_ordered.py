"""Many at once, results in order: whatever arrives when, however it ends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from vistune.datagen.ordered import in_order


async def collect(items, work, **options):
    async with aclosing(in_order(items, work, **options)) as results:
        return [pair async for pair in results]


@pytest.mark.parametrize("seed", range(5))
def test_results_come_in_the_order_of_the_items_whatever_arrives_first(seed: int):
    draw = random.Random(seed)

    async def slow_square(number: int) -> int:
        await asyncio.sleep(draw.random() / 200)
        return number * number

    results = asyncio.run(collect(range(60), slow_square, concurrency=7, ahead=20))
    assert results == [(number, number * number) for number in range(60)]


def test_no_more_are_under_way_or_read_ahead_than_allowed():
    read: list[int] = []
    done: list[int] = []
    under_way = most_under_way = furthest_ahead = 0

    def source() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    async def work(number: int) -> None:
        nonlocal under_way, most_under_way
        under_way += 1
        most_under_way = max(most_under_way, under_way)
        await asyncio.sleep(0.02 if number == 0 else 0)
        under_way -= 1

    async def run() -> None:
        nonlocal furthest_ahead
        async with aclosing(in_order(source(), work, concurrency=3, ahead=10)) as results:
            async for item, _ in results:
                done.append(item)
                furthest_ahead = max(furthest_ahead, len(read) - len(done))

    asyncio.run(run())
    assert most_under_way == 3
    assert furthest_ahead <= 10
    assert done == list(range(100))


def test_an_error_is_raised_in_its_place_after_the_results_before_it():
    async def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        await asyncio.sleep(0.01)
        return number

    seen: list[int] = []

    async def run() -> None:
        async with aclosing(in_order(range(10), work, concurrency=4, ahead=8)) as results:
            async for item, _ in results:
                seen.append(item)

    with pytest.raises(ValueError, match="three"):
        asyncio.run(run())
    assert seen == [0, 1, 2]


def test_a_cancelled_run_lets_calls_under_way_end_and_begins_no_others():
    begun: list[int] = []
    ended: list[int] = []

    async def work(number: int) -> None:
        begun.append(number)
        await asyncio.sleep(0.1)
        ended.append(number)

    async def run() -> None:
        task = asyncio.ensure_future(collect(range(50), work, concurrency=4, ahead=20))
        await asyncio.sleep(0.03)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert begun == ended == [0, 1, 2, 3]


def test_calls_that_outlast_their_grace_are_cancelled():
    cancelled: list[int] = []

    async def work(number: int) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    async def run() -> None:
        task = asyncio.ensure_future(collect(range(5), work, concurrency=2, ahead=5, grace_seconds=0.05))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert cancelled == [0, 1]
