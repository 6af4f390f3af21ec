"""Rows of a data file in any order, each read from its place when it is asked for: a file may be larger than memory."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

from vistune.errors import DataError
from vistune.formats.files import Place
from vistune.formats.parquet import ParquetGroups


class RowFile:
    """The rows of a `.json`, `.jsonl` or `.parquet` file by the places that `placed_rows` gave. May be used by several threads at once.

    Raises DataError for a file that cannot be opened.
    """

    def __init__(self, path: Path):
        self.path = path
        self._groups = ParquetGroups(path) if path.suffix == ".parquet" else None
        self._descriptor = -1
        if self._groups is None:
            try:
                self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise DataError(f"{path} cannot be opened ({error.strerror}).") from error

    def close(self) -> None:
        if self._groups is not None:
            self._groups.close()
        elif self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:  # a run holds its rows as long as it lasts, and nobody knows better than the last reference when that is
        if hasattr(self, "_groups"):
            self.close()

    def row(self, place: Place) -> Any:
        """The raw row at a place. Raises DataError where other bytes lie there now than when the place was noted."""
        if self._groups is not None:
            return self._groups.row(place.start, place.extent)
        try:
            data = os.pread(self._descriptor, place.extent, place.start)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read at byte {place.start} ({error.strerror}).") from error
        if len(data) != place.extent or zlib.crc32(data) != place.crc:
            raise DataError(
                f"{self.path} holds other bytes at {place.start} than when its rows were checked. Was it changed since? Start again, and "
                "its rows are checked anew."
            )
        return json.loads(data)
