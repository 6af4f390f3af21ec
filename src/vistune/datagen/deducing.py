"""Questions about a drawn scene that need a thought: what if, how large, how near, in which order.

The first group follows from the scene's sentences and may close a conversation; the second needs boxes. Sizes and distances are of boxes in
the picture, so the questions say "appears" or "in the picture", and none is asked where the difference is too small to be seen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from vistune.datagen.asked import Asked, Asker, Ref, listed, one_of, ref_to, there
from vistune.datagen.comparing import relation_words
from vistune.datagen.english import number_word, plural_of
from vistune.datagen.grammar import pick, say
from vistune.datagen.scene_facts import PLACE_NAMES, SceneFacts, Thing, count_noun, sentence
from vistune.scenes import PLACES
from vistune.scenes.draw import join_words

CLEARLY_LARGER = 1.3
"""How many times as large (as high, as wide, as far) something must be for a question to turn on it."""
CLEARLY_NEARER = 0.06
"""How much nearer something must be, as a part of the picture's side."""


def remaining(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    thing = one_of(rng, facts.things)
    if it is not None or thing is None or len(facts.things) < 2 or (facts.counts[thing.name] > 1 and not thing.is_countable):
        return None
    gone = facts.group(thing.name)
    left = [other for other in facts.things if other.name != thing.name]
    number, total, taken = len(left), len(facts.things), len(gone)
    words = thing.the if taken == 1 else f"the {number_word(taken)} {plural_of(thing.name)}"
    be = "is" if total == 1 else "are"
    step = f"there {be} {number_word(total)} objects, and without {words} {number_word(number)} {'remains' if number == 1 else 'remain'}"
    which = f"what remains is {listed(left)}" if left else "nothing remains"
    said = f"{number_word(number) if left else 'no'} {count_noun('object', number)} would be left"
    several = taken > 1 or gone[0].is_plural
    slots = {"gone": words, "were": "were" if several else "was", "do": "do" if several else "does"}
    return Asked("remaining", slots, "number", number_word(number), (said,), (f"{step}. {sentence(which)[:-1]}", step))


def added(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    countable = [thing for thing in facts.things if thing.is_countable and " and " not in thing.name]
    thing = one_of(rng, countable)
    if it is not None or thing is None:
        return None
    number, more = facts.counts[thing.name], 1 + int(rng.random() * 3)
    total, plural = number_word(number + more), plural_of(thing.name)
    slots = {"n": number_word(more), "plural": count_noun(thing.name, more), "plural_all": plural}
    step = (
        f"there {'is' if number == 1 else 'are'} {number_word(number)} now, and {number_word(number)} and {number_word(more)} make {total}"
    )
    return Asked("added", slots, "number", total, (f"there would be {total} {plural}",), (step,))


def moved(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    """Where a thing would be in a mirror, or in the picture turned upside down."""
    thing = it or one_of(rng, facts.things)
    ref = Ref.it(it) if it else ref_to(facts, rng, thing, hide="place") if thing else None
    if thing is None or ref is None:
        return None
    row, column = thing.row, thing.column
    wording = "mirrored" if rng.random() < 0.5 else "turned"
    row, column = (row, 2 - column) if wording == "mirrored" else (2 - row, 2 - column)
    place = PLACES[PLACE_NAMES[3 * row + column]]
    fact = f"{ref.the} {ref.be} now {thing.where}" if place != thing.where else f"{ref.the} would stay in the same place"
    sentences = (f"{ref.the} would be {place}",)
    return Asked(wording, ref.slots, "phrase", place, sentences, (fact,), focus=None)


def swapped(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    if it is not None or len(facts.unique) < 2:
        return None
    one, other = rng.sample(facts.unique, 2)
    asked = pick_thing(rng, (one, other))
    comes = other if asked is one else one
    slots = {"one": one.the, "other": other.the, "place": asked.where}
    reason = f"{asked.the} {asked.be} {asked.where} now, and {comes.the} would take that place"
    return Asked("swapped", slots, "phrase", comes.the, (f"{comes.the} would be {asked.where}",), (reason,))


def pick_thing(rng: random.Random, things: Sequence[Thing]) -> Thing:
    return things[int(rng.random() * len(things))]


def same_colour(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    painted = [thing for thing in facts.unique if thing.colour and not thing.is_proper]
    if it is not None or len(painted) < 2:
        return None
    one, other = rng.sample(painted, 2)
    slots = {"one": one.the, "other": other.the, "one_them": one.the, "other_them": other.the}
    if one.colour == other.colour:
        return Asked("same_colour", slots, "yes_no", "yes", (f"both are {one.colour}",), (f"both are {one.colour}",))
    fact = f"{one.the} {one.be} {one.colour} and {other.the} {other.be} {other.colour}"
    return Asked("same_colour", slots, "yes_no", "no", (fact,), (fact,))


def between(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    """What is in the middle of three things in a row or column."""
    if it is not None or len(facts.unique) < 2:
        return None
    lines = [[thing for thing in facts.things if thing.row == line] for line in range(3)]
    lines += [[thing for thing in facts.things if thing.column == line] for line in range(3)]
    full = [line for line in lines if len(line) == 3 and line[0] in facts.unique and line[2] in facts.unique]
    if not full:
        return None
    one, middle, other = full[int(rng.random() * len(full))]
    if rng.random() < 0.5:
        one, other = other, one
    slots = {"one_them": one.the, "other_them": other.the}
    places = f"{one.the} {one.be} {one.where}, {other.the} {other.be} {other.where}, and {there(middle)} {middle.a} {middle.where}"
    return Asked("between", slots, "phrase", middle.a, (f"between them {there(middle)} {middle.a}",), (places,))


def middle_empty(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    """Empty only if no box reaches into the middle of nine parts."""
    if it is not None or not facts.has_boxes:
        return None
    inside = [thing for thing in facts.things if thing.place == "center"]
    if inside:
        fact = f"{there(inside[0])} {inside[0].a} in the center"
        return Asked("middle_empty", {}, "yes_no", "no", (fact,), (fact,))
    if any(_reaches_middle(thing) for thing in facts.things):
        return None
    return Asked("middle_empty", {}, "yes_no", "yes", ("there is nothing in the center",), ("all objects are closer to the edges",))


def _reaches_middle(thing: Thing) -> bool:
    left, top, right, bottom = thing.xyxy or (0.0, 0.0, 1.0, 1.0)
    return left < 2 / 3 and right > 1 / 3 and top < 2 / 3 and bottom > 1 / 3


# --- with boxes ---------------------------------------------------------------------------------------------------------------------------

_SIZES = {
    "largest": (("largest", "biggest"), "the largest", lambda thing: thing.area),
    "smallest": (("smallest",), "the smallest", lambda thing: -thing.area),
    "tallest": (("tallest",), "the tallest", lambda thing: thing.xyxy[3] - thing.xyxy[1]),
    "widest": (("widest",), "the widest", lambda thing: thing.xyxy[2] - thing.xyxy[0]),
}


def size_most(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    thing, kind = extreme(facts, pick(rng, tuple(_SIZES))) or (None, "")
    if it is not None or thing is None:
        return None
    words = pick(rng, _SIZES[kind][0])
    slots = {"most": f"the {words}", "most_adjective": words}
    reason = {
        "largest": "no other object covers as much of the picture", "smallest": "every other object covers more of the picture",
        "tallest": "no other object reaches as far from top to bottom", "widest": "no other object reaches as far from left to right",
    }[kind]  # fmt: skip
    place = f"{thing.the} {thing.where}" if not thing.is_proper else thing.the
    return Asked("size_most", slots, "phrase", thing.the, (f"{place} {thing.be} the {words}",), (reason,))


def extreme(facts: SceneFacts, kind: str) -> tuple[Thing, str] | None:
    """The one thing that is clearly the largest, smallest, tallest or widest."""
    if not facts.has_boxes or len(facts.things) < 2:
        return None
    measure = _SIZES[kind][2]
    first, second = sorted(facts.things, key=measure, reverse=True)[:2]
    larger, smaller = sorted((abs(measure(first)), abs(measure(second))), reverse=True)
    return (first, kind) if larger >= CLEARLY_LARGER * smaller and first in facts.unique else None


def size_two(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    if it is not None or not facts.has_boxes or len(facts.unique) < 2:
        return None
    one, other = rng.sample(facts.unique, 2)
    large, small = (one, other) if one.area > other.area else (other, one)
    if large.area < CLEARLY_LARGER * small.area:
        return None
    bigger = rng.random() < 0.6
    more, more_room = (
        (pick(rng, ("larger", "bigger")), "more [room|space|of the picture]") if bigger else ("smaller", "less [room|space|of the picture]")
    )
    slots = {"one": one.the, "other": other.the, "one_them": one.the, "other_them": other.the, "more": more, "be": one.be}
    slots |= {"more_room": say(rng, more_room, {}), "does": "do" if one.is_plural else "does"}
    winner, loser = (large, small) if bigger else (small, large)
    reason = f"{large.the} {'cover' if large.is_plural else 'covers'} more of the picture than {small.the}"
    if one.is_plural or rng.random() < 0.5:
        fact = f"{winner.the} {winner.be} {more} than {loser.the}"
        return Asked("size_is", slots, "yes_no", "yes" if winner is one else "no", (fact,), (reason,)) if not one.is_plural else None
    return Asked("size_which", slots, "phrase", winner.the, (f"{winner.the} {winner.be} {more} than {loser.the}",), (reason,))


def _distance(one: tuple[float, float], other: tuple[float, float]) -> float:
    return math.dist(one, other)


def _nearest(things: Sequence[Thing], point: tuple[float, float], *, far: bool) -> Thing | None:
    """The thing whose centre is clearly the nearest to a point, or the farthest from it."""
    if len(things) < 2:
        return None
    ordered = sorted(things, key=lambda thing: _distance(thing.centre, point), reverse=far)
    gap = abs(_distance(ordered[1].centre, point) - _distance(ordered[0].centre, point))
    return ordered[0] if gap >= CLEARLY_NEARER else None


_NEAREST = {False: ("[closest|nearest] to", "[closest|nearest]"), True: ("[farthest|furthest] from", "[farthest|furthest] away")}


def nearest(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    """What is nearest to, or farthest from, the centre of the picture or a thing."""
    if it is not None or not facts.has_boxes:
        return None
    far = rng.random() < 0.4
    behind, alone = (say(rng, words, {}) for words in _NEAREST[far])
    slots = {"nearest": behind, "nearest_alone": alone}
    if rng.random() < 0.4:
        found = _nearest(facts.things, (0.5, 0.5), far=far)
        if found is None or found not in facts.unique:
            return None
        reason = f"{found.the} {found.be} {found.where}"
        return Asked("nearest_centre", slots, "phrase", found.the, (f"{found.the} {found.be} {behind} the center",), (reason,))
    other = one_of(rng, facts.unique)
    found = _nearest([thing for thing in facts.things if thing is not other], other.centre, far=far) if other else None
    if other is None or found is None or found not in facts.unique:
        return None
    reason = f"{other.the} {other.be} {other.where} and {found.the} {found.be} {found.where}"
    slots["other_them"] = other.the
    return Asked("nearest", slots, "phrase", found.the, (f"{found.the} {found.be} {behind} {other.the}",), (reason,))


def covered(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    """What stays in view when one half is covered; only where every box lies within one half."""
    if it is not None or not facts.has_boxes or len(facts.things) < 2:
        return None
    side = pick(rng, ("left", "right", "top", "bottom"))
    start, end = (0, 2) if side in ("left", "right") else (1, 3)
    boxes = [thing.xyxy or (0.0, 0.0, 1.0, 1.0) for thing in facts.things]
    if any(box[start] < 0.49 and box[end] > 0.51 for box in boxes):
        return None
    keeps_end = side in ("left", "top")
    left = [thing for thing, box in zip(facts.things, boxes, strict=True) if (box[start] + box[end] > 1) == keeps_end]
    words = listed(left) if left else "nothing"
    said = f"you would still see {words}" if left else "nothing would be left to see"
    other = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[side]
    reason = f"everything in the {other} half stays in view" if left else f"all objects are in the {side} half"
    return Asked("covered", {"side": side}, "phrase", words, (said,), (reason,))


def in_order(facts: SceneFacts, rng: random.Random, it: Thing | None) -> Asked | None:
    """Names in the order of their columns or rows, which must all differ."""
    if it is not None or not 2 <= len(facts.things) <= 3 or len(facts.unique) < len(facts.things):
        return None
    by_column = rng.random() < 0.5
    lines = [thing.column if by_column else thing.row for thing in facts.things]
    if len(set(lines)) < len(lines):
        return None
    ordered = [thing for _, thing in sorted(zip(lines, facts.things, strict=True), key=lambda pair: pair[0])]
    forward = rng.random() < 0.6
    directions = ("left to right", "right to left") if by_column else ("top to bottom", "bottom to top")
    words = join_words([thing.a for thing in (ordered if forward else ordered[::-1])])
    slots = {"direction": directions[0 if forward else 1]}
    return Asked("in_order", slots, "phrase", words, (f"the order is {words}",), ())


THOUGHTS_FROM_SENTENCES: tuple[Asker, ...] = (remaining, added, moved, swapped, same_colour, between, in_order)
THOUGHTS_FROM_BOXES: tuple[Asker, ...] = (size_most, size_two, nearest, covered, middle_empty)


# --- a long description -------------------------------------------------------------------------------------------------------------------


def describe_at_length(facts: SceneFacts, rng: random.Random) -> list[str]:
    """The sentences of a paragraph about a scene: how many things on which ground, where each is, and how they stand to each other."""
    number = len(facts.things)
    noun = count_noun(pick(rng, ("object", "thing")), number)
    said, is_one = number_word(number), number == 1
    opening = pick(rng, (
        f"The picture shows {said} {noun} on {facts.background}.",
        f"On {facts.background} there {'is' if is_one else 'are'} {said} {noun}.",
        f"There {'is' if is_one else 'are'} {said} {noun} in this picture. The background is {facts.ground}.",
    ))  # fmt: skip
    sentences = [opening, *_places(facts, rng)]
    repeated = [name for name, count in facts.counts.items() if count > 1]
    if repeated and rng.random() < 0.7:
        name = repeated[0]
        sentences.append(f"There are {number_word(facts.counts[name])} {plural_of(name)} in all.")
    if found := extreme(facts, pick(rng, ("largest", "smallest"))):
        thing, kind = found
        rank = f"the {kind} of them" if number > 2 else f"{'larger' if kind == 'largest' else 'smaller'} than the other one"
        sentences.append(sentence(f"{thing.the} {thing.be} {rank}"))
    if len(facts.unique) >= 2 and rng.random() < 0.7:
        one, other = rng.sample(facts.unique, 2)
        sentences.append(sentence(f"{one.the} {one.be} {relation_words(one, other)} {other.the}"))
    if facts.has_boxes and rng.random() < 0.5 and not any(thing.place == "center" or _reaches_middle(thing) for thing in facts.things):
        sentences.append("The center of the picture is empty.")
    return sentences


def _places(facts: SceneFacts, rng: random.Random) -> list[str]:
    """Where each thing is, in sentences of one or two things, from the top left to the bottom right."""
    sentences: list[str] = []
    things = list(facts.things)
    while things:
        first = things.pop(0)
        place_first = rng.random() < 0.5
        said = f"{first.where} {there(first)} {first.a_painted}" if place_first else f"{there(first)} {first.a_painted} {first.where}"
        if things and rng.random() < 0.5:
            second = things.pop(0)
            said += f", and {second.where} {there(second)} {second.a_painted}" if place_first else f" and {second.a_painted} {second.where}"
        sentences.append(sentence(said))
    return sentences
