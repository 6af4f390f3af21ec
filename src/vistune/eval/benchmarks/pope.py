"""POPE (Li et al. 2023): does the model see objects that are not there? Yes-or-no questions, scored as `evaluate.py` of the benchmark does.

Pure functions. The mode `lmms` scores as lmms-eval does, which differs in every step: see `parse` and `score`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from vistune.errors import ScoringError, UnknownName

Mode = Literal["official", "lmms"]
MODES: tuple[Mode, ...] = ("official", "lmms")
_NEGATIONS = frozenset({"No", "not", "no"})


def parse(text: str, mode: Mode = "official") -> str:
    """`yes` or `no`; in `lmms` mode the trimmed lower-case reply, whatever it is.

    Officially only the first sentence counts, and everything in which no negation stands between single blanks is a yes, even nothing.

    Raises:
        ScoringError: `text` is not text.
        UnknownName: there is no such mode.
    """
    if mode not in MODES:
        raise UnknownName("POPE mode", mode, known=MODES)
    if not isinstance(text, str):
        raise ScoringError(f"a POPE reply must be text, not {type(text).__name__}.")
    if mode == "lmms":
        return text.lower().strip()
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "yes" if _NEGATIONS.isdisjoint(words) else "no"


@dataclass(frozen=True)
class PopeScore:
    """Fractions, with yes as the positive class; `n` counts the replies."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    n: int


def score(
    replies: Sequence[str],
    labels: Sequence[str],
    *,
    mode: Mode = "official",
    check_counts: bool = True,
    strict_official: bool = False,
) -> PopeScore:
    """Scores replies against labels, joined by order.

    Official: the label `no` is negative and every other one positive; the yes ratio is over all replies. lmms-eval: a reply that is neither
    `yes` nor `no` is in no cell of the table but in the denominator of the accuracy, and the yes ratio is that of the labels.

    Args:
        replies: raw replies, or parsed ones: parsing twice changes nothing.
        labels: the gold labels in the same order.
        check_counts: refuse unequal lengths; without it what is left over is passed over, as in the official script.
        strict_official: raise where the script divides by zero (officially precision, recall and F1 as well, lmms-eval only without
            any reply); else 0.

    Raises:
        ScoringError: unequal lengths, a reply that is not text, in `lmms` mode a label that is neither, or (strict) a zero denominator.
    """
    if check_counts and len(replies) != len(labels):
        raise ScoringError(
            f"there are {len(replies)} replies but {len(labels)} labels; POPE joins them by order, so they must be the same questions."
        )
    predicted = [parse(reply, mode) for reply in replies]
    gold = [_lmms_label(label) if mode == "lmms" else "no" if label == "no" else "yes" for label in labels]
    cell = Counter(zip(predicted, gold, strict=False))

    def ratio(part: float, whole: float, zero: str, *, safe: bool = mode == "lmms") -> float:
        if whole == 0 and strict_official and not safe:
            raise ScoringError(f"the official script divides by zero: {zero}.")
        return part / whole if whole else 0.0

    precision = ratio(cell["yes", "yes"], cell["yes", "yes"] + cell["yes", "no"], "no reply is yes")
    recall = ratio(cell["yes", "yes"], cell["yes", "yes"] + cell["no", "yes"], "no label is yes")
    counted = gold if mode == "lmms" else predicted
    return PopeScore(
        accuracy=ratio(cell["yes", "yes"] + cell["no", "no"], cell.total(), "there are no replies", safe=False),
        precision=precision,
        recall=recall,
        f1=ratio(2 * precision * recall, precision + recall, "no reply is rightly yes"),
        yes_ratio=ratio(counted.count("yes"), len(counted), "there are no replies"),
        true_positives=cell["yes", "yes"],
        false_positives=cell["yes", "no"],
        true_negatives=cell["no", "no"],
        false_negatives=cell["no", "yes"],
        n=len(predicted),
    )


def mean_f1(splits: Iterable[PopeScore]) -> float:
    """The headline that LLaVA reports: the mean F1 of the splits random, popular and adversarial; 0 without any."""
    values = [split.f1 for split in splits]
    return sum(values) / len(values) if values else 0.0


def _lmms_label(label: str) -> str:
    cleaned = parse(label, "lmms")
    if cleaned not in ("yes", "no"):
        raise ScoringError(f"a POPE label must be yes or no, not {label[:40]!r}.")
    return cleaned
