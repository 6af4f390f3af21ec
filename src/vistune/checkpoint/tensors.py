"""Weights on disk: safetensors files, read strictly and written as a stream.

The header is parsed here and not by the safetensors library because the library accepts what a checkpoint must not hold (a name given
twice, tensors of zero size, names that look like paths) and because one parse then decides both what is checked and what is read.
One tensor is in memory at a time; names and shapes are known before any of them is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vistune.checkpoint.files import MAX_INDEX_BYTES, contained_file, has_file, parse_json, read_json
from vistune.errors import CheckpointError, ConversionError, TensorError

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
DEFAULT_SHARD_BYTES = 5_000_000_000
MAX_HEADER_BYTES = 100_000_000

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_]+(?:[.\-][A-Za-z0-9_]+)*")
_PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class TensorSlot:
    """Where a tensor lies: a file and the bytes [start, stop) in it."""

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    def read(self) -> Tensor:
        """The tensor, in its stored dtype, in memory of its own. Raises TensorError when a value is not finite."""
        data = torch.empty(self.stop - self.start, dtype=torch.uint8)
        with open(self.path, "rb") as file:
            file.seek(self.start)
            if file.readinto(data.numpy().data) != len(data):
                raise TensorError(f"{self.path} ends inside {self.name}; the file is truncated. Fetch it again.")
        tensor = data.view(self.dtype).reshape(self.shape)
        check_finite(self.name, tensor)
        return tensor


# Bits of the exponent, and the unsigned integer of the same width: all exponent bits set is infinity or NaN (IEEE 754).
_EXPONENTS = {
    torch.float64: (np.uint64, 0x7FF0_0000_0000_0000),
    torch.float32: (np.uint32, 0x7F80_0000),
    torch.float16: (np.uint16, 0x7C00),
    torch.bfloat16: (np.uint16, 0x7F80),
}


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises TensorError if a floating point tensor holds NaN or infinity."""
    if not tensor.is_floating_point():
        return
    integer, exponent = _EXPONENTS[tensor.dtype]
    bits = np.frombuffer(tensor_bytes(tensor), dtype=integer)
    chunk = 1 << 20  # fits a cache: on bfloat16 this is ten times as fast as torch.isfinite, and needs no mask of the tensor's length
    for start in range(0, len(bits), chunk):
        masked = bits[start : start + chunk] & integer(exponent)
        if masked.max() == exponent:
            bad = start + int(masked.argmax())
            raise TensorError(
                f"{name} holds {tensor.detach().reshape(-1)[bad].item()} at position {bad} of {len(bits)}; weights must be finite. "
                "The file is damaged or the training run that wrote it had diverged."
            )


def read_header(path: Path) -> dict[str, TensorSlot]:
    """All tensors of one safetensors file by name. Raises TensorError for anything irregular."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise TensorError(f"{path} is not a complete safetensors file: {size} bytes, of which its header claims {length}.")
        raw = file.read(length)
    if not raw.startswith(b"{"):
        raise TensorError(f"{path} is not a safetensors file: its header is not a JSON object.")
    try:
        entries = parse_json(raw, where=f"the header of {path}")
    except CheckpointError as error:
        raise TensorError(str(error)) from error
    entries.pop("__metadata__", None)
    slots = [_slot(path, name, entry, base=8 + length) for name, entry in entries.items()]
    slots.sort(key=lambda slot: slot.start)
    end = 8 + length
    for slot in slots:
        if slot.start != end:
            raise TensorError(f"{path}: {slot.name} starts at byte {slot.start}, expected {end}; tensors overlap or leave a hole.")
        end = slot.stop
    if end != size:
        raise TensorError(f"{path} has {size} bytes, its header describes {end}; it is truncated or something was appended.")
    return {slot.name: slot for slot in slots}


def _slot(path: Path, name: str, entry: object, *, base: int) -> TensorSlot:
    if not _TENSOR_NAME.fullmatch(name) or len(name) > 512:
        raise TensorError(f"{path} holds a tensor called {name[:80]!r}; that is no name of a weight.")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise TensorError(f"{path}: the header's entry for {name} must have dtype, shape and data_offsets, and nothing else.")
    dtype, shape, offsets = DTYPES.get(str(entry["dtype"])), entry["shape"], entry["data_offsets"]
    if dtype is None:
        raise TensorError(f"{path}: {name} has dtype {str(entry['dtype'])[:20]!r}; vistune reads {', '.join(DTYPES)}.")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers):
            raise TensorError(f"{path}: {name} has {what} {str(numbers)[:80]}; expected a list of sizes.")
    if len(offsets) != 2 or len(shape) > 8 or 0 in shape:
        raise TensorError(f"{path}: {name} has shape {shape}, bytes {offsets}; an empty tensor or a malformed entry.")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise TensorError(f"{path}: {name} of shape {shape} needs {math.prod(shape) * dtype.itemsize} bytes, its entry has {offsets}.")
    return TensorSlot(name, path, dtype, tuple(shape), base + offsets[0], base + offsets[1])


def open_weights(folder: Path) -> dict[str, TensorSlot]:
    """All tensors of a folder's `model.safetensors`, or of the shards that its index names. No tensor is read yet.

    Raises ConversionError for a folder that only has pickled weights, TensorError or CheckpointError for an index that does not match
    its shards.
    """
    single, index = has_file(folder, WEIGHTS_NAME), has_file(folder, INDEX_NAME)
    if single and index:
        raise CheckpointError(f"{folder} has both {WEIGHTS_NAME} and {INDEX_NAME}; remove the one that is not meant.")
    if single:
        return read_header(contained_file(folder, WEIGHTS_NAME))
    if index:
        return _open_shards(folder)
    refuse_pickled(folder)
    raise CheckpointError(f"{folder} has no weights: neither {WEIGHTS_NAME} nor {INDEX_NAME}.")


def refuse_pickled(folder: Path) -> None:
    """Raises ConversionError if the folder holds pickled weights, which are never loaded."""
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED_SUFFIXES and path.name != "training_args.bin")
    if pickled:
        raise ConversionError(
            f"{folder} holds pickled weights ({', '.join(pickled[:3])}), and loading a pickle can run any program. "
            f"Convert it once, in a sandbox, with: vistune convert {folder} OUT"
        )


def _open_shards(folder: Path) -> dict[str, TensorSlot]:
    weight_map = read_json(folder, INDEX_NAME, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{folder / INDEX_NAME} has no usable weight_map.")
    shards = sorted(set(weight_map.values()))
    slots: dict[str, TensorSlot] = {}
    for shard in shards:
        if not shard.endswith(".safetensors"):
            raise CheckpointError(f"{folder / INDEX_NAME} lists {shard[:80]!r}, which is no safetensors file.")
        for name, slot in read_header(contained_file(folder, shard)).items():
            if name in slots:
                raise TensorError(f"{name} is in two shards, {slots[name].path.name} and {shard}; one of them is a leftover.")
            if weight_map.get(name) != shard:
                raise TensorError(f"{shard} holds {name}, which {INDEX_NAME} places in {weight_map.get(name)!r}.")
            slots[name] = slot
    unlisted = {path.name for path in folder.glob("model-*.safetensors")} - set(shards)
    if unlisted:
        raise CheckpointError(f"{folder} has {', '.join(sorted(unlisted)[:3])}, which {INDEX_NAME} does not list.")
    missing = sorted(set(weight_map) - set(slots))
    if missing:
        raise TensorError(f"{INDEX_NAME} promises {listed(missing)}, but the shards do not hold it.")
    return slots


def listed(names: Iterable[str], limit: int = 6) -> str:
    """A few names and how many more there are, for error messages."""
    ordered = sorted(names)
    rest = len(ordered) - limit
    return ", ".join(ordered[:limit]) + (f" and {rest} more" if rest > 0 else "")


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is made when it is needed: merged, cut, renamed or simply held by a model."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    compute: Callable[[], Tensor]

    def read(self) -> Tensor:
        return self.compute()

    @classmethod
    def of(cls, tensor: Tensor) -> LazyTensor:
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor)


TensorSource = TensorSlot | LazyTensor


def size_of(source: TensorSource) -> int:
    return math.prod(source.shape) * source.dtype.itemsize


def write_weights(folder: Path, tensors: Mapping[str, TensorSource], *, max_shard_bytes: int = DEFAULT_SHARD_BYTES) -> dict[str, str]:
    """Writes tensors as `model.safetensors`, or as shards with an index when they exceed `max_shard_bytes` together.

    One tensor is read at a time, in the dtype it has. Returns the sha256 of each file by its name. Raises TensorError for a tensor that
    is not finite.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name in sorted(tensors):
        size = size_of(tensors[name])
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return {WEIGHTS_NAME: write_file(folder / WEIGHTS_NAME, tensors)}
    digests: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        shard = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        digests[shard] = write_file(folder / shard, {name: tensors[name] for name in names})
        weight_map.update(dict.fromkeys(names, shard))
    write_index(folder, weight_map, total_size=sum(map(size_of, tensors.values())))
    return digests


def write_index(folder: Path, weight_map: Mapping[str, str], *, total_size: int) -> None:
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def write_file(path: Path, tensors: Mapping[str, TensorSource | Tensor]) -> str:
    """Writes one safetensors file and returns its sha256. Wider dtypes come first, so that every tensor is aligned to its item size."""
    sources = {name: LazyTensor.of(tensor) if isinstance(tensor, Tensor) else tensor for name, tensor in tensors.items()}
    order = sorted(sources, key=lambda name: (-sources[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        source = sources[name]
        stop = offset + size_of(source)
        header[name] = {"dtype": _CODES[source.dtype], "shape": list(source.shape), "data_offsets": [offset, stop]}
        offset = stop
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:

        def put(data: bytes | memoryview) -> None:
            digest.update(data)
            file.write(data)

        put(len(raw).to_bytes(8, "little") + raw)
        for name in order:
            tensor = sources[name].read().cpu()
            check_finite(name, tensor)
            put(tensor_bytes(tensor))
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's values as stored on disk (little endian, row-major)."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
