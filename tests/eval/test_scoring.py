"""Exact match forgives form and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.eval.scoring import exact_match, matches, normalise
from vistune.types import Conversation, Question, Reply


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("A cat.", "cat"),
        ("THE CAT", "a cat"),
        ("Two.", "2"),
        ("There are 3 objects", "There are three objects."),
        ("Grey", "gray"),
        ("In the centre.", "in the center"),
        ("a t-shirt", "T-shirt"),
        ("a graduate’s cap", "a graduate's cap"),
        ("  yes\n", "Yes."),
    ],
)
def test_form_is_forgiven(reply: str, answer: str):
    assert matches(reply, [answer])


@pytest.mark.parametrize(
    ("reply", "answer"),
    [("a cats", "cat"), ("black cat", "cat"), ("top left", "left"), ("", "cat"), ("...", "the"), ("no", "yes"), ("dog a cat", "cat dog")],
)
def test_content_is_not_forgiven(reply: str, answer: str):
    assert not matches(reply, [answer])


@given(st.text())
def test_normalising_twice_changes_nothing(text: str):
    assert normalise(normalise(text)) == normalise(text)


def test_a_cancelled_reply_has_no_score():
    question = Question("1", Conversation(()), ("cat",))
    assert exact_match(question, Reply("cat", "cancelled")).value is None
    assert exact_match(question, Reply("cat", "length")).value == 1.0
