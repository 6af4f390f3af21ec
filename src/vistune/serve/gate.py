"""How many requests are in the house: some run, some wait, the rest are told at once when to come back.

    with gate.admitted():            a place in the house, or ApiError 429 (full) or 503 (closing)
        async with gate.running():   one of the few places at the model, waited for

A request is admitted before its body is read, so that the bound holds for memory too. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from vistune.serve.failures import ApiError

_LONGEST_WAIT = 60
"""The most seconds that a client is told to wait: an estimate from past replies is worth little beyond."""


class Gate:
    """Counts requests in and out.

    Args:
        max_running: replies that are written at once; a request for n choices takes n of these places.
        max_queue: requests that may wait besides.
    """

    def __init__(self, *, max_running: int, max_queue: int):
        self._places = asyncio.Semaphore(max_running)
        self._max_running, self._max_admitted = max_running, max_running + max_queue
        self._empty = asyncio.Event()
        self._empty.set()
        self._typical_seconds = 1.0
        self.num_admitted = 0
        self.num_running = 0
        self.closing = False
        """Set on shutdown: who is in may finish, nobody else comes in."""

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place in the house for as long as the block lasts.

        Raises:
            ApiError: 429 where the queue is full, 503 where the server is shutting down.
        """
        if self.closing:
            raise ApiError(503, "shutting_down", "The server is shutting down; ask again in a moment.", retry_after=5)
        if self.num_admitted >= self._max_admitted:
            text = "The server has as many requests as it takes; ask again after the time in Retry-After."
            raise ApiError(429, "queue_full", text, retry_after=self._seconds_until_free())
        self.num_admitted += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.num_admitted -= 1
            if not self.num_admitted:
                self._empty.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """A place at the model for as long as the block lasts."""
        async with self._places:
            self.num_running += 1
            started = time.monotonic()
            try:
                yield
            finally:
                self.num_running -= 1
                self._typical_seconds += 0.2 * (time.monotonic() - started - self._typical_seconds)

    async def emptied(self) -> None:
        """Returns when nobody is in the house."""
        await self._empty.wait()

    def _seconds_until_free(self) -> int:
        rounds = max(self.num_admitted - self._max_running, 1) / self._max_running
        return min(max(math.ceil(self._typical_seconds * rounds), 1), _LONGEST_WAIT)
