"""The report and the card: complete in one file, and harmless whatever stands in the data."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.datagen.test_tally import example

from vistune.datagen.card import dataset_card
from vistune.datagen.charts import bars, histogram, verb_nouns
from vistune.datagen.report import report_html
from vistune.datagen.tally import Rejected, Tally
from vistune.types import Conversation, ImagePart, InstructionExample

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;</style></main>"
ABOUT: dict[str, Any] = {
    "title": "Data",
    "settings": {"kinds": ["conversation"]},
    "figures": {"rows": 3},
    "filters": {"refusal": "an answer that declines"},
}
RUN: dict[str, Any] = {
    "vistune": "0",
    "licence": "CC BY 4.0",
    "file": "instruct.json",
    "settings": {
        "source": "coco", "kinds": {"conversation": "ab" * 32}, "teacher": "template", "temperature": 0.7, "seed": 0, "filters": ["length"],
        "format": "llava", "images": "/pictures",
    },
}  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes and the balance of a page."""

    VOID = frozenset({"meta", "img", "rect", "br"})

    def __init__(self, html: str):
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attributes

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def tally(tmp_path: Path) -> Tally:
    Image.new("RGB", (600, 400), "teal").save(tmp_path / "1.jpg")
    tally = Tally()
    conversation = Conversation(()).then("user", ImagePart(tmp_path / "1.jpg"), f"\nWhat is {HOSTILE}?").then("assistant", HOSTILE)
    tally.add(InstructionExample(HOSTILE, conversation, kind=HOSTILE))
    tally.reject(Rejected(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE))
    tally.verb_nouns[HOSTILE, HOSTILE] = 5
    return tally


def test_nothing_in_the_data_becomes_markup(tally: Tally, tmp_path: Path):
    about = {"title": HOSTILE, "settings": {HOSTILE: HOSTILE}, "figures": {HOSTILE: HOSTILE}, "filters": {HOSTILE: HOSTILE}}
    page = Page(report_html(tally, about, image_root=tmp_path))
    assert page.open == []
    assert page.tags["script"] == 0
    assert page.tags["style"] == 1
    assert page.tags["img"] == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_the_page_needs_nothing_from_elsewhere_and_knows_dark_and_light(tally: Tally, tmp_path: Path):
    html = report_html(tally, ABOUT, image_root=tmp_path)
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:|//|file:)", html.replace(HOSTILE, ""))
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert 'src="data:image/jpeg;base64,' in html
    assert len(html) < 100_000


def test_a_sample_whose_picture_is_gone_says_so(tmp_path: Path):
    tally = Tally()
    conversation = Conversation(()).then("user", ImagePart(tmp_path / "gone.jpg"), "\nWhat?").then("assistant", "A dog.")
    tally.add(InstructionExample("1", conversation, kind="detail"))
    html = report_html(tally, ABOUT, image_root=tmp_path)
    assert "gone.jpg" in html
    assert "<img" not in html


def test_an_empty_run_has_a_report_too(tmp_path: Path):
    assert Page(report_html(Tally(), ABOUT, image_root=tmp_path)).open == []


@pytest.mark.parametrize("counts", [{1: 5}, {3: 1, 400: 2}, {number: number for number in range(1, 300)}, {0: 1_000_000, 10**6: 1}])
def test_every_value_of_a_histogram_stands_in_one_of_its_bars(counts: dict[int, int]):
    drawing = histogram(Counter(counts), unit="words")
    shown = [int(count.replace(",", "")) for count in re.findall(r"<title>[^<]*: ([\d,]+) \(", drawing)]
    assert sum(shown) == sum(counts.values())
    assert len(shown) <= 60


def test_the_chart_of_verbs_shows_all_questions_of_each_verb():
    pairs = Counter({("hold", f"noun{number}"): 10 - number for number in range(10)} | {("be", "dog"): 500})
    drawing = verb_nouns(pairs)
    be, hold = (re.findall(rf"<title>{verb} … ([^:<]+): ([\d,]+)</title>", drawing) for verb in ("be", "hold"))
    assert be == [("dog", "500")]
    assert sum(int(count) for _, count in hold) == 55
    assert hold[-1][0] == "other nouns"


def test_bars_are_as_long_as_their_shares():
    drawing = bars([("a", 100), ("b", 50)], total=200)
    long, short = (float(width) for width in re.findall(r'width="([\d.]+)" height="14"', drawing))
    assert long == pytest.approx(2 * short, rel=0.01)
    assert "100 · 50.0%" in drawing


def test_the_card_says_what_it_is_made_of_and_under_which_licence():
    tally = Tally()
    tally.add(example(1))
    tally.reject(Rejected("2.jpg", "conversation", "refusal", "", ""))
    card = dataset_card(tally, RUN)
    assert card.startswith("---\nlicense: other\n")
    for said in ("CC BY 4.0", "instruct.json", "| conversation | 1 |", "| `refusal` | 1 |", "n<1K", "50.0% of 2 replies"):
        assert said in card
    assert "/pictures" not in card
