"""Several engines on one machine: who computes next, and how much of the memory each may fill.

Two engines that step at once take the cores from each other and both crawl. So they take turns, a step at a time, and the one that has had
the least time goes first: a small model beside a large one gets half of the time, not one short step for each long one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

from vistune.engine.kv_cache import KVShape
from vistune.model.llava import Llava

DEFAULT_KV_BYTES = 4 << 30


def kv_shares(models: Sequence[Llava], total: int | None = None) -> list[int]:
    """Limits on the keys and values of each model's engine that add up to `total`, in proportion to what one full context of each takes.

    By default a quarter of the machine's memory, at most 4 GiB. None gets less than one full context, so that it can answer at all.
    """
    if total is None:
        total = min(DEFAULT_KV_BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)
    contexts = [_one_context(model) for model in models]
    return [max(total * context // sum(contexts), context) for context in contexts]


def _one_context(model: Llava) -> int:
    shape = KVShape.of(model.config.text_config)
    return 2 * shape.layers * shape.heads * shape.head_dim * model.dtype.itemsize * (model.config.max_length + 64)


_GRACE = 0.001
"""Seconds that a turn waits for the engine that had the last one and may have more to do: the way from one step to the next is shorter."""


class Turns:
    """Makes turns, one for each engine, of which at most one is taken at a time.

    >>> turns = Turns()
    >>> engines = [Engine(model, processor, turn=turns.new()) for model, processor in models]
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Turn] = []
        self._taken = False
        self._last = Turn(self)
        self._latest = 0.0
        """The time that whoever took the last turn had had by then: where one begins who did not want any before."""

    def new(self) -> Turn:
        return Turn(self)

    def _take(self, turn: Turn) -> None:
        with self._changed:
            turn.seconds = max(turn.seconds, self._latest)  # who was idle has not saved anything up
            self._waiting.append(turn)
            waited_for = self._last
            while self._taken or min(self._waiting, key=lambda each: each.seconds) is not turn:
                self._changed.wait()
                if not self._taken and self._last is not waited_for and self._last.seconds < turn.seconds:
                    waited_for = self._last
                    self._changed.wait(_GRACE)
            self._waiting.remove(turn)
            self._taken, self._last, self._latest = True, turn, turn.seconds

    def _give_back(self) -> None:
        with self._changed:
            self._taken = False
            self._changed.notify_all()


class Turn:
    """One engine's: each of its steps runs in a `with` block of it. Belongs to one thread."""

    def __init__(self, turns: Turns):
        self._turns = turns
        self._began = 0.0
        self.seconds = 0.0
        """The time that it has had, counted from that of the others when it came."""

    def __enter__(self) -> None:
        self._turns._take(self)
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.monotonic() - self._began
        self._turns._give_back()
