"""More than the server takes: who is told so, when, and that nothing is held for them. And who may ask from which page."""

from __future__ import annotations

import json
import logging
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx2
import pytest
from tests.serve.live import CLIENT, HeldModel, Live, ask, live, until

from vistune.chat_model import ScriptedChatModel
from vistune.errors import UsageError
from vistune.serve.api import Settings
from vistune.serve.keys import ApiKeys
from vistune.serve.schemas import RequestLimits
from vistune.serve.server import allowed_hosts, allowed_origins

KEY = "sk-canary-0123456789abcdef"
ALLOWED = {"authorization": f"Bearer {KEY}"}


@contextmanager
def full_house(**settings: object) -> Iterator[Live]:
    """A server with its one place taken."""
    model = HeldModel()
    with live(model, Settings(keys=ApiKeys([KEY]), max_running=1, max_queue=0, **settings)) as server, ThreadPoolExecutor(1) as pool:  # type: ignore
        first = pool.submit(server.post, ask(), headers=ALLOWED)
        until(lambda: server.gate.is_full)
        try:
            yield server
        finally:
            model.let_go.set()
            assert first.result().status_code == 200


def head(*, length: int, more: str = f"Authorization: Bearer {KEY}\r\n") -> bytes:
    fields = f"Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{more}"
    return f"POST /v1/chat/completions HTTP/1.1\r\n{fields}\r\n".encode()


def answer(raw: socket.socket) -> tuple[int, str, bytes]:
    """Status, headers and body of an answer at whose end the connection is closed or stays silent."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = raw.recv(65536)
        assert chunk, "closed without an answer"
        received += chunk
    fields, _, body = received.partition(b"\r\n\r\n")
    size = int(fields.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < size:
        body += raw.recv(65536)
    return int(fields.split(b" ")[1]), fields.decode().lower(), body


def test_a_full_house_answers_before_the_body_is_there_and_lets_its_sender_finish():
    with full_house() as server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(head(length=3_000_000) + b"{")
        assert select.select([raw], [], [], 10)[0], "no answer before the body"
        raw.sendall(b" " * 2_999_999)  # fails, and takes the answer with it, where the connection was closed under it
        status, fields, body = answer(raw)
        assert (status, json.loads(body)["error"]["code"]) == (429, "queue_full")
        assert "retry-after: " in fields
        assert "connection: close" in fields
        assert "x-request-id: " in fields
        assert server.gate.num_bytes < 1000


@pytest.mark.parametrize("pieces", [1, 2], ids=["at once", "in two pieces"])
def test_in_a_full_house_the_key_still_comes_first_however_the_headers_arrive(pieces: int):
    with full_house(hosts=allowed_hosts("127.0.0.1", ApiKeys([KEY]), ["127.0.0.1"])) as server:
        for more, status in (
            ("", 401),
            ("Authorization: Bearer sk-someone-else-0000\r\n", 401),
            (f"Authorization: Bearer {KEY}\r\nAuthorization: Bearer {KEY}\r\n", 401),
            (f"authorization:\tBearer {KEY} \r\n", 429),
            (f"Authorization: Bearer {KEY}\r\nHost: evil.example\r\n", 421 if pieces == 1 else 400),
        ):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
                request = head(length=2, more=more) + b"{}"
                raw.sendall(request[:40] if pieces == 2 else request)
                if pieces == 2:
                    time.sleep(0.05)  # or both pieces are read as one
                    raw.sendall(request[40:])
                assert raw.recv(4096).split(b" ")[1] == str(status).encode(), more


def test_a_full_house_serves_all_else_and_refuses_again_on_a_connection_that_was_kept():
    with full_house() as server, httpx2.Client(base_url=server.address, headers=ALLOWED, timeout=20) as client:
        assert client.get("/v1/models").status_code == 200
        assert client.post("/v1/chat/completions", json=ask()).status_code == 429
        assert client.get("/health").status_code == 200
        assert client.get("/metrics").status_code == 200


def test_who_was_turned_away_is_logged_and_counted_as_all_others_are(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "vistune.serve"), full_house() as server:
        response = server.post(ask("canary"), headers=ALLOWED | {"x-request-id": "canary"})
        lines = [json.loads(record.getMessage()) for record in caplog.records]
        (line,) = [line for line in lines if line["status"] == 429]
        assert line["id"] == response.headers["x-request-id"]
        assert (line["route"], line["code"], line["method"]) == ("/v1/chat/completions", "queue_full", "POST")
        assert {"x-content-type-options", "cache-control"} <= set(response.headers)
        assert "canary" not in caplog.text


# --- bodies -------------------------------------------------------------------------------------------------------------------------------


def test_all_bodies_together_have_a_bound_which_the_last_one_over_it_is_told():
    model, large = HeldModel(), ask("x" * 200_000)
    settings = Settings(limits=RequestLimits(body_bytes=300_000), max_held_bytes=500_000)
    with live(model, settings) as server, ThreadPoolExecutor() as pool:
        accepted: list[Future[httpx2.Response]] = [pool.submit(server.post, large) for _ in range(2)]
        until(lambda: server.gate.num_running == 2)
        assert 400_000 < server.gate.num_bytes < 500_000
        refused = server.post(large)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(head(length=250_000))
            assert answer(raw)[0] == 429, "what is announced is refused before it is sent"
        unannounced = server.post(content=iter([json.dumps(large).encode()]), headers={"content-type": "application/json"})
        assert unannounced.status_code == 429
        accepted.append(pool.submit(server.post, ask()))
        until(lambda: server.gate.num_running == 3)
        model.let_go.set()
        assert {done.result().status_code for done in accepted} == {200}
        assert server.post(large).status_code == 200
        until(lambda: (server.gate.num_admitted, server.gate.num_bytes) == (0, 0))


def test_a_body_that_is_only_announced_takes_no_room():
    settings = Settings(limits=RequestLimits(body_bytes=300_000), max_held_bytes=300_000, max_running=4)
    with live(ScriptedChatModel(lambda *_: "fine"), settings) as server, socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(head(length=290_000) + b"{")
        until(lambda: server.gate.num_admitted == 1)
        assert server.post(ask("x" * 200_000)).status_code == 200


def test_one_body_of_the_largest_size_fits_whatever_the_bound_for_all_is():
    with live(ScriptedChatModel(lambda *_: "fine"), Settings(max_held_bytes=10)) as server:
        assert server.post(ask("x" * 100_000)).status_code == 200


def test_more_values_than_any_request_has_are_refused_before_they_are_parsed(monkeypatch: pytest.MonkeyPatch):
    with live(ScriptedChatModel(lambda *_: "fine")) as server:
        prose = "one, two, three, four and " * 19_000
        assert server.post(ask(prose)).status_code == 200
        monkeypatch.setattr("vistune.serve.api.read_request", lambda *_: pytest.fail("it was parsed"))
        refused = server.post(ask() | {"logit_bias": dict.fromkeys(map(str, range(200_000)), 1)})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_json")
        assert "values" in refused.json()["error"]["message"]


# --- pages of other places ----------------------------------------------------------------------------------------------------------------

PAGE = "https://chat.example"


def preflight(server: Live, origin: str) -> httpx2.Response:
    asked = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    return CLIENT.request("OPTIONS", f"{server.address}/v1/chat/completions", headers=asked)


def test_no_page_of_another_place_may_ask_unless_it_was_named():
    with live(ScriptedChatModel(lambda *_: "fine"), Settings(keys=ApiKeys([KEY]))) as server:
        assert preflight(server, PAGE).status_code == 405
        assert not [name for name in server.post(ask(), headers=ALLOWED | {"origin": PAGE}).headers if name.startswith("access-control")]


@pytest.mark.parametrize("keys", [ApiKeys(), ApiKeys([KEY])], ids=["without keys", "with keys"])
def test_a_page_that_was_named_may_ask_and_read_refusals_too(keys: ApiKeys):
    settings = Settings(keys=keys, origins=allowed_origins([PAGE]), hosts=allowed_hosts("127.0.0.1", keys, ()))
    with live(ScriptedChatModel(lambda *_: "fine"), settings) as server:
        permission = preflight(server, PAGE)
        assert permission.status_code == 200
        assert permission.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in permission.headers["access-control-allow-headers"]
        for headers, body in ((ALLOWED, ask()), (ALLOWED, ask(n=99)), ({}, ask())):
            response = server.post(body, headers=headers | {"origin": PAGE})
            assert response.headers["access-control-allow-origin"] == PAGE
            assert "x-request-id" in response.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in response.headers
        for other in ("https://chat.example.evil", "http://chat.example", "null"):
            assert "access-control-allow-origin" not in preflight(server, other).headers
            assert "access-control-allow-origin" not in server.post(ask(), headers=ALLOWED | {"origin": other}).headers
            assert keys or server.post(ask(), headers={"origin": other}).status_code == 403


def test_a_page_that_was_named_is_told_when_the_house_is_full():
    with full_house(origins=allowed_origins([PAGE])) as server:
        response = server.post(ask(), headers=ALLOWED | {"origin": PAGE})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (429, PAGE)


@pytest.mark.parametrize("given", ["*", "null", "chat.example", "https://chat.example/", "https://Chat.example", "https://a b", ""])
def test_what_is_no_origin_is_refused(given: str):
    with pytest.raises(UsageError):
        allowed_origins([given])
