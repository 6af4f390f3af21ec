"""POPE is scored as the benchmark's own script does, or as lmms-eval does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmarks import pope


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        ("No", "no"),
        ("no", "no"),
        ("NO", "yes"),  # only No, no and not, in just this case
        ("Not", "yes"),
        ("It is not", "no"),
        ("Yes. There is no dog.", "yes"),  # only what stands before the first full stop
        (".no", "yes"),
        ("No, there is", "no"),  # commas are deleted
        ("n,o", "no"),
        ("No\nYes", "yes"),  # split on single blanks, so the word is "No\nYes"
        ("no\t", "yes"),
        ("  no  ", "no"),
        ("nothing", "yes"),
        ("no!", "yes"),
        ("", "yes"),  # everything else is yes
    ],
)
def test_officially_a_reply_is_no_if_its_first_sentence_holds_a_negation(text: str, expected: str):
    assert pope.parse(text) == expected


@pytest.mark.parametrize(("text", "expected"), [(" Yes\n", "yes"), ("NO", "no"), ("No.", "no."), ("Maybe", "maybe"), ("", "")])
def test_lmms_compares_the_trimmed_lower_case_reply(text: str, expected: str):
    assert pope.parse(text, "lmms") == expected


@given(st.text() | st.lists(st.sampled_from(["no", "not", "No", " ", ".", ",", "\n"])).map("".join), st.sampled_from(pope.MODES))
@settings(max_examples=60, deadline=None)
def test_parsing_any_text_twice_changes_nothing(text: str, mode: pope.Mode):
    parsed = pope.parse(text, mode)
    assert pope.parse(parsed, mode) == parsed
    assert mode == "lmms" or parsed in ("yes", "no")


@pytest.mark.parametrize("mode", pope.MODES)
@pytest.mark.parametrize("text", [None, float("nan"), 0])
def test_what_is_no_text_is_refused(text, mode: pope.Mode):
    with pytest.raises(ScoringError):
        pope.parse(text, mode)


def test_a_mode_that_does_not_exist_is_named():
    with pytest.raises(UnknownName, match="lmms"):
        pope.parse("yes", "vlmevalkit")  # pyright: ignore[reportArgumentType]


def test_the_five_official_figures_of_a_table_worked_by_hand():
    replies = ["Yes", "Yes", "Yes", "No", "No", "Maybe", "No"]
    labels = ["yes", "yes", "no", "no", "no", "no", "yes"]
    found = pope.score(replies, labels)
    assert (found.true_positives, found.false_positives, found.true_negatives, found.false_negatives) == (2, 2, 2, 1)
    assert (found.accuracy, found.precision, found.recall) == (4 / 7, 0.5, 2 / 3)
    assert found.f1 == pytest.approx(4 / 7)
    assert (found.yes_ratio, found.n) == (4 / 7, 7)


def test_officially_every_label_but_no_is_positive():
    assert pope.score(["Yes", "Yes"], ["NO", "perhaps"]).true_positives == 2


def test_in_lmms_an_odd_reply_counts_in_the_accuracy_only_and_the_yes_ratio_is_that_of_the_labels():
    found = pope.score(["yes", "maybe", "No", "No."], [" Yes", "yes", "no", "no"], mode="lmms")
    assert (found.true_positives, found.false_positives, found.true_negatives, found.false_negatives) == (1, 0, 1, 0)
    assert (found.accuracy, found.precision, found.recall, found.f1) == (0.5, 1.0, 1.0, 1.0)
    assert pope.score(["no", "no", "no"], ["yes", "yes", "no"], mode="lmms").yes_ratio == 2 / 3


def test_lmms_refuses_a_label_that_is_neither():
    with pytest.raises(ScoringError, match="perhaps"):
        pope.score(["yes"], ["perhaps"], mode="lmms")


@pytest.mark.parametrize(("replies", "labels"), [(["no"], ["yes"]), (["yes"], ["no"]), (["no"], ["no"]), ([], [])])
def test_zero_denominators_are_zero_or_officially_a_failure(replies: list[str], labels: list[str]):
    found = pope.score(replies, labels)
    assert (found.precision, found.recall, found.f1) == (0, 0, 0)
    with pytest.raises(ScoringError):
        pope.score(replies, labels, strict_official=True)


def test_lmms_fails_on_no_replies_only():
    assert pope.score(["no"], ["no"], mode="lmms", strict_official=True).f1 == 0
    with pytest.raises(ScoringError):
        pope.score([], [], mode="lmms", strict_official=True)


def test_unequal_lengths_are_refused_unless_the_official_cut_is_asked_for():
    with pytest.raises(ScoringError, match="3 replies but 2 labels"):
        pope.score(["yes", "no", "yes"], ["yes", "no"])
    found = pope.score(["yes", "no", "yes"], ["yes", "no"], check_counts=False)
    assert (found.accuracy, found.yes_ratio) == (1.0, 2 / 3)  # the ratio is over all replies, also those without a label


def test_the_headline_is_the_mean_of_the_splits():
    splits = [pope.score(["yes"], ["yes"]), pope.score(["yes", "yes"], ["yes", "no"]), pope.score(["no"], ["no"])]
    assert pope.mean_f1(splits) == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert pope.mean_f1([]) == 0
