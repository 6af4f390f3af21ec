"""Exact and near duplicates among the rows of a run, found in one pass in the order in which the rows come.

Two rows about *one* picture are duplicates at any length: that is a second draw that brought nothing new. Two pictures may well share
"What is it? — A cat."; only when a long text comes again is the teacher no longer talking about the picture.

Near duplicates are texts whose sets of five-word runs overlap (Jaccard). Candidates come from MinHash signatures in bands, and each is
confirmed by the exact overlap, so the bands decide only what is missed. All hashes are fixed: the same rows give the same verdicts in any
process. Memory is bounded: the oldest rows are forgotten beyond `capacity`.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHINGLE_WORDS = 5
BANDS = 20
ROWS = 2
"""20 bands of 2: a pair that overlaps by 0.5 is compared with a chance of 0.997, one of 0.05 with 0.05."""
MAX_FILED = 64
"""Rows that are compared in one band, the latest: thousands of rows may share a run of words that a teacher is fond of."""
MAX_WORDS = 4000
"""Of a longer text only the beginning is looked at; the length filter drops it anyway."""

_WORD = re.compile(r"\w+")
# Multiply-shift hashing: odd multipliers and offsets from a fixed generator.
_RANDOM = numpy.random.Generator(numpy.random.PCG64(20230417))
_MULTIPLIERS = _RANDOM.integers(1, 2**63, size=BANDS * ROWS, dtype=numpy.uint64) * numpy.uint64(2) + numpy.uint64(1)
_OFFSETS = _RANDOM.integers(0, 2**63, size=BANDS * ROWS, dtype=numpy.uint64)


@dataclass(frozen=True)
class Duplicate:
    """Why a row says nothing new: how like an earlier one it is (1.0: the same words), and which one."""

    similarity: float
    earlier: int
    """Place of the earlier row among all rows that were kept, from 0."""


@dataclass(frozen=True)
class _Row:
    shingles: array[int]
    """Hashes of its runs of words, in order of size."""
    keys: tuple[int, ...]
    """Where it is filed: first the key of its exact text, then one for each band."""


class Deduplicator:
    """Remembers the rows that were kept. One run, one instance; rows in the order in which they are written.

    Args:
        near: the overlap from which two texts count as nearly the same.
        long_words: from how many words on a text that comes again for another picture is a duplicate too.
        capacity: how many kept rows are remembered, at 4.6 kB each (measured on rows of 100 words): 0.5 GB when full.
    """

    def __init__(self, *, near: float = 0.5, long_words: int = 40, capacity: int = 100_000):
        self._near, self._long_words, self._capacity = near, long_words, capacity
        self._kept_ever = 0
        self._rows: dict[int, _Row] = {}
        self._filed: dict[int, list[int]] = {}

    def find(self, image: str, text: str) -> Duplicate | None:
        """The kept row that a text about an image repeats, exactly if there is one, otherwise the nearest; None for a new text."""
        row = self._row(image, text)
        if same := self._filed.get(row.keys[0]):
            return Duplicate(1.0, same[0])
        best: Duplicate | None = None
        mine = set(row.shingles)
        for place in sorted({place for key in row.keys[1:] for place in self._filed.get(key, ())}):
            theirs = self._rows[place].shingles
            shared = sum(shingle in mine for shingle in theirs)
            overlap = shared / (len(mine) + len(theirs) - shared)
            if overlap >= self._near and (best is None or overlap > best.similarity):
                best = Duplicate(overlap, place)
        return best

    def keep(self, image: str, text: str) -> None:
        """Remembers a row that went into the data. Dropped rows must not be: they would take good ones with them."""
        row, place = self._row(image, text), self._kept_ever
        self._kept_ever += 1
        self._rows[place] = row
        for key in row.keys:
            filed = self._filed.setdefault(key, [])
            filed.append(place)
            if len(filed) > MAX_FILED:
                del filed[0]
        if len(self._rows) > self._capacity:
            self._forget(next(iter(self._rows)))

    def __len__(self) -> int:
        return len(self._rows)

    def _row(self, image: str, text: str) -> _Row:
        words = _WORD.findall(text.casefold())[:MAX_WORDS]
        hashes = {_hash(" ".join(words[i : i + SHINGLE_WORDS]), 4) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}
        # Short texts are filed under their picture and so never meet those of another.
        about = "" if len(words) >= self._long_words else image
        bands = (_hash(f"{about}\n{number} {band.hex()}", 8) for number, band in enumerate(_band_values(hashes)))
        return _Row(array("I", sorted(hashes)), (_hash(f"{about}\n{' '.join(words)}", 8), *bands))

    def _forget(self, place: int) -> None:
        for key in self._rows.pop(place).keys:
            filed = self._filed.get(key, [])
            if place in filed:
                filed.remove(place)
            if not filed:
                self._filed.pop(key, None)


def _hash(text: str, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest(), "big")


def _band_values(hashes: set[int]) -> list[bytes]:
    """For each band, the `ROWS` minimal hashes that it stands for."""
    values: NDArray[numpy.uint64] = numpy.array(sorted(hashes), dtype=numpy.uint64)
    mixed = (values[:, None] * _MULTIPLIERS + _OFFSETS) >> numpy.uint64(32)
    return [row.tobytes() for row in mixed.min(axis=0).astype("<u4").reshape(BANDS, ROWS)]
