"""MMMU: what a free reply says, as option letter or as open answer, and whether that is right.

Follows eval_utils.py of the MMMU authors. The functions here are pure; the questions are in `mmmu_data`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence

from vistune.errors import ScoringError
from vistune.eval.benchmarks.vqa import as_text

OFFICIAL_SEED = 42

_TRIMMED_IN_TURN = (",", ".", "!", "?", ";", ":", "'")
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset({":", ",", ".", "!", "?", ";", "'"})

_DIGITS = re.compile(r"\d+")
# Matched only where a run of digits begins (see _numbers), never searched: searching the published patterns takes time that grows with the
# square of a run's length.
_GROUPED = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d++(?:\.\d++)?[eE][+-]?\d++")
_SIMPLE = re.compile(r"-?(?:\d++\.\d++|\.\d++|\d++\b)(?![eE][+-]?\d)(?!,)")


def parse_mc(reply: str | None, choices: Sequence[str], options: Mapping[str, str], *, rng: random.Random | None = None) -> str:
    """The option letter that a reply chooses; where it chooses none, a random one, as the official script draws.

    Args:
        reply: the raw reply; None counts as empty.
        choices: the letters, in order.
        options: the text of each letter's option.
        rng: draws the guesses. The script has one generator seeded with 42 for a whole run: give one to do the same. Without it every guess
            is the first draw of such a generator, so that the same reply always has the same letter.

    Raises:
        ScoringError: for a guess without choices, and for what is not text.
    """
    found = find_choice(reply, choices, options)
    if found is not None:
        return found
    if not choices:
        raise ScoringError("An MMMU question without choices cannot be answered with one; is it an open question?")
    return (rng or random.Random(OFFICIAL_SEED)).choice(choices)


def find_choice(reply: str | None, choices: Sequence[str], options: Mapping[str, str]) -> str | None:
    """The option letter that a reply chooses, None where the official script would guess.

    Letters in brackets come first, then letters between blanks, then, in replies of more than five words, the options' texts. Of several
    the one whose last occurrence is latest, and of several there, such as "red" and "red car", the first in order. Case counts in letters.
    """
    text = as_text(reply)
    for mark in _TRIMMED_IN_TURN:
        text = text.strip(mark)
    text = f" {text} "
    for form in ("({})", " {} "):
        places = {letter: text.rfind(form.format(letter)) for letter in choices}
        found = _latest(places)
        if found is not None:
            return found
    if len(text.split()) <= 5:
        return None
    lowered = text.lower()
    return _latest({letter: lowered.rfind(as_text(option).lower()) for letter, option in options.items()})


def _latest(places: Mapping[str, int]) -> str | None:
    found = {letter: place for letter, place in places.items() if place >= 0}
    return max(found, key=found.__getitem__) if found else None


def parse_open(reply: str | None) -> list[str | float]:
    """Everything in a reply that may be the answer to an open question, normalised: tails of sentences, and the numbers in them.

    From each line the shortest tail after a word such as "is" or "therefore"; where no line has one, the whole reply. In the order of
    their appearance, where the official script has that of a set.
    """
    tails = _key_tails(as_text(reply).strip().strip(".").lower())
    candidates = [*tails, *(number for tail in tails for number in numbers_in(tail))]
    return list(dict.fromkeys(value for candidate in candidates for value in normalise(candidate)))


def _key_tails(text: str) -> list[str]:
    # The script also splits where a dot and a blank precede a capital, after lower-casing: there is none.
    lines = text.split("\n")
    tails = []
    for number, line in enumerate(lines, start=1):
        indicators = (*_INDICATORS, "=") if number == len(lines) else _INDICATORS
        shortest = ""
        for indicator in indicators:
            _, found, tail = line.rpartition(indicator)
            # An empty tail is replaced by any later one, longer as that is: the script tests for truth, not for None.
            if found and (not shortest or len(tail.strip()) < len(shortest)):
                shortest = tail.strip()
        if shortest and shortest not in _TRIVIAL:
            tails.append(shortest)
    return tails or [text]


def numbers_in(text: str) -> list[str]:
    """The numbers in a text as they are written, in three passes: with grouped thousands, in scientific notation, and plain ones.

    A plain integer ends where a word ends, and no plain number is followed by an exponent or a comma. So "2.5e3" is a number of the second
    pass, while the third finds its "2" and its "3"; and "1,000" is one of the first pass, of which the third finds "000".
    """
    grouped = _numbers(_GROUPED, text) if "," in text else ()
    scientific = _numbers(_SCIENTIFIC, text) if "e" in text or "E" in text else ()
    return [*grouped, *scientific, *_numbers(_SIMPLE, text)]


def _numbers(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    """What `pattern.findall(text)` finds, in time that grows with the text: a number begins at a run of digits or at a sign before it."""
    end = 0
    for run in _DIGITS.finditer(text):
        first = digits = run.start()
        if digits < end:
            continue
        while first > end and digits - first < 2 and text[first - 1] in "-.":
            first -= 1
        for start in range(first, digits + 1):
            if found := pattern.match(text, start):
                yield found.group()
                end = found.end()
                break


def normalise(text: str) -> list[str] | list[float]:
    """An answer as it is compared: a number rounded to two places, or text in lower case.

    A single character comes in two forms, with a blank before and behind, so that it is not found inside every word.
    """
    text = as_text(text).strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lowered = text.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]


def eval_open(gold: str | Sequence[str], predictions: Sequence[str | float]) -> bool:
    """Whether one of the answers is contained in a predicted text or is a predicted number.

    Args:
        gold: the answer, or the accepted answers, as in the data. An empty one is in every text.
        predictions: from `parse_open`.

    Raises:
        ScoringError: for a gold answer that is not text.
    """
    answers = [value for answer in ([gold] if isinstance(gold, str) else _texts(gold)) for value in normalise(answer)]
    texts = [answer for answer in answers if isinstance(answer, str)]
    return any(
        any(text in prediction for text in texts) if isinstance(prediction, str) else prediction in answers for prediction in predictions
    )


def _texts(gold: object) -> Sequence[str]:
    if not isinstance(gold, Sequence):
        raise ScoringError(f"The answer to an open MMMU question is a text or a list of texts; found {type(gold).__name__}.")
    return gold


def overall(subjects: Mapping[str, tuple[float, int]]) -> float:
    """The accuracy over all questions from each subject's accuracy and number of questions; 0 without any."""
    total = sum(count for _, count in subjects.values())
    return sum(accuracy * count for accuracy, count in subjects.values()) / total if total else 0.0
