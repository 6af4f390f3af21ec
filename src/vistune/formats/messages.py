"""Messages rows ⇄ records, as TRL, axolotl and unsloth read them from `datasets`.

    {"id": "7", "images": [{"bytes": ..., "path": "cat.jpg"}],
     "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}, ...]}

`content` is always written as a list, because Arrow wants one type in every row; a plain text is read too, with `<image>` where the row has
pictures, as ms-swift writes it. Pictures are in `images` in the order in which the messages show them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vistune.errors import DataError
from vistune.formats.turns import (
    FIELDS,
    ImagePlace,
    Losses,
    RowPictures,
    begin_row,
    checked,
    file_name,
    finish_row,
    further_columns,
    json_text,
    kept_turns,
    message_of,
    parts_of_text,
    picture_source,
    refuse_more_keys,
    whole,
)
from vistune.types import ImagePart, InstructionExample, Message, Part, Role, TextPart

_ROLES: tuple[Role, ...] = ("system", "user", "assistant")


def example_from_messages(
    row: Any, image_root: Path, *, row_number: int = 0, image_place: ImagePlace = "as_written", losses: Losses = "allow"
) -> InstructionExample:
    """One row as a record, with the errors of `example_from_llava`. Embedded pictures stay bytes and remember their names."""
    row, example_id, where = begin_row(row, row_number, "messages")
    entries, messages = row.get("images"), row.get("messages")
    entries = [] if entries is None else entries if isinstance(entries, list) else [entries]
    if row.get("image") or row.get("system"):
        raise DataError(
            f"{where}: a messages row has its pictures in 'images' and its system text in 'messages', not in 'image' or 'system'."
        )
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: 'messages' must be a list of messages, not {type(messages).__name__}.")
    for message in messages:
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES or not isinstance(message.get("content"), str | list):
            raise DataError(f"{where}: a message must be {{'role': one of {', '.join(_ROLES)}, 'content': ...}}, not {str(message)[:80]}.")
        refuse_more_keys(message, ("role", "content"), where, losses)
    kept = kept_turns([message["role"] for message in messages], where, losses)
    pictures = RowPictures([picture_source(entry, image_root, where) for entry in entries])
    read = []
    for message in (messages[place] for place in kept):
        content = message["content"]
        parts = _parts(content, pictures, where) if isinstance(content, list) else parts_of_text(content, pictures if entries else None)
        whole("".join(part.text for part in parts if isinstance(part, TextPart)), where)
        read.append(message_of(message["role"], parts, image_place))
    pictures.check("images", where)
    return finish_row(row, example_id, read, where)


def _parts(content: list[Any], pictures: RowPictures, where: str) -> list[Part]:
    parts: list[Part] = []
    for item in content:
        match item:
            # A value of None is a key that Arrow added, because another row has it.
            case {"type": "text", "text": str(text)}:
                parts.append(TextPart(text))
            case {"type": "image", "index": int(number)} if number >= 0:
                parts.append(pictures.take(number))
            case {"type": "image"} if not any(item.get(name) for name in ("image", "url", "path", "base64")):
                parts.append(pictures.take())
            case _:
                raise DataError(
                    f"{where}: content must be {{'type': 'text', 'text': ...}} or {{'type': 'image'}} with the picture itself in the row's "
                    f"'images', not {str(item)[:80]}."
                )
    return parts


def example_to_messages(example: InstructionExample, image_root: Path) -> dict[str, Any]:
    """The row that `example_from_messages` reads back to an equal record: `images` holds `{"bytes", "path"}` as `datasets` keeps pictures.

    Pictures that are files stay references by their name under `image_root`; those that are bytes are embedded. Columns of other tools stay
    inside the provenance, because Arrow needs one type a column. Raises DataError for videos and pictures elsewhere.
    """
    messages = checked(example)
    images = [_image(image, image_root, example.id) for message in messages for image in message.images]
    provenance, columns = further_columns(example)
    provenance |= {FIELDS: columns} if columns else {}
    return {
        "id": example.id,
        "kind": example.kind,
        "images": images,
        "messages": [{"role": message.role, "content": _content(message)} for message in messages],
        "provenance": json_text(provenance) if provenance else "",
    }


def _image(image: ImagePart, image_root: Path, where: str) -> dict[str, Any]:
    if isinstance(image.source, bytes):
        return {"bytes": bytes(image.source), "path": getattr(image.source, "name", None)}
    return {"bytes": None, "path": file_name(image, image_root, where)}


def _content(message: Message) -> list[dict[str, str]]:
    return [{"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"} for part in message.parts]
