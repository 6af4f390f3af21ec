"""EmbSpatial-Bench has no official scorer: three public ways to read a reply, each with its own quirks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmarks import embspatial

OPTIONS = ["the chair", "the lamp", "the sofa", "the door"]


@pytest.mark.parametrize(
    ("reply", "upper", "every"),
    [
        ("(B)", 1, 1),
        ("It is (C), not (A).", 2, 2),  # the first mark
        ("(b) or (C)", 2, 1),
        ("(2)", None, 1),
        ("(0) (D)", 3, 3),
        ("(Z)", 25, 25),  # a wrong answer, not an unreadable one
        ("(AB) (D)", 3, 3),
        ("( A )", None, None),
        ("B", None, None),
        ("the lamp", 1, 1),  # no mark: an option, letter for letter
        ("The lamp", None, None),
        ("the lamp ", None, None),
        ("the lamp (A)", 0, 0),
        ("", None, None),
    ],
)
def test_reform_looks_for_the_first_mark_in_brackets(reply: str, upper: int | None, every: int | None):
    assert embspatial.parse(reply, OPTIONS, "reform_upper") == upper
    assert embspatial.parse(reply, OPTIONS, "reform_all") == every


def test_reform_takes_the_first_of_equal_options_and_works_without_options():
    assert embspatial.parse("x", ["y", "x", "x"]) == 1
    assert embspatial.parse("x") is None
    assert embspatial.parse("(A)") == 0


@pytest.mark.parametrize(
    ("reply", "index"),
    [
        ("B", 1),
        (" (b) ", 1),
        ("((\n C", 2),
        ("The lamp", 19),  # a word that begins with a letter yields the letter
        ("[A]", None),
        ("1", None),
        ("*A*", None),
        ("\u212a", None),  # the Kelvin sign passes for a letter without case, but is none
        ("\u017f", 18),  # the long s is an S as a capital
        ("", None),
        ("(((", None),
    ],
)
def test_lmms_takes_the_letter_at_the_start(reply: str, index: int | None):
    assert embspatial.parse(reply, OPTIONS, "lmms") == index


@pytest.mark.parametrize(
    ("reply", "index"),
    [
        ("B.", 1),
        ("I think (C)", 2),
        ("It is the sofa.", 2),
        ("Cannot determine the answer", None),
        ("A or B", None),
        ("E", None),
        ("Z", None),
    ],
)
def test_vlmevalkit_reads_letters_and_texts(reply: str, index: int | None):
    assert embspatial.parse(reply, OPTIONS, "vlmevalkit") == index


def test_vlmevalkit_needs_options_that_the_alphabet_can_name():
    assert embspatial.parse("B", ["x"] * 26, "vlmevalkit") == 1
    for options in (None, ["x"] * 27):
        with pytest.raises(ScoringError):
            embspatial.parse("B", options, "vlmevalkit")


@given(st.text() | st.lists(st.sampled_from(["(", ")", "A", "b", "2", " "])).map("".join), st.sampled_from(embspatial.MODES))
@settings(max_examples=80, deadline=None)
def test_any_text_is_an_index_or_none(reply: str, mode: embspatial.Mode):
    found = embspatial.parse(reply, OPTIONS, mode)
    assert found is None or 0 <= found < 26
    assert found == embspatial.parse(reply, OPTIONS, mode)


@pytest.mark.parametrize("reply", [None, float("nan"), 1])
@pytest.mark.parametrize("mode", ["reform_upper", "reform_all", "lmms"])
def test_what_is_no_text_is_refused(reply, mode: embspatial.Mode):
    with pytest.raises(ScoringError):
        embspatial.parse(reply, OPTIONS, mode)


def test_a_mode_that_does_not_exist_is_named():
    with pytest.raises(UnknownName, match="reform_all"):
        embspatial.parse("A", OPTIONS, "reform")  # pyright: ignore[reportArgumentType]


def test_likelihood_is_the_mean_or_the_sum_over_tokens():
    options = [[-1.0, -1.0, -1.0], [-1.5], [-2.0, -0.5]]
    assert embspatial.most_likely(options) == 0
    assert embspatial.most_likely(options, "sum") == 1
    assert embspatial.most_likely([[-2.0], [-1.0, -1.0], [-1.0]]) == 1  # equal ones go to the first


@pytest.mark.parametrize("options", [[], [[]], [[-1.0], []], [[math.nan], [-1.0]], [[0.1]]])
def test_likelihoods_that_decide_nothing_are_refused(options: list[list[float]]):
    with pytest.raises(ScoringError):
        embspatial.most_likely(options)


def item(answer: int, reply: str, relation: str = "close", source: str = "mp3d") -> dict:
    return {"answer_options": OPTIONS, "answer": answer, "reply": reply, "relation": relation, "data_source": source}


def test_accuracy_is_over_all_items_and_per_relation_and_source():
    items = [item(0, "(A)"), item(1, "(A)", "left"), item(2, "(C)", "left", "scannet"), item(3, "no idea", "left"), item(3, "D.")]
    found = embspatial.score(items)
    assert (found.accuracy, found.n, found.n_unread) == (0.4, 5, 2)
    assert found.by_relation == {"close": 0.5, "left": 1 / 3}
    assert found.by_source == {"mp3d": 0.25, "scannet": 1.0}
    assert embspatial.score(items, mode="vlmevalkit").accuracy == 0.6


def test_no_items_score_zero():
    assert embspatial.score([]) == embspatial.EmbSpatialScore(0.0, {}, {}, 0, 0)


@pytest.mark.parametrize("key", ["answer_options", "answer", "reply", "relation", "data_source"])
def test_a_missing_field_is_named(key: str):
    with pytest.raises(ScoringError, match=key):
        embspatial.score([{name: value for name, value in item(0, "(A)").items() if name != key}])


@pytest.mark.parametrize("answer", [4, -1, "A", None])
def test_an_answer_that_is_no_index_is_refused(answer):
    with pytest.raises(ScoringError):
        embspatial.score([item(answer, "(A)")])
