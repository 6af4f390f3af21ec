"""What an address on the web may look like, and which networks it may lead to: one grammar, one table.

    text ─parse_address─► WebAddress ─name looked up─► IP address ─is_public─► fetch.py connects to it

Two readers of one address are how guards against server-side request forgery are walked around: the guard sees one host and the client
another (CVE-2026-24779). So there is one reader here, it refuses whatever others might read differently, and what it took apart is never
put together for anybody else to read.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from dataclasses import dataclass
from typing import Literal

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_LENGTH = 4096
"""Characters of an address. Signed ones of object stores have up to about 2,000."""


class RefusedAddress(ValueError):
    """An address that is not followed. The message is for tests and debuggers; a client is never told which rule it was."""


@dataclass(frozen=True)
class WebAddress:
    """An http(s) address, taken apart.

    Attributes:
        host: a name in lower case and ASCII, or an IP address in its usual form without brackets.
        ip: the host, where it is an IP address.
        target: path and query as they stand in the request.
    """

    scheme: Literal["http", "https"]
    host: str
    ip: IPAddress | None
    port: int
    target: str

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if isinstance(self.ip, ipaddress.IPv6Address) else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


_PORTS = {"http": 80, "https": 443}

_ADDRESS = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>\[[0-9a-f:.]+\]|[^\x00-\x20\x7f/?#\\@:%\[\]]+)"  # no user, no percent signs, no zone of an IPv6 address
    r"(?::(?P<port>80|443))?"
    r"(?P<path>/[^\x00-\x20\x7f\\?#\ud800-\udfff]*)?"
    r"(?P<query>\?[^\x00-\x20\x7f\\#\ud800-\udfff]*)?"
    r"(?:#[^\x00-\x20\x7f\\]*)?",  # a fragment is the browser's business, not the server's
    re.ASCII | re.IGNORECASE,
)
# The last label begins with a letter, as all top-level domains do: `127.1`, `0x7f.1` and `2130706433` are names to nobody but inet_aton.
# One without a dot is a machine of the network that this one is in.
_NAME = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_KEPT = "%!$&'()*+,/:;=?@[]~"  # beside letters and digits; the rest is percent-encoded as browsers do


def parse_address(text: str) -> WebAddress:
    """Raises RefusedAddress for what is no http(s) address at port 80 or 443, or could be read in two ways."""
    match = _ADDRESS.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if match is None:
        raise RefusedAddress("no address of the form that is followed")
    scheme: Literal["http", "https"] = "http" if match["scheme"].lower() == "http" else "https"
    host, ip = parse_host(match["host"])
    target = urllib.parse.quote((match["path"] or "/") + (match["query"] or ""), safe=_KEPT)
    return WebAddress(scheme, host, ip, int(match["port"] or _PORTS[scheme]), target)


def parse_host(text: str) -> tuple[str, IPAddress | None]:
    """A host in its one form, and what it is if it is an IP address. Raises RefusedAddress."""
    try:
        if text.startswith("["):
            ip: IPAddress = ipaddress.IPv6Address(text[1:-1])
            return str(ip), ip
        if re.fullmatch(r"\d+\.\d+\.\d+\.\d+", text, re.ASCII):
            ip = ipaddress.IPv4Address(text)  # refuses leading zeros, which would make a number octal
            return str(ip), ip
    except ValueError:
        raise RefusedAddress("no IP address") from None
    name = text.lower() if text.isascii() else _as_ascii(text)
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise RefusedAddress("no name of a public host")
    return name, None


def _as_ascii(name: str) -> str:
    """A name in other letters as the registries write it. Strictly: nothing is mapped, so `①` is no 1 and `。` is no dot."""
    import idna

    try:
        return idna.encode(name.lower(), strict=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        raise RefusedAddress("no name that a registry would register") from None


def redirected(base: WebAddress, location: str) -> WebAddress:
    """Where a redirect leads. Raises RefusedAddress where it is no such address, or leaves https for http."""
    origin, path = f"{base.scheme}://{base.authority}", base.target.partition("?")[0]
    if location.startswith("//"):
        location = f"{base.scheme}:{location}"
    elif location.startswith("/"):
        location = origin + location
    elif location.startswith("?"):
        location = origin + path + location
    elif not re.match(r"[a-z][a-z0-9+.-]*:", location, re.ASCII | re.IGNORECASE):
        location = f"{origin}{path[: path.rindex('/') + 1]}{location}"
    address = parse_address(location)
    if (base.scheme, address.scheme) == ("https", "http"):
        raise RefusedAddress("a redirect from https to http")
    return address


# Where connections may go. Not `is_global`: Python's calls multicast, NAT64, 6to4, site-local and more global (3.11.7).
_UNICAST = [ipaddress.ip_network(network) for network in ("0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/3", "2000::/3")]
# Of these, what IANA's registries of special-purpose addresses take out (2026), and what is local to somebody's cloud.
_SPECIAL = [
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; also some clouds' metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host, inside each of its machines
        "169.254.0.0/16",  # link-local; most clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # automatic multicast tunnelling
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "2001::/23",  # Teredo, benchmarking, ORCHID and other protocol assignments
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which holds an IPv4 address
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
]


def is_public(ip: IPAddress) -> bool:
    """Whether an address is one of the public internet's, and of one machine.

    IPv6 addresses that hold an IPv4 one (`::ffff:127.0.0.1`, `::127.0.0.1`, `64:ff9b::7f00:1`) lie outside 2000::/3, like loopback,
    link-local, unique local, site-local and multicast ones.
    """
    return any(ip in network for network in _UNICAST) and not any(ip in network for network in _SPECIAL)
