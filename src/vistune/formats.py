"""Instruction data on disk and the records in memory: LLaVA JSON ⇄ InstructionExample.

The only file that knows the words "human", "gpt" and "<image>". A row is read or refused as it stands; whether its picture exists, or fits
the context, is for `data/validate.py` to say. Rows and examples are converted one at a time, so that one bad row can be named and set
aside.

LLaVA JSON is a list (or JSON Lines) of

    {"id": "7", "image": "cat.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A
    cat."}]}

where `image` may be a list of as many files as there are `<image>` in the text. A row without `image` is plain text, and an `<image>` in
it is six letters between brackets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from vistune.errors import DataError, EmptyAnswerError, ImageCountError
from vistune.journal import atomic_write
from vistune.types import Conversation, ImagePart, InstructionExample, Message, Part, Role, TextPart

IMAGE_MARK = "<image>"
ImagePlace = Literal["as_written", "first"]
"""`first` moves the only picture of a turn to its front, followed by a newline, as LLaVA's training did; `as_written` leaves it."""

_ROLES: Mapping[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
_NAMES: Mapping[Role, str] = {role: name for name, role in _ROLES.items()}


def read_llava_json(path: Path, image_root: Path, *, image_place: ImagePlace = "as_written") -> Iterator[InstructionExample]:
    """Reads a LLaVA JSON or JSON Lines file, row after row, and raises the DataError of the first row that cannot be used."""
    for number, row in enumerate(llava_rows(path)):
        yield example_from_llava(row, image_root, row_number=number, image_place=image_place)


def llava_rows(path: Path) -> list[Any]:
    """The raw rows of a `.json` list or a `.jsonl` file, unchecked: a bad row must not hide the good ones behind it."""
    if not path.is_file():
        raise DataError(f"There is no data file {path}. Give a LLaVA JSON list (.json) or JSON Lines (.jsonl).")
    if path.suffix == ".jsonl":
        return [_parse(line, f"{path}, line {number}") for number, line in enumerate(_text(path).split("\n"), 1) if line.strip()]
    rows = _parse(_text(path), str(path))
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a JSON {type(rows).__name__}, but a LLaVA file is a list of rows.")
    return rows


def example_from_llava(row: Any, image_root: Path, *, row_number: int = 0, image_place: ImagePlace = "as_written") -> InstructionExample:
    """One row as a record. Its pictures become references under `image_root`; nothing is opened.

    Raises:
        ImageCountError: as many `<image>` as files are needed.
        EmptyAnswerError: an assistant turn without words; a template would render it as a question not yet answered.
        DataError: anything else that is not a LLaVA row, or a picture outside `image_root`.
    """
    where = f"row {row_number}"
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is a JSON {type(row).__name__}, but a LLaVA row is an object with 'conversations'.")
    example_id = str(row.get("id", row_number))
    where = f"{where} (id {example_id!r})"
    files = _image_files(row, where)
    turns = _turns(row, where)

    marks = sum(text.count(IMAGE_MARK) for _, text in turns) if files else 0
    if marks != len(files):
        raise ImageCountError(
            f"{where}: the text has {marks} {IMAGE_MARK} but 'image' names {len(files)} file(s). Every picture needs one {IMAGE_MARK} "
            "where it "
            f"belongs in the conversation."
        )
    images = iter(ImagePart(image_root / file) for file in files)
    messages = tuple(Message(role, _parts(text, images if files else None, image_place)) for role, text in turns)
    return InstructionExample(example_id, Conversation(messages), kind=str(row.get("kind", "")))


def example_to_llava(example: InstructionExample, image_root: Path) -> dict[str, Any]:
    """The row that `example_from_llava` reads back to an equal conversation. Pictures must be files under `image_root`."""
    files: list[str] = []
    turns = []
    for message in example.conversation.messages:
        text = ""
        for part in message.parts:
            if isinstance(part, TextPart):
                if example.conversation.images and IMAGE_MARK in part.text:
                    raise DataError(
                        f"{example.id}: the text says {IMAGE_MARK} beside a real picture; LLaVA JSON cannot tell the two apart."
                    )
                text += part.text
            elif isinstance(part, ImagePart) and isinstance(part.source, Path) and part.source.is_relative_to(image_root):
                files.append(part.source.relative_to(image_root).as_posix())
                text += IMAGE_MARK
            else:
                raise DataError(
                    f"{example.id}: LLaVA JSON holds pictures that are files under {image_root}, not {type(part).__name__} elsewhere."
                )
        turns.append({"from": _NAMES[message.role], "value": text})
    row: dict[str, Any] = {"id": example.id}
    if files:
        row["image"] = files[0] if len(files) == 1 else files
    if example.kind:
        row["kind"] = example.kind
    return row | {"conversations": turns}


def write_llava_json(examples: Iterable[InstructionExample], path: Path, image_root: Path) -> None:
    """Writes a LLaVA JSON list, one row a line; the file appears whole or not at all."""
    rows = [json.dumps(example_to_llava(example, image_root), ensure_ascii=False) for example in examples]
    atomic_write(path, ("[\n" + ",\n".join(rows) + "\n]\n").encode())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}). Is it a data file, and saved as UTF-8?") from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and lists in lists without end
        raise DataError(f"{where} is not JSON ({error}). Was the file written or downloaded completely?") from error


def _image_files(row: Mapping[str, Any], where: str) -> list[str]:
    """The row's image files, each confined to the image folder by its own text."""
    found = row.get("image")
    files = [] if found is None else [found] if isinstance(found, str) else found
    if not isinstance(files, list) or not all(isinstance(file, str) and file for file in files):
        raise DataError(f"{where}: 'image' must be a file name or a list of file names, not {found!r}.")
    try:
        return [confined_name(file) for file in files]
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def confined_name(file: str) -> str:
    """A picture's name relative to the image folder, as it is. Raises ValueError for one that leads out of that folder."""
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the picture {file!r} lies outside the image folder; name it relative to that folder.")
    return file


def _turns(row: Mapping[str, Any], where: str) -> list[tuple[Role, str]]:
    """The row's turns as (role, text): an optional system turn, then user and assistant by turns, ending in an answer."""
    conversation = row.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        raise DataError(f"{where}: 'conversations' must be a list of turns, not {type(conversation).__name__}.")
    turns: list[tuple[Role, str]] = []
    for turn in conversation:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str) or turn.get("from") not in _ROLES:
            raise DataError(f"{where}: a turn must be {{'from': one of {', '.join(_ROLES)}, 'value': text}}, not {str(turn)[:80]}.")
        turns.append((_ROLES[turn["from"]], turn["value"]))
    # ShareGPT rows in LLaVA's own mixture begin in the middle of a talk; the original drops the answer that has no question.
    first = 1 if turns[0][0] == "system" else 0
    if turns[first:] and turns[first][0] == "assistant":
        del turns[first]
    if not turns[first:]:
        raise DataError(f"{where}: the conversation has no turn of a user.")
    for place, (role, text) in enumerate(turns[first:]):
        expected = "assistant" if place % 2 else "user"
        if role != expected:
            raise DataError(f"{where}: turn {first + place} is by {_NAMES[role]!r}, but human and gpt must take turns.")
        if role == "assistant" and not text.strip():
            raise EmptyAnswerError(f"{where}: the answer in turn {first + place} is empty. Drop the row, or the question with it.")
    if turns[-1][0] != "assistant":
        raise DataError(f"{where}: the conversation ends with a question; training needs the answer to it.")
    return turns


def _parts(text: str, images: Iterator[ImagePart] | None, image_place: ImagePlace) -> tuple[Part, ...]:
    """A turn's text cut at its pictures; `images` is None in a row of plain text."""
    if images is None or IMAGE_MARK not in text:
        return (TextPart(text),)
    if image_place == "first" and text.count(IMAGE_MARK) == 1:
        words = text.replace(IMAGE_MARK, "").strip()
        return (next(images), TextPart(f"\n{words}")) if words else (next(images),)
    before, *others = text.split(IMAGE_MARK)
    parts: list[Part] = [TextPart(before)] if before else []
    for words in others:
        parts.append(next(images))
        if words:
            parts.append(TextPart(words))
    return tuple(parts)
