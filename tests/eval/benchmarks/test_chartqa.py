"""Relaxed accuracy of ChartQA, worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.errors import ScoringError
from vistune.eval.benchmarks.chartqa import as_number, relaxed, split_of


@pytest.mark.parametrize(
    ("reply", "target", "right"),
    [
        ("105", "100", True),
        ("95", "100", True),
        ("105.1", "100", False),
        ("94.9", "100", False),
        ("100", "105.5", False),
        ("-100", "-103", True),
        ("100", "-100", False),
        ("0", "100", False),
    ],
)
def test_a_number_may_be_off_by_a_twentieth_of_the_target(reply: str, target: str, right: bool):
    assert relaxed(reply, target) is right


def test_a_zero_target_is_compared_as_text():
    assert relaxed("0", "0")
    assert not relaxed("0.0", "0")
    assert not relaxed("0.0", "0%")
    assert relaxed("0%", "0%")


def test_a_number_for_a_word_is_compared_as_text():
    assert not relaxed("3", "three")
    assert not relaxed("three", "3")
    assert relaxed("YES", "yes")


@pytest.mark.parametrize(("reply", "target"), [(" yes", "yes"), ("yes.", "yes"), ("the yes", "yes"), ("", "yes")])
def test_text_must_be_the_same_but_for_case(reply: str, target: str):
    assert not relaxed(reply, target)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5%", 0.05),
        ("5%%%", 0.05),
        ("5 %", 0.05),
        (" 5 ", 5.0),
        ("1e3", 1000.0),
        ("1_000", 1000.0),
        (".5", 0.5),
        ("+4.", 4.0),
        ("٣", 3.0),
        ("inf", float("inf")),
        ("-Infinity", float("-inf")),
        ("1e999", float("inf")),
        ("0", 0.0),
        ("1,000", None),
        ("$5", None),
        ("5% ", None),
        ("%", None),
        ("", None),
        ("%5", None),
        ("1__0", None),
        ("\ud800", None),
    ],
)
def test_numbers_are_what_python_reads(text: str, number: float | None):
    assert as_number(text) == number


def test_percent_is_a_hundredth_on_both_sides():
    assert relaxed("0.05", "5%")
    assert relaxed("5%", "0.05")
    assert not relaxed("5", "5%")


def test_a_number_with_commas_is_text():
    assert relaxed("1,000", "1,000")
    assert not relaxed("1,000", "1000")


def test_what_is_infinite_or_not_a_number_matches_nothing():
    assert not relaxed("inf", "inf")
    assert not relaxed("nan", "nan")
    assert not relaxed("5", "nan")
    assert not relaxed("5", "inf")
    assert not relaxed("nan", "5")
    assert not relaxed("inf", "5")


def test_none_is_empty_or_with_strictness_an_error():
    assert not relaxed(None, "5")
    assert relaxed(None, "")
    with pytest.raises(ScoringError, match="NoneType"):
        relaxed(None, "5", strict_official=True)


@pytest.mark.parametrize(("reply", "target"), [(5, "5"), (float("nan"), "5"), ("5", 5), ("5", None)])
def test_what_is_not_text_is_refused(reply, target):
    with pytest.raises(ScoringError):
        relaxed(reply, target)


def test_only_the_human_test_is_human():
    assert [split_of(kind) for kind in ("human_test", "augmented_test", "human", "")] == ["human", *["augmented"] * 3]


def test_a_huge_number_is_read_in_no_time():
    assert relaxed("9" * 1_000_000, "inf") is False
    assert relaxed("0." + "3" * 1_000_000, "0.33")


@given(st.text() | st.floats().map(str), st.text() | st.floats().map(str))
def test_every_pair_of_texts_is_right_or_wrong(reply: str, target: str):
    assert relaxed(reply, target) in (True, False)
