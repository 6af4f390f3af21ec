"""Features of a frozen vision tower, computed once and kept on disk: between epochs, between stages, between runs.

A picture's features depend on its bytes, its preprocessing, the tower's weights, the layer and the number format. The first two are the key
of an entry (`picture_keys`), the others name the folder, so a changed tower cannot be served stale features. One file grows by appending;
reads are plain positioned reads, which the page cache serves at memory speed.

Whether keeping them pays is a question of the machine: on a CPU encoding takes tens of milliseconds to seconds a picture and reading under
one; on a large GPU it is the other way round. Hence a setting, empty by default.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
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
    processes may append in turn.
    """

    def __init__(self, folder: Path, *, tokens: int, width: int, dtype: torch.dtype):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.shape, self.dtype = folder, (tokens, width), dtype
        self._view_bytes = tokens * width * dtype.itemsize
        self._data = open(folder / "features.bin", "a+b", buffering=0)  # noqa: SIM115 - open as long as the store
        self._index = open(folder / "index.txt", "a+b", buffering=0)  # noqa: SIM115
        self._entries: dict[str, _Entry] = {}
        self._index_read = 0
        self._read_index()

    def close(self) -> None:
        self._data.close()
        self._index.close()

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

    def put(self, key: str, features: Tensor) -> None:
        """Appends the features of a picture. Raises SaveError when the disk is full; what was there before stays good."""
        data = features.detach().cpu().to(self.dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data
        fcntl.flock(self._index, fcntl.LOCK_EX)
        try:
            self._read_index()
            start = -(-os.fstat(self._data.fileno()).st_size // self._view_bytes)  # past a torn view, if a writer was killed
            os.ftruncate(self._data.fileno(), start * self._view_bytes)
            _write_all(self._data.fileno(), data)
            entry = _Entry(start, features.shape[0], zlib.crc32(data))
            _write_all(self._index.fileno(), f"{key} {entry.start} {entry.views} {entry.crc:08x}\n".encode())
        except OSError as error:
            raise SaveError(
                f"The feature cache {self.folder} could not be written ({error.strerror}). Free some space, or run with feature_cache= to "
                "do without."
            ) from error
        finally:
            fcntl.flock(self._index, fcntl.LOCK_UN)
        self._entries[key] = entry

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


class FrozenFeatures:
    """Gives conversations the features of their pictures: from the store, or from the tower, once.

    Args:
        encode: the tower, [V, 3, H, W] -> [V, P, Dv], without gradient.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], store: FeatureStore, *, views_per_forward: int = 32):
        self._encode, self._store, self._views_per_forward = encode, store, views_per_forward

    def attach(self, inputs: ModelInputs, keys: Sequence[str], load: Callable[[], ModelInputs]) -> ModelInputs:
        """The same conversation with `image_features`. `load` gives it with pixels; it is called only for pictures not stored yet."""
        if not keys:
            return inputs
        found = [self._store.get(key) for key in keys]
        if any(each is None for each in found):
            self._add([(keys, load())])
            found = [self._store.get(key) for key in keys]
        features = [each for each in found if each is not None]
        if len(features) != len(found):
            raise SaveError(f"The feature cache {self._store.folder} gives back other bytes than were written to it. Is the disk failing?")
        return replace(inputs, pixel_values=None, image_features=torch.cat(features))

    def fill(self, pictures: Iterable[tuple[Sequence[str], Callable[[], ModelInputs]]], *, on_done: Callable[[], None]) -> None:
        """Encodes all pictures that are not in the store yet, many at a time: a tower is several times slower one by one."""
        waiting: list[tuple[Sequence[str], ModelInputs]] = []
        for keys, load in pictures:
            if any(key not in self._store for key in keys):
                waiting.append((keys, load()))
                if sum(sum(inputs.views) for _, inputs in waiting) >= self._views_per_forward:
                    self._add(waiting)
                    waiting = []
            on_done()
        self._add(waiting)

    def _add(self, conversations: Sequence[tuple[Sequence[str], ModelInputs]]) -> None:
        pixels: dict[str, Tensor] = {}
        for keys, inputs in conversations:
            if inputs.pixel_values is not None:
                pixels.update(
                    (key, views) for key, views in zip(keys, inputs.pixel_values.split(inputs.views), strict=True) if key not in self._store
                )
        if pixels:
            features = self._encode(torch.cat(list(pixels.values())))
            for key, part in zip(pixels, features.split([len(views) for views in pixels.values()]), strict=True):
                self._store.put(key, part)


def open_store(folder: Path, tower: nn.Module, config: ModelConfig, *, tokens: int, width: int, dtype: torch.dtype) -> FeatureStore:
    """The store below `folder` that belongs to exactly this tower, layer and number format; `about.json` in it tells a person which."""
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
    return FeatureStore(place, tokens=tokens, width=width, dtype=dtype)
