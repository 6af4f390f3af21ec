"""The matrix of addresses, redirects, lookups and answers by which servers were made to fetch what they must not, and a pretended web.

`ok.test` at 8.8.8.8 is the one host that may be connected to. `HERE` is where redirects start; all else stands in the tables.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from tests.serve.live import png

from vistune.serve.fetch import Fetcher, FetchPolicy

PUBLIC = "8.8.8.8"
HERE = "http://ok.test/here"

LITERAL = [
    "127.0.0.1", "127.0.0.2", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "192.0.0.8",
    "192.88.99.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "168.63.129.16", "192.0.2.1", "198.51.100.1", "203.0.113.1",
]  # fmt: skip
FORMS = [
    "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127.1", "127.0.1", "0", "①②⑦.⓪.⓪.①", "127。0。0。1", "LOCALHOST",
    "localhost.", "127%2e0%2e0%2e1", "8。8。8。8", "0x08.8.8.8", "ok.test.", "ｏｋ.test", "ok。test", "ok_.test", "ok..test", "metadata",
]  # fmt: skip
IPV6 = [
    "[::]", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
    "[2001:0:7f00:1::]", "[fe80::1%25lo]", "[fe80::1]", "[fc00::1]", "[fd00:ec2::254]", "[fec0::1]", "[ff02::1]", "[64:ff9b:1::1]",
    "[2001:db8::1]", "[3fff::1]", "[::ffff:8.8.8.8]", "[100::1]",
]  # fmt: skip
TRICKS = [
    "http://ok.test\\@127.0.0.1/", "http://127.0.0.1\\@ok.test/", "http://ok.test@127.0.0.1/", "http://127.0.0.1#@ok.test/",
    "http://127.0.0.1?@ok.test/", "http://ok.test%2f@127.0.0.1/", "\thttp://127.0.0.1/", "\rhttp://127.0.0.1/", "\nhttp://127.0.0.1/",
    "http:///127.0.0.1", "http:127.0.0.1", "//127.0.0.1", "http://ok.test:22/", "http://ok.test:6379/", "http://ok.test:0/",
    "http://ok.test:65536/", "http://ok.test:80:80/", "http://ok.test:/", "http://ok.test:+80/", "http://user:pass@ok.test/",
    "http://@ok.test/", "ht\ntp://ok.test/", "http://ok.test/a\r\nHost: x", "http://ok.test/ x", "http://ok.test\t/", "http://ok.test\0/",
    "httpſ://ok.test/", "http://ok.test/\ud800", "http://[ok.test]/", "http://ok.test]/", "http://o[k.test/", "http://",
    "http://" + "a" * 64 + ".test/", "http://ok.test/" + "x" * 4096,
]  # fmt: skip
SCHEMES = [
    "file:///etc/passwd", "file://localhost/etc/passwd", "FILE:/etc/passwd", "ftp://ok.test/", "gopher://127.0.0.1/", "dict://127.0.0.1:11/",
    "blob:http://ok.test/", "jar:http://ok.test/!/", "data:text/html;base64,PGI+", "\\\\ok.test\\x", "view-source:http://ok.test/", "",
]  # fmt: skip
STATIC = [*(f"http://{host}/canary" for host in (*LITERAL, *FORMS, *IPV6)), *TRICKS, *SCHEMES]

REDIRECT_CODES = (301, 302, 303, 307, 308)
REDIRECTS = {
    **{f"{code} to {host}": (code, f"http://{host}/canary") for code in REDIRECT_CODES for host in ("127.0.0.1", "[::1]", "0x7f.1")},
    **{f"302 to {host}": (302, f"http://{host}/canary") for host in ("169.254.169.254", "10.0.0.1", "[::ffff:127.0.0.1]", "127.1")},
    "302 without a scheme": (302, "//127.0.0.1/canary"),
    "302 to a name inside": (302, "http://inside.test/canary"),
    "302 to a port": (302, "http://ok.test:6379/"),
    "302 to a user": (302, "http://ok.test@127.0.0.1/"),
    "302 with a backslash": (302, "/\\127.0.0.1/"),
    "302 to a file": (302, "file:///etc/passwd"),
    "302 to a gopher": (302, "gopher://127.0.0.1/"),
    "302 to data": (302, "data:image/png;base64,iVBORw0KGgo="),
    "302 to nowhere": (302, ""),
    "302 to itself": (302, HERE),
    "302 to itself, relative": (302, "here"),
    "300": (300, "http://ok.test/picture"),
    "304": (304, "http://ok.test/picture"),
    "305 to a proxy": (305, "http://127.0.0.1/"),
    "305 to a picture": (305, "http://ok.test/picture"),
}
"""Each as (status, Location) of the answer at `HERE`."""

LOOKUPS: Mapping[str, Sequence[Sequence[str]]] = {
    "inside.test": [["10.0.0.1"]],
    "metadata.test": [["169.254.169.254"]],
    "mixed.test": [[PUBLIC, "10.0.0.1"]],
    "mixed-last.test": [["10.0.0.1", PUBLIC]],
    "inside-on-v6.test": [["fc00::1", PUBLIC]],
    "mapped.test": [["::ffff:8.8.8.8"]],
    "zone.test": [["fe80::1%lo"]],
    "nothing.test": [[]],
    "nonsense.test": [["localhost"]],
}
"""What the resolver says, lookup by lookup, of names that must not be connected to."""


def answer(body: bytes = b"", status: int = 200, length: int | None = None, **headers: str) -> bytes:
    """A whole HTTP response."""
    fields = {"Content-Length": str(len(body) if length is None else length)} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(*pieces: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body


PICTURE = png()
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n" + PICTURE + b"x" * (11 << 20)
ANSWERS: Mapping[str, bytes] = {
    "endless": ENDLESS,
    "announced too long": answer(PICTURE, length=11 << 20),
    "shorter than announced": answer(PICTURE, length=len(PICTURE) + 1),
    "gzip": answer(PICTURE, Content_Encoding="gzip"),
    "compressed twice": answer(PICTURE, Content_Encoding="identity, gzip"),
    "HTML": answer(b"<html><img src=http://127.0.0.1/></html>", Content_Type="image/png"),
    "a meta refresh": answer(b'<meta http-equiv="refresh" content="0;url=http://127.0.0.1/">', Content_Type="text/html"),
    "SVG": answer(b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/"/></svg>'),
    "empty": answer(),
    "a byte": answer(b"\x89"),
    "Refresh": answer(Refresh="0;url=http://127.0.0.1/canary"),
    "1,000 headers": answer(PICTURE, **{f"X{index}": "x" for index in range(1000)}),
    "a header of 1 MB": answer(PICTURE, X="x" * 10**6),
    "a header without end": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10**6,
    "1,000 times 100 Continue": b"HTTP/1.1 100 Continue\r\n\r\n" * 1000 + answer(PICTURE),
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + PICTURE,
    "chunks of a byte": chunked(PICTURE, *[b"x"] * 21_000),
    "a chunk without end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + PICTURE,
    "chunked and broken off": chunked(PICTURE)[:-5],
    "a negative length": answer(PICTURE, length=-1),
    "two lengths": answer(PICTURE, content_length="7"),
    "two locations": answer(status=302, Location="http://ok.test/picture", location="http://ok.test/picture"),
    "a location in Latin-1": b"HTTP/1.1 302 X\r\nLocation: /\xe9\r\nContent-Length: 0\r\n\r\n",
    "HTTP/0.9": PICTURE,
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "nothing": b"",
    "206": answer(PICTURE, 206),
    "201": answer(PICTURE, 201),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "401": answer(PICTURE, 401, WWW_Authenticate="Basic"),
    "404": answer(PICTURE, 404),
    "500": answer(PICTURE, 500),
}
"""Answers of a public host that no picture may come of."""


@dataclass
class Web:
    """A web that exists only for a `Fetcher`: names with their answers, pages by address, and a list of who was connected to.

    A page is a whole response, or a function that feeds one to a reader.
    """

    pages: dict[str, bytes | Callable[[asyncio.StreamReader], None]] = field(default_factory=dict)
    names: dict[str, Sequence[Sequence[str]]] = field(default_factory=lambda: {"ok.test": [[PUBLIC]], **LOOKUPS})
    lookups: list[str] = field(default_factory=list)
    connections: list[tuple[str, int, str, bool]] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    num_open: int = 0

    def resolve(self, name: str) -> Sequence[str]:
        answers = self.names.get(name)
        if answers is None:
            raise OSError("no such name")
        self.lookups.append(name)
        return answers[min(self.lookups.count(name), len(answers)) - 1]

    async def connect(self, ip: str, port: int, name: str, tls: ssl.SSLContext | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.connections.append((ip, port, name, tls is not None))
        self.num_open += 1
        return _pretended(self, "https" if tls else "http")

    def fetcher(self, **policy: Any) -> Fetcher:
        # The context is only ever handed to `connect`; loading the system's certificates 200 times would take seconds.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return Fetcher(FetchPolicy(**{"failure_seconds": 0.001} | policy), resolve=self.resolve, connect=self.connect, tls=context)

    def fetch(self, address: str, **policy: Any) -> bytes:
        return asyncio.run(self.fetcher(**policy).fetch_picture(address))

    @property
    def is_unharmed(self) -> bool:
        """Whether nobody but the public host was connected to, and no connection is left."""
        return all((ip, port) in ((PUBLIC, 80), (PUBLIC, 443)) for ip, port, *_ in self.connections) and not self.num_open


def _pretended(web: Web, scheme: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader = asyncio.StreamReader()

    class Writer:
        """As much of a StreamWriter as the fetcher uses."""

        @property
        def transport(self) -> Writer:
            return self

        def write(self, data: bytes) -> None:
            web.requests.append(data)
            target, host = data.split()[1].decode(), data.partition(b"Host: ")[2].partition(b"\r\n")[0].decode()
            page = web.pages.get(f"{scheme}://{host}{target}", b"")
            if isinstance(page, bytes):
                reader.feed_data(page)
                reader.feed_eof()
            else:
                page(reader)

        def abort(self) -> None:
            web.num_open -= 1

    return reader, cast(asyncio.StreamWriter, Writer())


def drip(reader: asyncio.StreamReader, pause: float = 0.01) -> None:
    """A picture's answer, a byte at a time, for ever."""
    loop, rest = asyncio.get_running_loop(), iter(answer(PICTURE, length=10**6))
    until = time.monotonic() + 30

    def feed() -> None:
        if time.monotonic() < until:
            reader.feed_data(bytes([next(rest, 0)]))
            loop.call_later(pause, feed)

    feed()
