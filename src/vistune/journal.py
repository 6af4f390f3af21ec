"""Writing that survives a crash: one file, one folder, or a log that grows.

    atomic_write(path, data)          a file is the old one or the new one, never half of either
    atomic_file(path)                 the same for a file that is written piece by piece in a `with` block
    atomic_folder(path)               the same for a folder that is written by a `with` block
    commit_folder(finished, path)     the same for a folder that was filled over several sittings
    write_manifest / verify_manifest  sha256 and size of every file in a folder
    Journal(path)                     an append log: one JSON record a line, each with its CRC-32, one writer at a time

Each new thing is written beside its place as `X.tmp-<pid>-w<n>`, fsynced and renamed, and the folder it stands in is fsynced. Its writer
holds a flock on it, which the kernel drops at death: the next writer of X removes exactly the leftovers that nobody holds, whatever became
of their process numbers. A save that fails raises `SaveError` with the fix and leaves nothing behind.

A folder that exists is replaced by *exchanging* the two names in one step (renameat2 on Linux). Where the file system cannot do that, the
old folder is first moved to `X.replaced-<pid>-w<n>`; a crash between these two renames is undone by `recover_folder(X)`, with which every
save of X begins and which a reader calls when it finds X missing.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from vistune.errors import CheckpointError, DataError, Locked, SaveError

MANIFEST_NAME = "manifest.json"

_FIXES = {
    errno.ENOSPC: "free some space or choose another place",
    errno.EDQUOT: "your disk quota is used up: free some space or choose another place",
    errno.EFBIG: "the file system or a limit (ulimit -f) does not allow a file of this size: choose another place",
    errno.EROFS: "the file system is read-only: choose another place",
    errno.EACCES: "change the permissions or choose another place",
    errno.EPERM: "change the permissions or choose another place",
    errno.EIO: "the disk reported an error: check it, and save to another one",
    errno.ENOLCK: "the file system has no locks: choose another place",
    errno.ENOENT: "create the folder it should stand in",
    errno.ENOTDIR: "a part of this path is a file: choose another place",
    errno.EISDIR: "a folder of this name is in the way: choose another name",
}
_numbers = itertools.count()


def atomic_write(path: Path, data: bytes) -> None:
    """Writes a file so that after a crash at any moment its content is the old one or `data`, complete.

    Raises:
        SaveError: disk full, read-only, no permission, ...; the old file is untouched.
    """
    with _replacement(path) as descriptor:
        _write_all(descriptor, data)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """The same for a file that is written piece by piece: gives it open for writing, and nothing remains if the block fails.

    with atomic_file(out) as file:
        file.write(...)
    """
    with _replacement(path) as descriptor, os.fdopen(descriptor, "wb", closefd=False) as file:
        yield file


@contextmanager
def _replacement(path: Path) -> Iterator[int]:
    """A descriptor of a new file, which takes the place of `path` when the block ends."""
    path = Path(os.path.realpath(path))
    with _saving(path):
        _remove_leftovers(path)
        temporary, descriptor = _claim(path, folder=False)
        try:
            if path.exists():
                os.fchmod(descriptor, stat.S_IMODE(path.stat().st_mode))
            yield descriptor
            os.fsync(descriptor)
            os.replace(temporary, path)
        except BaseException:
            _remove(temporary)
            raise
        finally:
            os.close(descriptor)
    _confirm(path)


@contextmanager
def atomic_folder(path: Path, *, existing: Literal["refuse", "replace"] = "refuse") -> Iterator[Path]:
    """Gives an empty folder to fill; when the block ends, it stands complete and durable at `path`. If the block fails, nothing remains.

        with atomic_folder(out) as folder:
            (folder / "config.json").write_text(...)

    Args:
        existing: what to do when `path` is a folder with something in it. `replace` deletes all that it held, so it is not the default.

    Raises:
        SaveError: `path` exists, or the system refused (disk full, read-only, ...).
    """
    path = Path(os.path.realpath(path))
    with _saving(path):
        recover_folder(path)
        if path.exists() and not path.is_dir():
            raise SaveError(f"{path} is a file, not a folder; choose another name.")
        if existing == "refuse" and path.is_dir() and any(path.iterdir()):
            raise SaveError(f"{path} already exists and is not empty; choose another name or remove it.")
        temporary, descriptor = _claim(path, folder=True)
        try:
            yield temporary
            _fsync_tree(temporary)
            old = _move_folder(temporary, path)
        except BaseException:
            _remove(temporary)
            raise
        finally:
            os.close(descriptor)
    _confirm(path)
    if old is not None:
        _remove(old)  # only now is it certain that nobody needs it


def commit_folder(finished: Path, path: Path) -> None:
    """Gives its name to a folder that was filled over several sittings: durable first, then renamed in one step.

    Raises:
        SaveError: something stands at `path`, or the system refused; `finished` is as it was.
    """
    with _saving(path):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        if os.path.lexists(path):
            raise SaveError(f"{path} already exists and is not empty; choose another name or remove it.")
        _fsync_tree(finished)
        os.rename(finished, path)
    _confirm(path)


def recover_folder(path: Path) -> None:
    """Undoes what a crash left of an `atomic_folder`: an old folder that was moved aside comes back, unfinished ones are removed."""
    for replaced in _relatives(path, "replaced"):
        if path.exists():
            _remove(replaced)
        else:
            os.rename(replaced, path)
            _fsync_folder(path.parent)
    _remove_leftovers(path)


@contextmanager
def _saving(path: Path) -> Iterator[None]:
    """Turns the system's refusals into `SaveError`; other errors of the block pass as they are."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FIXES:
            raise
        raise SaveError(f"Saving {path} failed: {error.strerror}. What was there before is untouched; {_FIXES[error.errno]}.") from error


def _claim(path: Path, *, folder: bool) -> tuple[Path, int]:
    """Creates `X.tmp-<pid>-<n>` and locks it; gives its path and the descriptor that holds the lock."""
    while True:
        temporary = _relative(path, "tmp")
        try:
            if folder:
                os.mkdir(temporary)
            descriptor = os.open(temporary, os.O_RDONLY if folder else os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue  # a leftover of another machine or container in which the same process number lives
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink and temporary.exists():
            return temporary, descriptor
        os.close(descriptor)  # another writer took it for a leftover in the moment before the lock


def _remove_leftovers(path: Path) -> None:
    for leftover in _relatives(path, "tmp"):
        try:
            descriptor = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            continue  # gone meanwhile, or not ours to open
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(leftover)
        except BlockingIOError:
            continue  # its writer lives
        finally:
            os.close(descriptor)


def _relative(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.{kind}-{os.getpid()}-w{next(_numbers)}")


def _relatives(path: Path, kind: str) -> list[Path]:
    """What `_relative` may have named, by any process. Strict, because these are removed: `run.tmp-2026-11` is somebody's own."""
    pattern = re.compile(re.escape(path.name) + rf"\.{kind}-\d+-w\d+")
    return sorted(path.with_name(name) for name in os.listdir(path.parent) if pattern.fullmatch(name))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _write_all(descriptor: int, data: bytes) -> None:
    """Writes all of `data`: a write may take only part of it, and one that is not repeated leaves a truncated file that looks saved."""
    rest = memoryview(data)
    while rest:
        written = os.write(descriptor, rest)
        if written == 0:
            raise OSError(errno.ENOSPC, "the file took no more bytes")
        rest = rest[written:]


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder, topdown=False):
        for name in sorted(names):
            descriptor = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _fsync_folder(Path(parent))


def _confirm(path: Path) -> None:
    """Makes a rename durable."""
    try:
        _fsync_folder(path.parent)
    except OSError as error:
        raise SaveError(f"{path} is written, but the disk did not confirm it ({error.strerror}); check the disk and save again.") from error


def _move_folder(temporary: Path, path: Path) -> Path | None:
    """Puts a finished folder in its place; gives where the one that stood there is now."""
    try:
        os.rename(temporary, path)  # onto nothing, or onto an empty folder
        return None
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if _exchange(temporary, path):
            return temporary
        replaced = _relative(path, "replaced")
        os.rename(path, replaced)
        try:
            os.rename(temporary, path)
        except BaseException:
            os.rename(replaced, path)
            raise
        return replaced


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    rename_exchange, at_working_folder = 2, -100
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:  # a C library older than 2018
        return False
    if function(at_working_folder, os.fsencode(one), at_working_folder, os.fsencode(other), rename_exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(one))


# Manifest -------------------------------------------------------------------------------------------------------------------------------


def write_manifest(folder: Path) -> None:
    """Writes `manifest.json`: size and sha256 of every other file in the folder. Call it last inside an `atomic_folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_NAME)
    entries = {path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)} for path in files}
    (folder / MANIFEST_NAME).write_text(json.dumps({"files": entries}, indent=1) + "\n", encoding="utf-8")


def verify_manifest(folder: Path) -> None:
    """Checks that a folder holds exactly the files of its manifest, unchanged.

    Raises:
        CheckpointError: names every file that is missing, changed or left over.
    """
    try:
        content = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        expected = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in content["files"].items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no {MANIFEST_NAME}, so it is unfinished or not ours; fetch or save it again.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / MANIFEST_NAME} cannot be read ({error}); fetch or save the folder again.") from error
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    found.pop(MANIFEST_NAME)  # only names found in the folder are opened, so a manifest cannot lead out of it
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not in the manifest" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        size, digest = expected[name]
        if not found[name].is_file():
            problems.append(f"{name} is not a regular file")
        elif found[name].stat().st_size != size:
            problems.append(f"{name} has {found[name].stat().st_size:,} bytes instead of {size:,}")
        elif _sha256(found[name]) != digest:
            problems.append(f"{name} has another sha256")
    if problems:
        raise CheckpointError(f"{folder} does not match its manifest: {'; '.join(sorted(problems))}. Fetch or save it again.")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Append log -----------------------------------------------------------------------------------------------------------------------------


class Journal:
    """An append log of JSON values with one writer. Each line is the CRC-32 of the JSON text in hexadecimal, a space, the text.

        with Journal(path) as journal:
            done = {record["id"] for record in journal}
            journal.append({"id": "a", "answer": "..."})

    Opening it cuts off a last record that a crash tore (`torn_bytes` says how much). A broken record with good ones after it is not a torn
    tail but a damaged file, and is refused.

    Args:
        sync: `always` makes each record durable before `append` returns; `manual` leaves that to `sync()` and `close()`.

    Raises:
        Locked: another process (or another Journal of this one) has it open.
        DataError: the file is no journal, or damaged before its end.
        SaveError: it cannot be opened or written.
    """

    _HEAD = b"vistune journal 1\n"

    def __init__(self, path: Path, *, sync: Literal["always", "manual"] = "always"):
        self.path = path
        self.torn_bytes = 0
        self._sync_always = sync == "always"
        self._broken = False
        self._room_until = 0
        self._mutex = threading.Lock()
        with _saving(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                self._open()
            except BaseException:
                os.close(self._descriptor)
                raise

    def _open(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Locked(f"{self.path} is being written by another process; wait for it or choose another file.") from error
        size = os.fstat(self._descriptor).st_size
        with open(self.path, "rb") as file:
            head = file.readline(len(self._HEAD))
            if head != self._HEAD and not (self._HEAD.startswith(head) and len(head) == size):
                raise DataError(f"{self.path} is not a journal of vistune (it begins with {head!r}); choose another file.")
            self._end = len(head) if head == self._HEAD else 0
            torn_at = None
            for line in file:
                if torn_at is None and _record_of(line) is not None:
                    self._end += len(line)
                elif torn_at is None:
                    torn_at = self._end
                elif _record_of(line) is not None:
                    raise DataError(
                        f"{self.path} is damaged at byte {torn_at:,}, with good records after it; restore it from a copy, or "
                        f"cut it there with truncate -s {torn_at} to go on with the records before."
                    )
        self.torn_bytes = size - self._end
        if self.torn_bytes:
            os.ftruncate(self._descriptor, self._end)
        if self._end == 0:
            self._append(self._HEAD)
        if self.torn_bytes or size == 0:
            os.fsync(self._descriptor)
            _fsync_folder(self.path.parent)

    def __iter__(self) -> Iterator[Any]:
        """The records that were there when the iteration began."""
        return (record for _, record in self.items())

    def items(self) -> Iterator[tuple[int, Any]]:
        """(position, record) of the records that were there when the iteration began."""
        end = self._end
        with open(self.path, "rb") as file:
            position = len(file.readline())
            while position < end:
                line = file.readline()
                yield position, json.loads(line[9:])
                position += len(line)

    def read(self, position: int) -> Any:
        """The record at a position that `append` or `items` gave, so that a long log need not stay in memory."""
        with open(self.path, "rb") as file:
            file.seek(position)
            return json.loads(file.readline()[9:])

    def make_room(self, size: int) -> None:
        """Reserves the disk space for `size` more bytes, so that records that fit in cannot fail because the disk is full.

        What was not used is given back when the journal is closed.

        Raises:
            SaveError: there is no such space.
        """
        with self._mutex, _saving(self.path):
            self._check_usable()
            if self._end + size > self._room_until:
                self._room_until = max(self._room_until, self._end)  # a part may be reserved even if the whole cannot
                _reserve(self._descriptor, self._end, size)
                self._room_until = self._end + size

    def append(self, record: Any) -> int:
        """Adds one JSON value and returns its position. If it cannot be written, it is not there, and those before it are.

        Raises:
            DataError: the record is not JSON.
            SaveError: disk full or similar; after a failed fsync the journal must be opened anew.
        """
        try:
            # surrogatepass: half a surrogate pair in a reply must not cost a paid answer; json.loads reads it back.
            text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        except (TypeError, ValueError) as error:
            raise DataError(
                f"A record for {self.path} is not JSON ({error}); give it strings, finite numbers, lists and dictionaries."
            ) from error
        with self._mutex, _saving(self.path):
            position = self._end
            self._append(b"%08x %s\n" % (zlib.crc32(text), text))
            if self._sync_always:
                self._fsync()
            return position

    def sync(self) -> None:
        """Makes all records so far durable."""
        with self._mutex, _saving(self.path):
            self._fsync()

    def close(self) -> None:
        """Makes all records durable and lets others write. Closing twice does nothing."""
        with self._mutex, _saving(self.path):
            if self._descriptor >= 0:
                try:
                    if not self._broken:
                        if self._room_until:
                            os.ftruncate(self._descriptor, self._end)  # to the length it has: that frees the space behind it
                        self._fsync()
                finally:
                    os.close(self._descriptor)
                    self._descriptor = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, line: bytes) -> None:
        self._check_usable()
        try:
            _write_all(self._descriptor, line)
        except BaseException:
            try:
                os.ftruncate(self._descriptor, self._end)  # or the next record would stand behind half of this one
                self._room_until = 0
            except OSError:
                self._broken = True
            raise
        self._end += len(line)

    def _fsync(self) -> None:
        self._check_usable()
        try:
            os.fsync(self._descriptor)
        except OSError:
            # The kernel may have dropped the pages it could not write and report success next time, so it is not asked again.
            self._broken = True
            raise

    def _check_usable(self) -> None:
        if self._broken or self._descriptor < 0:
            state = "failed to reach the disk earlier" if self._broken else "is closed"
            raise SaveError(f"{self.path} {state}; open it again to go on after its last good record.")


def _reserve(descriptor: int, start: int, size: int) -> None:
    """Allocates disk space behind the end of a file without making it longer; raises OSError where there is none."""
    if sys.platform == "linux":
        keep_size = 1
        function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
        if function is not None:
            if function(descriptor, keep_size, ctypes.c_int64(start), ctypes.c_int64(size)) == 0:
                return
            code = ctypes.get_errno()
            if code not in (errno.ENOSYS, errno.EOPNOTSUPP):
                raise OSError(code, os.strerror(code))
    # Elsewhere it can only be seen whether there is space now; another process may take it.
    disk = os.fstatvfs(descriptor)
    if disk.f_bavail * disk.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _record_of(line: bytes) -> bytes | None:
    """The JSON text of a line, or None if the line is torn."""
    complete = line.endswith(b"\n") and re.match(rb"[0-9a-f]{8} ", line) is not None
    return line[9:-1] if complete and int(line[:8], 16) == zlib.crc32(line[9:-1]) else None
