"""Annotation files that are larger than memory: one item at a time, each at most a few megabytes.

    json_items   a JSON file, 450 MB in one list: every element of its lists, as soon as it is complete
    text_lines   JSON Lines and TSV: every line, cut off from memory where it does not end

The C decoder of the standard library reads an element of a list from the middle of a text and says where it ended, which is all that a
stream needs. Measured on COCO instances it takes half the time of ijson 3.6 (C back end), which needs one pass for each list of a file;
and 100,000 open brackets are refused at once, where ijson's time grows with their square (half a second for 20,000).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vistune.errors import DataError

MAX_ITEM = 64 * 2**20
"""Longest element of a list, in characters. COCO's longest is 50 thousand, Visual Genome's 1 million."""
MAX_LINE = 2**20
"""Longest line of a text file, in bytes."""
_PIECE = 2**20


def json_items(path: Path) -> Iterator[tuple[str, Any]]:
    """The content of a JSON file in its order: (key, element) for each element of a list in the outermost object, (key, value) for any
    other value there, and ("", element) for each element of an outermost list.

    Raises:
        DataError: missing, not UTF-8, not JSON, or cut off; items before the fault have been yielded by then.
    """
    with open_text(path) as file:
        yield from _JsonReader(file, path).items()


def text_lines(path: Path, start: int = 0, end: int | None = None) -> Iterator[bytes | None]:
    """The lines of a file that begin between two byte offsets, without their line ends; None in place of one longer than `MAX_LINE`.

    Raises:
        DataError: the file cannot be read.
    """
    with open_binary(path) as file:
        try:
            file.seek(start)
            while end is None or file.tell() < end:
                line = file.readline(MAX_LINE + 1)
                if not line:
                    return
                if len(line) > MAX_LINE:
                    while line and not line.endswith(b"\n"):
                        line = file.readline(_PIECE)
                    yield None
                else:
                    yield line.rstrip(b"\r\n")
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}). Check the disk, or get the file again.") from error


def open_binary(path: Path) -> IO[bytes]:
    """Opens a regular file for reading, or says in a DataError why not. (A pipe would wait for ever, a folder cannot be read.)"""
    if not path.is_file():
        found = "is a folder or a device, not a file" if path.exists() else "does not exist"
        raise DataError(f"The annotation file {path} {found}. Check the path.")
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"The annotation file {path} cannot be opened ({error.strerror}). Check its permissions.") from error


def open_text(path: Path) -> IO[str]:
    """The same as text. A byte order mark at the beginning is not part of it."""
    open_binary(path).close()
    return path.open(encoding="utf-8-sig")


_SPACE = re.compile(r"[ \t\r\n]*")


class _JsonReader:
    """Walks the outermost object or list of a file; what is inside is decoded whole, item by item."""

    def __init__(self, file: IO[str], path: Path):
        self._file, self._path = file, path
        self._buffer, self._place, self._dropped = "", 0, 0
        self._decode = json.JSONDecoder().raw_decode

    def items(self) -> Iterator[tuple[str, Any]]:
        match self._symbol():
            case "[":
                for element in self._elements():
                    yield "", element
            case "{":
                yield from self._members()
            case found:
                raise self._fault(f"it begins with {found!r}" if found else "it is empty")
        if rest := self._symbol():
            raise self._fault(f"there is {rest!r} after its end")

    def _members(self) -> Iterator[tuple[str, Any]]:
        if self._peek() == "}":
            self._symbol()
            return
        while True:
            key = self._value()
            if not isinstance(key, str) or self._symbol() != ":":
                raise self._fault("a name and a colon were expected")
            if self._peek() == "[":
                self._symbol()
                for element in self._elements():
                    yield key, element
            else:
                yield key, self._value()
            if self._ends("}"):
                return

    def _elements(self) -> Iterator[Any]:
        if self._peek() == "]":
            self._symbol()
            return
        while True:
            yield self._value()
            if self._ends("]"):
                return

    def _ends(self, bracket: str) -> bool:
        found = self._symbol()
        if found not in (",", bracket):
            raise self._fault(f"a comma or {bracket!r} was expected, not {found!r}" if found else "it ends in the middle")
        return found == bracket

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._decode(self._buffer, self._place)
                # A number near the end of the buffer may go on behind it: "1e-" is 1 and something left over.
                if len(self._buffer) - end > 2 or not self._more():
                    self._place = end
                    return value
            except json.JSONDecodeError as error:
                if len(self._buffer) - self._place > MAX_ITEM:
                    raise self._fault(f"an item is malformed or longer than {MAX_ITEM:,} characters ({error.msg})") from error
                if not self._more():
                    raise self._fault(f"an item is malformed or ends in the middle ({error.msg})") from error
            except RecursionError as error:
                raise self._fault("its lists are nested too deeply") from error
            except ValueError as error:
                raise self._fault(f"a number in it is too long ({error})") from error

    def _peek(self) -> str:
        """The next character that is no space, still to be read; empty at the end of the file."""
        while True:
            space = _SPACE.match(self._buffer, self._place)
            self._place = space.end() if space else self._place
            if self._place < len(self._buffer):
                return self._buffer[self._place]
            if not self._more():
                return ""

    def _symbol(self) -> str:
        found = self._peek()
        self._place += len(found)
        return found

    def _more(self) -> bool:
        """Reads on; False at the end of the file. What is kept at least doubles, or a long item would be decoded once a piece."""
        kept = self._buffer[self._place :]
        try:
            read = self._file.read(max(_PIECE, len(kept)))
        except UnicodeDecodeError as error:
            raise self._fault(f"it is not UTF-8 text: {error.reason}") from error
        except OSError as error:
            raise DataError(f"{self._path} cannot be read ({error.strerror}). Check the disk, or get the file again.") from error
        if read:
            self._dropped += self._place
            self._buffer, self._place = kept + read, 0
        return bool(read)

    def _fault(self, found: str) -> DataError:
        near = self._dropped + self._place
        return DataError(
            f"{self._path} is not a complete JSON file: near character {near:,}, {found}. Was it downloaded completely, and unpacked if it "
            "was compressed?"
        )
