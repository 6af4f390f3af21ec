"""What benchmarks with lettered options share: the lines with the options, LLaVA's closing sentence, and right, wrong or unreadable."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Sequence

from vistune.eval.benchmark import Metric
from vistune.types import Graded, ImagePart, Score

LETTERS = string.ascii_uppercase
LETTER_ANSWER = "Answer with the option's letter from the given choices directly."
"""What LLaVA-1.5 puts on a line of its own after a question with lettered options."""
NO_OPTION = "no option can be read in the reply, which the benchmark counts as wrong"


def lettered(options: Sequence[str], form: str = "{}. {}", between: str = "\n") -> str:
    """The options with their letters, one a line.

    >>> lettered(["a cat", "a dog"])
    'A. a cat\\nB. a dog'
    """
    return between.join(form.format(letter, option) for letter, option in zip(LETTERS, options, strict=False))


def chosen(letter: str | None, gold: str) -> Score:
    """1 for the right letter, 0 for another; None, a reply in which no option can be read, is wrong too, and the note says so."""
    return Score(float(letter == gold), extracted=letter, note="" if letter is not None else NO_OPTION)


def unreadable(graded: Sequence[Graded]) -> Metric:
    """The share of scored replies in which no answer can be read: officially they are wrong, but they are another kind of wrong."""
    scored = [item for item in graded if item.score.value is not None]
    unread = sum(item.score.extracted is None for item in scored)
    return Metric("unreadable", 100 * unread / len(scored) if scored else 0.0, len(scored))


def picture_group(picture: ImagePart) -> str:
    """What questions about the same picture have in common where the data has no name for it: a digest of its bytes."""
    source = picture.source
    return hashlib.sha256(source).hexdigest()[:16] if isinstance(source, bytes) else str(source)
