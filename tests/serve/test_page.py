"""The web chat as it is served: a fixed table of files, headers that let nothing foreign in, and no other way to a file."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serve.live import CLIENT, Live, ask, live

from vistune.chat_model import ScriptedChatModel
from vistune.serve import page
from vistune.serve.api import Settings
from vistune.serve.keys import ApiKeys
from vistune.serve.page import FILES, POLICY, SCRIPTS, WEB, assets
from vistune.serve.server import LOOPBACK_NAMES

KEY = "sk-canary-0123456789abcdef"


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(ScriptedChatModel(lambda *_: "fine"), Settings(hosts=frozenset(LOOPBACK_NAMES))) as running:
        yield running


# --- what is served -----------------------------------------------------------------------------------------------------------------------


def test_every_file_of_the_folder_is_in_the_table_and_the_table_names_no_other():
    assert {path.name for path in WEB.iterdir()} == set(FILES.values())


def test_every_address_sends_its_file_with_the_same_strict_headers(server: Live):
    for address, asset in assets().items():
        response = server.get(address)
        assert (response.status_code, response.content) == (200, asset.content), address
        headers = response.headers
        assert headers["content-security-policy"] == POLICY
        assert headers.get_list("x-content-type-options") == ["nosniff"]
        assert headers["referrer-policy"] == "no-referrer"
        assert headers.get_list("cache-control") == ["no-cache"]
        assert headers["content-type"] == asset.type
        assert headers["x-frame-options"] == "DENY"
        assert "set-cookie" not in headers
        assert "access-control-allow-origin" not in headers


def test_the_policy_allows_this_server_and_nothing_else():
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["img-src"] == "'self' data: blob:"
    assert not re.search(r"unsafe|https?:|\*", POLICY)


def test_a_file_that_the_browser_has_is_not_sent_again(server: Live):
    etag = server.get("/").headers["etag"]
    for known in (etag, f"W/{etag}", f'"another", {etag}'):
        again = server.get("/", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["content-security-policy"] == POLICY
    assert server.get("/", headers={"If-None-Match": '"another"'}).status_code == 200


def test_head_says_what_get_would_send(server: Live):
    got, asked = server.get("/web/app.js"), CLIENT.head(server.address + "/web/app.js")
    assert asked.content == b""
    for name in ("etag", "content-type", "content-length", "content-security-policy"):
        assert asked.headers[name] == got.headers[name]


def test_the_examples_are_the_shipped_pictures_without_their_answers(server: Live):
    listed = server.get("/web/examples.json").json()
    assert listed
    for example in listed:
        assert set(example) == {"picture", "question"}
        assert server.get(f"/web/examples/{example['picture']}").headers["content-type"] in ("image/jpeg", "image/png")


def test_a_copy_that_was_packed_without_examples_serves_the_page_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(page, "DEMO", tmp_path)
    table = assets()
    assert table["/web/examples.json"].content == b"[]"
    assert set(table) == {*FILES, "/web/examples.json"}


def test_the_page_can_be_left_out():
    with live(ScriptedChatModel(lambda *_: "fine"), Settings(page=False)) as running:
        assert running.get("/").status_code == running.get("/web/app.js").status_code == 404
        assert running.post(ask()).status_code == 200


# --- who is let in ------------------------------------------------------------------------------------------------------------------------


def test_the_page_comes_without_a_key_and_opens_nothing_by_that():
    with live(ScriptedChatModel(lambda *_: "fine"), Settings(keys=ApiKeys([KEY]))) as running:
        assert running.get("/").status_code == 200
        assert running.get("/v1/models").status_code == running.post(ask()).status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:8000"])
def test_a_foreign_name_for_this_machine_is_answered_with_no_page(server: Live, host: str):
    response = server.get("/", headers={"Host": host})
    assert response.status_code == 421
    assert "<html" not in response.text


@pytest.mark.parametrize("origin", ["null", "https://evil.example", "http://127.0.0.1:1", "http://localhost.evil.example", "file://", ""])
def test_a_page_of_another_place_cannot_ask(server: Live, origin: str):
    response = server.post(ask(), headers={"Origin": origin, "Cookie": "session=1"})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "foreign_origin"


def test_the_page_itself_and_programs_can_ask(server: Live):
    assert server.post(ask(), headers={"Origin": server.address}).status_code == 200
    assert server.post(ask()).status_code == 200


def test_where_there_are_keys_the_key_decides_and_not_the_place():
    with live(ScriptedChatModel(lambda *_: "fine"), Settings(keys=ApiKeys([KEY]))) as running:
        foreign = {"Origin": "https://elsewhere.example"}
        assert running.post(ask(), headers=foreign).status_code == 401
        assert running.post(ask(), headers=foreign | {"Authorization": f"Bearer {KEY}"}).status_code == 200


# --- no other way to a file ---------------------------------------------------------------------------------------------------------------

CLIMBS = [
    "/web/../api.py",
    "/web/..%2fapi.py",
    "/web/%2e%2e/api.py",
    "/web/%2e%2e%2fapi.py",
    "/web/..%5capi.py",
    "/web/....//api.py",
    "//etc/passwd",
    "/web//etc/passwd",
    "/web/%2fetc%2fpasswd",
    "/file=/etc/passwd",
    "/file=..%2f..%2fetc%2fpasswd",
    "/file/etc/passwd",
    "/C:/windows/win.ini",
    "/web/C:%5Cwindows%5Cwin.ini",
    "/web/%00",
    "/web/app.js%00.html",
    "/web/app.js/",
    "/web/app.js/..",
    "/web/APP.JS",
    "/web/app.js.map",
    "/web/",
    "/web",
    "/web/index.html",
    "/index.html",
    "/web/examples/",
    "/web/examples/demo.json",
    "/web/examples/../demo.json",
    "/web/examples/..%2fdemo.json",
    "/web/examples/%2e%2e/assistant/config.json",
    "/web/.env",
    "/.git/config",
    "/static/../../etc/passwd",
    "/proxy=http://evil.example/",
    "/queue/join",
    "/upload",
    "/gradio_api/file=/etc/passwd",
    "/theme.css?path=/etc/passwd",
    "/%c0%ae%c0%ae/etc/passwd",
    "/web/%ff",
    "/web/" + "a" * 4000,
    "/web/" + "../" * 200 + "etc/passwd",
]


@pytest.mark.parametrize("path", CLIMBS)
def test_no_path_leads_out_of_the_table(server: Live, path: str):
    """As it stands, on a socket: a client of ours would tidy the path up first."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] in (b"400", b"404")
    assert not re.search(rb"root:|import |from __future__|<html", body)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_can_be_sent_to_the_page(server: Live, method: str):
    for path in ("/", "/web/app.js", "/upload"):
        response = CLIENT.request(method, server.address + path, files={"files": ("evil.html", b"<script>alert(1)</script>", "text/html")})
        assert response.status_code in (404, 405)
        assert "alert" not in response.text


def test_what_a_path_says_comes_back_nowhere(server: Live):
    response = server.get("/web/<script>alert(1)</script>")
    assert response.headers["content-type"] == "application/json"
    assert "script" not in response.text


# --- what the scripts do without ----------------------------------------------------------------------------------------------------------

FORBIDDEN = (
    "innerHTML",
    "outerHTML",
    "insertAdjacentHTML",
    "document.write",
    "DOMParser",
    "createContextualFragment",
    "eval(",
    "new Function",
    "srcdoc",
    "setHTML",
    "importScripts",
    "document.cookie",
)


@pytest.mark.parametrize("name", [f"{name}.js" for name in SCRIPTS])
def test_no_script_turns_a_text_into_markup_or_loads_anything_foreign(name: str):
    source = (WEB / name).read_text(encoding="utf-8")
    assert not [word for word in FORBIDDEN if word in source]
    assert set(re.findall(r"https?://[\w.]+", source)) <= {"http://www.w3.org"}  # SVG's name, which is no address
    assert all(path.startswith("./") for path in re.findall(r"""from ["']([^"']+)""", source))
    assert len(source.splitlines()) <= 300


def test_the_markup_holds_no_script_no_style_and_nothing_remote():
    markup = (WEB / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|https?://|//\w", markup)
    named = set(re.findall(r"""(?:src|href)="(/[^"]*)""", markup))
    assert named <= set(FILES)


def test_every_element_that_a_script_wants_is_on_the_page():
    markup = (WEB / "index.html").read_text(encoding="utf-8")
    wanted = {name for path in WEB.glob("*.js") for name in re.findall(r'byId\("([^"]+)"\)', path.read_text(encoding="utf-8"))}
    assert wanted <= set(re.findall(r'\bid="([^"]+)"', markup))
