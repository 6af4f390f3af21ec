"""A model that another server has, as one of ours: with bounds on its silence, so that a server that hangs harms nobody but its own users.

    stream ─► at most one try at a time while it is down ─► OpenAIChatModel ─► a first word in time ─► the next in time

What it sends is bounded in `http_client.py`, what it says in an error goes to the log and not to a client (`failures.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from vistune.chat_model import GREEDY, last_reply
from vistune.errors import RemoteError
from vistune.types import Conversation, Delta, Reply, SamplingParams

if TYPE_CHECKING:
    from vistune.chat_model import ChatModel

CONNECT_SECONDS = 5.0
"""How long a connection to it may take."""
FIRST_SECONDS = 60.0
"""How long it may take to its first word: it has a queue of its own, and a long prompt to read."""
SILENCE_SECONDS = 10.0
"""How long it may be silent between two words."""
DOWN_SECONDS = 5.0
"""How long one that could not be reached, or said nothing, is not asked again."""


class Upstream:
    """A `ChatModel` around another server's, which fails in time.

    Raises RemoteError where that one does, and where it is silent for too long or was so just now.
    """

    def __init__(self, model: ChatModel, *, first_seconds: float = FIRST_SECONDS, silence_seconds: float = SILENCE_SECONDS):
        self._model, self._first_seconds, self._silence_seconds = model, first_seconds, silence_seconds
        self._down_until: float | None = None
        self._being_tried = False

    async def generate(self, conversation: Conversation, params: SamplingParams = GREEDY) -> Reply:
        return await last_reply(self.stream(conversation, params))

    async def stream(self, conversation: Conversation, params: SamplingParams = GREEDY) -> AsyncGenerator[Delta, None]:
        trying = self._down_until is not None
        if self._down_until is not None and (self._being_tried or time.monotonic() < self._down_until):
            raise RemoteError("The server behind this model is down; it will be tried again soon.", retry_after=DOWN_SECONDS, reached=False)
        self._being_tried = self._being_tried or trying
        begun = False
        try:
            async with aclosing(self._model.stream(conversation, params)) as deltas:
                while (delta := await _in_time(deltas, self._silence_seconds if begun else self._first_seconds)) is not None:
                    self._down_until, begun = None, True
                    yield delta
        except RemoteError as error:
            if error.status is not None:
                self._down_until = None  # whatever is wrong, it answers
            elif not begun:
                self._down_until = time.monotonic() + DOWN_SECONDS
            raise
        finally:
            if trying:
                self._being_tried = False


async def _in_time(deltas: AsyncGenerator[Delta, None], seconds: float) -> Delta | None:
    """The next delta, None at the end. Raises RemoteError where it does not come in time."""
    try:
        async with asyncio.timeout(seconds):
            return await anext(deltas, None)
    except TimeoutError:
        raise RemoteError(f"The server behind this model said nothing for {seconds:g} seconds.") from None
