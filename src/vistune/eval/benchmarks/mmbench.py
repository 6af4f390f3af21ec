"""MMBench (Liu et al. 2023): reading an option from a reply as VLMEvalKit does, and CircularEval.

Pure functions. VLMEvalKit asks a language model about the replies that its rules cannot read; here those stay None, and the caller may ask.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vistune.errors import ScoringError

LETTERS = ("A", "B", "C", "D")
NO_OPTION = "Z"
"""What a refusal is read as: an answer, and a wrong one."""
ROTATION = 1_000_000

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_API_FAILURE = "Failed to obtain answer via API"
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_PIECES = 4
# The letter must be a capital, and alone: "answer is Dog" names no option. The first letter of "answer" is looked at last, so that the
# search can run for a fixed text; the rest is possessive, because none of its parts can match what another one takes.
_SENTENCE = re.compile(r"nswer is(?<=[Aa]nswer is)\s*+:?+\s*+\*{0,3}+\(?+([A-D])(?![A-Za-z0-9])")


def options_of(row: Mapping[str, Any]) -> dict[str, str]:
    """A row's options by letter, as LLaVA reads them: the first that is None, NaN, "nan" or "none" (any case) ends the list."""
    options: dict[str, str] = {}
    for letter in LETTERS:
        value = row.get(letter)
        if value is None or (isinstance(value, float) and math.isnan(value)) or str(value).lower() in ("nan", "none"):
            break
        options[letter] = str(value)
    return options


def infer_option(reply: object, options: Mapping[str, object]) -> str | None:
    """The letter that a reply means, `Z` for none of the options, or None where the rules of VLMEvalKit do not tell.

    In turn: a refusal; one single option letter that stands alone, first met among the last four pieces; a lone Z; "answer is X"; and,
    unless the reply is more than twice as long as all options together, the only option whose text it contains.

    Args:
        reply: usually text; None and NaN (an empty cell) are read as "None" and "nan", as in VLMEvalKit.
        options: the option texts by capital letter.

    Raises:
        ScoringError: an option's key is no capital letter.
    """
    wrong = [key for key in options if not isinstance(key, str) or len(key) != 1 or key not in string.ascii_uppercase]
    if wrong:
        raise ScoringError(f"options are named by one capital letter, not {str(wrong[0])[:40]!r}.")
    text = str(reply)
    return _option_by_letter(text, options) or _option_by_text(text, options)


def _option_by_letter(text: str, options: Mapping[str, object]) -> str | None:
    if _API_FAILURE in text:
        return None
    if any(refusal in text for refusal in _REFUSALS):
        return NO_OPTION
    pieces = text.translate(_PUNCTUATION).split()
    found = [letter for letter in options if letter in pieces]
    if len(found) == 1 and pieces.index(found[0]) >= len(pieces) - _LAST_PIECES:
        return found[0]
    if not found and NO_OPTION in pieces:
        return NO_OPTION
    sentence = _SENTENCE.search(text)
    return sentence[1] if sentence and sentence[1] in options else None


def _option_by_text(text: str, options: Mapping[str, object]) -> str | None:
    text = text.lower()
    if len(text) > 2 * sum(len(str(option)) for option in options.values()):
        return None
    found = [letter for letter, option in options.items() if str(option).lower() in text]
    return found[0] if len(found) == 1 else None


def circular(hits: Mapping[int, bool | None]) -> dict[int, bool | None]:
    """CircularEval: whether each question is right in all its rotations.

    Rotations of question `index` are numbered `index` + k x 1,000,000. One wrong rotation makes the question wrong; without one, a rotation
    that has no verdict (None) leaves it without one.

    Args:
        hits: for every row's index whether it is right, None where that is not known.
    """
    rotations: dict[int, list[bool | None]] = defaultdict(list)
    for index, hit in hits.items():
        rotations[index % ROTATION].append(hit)
    return {question: _all_right(rotations[question]) for question in rotations if question in hits}


def _all_right(hits: Iterable[bool | None]) -> bool | None:
    hits = list(hits)
    if any(hit is False for hit in hits):
        return False
    return None if None in hits else True


@dataclass(frozen=True)
class Tally:
    """Questions by verdict. Those without one are in neither side of `accuracy`; `bounds` says what they could make of it."""

    right: int
    wrong: int
    unscored: int

    @property
    def n(self) -> int:
        return self.right + self.wrong + self.unscored

    @property
    def accuracy(self) -> float:
        """Fraction right of the questions with a verdict; 0 without any."""
        scored = self.right + self.wrong
        return self.right / scored if scored else 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        """The accuracy if all questions without a verdict were wrong, and if all were right."""
        return (self.right / self.n, (self.right + self.unscored) / self.n) if self.n else (0.0, 0.0)


@dataclass(frozen=True)
class CircularScore:
    overall: Tally
    by_category: dict[str, Tally]
    by_l2_category: dict[str, Tally]


def score(rows: Iterable[Mapping[str, Any]], *, check_counts: bool = True) -> CircularScore:
    """CircularEval of answered rows: the mean over questions, overall and per `category` and `l2-category` of the unrotated row.

    Args:
        rows: the rows of the official table (`index`, `A` to `D`, `answer`, ...) with the model's reply in `prediction`.
        check_counts: refuse an index that comes twice and a rotation without its question; else the last one counts and the other is left
            out, as in VLMEvalKit.

    Raises:
        ScoringError: wrong counts, an index that is no number, or an answer that is none of the row's options.
    """
    table: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        index = _index(row)
        if check_counts and index in table:
            raise ScoringError(f"index {index} comes twice.")
        table[index] = row
    orphans = [index for index in table if index % ROTATION not in table]
    if check_counts and orphans:
        raise ScoringError(f"{len(orphans)} rotations have no question of their own, the first is {orphans[0]}; the table is not complete.")
    verdicts = circular({index: _hit(index, row) for index, row in table.items()})
    return CircularScore(
        overall=_tally(verdicts.values()),
        by_category=_grouped(verdicts, table, "category"),
        by_l2_category=_grouped(verdicts, table, "l2-category"),
    )


def _index(row: Mapping[str, Any]) -> int:
    try:
        return int(row["index"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ScoringError(f"a row's index must be a number, not {str(row.get('index'))[:40]!r}.") from None


def _hit(index: int, row: Mapping[str, Any]) -> bool | None:
    options = options_of(row)
    if row.get("answer") not in options:
        raise ScoringError(
            f"row {index}: the answer {str(row.get('answer'))[:40]!r} is none of its options {', '.join(options) or '(none)'}."
        )
    if "prediction" not in row:
        raise ScoringError(f"row {index} has no prediction; answer every row, or leave the whole question out.")
    found = infer_option(row["prediction"], options)
    return None if found is None else found == row["answer"]


def _grouped(verdicts: Mapping[int, bool | None], table: Mapping[int, Mapping[str, Any]], key: str) -> dict[str, Tally]:
    groups: dict[str, list[bool | None]] = defaultdict(list)
    for index, verdict in verdicts.items():
        if key in table[index]:
            groups[str(table[index][key])].append(verdict)
    return {name: _tally(group) for name, group in groups.items()}


def _tally(verdicts: Iterable[bool | None]) -> Tally:
    counts = Counter(verdicts)
    return Tally(counts[True], counts[False], counts[None])
