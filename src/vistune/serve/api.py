"""The OpenAI-compatible API over a `dict[str, ChatModel]`.

    GET  /health/live        the models can answer: 503 when one has died
    GET  /health/ready       it takes requests: 503 while shutting down
    GET  /health             both
    GET  /metrics            for Prometheus (metrics.py)
    GET  /v1/models          what is served; /v1/models/NAME one of it
    POST /v1/chat/completions
    GET  /                   the web chat and its files (page.py)

    edge ─► key, per route ─► gate (429) ─► body (413, 408) ─► schemas (400) ─► a place at the model ─► answer or events

Anything wrong becomes an `ApiError`, and that one shape of answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Container, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from vistune.chat_model import ChatModel
from vistune.errors import UsageError, VistuneError
from vistune.serve.answers import Answer, event, usage
from vistune.serve.bodies import check_headers, read_body
from vistune.serve.edge import Edge, Receive, RequestLog, Scope, Send, log_of, send_error
from vistune.serve.failures import ApiError, explained, internal_error
from vistune.serve.gate import Gate, Place
from vistune.serve.health import all_alive
from vistune.serve.keys import ApiKeys, Route
from vistune.serve.messages import fetched
from vistune.serve.metrics import CONTENT_TYPE, Metrics
from vistune.serve.page import page_router
from vistune.serve.replies import ClientGone, draw, unless_gone
from vistune.serve.roster import Lineage
from vistune.serve.schemas import ChatRequest, RequestLimits, read_request
from vistune.types import Delta, Reply

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Settings:
    """How an application behaves.

    `hosts` are the names that it answers to, None for any; `origins` the places whose pages may use it in a browser besides its own.
    """

    keys: ApiKeys = field(default_factory=ApiKeys)
    limits: RequestLimits = field(default_factory=RequestLimits)
    hosts: Container[str] | None = None
    origins: frozenset[str] = frozenset()
    max_running: int = 16
    max_queue: int = 64
    max_held_bytes: int = 256 << 20
    """The bodies of all requests together; a single one of the largest size always fits."""
    body_seconds: float = 30.0
    """How long a client may take to send its request."""
    reply_seconds: float = 600.0
    """How long a reply may take, the wait in the queue included."""
    page: bool = True
    """Whether the web chat is served too."""
    lineage: Mapping[str, Lineage] = field(default_factory=dict)
    """What the names of models stand for, where they do not stand for themselves."""


@dataclass(frozen=True)
class House:
    """What requests share."""

    models: Mapping[str, ChatModel]
    settings: Settings
    gate: Gate
    metrics: Metrics
    started: int


def create_app(models: Mapping[str, ChatModel], settings: Settings | None = None) -> tuple[Edge, Gate]:
    """The application, and the gate by which it is shut down.

    Raises:
        UsageError: there is no model to serve.
    """
    if not models:
        raise UsageError("There is no model to serve; name one.")
    settings = settings or Settings()
    held_bytes = max(settings.max_held_bytes, settings.limits.body_bytes)
    several = len({id(model) for model in models.values()})  # one may have more than one name
    gate = Gate(max_running=settings.max_running, max_queue=settings.max_queue, max_bytes=held_bytes, models=several)
    house = House(models, settings, gate, Metrics(models, gate), int(time.time()))
    # No pages of documentation: FastAPI's load scripts from elsewhere. No redirects: clients send their key along.
    app = FastAPI(title="vistune", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.include_router(_health(house))
    app.include_router(_metrics(house))
    app.include_router(_models(house))
    app.include_router(_chat(house))
    if settings.page:
        app.include_router(page_router())
    for kind in (ApiError, VistuneError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_to)
    if not settings.origins:
        return Edge(app, hosts=settings.hosts, refuse=_turnstile(house), crowded=lambda: gate.is_full, observe=house.metrics.observe), gate
    # A page of another place may not even read why it was refused, unless the answer says so: then the routes refuse, within this.
    exposed = ("x-request-id", "retry-after")
    shared = CORSMiddleware(
        app, allow_origins=settings.origins, allow_methods=("GET", "POST"), allow_headers=("*",), expose_headers=exposed
    )
    return Edge(shared, hosts=settings.hosts, origins=settings.origins, observe=house.metrics.observe), gate


def _turnstile(house: House) -> Callable[[Scope], None]:
    """Turns chat requests away while there is no place for them, before anything takes them up, which is most of the work of a burst."""

    def refuse(scope: Scope) -> None:
        if house.gate.is_full and scope["path"] == CHAT and scope["method"] == "POST":
            log_of(scope).route = CHAT
            house.settings.keys.check(scope["headers"])
            house.gate.check()

    return refuse


# --- routes -------------------------------------------------------------------------------------------------------------------------------


def _health(house: House) -> APIRouter:
    router = APIRouter()

    def check_life() -> None:
        if not all_alive(house.models.values()):
            raise ApiError(503, "model_dead", "The model cannot answer any more; the server is about to be started anew.", retry_after=10)

    async def live() -> JSONResponse:
        check_life()
        return JSONResponse({"status": "ok"})

    async def ready() -> JSONResponse:
        check_life()
        if house.gate.closing:
            raise ApiError(503, "shutting_down", "The server is shutting down.", retry_after=5)
        return JSONResponse({"status": "ok", "running": house.gate.num_running, "admitted": house.gate.num_admitted})

    for path, answer in (("/health/live", live), ("/health/ready", ready), ("/health", ready)):
        router.add_api_route(path, answer, methods=["GET", "HEAD"])  # probes ask either way
    return router


def _metrics(house: House) -> APIRouter:
    router = APIRouter(dependencies=[_with_key(house, "metrics")])

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(house.metrics.text(), media_type=CONTENT_TYPE)

    return router


def _with_key(house: House, route: Route = "api") -> Any:
    async def check(request: Request) -> None:
        house.settings.keys.check(request.scope["headers"], route)

    return Depends(check)


def _models(house: House) -> APIRouter:
    router = APIRouter(prefix="/v1", dependencies=[_with_key(house)])

    def listed(name: str) -> dict[str, Any]:
        of = house.settings.lineage.get(name, Lineage(name))
        kind = {"id": name, "object": "model", "created": house.started, "owned_by": "vistune"}
        return kind | {"root": of.root, "parent": of.parent}

    @router.get("/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [listed(name) for name in house.models]})

    @router.get("/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        if name not in house.models:
            raise _no_such_model(house)
        return JSONResponse(listed(name))

    return router


def _chat(house: House) -> APIRouter:
    router = APIRouter(prefix="/v1", dependencies=[_with_key(house)])

    @router.post("/chat/completions")
    async def chat_completions() -> Response:
        return _ChatResponse(house)

    return router


def _model_named(house: House, name: str) -> tuple[str, ChatModel]:
    """A model by name; the first one for a client that names none."""
    served = name or next(iter(house.models))
    if served not in house.models:
        raise _no_such_model(house)
    return served, house.models[served]


def _no_such_model(house: House) -> ApiError:
    return ApiError(404, "model_not_found", f"This model is not served here. Served: {', '.join(house.models)}.", param="model")


# --- a chat completion --------------------------------------------------------------------------------------------------------------------


class _ChatResponse(Response):
    """Reads the request, asks the model and answers; a response, so that its place in the house lasts until the last byte is sent."""

    def __init__(self, house: House):
        super().__init__()
        self._house = house

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings = self._house.settings
        announced = check_headers(scope, settings.limits)
        with self._house.gate.admitted(announced) as place:
            body = await read_body(receive, place, settings.limits, settings.body_seconds)
            request = await asyncio.to_thread(read_request, body, settings.limits)
            del body  # a few megabytes of pictures, for as long as the reply takes
            await unless_gone(receive, self._reply(request, place, log_of(scope), send))

    async def _reply(self, request: ChatRequest, place: Place, entry: RequestLog, send: Send) -> None:
        name, model = _model_named(self._house, request.model)
        entry.model, entry.streamed, entry.choices = name, request.stream, request.params.n
        entry.images = len(request.conversation.images)
        answer = Answer(name, with_usage=request.include_usage)
        limits = self._house.settings.limits
        conversation = await fetched(request.conversation, limits.sources, limits.image, place.hold)
        try:
            async with (
                asyncio.timeout(self._house.settings.reply_seconds),
                aclosing(draw(model, conversation, request.params, self._house.gate)) as deltas,
            ):
                replies = await (
                    _stream(deltas, answer, request, entry, send) if request.stream else _whole(deltas, answer, request, entry, send)
                )
        except TimeoutError:
            late = ApiError(504, "timeout", "The reply took too long; ask for a shorter one, or again later.")
            if not entry.status:
                raise late from None
            return await _end_stream(send, _as_api_error(late, entry))
        if replies:
            tokens = usage(replies)
            entry.prompt_tokens, entry.completion_tokens = tokens["prompt_tokens"], tokens["completion_tokens"]
            entry.cached_tokens = tokens["prompt_tokens_details"]["cached_tokens"]


Deltas = AsyncGenerator[tuple[int, Delta], None]


async def _whole(deltas: Deltas, answer: Answer, request: ChatRequest, entry: RequestLog, send: Send) -> list[Reply]:
    finished: dict[int, Reply] = {}
    async for choice, delta in deltas:
        entry.add_first_token()
        if delta.reply is not None:
            finished[choice] = delta.reply
    replies = [_checked(finished[choice]) for choice in range(request.params.n)]
    await _send_json(answer.completion(replies), send)
    return replies


async def _stream(deltas: Deltas, answer: Answer, request: ChatRequest, entry: RequestLog, send: Send) -> list[Reply]:
    first = await anext(deltas)  # what goes wrong before the first word still has a status of its own
    entry.add_first_token()
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        replies = await _events(first, deltas, answer, request, send)
    except Exception as error:  # too late for a status: the client is told in an event, as OpenAI does
        await _end_stream(send, _as_api_error(error, entry))
        return []
    await _end_stream(send)
    return replies


async def _events(first: tuple[int, Delta], deltas: Deltas, answer: Answer, request: ChatRequest, send: Send) -> list[Reply]:
    finished: dict[int, Reply] = {}
    for choice in range(request.params.n):
        await _send_event(answer.role_chunk(choice), send)

    async def tell(choice: int, delta: Delta) -> None:
        if delta.text:
            await _send_event(answer.text_chunk(choice, delta.text, delta.logprobs), send)
        if delta.reply is not None:
            finished[choice] = _checked(delta.reply)
            await _send_event(answer.finish_chunk(choice, delta.reply), send)

    await tell(*first)
    async for choice, delta in deltas:
        await tell(choice, delta)
    replies = list(finished.values())
    if request.include_usage:
        await _send_event(answer.usage_chunk(replies), send)
    return replies


async def _end_stream(send: Send, error: ApiError | None = None) -> None:
    await _send_event(error.body() if error else "[DONE]", send)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _checked(reply: Reply) -> Reply:
    if reply.finish_reason == "cancelled":  # no reason that a client knows, and no whole reply
        raise ApiError(503, "cancelled", "The reply was stopped before its end; ask again.", retry_after=1)
    return reply


# --- bytes out --------------------------------------------------------------------------------------------------------------------------


async def _send_json(content: dict[str, Any], send: Send) -> None:
    response = JSONResponse(content)
    await send({"type": "http.response.start", "status": 200, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body})


async def _send_event(content: dict[str, Any] | str, send: Send) -> None:
    await send({"type": "http.response.body", "body": event(content), "more_body": True})


# --- the one funnel -----------------------------------------------------------------------------------------------------------------------


def _as_api_error(error: Exception, entry: RequestLog) -> ApiError:
    """The answer to any error, and its mark in the log."""
    if isinstance(error, ApiError):
        known = error
    elif isinstance(error, VistuneError):
        known = explained(error)
    elif isinstance(error, HTTPException):
        known = _of_the_framework(error)
    else:
        known = internal_error()
    entry.code = known.code
    if known.status >= 500 and not isinstance(error, ApiError):
        entry.add_error(error)
    return known


def _of_the_framework(error: HTTPException) -> ApiError:
    if error.status_code == 404:
        return ApiError(404, "not_found", "There is nothing at this address. See GET /v1/models and POST /v1/chat/completions.")
    if error.status_code == 405:
        return ApiError(405, "method_not_allowed", "This address does not take this method.")
    return ApiError(error.status_code, "bad_request", "The request cannot be understood.")


async def _answer_to(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientGone):
        raise error  # nobody is there to be answered
    return _ErrorResponse(_as_api_error(error, log_of(request.scope)))


class _ErrorResponse(Response):
    def __init__(self, error: ApiError):
        super().__init__()
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_error(self._error, send)
