"""LLaVA-Bench's rules: reading a judge's two scores, and the relative score made of them.

Follows LLaVA's `eval_gpt_review.py` and `summarize_gpt_review.py`, for COCO and In-the-Wild alike. The first score is the reference's,
the second the candidate's. A review without two scores counts as (-1, -1) in the means, as officially; whoever prints the summary
should say how many there were.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vistune.errors import ScoringError

UNREADABLE = (-1.0, -1.0)


class RelativeScore(NamedTuple):
    """One line of the summary, as printed. `relative` is None where the reference's mean is zero."""

    relative: float | None
    reference: float
    candidate: float


def parse(review: str | None) -> list[float]:
    """The two scores on a review's first line, or [-1.0, -1.0].

    Commas count as blanks, and exactly one blank may stand between the numbers. Whatever `float` reads is a number, NaN included.
    """
    if not isinstance(review, str):
        return list(UNREADABLE)
    pieces = review.partition("\n")[0].replace(",", " ").split(" ", 2)
    if len(pieces) != 2:
        return list(UNREADABLE)
    try:
        return [float(pieces[0]), float(pieces[1])]
    except ValueError:
        return list(UNREADABLE)


def summary(rows: Sequence[Mapping[str, Any]], ignore: Collection[Any] = (), *, strict_official: bool = False) -> dict[str, RelativeScore]:
    """Relative score, reference mean x 10 and candidate mean x 10 of every category and of `all`, in the order of their names.

    The relative score is the ratio, in percent to one decimal, of two means that were rounded to three decimals; not a mean of ratios.

    Args:
        rows: reviews with `tuple` (or `score`, in old files), the pair from `parse`, and `category`; without the latter a row counts in
            `all` only.
        ignore: the `question_id`s to leave out.
        strict_official: raise where the official code divides by zero; otherwise `relative` is None there.

    Raises:
        ScoringError: a row has no pair of numbers; see also `strict_official`.
    """
    pairs: dict[str, list[Sequence[float]]] = defaultdict(list)
    for row in rows:
        if row.get("question_id") in ignore:
            continue
        pair = _pair(row)
        if "category" in row:
            pairs[row["category"]].append(pair)
        pairs["all"].append(pair)
    return {category: _line(category, pairs[category], strict_official) for category in sorted(pairs, key=str)}


def _pair(row: Mapping[str, Any]) -> Sequence[float]:
    found = row["tuple"] if "tuple" in row else row.get("score")
    if isinstance(found, Sequence) and len(found) == 2 and all(isinstance(value, int | float) for value in found):
        return found
    raise ScoringError(f"the review of question {row.get('question_id')!r} has {found!r} where a pair of scores belongs")


def _line(category: str, pairs: Sequence[Sequence[float]], strict_official: bool) -> RelativeScore:
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            reference, candidate = (round(value, 3) for value in np.asarray(pairs, dtype=float).mean(0).tolist())
    except OverflowError:
        raise ScoringError(f"a score in {category!r} is too large to be one") from None
    relative = None
    if reference:
        relative = round(candidate / reference * 100, 1)
    elif strict_official:
        raise ScoringError(f"the reference's mean in {category!r} is zero; there is no relative score")
    return RelativeScore(relative, round(reference * 10, 1), round(candidate * 10, 1))
