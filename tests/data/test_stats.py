"""`data stats`: the figures are right, for broken rows and pictures too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.instruction_data import row, write_picture, write_rows

from vistune.data.stats import Spread, dataset_stats, printable


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_a_spread_is_that_of_the_list(values: list[int]):
    spread = Spread()
    for value in values:
        spread.add(value)
    ordered = sorted(values)
    assert spread.mean == pytest.approx(sum(values) / len(values))
    assert [spread.at(0), spread.at(1)] == [ordered[0], ordered[-1]]
    for fraction in (0.25, 0.5, 0.75):
        assert spread.at(fraction) == next(value for place, value in enumerate(ordered, 1) if place >= fraction * len(values))


def test_rows_turns_words_pictures_and_origins_are_counted(tmp_path: Path):
    write_picture(tmp_path / "cat.png", size=(96, 64))
    two = row(id="2", kind="detail", provenance={"source": "coco", "licence": "CC BY 4.0"})
    two["conversations"] += [{"from": "human", "value": "And why so?"}, {"from": "gpt", "value": "It purrs and it has a tail."}]
    plain = row("Hi", "Hello there.", image=None)
    plain["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    file = write_rows(tmp_path / "rows.json", row(), two, plain, row(image="gone.png"), row(answer=""))
    stats = dataset_stats(file, tmp_path, measure=lambda example: len(example.id))
    assert (stats.rows, stats.rejected, stats.systems, stats.pictures) == (4, {"empty_answer": 1}, 1, 2)
    assert stats.pictures_per_row == {1: 3, 0: 1}
    assert stats.turns.counts == {1: 3, 2: 1}
    assert stats.answer_words.counts == {2: 4, 7: 1}
    assert stats.question_words.counts == {3: 4, 1: 1}
    assert (stats.widths.counts, stats.heights.counts) == ({96: 1}, {64: 1})
    assert stats.broken_pictures == {"missing": 1}
    assert (stats.kinds["detail"], stats.sources["coco"], stats.licences["CC BY 4.0"]) == (1, 1, 1)
    assert stats.opening_words["what is"] == 3
    assert stats.tokens.n == 4


def test_the_page_and_the_json_say_the_same(tmp_path: Path):
    write_picture(tmp_path / "cat.png")
    stats = dataset_stats(write_rows(tmp_path / "rows.json", row(kind="a\x1b[31m")), tmp_path)
    page = json.loads(json.dumps(stats.as_json()))
    assert page["answer_words"] == {"n": 1, "mean": 2.0, "min": 2, "median": 2, "p90": 2, "p99": 2, "max": 2}
    text = stats.as_text()
    assert "1 rows (1 llava)" in text
    assert "words in an answer          2.0       2" in text
    assert "\x1b" not in text
    assert "a\\x1b[31m" in text


def test_an_empty_file_has_statistics_too(tmp_path: Path):
    assert dataset_stats(write_rows(tmp_path / "rows.json"), tmp_path).as_text().startswith("0 rows")


def test_text_of_strangers_cannot_write_on_the_terminal():
    assert printable("a\x1b]0;b\u202e\n") == "a\\x1b]0;b\\u202e\\n"
    assert len(printable("x" * 500)) == 121
