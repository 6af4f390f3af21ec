"""The records that pass between rooms.

Standard library only, frozen, tuples instead of lists: anything here can be hashed, compared and sent to another process. Records that
hold tensors live in `model/inputs.py`; the ones that only one room uses live in that room.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "cancelled"]
ImageSource = Path | bytes | str
"""Where an image is: a path, the bytes of an image file, or a `data:` / `https:` address. Only `media.py` opens one."""


@dataclass(frozen=True)
class Box:
    """A labelled rectangle. `xyxy` is (left, top, right, bottom) as fractions of width and height, origin at the top left."""

    label: str
    xyxy: tuple[float, float, float, float]


@dataclass(frozen=True)
class ImageAnnotations:
    """What is known about an image without looking at it: the input of the language-only teacher (LLaVA paper, section 3)."""

    image: str
    width: int
    height: int
    captions: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    source: str = ""


@dataclass(frozen=True)
class TextPart:
    text: str


@dataclass(frozen=True)
class ImagePart:
    """A reference to an image, opened only when it is needed."""

    source: ImageSource


@dataclass(frozen=True)
class VideoPart:
    """A reference to a video, decoded only when it is needed: `frames` of it, at the middles of as many equal parts.

    `seconds` are the start and end of the piece that is meant, None for the whole video.
    """

    source: ImageSource
    frames: int = 8
    seconds: tuple[float, float] | None = None


Part = TextPart | ImagePart | VideoPart


@dataclass(frozen=True)
class Message:
    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The message's text parts joined, without its images."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        return tuple(part for part in self.parts if isinstance(part, ImagePart))


@dataclass(frozen=True)
class Conversation:
    """Messages in order. One that ends in an assistant message is continued by a `ChatModel`, not answered anew."""

    messages: tuple[Message, ...]

    @property
    def images(self) -> tuple[ImagePart, ...]:
        return tuple(image for message in self.messages for image in message.images)

    @property
    def last_reply(self) -> str | None:
        """The text of the last assistant message, or None if there is none yet."""
        return next((message.text for message in reversed(self.messages) if message.role == "assistant"), None)

    def then(self, role: Role, *parts: Part | str) -> Conversation:
        """A new conversation with one more message; plain strings become text parts."""
        message = Message(role, tuple(TextPart(part) if isinstance(part, str) else part for part in parts))
        return Conversation((*self.messages, message))


@dataclass(frozen=True)
class InstructionExample:
    """One training conversation with where it came from."""

    id: str
    conversation: Conversation
    kind: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SamplingParams:
    """How a reply is drawn. Temperature 0 is greedy; `seed` None draws a fresh one per call.

    >>> SamplingParams(response_schema=json.dumps(Invoice.model_json_schema()))

    Attributes:
        logprobs: how many alternatives to list at each token; None lists nothing.
        response_schema: JSON schema, as text, that the whole reply is an instance of; ANY_OBJECT where any JSON object will do.
        frequency_penalty: taken off a token's logit for each time that the reply has it already.
        presence_penalty: taken off once for every token that the reply has already.
        logit_bias: (token id, what is added to its logit).
        top_k: only so many of the likeliest tokens are drawn from; 0 for all.
        min_p: only tokens at least this fraction as likely as the likeliest one are drawn from.
        cache_salt: what was read and seen for this conversation serves those with the same salt only, so that no other can find out by
            the time it takes. It changes nothing of the reply.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    response_schema: str | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_k: int = 0
    min_p: float = 0.0
    cache_salt: str = ""


ANY_OBJECT = '{"type":"object"}'


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token, its natural-log probability, and the most likely alternatives at its place."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Reply:
    text: str
    finish_reason: FinishReason
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class Delta:
    """A piece of a streamed reply. The last one carries `reply`, whose text is all pieces joined.

    `logprobs` are those of the tokens since the last piece, where the model tells them as it goes; `reply` has all of them.
    """

    text: str
    reply: Reply | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Question:
    """One benchmark item.

    Items with the same `image_group` share a picture, a scene or a video, so that they are no independent evidence; an item without one
    stands alone. `facts` is what the scorer needs of the official record besides: boxes, the type of answer, a reference answer, ...
    """

    id: str
    conversation: Conversation
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    category: str = ""
    group: str = ""
    image_group: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """A graded answer. `value` is None when no score could be given: a failure is not a zero."""

    value: float | None
    extracted: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Graded:
    question: Question
    reply: Reply
    score: Score
