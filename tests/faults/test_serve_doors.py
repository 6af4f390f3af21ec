"""Ways in that are none: keys and hosts in all spellings, HTTP that two readers read differently, forms, other pages, workers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
from fastapi import APIRouter
from tests.faults.serve_traffic import CHAT, JSON, Said, ask, exchange, forms, raw_requests, request
from tests.faults.tiny_server import CANARY, Options, TinyServer, faults_of_an_answer, tiny_server
from tests.serve.live import CLIENT

from vistune.chat_model import ScriptedChatModel
from vistune.serve import api
from vistune.serve.api import Settings
from vistune.serve.page import assets

# --- S6: keys -----------------------------------------------------------------------------------------------------------------------------

OPEN = {"/health", "/health/live", "/health/ready", *assets()}
"""Addresses that need no key: whether the server lives, and the page, which is the same for everybody."""
AUTHORIZATIONS: dict[str, dict[str, str]] = {
    "none": {},
    "wrong": {"Authorization": "Bearer sk-canary-wrong-wrong-wrong"},
    "one letter off": {"Authorization": f"Bearer {CANARY[:-1]}g"},
    "one letter more": {"Authorization": f"Bearer {CANARY}x"},
    "a blank more": {"Authorization": f"Bearer  {CANARY}"},
    "two keys": {"Authorization": f"Bearer sk-canary-wrong-wrong-wrong\r\nAuthorization: Bearer {CANARY}"},
    "the key twice": {"Authorization": f"Bearer {CANARY}\r\nAuthorization: Bearer {CANARY}"},
    "no scheme": {"Authorization": CANARY},
    "another scheme": {"Authorization": f"Basic {CANARY}"},
    "8 KB": {"Authorization": f"Bearer {'x' * 8192}"},
    "the key and 8 KB": {"Authorization": f"Bearer {CANARY}{'x' * 8192}"},
    "not ASCII": {"Authorization": f"Bearer {CANARY}\u00e9"},
    "another header": {"X-Api-Key": CANARY},
    "a cookie": {"Cookie": f"key={CANARY}; Authorization=Bearer {CANARY}"},
    "a proxy's header": {"Proxy-Authorization": f"Bearer {CANARY}", "X-Forwarded-User": "admin"},
}
HOSTS = ("127.0.0.1", "x/", "x?", "x#", "a@b", "", "127.0.0.1\r\nHost: evil.example", "127.0.0.1/health/live", "evil.example")


def spellings(path: str) -> Iterator[str]:
    """The path, and what a careless router takes for it or for one that needs no key."""
    yield path
    yield "/" + path
    yield path.replace("/v1/", "/v1/../v1/")
    yield path.replace("/v1/", "/v1/%2e%2e/v1/")
    yield path.replace("/v1/", "/V1/")
    yield path + "/"
    yield path + "?x=/health/live"
    yield path + "#/health/live"
    yield path.replace("/v1", "/health/live/../../v1")
    yield path.replace("/v1", "/web/..;/v1")
    yield f"http://127.0.0.1{path}"
    yield f"http://x/health/live{path}"
    yield path + "%00"


def closed_routes() -> list[tuple[str, str]]:
    """Method and address of every route there is that is not open, so that one that is added later is tried too."""
    routers: list[APIRouter] = []
    with patch.object(api, "APIRouter", lambda **options: routers.append(APIRouter(**options)) or routers[-1]):
        api.create_app({"tiny": ScriptedChatModel([])}, Settings())
    found: list[Any] = [route for router in routers for route in router.routes]
    routes = [(method, route.path) for route in found for method in route.methods if route.path not in OPEN]
    return [(method, path.replace("{name:path}", "tiny")) for method, path in routes]


@pytest.fixture(scope="module")
def locked() -> Iterator[TinyServer]:
    with tiny_server(Options(keys=(CANARY, "sk-canary-fedcba9876543210"), hosts=None)) as running:
        yield running


def knock(server: TinyServer, method: str, path: str, headers: dict[str, str], host: str = "127.0.0.1") -> Said:
    body = json.dumps(ask()).encode() if method == "POST" else b""
    lines = {"Content-Length": str(len(body)), "Connection": "close"} | (JSON if body else {}) | headers
    return exchange(server.port, request(body, method=method, path=path, headers=lines, host=host))


def test_there_are_routes_to_be_closed():
    assert {("GET", "/v1/models"), ("GET", "/v1/models/tiny"), ("POST", CHAT)} <= set(closed_routes())


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_no_key_spelling_or_host_opens_a_route(locked: TinyServer):
    tried, statuses = 0, set()
    for (method, path), name, host in itertools.product(closed_routes(), AUTHORIZATIONS, HOSTS):
        plain = knock(locked, method, path, AUTHORIZATIONS[name])
        assert plain.status == 401, (method, path, name)
        for spelling in spellings(path):
            said = knock(locked, method, spelling, AUTHORIZATIONS[name], host)
            tried, statuses = tried + 1, statuses | {said.status}
            assert said.status in {400, 401, 404}, (method, spelling, name, host, said.raw[:200])
            assert "chat.completion" not in said.body
            assert '"tiny"' not in said.body
    print(f"\nS6: {tried} knocks, {sorted(statuses)}")
    assert knock(locked, "GET", "/v1/models", {"Authorization": f"bearer {CANARY}"}).status == 200


def test_a_sample_of_the_matrix_opens_no_route():
    """In this process, with a model that says a word: what is tried whole every night."""
    from tests.serve.live import live

    from vistune.serve.keys import ApiKeys

    matrix = list(itertools.product(closed_routes(), AUTHORIZATIONS, HOSTS, range(13)))
    with live({"tiny": ScriptedChatModel(lambda *_: "fine")}, Settings(keys=ApiKeys([CANARY]))) as server:
        for (method, path), name, host, number in matrix[::29]:
            said = knock(server, method, list(spellings(path))[number], AUTHORIZATIONS[name], host)  # type: ignore[arg-type]
            assert said.status in {400, 401, 404}, (method, path, number, name, host, said.raw[:200])
            assert '"tiny"' not in said.body
            assert said.status != 401 or faults_of_an_answer(said.body) == []


def test_a_host_that_is_not_ours_is_answered_421_on_every_route(server: TinyServer):
    for method, path in [*closed_routes(), *(("GET", path) for path in ("/", "/health/live", "/health/ready"))]:
        for host in ("evil.example", "", "127.0.0.1.evil.example", "a@127.0.0.1x", "localhost.", "127.0.0.1#", "0"):
            said = knock(server, method, path, {}, host)
            assert said.status == 421, (method, path, host)
            assert faults_of_an_answer(said.body) == []


# --- S14: HTTP that is none ---------------------------------------------------------------------------------------------------------------


def test_broken_http_is_refused_or_closed_and_smuggles_nothing(server: TinyServer):
    memory, found = server.memory(), dict[int, int]()
    for name, raw in raw_requests():
        said = exchange(server.port, raw, finish=True)
        found[said.status] = found.get(said.status, 0) + 1
        assert max(said.statuses, default=0) < 500 or said.statuses == [501], (name, said.raw[:200])
        if "pipeline" not in name:
            # One answer at most: a second would be to a request that a proxy before us never saw.
            assert len(said.statuses) <= 1, (name, said.raw[:600])
    print(f"\nS14: {found}; memory +{server.memory() - memory:.0f} MiB")
    assert server.memory() < memory + 64
    assert server.post(ask()).status_code == 200
    server.settled()


# --- S15, U1, U4, U6, U7: what there is no route for --------------------------------------------------------------------------------------


def test_forms_are_refused_wherever_they_are_sent(server: TinyServer):
    memory = server.memory()
    for name, headers, body in forms():
        for path, status in ((CHAT, 415), ("/v1/files", 404), ("/upload", 404), ("/", 405)):
            lines = headers | {"Content-Length": str(len(body)), "Connection": "close"}
            said = exchange(server.port, request(body, path=path, headers=lines))
            assert said.status in (status, 0), (name, path, said.status)  # 0: it was closed while we were still sending
            assert said.status == 0 or faults_of_an_answer(said.body) == []
    assert server.memory() < memory + 64


ABSENT = [
    *("/register_worker", "/refresh_all_workers", "/list_models", "/receive_heart_beat", "/get_worker_address", "/worker_generate_stream"),
    *("/worker_get_status", "/v1/workers", "/v1/internal/model/load", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/add_worker"),
    *("/v1/completions", "/v1/embeddings", "/v1/files", "/v1/images", "/v1/uploads", "/v1/batches", "/v1/conversations", "/v1/responses"),
    *("/v1/feedback", "/v1/history", "/v1/sessions", "/v1/threads", "/feedback", "/flag", "/history", "/session", "/login", "/upload"),
    *("/queue/join", "/run/predict", "/api/predict", "/proxy", "/file", "/config", "/info", "/docs", "/redoc", "/openapi.json", "/debug"),
    *("/shutdown", "/reload", "/invocations", "/tokenize", "/detokenize", "/collective_rpc", "/sleep", "/pause", "/start_profile"),
]
"""What others have, and had holes in: workers that register, files, histories, adapters by path, and doors for developers."""


def test_there_is_no_worker_to_register_no_upload_and_no_history(server: TinyServer):
    forged = {
        "worker_name": "http://127.0.0.1:9/",
        "model_names": ["tiny"],
        "lora_path": "/etc",
        "path": "/etc/passwd",
        "url": "http://127.0.0.1:9/",
    }
    for path in ABSENT:
        for method in ("GET", "POST", "PUT", "DELETE"):
            body = None if method in ("GET", "DELETE") else forged
            response = server.note(CLIENT.request(method, server.address + path, json=body))
            assert response.status_code == 404, (method, path)
            assert "set-cookie" not in response.headers


def test_the_server_keeps_no_session_and_writes_no_file(server: TinyServer):
    before = server.files_written()
    for stream in (False, True):
        response = server.post(ask("remember the word canary", stream=stream))
        assert "set-cookie" not in response.headers
    assert server.files_written() == before == []


# --- U3: other pages ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin", ["null", "https://evil.example", "http://127.0.0.1:1", "http://localhost.evil.example", "file://", "", "x"]
)
def test_a_page_of_another_place_reaches_nothing(server: TinyServer, origin: str):
    """No cookie helps it, no simple request gets through, and a browser that asks first is told no."""
    for method, path in [*closed_routes(), ("GET", "/health/ready"), ("GET", "/")]:
        content = json.dumps(ask()).encode() if method == "POST" else None
        headers = {"Origin": origin, "Cookie": "session=1", "Content-Type": "text/plain"}
        response = server.note(CLIENT.request(method, server.address + path, content=content, headers=headers))
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    answer = server.note(CLIENT.request("OPTIONS", server.address + CHAT, headers=asked))
    assert answer.status_code in (403, 405)
    assert not any(name.lower().startswith("access-control") for name in answer.headers)


def test_a_name_that_was_pointed_at_this_machine_is_not_answered(server: TinyServer):
    """DNS rebinding: to the browser the page is of the same place, and its Host says which."""
    for name in ("evil.example", f"evil.example:{server.port}", "localhost.evil.example"):
        headers = {"Host": name, "Origin": f"http://{name}"}
        assert server.post(ask(), headers=headers).status_code == 421
        assert server.get("/v1/models", headers=headers).status_code == 421
