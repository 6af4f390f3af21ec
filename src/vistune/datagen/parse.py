"""A teacher's reply → turns of a conversation, or a named reason why not; and turns → a training example.

Tolerant of how language models dress what they were asked for (bold labels, numbering, "Q:", code fences, Windows newlines, a remark before
or after, a missing last separator) and strict about what is left: questions and answers by turns, none empty, none cut off, no markers of a
chat template. Whether the words are any good is for `filters.py`.

The grammar, for a dialogue (any number of pairs) and for a single question with its answer:

    Question:
    ===
    What is the dog doing?
    ===
    Answer:
    ===
    It is catching a frisbee.
    ===

A description is its text alone; the question that goes with it is drawn from `detailed.txt`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from vistune.datagen.refusals import refusal_in
from vistune.datagen.teacher import Kind, detailed_questions
from vistune.errors import DataError
from vistune.types import Conversation, FinishReason, ImageAnnotations, ImagePart, InstructionExample, Message, TextPart

Turns = tuple[tuple[str, str], ...]
"""(question, answer) pairs in order."""

RejectionReason = Literal["cut_off", "empty", "too_large", "refusal", "wrong_shape", "not_alternating", "role_marker"]

MAX_REPLY_CHARACTERS = 50_000
"""More than the longest reply that the length filter lets pass: what is longer is a runaway or an attack and is not looked into."""
MAX_REMARK_CHARACTERS = 500
"""A remark of the model's own ("Here is the conversation:") may be this long before the first label or after the last separator."""

# A second try can mend the form of a reply. It cannot lengthen the limit that cut one off, and a refusal asked again is a refusal.
_REPAIRABLE: frozenset[RejectionReason] = frozenset({"empty", "wrong_shape", "not_alternating", "role_marker"})

_SEPARATOR = re.compile(r"\s*={3,}\s*")
_RULE = re.compile(r"\s*(?:-{3,}|\*{3,}|_{3,})\s*")
_FENCE = re.compile(r"\s{0,20}(?:```|~~~)\s?\w{0,30}\s{0,20}")
_THINKING = re.compile(r"\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_LABEL = re.compile(
    r"""\s{0,8}(?:[-*>\#]{1,6}\s)?\s?(?:\d{1,3}\s?[.)]\s{0,4})?     # a list mark, a heading mark, a number
    (?P<bold>\*\*|__)?\s?
    (?P<word>question|answer|q|a)\s?\#?(?:\d{1,3}|\(\d{1,3}\))?\s?
    (?P<closed>\*\*|__)?\s?[:：](?P<closed_after>\*\*|__)?
    (?P<rest>.*)""",
    re.IGNORECASE | re.VERBOSE,
)
_DESCRIPTION_LABEL = re.compile(
    r"\s*(?:[#]{1,6}\s)?(?:\*\*|__)?(?:detailed |image )?(?:description|answer)\s?(?::\*\*|:__|\*\*:|__:|:)\s?", re.I
)
_OPENING_REMARK = re.compile(
    r"\s*(?:sure|certainly|okay|ok|of course|absolutely|here(?:'s| is| are)|below is)\b[^\n]{0,200}:\s*", re.IGNORECASE
)
ROLE_MARKER = re.compile(
    r"<\|[^|<>\n]{1,40}\|>"  # ChatML, Llama 3, Phi
    r"|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"  # Llama 2, Gemma
    r"|<(?:/?image|im_start|im_end|im_patch|image-placeholder|video)>"  # places of pictures, ours and LLaVA's
    r"|(?:^|\n)[ \t]{0,8}(?:#{1,4}[ \t]?|\*\*)?(?:human|user|assistant|system|gpt|instruction|response)(?:\*\*)?[ \t]?:"
    r"|\b(?:USER|ASSISTANT|HUMAN|SYSTEM):",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ParsedReply:
    turns: Turns


@dataclass(frozen=True)
class Rejection:
    """A reply that is not used. `reason` is a fixed code, fit for counting; `message` says what was found."""

    reason: RejectionReason
    message: str


def parse_reply(kind: Kind, text: str, *, seed: str, finish_reason: FinishReason = "stop") -> ParsedReply | Rejection:
    """Reads a reply of a teacher that was asked for `kind`.

    Args:
        seed: decides which question a description answers; the same seed always gives the same.
        finish_reason: how the reply ended; anything but `stop` means that words are missing.
    """
    if len(text) > MAX_REPLY_CHARACTERS:
        return Rejection("too_large", f"The reply has {len(text)} characters; at most {MAX_REPLY_CHARACTERS} are read.")
    if finish_reason != "stop":
        return Rejection("cut_off", f"The reply ended by {finish_reason!r} before the teacher was done; allow more tokens per reply.")
    lines = _undressed(text)
    if all(not line.strip() or _SEPARATOR.fullmatch(line) for line in lines):
        return Rejection("empty", "The reply has no words.")
    read = _description(kind, lines, seed) if kind.shape == "description" else _pairs(kind, lines)
    if isinstance(read, Rejection):
        # A refusal rarely keeps to a form. It is counted as what it is.
        refused = refusal_in("\n".join(lines)) if read.reason in ("wrong_shape", "not_alternating", "empty") else None
        return Rejection("refusal", f"The teacher refuses: {refused}.") if refused else read
    for question, answer in read:
        for part in (question, answer):
            if marker := ROLE_MARKER.search(part):
                return Rejection("role_marker", f"A marker of a chat template is in the text: {marker.group().strip()!r}.")
    return ParsedReply(read)


def is_repairable(rejection: Rejection) -> bool:
    """Whether asking the teacher once more for the right form may help."""
    return rejection.reason in _REPAIRABLE


def render_reply(kind: Kind, turns: Turns) -> str:
    """The reply that `parse_reply` reads back as these turns (of a description: as this answer).

    Raises:
        DataError: a turn that no reply of this grammar can hold, such as one with a separator line or a label inside.
    """
    if kind.shape == "description":
        text = "\n".join(answer for _, answer in turns)
    else:
        text = "\n".join(f"Question:\n===\n{question}\n===\nAnswer:\n===\n{answer}\n===" for question, answer in turns)
    read = parse_reply(kind, text, seed="")
    if isinstance(read, Rejection):
        raise DataError(f"These turns cannot be written as a {kind.name} reply: {read.message}")
    answers_only = kind.shape == "description"
    same = read.turns == turns if not answers_only else [answer for _, answer in read.turns] == [answer for _, answer in turns]
    if not same:
        raise DataError(
            f"These turns cannot be written as a {kind.name} reply: their text holds a part of its grammar or outer white space."
        )
    return text


def to_example(
    annotations: ImageAnnotations, kind: Kind, turns: Turns, image: Path, provenance: Mapping[str, Any], *, seed: str, example_id: str = ""
) -> InstructionExample:
    """The training example of a picture and its turns.

    Args:
        image: the picture's file as the dataset will refer to it.
        seed: decides whether the picture stands before or after the first question (as in LLaVA's data, so that a model learns both).
        example_id: by default the picture's name without its ending, and the kind.
    """
    messages: list[Message] = []
    before = random.Random(f"{seed}:image place").random() < 0.5
    for number, (question, answer) in enumerate(turns):
        if number:
            asked = (TextPart(question),)
        elif before:
            asked = (ImagePart(image), TextPart(f"\n{question}"))
        else:
            asked = (TextPart(f"{question}\n"), ImagePart(image))
        messages += [Message("user", asked), Message("assistant", (TextPart(answer),))]
    example_id = example_id or f"{PurePosixPath(annotations.image).with_suffix('')}-{kind.name}"
    return InstructionExample(example_id, Conversation(tuple(messages)), kind=kind.name, provenance=provenance)


def _undressed(text: str) -> list[str]:
    """The reply's lines without a model's thinking, a code fence round everything, and separators stuck to other words."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    thinking = _THINKING.match(text)
    lines: list[str] = []
    for line in text[thinking.end() if thinking else 0 :].split("\n"):
        lines += _cut_separators(line)
    filled = [number for number, line in enumerate(lines) if line.strip()]
    if len(filled) >= 2 and _FENCE.fullmatch(lines[filled[-1]]):
        opening = next((n for n in filled if _FENCE.fullmatch(lines[n]) or _LABEL.fullmatch(lines[n])), filled[-1])
        if opening != filled[-1] and _FENCE.fullmatch(lines[opening]):
            lines = [line for number, line in enumerate(lines) if number not in (opening, filled[-1])]
    return lines


def _cut_separators(line: str) -> Iterator[str]:
    """A line with a separator at its beginning or end, as lines of their own."""
    inner = line.strip()
    core = inner.strip("=")
    opens, closes = len(inner) - len(inner.lstrip("=")), len(inner) - len(inner.rstrip("="))
    if not core or (opens < 3 and closes < 3):
        yield line
        return
    if opens >= 3:
        yield "==="
    yield inner[opens if opens >= 3 else 0 : len(inner) - (closes if closes >= 3 else 0)]
    if closes >= 3:
        yield "==="


def _description(kind: Kind, lines: list[str], seed: str) -> Turns | Rejection:
    if any(_label(line, wordy_only=True) == "question" for line in lines):
        return Rejection("wrong_shape", "A description was asked for, but the reply holds questions.")
    filled = [number for number, line in enumerate(lines) if line.strip() and not _SEPARATOR.fullmatch(line)]
    lines = lines[filled[0] : filled[-1] + 1] if filled else []
    if any(_SEPARATOR.fullmatch(line) for line in lines):
        return Rejection("wrong_shape", "A description was asked for, but the reply is in parts between separators.")
    text = "\n".join(lines).strip()
    for dressing in (_OPENING_REMARK, _DESCRIPTION_LABEL):
        if match := dressing.match(text):
            text = text[match.end() :].strip()
    if not text:
        return Rejection("empty", "The description has no words.")
    if text[0] in "{[" and text[-1] in "}]":
        return Rejection("wrong_shape", "A description in plain words was asked for, but the reply is JSON.")
    return ((random.Random(f"{seed}:question").choice(detailed_questions()), text),)


@dataclass
class _Section:
    """A label and what stands under it; `closed` once a separator came after its words."""

    word: Literal["question", "answer"]
    lines: list[str]
    closed: bool = False

    @property
    def text(self) -> str:
        return "\n".join(self.lines).strip()


def _pairs(kind: Kind, lines: list[str]) -> Turns | Rejection:
    sections = _sections(lines)
    if isinstance(sections, Rejection):
        return sections
    for number, section in enumerate(sections):
        if section.word != ("answer" if number % 2 else "question"):
            return Rejection(
                "not_alternating", f"Part {number + 1} is a second {section.word} in a row; question and answer must take turns."
            )
        if not section.text:
            return Rejection("empty", f"The {section.word} in part {number + 1} has no words.")
    if len(sections) % 2:
        return Rejection("not_alternating", "The reply ends with a question that has no answer.")
    if kind.shape == "pair" and len(sections) != 2:
        return Rejection("wrong_shape", f"One question with its answer was asked for, but the reply holds {len(sections) // 2}.")
    return tuple((question.text, answer.text) for question, answer in zip(sections[::2], sections[1::2], strict=True))


def _sections(lines: list[str]) -> list[_Section] | Rejection:
    """The labelled parts of a reply, and nothing beside them but a short remark at either end."""
    sections: list[_Section] = []
    remarks = {"before": "", "after": ""}
    for number, line in enumerate(lines):
        label = _LABEL.fullmatch(line)
        if label:
            if remarks["after"]:
                return Rejection("wrong_shape", f"Text stands between the parts, under no label: {remarks['after'].strip()[:60]!r}.")
            sections.append(_Section("question" if label["word"][0] in "qQ" else "answer", [_beside_label(label)]))
        elif _SEPARATOR.fullmatch(line) or (_RULE.fullmatch(line) and _ends_a_part(lines, number)):
            if sections and any(map(str.strip, sections[-1].lines)):
                sections[-1].closed = True
        elif not sections:
            remarks["before"] += line + "\n"
        elif sections[-1].closed:
            remarks["after"] += line + "\n" if line.strip() else ""
        else:
            sections[-1].lines.append(line)
    if not sections:
        return Rejection("wrong_shape", "The reply has no line 'Question:' or 'Answer:'.")
    for place, remark in remarks.items():
        if len(remark.strip()) > MAX_REMARK_CHARACTERS:
            return Rejection("wrong_shape", f"The reply has {len(remark.strip())} characters {place} the conversation, under no label.")
    return sections


def _label(line: str, *, wordy_only: bool = False) -> str | None:
    match = _LABEL.fullmatch(line)
    if not match or (wordy_only and len(match["word"]) == 1):
        return None
    return "question" if match["word"][0] in "qQ" else "answer"


def _beside_label(label: re.Match[str]) -> str:
    """What stands on the label's own line. `**Question: What?**` is bold to its end, so its closing mark goes too."""
    rest = label["rest"].strip()
    if label["bold"] and not label["closed"] and not label["closed_after"]:
        rest = rest.removesuffix(label["bold"]).rstrip()
    return rest


def _ends_a_part(lines: list[str], number: int) -> bool:
    """Whether a rule (`---`) stands where a separator belongs: before a label or at the end of the reply."""
    following = next((line for line in lines[number + 1 :] if line.strip()), None)
    return following is None or _LABEL.fullmatch(following) is not None
