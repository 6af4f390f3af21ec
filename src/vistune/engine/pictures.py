"""Pictures of all waiting requests, encoded together, in portions, and each only once.

A burst of pictures must not hold up the replies that run: between two of their tokens the tower looks at as many views as it manages in a
fraction of a second, from whichever requests they are. What it saw is kept for a while, so that a picture under another system text, where
no earlier prompt helps, costs no second look. The projector runs picture by picture: its few products need no company, and a picture's
embeddings are then the same in any.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from vistune.model.inputs import ModelInputs, RaggedBatch
from vistune.model.llava import Llava

# V views of one picture · P tokens per view · Dv width of the tower · D width of the language model

SECONDS_AT_ONCE = 0.15
"""How long the tower may take between two steps; one view is always looked at."""
VIEWS_AT_FIRST, MOST_VIEWS = 4, 64
"""Views at once before it is known how long one takes, and at most."""
KEPT_BYTES = 128 << 20
"""Limit on the embeddings of pictures that are kept: 500 pictures of a small model, 25 of a 7B one."""
ENTRY_BYTES = 1024
"""What a kept picture takes besides its embeddings: key, tensor and place."""


_Key = tuple[str, str]
"""The salt of who may know that it was seen, and the digest of what it is."""


@dataclass(eq=False)
class Picture:
    """One picture on its way through tower and projector."""

    key: _Key | None
    size: tuple[int, int]
    views: int
    pixels: Tensor | None  # [V, 3, H, W], until all are looked at
    features: list[Tensor] = field(default_factory=list)  # the tower's, of the views so far: [v, P, Dv] each
    embeddings: Tensor | None = None  # [visual tokens, D], at the end
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.embeddings is not None or self.error is not None

    @property
    def seen(self) -> int:
        return sum(len(features) for features in self.features)


class Pictures:
    """What the tower has seen and is to see.

    Args:
        arithmetic: entered around tower and projector, for the deterministic mode.
    """

    def __init__(self, model: Llava, arithmetic: Callable[[], AbstractContextManager[None]], *, max_bytes: int = KEPT_BYTES):
        self._model, self._arithmetic, self._max_bytes = model, arithmetic, max_bytes
        self._under_way: WeakValueDictionary[_Key, Picture] = WeakValueDictionary()
        self._kept: OrderedDict[_Key, Tensor] = OrderedDict()
        self._seconds_per_view: float | None = None
        self.bytes_used = 0
        self.encoded = 0
        """Pictures that went through the tower."""

    def picture(self, inputs: ModelInputs, index: int, salt: str = "") -> Picture:
        """A request's picture: known, under way for another request of the same salt, or yet to be looked at."""
        content = inputs.image_keys[index] if inputs.image_keys else None
        key = None if content is None else (salt, content)
        if key is not None and (under_way := self._under_way.get(key)) is not None:
            return under_way
        before = sum(inputs.views[:index])
        views = slice(before, before + inputs.views[index])
        picture = Picture(key, inputs.image_sizes[index], inputs.views[index], None)
        if key is not None and (known := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            picture.embeddings = known
        elif inputs.image_features is not None:
            picture.features = [inputs.image_features[views]]
            self._project(picture)
        else:
            picture.pixels = None if inputs.pixel_values is None else inputs.pixel_values[views]
            if key is not None:
                self._under_way[key] = picture
        return picture

    def look(self, wanted: Iterable[Picture]) -> None:
        """Runs the tower once on the first views that are still to be seen, and the projector on every picture seen whole."""
        portion, room = [], self._views_at_once()
        for picture in dict.fromkeys(wanted):
            if not picture.done and room > 0:
                count = min(room, picture.views - picture.seen)
                portion.append((picture, count))
                room -= count
        if not portion:
            return
        started = time.monotonic()
        self._encode(portion)
        for picture, _ in portion:
            if picture.error is None and picture.seen == picture.views:
                self.encoded += 1
                self._project(picture)
        self._seconds_per_view = (time.monotonic() - started) / sum(count for _, count in portion)

    def _views_at_once(self) -> int:
        if self._seconds_per_view is None:
            return VIEWS_AT_FIRST
        return min(max(int(SECONDS_AT_ONCE / max(self._seconds_per_view, 1e-9)), 1), MOST_VIEWS)

    def _encode(self, portion: list[tuple[Picture, int]]) -> None:
        """One pass of the tower; if it fails, each picture alone, so that only the one at fault hears of it."""
        try:
            views = [_pixels_of(picture)[picture.seen : picture.seen + count] for picture, count in portion]
            with torch.inference_mode(), self._arithmetic():
                features = self._model.encode_images(torch.cat(views).to(self._model.device))
            counts = [count for _, count in portion]
            for (picture, _), own in zip(portion, features.split(counts), strict=True):
                picture.features.append(own)
        except Exception as error:
            if len(portion) > 1:
                for one in portion:
                    self._encode([one])
            else:
                self._give_up(portion[0][0], error)

    def _project(self, picture: Picture) -> None:
        nothing = torch.zeros(0, dtype=torch.int64)
        try:
            batch = RaggedBatch(
                input_ids=nothing,
                position_ids=nothing,
                cu_seqlens=torch.zeros(1, dtype=torch.int32),
                image_mask=nothing.bool(),
                views=(picture.views,),
                image_sizes=(picture.size,),
                image_features=torch.cat(picture.features).to(self._model.device),
            )
            with torch.inference_mode(), self._arithmetic():
                picture.embeddings = self._model.image_embeddings(batch)
        except Exception as error:
            self._give_up(picture, error)
            return
        picture.pixels, picture.features = None, []
        if picture.key is not None:
            self._keep(picture.key, picture.embeddings)

    def _give_up(self, picture: Picture, error: Exception) -> None:
        """Those who wait for this picture are told; who asks for it later tries again."""
        picture.error, picture.pixels = error, None
        if picture.key is not None:
            self._under_way.pop(picture.key, None)

    def _keep(self, key: _Key, embeddings: Tensor) -> None:
        self._under_way.pop(key, None)
        if key in self._kept or ENTRY_BYTES + embeddings.nbytes > self._max_bytes:
            return
        self._kept[key] = embeddings
        self.bytes_used += ENTRY_BYTES + embeddings.nbytes
        while self.bytes_used > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.bytes_used -= ENTRY_BYTES + oldest.nbytes

    def forget(self) -> None:
        """Drops all that is kept."""
        self._kept.clear()
        self.bytes_used = 0


def _pixels_of(picture: Picture) -> Tensor:
    if picture.pixels is None:
        raise ValueError("The request names a picture but carries neither its pixels nor its features.")
    return picture.pixels
