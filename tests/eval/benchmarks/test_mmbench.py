"""MMBench: options are read as VLMEvalKit reads them, and a question counts when all its rotations are right."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistune.errors import ScoringError
from vistune.eval.benchmarks import mmbench

OPTIONS = {"A": "a red car", "B": "a blue boat", "C": "a green tree", "D": "a small dog"}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("B", "B"),
        ("(B)", "B"),  # each of .()[],:;!*#{} becomes a blank
        ("B.", "B"),
        ("[B],", "B"),
        ("{B}", "B"),
        ("**B**", "B"),
        ("#B!", "B"),
        ("Answer:B;", "B"),
        ('"B"', None),  # quotes do not
        ("b", None),  # case-sensitive
        ("B is my choice", "B"),  # fourth from the end
        ("B is my first choice", None),  # fifth from the end
        ("B I am sure of B", None),  # the first of them decides
        ("A or B", None),  # two letters
        ("A photo of things", "A"),  # an article is a letter too
        ("Z", "Z"),
        ("It is Z because nothing else fits at all", "Z"),
        ("Z or B", "B"),
        ("B or Z, I do not know really which", None),  # a Z counts only where no letter does
        ("Sorry, I can't help with images of people yet. B", "Z"),  # refusals go first
        ("Cannot determine the answer", "Z"),
        ("I can't process this file.", "Z"),
        ("cannot determine the answer", None),
        ("The answer is B because of what is seen in it", "B"),  # the sentence, where the letter comes too early
        ("Not A and not C. The correct answer is **B**, all things considered here.", "B"),
        ("ANSWER  IS\n****C, and not A nor B as far as can be seen", "C"),
        ("Answer is: (B) and not A for all that we can see", None),  # only blanks and asterisks may stand before the letter
        ("I say the answer is Dog, and not A nor C is it", "D"),  # oddity: a letter that begins a word counts
        ("Never is the answer is b for A and C to be seen", "B"),
        ("The answer is a blue boat", "A"),  # oddity: so does the article, before the text is looked at
        ("a blue boat", "B"),  # the text of an option
        ("It is a BLUE boat!", "B"),
        ("a red car, a blue boat", None),  # two texts
        ("a blue boat" + "x" * 75, "B"),  # 86 characters: twice the 43 of all options
        ("a blue boat" + "x" * 76, None),
        ("", None),
        (None, None),
        (math.nan, None),
    ],
)
def test_an_option_is_read_by_letter_then_by_sentence_then_by_text(reply, expected: str | None):
    assert mmbench.infer_option(reply, OPTIONS) == expected


def test_a_letter_that_begins_a_word_can_be_left_alone():
    assert mmbench.infer_option("The answer is a blue boat", OPTIONS, alone=True) == "B"
    assert mmbench.infer_option("The answer is B because of what is seen in it", OPTIONS, alone=True) == "B"


def test_none_and_nan_are_read_as_words_as_an_empty_cell_is_there():
    assert mmbench.infer_option(None, {"A": "none", "B": "nan"}) == "A"
    assert mmbench.infer_option(math.nan, {"A": "none", "B": "nan"}) == "B"


def test_letters_beyond_the_options_are_not_read():
    two = {"A": "yes indeed", "B": "not at all"}
    assert mmbench.infer_option("D", two) is None
    assert mmbench.infer_option("The answer is D as far as I can tell", two) is None
    assert mmbench.infer_option("C", OPTIONS | {"C": "x"}) == "C"


def test_the_case_of_an_options_text_does_not_matter():
    assert mmbench.infer_option("it is paris", {"A": "Paris", "B": "Rome"}) == "A"


def test_options_need_not_be_text():
    assert mmbench.infer_option("It is 12", {"A": 12, "B": 7.5}) == "A"


def test_a_message_of_a_failed_call_is_not_searched_for_letters():
    assert mmbench.infer_option("Failed to obtain answer via API. B", OPTIONS) is None


@pytest.mark.parametrize("key", ["a", "AB", "", 1])
def test_options_are_named_by_capitals(key):
    with pytest.raises(ScoringError):
        mmbench.infer_option("x", {key: "x"})


@given(st.text() | st.lists(st.sampled_from(["A", "B", "Z", " ", "answer is ", "*", "a red car"])).map("".join))
@settings(max_examples=60, deadline=None)
def test_any_text_is_an_option_or_z_or_nothing(reply: str):
    assert mmbench.infer_option(reply, OPTIONS) in (*OPTIONS, "Z", None)


@pytest.mark.parametrize("end", [None, math.nan, "nan", "NaN", "None", "none"])
def test_the_first_empty_option_ends_the_list(end):
    assert mmbench.options_of({"A": "x", "B": 7, "C": end, "D": "z"}) == {"A": "x", "B": "7"}


def test_an_option_that_begins_like_none_is_one():
    assert mmbench.options_of({"A": "none of them", "B": "", "C": "x", "D": "y"}) == {"A": "none of them", "B": "", "C": "x", "D": "y"}


def test_a_question_is_right_when_all_its_rotations_are():
    hits = {1: True, 1_000_001: True, 3_000_001: True, 2: True, 1_000_002: False, 3: False}
    assert mmbench.circular(hits) == {1: True, 2: False, 3: False}


def test_one_wrong_rotation_settles_what_an_unread_one_leaves_open():
    hits = {1: True, 1_000_001: None, 2: None, 1_000_002: False, 3: None}
    assert mmbench.circular(hits) == {1: None, 2: False, 3: None}


def test_a_rotation_without_its_question_is_left_out():
    assert mmbench.circular({1_000_001: True, 2: True}) == {2: True}


def row(index, prediction="A", category="c", level_2="l", **more) -> dict:
    return {"index": index, **OPTIONS, "answer": "A", "prediction": prediction, "category": category, "l2-category": level_2} | more


def test_the_score_is_the_mean_over_questions_also_per_category():
    rows = [row(1), row(1_000_001), row(2, category="d"), row(1_000_002, "B"), row(3, level_2="m"), row(1_000_003, "hm", category="other")]
    found = mmbench.score(rows)
    assert found.overall == mmbench.Tally(right=1, wrong=1, unscored=1)
    assert found.by_category == {"c": mmbench.Tally(1, 0, 1), "d": mmbench.Tally(0, 1, 0)}
    assert found.by_l2_category == {"l": mmbench.Tally(1, 1, 0), "m": mmbench.Tally(0, 0, 1)}
    assert (found.overall.n, found.overall.accuracy, found.overall.bounds) == (3, 0.5, (1 / 3, 2 / 3))


def test_a_row_without_a_category_counts_in_the_whole_only():
    found = mmbench.score([{key: value for key, value in row(1).items() if "category" not in key}])
    assert (found.overall, found.by_category, found.by_l2_category) == (mmbench.Tally(1, 0, 0), {}, {})


def test_a_refusal_is_wrong_and_not_unscored():
    assert mmbench.score([row(1, "Cannot determine the answer")]).overall == mmbench.Tally(0, 1, 0)


def test_without_rows_everything_is_zero():
    overall = mmbench.score([]).overall
    assert (overall.accuracy, overall.bounds) == (0.0, (0.0, 0.0))


def test_double_and_orphaned_rows_are_refused_unless_counts_are_not_checked():
    for rows in ([row(1), row(1, "B")], [row(1, "B"), row(1_000_002)]):
        with pytest.raises(ScoringError):
            mmbench.score(rows)
        assert mmbench.score(rows, check_counts=False).overall == mmbench.Tally(0, 1, 0)


@pytest.mark.parametrize(
    "bad", [row("x"), row(math.inf), row(None), row(1, answer="E"), row(1, B=None, answer="B"), {"index": 1, **OPTIONS, "answer": "A"}]
)
def test_a_row_that_cannot_be_scored_is_refused(bad: dict):
    with pytest.raises(ScoringError):
        mmbench.score([bad])
