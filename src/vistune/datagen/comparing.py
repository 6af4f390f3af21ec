"""Questions about a drawn scene that look at several of its things: positions, statements, choices, and what follows from an answer.

The second half of `asking.py`, under the same rules: only what the scene's sentences say.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from vistune.datagen.absent import absent_thing
from vistune.datagen.asked import (
    BEYOND,
    MORE,
    MOST,
    OPPOSITE,
    Asked,
    Ref,
    here,
    list_be,
    listed,
    one_of,
    other_colour,
    other_place,
    place_words,
    rank,
    ref_to,
    there,
)
from vistune.datagen.english import either, number_word, plural_of
from vistune.datagen.grammar import pick, say
from vistune.datagen.scene_facts import SceneFacts, Thing, count_noun
from vistune.scenes import PLACES
from vistune.scenes.draw import join_words

DIRECTIONS = ("left", "right", "above", "below")
_REGIONS = {
    "in the left third of the picture": ("left", 0), "in the right third of the picture": ("left", 2),
    "in the top third of the picture": ("above", 0), "in the bottom third of the picture": ("above", 2),
}  # fmt: skip


def beyond(thing: Thing, other: Thing, direction: str) -> bool:
    """Whether a thing stands farther in a direction than another."""
    return rank(thing, direction) > rank(other, direction)


def _two(facts: SceneFacts, rng: random.Random, it: Thing | None) -> tuple[Thing, Ref, Thing, Ref] | None:
    """Two things and how they are called, neither by its place, which would give the answer away."""
    if len(facts.unique) < 2 and not (it and facts.unique):
        return None
    one = it or one_of(rng, facts.unique)
    other = one_of(rng, [thing for thing in facts.unique if thing is not one])
    if one is None or other is None:
        return None
    ref = Ref.it(one) if it else ref_to(facts, rng, one, hide="place")
    other_ref = ref_to(facts, rng, other, hide="place")
    return (one, ref, other, other_ref) if ref and other_ref else None


def _slots(ref: Ref, other: Ref) -> dict[str, str]:
    return {"one": ref.the, "one_them": ref.them, "other": other.them, "other_them": other.them}


def is_beyond(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    pair = _two(facts, rng, it)
    if pair is None or pair[0].is_plural:
        return None
    one, ref, other, other_ref = pair
    directions = [direction for direction in DIRECTIONS if beyond(one, other, direction)]
    if not directions:
        return None
    true = pick(rng, directions)
    yes = rng.random() < 0.5
    asked = true if yes else OPPOSITE[true]
    slots = {**_slots(ref, other_ref), "beyond": say(rng, pick(rng, BEYOND[asked]), {}), "more": say(rng, pick(rng, MORE[asked]), {})}
    fact = f"{ref.the} is {say(rng, BEYOND[true][0], {})} {other_ref.them}"
    places = f"{one.the} is {one.where} and {other.the} {other.be} {other.where}"
    return Asked("is_beyond", slots, "yes_no", "yes" if yes else "no", (fact,), (places, fact), focus=one, aspect="relation")


def which_beyond(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    pair = _two(facts, rng, None)
    if it is not None or pair is None or pair[0].is_plural or pair[2].is_plural:
        return None
    one, ref, other, other_ref = pair
    directions = [direction for direction in DIRECTIONS if beyond(one, other, direction) or beyond(other, one, direction)]
    if not directions:
        return None
    direction = pick(rng, directions)
    winner = one if beyond(one, other, direction) else other
    more = say(rng, pick(rng, MORE[direction]), {})
    reason = f"{one.the} is {one.where} and {other.the} is {other.where}"
    slots = {**_slots(ref, other_ref), "more": more}
    return Asked("which_beyond", slots, "phrase", winner.the, (f"{winner.the} is {more}",), (reason,), focus=winner, aspect="relation")


def what_beyond(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    """What stands farther in a direction than a thing, or how many do."""
    other = it if it in facts.unique else one_of(rng, facts.unique) if it is None else None
    ref = Ref.it(other) if it and other else ref_to(facts, rng, other, hide="place") if other else None
    if other is None or ref is None or len(facts.things) < 2:
        return None
    direction = pick(rng, DIRECTIONS)
    found = [thing for thing in facts.things if beyond(thing, other, direction)]
    words = say(rng, pick(rng, BEYOND[direction]), {})
    slots = {"beyond": words, "other": ref.them}
    if rng.random() < 0.4:
        number = number_word(len(found))
        be, noun = ("is" if len(found) == 1 else "are"), count_noun("object", len(found))
        sentences = (f"there {be} {number if found else 'no'} {noun} {words} {ref.them}",)
        reasons = (f"there {list_be(found)} {listed(found)} {words} {ref.them}",) if found else ()
        return Asked("how_many_beyond", slots, "number", number, sentences, reasons, focus=other, aspect="relation")
    if not found:
        return Asked("what_beyond", slots, "phrase", "nothing", (f"there is nothing {words} {ref.them}",), focus=other, aspect="relation")
    sentences = (f"there {list_be(found)} {listed(found)} {words} {ref.them}",)
    return Asked("what_beyond", slots, "phrase", listed(found), sentences, focus=other, aspect="relation")


def relation_words(one: Thing, other: Thing) -> str:
    """ "above and to the left of"; in one row or column, one direction alone."""
    up = "above" if beyond(one, other, "above") else "below" if beyond(one, other, "below") else ""
    side = "to the left of" if beyond(one, other, "left") else "to the right of" if beyond(one, other, "right") else ""
    return " and ".join(filter(None, (up, side)))


def relation(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    pair = _two(facts, rng, it)
    if pair is None or pair[0].is_plural:
        return None
    one, ref, other, other_ref = pair
    words = relation_words(one, other)
    short = f"{words} {other_ref.them}"
    return Asked("relation", _slots(ref, other_ref), "phrase", short, (f"{ref.the} is {short}",), focus=one, aspect="relation")


def which_most(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    if it is not None or len(facts.things) < 2:
        return None
    found = most(facts, pick(rng, DIRECTIONS))
    if found is None:
        return None
    thing, direction = found
    slots = {"most": say(rng, pick(rng, MOST[direction]), {})}
    return Asked(
        "which_most", slots, "phrase", thing.a, (f"it is {thing.a}",), (f"{thing.the} {thing.be} {thing.where}",), thing, "relation"
    )


def most(facts: SceneFacts, direction: str) -> tuple[Thing, str] | None:
    """The one thing that stands farthest in a direction, if it is one that can be said to be."""
    best = max(rank(thing, direction) for thing in facts.things)
    found = [thing for thing in facts.things if rank(thing, direction) == best]
    return (found[0], direction) if len(found) == 1 and found[0] in facts.unique and not found[0].is_plural else None


def how_many_at(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    if it is not None or len(facts.things) < 2:
        return None
    region = pick(rng, tuple(_REGIONS))
    line, wanted = _REGIONS[region]
    found = [thing for thing in facts.things if (thing.column if line == "left" else thing.row) == wanted]
    number = number_word(len(found))
    be = "is" if len(found) == 1 else "are"
    sentences = (f"there {be} {number if found else 'no'} {count_noun('object', len(found))} {region}",)
    reasons = (f"there {list_be(found)} {listed(found)} {region}",) if found else ()
    return Asked("how_many_at", {"region": region}, "number", number, sentences, reasons)


def what_corner(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    found = [thing for thing in facts.things if " " in thing.place]
    if it is not None or len(facts.things) < 2:
        return None
    if not found:
        return Asked("what_corner", {}, "phrase", "nothing", ("there is nothing in the corners",))
    sentences = (join_words([f"{there(thing)} {thing.a} {thing.where}" for thing in found]),)
    return Asked("what_corner", {}, "phrase", listed(found), sentences)


# --- statements and choices ---------------------------------------------------------------------------------------------------------------


def _statement(facts: SceneFacts, rng: random.Random, true: bool) -> tuple[str, str] | None:
    """A statement that is true or false, as wanted, and the fact that decides it."""
    roll = rng.random()
    if roll < 0.25:
        number = len(facts.things)
        fact = f"there {'is' if number == 1 else 'are'} {number_word(number)} {count_noun('object', number)} in the picture"
        other = number if true else number + 1 if number == 1 or rng.random() < 0.5 else number - 1
        return f"there {'is' if other == 1 else 'are'} {number_word(other)} {count_noun('object', other)} in the picture", fact
    if roll < 0.35:
        shown = facts.colour if true else other_colour(rng, facts.colour)
        return f"the background is {shown}", f"the background is {facts.colour}"
    if roll < 0.55:
        return _existence(facts, rng, true)
    if roll < 0.8:
        thing = facts.things[int(rng.random() * len(facts.things))]
        by_colour = bool(thing.colour) and rng.random() < 0.5
        ref = ref_to(facts, rng, thing, hide="colour" if by_colour else "place")
        if ref is None:
            return None
        if by_colour:
            shown = thing.colour if true else other_colour(rng, thing.colour)
            return f"{ref.the} {ref.be} {shown}", f"{ref.the} {ref.be} {thing.colour}"
        place = thing.place if true else other_place(rng, thing.place)
        return f"{ref.the} {ref.be} {PLACES[place]}", f"{ref.the} {ref.be} {thing.where}"
    asked = is_beyond(facts, rng, None)
    if asked is None or (asked.short == "yes") != true:
        return None
    return f"{asked.slots['one']} is {asked.slots['beyond']} {asked.slots['other']}", asked.sentences[0]


def _existence(facts: SceneFacts, rng: random.Random, true: bool) -> tuple[str, str] | None:
    seen = f"the picture shows {listed(facts.things)}"
    if true:
        thing = one_of(rng, facts.unique)
        return (f"there {thing.be} {thing.a} in the picture", seen) if thing and thing.is_countable else None
    absent = absent_thing(rng, facts.names)
    return (f"there is {absent.phrase()} in the picture", seen) if absent and absent.article in ("a", "an") else None


def is_right(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    """Whether a statement is true: asked for as true or false, or as yes or no."""
    true = rng.random() < 0.5
    statement = _statement(facts, rng, true) if it is None else None
    if statement is None:
        return None
    said, fact = statement
    slots = {"statement": said}
    if rng.random() < 0.4:
        return Asked("true_false", slots, "truth", "true" if true else "false", (fact,), (fact,))
    return Asked("is_right", slots, "yes_no", "yes" if true else "no", (fact,), (fact,))


def which_of_these(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    thing = one_of(rng, [thing for thing in facts.things if thing.is_countable])
    absent = _absent_words(facts, rng, 2)
    if it is not None or thing is None or len(absent) < 2:
        return None
    options = [thing.a, *absent]
    rng.shuffle(options)
    sentences = (f"there is {thing.a}{here(rng)}",) if facts.counts[thing.name] == 1 else (f"I see {thing.a}",)
    focus = thing if facts.counts[thing.name] == 1 else None
    return Asked("which_of_these", {"options": either(options)}, "phrase", thing.a, sentences, focus=focus, aspect="name")


def _absent_words(facts: SceneFacts, rng: random.Random, number: int) -> list[str]:
    """Names of countable things that are not there, each another."""
    found: dict[str, None] = {}
    for _ in range(3 * number):
        absent = absent_thing(rng, facts.names)
        if absent is not None and absent.article in ("a", "an"):
            found[absent.phrase()] = None
    return list(found)[:number]


_LETTER_STYLES = ("{letter}. {option}", "({letter}) {option}", "{letter}) {option}")
_LETTER_HINTS = (
    "[answer|reply] with the letter[ only| alone|].", "give [only |]the letter of the right [answer|choice].", "which letter is right?",
    "just the letter, please.", "choose the right letter.", "pick a letter.",
)  # fmt: skip


def lettered(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    """A question with lettered choices, of which one is right; the answer is its letter."""
    if it is not None:
        return None
    thing = facts.things[int(rng.random() * len(facts.things))]
    roll = rng.random()
    slots: dict[str, str] = {}
    if roll < 0.3:
        wording, right, wrong = "letter_what", thing.a, _absent_words(facts, rng, 3)
        wrong = [*dict.fromkeys(other.a for other in facts.things if other.name != thing.name), *wrong]
        slots = {"place": place_words(rng, thing.place)}
        rng.shuffle(wrong)
    elif roll < 0.55:
        ref = ref_to(facts, rng, thing, hide="place")
        if ref is None or thing.is_plural:
            return None
        wording, right, slots = "letter_where", thing.where, dict(ref.slots)
        wrong = [words for words in PLACES.values() if words != right]
        rng.shuffle(wrong)
    elif roll < 0.8:
        wording, right, wrong = "letter_which", thing.a, _absent_words(facts, rng, 3)
    else:
        number = len(facts.things)
        wording, right, slots = "letter_how_many", number_word(number), {"objects": pick(rng, ("objects", "things"))}
        wrong = [number_word(other) for other in (number - 1, number + 1, number + 2) if other > 0]
    options = [right, *wrong[: 2 + int(rng.random() * 2)]]
    if len(options) < 3:
        return None
    rng.shuffle(options)
    letters = "ABCD"
    style = pick(rng, _LETTER_STYLES)
    tail = "\n".join(style.format(letter=letters[number], option=option) for number, option in enumerate(options))
    letter = letters[options.index(right)]
    return Asked(wording, slots, "phrase", letter, (letter,), hint=say(rng, pick(rng, _LETTER_HINTS), {}), tail=tail)


def describe(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    if it is not None:
        return None
    things = list(facts.things)
    parts = [f"{thing.a_painted} {thing.where}" for thing in things]
    turned = [f"{thing.where} {there(thing)} {thing.a_painted}" for thing in things]
    comma = "," if len(parts) > 1 else ""
    sentences = (
        f"{join_words(parts)}{comma} on {facts.background}",
        f"the picture shows {join_words(parts)}{comma} on {facts.background}",
        f"on {facts.background}, {join_words(turned)}",
        f"there {things[0].be} {join_words(parts)}. The background is {facts.ground}",
    )
    return Asked("describe", {}, "text", pick(rng, sentences), sentences, aspect="list")


# --- what follows an answer ---------------------------------------------------------------------------------------------------------------


def where_all(facts: SceneFacts, rng: random.Random, group: str, *, bare: bool) -> Asked:
    """Where several things of one name are; "they" in a conversation that has just counted them."""
    things = facts.group(group)
    spots = [thing.where for thing in things]
    two = f"one is {spots[0]} and the other is {spots[1]}" if len(things) == 2 else join_words([f"one is {spot}" for spot in spots])
    slots = {"n": number_word(len(things)), "plural": plural_of(group)}
    short = join_words(spots)
    return Asked("where_are_they" if bare else "where_all", slots, "phrase", short, (two, f"they are {short}"), aspect="place")


def other_one(facts: SceneFacts, rng: random.Random, told: Thing, aspect: str) -> Asked | None:
    """About the second of two things of one name, after something was said about the first."""
    others = [thing for thing in facts.group(told.name) if thing is not told]
    if len(others) != 1:
        return None
    other, slots = others[0], {"name": told.name}
    if aspect == "colour" and other.colour:
        sentences = (f"the other one is {other.colour}",)
        return Asked("other_one_colour", slots, "word", other.colour, sentences, focus=other, aspect="colour")
    sentences = (f"the other one is {other.where}", f"the other {told.name} is {other.where}")
    return Asked("other_one_where", slots, "phrase", other.where, sentences, focus=other, aspect="place")


def what_instead(facts: SceneFacts, rng: random.Random) -> Asked:
    words = listed(facts.things)
    sentences = (f"there {list_be(facts.things)} {words}", f"you can see {words}")
    return Asked("what_instead", {}, "phrase", words, sentences, aspect="list")


def how_many_that(facts: SceneFacts, rng: random.Random) -> Asked:
    number = len(facts.things)
    said = number_word(number)
    noun = count_noun("object", number)
    return Asked(
        "how_many_that", {}, "number", said, (f"that is {said} {noun} in all", f"there {'is' if number == 1 else 'are'} {said} {noun}")
    )


def which_of_them(facts: SceneFacts, rng: random.Random) -> Asked | None:
    found = most(facts, pick(rng, DIRECTIONS)) if len(facts.things) > 1 else None
    if found is None:
        return None
    thing, direction = found
    words = say(rng, pick(rng, MOST[direction]), {})
    return Asked("which_of_them", {"most": words}, "phrase", thing.the, (f"it is {thing.the}",), focus=thing, aspect="relation")


def and_place(facts: SceneFacts, rng: random.Random, told: Thing) -> Asked | None:
    """What is in another place, after one was asked for."""
    other: Sequence[Thing] = [thing for thing in facts.things if thing is not told]
    thing = one_of(rng, other)
    if thing is None:
        return None
    sentences = (f"{there(thing)} {thing.a} {thing.where}",)
    return Asked("and_place", {"place": PLACES[thing.place]}, "phrase", thing.a, sentences, focus=thing, aspect="name")


def where_it(facts: SceneFacts, rng: random.Random, told: Thing) -> Asked:
    ref = Ref.it(told)
    return Asked("where_it", ref.slots, "phrase", told.where, (f"{ref.the} {ref.be} {told.where}",), focus=told, aspect="place")


def anything_else(facts: SceneFacts, rng: random.Random, told: Thing) -> Asked:
    others = [thing for thing in facts.things if thing is not told]
    if not others:
        return Asked("anything_else", {}, "text", "nothing else", (f"there is nothing else{here(rng)}",), aspect="others")
    words = listed(others)
    sentences = (f"there {list_be(others)} also {words}", f"you can also see {words}")
    return Asked("anything_else", {}, "text", words, sentences, focus=told, aspect="others")
