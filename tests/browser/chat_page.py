"""The web chat in a headless Chromium, over a scripted model."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.serve.live import Live, live, png

from vistune.chat_model import ScriptedChatModel
from vistune.serve.api import Settings
from vistune.serve.server import LOOPBACK_NAMES
from vistune.types import Conversation, SamplingParams

PATIENCE = 120_000
"""Milliseconds that a step may take: how long one takes says something about the machine, not about the page."""

LONG = "".join(f"Word {number} of a long answer. " for number in range(400))


def scripted(conversation: Conversation, _params: SamplingParams) -> str:
    """What the model says: a long answer to "long", else how often and about how many pictures it was asked."""
    question = conversation.messages[-1].text
    if "long" in question:
        return LONG
    return f"Answer to **{question.strip()}** about {len(conversation.images)} pictures, message {len(conversation.messages)}."


@contextmanager
def chat_server(script: Any = scripted, *, pause: float = 0.01, **settings: Any) -> Iterator[tuple[Live, ScriptedChatModel]]:
    model = ScriptedChatModel(script, piece_size=6, pause=pause)
    settings = {"hosts": frozenset(LOOPBACK_NAMES)} | settings
    with live({"first": model, "second": model}, Settings(**settings)) as running:
        yield running, model


class Page:
    """One reader's page. Remembers whatever it should never have done."""

    def __init__(self, browser: Any, server: Live, *, path: str = "/", **context: Any):
        self.context = browser.new_context(viewport={"width": 1100, "height": 800}, accept_downloads=True, **context)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.server, self.errors, self.foreign = server, [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", self._note)
        self.open(path)

    def _note(self, request: Any) -> None:
        if not request.url.startswith((self.server.address, "blob:", "data:")):
            self.foreign.append(request.url)

    def open(self, path: str = "/") -> None:
        self.page.goto(self.server.address + path)
        self.page.wait_for_selector("body[data-ready]")

    def reload(self) -> None:
        self.page.reload()
        self.page.wait_for_selector("body[data-ready]")

    def becomes(self, expression: str) -> None:
        """Waits until an expression is true. Playwright's own way evaluates in the page, which its policy forbids."""
        deadline = time.monotonic() + PATIENCE / 1000
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, f"this did not come true in time: {expression}"
            self.page.wait_for_timeout(50)

    def give_files(self, event: str, *files: tuple[str, bytes], target: str = "#text") -> None:
        """Pastes or drops files, as the browser would tell the page of them."""
        encoded = [{"name": name, "data": base64.b64encode(data).decode()} for name, data in files]
        self.page.evaluate(
            """([event, target, files]) => {
                const transfer = new DataTransfer();
                for (const {name, data} of files) {
                    const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
                    transfer.items.add(new File([bytes], name, {type: "image/png"}));
                }
                const options = {bubbles: true, cancelable: true};
                document.querySelector(target).dispatchEvent(event === "paste"
                    ? new ClipboardEvent("paste", {...options, clipboardData: transfer})
                    : new DragEvent("drop", {...options, dataTransfer: transfer}));
            }""",
            [event, target, encoded],
        )

    def attach(self, name: str = "photo.png", data: bytes | None = None) -> None:
        before = self.page.locator("#attached li").count()
        self.give_files("paste", (name, png(size=(32, 24)) if data is None else data))
        self.page.locator("#attached li").nth(before).wait_for()

    def ask(self, text: str, *, wait: bool = True) -> None:
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")
        if wait:
            self.finished()

    def finished(self) -> None:
        self.becomes("document.querySelector('#send').dataset.shows === 'false' && document.querySelector('article.last') !== null")

    def button(self, article: int, name: str) -> None:
        self.page.locator("article").nth(article).locator(f"[data-action={name}]").click(force=True)

    @property
    def texts(self) -> list[str]:
        return [text.strip() for text in self.page.locator("article .body").all_inner_texts()]

    def downloaded(self, click: str) -> bytes:
        with self.page.expect_download() as waiting:
            self.page.click(click)
        with open(waiting.value.path(), "rb") as file:
            return file.read()

    def import_file(self, content: Any, name: str = "chat.json") -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.page.set_input_files("#import-file", {"name": name, "mimeType": "application/json", "buffer": data})

    def next_answer(self, **answer: Any) -> None:
        """What the page gets for its next question, in place of the server's answer."""
        self.page.route("**/v1/chat/completions", lambda route: route.fulfill(**answer), times=1)

    def close(self) -> None:
        """Ends, and says that nothing went wrong on the way."""
        self.context.close()
        assert not self.errors
        assert not self.foreign


@contextmanager
def chat_page(browser: Any, server: Live, **options: Any) -> Iterator[Page]:
    page = Page(browser, server, **options)
    try:
        yield page
    except BaseException:
        page.context.close()
        raise
    page.close()
