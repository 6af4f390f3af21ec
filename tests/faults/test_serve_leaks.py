"""What an error says and what a log keeps: fixed words, and nothing of a client, of this machine or of this program."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.serve_traffic import CHAT, JSON, ask, exchange, fixed_texts, forms, json_seeds, oversized, raw_requests, request, shown
from tests.faults.tiny_server import CANARY, MIB, Options, TinyServer, assert_clean, faults_of_a_log_line, faults_of_an_answer, tiny_server
from tests.serve.live import data_address, png

from hostile_images import FAMILIES, make
from vistune.serve import server as serving

TEXTS = fixed_texts()


# --- S17: errors --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def roomy() -> Iterator[TinyServer]:
    """One whose bodies may be as large as the largest of the pictures, which its own limits must then refuse."""
    with tiny_server(Options(body_bytes=64 * MIB)) as running:
        yield running


def ask_about(server: TinyServer, file: bytes) -> int:
    """A picture as a client sends it; an error must be in the server's own words."""
    response = server.post(ask(shown("What?", file), max_tokens=1))
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert faults_of_an_answer(response.text) == []
        assert TEXTS.fullmatch(response.json()["error"]["message"])
    return response.status_code


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", FAMILIES)
def test_five_hundred_hostile_pictures_are_answered_in_the_servers_words(roomy: TinyServer, family: str, tmp_path: Path):
    found: dict[int, int] = {}
    for case in make(family, tmp_path):
        if isinstance(case.source, bytes):
            status = ask_about(roomy, case.source)
        else:  # an address, or a path, which a client has no business to name
            address = str(case.source)
            response = roomy.post(ask([{"type": "image_url", "image_url": {"url": address}}], max_tokens=1))
            status = response.status_code
            assert status in (200, 400), (case.name, response.text)
            assert status == 400 or address.lstrip().lower().startswith("data:"), case.name
        found[status] = found.get(status, 0) + 1
    print(f"\nS17, {family}: {found}")
    roomy.settled()
    assert_clean(roomy)


def test_a_few_hostile_pictures_are_answered_in_the_servers_words(server: TinyServer, tmp_path: Path):
    for family in ("wrong type", "truncations", "forged headers"):
        for case in make(family, tmp_path)[:4]:
            assert isinstance(case.source, bytes)
            ask_about(server, case.source)


# --- S18: canaries ------------------------------------------------------------------------------------------------------------------------


def tell_secrets(server: TinyServer) -> int:
    """Sends a key and a name in every place that a request has; returns how many requests it were."""
    asked = 0
    secret = f"{CANARY} /home/canary/.ssh/id_rsa canary@example.com"
    key = {"Authorization": f"Bearer {CANARY}"}
    for headers in (
        key,
        {"Authorization": "Bearer sk-canary-wrong-wrong-wrong"},
        {"Authorization": f"Basic {base64.b64encode(b'canary:canary').decode()}"},
        key | {"X-Request-Id": "canary\tid", "User-Agent": "canary", "Referer": f"http://x/?key={CANARY}", "Cookie": f"key={CANARY}"},
        key | {"X-Forwarded-For": "canary", "Forwarded": "for=canary", "Content-Language": "canary"},
    ):
        for body in (
            ask(secret),
            ask(secret, stream=True),
            ask(secret, user=CANARY, metadata={"canary": CANARY}, name=CANARY),
            ask(secret, model=f"canary-{CANARY}"),
            ask(secret, stop=[CANARY], n=2),
            ask(secret, tools=[{"type": "function", "function": {"name": "canary"}}]),
            ask([{"type": "image_url", "image_url": {"url": f"http://canary:{CANARY}@127.0.0.1:9/canary.png?key={CANARY}"}}]),
            ask([{"type": "image_url", "image_url": {"url": "file:///home/canary/canary.png"}}]),
            ask([{"type": "image_url", "image_url": {"url": data_address(png()[:50] + CANARY.encode())}}]),
            ask(secret * 30),  # longer than the model's context
            {"messages": [{"role": CANARY, "content": CANARY}], CANARY: CANARY},
        ):
            response = server.post(body, headers=headers)
            assert response.status_code < 500
            assert response.status_code == 200 or "canary" not in response.text.lower()
            asked += 1
        for path in (f"/v1/models/{CANARY}", f"/v1/models?key={CANARY}", f"/{CANARY}", f"/v1/chat/completions?api_key={CANARY}"):
            assert "canary" not in server.get(path, headers=headers).text
            asked += 1
    for raw in (
        request(ask(secret), path=f"http://canary:{CANARY}@127.0.0.1{CHAT}"),
        request(ask(secret), headers=JSON | {"X": f"{CANARY}\0"}),
        request(ask(secret), method=CANARY),
        request(ask(secret))[:-7],
        f"GET /{CANARY}\r\n\r\n".encode(),
    ):
        said = exchange(server.port, raw)
        assert "canary" not in said.raw.decode("latin-1").lower()
        asked += 1
    return asked


@pytest.mark.parametrize("keys", [(), (CANARY,)], ids=["open", "locked"])
@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_no_log_no_error_and_no_metric_holds_a_canary_after_everything_was_tried(keys: tuple[str, ...]):
    with tiny_server(Options(keys=keys)) as server:
        asked = tell_secrets(server)
        for _, body in json_seeds().items():
            server.post(content=body.replace(b"Hi", CANARY.encode()), headers=JSON)
        for body in oversized().values():
            server.post(body)
        for _, raw in raw_requests():
            exchange(server.port, raw.replace(b"Hi", CANARY.encode()))
        for _, headers, body in forms():
            exchange(server.port, request(body, headers=headers | {"Content-Length": str(len(body)), "Connection": "close"}))
        metrics = server.get("/metrics").text
        assert "canary" not in metrics.lower()
        server.end()
        lines = server.logged()
        print(f"\nS17, S18: {asked} secrets told, {len(server.refusals)} texts of errors, {len(lines)} lines of log; 0 canaries")
        assert len(lines) > asked
        assert_clean(server)


def test_secrets_that_a_client_tells_stand_in_no_log(server: TinyServer):
    before = len(server.logged())
    asked = tell_secrets(server)
    server.settled()
    lines = server.logged()[before:]
    assert len(lines) > asked // 2
    assert [fault for line in lines for fault in faults_of_a_log_line(line)] == []


def test_what_libraries_say_is_a_line_of_the_log_like_every_other(capsys: pytest.CaptureFixture[str]):
    """Found by half an hour of traffic: asyncio's remarks on clients that had left stood between the lines as bare text."""
    with serving._logging():
        for name in ("asyncio", "uvicorn.error"):
            logging.getLogger(name).warning("socket.send() raised exception.")
            logging.getLogger(name).error("Task failed", exc_info=ValueError(CANARY))
    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["Task failed", "socket.send() raised exception.", "Task failed"]
    assert [fault for line in lines for fault in faults_of_a_log_line(line)] == []


def test_the_search_finds_what_it_looks_for():
    """Or all of the above would prove nothing."""
    shape = {"type": "", "param": None, "code": ""}
    for message in (
        "cannot identify image file <_io.BytesIO object at 0x7f0011223344>",
        "No such file: /home/me/x.png",
        "in vistune.serve.api",
        "ValueError",
        f"the key {CANARY}",
        "failed at gate.py",
    ):
        assert faults_of_an_answer(json.dumps({"error": shape | {"message": message}})), message
    assert faults_of_an_answer(json.dumps({"error": shape | {"message": "The picture is empty."}})) == []
    assert faults_of_an_answer("Internal Server Error")
    assert faults_of_a_log_line("Traceback (most recent call last):")
    assert faults_of_a_log_line(json.dumps({"message": "/usr/lib/python3/x"}))
    assert faults_of_a_log_line(json.dumps({"route": "/v1/models", "where": ["draw:31"]})) == []
