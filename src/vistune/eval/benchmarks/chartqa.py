"""ChartQA: relaxed accuracy, as lmms-eval and the Pix2Struct authors compute it.

A number may be off by a twentieth; everything else must be the same text but for case.
"""

from __future__ import annotations

from typing import Literal

from vistune.eval.benchmarks.vqa import as_text

TOLERANCE = 0.05


def relaxed(pred: str | None, target: str, *, strict_official: bool = False) -> bool:
    """Whether an answer is right: within 5 % of a target that is a number other than zero, else the same text but for case, untrimmed.

    Numbers are what Python's float() reads, so that "1e3", " 4 " and "1_000" are some and "1,000" is none; "5 %" is read as 0.05. A target
    that is infinite or not a number matches no number, not even itself. None is an empty reply.

    Raises:
        ScoringError: for what is not text; with `strict_official` for None, too.
    """
    reply = as_text(pred, strict_official=strict_official)
    target = as_text(target, strict_official=True)
    number, wanted = as_number(reply), as_number(target)
    if number is not None and wanted:
        return abs(number - wanted) / abs(wanted) <= TOLERANCE
    return reply.lower() == target.lower()


def as_number(text: str) -> float | None:
    """The number that a text is, None if it is none. All the percent signs at its end together mean one division by a hundred."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def split_of(question_type: str) -> Literal["human", "augmented"]:
    """Which half of the test set a question's `type` belongs to."""
    return "human" if question_type == "human_test" else "augmented"
