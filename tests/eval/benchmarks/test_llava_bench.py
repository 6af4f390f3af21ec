"""LLaVA-Bench: the two scores of a review and the relative score."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.errors import ScoringError
from vistune.eval.benchmarks import llava_bench


@pytest.mark.parametrize(
    ("review", "pair"),
    [
        ("8 7\nBecause", [8, 7]),
        ("8,7", [8, 7]),
        ("8.5\t 7 ", [-1, -1]),  # a blank at the end makes a third piece
        ("8.5\t 7", [8.5, 7]),
        ("8 7\r\nx", [8, 7]),
        ("8  7", [-1, -1]),
        ("8, 7", [-1, -1]),  # the comma becomes a second blank
        ("8", [-1, -1]),
        ("8 ", [-1, -1]),
        ("8 seven", [-1, -1]),
        ("8 7 9", [-1, -1]),
        ("\n8 7", [-1, -1]),
        ("", [-1, -1]),
        (None, [-1, -1]),
        ("inf -3", [math.inf, -3]),
        ("11 1e1", [11, 10]),
    ],
)
def test_the_first_line_is_two_numbers_with_one_blank_or_comma_between(review: str | None, pair: list[float]):
    assert llava_bench.parse(review) == pair


@given(st.text())
def test_reviews_may_say_anything(review: str):
    assert len(llava_bench.parse(review)) == 2


def test_a_megabyte_of_numbers_is_read_at_once():
    started = time.perf_counter()
    assert llava_bench.parse("8 " * 500_000) == [-1, -1]
    assert time.perf_counter() - started < 1


def rows(*pairs: tuple[float, float], category: str = "conv") -> list[dict[str, object]]:
    return [{"question_id": number, "category": category, "tuple": list(pair)} for number, pair in enumerate(pairs)]


def test_the_relative_score_is_a_ratio_of_means_rounded_to_three_decimals():
    summary = llava_bench.summary(rows((8, 4), (10, 10), (9, 8)))
    assert summary["conv"] == (81.5, 90.0, 73.3)  # 7.333 / 9 and not the mean of 0.5, 1 and 0.889
    assert llava_bench.summary(rows((1, 0.0004)))["all"].relative == 0.0
    # 2 / 3 rounds to 0.667, and 0.667 / 0.333 is 200.3 percent, not 200
    assert llava_bench.summary(rows((0, 0), (0, 1), (1, 1)))["all"].relative == 200.3


def test_failed_reviews_stay_in_the_means():
    assert llava_bench.summary(rows((-1, -1), (9, 7)))["all"] == (75.0, 40.0, 30.0)


def test_every_row_counts_in_all_and_categories_come_sorted():
    summary = llava_bench.summary([*rows((10, 5), category="detail"), *rows((10, 10), category="complex"), {"score": [10, 3]}])
    assert list(summary) == ["all", "complex", "detail"]
    assert summary["all"] == (60.0, 100.0, 60.0)
    assert llava_bench.summary([]) == {}


def test_questions_can_be_left_out_by_id():
    assert llava_bench.summary(rows((10, 5), (10, 10)), ignore=[0])["all"].relative == 100.0


def test_a_reference_of_zero_has_no_relative_score():
    assert llava_bench.summary(rows((-1, 5), (1, 5)))["all"] == (None, 0.0, 50.0)
    with pytest.raises(ScoringError):
        llava_bench.summary(rows((0, 5)), strict_official=True)


@pytest.mark.parametrize("found", [{}, {"tuple": [1]}, {"tuple": "12"}, {"tuple": [1, None]}, {"tuple": None}, {"tuple": [1, 10**400]}])
def test_a_row_without_a_pair_of_scores_is_named(found: dict[str, object]):
    with pytest.raises(ScoringError):
        llava_bench.summary([{"question_id": 3} | found])
