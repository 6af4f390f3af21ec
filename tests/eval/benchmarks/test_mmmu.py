"""What MMMU's parsers read in a reply, worked by hand from the authors' rules."""

from __future__ import annotations

import random
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.errors import ScoringError
from vistune.eval.benchmarks.mmmu import eval_open, find_choice, normalise, numbers_in, overall, parse_mc, parse_open

LETTERS = ["A", "B", "C", "D"]
OPTIONS = {"A": "red", "B": "red car", "C": "Blue", "D": "a green bus"}


def chosen(reply: str) -> str | None:
    return find_choice(reply, LETTERS, OPTIONS)


@pytest.mark.parametrize("reply", ["B", "B.", "(B)", "It is B", "B because", "Answer: (B).", "x(B)y", "'B'", "B,", ":B:", "B?!"])
def test_a_letter_in_brackets_or_between_blanks_is_the_choice(reply: str):
    assert chosen(reply) == "B"


@pytest.mark.parametrize("reply", ["b", "(b)", "AB", "B)", "is:B", "B\n", "\nB ", "**B**", '"B"', "E", "(E)", ""])
def test_case_counts_and_only_blanks_set_a_letter_apart(reply: str):
    assert chosen(reply) is None


@pytest.mark.parametrize("mark", list(",.!?;:'"))
def test_each_mark_is_stripped_from_both_ends(mark: str):
    assert chosen(f"{mark}{mark}C{mark}") == "C"


def test_marks_are_stripped_in_turn_and_once_each():
    assert chosen(",.!?;:'C") == "C"
    assert chosen("C',") == "C"
    assert chosen("C,'") is None, "commas had their turn before the apostrophe"
    assert chosen("C!?") is None
    assert chosen("C, .") is None, "a blank stops them"


def test_letters_in_brackets_come_before_letters_between_blanks():
    assert chosen("(A) not B ") == "A"


@pytest.mark.parametrize(
    ("reply", "letter"), [("(A) or (C), no (B)", "B"), ("(B) (A) (B) (C)", "C"), ("C or A or B then A", "A"), ("A B A", "A")]
)
def test_of_several_letters_the_one_that_occurs_last_is_the_choice(reply: str, letter: str):
    assert chosen(reply) == letter


def test_letters_that_share_a_blank_both_count():
    assert chosen("it is A B") == "B"


def test_option_texts_are_sought_in_replies_of_more_than_five_words_only():
    assert chosen("i think it is BLUE") is None
    assert chosen("i think that it is BLUE") == "C"
    assert chosen("i think that it is A BLUE one") == "A", "a letter wins"


def test_of_several_texts_the_last_wins_and_of_those_at_one_place_the_first_in_order():
    assert chosen("not blue at all but really a green bus") == "D"
    assert chosen("not red but blue as the sky") == "C"
    assert chosen("it may well be a red car") == "A"
    assert chosen("blue it is not but red, and bluest of all") == "C"


def test_texts_are_sought_in_the_reply_without_its_last_marks():
    options = {"A": "end.", "B": "no"}
    assert find_choice("one two three four five end.", ["A", "B"], options) is None


def test_a_reply_without_choice_is_guessed_as_the_generator_says():
    reply = "no idea"
    assert parse_mc("B", LETTERS, OPTIONS) == "B"
    assert parse_mc(reply, LETTERS, OPTIONS) == parse_mc("", LETTERS, OPTIONS) == random.Random(42).choice(LETTERS)
    draws, same = random.Random(7), random.Random(7)
    assert [parse_mc(reply, LETTERS, OPTIONS, rng=draws) for _ in range(9)] == [same.choice(LETTERS) for _ in range(9)]


def test_without_choices_there_is_no_guess():
    with pytest.raises(ScoringError, match="without choices"):
        parse_mc("no idea", [], {})


@pytest.mark.parametrize("reply", [None, ""])
def test_an_empty_reply_has_no_choice_and_one_empty_candidate(reply):
    assert find_choice(reply, LETTERS, OPTIONS) is None
    assert parse_open(reply) == [""]


@pytest.mark.parametrize("reply", [3, float("nan"), ["B"]])
def test_what_is_not_text_is_refused(reply):
    for parse in (lambda: parse_mc(reply, LETTERS, OPTIONS), lambda: parse_open(reply)):
        with pytest.raises(ScoringError):
            parse()


@pytest.mark.parametrize("indicator", ["could be", "so", "is", "thus", "therefore", "final", "answer", "result"])
def test_the_tail_after_each_indicator_is_a_candidate(indicator: str):
    assert parse_open(f"we see {indicator} Rome town.") == ["rome town"]
    assert parse_open(f"we see {indicator}\tRome") == [f"we see {indicator}\trome"], "one blank belongs to the indicator"


def test_the_tail_is_what_follows_the_last_occurrence():
    assert parse_open("it is what it is now") == ["now"]


def test_of_several_indicators_the_shortest_tail_is_kept():
    assert parse_open("the answer is paris") == ["paris"]
    assert parse_open("so the final answer paris") == ["paris"]
    assert parse_open("the result of it could be paris") == ["paris"]


def test_an_indicator_inside_a_word_is_one():
    assert parse_open("this paris") == ["paris"]


def test_indicators_are_found_in_any_case():
    assert parse_open("It IS Rome") == ["rome"]


def test_an_empty_tail_gives_way_to_a_later_indicator():
    """The tail after "is " is empty; that after "answer " is longer and replaces it, since the script takes an empty tail for none."""
    assert parse_open("the answer is \nnothing else") == ["is"]
    assert parse_open("it is so \nnothing else") == ["so"]


def test_an_empty_tail_takes_the_place_of_an_earlier_one():
    assert parse_open("so it is \nfinal red") == ["red"]


def test_the_equals_sign_is_an_indicator_in_the_last_line_only():
    assert parse_open("x = yes") == ["yes"]
    assert parse_open("x = yes\nx = no") == ["no"]
    assert parse_open("x = yes\nthat") == ["x = yes\nthat"]


def test_every_line_gives_a_candidate():
    assert parse_open("it is red\nnothing\nit is blue") == ["red", "blue"]


def test_a_sentence_ends_with_its_line_not_with_its_dot():
    assert parse_open("It is red. It was blue") == ["red. it was blue"]


@pytest.mark.parametrize("mark", list(":,.!?;'"))
def test_a_tail_of_one_mark_is_no_candidate(mark: str):
    assert parse_open(f"it is {mark}\nit is red") == ["red"]


def test_without_any_tail_the_whole_reply_is_the_candidate():
    assert parse_open("  Red Car.. ") == ["red car"]
    assert parse_open(".. Red") == ["red"]


def test_the_numbers_of_a_tail_are_candidates_too():
    assert parse_open("the answer is 1,234.5 or 7 m") == ["1,234.5 or 7 m", 1234.0, 234.5, 7.0]
    assert parse_open("so 3 apples and 4 is 7 pears") == ["7 pears", 7.0]
    assert parse_open("3 apples") == ["3 apples", 3.0]


def test_candidates_come_once_each():
    assert parse_open("it is 7 or 7.0\nit is 7 or 7.0") == ["7 or 7.0", 7.0]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,000", ["1,000", "000"]),
        ("-12,345,678 b", ["-12,345,678", "678"]),
        ("1234,567", ["567"]),
        ("1,0000", ["0000"]),
        ("a1,000", ["000"]),
        ("1,000,00", ["1,000", "00"]),
        ("2.5e3", ["2.5e3", "2", "3"]),
        ("-2E-10", ["-2E-10", "-10"]),
        ("1e5.5", ["1e5", "5.5"]),
        ("1e+5", ["1e+5", "5"]),
        ("1e5 1,000", ["1,000", "1e5", "5", "000"]),
        ("1e", []),
        ("2.5e", ["2.5"]),
        ("3.14", ["3.14"]),
        ("-.5 .5", ["-.5", ".5"]),
        ("7", ["7"]),
        ("-7", ["-7"]),
        ("5-3", ["5", "-3"]),
        ("7cm", []),
        ("7.5cm", ["7.5"]),
        ("x7", ["7"]),
        ("7_", []),
        ("7, 8", ["8"]),
        ("7.5, 8.", ["7", "8"]),
        ("1.2.3", ["1.2", ".3"]),
        ("٣", ["٣"]),
        ("", []),
    ],
)
def test_numbers_are_found_in_three_passes(text: str, numbers: list[str]):
    assert numbers_in(text) == numbers


def numbers_by_searching(text: str) -> list[str]:
    digits, exponent = r"\d+", r"[eE][+-]?\d+"
    decimal = rf"{digits}\.{digits}"
    grouped = r"-?\b\d{1,3}(?:,\d{3})+\b"
    scientific = rf"-?(?:{decimal}|{digits}){exponent}"
    simple = rf"-?(?:{decimal}|\.{digits}|{digits}\b)(?!{exponent})(?![,\d])"
    return [number for form in (grouped, scientific, simple) for number in re.findall(form, text)]


@given(
    st.text(alphabet="0123.,-+eEa_ ", max_size=30) | st.lists(st.sampled_from(["123", ",", ".", "-", "e", "1", "+", " ", "_"])).map("".join)
)
def test_numbers_are_those_that_a_plain_search_finds(text: str):
    assert numbers_in(text) == numbers_by_searching(text)


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        (" 3.14159 ", [3.14]),
        ("1,234", [1234.0]),
        ("1e3", [1000.0]),
        ("2.675", [2.67]),
        ("Red Car", ["red car"]),
        ("B", [" b", "b "]),
        (",", [" ,", ", "]),
        ("", [""]),
        ("inf", [float("inf")]),
        ("1e999", [float("inf")]),
    ],
)
def test_numbers_are_rounded_and_single_characters_get_a_blank(text: str, normalised: list):
    assert normalise(text) == normalised


def test_a_gold_text_is_right_inside_a_predicted_text():
    assert eval_open("Paris", ["paris town"])
    assert not eval_open("paris town", ["paris"])


def test_a_gold_number_is_right_among_predicted_numbers_not_inside_texts():
    assert eval_open("3.14159", ["pi", 3.14])
    assert not eval_open("3", ["3 apples", "3.0 apples"])
    assert not eval_open("3 apples", [3.0])


def test_a_single_letter_is_not_found_in_the_middle_of_a_word():
    assert not eval_open("x", ["axes"])
    assert eval_open("x", ["an x"])
    assert eval_open("x", ["x is"])
    assert eval_open("x", [" x"])


def test_any_accepted_answer_will_do():
    assert eval_open(["rome", "12"], ["nothing", 12.0])
    assert not eval_open(["rome", "12"], ["nothing", 13.0])
    assert not eval_open([], ["nothing", 13.0])


def test_an_empty_gold_text_is_in_every_text():
    assert eval_open("", ["anything"])
    assert not eval_open("", [1.0])


def test_what_is_not_a_number_equals_nothing():
    assert not eval_open("nan", parse_open("it is nan"))


def test_replies_and_answers_meet():
    assert eval_open("1,000", parse_open("The result is 1000 kg."))
    assert eval_open("Paris", parse_open("Therefore, the capital is Paris."))
    assert not eval_open("24", parse_open("The answer is 25."))


def test_the_overall_accuracy_weighs_subjects_by_their_questions():
    assert overall({"Art": (0.5, 30), "Music": (1.0, 10)}) == pytest.approx(0.625)
    assert overall({}) == 0.0


@given(st.text())
def test_every_reply_is_read_and_always_in_the_same_way(reply: str):
    assert parse_mc(reply, LETTERS, OPTIONS) == parse_mc(reply, LETTERS, OPTIONS)
    assert parse_open(reply)
    assert repr(parse_open(reply)) == repr(parse_open(reply))


@pytest.mark.parametrize("junk", ["1" * 99_999 + "a", "1." + "2" * 99_998, "-" * 100_000, "1a" * 5_000, "1,234" * 2_000 + "x"])
def test_time_grows_with_the_reply_and_not_with_its_square(junk: str):
    started = time.process_time()
    numbers_in(junk)
    assert time.process_time() - started < 5, "searching for the published patterns takes minutes"


@pytest.mark.parametrize("gold", [3, 1.5, None, ["rome", 3]])
def test_a_gold_answer_that_is_not_text_is_refused(gold):
    with pytest.raises(ScoringError):
        eval_open(gold, ["rome", 3.0])
