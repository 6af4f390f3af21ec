"""GQA's accuracy and distribution, worked by hand from the authors' eval.py."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmarks.gqa import convert, distribution, match, score


def question(answer: str, structural: str = "query", semantic: str = "attr", group: str | None = None, balanced: bool = True) -> dict:
    return {
        "answer": answer,
        "isBalanced": balanced,
        "types": {"structural": structural, "semantic": semantic},
        "groups": {"global": group},
    }


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Yes.", "yes"),
        ("Yes...", "yes"),
        (" Yes. ", " yes. "),
        ("U.S.A.", "u.s.a"),
        (".", ""),
        (".5.", ".5"),
        ("", ""),
        ("Yes.\n", "yes.\n"),
        ("No!", "no!"),
    ],
)
def test_a_reply_loses_its_last_dots_and_its_capitals_and_nothing_else(reply: str, expected: str):
    assert convert(reply) == expected


def test_an_answers_file_becomes_a_predictions_file():
    rows = [{"question_id": "07", "text": "Yes.", "prompt": "?"}, {"question_id": "08", "text": None}]
    assert convert(rows) == [{"questionId": "07", "prediction": "yes"}, {"questionId": "08", "prediction": ""}]
    with pytest.raises(ScoringError, match="NoneType"):
        convert(rows, strict_official=True)
    with pytest.raises(ScoringError, match="question_id"):
        convert([{"text": "Yes."}])


def test_officially_only_the_very_same_string_is_right():
    assert match("yes", "yes")
    assert not any(match(prediction, "yes") for prediction in ("Yes", "yes.", " yes", "yes ", ""))


def test_in_lmms_mode_case_and_punctuation_do_not_count_and_blanks_do():
    assert match("Yes.", "yes", "lmms")
    assert match("t-shirt", "T shirt".replace(" ", ""), "lmms")
    assert not match("yes ", "yes", "lmms")
    assert not match("yes’", "yes", "lmms"), "only ASCII punctuation is dropped"


def test_a_mode_that_is_none_is_named():
    with pytest.raises(UnknownName, match="lmms"):
        match("yes", "yes", "exact")  # type: ignore[arg-type]


def test_accuracy_is_over_balanced_questions_and_types_are_apart():
    questions = {
        "1": question("red", "query", "attr"),
        "2": question("yes", "verify", "obj"),
        "3": question("no", "logical", "obj"),
        "4": question("left", "choose", "rel"),
        "5": question("blue", "query", "cat", balanced=False),
    }
    result = score(questions, {"1": "red", "2": "yes", "3": "yes", "4": "right", "9": "?"})
    assert (result.accuracy, result.binary, result.open, result.n) == (0.5, pytest.approx(1 / 3), 1.0, 4)
    assert result.by_structural == {"query": 1.0, "verify": 1.0, "logical": 0.0, "choose": 0.0}
    assert result.by_semantic == {"attr": 1.0, "obj": 0.5, "rel": 0.0}


def test_predictions_may_be_rows_of_which_the_last_counts():
    rows = [{"questionId": "1", "prediction": "blue"}, {"questionId": "1", "prediction": "red"}]
    assert score({"1": question("red")}, rows).accuracy == 1.0


def test_the_mode_of_the_score_is_the_mode_of_the_match():
    questions = {"1": question("red")}
    assert score(questions, {"1": "Red."}).accuracy == 0.0
    assert score(questions, {"1": "Red."}, mode="lmms").accuracy == 1.0


def test_the_distribution_is_a_chi_square_weighted_by_the_size_of_groups():
    """colour: gold red 3, blue 1, predicted red 1, green 3: (1-3)²/3 + (0-1)²/1 = 7/3, size 4; size: gold big 1, right: 0, size 1."""
    questions = {str(n): question(answer, group="color") for n, answer in enumerate(["red", "red", "red", "blue"])}
    questions |= {"4": question("big", group="size"), "5": question("wood"), "6": question("red", group="color", balanced=False)}
    predictions = {"0": "red", "1": "green", "2": "green", "3": "green", "4": "big", "5": "tin", "6": "red"}
    assert score(questions, predictions).distribution == pytest.approx((7 / 3 * 4 + 0 * 1) / 5 / 100)


def test_a_distribution_as_it_should_be_is_0_even_if_all_answers_are_wrong():
    questions = {"0": question("red", group="color"), "1": question("blue", group="color")}
    result = score(questions, {"0": "blue", "1": "red"})
    assert (result.accuracy, result.distribution) == (0.0, 0.0)


def test_predictions_outside_the_gold_answers_of_a_group_do_not_count_by_themselves():
    assert distribution({"color": {"red": 2}}, {"color": {"red": 2, "blue": 90}, "size": {"big": 5}}) == 0.0
    assert distribution({"color": {"red": 2}}, {}) == pytest.approx(2 / 100)


def test_without_groups_there_is_no_distribution():
    assert score({"1": question("red")}, {"1": "red"}).distribution == 0.0
    with pytest.raises(ScoringError, match="divides by zero"):
        score({"1": question("red")}, {"1": "red"}, strict_official=True)
    assert score({"1": question("red", group="color")}, {"1": "red"}, strict_official=True).accuracy == 1.0


def test_a_balanced_question_without_prediction_is_an_error():
    questions = {"1": question("red"), "2": question("blue"), "3": question("green", balanced=False)}
    with pytest.raises(ScoringError, match=r"1 of 2 balanced.*first: 2"):
        score(questions, {"1": "red", "3": "green"})


def test_nothing_to_score_is_0():
    result = asdict(score({"1": question("red", balanced=False)}, {}))
    assert result == {"accuracy": 0, "binary": 0, "open": 0, "distribution": 0, "by_structural": {}, "by_semantic": {}, "n": 0}


@pytest.mark.parametrize("field", ["answer", "isBalanced", "types"])
def test_a_question_without_a_field_is_an_error_that_names_it(field: str):
    incomplete = {name: value for name, value in question("red").items() if name != field}
    with pytest.raises(ScoringError, match=field):
        score({"1": incomplete}, {"1": "red"})


@pytest.mark.parametrize("prediction", [3, float("nan"), ["red"]])
def test_a_prediction_that_is_not_text_is_refused(prediction):
    with pytest.raises(ScoringError):
        score({"1": question("red")}, {"1": prediction})


@given(st.text())
def test_converting_and_matching_are_total(text: str):
    converted = convert(text)
    assert not converted.endswith(".")
    assert match(converted, converted)
    assert match(text, text, "lmms")
