"""Exact match after a normalisation that forgives form, not content.

Case, articles, punctuation, spelling (colour/color, grey/gray) and number words do not count; word order and every other word do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from vistune.types import Question, Reply, Score

SCORER_VERSION = "exact-1"
_ARTICLES = frozenset({"a", "an", "the", "some"})
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
_SPELLINGS = {"colour": "color", "colours": "colors", "grey": "gray", "centre": "center", "middle": "center"}


def normalise(text: str) -> str:
    """ "The Two grey cats." → "2 gray cats"."""
    words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower().replace("’", "'"))
    return " ".join(_SPELLINGS.get(word) or _NUMBERS.get(word) or word for word in words if word not in _ARTICLES)


def matches(reply: str, answers: Iterable[str]) -> bool:
    """Whether a reply is one of the answers. An empty reply matches nothing."""
    found = normalise(reply)
    return bool(found) and any(found == normalise(answer) for answer in answers)


def exact_match(question: Question, reply: Reply, protocol: str = "") -> Score:
    """1 or 0. A reply that was cancelled is not scored: a failure is not a zero."""
    if reply.finish_reason == "cancelled":
        return Score(None, note="the reply was cancelled")
    return Score(float(matches(reply.text, question.answers)), extracted=normalise(reply.text))
