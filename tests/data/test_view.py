"""`data view`: one page that shows everything and obeys nothing."""

from __future__ import annotations

import html.parser
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.instruction_data import row, write_picture, write_rows

from vistune.data.view import MAX_TEXT, ViewServer, render_view, select_rows


class Page(html.parser.HTMLParser):
    """What a browser would make of the page: its elements with their attributes, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


OURS = {
    "html", "head", "meta", "title", "style", "body", "h1", "small", "main", "article", "header", "a", "b", "div", "section", "h3", "p",
    "span", "figure", "img", "figcaption", "details", "summary", "pre", "i",
}  # fmt: skip


def page_of(folder: Path, *rows: Any, **choice: Any) -> str:
    file = write_rows(folder / "rows.json", *rows)
    return "".join(render_view(select_rows(file, folder, **{"count": 50, **choice}), title=file.name, images=folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_picture(tmp_path / "cat.png", size=(640, 480))
    return tmp_path


def test_a_row_is_shown_with_its_picture_as_a_thumbnail_of_our_own(folder: Path):
    page = Page(page_of(folder, row(kind="detail", provenance={"licence": "CC0"})))
    (image,) = (attributes for tag, attributes in page.elements if tag == "img")
    assert image["src"].startswith("data:image/jpeg;base64,")
    assert (image["width"], image["height"]) == ("320", "240")
    for shown in ("What is it?", "A cat.", "kind: detail", '"licence": "CC0"', "cat.png, 640 × 480", "picture 1"):
        assert shown in page.text


hostile = st.one_of(st.text(), st.sampled_from(["</p><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "&lt;b&gt;", "<!--"]))


@given(hostile, hostile.filter(str.strip), hostile, hostile)
def test_no_text_of_a_row_becomes_an_element(tmp_path_factory: pytest.TempPathFactory, question: str, answer: str, name: str, licence: str):
    folder = tmp_path_factory.mktemp("hostile")
    plain = page_of(folder, row("Q", "A", image=None, id="1", kind="k", provenance={"licence": "l"}))
    rows = row(question, answer, image=None, id=name, kind=f"k{name}", provenance={"licence": licence})
    page = Page(page_of(folder, rows))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in Page(plain).elements]
    assert {tag for tag, _ in page.elements} <= OURS
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_the_page_may_load_and_run_nothing(folder: Path):
    page = Page(page_of(folder, row()))
    policy = next(attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert all(attributes.get("href", "#").startswith("#") for _, attributes in page.elements)


def test_characters_that_hide_or_turn_text_are_seen(folder: Path):
    text = Page(page_of(folder, row("a\u202eb\u200bc\x07d\u200de", image=None))).text
    assert "a⟨U+202E⟩b⟨U+200B⟩c⟨U+0007⟩d\u200de" in text


def test_rows_and_pictures_that_cannot_be_used_are_shown_with_the_reason(folder: Path):
    text = Page(page_of(folder, row(image="gone.png"), row(answer=""), 7)).text
    assert "picture 1: missing" in text
    assert "'gone.png': there is no such file" in text
    assert str(folder) not in text
    assert "cannot be used: empty_answer" in text
    assert "cannot be used: bad_row" in text


def test_an_endless_text_is_cut_and_says_so(folder: Path):
    page = page_of(folder, row(answer="word " * MAX_TEXT))
    assert "more characters" in page
    assert len(page) < 3 * MAX_TEXT + 40_000


def test_rows_are_chosen_by_count_seed_and_text(folder: Path):
    file = write_rows(folder / "rows.json", *(row(f"Number {number}?", image=None) for number in range(40)))

    def numbers(**choice: Any) -> list[int]:
        return [each.number for each in select_rows(file, folder, **choice)]

    assert numbers(count=3) == [0, 1, 2]
    drawn = numbers(count=5, choice="random", seed=1)
    assert drawn == sorted(drawn) == numbers(count=5, choice="random", seed=1) != numbers(count=5, choice="random", seed=2)
    assert numbers(count=50, containing="number 3") == [3, *range(30, 40)]
    assert set(numbers(count=4, choice="random", containing="number 3")) <= {3, *range(30, 40)}


def test_the_server_shows_one_page_to_this_machine_under_its_own_name():
    with ViewServer(b"<p>page</p>") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            assert server.address.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(server.address, timeout=10) as answer:
                assert (answer.read(), answer.headers["X-Content-Type-Options"]) == (b"<p>page</p>", "nosniff")
            for address, host in ((f"{server.address}etc/passwd", "127.0.0.1:1"), (server.address, "evil.example:80")):
                request = urllib.request.Request(address, headers={"Host": host})
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    urllib.request.urlopen(request, timeout=10)
        finally:
            server.shutdown()
            thread.join()
