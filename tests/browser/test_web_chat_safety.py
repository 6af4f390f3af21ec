"""Whatever a model, a file's name or an imported conversation says stays text: nothing runs, nothing is loaded, nothing is sent."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.browser.chat_page import Page, chat_page, chat_server
from tests.serve.live import data_address

pytestmark = pytest.mark.timeout(1200)

RUN = "window.ran=1"
PAYLOADS = [
    f"<script>{RUN}</script>",
    f"<img src=x onerror={RUN}>",
    f"<svg onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    f"<details open ontoggle={RUN}>x</details>",
    f"<body onload={RUN}>",
    f"<input autofocus onfocus={RUN}>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={RUN}>",
    f"<a href='javascript:{RUN}'>a</a>",
    f"[a](javascript:{RUN})",
    f"[a](JaVaScRiPt:{RUN})",
    f"[a](java\tscript:{RUN})",
    f"[a](\x01javascript:{RUN})",
    f"[a](<javascript:{RUN}>)",
    f"[a](data:text/html,<script>{RUN}</script>)",
    f"[a](vbscript:{RUN})",
    f"[a](&#106;avascript:{RUN})",
    "[a](file:///etc/passwd)",
    f"[a](//evil.example/{RUN})",
    "[a](blob:http://evil.example/1)",
    f"![a](https://evil.example/?q={RUN})",
    "![a](x){onerror=1}",
    f'![a]("onerror={RUN} ")',
    f"[![a](https://evil.example/1.png)](javascript:{RUN})",
    f'<https://evil.example/" onmouseover="{RUN}>',
    f'https://evil.example/"onmouseover="{RUN}',
    f"<javascript:{RUN}>",
    f"`<img src=x onerror={RUN}>`",
    f"```html\n<script>{RUN}</script>\n```",
    f'```"><script>{RUN}</script>\nx\n```',
    f"| <img src=x onerror={RUN}> | b |\n| --- | --- |\n| <script>{RUN}</script> | [x](javascript:{RUN}) |",
    f"> <script>{RUN}</script>",
    f"- <img src=x onerror={RUN}>",
    f"1. [x](javascript:{RUN})",
    f"# <svg onload={RUN}>",
    f"**<b onclick={RUN}>x</b>**",
    f"<style>@import 'https://evil.example/{RUN}'</style>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<base href=https://evil.example/>",
    f"<form action=https://evil.example><button onclick={RUN}>x</button></form>",
    f"<object data=javascript:{RUN}>",
    f"<embed src=javascript:{RUN}>",
    f"{{{{constructor.constructor('{RUN}')()}}}}",
    f"${{{RUN}}}",
    f'"><script>{RUN}</script>',
    f"'-{RUN}-'",
    f"</textarea><script>{RUN}</script>",
    f"</title><script>{RUN}</script>",
    f"<!--><script>{RUN}</script>-->",
    f"<noscript><p title='</noscript><img src=x onerror={RUN}>'>",
]


@pytest.fixture(scope="module")
def chat(browser: Any) -> Iterator[Page]:
    with chat_server(lambda *_: "\n\n".join(PAYLOADS), pause=0.0) as (server, _), chat_page(browser, server) as page:
        yield page


def assert_inert(chat: Page) -> None:
    """Nothing ran, and no element stands on the page that the page itself does not make."""
    chat.page.wait_for_timeout(300)
    found = chat.page.evaluate(
        """() => ({
            ran: window.ran ?? null,
            made: [...document.querySelectorAll("body *:not(body > *)")].map((node) => node.tagName),
            handlers: [...document.querySelectorAll("*")].flatMap((node) => node.getAttributeNames())
                .filter((name) => name.startsWith("on")),
            links: [...document.querySelectorAll("a")].map((node) => [node.protocol, node.rel, node.target]),
            images: [...document.querySelectorAll("img")].map((node) => node.src.split(":")[0]),
        })"""
    )
    forbidden = {"SCRIPT", "IFRAME", "OBJECT", "EMBED", "STYLE", "LINK", "META", "BASE", "FORM", "MATH", "DETAILS", "BODY", "NOSCRIPT"}
    assert found["ran"] is None
    assert not forbidden & set(found["made"])
    assert not found["handlers"]
    assert {protocol for protocol, _, _ in found["links"]} <= {"http:", "https:", "mailto:"}
    assert all("noopener" in rel and "noreferrer" in rel for protocol, rel, target in found["links"] if target)
    assert set(found["images"]) <= {"blob", "http"}
    assert not chat.foreign
    assert not chat.errors


def test_what_the_model_and_the_reader_write_is_inert(chat: Page):
    chat.ask("\n\n".join(PAYLOADS))
    assert_inert(chat)
    answer = chat.page.inner_text("article.assistant .body")
    assert f"<script>{RUN}</script>" in answer  # it is there to be read
    assert "[picture: a]" in answer
    assert "(evil.example)" in answer or "evil.example" in answer  # a link says where it leads
    chat.reload()
    assert_inert(chat)


@pytest.mark.parametrize("name", [f"<img src=x onerror={RUN}>.png", f'"><script>{RUN}</script>.png', "\u202egnp.exe", "a" * 500 + ".png"])
def test_the_name_of_a_file_is_inert(chat: Page, name: str):
    chat.page.click("#new")
    chat.attach(name)
    chat.ask("What?")
    assert_inert(chat)
    assert "\u202e" not in (chat.page.get_attribute("article.user img", "alt") or "")


def hostile_file(text: str, **changes: Any) -> dict[str, Any]:
    messages = [
        {"id": "1", "parent": None, "role": "user", "text": text, "pictures": ["p"]},
        {
            "id": "2",
            "parent": "1",
            "role": "assistant",
            "text": text,
            "pictures": [],
            "model": text,
            "finish": text,
            "problem": {"title": text},
        },
    ]
    conversation = {"id": "x", "title": text, "messages": messages, "chosen": {"root": "1", "__proto__": "2"}, "settings": {"model": text}}
    picture = {"id": "p", "name": text, "type": "text/html", "width": 1e9, "height": -1, "data": data_address()}
    return {"format": "vistune-chat", "version": 1, "conversation": conversation, "pictures": [picture]} | changes


def test_an_imported_conversation_is_inert(chat: Page):
    chat.import_file(hostile_file("\n\n".join(PAYLOADS)))
    chat.page.wait_for_selector("article.user img")
    assert_inert(chat)
    assert chat.page.get_attribute("article.user img", "width") == "8"


LOOP = [{"id": "1", "parent": "2", "role": "user", "text": ""}, {"id": "2", "parent": "1", "role": "assistant", "text": ""}]
TWICE = [{"id": "1", "parent": None, "role": "user", "text": ""}] * 2
SYSTEM = [{"id": "1", "parent": None, "role": "system", "text": ""}]
WRONG = {
    "no JSON": b"{",
    "null": None,
    "a list": [],
    "another format": {"format": "other"},
    "no conversation": {"format": "vistune-chat", "version": 1},
    "an SVG": hostile_file("x", pictures=[{"id": "p", "data": "data:image/svg+xml;base64,PHN2Zz4="}]),
    "HTML": hostile_file("x", pictures=[{"id": "p", "data": "data:text/html;base64,PHN2Zz4="}]),
    "HTML called PNG": hostile_file("x", pictures=[{"id": "p", "data": "data:image/png;base64,PHN2Zz4="}]),
    "an address": hostile_file("x", pictures=[{"id": "p", "data": "https://evil.example/1.png"}]),
    "a missing picture": hostile_file("x", pictures=[]),
    **{f"messages {n}": hostile_file("x", conversation={"messages": rows}) for n, rows in enumerate([LOOP, TWICE, SYSTEM, [None], "x"])},
}


@pytest.mark.nightly
@pytest.mark.parametrize("kind", WRONG)
def test_a_broken_import_is_refused_whole(chat: Page, kind: str):
    count = "document.querySelectorAll('#conversations .open').length"
    before = chat.page.evaluate(count)
    chat.page.evaluate("document.querySelector('#toasts').replaceChildren()")
    chat.import_file(WRONG[kind])
    chat.page.wait_for_selector(".toast")
    assert chat.page.evaluate(count) == before
    assert_inert(chat)


SLOW = {
    "stars": "*" * 50_000,
    "underscores": "_a" * 25_000,
    "brackets": "[" * 50_000,
    "links": "[a](" * 20_000,
    "pictures": "![" * 25_000,
    "fences": "`" * 50_000,
    "growing fences": "".join("`" * n + " " for n in range(1, 300)),
    "quotes": "> " * 20_000,
    "lists": "- " * 20_000,
    "table": "|" * 50_000 + "\n" + "|-" * 25_000,
    "dashes": "|-\n" + "- -" * 20_000 + "x",
    "headings": "# " * 25_000,
    "lines": "a\n" * 30_000,
    "strong": "**a" * 20_000,
    "spaces": "a" + " " * 50_000 + "b",
    "emphasis in emphasis": "*a **b " * 8_000,
    "addresses": "http://" * 8_000,
}


@pytest.mark.nightly
@pytest.mark.parametrize("kind", SLOW)
def test_no_text_makes_the_renderer_slow(chat: Page, kind: str):
    milliseconds = chat.page.evaluate(
        """async (text) => {
            const { renderMarkdown } = await import("/web/markdown.js");
            const place = document.createElement("div");
            const started = performance.now();
            renderMarkdown(place, text);
            return performance.now() - started;
        }""",
        SLOW[kind],
    )
    assert milliseconds < 5000


@pytest.mark.nightly
def test_a_stream_without_end_or_sense_ends_in_words(browser: Any):
    with chat_server() as (server, _), chat_page(browser, server) as chat:
        bodies = [
            "data: not json\n\n",
            "data: {}\n\n" * 50,
            'data: {"choices": null}\n\ndata: [1]\n\n',
            'data: {"error": {"message": 7}}\n\n',
            "",
        ]
        for body in [*bodies, b"data: \xff\xfe\n\n"]:
            chat.next_answer(headers={"Content-Type": "text/event-stream"}, body=body)
            chat.page.click("#new")
            chat.ask("Hello")
            assert chat.page.locator(".problem").count() == 1


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(0, len(PAYLOADS), 4))
def test_what_a_picture_is_called_and_says_of_itself_is_inert(chat: Page, first: int):
    """Every payload as the name of a file, and within the file as its comment and its EXIF description."""
    chat.page.click("#new")
    for payload in PAYLOADS[first : first + 4]:
        chat.attach(payload.replace("/", "∕") + ".png", telling_png(payload))
    chat.ask("What?")
    assert_inert(chat)
    for form in ("#export-json", "#export-markdown"):
        chat.page.click("#share")
        chat.downloaded(form)
    assert_inert(chat)


def telling_png(text: str) -> bytes:
    file, comments, exif = io.BytesIO(), PngInfo(), Image.Exif()
    comments.add_itxt("Comment", text)
    exif[0x010E] = text
    Image.new("RGB", (9, 9), "red").save(file, "PNG", pnginfo=comments, exif=exif)
    return file.getvalue()


@pytest.mark.nightly
def test_a_rating_is_one_line_of_the_log_whatever_was_said(browser: Any):
    """Nothing in the feedback can begin a row of its own: not a line break, not one of Unicode's, not a spreadsheet's formula."""
    said = 'a\nb\r\nc\u2028d\u2029e\x85f\x0bg\x0ch\x1ei {"rating": "up"}\n=cmd|\' /C calc\'!A0\t@SUM(1)'
    with chat_server(lambda *_: said) as (server, _), chat_page(browser, server) as page:
        page.ask(said)
        page.button(1, "down")
        page.page.fill("#correction-text", said)
        page.page.click("#correction-save")
        page.page.click("#open-feedback")
        page.page.wait_for_selector("#feedback[open]")
        with zipfile.ZipFile(io.BytesIO(page.downloaded("#feedback-export"))) as archive:
            for name in ("feedback.jsonl", "messages.jsonl"):
                lines = archive.read(name).decode().split("\n")
                assert [bool(line) for line in lines] == [True, False], name
                assert json.loads(lines[0])
            assert not [name for name in archive.namelist() if name.endswith(".csv")]
