"""The fetcher of pictures: what it follows and what not, on a web that exists only here. With real sockets: test_fetch_lab.py."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serve.ssrf_cases import ANSWERS, HERE, LOOKUPS, PICTURE, PUBLIC, REDIRECTS, STATIC, Web, answer, chunked, drip

import vistune
from vistune.errors import UsageError
from vistune.serve import fetch
from vistune.serve.addresses import RefusedAddress, is_public, parse_address, parse_host, redirected
from vistune.serve.fetch import Allowance, Fetcher, FetchesBusy, FetchPolicy, NotFetched


def shown(case: Any) -> str:
    return ascii(case)[:60]


# --- what is never connected to -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", STATIC, ids=shown)
def test_an_address_that_might_lead_inside_is_not_followed(address: str):
    web = Web(pages={HERE: answer(PICTURE)})
    with pytest.raises(NotFetched):
        web.fetch(address)
    assert not web.connections
    assert not web.lookups


@pytest.mark.parametrize("case", REDIRECTS)
def test_a_redirect_leads_nowhere_that_an_address_may_not(case: str):
    status, location = REDIRECTS[case]
    web = Web(pages={HERE: answer(status=status, Location=location), "http://ok.test/picture": answer(PICTURE)})
    with pytest.raises(NotFetched):
        web.fetch(HERE)
    assert web.is_unharmed
    assert 1 <= len(web.connections) <= 4


@pytest.mark.parametrize("name", LOOKUPS)
def test_a_name_with_any_answer_that_is_not_public_is_not_connected_to(name: str):
    web = Web()
    with pytest.raises(NotFetched):
        web.fetch(f"http://{name}/")
    assert not web.connections


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_that_is_no_plain_picture_is_refused(case: str):
    web = Web(pages={HERE: ANSWERS[case], "http://ok.test/picture": answer(PICTURE)})
    with pytest.raises(NotFetched):
        web.fetch(HERE)
    assert web.is_unharmed
    assert len(web.connections) == 1


def test_a_name_that_changes_its_mind_is_asked_once_and_connected_to_as_it_was_checked():
    web = Web(pages={"http://turns.test/": answer(PICTURE)})
    web.names["turns.test"] = [[PUBLIC], ["169.254.169.254"]]
    assert web.fetch("http://turns.test/") == PICTURE
    assert web.lookups == ["turns.test"]
    assert web.connections == [(PUBLIC, 80, "turns.test", False)]


def test_a_name_that_changes_its_mind_between_two_hops_is_checked_again():
    web = Web(pages={"http://turns.test/": answer(status=302, Location="/picture"), "http://turns.test/picture": answer(PICTURE)})
    web.names["turns.test"] = [[PUBLIC], ["169.254.169.254"]]
    with pytest.raises(NotFetched):
        web.fetch("http://turns.test/")
    assert web.is_unharmed


SPECIAL = {
    "0.0.0.0": "0.255.255.255", "10.0.0.0": "10.255.255.255", "100.64.0.0": "100.127.255.255", "127.0.0.0": "127.255.255.255",
    "169.254.0.0": "169.254.255.255", "172.16.0.0": "172.31.255.255", "192.0.0.0": "192.0.0.255", "192.0.2.0": "192.0.2.255",
    "192.31.196.0": "192.31.196.255", "192.52.193.0": "192.52.193.255", "192.88.99.0": "192.88.99.255", "192.168.0.0": "192.168.255.255",
    "192.175.48.0": "192.175.48.255", "198.18.0.0": "198.19.255.255", "198.51.100.0": "198.51.100.255", "203.0.113.0": "203.0.113.255",
    "224.0.0.0": "255.255.255.255", "168.63.129.16": "168.63.129.16", "::": "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "2001::": "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8::": "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
    "2002::": "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2620:4f:8000::": "2620:4f:8000:ffff:ffff:ffff:ffff:ffff",
    "3fff::": "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "4000::": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
}  # fmt: skip


@pytest.mark.parametrize("first", SPECIAL)
def test_special_networks_are_not_public_from_their_first_address_to_their_last(first: str):
    for host in (first, SPECIAL[first]):
        ip = parse_host(f"[{host}]" if ":" in host else host)[1]
        assert ip is not None
        assert not is_public(ip)


@pytest.mark.parametrize(
    "host",
    [
        "1.0.0.0", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
        "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0", "192.0.3.0",
        "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "168.63.129.15", "[2000::]",
        "[2001:200::]", "[2001:4860:4860::8888]", "[2001:db9::]", "[2003::]", "[2606:4700::1111]", "[2a00:1450:4001::64]", "[3ffe::1]",
    ],
)  # fmt: skip
def test_the_addresses_beside_them_are_public(host: str):
    ip = parse_host(host)[1]
    assert ip is not None
    assert is_public(ip)


def test_an_address_of_this_very_machine_is_not_connected_to_however_public_it_is():
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(0.05)
        with pytest.raises(NotFetched, match="this machine"):
            asyncio.run(fetch.connect_to("127.0.0.1", canary.getsockname()[1], "ok.test", None))
        with pytest.raises(TimeoutError):
            canary.accept()


# --- what is ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port", "target", "authority"),
    [
        ("http://ok.test", "http", "ok.test", 80, "/", "ok.test"),
        ("HTTPS://OK.Test/A?b=c#d", "https", "ok.test", 443, "/A?b=c", "ok.test"),
        ("http://ok.test:80/", "http", "ok.test", 80, "/", "ok.test"),
        ("https://ok.test:80/", "https", "ok.test", 80, "/", "ok.test:80"),
        ("http://ok.test:443/", "http", "ok.test", 443, "/", "ok.test:443"),
        ("http://8.8.8.8/x", "http", "8.8.8.8", 80, "/x", "8.8.8.8"),
        ("http://[2001:4860:4860:0::8888]:443/x", "http", "2001:4860:4860::8888", 443, "/x", "[2001:4860:4860::8888]:443"),
        ("http://ok.test?x=@127.0.0.1", "http", "ok.test", 80, "/?x=@127.0.0.1", "ok.test"),
        ("http://ok.test#@127.0.0.1", "http", "ok.test", 80, "/", "ok.test"),
        ("http://ok.test/a%20b%2Fc?d=[1]|2", "http", "ok.test", 80, "/a%20b%2Fc?d=[1]%7C2", "ok.test"),
        ("http://ok.test/Zürich\u2028.jpg", "http", "ok.test", 80, "/Z%C3%BCrich%E2%80%A8.jpg", "ok.test"),
        ("http://Bücher.example/", "http", "xn--bcher-kva.example", 80, "/", "xn--bcher-kva.example"),
        ("http://xn--bcher-kva.example/", "http", "xn--bcher-kva.example", 80, "/", "xn--bcher-kva.example"),
        ("http://a.b-c.1d.co2/", "http", "a.b-c.1d.co2", 80, "/", "a.b-c.1d.co2"),
    ],
)
def test_an_address_is_taken_apart_once(text: str, scheme: str, host: str, port: int, target: str, authority: str):
    address = parse_address(text)
    assert (address.scheme, address.host, address.port, address.target, address.authority) == (scheme, host, port, target, authority)


@given(st.text(max_size=40) | st.from_regex(r"https?://[^ ]{0,30}", fullmatch=True))
def test_any_text_is_an_address_or_refused_and_what_is_sent_is_one_plain_line(text: str):
    for make in (parse_address, lambda location: redirected(parse_address(HERE), location)):
        try:
            address = make(text)
        except RefusedAddress:
            continue
        assert (address.authority + address.target).isascii()
        assert (address.authority + address.target).isprintable()
        assert " " not in address.authority + address.target
        assert address.port in (80, 443)


def test_what_is_sent_is_a_plain_request_without_anything_about_the_client(monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    web = Web(pages={"http://ok.test/picture?a=b": answer(PICTURE, Set_Cookie="a=b")})
    assert web.fetch("http://ok.test/picture?a=b#c") == PICTURE
    assert web.connections == [(PUBLIC, 80, "ok.test", False)]
    lines = web.requests[0].decode().removesuffix("\r\n\r\n").split("\r\n")
    assert lines[0] == "GET /picture?a=b HTTP/1.1"
    assert {line.partition(": ")[0]: line.partition(": ")[2] for line in lines[1:]} == {
        "Host": "ok.test",
        "User-Agent": f"vistune/{vistune.__version__}",
        "Accept": "image/png, image/jpeg, image/webp, image/gif",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }


@pytest.mark.parametrize(
    "page",
    [
        answer(PICTURE),
        answer(PICTURE, Content_Type="text/html"),
        answer(PICTURE, Content_Encoding="identity"),
        chunked(PICTURE),
        chunked(PICTURE[:3], PICTURE[3:]),
        b"HTTP/1.0 200 OK\r\n\r\n" + PICTURE,
        answer(PICTURE, length=len(PICTURE)) + b"and what does not belong to it",
    ],
    ids=shown,
)
def test_a_picture_comes_in_whatever_way_http_has_for_it(page: bytes):
    assert Web(pages={HERE: page}).fetch(HERE) == PICTURE


@pytest.mark.parametrize("location", ["https://ok.test/picture", "//ok.test/picture", "/picture", "picture", "?picture", "picture#x"])
def test_a_redirect_is_followed(location: str):
    web = Web(pages={HERE: answer(status=301, Location=location)})
    for place in ("http://ok.test/picture", "https://ok.test/picture", "http://ok.test/here?picture"):
        web.pages[place] = answer(PICTURE)
    assert web.fetch(HERE) == PICTURE
    assert web.connections == [(PUBLIC, 80, "ok.test", False), (PUBLIC, 443 if "https" in location else 80, "ok.test", "https" in location)]
    assert not web.num_open


def chain(length: int) -> Web:
    pages: dict[str, Any] = {f"http://ok.test/{hop}": answer(status=302, Location=f"/{hop - 1}") for hop in range(1, length + 1)}
    return Web(pages=pages | {"http://ok.test/0": answer(PICTURE)})


def test_three_redirects_are_followed_and_no_fourth():
    assert chain(3).fetch("http://ok.test/3") == PICTURE
    web = chain(20)
    with pytest.raises(NotFetched):
        web.fetch("http://ok.test/20")
    assert len(web.connections) == 4


def test_a_redirect_from_https_to_http_is_not_followed():
    web = Web(pages={"https://ok.test/": answer(status=302, Location=HERE), HERE: answer(PICTURE)})
    with pytest.raises(NotFetched):
        web.fetch("https://ok.test/")
    assert [port for _, port, *_ in web.connections] == [443]


def test_the_next_address_of_a_host_is_tried_where_one_does_not_answer():
    web = Web(pages={HERE: answer(PICTURE)})
    web.names["ok.test"] = [["2001:4860:4860::8888", "9.9.9.9", PUBLIC, "1.1.1.1"]]
    tried: list[str] = []

    async def connect(ip: str, *rest: Any) -> Any:
        tried.append(ip)
        if ip == "9.9.9.9":
            await asyncio.sleep(30)
        if ip != PUBLIC:
            raise OSError("no route")
        return await web.connect(ip, *rest)

    fetcher = web.fetcher(connect_seconds=0.02)
    fetcher._connect = connect
    assert asyncio.run(fetcher.fetch_picture(HERE)) == PICTURE
    assert tried == ["2001:4860:4860::8888", "9.9.9.9", PUBLIC]
    tried.clear()
    web.names["ok.test"] = [["9.9.9.8", "9.9.9.7", "9.9.9.6", PUBLIC]]
    with pytest.raises(NotFetched):
        asyncio.run(fetcher.fetch_picture(HERE))
    assert len(tried) == 3


def test_the_system_is_asked_for_a_name_as_it_stands_and_not_below_the_local_domain(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    def getaddrinfo(host: Any, port: Any, **options: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, 0)), (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert fetch.system_resolve("ok.test") == [PUBLIC, "::1"]
    assert asked == [b"ok.test."]


# --- bounds -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [answer, chunked, lambda body: b"HTTP/1.1 200 OK\r\n\r\n" + body], ids=["length", "chunked", "to the end"])
def test_a_picture_may_have_as_many_bytes_as_allowed_and_not_one_more(make: Callable[[bytes], bytes]):
    web = Web(pages={HERE: make(PICTURE)})
    assert web.fetch(HERE, max_bytes=len(PICTURE)) == PICTURE
    with pytest.raises(NotFetched):
        web.fetch(HERE, max_bytes=len(PICTURE) - 1)


@pytest.mark.parametrize(("case", "reason"), [("announced too long", "too large"), ("a header without end", "buffer too long")])
def test_what_is_too_long_is_left_before_its_end(case: str, reason: str):
    with pytest.raises(NotFetched, match=reason):
        Web(pages={HERE: lambda reader: reader.feed_data(ANSWERS[case])}).fetch(HERE, seconds=5.0)


def test_an_endless_page_is_left_at_its_first_bytes():
    web = Web(pages={HERE: answer(b"<html>" + b"x" * 10**6)})

    class Counted(Allowance):
        taken = 0

        def take(self, num_bytes: int) -> None:
            self.taken += num_bytes

    allowance = Counted(0)
    with pytest.raises(NotFetched):
        asyncio.run(web.fetcher().fetch_picture(HERE, allowance))
    assert allowance.taken < 40_000


def test_the_pictures_of_a_request_have_a_bound_together():
    allowance, held = Allowance(2 * len(PICTURE), hold=lambda size: held.append(size)), []
    web = Web(pages={HERE: answer(PICTURE)})

    async def thrice() -> None:
        for _ in range(3):
            await web.fetcher().fetch_picture(HERE, allowance)

    with pytest.raises(NotFetched, match="together"):
        asyncio.run(thrice())
    assert sum(held) == 2 * len(PICTURE)


@pytest.mark.parametrize("part", ["the body", "the headers", "the connection", "the lookup"])
def test_whatever_is_slow_ends_in_time(part: str):
    web = Web(pages={HERE: drip if part == "the body" else lambda reader: None})

    async def run() -> None:
        release = asyncio.Event()
        fetcher = web.fetcher(seconds=0.1, connect_seconds=0.02)
        if part == "the connection":
            fetcher._connect = lambda *_: release.wait()  # type: ignore[assignment, return-value]
        if part == "the lookup":
            loop = asyncio.get_running_loop()
            fetcher._resolve = lambda name: asyncio.run_coroutine_threadsafe(release.wait(), loop).result() and [PUBLIC]
        with pytest.raises(NotFetched):
            await fetcher.fetch_picture(HERE)
        release.set()

    asyncio.run(asyncio.wait_for(run(), 20))
    assert web.num_open == 0


def test_lookups_that_hang_are_counted_and_no_more_than_a_few_are_begun():
    web = Web()

    async def run() -> None:
        release, loop = asyncio.Event(), asyncio.get_running_loop()
        asked: list[str] = []

        def hang(name: str) -> list[str]:
            asked.append(name)
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
            return [PUBLIC]

        fetcher = web.fetcher(seconds=0.05, at_once=30)
        fetcher._resolve = hang
        results = await asyncio.gather(*(fetcher.fetch_picture(f"http://h{n}.test/") for n in range(30)), return_exceptions=True)
        assert all(isinstance(result, NotFetched) for result in results)
        assert len(asked) == 16
        release.set()
        await asyncio.sleep(0.05)
        fetcher._resolve = web.resolve
        web.pages[HERE] = answer(PICTURE)
        assert await fetcher.fetch_picture(HERE) == PICTURE

    asyncio.run(run())


def test_only_so_many_are_fetched_at_once_and_who_waits_too_long_is_told_so():
    web = Web(pages={HERE: lambda reader: None, "http://ok.test/picture": answer(PICTURE)})

    async def run() -> None:
        fetcher = web.fetcher(at_once=2)
        stuck = [asyncio.ensure_future(fetcher.fetch_picture(HERE)) for _ in range(2)]
        third = asyncio.ensure_future(fetcher.fetch_picture("http://ok.test/picture"))
        await asyncio.sleep(0.05)
        assert len(web.connections) == 2
        stuck[0].cancel()
        assert await third == PICTURE
        again = asyncio.ensure_future(fetcher.fetch_picture(HERE))
        await asyncio.sleep(0)
        fetcher.policy = FetchPolicy(seconds=0.02)
        with pytest.raises(FetchesBusy):
            await fetcher.fetch_picture(HERE)
        for task in (*stuck, again):
            task.cancel()
        await asyncio.gather(*stuck, again, return_exceptions=True)

    asyncio.run(run())
    assert web.num_open == 0


def test_failures_take_whole_periods_whatever_went_wrong():
    web = Web(pages={"http://ok.test/404": answer(status=404), "http://ok.test/html": answer(b"<html></html>")})

    async def seconds(address: str) -> float:
        loop = asyncio.get_running_loop()
        fetcher, started = web.fetcher(failure_seconds=0.05), loop.time()
        with pytest.raises(NotFetched):
            await fetcher.fetch_picture(address)
        return loop.time() - started

    async def run() -> list[float]:
        addresses = ("http://127.0.0.1/", "x", "http://inside.test/", "http://gone.test/", "http://ok.test/404", "http://ok.test/html")
        return await asyncio.gather(*map(seconds, addresses))

    assert min(asyncio.run(run())) >= 0.049


def test_no_place_is_kept_while_a_failure_waits():
    web = Web(pages={HERE: answer(PICTURE)})

    async def run() -> None:
        fetcher = web.fetcher(at_once=1, failure_seconds=30)
        failing = asyncio.ensure_future(fetcher.fetch_picture("http://127.0.0.1/"))
        await asyncio.sleep(0.01)
        assert await fetcher.fetch_picture(HERE) == PICTURE
        failing.cancel()

    asyncio.run(run())


# --- hosts, certificates ------------------------------------------------------------------------------------------------------------------


def test_with_hosts_named_no_other_is_fetched_from_not_even_by_a_redirect():
    web = Web(pages={HERE: answer(PICTURE), "http://a.ok.test/": answer(status=302, Location="http://other.test/")})
    web.names |= {
        "a.ok.test": [[PUBLIC]],
        "b.ok.test": [[PUBLIC]],
        "other.test": [[PUBLIC]],
        "notok.test": [[PUBLIC]],
        "inside.ok.test": [["10.0.0.1"]],
    }
    web.pages |= {f"http://{host}/": answer(PICTURE) for host in ("ok.test", "notok.test", "other.test", "b.ok.test", PUBLIC)}
    assert web.fetch("http://ok.test/", hosts=("ok.test",)) == PICTURE
    assert web.fetch(f"http://{PUBLIC}/", hosts=("ok.test", PUBLIC)) == PICTURE
    num_connections = len(web.connections)
    for address in ("http://other.test/", "http://notok.test/", f"http://{PUBLIC}/", "http://ok.test/", "http://inside.ok.test/"):
        with pytest.raises(NotFetched):
            web.fetch(address, hosts=(".ok.test",))
    for address in ("http://notok.test/", "http://b.ok.test/"):
        with pytest.raises(NotFetched):
            web.fetch(address, hosts=("ok.test",))
    assert len(web.connections) == num_connections
    assert web.fetch("http://b.ok.test/", hosts=(".ok.test",)) == PICTURE
    num_connections += 1
    with pytest.raises(NotFetched):
        web.fetch("http://a.ok.test/", hosts=(".ok.test",))
    assert len(web.connections) == num_connections + 1


@pytest.mark.parametrize(
    "host", ["", ".", "*", "*.ok.test", "http://ok.test", "ok.test/", "ok.test:80", "OK.test", "localhost", "127.1", "a b"]
)
def test_what_is_no_host_cannot_be_named_as_one(host: str):
    with pytest.raises(UsageError, match="no host"):
        FetchPolicy(hosts=("ok.test", host))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of `ok.test` in one file; made here, because a key in a repository looks like a secret."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make a certificate")
    file = tmp_path_factory.mktemp("tls") / "ok.test.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=ok.test"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:ok.test", "-keyout", str(file), "-out", str(file) + ".crt"],
        check=True,
        capture_output=True,
    )
    file.write_bytes(file.read_bytes() + Path(str(file) + ".crt").read_bytes())
    return file


@pytest.mark.parametrize(
    ("name", "trusted", "works"), [("ok.test", True, True), ("other.test", True, False), ("ok.test", False, False), (PUBLIC, True, False)]
)
def test_a_certificate_must_be_trusted_and_of_the_name_that_was_asked_for(
    name: str, trusted: bool, works: bool, certificate: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fetch, "_is_ours", lambda ip: False)
    seen: list[str | None] = []
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(certificate)
    served.sni_callback = lambda _connection, name, _context: seen.append(name)

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(PICTURE))
        await writer.drain()
        writer.close()

    async def run() -> bytes:
        async with await asyncio.start_server(respond, "127.0.0.1", 0, ssl=served) as server:
            port = server.sockets[0].getsockname()[1]
            tls = ssl.create_default_context(cafile=certificate if trusted else None)

            def connect(ip: str, _port: int, host: str, tls: ssl.SSLContext | None) -> Coroutine[Any, Any, Any]:
                return fetch.connect_to("127.0.0.1", port, host, tls)

            fetcher = Fetcher(FetchPolicy(failure_seconds=0.001), resolve=lambda name: [PUBLIC], connect=connect, tls=tls)
            return await fetcher.fetch_picture(f"https://{name}/")

    if works:
        assert asyncio.run(run()) == PICTURE
        assert seen == ["ok.test"]
    else:
        with pytest.raises(NotFetched):
            asyncio.run(run())


def test_by_default_certificates_are_checked():
    context = Fetcher(FetchPolicy())._tls
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
