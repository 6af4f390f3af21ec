"""ANLS in both published variants, worked by hand, and the distance under it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmarks.docvqa import MODES, anls, levenshtein


def distance_by_the_table(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for number, letter in enumerate(first, start=1):
        above, row[0] = row[0], number
        for column, other in enumerate(second, start=1):
            above, row[column] = row[column], min(above + (letter != other), row[column] + 1, row[column - 1] + 1)
    return row[-1]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2), ("a" * 200, "a" * 99 + "b", 101)],
)
def test_the_distance_counts_insertions_deletions_and_substitutions(first: str, second: str, expected: int):
    assert levenshtein(first, second) == levenshtein(second, first) == expected


@given(st.text(alphabet="abc", max_size=80), st.text(alphabet="abc", max_size=80))
def test_the_distance_is_the_one_of_the_usual_table(first: str, second: str):
    assert levenshtein(first, second) == distance_by_the_table(first, second)


@pytest.mark.parametrize("mode", MODES)
def test_similarity_is_one_less_the_share_of_edits(mode):
    assert anls("abcde", ["abcdx"], mode) == pytest.approx(0.8)
    assert anls("abcde", ["abcdef"], mode) == pytest.approx(1 - 1 / 6)


@pytest.mark.parametrize("mode", MODES)
def test_half_is_kept_and_less_is_nothing(mode):
    assert anls("abxx", ["abcd"], mode) == 0.5
    assert anls("axx", ["abc"], mode) == 0.0
    assert anls("abcd", ["ab"], mode) == 0.5
    assert anls("abcde", ["ab"], mode) == 0.0


@pytest.mark.parametrize("mode", MODES)
def test_the_best_reference_counts(mode):
    assert anls("abcd", ["zzzz", "abcx", "abxx"], mode) == 0.75


@pytest.mark.parametrize("mode", MODES)
def test_case_and_outer_blanks_are_no_edits(mode):
    assert anls("ABCD", ["abcd"], mode) == anls("abcd", ["ABCD"], mode) == 1.0
    assert anls("\n abcd\t", ["abcd"], mode) == anls("abcd", [" abcd "], mode) == 1.0


def test_inner_blanks_are_edits_in_m4c_mode_only():
    assert anls("a\n  b", ["a b"], "lmms") == anls("a b", ["a\n  b"], "lmms") == 1.0
    assert anls("a  b", ["a b"], "m4c") == 0.75


def test_in_lmms_mode_the_raw_length_divides():
    """One edit in "abcd"; the raw reply is ten long with its blanks, so that the edit is a tenth."""
    assert anls("   abcx   ", ["abcd"], "lmms") == anls("abcx", ["   abcd   "], "lmms") == pytest.approx(0.9)
    assert anls("   abcx   ", ["abcd"], "m4c") == 0.75


def test_in_lmms_mode_the_length_is_that_of_upper_case():
    assert anls("ßb", ["xb"], "lmms") == pytest.approx(1 - 1 / 3)
    assert anls("xb", ["ßb"], "lmms") == pytest.approx(1 - 1 / 3)
    assert anls("ßb", ["xb"], "m4c") == 0.5


def test_the_length_that_divides_is_each_references_own():
    assert anls("ab", ["ax", "bcdefghijk"], "lmms") == 0.5


def test_two_empty_texts_are_equal_and_officially_an_error_in_m4c_mode():
    assert anls("", [""]) == anls("", [""], "m4c") == anls("", [""], strict_official=True) == 1.0
    assert anls("  ", ["\n"]) == anls("  ", ["\n"], "m4c") == 1.0
    assert anls("", ["abc"]) == anls("", ["abc"], "m4c") == anls("abc", [""]) == anls("abc", [""], "m4c", strict_official=True) == 0.0
    for reply, golds in [("", [""]), (" ", ["abc", "\n"])]:
        with pytest.raises(ScoringError, match="both empty"):
            anls(reply, golds, "m4c", strict_official=True)


@pytest.mark.parametrize("mode", MODES)
def test_no_references_are_0_or_with_strictness_an_error(mode):
    assert anls("abc", [], mode) == 0.0
    with pytest.raises(ScoringError, match="without references"):
        anls("abc", [], mode, strict_official=True)


def test_none_is_empty_or_with_strictness_an_error():
    assert anls(None, ["abc"]) == 0.0
    assert anls("abc", ["abc", None]) == 1.0  # type: ignore[list-item]
    for reply, golds in [(None, ["abc"]), ("abc", [None])]:
        with pytest.raises(ScoringError, match="NoneType"):
            anls(reply, golds, strict_official=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(("reply", "golds"), [(3, ["3"]), ("3", [3]), ("3", "3"), ("3", None), (float("nan"), ["nan"])])
def test_what_is_not_text_is_refused(reply, golds):
    with pytest.raises(ScoringError):
        anls(reply, golds)


def test_a_mode_that_is_none_is_named():
    with pytest.raises(UnknownName, match="m4c"):
        anls("a", ["a"], "official")  # type: ignore[arg-type]


def test_a_huge_reply_to_a_short_reference_is_nothing_at_once():
    assert anls("x" * 1_000_000, ["abc"]) == anls("x" * 1_000_000, ["abc"], "m4c") == 0.0


@given(st.text(alphabet=" aAbßİ\n"), st.lists(st.text(alphabet=" aAbßİ\n"), max_size=3))
def test_every_score_is_0_or_between_a_half_and_1(reply: str, golds: list[str]):
    for mode in MODES:
        value = anls(reply, golds, mode)
        assert value == 0.0 or 0.5 <= value <= 1.0


@given(st.text(alphabet=" aAbcß", max_size=12), st.text(alphabet=" aAbcß", max_size=12))
def test_the_shortcut_by_length_changes_no_score(reply: str, gold: str):
    plain = [" ".join(text.lower().split()) for text in (reply, gold)]
    length = max(len(reply.upper()), len(gold.upper()))
    expected = 1 - distance_by_the_table(*plain) / length if length else 1.0
    assert anls(reply, [gold]) == (expected if expected >= 0.5 else 0.0)
