"""Which question a stored TextVQA prompt asked, layout by layout of LLaVA's script."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.errors import ScoringError
from vistune.eval.benchmarks.textvqa import question_from_prompt


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("OCR tokens: A, B. Question: What is IT? Short answer:", "what is it?"),
        ("OCR tokens: a\nQuestion: two\nlines? Short answer: b", "two\nlines?"),
        ("OCR tokens: a Question: one Short answer: Question: two Short answer:", "one"),
        ("OCR tokens: a Question: b Question: c Short answer:", "b question: c"),
        ("OCR tokens: a Question:  Short answer:", ""),
        ("OCR tokens: Short answer: Question: x Short answer:", "x"),
    ],
)
def test_after_ocr_tokens_the_question_stands_between_its_two_marks(prompt: str, expected: str):
    assert question_from_prompt(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("What IS it?\nReference OCR token: A, B\nAnswer shortly.", "what is it?"),
        ("Reference OCR token: A, B\nWhat IS it?\nAnswer shortly.", "what is it?"),
        ("What?\nAnswer.\nReference OCR token: a", "what?"),
        ("Reference OCR token:\nWhat?\nReference OCR token: a", "what?"),
    ],
)
def test_of_three_lines_with_reference_tokens_the_first_that_has_none_asks(prompt: str, expected: str):
    assert question_from_prompt(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("What IS it?\nAnswer shortly.", "what is it?"),
        (" What? \n", " what? "),
        ("\n", ""),
        ("Reference OCR token: A\nWhat?", "reference ocr token: a"),
        ("ocr tokens: a\nWhat?", "ocr tokens: a"),
        ("OCR tokens:\nWhat?", "ocr tokens:"),
        ("What?\rIs it?\nAnswer.", "what?\ris it?"),
    ],
)
def test_of_two_lines_the_first_asks_untrimmed(prompt: str, expected: str):
    assert question_from_prompt(prompt) == expected


@pytest.mark.parametrize("strict_official", [False, True])
@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "What?",
        "one\ntwo\nthree",
        "What?\nReference OCR token:A\nAnswer.",
        "What?\nReference OCR token: A\nAnswer.\n",
        "OCR tokens: a\nno marks",
        "OCR tokens: a Question: What?\nAnswer.",
        "OCR tokens: a Short answer: Question: What?",
        "OCR tokens: a Question: Short answer:",
        None,
        7,
    ],
)
def test_any_other_layout_is_an_error_with_or_without_strictness(prompt, strict_official: bool):
    with pytest.raises(ScoringError):
        question_from_prompt(prompt, strict_official=strict_official)


@given(
    st.text() | st.lists(st.sampled_from(["\n", "OCR tokens: ", "Question: ", " Short answer:", "Reference OCR token: ", "A"])).map("".join)
)
def test_every_text_has_a_question_in_lower_case_or_is_refused(prompt: str):
    try:
        question = question_from_prompt(prompt)
    except ScoringError:
        return
    assert question == question_from_prompt(prompt) == question.lower()
