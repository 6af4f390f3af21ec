"""A person uses the web chat: asks about a picture, stops, asks again, edits, turns back, comes back later."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.browser.chat_page import PATIENCE, Page, chat_page, chat_server
from tests.serve.live import Live, until

from vistune.__main__ import main
from vistune.chat_model import ScriptedChatModel
from vistune.serve.keys import ApiKeys

pytestmark = pytest.mark.timeout(1200)

Served = tuple[Live, ScriptedChatModel]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with chat_server() as running:
        yield running


@pytest.fixture
def chat(browser: Any, served: Served) -> Iterator[Page]:
    with chat_page(browser, served[0]) as page:
        yield page


def test_a_pasted_picture_is_asked_about_and_the_answer_streams_in(chat: Page, served: Served):
    chat.attach()
    chat.ask("What is a long story about this?", wait=False)
    chat.becomes("document.querySelector('article.assistant .body')?.textContent.length > 20")
    lengths = []
    for _ in range(5):
        lengths.append(len(chat.texts[1]))
        chat.page.wait_for_timeout(300)
    assert chat.page.locator(".writing").count() == 1
    assert len(set(lengths)) >= 3
    assert lengths == sorted(lengths)
    chat.page.keyboard.press("Escape")
    chat.finished()
    conversation, params = served[1].calls[-1]
    assert len(conversation.images) == 1
    assert (params.temperature, params.top_p, params.max_new_tokens) == (0.2, 0.7, 512)


def test_escape_stops_the_answer_and_the_model_and_it_can_go_on(chat: Page, served: Served):
    cancelled = served[1].num_cancelled
    chat.ask("A long answer, please", wait=False)
    chat.becomes("document.querySelector('article.assistant .body')?.textContent.length > 20")
    chat.page.keyboard.press("Escape")
    chat.finished()
    until(lambda: served[1].num_cancelled == cancelled + 1)
    stopped = chat.texts[1]
    assert "Stopped." in chat.page.inner_text("article.last")
    chat.button(1, "continue")
    chat.becomes(f"document.querySelector('article.assistant .body').textContent.length > {len(stopped) + 10}")
    chat.page.keyboard.press("Escape")
    chat.finished()
    assert served[1].calls[-1][0].messages[-1].role == "assistant"
    assert chat.texts[1].startswith(stopped)


def test_answers_and_questions_branch_and_nothing_is_lost(chat: Page, served: Served):
    chat.ask("one")
    chat.button(1, "again")
    chat.finished()
    assert chat.page.inner_text("article.last .count") == "2 / 2"
    chat.button(1, "previous")
    assert chat.page.inner_text("article.last .count") == "1 / 2"
    assert chat.page.evaluate("document.activeElement.dataset.action") == "next"  # previous is disabled now; the keyboard is not lost
    chat.ask("two")
    chat.button(0, "edit")
    chat.page.fill("article.editing textarea", "three")
    chat.page.press("article.editing textarea", "Enter")
    chat.finished()
    assert [text.split(" about")[0] for text in chat.texts] == ["three", "Answer to three"]
    chat.button(0, "previous")
    assert [text.split(" about")[0] for text in chat.texts] == ["one", "Answer to one", "two", "Answer to two"]
    chat.button(2, "delete")
    chat.becomes("document.querySelectorAll('article').length === 2")
    chat.page.click(".toast button:has-text('Undo')")
    chat.becomes("document.querySelectorAll('article').length === 4")
    assert [message.text for message in served[1].calls[-2][0].messages][::2] == ["one", "two"]


def test_a_reload_finds_everything_again_and_the_list_searches_renames_and_deletes(chat: Page):
    chat.attach("cat.png")
    chat.ask("Which animal?")
    chat.page.click("#new")
    chat.ask("Something else")
    texts = chat.texts
    chat.reload()
    assert chat.texts == texts
    titles = chat.page.locator("#conversations .open")
    titles.nth(1).wait_for()
    assert titles.all_inner_texts() == ["Something else", "Which animal?"]
    titles.nth(1).click()
    chat.page.wait_for_selector("article img[alt='cat.png']")
    chat.page.fill("#search", "which")
    chat.becomes("document.querySelectorAll('#conversations .open').length === 1")
    titles.nth(0).hover()
    chat.page.click("#conversations [aria-label^=Rename]")
    chat.page.fill("#conversations input", "My cat")
    chat.page.press("#conversations input", "Enter")
    chat.page.wait_for_selector("#conversations .open:has-text('My cat')")
    titles.nth(0).hover()
    chat.page.click("#conversations [aria-label^=Delete]")
    chat.becomes("document.querySelectorAll('#conversations .open').length === 0")
    chat.page.click(".toast button:has-text('Undo')")
    chat.page.wait_for_selector("#conversations .open:has-text('My cat')")


def test_theme_and_phone_width(chat: Page):
    chat.page.keyboard.press("Alt+t")
    assert chat.page.evaluate("document.documentElement.dataset.theme") == "dark"
    chat.ask("| a | b |\n| - | - |\n| " + "long " * 60 + " | 2 |\n\n`" + "x" * 300 + "`")
    chat.page.set_viewport_size({"width": 360, "height": 700})
    chat.reload()
    assert chat.page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert chat.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert chat.page.locator("#side").evaluate("side => side.inert")
    chat.page.click("#side-open")
    assert not chat.page.locator("#side").evaluate("side => side.inert")
    chat.page.keyboard.press("Escape")
    assert chat.page.locator("#side").evaluate("side => side.inert")


@pytest.mark.nightly
def test_the_keys_of_the_page(chat: Page):
    focus = "document.activeElement.id"
    chat.page.focus("#theme")
    chat.page.keyboard.press("/")
    assert chat.page.evaluate(focus) == "text"
    chat.page.keyboard.type("one")
    chat.page.keyboard.press("Shift+Enter")
    chat.page.keyboard.type("/two?")
    assert chat.page.input_value("#text") == "one\n/two?"
    chat.page.keyboard.press("Enter")
    chat.finished()
    chat.page.keyboard.press("ArrowUp")
    assert chat.page.input_value("article.editing textarea") == "one\n/two?"
    chat.page.keyboard.press("Escape")
    chat.page.keyboard.press("Control+k")
    assert chat.page.evaluate(focus) == "search"
    chat.page.focus("#theme")
    chat.page.keyboard.press("?")
    assert chat.page.is_visible("#help")
    chat.page.keyboard.press("Escape")
    chat.page.keyboard.press("Alt+n")
    assert chat.page.is_visible("#welcome")


@pytest.mark.nightly
def test_pictures_come_by_drop_by_choice_and_by_camera_and_large_ones_are_scaled_down(chat: Page, served: Served):
    large = io.BytesIO()
    Image.new("RGB", (4000, 1000), "green").save(large, "PNG")
    chat.give_files("drop", ("wide.png", large.getvalue()), ("notes.png", b"no picture"), target="#thread")
    chat.page.wait_for_selector("#attached li")
    said = chat.page.inner_text(".toast")
    assert "wide.png was 4000 × 1000; scaled down to 2048 × 512." in said
    assert "notes.png is no picture" in said
    chat.page.set_input_files("#files", {"name": "b.png", "mimeType": "image/png", "buffer": large.getvalue()})
    chat.becomes("document.querySelectorAll('#attached li').length === 2")
    chat.page.click("#photograph")
    chat.becomes("document.querySelector('#camera-view').videoWidth > 0")
    chat.page.click("#camera-take")
    chat.becomes("document.querySelectorAll('#attached li').length === 3")
    chat.page.click("#attached [aria-label='Remove b.png']")
    chat.ask("What are these?")
    sizes = [Image.open(io.BytesIO(image.source)).size for image in served[1].calls[-1][0].images]  # type: ignore[arg-type]
    assert sizes[0] == (2048, 512)
    assert len(sizes) == 2


@pytest.mark.nightly
def test_settings_model_and_system_text_are_in_the_request(chat: Page, served: Served):
    assert chat.page.locator("#model option").all_inner_texts() == ["first", "second"]
    chat.page.select_option("#model", "second")
    chat.page.click("#open-settings")
    chat.page.fill("#max-tokens", "5")
    chat.page.fill("#seed", "7")
    chat.page.fill("#system", "Be brief.")
    chat.page.locator("#temperature").fill("0")
    chat.page.keyboard.press("Escape")
    chat.ask("Hello")
    conversation, params = served[1].calls[-1]
    assert (params.max_new_tokens, params.seed, params.temperature) == (5, 7, 0)
    assert (conversation.messages[0].role, conversation.messages[0].text) == ("system", "Be brief.")
    assert chat.page.inner_text("article.last .speaker") == "second"
    assert "longest answer" in chat.page.inner_text("article.last .note")


@pytest.mark.nightly
def test_an_example_is_asked_by_one_click(chat: Page, served: Served):
    chat.page.click(".example >> nth=0")
    chat.page.wait_for_selector("article.assistant")
    chat.finished()
    assert len(served[1].calls[-1][0].images) == 1


@pytest.mark.nightly
def test_what_is_deleted_while_it_is_written_does_not_come_back(chat: Page, served: Served):
    cancelled = served[1].num_cancelled
    chat.ask("A long answer, please", wait=False)
    chat.becomes("document.querySelector('article.assistant .body')?.textContent.length > 20")
    chat.page.hover("#conversations .open")
    chat.page.click("#conversations [aria-label^=Delete]")
    until(lambda: served[1].num_cancelled == cancelled + 1)
    chat.page.wait_for_timeout(500)
    chat.reload()
    assert chat.page.locator("#conversations .open").count() == 0
    chat.ask("another long answer", wait=False)
    chat.becomes("document.querySelector('article.assistant .body')?.textContent.length > 20")
    chat.page.click("#clear")
    chat.page.click("#confirm-yes")
    chat.page.wait_for_timeout(500)
    chat.reload()
    assert chat.page.locator("#conversations .open").count() == 0


@pytest.mark.nightly
def test_an_adapter_stands_under_its_model(browser: Any, served: Served):
    listed = {"data": [{"id": "first"}, {"id": "<b>polite</b>", "parent": "first"}, {"id": 7}]}
    with chat_page(browser, served[0]) as chat:
        chat.page.route("**/v1/models", lambda route: route.fulfill(json=listed))
        chat.reload()
        assert chat.page.get_attribute("#model optgroup", "label") == "Adapters of first"
        assert chat.page.locator("#model option").all_inner_texts() == ["first", "<b>polite</b>"]


@pytest.mark.nightly
def test_a_key_is_asked_for_and_forgotten_with_the_tab(browser: Any):
    key = "sk-canary-0123456789abcdef"
    with chat_server(keys=ApiKeys([key]), hosts=None) as (server, _), chat_page(browser, server) as chat:
        chat.page.wait_for_selector("#key[open]")
        chat.page.fill("#key-text", key)
        chat.page.click("#key-save")
        chat.becomes("document.querySelector('#model').value === 'first'")
        chat.ask("Hello")
        assert "Answer to" in chat.texts[1]
        assert chat.page.evaluate("JSON.stringify(localStorage)").find(key) < 0
        another = chat.context.new_page()
        another.goto(server.address)
        another.wait_for_selector("#key[open]")


ERRORS = {
    413: ("request_too_large", "too much at once"),
    400: ("context_length_exceeded", "too long for this model"),
    500: ("internal_error", "The server failed."),
}


@pytest.mark.nightly
def test_errors_are_said_in_plain_words_and_can_be_tried_again(chat: Page):
    for status, (code, words) in ERRORS.items():
        body = json.dumps({"error": {"message": "<b>told</b>", "code": code, "param": None}})
        chat.next_answer(status=status, body=body)
        chat.page.click("#new")
        chat.ask("Hello")
        assert words in chat.page.inner_text(".problem")
        assert chat.page.locator(".problem b").count() == 0
    chat.button(1, "retry")
    chat.finished()
    assert "Answer to" in chat.texts[1]
    assert chat.page.locator("article").count() == 2


@pytest.mark.nightly
def test_a_busy_server_is_asked_again_after_a_countdown_and_a_lost_one_on_demand(chat: Page):
    body = json.dumps({"error": {"message": "full", "code": "queue_full"}})
    chat.next_answer(status=429, headers={"Retry-After": "4"}, body=body)
    chat.ask("Hello", wait=False)
    chat.page.wait_for_selector(".countdown:has-text('Asking again in')")
    chat.page.wait_for_selector("article.assistant .body:has-text('Answer to')")
    chat.page.click("#new")
    chat.page.route("**/v1/chat/completions", lambda route: route.abort(), times=1)
    chat.ask("Hello again")
    assert "cannot be reached" in chat.page.inner_text(".problem")
    chat.button(1, "retry")
    chat.finished()
    assert "Answer to" in chat.texts[1]


@pytest.mark.nightly
def test_a_connection_that_breaks_keeps_what_had_arrived(chat: Page):
    chunk = json.dumps({"choices": [{"delta": {"content": "Half an ans"}, "finish_reason": None}]})
    chat.next_answer(headers={"Content-Type": "text/event-stream"}, body=f"data: {chunk}\n\ndata: {chunk[:30]}")
    chat.ask("Hello")
    assert chat.texts[1] == "Half an ans"
    assert "connection was lost" in chat.page.inner_text(".problem")


@pytest.mark.nightly
def test_thumbs_become_instruction_data_that_the_check_reads(chat: Page, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    chat.attach("../../<img src=x>.png")
    chat.ask("What is it?")
    chat.button(1, "up")
    chat.ask("Which colour,\nsays =cmd|' /C calc'!A0?")
    chat.button(3, "down")
    chat.page.fill("#correction-text", "Red.")
    chat.page.click("#correction-save")
    chat.page.click("#new")
    chat.ask("Without a picture, <image> is seven characters")
    chat.button(1, "down")
    chat.page.click("#correction [data-close]")
    chat.page.click("#open-feedback")
    chat.page.wait_for_selector("#feedback[open]")
    assert "1 good, 2 bad" in chat.page.inner_text("#feedback-count")
    with zipfile.ZipFile(io.BytesIO(chat.downloaded("#feedback-export"))) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert all(name.startswith("images/0") or "/" not in name for name in names)
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(archive.read(name))
    log = [json.loads(line) for line in (tmp_path / "feedback.jsonl").read_text().splitlines()]
    assert sorted(row["rating"] for row in log) == ["down", "down", "up"]
    rows = json.loads((tmp_path / "llava.json").read_text())
    assert len(rows) == 2
    assert {row["conversations"][-1]["value"] == "Red." for row in rows} == {True, False}
    for name in ("llava.json", "messages.jsonl"):
        assert main(["data", "check", str(tmp_path / name)]) == 0, capsys.readouterr()


@pytest.mark.nightly
def test_an_exported_conversation_imports_again_with_its_branches_and_pictures(browser: Any, served: Served, chat: Page):
    chat.attach("cat.png")
    chat.ask("Which animal?")
    chat.button(1, "again")
    chat.finished()
    chat.page.click("#share")
    exported = chat.downloaded("#export-json")
    chat.page.click("#share")
    markdown = chat.downloaded("#export-markdown").decode()
    assert "**You**" in markdown
    assert "![cat.png](data:image/png;base64," in markdown
    with chat_page(browser, served[0]) as other:
        other.import_file(exported)
        other.page.wait_for_selector("article img[alt='cat.png']")
        assert other.texts == chat.texts
        assert other.page.inner_text("article.last .count") == "2 / 2"
        other.ask("And now?")
        assert len(served[1].calls[-1][0].images) == 1


@pytest.mark.nightly
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 390])
def test_axe_finds_no_serious_fault(chat: Page, theme: str, width: int):
    """Needs VISTUNE_AXE: the path of axe.min.js, as `npm install axe-core` leaves it."""
    axe = os.environ.get("VISTUNE_AXE")
    if not axe:
        pytest.skip("needs VISTUNE_AXE, the path of axe.min.js")
    chat.page.emulate_media(color_scheme=theme, reduced_motion="reduce")  # type: ignore[arg-type]
    chat.page.set_viewport_size({"width": width, "height": 800})
    command = chat.context.new_cdp_session(chat.page)
    program = Path(axe).read_text(encoding="utf-8")

    def faults() -> list[str]:
        command.send("Runtime.evaluate", {"expression": program})  # by the debugger: the page's own policy lets no foreign script in
        found = chat.page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        return [f"{each['id']}: {each['nodes'][0]['html']}" for each in found if each["impact"] in ("serious", "critical")]

    assert not faults()
    chat.attach()
    assert not faults()
    chat.ask("# Title\n\n- a list\n\n`code` and [a link](https://example.org)\n\n```\nblock\n```")
    chat.button(1, "again")
    chat.finished()
    assert not faults()
    for opener, dialog in [("#open-settings", "#settings"), ("#share", "#sharing")]:
        chat.page.click(opener)
        chat.page.wait_for_selector(f"{dialog}[open]", timeout=PATIENCE)
        assert not faults()
        chat.page.keyboard.press("Escape")
