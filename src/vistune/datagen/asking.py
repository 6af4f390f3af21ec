"""What can be asked about a drawn scene when only its sentences are known, with answers that follow from them.

Each function asks one thing: it finds an occasion in the scene, or returns None where there is none, and states the question as a key of
`WORDINGS` with slots, and the answer in every form that may be called for. Things stand in a grid of three by three places, so "farther
left" compares columns and "higher" compares rows, and no question turns on less.

Colors are asked only of things that were painted: what an apple looks like that nobody painted, a sentence does not say.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from vistune.datagen.absent import absent_thing
from vistune.datagen.asked import Asked, Ref, here, list_be, listed, one_of, other_colour, other_place, place_words, ref_to, there
from vistune.datagen.english import number_word, plural_of, with_article
from vistune.datagen.grammar import pick
from vistune.datagen.scene_facts import SceneFacts, Thing, count_noun
from vistune.scenes import PLACES
from vistune.scenes.draw import join_words

# --- one thing ----------------------------------------------------------------------------------------------------------------------------


def what_at(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    if it is not None:
        return None
    thing = facts.things[int(rng.random() * len(facts.things))]
    where = thing.where
    if len(facts.things) == 1 and rng.random() < 0.5:
        sentences = (f"the picture shows {thing.a}", f"{there(thing)} {thing.a}{here(rng)}")
        return Asked("what_alone", {}, "phrase", thing.a, sentences, focus=thing, aspect="name")
    sentences = (
        f"{there(thing)} {thing.a} {where}",
        f"{where} {there(thing)} {thing.a}",
        f"the object {where} is {thing.a}",
        f"it is {thing.a}",
    )
    if thing.is_plural:
        sentences = sentences[:2]
    short = thing.a_painted if thing.colour and rng.random() < 0.3 else thing.a
    return Asked("what_at", {"place": place_words(rng, thing.place)}, "phrase", short, sentences, focus=thing, aspect="name")


def _subject(facts: SceneFacts, rng: random.Random, it: Thing | None, things: Sequence[Thing], hide: str) -> tuple[Thing, Ref] | None:
    """What the question is about and how it is called: "it", or one of the things that fit."""
    if it is not None:
        return (it, Ref.it(it)) if it in things else None
    thing = one_of(rng, things)
    ref = ref_to(facts, rng, thing, hide=hide) if thing else None
    return (thing, ref) if thing and ref else None


def where(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    subject = _subject(facts, rng, it, facts.things, "place")
    if subject is None:
        return None
    thing, ref = subject
    words = thing.where
    sentences = (f"{ref.the} {ref.be} {words}", f"{ref.the} {ref.be} {words} of the picture", f"you can find {ref.them} {words}")
    return Asked("where", ref.slots, "phrase", words, sentences, focus=thing, aspect="place")


def where_choice(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    subject = _subject(facts, rng, it, facts.things, "place")
    if subject is None:
        return None
    thing, ref = subject
    places = [thing.place, other_place(rng, thing.place)]
    rng.shuffle(places)
    slots = {**ref.slots, "place_1": PLACES[places[0]], "place_2": PLACES[places[1]]}
    return Asked("where_choice", slots, "phrase", thing.where, (f"{ref.the} {ref.be} {thing.where}",), focus=thing, aspect="place")


def is_at(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    subject = _subject(facts, rng, it, facts.things, "place")
    if subject is None:
        return None
    thing, ref = subject
    yes = rng.random() < 0.5
    place = thing.place if yes else other_place(rng, thing.place)
    fact = f"{ref.the} {ref.be} {thing.where}"
    slots = {**ref.slots, "place": place_words(rng, place)}
    return Asked("is_at", slots, "yes_no", "yes" if yes else "no", (fact,), (fact,), focus=thing, aspect="place")


def colour(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    subject = _subject(facts, rng, it, [thing for thing in facts.things if thing.colour], "colour")
    if subject is None:
        return None
    thing, ref = subject
    sentences = (f"{ref.the} {ref.be} {thing.colour}", f"the color of {ref.them} is {thing.colour}")
    return Asked("colour", ref.slots, "word", thing.colour, sentences, focus=thing, aspect="colour")


def is_colour(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    subject = _subject(facts, rng, it, [thing for thing in facts.things if thing.colour], "colour")
    if subject is None:
        return None
    thing, ref = subject
    yes = rng.random() < 0.5
    slots = {**ref.slots, "colour": thing.colour if yes else other_colour(rng, thing.colour)}
    fact = f"{ref.the} {ref.be} {thing.colour}"
    return Asked("is_colour", slots, "yes_no", "yes" if yes else "no", (fact,), (fact,), focus=thing, aspect="colour")


def colour_choice(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    subject = _subject(facts, rng, it, [thing for thing in facts.things if thing.colour], "colour")
    if subject is None:
        return None
    thing, ref = subject
    colours = [thing.colour, other_colour(rng, thing.colour)]
    rng.shuffle(colours)
    slots = {**ref.slots, "colour_1": colours[0], "colour_2": colours[1]}
    return Asked("colour_choice", slots, "word", thing.colour, (f"{ref.the} {ref.be} {thing.colour}",), focus=thing, aspect="colour")


# --- existence and number -----------------------------------------------------------------------------------------------------------------


def _exist_slots(words: str, be: str, is_amount: bool) -> dict[str, str]:
    return {"a": words, "any": f"any {words}" if is_amount else words, "is": be, "is_there": f"{be} there", "there_is": f"there {be}"}


def exists(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    if it is not None:
        return None
    if rng.random() < 0.5:
        thing = facts.things[int(rng.random() * len(facts.things))]
        wording = "exists_the" if thing.article == "the" or thing.is_proper else "exists"
        slots = _exist_slots(thing.a, thing.be, not thing.article and not thing.is_proper)
        if facts.counts[thing.name] > 1:
            number = facts.counts[thing.name]
            fact = f"there are {number_word(number)} {plural_of(thing.name)}"
            return Asked(wording, slots, "yes_no", "yes", (f"{fact}{here(rng)}",), (fact,), group=thing.name)
        sentences = (f"{there(thing)} {thing.a}{here(rng)}", f"{there(thing)} {thing.a} {thing.where}")
        return Asked(wording, slots, "yes_no", "yes", sentences, (f"{there(thing)} {thing.a} {thing.where}",), focus=thing, aspect="name")
    absent = absent_thing(rng, facts.names)
    if absent is None:
        return None
    words = absent.phrase()
    plural = not absent.article and absent.name.endswith("s") and absent.name[0].islower()
    be = "are" if plural else "is"
    proper = absent.article == "the" or (not absent.article and absent.name[0].isupper())
    slots = _exist_slots(words, be, not absent.article and not proper)
    no = f"{words} is not{here(rng) or ' here'}" if proper else f"there {be} no {absent.name}{here(rng)}"
    seen = f"the picture shows {listed(facts.things)}"
    return Asked("exists_the" if proper else "exists", slots, "yes_no", "no", (no, f"I do not see {words}"), (seen,), aspect="absent")


def exists_at(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    if it is not None:
        return None
    thing = facts.things[int(rng.random() * len(facts.things))]
    fact = f"{there(thing)} {thing.a} {thing.where}"
    name, be, words, counted = thing.name, thing.be, thing.a, thing.is_countable
    if yes := rng.random() < 0.5:
        if thing.article == "the" or thing.is_proper:
            return None
    else:
        absent = absent_thing(rng, facts.names)
        others = [other for other in facts.things if other.name != thing.name and other.is_countable]
        if others and rng.random() < 0.5:
            other = others[int(rng.random() * len(others))]
            name, be, words, counted = other.name, other.be, other.a, True
        elif absent is not None and absent.article in ("a", "an"):
            name, be, words, counted = absent.name, "is", with_article(absent.name), True
        else:
            return None
    slots = {**_exist_slots(words, be, not counted), "place": place_words(rng, thing.place), "name": name}
    return Asked("exists_at", slots, "yes_no", "yes" if yes else "no", (fact,), (fact,), focus=thing, aspect="name")


def how_many(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    if it is not None:
        return None
    number = len(facts.things)
    noun = pick(rng, ("object", "thing", "item"))
    be, said = ("is" if number == 1 else "are"), number_word(number)
    sentences = (f"there {be} {said} {count_noun(noun, number)}{here(rng)}", f"I count {said} {count_noun(noun, number)}{here(rng)}")
    return Asked("how_many", {"objects": f"{noun}s"}, "number", said, sentences, (f"there {list_be(facts.things)} {listed(facts.things)}",))


def how_many_of(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    if it is not None:
        return None
    repeated = [thing for thing in facts.things if facts.counts[thing.name] > 1]
    roll = rng.random()
    if roll < 0.2:
        absent = absent_thing(rng, facts.names)
        if absent is None or not absent.plural:
            return None
        plural = plural_of(absent.name)
        return Asked("how_many_of", {"plural": plural}, "number", "zero", (f"there are no {plural}{here(rng)}",), aspect="absent")
    thing = one_of(rng, repeated if repeated and roll < 0.75 else [thing for thing in facts.things if thing.is_countable])
    if thing is None or " and " in thing.name:
        return None
    number = facts.counts[thing.name]
    be, said, noun = ("is" if number == 1 else "are"), number_word(number), count_noun(thing.name, number)
    sentences = (f"there {be} {said} {noun}{here(rng)}", f"I count {said} {noun}{here(rng)}")
    spots = f"{noun_phrase_places(facts.group(thing.name))}"
    focus = thing if number == 1 else None
    group = thing.name if number > 1 else ""
    return Asked("how_many_of", {"plural": plural_of(thing.name)}, "number", said, sentences, (spots,), focus, "number", group)


def noun_phrase_places(things: Sequence[Thing]) -> str:
    """ "one is in the top left and one is on the right", for things of one name."""
    if len(things) == 1:
        return f"it is {things[0].where}"
    return join_words([f"one is {thing.where}" for thing in things])


def how_many_together(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    names = [name for name in facts.counts if " and " not in name and next(t for t in facts.things if t.name == name).is_countable]
    if it is not None or len(names) < 2:
        return None
    one, other = rng.sample(names, 2)
    numbers = facts.counts[one], facts.counts[other]
    said = number_word(sum(numbers))
    slots = {"plural_1": plural_of(one), "plural_2": plural_of(other)}
    parts = " and ".join(f"{number_word(count)} {count_noun(name, count)}" for name, count in zip((one, other), numbers, strict=True))
    be = "is" if numbers[0] == 1 else "are"
    return Asked("how_many_together", slots, "number", said, (f"there {be} {parts}, which makes {said}",), (f"there {be} {parts}",))


def count_is(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    if it is not None:
        return None
    number, noun = len(facts.things), pick(rng, ("object", "thing"))
    bound, bound_2, test = _BOUNDS[int(rng.random() * len(_BOUNDS))]
    limit = max(number + rng.randrange(-1, 2), 1)
    slots = {"bound": bound, "bound_2": bound_2, "n": number_word(limit), "objects": f"{noun}s", "objects_n": count_noun(noun, limit)}
    fact = f"there {'is' if number == 1 else 'are'} {number_word(number)}"
    full = f"{fact} {count_noun(noun, number)}{here(rng)}"
    return Asked("count_is", slots, "yes_no", "yes" if test(number, limit) else "no", (fact, full), (full,))


_BOUNDS: tuple[tuple[str, str, Callable[[int, int], bool]], ...] = (
    ("more than", "larger than", lambda number, limit: number > limit),
    ("fewer than", "smaller than", lambda number, limit: number < limit),
    ("at least", "at least", lambda number, limit: number >= limit),
    ("exactly", "exactly", lambda number, limit: number == limit),
    ("at most", "at most", lambda number, limit: number <= limit),
)


def more_than_other(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    names = [name for name in facts.counts if " and " not in name and next(t for t in facts.things if t.name == name).is_countable]
    if it is not None or len({facts.counts[name] for name in names}) < 2:
        return None
    one, other = rng.sample(names, 2)
    more = facts.counts[one] > facts.counts[other]
    slots = {"plural_1": plural_of(one), "plural_2": plural_of(other)}
    parts = " and ".join(f"{number_word(facts.counts[name])} {count_noun(name, facts.counts[name])}" for name in (one, other))
    fact = f"there {'is' if facts.counts[one] == 1 else 'are'} {parts}"
    return Asked("more_than_other", slots, "yes_no", "yes" if more else "no", (fact,), (fact,))


def which_repeats(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    repeated = list(dict.fromkeys(thing.name for thing in facts.things if facts.counts[thing.name] > 1))
    if it is not None or len(repeated) > 1 or len(facts.things) < 2:
        return None
    if not repeated:
        fact = "all objects are different"
        return Asked("any_repeats", {}, "yes_no", "no", (fact,), (fact,))
    name = repeated[0]
    fact = f"there are {number_word(facts.counts[name])} {plural_of(name)}"
    if rng.random() < 0.5:
        return Asked("any_repeats", {}, "yes_no", "yes", (fact,), (fact,), group=name)
    return Asked("which_repeats", {}, "phrase", f"the {name}", (fact, f"the {name} appears more than once"), (fact,), group=name)


def is_only(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    subject = _subject(facts, rng, it, facts.unique, "")
    if subject is None:
        return None
    thing, ref = subject
    others = [other for other in facts.things if other is not thing]
    fact = f"there {list_be(others)} also {listed(others)}" if others else f"there is nothing else{here(rng)}"
    return Asked("is_only", ref.slots, "yes_no", "no" if others else "yes", (fact,), (fact,), focus=thing, aspect="others")


def what_else(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    if len(facts.things) < 2:
        return None
    thing = it if it in facts.unique else one_of(rng, facts.unique)
    if thing is None:
        return None
    others = [other for other in facts.things if other is not thing]
    slots = {"them": thing.the}
    sentences = (f"there {list_be(others)} {listed(others)}", f"you can also see {listed(others)}")
    return Asked("what_else", slots, "phrase", listed(others), sentences, focus=thing, aspect="others")


def list_all(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    if it is not None:
        return None
    words = listed(facts.things)
    sentences = (f"there {list_be(facts.things)} {words}", f"the picture shows {words}", f"you can see {words}")
    return Asked("list", {}, "phrase", words, sentences, aspect="list")


# --- the ground ---------------------------------------------------------------------------------------------------------------------------


def background(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    if it is not None:
        return None
    sentences = (f"the background is {facts.colour}", f"it is {facts.colour}")
    return Asked("background", {}, "word", facts.colour, sentences)


def is_background(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    if it is not None:
        return None
    yes = rng.random() < 0.5
    colour = facts.colour if yes else other_colour(rng, facts.colour)
    fact = f"the background is {facts.colour}"
    slots = {"colour": colour, "colour_ground": with_article(f"{colour} background")}
    return Asked("is_background", slots, "yes_no", "yes" if yes else "no", (fact,), (fact,))


_PATTERNS = ("striped", "checkered", "dotted", "speckled")


def pattern(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    """The name of the pattern, or whether it is a certain one; a ground whose pattern has no name is none of the four."""
    if it is not None:
        return None
    if facts.pattern and rng.random() < 0.5:
        return Asked("pattern", {}, "word", facts.pattern, (f"the background is {facts.pattern}", f"it is {facts.pattern}"))
    asked = facts.pattern if facts.pattern and rng.random() < 0.5 else pick(rng, _PATTERNS)
    yes = asked == facts.pattern
    fact = f"the background is {facts.pattern}" if facts.pattern else f"the background is not {asked}"
    slots = {"pattern": asked, "pattern_ground": with_article(f"{asked} background")}
    return Asked("is_pattern", slots, "yes_no", "yes" if yes else "no", (fact,), (fact,))
