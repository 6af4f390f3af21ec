"""Reading the small files of a checkpoint folder: what may be opened, how large it may be, and JSON without surprises.

A folder may come from anyone. Nothing outside it is opened, sizes are looked at before reading, and JSON that says two things about one
name is refused instead of letting the last one win.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vistune.errors import CheckpointError

MAX_CONFIG_BYTES = 4 << 20
MAX_INDEX_BYTES = 64 << 20
MAX_TOKENIZER_BYTES = 96 << 20

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")


def contained_file(folder: Path, name: str) -> Path:
    """The path of a regular file directly inside `folder`.

    Raises CheckpointError for a name with a directory in it and for a link that leads out of the folder. The hub's own cache keeps the
    bytes in `blobs/` beside `snapshots/<revision>/`; links from a snapshot into the blobs of the same model are what it is made of.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise CheckpointError(f"{folder} refers to a file called {name!r}; a checkpoint's files have plain names and lie in its folder.")
    path = folder / name
    root = folder.resolve()
    allowed = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    try:
        resolved = path.resolve(strict=True)
        regular = stat.S_ISREG(resolved.stat().st_mode)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} is missing or cannot be opened ({error}); fetch the checkpoint again.") from error
    if resolved.parent not in allowed:
        raise CheckpointError(f"{path} is a link to {resolved}, outside the checkpoint; copy the file into the folder.")
    if not regular:
        raise CheckpointError(f"{path} is not a regular file.")
    return resolved


def folder_digest(folder: Path) -> str:
    """sha256 over the names and contents of a checkpoint folder's files: who was measured. Its card (.md) is not part of the model."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix != ".md" and not path.name.startswith("."):
            with open(path, "rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def has_file(folder: Path, name: str) -> bool:
    """Whether the folder has an entry of this name (of whatever kind: `contained_file` decides whether it may be opened)."""
    return (folder / name).is_symlink() or (folder / name).exists()


def read_json(folder: Path, name: str, *, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """A JSON object from a file of the folder. Raises CheckpointError for anything else, for repeated names, NaN and absurd nesting."""
    path = contained_file(folder, name)
    size = path.stat().st_size
    if size > max_bytes:
        raise CheckpointError(f"{folder / name} has {size} bytes; at most {max_bytes} are read. It is not what its name says.")
    return parse_json(path.read_bytes(), where=str(folder / name))


def parse_json(data: bytes, *, where: str) -> dict[str, Any]:
    """A JSON object from bytes, strictly; `where` names it in errors."""

    def object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{where} has the name {repeated!r} twice in one object; which one counts would be a guess.")
        return result

    def no_constant(constant: str) -> Any:
        raise CheckpointError(f"{where} holds the value {constant}, which is not JSON.")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=object_without_repeats, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not readable as JSON ({str(error)[:200]}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} holds a {type(value).__name__} where a JSON object is expected.")
    return value


class Fields:
    """Typed access to a JSON object: a field of the wrong type or outside its bounds is an error that names file, field and value."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self._values, self._where = values, where

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def integer(self, name: str, default: int | None = None, *, low: int = 0, high: int = 1 << 31) -> int:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(name, value, f"an integer from {low} to {high}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
            raise self._wrong(name, value, "a number")
        return float(value)

    def boolean(self, name: str, default: bool | None = None) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str) or len(value) > 4096:
            raise self._wrong(name, value, "a short text")
        return value

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str:
        value = self._get(name, default)
        if value not in choices:
            raise self._wrong(name, value, "one of " + ", ".join(repr(choice) for choice in choices))
        return value

    def numbers(self, name: str, count: int, default: Sequence[float] | None = None) -> tuple[float, ...]:
        value = self._get(name, default)
        good = isinstance(value, (list, tuple)) and len(value) == count
        if not good or any(isinstance(each, bool) or not isinstance(each, (int, float)) or not abs(each) < 1e6 for each in value):
            raise self._wrong(name, value, f"{count} numbers")
        return tuple(float(each) for each in value)

    def object(self, name: str, default: Mapping[str, Any] | None = None) -> dict[str, Any]:
        value = self._get(name, default)
        if not isinstance(value, dict):
            raise self._wrong(name, value, "a JSON object")
        return dict(value)

    def sizes(self, name: str, default: Sequence[Sequence[int]] = ()) -> tuple[tuple[int, int], ...]:
        """Pairs of positive integers; at most 256 of them (AnyRes candidates)."""
        value = self._get(name, default)
        pairs = list(value) if isinstance(value, (list, tuple)) else None
        if pairs is None or len(pairs) > 256:
            raise self._wrong(name, value, "a list of [a, b] pairs")
        for pair in pairs:
            if (
                not isinstance(pair, (list, tuple))
                or len(pair) != 2
                or any(type(side) is not int or not 0 < side < 1 << 16 for side in pair)
            ):
                raise self._wrong(name, pair, "a list of [a, b] pairs of positive integers")
        return tuple((pair[0], pair[1]) for pair in pairs)

    def _get(self, name: str, default: Any) -> Any:
        value = self._values.get(name)
        if value is None:
            if default is None:
                raise CheckpointError(f"{self._where} has no {name!r}; it is needed to build the model.")
            return default
        return value

    def _wrong(self, name: str, value: Any, expected: str) -> CheckpointError:
        return CheckpointError(f"{self._where}: {name} is {str(value)[:80]!r}; expected {expected}.")
