"""SEED-Bench's letters, added up by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmarks.seed_bench import match, score


def question(name: str, answer: str = "A", kind: int = 1, data: str = "image") -> dict:
    return {"question_id": name, "answer": answer, "question_type_id": kind, "data_type": data}


@pytest.mark.parametrize("reply", ["a", "A.", " A", "A\n", "(A)", "", "A dog", None])
def test_officially_only_the_bare_letter_is_right(reply):
    assert match("A", "A")
    assert not match(reply, "A")


@pytest.mark.parametrize(("reply", "right"), [("a", True), (" A. dog", True), ("Apple", True), ("(A)", False), ("", False), (None, False)])
def test_in_lmms_mode_the_first_character_is_right(reply, right: bool):
    assert match(reply, "A", "lmms") is right


def test_totals_are_over_questions_not_over_types():
    questions = [question("1"), question("2"), question("3", "B", kind=2), question("v_1", "C", kind=10, data="video")]
    result = score(questions, {1: "A", 2: "A", 3: "C", "v_1": "C"})
    assert (result.accuracy, result.image, result.video) == (0.75, pytest.approx(2 / 3), 1.0)
    assert result.by_type == {1: 1.0, 2: 0.0, 10: 1.0}
    assert (result.n, result.n_missing) == (4, 0)


def test_the_mode_of_the_score_is_the_mode_of_the_match():
    assert score([question("1")], {1: "a."}).accuracy == 0.0
    assert score([question("1")], {1: "a."}, mode="lmms").accuracy == 1.0


def test_a_missing_prediction_is_wrong_and_counted():
    result = score([question("1"), question("2")], {1: "A"})
    assert (result.accuracy, result.n, result.n_missing) == (0.5, 2, 1)


def test_ids_that_read_as_integers_are_integers():
    assert score([question("07")], {7: "A"}).accuracy == 1.0
    assert score([question("07")], {"07": "A"}).n_missing == 1


def test_predictions_may_be_rows_of_which_the_last_counts():
    assert score([question("1")], [{"question_id": 1, "text": "B"}, {"question_id": 1, "text": "A"}]).accuracy == 1.0


def test_nothing_to_score_is_0():
    result = score([], {})
    assert (result.accuracy, result.image, result.video, result.by_type, result.n) == (0.0, 0.0, 0.0, {}, 0)


def test_with_strictness_the_failures_of_the_script_are_errors():
    both = [question("1"), question("v_1", kind=10, data="video")]
    assert score(both, {1: "A", "v_1": "A"}, strict_official=True).accuracy == 1.0
    with pytest.raises(ScoringError, match="kind video"):
        score(both[:1], {1: "A"}, strict_official=True)
    with pytest.raises(ScoringError, match="kind image"):
        score(both[1:], {"v_1": "A"}, strict_official=True)
    with pytest.raises(ScoringError, match="type 10"):
        score(both, {1: "A", "v_1": "B"}, strict_official=True)
    assert score(both, {1: "A"}, strict_official=True).accuracy == 0.5, "a missing prediction gives its type a count"


@pytest.mark.parametrize("field", ["question_id", "answer", "data_type", "question_type_id"])
def test_a_question_without_a_field_is_an_error_that_names_it(field: str):
    incomplete = {name: value for name, value in question("1").items() if name != field}
    with pytest.raises(ScoringError, match=field):
        score([incomplete], {1: "A"})


def test_a_mode_that_is_none_is_named():
    with pytest.raises(UnknownName, match="lmms"):
        match("A", "A", "exact")  # type: ignore[arg-type]


@given(st.text())
def test_every_reply_is_right_or_wrong(reply: str):
    assert match(reply, "A") == (reply == "A")
    assert match(reply, "A", "lmms") in (True, False)
