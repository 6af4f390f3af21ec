"""Messages as OpenAI's clients send them → a `Conversation`.

A content is a text or a list of parts, `text` and `image_url`. Pictures come as `data:` addresses in whatever form clients make of these;
nothing is fetched and no path is opened. What is counted is counted before any picture is decoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vistune.errors import ImageError
from vistune.media import ImageLimits, image_bytes
from vistune.serve.failures import bad_request, image_failure
from vistune.types import Conversation, ImagePart, Message, Part, Role, TextPart

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

_BARE_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")
"""How the base64 of a JPEG, PNG, GIF and WebP file begins: some clients leave out everything before it."""


@dataclass
class _Budget:
    """What the rest of a request may still use."""

    characters: int
    images: int
    image_limits: ImageLimits


def conversation_of(
    messages: list[Any], *, max_messages: int, max_characters: int, max_images: int, image_limits: ImageLimits, continued: bool
) -> Conversation:
    """The conversation that a request's `messages` mean.

    Args:
        continued: whether the last message is the beginning of the reply that is asked for.

    Raises:
        ApiError: 400 for what cannot be understood or is over a limit.
    """
    if len(messages) > max_messages:
        raise bad_request(f"At most {max_messages} messages are read.", param="messages")
    budget = _Budget(max_characters, max_images, image_limits)
    read: list[Message] = []
    for index, sent in enumerate(messages):
        message = _message(sent, f"messages.{index}", budget)
        if message.role == "system" and any(earlier.role != "system" for earlier in read):
            raise bad_request("A system message stands before all others.", param=f"messages.{index}.role")
        if read and read[-1].role == message.role:  # templates know turns, not messages
            message = Message(message.role, (*read.pop().parts, TextPart("\n"), *message.parts))
        read.append(message)
    _check_ending(read, continued)
    return Conversation(tuple(read))


def writable(text: str, param: str) -> str:
    """The text itself, if it is one: JSON can hold half of a surrogate pair, which no tokenizer reads.

    Raises:
        ApiError: 400.
    """
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise bad_request("The text holds a character that is none (NUL, or half of a surrogate pair).", param=param)
    return text


def _check_ending(messages: list[Message], continued: bool) -> None:
    ends_in_a_reply = messages[-1].role == "assistant"
    if ends_in_a_reply and not continued:
        text = "The last message is the assistant's. To have it continued, set continue_final_message to true; else end with the user's."
        raise bad_request(text, param="messages")
    if continued and not ends_in_a_reply:
        raise bad_request("There is no last message of the assistant's to continue.", param="continue_final_message")
    if all(message.role != "user" for message in messages):
        raise bad_request("There is no message of the user's to answer.", param="messages")


def _message(sent: Any, param: str, budget: _Budget) -> Message:
    if not isinstance(sent, dict):
        raise bad_request("A message is an object with role and content.", param=param)
    role = _ROLES.get(sent["role"]) if isinstance(sent.get("role"), str) else None
    if role is None:
        raise bad_request("The role must be system, developer, user or assistant.", param=f"{param}.role")
    if sent.get("tool_calls") or sent.get("function_call"):
        raise bad_request("This server does not support tools.", param=f"{param}.tool_calls", code="unsupported_parameter")
    content = sent.get("content")
    if isinstance(content, str):
        return Message(role, (_text(content, f"{param}.content", budget),))
    if not isinstance(content, list) or not content:
        raise bad_request("The content must be a text or a list of parts.", param=f"{param}.content")
    if len(content) > 2 * (budget.images + 1) + 64:
        raise bad_request("The content has too many parts.", param=f"{param}.content")
    parts = [_part(part, f"{param}.content.{index}", role, budget) for index, part in enumerate(content)]
    return Message(role, _on_lines_of_their_own(parts))


def _part(sent: Any, param: str, role: Role, budget: _Budget) -> Part:
    match sent:
        case {"type": "text", "text": str(text)}:
            return _text(text, f"{param}.text", budget)
        case {"type": "image_url", "image_url": str(address)} | {"type": "image_url", "image_url": {"url": str(address)}}:
            if role != "user":
                raise bad_request("Pictures stand in the user's messages only.", param=param)
            return _picture(address, f"{param}.image_url", budget)
    raise bad_request('A part is {"type": "text", "text": ...} or {"type": "image_url", "image_url": {"url": ...}}.', param=param)


def _text(text: str, param: str, budget: _Budget) -> TextPart:
    budget.characters -= len(text)
    if budget.characters < 0:
        raise bad_request("The texts are too long for this server.", param=param, code="context_length_exceeded")
    return TextPart(writable(text, param))


def _picture(address: str, param: str, budget: _Budget) -> ImagePart:
    budget.images -= 1
    if budget.images < 0:
        raise bad_request("There are more pictures than this server takes.", param=param)
    try:
        return ImagePart(image_bytes(_tidied(address), limits=budget.image_limits))
    except ImageError as error:
        raise image_failure(error, param) from None


def _tidied(address: str) -> str:
    """An address with what clients wrongly leave out or put around it mended; `media.py` reads the other variants."""
    address = address.strip()
    if address.startswith(_BARE_BASE64):
        return f"data:image/*;base64,{address}"
    head, rest = address[:256], address[256:]
    return re.sub(r"(;\s*base64\s*,)\s+", ";base64,", head, count=1, flags=re.IGNORECASE) + rest


def _on_lines_of_their_own(parts: list[Part]) -> tuple[Part, ...]:
    """The parts as LLaVA was trained on them: each picture on a line of its own.

    Clients put the words first and the pictures after them as often as not; LLaVA learned it the other way round, so then the pictures go
    first. Where words stand between pictures, they may be about the one before or after, so all stay in their order.
    """
    pictures = [index for index, part in enumerate(parts) if isinstance(part, ImagePart)]
    if pictures and pictures == list(range(pictures[0], len(parts))):
        parts = parts[pictures[0] :] + parts[: pictures[0]]
    lines = parts[:1]
    for part in parts[1:]:
        if not (_text_of(lines[-1]).endswith("\n") or _text_of(part).startswith("\n")):
            lines.append(TextPart("\n"))
        lines.append(part)
    return tuple(lines)


def _text_of(part: Part) -> str:
    return part.text if isinstance(part, TextPart) else ""
