"""AI2D: the option letter of a reply, as lmms-eval takes it."""

from __future__ import annotations

import re
import string

from vistune.eval.benchmarks.vqa import as_text

_LETTER_AND_DOT = re.compile(r"\s*+([A-Z])\.")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def parse(reply: str | None) -> str:
    """The capital with a dot that a reply begins with, blanks aside; else the whole reply. None is an empty reply."""
    text = as_text(reply)
    found = _LETTER_AND_DOT.match(text)
    return found.group(1) if found else text


def match(reply: str | None, answer: str) -> bool:
    """Whether a reply gives the answer's letter, but for case and punctuation; blanks count.

    >>> match("B. the frog", "B"), match("(b)", "B"), match("B the frog", "B")
    (True, True, False)
    """
    return _bare(parse(reply)) == _bare(answer)


def _bare(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)
