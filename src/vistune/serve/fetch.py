"""Pictures by web address: the only place that opens a connection on somebody else's word. Off unless the server was told otherwise.

    address ─parse─► host ─allowed?─► looked up once ─all public?─► connect to that very IP address ─► GET ─► 200: a picture's bytes
                ▲                                                                                      └─► 30x: the next hop
                └────────────────────────── at most 3 times, every rule again ───────────────────────────────┘

Whoever sends an address must learn nothing by it of the network that the server stands in. Hence one error for whatever goes wrong, and
failures that take whole seconds. Proxies, cookies, credentials and compression are not refused but absent: there is no code for them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ipaddress
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import h11

from vistune import __version__
from vistune.errors import UsageError
from vistune.image_headers import MAGIC_BYTES, is_known
from vistune.serve.addresses import IPAddress, RefusedAddress, WebAddress, is_public, parse_address, parse_host, redirected

_HEADER_BYTES = 16 << 10
_HEADER_FIELDS = 100
_READ_BYTES = 16 << 10
_MAX_PIECES = 20_000
"""Pieces in which a body may come: chunks of one byte each would cost a minute of this process for the 10 MiB that are allowed."""
_MAX_LOOKUPS = 16
"""Lookups under way: one that was given up may keep its thread for as long as the system's resolver pleases."""
_MAX_ANSWERS = 3
"""Addresses of one host that are tried."""


class NotFetched(Exception):
    """No picture was fetched. The message is for tests and debuggers; a client is never told which rule or which step it was."""


class FetchesBusy(Exception):
    """All places for fetches stayed taken."""


@dataclass(frozen=True)
class FetchPolicy:
    """What may be fetched. Each bound may be changed, none can be switched off.

    Raises:
        UsageError: `hosts` holds what is no host.
    """

    hosts: tuple[str, ...] = ()
    """Hosts to fetch from, `.example.org` for all below it; empty for any. They must be public all the same."""
    seconds: float = 10.0
    """For a picture, from the lookup to the last byte, redirects included; and again for the wait for a place."""
    connect_seconds: float = 3.0
    """For each address of a host."""
    max_bytes: int = 10 << 20
    total_bytes: int = 32 << 20
    """Of all pictures in one request."""
    redirects: int = 3
    at_once: int = 8
    failure_seconds: float = 1.0
    """Failures take a whole multiple of this long, so that their time says no more than their text does."""

    def __post_init__(self) -> None:
        for host in self.hosts:
            try:
                plain = parse_host(host.removeprefix("."))[0]
            except RefusedAddress:
                plain = None
            if plain is None or plain != host.removeprefix("."):
                raise UsageError(
                    f"{host!r} is no host to fetch from. Give a name in small letters like images.example.org, or .example.org."
                )

    def allows(self, host: str) -> bool:
        return not self.hosts or any(host == rule or (rule.startswith(".") and host.endswith(rule)) for rule in self.hosts)


Resolve = Callable[[str], Sequence[str]]
"""A name's IP addresses, asked of the system. Blocks, and raises OSError where there are none."""
Connect = Callable[[str, int, str, ssl.SSLContext | None], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""Opens a connection to (IP address, port), the certificate being checked for a name where there is TLS."""


class Allowance:
    """What the pictures of one request may still weigh.

    Args:
        hold: is told of all bytes that are kept, and may raise.
    """

    def __init__(self, num_bytes: int, hold: Callable[[int], None] = lambda _size: None):
        self._left, self._hold = num_bytes, hold

    def take(self, num_bytes: int) -> None:
        self._left -= num_bytes
        if self._left < 0:
            raise NotFetched("the pictures of this request are too large together")
        self._hold(num_bytes)


class Fetcher:
    """Fetches pictures for one application, a few at a time.

    Args:
        tls: what certificates are trusted; default: what the system trusts.
    """

    def __init__(
        self, policy: FetchPolicy, *, resolve: Resolve | None = None, connect: Connect | None = None, tls: ssl.SSLContext | None = None
    ):
        self.policy = policy
        self._resolve, self._connect = resolve or system_resolve, connect or connect_to
        self._tls = tls or ssl.create_default_context()
        self._places = asyncio.Semaphore(policy.at_once)
        self._lookups = threading.BoundedSemaphore(_MAX_LOOKUPS)

    async def fetch_picture(self, text: str, allowance: Allowance | None = None) -> bytes:
        """The bytes at an address, which begin like a picture.

        Raises:
            NotFetched: after whole seconds.
            FetchesBusy: there was no place to fetch it in.
        """
        try:
            async with asyncio.timeout(self.policy.seconds):
                await self._places.acquire()
        except TimeoutError:
            raise FetchesBusy from None
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self.policy.seconds):
                return await self._follow(parse_address(text), allowance or Allowance(self.policy.total_bytes))
        except (NotFetched, RefusedAddress, OSError, h11.ProtocolError) as error:
            failure = NotFetched(f"{type(error).__name__}: {error}")
        finally:
            self._places.release()
        await asyncio.sleep((started - asyncio.get_running_loop().time()) % self.policy.failure_seconds)
        raise failure

    async def _follow(self, address: WebAddress, allowance: Allowance) -> bytes:
        for _ in range(self.policy.redirects + 1):
            found = await self._get(address, allowance)
            if isinstance(found, bytes):
                return found
            address = redirected(address, found)
        raise NotFetched("too many redirects")

    async def _get(self, address: WebAddress, allowance: Allowance) -> bytes | str:
        """The picture at an address, or the location of a redirect."""
        if not self.policy.allows(address.host):
            raise NotFetched("this host is not one to fetch from")
        reader, writer = await self._connected(address, await self._public_ips(address))
        try:
            connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEADER_BYTES)
            writer.write(connection.send(_request(address)) + connection.send(h11.EndOfMessage()))
            return await self._answer(connection, reader, allowance)
        finally:
            writer.transport.abort()  # nothing is left to be said, and a slow reader must not keep us

    async def _public_ips(self, address: WebAddress) -> list[IPAddress]:
        """Where to connect to. One answer that is not public spoils all: whoever mixes them wants us to take the wrong one."""
        try:
            ips = [address.ip] if address.ip else [ipaddress.ip_address(answer) for answer in await self._looked_up(address.host)]
        except ValueError:
            raise NotFetched("an answer that is no IP address") from None
        if not ips or not all(is_public(ip) for ip in ips):
            raise NotFetched("not in the public networks")
        return ips

    async def _looked_up(self, name: str) -> Sequence[str]:
        # A thread of our own and not the pool's: a resolver that hangs would take these from all other work, and keep the process alive.
        if not self._lookups.acquire(blocking=False):
            raise NotFetched("too many lookups are under way")
        future: concurrent.futures.Future[Sequence[str]] = concurrent.futures.Future()

        def look_up() -> None:
            future.set_running_or_notify_cancel()
            try:
                future.set_result(self._resolve(name))
            except Exception as error:  # raised where it is awaited
                future.set_exception(error)
            finally:
                self._lookups.release()

        threading.Thread(target=look_up, name="vistune lookup", daemon=True).start()
        return await asyncio.wrap_future(future)

    async def _connected(self, address: WebAddress, ips: list[IPAddress]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        tls = self._tls if address.scheme == "https" else None
        for ip in ips[:_MAX_ANSWERS]:
            try:
                async with asyncio.timeout(self.policy.connect_seconds):
                    return await self._connect(str(ip), address.port, address.host, tls)
            except OSError:  # TimeoutError and ssl.SSLError are some
                continue
        raise NotFetched("no connection")

    async def _answer(self, connection: h11.Connection, reader: asyncio.StreamReader, allowance: Allowance) -> bytes | str:
        head = await _next_event(connection, reader)
        if not isinstance(head, h11.Response):
            raise NotFetched("no final answer")
        if location := _location(head, self.policy.max_bytes):
            return location
        body = bytearray()
        for _ in range(_MAX_PIECES):
            event = await _next_event(connection, reader)
            if not isinstance(event, h11.Data):
                break
            allowance.take(len(event.data))
            body += event.data
            if len(body) > self.policy.max_bytes:
                raise NotFetched("too large")
            if len(body) >= MAGIC_BYTES and not is_known(body[:MAGIC_BYTES]):
                raise NotFetched("not a picture")  # of an endless page no more is read than this
        else:
            raise NotFetched("in too many pieces")
        if not isinstance(event, h11.EndOfMessage) or not is_known(body[:MAGIC_BYTES]):
            raise NotFetched("broken off, or not a picture")
        return bytes(body)


def _request(address: WebAddress) -> h11.Request:
    headers = {
        "Host": address.authority,
        "User-Agent": f"vistune/{__version__}",
        "Accept": "image/png, image/jpeg, image/webp, image/gif",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    return h11.Request(method="GET", target=address.target, headers=list(headers.items()))


async def _next_event(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Event:
    event = connection.next_event()
    while not isinstance(event, h11.Event):
        connection.receive_data(await reader.read(_READ_BYTES))  # at the end of the stream nothing, and h11 raises if more was due
        event = connection.next_event()
    return event


def _field(response: h11.Response, name: bytes) -> str | None:
    """A header that may stand once; None where it does not stand."""
    values = [value for each, value in response.headers if each == name]
    if len(values) > 1:
        raise NotFetched("a header stands twice")
    try:
        return values[0].decode() if values else None
    except UnicodeDecodeError:
        raise NotFetched("a header is no text") from None


def _location(head: h11.Response, max_bytes: int) -> str | None:
    """Where a redirect leads; None where a picture of at most `max_bytes` may follow. Raises NotFetched for any other answer."""
    if len(head.headers) > _HEADER_FIELDS or sum(len(name) + len(value) for name, value in head.headers) > _HEADER_BYTES:
        raise NotFetched("too many headers")
    if head.status_code in (301, 302, 303, 307, 308):
        location = _field(head, b"location")
        if not location:
            raise NotFetched("a redirect to nowhere")
        return location
    if head.status_code != 200:
        raise NotFetched(f"status {head.status_code}")
    if (_field(head, b"content-encoding") or "identity").lower() != "identity":
        raise NotFetched("compressed, although that was not asked for")
    length = _field(head, b"content-length")  # h11 made sure that these are digits
    if length is not None and int(length) > max_bytes:
        raise NotFetched("too large")
    return None


# --- the world outside --------------------------------------------------------------------------------------------------------------------


def system_resolve(name: str) -> list[str]:
    """The addresses that the system knows for a name. The dot at its end keeps the resolver from trying the local network's names."""
    return [str(sockaddr[0]) for *_, sockaddr in socket.getaddrinfo(name.encode() + b".", None, type=socket.SOCK_STREAM)]


async def connect_to(ip: str, port: int, name: str, tls: ssl.SSLContext | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to this IP address, or NotFetched where it is one of this machine's own: those are reached past its firewall."""
    if _is_ours(ip):
        raise NotFetched("an address of this machine")
    if tls is None:
        return await asyncio.open_connection(ip, port, limit=_READ_BYTES)
    return await asyncio.open_connection(ip, port, limit=_READ_BYTES, ssl=tls, server_hostname=name, ssl_shutdown_timeout=1.0)


def _is_ours(ip: str) -> bool:
    """Whether packets to an address would come from that address; none is sent to find out."""
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((ip, 9))
        return probe.getsockname()[0] == ip
