"""MMR: what is taken out of replies, the two measures worked by hand, and the printed totals."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmarks import mmr


def test_cleaning_removes_every_double_quote_and_nothing_else():
    assert mmr.clean(" \"a\" 'b'\n") == " a 'b'\n"


@pytest.mark.parametrize(("reply", "found"), [("3", "3"), ("(12) 4", "12"), ("four", 0), ("", 0), ("a٣b", "٣"), ("-2", "2")])
def test_a_choice_is_the_first_run_of_digits_or_the_number_zero(reply: str, found: str | int):
    assert mmr.extract("mcq", reply) == found
    assert mmr.extract("font_color", reply) == found


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("[0.1,0.2, 0.3,0.4]", "[0.1, 0.2, 0.3, 0.4]"),
        ("[1,2,3,4]", "[1, 2, 3, 4]"),
        ("[[1],2,null,4]", "[[1], 2, null, 4]"),
        ("[NaN,0,0,1]", "[NaN, 0, 0, 1]"),
    ],
)
def test_a_box_is_json_of_length_four_with_a_blank_after_each_comma(reply: str, found: str):
    assert mmr.extract("grounding_o", reply) == found


@pytest.mark.parametrize("reply", ["", "4", "[1,2,3]", "[1,2,3,4,5]", "box: [1,2,3,4]", "[1,2,3,4].", "null", "[" * 100_000])
def test_prose_around_a_box_and_other_lengths_are_errors(reply: str):
    assert "ERROR" in str(mmr.extract("grounding_o", reply))


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("STOP, [0.1,0.2,0.3,0.4]", ["STOP,", [0.1, 0.2, 0.3, 0.4]]),
        ("[[1,2,3,4]]", None),
        ("  'a b'\n[1, 2, 3, 4]", ["'a b'", [1.0, 2.0, 3.0, 4.0]]),
        ("a [1,2,3,4] b", None),
        ("a [1,2,3,4][5", ["a", [1.0, 2.0, 3.0, 4.0]]),
        ("a [1,2,3]", None),
        ("a [1,2,3,null]", None),
        ("no box", None),
        ("a [1,2,3," + "9" * 400 + "]", None),
    ],
)
def test_text_and_box_are_what_stands_before_the_first_and_the_second_bracket(reply: str, found: list[object] | None):
    result = str(mmr.extract("grounding_t", reply))
    assert ("ERROR" in result) if found is None else json.loads(result) == found


def test_recognition_is_the_reply_without_quotes_and_no_reply_is_an_error():
    assert mmr.extract("recognition_pos", ' "Main" St ') == " Main St "
    assert "ERROR" in str(mmr.extract("recognition", None))
    with pytest.raises(UnknownName):
        mmr.extract("captioning", "x")


@given(st.sampled_from(mmr.TYPES), st.text())
def test_extraction_takes_any_text(kind: str, reply: str):
    assert mmr.extract(kind, reply) == mmr.extract(kind, reply)


def test_iou_has_no_extra_pixel_and_leaves_inverted_boxes_alone():
    assert mmr.iou([0, 0, 1, 1], [0.5, 0, 1.5, 1]) == pytest.approx(1 / 3)
    assert mmr.iou([0, 0, 1, 1], [2, 2, 3, 3]) == 0.0
    assert mmr.iou([1, 1, 0, 0], [0, 0, 1, 1]) == 0.0  # areas 1 and 1, no overlap
    assert mmr.iou([1, 0, 0, 1], [0, 0, 1, 2]) == 0.0  # a union of -1 + 2


def test_a_union_of_zero_is_zero_unless_the_official_failure_is_wanted():
    assert mmr.iou([0, 0, 0, 0], [1, 1, 1, 1]) == 0.0
    with pytest.raises(ScoringError):
        mmr.iou([0, 0, 0, 0], [1, 1, 1, 1], strict_official=True)


@pytest.mark.parametrize("box", [[1, 2, 3], "1234", None, 5, [1, 2, 3, "4"], [1, 2, 3, 10**400]])
def test_what_is_no_box_of_four_numbers_is_named(box: object):
    with pytest.raises(ScoringError):
        mmr.iou(box, [0, 0, 1, 1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gold", "pred", "value"),
    [
        ("stop", "STOP", 1.0),
        ('"Stop"', "a stop sign", 1.0),  # the start is free, and what follows the last column is not looked at
        ("", "anything", 1.0),
        ("stop", "", 0.0),
        ("stop", "xyz", 0.0),
        ("abcd", "abxd", 3 / 4),  # one substitution
        ("abcd", "abd", 3 / 4),  # a gap in the prediction
        ("abcd", "abxcd", 4 / 5),  # a gap in gold, inside the alignment
        ("abc", "ab", 2 / 3),
        ("ab", "b", 1 / 2),  # gold's first character has to be paid for: score 0, which is still more than -1
        ("abc", "c", 0.0),  # score -1 is not more than -1, so nothing is aligned
        ("abab", "ab", 1 / 2),
        ("-", "", 1.0),  # a gap is written like a hyphen
        ("-a", "xa", 1 / 2),
        ("baac", "bcabac", 3 / 4),  # a gap in the prediction comes before one in gold
        ("-a", "b-a", 2 / 3),  # the hyphen for the skipped b counts as gold's first character
    ],
)
def test_pnls_worked_by_hand(gold: str, pred: str, value: float):
    assert mmr.pnls(gold, pred) == pytest.approx(value)


def pnls_in_full(gold: str, pred: str) -> float:
    """The rule with the whole table, cell by cell."""
    gold, pred = gold.lower().replace('"', ""), pred.lower()
    if not gold:
        return 1.0
    rows, columns = len(gold), len(pred)
    table = [[0] * (columns + 1)] + [[-i] + [0] * columns for i in range(1, rows + 1)]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            step = 1 if gold[i - 1] == pred[j - 1] else -1
            table[i][j] = max(table[i - 1][j - 1] + step, table[i - 1][j] - 1, table[i][j - 1] - 1)
    best, end = -1, 0
    for j in range(1, columns + 1):
        if table[rows][j] > best:
            best, end = table[rows][j], j
    one, two, i, j = "", "", rows, end
    while i and j:
        step = 1 if gold[i - 1] == pred[j - 1] else -1
        if table[i][j] == table[i - 1][j - 1] + step:
            one, two, i, j = gold[i - 1] + one, pred[j - 1] + two, i - 1, j - 1
        elif table[i][j] == table[i - 1][j] - 1:
            one, two, i = gold[i - 1] + one, "-" + two, i - 1
        else:
            one, two, j = "-" + one, pred[j - 1] + two, j - 1
    one, two = "-" * j + gold[:i] + one, pred[:j] + "-" * i + two
    start, stop = one.index(gold[0]), one.rindex(gold[-1]) + 1
    return sum(a == b for a, b in zip(one[start:stop], two[start:stop], strict=True)) / (stop - start)


@given(st.text("ab-A", max_size=9), st.text("abc-B", max_size=60))
def test_pnls_is_the_rule_with_the_whole_table(gold: str, pred: str):
    assert mmr.pnls(gold, pred) == pnls_in_full(gold, pred)


def test_pnls_of_a_huge_reply_is_bounded():
    started = time.perf_counter()
    assert mmr.pnls("stop here", "xst op" * 30_000) < 1.0
    assert time.perf_counter() - started < 3


def test_a_choice_hits_only_as_the_same_text_in_the_first_fifty():
    items: list[tuple[str | int, str]] = [("3", "3"), ("2", "3"), (0, "0"), ("03", "3")]
    assert mmr.score("font_size", items) == 1
    assert mmr.score("font_size", [("1", "2")] * 50 + [("1", "1")] * 5) == 0
    assert mmr.score("font_size", [("1", "1")] * 60) == 50


def test_recognition_hits_above_nine_tenths():
    assert mmr.score("recognition_label", [("main street", '"Main Street"')]) == 1
    assert mmr.score("recognition_label", [("0123456789", "012345678x")]) == 0  # exactly 0.9


def test_an_object_hits_above_three_tenths_of_overlap():
    gold = "[0, 0, 1, 1]"
    assert mmr.score("grounding_o", [("[0, 0, 1, 0.31]", gold)]) == 1
    assert mmr.score("grounding_o", [("[0, 0, 1, 0.3]", gold)]) == 0
    assert mmr.score("grounding_o", [("ERROR: x", gold), ("[[1], 2, 3, 4]", gold)]) == 0
    with pytest.raises(ScoringError):
        mmr.score("grounding_o", [("[[1], 2, 3, 4]", gold)], strict_official=True)


def test_text_and_box_are_two_columns_and_the_word_error_loses_both():
    gold = '["stop", [0, 0, 1, 1]]'
    items = [('["stop", [0, 0, 1, 1]]', gold), ('["stop", [5, 5, 6, 6]]', gold), ('["go", [0, 0, 1, 1]]', gold)]
    assert mmr.columns("grounding_t", items) == {"grounding_t_text": 2, "grounding_t_box": 2}
    assert mmr.score("grounding_t", items) == 4
    assert mmr.score("grounding_t", [('["ERROR", [0, 0, 1, 1]]', '["ERROR", [0, 0, 1, 1]]')]) == 0


def test_answers_that_are_not_the_benchmarks_and_unknown_tasks_are_named():
    with pytest.raises(ScoringError):
        mmr.score("grounding_t", [("ERROR", "not json")])
    with pytest.raises(UnknownName):
        mmr.score("captioning", [])


def test_the_printed_columns_add_up_where_they_do():
    printed = {"34B": (39, 27, 42, 39, 39, 39, 28, 31, 46, 40, 37, 5), "13B": (36, 27, 37, 33, 38, 38, 23, 31, 37, 39, 2, 0)}
    order = ("recognition_label", "recognition_pos", "font_size", "font_color", "localize_o", "localize_t", "spatial_ot", "spatial_oo")
    order = (*order, "spatial_tt", "grounding_o", "grounding_t_text", "grounding_t_box")
    assert mmr.total(dict(zip(order, printed["34B"], strict=True))) == 412
    assert mmr.total(dict(zip(order, printed["13B"], strict=True))) == 341  # the page prints 335
    with pytest.raises(ScoringError):
        mmr.total({"font_size": 1})
