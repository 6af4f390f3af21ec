"""MVBench's rules: how a question is written, which frames are looked at, and when a reply is right.

Follows the benchmark's own notebook (`qa_template`, `get_index`, `check_ans`), and for `match_lmms` the task of lmms-eval, which matches
differently. Pure: no video is opened here. The headline is the mean over all items of all tasks, not over tasks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vistune.errors import ScoringError, VideoError
from vistune.eval.benchmarks.vqa import remove_punctuation
from vistune.video import frame_numbers

_LETTER = re.compile(r"\b([A-E])\b", re.IGNORECASE)
_LETTERED_OPTION = re.compile(r"[A-E]\.", re.IGNORECASE)


def format(data: Mapping[str, Any]) -> tuple[str, str]:
    """The question with its options, and the answer as `(X) text`.

    The letter is that of the last candidate equal to the answer; where none is, it is `@`, the sign before A.

    Args:
        data: an item of the benchmark: `question`, `candidates` (list of texts) and `answer` (text).

    Raises:
        ScoringError: a key is missing.
    """
    try:
        question, candidates, answer = data["question"], data["candidates"], data["answer"]
    except KeyError as missing:
        raise ScoringError(f"an MVBench item has no {missing}; expected question, candidates and answer") from None
    right = max((number for number, candidate in enumerate(candidates) if candidate == answer), default=-1)
    options = "".join(f"({_letter(number)}) {candidate}\n" for number, candidate in enumerate(candidates))
    return f"Question: {question}\nOptions:\n{options}".rstrip(), f"({_letter(right)}) {answer}"


def _letter(number: int) -> str:
    return chr(ord("A") + number)


def frame_indices(n: int, bound: Sequence[float] | None, fps: float, max_frame: int, first: int = 0) -> list[int]:
    """The indices of the `n` frames at the middles of equal parts of a video.

    Args:
        n: how many frames.
        bound: start and end in seconds; None for the whole video.
        fps: frames per second of the video (3 for folders of frames).
        max_frame: index of the last frame.
        first: index of the first frame (1 for folders of frames).

    Raises:
        ScoringError: no frames are asked for, or a time is not finite. A bound outside the video is no error: the official code then
            gives indices outside it, and so does this.
    """
    try:
        return frame_numbers(n, bound, fps, max_frame, first)
    except VideoError as error:
        raise ScoringError(str(error)) from None


def completed(reply: str) -> str:
    """The reply as the official code reads it: its first line, behind the bracket that the prompt had already opened."""
    return "(" + reply.strip().split("\n")[0]


def match(pred: str, gold: str, *, strict_official: bool = False) -> bool:
    """Whether a reply names the right option, by inclusion of first words.

    Only what stands before the first blank counts. An empty first word is part of everything, so it is right.

    Args:
        pred: the reply as `completed` gives it.
        gold: the answer as `format` gives it.
        strict_official: raise where the official code fails, which is where the gold has no text after its letter; otherwise False there.

    Raises:
        ScoringError: see `strict_official`.
    """
    first_word = pred.lower().split(" ", 1)[0]
    option, _, content = gold.lower().partition(" ")
    if not content:
        if strict_official:
            raise ScoringError(f"the gold answer {gold!r} has no text after its letter")
        return False
    return first_word.replace(".", "") in option or option in first_word


def match_lmms(pred: str, letter: str) -> bool:
    """Whether a reply names the right letter, as lmms-eval reads it: by its first stand-alone letter from A to E.

    Args:
        pred: the reply as the model wrote it. An empty one is never right; lmms-eval leaves it out of the denominator.
        letter: the letter of the right option.
    """
    return _read_lmms(pred) == _read_lmms(letter)


def _read_lmms(text: str) -> str:
    text = text.strip()
    # "A. text": blank lines may follow the dot, but the text is one line. Said without a pattern, which would need squared time.
    before, _, last_line = text[2:].rpartition("\n")
    if _LETTERED_OPTION.match(text) and last_line and not before.strip():
        return text[0].upper()
    text = remove_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    for sign in "'\")(":
        text = text.strip(sign)
    text = text.strip().lower()
    found = _LETTER.search(text)
    return found[1].upper() if found else text
