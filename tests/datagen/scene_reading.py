"""A drawn scene as the checker sees it, and what words mean in it: names, colors, places, numbers, directions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from vistune.scenes import Scene, sprite_bank

COLOURS = "red|orange|yellow|green|blue|purple|pink|brown|black|white|gray"
PATTERNS = "striped|checkered|dotted|speckled"
NUMBERS = {
    word: number for number, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
}
NUMBER = "|".join(NUMBERS)
PLACE = (
    r"(?:in the (?:top|bottom) (?:left|right)(?: corner| part)?|at the (?:top|bottom)|on the (?:left|right)(?: side)?|in the (?:center|"
    r"middle))"
    r"(?: of the (?:picture|image))?"
)
# Of the picture's side. Two things in one column of the scene's grid differ by up to 0.12, in two columns by at least 0.19.
CLEAR = 0.14


class Wrong(AssertionError):
    """An answer that is not so, or English that the checker does not know."""


class Unread(Exception):
    pass


@dataclass(frozen=True)
class Drawn:
    """One object as drawn. Equal only to itself."""

    index: int
    name: str
    plural: str
    colour: str
    place: str
    box: tuple[float, float, float, float]
    countable: bool

    @property
    def x(self) -> float:
        return (self.box[0] + self.box[2]) / 2

    @property
    def y(self) -> float:
        return (self.box[1] + self.box[3]) / 2

    @property
    def area(self) -> float:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


@dataclass
class Context:
    """The scene, and what the turns before were about."""

    things: list[Drawn]
    colour: str
    pattern: str
    focus: Drawn | None = None
    group: list[Drawn] = field(default_factory=list)

    def named(self, name: str) -> list[Drawn]:
        return [thing for thing in self.things if name in (thing.name, thing.plural)]


# The bank's own plurals, where they are no English.
BETTER_PLURALS = {"snowmans": "snowmen", "superheros": "superheroes", "tornados": "tornadoes"}


def joined(text: str) -> str:
    """With names that have an "and" in them as one word, so that lists can be cut at theirs."""
    return text.replace("skull and crossbones", "skull-and-crossbones")


def _plural(thing: object) -> str:
    plural = thing.plural.lower()  # type: ignore[attr-defined]
    return BETTER_PLURALS.get(plural, plural)


ALL_NAMES = {joined(thing.name.lower()) for thing in sprite_bank().things.values()}
ALL_PLURALS = {_plural(thing): thing.name.lower() for thing in sprite_bank().things.values() if thing.plural}


def context_of(scene: Scene) -> Context:
    pattern = "" if scene.background.pattern in ("plain", "gradient") else scene.background.pattern
    side = scene.size
    things = [
        Drawn(
            index, joined(one.name.lower()), _plural(one.thing), one.colour or "", one.place,
            (one.xyxy[0] / side, one.xyxy[1] / side, one.xyxy[2] / side, one.xyxy[3] / side), one.thing.article in ("a", "an"),
        )
        for index, one in enumerate(scene.objects)
    ]  # fmt: skip
    return Context(things, scene.background.colour, pattern)


# --- words → things -----------------------------------------------------------------------------------------------------------------------


def place_in(text: str) -> str:
    match = re.fullmatch(PLACE, text)
    if not match:
        raise Unread(text)
    core = re.sub(r" of the (picture|image)$| (corner|part|side)( of.*)?$", "", text)
    return core.replace("in the ", "").replace("at the ", "").replace("on the ", "").replace("middle", "center")


def all_matching(text: str, context: Context) -> list[Drawn]:
    """Every object that a phrase fits: "the red dog on the left", "a dog", "the thing at the top"."""
    match = re.fullmatch(rf"(?:(?:a|an|the|any) )?(?:(?P<colour>{COLOURS}) (?!{PLACE}))?(?P<name>.+?)(?: (?P<place>{PLACE}))?", text)
    if not match:
        raise Unread(text)
    found = []
    for thing in context.things:
        whole = match["name"] if not match["colour"] else f"{match['colour']} {match['name']}"
        named = (
            whole == thing.name or match["name"] in ("object", "thing") or (match["name"] == thing.name and match["colour"] == thing.colour)
        )
        if named and (not match["place"] or place_in(match["place"]) == thing.place):
            found.append(thing)
    return found


def the_one(text: str, context: Context) -> Drawn:
    """The one object that a phrase means."""
    if text in ("it", "they", "them", "the other one"):
        if context.focus is None:
            raise Wrong(f"{text!r} means nothing here")
        return context.focus
    found = all_matching(text, context)
    if len(found) > 1:
        raise Wrong(f"{text!r} may mean {len(found)} objects")
    if not found:
        raise Unread(text)
    return found[0]


def known_name(text: str) -> str:
    """A name of the bank, without its article; Unread for words that are no name at all."""
    name = re.sub(r"^(a|an|the|any) ", "", text)
    if name in ALL_NAMES:
        return name
    if name in ALL_PLURALS:
        return ALL_PLURALS[name]
    raise Unread(text)


def count_of(text: str, context: Context) -> int:
    """How many there are of a plural; zero of a name that is not in the scene."""
    if text in ("objects", "things", "items", "object", "thing", "item"):
        return len(context.things)
    found = context.named(text)
    if not found:
        known_name(text)
        if any(set(text.split()) & set(thing.name.split()) for thing in context.things):
            raise Wrong(f"{text!r} could be said of something that is there")
    return len(found)


def list_of(text: str, context: Context) -> list[Drawn]:
    """The objects that a list names: "a dog, lips and two stop signs". Each may be counted once."""
    if text == "nothing":
        return []
    pieces, found = re.split(r"(, | and )", text), list[Drawn]()
    while pieces:
        for length in range(1, len(pieces) + 1, 2):
            item = "".join(pieces[:length])
            group = _item(item, context, found)
            if group:
                found += group
                pieces = pieces[length + 1 :]
                break
        else:
            raise Unread(text)
    return found


def _item(item: str, context: Context, taken: list[Drawn]) -> list[Drawn]:
    number = re.fullmatch(rf"({NUMBER}) (.+)", item)
    if number:
        group = [thing for thing in context.named(number[2]) if thing not in taken]
        return group[: NUMBERS[number[1]]] if len(group) >= NUMBERS[number[1]] else []
    try:
        return [thing for thing in all_matching(item, context) if thing not in taken][:1]
    except Unread:
        return []


# --- positions ----------------------------------------------------------------------------------------------------------------------------

BEYOND_WORDS = {
    "left": r"(?:(?:farther|further) left than|(?:farther|further) to the left than|to the left of|left of|more to the left than)",
    "right": r"(?:(?:farther|further) right than|(?:farther|further) to the right than|to the right of|right of|more to the right than)",
    "above": r"(?:higher than|higher up than|above|(?:farther|further) up than|closer to the top than)",
    "below": r"(?:lower than|lower down than|below|(?:farther|further) down than|closer to the bottom than)",
}
MORE_WORDS = {
    "left": r"(?:(?:farther|further) (?:to the )?left|more to the left)",
    "right": r"(?:(?:farther|further) (?:to the )?right|more to the right)",
    "above": r"(?:higher(?: up)?|(?:farther|further) up|closer to the top)",
    "below": r"(?:lower(?: down)?|(?:farther|further) down|closer to the bottom)",
}  # fmt: skip
MOST_WORDS = {
    "left": r"(?:(?:farthest|furthest) (?:to the )?left|closest to the left edge|the leftmost)",
    "right": r"(?:(?:farthest|furthest) (?:to the )?right|closest to the right edge|the rightmost)",
    "above": r"(?:highest up|(?:farthest|furthest) up|closest to the top|the topmost)",
    "below": r"(?:lowest down|(?:farthest|furthest) down|closest to the bottom|the lowest)",
}
BEYOND = f"(?:{'|'.join(BEYOND_WORDS.values())})"
MORE = f"(?:{'|'.join(MORE_WORDS.values())})"
MOST = f"(?:{'|'.join(MOST_WORDS.values())})"


def direction_in(text: str, table: dict[str, str]) -> str:
    return next(direction for direction, pattern in table.items() if re.fullmatch(pattern, text))


def along(thing: Drawn, direction: str) -> float:
    return {"left": -thing.x, "right": thing.x, "above": -thing.y, "below": thing.y}[direction]


def is_beyond(one: Drawn, other: Drawn, direction: str) -> bool:
    """Whether one is clearly farther in a direction."""
    return along(one, direction) - along(other, direction) > CLEAR


def decided(one: Drawn, other: Drawn, direction: str) -> bool:
    if abs(along(one, direction) - along(other, direction)) <= CLEAR:
        raise Wrong(f"{one.name} and {other.name} are too close to say which is {direction}")
    return is_beyond(one, other, direction)


def farthest(context: Context, direction: str) -> Drawn:
    best = max(context.things, key=lambda thing: along(thing, direction))
    if any(not is_beyond(best, other, direction) for other in context.things if other is not best):
        raise Wrong(f"nothing is clearly the one {direction}")
    return best


def clearest(things: list[Drawn], measure: Callable[[Drawn], float], factor: float = 0.0, gap: float = 0.0) -> Drawn:
    """The object with the largest measure, by a factor or a gap."""
    first, second = sorted(things, key=measure, reverse=True)[:2]
    large, small = sorted((abs(measure(first)), abs(measure(second))), reverse=True)
    if (factor and large < factor * small) or (gap and large - small < gap):
        raise Wrong(f"{first.name} and {second.name} are too much alike")
    return first


def distance(one: tuple[float, float], other: tuple[float, float]) -> float:
    return math.dist(one, other)


def at(context: Context, place: str) -> Drawn:
    found = [thing for thing in context.things if thing.place == place]
    if len(found) != 1:
        raise Wrong(f"there is nothing at {place!r} to be asked about")
    return found[0]


def absent(words: str, context: Context) -> list[Drawn]:
    """No object: `words` is a name of the bank, and none of the scene could be called so."""
    name = known_name(words)
    for thing in context.things:
        shared = set(re.split(r"[ -]", name)) & set(re.split(r"[ -]", thing.name)) - {"number", "word"}
        if shared or name in thing.name or thing.name in name:
            raise Wrong(f"a {thing.name} could be called {name}")
    return []


def colour_of(thing: Drawn) -> str:
    """The color that a thing was painted with; nobody may ask for another."""
    if not thing.colour:
        raise Wrong(f"nobody painted the {thing.name}")
    return thing.colour
