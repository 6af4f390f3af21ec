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
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NoReturn

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vistune.chat_model import ChatModel
from vistune.errors import UsageError, WorkerError
from vistune.serve.api import Settings, create_app
from vistune.serve.edge import Application
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
    """uvicorn's HTTP/1.1, except that neither a client that never ends its headers nor one that never reads keeps a connection."""

    _headers_due: asyncio.TimerHandle | None = None
    _reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._headers_due = self.loop.call_later(HEADER_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
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

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # `_run` listens to them: uvicorn's own way stops listening before anybody could learn that it is not ready any more


async def _run(app: Application, gate: Gate, listener: socket.socket, grace_seconds: float, models: Collection[ChatModel]) -> None:
    config = uvicorn.Config(
        app, http=Connection, ws="none", lifespan="off", loop="asyncio", log_config=None, access_log=False, server_header=False,
        proxy_headers=False, timeout_keep_alive=5, timeout_graceful_shutdown=1,
    )  # fmt: skip
    server, signalled = _Server(config), asyncio.Event()

    def stop() -> None:
        if signalled.is_set():
            server.should_exit = server.force_exit = True
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
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(2048)
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
    levels = {"vistune.serve": logging.INFO, "uvicorn.error": logging.WARNING}  # "vistune.serve.watch" is within the first
    for name, level in levels.items():
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name in levels:
            logging.getLogger(name).removeHandler(handler)
