"""TextVQA: which question a stored prompt asked.

Predictions are joined to annotations by picture and question, and the question survives only inside the prompt; follows LLaVA's
eval_textvqa.py. The accuracy itself is `vqa.soft_m4c`.
"""

from __future__ import annotations

from vistune.errors import ScoringError
from vistune.eval.benchmarks.vqa import as_text

_ALL_TOKENS_FIRST = "OCR tokens: "
_QUESTION, _ANSWER = "Question: ", " Short answer:"
_REFERENCE = "Reference OCR token:"


def question_from_prompt(prompt: str | None, *, strict_official: bool = False) -> str:
    """The question in a prompt, lower-cased as the join wants it.

    Three layouts are known: OCR tokens before `Question: … Short answer:`; three lines of which one gives the reference tokens; and two
    lines, question and instruction.

    Raises:
        ScoringError: for a prompt in no known layout, with or without `strict_official`: any question guessed would be a wrong one.
    """
    prompt = as_text(prompt, strict_official=strict_official)
    lines = prompt.split("\n")
    if prompt.startswith(_ALL_TOKENS_FIRST):
        question, found, _ = prompt.partition(_QUESTION)[2].partition(_ANSWER)
        if found:
            return question.lower()
        raise _unknown_layout(prompt)
    if f"{_REFERENCE} " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith(_REFERENCE) else 0].lower()
    if len(lines) == 2:
        return lines[0].lower()
    raise _unknown_layout(prompt)


def _unknown_layout(prompt: str) -> ScoringError:
    return ScoringError(
        f"No TextVQA question can be read from the prompt {prompt[:80]!r} ({prompt.count(chr(10)) + 1} lines). Known are: OCR tokens, then "
        "the question between `Question:` and `Short answer:`; three lines, one with the reference OCR tokens; question and instruction."
    )
