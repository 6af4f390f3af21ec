"""Pictures in tar files, found by name and read one by one: nothing is unpacked, and the tars may be larger than memory. No torch here.

An index says which tar holds a picture and where. It is made once by reading all headers, kept as a table that is mapped and not loaded
(24 bytes a picture), and not believed: what lies at a place is compared with the header before it each time.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from vistune.data.pictures import with_pictures
from vistune.errors import DataError, ImageError
from vistune.formats import ImageBytes, confined_name
from vistune.journal import atomic_write
from vistune.media import DEFAULT_LIMITS
from vistune.types import ImageSource, InstructionExample

MEMBER = np.dtype([("key", "<u8"), ("start", "<i8"), ("size", "<i8"), ("tar", "<u4")])
"""A file in a tar: 8 bytes of its name's digest, where its bytes begin, how many they are, and in which tar."""

_OPEN_TARS = 64
_BLOCK = tarfile.BLOCKSIZE


def tars_at(images: Path) -> list[Path]:
    """The tars that `images` means: itself, or what is in it if that is nothing but tars; none for a folder of pictures.

    A folder of pictures beside which the tar they came from was left is a folder of pictures.
    """
    if images.suffix == ".tar" and images.is_file():
        return [images]
    tars: list[Path] = []
    if not images.is_dir():
        return tars
    with os.scandir(images) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.name.endswith(".tar") or not entry.is_file():
                return []
            tars.append(Path(entry.path))
    return sorted(tars)


class PictureShards:
    """The pictures in the tars at a place that rows name as their image folder. May be used by several threads at once.

    Args:
        images: a tar, or a folder of tars (see `tars_at`). Names in rows are names in the tars.
        index: where the index is kept, a `.npy`; without one it is made anew.

    Raises DataError for a tar that is incomplete, or holds a name twice, a name that leads out of it, or something else than files.
    """

    def __init__(self, images: Path, *, index: Path | None = None):
        self._images, self._tars = images, tars_at(images)
        self._index = index
        stamps = [[tar.name, tar.stat().st_size, tar.stat().st_mtime_ns] for tar in self._tars]
        known = _read_index(index, stamps) if index else None
        self._members = known if known is not None else _index_of(self._tars)
        if index and known is None:
            _write_index(index, self._members, stamps)
        self._open = lru_cache(_OPEN_TARS)(_OpenTar)

    def __len__(self) -> int:
        return len(self._members)

    def filled(self, example: InstructionExample) -> InstructionExample:
        """The record with its pictures as bytes that remember their names. Raises ImageError for one that is in none of the tars."""
        return with_pictures(example, lambda source: self.read(source) if isinstance(source, Path) else source)

    def read(self, source: Path) -> ImageSource:
        """The picture that a row names `source`, a path below the image folder."""
        name = source.relative_to(self._images).as_posix()
        key = _key(name)
        place = int(np.searchsorted(self._members["key"], np.uint64(key)))
        if place == len(self._members) or int(self._members["key"][place]) != key:
            raise ImageError("missing", f"{str(source)!r}: no such file in {self._tars_named()}.")
        member = self._members[place]
        tar = self._tars[int(member["tar"])]
        start, size = int(member["start"]), int(member["size"])
        opened = self._open(tar)
        header = _header_at(opened.read(_BLOCK, start - _BLOCK)) if start >= _BLOCK and start % _BLOCK == 0 else None
        if header is None or header.size != size or not _is_file(header) or not _may_be(header.name, name):
            raise DataError(f"{tar} holds no file {name!r} at byte {start}; {self._changed()}")
        data = opened.read(min(size, DEFAULT_LIMITS.file_bytes + 1), start)  # one byte too many is enough to be refused
        if len(data) != min(size, DEFAULT_LIMITS.file_bytes + 1):
            raise DataError(f"{tar} ends in the middle of {name!r}; {self._changed()}")
        return ImageBytes(data, name)

    def _tars_named(self) -> str:
        return str(self._images) if len(self._tars) == 1 else f"the {len(self._tars)} tars in {self._images}"

    def _changed(self) -> str:
        return "it was changed since its index was made." + (f" Remove {self._index} and start again." if self._index else "")


class _OpenTar:
    """Open as long as somebody holds it: one that makes room in the cache may still be read by another thread."""

    def __init__(self, path: Path):
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, size: int, start: int) -> bytes:
        return os.pread(self._descriptor, size, start)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def _key(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "little")


def _is_file(member: tarfile.TarInfo) -> bool:
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)


def _header_at(block: bytes) -> tarfile.TarInfo | None:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None


def _may_be(written: str, name: str) -> bool:
    """Whether a header with this name may be that of the file: of a long or foreign name it holds only a part, or a stand-in."""
    return PurePosixPath(written).as_posix() == name or len(name) > 99 or not name.isascii()


def _index_of(tars: Sequence[Path]) -> NDArray[np.void]:
    columns = [array("Q"), array("q"), array("q"), array("L")]
    for number, tar in enumerate(tars):
        for name, member in _files_of(tar):
            for column, value in zip(columns, (_key(name), member.offset_data, member.size, number), strict=True):
                column.append(value)
    members = np.zeros(len(columns[0]), MEMBER)
    for name, column in zip(MEMBER.names or (), columns, strict=True):
        members[name] = column
    members = members[np.argsort(members["key"], kind="stable")]
    twice = np.flatnonzero(members["key"][1:] == members["key"][:-1])
    if len(twice):
        raise DataError(_explain_twice(tars, int(members["key"][twice[0]])))
    return members


def _files_of(path: Path) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The files in a tar, by their headers alone."""
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it would hold them all
                if member.isdir():
                    continue
                if not _is_file(member):
                    raise DataError(f"{path}: {member.name!r} is a link or a device; a tar of pictures holds files and folders only.")
                yield PurePosixPath(confined_name(member.name)).as_posix(), member
            # A broken header ends the list as quietly as the end itself, which is a block of zeros.
            with path.open("rb") as file:
                file.seek(tar.offset)
                if file.read(_BLOCK) != bytes(_BLOCK):
                    raise DataError(f"{path} breaks off at byte {tar.offset}. Was it written or downloaded completely?")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a tar ({error}). Is it complete, and not compressed?") from error
    except ValueError as error:  # of `confined_name`
        raise DataError(f"{path}: {error}") from error


def _explain_twice(tars: Sequence[Path], key: int) -> str:
    found = [(tar, name) for tar in tars for name, _ in _files_of(tar) if _key(name) == key]
    where = " and ".join(dict.fromkeys(str(tar) for tar, _ in found))
    return f"The picture {found[0][1]!r} is {len(found)} times in {where}, and nothing says which is meant. Remove all but one."


def _write_index(path: Path, members: NDArray[np.void], stamps: list[list[object]]) -> None:
    with io.BytesIO() as file:
        np.save(file, members, allow_pickle=False)
        atomic_write(path, file.getvalue())
    page = {"tars": stamps, "table": hashlib.sha256(members.tobytes()).hexdigest()}
    atomic_write(path.with_suffix(".json"), json.dumps(page).encode())


def _read_index(path: Path, stamps: list[list[object]]) -> NDArray[np.void] | None:
    """The index of these very tars (by their names, sizes and times), or None where there is none or a damaged one."""
    try:
        page = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        members = np.load(path, mmap_mode="r", allow_pickle=False)
        if members.dtype == MEMBER and page["tars"] == stamps and hashlib.sha256(members.tobytes()).hexdigest() == page["table"]:
            return members
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        pass  # made anew
    return None
