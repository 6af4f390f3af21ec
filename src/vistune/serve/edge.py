"""What every request passes first and last: its id, whom it was meant for, its line in the log, and the last net under an error.

A line of the log is one JSON object. It holds what is listed in `RequestLog` and nothing else: no header, no address with its query, no
text, no picture, and of an error its type and place, for its message may quote any of these.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, Container, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

from vistune.errors import RemoteError
from vistune.serve.failures import ApiError, internal_error
from vistune.serve.replies import ClientGone

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger("vistune.serve")

_SCOPE_KEY = "vistune.log"
_CLIENT_GONE = 499
"""nginx's status for a client that did not wait for its answer. Nobody is sent it."""


@dataclass
class RequestLog:
    """What the log says of a request."""

    id: str
    method: str
    route: str = "unknown"
    status: int = 0
    seconds: float = 0.0
    model: str = ""
    streamed: bool = False
    images: int = 0
    choices: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token_seconds: float = 0.0
    code: str = ""
    error: str = ""
    upstream_status: int = 0
    where: list[str] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic, init=False)

    def add_first_token(self) -> None:
        """Notes when the reply began, the wait in the queue included; every further call changes nothing."""
        self.first_token_seconds = self.first_token_seconds or self._seconds()

    def add_end(self) -> None:
        self.seconds = self._seconds()

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 4)

    def add_error(self, error: BaseException) -> None:
        """Notes an error by its type and by the places that it went through, and what the server behind answered where that is why."""
        self.error = type(error).__name__
        self.upstream_status = (error.status or 0) if isinstance(error, RemoteError) else 0
        self.where = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-8:]]

    def write(self) -> None:
        fields = {name: value for name, value in vars(self).items() if value not in ("", [], 0, False) and name != "_started"}
        level = logging.ERROR if self.status >= 500 else logging.INFO
        stamp = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "level": logging.getLevelName(level), "event": "request"}
        logger.log(level, json.dumps(stamp | fields))


def log_of(scope: Scope) -> RequestLog:
    """The entry of the request that this scope is of."""
    return scope[_SCOPE_KEY]


class Edge:
    """The outermost layer of the application.

    Args:
        hosts: what may stand in a request's Host header, without its port; None allows all. A page in a browser can point a name of
            its own at this machine (DNS rebinding), and that name then stands there.
        origins: places whose pages may ask although the server is at another one.
        refuse: raises the ApiError that a request gets whatever its body holds. It can only refuse: who is let in is the routes' to say.
        crowded: whether requests are being refused so.
        observe: is shown each request's entry after its end, for the metrics.
    """

    def __init__(
        self,
        app: Application,
        *,
        hosts: Container[str] | None,
        origins: Container[str] = (),
        refuse: Callable[[Scope], None] = lambda _scope: None,
        crowded: Callable[[], bool] = lambda: False,
        observe: Callable[[RequestLog], None] = lambda _entry: None,
    ):
        self._app, self._hosts, self._origins, self._refuse, self._observe = app, hosts, origins, refuse, observe
        self.crowded = crowded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        entry = _entered(scope)
        complete = False

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            nonlocal complete
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                ours = _headers_of_all(entry)
                said = dict(message.get("headers", ()))  # what a route says itself stands: the page's files may be kept
                message["headers"] = [*message.get("headers", ()), *((name, value) for name, value in ours.items() if name not in said)]
            await send(message)

        try:
            await self._answer(scope, receive, send_with_id)
        except ClientGone:
            entry.status = _CLIENT_GONE
        except Exception as error:
            entry.add_error(error)
            if not entry.status:
                await send_error(internal_error(), send_with_id)
            elif not complete:
                raise  # the client waits for the rest of its answer: the server closes the connection
        finally:
            entry.route = getattr(scope.get("route"), "path", entry.route)
            self._end(entry)

    def turned_away(self, scope: Scope) -> Refusal | None:
        """The answer to a request that is refused whatever its body holds, counted and logged; None for one that is to be read.

        For the connection: while the house is full, most of the work of a refusal would be to take the request up.
        """
        entry = _entered(scope)
        try:
            self._check(scope)
        except ApiError as error:
            entry.status = error.status
            self._end(entry)
            refusal = Refusal.of(error)
            return replace(refusal, headers=refusal.headers | _headers_of_all(entry))
        return None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope)
        except ApiError as error:
            await send_error(error, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        try:
            if self._hosts is not None and _host(scope) not in self._hosts:
                text = "This server does not go by the name in the Host header. Start it with --allow-host NAME, or use its address."
                raise ApiError(421, "unknown_host", text)
            if self._hosts is not None and _foreign_origin(scope, self._origins):
                text = "A page of another site sent this request. Behind a reverse proxy, have it pass the Host header on as it came."
                raise ApiError(403, "foreign_origin", text)
            self._refuse(scope)
        except ApiError as error:
            log_of(scope).code = error.code
            raise

    def _end(self, entry: RequestLog) -> None:
        entry.add_end()
        entry.write()
        self._observe(entry)


def _entered(scope: Scope) -> RequestLog:
    entry = RequestLog(uuid.uuid4().hex, scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other")
    scope[_SCOPE_KEY] = entry
    return entry


def _headers_of_all(entry: RequestLog) -> dict[bytes, bytes]:
    return {b"x-request-id": entry.id.encode(), b"x-content-type-options": b"nosniff", b"cache-control": b"no-store"}


@dataclass(frozen=True)
class Refusal:
    """An error's whole response."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @classmethod
    def of(cls, error: ApiError) -> Refusal:
        body = json.dumps(error.body()).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body))} | error.headers()
        return cls(error.status, {name.lower().encode(): value.encode() for name, value in headers.items()}, body)


async def send_error(error: ApiError, send: Send) -> None:
    refusal = Refusal.of(error)
    await send({"type": "http.response.start", "status": refusal.status, "headers": list(refusal.headers.items())})
    await send({"type": "http.response.body", "body": refusal.body})


def _foreign_origin(scope: Scope, allowed: Container[str]) -> bool:
    """Whether a page of another place sent this: browsers say where a page came from, programs say nothing.

    Without keys the browser of whoever runs the server is all that stands between its pages and the model. Where there are keys, a page of
    another place has none.
    """
    sent = {name.lower(): value for name, value in scope["headers"] if name.lower() in (b"origin", b"host")}
    origin = sent.get(b"origin")
    if origin is None or origin.lower().partition(b"://")[2] == sent.get(b"host", b"").lower():
        return False
    return origin.decode("latin-1") not in allowed


def _host(scope: Scope) -> str:
    """The name in the Host header without its port, in lower case; empty where there is none, or more than one."""
    sent = [value for name, value in scope["headers"] if name.lower() == b"host"]
    name = sent[0].decode("latin-1").lower() if len(sent) == 1 else ""
    return name if name.endswith("]") else name.rpartition(":")[0] or name
