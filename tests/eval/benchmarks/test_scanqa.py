"""ScanQA: exact match, the F-value and the class of a question."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.errors import ScoringError
from vistune.eval.benchmarks import scanqa


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("Where is the red chair?", "Place"),
        ("How many chairs?", "Number"),
        ("What color is it?", "Color"),
        ("What is the color of it?", "Color"),
        ("What shape is it?", "Object nature"),
        ("What type of lamp?", "Object nature"),
        ("What kind of lamp?", "Object nature"),
        ("What is on the desk?", "Object"),
        ("what is on the desk?", "Other"),
        ("Is it red?", "Other"),
        ("", "Other"),
        ("What is where? Where?", "Place"),
        ("So: How many? What color?", "Number"),
        ("What color is What type", "Color"),
        ("What is it, What kind", "Object nature"),
    ],
)
def test_the_first_phrase_found_anywhere_decides(question: str, name: str):
    assert scanqa.question_class(question) == name


def test_a_match_is_letter_for_letter_with_one_of_the_answers():
    assert scanqa.em("red chair", ["blue", "red chair"]) == 1.0
    assert scanqa.em("Red chair", ["red chair"]) == 0.0
    assert scanqa.em("red", ["red chair"]) == 0.0
    assert scanqa.em("red ", ["red"]) == 0.0


def test_the_first_of_several_answers_counts_unless_more_are_asked_for():
    assert scanqa.em(["a", "b"], ["b"]) == 0.0
    assert scanqa.em(["a", "b"], ["b"], top=10) == 1.0
    assert scanqa.em(["x"] * 10 + ["b"], ["b"], top=10) == 0.0
    assert scanqa.em([], ["b"]) == 0.0


def test_an_empty_prediction_matches_only_an_empty_answer():
    assert scanqa.em("", ["a"]) == 0.0
    assert scanqa.em("", ["a", ""], strict_official=True) == 1.0
    with pytest.raises(ScoringError):
        scanqa.em("", ["a"], strict_official=True)


def test_answers_in_one_text_are_named():
    with pytest.raises(ScoringError):
        scanqa.em("a", "abc")


@pytest.mark.parametrize(
    ("prediction", "answers", "value"),
    [
        ("red", ["red"], 1.0),
        ("red chair", ["chair"], 2 / 3),  # precision 1/2, recall 1
        ("a a b", ["a c"], 4 / 7),  # membership: precision 2/3, recall 1/2
        ("a", ["a a b"], 4 / 5),  # precision 1, recall 2/3
        ("red", ["blue", "red one"], 2 / 3),
        ("", ["a"], 0.0),
        ("x", ["a"], 0.0),
        ("x", [], 0.0),
    ],
)
def test_the_f_value_is_the_best_f1_of_membership(prediction: str, answers: list[str], value: float):
    assert scanqa.f_value(prediction, answers) == pytest.approx(value)


def test_words_are_compared_in_their_base_form():
    assert scanqa.f_value("chairs", ["chair"], lambda word: word.rstrip("s")) == 1.0
    assert scanqa.f_value("chairs", ["chair"]) == 0.0


@given(st.text(), st.lists(st.text()))
def test_any_text_has_a_value(prediction: str, answers: list[str]):
    assert 0.0 <= scanqa.em(prediction, answers) <= scanqa.f_value(prediction, answers) <= 1.0
    assert scanqa.question_class(prediction)
