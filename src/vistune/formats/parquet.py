"""Messages rows in a Parquet file, as `datasets` writes and reads it, in batches: neither reading nor writing holds the whole file.

pyarrow alone does it (the extra `data`): the features of `datasets` are a note in the file's schema, so no other package is needed here,
and `datasets.load_dataset("parquet", data_files=...)` still shows pictures as pictures.
"""

from __future__ import annotations

import json
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


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file as JSON-like objects, without the keys that Arrow filled with None.

    Raises DataError where the file cannot be read (further).
    """
    parquet = optional_import("pyarrow.parquet", extra="data")
    arrow = optional_import("pyarrow", extra="data")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=32):
                for row in batch.to_pylist():
                    yield {name: _without_none(value) for name, value in row.items() if value is not None}
                    number += 1
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet after row {number} ({error}). Was it written or downloaded completely?"
        ) from error


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
