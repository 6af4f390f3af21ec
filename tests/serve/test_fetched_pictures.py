"""Pictures that a conversation only names: on the web, fetched where the server may; in its folder; and refused everywhere else."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.serve.live import data_address, png
from tests.serve.ssrf_cases import HERE, PICTURE, STATIC, Web, answer

import vistune
from vistune.errors import ImageError
from vistune.media import DEFAULT_LIMITS, open_image
from vistune.serve.failures import ApiError
from vistune.serve.messages import PictureSources, conversation_of, fetched
from vistune.types import Conversation, ImagePart, TextPart


def conversation(*addresses: str, sources: PictureSources) -> Conversation:
    content = [{"type": "text", "text": "Look:"}, *({"type": "image_url", "image_url": {"url": address}} for address in addresses)]
    return conversation_of(
        [{"role": "user", "content": content}],
        max_messages=9, max_characters=99, max_images=9, image_limits=DEFAULT_LIMITS, continued=False, sources=sources,
    )  # fmt: skip


def read(*addresses: str, web: Web, hold: Callable[[int], None] = lambda size: None, **policy: Any) -> Conversation:
    sources = PictureSources(web=web.fetcher(**policy))
    return asyncio.run(fetched(conversation(*addresses, sources=sources), sources, DEFAULT_LIMITS, hold))


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
        read(HERE, "http://127.0.0.1/", web=web)
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
