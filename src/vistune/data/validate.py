"""Decides once, before training, which rows can be used: a fixed list, with a reason for each row that is left out.

The trainer sees exactly the accepted rows and never replaces one by another. The manifest also holds each row's length, so that later
rooms need not tokenise to plan, and a digest that a resumed run is compared with.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from vistune.errors import ContextLengthError, DataError, EmptyAnswerError, EmptyMaskError, ImageCountError, ImageError
from vistune.journal import atomic_write
from vistune.types import InstructionExample

Row = TypeVar("Row")


@dataclass(frozen=True)
class Rejection:
    """A row that cannot be used. `reason` is one of a few fixed codes, fit for counting; `message` says what to do."""

    row: int
    reason: str
    message: str


@dataclass(frozen=True)
class Manifest:
    """The outcome of the check: accepted row numbers, their token counts, and what was left out."""

    rows_digest: str
    accepted: tuple[int, ...]
    lengths: tuple[int, ...]
    rejected: tuple[Rejection, ...]

    settings_digest: str = ""
    """What the check depended on besides the rows: while it is the same, the check need not be done again."""

    @property
    def digest(self) -> str:
        """Changes with the rows, with which of them are used, and with how they are tokenised."""
        return hashlib.sha256(json.dumps([self.rows_digest, self.accepted, self.lengths]).encode()).hexdigest()

    @property
    def reasons(self) -> Counter[str]:
        return Counter(rejection.reason for rejection in self.rejected)

    def write(self, path: Path) -> None:
        atomic_write(path, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, path: Path) -> Manifest | None:
        """The manifest that `write` wrote, or None where there is none (or none of this version)."""
        try:
            page: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                rows_digest=page["rows_digest"],
                accepted=tuple(page["accepted"]),
                lengths=tuple(page["lengths"]),
                rejected=tuple(Rejection(**each) for each in page["rejected"]),
                settings_digest=page["settings_digest"],
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


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
    rows: Sequence[Any],
    read: Callable[[int, Any], Row],
    measure: Callable[[Row], int],
    *,
    settings_digest: str = "",
    known: Manifest | None = None,
) -> tuple[list[Row], Manifest]:
    """Reads and measures every row, and sorts the usable from the others.

    Args:
        read: raw row → record; raises a DataError for a row that cannot be used.
        measure: record → tokens; raises a DataError or ContextLengthError likewise (missing picture, over-long, nothing supervised).
        settings_digest: names all that `read` and `measure` depend on.
        known: an earlier outcome, taken over without measuring again where rows and settings are the same.

    Returns:
        The accepted records in the order of the file, and the manifest.
    """
    rows_digest = _digest_of_rows(rows)
    if known is not None and known.settings_digest == settings_digest and known.rows_digest == rows_digest:
        return [read(number, rows[number]) for number in known.accepted], known
    records: list[Row] = []
    accepted: list[int] = []
    lengths: list[int] = []
    rejected: list[Rejection] = []
    for number, raw in enumerate(rows):
        try:
            record = read(number, raw)
            length = measure(record)
        except (DataError, ContextLengthError) as error:
            rejected.append(Rejection(number, reason_of(error), str(error)))
            continue
        records.append(record)
        accepted.append(number)
        lengths.append(length)
    return records, Manifest(rows_digest, tuple(accepted), tuple(lengths), tuple(rejected), settings_digest)


def _digest_of_rows(rows: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for raw in rows:
        digest.update(json.dumps(raw, sort_keys=True, default=_digest_of_bytes).encode() + b"\n")
    return digest.hexdigest()


def _digest_of_bytes(embedded: Any) -> str:
    """What stands for an embedded picture in the digest of its row."""
    if not isinstance(embedded, bytes):
        raise DataError(f"A row of data holds a {type(embedded).__name__}; only JSON values and the bytes of pictures can be read.")
    return hashlib.sha256(embedded).hexdigest()


def held_out(groups: Sequence[str], rows: int, *, seed: int) -> set[int]:
    """Places of at least `rows` rows for validation, as a pure function of the rows' groups.

    Rows of one group (one picture) go together: a picture that is trained on would make the validation loss flatter than it is.
    """
    chosen: set[int] = set()
    members: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    for group in sorted(members, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()):
        if len(chosen) >= rows:
            break
        chosen.update(members[group])
    return chosen


def picture_group(example: InstructionExample) -> str:
    """The group of a row for `held_out`: its first picture, or the row itself."""
    images = example.conversation.images
    return str(images[0].source) if images else example.id


def explain_rejections(manifest: Manifest, path: Path, *, shown: int = 5) -> str:
    """A paragraph about what was left out and why, for the error or warning before training."""
    total = len(manifest.accepted) + len(manifest.rejected)
    counts = ", ".join(f"{count} {reason}" for reason, count in manifest.reasons.most_common())
    first = " ".join(rejection.message for rejection in manifest.rejected[:shown])
    return f"{len(manifest.rejected)} of {total} rows of {path} cannot be used ({counts}). {first}"
