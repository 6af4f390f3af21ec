"""Which rows go into which optimizer step: a pure function, so that nothing about the order needs saving.

The row at a place of an epoch depends on (seed, epoch, place) alone, computed in O(1) without drawing the places before it. A run that is
stopped goes on from its step number; workers and processes can be added or lost without changing the order. An order of another kind is a
function of the epoch, drawn once an epoch as a whole.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


def shuffled(place: int, size: int, key: str) -> int:
    """The `place`-th element of a pseudo-random permutation of range(size).

    A Feistel network over the smallest power of four that holds `size`, walked until it falls inside (at most 4 tries on average):
    a permutation by construction, the same in every version of Python, numpy and torch.
    """
    if not 0 <= place < size:
        raise IndexError(f"place {place} of a permutation of {size}")
    half = max(1, math.ceil((size - 1).bit_length() / 2))
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for round_number in range(4):
            digest = hashlib.blake2b(f"{key}:{round_number}:{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        place = (left << half) | right
        if place < size:
            return place


@dataclass(frozen=True)
class StepRows:
    """What one optimizer step trains on: places in the dataset, in order."""

    epoch: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Sampler:
    """The order of a whole run: `sampler.rows(step)` for step 0, 1, ...

    Every epoch visits each of `size` rows once; its last step holds what is left over.
    """

    size: int
    batch: int
    seed: int = 0
    epoch_order: Callable[[str], Sequence[int]] | None = None
    """Another order than the shuffled one: what names a seed and an epoch → all places."""
    _drawn: dict[int, Sequence[int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.size / self.batch)

    def rows(self, step: int) -> StepRows:
        epoch, place = divmod(step, self.steps_per_epoch)
        places = range(place * self.batch, min((place + 1) * self.batch, self.size))
        key = f"{self.seed}:{epoch}"
        if self.epoch_order is None:
            return StepRows(epoch, tuple(shuffled(each, self.size, key) for each in places))
        order = self._drawn.get(epoch)
        if order is None:
            order = self.epoch_order(key)
            self._drawn.clear()
            self._drawn[epoch] = order
        return StepRows(epoch, tuple(order[each] for each in places))
