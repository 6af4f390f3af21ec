"""What is kept of finished requests: keys and values, found again by the longest common beginning.

A second question about a picture finds the picture, the first question and the answer here and reads only its own words. Texts are equal
when their tokens are; pictures when the digests of all that their embeddings depend on are, so that another picture in the same words is
never taken for this one.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vistune.engine.kv_cache import KVArena, KVSequence
from vistune.model.config import ModelConfig
from vistune.model.images import image_layout
from vistune.model.inputs import ModelInputs

IMAGE_ROW = -1
STRIDE = 16
"""Paths are looked up by digests of their first 16, 32, 48 ... rows."""
MOST_COMPARED = 32
"""Of entries with the same digest only so many are compared row by row, the newest: a few rows more are not worth the time of hundreds."""


@dataclass(frozen=True)
class ImageSpan:
    """The rows start:end of a prompt that one picture takes; `key` is None where its content is unknown."""

    start: int
    end: int
    key: str | None


@dataclass(frozen=True)
class TokenPath:
    """Everything that keys and values of T rows depend on: token ids, and for rows of pictures the pictures. And whose they are: paths of
    different salt have nothing in common.
    """

    ids: np.ndarray  # [T] int64, IMAGE_ROW where a picture is
    images: tuple[ImageSpan, ...] = ()
    salt: str = ""

    @classmethod
    def of(cls, inputs: ModelInputs, config: ModelConfig, salt: str = "") -> TokenPath:
        ids = inputs.input_ids.numpy().copy()
        mask = inputs.image_mask.numpy()
        ids[mask] = IMAGE_ROW
        rows = np.flatnonzero(mask)
        keys = inputs.image_keys or (None,) * len(inputs.image_sizes)
        spans, first = [], 0
        for size, key in zip(inputs.image_sizes, keys, strict=True):
            count = image_layout(size, config, images_in_conversation=len(inputs.image_sizes)).tokens
            spans.append(ImageSpan(int(rows[first]), int(rows[first + count - 1]) + 1, key))
            first += count
        return cls(ids, tuple(spans), salt)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digests(self) -> tuple[bytes, ...]:
        """Of the first 16, 32, 48 ... rows and the pictures that begin in them; none from a picture on whose content is unknown."""
        running, digests, images = hashlib.blake2b(self.salt.encode(), digest_size=16), [], list(self.images)
        for end in range(STRIDE, len(self) + 1, STRIDE):
            running.update(self.ids[end - STRIDE : end].tobytes())
            while images and images[0].start < end:
                image = images.pop(0)
                if image.key is None:
                    return tuple(digests)
                running.update(f"{image.start}:{image.end}:{image.key}".encode())
            digests.append(running.digest())
        return tuple(digests)

    def extended(self, tokens: list[int], length: int) -> TokenPath:
        """The first `length` rows of this path followed by `tokens`. It may end inside a picture."""
        ids = np.concatenate([self.ids, np.array(tokens, dtype=np.int64)])[:length]
        return TokenPath(ids, tuple(image for image in self.images if image.start < length), self.salt)

    def common_length(self, other: TokenPath) -> int:
        """Rows at the beginning that both have."""
        if self.salt != other.salt:
            return 0
        shorter = min(len(self), len(other))
        different = np.flatnonzero(self.ids[:shorter] != other.ids[:shorter])
        length = int(different[0]) if len(different) else shorter
        for mine, theirs in zip(self.images, other.images, strict=False):
            if mine != theirs or mine.key is None:
                return min(length, mine.start, theirs.start)
        return length


@dataclass(eq=False)
class Kept:
    """A finished request's path and its keys and values."""

    path: TokenPath
    sequence: KVSequence


class PrefixCache:
    """Finished requests, the longest unused first to go when memory is needed."""

    def __init__(self, arena: KVArena):
        self._arena = arena
        self._kept: OrderedDict[Kept, None] = OrderedDict()
        self._beginning: defaultdict[bytes, dict[Kept, None]] = defaultdict(dict)
        """Entries by each of their digests."""
        self._whole: defaultdict[bytes, dict[Kept, None]] = defaultdict(dict)
        """Entries by their last digest; b"" for those without any."""

    def __len__(self) -> int:
        return len(self._kept)

    def longest(self, path: TokenPath) -> tuple[Kept | None, int]:
        """The entry that shares the most rows with `path` (to a few, among very many), and how many; among equals the shortest, which
        wastes least."""
        best, best_length = None, 0
        alike = next((self._beginning[digest] for digest in reversed(path.digests) if digest in self._beginning), self._kept)
        for kept in list(alike)[-MOST_COMPARED:]:
            length = kept.path.common_length(path)
            if length > best_length or (best is not None and length == best_length and len(kept.path) < len(best.path)):
                best, best_length = kept, length
        return best, best_length

    def keep(self, path: TokenPath, sequence: KVSequence) -> None:
        """Adds a finished request. Entries that it continues are contained in it and are freed."""
        shorter = [kept for digest in (b"", *path.digests) for kept in self._whole.get(digest, ())]
        for kept in shorter:
            if kept.path.common_length(path) == len(kept.path):
                self.drop(kept)
        kept = Kept(path, sequence)
        self._kept[kept] = None
        self._whole[path.digests[-1] if path.digests else b""][kept] = None
        for digest in path.digests:
            self._beginning[digest][kept] = None

    def use(self, kept: Kept) -> None:
        """Marks an entry as just used."""
        self._kept.move_to_end(kept)

    def take(self, kept: Kept) -> KVSequence:
        """Removes an entry without freeing it: its keys and values go on as part of a new request."""
        del self._kept[kept]
        digests = kept.path.digests
        for index, keys in ((self._beginning, digests), (self._whole, digests[-1:] or (b"",))):
            for key in keys:
                del index[key][kept]
                if not index[key]:
                    del index[key]
        return kept.sequence

    def drop(self, kept: Kept) -> None:
        self._arena.free(self.take(kept))

    def drop_oldest(self, *, but: Kept | None = None) -> bool:
        """Frees the entry unused for longest; False if there is none (besides `but`)."""
        oldest = next((kept for kept in self._kept if kept is not but), None)
        if oldest is None:
            return False
        self.drop(oldest)
        return True
