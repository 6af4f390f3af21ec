"""Features of a frozen vision tower, computed once and kept on disk: between epochs, between stages, between runs.

A picture's features depend on its bytes, its preprocessing, the tower's weights, the layer and the number format. The first two are the key
of an entry (`picture_keys`), the others name the folder, so a changed tower cannot be served stale features. One file grows by appending;
reads are plain positioned reads, which the page cache serves at memory speed.

Whether keeping them pays is a question of the machine: on a CPU encoding takes tens of milliseconds to seconds a picture and reading under
one; on a large GPU it is the other way round. Hence a setting, empty by default, and `FrozenFeatures.costs`, which measures.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vistune.errors import SaveError
from vistune.journal import atomic_write
from vistune.media import PIXELS_VERSION
from vistune.model.config import ModelConfig
from vistune.model.inputs import ModelInputs
from vistune.types import Conversation, ImageSource

# V views · P patches per view · Dv width of the tower's features


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over the names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def picture_keys(conversation: Conversation, config: ModelConfig) -> tuple[str, ...]:
    """A digest per picture of its file's bytes and of all that turns them into pixels."""
    settings = json.dumps([PIXELS_VERSION, asdict(config.image), len(conversation.images)])  # AnyRes asks whether a picture is alone
    return tuple(hashlib.sha256(settings.encode() + _source_bytes(image.source)).hexdigest() for image in conversation.images)


def _source_bytes(source: ImageSource) -> bytes:
    if isinstance(source, Path):
        return source.read_bytes()
    return source if isinstance(source, bytes) else source.encode()


@dataclass(frozen=True)
class _Entry:
    start: int  # in views
    views: int
    crc: int


class FeatureStore:
    """Features by picture key in one folder: `features.bin` holds views back to back, `index.txt` says which are whose.

    Safe to stop at any moment: an entry counts only once its whole line is in the index, and its bytes are checked when read. Several
    threads and processes may append in turn.

    Args:
        max_bytes: what the folder above, with the stores of all towers, may come to hold.
    """

    def __init__(self, folder: Path, *, tokens: int, width: int, dtype: torch.dtype, max_bytes: int | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.shape, self.dtype, self.max_bytes = folder, (tokens, width), dtype, max_bytes
        self._view_bytes = tokens * width * dtype.itemsize
        self._in_turn = threading.Lock()
        self._lock = open(folder.parent / ".lock", "ab")  # noqa: SIM115 - open as long as the store
        self._data = open(folder / "features.bin", "a+b", buffering=0)  # noqa: SIM115
        self._index = open(folder / "index.txt", "a+b", buffering=0)  # noqa: SIM115
        self._entries: dict[str, _Entry] = {}
        self._index_read = 0
        with self._alone():
            self._read_index()

    def close(self) -> None:
        for file in (self._data, self._index, self._lock):
            file.close()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def get(self, key: str) -> Tensor | None:
        """The features of a picture [V, P, Dv], or None if they are not there or were damaged."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        length = entry.views * self._view_bytes
        data = bytearray(os.pread(self._data.fileno(), length, entry.start * self._view_bytes))
        if len(data) != length or zlib.crc32(data) != entry.crc:
            del self._entries[key]
            return None
        return torch.frombuffer(data, dtype=self.dtype).reshape(entry.views, *self.shape)

    def put(self, key: str, features: Tensor) -> bool:
        """Appends the features of a picture, and says whether there was room: `max_bytes` is never exceeded.

        Raises SaveError when the disk is full; what was there before stays good.
        """
        data = features.detach().cpu().to(self.dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data
        with self._alone():
            try:
                self._read_index()
                if key in self._entries:  # another process was quicker
                    return True
                start = -(-os.fstat(self._data.fileno()).st_size // self._view_bytes)  # past a torn view, if a writer was killed
                line = f"{key} {start} {features.shape[0]} {zlib.crc32(data):08x}\n".encode()
                if self.max_bytes is not None and self._held() + self._view_bytes + len(data) + len(line) > self.max_bytes:
                    return False
                os.ftruncate(self._data.fileno(), start * self._view_bytes)
                _write_all(self._data.fileno(), data)
                _write_all(self._index.fileno(), line)
            except OSError as error:
                raise SaveError(
                    f"The feature cache {self.folder} could not be written ({error.strerror}). Free some space, set feature_cache_gb to "
                    "what it may take, or run with feature_cache= to do without."
                ) from error
        self._entries[key] = _Entry(start, features.shape[0], zlib.crc32(data))
        return True

    def _held(self) -> int:
        """Bytes of all stores in the folder above."""
        return sum(file.stat().st_size for file in self.folder.parent.glob("*/*") if file.is_file())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The one writer to all stores in the folder above; two of them could not both keep to its limit."""
        with self._in_turn:  # flock does not part threads that share a file
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _read_index(self) -> None:
        """Takes in the lines that were added since the last look; a torn last line is cut off under the lock."""
        fresh = os.pread(self._index.fileno(), os.fstat(self._index.fileno()).st_size - self._index_read, self._index_read)
        whole = fresh[: fresh.rfind(b"\n") + 1]
        for line in whole.decode("ascii", "replace").splitlines():
            fields = line.split(" ")
            if len(fields) == 4 and fields[1].isdigit() and fields[2].isdigit():
                self._entries[fields[0]] = _Entry(int(fields[1]), int(fields[2]), int(fields[3], 16))
        self._index_read += len(whole)
        if len(whole) != len(fresh):
            os.ftruncate(self._index.fileno(), self._index_read)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    """os.write may write less than it was given, and says so only by its return value."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


Pictures = Iterable[tuple[Sequence[str], Callable[[], ModelInputs]]]
"""Conversations: the keys of each one's pictures, and how to load it with pixels."""


@dataclass(frozen=True)
class Costs:
    """What encoding and reading take on this machine, for a picture, and how often a run needs either."""

    encode_ms: float
    """Reading the file, making pixels of it, and the tower."""
    write_ms: float
    read_ms: float
    """From memory: right for a cache that fits into it."""
    pictures: int
    stored: int
    """Pictures that are in the cache already."""
    meetings: float
    """How often the run meets a picture, of any. Later stages may meet them too; they are not counted."""

    @property
    def seconds_without(self) -> float:
        return self.meetings * self.encode_ms / 1000

    @property
    def seconds_with(self) -> float:
        return ((self.pictures - self.stored) * (self.encode_ms + self.write_ms) + self.meetings * self.read_ms) / 1000

    @property
    def pays(self) -> bool:
        return self.seconds_with < self.seconds_without

    def __str__(self) -> str:
        return (
            f"Features are {'' if self.pays else 'not '}cached: this run meets {self.pictures} pictures ({self.stored} stored before) "
            f"{self.meetings:.0f} times in all; one takes {self.encode_ms:.2f} ms to encode, {self.write_ms:.2f} ms to write and "
            f"{self.read_ms:.2f} ms to read: {self.seconds_with:.1f} s with the cache, {self.seconds_without:.1f} s without."
        )


class FrozenFeatures:
    """Gives conversations the features of their pictures: from the store, or from the tower.

    Args:
        encode: the tower, [V, 3, H, W] -> [V, P, Dv], without gradient.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], store: FeatureStore, *, views_per_forward: int = 32):
        self._encode, self._store, self._views_per_forward = encode, store, views_per_forward
        self.full = False
        """Whether a picture was met that the store had no room for."""

    def attach(self, inputs: ModelInputs, keys: Sequence[str], load: Callable[[], ModelInputs]) -> ModelInputs:
        """The same conversation with `image_features`. `load` gives it with pixels; it is called only for pictures not stored yet."""
        if not keys:
            return inputs
        found = {key: self._store.get(key) for key in keys}
        if any(each is None for each in found.values()):
            left = self._add([(keys, load())])
            found = {key: left[key] if key in left else self._store.get(key) for key in keys}
        features = [each for key in keys if (each := found[key]) is not None]
        if len(features) != len(keys):
            raise SaveError(f"The feature cache {self._store.folder} gives back other bytes than were written to it. Is the disk failing?")
        return replace(inputs, pixel_values=None, image_features=torch.cat(features))

    def fill(self, pictures: Pictures, *, on_done: Callable[[], None]) -> None:
        """Encodes all pictures that are not in the store yet, many at a time: a tower is several times slower one by one.

        Stops at the first for which there is no room; that and later ones are encoded when they are met.
        """
        waiting: list[tuple[Sequence[str], ModelInputs]] = []
        for keys, load in pictures:
            if not self.full and any(key not in self._store for key in keys):
                waiting.append((keys, load()))
                if sum(sum(inputs.views) for _, inputs in waiting) >= self._views_per_forward:
                    self._add(waiting)
                    waiting = []
            on_done()
        self._add(waiting)

    def costs(self, *passes: tuple[Pictures, float]) -> Costs:
        """Measures, on a few pictures, what a run costs with the cache and without.

        Args:
            passes: conversations, and how often a run goes through them all.
        """
        conversations = [(keys, load, times) for pictures, times in passes for keys, load in pictures if keys]
        known = {key for keys, _, _ in conversations for key in keys}
        stored = sum(key in self._store for key in known)
        meetings = sum(len(keys) * times for keys, _, times in conversations)
        few = conversations[:: -(-len(conversations) // _PICTURES_TO_MEASURE)] if conversations else []
        measured = {key: pixels for keys, load, _ in few for key, pixels in _pixels_of(keys, load()).items()}
        if not measured:
            return Costs(0.0, 0.0, 0.0, len(known), stored, meetings)

        def milliseconds(act: Callable[[], object]) -> float:
            began = time.perf_counter()
            act()
            return 1000 * (time.perf_counter() - began) / len(measured)

        pixels = torch.cat(list(measured.values()))
        self._encode(pixels)  # the first run of a shape also chooses its kernels
        load_ms = milliseconds(lambda: [load() for _, load, _ in few])
        encode_ms = milliseconds(lambda: self._encode(pixels).cpu())
        features = self._encode(pixels).split([len(views) for views in measured.values()])
        write_ms = milliseconds(lambda: [self._put(key, part) for key, part in zip(measured, features, strict=True)])
        read_ms = milliseconds(lambda: [self._store.get(key) for key in measured])
        return Costs(load_ms + encode_ms, write_ms, read_ms, len(known), stored, meetings)

    def _add(self, conversations: Sequence[tuple[Sequence[str], ModelInputs]]) -> dict[str, Tensor]:
        """Encodes and stores what is not stored yet; returns what there was no room for."""
        pixels: dict[str, Tensor] = {}
        for keys, inputs in conversations:
            pixels |= {key: views for key, views in _pixels_of(keys, inputs).items() if key not in self._store}
        if not pixels:
            return {}
        features = self._encode(torch.cat(list(pixels.values()))).split([len(views) for views in pixels.values()])
        return {
            key: part.detach().cpu().to(self._store.dtype) for key, part in zip(pixels, features, strict=True) if not self._put(key, part)
        }

    def _put(self, key: str, features: Tensor) -> bool:
        fits = not self.full and self._store.put(key, features)
        self.full = self.full or not fits
        return fits


_PICTURES_TO_MEASURE = 8


def _pixels_of(keys: Sequence[str], inputs: ModelInputs) -> dict[str, Tensor]:
    """A conversation's views by picture: [V, 3, H, W] each."""
    if inputs.pixel_values is None:
        return {}
    return dict(zip(keys, inputs.pixel_values.split(inputs.views), strict=True))


def open_store(
    folder: Path, tower: nn.Module, config: ModelConfig, *, tokens: int, width: int, dtype: torch.dtype, max_gb: float | None = None
) -> FeatureStore:
    """The store below `folder` that belongs to exactly this tower, layer and number format; `about.json` in it tells a person which.

    Args:
        max_gb: what `folder` may hold in all, in 10^9 bytes.
    """
    about = {
        "vision_tower": config.vision_tower,
        "weights": digest_of(tower.state_dict().items()),
        "layer": config.feature_layer,
        "select": config.feature_select,
        "dtype": str(dtype).removeprefix("torch."),
        "tokens": tokens,
        "width": width,
    }
    text = json.dumps(about, indent=2) + "\n"
    place = folder / f"{config.vision_tower}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "about.json").exists():
        atomic_write(place / "about.json", text.encode())
    return FeatureStore(place, tokens=tokens, width=width, dtype=dtype, max_bytes=None if max_gb is None else int(max_gb * 1e9))
