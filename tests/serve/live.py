"""A live server on loopback over any `ChatModel`, for tests that speak HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import uvicorn
from PIL import Image

from vistune.chat_model import GREEDY, ChatModel, ScriptedChatModel
from vistune.serve.api import Settings, create_app
from vistune.serve.gate import Gate
from vistune.serve.server import Connection
from vistune.types import Conversation, Delta, SamplingParams

CLIENT = httpx2.Client(timeout=20, limits=httpx2.Limits(max_keepalive_connections=0, max_connections=None))
"""One for all: making it takes longer than most requests."""


@dataclass(frozen=True)
class Served:
    """A server as its clients see it."""

    address: str
    port: int

    def post(self, body: Any = None, *, path: str = "/v1/chat/completions", **options: Any) -> httpx2.Response:
        if body is not None:
            options["json"] = body
        return CLIENT.post(self.address + path, **options)

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return CLIENT.get(self.address + path, **options)


@dataclass(frozen=True)
class Live(Served):
    """One in this process, whose gate can be looked at."""

    gate: Gate


@contextmanager
def live(model: ChatModel | Mapping[str, ChatModel], settings: Settings | None = None) -> Iterator[Live]:
    """The server in a thread with a loop of its own, ready when the block begins."""
    app, gate = create_app(model if isinstance(model, Mapping) else {"scripted": model}, settings)
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Live(f"http://127.0.0.1:{port}", port, gate)
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=10)
        assert not thread.is_alive()


def until(condition: Any, *, seconds: float = 10.0) -> None:
    """Waits for a condition, and fails where it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this did not come true in time"
        time.sleep(0.01)


def ask(text: Any = "Hi", **more: Any) -> dict[str, Any]:
    """A request's body with one message of the user's."""
    return {"model": "scripted", "messages": [{"role": "user", "content": text}]} | more


def png(colour: str = "red", size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def data_address(data: bytes | None = None, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(png() if data is None else data).decode()}"


class HeldModel(ScriptedChatModel):
    """Says nothing before it is let go, so that what happens meanwhile does not depend on how fast the machine is."""

    def __init__(self):
        super().__init__(lambda *_: "fine")
        self.let_go = threading.Event()

    async def stream(self, conversation: Conversation, params: SamplingParams = GREEDY) -> AsyncGenerator[Delta, None]:
        while not self.let_go.is_set():
            await asyncio.sleep(0.01)
        async for delta in super().stream(conversation, params):
            yield delta
