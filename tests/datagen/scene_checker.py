"""Reads questions and answers about a drawn scene and works every answer out again from the scene itself.

Shares no code with the teacher. `scene_reading.py` knows the objects, boxes and colors that were drawn and what words mean among them,
`scene_questions.py` and `scene_thoughts.py` what a question asks for, and `scene_answers.py` reads answers. This file takes off what stands
around a question and puts the three together. A question or a sentence that it does not understand is as wrong as one that is false.
"""

from __future__ import annotations

import re

from tests.datagen import scene_thoughts  # noqa: F401 (adds its questions and sentences to the tables)
from tests.datagen.scene_answers import HERE, Expected, Form, plain, read_answer, statement
from tests.datagen.scene_questions import QUESTIONS
from tests.datagen.scene_reading import (
    NUMBERS,
    PLACE,
    Context,
    Drawn,
    Unread,
    Wrong,
    all_matching,
    at,
    context_of,
    joined,
    known_name,
    place_in,
    the_one,
)

from vistune.scenes import Scene

# --- what surrounds a question ------------------------------------------------------------------------------------------------------------

HINTS: dict[Form, str] = {
    "word": r"(?:answer|reply) with (?:one|a single) word|one word is enough|use a single word|just (?:one|a single) word, please|"
    r"your answer should be (?:one|a single) word"
    r"|just the number, as a word|write the number as a word|only the number, in letters|spell the number out, nothing else",
    "yes_no": r"(?:answer|reply) (?:with )?yes or no|yes or no|just say yes or no|a yes or a no is enough|"
    r"your answer should be yes or no|please answer with yes or no only",
    "truth": r"(?:answer|reply) with true or false|answer in one word|just say true or false",
    "digit": r"(?:answer|reply) with a (?:digit|numeral)|(?:give|write) the number as a digit|use digits|just the digit, please|"
    r"only a numeral, please",
    "brief": r"(?:answer|reply) with a (?:word or two|short phrase|few words)|keep (?:it|the answer|your answer) short|(?:answer|"
    r"reply) briefly|a few words are enough"
    r"|be brief|use a word or a short phrase|give a short answer|no full sentence, please",
    "sentence": r"(?:answer|reply) in a (?:full|complete|whole) sentence|please use a (?:full|complete) sentence|put it in a (?:full|"
    r"complete) sentence"
    r"|(?:give|write) your answer as a (?:full|complete) sentence|one (?:full|complete) sentence, please",
    "reason": r"(?:explain|justify) your answer(?: briefly)?|say why(?:, please)?|give a (?:short )?reason|how can you tell|"
    r"explain how you know|tell me how you know"
    r"|answer and explain|add a short explanation",
    "letter": r"(?:answer|reply) with the letter(?: only| alone)?|give (?:only )?the letter of the right (?:answer|choice)|"
    r"which letter is right|just the letter, please"
    r"|choose the right letter|pick a letter",
}  # fmt: skip
HINT = re.compile("|".join(rf"(?P<{form}>(?:^|(?<=[.?!] ))(?:{words})[.?]$)" for form, words in HINTS.items()))
PICTURE = r"(?:the|this) (?:picture|image)"
LEAD = re.compile(
    rf"(?:(?:looking at|going by|judging by|from) {PICTURE}, |in (?:the|this) (?:picture|image|scene), |(?:have|"
    rf"take) a (?:good )?look at {PICTURE}: "
    rf"|please look at {PICTURE}: |(?:a question )?about {PICTURE}: |now, |so, |(?:quick|simple|short|next|one more|"
    rf"another) question: |tell me, "
    r"|(?:hi|hello), |let's see: |just to be sure: |(?:i am curious|i'm curious|i wonder): |help me (?:out|here): |(?:okay|all right), "
    r"|one thing i'd like to know: |please answer this: |here(?: is|'s) a question: |excuse me, |for my notes: |my eyes are tired: |"
    r"please tell me: )"
)
FRAME = re.compile(
    r"(?:(?:can|could|would) you (?:please )?tell me|please tell me|i (?:would like|want) to know|i'd (?:like|love) to know|i wonder|"
    r"do you know"
    r"|(?:please )?let me know|(?:can|could) you (?:see|make out|work out|find out)|please (?:say|find out|work out)|"
    r"i am trying to (?:find out|see)"
    r"|are you able to (?:tell|see)|kindly tell me|could you let me know|help me find out|it would help me to know|tell me"
    r"|(?:can|could) you (?:help me see|help me find out)|have a look and tell me|look closely and say|say|check|find out|decide) "
    r"(?=(?:what|which|where|how|whether|if|in|at|on|the number) )"
)


def checked(scene: Scene, turns: list[tuple[str, str]]) -> None:
    """Raises Wrong for the first turn of a conversation that is not true."""
    context = context_of(scene)
    for question, answer in turns:
        try:
            expected, form = read_question(question, context)
            read_answer(answer, expected, form, context)
        except Wrong as error:
            raise Wrong(f"{question!r} → {answer!r}: {error}\n  {scene.captions[0]}") from None
        context.focus = expected.focus
        context.group = list(expected.group)


def checked_description(scene: Scene, text: str) -> None:
    """Raises Wrong unless every sentence is true and every object is told of."""
    context = context_of(scene)
    for sentence in re.findall(r"[^.]+\.", text):
        statement(plain(sentence), context)
    for thing in context.things:
        if thing.name not in joined(text.lower()):
            raise Wrong(f"{thing.name} is left out of {text!r}")


def read_question(question: str, context: Context) -> tuple[Expected, Form]:
    body, *lines = joined(question.lower()).split("\n")
    form: Form = ""
    if lines and (match := HINT.fullmatch(lines[-1])):
        form = match.lastgroup  # type: ignore[assignment]
        return lettered(body, lines[:-1], context), form
    if match := HINT.search(body):
        form, body = match.lastgroup, body[: match.start()].strip()  # type: ignore[assignment]
    for text in readings(body):
        for pattern, derive in QUESTIONS:
            found = pattern.fullmatch(text)
            if found:
                try:
                    return derive(context, **{k: v for k, v in found.groupdict().items() if v is not None}), form
                except Unread:
                    continue
    raise Wrong(f"the question is not understood (read as {readings(body)})")


def readings(body: str) -> list[str]:
    """The question without what stands around it, in the ways in which that can be taken off."""
    text = body.rstrip(".?! ")
    found = [text]
    for prefix in (LEAD, FRAME):
        found += [one[match.end() :] for one in list(found) if (match := prefix.match(one))]
    found += [one.removeprefix("please ") for one in list(found) if one.startswith("please ")]
    found += [one[match.end() :] for one in list(found) if (match := FRAME.match(one))]
    return list(dict.fromkeys(reading for one in found for reading in (HERE.sub("", one).strip(), one)))


def lettered(body: str, lines: list[str], context: Context) -> Expected:
    """A question with lettered choices: the right one is found by asking the question of each choice."""
    options = dict(re.fullmatch(r"\(?([a-d])[.):] ?(.+)", line).groups() for line in lines)  # type: ignore[union-attr, misc]
    right = [letter for letter, option in options.items() if option_fits(body, option, context)]
    if len(right) != 1 or len(options) < 3:
        raise Wrong(f"{len(right)} of the choices fit")
    return Expected(word=right[0])


def option_fits(body: str, option: str, context: Context) -> bool:
    for text in readings(body):
        if match := re.fullmatch(
            rf"(?:what is|which (?:object|thing) is|what can be seen|which answer names the (?:object|thing)|"
            rf"what do you see) (?P<place>{PLACE})",
            text,
        ):
            thing = at(context, place_in(match["place"]))
            return thing in _matching_or_absent(option, context)
        if match := re.fullmatch(
            r"(?:where is|which answer tells where|where can|what is the right place of) (?P<x>.+?)(?: is| be (?:seen|found))?", text
        ):
            return the_one(match["x"], context).place == place_in(option)
        if re.search(r"number of (?:objects|things)|how many (?:objects|things)", text):
            return NUMBERS[option] == len(context.things)
        if re.fullmatch(
            r"which of these (?:is|can be seen|is shown)|what (?:is shown|can be seen)|"
            r"which of the following is part of the (?:picture|scene)|one of these is(?: in the picture)?\. which one",
            text,
        ):
            return bool(_matching_or_absent(option, context))
    raise Wrong("the question with choices is not understood")


def _matching_or_absent(option: str, context: Context) -> list[Drawn]:
    found = all_matching(option, context)
    if not found:
        known_name(option)
    return found
