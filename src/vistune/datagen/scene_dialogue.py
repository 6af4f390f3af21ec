"""From single questions about a drawn scene to a conversation: which are asked, in which words, and what is asked next.

A question that follows another may lean on it: "it", "they", "the other one", "and on the right?". Nothing is asked that the turns before
have said.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

from vistune.datagen import asking, comparing, deducing
from vistune.datagen.asked import Asked, Asker
from vistune.datagen.english import NUMBER_WORDS, capital
from vistune.datagen.grammar import Form, Wording, hint_for, pick, say, word_question
from vistune.datagen.scene_facts import SceneFacts, Thing, sentence
from vistune.datagen.thought_wordings import THOUGHT_WORDINGS
from vistune.datagen.wordings import FOLLOW_UPS, WORDINGS

Turn = tuple[str, str]
"""A question and its answer."""

# What a conversation may turn to, some of it more often.
_TOPICS: tuple[Asker, ...] = (
    asking.what_at, asking.what_at, asking.what_at, asking.where, asking.where, asking.where, asking.where_choice, asking.is_at,
    asking.colour,
    asking.colour, asking.is_colour, asking.colour_choice, asking.exists, asking.exists, asking.exists, asking.exists_at, asking.how_many,
    asking.how_many, asking.how_many_of, asking.how_many_of, asking.how_many_together, asking.count_is, asking.more_than_other,
    asking.which_repeats, asking.is_only, asking.what_else, asking.list_all, asking.background, asking.is_background, asking.pattern,
    comparing.is_beyond, comparing.is_beyond, comparing.which_beyond, comparing.what_beyond, comparing.relation, comparing.which_most,
    comparing.how_many_at, comparing.what_corner, comparing.is_right, comparing.is_right, comparing.which_of_these, comparing.lettered,
    comparing.lettered, comparing.describe, comparing.describe, *deducing.THOUGHTS_FROM_SENTENCES,
)  # fmt: skip
# What can be asked of the thing just spoken of, called "it", and which of its aspects is then known.
_OF_IT: tuple[Asker, ...] = (
    asking.where, asking.where, asking.where_choice, asking.is_at, asking.colour, asking.colour, asking.is_colour, asking.colour_choice,
    asking.is_only, comparing.is_beyond, comparing.is_beyond, comparing.what_beyond, comparing.relation,
)  # fmt: skip
# What may be asked several times in one conversation, of other things.
_OFTEN = frozenset({"what_at", "and_place", "where", "colour", "exists", "how_many_of", "is_right"})
_THOUGHTS: tuple[Asker, ...] = (*deducing.THOUGHTS_FROM_SENTENCES, *deducing.THOUGHTS_FROM_BOXES, *deducing.THOUGHTS_FROM_BOXES)
_ALL_WORDINGS: dict[str, Wording] = WORDINGS | THOUGHT_WORDINGS | FOLLOW_UPS


def scene_dialogue(facts: SceneFacts, rng: random.Random) -> list[Turn]:
    """A conversation of two to seven turns."""
    wanted = 2 + int(rng.random() * 6)
    turns: list[Turn] = []
    told: set[tuple[int, str]] = set()
    used: set[str] = set()
    last: Asked | None = None
    for _ in range(4 * wanted):
        if len(turns) == wanted:
            break
        asked, bare = (_next(facts, rng, last, told), True) if last and rng.random() < 0.45 else (None, False)
        if asked is None:
            topic = _TOPICS[int(rng.random() * len(_TOPICS))]
            asked, bare = topic(facts, rng, None), False
        if asked is None or (asked.focus and asked.aspect not in ("", "relation") and _key(facts, asked.focus, asked.aspect) in told):
            continue
        if asked.wording in used and asked.wording not in _OFTEN:
            continue
        turn = words_of(asked, rng, bare=bare or asked.wording in FOLLOW_UPS)
        if any(turn[0] == question for question, _ in turns):
            continue
        turns.append(turn)
        used.add(asked.wording)
        told |= _told(facts, asked, " ".join(turn).lower())
        last = asked
    return turns


def scene_thought(facts: SceneFacts, rng: random.Random) -> Turn | None:
    """One question that needs a thought, mostly answered with its reasons."""
    for _ in range(30):
        asked = _THOUGHTS[int(rng.random() * len(_THOUGHTS))](facts, rng, None)
        if asked is not None:
            return words_of(asked, rng, form="explained" if asked.reasons and rng.random() < 0.6 else "")
    asked = asking.how_many(facts, rng, None)
    return words_of(asked, rng, form="explained") if asked else None


def _key(facts: SceneFacts, thing: Thing, aspect: str) -> tuple[int, str]:
    return facts.things.index(thing), aspect


def _told(facts: SceneFacts, asked: Asked, text: str) -> set[tuple[int, str]]:
    """What a turn has said, in its answer or by the way in which it called the thing."""
    told = set()
    for thing in facts.things:
        here = thing is asked.focus or thing.name.lower() in text
        if here and thing.where in text:
            told.add(_key(facts, thing, "place"))
        if here and thing.colour and thing.colour in text:
            told.add(_key(facts, thing, "colour"))
    if asked.focus:
        told.add(_key(facts, asked.focus, asked.aspect))
    return told


def _next(facts: SceneFacts, rng: random.Random, last: Asked, told: set[tuple[int, str]]) -> Asked | None:
    """A question that leans on the last one, if there is a fitting one that is not answered yet."""
    if last.group:
        return comparing.where_all(facts, rng, last.group, bare=True)
    if last.aspect == "absent":
        return comparing.what_instead(facts, rng)
    if last.aspect == "list":
        ask: Callable[[SceneFacts, random.Random], Asked | None] = pick_function(rng, (comparing.how_many_that, comparing.which_of_them))
        return ask(facts, rng)
    thing = last.focus
    if thing is None:
        return None
    if last.aspect in ("place", "colour") and facts.counts[thing.name] == 2 and rng.random() < 0.7:
        return comparing.other_one(facts, rng, thing, last.aspect)
    if last.wording in ("what_at", "and_place") and rng.random() < 0.3:
        return comparing.and_place(facts, rng, thing)
    if last.aspect == "name" and _key(facts, thing, "place") not in told and rng.random() < 0.4:
        return comparing.where_it(facts, rng, thing)
    if last.aspect == "name" and rng.random() < 0.15 and _key(facts, thing, "others") not in told:
        return comparing.anything_else(facts, rng, thing)
    return _OF_IT[int(rng.random() * len(_OF_IT))](facts, rng, thing)


def pick_function(rng: random.Random, functions: tuple) -> Callable[[SceneFacts, random.Random], Asked | None]:
    return functions[int(rng.random() * len(functions))]


# --- in words -----------------------------------------------------------------------------------------------------------------------------

_FORMS: dict[str, tuple[Form, ...]] = {
    "word": ("short", "sentence"),
    "phrase": ("short", "sentence"),
    "number": ("short", "digit", "sentence"),
    "yes_no": ("short", "sentence"),
    "truth": ("short",),
}
HINTED = 0.3
"""How often a question says in which form it wants its answer."""


def words_of(
    asked: Asked, rng: random.Random, *, bare: bool = False, form: str = "", wordings: Mapping[str, Wording] = MappingProxyType({})
) -> Turn:
    """A question in words, and its answer in the form that the question asks for, or that chance picks where it asks for none.

    Args:
        bare: without lead or frame, as the next question in a conversation is asked.
        form: `explained` for an answer with its reasons whether asked for or not.
        wordings: the caller's own, beside those of scenes.
    """
    hint = asked.hint
    answered: str = form
    if not hint and not form and asked.wants != "text" and not bare and rng.random() < HINTED:
        forms = _FORMS[asked.wants] + (("reason", "reason") if asked.reasons else ())
        answered = forms[int(rng.random() * len(forms))]
        hint = hint_for(rng, asked.wants, answered)
    elif form == "explained" and rng.random() < 0.4:
        hint = hint_for(rng, asked.wants, "reason")
    wording = wordings.get(asked.wording) or _ALL_WORDINGS[asked.wording]
    question = word_question(rng, wording, asked.slots, bare=bare)
    if asked.tail:
        question = f"{question}\n{asked.tail}"
        hint = hint and f"\n{capital(hint)}"
    elif hint:
        hint = f" {capital(say(rng, hint, {}))}"
    return f"{question}{hint}", _answer(asked, rng, answered)


def _answer(asked: Asked, rng: random.Random, form: str) -> str:
    if asked.tail:
        return asked.short
    if not form:
        form = "short" if asked.wants == "text" or rng.random() < 0.5 else "sentence"
    if form == "digit":
        return str(NUMBER_WORDS.index(asked.short))
    if form == "short":
        return sentence(asked.short)
    said = pick(rng, asked.sentences)
    explained = form in ("reason", "explained") and asked.reasons
    if asked.wants in ("yes_no", "truth"):
        because = pick(rng, asked.reasons) if explained else said
        mark = ", " if asked.wants == "yes_no" else ". "
        return sentence(f"{asked.short}{mark}{because if mark == ', ' else capital(because)}")
    return f"{sentence(said)} {sentence(pick(rng, asked.reasons))}" if explained else sentence(said)
