"""A server behind ours that dies, lies, never ends or sends us elsewhere: the client is told an error in our words, others are served."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from tests.faults.tiny_server import CANARY, faults_of_an_answer
from tests.serve.live import ask, live, until

from vistune.chat_model import OpenAIChatModel, ScriptedChatModel
from vistune.serve.api import Settings

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
WORD = b'data: {"id": "1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "word "}}]}\n\n'
ANSWERS = {
    "hangs up at once": b"",
    "hangs up after some words": HEAD + WORD * 3,
    "hangs up inside a word": HEAD + WORD[:-20],
    "hangs up inside a chunk": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n" + WORD,
    "no HTTP": b"SSH-2.0-OpenSSH_9.2 canary\r\n",
    "HTML": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html>canary</html>",
    "no UTF-8": HEAD + b'data: {"choices": [{"delta": {"content": "\xff\xfe"}}]}\n\n',
    "no JSON": HEAD + b"data: canary\n\n",
    "choices of another kind": HEAD + b'data: {"choices": 7}\n\ndata: [DONE]\n\n',
    "an error that quotes": b'HTTP/1.1 500 X\r\nConnection: close\r\n\r\n{"error": {"message": "'
    + CANARY.encode()
    + b' at /home/canary/x.py"}}',
    "a refusal that quotes": b'HTTP/1.1 401 X\r\nConnection: close\r\n\r\n{"error": {"message": "the key ' + CANARY.encode() + b'"}}',
    "an error event": HEAD + b'data: {"error": {"message": "canary"}}\n\n',
    "too long headers": b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n",
    "a length that lies": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 99999\r\n\r\n" + WORD,
}


@dataclass
class Upstream:
    """A listener that says the same to everybody. `endless` goes on with words for ever, `silent` says nothing and stays."""

    port: int
    answer: bytes
    endless: bool = False
    silent: bool = False
    heard: list[bytes] = field(default_factory=list)

    def client(self) -> OpenAIChatModel:
        return OpenAIChatModel("far", base_url=f"http://127.0.0.1:{self.port}/v1", api_key=CANARY)


@contextmanager
def upstream(answer: bytes = b"", *, endless: bool = False, silent: bool = False) -> Iterator[Upstream]:
    ended = threading.Event()

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not ended.is_set():
                line, _ = listener.accept()
                threading.Thread(target=talk, args=(line,), daemon=True).start()

    def talk(line: socket.socket) -> None:
        with contextlib.suppress(OSError), line:
            far.heard.append(line.recv(1 << 20))
            if far.silent:
                ended.wait(30)
                return
            line.sendall(far.answer)
            while far.endless and not ended.is_set():
                line.sendall(WORD * 100)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = Upstream(listener.getsockname()[1], answer, endless, silent)
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        try:
            yield far
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)


NEAR = ScriptedChatModel(lambda *_: "fine")


def test_whatever_a_server_behind_ours_says_its_client_is_told_an_error_and_others_are_served():
    with upstream() as far, live({"far": far.client(), "near": NEAR}) as server:
        for name, far.answer in ANSWERS.items():
            whole = server.post(ask() | {"model": "far"})
            assert 400 <= whole.status_code < 600, name
            assert whole.status_code != 500, name  # it is not our fault
            assert faults_of_an_answer(whole.text) == [], name
            streamed = server.post(ask(stream=True) | {"model": "far"}).text
            assert faults_of_an_answer(streamed.strip().splitlines()[-1].removeprefix("data: ")) == [], (name, streamed)
            assert "[DONE]" not in streamed, name
            assert "canary" not in (whole.text + streamed).lower(), name
            assert server.post(ask() | {"model": "near"}).status_code == 200
        until(lambda: server.gate.num_admitted == 0)
        assert len(far.heard) >= 2 * len(ANSWERS)


@pytest.mark.parametrize("kind", ["silent", "endless"])
def test_a_server_that_never_ends_is_not_waited_for(kind: str):
    far_one = upstream(HEAD + WORD, endless=kind == "endless", silent=kind == "silent")
    with far_one as far, live({"far": far.client(), "near": NEAR}, Settings(reply_seconds=1.0)) as server:
        started = time.monotonic()
        answer = server.post(ask(stream=True) | {"model": "far"})
        last = answer.text.strip().splitlines()[-1].removeprefix("data: ")
        assert json.loads(last)["error"]["code"] in ("timeout", "model_unavailable")
        assert time.monotonic() - started < 60
        until(lambda: server.gate.num_admitted == 0)
        assert server.post(ask() | {"model": "near"}).status_code == 200


def test_a_server_that_sends_us_elsewhere_is_not_followed():
    with upstream(HEAD + WORD + b"data: [DONE]\n\n") as secret, upstream() as far, live({"far": far.client()}) as server:
        for status in (301, 302, 303, 307, 308):
            there = b"http://127.0.0.1:%d/latest/meta-data" % secret.port
            far.answer = b"HTTP/1.1 %d X\r\nLocation: %s\r\nConnection: close\r\n\r\n" % (status, there)
            for stream in (False, True):
                assert server.post(ask(stream=stream) | {"model": "far"}).status_code == 502
        assert secret.heard == []
        assert len(far.heard) == 10
