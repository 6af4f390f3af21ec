"""When the next call may go: one gate that all calls to a provider pass, one at a time and in the order they came.

It holds them back while a rate is used up, while the provider asked for a pause, and while the circuit is open: after many failures in a
row a single call at a time is tried, ever more rarely, until one succeeds. An error that no repetition mends closes the gate for good.

All times are those of the event loop's monotonic clock, so a change of the wall clock moves nothing, and all waiting is done asleep.
"""

from __future__ import annotations

import asyncio
import copy
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from vistune.errors import RemoteError, UsageError, VistuneError

PERMANENT_STATUSES = frozenset({401, 402, 403, 404, 405})
PERMANENT_CODES = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "account_deactivated", "invalid_api_key"}
)
"""What OpenAI and its likes say, mostly with status 429, when an account can pay no more."""
_PASSING_REFUSALS = frozenset({408, 409, 425, 429})


@dataclass(frozen=True)
class CallLimits:
    """How hard a provider may be pressed, and how long it is waited for. Times in seconds.

    Args:
        concurrency: calls under way at once, pauses between their attempts included.
        max_attempts: requests that may reach the provider for one call in one run. One that never connected is not counted.
        call_timeout: how long one request may take; after that it may have been billed.
        backoff: the pause after a first failure; doubled after each further one up to `max_backoff`, and shortened by chance to 50-100 %.
        circuit_failures: failures in a row, of whatever calls, after which only one call at a time is tried.
        patience: how long there may be no answer, or how long a pause the provider may ask for, before all is given up.
        tokens_per_image: what an image is taken to cost at most, before the bill is seen. 50,000 covers the dearest: gpt-4o-mini takes
            48,169 for the largest pictures (its published 2,833 + 8 × 5,667).
    """

    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_attempts: int = 5
    call_timeout: float = 600.0
    backoff: float = 1.0
    max_backoff: float = 60.0
    circuit_failures: int = 20
    patience: float = 3600.0
    tokens_per_image: int = 50_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} is {value}; it must be a number above 0.")


def verdict(error: RemoteError) -> Literal["stop", "refuse", "repair", "repeat"]:
    """What a failure means: for all calls the end, for this call the end, one more try (no usable reply), or a passing trouble."""
    if error.code in PERMANENT_CODES or error.status in PERMANENT_STATUSES:
        return "stop"
    if error.code == "content_filter" or (error.status is not None and 400 <= error.status < 500 and error.status not in _PASSING_REFUSALS):
        return "refuse"
    return "repair" if error.status == 200 else "repeat"


@dataclass
class _Use:
    time: float
    amount: float


class SlidingWindow:
    """At most `limit` in any 60 seconds. Unlike a bucket that refills, it never lets twice as much through in its first minute."""

    _SECONDS = 60.0

    def __init__(self, limit: float | None):
        self._limit = math.inf if limit is None else limit
        self._uses: deque[_Use] = deque()
        self._total = 0.0

    def delay(self, amount: float, now: float) -> float:
        """Seconds until so much may be used. More than the limit may be used alone."""
        while self._uses and self._uses[0].time <= now - self._SECONDS:
            self._total -= self._uses.popleft().amount
        over = self._total + min(amount, self._limit) - self._limit
        if self._limit == math.inf or over <= 0:
            return 0.0
        for use in self._uses:
            over -= use.amount
            if over <= 1e-6:  # what is left of a sum of fractions
                return use.time + self._SECONDS - now
        return 0.0

    def use(self, amount: float, now: float) -> _Use:
        use = _Use(now, min(amount, self._limit))
        self._uses.append(use)
        self._total += use.amount
        return use

    def correct(self, use: _Use, amount: float) -> None:
        """Says what a use really was, once it is known."""
        if self._uses and self._uses[0].time <= use.time:  # else it has left the window
            self._total += amount - use.amount
        use.amount = amount


class Passage:
    """A call that was let through. Exactly one of `answered` and `failed` is called, unless it was cancelled."""

    def __init__(self, gate: Gate, tokens: _Use):
        self._gate, self._tokens = gate, tokens

    def answered(self, tokens: int) -> None:
        """The provider answered, and counted so many tokens (0: it did not say)."""
        self._gate._answered(self._tokens, tokens)

    def failed(self, error: RemoteError, tries: int) -> None:
        """The try failed, which was the call's `tries`-th."""
        self._gate._failed(error, tries)


class Gate:
    """Lets calls through one at a time. Belongs to one event loop."""

    def __init__(self, limits: CallLimits):
        self._limits = limits
        self._requests, self._tokens = SlidingWindow(limits.requests_per_minute), SlidingWindow(limits.tokens_per_minute)
        self._turn = asyncio.Lock()  # its queue is the order of the calls
        self._changed, self._stopped = asyncio.Event(), asyncio.Event()
        self._not_before = self._next_probe = -math.inf
        self._failures = 0
        self._failing_since: float | None = None
        self._probe: Passage | None = None
        self._has_answered = False
        self._error: VistuneError | None = None

    @asynccontextmanager
    async def passage(self, tokens: int, ready: Callable[[], bool]) -> AsyncIterator[Passage]:
        """Waits until a call of at most so many tokens may go.

        Args:
            ready: asked last; False means to ask again when another call has ended. It may raise.
        """
        async with self._turn:
            while True:
                self.raise_if_stopped()
                self._changed.clear()
                wait = self._delay(tokens)
                if wait <= 0:
                    if ready():
                        break
                    wait = math.inf
                await self._wait(self._changed, wait)
            now = self._now()
            self._requests.use(1, now)
            passage = Passage(self, self._tokens.use(tokens, now))
            if self._circuit_is_open:
                self._probe = passage
        try:
            yield passage
        finally:
            if self._probe is passage:
                self._probe = None
            self._changed.set()

    async def pause_over(self) -> None:
        """Waits until the end of a pause that the provider asked for since the call was let through."""
        while (wait := self._not_before - self._now()) > 0 and self._error is None:
            await self._wait(self._stopped, wait)
        self.raise_if_stopped()

    async def back_off(self, tries: int) -> None:
        """Sleeps as long as a call should before its next try; ends early when the gate closes."""
        await self._wait(self._stopped, self._backoff(tries))

    def stop(self, error: VistuneError) -> None:
        """Closes for good: whoever waits, now or later, gets this error."""
        if self._error is None:
            self._error = error
        self._changed.set()
        self._stopped.set()

    def raise_if_stopped(self) -> None:
        if self._error is not None:
            raise copy.copy(self._error) from None  # one object raised in many tasks would gather all their tracebacks

    @property
    def _circuit_is_open(self) -> bool:
        return self._failures >= self._limits.circuit_failures

    def _delay(self, tokens: int) -> float:
        now = self._now()
        probing = 0.0
        if self._circuit_is_open:
            probing = math.inf if self._probe is not None else self._next_probe - now
        return max(self._not_before - now, probing, self._requests.delay(1, now), self._tokens.delay(tokens, now))

    def _answered(self, use: _Use, tokens: int) -> None:
        if tokens:
            self._tokens.correct(use, tokens)
        self._has_answered = True
        self._failures, self._failing_since = 0, None

    def _failed(self, error: RemoteError, tries: int) -> None:
        decision = verdict(error)
        if decision == "stop":
            advice = "Repeating cannot mend this, so nothing more is sent; check key, address, model name and account."
            self.stop(_like(error, f"{error} {advice}"))
        if decision in ("stop", "refuse"):  # the provider works; it said no
            return
        now = self._now()
        self._failures += 1
        if self._failing_since is None:
            self._failing_since = now
        if error.retry_after is not None:
            # Never earlier than asked, and not all at once.
            pause = error.retry_after + random.uniform(0, min(self._limits.backoff, error.retry_after))
            self._not_before = max(self._not_before, now + pause)
        if self._circuit_is_open:
            self._next_probe = now + self._backoff(self._failures - self._limits.circuit_failures + 1)
        self._give_up_if_hopeless(error, tries, now, self._failing_since)

    def _give_up_if_hopeless(self, error: RemoteError, tries: int, now: float, failing_since: float) -> None:
        patience, kept = self._limits.patience, "The answers so far are kept; run again later."
        if error.retry_after is not None and error.retry_after > patience:
            self.stop(_like(error, f"{error} It asks to wait {error.retry_after:,.0f} s; the patience is {patience:,.0f} s. {kept}"))
        elif max(now, self._not_before, self._next_probe) - failing_since > patience:
            waited = f"No answer in {now - failing_since:,.0f} s and {self._failures} tries; the patience is {patience:,.0f} s."
            self.stop(_like(error, f"{waited} The last: {error} {kept}"))
        elif not error.reached and not self._has_answered and (tries >= self._limits.max_attempts or self._circuit_is_open):
            self.stop(_like(error, f"{error} It was tried {self._failures} times."))  # an outage is waited for, a wrong address is not

    def _backoff(self, tries: int) -> float:
        longest = min(self._limits.backoff * 2.0 ** min(tries - 1, 64), self._limits.max_backoff)
        return longest * random.uniform(0.5, 1.0)

    @staticmethod
    async def _wait(event: asyncio.Event, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                await event.wait()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _like(error: RemoteError, message: str) -> RemoteError:
    """The same error with more to say."""
    other = copy.copy(error)
    other.args = (message,)
    return other
