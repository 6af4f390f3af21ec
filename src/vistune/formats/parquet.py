"""Messages rows in a Parquet file, as `datasets` writes and reads it, in batches: neither reading nor writing holds the whole file.

pyarrow alone does it (the extra `data`): the features of `datasets` are a note in the file's schema, so no other package is needed here,
and `datasets.load_dataset("parquet", data_files=...)` still shows pictures as pictures.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vistune.errors import DataError, optional_import

BATCH_ROWS = 512
BATCH_BYTES = 32 * 2**20
"""A group of rows is written once it has so many rows or bytes of pictures: what a reader must hold at least."""

_TEXT = {"dtype": "string", "_type": "Value"}
_FEATURES = {
    # Lists in the old spelling: `datasets` from version 2 to 5 understands it.
    "id": _TEXT,
    "kind": _TEXT,
    "images": [{"_type": "Image"}],
    "messages": [{"role": _TEXT, "content": [{"type": _TEXT, "text": _TEXT}]}],
    "provenance": _TEXT,
}


GROUPS_BYTES = 256 * 2**20
"""What `ParquetGroups` keeps of the groups that it has read."""


def parquet_rows(path: Path) -> Iterator[tuple[dict[str, Any], int, int]]:
    """The rows of a Parquet file as JSON-like objects, without the keys that Arrow filled with None; each with its group and place in it.

    Raises DataError where the file cannot be read (further).
    """
    parquet = optional_import("pyarrow.parquet", extra="data")
    rows = 0
    with _broken_file_named(path, lambda: f"after row {rows}"), parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            number = 0
            for batch in file.iter_batches(batch_size=32, row_groups=[group]):
                for row in batch.to_pylist():
                    yield _json_like(row), group, number
                    number += 1
                    rows += 1


class ParquetGroups:
    """The rows of a Parquet file by group and place in it. A group is read as a whole, and kept while there is room; fit for threads."""

    def __init__(self, path: Path):
        self._path = path
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        parquet = optional_import("pyarrow.parquet", extra="data")
        with _broken_file_named(path, lambda: "at all"):
            self._file = parquet.ParquetFile(path)

    def close(self) -> None:
        self._file.close()

    def row(self, group: int, number: int) -> dict[str, Any]:
        """One row. Raises DataError where there is none or the file is broken."""
        with _broken_file_named(self._path, lambda: f"in its group {group}"):
            with self._lock:
                table = self._group(group)
            if number >= table.num_rows:
                raise DataError(
                    f"{self._path} has {table.num_rows} rows in group {group}, and no row {number} in it; was the file changed?"
                )
            return _json_like(table.slice(number, 1).to_pylist()[0])

    def _group(self, group: int) -> Any:
        if group in self._groups:
            self._groups.move_to_end(group)
            return self._groups[group]
        if group >= self._file.num_row_groups:
            raise DataError(f"{self._path} has {self._file.num_row_groups} groups of rows, and no group {group}; was the file changed?")
        self._groups[group] = self._file.read_row_group(group)
        while len(self._groups) > 1 and sum(table.nbytes for table in self._groups.values()) > GROUPS_BYTES:
            self._groups.popitem(last=False)
        return self._groups[group]


@contextmanager
def _broken_file_named(path: Path, where: Callable[[], str]) -> Iterator[None]:
    arrow = optional_import("pyarrow", extra="data")
    try:
        yield
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Parquet {where()} ({error}). Was it written or downloaded completely?") from error


def _json_like(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _without_none(value) for name, value in row.items() if value is not None}


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(each) for name, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list) else value


@contextmanager
def parquet_writer(file: BinaryIO) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Writes rows of `example_to_messages` one by one; the file is complete when the block ends."""
    arrow = optional_import("pyarrow", extra="data")
    parquet = optional_import("pyarrow.parquet", extra="data")
    schema = arrow.schema(
        [
            ("id", arrow.string()),
            ("kind", arrow.string()),
            ("images", arrow.list_(arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())]))),
            (
                "messages",
                arrow.list_(
                    arrow.struct(
                        [
                            ("role", arrow.string()),
                            ("content", arrow.list_(arrow.struct([("type", arrow.string()), ("text", arrow.string())]))),
                        ]
                    )
                ),
            ),
            ("provenance", arrow.string()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
    )
    waiting: list[dict[str, Any]] = []
    waiting_bytes = 0

    def flush() -> None:
        nonlocal waiting_bytes
        try:
            table = arrow.Table.from_pylist(waiting, schema=schema)
        except (arrow.ArrowException, UnicodeEncodeError) as error:
            names = f"{waiting[0]['id']!r} to {waiting[-1]['id']!r}"
            raise DataError(f"Parquet cannot hold one of the rows {names} ({error}); is a file name no Unicode text?") from error
        writer.write_table(table)
        waiting.clear()
        waiting_bytes = 0

    def write(row: dict[str, Any]) -> None:
        nonlocal waiting_bytes
        waiting.append(row)
        waiting_bytes += sum(len(image["bytes"] or b"") for image in row["images"])
        if len(waiting) >= BATCH_ROWS or waiting_bytes >= BATCH_BYTES:
            flush()

    with parquet.ParquetWriter(file, schema) as writer:
        yield write
        if waiting:
            flush()
