"""What the annotations of a drawn scene say, read back from their text.

The template teacher gets text like any other teacher. Sentences of the form that vistune writes about its scenes ("A red sun in the top
left and lips at the bottom, on a striped blue background.") name every thing in the picture, so that it may also be said what is not there.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from dataclasses import dataclass, replace

from vistune.datagen.absent import is_one_name
from vistune.datagen.english import capital, plural_of, with_article
from vistune.scenes import COLOURS, PLACES
from vistune.types import Box

PLACE_NAMES = tuple(PLACES)
_COLOUR = "|".join(COLOURS)
_PLACE_OF = {words: name for name, words in PLACES.items()}
_SCENE = re.compile(rf"(?P<things>.+?),? on an? (?:(?P<pattern>striped|checkered|dotted|speckled) )?(?P<colour>{_COLOUR}) background\.")
_THING = re.compile(rf"(?P<words>.+?) (?P<place>{'|'.join(_PLACE_OF)})(?:, | and |$)")
_NAMED = re.compile(rf"(?:(?P<article>an?|the) )?(?:(?P<colour>{_COLOUR}) )?(?P<name>.+)")


@dataclass(frozen=True)
class Thing:
    """One thing in a scene. `colour` is set only where it was painted; `xyxy` only where boxes were told."""

    name: str
    article: str
    """`a` for what can be counted, `the` for a number or a word, empty for plurals, substances and proper names."""
    colour: str
    place: str
    xyxy: tuple[float, float, float, float] | None = None

    @property
    def is_countable(self) -> bool:
        return self.article == "a"

    @property
    def is_plural(self) -> bool:
        return not self.article and self.name.endswith("s") and self.name[0].islower()

    @property
    def is_proper(self) -> bool:
        return not self.article and self.name[0].isupper()

    @property
    def be(self) -> str:
        return "are" if self.is_plural else "is"

    @property
    def the(self) -> str:
        """ "the dog", "Santa Claus"."""
        return self.name if self.is_proper else f"the {self.name}"

    @property
    def the_painted(self) -> str:
        """With its colour, where it was painted: "the red dog"."""
        return f"the {self.colour} {self.name}" if self.colour else self.the

    @property
    def a(self) -> str:
        """ "a dog", "lips", "the number 7"."""
        return with_article(self.name) if self.article == "a" else f"the {self.name}" if self.article else self.name

    @property
    def a_painted(self) -> str:
        words = f"{self.colour} {self.name}" if self.colour else self.name
        return with_article(words) if self.article == "a" else f"the {words}" if self.article else words

    @property
    def where(self) -> str:
        return PLACES[self.place]

    @property
    def column(self) -> int:
        """0 left, 1 middle, 2 right."""
        return PLACE_NAMES.index(self.place) % 3

    @property
    def row(self) -> int:
        """0 top, 1 middle, 2 bottom."""
        return PLACE_NAMES.index(self.place) // 3

    @property
    def centre(self) -> tuple[float, float]:
        """Of its box, which must be known."""
        left, top, right, bottom = self._box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def area(self) -> float:
        """Of its box, which must be known, as a part of the picture."""
        left, top, right, bottom = self._box
        return (right - left) * (bottom - top)

    @property
    def _box(self) -> tuple[float, float, float, float]:
        if self.xyxy is None:
            raise ValueError(f"{self.name} has no box")
        return self.xyxy


@dataclass(frozen=True)
class SceneFacts:
    """Everything in a scene: things in reading order and the ground, whose pattern is empty where it has no name."""

    things: tuple[Thing, ...]
    colour: str
    pattern: str

    @functools.cached_property
    def counts(self) -> Counter[str]:
        return Counter(thing.name for thing in self.things)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(thing.name for thing in self.things)

    @functools.cached_property
    def unique(self) -> tuple[Thing, ...]:
        """Things whose name means one."""
        return tuple(thing for thing in self.things if self.counts[thing.name] == 1)

    @property
    def background(self) -> str:
        return with_article(f"{self.pattern} {self.colour} background" if self.pattern else f"{self.colour} background")

    @property
    def ground(self) -> str:
        """The look of the background: "striped and blue"."""
        return f"{self.pattern} and {self.colour}" if self.pattern else self.colour

    @property
    def has_boxes(self) -> bool:
        return all(thing.xyxy is not None for thing in self.things)

    def group(self, name: str) -> tuple[Thing, ...]:
        return tuple(thing for thing in self.things if thing.name == name)


def read_scene(captions: tuple[str, ...], boxes: tuple[Box, ...]) -> SceneFacts | None:
    """The scene that the captions describe, or None where none of them has a scene's form."""
    for caption in captions:
        match = _SCENE.fullmatch(caption)
        things = _read_things(match["things"], captions) if match else None
        if match and things:
            return SceneFacts(_with_boxes(things, boxes), match["colour"], match["pattern"] or "")
    return None


def _read_things(text: str, captions: tuple[str, ...]) -> tuple[Thing, ...] | None:
    # A sentence begins with a capital. "Lips" is "lips" if it is so written where it does not come first.
    first = text[0].lower() + text[1:]
    word = re.escape(first.partition(" ")[0])
    if word in ("a", "an", "the") or any(re.search(rf" {word}\b", caption) for caption in captions):
        text = first
    things, position = [], 0
    while position < len(text):
        match = _THING.match(text, position)
        named = _NAMED.fullmatch(match["words"]) if match else None
        if match is None or named is None:
            return None
        article, colour, name = named["article"] or "", named["colour"] or "", named["name"]
        if colour and is_one_name(f"{colour} {name}"):
            colour, name = "", f"{colour} {name}"
        things.append(Thing(name, "a" if article in ("a", "an") else article, colour, _PLACE_OF[match["place"]]))
        position = match.end()
    return tuple(things)


def _with_boxes(things: tuple[Thing, ...], boxes: tuple[Box, ...]) -> tuple[Thing, ...]:
    """Scenes list boxes in the order of the sentence; boxes of another order or other names are not used."""
    if tuple(box.label for box in boxes) != tuple(thing.name for thing in things):
        return things
    return tuple(replace(thing, xyxy=box.xyxy) for thing, box in zip(things, boxes, strict=True))


def count_noun(name: str, number: int) -> str:
    """The name as it stands behind a number: "one dog", "two dogs"."""
    return name if number == 1 else plural_of(name)


def sentence(text: str) -> str:
    return f"{capital(text)}."
