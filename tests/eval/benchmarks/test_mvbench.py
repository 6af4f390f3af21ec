"""MVBench: questions, frames and the two ways of matching, each rule by hand."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.errors import ScoringError
from vistune.eval.benchmarks import mvbench


def test_a_question_lists_its_options_and_ends_without_blanks():
    item = {"question": "What?", "candidates": ["a cat", "a dog \n"], "answer": "a cat"}
    assert mvbench.format(item) == ("Question: What?\nOptions:\n(A) a cat\n(B) a dog", "(A) a cat")


def test_the_last_equal_candidate_is_gold_and_none_is_an_at_sign():
    assert mvbench.format({"question": "q", "candidates": ["x", "x", "y"], "answer": "x"})[1] == "(B) x"
    assert mvbench.format({"question": "q", "candidates": ["x"], "answer": "X"})[1] == "(@) X"
    assert mvbench.format({"question": "q", "candidates": [], "answer": ""})[0] == "Question: q\nOptions:"
    with pytest.raises(ScoringError):
        mvbench.format({"question": "q"})


def test_frames_are_the_middles_of_equal_parts():
    assert mvbench.frame_indices(4, None, 25.0, 100) == [12, 37, 62, 87]  # 12.5 + 0, 25, 50, 75
    assert mvbench.frame_indices(2, (1.0, 3.0), 10.0, 100) == [15, 25]
    assert mvbench.frame_indices(1, None, 25.0, 0) == [0]


def test_a_half_goes_to_the_even_neighbour():
    assert mvbench.frame_indices(4, None, 1.0, 10) == [1, 3, 6, 9]  # steps 0, 2.5 → 2, 5, 7.5 → 8, each + 1.25
    assert mvbench.frame_indices(1, (2.5, 4.5), 1.0, 100) == [3]  # 2.5 → 2, 4.5 → 4
    assert mvbench.frame_indices(1, (0.5, 1.5), 1.0, 100) == [1]  # 0.5 → 0, 1.5 → 2


def test_a_folder_of_frames_starts_at_one_and_a_bound_outside_is_kept():
    assert mvbench.frame_indices(2, None, 3.0, 9, first=1) == [3, 7]
    assert mvbench.frame_indices(2, (20.0, 30.0), 1.0, 10) == [17, 12]  # the end is cut to the last frame, the start is not


@pytest.mark.parametrize(
    ("n", "bound", "fps"), [(0, None, 1.0), (1, (float("nan"), 1.0), 1.0), (1, None, float("inf")), (1, ("a", 1), 1.0)]
)
def test_times_that_name_no_frame_are_named(n: int, bound: tuple[float, float] | None, fps: float):
    with pytest.raises(ScoringError):
        mvbench.frame_indices(n, bound, fps, 10)


def test_a_reply_is_its_first_line_behind_a_bracket():
    assert mvbench.completed(" A) x\nB) y ") == "(A) x"


@pytest.mark.parametrize(
    ("pred", "right"),
    [
        ("(A) a cat", True),
        ("(a)", True),
        ("A.", True),  # dots go, and "a" is in "(a)"
        ("(.A.) x", True),
        ("(", True),
        ("", True),
        (" (B)", True),  # the first piece is empty
        ("(B) (A)", False),
        ("xx(a)yy no", True),  # the other inclusion
        ("xx(a.)yy", False),
        ("cat", False),
        ("(a)\t(b)", True),  # only a blank ends a piece
        ("A:", False),
    ],
)
def test_official_matching_is_by_inclusion_of_first_pieces(pred: str, right: bool):
    assert mvbench.match(pred, "(A) A cat.") is right


def test_gold_without_text_is_wrong_or_the_official_failure():
    assert mvbench.match("(A)", "(A) ") is False
    assert mvbench.match("(A)", "(A)") is False
    with pytest.raises(ScoringError):
        mvbench.match("(A)", "(A) ", strict_official=True)


@pytest.mark.parametrize(
    ("pred", "letter"),
    [
        ("A", "A"),
        (" b. the dog ", "B"),
        ("B.\n\nthe dog: option A", "B"),
        ("(C) a cat", "C"),
        ("Answer: D", "D"),
        ("the dog e", "E"),
        ("option A.", "A"),
        ("It is a dog", "A"),  # the article is a letter by itself
        ("A.\nfoo\nB", "A"),
        ("C_ x", "C"),  # signs are deleted before a blank
        ("E.g. this", "E"),
        ("x B.5", "B"),  # a dot before a digit stays
        ("x/B", "B"),  # and become blanks elsewhere
    ],
)
def test_lmms_takes_the_first_letter_that_stands_alone(pred: str, letter: str):
    assert mvbench.match_lmms(pred, letter)
    assert not mvbench.match_lmms(pred, "A" if letter != "A" else "B")


@pytest.mark.parametrize("pred", ["", "F", "cat", "Bdog", "1,2/B", "C.D", "B.foo\nbar"])
def test_lmms_without_a_letter_is_wrong(pred: str):
    assert not mvbench.match_lmms(pred, "B")


def test_a_number_with_a_comma_deletes_signs_that_would_become_blanks():
    assert mvbench.match_lmms("x/B", "B")
    assert not mvbench.match_lmms("1,2 x/B", "B")


def test_dots_before_digits_stay_and_only_thirty_two_are_removed():
    assert mvbench.match_lmms("x" + "." * 31 + "B", "xB".lower())
    assert mvbench.match_lmms("x" + "." * 32 + ".B", "B")  # the dot that is left sets the letter apart
    assert mvbench.match_lmms("B.5", "B")


@given(st.text(), st.text())
def test_matching_takes_any_text(pred: str, gold: str):
    assert mvbench.match(pred, gold) in (True, False)
    assert mvbench.match_lmms(pred, "A") in (True, False)


@pytest.mark.parametrize("junk", ["A." + " \n" * 500_000 + "x\ny", "a" * 1_000_000, "1,1/" * 250_000, "." * 1_000_000])
def test_a_megabyte_of_junk_takes_no_squared_time(junk: str):
    started = time.perf_counter()
    mvbench.match_lmms(junk, "A")
    mvbench.match(junk, "(A) x")
    assert time.perf_counter() - started < 2
