"""The child process that turns a pickled PyTorch state dict into safetensors. The only file of vistune that unpickles anything.

    python -I convert_pickle.py SOURCE OUT MEMORY_BYTES CPU_SECONDS

Run by `convert.py`, never imported by it, and made of the standard library (numpy joins only for tensors that are not contiguous), so
that little code is in reach of a hostile file. Before the first byte is read it gives up the network, new privileges, core dumps and
all but a little memory, time and disk. The pickle is read by an unpickler whose whole vocabulary is the tables below: ordered
dictionaries, tensors and storages, and those become plain descriptions, not objects of torch. While it runs, an audit hook refuses
every event (opening files, importing, running, connecting). Tensor data is then copied by offset.

Two containers are understood: the zip file that torch writes since 1.6 and the stream of pickles before it. Tar files and anything else
are refused. Exit status 0: OUT is complete. 3: refused, and standard output says why in one line.
"""

from __future__ import annotations

import collections
import ctypes
import io
import json
import math
import os
import pickle
import re
import resource
import sys
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

REFUSED = 3
MAX_PICKLE_BYTES = 64 << 20
COPY_BYTES = 4 << 20

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

# torch's storage classes -> (safetensors dtype, bytes per element)
STORAGE_TYPES = {
    "DoubleStorage": ("F64", 8),
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}
_ZIP_ENTRY = re.compile(r"[^/]+/(?:data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id|data/[0-9]+)")
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_]+(?:[.\-][A-Za-z0-9_]+)*")


class RefusedError(Exception):
    """The file is not a plain state dict; the message says what it is instead."""


class StorageType(NamedTuple):
    dtype: str
    itemsize: int


class Storage(NamedTuple):
    """A storage that the pickle refers to: its data lies elsewhere in the file, under `key`."""

    key: str
    type: StorageType
    numel: int


class StridedTensor(NamedTuple):
    """A tensor as the pickle describes it. Offset and strides count elements of the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def contiguous(self) -> bool:
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


class _RebuildTensor:
    """Stands for torch._utils._rebuild_tensor_v2. No attributes, so that nothing in the pickle can change it."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> StridedTensor:
        if len(arguments) not in (6, 7):
            raise RefusedError(f"a tensor is built from {len(arguments)} arguments")
        storage, offset, shape, stride = arguments[:4]
        if not isinstance(storage, Storage) or not all(isinstance(sizes, tuple) for sizes in (shape, stride)) or len(shape) != len(stride):
            raise RefusedError("a tensor is built from something else than a storage, an offset, a shape and strides")
        if len(shape) > 8 or any(type(number) is not int or not 0 <= number < 1 << 48 for number in (offset, *shape, *stride)):
            raise RefusedError(f"a tensor has offset {offset!r}, shape {shape!r}, strides {stride!r}"[:300])
        tensor = StridedTensor(storage, offset, shape, stride)
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if tensor.numel else offset
        if tensor.numel == 0:
            raise RefusedError("a tensor is empty (ZeRO-3 saves such stubs: gather the weights when saving)")
        if last >= storage.numel or tensor.numel > storage.numel:
            raise RefusedError(f"a tensor of shape {shape} reaches past its storage of {storage.numel} elements")
        return tensor


class _RebuildParameter:
    """Stands for torch._utils._rebuild_parameter: the tensor itself."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> StridedTensor:
        if not arguments or not isinstance(arguments[0], StridedTensor):
            raise RefusedError("a parameter is built from something else than a tensor")
        return arguments[0]


class StateDictUnpickler(pickle.Unpickler):
    """Knows ordered dictionaries, tensors and storages. Any other name in the pickle is refused, whatever it is."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _RebuildTensor()
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _RebuildParameter()
        if module == "torch" and name in STORAGE_TYPES:
            return StorageType(*STORAGE_TYPES[name])
        raise RefusedError(f"it asks for {module}.{name}, which is no part of a state dict"[:300])

    def persistent_load(self, pid: Any) -> Storage:
        # zip: ("storage", type, key, location, numel); stream: the same and view metadata, which torch has long written as None
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or not isinstance(pid[1], StorageType):
            raise RefusedError("it refers to something that is no storage")
        _, kind, key, _, numel = pid[:5]
        if not isinstance(key, str) or not key.isascii() or not key.isdigit() or type(numel) is not int or not 0 <= numel < 1 << 48:
            raise RefusedError(f"a storage has key {key!r} and {numel!r} elements"[:300])
        if pid[5:] not in ((), (None,)):
            raise RefusedError("a storage is a view of another one, as torch wrote before 0.4")
        return Storage(key, kind, numel)


_unpickling = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _unpickling:
        raise RefusedError(f"it tries to do what a state dict does not need ({event})")


def unpickle(file: BinaryIO) -> Any:
    """One pickle from `file`. Raises RefusedError for anything but the vocabulary above."""
    global _unpickling
    unpickler = StateDictUnpickler(file)
    _unpickling = True
    try:
        return unpickler.load()
    except (RefusedError, MemoryError):
        raise
    except Exception as error:
        # A malformed pickle can raise nearly any exception out of the interpreter; each of them means the same.
        raise RefusedError(f"it is a malformed pickle ({type(error).__name__}: {error})"[:300]) from error
    finally:
        _unpickling = False


class Extent(NamedTuple):
    """Bytes of the source file that hold one storage."""

    start: int
    size: int


def read_container(file: BinaryIO, size: int) -> tuple[Any, dict[str, Extent]]:
    """The unpickled object and where each storage's data lies in the file."""
    magic = file.read(4)
    file.seek(0)
    if magic == b"PK\x03\x04":
        return _read_zip(file, size)
    if magic[:1] == b"\x80":
        return _read_stream(file, size)
    raise RefusedError("it is neither a zip file nor a stream of pickles as torch.save writes them (tar files are not converted)")


def _read_zip(file: BinaryIO, size: int) -> tuple[Any, dict[str, Extent]]:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _check_entries(entries, size)
            pickled = next((entry for entry in entries if entry.filename.endswith("/data.pkl")), None)
            if pickled is None or pickled.file_size > MAX_PICKLE_BYTES:
                raise RefusedError("its data.pkl is missing or too large")
            order = next((entry for entry in entries if entry.filename.endswith("/byteorder")), None)
            if order is not None and (order.file_size > 16 or archive.read(order) != b"little"):
                raise RefusedError("its tensors are not little endian")
            state = unpickle(io.BytesIO(archive.read(pickled)))
            return state, {entry.filename.rpartition("/")[2]: _extent(file, entry) for entry in entries if "/data/" in entry.filename}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError) as error:
        raise RefusedError(f"it is a damaged zip file ({error})"[:300]) from error


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    names = [entry.filename for entry in entries]
    if len(entries) > 100_000 or len(set(names)) != len(names) or len({name.partition("/")[0] for name in names}) != 1:
        raise RefusedError("its zip directory names an entry twice, has too many, or more than one root")
    if sum(entry.file_size for entry in entries) > size:
        raise RefusedError("its zip entries overlap")
    for entry in entries:
        if not _ZIP_ENTRY.fullmatch(entry.filename):
            raise RefusedError(f"its zip directory holds {entry.filename[:80]!r} (TorchScript and nested archives are not converted)")
        # 0x8 sizes after the data, 0x800 names in UTF-8: all that torch ever sets
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        if not stored or entry.flag_bits & ~0x808:
            raise RefusedError(f"its zip entry {entry.filename[:80]!r} is compressed, encrypted or oddly flagged")


def _extent(file: BinaryIO, entry: zipfile.ZipInfo) -> Extent:
    """Where an entry's bytes start: its local header is 30 bytes, a name and padding, whose lengths may differ from the directory's."""
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise RefusedError(f"its zip entry {entry.filename!r} has no header")
    start = entry.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return Extent(start, entry.file_size)


def _read_stream(file: BinaryIO, size: int) -> tuple[Any, dict[str, Extent]]:
    if unpickle(file) != LEGACY_MAGIC or unpickle(file) != LEGACY_PROTOCOL:
        raise RefusedError("it is a pickle, but not one that torch.save wrote")
    system = unpickle(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise RefusedError("its tensors are not little endian")
    state = unpickle(file)
    keys = unpickle(file)
    storages = {tensor.storage.key: tensor.storage for tensor in named_tensors(state).values()}
    if not isinstance(keys, list) or len(keys) != len(storages) or set(map(str, keys)) != set(storages):
        raise RefusedError("its list of storages does not match its tensors")
    extents: dict[str, Extent] = {}
    position = file.tell()
    for key in keys:
        storage = storages[key]
        file.seek(position)
        if int.from_bytes(file.read(8), "little") != storage.numel:
            raise RefusedError(f"storage {key} has another length than its tensors say")
        extents[key] = Extent(position + 8, storage.numel * storage.type.itemsize)
        position += 8 + extents[key].size
    if position != size:
        raise RefusedError(f"it has {size} bytes where its storages end at {position}")
    return state, extents


def named_tensors(state: Any) -> dict[str, StridedTensor]:
    """The state dict's tensors by name; one level of wrapping as {"state_dict": ...} is opened."""
    if isinstance(state, dict) and len(state) == 1 and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state:
        raise RefusedError(f"it holds a {type(state).__name__}, not a state dict")
    for name, value in state.items():
        if not isinstance(name, str) or not _TENSOR_NAME.fullmatch(name) or len(name) > 512:
            raise RefusedError(f"it holds an entry called {str(name)[:80]!r}")
        if not isinstance(value, StridedTensor):
            raise RefusedError(f"its entry {name!r} is a {type(value).__name__}, not a tensor")
    return dict(state)


def write_safetensors(source: BinaryIO, tensors: dict[str, StridedTensor], extents: dict[str, Extent], out: BinaryIO) -> None:
    """Copies the tensors into a safetensors file, wider types first so that each is aligned."""
    for name, tensor in tensors.items():
        extent = extents.get(tensor.storage.key)
        if extent is None or extent.size != tensor.storage.numel * tensor.storage.type.itemsize:
            raise RefusedError(f"the data of {name} is missing or has another size than the tensor says")
    order = sorted(tensors, key=lambda name: (-tensors[name].storage.type.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        size = tensor.numel * tensor.storage.type.itemsize
        header[name] = {"dtype": tensor.storage.type.dtype, "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    out.write(len(raw).to_bytes(8, "little") + raw)
    for name in order:
        for chunk in _tensor_chunks(source, tensors[name], extents[tensors[name].storage.key]):
            out.write(chunk)


def _tensor_chunks(source: BinaryIO, tensor: StridedTensor, extent: Extent) -> Iterator[bytes]:
    itemsize = tensor.storage.type.itemsize
    if not tensor.contiguous:
        yield _gathered(source, tensor, extent)
        return
    source.seek(extent.start + tensor.offset * itemsize)
    left = tensor.numel * itemsize
    while left:
        chunk = source.read(min(left, COPY_BYTES))
        if not chunk:
            raise RefusedError("it ends in the middle of a tensor")
        left -= len(chunk)
        yield chunk


def _gathered(source: BinaryIO, tensor: StridedTensor, extent: Extent) -> bytes:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its threads' stacks would count against RLIMIT_AS
    import numpy as np

    itemsize = tensor.storage.type.itemsize
    source.seek(extent.start)
    storage = np.frombuffer(source.read(extent.size), dtype=f"u{itemsize}")
    strides = [stride * itemsize for stride in tensor.stride]
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides, writeable=False).tobytes()


def confine(memory_bytes: int, cpu_seconds: int, output_bytes: int) -> None:
    """Gives up what the conversion does not need. The network and privilege steps are best effort: a kernel may not offer them."""
    new_user, new_network, no_new_privileges = 0x10000000, 0x40000000, 38
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(no_new_privileges, 1, 0, 0, 0)
        if libc.unshare(new_network) != 0:
            libc.unshare(new_user | new_network)
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, output_bytes),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    sys.addaudithook(_audit)


def main(arguments: list[str]) -> int:
    source_path, out_path, memory_bytes, cpu_seconds = arguments
    size = os.path.getsize(source_path)
    with open(source_path, "rb") as source, open(out_path, "xb") as out:
        confine(int(memory_bytes), int(cpu_seconds), output_bytes=2 * size + MAX_PICKLE_BYTES)
        try:
            state, extents = read_container(source, size)
            tensors = named_tensors(state)
            write_safetensors(source, tensors, extents, out)
        except RefusedError as reason:
            print(reason)
            return REFUSED
        except MemoryError:
            print(f"it needs more than {int(memory_bytes) >> 20} MiB to unpickle; a state dict needs a few")
            return REFUSED
        out.flush()
        os.fsync(out.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
