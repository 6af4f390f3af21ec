"""ShareGPT rows ⇄ records, as LLaMA-Factory and ms-swift read them.

    {"id": "7", "images": ["cat.jpg"], "system": "Be brief.", "conversations": [{"from": "human", "value": "<image>What is it?"}, ...]}

`images` always is a list, of as many files as there are `<image>` in the turns; the system text stands outside of them. Provenance is one
string of JSON: these trainers load files into Arrow, where an object would have to look alike in every row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vistune.errors import DataError
from vistune.formats.turns import (
    IMAGE_MARK,
    NAMES,
    ImagePlace,
    Losses,
    RowPictures,
    begin_row,
    checked,
    file_name,
    finish_row,
    further_columns,
    json_text,
    marked_text,
    message_of,
    parts_of_text,
    picture_source,
    text_turns,
    whole,
)
from vistune.types import InstructionExample, TextPart


def example_from_sharegpt(
    row: Any, image_root: Path, *, row_number: int = 0, image_place: ImagePlace = "as_written", losses: Losses = "allow"
) -> InstructionExample:
    """One row as a record, with the errors of `example_from_llava`. An empty `system` column is none, an empty system turn is one."""
    row, example_id, where = begin_row(row, row_number, "ShareGPT")
    entries, system = row.get("images"), row.get("system")
    entries = [] if entries is None else [entries] if isinstance(entries, str) else entries
    if row.get("image"):
        raise DataError(f"{where}: 'image' is a column of LLaVA JSON; a ShareGPT row has a list 'images'.")
    if not isinstance(entries, list) or not isinstance(system or "", str):
        raise DataError(f"{where}: 'images' must be a list of file names and 'system' a text.")
    turns = text_turns(row, where, losses)
    if system and turns[0][0] == "system":
        raise DataError(f"{where}: there is a 'system' column and a turn from 'system'; keep one of them.")
    if system:
        turns.insert(0, ("system", whole(system, where)))
    pictures = RowPictures([picture_source(entry, image_root, where) for entry in entries])
    messages = [
        message_of(role, parts_of_text(text, pictures if entries and role != "system" else None), image_place) for role, text in turns
    ]
    pictures.check("images", where)
    return finish_row(row, example_id, messages, where)


def example_to_sharegpt(example: InstructionExample, image_root: Path) -> dict[str, Any]:
    """The row that `example_from_sharegpt` reads back to an equal record.

    Raises DataError for what ShareGPT cannot hold: what LLaVA JSON cannot, and a picture in the system text.
    """
    messages = list(checked(example))
    files = [file_name(image, image_root, example.id) for message in messages for image in message.images]
    provenance, columns = further_columns(example)
    row: dict[str, Any] = {"id": example.id}
    if files:
        row["images"] = files
    if example.kind:
        row["kind"] = example.kind
    turns = []
    if messages[0].role == "system":
        system = messages.pop(0)
        if system.images:
            raise DataError(f"{example.id}: ShareGPT has no place for a picture in the system text; LLaVA JSON and messages do.")
        if system.text:
            row["system"] = system.text
        else:
            turns = [{"from": NAMES["system"], "value": ""}]
    turns += [
        {"from": NAMES[message.role], "value": marked_text(message, beside_pictures=bool(files), where=example.id)} for message in messages
    ]
    row["conversations"] = turns
    return row | columns | ({"provenance": json_text(provenance)} if provenance else {})


def spells_mark(example: InstructionExample) -> bool:
    """Whether a row of plain text spells `<image>`: LLaMA-Factory counts it as a picture that is missing, and stops."""
    conversation = example.conversation
    parts = (part for message in conversation.messages for part in message.parts)
    return not conversation.images and any(IMAGE_MARK in part.text for part in parts if isinstance(part, TextPart))


def dataset_info(file_name: str, columns: set[str]) -> dict[str, Any]:
    """What LLaMA-Factory's `dataset_info.json` says about a file of these rows, of which at least one has each of `columns`."""
    present = {"messages": "conversations", "images": "images", "system": "system"}
    return {
        "file_name": file_name,
        "formatting": "sharegpt",
        "columns": {name: column for name, column in present.items() if column in columns},
    }
