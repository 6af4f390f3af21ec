"""VQA's normalisation and soft accuracy, with the cases worked by hand from the authors' rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.errors import ScoringError
from vistune.eval.benchmarks.vqa import (
    CONTRACTIONS,
    normalise_m4c,
    normalise_official,
    remove_punctuation,
    simplify_words,
    soft_m4c,
    soft_official,
)

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
AGREED, DIVIDED = ["yes"] * 10, ["yes"] * 9 + ["no"]


@pytest.mark.parametrize("mark", PUNCTUATION)
def test_a_mark_inside_a_word_becomes_a_blank(mark: str):
    assert remove_punctuation(f"a{mark}b") == "a b"


@pytest.mark.parametrize("mark", PUNCTUATION)
def test_a_mark_with_a_blank_before_or_behind_is_deleted_everywhere(mark: str):
    assert remove_punctuation(f"a{mark} b{mark}c") == "a bc"
    assert remove_punctuation(f"a {mark}b{mark}c") == "a bc"


@pytest.mark.parametrize("other", "'&*#$%^~|:’")
def test_any_other_mark_stays(other: str):
    assert remove_punctuation(f"a{other}b {other} c") == f"a{other}b {other} c"


def test_one_mark_beside_a_blank_says_nothing_about_another():
    assert remove_punctuation("a- b/c") == "a b c"


def test_blanks_that_stand_for_marks_count_for_no_other_mark():
    assert remove_punctuation("a/-b") == remove_punctuation("a-/b") == "a  b"


def test_a_comma_between_digits_deletes_every_mark():
    assert remove_punctuation("1,000/a-b") == "1000ab"


@pytest.mark.parametrize(("text", "expected"), [("1,,0/a", "1  0 a"), ("1,a/b", "1 a b"), ("a,1/b", "a 1 b")])
def test_only_a_single_comma_between_two_digits_does_so(text: str, expected: str):
    assert remove_punctuation(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("st. louis.", "st louis"), ("3.5", "3.5"), ("3.", "3"), ("3.a", "3a"), ("a.3", "a.3"), ("...5", ".5"), ("1.٣", "1.٣")],
)
def test_a_dot_goes_unless_a_digit_follows_it_whatever_is_before(text: str, expected: str):
    assert remove_punctuation(text) == expected


def test_at_most_32_dots_go():
    assert remove_punctuation("." * 32) == ""
    assert remove_punctuation("." * 40) == "." * 8


def test_dots_are_looked_at_after_punctuation_went():
    assert remove_punctuation("a.-5") == "a 5"
    assert remove_punctuation("a.- 5 .-7") == "a 5 .7"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("None of The TWO", "0 of 2"),
        ("zero one two three four five six seven eight nine ten eleven", "0 1 2 3 4 5 6 7 8 9 10 eleven"),
        ("an apple a day the end some", "apple day end some"),
        (" a\u00a0b\tc\n", "b c"),
        ("dont DONT", "don't don't"),
        ("adont", "adont"),
    ],
)
def test_words_lose_case_and_articles_and_numbers_become_digits(text: str, expected: str):
    assert simplify_words(text) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("couldnt", "couldn't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("somebody'd", "somebodyd"),
        ("somebodyd", "somebodyd"),
        ("somebodyd've", "somebody'd've"),
        ("somebody'dve", "somebody'd've"),
        ("y'allll", "y'all'll"),
        ("y'all'dve", "y'all'd've"),
        ("y'alld've", "y'all'd've"),
        ("yall'd've", "y'all'd've"),
        ("'ow'sat", "'ow's'at"),
        ("'ows'at", "'ow's'at"),
        ("ow's'at", "'ow's'at"),
        ("twas", "'twas"),
        ("im", "im"),
        ("ive", "ive"),
        ("i'dve", "i'dve"),
        ("let's", "let's"),
    ],
)
def test_contractions_get_their_apostrophes_as_in_the_table_of_the_authors(word: str, expected: str):
    assert simplify_words(word) == expected


def test_the_table_has_the_120_keys_of_the_authors_less_those_that_cannot_matter():
    without_effect = {"let's", "she's"} | {"Im", "Ive", "Id've", "I'dve"}
    assert len(CONTRACTIONS) == 120 - len(without_effect)
    assert not without_effect & CONTRACTIONS.keys()
    assert not {"its", "were", "well", "hell", "ill", "id", "shell", "wed", "shed"} & CONTRACTIONS.keys()


def test_every_contraction_keeps_its_letters():
    assert all(key.replace("'", "") == word.replace("'", "") for key, word in CONTRACTIONS.items())


def test_lines_and_tabs_are_blanks_and_ends_are_trimmed_before_punctuation_is_judged():
    assert normalise_official("a\n-b-c") == normalise_official("a\t-b-c") == "bc"
    assert normalise_official(" -a-b- ") == normalise_official("\n-a-b-\n") == "b"
    assert normalise_m4c("c\n-b-c") == normalise_m4c("c\t-b-c") == "c bc"


def test_m4c_deletes_commas_and_question_marks_before_it_judges_punctuation():
    assert normalise_m4c("red,green?") == normalise_m4c("red?green") == "redgreen"
    assert normalise_official("red,green?") == "red green"
    assert normalise_m4c("1,000/b") == "1000 b"
    assert normalise_m4c("?-b") == normalise_m4c("-b") == "b"


def test_m4c_cuts_off_the_genitive_in_lower_case():
    assert normalise_m4c("JOE'S Bar's") == "joe 's bar 's"
    assert normalise_m4c("what's") == "what 's"
    assert normalise_official("JOE'S") == "joe's"


def test_m4c_trims_what_its_first_step_uncovers():
    assert normalise_m4c(", -a-b") == "b"
    assert normalise_m4c("'s-a-c") == "'s c"


@given(st.text(alphabet=" \n\t.,'-a1sn") | st.text())
def test_normalising_is_total_and_leaves_single_blanks_only(text: str):
    for normalised in (normalise_official(text), normalise_m4c(text)):
        assert normalised == " ".join(normalised.split())


@pytest.mark.parametrize(("count", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_each_annotator_is_left_out_once(count: int, expected: float):
    """With m annotators in agreement: m of ten see m - 1 others, the rest see m, and three others are full marks."""
    answers = ["cat"] * count + [f"dog {number}" for number in range(10 - count)]
    assert soft_official("cat", answers) == pytest.approx(expected)
    assert soft_m4c("cat", answers) == pytest.approx(expected)


def test_officially_nothing_is_normalised_where_all_annotators_agree_to_the_letter():
    assert soft_official("yes", AGREED) == 1.0
    assert soft_official("Yes.", AGREED) == 0.0
    assert soft_official("Yes.", DIVIDED) == 1.0
    assert soft_m4c("Yes.", AGREED) == 1.0


def test_whitespace_is_put_right_even_where_all_annotators_agree():
    assert soft_official("\ta\ncat ", ["a cat"] * 10) == soft_official("a cat", [" a\tcat\n"] * 10) == 1.0
    assert soft_official("Yes", [" Yes", *["Yes"] * 9]) == 1.0
    assert soft_official("yes", [" Yes", *["Yes"] * 9]) == 0.0


def test_references_are_normalised_like_the_prediction():
    assert soft_official("2 dogs", ["The two dogs!"] * 4 + ["x"] * 6) == 1.0
    assert soft_m4c("2 dogs", ["The two dogs!"] * 4 + ["x"] * 6) == 1.0


def test_each_accuracy_normalises_both_sides_in_its_own_way():
    assert soft_official("red,green", ["red green"] * 9 + ["x"]) == soft_official("red green", ["red,green"] * 9 + ["x"]) == 1.0
    assert soft_m4c("red,green", ["redgreen"] * 10) == soft_m4c("redgreen", ["red,green"] * 10) == 1.0


def test_records_are_told_apart_by_what_else_they_hold():
    texts = ["cat"] * 4 + ["dog"] * 6
    numbered = [{"answer": text, "answer_id": number, "answer_confidence": "yes"} for number, text in enumerate(texts)]
    nameless = [{"answer": text, "answer_confidence": "yes"} for text in texts]
    assert soft_official("cat", numbered) == soft_official("cat", texts) == 1.0
    assert soft_official("cat", nameless) == pytest.approx(0.6), "the four who wrote cat are one record and leave each other out"
    assert soft_m4c("cat", nameless) == 1.0


def test_records_that_become_equal_by_normalising_are_one():
    assert soft_official("cat", [{"answer": "Cat"}, {"answer": "cat"}]) == 0.0
    assert soft_official("cat", ["Cat", "cat"]) == pytest.approx(1 / 3)


def test_m4c_takes_ten_answers_and_no_other_number():
    for answers in (AGREED[:9], [*AGREED, "yes"], []):
        with pytest.raises(ScoringError, match="exactly 10"):
            soft_m4c("yes", answers)
        with pytest.raises(ScoringError, match="exactly 10"):
            soft_m4c("yes", answers, check_counts=False, strict_official=True)
    assert soft_m4c("yes", ["yes", "yes"], check_counts=False) == pytest.approx(1 / 3)
    assert soft_m4c("yes", [], check_counts=False) == 0.0


def test_a_question_without_answers_is_0_or_with_strictness_an_error():
    assert soft_official("yes", []) == 0.0
    with pytest.raises(ScoringError, match="divides by zero"):
        soft_official("yes", [], strict_official=True)


@pytest.mark.parametrize("soft", [soft_official, soft_m4c])
def test_a_reply_that_never_came_is_empty_or_with_strictness_an_error(soft):
    assert soft(None, DIVIDED) == 0.0
    assert soft(None, [None] * 10) == 1.0
    with pytest.raises(ScoringError, match="NoneType"):
        soft(None, DIVIDED, strict_official=True)
    with pytest.raises(ScoringError, match="NoneType"):
        soft("yes", [None, *AGREED[1:]], strict_official=True)


@pytest.mark.parametrize("soft", [soft_official, soft_m4c])
@pytest.mark.parametrize(
    ("prediction", "answers"),
    [(float("nan"), AGREED), (3, AGREED), ("yes", "yesyesyesy"), ("yes", 3), ("yes", [1] * 10), ("yes", [{}] * 10)],
)
def test_what_is_not_text_is_refused(soft, prediction, answers):
    with pytest.raises(ScoringError):
        soft(prediction, answers)


@given(st.text(), st.lists(st.text(max_size=3), min_size=10, max_size=10))
def test_accuracies_are_fractions(prediction: str, answers: list[str]):
    for soft in (soft_official, soft_m4c):
        assert 0.0 <= soft(prediction, answers) <= 1.0
        assert soft(answers[0], answers) == soft(answers[0], answers) >= 0.0
