"""Messages as OpenAI's clients send them → a `Conversation`.

A content is a text or a list of parts, `text` and `image_url`. Pictures come as `data:` addresses in whatever form clients make of these.
What is counted is counted before any picture is decoded.

Unless the server was told otherwise, nothing is fetched and no path is opened. Where it may fetch, `conversation_of` leaves web addresses
as they are and `fetched` puts the pictures in their place.
"""

from __future__ import annotations

import asyncio
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistune.errors import ImageError
from vistune.media import ImageLimits, image_bytes
from vistune.serve.failures import ApiError, bad_request, image_failure
from vistune.serve.fetch import Allowance, Fetcher, FetchesBusy, NotFetched
from vistune.types import Conversation, ImagePart, Message, Part, Role, TextPart

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

_BARE_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")
"""How the base64 of a JPEG, PNG, GIF and WebP file begins: some clients leave out everything before it."""


_NOT_FETCHED = (
    "No picture could be fetched from this address. It takes an http or https address at port 80 or 443 of a public host that this server "
    "fetches from, and there a PNG, JPEG, WebP or GIF that arrives soon. Or send the picture itself, as data:image/png;base64,..."
)
"""For whatever went wrong: which address is refused, answers or hangs says something of the network that the server is in."""


@dataclass(frozen=True)
class PictureSources:
    """Where pictures may come from besides the request itself; by default from nowhere."""

    web: Fetcher | None = None
    folder: Path | None = None
    """What `file://` addresses name pictures in."""


class _OnTheWeb(str):
    """An address still to be fetched. Should one ever reach `media.py` as it is, it is refused there."""

    param: str

    def __new__(cls, address: str, param: str):
        self = super().__new__(cls, address)
        self.param = param
        return self


@dataclass
class _Budget:
    """What the rest of a request may still use."""

    characters: int
    images: int
    image_limits: ImageLimits
    sources: PictureSources


def conversation_of(
    messages: list[Any],
    *,
    max_messages: int,
    max_characters: int,
    max_images: int,
    image_limits: ImageLimits,
    continued: bool,
    sources: PictureSources = PictureSources(),
) -> Conversation:
    """The conversation that a request's `messages` mean, its web addresses still to be `fetched`.

    Args:
        continued: whether the last message is the beginning of the reply that is asked for.

    Raises:
        ApiError: 400 for what cannot be understood or is over a limit.
    """
    if len(messages) > max_messages:
        raise bad_request(f"At most {max_messages} messages are read.", param="messages")
    budget = _Budget(max_characters, max_images, image_limits, sources)
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


async def fetched(conversation: Conversation, sources: PictureSources, limits: ImageLimits, hold: Callable[[int], None]) -> Conversation:
    """The conversation with its pictures instead of their web addresses. Cancelling it closes all connections.

    Args:
        hold: is told of every few bytes that are kept, and may raise.

    Raises:
        ApiError: 400 where there is no picture to be had, 429 where other requests' pictures keep all places taken.
    """
    wanted = dict.fromkeys(part.source for part in conversation.images if isinstance(part.source, _OnTheWeb))
    if not wanted or sources.web is None:
        return conversation
    allowance = Allowance(sources.web.policy.total_bytes, hold)
    tasks = [asyncio.ensure_future(_fetched_picture(address, sources.web, allowance, limits)) for address in wanted]
    try:
        pictures = dict(zip(wanted, await asyncio.gather(*tasks), strict=True))
    finally:  # when one fails, the others need not be waited for
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def fill(part: Part) -> Part:
        return ImagePart(pictures[part.source]) if isinstance(part, ImagePart) and isinstance(part.source, _OnTheWeb) else part

    return Conversation(tuple(Message(message.role, tuple(map(fill, message.parts))) for message in conversation.messages))


async def _fetched_picture(address: _OnTheWeb, web: Fetcher, allowance: Allowance, limits: ImageLimits) -> bytes:
    try:
        data = await web.fetch_picture(address, allowance)
        return await asyncio.to_thread(image_bytes, data, limits=limits)
    except FetchesBusy:
        text = "The server is fetching as many pictures as it does at once; ask again later, or send the picture itself."
        raise ApiError(429, "fetches_busy", text, param=address.param, retry_after=10) from None
    except NotFetched:
        raise bad_request(_NOT_FETCHED, param=address.param, code="invalid_image_url") from None
    except ImageError as error:
        raise image_failure(error, address.param) from None


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
    address = _tidied(address)
    kind = address[:7].lower()
    if budget.sources.folder and kind == "file://":
        return ImagePart(_from_folder(address[7:], budget.sources.folder, budget.image_limits, param))
    if budget.sources.web and not kind.startswith("data:"):
        return ImagePart(_OnTheWeb(address, param))
    try:
        return ImagePart(image_bytes(address, limits=budget.image_limits))
    except ImageError as error:
        raise image_failure(error, param) from None


def _from_folder(name: str, folder: Path, limits: ImageLimits, param: str) -> bytes:
    """A picture in the folder, by its path in there or its whole path. All else, whatever it is, is not there."""
    try:
        return image_bytes(Path(urllib.parse.unquote(name)), limits=limits, root=folder)
    except ImageError:
        raise bad_request("The server's folder of pictures holds no such one.", param=param, code="invalid_image_url") from None


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
