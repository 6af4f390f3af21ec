"""Decides once, before training, which rows can be used: a fixed list, with a reason for each row that is left out.

The trainer sees exactly the accepted rows and never replaces one by another. The manifest also holds where each row lies and what it costs,
so that later rooms need neither parse nor tokenise to plan, and a digest that a resumed run is compared with. Rows stream by: of each
accepted one, 34 bytes are kept.

    data.json    what was left out and why, for people too, and what the outcome depends on
    data.npy     the accepted rows, as a table that is mapped and not loaded
"""

from __future__ import annotations

import hashlib
import io
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from vistune.errors import ContextLengthError, DataError, EmptyAnswerError, EmptyMaskError, ImageCountError, ImageError
from vistune.formats import Place
from vistune.journal import atomic_write
from vistune.types import InstructionExample

Row = TypeVar("Row")

ROW = np.dtype(
    [("row", "<i8"), ("start", "<i8"), ("extent", "<u4"), ("crc", "<u4"), ("tokens", "<i4"), ("images", "<u2"), ("words", "<i4")]
)
"""An accepted row: its number and place in the file, and what was measured of it."""


class Measured(NamedTuple):
    """What an accepted row costs. `words` is the official trainer's estimate of its length (see `data/grouping.py`)."""

    tokens: int
    images: int = 0
    words: int = 0


@dataclass(frozen=True)
class Rejection:
    """A row that cannot be used. `reason` is one of a few fixed codes, fit for counting; `message` says what to do."""

    row: int
    reason: str
    message: str


@dataclass(frozen=True, eq=False)
class Manifest:
    """The outcome of the check: the accepted rows, in the order of the file, and what was left out."""

    rows_digest: str
    """sha256 of the data file."""
    table: NDArray[np.void]
    """[accepted], of `ROW`."""
    rejected: tuple[Rejection, ...]
    settings_digest: str = ""
    """What the check depended on besides the rows: while it is the same, the check need not be done again."""
    stamp: tuple[int, int] = (0, 0)
    """Size and time of the file when it was checked: while they are the same, it need not be read to know that it is. (Each row that is
    read is compared with its CRC in any case.)"""
    held_out: dict[str, list[int]] = field(default_factory=dict)
    """Places in `table` of the rows held out for validation, by what they were chosen by."""

    @property
    def accepted(self) -> tuple[int, ...]:
        """The numbers of the accepted rows."""
        return tuple(self.table["row"].tolist())

    @property
    def lengths(self) -> tuple[int, ...]:
        """The tokens of the accepted rows."""
        return tuple(self.table["tokens"].tolist())

    @property
    def digest(self) -> str:
        """Changes with the rows, with which of them are used, and with how they are tokenised."""
        digest = hashlib.sha256(self.rows_digest.encode())
        digest.update(self.table["row"].tobytes())
        digest.update(self.table["tokens"].tobytes())
        return digest.hexdigest()

    @property
    def reasons(self) -> Counter[str]:
        return Counter(rejection.reason for rejection in self.rejected)

    def write(self, path: Path) -> None:
        """Writes `path` and the table beside it. The page comes last and names the table's digest: one never passes for the other's."""
        page = {
            "rows_digest": self.rows_digest,
            "settings_digest": self.settings_digest,
            "stamp": self.stamp,
            "accepted": len(self.table),
            "rejected": [asdict(each) for each in self.rejected],
            "held_out": self.held_out,
            "table": hashlib.sha256(self.table.tobytes()).hexdigest(),
        }
        with io.BytesIO() as file:
            np.save(file, self.table, allow_pickle=False)
            atomic_write(path.with_suffix(".npy"), file.getvalue())
        atomic_write(path, json.dumps(page).encode())

    @classmethod
    def read(cls, path: Path) -> Manifest | None:
        """The manifest that `write` wrote, or None where there is none (or none of this version, or a damaged one)."""
        try:
            page: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            table = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
            if table.dtype != ROW or hashlib.sha256(table.tobytes()).hexdigest() != page["table"]:
                return None
            return cls(
                rows_digest=page["rows_digest"],
                table=table,
                rejected=tuple(Rejection(**each) for each in page["rejected"]),
                settings_digest=page["settings_digest"],
                stamp=(page["stamp"][0], page["stamp"][1]),
                held_out={key: list(places) for key, places in page["held_out"].items()},
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, EOFError):
            return None

    def still_holds(self, path: Path, settings_digest: str) -> bool:
        """Whether the check would come to the same for the data file at `path`."""
        if self.settings_digest != settings_digest:
            return False
        return self.stamp == file_stamp(path) or self.rows_digest == file_digest(path)


def file_stamp(path: Path) -> tuple[int, int]:
    """Size and time of last change, in nanoseconds."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason_of(error: Exception) -> str:
    """The fixed code of a reason to reject a row."""
    match error:
        case ImageError():
            return f"image_{error.reason}"
        case ImageCountError():
            return "image_count"
        case EmptyAnswerError():
            return "empty_answer"
        case EmptyMaskError():
            return "nothing_to_learn"
        case ContextLengthError():
            return "too_long"
        case _:
            return "bad_row"


def check_rows(
    rows: Iterable[tuple[Any, Place]], read: Callable[[int, Any], Row], measure: Callable[[Row], Measured]
) -> tuple[NDArray[np.void], tuple[Rejection, ...]]:
    """Reads and measures every row as it comes by, and sorts the usable from the others.

    Args:
        rows: raw rows, each with its place (see `placed_rows`).
        read: raw row → record; raises a DataError for a row that cannot be used.
        measure: record → its cost; raises a DataError or ContextLengthError likewise (missing picture, over-long, nothing supervised).

    Returns:
        The accepted rows, [n] of `ROW`, and the rejected.
    """
    columns = [array("q") for _ in ROW.names or ()]
    rejected: list[Rejection] = []
    for number, (raw, place) in enumerate(rows):
        try:
            measured = measure(read(number, raw))
        except (DataError, ContextLengthError) as error:
            rejected.append(Rejection(number, reason_of(error), str(error)))
            continue
        for column, value in zip(columns, (number, *place, *measured), strict=True):
            column.append(value)
    table = np.zeros(len(columns[0]), ROW)
    for name, column in zip(ROW.names or (), columns, strict=True):
        table[name] = column
    return table, tuple(rejected)


def check_file_once(
    path: Path,
    rows: Iterable[tuple[Any, Place]],
    read: Callable[[int, Any], Row],
    measure: Callable[[Row], Measured],
    *,
    settings_digest: str,
    known: Manifest | None,
) -> Manifest:
    """The outcome of the check of a data file, or `known`, an earlier outcome, where file and settings are the same.

    Args:
        settings_digest: names all that `read` and `measure` depend on.

    Raises DataError where the file is changed while it is checked.
    """
    if known is not None and known.still_holds(path, settings_digest):
        return known
    stamp, digest = file_stamp(path), file_digest(path)
    table, rejected = check_rows(rows, read, measure)
    if file_stamp(path) != stamp:
        raise DataError(f"{path} was changed while its rows were checked. Start again when it is finished.")
    return Manifest(digest, table, rejected, settings_digest, stamp)


def held_out(groups: Iterable[str], rows: int, *, seed: int) -> set[int]:
    """Places of at least `rows` rows for validation, as a pure function of the rows' groups.

    Rows of one group (one picture) go together: a picture that is trained on would make the validation loss flatter than it is.
    """
    if rows <= 0:
        return set()
    # Of each group 8 bytes of its digest are kept, whatever its name; by them groups are put in a random order.
    keys = np.frombuffer(b"".join(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8] for group in groups), ">u8")
    order = np.argsort(keys, kind="stable")
    if rows < len(order):
        last = keys[order[rows - 1]]
        order = order[: np.searchsorted(keys[order], last, side="right")]
    return set(order.tolist())


def picture_group(example: InstructionExample) -> str:
    """The group of a row for `held_out`: its first picture, or the row itself."""
    images = example.conversation.images
    source = images[0].source if images else example.id
    return hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else str(source)


def explain_rejections(manifest: Manifest, path: Path, *, shown: int = 5) -> str:
    """A paragraph about what was left out and why, for the error or warning before training."""
    total = len(manifest.accepted) + len(manifest.rejected)
    counts = ", ".join(f"{count} {reason}" for reason, count in manifest.reasons.most_common())
    first = " ".join(rejection.message for rejection in manifest.rejected[:shown])
    return f"{len(manifest.rejected)} of {total} rows of {path} cannot be used ({counts}). {first}"
