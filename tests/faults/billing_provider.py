"""A provider on loopback that bills: an OpenAI-compatible server that writes down every request it receives, and misbehaves on request.

    with BillingProvider(seeded_plan(seed=7, rate=0.3, faults=PASSING)) as provider:
        OpenAIChatModel("teacher", base_url=provider.url)
        ...
        provider.ledger          what was received, in order

What a request asks (the text of its last message) is its item. A plan says, for an item and the number of its requests so far, which of
FAULTS happens, or None for a proper answer. A refusal (4xx) costs nothing; whatever else happens is billed, also what nobody receives.
`forked` runs one in a process of its own, for tests that fork and kill: its ledger is a file.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Plan = Callable[[str, int], str | None]

PASSING = (
    "429 seconds", "429 date", "429 bare", "500", "502 page", "503",
    "reset before", "reset during", "reset after", "timeout",
)  # fmt: skip
"""Troubles that a repetition overcomes."""
MALFORMED = ("truncated", "wrong schema", "5 MB", "invalid utf-8")
"""Billed answers that are no completion."""
ODD = ("empty", "refusal", "length", "wrong id", "duplicate")
"""Completions that are well-formed, and not what one hopes for."""
FINAL = ("401", "quota", "429 forever")
"""What should end the run at once."""
FAULTS = (*PASSING, *MALFORMED, *ODD, *FINAL)

REFUSALS = ("I'm sorry, but I can't help with that.", "As an AI, I cannot describe this image.", "Lo siento, no puedo ayudar con eso.")
RETRY_AFTER = 1
"""Seconds that `429 seconds` and `429 date` ask for; a date knows only whole ones."""


def seeded_plan(*, seed: int, rate: float, faults: Sequence[str] = PASSING) -> Plan:
    """Each request fails with the given probability, the same one in the same way whenever the seed is the same."""

    def plan(item: str, nth: int) -> str | None:
        chance = random.Random(f"{seed} {item} {nth}")
        return chance.choice(faults) if chance.random() < rate else None

    return plan


@dataclass(frozen=True)
class Entry:
    """One request on the bill. `received` is of the monotonic clock."""

    item: str
    nth: int
    fault: str | None
    received: float
    input_tokens: int
    output_tokens: int


class BillingProvider:
    """Serves until it is closed.

    Args:
        latency: seconds that an answer takes.
        dear: bills the most that the request allows: a token a byte of the prompt, and all the output tokens.
        hang: seconds that `timeout` sleeps after billing.
    """

    def __init__(
        self,
        plan: Plan = lambda *_: None,
        *,
        latency: float = 0.0,
        dear: bool = False,
        hang: float = 2.0,
        file: Path | None = None,
        port: int = 0,
    ):
        self.plan, self.latency, self.dear, self.hang = plan, latency, dear, hang
        self.ledger: list[Entry] = []
        self.answered: dict[int, float] = {}
        """For each number in the ledger, the moment before its answer was sent."""
        self.authorizations: set[str] = set()
        self._file = file and os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._connections: set[socket.socket] = set()
        self._seen: Counter[str] = Counter()
        self._mutex = threading.Lock()
        provider = self

        class Handler(_Handler):
            def setup(self) -> None:
                super().setup()
                provider._connections.add(self.connection)

            def finish(self) -> None:
                provider._connections.discard(self.connection)
                super().finish()

            def do_POST(self) -> None:
                provider._serve(self)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: Any) -> None:
                """A client that was killed is no error here."""

        self._http = Server(("127.0.0.1", port), Handler)
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> BillingProvider:
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up on everybody. Closing twice does nothing."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        for connection in tuple(self._connections):
            with suppress(OSError):  # already gone
                connection.shutdown(socket.SHUT_RDWR)

    def serve_forever(self) -> None:
        self._http.serve_forever()

    def count(self, item: str) -> int:
        return self._seen[item]

    def bill(self, input_per_million: float, output_per_million: float) -> float:
        """What the account would be charged, in money."""
        return sum(entry.input_tokens * input_per_million + entry.output_tokens * output_per_million for entry in self.ledger) / 1e6

    def _serve(self, handler: _Handler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        item, number, fault, entry = self._record(request, handler.headers.get("authorization", ""))
        time.sleep(self.latency)
        body = json.dumps(completion(f"About {item}.", entry.input_tokens, entry.output_tokens)).encode()
        self.answered[number] = time.monotonic()
        self._misbehave(handler, fault, body, entry)

    def _record(self, request: dict[str, Any], authorization: str) -> tuple[str, int, str | None, Entry]:
        item = request["messages"][-1]["content"]
        texts = [message["content"] for message in request["messages"]]
        most = request.get("max_tokens") or request["max_completion_tokens"]
        with self._mutex:
            nth = self._seen[item]
            self._seen[item] += 1
            fault = self.plan(item, nth)
            chance = random.Random(f"{item} {nth}")
            received = sum(len(text.encode()) + 16 for text in texts) + 64 if self.dear else sum(len(text) for text in texts) // 4 + 8
            sent = most if self.dear else chance.randint(1, most)
            refused = fault is not None and fault.startswith(("4", "quota"))
            entry = Entry(item, nth, fault, time.monotonic(), 0 if refused else received, 0 if refused else sent)
            self.ledger.append(entry)
            self.authorizations.add(authorization)
            if self._file is not None:
                os.write(self._file, json.dumps(asdict(entry)).encode() + b"\n")
            return item, len(self.ledger) - 1, fault, entry

    def _misbehave(self, handler: _Handler, fault: str | None, body: bytes, entry: Entry) -> None:
        usage = entry.input_tokens, entry.output_tokens
        key = handler.headers.get("authorization", "").removeprefix("Bearer ")  # careless servers echo it
        match fault:
            case None:
                handler.reply(200, body)
            case "429 seconds":
                handler.reply(429, error("slow down", "rate_limit_exceeded"), {"Retry-After": str(RETRY_AFTER)})
            case "429 date":
                # Dates are whole seconds, so it is rounded up to be no earlier than RETRY_AFTER.
                handler.reply(429, error("slow down"), {"Retry-After": email.utils.formatdate(time.time() + RETRY_AFTER + 1, usegmt=True)})
            case "429 bare":
                handler.reply(429, error("slow down"))
            case "429 forever":
                handler.reply(429, error("slow down"), {"Retry-After": "1000000000"})
            case "500":
                handler.reply(500, error(f"internal error for {key}"))
            case "502 page":
                handler.reply(502, f"<html><title>Bad gateway</title>{key}</html>".encode(), {"Content-Type": "text/html"})
            case "503":
                handler.reply(503, error("overloaded"))
            case "reset before":
                handler.reset()
            case "reset during":
                handler.reply(200, body[: len(body) // 2], {"Content-Length": str(len(body))})
                handler.reset()
            case "reset after":
                handler.reply(200, body)
                handler.reset()
            case "timeout":
                time.sleep(self.hang)
                handler.reset()
            case "truncated":
                handler.reply(200, body[: len(body) * 2 // 3])
            case "wrong schema":
                handler.reply(200, json.dumps({"output": [{"text": f"Your key is {key}"}]}).encode())
            case "5 MB":
                handler.reply(200, json.dumps(completion("word " * (1 << 20), *usage)).encode())
            case "invalid utf-8":
                handler.reply(200, body.replace(b"About", b"\xc3\x28\xff"))
            case "empty":
                handler.reply(200, json.dumps(completion("", *usage)).encode())
            case "refusal":
                handler.reply(200, json.dumps(completion(random.choice(REFUSALS), *usage)).encode())
            case "length":
                handler.reply(200, body.replace(b'"stop"', b'"length"'))
            case "wrong id":
                handler.reply(200, body.replace(b"chatcmpl-1", b"chatcmpl-of-another-request"))
            case "duplicate":
                document = json.loads(body)
                document["choices"] *= 2
                handler.reply(200, json.dumps(document).encode())
            case "401":
                handler.reply(401, error(f"Incorrect API key provided: {key}", "invalid_api_key"))
            case "quota":
                handler.reply(429, error("You exceeded your current quota", "insufficient_quota"), {"Retry-After": "1"})
            case other:
                raise AssertionError(f"no fault is called {other}")


def completion(text: str, input_tokens: int, output_tokens: int) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": input_tokens, "completion_tokens": output_tokens, "total_tokens": input_tokens + output_tokens}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def error(message: str, code: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": "error", "code": code}}).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def reset(self) -> None:
        """Ends the connection with a reset instead of a farewell."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def forked(ledger: Path, plan: Plan = lambda *_: None, **options: Any) -> Iterator[str]:
    """The address of a provider in a process of its own, which writes its ledger to a file."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            provider = BillingProvider(plan, file=ledger, **options)
            os.write(writing, provider.url.encode())
            os.close(writing)
            provider.serve_forever()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        yield os.read(reading, 100).decode()
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def read_ledger(path: Path) -> list[Entry]:
    return [Entry(**json.loads(line)) for line in path.read_bytes().splitlines()] if path.exists() else []
