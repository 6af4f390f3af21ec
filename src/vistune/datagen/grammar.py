"""Phrases with choices in them: how one question comes in hundreds of wordings.

A phrase is text in which `[a|b|]` is one of its alternatives (nested as one likes, an empty one is nothing) and `{name}` a slot. A question
is put together from

    lead        "Looking at the picture, "                          or none
    core        "[what|which] color {is} {the}"                     direct: "What color is the dog?"
                inside a frame: "can you tell me {clause}?"         indirect: "Can you tell me what color the dog is?"
                "name the color of {the}"                           as an order: "Please name the color of the dog."
    hint        "Answer with one word."                             the form that the answer must take, or none

All of it is drawn from a `random.Random`, so that a seed gives the same words on any machine.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vistune.datagen.english import capital

Form = Literal["short", "sentence", "reason", "digit", "any"]
"""What a hint asks for: a few words, a sentence, an answer with its reason, a digit, or whatever the teacher likes."""
Slots = Mapping[str, str]

_TOKEN = re.compile(r"\[|\]|\||\{\w+\}|[^\[\]|{}]+")
_Say = Callable[[Callable[[], float], Slots], str]


@functools.cache
def phrase(text: str) -> _Say:
    """A phrase ready to be said: a function of a source of random fractions and the slots."""
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text:
        raise ValueError(f"not a phrase: {text!r}")
    position = 0

    def sequence() -> _Say:
        nonlocal position
        parts: list[_Say] = []
        while position < len(tokens) and tokens[position] not in "|]":
            token = tokens[position]
            position += 1
            if token == "[":
                parts.append(choice())
            elif token[0] == "{":
                parts.append(_slot(token[1:-1]))
            else:
                parts.append(_literal(token))
        return parts[0] if len(parts) == 1 else _sequence(parts)

    def choice() -> _Say:
        nonlocal position
        alternatives = [sequence()]
        while position < len(tokens) and tokens[position] == "|":
            position += 1
            alternatives.append(sequence())
        if position >= len(tokens):
            raise ValueError(f"a choice without end in {text!r}")
        position += 1
        return _choice(alternatives)

    said = sequence()
    if position < len(tokens):
        raise ValueError(f"a choice without beginning in {text!r}")
    return said


def _literal(text: str) -> _Say:
    return lambda _, __: text


def _slot(name: str) -> _Say:
    return lambda _, slots: slots[name]


def _choice(alternatives: list[_Say]) -> _Say:
    count = len(alternatives)
    return lambda fraction, slots: alternatives[int(fraction() * count)](fraction, slots)


def _sequence(parts: list[_Say]) -> _Say:
    return lambda fraction, slots: "".join([part(fraction, slots) for part in parts])


def pick(rng: random.Random, items: Sequence[str]) -> str:
    """One of the items. Faster than `rng.choice`, and as repeatable."""
    return items[int(rng.random() * len(items))]


def say(rng: random.Random, text: str, slots: Slots) -> str:
    return phrase(text)(rng.random, slots)


@dataclass(frozen=True)
class Wording:
    """The ways to ask one thing. Cores have no capital and no closing mark; a clause of `indirect` follows "tell me"."""

    direct: tuple[str, ...]
    indirect: tuple[str, ...] = ()
    order: tuple[str, ...] = ()


# Said before a direct question. After one of the first group, the question itself does not say "in the picture" again.
_PICTURE_LEADS = (
    "[looking at|going by|judging by|from] [the|this] [picture|image], ",
    "in [the|this] [picture|image|scene], ",
    "[have|take] a [look|good look] at [the|this] [picture|image]: ",
    "please look at [the|this] [picture|image]: ",
    "about [the|this] [picture|image]: ",
    "a question about [the|this] [picture|image]: ",
)
_PLAIN_LEADS = (
    "now, ", "so, ", "[quick|simple|short|next|one more|another] question: ", "tell me, ", "[hi|hello], ", "let's see: ",
    "just to be sure: ",
    "[I am curious|I'm curious|I wonder]: ", "help me [out|here]: ", "[okay|all right], ", "one thing I'd like to know: ",
    "please answer this: ",
    "[here is|here's] a question: ", "excuse me, ", "for my notes: ", "my eyes are tired: ", "please tell me: ",
)  # fmt: skip
_FRAMES = (
    "[can|could|would] you [please |]tell me {clause}?", "please tell me {clause}.", "I [would like|want] to know {clause}.",
    "I'd [like|love] to know {clause}.", "I wonder {clause}.", "do you know {clause}?", "[please |]let me know {clause}.",
    "[can|could] you [see|make out|work out|find out] {clause}?", "please [say|find out|work out] {clause}.",
    "I am trying to [find out|see] {clause}.", "are you able to [tell|see] {clause}?", "kindly tell me {clause}.",
    "could you let me know {clause}?", "help me find out {clause}.", "it would help me to know {clause}.", "tell me {clause}.",
    "[can|could] you [help me see|help me find out] {clause}?", "have a look and tell me {clause}.", "look closely and say {clause}.",
)  # fmt: skip
_PLACES_OF_SIGHT = ("", "", " in [the|this] [picture|image]", " here", " in [the|this] [scene|picture]")

HINTS: Mapping[Form, Mapping[str, tuple[str, ...]]] = {
    "short": {
        "word": (
            "[answer|reply] with [one|a single] word.", "one word is enough.", "use a single word.", "just [one|a single] word, please.",
            "your answer should be [one|a single] word.",
        ),
        "phrase": (
            "[answer|reply] with a [word or two|short phrase|few words].", "keep [it|the answer|your answer] short.",
            "[answer|reply] briefly.",
            "a few words are enough.", "be brief.", "use a word or a short phrase.", "give a short answer.", "no full sentence, please.",
        ),
        "yes_no": (
            "[answer|reply] [with |]yes or no.", "yes or no?", "just say yes or no.", "a yes or a no is enough.",
            "your answer should be yes or no.", "please answer with yes or no only.",
        ),
        "number": (
            "[answer|reply] with one word.", "just the number, as a word.", "write the number as a word.", "only the number, in letters.",
            "spell the number out, nothing else.",
        ),
        "truth": ("[answer|reply] with true or false.", "answer in one word.", "just say true or false."),
    },
    "digit": {
        "number": (
            "[answer|reply] with a digit.", "[give|write] the number as a digit.", "use digits.", "just the digit, please.",
            "only a numeral, please.", "[answer|reply] with a numeral.",
        ),
    },
    "sentence": {
        "all": (
            "[answer|reply] in a [full|complete|whole] sentence.", "please use a [full|complete] sentence.",
            "put it in a [full|complete] sentence.",
            "[give|write] your answer as a [full|complete] sentence.", "one [full|complete] sentence, please.",
        ),
    },
    "reason": {
        "all": (
            "[explain|justify] your answer[ briefly|].", "say why[, please|].", "give a [short |]reason.", "how can you tell?",
            "explain how you know.", "tell me how you know.", "answer and explain.", "add a short explanation.",
        ),
    },
}  # fmt: skip


def word_question(rng: random.Random, wording: Wording, slots: Slots, *, hint: str = "", bare: bool = False) -> str:
    """One question in the words that the generator draws.

    Args:
        hint: a phrase that follows, or nothing.
        bare: the core alone, as a follow-up in a conversation is asked.
    """
    roll = rng.random()
    if bare or not (wording.indirect or wording.order) or roll < 0.5:
        lead, about_picture = ("", False) if bare else _lead(rng)
        here = "" if about_picture else say(rng, pick(rng, _PLACES_OF_SIGHT), {})
        core = say(rng, pick(rng, wording.direct), {**slots, "here": here})
        text = f"{lead}{core if lead else capital(core)}"
        text = text if text[-1] in ".?!" else f"{text}?"
    elif wording.order and (roll > 0.8 or not wording.indirect):
        core = say(rng, pick(rng, wording.order), {**slots, "here": say(rng, pick(rng, _PLACES_OF_SIGHT), {})})
        text = f"Please {core}." if rng.random() < 0.4 else f"{core}."
    else:
        clause = say(rng, pick(rng, wording.indirect), {**slots, "here": say(rng, pick(rng, _PLACES_OF_SIGHT), {})})
        text = say(rng, pick(rng, _FRAMES), {"clause": clause})
    text = capital(text)
    return f"{text} {capital(say(rng, hint, {}))}" if hint else text


def _lead(rng: random.Random) -> tuple[str, bool]:
    roll = rng.random()
    if roll < 0.5:
        return "", False
    return (say(rng, pick(rng, _PICTURE_LEADS), {}), True) if roll < 0.78 else (say(rng, pick(rng, _PLAIN_LEADS), {}), False)


def hint_for(rng: random.Random, wants: str, form: Form) -> str:
    """A phrase that asks for an answer of that form, to a question that wants a word, phrase, yes_no, number or truth."""
    table = HINTS[form]
    return pick(rng, table.get(wants) or table["all"])
