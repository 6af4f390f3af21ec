"""Files of instruction data, row by row: which of the three formats a row is in, reading and writing.

Rows stream: a file of any size is read and written with the memory of one row (Parquet: of one group of rows). What comes back as an
iterator raises the DataError of a broken place when it gets there. `row_file.py` finds a row again by its place in the file.
"""

from __future__ import annotations

import codecs
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from vistune.errors import DataError, UnknownName, UsageError
from vistune.formats.llava import example_from_llava, example_to_llava
from vistune.formats.messages import example_from_messages, example_to_messages
from vistune.formats.parquet import parquet_rows, parquet_writer
from vistune.formats.sharegpt import example_from_sharegpt, example_to_sharegpt
from vistune.formats.turns import ImagePlace, Losses, json_text
from vistune.journal import atomic_file
from vistune.types import InstructionExample

MAX_ROW_CHARACTERS = 64 * 2**20
"""A longer row is refused: it is no conversation, and a missing bracket must not read the whole file into memory."""
_CHUNK_BYTES = 2**20


class Place(NamedTuple):
    """Where a row lies. JSON: its first byte, its bytes, and their CRC-32. Parquet: its group of rows, its place in there, and 0."""

    start: int
    extent: int
    crc: int


@dataclass(frozen=True)
class Format:
    """How one of the three formats reads and writes a row."""

    description: str
    from_row: Callable[..., InstructionExample]
    to_row: Callable[[InstructionExample, Path], dict[str, Any]]


FORMATS: dict[str, Format] = {
    "llava": Format("LLaVA JSON (.json, .jsonl): LLaVA, LLaVA-NeXT, vistune", example_from_llava, example_to_llava),
    "messages": Format(
        "messages (.parquet; .json and .jsonl with pictures as files): TRL, axolotl, unsloth", example_from_messages, example_to_messages
    ),
    "sharegpt": Format("ShareGPT (.json, .jsonl): LLaMA-Factory, ms-swift", example_from_sharegpt, example_to_sharegpt),
}


def format_named(name: str) -> Format:
    """The format called `name`. Raises UnknownName, which lists the right ones."""
    try:
        return FORMATS[name]
    except KeyError:
        raise UnknownName("format", name, known=FORMATS) from None


def format_of(row: Any) -> str:
    """The name of the format that a row is in, decided by its columns; what is none of them counts as LLaVA JSON, which says why."""
    if isinstance(row, Mapping) and "messages" in row:
        return "messages"
    # A row of plain text without a system column is the same in both.
    return "sharegpt" if isinstance(row, Mapping) and {"images", "system"} & set(row) and not row.get("image") else "llava"


def example_from_row(
    row: Any, image_root: Path, *, row_number: int = 0, image_place: ImagePlace = "as_written", losses: Losses = "allow"
) -> InstructionExample:
    """One row of any of the formats as a record, with the errors of `example_from_llava`; nothing is opened."""
    read = FORMATS[format_of(row)].from_row
    return read(row, image_root, row_number=row_number, image_place=image_place, losses=losses)


def read_examples(
    path: Path, image_root: Path, *, image_place: ImagePlace = "as_written", losses: Losses = "allow"
) -> Iterator[InstructionExample]:
    """Reads a file of any of the formats, row after row, and raises the DataError of the first row that cannot be used."""
    for number, row in enumerate(read_rows(path)):
        yield example_from_row(row, image_root, row_number=number, image_place=image_place, losses=losses)


def read_rows(path: Path) -> Iterator[Any]:
    """The raw rows of a `.json` list, a `.jsonl` or a `.parquet` file, unchecked: a bad row must not hide the good ones behind it.

    Raises DataError, at once where there is no such file, and on the way where it is not JSON (or Parquet).
    """
    return (row for row, _ in placed_rows(path))


def placed_rows(path: Path) -> Iterator[tuple[Any, Place]]:
    """The rows of `read_rows`, each with its place in the file."""
    if not path.is_file():
        raise DataError(f"There is no data file {path}. Give a JSON list (.json), JSON Lines (.jsonl) or Parquet (.parquet).")
    if path.suffix == ".parquet":
        return ((row, Place(group, number, 0)) for row, group, number in parquet_rows(path))
    return _lines(path) if path.suffix == ".jsonl" else _list(path)


def _lines(path: Path) -> Iterator[tuple[Any, Place]]:
    with path.open("rb") as file:
        number = start = 0
        while line := file.readline(MAX_ROW_CHARACTERS + 1):
            number += 1
            where = f"{path}, line {number}"
            if len(line) > MAX_ROW_CHARACTERS:
                raise DataError(f"{where} is longer than {MAX_ROW_CHARACTERS:,} bytes; is this JSON Lines, one row a line?")
            if number == 1 and line.startswith(codecs.BOM_UTF8):
                start, line = len(codecs.BOM_UTF8), line[len(codecs.BOM_UTF8) :]
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise _not_text(path, error) from error
            if text.strip():
                yield _parse(text, where), Place(start, len(line), zlib.crc32(line))
            start += len(line)


def _list(path: Path) -> Iterator[tuple[Any, Place]]:
    """The elements of a JSON list, parsed one by one out of a window that moves over the file."""
    decoder = json.JSONDecoder()
    with path.open("rb") as file:
        window = _Window(path, file)
        if window.first() != "[":
            kind = type(_parse(window.everything(), str(path))).__name__
            raise DataError(f"{path} holds a JSON {kind}, but a data file is a list of rows. One row a line is named .jsonl.")
        window.skip(1)
        if window.first() == "]":
            return window.end()
        while True:
            row, length = window.element(decoder)
            yield row, window.place(length)
            window.skip(length)
            match window.first():
                case ",":
                    window.skip(1)
                    window.first()
                case "]":
                    return window.end()
                case other:
                    raise window.broken(f"{other!r} after a row" if other else "the file ends in the middle of the list")


class _Window:
    """The part of a text file that is looked at. Grows only as far as one element of the list needs."""

    def __init__(self, path: Path, file: BinaryIO):
        self._path, self._file = path, file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._complete = "", 0, False
        self._rows = 0
        self._position = 0  # of `_at`, in bytes of the file

    def _more(self, size: int = _CHUNK_BYTES) -> bool:
        """Reads on; False at the end of the file."""
        if self._complete:
            return False
        data = self._file.read(size)
        self._complete = not data
        if self._position == 0 and data.startswith(codecs.BOM_UTF8):
            self._position = len(codecs.BOM_UTF8)
        try:
            self._text = self._text[self._at :] + self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise _not_text(self._path, error) from error
        self._at = 0
        return True

    def first(self) -> str:
        """Moves to the next character that is no white space, and gives it ("" at the end)."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
                self._position += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip(self, characters: int) -> None:
        self._position += len(self._text[self._at : self._at + characters].encode())
        self._at += characters

    def place(self, characters: int) -> Place:
        """Where the text that begins here lies in the file."""
        data = self._text[self._at : self._at + characters].encode()
        return Place(self._position, len(data), zlib.crc32(data))

    def element(self, decoder: json.JSONDecoder) -> tuple[Any, int]:
        """The value that begins here, and how long it is."""
        size = _CHUNK_BYTES
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
                # A number may go on beyond the window.
                if end < len(self._text) or not self._more():
                    self._rows += 1
                    return value, end - self._at
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self._more(size):
                    raise self.broken(str(error)) from error
            if len(self._text) - self._at > MAX_ROW_CHARACTERS:
                raise self.broken(f"no end of the row within {MAX_ROW_CHARACTERS:,} characters")
            size *= 2  # a row is parsed again each time, so the window must grow faster than it

    def everything(self) -> str:
        while len(self._text) <= MAX_ROW_CHARACTERS and self._more():
            pass
        return self._text[self._at : self._at + MAX_ROW_CHARACTERS]

    def end(self) -> None:
        self.skip(1)
        if self.first():
            raise self.broken("more text after the end of the list")

    def broken(self, found: str) -> DataError:
        return DataError(f"{self._path} is not JSON after row {self._rows} ({found}). Was the file written or downloaded completely?")


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and lists in lists without end
        raise DataError(f"{where} is not JSON ({error}). Was the file written or downloaded completely?") from error


def _not_text(path: Path, error: UnicodeDecodeError) -> DataError:
    return DataError(f"{path} is not UTF-8 text ({error}). Is it a data file, and saved as UTF-8?")


# Writing --------------------------------------------------------------------------------------------------------------------------------


def default_format(path: Path) -> str:
    """The format of a new file that nobody named: what its kind of file usually holds."""
    return "messages" if path.suffix == ".parquet" else "llava"


@contextmanager
def example_writer(path: Path, image_root: Path, format: str | None = None) -> Iterator[Callable[[InstructionExample], None]]:
    """Gives a function that writes one record; the file appears whole when the block ends, or not at all.

        with example_writer(path, image_root, "sharegpt") as write:
            write(example)

    Args:
        image_root: the folder that the names of pictures in the file start from.
        format: a key of FORMATS; by default messages for `.parquet` and llava for others.

    Raises:
        DataError: a record that the format cannot hold; the message says what of it.
        SaveError: the file cannot be written.
        MissingDependency: `.parquet` without the extra `data`.
    """
    name = format or default_format(path)
    to_row = format_named(name).to_row
    if path.suffix not in (".json", ".jsonl", ".parquet"):
        raise UsageError(f"{path} must be named .json, .jsonl or .parquet.")
    if path.suffix == ".parquet" and name != "messages":
        raise UsageError(f"{name} rows are written as .json or .jsonl; a .parquet file holds messages.")
    with atomic_file(path) as file:
        if path.suffix == ".parquet":
            with parquet_writer(file) as write_row:
                yield lambda example: write_row(to_row(example, image_root))
            return
        before, between, after = (b"[\n", b",\n", b"\n]\n") if path.suffix == ".json" else (b"", b"\n", b"\n")
        rows = 0

        def write(example: InstructionExample) -> None:
            nonlocal rows
            line = json_text(_without_bytes(to_row(example, image_root))).encode()
            file.write((between if rows else before) + line)
            rows += 1

        yield write
        file.write(after if rows else before + after if path.suffix == ".json" else b"")


def _without_bytes(row: dict[str, Any]) -> dict[str, Any]:
    """A messages row for JSON: pictures by name."""
    if "messages" not in row:
        return row
    if any(image["bytes"] is not None for image in row["images"]):
        raise DataError(f"{row['id']}: JSON has no place for the bytes of a picture; write .parquet, or save the pictures as files.")
    return row | {"images": [image["path"] for image in row["images"]]}


def write_examples(examples: Iterable[InstructionExample], path: Path, image_root: Path, format: str | None = None) -> int:
    """Writes records as one file (see `example_writer`) and returns how many there were."""
    count = 0
    with example_writer(path, image_root, format) as write:
        for example in examples:
            write(example)
            count += 1
    return count
