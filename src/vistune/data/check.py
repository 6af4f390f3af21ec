"""`vistune data check`: every row of a data file and every picture in it, once, as they stream by.

A row is usable or rejected, with one of the reasons that training counts too (`data/validate.py`); remarks are about rows that can be used
but are worth a look. In memory stay a digest of each row and the names of pictures seen, about 150 bytes a row, and what is reported. No
torch here: what a model makes of a row is measured by a function that the caller brings.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from vistune.data.pictures import absolute_folder
from vistune.data.shards import PictureShards, tars_at
from vistune.data.stats import Spread
from vistune.data.validate import Rejection, reason_of
from vistune.errors import ContextLengthError, DataError, ImageError
from vistune.formats import example_from_row, format_of, json_text, read_rows, spells_mark
from vistune.journal import atomic_file
from vistune.media import image_size, open_image
from vistune.types import ImageSource, InstructionExample, TextPart

PictureCheck = Literal["decode", "header", "none"]
"""How closely pictures are looked at: every pixel, size and format (ten times faster; a file cut short passes), or not at all."""

_SHOWN_PER_REMARK = 1000


@dataclass(frozen=True)
class Remark:
    """Something worth knowing about a usable row. `kind` is duplicate_row, duplicate_id or spells_mark."""

    row: int
    kind: str
    message: str


@dataclass
class CheckReport:
    """What was found, for `data check` to print. `remarks` holds the first 1,000 of each kind; `remark_counts` counts all."""

    formats: Counter[str] = field(default_factory=Counter)
    usable: int = 0
    rejected: list[Rejection] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    remark_counts: Counter[str] = field(default_factory=Counter)
    tokens: Spread = field(default_factory=Spread)

    @property
    def reasons(self) -> Counter[str]:
        return Counter(rejection.reason for rejection in self.rejected)

    def as_json(self) -> dict[str, Any]:
        return {
            "formats": dict(self.formats),
            "usable": self.usable,
            "rejected": [asdict(rejection) for rejection in self.rejected],
            "remarks": [asdict(remark) for remark in self.remarks],
            "remark_counts": dict(self.remark_counts),
            "tokens": self.tokens.as_json(),
        }


class PictureChecker:
    """Looks at each picture file once, however many rows show it. Files named below `root` may lie in `shards` instead."""

    def __init__(self, root: Path, how: PictureCheck = "decode", shards: PictureShards | None = None):
        self._root, self._how, self._shards = root, how, shards
        self._verdicts: dict[Path, ImageError | None] = {}

    def __call__(self, source: ImageSource) -> None:
        """Raises the ImageError of a picture that cannot be used."""
        if self._how == "none":
            return
        if not isinstance(source, Path):
            self._look(source)
            return
        if source not in self._verdicts:
            try:
                self._verdicts[source] = self._look(source)
            except ImageError as error:
                self._verdicts[source] = error
        if (verdict := self._verdicts[source]) is not None:
            raise ImageError(verdict.reason, str(verdict))

    def _look(self, source: ImageSource) -> None:
        if self._shards and isinstance(source, Path):
            source = self._shards.read(source)
        (open_image if self._how == "decode" else image_size)(source, root=self._root)


def check_file(
    path: Path,
    images: Path,
    *,
    pictures: PictureCheck = "decode",
    measure: Callable[[InstructionExample], int] | None = None,
    reject: Callable[[Rejection, Any], None] = lambda rejection, row: None,
) -> CheckReport:
    """Reads every row of a file of any of the formats.

    Args:
        images: the folder that picture names start from, or tars in its place (see `shards.py`); nothing outside it is opened.
        measure: record → tokens, with pictures expanded; raises DataError or ContextLengthError for what a model could not train on.
        reject: gets every row that cannot be used, as it is found.

    Raises DataError where the file itself cannot be read (further).
    """
    report = CheckReport()
    images = absolute_folder(images)
    shards = PictureShards(images) if tars_at(images) else None
    look = PictureChecker(images, pictures, shards)
    ids: dict[bytes, int] = {}
    contents: dict[bytes, int] = {}
    for number, row in enumerate(read_rows(path)):
        report.formats[format_of(row)] += 1
        try:
            example = example_from_row(row, images, row_number=number)
            for image in example.conversation.images:
                look(image.source)
            if measure is not None:
                report.tokens.add(measure(shards.filled(example) if shards else example))
        except (DataError, ContextLengthError) as error:
            rejection = Rejection(number, reason_of(error), str(error))
            report.rejected.append(rejection)
            reject(rejection, row)
            continue
        report.usable += 1
        for remark in _remarks(number, example, ids, contents):
            report.remark_counts[remark.kind] += 1
            if report.remark_counts[remark.kind] <= _SHOWN_PER_REMARK:
                report.remarks.append(remark)
    return report


def _remarks(number: int, example: InstructionExample, ids: dict[bytes, int], contents: dict[bytes, int]) -> Iterator[Remark]:
    same = contents.setdefault(content_digest(example), number)
    if same != number:
        yield Remark(number, "duplicate_row", f"row {number} (id {example.id!r}) says the same about the same pictures as row {same}")
    first = ids.setdefault(hashlib.blake2b(example.id.encode(), digest_size=16).digest(), number)
    if first != number:
        yield Remark(number, "duplicate_id", f"row {number} has the id {example.id!r} of row {first}")
    if spells_mark(example):
        yield Remark(
            number, "spells_mark", f"row {number} (id {example.id!r}) is plain text that spells <image>; LLaMA-Factory stops at it"
        )


def content_digest(example: InstructionExample) -> bytes:
    """16 bytes that are equal for rows with the same turns and pictures, whatever their ids, kinds and provenance."""
    digest = hashlib.blake2b(digest_size=16)
    for message in example.conversation.messages:
        digest.update(b"\0" + message.role.encode())
        for part in message.parts:
            if isinstance(part, TextPart):
                data, mark = part.text.encode(), b"t"
            else:
                data, mark = part.source if isinstance(part.source, bytes) else str(part.source).encode(errors="surrogatepass"), b"i"
            digest.update(b"%c%d:%b" % (mark, len(data), data))
    return digest.digest()


@contextmanager
def rejects_file(path: Path | None) -> Iterator[Callable[[Rejection, Any], None]]:
    """Gives a function that writes a rejected row with its reason as a line of JSON; with no path, one that does nothing."""
    if path is None:
        yield lambda rejection, row: None
        return
    with atomic_file(path) as file:

        def write(rejection: Rejection, row: Any) -> None:
            file.write(json_text(asdict(rejection) | {"data": without_bytes(row)}).encode() + b"\n")

        yield write


def without_bytes(value: Any) -> Any:
    """A row for a page of JSON: pictures that are bytes only counted, and what JSON has no word for as text."""
    if isinstance(value, dict):
        return {str(name): without_bytes(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_bytes(each) for each in value]
    if isinstance(value, bytes):
        return f"({len(value):,} bytes)"
    return value if value is None or isinstance(value, str | int | float) else str(value)
