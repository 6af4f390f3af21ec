"""LLaVA JSON rows ⇄ records.

    {"id": "7", "image": "cat.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A
    cat."}]}

`image` may be a list of as many files as there are `<image>` in the text. A row without `image` is plain text, and an `<image>` in it is
seven characters. `kind` and `provenance` (an object) are ours; other readers pass over them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vistune.errors import DataError
from vistune.formats.turns import (
    NAMES,
    ImagePlace,
    Losses,
    RowPictures,
    begin_row,
    checked,
    file_name,
    finish_row,
    further_columns,
    marked_text,
    message_of,
    parts_of_text,
    picture_source,
    text_turns,
)
from vistune.types import InstructionExample


def example_from_llava(
    row: Any, image_root: Path, *, row_number: int = 0, image_place: ImagePlace = "as_written", losses: Losses = "allow"
) -> InstructionExample:
    """One row as a record. Its pictures become references under `image_root`; nothing is opened.

    Raises:
        ImageCountError: as many `<image>` as files are needed.
        EmptyAnswerError: an assistant turn without words; a template would render it as a question not yet answered.
        DataError: anything else that is not a LLaVA row, or a picture outside `image_root`.
    """
    row, example_id, where = begin_row(row, row_number, "LLaVA")
    if row.get("images") or row.get("system"):
        raise DataError(f"{where}: 'images' and 'system' are columns of ShareGPT; a LLaVA row has 'image' and a turn from 'system'.")
    found = row.get("image")
    entries = [] if found is None else [found] if isinstance(found, str) else found
    if not isinstance(entries, list) or not all(isinstance(entry, str) and entry for entry in entries):
        raise DataError(f"{where}: 'image' must be a file name or a list of file names, not {found!r:.80}.")
    turns = text_turns(row, where, losses)
    pictures = RowPictures([picture_source(entry, image_root, where) for entry in entries])
    messages = [message_of(role, parts_of_text(text, pictures if entries else None), image_place) for role, text in turns]
    pictures.check("image", where)
    return finish_row(row, example_id, messages, where)


def example_to_llava(example: InstructionExample, image_root: Path) -> dict[str, Any]:
    """The row that `example_from_llava` reads back to an equal record. Pictures must be files under `image_root`.

    Raises DataError for what LLaVA JSON cannot hold: a text that spells `<image>` beside a real picture, pictures elsewhere, videos.
    """
    messages = checked(example)
    files = [file_name(image, image_root, example.id) for message in messages for image in message.images]
    provenance, columns = further_columns(example)
    row: dict[str, Any] = {"id": example.id}
    if files:
        row["image"] = files[0] if len(files) == 1 else files
    if example.kind:
        row["kind"] = example.kind
    row["conversations"] = [
        {"from": NAMES[message.role], "value": marked_text(message, beside_pictures=bool(files), where=example.id)} for message in messages
    ]
    return row | columns | ({"provenance": provenance} if provenance else {})
