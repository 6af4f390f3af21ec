"""AI2D's option letters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.errors import ScoringError
from vistune.eval.benchmarks.ai2d import match, parse


@pytest.mark.parametrize(
    ("reply", "parsed"),
    [
        ("B. the frog", "B"),
        (" \n\tB.", "B"),
        ("B", "B"),
        ("b. the frog", "b. the frog"),
        ("B the frog", "B the frog"),
        ("B .", "B ."),
        ("(B.", "(B."),
        ("It is B.", "It is B."),
        ("É.", "É."),
        ("", ""),
        (None, ""),
    ],
)
def test_a_capital_with_a_dot_at_the_beginning_is_the_letter_else_the_whole_reply(reply, parsed: str):
    assert parse(reply) == parsed


@pytest.mark.parametrize(
    ("reply", "right"), [("B. frog", True), ("b", True), ("(B)", True), ("B frog", False), ("B ", False), ("A. not B", False), ("", False)]
)
def test_case_and_punctuation_do_not_count_and_blanks_do(reply: str, right: bool):
    assert match(reply, "B") is right
    assert match(reply, "b.") is right


@pytest.mark.parametrize("reply", [2, float("nan"), ["B"]])
def test_what_is_not_text_is_refused(reply):
    with pytest.raises(ScoringError):
        parse(reply)


@given(st.text())
def test_every_reply_matches_itself_or_its_letter(reply: str):
    assert match(reply, parse(reply))
