"""A question about a drawn scene before it has words, and the small change that all questions are made of: references, places, lists."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vistune.datagen.english import number_word, plural_of
from vistune.datagen.grammar import pick
from vistune.datagen.scene_facts import PLACE_NAMES, SceneFacts, Thing
from vistune.scenes import COLOURS, PLACES
from vistune.scenes.draw import join_words

Wants = Literal["word", "phrase", "yes_no", "number", "truth", "text"]


@dataclass(frozen=True)
class Asked:
    """A question without its words yet, and its answer in all forms. Sentences have no capital and no full stop."""

    wording: str
    slots: Mapping[str, str]
    wants: Wants
    short: str
    sentences: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    """Why the answer is so. A yes or no is always followed by what makes it so: "no, it is on the left"."""
    focus: Thing | None = None
    """What "it" means in the next question."""
    aspect: str = ""
    """What the answer tells about `focus`, so that it is not asked twice."""
    group: str = ""
    """The name of several things that "they" means in the next question."""
    hint: str = ""
    """A hint that the question cannot do without, as with lettered choices."""
    tail: str = ""
    """Lines after the question: lettered choices."""


@dataclass(frozen=True)
class Ref:
    """How a question points at a thing: as a subject, behind a verb, and with its agreement."""

    the: str
    them: str
    be: str
    slots: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, words: str, be: str = "is", them: str = "") -> Ref:
        plural = be == "are"
        slots = {"the": words, "them": them or words, "is": be, "does": "do" if plural else "does", "has": "have" if plural else "has"}
        return cls(words, them or words, be, slots)

    @classmethod
    def it(cls, thing: Thing) -> Ref:
        return cls.of("they", "are", "them") if thing.is_plural else cls.of("it")


Asker = Callable[[SceneFacts, random.Random, Thing | None], Asked | None]
"""Asks about the given thing, which the question calls "it", or about one of its own choice."""

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
BEYOND = {
    "left": ("[farther|further] left than", "[farther|further] to the left than", "to the left of", "left of", "more to the left than"),
    "right": (
        "[farther|further] right than",
        "[farther|further] to the right than",
        "to the right of",
        "right of",
        "more to the right than",
    ),
    "above": ("higher than", "higher up than", "above", "[farther|further] up than", "closer to the top than"),
    "below": ("lower than", "lower down than", "below", "[farther|further] down than", "closer to the bottom than"),
}
MORE = {
    "left": ("[farther|further] left", "[farther|further] to the left", "more to the left"),
    "right": ("[farther|further] right", "[farther|further] to the right", "more to the right"),
    "above": ("higher", "higher up", "[farther|further] up", "closer to the top"),
    "below": ("lower", "lower down", "[farther|further] down", "closer to the bottom"),
}
MOST = {
    "left": ("[farthest|furthest] to the left", "[farthest|furthest] left", "closest to the left edge", "the leftmost"),
    "right": ("[farthest|furthest] to the right", "[farthest|furthest] right", "closest to the right edge", "the rightmost"),
    "above": ("highest up", "[farthest|furthest] up", "closest to the top", "the topmost"),
    "below": ("lowest down", "[farthest|furthest] down", "closest to the bottom", "the lowest"),
}


def rank(thing: Thing, direction: str) -> int:
    """How far in a direction a thing stands, in columns or rows."""
    line = thing.column if direction in ("left", "right") else thing.row
    return -line if direction in ("left", "above") else line


def one_of(rng: random.Random, things: Sequence[Thing]) -> Thing | None:
    return things[int(rng.random() * len(things))] if things else None


def place_words(rng: random.Random, place: str) -> str:
    """A place as a question may say it: "in the top left corner", "on the right side of the picture"."""
    words = PLACES[place]
    roll = rng.random()
    if place == "center":
        return words if roll < 0.6 else pick(rng, ("in the middle", "in the middle of the picture", "in the center of the picture"))
    if roll < 0.6:
        return words
    if " " in place:
        return f"{words} {pick(rng, ('corner', 'corner of the picture', 'part of the picture', 'corner of the image'))}"
    sides = ("side", "side of the picture", "side of the image") if place in ("left", "right") else ("of the picture", "of the image")
    return f"{words} {pick(rng, sides)}"


def ref_to(facts: SceneFacts, rng: random.Random, thing: Thing, *, hide: str = "") -> Ref | None:
    """Words that mean this thing alone, without its colour or place where `hide` says so; None where there are none."""
    options: list[Ref] = []
    if facts.counts[thing.name] == 1:
        options += [Ref.of(thing.the, thing.be)] * 4
    painted = [other.colour for other in facts.group(thing.name)]
    if thing.colour and "colour" not in hide and all(painted) and painted.count(thing.colour) == 1:
        options.append(Ref.of(thing.the_painted, thing.be))
    if "place" not in hide:
        if not thing.is_proper:
            options.append(Ref.of(f"the {thing.name} {place_words(rng, thing.place)}", thing.be))
        if "name" not in hide:
            options.append(Ref.of(f"the {pick(rng, ('object', 'thing'))} {place_words(rng, thing.place)}"))
    return options[int(rng.random() * len(options))] if options else None


def here(rng: random.Random) -> str:
    return pick(rng, ("", "", " in the picture", " here", " in this picture"))


def there(thing: Thing) -> str:
    return f"there {thing.be}"


def listed(things: Sequence[Thing]) -> str:
    """ "a dog, lips and two stop signs", in the order in which they first come."""
    words = {thing.name: thing.a for thing in things}
    for name in words:
        number = sum(thing.name == name for thing in things)
        if number > 1:
            words[name] = f"{number_word(number)} {plural_of(name)}"
    return join_words(list(words.values()))


def list_be(things: Sequence[Thing]) -> str:
    """Agreement of "there is" with the first in a list."""
    first = things[0]
    return "are" if first.is_plural or sum(thing.name == first.name for thing in things) > 1 else "is"


def other_colour(rng: random.Random, colour: str) -> str:
    return pick(rng, [other for other in COLOURS if other != colour])


def other_place(rng: random.Random, place: str) -> str:
    return pick(rng, [other for other in PLACE_NAMES if other != place])
