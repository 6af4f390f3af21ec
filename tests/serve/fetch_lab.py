"""A network of one machine in which every address there is answers, to find out which of them a server that fetches connects to.

Run in a network namespace of its own (`unshare --user --map-root-user --net`), where nothing leaves the machine: all of IPv4 and IPv6 leads
to `lo`, and a canary listens there at the ports of interest, notes who is connected to, and plays the public host `ok.test` at 8.8.8.8.
Prints one JSON object. The first argument is a folder to work in.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import resource
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.serve.live import Live, ask, live
from tests.serve.ssrf_cases import (
    ANSWERS,
    FORMS,
    HERE,
    IPV6,
    LITERAL,
    LOOKUPS,
    PICTURE,
    PUBLIC,
    REDIRECT_CODES,
    REDIRECTS,
    STATIC,
    TRICKS,
    answer,
)  # fmt: skip

from vistune.chat_model import ScriptedChatModel, image_url
from vistune.errors import ImageError
from vistune.media import open_image
from vistune.serve.api import Settings
from vistune.serve.fetch import Fetcher, FetchPolicy
from vistune.serve.messages import PictureSources
from vistune.serve.schemas import RequestLimits
from vistune.types import ImagePart

OWN = "9.9.9.9"
"""A public address that is this machine's own."""
UNREACHABLE = "9.9.9.10"
PORTS = (22, 80, 443, 6379)
BOMB = gzip.compress(PICTURE + bytes(10 << 20))


def lay_network() -> None:
    for command in (
        "ip link set lo up",
        # With another source than themselves, or these addresses would all be this machine's own, which are refused for that alone.
        "ip route add local 0.0.0.0/0 dev lo src 127.0.0.1",
        "ip -6 route add local ::/0 dev lo src ::1",
        f"ip addr add {OWN}/32 dev lo",
        f"ip route add unreachable {UNREACHABLE}/32",
    ):
        subprocess.run(command.split(), check=True, capture_output=True)


@dataclass
class Canary:
    """Listens everywhere. `hits` are the (address, port) that were connected to; `pages` what `ok.test` has."""

    tls: ssl.SSLContext
    pages: dict[str, bytes | Callable[[socket.socket], None]]
    hits: list[tuple[str, int]] = field(default_factory=list)

    def start(self) -> None:
        for port in PORTS:
            for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                listener = socket.socket(family, socket.SOCK_STREAM)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((everywhere, port))
                listener.listen(256)
                threading.Thread(target=self._accept, args=(listener, port), daemon=True).start()

    def _accept(self, listener: socket.socket, port: int) -> None:
        while True:
            connection, _ = listener.accept()
            self.hits.append((connection.getsockname()[0], port))
            threading.Thread(target=self._answer, args=(connection, port), daemon=True).start()

    def _answer(self, connection: socket.socket, port: int) -> None:
        connection.settimeout(30)
        with contextlib.suppress(OSError, ValueError, IndexError):
            if port == 443:
                connection = self.tls.wrap_socket(connection, server_side=True)
            head = b""
            while b"\r\n\r\n" not in head and len(head) < 65536:
                head += connection.recv(4096) or b"\r\n\r\n"
            target, host = head.split()[1].decode(), head.partition(b"Host: ")[2].partition(b"\r\n")[0].decode()
            unknown = answer(PICTURE, 404 if host == "ok.test" else 200)  # whoever must not be asked would give a picture away
            page = self.pages.get(f"{'https' if port == 443 else 'http'}://{host}{target}", unknown)
            if isinstance(page, bytes):
                connection.sendall(page)
            else:
                page(connection)
        connection.close()

    @property
    def forbidden(self) -> list[tuple[str, int]]:
        return [hit for hit in self.hits if hit not in ((PUBLIC, 80), (PUBLIC, 443))]


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + PICTURE)
    for _ in range(1024):
        connection.sendall(bytes(1 << 20))


def drip(connection: socket.socket) -> None:
    for byte in answer(PICTURE, length=10**6) + bytes(30):
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def reset(connection: socket.socket) -> None:
    connection.sendall(answer(PICTURE, length=10**6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silence(connection: socket.socket) -> None:
    time.sleep(20)


LIVING: dict[str, Callable[[socket.socket], None]] = {"endless, live": endless, "a drip": drip, "a reset": reset, "silence": silence}


def cases() -> tuple[dict[str, str], dict[str, Any]]:
    """Addresses by the names of their cases, and the pages that they lead to first."""
    addresses = {f"static {text!a}"[:90]: text for text in STATIC}
    pages: dict[str, Any] = {"http://ok.test/picture": answer(PICTURE), "https://ok.test/picture": answer(PICTURE)}

    def add(name: str, page: Any, scheme: str = "http") -> None:
        address = f"{scheme}://ok.test/case/{len(addresses)}"
        addresses[name], pages[address] = address, page

    inside = [f"http://{host}/canary" for host in (*LITERAL, *FORMS, *IPV6)] + [
        text for text in TRICKS if text.isprintable() and len(text) < 999
    ]
    inside += [f"http://{name}/canary" for name in LOOKUPS] + [f"https://{OWN}/", "file:///etc/passwd", "gopher://127.0.0.1:6379/"]
    for code in REDIRECT_CODES:
        for target in inside:
            add(f"{code} to {target!a}", f"HTTP/1.1 {code} X\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode())
    for name, (status, location) in REDIRECTS.items():
        add(f"redirect: {name}", answer(status=status, Location=location if location != HERE else f"http://ok.test/case/{len(addresses)}"))
    add("https to http", answer(status=302, Location="http://ok.test/picture"), "https")
    for name in ("over.test", "slow.test", "gone.test", *LOOKUPS):
        addresses[f"lookup {name}"] = f"http://{name}/canary"
    for name, page in (ANSWERS | LIVING | {"a gzip bomb": answer(BOMB, Content_Encoding="gzip")}).items():
        add(f"answer: {name}", page)
    addresses["this machine's public address"] = f"http://{OWN}/canary"
    addresses["a certificate of another name"] = f"https://{PUBLIC}/canary"
    return addresses, pages


def resolve(name: str) -> list[str]:
    if name == "slow.test":
        time.sleep(10)
    if name == "over.test":
        return [OWN]
    answers = {"ok.test": [[PUBLIC]], "far.test": [[UNREACHABLE]], **LOOKUPS}.get(name)
    if answers is None:
        raise OSError("no such name")
    return list(answers[0])


def post(server: Live, address: str) -> tuple[int, str, str, float]:
    started = time.monotonic()
    content = json.dumps(ask([{"type": "image_url", "image_url": {"url": address}}]))  # httpx's own JSON has no half surrogates
    response = server.post(content=content, headers={"Content-Type": "application/json"})
    error = response.json().get("error", {"code": "", "message": ""})
    return response.status_code, error["code"], error["message"], time.monotonic() - started


def at_every_door(address: str, on: Live, off: Live) -> dict[str, Any]:
    """What became of an address: at a server that fetches, at one that does not, in a dataset, and on the way to a teacher."""
    try:
        opened = bool(open_image(address))
    except ImageError as error:
        opened = error.reason
    assert image_url(ImagePart(address)) == address  # a teacher's request holds the address and no picture
    return {"on": post(on, address)[:3], "off": post(off, address)[:3], "opened": opened}


def reached(canary: Canary) -> list[str]:
    """Which addresses the canary hears: without this, silence would prove nothing."""
    heard = []
    for host in (*LITERAL, *FORMS, *(host for host in IPV6 if "%" not in host), OWN):
        canary.hits.clear()
        with contextlib.suppress(OSError, UnicodeError), socket.create_connection((host.strip("[]"), 80), timeout=2):
            deadline = time.monotonic() + 2
            while not canary.hits and time.monotonic() < deadline:
                time.sleep(0.001)
        heard += [host] * bool(canary.hits)
    canary.hits.clear()
    return heard


def main(folder: Path) -> dict[str, Any]:
    lay_network()
    os.environ |= dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:6379")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "ok.test.pem")
    addresses, pages = cases()
    canary = Canary(tls, pages)
    canary.start()
    heard = reached(canary)

    def fetcher(**policy: Any) -> Fetcher:
        trusted = ssl.create_default_context(cafile=str(folder / "ok.test.pem"))
        return Fetcher(FetchPolicy(**policy), resolve=resolve, tls=trusted)

    def serving(sources: PictureSources) -> Any:
        model = ScriptedChatModel(lambda conversation, params: str(len(conversation.images)))
        return live(model, Settings(limits=RequestLimits(sources=sources)))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    quick = fetcher(failure_seconds=0.001, seconds=2.0, at_once=16)
    with serving(PictureSources(web=quick)) as on, serving(PictureSources()) as off, ThreadPoolExecutor(8) as pool:
        good = [post(on, f"{scheme}://ok.test/picture")[0] for scheme in ("http", "https")]
        outcomes = dict(zip(addresses, pool.map(lambda address: at_every_door(address, on, off), addresses.values()), strict=True))
        left = on.gate.num_admitted, on.gate.num_bytes
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    with serving(PictureSources(web=fetcher())) as usual:
        asked = ("http://10.0.0.1/", "http://inside.test/", "http://gone.test/", "http://far.test/", "http://ok.test:22/", "http://x/")
        seconds = {address: round(post(usual, address)[3], 3) for address in asked}
    return {
        "cases": len(addresses), "heard": heard, "good": good, "outcomes": outcomes, "seconds": seconds, "left": left, "grown_kib": grown,
        "public": len(canary.hits) - len(canary.forbidden), "forbidden": canary.forbidden,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
