"""Pictures as a conversation shows them, and those of late, so that a second question about one does not decode it again."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vistune.model.images import ImageLayout
from vistune.types import ImageSource

KEPT_BYTES = 32 << 20
"""Limit on what `Looks` keeps: 55 pictures at 224 pixels, 5 in five views of 336."""
ENTRY_BYTES = 2048
"""What a kept look takes besides its views: digests, layout, tensor and place."""


@dataclass(frozen=True)
class Look:
    """What a conversation needs of a picture."""

    size: tuple[int, int]
    layout: ImageLayout
    views: Tensor | None = None  # [V, 3, S, S]
    key: str = ""


_Key = tuple[bytes, str, int]
"""The digest of the file, the salt of who may know that it was shown, and how many pictures the conversation shows."""


class Looks:
    """The looks at pictures that came as bytes or `data:` addresses, those unused for longest the first to go. May be shared by threads.

    A picture that is named by its path is opened each time: the file may be another by then.
    """

    def __init__(self, max_bytes: int = KEPT_BYTES):
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Key, Look] = OrderedDict()
        self.bytes_used = 0

    def look(self, source: ImageSource, salt: str, shown: int, make: Callable[[], Look]) -> Look:
        """What `make` gives for this picture in a conversation that shows so many, or gave for the same before. Errors are not kept."""
        if isinstance(source, Path):
            return make()
        content = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
        key = (hashlib.sha256(content).digest(), salt, shown)
        with self._lock:
            known = self._kept.get(key)
            if known is not None:
                self._kept.move_to_end(key)
                return known
        look = make()
        self._keep(key, look)
        return look

    def _keep(self, key: _Key, look: Look) -> None:
        with self._lock:
            if key in self._kept or _bytes_of(look) > self._max_bytes:
                return
            self._kept[key] = look
            self.bytes_used += _bytes_of(look)
            while self.bytes_used > self._max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self.bytes_used -= _bytes_of(oldest)


def _bytes_of(look: Look) -> int:
    return ENTRY_BYTES + (0 if look.views is None else look.views.nbytes)
