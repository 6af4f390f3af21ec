"""The server as a whole: who is let in, how many, what its log says, and how it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.serve.live import CLIENT, HeldModel, Live, ask, data_address, live, until

from vistune import cli_model
from vistune.__main__ import main
from vistune.chat_model import ScriptedChatModel
from vistune.errors import UsageError
from vistune.serve import server as serving
from vistune.serve.api import Settings
from vistune.serve.gate import Gate
from vistune.serve.keys import ApiKeys, read_keys
from vistune.serve.roster import Roster
from vistune.serve.server import allowed_hosts, is_loopback
from vistune.types import Conversation, SamplingParams

KEY, OTHER = "sk-canary-0123456789abcdef", "sk-canary-fedcba9876543210"


def fine(_conversation: Conversation, _params: SamplingParams) -> str:
    return "fine"


# --- keys ---------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked() -> Iterator[Live]:
    with live(ScriptedChatModel(fine), Settings(keys=ApiKeys([KEY, OTHER]))) as running:
        yield running


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("GET", "/v1/models/scripted"), ("POST", "/v1/chat/completions")])
@pytest.mark.parametrize(
    ("headers", "let_in"),
    [
        ([("Authorization", f"Bearer {KEY}")], True),
        ([("authorization", f"bearer {OTHER}")], True),
        ([], False),
        ([("Authorization", "Bearer wrong")], False),
        ([("Authorization", "Bearer")], False),
        ([("Authorization", KEY)], False),
        ([("Authorization", f"Basic {KEY}")], False),
        ([("Authorization", f"Bearer {KEY}x")], False),
        ([("Authorization", f"Bearer {KEY[:-1]}")], False),
        ([("Authorization", f"Bearer  {KEY}")], False),
        ([("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")], False),
        ([("Authorization", f"Bearer {'x' * 8192}")], False),
        ([("Authorization", "Bearer schlüssel".encode("latin-1").decode("latin-1"))], False),
        ([("X-Api-Key", KEY)], False),
    ],
    ids=str,
)
def test_a_key_opens_every_route_and_nothing_else_does(locked: Live, method: str, path: str, headers: list[Any], let_in: bool):
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    response = CLIENT.request(method, locked.address + path, headers=raw, json=ask() if method == "POST" else None)
    assert response.status_code == (200 if let_in else 401)
    if not let_in:
        assert response.json()["error"]["type"] == "authentication_error"
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "path", ["//v1/models", "/v1/../v1/models", "/v1/%6dodels", "/V1/models", "/v1/models?x=/health/live", "/v1/models/"]
)
@pytest.mark.parametrize("host", ["x/", "x?", "x#", "a@b", "127.0.0.1", ""])
def test_no_spelling_of_path_or_host_gets_round_the_key(locked: Live, path: str, host: str):
    with socket.create_connection(("127.0.0.1", locked.port), timeout=10) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = raw.makefile("rb").read()
    assert answer.split(b" ", 2)[1] in (b"400", b"401", b"404")
    assert b"scripted" not in answer


def test_health_needs_no_key(locked: Live):
    assert locked.get("/health/live").json() == {"status": "ok"}
    assert locked.get("/health/ready").status_code == 200


def test_keys_come_from_a_file_and_from_the_environment(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\n{KEY}  \n")
    keys = read_keys(file, f"{OTHER}, ")
    for key in (KEY, OTHER):
        keys.check([(b"authorization", f"Bearer {key}".encode())])
    assert KEY not in repr(keys) + repr(vars(keys))
    assert not read_keys(None, None)


@pytest.mark.parametrize("content", ["", "# none\n", "short", "k\u00e9y-0123456789abcdef", "x" * 600])
def test_a_file_without_a_safe_key_is_refused(tmp_path: Path, content: str):
    file = tmp_path / "keys"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        read_keys(file, None)
    assert not content or content not in str(refused.value)


def test_a_file_of_keys_that_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(UsageError):
        read_keys(tmp_path / "none", None)


# --- who reaches it -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.com", ""])
def test_a_public_address_without_a_key_refuses_to_start(host: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli_model, "loaded_roster", lambda *_, **__: pytest.fail("the model was loaded"))
    monkeypatch.delenv("VISTUNE_API_KEY", raising=False)
    assert main(["serve", "--host", host]) == UsageError.exit_code
    assert "--api-key-file" in capsys.readouterr().err


def test_loopback_is_known_in_all_its_spellings():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.9.1", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "localhost.example.com", "8.8.8.8")))
    assert allowed_hosts("0.0.0.0", ApiKeys([KEY]), ()) is None


def test_a_name_that_is_not_ours_gets_421_so_that_no_page_reaches_the_server_by_one():
    with live(ScriptedChatModel(fine), Settings(hosts=allowed_hosts("127.0.0.1", ApiKeys(), ["gpu.lan"]))) as server:
        for host, status in (("evil.example", 421), ("", 421), ("localhost:99", 200), ("GPU.lan", 200), ("[::1]:80", 200)):
            assert server.get("/v1/models", headers={"host": host}).status_code == status, host
        assert server.get("/v1/models", headers={"host": "evil.example"}).json()["error"]["code"] == "unknown_host"


# --- how many -----------------------------------------------------------------------------------------------------------------------------


def test_a_full_queue_answers_429_at_once_and_everybody_let_in_is_answered():
    model = HeldModel()
    with live(model, Settings(max_running=2, max_queue=3)) as server, ThreadPoolExecutor(20) as pool:
        accepted = [pool.submit(server.post, ask()) for _ in range(5)]
        until(lambda: (server.gate.num_admitted, server.gate.num_running) == (5, 2))
        refused = [server.post(ask()) for _ in range(10)]
        assert {response.status_code for response in refused} == {429}
        assert {response.json()["error"]["type"] for response in refused} == {"rate_limit_error"}
        assert all(1 <= int(response.headers["retry-after"]) <= 60 for response in refused)
        assert server.gate.num_running == 2
        model.let_go.set()
        assert {done.result().status_code for done in accepted} == {200}
        assert server.post(ask()).status_code == 200
        until(lambda: server.gate.num_admitted == 0)


def test_who_leaves_the_queue_gives_the_place_back():
    model = HeldModel()
    with live(model, Settings(max_running=1, max_queue=1)) as server, ThreadPoolExecutor() as pool:
        first = pool.submit(server.post, ask("first"))
        until(lambda: server.gate.num_running == 1)
        with pytest.raises(httpx2.TimeoutException):
            server.post(ask("second"), timeout=0.2)
        until(lambda: server.gate.num_admitted == 1)
        model.let_go.set()
        assert first.result().status_code == 200
        assert [conversation.messages[0].text for conversation, _ in model.calls] == ["first"]


def test_a_reply_that_takes_too_long_is_ended_with_a_word():
    model = ScriptedChatModel(lambda *_: "word " * 4000, pause=0.01)
    with live(model, Settings(reply_seconds=0.3)) as server:
        assert server.post(ask()).status_code == 504
        streamed = server.post(ask(stream=True)).text
        assert json.loads(streamed.strip().splitlines()[-1].removeprefix("data: "))["error"]["code"] == "timeout"
        until(lambda: model.num_active == 0 and server.gate.num_admitted == 0)


def test_two_hundred_disconnects_leave_nothing_running():
    model = ScriptedChatModel(lambda *_: "word " * 1000, pause=0.005)
    body = json.dumps(ask(stream=True)).encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with live(model, Settings(max_running=16, max_queue=400)) as server:
        for number in range(200):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
                raw.sendall(request + body[: len(body) if number % 3 else 10])
                for _ in range(number % 4):
                    raw.recv(64) if number % 3 else None
        until(lambda: model.num_active == 0 and server.gate.num_admitted == 0 and server.gate.num_running == 0)
        assert server.get("/health/live").status_code == 200


def test_small_pieces_are_sent_at_once_and_do_not_wait_for_the_receipt_of_those_before():
    found: list[int] = []

    async def served(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        found.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def connect() -> None:
        with serving._bound("127.0.0.1", 0) as listener:
            async with await asyncio.start_server(served, sock=listener):
                reader, writer = await asyncio.open_connection(*listener.getsockname())
                await reader.read()
                writer.close()

    asyncio.run(connect())
    assert [bool(each) for each in found] == [True]


def test_a_body_that_never_arrives_is_given_up():
    with live(ScriptedChatModel(fine), Settings(body_seconds=0.2)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
            assert raw.recv(64).startswith(b"HTTP/1.1 408")
        until(lambda: server.gate.num_admitted == 0)


def test_headers_that_never_end_are_cut_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serving, "HEADER_SECONDS", 0.3)
    with live(ScriptedChatModel(fine)) as server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 200")
        raw.sendall(b"GET /health/live HTT")
        started = time.monotonic()
        assert _ended(raw)
        assert time.monotonic() - started < 5


def test_a_client_that_never_reads_is_cut_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serving, "STALL_SECONDS", 0.3)
    model = ScriptedChatModel(lambda *_: "x" * 40_000_000, piece_size=20_000)
    body = json.dumps(ask(stream=True, max_tokens=4096)).encode()
    with live(model) as server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        raw.sendall(head % len(body) + body)
        until(lambda: server.gate.num_admitted == 1)
        until(lambda: server.gate.num_admitted == 0)
        assert _ended(raw)


def _ended(raw: socket.socket) -> bool:
    """Reads to the end, which a cut connection has and a stalled one has not."""
    try:
        while raw.recv(1 << 20):
            pass
    except ConnectionResetError:
        return True
    return True


@pytest.mark.parametrize(
    "raw_request",
    [
        b"GET /none HTTP/0.9\r\n\r\n", b"nonsense\r\n\r\n", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n",
        b"GET http://127.0.0.1/v1/none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
    ids=lambda value: repr(value[:70]),
)  # fmt: skip
def test_broken_http_is_answered_or_closed_and_the_next_request_is_served(locked: Live, raw_request: bytes):
    with socket.create_connection(("127.0.0.1", locked.port), timeout=10) as raw:
        try:
            raw.sendall(raw_request)
            answer = raw.recv(4096)
        except ConnectionError:
            answer = b""
    assert answer == b"" or answer.split(b" ", 2)[1] in (b"400", b"401", b"404", b"413", b"415", b"431")
    assert locked.get("/health/live").status_code == 200


def test_the_wait_that_a_client_is_told_is_bounded():
    gate = Gate(max_running=1, max_queue=0)
    with gate.admitted():
        assert gate._seconds_until_free() == 1
        gate._typical_seconds = 1e9
        assert gate._seconds_until_free() == 60


# --- the log ------------------------------------------------------------------------------------------------------------------------------


def logged(caplog: pytest.LogCaptureFixture) -> list[dict]:
    """The log's lines but those of the question that `live` itself asks until the server is up."""
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    return [line for line in lines if line.get("route") != "/health/live"]


def test_the_log_holds_a_line_a_request_and_neither_keys_nor_texts_nor_pictures(caplog: pytest.LogCaptureFixture):
    model = ScriptedChatModel(["canary reply", ValueError("canary trouble"), "canary reply"])
    picture = {"type": "image_url", "image_url": data_address()}
    with caplog.at_level(logging.INFO, "vistune.serve"), live(model, Settings(keys=ApiKeys([KEY]))) as server:
        allowed = {"authorization": f"Bearer {KEY}"}
        responses = [
            server.post(ask([{"type": "text", "text": "canary question"}, picture]), headers=allowed),
            server.post(ask("canary question"), headers=allowed),
            server.post(ask("canary", stream=True), headers=allowed),
            server.post(ask("canary"), headers={"authorization": "Bearer sk-canary-wrong"}),
            server.get("/v1/canary?key=canary", headers=allowed),
            server.get("/v1/models/canary", headers=allowed),
        ]
        until(lambda: len(logged(caplog)) >= 6)
    lines = logged(caplog)
    assert [line["status"] for line in lines] == [response.status_code for response in responses] == [200, 500, 200, 401, 404, 404]
    assert [line["id"] for line in lines] == [response.headers["x-request-id"] for response in responses]
    assert "canary" not in caplog.text
    assert data_address()[30:] not in caplog.text
    assert (lines[0]["model"], lines[0]["images"], lines[0]["route"]) == ("scripted", 1, "/v1/chat/completions")
    assert lines[1]["error"] == "ValueError"
    assert lines[1]["where"]
    assert lines[5]["route"] == "/v1/models/{name:path}"


# --- the end ------------------------------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from vistune.chat_model import ScriptedChatModel
from vistune.serve.api import Settings
from vistune.serve.server import serve
model = ScriptedChatModel(lambda *_: "word " * 30, pause=0.1)
grace = float(sys.argv[1])
serve({"scripted": model}, Settings(), host="127.0.0.1", port=0, grace_seconds=grace, announce=lambda address: print(address, flush=True))
"""


@contextmanager
def process(grace: float) -> Iterator[tuple[subprocess.Popen[str], Live]]:
    child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(grace)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        address = child.stdout.readline().strip().removesuffix("/v1")
        yield child, Live(address, int(address.rpartition(":")[2]), Gate(max_running=1, max_queue=1))
    finally:
        child.kill()
        child.communicate()


def test_a_first_signal_lets_replies_finish_and_turns_others_away():
    with process(grace=30) as (child, server), ThreadPoolExecutor() as pool:
        under_way = pool.submit(server.post, ask())
        until(lambda: server.get("/health/ready").json()["running"] == 1)
        child.send_signal(signal.SIGTERM)
        until(lambda: server.get("/health/ready").status_code == 503)
        assert server.get("/health/live").status_code == 200
        refused = server.post(ask())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert under_way.result().json()["choices"][0]["finish_reason"] == "stop"
        assert child.wait(timeout=10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(number: int):
    with process(grace=30) as (child, server):
        threading.Thread(target=_post_and_forget, args=(server,), daemon=True).start()
        until(lambda: server.get("/health/ready").json()["running"] == 1)
        child.send_signal(number)
        until(lambda: server.get("/health/ready").status_code == 503)
        started = time.monotonic()
        child.send_signal(number)
        assert child.wait(timeout=10) == 0
        assert time.monotonic() - started < 3


def test_who_takes_longer_than_the_grace_is_cut_off():
    with process(grace=0.1) as (child, server):
        threading.Thread(target=_post_and_forget, args=(server,), daemon=True).start()
        until(lambda: server.get("/health/ready").json()["running"] == 1)
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=10) == 0


def _post_and_forget(server: Live) -> None:
    try:
        server.post(ask())
    except httpx2.HTTPError:
        return


# --- the verb -----------------------------------------------------------------------------------------------------------------------------


def test_the_verb_hands_model_keys_and_limits_to_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    model, served = ScriptedChatModel(fine), {}

    @contextmanager
    def loaded(roster: Roster, *_: object, **__: object) -> Iterator[dict[str, ScriptedChatModel]]:
        yield dict.fromkeys(roster.lineage, model)

    monkeypatch.setattr(cli_model, "loaded_roster", loaded)
    monkeypatch.setattr(serving, "serve", lambda models, settings, **options: served.update(options, models=models, settings=settings))
    monkeypatch.setenv("VISTUNE_API_KEY", KEY)
    (tmp_path / "mine").mkdir()
    assert main(["serve", str(tmp_path / "mine"), "--host", "0.0.0.0", "--port", "0", "--max-queue", "5", "--max-tokens", "9"]) == 0
    assert served["models"] == {"mine": model}
    assert (served["host"], served["port"], served["settings"].max_queue, served["settings"].limits.max_tokens) == ("0.0.0.0", 0, 5, 9)
    assert served["settings"].keys
    assert "VISTUNE_API_KEY" not in os.environ
    assert main(["serve", "assistant", "--name", "a", "--name", "b"]) == 0
    assert list(served["models"]) == ["a", "b"]
    assert served["settings"].hosts == {"localhost", "127.0.0.1", "[::1]"}


def test_the_verb_says_where_to_chat_unless_the_page_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(cli_model, "loaded_roster", lambda *_, **__: nullcontext({"assistant": ScriptedChatModel(fine)}))
    monkeypatch.setattr(serving, "serve", lambda _models, _settings, announce, **_: announce("http://127.0.0.1:8000/v1"))
    monkeypatch.delenv("VISTUNE_API_KEY", raising=False)
    assert main(["serve"]) == 0
    assert "http://127.0.0.1:8000/ " in capsys.readouterr().err
    assert main(["serve", "--no-page"]) == 0
    said = capsys.readouterr().err
    assert "http://127.0.0.1:8000/v1" in said
    assert "browser" not in said


def test_a_port_that_is_taken_is_said_in_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match=re.escape("--port")):
        serving.serve({"scripted": ScriptedChatModel(fine)}, Settings(), host="127.0.0.1", port=taken.getsockname()[1])


def test_a_server_without_a_model_is_refused():
    with pytest.raises(UsageError):
        serving.serve({}, Settings(), host="127.0.0.1", port=0)
