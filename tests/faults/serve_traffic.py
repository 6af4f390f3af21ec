"""What the server is sent: good requests, hostile ones, and bytes that are no request; and clients that send them as they stand."""

from __future__ import annotations

import json
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.tiny_server import CANARY
from tests.serve.live import data_address, png

import vistune.serve

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


def ask(text: Any = "Hi", **more: Any) -> dict[str, Any]:
    """A good request: the likeliest answer, short."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 4, "temperature": 0} | more


def shown(text: str, *pictures: bytes) -> list[dict[str, Any]]:
    return [*({"type": "image_url", "image_url": {"url": data_address(each)}} for each in pictures), {"type": "text", "text": text}]


# --- bytes as they stand ------------------------------------------------------------------------------------------------------------------


def request(
    body: Any = b"", *, method: str = "POST", path: str = CHAT, headers: dict[str, str] | None = None, host: str = "127.0.0.1"
) -> bytes:
    """A request's bytes; nothing is tidied up."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"Host": host, "Content-Length": str(len(content)), "Connection": "close"} | ({} if headers is None else headers)
    if content and headers is None:
        lines |= JSON
    return b"".join([f"{method} {path} HTTP/1.1\r\n".encode(), *(f"{k}: {v}\r\n".encode() for k, v in lines.items()), b"\r\n", content])


class Said(NamedTuple):
    """All that came back on a connection until the server closed it. `status` of the first answer, 0 where there was none."""

    status: int
    body: str
    raw: bytes

    @property
    def statuses(self) -> list[int]:
        """Of every answer on the connection but those that only say to go on."""
        return [int(number) for number in re.findall(rb"^HTTP/1\.1 ([2-5]\d\d) ", self.raw, re.MULTILINE)]


def exchange(port: int, *pieces: bytes, finish: bool = True, timeout: float = 60.0) -> Said:
    """Sends bytes and reads to the end; `finish` closes our side after the last, as a client that has said everything does."""
    raw = b""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as line:
        try:
            for piece in pieces:
                line.sendall(piece)
            if finish:
                line.shutdown(socket.SHUT_WR)
            while received := line.recv(1 << 16):
                raw += received
        except (ConnectionError, OSError) as error:  # it hung up on us, which is an answer too
            if isinstance(error, TimeoutError):
                raise
    head, _, body = raw.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
    return Said(int(status[1]) if status else 0, body.decode("utf-8", "replace"), raw)


def leave(port: int, body: dict[str, Any], *, chunks: int) -> None:
    """Asks, reads so many chunks of the answer, and hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=300) as line:
        line.sendall(request(body))
        seen = b""
        while seen.count(b"data: ") < chunks and (received := line.recv(1 << 12)):
            seen += received


# --- S2: JSON that is none, or means two things -------------------------------------------------------------------------------------------

_FIELDS = (
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop", "seed", "stream", "stream_options",
    "logprobs", "top_logprobs", "continue_final_message",
)  # fmt: skip
_OF_NO_TYPE: tuple[Any, ...] = ({}, {"a": 1}, [[]], [None], "NaN", "7", True, 1.5, 10**22, -(10**22), "\ud800")
_TAKEN = {
    "model": ("NaN", "7"),
    "stop": ("NaN", "7"),
    "stream": (True,),
    "logprobs": (True,),
    "temperature": (1.5,),
    "stream_options": ({}, {"a": 1}),
}
_TAKEN |= {"continue_final_message": ()}  # true is refused too: there is nothing to continue


def _with(text: str) -> bytes:
    return b'{"max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}], ' + text.encode() + b"}"


def json_seeds() -> dict[str, bytes]:
    """By name, bodies that must all be refused with 400."""
    good = json.dumps(ask())
    numbers = ("temperature", "top_p", "max_tokens", "n", "seed")
    seeds = {
        f"{name} {value[:12]}": _with(f'"logprobs": true, "{name}": {value}')
        for name in numbers
        for value in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", '"NaN"', '"7"', "9" * 23, "9" * 5000, "true")
    }
    seeds |= {f"{name} 1e3": _with(f'"{name}": 1e3') for name in ("max_tokens", "n", "seed", "max_completion_tokens")}
    seeds |= {
        f"{name}: {json.dumps(value)[:30]}": json.dumps(ask() | {name: value}).encode()
        for name in _FIELDS
        for value in _OF_NO_TYPE
        if value not in _TAKEN.get(name, ()) or (isinstance(value, bool) and True not in _TAKEN.get(name, ()))
    }
    return seeds | {
        "nothing": b"",
        "a list": b"[]",
        "a text": b'"text"',
        "null": b"null",
        "deep lists": b"[" * 100_000,
        "deep objects": b'{"a":' * 100_000,
        "deep in a field": _with('"metadata": ' + "[" * 100_000 + "]" * 100_000),
        "half a surrogate": json.dumps(ask("\ud800")).encode(),
        "half a surrogate as bytes": b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
        "a key twice": _with('"n": 1, "n": 1'),
        "messages twice": _with('"messages": []'),
        "BOM": b"\xef\xbb\xbf" + good.encode(),
        "UTF-16": good.encode("utf-16"),
        "UTF-32": good.encode("utf-32"),
        "Latin-1": '{"messages": [{"role": "user", "content": "ä"}]}'.encode("latin-1"),
        "NUL in a text": json.dumps(ask("a\0b")).encode(),
        "NUL outside": good.encode() + b"\0",
        "something after": good.encode() + b"{}",
        "cut off": good.encode()[:-3],
        "a comma too many": _with('"n": 1,'),
        "single quotes": good.replace('"', "'").encode(),
        "a comment": b"/* */" + good.encode(),
        "an endless number": _with('"seed": ' + "1" * 100_000),
        "a long key": _with(f'"{"k" * 100_000}": 1, "n": 0'),
        "many keys": _with(", ".join(f'"k{number}": 1' for number in range(20_000)) + ', "n": 0'),
    }


# --- S3: more than a request may ask for --------------------------------------------------------------------------------------------------


def oversized() -> dict[str, dict[str, Any]]:
    """By name, requests that must be refused with 400 before anything in proportion to them is done."""
    picture = {"type": "image_url", "image_url": {"url": data_address(png())}}
    return {
        "max_tokens 2^31": ask(max_tokens=2**31),
        "max_completion_tokens 2^31": ask(max_completion_tokens=2**31),
        "n 10^6": ask(n=10**6),
        "best_of 10^6": ask(best_of=10**6),
        "top_logprobs 10^6": ask(logprobs=True, top_logprobs=10**6),
        "logit_bias 10^5": ask(logit_bias={str(number): 100 for number in range(10**5)}),
        "stop 10^4": ask(stop=["x"] * 10**4),
        "a long stop": ask(stop="x" * 10**6),
        "1,000 messages": ask() | {"messages": ask()["messages"] * 1000},
        "1,000 pictures": ask([picture] * 1000),
        "10^5 parts": ask([{"type": "text", "text": ""}] * 10**5),
        "temperature -1": ask(temperature=-1),
        "temperature 10^300": ask(temperature=1e300),
        "top_p 2": ask(top_p=2),
        "seed 2^70": ask(seed=2**70),
        "10^6 letters": ask("x" * 10**6),
        "10^6 letters in many messages": ask() | {"messages": [{"role": "user", "content": "x" * 5000}] * 200},
        "a model's name of 10^6": ask(model="x" * 10**6),
        "a role of 10^6": {"messages": [{"role": "u" * 10**6, "content": "Hi"}]},
        "an unknown role 1,000 times": {"messages": [{"role": CANARY, "content": CANARY}] * 200},
    }


# --- S1: whatever -------------------------------------------------------------------------------------------------------------------------

_PIECES = [
    *(b"\0", b"\xff", b"\xed\xa0\x80", b'"', b"\\", b"\\u0000", b"\\ud800", b"{", b"}", b"[", b"]", b":", b",", b"NaN", b"1e999", b"-0"),
    *(b"null", b"true", b"99999999999999999999999", b'"role"', b'"content"', b'"image_url"', b'"data:image/png;base64,"', b"<image>"),
    *(b'"stream":true', b'"n":3', b'"logprobs":true,', b'"stop":[""]', b"\r\n\r\n", b"GET / HTTP/1.1", CANARY.encode()),
]


def good_bodies() -> list[bytes]:
    """What mutations begin from: one of each kind of request."""
    turns = [
        {"role": "system", "content": "Be"},
        *ask()["messages"],
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": "y"},
    ]
    bodies = [
        ask(),
        ask(shown("What?", png())),
        ask(shown("Which?", png(), png("blue", (9, 30)))),
        ask() | {"messages": turns},
        ask(n=2, seed=1, temperature=1.0, top_p=0.9),
        ask(stream=True, stream_options={"include_usage": True}),
        ask(logprobs=True, top_logprobs=3, stop=["a", "b"]),
        ask() | {"messages": turns[:3], "continue_final_message": True},
    ]
    return [json.dumps(body).encode() for body in bodies]


def mutated(generator: random.Random, bodies: list[bytes]) -> bytes:
    """A good body with bytes changed, pieces put in, taken out, doubled or crossed with another."""
    data = bytearray(generator.choice(bodies))
    for _ in range(generator.choice((1, 1, 1, 2, 4, 16))):
        place = generator.randrange(len(data) + 1)
        match generator.randrange(7):
            case 0:
                data[place : place + 1] = bytes([generator.randrange(256)])
            case 1:
                data[place:place] = generator.choice(_PIECES)
            case 2:
                del data[place : place + generator.randrange(1, 20)]
            case 3:
                data[place:place] = data[place : place + generator.randrange(1, 60)]
            case 4:
                other = generator.choice(bodies)
                data[place:] = other[generator.randrange(len(other)) :]
            case 5:
                data[place : place + 4] = generator.choice(_PIECES)
            case _:  # a letter for a letter: what is still a request, another one
                if letters := [index for index, byte in enumerate(data) if chr(byte).isalnum()]:
                    data[generator.choice(letters)] = generator.choice(b"0123456789abcxyz")
    return bytes(data)


def mutated_head(generator: random.Random, body: bytes) -> bytes:
    """A request whose head is broken too."""
    head, _, rest = request(body).partition(b"\r\n\r\n")
    return mutated(generator, [head + b"\r\n\r\n" + rest])


# --- S14: what two readers of HTTP read as two things -------------------------------------------------------------------------------------


def raw_requests(body: bytes = json.dumps(ask()).encode()) -> Iterator[tuple[str, bytes]]:
    """By name, heads and bodies that proxies and servers have disagreed about."""
    start = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n".encode()
    length, chunked = b"Content-Length: %d\r\n" % len(body), b"Transfer-Encoding: chunked\r\n"
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    smuggled = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    yield "length and chunks", start + b"Content-Length: 4\r\n" + chunked + b"\r\n" + chunks + smuggled
    yield "chunks and length", start + chunked + length + b"\r\n0\r\n\r\n" + smuggled
    yield "two lengths", start + length + b"Content-Length: 0\r\n\r\n" + body + smuggled
    yield "two equal lengths in one line", start + b"Content-Length: %d, %d\r\n\r\n" % (len(body), len(body) + 1) + body
    for name in ("-5", "+5", "0x10", "5 5", "1e3", "", "9" * 30, "\u0665"):
        yield f"length {name!r}", start + f"Content-Length: {name}\r\n\r\n".encode() + body
    for name in (
        "xchunked",
        "chunked, identity",
        "identity, chunked",
        "chunked\t",
        "\x0bchunked",
        '"chunked"',
        "gzip, chunked",
        "chunked;q=1",
    ):
        yield f"encoding {name!r}", start + f"Transfer-Encoding: {name}\r\n\r\n".encode() + chunks + smuggled
    yield "two encodings", start + chunked + b"Transfer-Encoding: identity\r\n\r\n" + chunks + smuggled
    yield "a blank before the colon", start + b"Transfer-Encoding : chunked\r\n\r\n" + chunks
    yield "a folded header", start + b"X: a\r\n Transfer-Encoding: chunked\r\n" + length + b"\r\n" + body
    for size in (b"ffffffffffffffffffff", b"-1", b"0x5", b"5;" + b"a" * 100_000, b"", b"g", b"5 ", b"\x0b5"):
        yield f"chunk of {size[:12]!r}", start + chunked + b"\r\n" + size + b"\r\nhello\r\n0\r\n\r\n"
    yield "a chunk that is longer than it says", start + chunked + b"\r\n3\r\nhello\r\n0\r\n\r\n" + smuggled
    yield "a trailer", start + chunked + b"\r\n0\r\nContent-Length: 99\r\n\r\n" + smuggled
    yield "bare line feeds", start.replace(b"\r\n", b"\n") + length.replace(b"\r\n", b"\n") + b"\n" + body
    yield "a bare carriage return", start + b"X: a\rTransfer-Encoding: chunked\r\n" + length + b"\r\n" + body
    yield "NUL in a header", start + b"X: a\0b\r\n" + length + b"\r\n" + body
    yield "a megabyte of header", start + b"X: " + b"x" * (1 << 20) + b"\r\n\r\n"
    yield "10,000 headers", start + b"".join(b"X%d: 1\r\n" % number for number in range(10_000)) + length + b"\r\n" + body
    yield "a long address", b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    yield "HTTP/0.9", b"GET /v1/models\r\n\r\n"
    yield "HTTP/0.9 by name", b"GET /v1/models HTTP/0.9\r\n\r\n"
    yield "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 64
    yield "HTTP/3.7", b"GET /v1/models HTTP/3.7\r\nHost: 127.0.0.1\r\n\r\n"
    yield "TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500
    yield "no host", b"GET /v1/models HTTP/1.1\r\n\r\n"
    yield "two hosts", b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n"
    yield "a method of its own", f"CANARY {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    yield "CONNECT", b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    yield "TRACE", b"TRACE / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Canary: canary\r\n\r\n"
    yield "an upgrade", start + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" + length + b"\r\n" + body
    yield "an upgrade to HTTP/2", start + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n" + length + b"\r\n" + body
    yield "an expectation", start + b"Expect: 100-continue\r\n" + length + b"\r\n" + body
    yield "another expectation", start + b"Expect: the-impossible\r\n" + length + b"\r\n" + body
    yield "a bomb", start + b"Content-Encoding: gzip\r\n" + length + b"\r\n" + body
    ranges = b"Range: bytes=" + b",".join(b"%d-%d" % (number, number) for number in range(10_000)) + b"\r\n"
    yield "10,000 ranges", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + ranges + b"\r\n"
    yield "a pipeline", smuggled * 20
    yield "a pipeline of questions", (start + length + b"\r\n" + body) * 5
    yield "nothing", b""
    yield "line ends", b"\r\n" * 1000
    yield "noise", bytes(random.Random(14).randrange(256) for _ in range(4096))


# --- S15: forms, which no route takes -----------------------------------------------------------------------------------------------------


def forms() -> Iterator[tuple[str, dict[str, str], bytes]]:
    """By name, a multipart body and its headers."""

    def kind(boundary: str) -> dict[str, str]:
        return {"Content-Type": f"multipart/form-data; boundary={boundary}"}

    def part(name: str, content: bytes = b"x") -> bytes:
        return b'--b\r\nContent-Disposition: form-data; name="file"; filename="' + name.encode() + b'"\r\n\r\n' + content + b"\r\n"

    yield "a picture", kind("b"), part("a.png", png()) + b"--b--\r\n"
    yield "a million dashes", kind("-" * 60_000), b"-" * 10**6
    yield "100,000 parts", kind("b"), part("a")[:20] * 10**5 + b"--b--\r\n"
    yield "a name of a megabyte", kind("b"), part("a" * 10**6) + b"--b--\r\n"
    yield "a name that climbs", kind("b"), part("../../../../tmp/canary") + b"--b--\r\n"
    yield "a name with NUL", kind("b"), part("a\0.png") + b"--b--\r\n"
    yield "no last boundary", kind("b"), part("a")
    yield "headers without end", kind("b"), b"--b\r\n" + b"X: 1\r\n" * 10**5
    yield "no boundary at all", {"Content-Type": "multipart/form-data"}, part("a")
    yield "an ordinary form", {"Content-Type": "application/x-www-form-urlencoded"}, b"a=" + b"%41" * 10**5


# --- the texts of errors ------------------------------------------------------------------------------------------------------------------


def fixed_texts() -> re.Pattern[str]:
    """Every text that the room of the server can answer with: the constants of its sources, whose holes are numbers or models' names."""
    import ast

    texts: set[str] = set()
    for file in Path(next(iter(vistune.serve.__path__))).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.add(
                    "".join(re.escape(str(part.value)) if isinstance(part, ast.Constant) else r"(?:-?[\d,.]+|tiny)" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(re.escape(node.value))
    return re.compile("|".join(f"(?:{text})" for text in sorted(texts, key=len, reverse=True)))
