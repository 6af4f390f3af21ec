"""Reads benchmarks' official files, strictly: JSON, JSON lines, tab-separated tables, parquet shards, and the pictures in or beside them.

Whatever is not as the benchmark's authors publish it is a `DataError` that names the file, the place in it, what was found and what was
expected: a question that is left out in silence would change the denominator of the score. Loaders take `check_counts=True` for the
number of questions that the published file has, as the scorers do; a part of a benchmark is asked with `--limit`.

Nothing here knows a benchmark.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vistune.errors import DataError, ImageError, optional_import
from vistune.media import image_size
from vistune.types import ImagePart

T = TypeVar("T")
SEE_LAYOUT = "`vistune eval --list` shows which files belong where."

_KINDS: dict[type | tuple[type, ...], str] = {
    str: "text",
    int: "a whole number",
    (int, float): "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


@dataclass(frozen=True)
class Row:
    """One record of an official file. `where` is the file and the place in it, for messages."""

    values: Mapping[str, Any]
    where: str

    def text(self, key: str) -> str:
        """Text, as it stands; it may be empty."""
        return self._typed(key, str)

    def name(self, key: str) -> str:
        """An identifier: text that is not empty, or a whole number, as text."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise self.wrong(key, "an id (text or a whole number)")
        return str(value)

    def integer(self, key: str) -> int:
        return self._typed(key, int)

    def number(self, key: str) -> float:
        return float(self._typed(key, (int, float)))

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        value = self._typed(key, list)
        if not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of texts")
        return tuple(value)

    def mapping(self, key: str) -> dict[str, Any]:
        """An object."""
        return self._typed(key, dict)

    def choice(self, key: str, allowed: Sequence[str]) -> str:
        """Text that is one of `allowed`."""
        value = self.get(key)
        if not isinstance(value, str) or value not in allowed:
            raise self.wrong(key, f"one of {', '.join(allowed)}")
        return value

    def index(self, key: str, length: int) -> int:
        """A whole number from 0 to `length` - 1."""
        value = self.integer(key)
        if not 0 <= value < length:
            raise self.wrong(key, f"the index of one of {length} choices")
        return value

    def get(self, key: str) -> Any:
        """Any value. Raises DataError where the record has no such field, with those that it has."""
        try:
            return self.values[key]
        except KeyError:
            found = ", ".join(sorted(map(str, self.values))[:12]) or "nothing"
            raise self.error(f"there is no {key!r}; found {found}") from None

    def wrong(self, key: str, expected: str) -> DataError:
        """The error to raise for a value that is not what it must be."""
        return self.error(f"{key!r} must be {expected}, not {str(self.values.get(key))[:60]!r}")

    def error(self, complaint: str) -> DataError:
        return DataError(f"{self.where}: {complaint}. Get the file again, or check that it is the benchmark's own.")

    def _typed(self, key: str, kind: type[T] | tuple[type, ...]) -> Any:
        value = self.get(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(key, _KINDS[kind])
        return value


# --- files to rows -----------------------------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark. Raises DataError where it is missing, unreadable or not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} is missing. {SEE_LAYOUT}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); get the file again.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); a file is expected there. {SEE_LAYOUT}") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises DataError for what is no JSON, for NaN and for a name that an object has twice."""
    return _parse(read_text(path), str(path))


def json_rows(path: Path, key: str | None = None) -> list[Row]:
    """The objects of a JSON array; with `key` those of the array under that name of the file's object."""
    document, where = read_json(path), str(path)
    if key is not None:
        document, where = Row(_object(document, where), where).get(key), f"{path}, {key!r}"
    if not isinstance(document, list):
        raise DataError(f"{where} must be a list of objects, not {_kind_of(document)}. {SEE_LAYOUT}")
    return [Row(_object(item, at), at) for number, item in enumerate(document, 1) for at in (f"{where}, item {number}",)]


def keyed_rows(path: Path, key: str | None = None) -> dict[str, Row]:
    """The objects in an object by their names, in file order; with `key` those of the object under that name."""
    document, where = read_json(path), str(path)
    if key is not None:
        document, where = Row(_object(document, where), where).get(key), f"{path}, {key!r}"
    return {name: Row(_object(item, at), at) for name, item in _object(document, where).items() for at in (f"{where}, {name!r}",)}


def jsonl_rows(path: Path) -> list[Row]:
    """The objects of a file with one a line. Lines that are blank are passed over."""
    lines = read_text(path).split("\n")  # not `splitlines`: U+2028 may stand in a JSON text
    places = [(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    return [Row(_object(_parse(line, where), where), where) for line, where in places]


# What pandas, with which the official scripts read tables, takes for an empty cell.
_EMPTY_CELLS = frozenset([
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None",
    "n/a", "nan", "null",
])  # fmt: skip
_csv_limit = threading.Lock()


def tsv_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a tab-separated table with a header, cells as text, and None where pandas reads a missing value ("", "N/A", "None", ...).

    Raises:
        DataError: a column of `columns` is not there, a row has another number of cells, or a quotation has no end.
    """
    lines = io.StringIO(read_text(path), newline="")
    with _csv_limit:  # pictures in base64 are longer than the limit, which is the whole program's
        before = csv.field_size_limit(2**30)
        try:
            return list(_table(csv.reader(lines, dialect="excel-tab", strict=True), path, columns))
        except csv.Error as error:
            raise DataError(f"{path} is no table of tab-separated values ({error}); get the file again.") from None
        finally:
            csv.field_size_limit(before)


def _table(reader: Any, path: Path, columns: Sequence[str]) -> Iterator[Row]:
    header = next(reader, [])
    lacking = [column for column in columns if column not in header]
    if lacking:
        raise DataError(f"{path} has no column {lacking[0]!r}; found {', '.join(header)[:200] or 'nothing'}. {SEE_LAYOUT}")
    for cells in reader:
        where = f"{path}, line {reader.line_num}"
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells, but the header has {len(header)}. Get the file again.")
        yield Row({name: None if cell in _EMPTY_CELLS else cell for name, cell in zip(header, cells, strict=True)}, where)


_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?\.parquet$")


def parquet_rows(folder: Path, split: str, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a split's shards, `<split>-00000-of-00003.parquet` and so on, in order; only `columns` are read.

    Raises:
        DataError: no shard, one missing, a column missing, or a file that is no parquet.
        MissingDependency: without pyarrow.
    """
    parquet = optional_import("pyarrow.parquet", extra="data")
    arrow = optional_import("pyarrow", extra="data")
    for shard in _shards(folder, split):
        try:
            with parquet.ParquetFile(shard) as file:
                lacking = [column for column in columns if column not in file.schema_arrow.names]
                if lacking:
                    raise DataError(f"{shard} has no column {lacking[0]!r}; found {', '.join(file.schema_arrow.names)[:200]}. {SEE_LAYOUT}")
                rows = (row for batch in file.iter_batches(batch_size=64, columns=list(columns)) for row in batch.to_pylist())
                yield from (Row(row, f"{shard}, row {number}") for number, row in enumerate(rows, 1))
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"{shard} is not a readable parquet file ({str(error)[:120]}); get the file again.") from None


def _shards(folder: Path, split: str) -> list[Path]:
    shards = sorted(folder.glob(f"{split}-*.parquet"))
    numbers = [match.groups() for shard in shards if (match := _SHARD.search(shard.name))]
    expected = int(numbers[0][1]) if numbers else 1
    if not shards or len(numbers) != len(shards) or [int(number) for number, _ in numbers] != list(range(expected)):
        found = ", ".join(shard.name for shard in shards[:6]) or "none"
        wanted = f"{split}-00000-of-{expected:05d}.parquet to {expected - 1:05d}" if numbers else f"{split}-00000-of-00001.parquet or more"
        raise DataError(f"{folder} must hold every shard {wanted}, each once; found {found}. {SEE_LAYOUT}")
    return shards


def _parse(text: str, where: str) -> Any:
    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{where}: {repeated[:60]!r} is there twice in one object, and which of the two counts would be a guess.")
        return found

    def no_constant(constant: str) -> Any:
        raise DataError(f"{where} holds the value {constant}, which is not JSON.")

    try:
        return json.loads(text, object_pairs_hook=without_repeats, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if "\n" in text else ""
        raise DataError(f"{where} is not JSON ({place}column {error.colno}: {error.msg}); get the file again.") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, absurd nesting
        raise DataError(f"{where} is not readable as JSON ({str(error)[:120]}).") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where} must be an object, not {_kind_of(value)}. {SEE_LAYOUT}")
    return value


def _kind_of(value: object) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), f"a {type(value).__name__}")


# --- pictures ----------------------------------------------------------------------------------------------------------------------------


class Pictures:
    """The pictures in a folder. The folder may be a symbolic link; what is in it may not lead out of it.

    Raises:
        DataError: there is no such folder.
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise DataError(f"{folder} is missing, the folder with the pictures. {SEE_LAYOUT}")
        self._folder, self._root = folder, Path(os.path.realpath(folder))
        self._found: dict[str, ImagePart] = {}

    def __contains__(self, name: str) -> bool:
        """Whether there is such a file, for benchmarks whose files go by several endings."""
        return (self._root / name).is_file()

    def part(self, name: str, row: Row) -> ImagePart:
        """The picture called `name`, which `row` names. Looked up, not opened.

        Raises:
            ImageError: it is not there (`missing`), or the name leads out of the folder (`outside_root`).
        """
        if name not in self._found:
            self._found[name] = ImagePart(self._path(name, row))
        return self._found[name]

    def _path(self, name: str, row: Row) -> Path:
        shown = repr(name[:200])
        try:
            path = Path(os.path.realpath(self._root / name))
            found = bool(name) and path.is_file()
        except (OSError, ValueError):  # longer than a name can be, a NUL byte, a lone surrogate
            raise ImageError("bad_path", f"{row.where}: {shown} cannot be the name of a picture.") from None
        if Path(name).is_absolute() or ".." in Path(name).parts or not path.is_relative_to(self._root):
            raise ImageError(
                "outside_root", f"{row.where}: the picture {shown} would be outside {self._folder}; only files in it are opened."
            )
        if not found:
            raise ImageError("missing", f"{row.where}: there is no picture {shown} in {self._folder}. {SEE_LAYOUT}")
        return path


class EmbeddedPictures:
    """Pictures that stand in the rows themselves. Equal ones are kept once, and the header of each is looked at."""

    def __init__(self):
        self._parts: dict[bytes, ImagePart] = {}

    def from_base64(self, row: Row, key: str) -> ImagePart:
        """Raises ImageError for what is not base64 of a picture within the limits of `vistune.media`."""
        text = row.text(key)
        try:
            data = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ImageError("data_url", f"{row.where}: {key!r} is not base64 ({error}); get the file again.") from None
        return self._part(data, row, key)

    def from_parquet(self, row: Row, key: str) -> ImagePart:
        """A picture column as `datasets` writes it: an object with `bytes`. Raises DataError for another one."""
        value = row.get(key)
        data = value.get("bytes") if isinstance(value, Mapping) else None
        if not isinstance(data, bytes):
            raise row.error(f"{key!r} must hold a picture (an object with `bytes`)")
        return self._part(data, row, key)

    def _part(self, data: bytes, row: Row, key: str) -> ImagePart:
        if data not in self._parts:
            try:
                image_size(data)
            except ImageError as error:
                raise ImageError(error.reason, f"{row.where}, {key!r}: {error}") from None
            self._parts[data] = ImagePart(data)
        return self._parts[data]


# --- checks ------------------------------------------------------------------------------------------------------------------------------


def unique(rows: Iterable[Row], identify: Callable[[Row], str]) -> dict[str, Row]:
    """The rows by what `identify` makes of each. Raises DataError for a name that comes twice."""
    found: dict[str, Row] = {}
    for row in rows:
        name = identify(row)
        if name in found:
            raise DataError(f"{row.where}: {name[:80]!r} was there before, in {found[name].where}; every question is asked once.")
        found[name] = row
    return found


def require_count(found: int, expected: int, what: str) -> None:
    """Raises DataError unless there are as many as the benchmark has. `what` names the file and the things: "test.json: questions"."""
    if found != expected:
        raise DataError(
            f"{what}: {found}, but the benchmark has {expected}. A score on other questions is not comparable; get the file again "
            "(a part of a benchmark is asked with --limit)."
        )
