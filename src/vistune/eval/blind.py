"""What a model says when it cannot look: every picture is a grey one of the same size.

Beside a model's score this tells how much of it the questions alone give away.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import AsyncGenerator

from PIL import Image

from vistune.chat_model import GREEDY, ChatModel
from vistune.errors import UsageError
from vistune.media import image_size
from vistune.types import Conversation, Delta, ImagePart, Message, Part, Reply, SamplingParams, VideoPart

GREY = (128, 128, 128)


class BlindChatModel:
    """Any `ChatModel`, blindfolded. Only headers of pictures are read, under the limits of `media`."""

    def __init__(self, model: ChatModel):
        self._model = model

    async def generate(self, conversation: Conversation, params: SamplingParams = GREEDY) -> Reply:
        return await self._model.generate(blinded(conversation), params)

    def stream(self, conversation: Conversation, params: SamplingParams = GREEDY) -> AsyncGenerator[Delta, None]:
        return self._model.stream(blinded(conversation), params)


def blinded(conversation: Conversation) -> Conversation:
    """The conversation with every picture grey. Raises ImageError for a picture that cannot be read, and UsageError for a video."""
    return Conversation(tuple(_blinded_message(message) for message in conversation.messages))


def _blinded_message(message: Message) -> Message:
    return dataclasses.replace(message, parts=tuple(_blinded_part(part) for part in message.parts))


def _blinded_part(part: Part) -> Part:
    if isinstance(part, VideoPart):
        raise UsageError("There is no blind twin of a video; measure a benchmark of pictures.")
    return ImagePart(_grey(*image_size(part.source))) if isinstance(part, ImagePart) else part


@functools.lru_cache(maxsize=64)
def _grey(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), GREY).save(file, "PNG")
    return file.getvalue()
