"""The accepted rows of a data file as records, each read when it is asked for. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from vistune.formats import Place, RowFile

Named = TypeVar("Named")
Record = TypeVar("Record")

_KEPT = 64
"""Records kept: a record is asked for several times while it is prepared, and by several threads."""


class Records(Generic[Named, Record]):
    """Records by their place in a list of accepted rows. May be used by several threads at once.

    Args:
        table: the rows and where they lie, [n] of `validate.ROW`.
        read: (row number, raw row) → what the row says; no picture is opened.
        fill: what the row says → the record, with pictures that lie elsewhere fetched.
    """

    def __init__(self, file: RowFile, table: NDArray[np.void], read: Callable[[int, Any], Named], fill: Callable[[Named], Record]):
        self.table = table
        self._file, self._read, self._fill = file, read, fill
        self._record = lru_cache(_KEPT)(lambda place: fill(self.named(place)))

    def __len__(self) -> int:
        return len(self.table)

    def named(self, place: int) -> Named:
        """What the row at a place says. Raises IndexError where there is none, and DataError where the file is not as it was checked."""
        if not 0 <= place < len(self):
            raise IndexError(f"place {place} of {len(self)} rows")
        entry = self.table[place]
        return self._read(int(entry["row"]), self._file.row(Place(int(entry["start"]), int(entry["extent"]), int(entry["crc"]))))

    def all_named(self) -> Iterator[Named]:
        return (self.named(place) for place in range(len(self)))

    def __getitem__(self, place: int) -> Record:
        """The record at a place, with the errors of `named` and those of its pictures."""
        return self._record(place)

    def only(self, table: NDArray[np.void]) -> Records[Named, Record]:
        """The records of this part of the rows."""
        return Records(self._file, table, self._read, self._fill)
