"""ScanQA's own rules: exact match, the F-value and the class of a question. Its caption metrics are in `captions`.

Follows `scripts/score.py` of ScanQA. The scorer of LL3DA, which made the published LL3DA row, uses the same rules for exact match and
differs in the captions: it does not tokenise (`captions.score(items, tokenise=False)`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from vistune.errors import ScoringError

# In this order, and with capitals as written: the first that is found anywhere in the question decides.
_CLASSES = (
    ("Where", "Place"),
    ("How many", "Number"),
    ("What color", "Color"),
    ("What is the color", "Color"),
    ("What shape", "Object nature"),
    ("What type", "Object nature"),
    ("What kind", "Object nature"),
    ("What is", "Object"),
)


def question_class(question: str) -> str:
    """Place, Number, Color, Object nature, Object or Other."""
    return next((name for words, name in _CLASSES if words in question), "Other")


def em(prediction: str | Sequence[str], answers: Collection[str], *, top: int = 1, strict_official: bool = False) -> float:
    """1.0 if one of the first `top` predictions is among the answers, letter for letter; else 0.0.

    Args:
        prediction: the answer, or the answers ranked best first.
        answers: the accepted answers.
        top: how many of the ranked predictions count (1 and 10 are reported).
        strict_official: raise where the official code fails, which is for an empty prediction that is not among the answers.

    Raises:
        ScoringError: the answers are one text instead of several; see also `strict_official`.
    """
    if isinstance(answers, str):
        raise ScoringError(f"the answers are one text, {answers!r}; expected a list of texts")
    ranked = list(prediction) if isinstance(prediction, list | tuple) else [prediction]
    if any(candidate in answers for candidate in ranked[:top]):
        return 1.0
    if strict_official and not (ranked and ranked[0]):
        raise ScoringError("the prediction is empty, for which the official script has no F-value")
    return 0.0


def f_value(prediction: str, answers: Collection[str], lemmatise: Callable[[str], str] = str, *, strict_official: bool = False) -> float:
    """1.0 for an exact match, else the best F1 of words over the answers, from 0 to 1.

    Precision is the share of the prediction's words that the answer has anywhere, recall the share of the answer's words that the
    prediction has: membership, so repeated words count each time.

    Args:
        prediction: the first answer given.
        answers: the accepted answers.
        lemmatise: turns a word into its base form; the official script uses WordNet's nouns.
        strict_official: raise for an empty prediction that is not among the answers; otherwise that is 0.0.

    Raises:
        ScoringError: see `strict_official` and `em`.
    """
    if em(prediction, answers, strict_official=strict_official):
        return 1.0
    words = [lemmatise(word) for word in prediction.split()]
    return max((_f1(words, [lemmatise(word) for word in answer.split()]) for answer in answers), default=0.0)


def _f1(words: Sequence[str], reference: Sequence[str]) -> float:
    known, said = frozenset(reference), frozenset(words)
    if not known & said:
        return 0.0
    precision = sum(word in known for word in words) / len(words)
    recall = sum(word in said for word in reference) / len(reference)
    return 2 * precision * recall / (precision + recall)
