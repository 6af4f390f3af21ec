"""How many requests are in the house: some run, some wait, the rest are told at once when to come back.

    with gate.admitted(size) as place:   a place in the house, or ApiError 429 (full) or 503 (closing)
        place.hold(bytes)                as its body arrives, or 429 where all bodies together are too many
        async with gate.running(model):  one of the few places at that model, waited for

A request is admitted before its body is read, so that the bounds hold for memory too. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from vistune.serve.failures import ApiError

_LONGEST_WAIT = 60
"""The most seconds that a client is told to wait: an estimate from past replies is worth little beyond."""


class Gate:
    """Counts requests in and out.

    Args:
        max_running: replies that a model writes at once; a request for n choices takes n of these places.
        max_queue: requests that may wait besides.
        max_bytes: the bodies of all requests in the house together.
        models: how many there are. Of several, none lets more than half of the queue wait: one that hangs leaves room to ask the others.
    """

    def __init__(self, *, max_running: int, max_queue: int, max_bytes: int = 256 << 20, models: int = 1):
        self._lines: defaultdict[object, _Line] = defaultdict(lambda: _Line(asyncio.Semaphore(max_running)))
        self._longest_line = math.inf if models == 1 else max_queue // 2
        self._max_running = max_running
        self.max_queue, self.max_admitted, self.max_bytes = max_queue, max_running + max_queue, max_bytes
        self._empty = asyncio.Event()
        self._empty.set()
        self._typical_seconds = 1.0
        self.num_admitted = 0
        self.num_running = 0
        self.num_waiting = 0
        self.num_bytes = 0
        self.closing = False
        """Set on shutdown: who is in may finish, nobody else comes in."""

    @property
    def is_full(self) -> bool:
        return self.num_admitted >= self.max_admitted

    def check(self, size: int = 0) -> None:
        """Whether a request with a body of `size` bytes would be let in now. A size that is only claimed takes nobody's room.

        Raises:
            ApiError: 429 where the queue is full, 503 where the server is shutting down.
        """
        if self.closing:
            raise ApiError(503, "shutting_down", "The server is shutting down; ask again in a moment.", retry_after=5)
        if self.is_full or self.num_bytes + size > self.max_bytes:
            raise self.full()

    def full(self) -> ApiError:
        text = "The server has as many requests as it takes; ask again after the time in Retry-After."
        return ApiError(429, "queue_full", text, retry_after=self._seconds_until_free())

    @contextmanager
    def admitted(self, size: int = 0) -> Iterator[Place]:
        """A place in the house for as long as the block lasts. Raises as `check` does."""
        self.check(size)
        self.num_admitted += 1
        self._empty.clear()
        place = Place(self)
        try:
            yield place
        finally:
            self.num_admitted -= 1
            self.num_bytes -= place.num_bytes
            if not self.num_admitted:
                self._empty.set()

    def check_line(self, model: object) -> None:
        """Raises ApiError 429 where as many wait for this model as may."""
        line = self._lines[id(model)]
        if line.places.locked() and line.num_waiting >= self._longest_line:
            raise self.full()

    @asynccontextmanager
    async def running(self, model: object = None) -> AsyncIterator[None]:
        """A place at the model for as long as the block lasts."""
        line = self._lines[id(model)]
        self.num_waiting += 1
        line.num_waiting += 1
        try:
            await line.places.acquire()
        finally:
            self.num_waiting -= 1
            line.num_waiting -= 1
        self.num_running += 1
        started = time.monotonic()
        try:
            yield
        finally:
            line.places.release()
            self.num_running -= 1
            self._typical_seconds += 0.2 * (time.monotonic() - started - self._typical_seconds)

    async def emptied(self) -> None:
        """Returns when nobody is in the house."""
        await self._empty.wait()

    def _seconds_until_free(self) -> int:
        rounds = max(self.num_admitted - self._max_running, 1) / self._max_running
        return min(max(math.ceil(self._typical_seconds * rounds), 1), _LONGEST_WAIT)


@dataclass
class _Line:
    """Who is at one model, and who waits for it."""

    places: asyncio.Semaphore
    num_waiting: int = 0


@dataclass
class Place:
    """One request's place, with what its body takes of the house's memory: to the end, for pictures stay as long as the reply."""

    gate: Gate
    num_bytes: int = 0

    def hold(self, size: int) -> None:
        """Takes room for that many bytes more.

        Raises:
            ApiError: 429 where all requests together would hold too much.
        """
        if self.gate.num_bytes + size > self.gate.max_bytes:
            raise self.gate.full()
        self.num_bytes += size
        self.gate.num_bytes += size
