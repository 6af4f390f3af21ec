"""ColonINST-v1 (Ji et al. 2024): colonoscopy pictures; classify (CLS), describe a region (REG), find a region (REC).

Pure functions, as the evaluation scripts of IntelliScope. "Seen" in the published table is the validation split, "unseen" the test split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from vistune.errors import ScoringError, UnknownName

COUNTS = {"cls": {"val": 8_929, "test": 45_284}, "reg": {"val": 4_874, "test": 37_631}, "rec": {"val": 4_874, "test": 37_631}}
HIT_ABOVE = 0.5
_BOX_NUMBERS = 4
_END_OF_TEXT = "<|endoftext|>"
# Possessive, because blanks and digits exclude each other: backtracking could never help. The look-ahead only lets runs of "<" fail early.
_NUMBER = re.compile(r"<(?![^<>]*+<)\s*+(\d++)\s*+>")


@dataclass(frozen=True)
class ColonINSTScore:
    """Fractions: `accuracy` for CLS and REG; `iou`, `precision` and `recall` for REC, None elsewhere.

    The official recall divides by the count of gold numbers, four, so that it never exceeds 0.25.
    """

    task: str
    n: int
    accuracy: float | None = None
    iou: float | None = None
    precision: float | None = None
    recall: float | None = None


def score(
    task: str,
    items: Iterable[Mapping[str, Any]],
    *,
    split: str | None = None,
    check_counts: bool = True,
    strict_official: bool = False,
) -> ColonINSTScore:
    """Scores answered dialogues of one task.

    Labels are compared lower-cased and letter for letter: no trimming, a full stop at the end is wrong.

    Args:
        task: `cls`, `reg` or `rec`, in any case; captions have no official score.
        items: dialogues in the official layout, whose `conversations` hold turns `from` `gpt` (gold) and `prediction` (reply).
        split: `val` or `test`; without it either count will do.
        check_counts: refuse any other number of items than the split's, as the official script does.
        strict_official: raise where the official script fails (no items, a number too long for an int, a gold text without numbers).

    Raises:
        ScoringError: wrong counts, a dialogue without gold or prediction, or (strict) as above.
        UnknownName: there is no such task or split.
    """
    name = task.lower()
    if name not in COUNTS:
        raise UnknownName("ColonINST task with a score", task, known=COUNTS)
    if split is not None and split not in COUNTS[name]:
        raise UnknownName("ColonINST split", split, known=COUNTS[name])
    pairs = [(_turn(item, "prediction").lower().replace(_END_OF_TEXT, ""), _turn(item, "gpt").lower()) for item in items]
    expected = [COUNTS[name][split]] if split else list(COUNTS[name].values())
    if check_counts and len(pairs) not in expected:
        raise ScoringError(
            f"{name} has {' or '.join(map(str, expected))} items, but there are {len(pairs)}; pass check_counts=False for a part."
        )
    if strict_official and not pairs:
        raise ScoringError("the official script divides by the number of items, and there is none.")
    if name != "rec":
        return ColonINSTScore(name, len(pairs), accuracy=_mean([prediction == gold for prediction, gold in pairs]))
    boxes = [(_numbers(prediction, strict_official), _numbers(gold, strict_official)) for prediction, gold in pairs]
    if strict_official and not all(gold for _, gold in boxes):
        raise ScoringError("the official script divides by the count of gold numbers, and a gold text has none.")
    overlaps = [box_iou(prediction, gold) for prediction, gold in boxes]
    hits = [overlap > HIT_ABOVE for overlap in overlaps]
    return ColonINSTScore(name, len(pairs), iou=_mean(overlaps), precision=_mean(hits), recall=_mean([hit / _BOX_NUMBERS for hit in hits]))


def parse_box(text: str) -> tuple[int, ...] | None:
    """The box `{<x1><y1><x2><y2>}` in a text, or None unless exactly four numbers stand in angle brackets."""
    numbers = _numbers(text.lower().replace(_END_OF_TEXT, ""), strict_official=False)
    return numbers if len(numbers) == _BOX_NUMBERS else None


def box_iou(box: Sequence[int], other: Sequence[int]) -> float:
    """Intersection over union of (x1, y1, x2, y2), corners inclusive (a side is x2 - x1 + 1 long); else 0."""
    if len(box) != _BOX_NUMBERS or len(other) != _BOX_NUMBERS:
        return 0.0
    width = min(box[2], other[2]) - max(box[0], other[0]) + 1
    height = min(box[3], other[3]) - max(box[1], other[1]) + 1
    # A box whose corners are swapped has no overlap with anything, so both areas below are positive.
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (_area(box) + _area(other) - width * height)


def _area(box: Sequence[int]) -> int:
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def _numbers(text: str, strict_official: bool) -> tuple[int, ...]:
    """The numbers in angle brackets; a fifth is enough to know that there are too many."""
    try:
        return tuple(int(match[1]) for match in islice(_NUMBER.finditer(text), _BOX_NUMBERS + 1))
    except ValueError:  # Python refuses to read more than 4,300 digits; a coordinate has four
        if strict_official:
            raise ScoringError("a number of thousands of digits, which the official script fails to read.") from None
        return ()


def _turn(item: Mapping[str, Any], speaker: str) -> str:
    turns = item.get("conversations")
    turns = turns if isinstance(turns, list | tuple) else ()
    values = [turn.get("value") for turn in turns if isinstance(turn, Mapping) and turn.get("from") == speaker]
    if not values or not isinstance(values[0], str):
        raise ScoringError(f"{item.get('id', 'a dialogue')} has no text from {speaker!r} in its conversations.")
    return values[0]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
