"""A model of another server: handed on as it comes, and whatever that server does, a word about it in time and no harm to the others."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import httpx2
import pytest
from tests.serve.live import Live, ask, data_address, live, png, until

from vistune import http_client
from vistune.chat_model import ChatModel, OpenAIChatModel, ScriptedChatModel
from vistune.serve import upstream
from vistune.serve.api import Settings
from vistune.serve.keys import ApiKeys
from vistune.serve.roster import Lineage
from vistune.serve.upstream import Upstream
from vistune.types import ImagePart

OUR_KEY, THEIR_KEY = "sk-canary-of-our-client", "sk-canary-of-the-upstream"


def far(address: str, *, key: str = "", model: str = "scripted", **limits: float) -> Upstream:
    return Upstream(OpenAIChatModel(model, base_url=f"{address}/v1", api_key=key), **limits)


@contextmanager
def in_front_of(address: str, settings: Settings | None = None, **options) -> Iterator[tuple[Live, ScriptedChatModel]]:
    """Our server, with a model of the server at `address` called "far" and one of its own called "near"."""
    near = ScriptedChatModel(lambda *_: "I am near.")
    models: dict[str, ChatModel] = {"far": far(address, **options), "near": near}
    with live(models, settings) as server:
        yield server, near


@contextmanager
def raw_server(answer: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that reads a request's head and then does whatever `answer` does; its address, and the heads so far."""
    heads: list[bytes] = []
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(connection: socket.socket) -> None:
            with connection:
                heads.append(connection.recv(65536))
                try:
                    answer(connection)
                except OSError:
                    return

        def accept() -> None:
            while not over.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", heads
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)


def events(*chunks: str | bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    return head + b"".join(b"data: %s\n\n" % (chunk.encode() if isinstance(chunk, str) else chunk) for chunk in chunks)


def chunk(text: str = "word ", finish: str | None = None) -> str:
    return json.dumps(
        {"id": "1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}
    )


def streamed(server: Live, **more) -> tuple[int, list[str]]:
    response = server.post(ask(stream=True, **more))
    return response.status_code, [line.removeprefix("data: ") for line in response.text.splitlines() if line]


# --- what goes well -----------------------------------------------------------------------------------------------------------------------


def test_words_pictures_and_settings_go_to_the_other_server_and_its_reply_comes_back():
    behind = ScriptedChatModel(lambda *_: "It is a red square.")
    with (
        live(behind, Settings(keys=ApiKeys([THEIR_KEY]))) as other,
        in_front_of(other.address, Settings(keys=ApiKeys([OUR_KEY])), key=THEIR_KEY) as (server, _),
    ):
        picture = {"type": "image_url", "image_url": data_address()}
        body = ask([picture, {"type": "text", "text": "What?"}], max_tokens=9, temperature=0.5, seed=7, stop=["#"]) | {"model": "far"}
        reply = server.post(body, headers={"authorization": f"Bearer {OUR_KEY}"}).json()
    assert reply["choices"][0]["message"]["content"] == "It is a red square."
    assert (reply["model"], reply["usage"]["completion_tokens"]) == ("far", 5)
    conversation, params = behind.calls[0]
    assert conversation.images == (ImagePart(png()),)
    assert (params.max_new_tokens, params.temperature, params.seed, params.stop) == (9, 0.5, 7, ("#",))


def test_the_key_of_a_client_goes_no_further_and_ours_goes_to_its_server_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-of-openai")

    def refuse(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with raw_server(refuse) as (first, to_first), raw_server(refuse) as (second, to_second):
        models: dict[str, ChatModel] = {"first": far(first, key=THEIR_KEY), "second": far(second)}
        with live(models, Settings(keys=ApiKeys([OUR_KEY]))) as server:
            for name in models:
                server.post(ask() | {"model": name}, headers={"authorization": f"Bearer {OUR_KEY}", "x-secret": "sk-canary-more"})
    assert b"Bearer " + THEIR_KEY.encode() in to_first[0]
    assert b"canary" not in to_first[0].replace(THEIR_KEY.encode(), b"")
    assert b"canary" not in to_second[0]


def test_a_stream_comes_as_it_is_written_and_its_tokens_are_counted():
    let_go = threading.Event()

    def slowly(connection: socket.socket) -> None:
        connection.sendall(events(chunk("One ")))
        let_go.wait(20)
        usage = json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}})
        connection.sendall(events(chunk("two."), chunk("", "stop"), usage, "[DONE]").partition(b"\r\n\r\n")[2])

    with raw_server(slowly) as (address, _), in_front_of(address) as (server, _):
        body = ask(stream=True, stream_options={"include_usage": True}) | {"model": "far"}
        with httpx2.stream("POST", f"{server.address}/v1/chat/completions", json=body, timeout=20) as response:
            lines = (line for line in response.iter_lines() if line)
            seen = ""
            while "One " not in seen:
                seen = next(lines)
            let_go.set()
            rest = [line.removeprefix("data: ") for line in lines]
    assert "two." in rest[0]
    assert json.loads(rest[-2])["usage"]["total_tokens"] == 5
    assert rest[-1] == "[DONE]"


def test_the_list_of_models_says_what_stands_for_what():
    model = ScriptedChatModel(lambda *_: "fine")
    lineage = {"base": Lineage("llava"), "poet": Lineage("poet-lora", "base"), "far": Lineage("owner/big")}
    with live({"base": model, "poet": model, "far": model, "plain": model}, Settings(lineage=lineage)) as server:
        listed = server.get("/v1/models").json()["data"]
        assert [(each["id"], each["root"], each["parent"]) for each in listed] == [
            ("base", "llava", None),
            ("poet", "poet-lora", "base"),
            ("far", "owner/big", None),
            ("plain", "plain", None),
        ]
        assert server.get("/v1/models/poet").json() == listed[1]


def test_who_leaves_ends_the_work_of_the_other_server_too():
    behind = ScriptedChatModel(lambda *_: "word " * 2000, pause=0.01)
    with live(behind) as other, in_front_of(other.address) as (server, _):
        body = ask(stream=True, max_tokens=4000) | {"model": "far"}
        with httpx2.stream("POST", f"{server.address}/v1/chat/completions", json=body, timeout=20) as response:
            next(response.iter_lines())
            assert behind.num_active == 1
        until(lambda: behind.num_active == 0 and other.gate.num_admitted == 0 and server.gate.num_admitted == 0)
        assert behind.num_cancelled == 1


# --- what goes wrong ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "sent", "ours", "wait"),
    [
        (400, b"", 400, None),
        (401, b"", 502, "60"),
        (403, b"", 502, "60"),
        (404, b"", 502, "60"),
        (413, b"", 400, None),
        (429, b"Retry-After: 7\r\n", 429, "7"),
        (429, b"", 429, "5"),
        (500, b"", 502, "5"),
        (503, b"Retry-After: 11\r\n", 503, "11"),
        (302, b"Location: http://127.0.0.1:9/v1\r\n", 502, "5"),
    ],
)
def test_a_refusal_of_the_other_server_is_one_of_ours_in_fixed_words(status: int, sent: bytes, ours: int, wait: str | None):
    said = b'{"error": {"message": "canary /home/someone 0x7fca5f40", "code": "canary"}}'

    def refuse(connection: socket.socket) -> None:
        head = b"HTTP/1.1 %d No\r\nContent-Type: application/json\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n"
        connection.sendall(head % (status, sent, len(said)) + said)

    with raw_server(refuse) as (address, heads), in_front_of(address) as (server, _):
        for body in (ask(), ask(stream=True)):
            response = server.post(body | {"model": "far"})
            assert (response.status_code, response.headers.get("retry-after")) == (ours, wait)
            assert "canary" not in response.text
    assert len(heads) == 2  # asked once each: who repeats, and when, is the client's choice


def test_the_log_says_what_the_other_server_answered(caplog: pytest.LogCaptureFixture):
    def refuse(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 401 canary\r\nContent-Length: 6\r\nConnection: close\r\n\r\ncanary")

    with caplog.at_level(logging.INFO, "vistune.serve"), raw_server(refuse) as (address, _), in_front_of(address) as (server, _):
        request_id = server.post(ask() | {"model": "far"}).headers["x-request-id"]
        until(lambda: request_id in caplog.text)
    (line,) = [json.loads(record.getMessage()) for record in caplog.records if request_id in record.getMessage()]
    assert (line["status"], line["model"], line["error"], line["upstream_status"]) == (502, "far", "RemoteError", 401)
    assert "canary" not in caplog.text


def test_a_redirect_is_not_followed():
    with raw_server(lambda _: None) as (inside, reached):

        def redirect(connection: socket.socket) -> None:
            connection.sendall(f"HTTP/1.1 307 Go\r\nLocation: {inside}/v1/chat/completions\r\nContent-Length: 0\r\n\r\n".encode())

        with raw_server(redirect) as (address, _), in_front_of(address) as (server, _):
            assert server.post(ask() | {"model": "far"}).status_code == 502
    assert not reached


def endless_junk(connection: socket.socket) -> None:
    connection.sendall(events(chunk()))
    while True:
        connection.sendall(b": nothing\n\n" * 1000)


def endless_event(connection: socket.socket) -> None:
    connection.sendall(events(chunk()) + b"data: ")
    while True:
        connection.sendall(b"x" * 10_000)


def endless_words(connection: socket.socket) -> None:
    connection.sendall(events())
    while True:
        connection.sendall(events(chunk("word " * 200)).partition(b"\r\n\r\n")[2])


def silent_midway(connection: socket.socket) -> None:
    connection.sendall(events(chunk(), chunk()))
    connection.recv(1)


def pings_and_says_nothing(connection: socket.socket) -> None:
    connection.sendall(events(chunk()))
    while True:
        connection.sendall(b": ping\n\n")
        time.sleep(0.02)


@pytest.mark.parametrize(
    "misbehaviour",
    [
        lambda connection: None,
        lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"),
        lambda connection: connection.sendall(events(chunk(), chunk())),
        lambda connection: connection.sendall(events(chunk(), b'{"choices": [{"delta": {"content": "\xff\xfe"}}]}')),
        lambda connection: connection.sendall(events(chunk(), "{]")),
        lambda connection: connection.sendall(events(chunk(), '{"choices": 7}')),
        lambda connection: connection.sendall(events(chunk(), '{"error": {"message": "canary /root"}}')),
        lambda connection: connection.sendall(events("<html>canary</html>")),
        endless_junk,
        endless_event,
        endless_words,
        silent_midway,
        pings_and_says_nothing,
    ],
    ids=[
        "hangs up", "another protocol", "breaks off", "invalid UTF-8", "invalid JSON", "another schema", "an error", "a page",
        "endless junk", "an endless event", "endless words", "silence", "only pings",
    ],
)  # fmt: skip
def test_whatever_the_other_server_does_its_users_are_told_and_the_others_are_served(
    misbehaviour: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(http_client, "MAX_EVENT", 100_000)
    monkeypatch.setattr(http_client, "MAX_STREAM", 300_000)
    with raw_server(misbehaviour) as (address, _), in_front_of(address, silence_seconds=0.3) as (server, _):
        assert server.post(ask() | {"model": "far"}).status_code in (502, 503)
        status, lines = streamed(server, model="far")
        error = json.loads(lines[-1])["error"]
        assert (status in (200, 502, 503), error["code"], error["type"]) == (True, "model_unavailable", "server_error")
        assert "canary" not in " ".join(lines)
        assert server.post(ask() | {"model": "near"}).json()["choices"][0]["message"]["content"] == "I am near."
        until(lambda: server.gate.num_admitted == 0)


@pytest.mark.parametrize(
    ("sent", "is_read"),
    [
        ([b"data: " + b"x" * 80 + b"\n\n"] * 3, True),
        ([b"data: 1\n", b"\ndata: 2\r\n", b"\r\n"] * 20, True),
        ([b"data: " + b"x" * 60, b"x" * 60], False),
        ([b"data: 1\n\n" + b"x" * 120], False),
        ([b"data: 1\n\n"] * 34, False),
    ],
    ids=["events", "ends across chunks", "a long event", "a long event behind another", "many events"],
)
def test_a_stream_is_read_no_further_than_its_bounds(sent: list[bytes], is_read: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http_client, "MAX_EVENT", 100)
    monkeypatch.setattr(http_client, "MAX_STREAM", 400 if is_read else 300)

    async def chunks() -> AsyncIterator[bytes]:
        for each in sent:
            yield each

    async def read() -> list[bytes]:
        return [each async for each in http_client._with_an_end(chunks())()]

    with nullcontext() if is_read else pytest.raises(ValueError, match="longer than"):
        assert asyncio.run(read()) == sent


def test_a_server_that_says_nothing_is_left_alone_for_a_while_and_then_tried_by_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(upstream, "DOWN_SECONDS", 0.4)
    mended = threading.Event()

    def hang_until_mended(connection: socket.socket) -> None:
        if mended.is_set():
            connection.sendall(events(chunk("Back."), chunk("", "stop"), "[DONE]"))
        else:
            connection.recv(1)

    with raw_server(hang_until_mended) as (address, heads), in_front_of(address, first_seconds=0.3) as (server, _):
        body = ask() | {"model": "far"}
        assert server.post(body).status_code == 502
        again = server.post(body)
        assert (again.status_code, again.headers["retry-after"], len(heads)) == (503, "1", 1)  # told at once, without asking
        time.sleep(0.4)
        with ThreadPoolExecutor(4) as pool:
            assert {response.status_code for response in pool.map(lambda _: server.post(body), range(4))} == {502, 503}
        assert len(heads) == 2
        mended.set()
        time.sleep(0.4)
        assert [server.post(body).status_code for _ in range(3)] == [200, 200, 200]


def test_a_server_that_is_not_there_is_a_503_at_once():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with in_front_of(address) as (server, _):
        response = server.post(ask() | {"model": "far"})
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
        assert server.get("/health/ready").status_code == 200


def test_a_server_that_hangs_takes_no_places_of_the_others_and_half_of_the_queue_at_most():
    let_go = threading.Event()
    settings = Settings(max_running=2, max_queue=6)
    with (
        raw_server(lambda _: _until(let_go)) as (address, heads),
        in_front_of(address, settings) as (server, near),
        ThreadPoolExecutor() as pool,
    ):
        hanging = [pool.submit(server.post, ask() | {"model": "far"}) for _ in range(5)]
        until(lambda: server.gate.num_waiting == 3 and len(heads) == 2)
        refused = server.post(ask() | {"model": "far"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert [server.post(ask() | {"model": "near"}).status_code for _ in range(3)] == [200, 200, 200]
        assert len(near.calls) == 3
        let_go.set()
        assert {each.result().status_code for each in hanging} <= {502, 503}


def _until(event: threading.Event) -> None:
    event.wait(20)
