"""One request's choices, drawn at once and handed on as they come.

    model.stream × n ─► one generator of (choice, delta) ─► api.py

Closing the generator stops the model's work on all of them; so does leaving `unless_gone`, when the client has.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from vistune.chat_model import ChatModel
from vistune.errors import RemoteError
from vistune.serve.gate import Gate
from vistune.types import Conversation, Delta, SamplingParams


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


async def draw(model: ChatModel, conversation: Conversation, params: SamplingParams, gate: Gate) -> AsyncGenerator[tuple[int, Delta], None]:
    """The deltas of `params.n` replies, each with its choice's number. A seed makes them repeatable and still different from each other.

    Raises whatever the model raises for one of them, and RemoteError for a reply that never ended.
    """
    gate.check_line(model)
    events: asyncio.Queue[tuple[int, Delta | BaseException]] = asyncio.Queue()  # bounded by the length of the replies
    each = [dataclasses.replace(params, n=1, seed=None if params.seed is None else params.seed + choice) for choice in range(params.n)]

    async def write(choice: int) -> None:
        try:
            async with gate.running(model), aclosing(model.stream(conversation, each[choice])) as deltas:
                async for delta in deltas:
                    events.put_nowait((choice, delta))
                    if delta.reply is not None:
                        return
            raise RemoteError("The reply broke off before its end.")
        except Exception as error:  # carried to whoever reads the events
            events.put_nowait((choice, error))

    tasks = [asyncio.ensure_future(write(choice)) for choice in range(params.n)]
    unfinished = params.n
    try:
        while unfinished:
            choice, event = await events.get()
            if isinstance(event, BaseException):
                raise event
            unfinished -= event.reply is not None
            yield choice, event
    finally:  # when one fails, or nobody listens any more, the work on the others ends too
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless_gone(receive: Callable[[], Awaitable[Any]], work: Coroutine[Any, Any, None]) -> None:
    """Does the work, or cancels it when the client closes the connection. For use once the request's body was read.

    Raises:
        ClientGone: it did; the work has ended by then.
    """

    async def departure() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(departure())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
