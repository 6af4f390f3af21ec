"""Runs the application: the socket, slow and stalled connections, and an end that lets the replies under way finish.

first SIGTERM or Ctrl-C     not ready any more, new requests get 503, those in the house have `grace_seconds` to finish; then exit 0
second one                  at once
a model has died            /health says 503 for `LAST_SECONDS`, then the process ends with the exit code of `WorkerError`
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from http import HTTPStatus
from typing import Any, NoReturn

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vistune.chat_model import ChatModel
from vistune.errors import UsageError, WorkerError
from vistune.serve.api import Settings, create_app
from vistune.serve.edge import Edge
from vistune.serve.gate import Gate
from vistune.serve.health import all_alive
from vistune.serve.keys import ApiKeys

HEADER_SECONDS = 10.0
"""How long a client may take from the first byte of its headers to the last."""
STALL_SECONDS = 30.0
"""How long a client may leave what it was sent unread before its connection is cut."""
WATCH_SECONDS = 1.0
"""How often the models are asked whether they are alive."""
LAST_SECONDS = 3.0
"""How long a server with a dead model says so before it ends, for those who spread the requests to see it."""
_BACKLOG = 2048
"""Connections that the system keeps until we come to accept them."""
_ACCEPTED_AT_ONCE = 32
"""Connections that are accepted before those already accepted are read; by default all that wait, and the first waits for the last."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to this host. A name other than localhost may mean anything, so it is not."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def allowed_hosts(host: str, keys: ApiKeys, extra: Collection[str]) -> frozenset[str] | None:
    """What may stand in the Host header; None for anything. Without keys a foreign name is a foreign page's, so only our own ones may.

    Raises:
        UsageError: others can reach this host, and there is no key.
    """
    if not is_loopback(host) and not keys:
        raise UsageError(
            f"A server on {host} can be reached by others, and nobody would need a key. Give --api-key-file FILE (one key a line), or "
            "leave --host out to serve this machine only."
        )
    if keys and not extra:
        return None
    own = f"[{host}]" if ":" in host else host
    return frozenset(name.lower() for name in (*LOOPBACK_NAMES, own, *extra))


def allowed_origins(given: Collection[str]) -> frozenset[str]:
    """The places whose pages may use the server from a browser, beside its own page.

    Raises:
        UsageError: one of them is no origin. `*` is none either: a server without keys would answer every page that its owner opens.
    """
    for origin in given:
        if not re.fullmatch(r"https?://[a-z0-9.\-\[\]:]+", origin):
            raise UsageError(
                f"{origin!r} is no origin; name the place of the page as its browser does, in lower case: https://example.com:8443"
            )
    return frozenset(given)


def serve(
    models: Mapping[str, ChatModel],
    settings: Settings,
    *,
    host: str,
    port: int,
    grace_seconds: float = 30.0,
    announce: Callable[[str], None] = lambda _address: None,
) -> None:
    """Serves until a signal ends it. Where a model dies, the whole process ends: its thread may be stuck, and nobody could wait for it.

    Args:
        port: 0 takes a free one.
        announce: is told the address of the API once connections are accepted.

    Raises:
        UsageError: host and port cannot be had.
    """
    app, gate = create_app(models, settings)
    with _bound(host, port) as listener, _logging():
        name = f"[{host}]" if ":" in host else host
        announce(f"http://{name}:{listener.getsockname()[1]}/v1")
        asyncio.run(_run(app, gate, listener, grace_seconds, models.values()))


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1, except that neither a client that never ends its headers nor one that never reads keeps a connection, and that
    what comes while the house is full is told so at a fifth of the work.
    """

    _headers_due: asyncio.TimerHandle | None = None
    _reading_due: asyncio.TimerHandle | None = None
    _turned_away = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._headers_due = self.loop.call_later(HEADER_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._turned_away:
            return  # the rest of a body: closing now would take our answer back from who is still sending
        if self.cycle is None and not self.conn.trailing_data[0] and self._turn_away(data):
            return
        if self._headers_due is None and self._between_requests():
            self._headers_due = self.loop.call_later(HEADER_SECONDS, self.transport.abort)
        super().data_received(data)
        if not self._between_requests():
            self._headers_due = _cancelled(self._headers_due)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading_due = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading_due = _cancelled(self._reading_due)

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_due, self._reading_due = _cancelled(self._headers_due), _cancelled(self._reading_due)
        super().connection_lost(exc)

    def _turn_away(self, data: bytes) -> bool:
        """Answers a connection's first request if it is refused whatever its body holds; whether it was.

        What is read here is enough to refuse, not to let anybody in: all else is left to h11.
        """
        if not (isinstance(self.app, Edge) and self.app.crowded()):
            return False
        head, blank, body = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        method, _, target = lines[0].partition(b" ")
        path, _, version = target.partition(b" ")
        if not blank or version != b"HTTP/1.1":
            return False
        split = [line.partition(b":") for line in lines[1:]]
        headers = [(name.lower(), value.strip(b" \t")) for name, _, value in split]
        refusal = self.app.turned_away({"method": method.decode("latin-1"), "path": path.decode("latin-1"), "headers": headers})
        if refusal is None:
            return False
        sent = refusal.headers | {b"connection": b"close"}
        fields = b"".join(b"%s: %s\r\n" % field for field in sent.items())
        self.transport.write(
            b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (refusal.status, HTTPStatus(refusal.status).phrase.encode(), fields, refusal.body)
        )
        self._turned_away = True
        if (b"content-length", b"%d" % len(body)) in headers:
            self.transport.close()
        return True

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)  # asyncio has one number for this and for _ACCEPTED_AT_ONCE

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # `_run` listens to them: uvicorn's own way stops listening before anybody could learn that it is not ready any more


async def _run(app: Edge, gate: Gate, listener: socket.socket, grace_seconds: float, models: Collection[ChatModel]) -> None:
    config = uvicorn.Config(
        app, http=Connection, ws="none", lifespan="off", loop="asyncio", log_config=None, access_log=False, server_header=False,
        backlog=_ACCEPTED_AT_ONCE, proxy_headers=False, timeout_keep_alive=5, timeout_graceful_shutdown=1,
    )  # fmt: skip
    server, signalled = _Server(config), asyncio.Event()

    def stop() -> None:
        if signalled.is_set():
            # No cleaning up: it would wait for the step that the model's thread is in. Decoders end with their end of the socket.
            os._exit(0)
        gate.closing = True
        signalled.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    finishing = asyncio.ensure_future(_finished(signalled, gate, grace_seconds))
    watching = asyncio.ensure_future(_end_with_a_dead_model(models, gate))
    await asyncio.wait((serving, finishing, watching), return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    finishing.cancel()
    watching.cancel()
    await serving


async def _end_with_a_dead_model(models: Collection[ChatModel], gate: Gate) -> NoReturn:
    while all_alive(models):
        await asyncio.sleep(WATCH_SECONDS)
    gate.closing = True
    logging.getLogger("vistune.serve.watch").critical(
        f"A model's thread died or is stuck, and nothing more can be answered. The server ends in {LAST_SECONDS:g} seconds with exit code "
        f"{WorkerError.exit_code}, for a supervisor to start it anew; what went wrong is above."
    )
    await asyncio.sleep(LAST_SECONDS)
    os._exit(WorkerError.exit_code)  # no cleaning up: it would wait for the thread


async def _finished(signalled: asyncio.Event, gate: Gate, grace_seconds: float) -> None:
    await signalled.wait()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_seconds):
            await gate.emptied()


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its protocol asyncio knows that small pieces are to be sent at once: without, the second waits 40 ms for the client's receipt.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(_BACKLOG)
        except (OSError, OverflowError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or "no such address"
            raise UsageError(f"The server cannot be opened at {host}, port {port} ({reason}); choose another --port or --host.") from None
        yield listener


class _Lines(logging.Formatter):
    """Our lines as they are; uvicorn's as JSON too, without the traceback that may come with them."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == "vistune.serve":
            return record.getMessage()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        return json.dumps({"time": stamp, "level": record.levelname, "event": "server", "message": record.getMessage().strip()})


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    # "vistune.serve.watch" is within the first; of what asyncio says, that a client has left is no news.
    levels = {"vistune.serve": logging.INFO, "uvicorn.error": logging.WARNING, "asyncio": logging.ERROR}
    for name, level in levels.items():
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name in levels:
            logging.getLogger(name).removeHandler(handler)
