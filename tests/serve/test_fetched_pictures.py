"""Pictures that a conversation only names: on the web, fetched where the server may; in its folder; and refused everywhere else."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from tests.serve.live import Live, ask, data_address, live, png, until
from tests.serve.ssrf_cases import HERE, LOOKUPS, PICTURE, PUBLIC, STATIC, Web, answer, drip

import vistune
from vistune import cli_model
from vistune.__main__ import main
from vistune.chat_model import ScriptedChatModel
from vistune.errors import ImageError, UsageError
from vistune.media import DEFAULT_LIMITS, open_image
from vistune.serve import fetch
from vistune.serve.api import Settings
from vistune.serve.failures import ApiError
from vistune.serve.fetch import FetchPolicy
from vistune.serve.messages import PictureSources, conversation_of, fetched
from vistune.serve.schemas import RequestLimits
from vistune.types import Conversation, ImagePart, TextPart


def conversation(*addresses: str, sources: PictureSources) -> Conversation:
    content = [{"type": "text", "text": "Look:"}, *({"type": "image_url", "image_url": {"url": address}} for address in addresses)]
    return conversation_of(
        [{"role": "user", "content": content}],
        max_messages=9, max_characters=99, max_images=9, image_limits=DEFAULT_LIMITS, continued=False, sources=sources,
    )  # fmt: skip


def read(*addresses: str, web: Web, hold: Callable[[int], None] = lambda size: None, **policy: Any) -> Conversation:
    sources = PictureSources(web=web.fetcher(**policy))
    return asyncio.run(asyncio.wait_for(fetched(conversation(*addresses, sources=sources), sources, DEFAULT_LIMITS, hold), 20))


def test_pictures_take_the_places_of_their_addresses():
    web = Web(pages={HERE: answer(PICTURE), "http://ok.test/blue": answer(png("blue"))})
    found = read(HERE, "http://ok.test/blue", data_address(png("lime")), f" {HERE}\n", web=web)
    assert [image.source for image in found.images] == [PICTURE, png("blue"), png("lime"), PICTURE]
    assert found.messages[0].parts[-1] == TextPart("Look:")
    assert len(web.connections) == 2  # the same address twice is fetched once


def test_a_conversation_without_addresses_is_left_as_it_is():
    sources = PictureSources(web=Web().fetcher())
    plain = conversation(data_address(), sources=sources)
    assert asyncio.run(fetched(plain, sources, DEFAULT_LIMITS, lambda size: None)) is plain


def test_whatever_went_wrong_the_client_is_told_the_same_and_of_which_picture():
    web = Web(pages={"http://ok.test/404": answer(status=404), "http://ok.test/html": answer(b"<html></html>"), HERE: answer(PICTURE)})
    told = set()
    for address in (
        "http://127.0.0.1/", "http://inside.test/", "http://gone.test/", "http://ok.test/404", "http://ok.test/html", "http://ok.test:22/",
        "http://ok.test/\ud800", "ftp://x/", "file:///etc/passwd", "/etc/passwd", "x" * 5000, "",
    ):  # fmt: skip
        with pytest.raises(ApiError) as refused:
            read(HERE, address, web=web)
        told.add((refused.value.status, refused.value.code, refused.value.message, refused.value.param))
    [(status, code, message, param)] = told
    assert (status, code, param) == (400, "invalid_image_url", "messages.0.content.2.image_url")
    assert message.startswith("No picture could be fetched from this address.")


def test_a_fetched_picture_passes_the_same_checks_as_one_that_was_sent():
    web = Web(pages={HERE: answer(png(size=(1, 1))), "http://ok.test/cut": answer(PICTURE[:40])})
    for address, text in ((HERE, "too small"), ("http://ok.test/cut", "incomplete")):
        with pytest.raises(ApiError, match=text) as refused:
            read(address, web=web)
        assert (refused.value.status, refused.value.code) == (400, "invalid_image")


def test_the_bytes_of_fetched_pictures_are_held_by_the_house():
    web, held = Web(pages={HERE: answer(PICTURE)}), []
    read(HERE, web=web, hold=held.append)
    assert sum(held) == len(PICTURE)

    def full(size: int) -> None:
        raise ApiError(429, "queue_full", "Full.")

    with pytest.raises(ApiError, match="Full"):
        read(HERE, web=web, hold=full)
    assert web.num_open == 0


def test_one_picture_that_cannot_be_had_ends_the_others():
    web = Web(pages={HERE: lambda reader: None})
    with pytest.raises(ApiError):
        read(HERE, "http://127.0.0.1/", web=web, seconds=60.0)
    assert len(web.connections) == 1
    assert web.num_open == 0


def test_without_places_the_client_is_told_to_come_back():
    web = Web(pages={HERE: lambda reader: None})

    async def run() -> None:
        sources = PictureSources(web=web.fetcher(at_once=1, seconds=0.05))
        sources.web._places = asyncio.Semaphore(0)  # type: ignore[union-attr]
        await fetched(conversation(HERE, sources=sources), sources, DEFAULT_LIMITS, lambda size: None)

    with pytest.raises(ApiError) as busy:
        asyncio.run(run())
    assert (busy.value.status, busy.value.code, busy.value.retry_after) == (429, "fetches_busy", 10)


# --- a folder of pictures -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures"
    (pictures / "in it").mkdir(parents=True)
    for place in (pictures / "a.png", pictures / "in it" / "b.png", tmp_path / "outside.png"):
        place.write_bytes(PICTURE)
    (pictures / "link.png").symlink_to(tmp_path / "outside.png")
    (pictures / "notes.txt").write_text("canary")
    return pictures


def test_a_folder_of_pictures_is_read_by_file_addresses(folder: Path):
    sources = PictureSources(folder=folder)
    for address in ("file://a.png", "FILE://in%20it/b.png", f"file://{folder}/a.png", (folder / "in it" / "b.png").as_uri()):
        assert conversation(address, sources=sources).images == (ImagePart(PICTURE),)


def test_what_is_not_a_picture_in_the_folder_is_not_there(folder: Path):
    sources = PictureSources(folder=folder)
    told = set()
    for name in (
        "../outside.png", "%2e%2e/outside.png", "link.png", "notes.txt", "missing.png", "", "/etc/passwd", f"{folder}/../outside.png",
        "in it", "a.png%00", "/dev/zero", "localhost/a.png", "\ud800",
    ):  # fmt: skip
        with pytest.raises(ApiError) as refused:
            conversation(f"file://{name}", sources=sources)
        told.add((refused.value.status, refused.value.code, refused.value.message))
    assert told == {(400, "invalid_image_url", "The server's folder of pictures holds no such one.")}


def test_without_a_folder_no_file_is_opened(folder: Path):
    with pytest.raises(ApiError) as refused:
        conversation(f"file://{folder}/a.png", sources=PictureSources())
    assert refused.value.code == "unsupported_image_url"
    with pytest.raises(ApiError) as refused:
        read(f"file://{folder}/a.png", web=Web())
    assert refused.value.code == "invalid_image_url"


# --- over the API -------------------------------------------------------------------------------------------------------------------------


def of_picture(address: str, **more: Any) -> dict[str, Any]:
    return ask([{"type": "image_url", "image_url": {"url": address}}]) | more


@contextmanager
def serving(sources: PictureSources) -> Iterator[tuple[Live, ScriptedChatModel]]:
    model = ScriptedChatModel(lambda conversation, params: "fine")
    with live(model, Settings(limits=RequestLimits(sources=sources))) as server:
        yield server, model


def test_a_client_sends_an_address_and_the_model_sees_the_picture():
    web = Web(pages={HERE: answer(PICTURE)})
    with serving(PictureSources(web=web.fetcher())) as (server, model):
        assert server.post(of_picture(HERE)).json()["choices"][0]["message"]["content"] == "fine"
        assert "data: [DONE]" in server.post(of_picture(HERE, stream=True)).text
    assert [image.source for conversation, _ in model.calls for image in conversation.images] == [PICTURE, PICTURE]


def test_the_api_connects_to_nobody_it_must_not_and_its_log_holds_no_address(caplog: pytest.LogCaptureFixture):
    web = Web(pages={HERE: answer(status=302, Location="http://127.0.0.1/canary")})
    addresses = [
        *(address for address in STATIC[::6] if not address.startswith("data:")),
        *(f"http://{name}/canary" for name in LOOKUPS),
        HERE,
    ]
    with serving(PictureSources(web=web.fetcher())) as (server, model), caplog.at_level(logging.DEBUG, "vistune"):
        told = {server.post(of_picture(address)).text for address in addresses}
        assert not model.calls
        assert server.gate.num_admitted == 0
    assert web.connections == [(PUBLIC, 80, "ok.test", False)]
    assert len(told) == 1
    assert "ok.test" not in caplog.text
    assert "canary" not in caplog.text
    assert caplog.text.count('"code": "invalid_image_url"') == len(addresses)


def test_unless_it_was_told_otherwise_the_server_fetches_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetch, "connect_to", None)
    monkeypatch.setattr(fetch, "system_resolve", None)
    assert RequestLimits().sources == PictureSources(web=None, folder=None)
    with live(ScriptedChatModel(lambda conversation, params: "fine")) as server:
        for address in (HERE, "https://8.8.8.8/x", "file:///etc/hostname"):
            response = server.post(of_picture(address))
            assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported_image_url")


def test_when_the_client_goes_the_connection_for_its_picture_is_closed():
    web = Web(pages={HERE: drip})
    with serving(PictureSources(web=web.fetcher(seconds=60.0))) as (server, model):
        body = json.dumps(of_picture(HERE)).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(head.encode() + body)
            until(lambda: web.num_open == 1)
            assert server.gate.num_admitted == 1
        until(lambda: web.num_open == 0)
        until(lambda: server.gate.num_admitted == 0)
        assert server.gate.num_bytes == 0
        assert not model.calls


# --- from the command line ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[PictureSources]:
    """Where each server that `main` starts takes its pictures from."""
    seen: list[PictureSources] = []
    monkeypatch.setattr(cli_model, "loaded_roster", lambda *_, **__: nullcontext({"a": ScriptedChatModel(lambda *_: "fine")}))
    monkeypatch.setattr("vistune.serve.server.serve", lambda _models, settings, **_: seen.append(settings.limits.sources))
    return seen


def test_fetching_and_the_folder_are_switched_on_by_name(served: list[PictureSources], folder: Path):
    assert main(["serve"]) == main(["serve", "--fetch-images", "--max-body", "3"]) == 0
    assert main(["serve", "--fetch-images", "--fetch-from", "a.test", "--fetch-from", ".b.test", "--media-path", str(folder)]) == 0
    closed, everywhere, somewhere = served
    assert closed == PictureSources(web=None, folder=None)
    assert everywhere.web is not None
    assert (everywhere.web.policy, everywhere.folder) == (FetchPolicy(total_bytes=3 << 20), None)
    assert somewhere.web is not None
    assert (somewhere.web.policy.hosts, somewhere.folder) == (("a.test", ".b.test"), folder)


@pytest.mark.parametrize(
    "options", [["--fetch-from", "a.test"], ["--fetch-images", "--fetch-from", "https://a.test"], ["--media-path", "/no/such/folder"]]
)
def test_a_source_that_cannot_be_meant_refuses_to_start(options: list[str], served: list[PictureSources]):
    assert main(["serve", *options]) == UsageError.exit_code
    assert not served


# --- and nobody else does ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [*STATIC, HERE, "https://ok.test/picture"], ids=lambda address: ascii(address)[:60])
def test_whoever_else_opens_pictures_refuses_addresses(address: str, monkeypatch: pytest.MonkeyPatch):
    """Datasets, the data engine, the terminal and the evaluation all open theirs here."""
    monkeypatch.setattr(socket, "socket", None)
    with pytest.raises(ImageError) as refused:
        open_image(address)
    assert refused.value.reason in ("url", "data_url")


HOUSE = Path(vistune.__file__).parent
TALKERS = {
    "data/view.py": "listens",
    "decode_child.py": "its parent only",
    "decoding.py": "its children only",
    "http_client.py": "the client of model servers, whose addresses the user gives",
    "serve/fetch.py": "the one that fetches",
    "serve/server.py": "listens",
}


def test_no_other_file_of_the_house_opens_connections_itself():
    modules = "socket|ssl|http|ftplib|requests|httpx2?|aiohttp|urllib3|urllib.request|h11|socketserver|smtplib"
    talks = re.compile(rf"^\s*(import|from) ({modules})\b|open_connection|create_connection|urlopen|sock_connect", re.MULTILINE)
    found = {path.relative_to(HOUSE).as_posix() for path in HOUSE.rglob("*.py") if talks.search(path.read_text())}
    assert found <= set(TALKERS)
    assert "serve/fetch.py" in found
