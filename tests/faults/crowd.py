"""A crowd of clients in a process of its own, so that what they cost is not the server's: prints one JSON line of what became of them.

    python -m tests.faults.crowd JSON

    ask         N connections are opened, then all ask at once: statuses, seconds to the answer, whether each answer was whole
    slow-head   a byte of a header a second
    slow-body   a byte of a body a second
    slow-read   much is asked for and nothing read

`holding` is printed once all are connected.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import socket
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vistune.serve.page import DEMO

LARGE = (
    b"GET /web/examples/%s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % max(DEMO.glob("*.*"), key=lambda file: file.stat().st_size).name.encode()
)
"""Asks for the largest file there is: what is not read is to cost bytes and not requests."""


@dataclass(frozen=True)
class Crowd:
    port: int
    count: int
    kind: Literal["ask", "slow-head", "slow-body", "slow-read"]
    body: dict[str, Any]
    seconds: float = 120.0
    """How long a client stays, if nobody throws it out."""


@dataclass(frozen=True)
class Outcome:
    """Of one client. `whole`: an answer that is complete JSON or a stream with its end."""

    status: int
    seconds: float
    whole: bool
    retry_after: bool


async def main(crowd: Crowd) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    connected, go = asyncio.Semaphore(0), asyncio.Event()
    clients = [asyncio.ensure_future(_client(crowd, connected, go)) for _ in range(crowd.count)]
    for _ in clients:
        await connected.acquire()
    print("holding", flush=True)
    go.set()
    outcomes = await asyncio.gather(*clients)
    print(json.dumps([asdict(outcome) for outcome in outcomes]), flush=True)


async def _client(crowd: Crowd, connected: asyncio.Semaphore, go: asyncio.Event) -> Outcome:
    body = json.dumps(crowd.body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    line = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if crowd.kind == "slow-read":
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)  # a window that is soon full
    line.setblocking(False)
    loop, raw = asyncio.get_running_loop(), b""
    try:
        await loop.sock_connect(line, ("127.0.0.1", crowd.port))
        connected.release()
        await go.wait()
        started = time.monotonic()
        try:
            async with asyncio.timeout(crowd.seconds):
                match crowd.kind:
                    case "ask":
                        await loop.sock_sendall(line, head + body)
                        raw = await loop.sock_recv(line, 1 << 16)
                        seconds = time.monotonic() - started  # to the first byte of the answer
                        while received := await loop.sock_recv(line, 1 << 16):
                            raw += received
                        return _outcome(raw, seconds)
                    case "slow-head":
                        raw = await _drip(loop, line, head)
                    case "slow-body":
                        await loop.sock_sendall(line, head)
                        raw = await _drip(loop, line, body)
                    case "slow-read":
                        # More than the buffers between us hold, asked for in one breath.
                        await loop.sock_sendall(line, LARGE * 200)
                        await _until_closed(line)
        except (ConnectionError, TimeoutError):
            pass
        return _outcome(raw, time.monotonic() - started)
    finally:
        line.close()


async def _drip(loop: asyncio.AbstractEventLoop, line: socket.socket, data: bytes) -> bytes:
    """A byte a second, until the server answers or hangs up; returns what it said."""
    for byte in data:
        await loop.sock_sendall(line, bytes([byte]))
        try:
            return await asyncio.wait_for(loop.sock_recv(line, 1 << 16), 1)
        except TimeoutError:
            continue
    return b""


async def _until_closed(line: socket.socket) -> None:
    """Waits without reading, and so mostly without hearing that the connection was cut: the end stands behind what was not read."""
    while not line.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        await asyncio.sleep(0.25)


def _outcome(raw: bytes, seconds: float) -> Outcome:
    head, _, body = raw.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
    whole = body.rstrip().endswith((b"}", b"[DONE]", b"0"))
    return Outcome(int(status[1]) if status else 0, round(seconds, 4), whole, b"retry-after: " in head.lower())


if __name__ == "__main__":
    asyncio.run(main(Crowd(**json.loads(sys.argv[1]))))
