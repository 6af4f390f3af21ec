"""What the three formats share: the mark for a picture, who may speak when, and which words of a row are whose.

The only place that knows "human", "gpt" and "<image>". A row is read or refused as it stands; nothing here opens a picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from vistune.errors import DataError, EmptyAnswerError, ImageCountError
from vistune.types import Conversation, ImagePart, ImageSource, InstructionExample, Message, Part, Role, TextPart

IMAGE_MARK = "<image>"
ImagePlace = Literal["as_written", "first"]
"""`first` moves the only picture of a turn to its front, followed by a newline, as LLaVA's training did; `as_written` leaves it."""
Losses = Literal["allow", "refuse"]
"""What to do with a row that says more than a record holds (an answer before the first question, a turn with further keys): training
reads past it, rewriting a file must not."""

ROLES: Mapping[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
NAMES: Mapping[Role, str] = {role: name for name, role in ROLES.items()}

FIELDS = "fields"
"""Where the provenance of a record keeps the columns of its row that mean nothing to vistune; they are written back as columns."""
_KNOWN_COLUMNS = frozenset(
    {"id", "kind", "provenance", "image", "images", "video", "videos", "audios", "conversations", "messages", "system"}
)


class ImageBytes(bytes):
    """The bytes of an image file that remember the name it had, so that it can become that file again."""

    name: str

    def __new__(cls, data: bytes, name: str) -> ImageBytes:
        self = super().__new__(cls, data)
        self.name = name
        return self


@dataclass
class RowPictures:
    """The pictures of one row, handed out in the order in which its text shows them."""

    sources: Sequence[ImageSource]
    shown: list[int] = field(default_factory=list)

    def take(self, number: int | None = None) -> ImagePart:
        """The next picture, or the one with this number. One that is not there is counted, and refused by `check`."""
        self.shown.append(len(self.shown) if number is None else number)
        return ImagePart(self.sources[self.shown[-1]] if self.shown[-1] < len(self.sources) else "")

    def check(self, column: str, where: str) -> None:
        """Raises ImageCountError unless every picture was shown and no other."""
        if sorted(set(self.shown)) != list(range(len(self.sources))):
            raise ImageCountError(
                f"{where}: the text has {len(self.shown)} {IMAGE_MARK} but {column!r} names {len(self.sources)} file(s). Every picture "
                f"needs one {IMAGE_MARK} where it belongs in the conversation."
            )


# Rows to records ------------------------------------------------------------------------------------------------------------------------


def begin_row(row: Any, row_number: int, kind: str) -> tuple[Mapping[str, Any], str, str]:
    """The row as an object, its id (its number if it has none), and the words that name it in an error."""
    if not isinstance(row, Mapping):
        raise DataError(f"row {row_number} is a JSON {type(row).__name__}, but a {kind} row is an object.")
    example_id = str(row_number if row.get("id") is None else row["id"])
    where = f"row {row_number} (id {example_id!r})"
    for column in ("video", "videos", "audios"):
        if row.get(column):
            raise DataError(f"{where}: it has {column!r}, but only pictures can be read; leave the row out.")
    return row, whole(example_id, where), where


def finish_row(row: Mapping[str, Any], example_id: str, messages: Sequence[Message], where: str) -> InstructionExample:
    """A record of checked messages, with whatever else the row says."""
    for place, message in enumerate(messages):
        if message.role == "assistant" and not message.text.strip() and not message.images:
            raise EmptyAnswerError(f"{where}: the answer in turn {place} is empty. Drop the row, or the question with it.")
    kind, provenance = row.get("kind"), row.get("provenance")
    others = {name: value for name, value in row.items() if name not in _KNOWN_COLUMNS}
    if kind is not None and not isinstance(kind, str):
        others["kind"], kind = kind, None
    if isinstance(provenance, str):
        provenance = _parsed_object(provenance)
    if not isinstance(provenance, Mapping):
        others |= {"provenance": row["provenance"]} if row.get("provenance") else {}
        provenance = {}
    if others and FIELDS in provenance:
        raise DataError(f"{where}: its provenance has {FIELDS!r} and the row has {', '.join(sorted(others))}; keep them in one place.")
    return InstructionExample(
        example_id, Conversation(tuple(messages)), kind=kind or "", provenance={**provenance, **({FIELDS: others} if others else {})}
    )


def kept_turns(roles: Sequence[Role], where: str, losses: Losses) -> list[int]:
    """The places of the turns that make a conversation: an optional system turn, then user and assistant by turns, an answer last."""
    first = 1 if roles and roles[0] == "system" else 0
    places = list(range(len(roles)))
    # ShareGPT rows in LLaVA's own mixture begin in the middle of a talk; the original drops the answer that has no question.
    if roles[first:] and roles[first] == "assistant":
        if losses == "refuse":
            raise DataError(f"{where}: the first turn is an answer without a question, which would be lost; remove it first.")
        del places[first]
    talk: list[Role] = [roles[place] for place in places[first:]]
    if not talk:
        raise DataError(f"{where}: the conversation has no turn of a user.")
    for place, role in enumerate(talk):
        due: Role = "assistant" if place % 2 else "user"
        if role != due:
            expected = f"{NAMES['user']} and {NAMES['assistant']} must take turns"
            raise DataError(f"{where}: turn {first + place} is by {NAMES[role]!r}, but {expected}.")
    if talk[-1] != "assistant":
        raise DataError(f"{where}: the conversation ends with a question; training needs the answer to it.")
    return places


def text_turns(row: Mapping[str, Any], where: str, losses: Losses) -> list[tuple[Role, str]]:
    """The `conversations` of a row as (role, text), in a valid order."""
    conversation = row.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        raise DataError(f"{where}: 'conversations' must be a list of turns, not {type(conversation).__name__}.")
    turns: list[tuple[Role, str]] = []
    for turn in conversation:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str) or turn.get("from") not in tuple(ROLES):
            raise DataError(f"{where}: a turn must be {{'from': one of {', '.join(ROLES)}, 'value': text}}, not {str(turn)[:80]}.")
        refuse_more_keys(turn, ("from", "value"), where, losses)
        turns.append((ROLES[turn["from"]], whole(turn["value"], where)))
    return [turns[place] for place in kept_turns([role for role, _ in turns], where, losses)]


def refuse_more_keys(turn: Mapping[str, Any], known: tuple[str, ...], where: str, losses: Losses) -> None:
    """With losses refused, raises DataError for a turn with keys that no record holds."""
    more = [name for name, value in turn.items() if name not in known and value is not None]
    if more and losses == "refuse":
        raise DataError(f"{where}: a turn also has {', '.join(map(repr, more))}, which would be lost; remove it first.")


def parts_of_text(text: str, pictures: RowPictures | None) -> list[Part]:
    """A turn's text cut at its pictures; without pictures in the row, the mark is seven characters like any others."""
    if pictures is None:
        return [TextPart(text)]
    before, *others = text.split(IMAGE_MARK)
    parts: list[Part] = [TextPart(before)]
    for words in others:
        parts += [pictures.take(), TextPart(words)]
    return parts


def message_of(role: Role, parts: Iterable[Part], image_place: ImagePlace = "as_written") -> Message:
    """A message in the one way a file can say it: neighbouring texts joined, empty ones left out, and never without a part."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, TextPart) and joined and isinstance(joined[-1], TextPart):
            joined[-1] = TextPart(joined[-1].text + part.text)
        elif not isinstance(part, TextPart) or part.text:
            joined.append(part)
    message = Message(role, tuple(joined) or (TextPart(""),))
    if image_place == "first" and len(message.images) == 1:
        words = message.text.strip()
        return Message(role, (*message.images, TextPart(f"\n{words}")) if words else message.images)
    return message


def picture_source(entry: Any, image_root: Path, where: str) -> ImageSource:
    """A picture as a row names it: a file under `image_root`, or `{"bytes", "path"}` as `datasets` keeps it."""
    if isinstance(entry, Mapping):
        data, name = entry.get("bytes"), entry.get("path")
        if isinstance(data, bytes) and data:
            return ImageBytes(data, name) if isinstance(name, str) and name else data
        entry = name
    if not isinstance(entry, str) or not entry:
        raise DataError(f"{where}: a picture must be a file name, or its bytes, not {str(entry)[:80]!r}.")
    try:
        return image_root / confined_name(entry)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def confined_name(file: str) -> str:
    """A picture's name relative to the image folder, as it is. Raises ValueError for one that leads out of that folder."""
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the picture {file!r} lies outside the image folder; name it relative to that folder.")
    return file


def whole(text: str, where: str) -> str:
    """The text, if UTF-8 can hold it. JSON can spell half of a character pair, which no tokenizer and no other file can take."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: a text has half a character (a lone surrogate); mend it where it was cut.") from None
    return text


def _parsed_object(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# Records to rows ------------------------------------------------------------------------------------------------------------------------


def checked(example: InstructionExample) -> tuple[Message, ...]:
    """The messages of a record that a file can hold, in the one way that they are read back.

    Raises:
        DataError: an order of turns, a video, or a text that no row may have.
        EmptyAnswerError: an answer without words.
    """
    messages = tuple(message_of(message.role, message.parts) for message in example.conversation.messages)
    kept_turns([message.role for message in messages], example.id, "refuse")
    whole(example.id, repr(example.id))
    for message in messages:
        whole(message.text, example.id)
        if message.role == "assistant" and not message.text.strip() and not message.images:
            raise EmptyAnswerError(f"{example.id}: an answer is empty; drop the example.")
        if any(not isinstance(part, TextPart | ImagePart) for part in message.parts):
            raise DataError(f"{example.id}: none of the formats holds a video yet; drop the example.")
    return messages


def marked_text(message: Message, *, beside_pictures: bool, where: str) -> str:
    """A message as text with marks. Raises DataError where it already spells the mark beside a real picture: the two would look alike."""
    if beside_pictures and any(IMAGE_MARK in part.text for part in message.parts if isinstance(part, TextPart)):
        raise DataError(
            f"{where}: the text says {IMAGE_MARK} beside a real picture; LLaVA JSON and ShareGPT cannot tell the two apart, the messages "
            "format can."
        )
    return "".join(part.text if isinstance(part, TextPart) else IMAGE_MARK for part in message.parts)


def file_name(image: ImagePart, image_root: Path, where: str) -> str:
    """The name of a picture's file under `image_root`."""
    if isinstance(image.source, Path) and image.source.is_relative_to(image_root):
        return image.source.relative_to(image_root).as_posix()
    found = f"the file {image.source}" if isinstance(image.source, Path) else "one that is no file"
    raise DataError(
        f"{where}: here pictures must be files under {image_root}, but this is {found}. Choose a folder that holds all pictures, save them "
        "as files, or embed them in a .parquet file."
    )


def further_columns(example: InstructionExample) -> tuple[dict[str, Any], dict[str, Any]]:
    """A record's provenance as JSON values, and the foreign columns that its row had besides."""
    provenance = {name: _plain(value, example.id) for name, value in example.provenance.items()}
    columns = provenance.get(FIELDS)
    if isinstance(columns, dict) and columns and not _KNOWN_COLUMNS & set(columns):
        del provenance[FIELDS]
        return provenance, columns
    return provenance, {}


def _plain(value: Any, where: str) -> Any:
    """A value as JSON reads it back. Raises DataError for what JSON would refuse or change."""
    match value:
        case None | bool() | int() | str():
            return value
        case float() if value - value == 0:  # neither infinite nor NaN, which JSON does not have
            return value
        case Mapping() if all(isinstance(name, str) for name in value):
            return {name: _plain(each, where) for name, each in value.items()}
        case list() | tuple():
            return [_plain(each, where) for each in value]
    raise DataError(f"{where}: its provenance holds {value!r:.80}, but only text, finite numbers, lists and objects can be written.")


def json_text(value: Any) -> str:
    """JSON in readable characters, or escaped where UTF-8 has none for them."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text
