"""Many calls at once, their results in the order in which they were asked for."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

GRACE_SECONDS = 15.0
"""How long calls under way may take to end when the run stops: their answers are paid for."""


async def in_order(
    items: Iterable[T], work: Callable[[T], Awaitable[R]], *, concurrency: int, ahead: int, grace_seconds: float = GRACE_SECONDS
) -> AsyncGenerator[tuple[T, R]]:
    """Each item with the result of its work, in the order of the items; close it (`aclosing`) when leaving early.

    Reads only `ahead` items further than the first that is not done, so that memory stays bounded however long `items` is. When the work
    on an item fails, its error is raised in its place in the order. On any way out, nothing new is begun, what is under way gets
    `grace_seconds` to end, and is then cancelled.
    """
    gate = asyncio.Semaphore(concurrency)
    stopping = False

    async def run(item: T) -> R:
        async with gate:
            if stopping:
                raise asyncio.CancelledError
            return await work(item)

    waiting: deque[tuple[T, asyncio.Task[R]]] = deque()
    source = iter(items)
    try:
        while True:
            for item in itertools.islice(source, ahead - len(waiting)):
                waiting.append((item, asyncio.ensure_future(run(item))))
            if not waiting:
                return
            item, task = waiting[0]
            result = await asyncio.shield(task)  # when the run is cancelled, this call still gets its grace
            waiting.popleft()
            yield item, result
    finally:
        stopping = True
        tasks = [task for _, task in waiting]
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=grace_seconds)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
