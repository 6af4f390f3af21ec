"""What other people's captions and boxes plainly say: the facts that the template teacher asks about in photos.

A caption leaves most things out, and five captions of one picture name the same thing in five ways. So a fact is taken only where the text
decides it alone: a color where one thing of that name has one color in all captions, a number where no caption says another, a thing by its
box where its label is there once and no caption speaks of several. What no caption mentions may still be in the picture; nothing is said
about what is not there. Captions and labels that look like an attempt to steer a teacher are left out (`quoting.py`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

from vistune.datagen.concepts import NounPhrase, lemma, parse_noun_phrases, tagged_words
from vistune.datagen.english import NUMBER_WORDS, capital
from vistune.datagen.quoting import text_flags
from vistune.types import Box

COLOURS = frozenset({"red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray", "grey"})
_PEOPLE_WORDS = """
    person man woman boy girl child kid baby lady guy toddler player skier snowboarder surfer skateboarder rider batter catcher
    pitcher umpire skater worker officer policeman fireman chef cook bride groom couple family team crowd people group gentleman
    male female adult teen teenager youth pedestrian passenger driver student teacher friend mother father
"""
_PEOPLE = frozenset(_PEOPLE_WORDS.split())
# Words that a caption begins a phrase with but that are no things, or not things by themselves.
_NO_THINGS_WORDS = """
    herd flock crowd group bunch couple pair lot row piece slice view photo photograph picture image front back side top bottom
    middle background foreground close day night time way kind type set number variety area edge distance air shot scene part end
    center corner line stack pile bit body hand head face mouth leg arm foot ear eye tail hair left right rest action game match
    trick motion sun sunlight weather color shade other one thing object item next inside outside ground floor wall room field sky
    grass water street road city town park beach
"""
_NO_THINGS = frozenset(_NO_THINGS_WORDS.split())
# Where one of these is said, what follows may not be there, or not be real.
_HEDGES = re.compile(
    r"\b(no|not|without|empty|fake|toy|statue|sculpture|painting|drawing|cartoon|poster|reflection|shaped|looks? like|like an?|as if|"
    r"ready to|about to|might|may|maybe|possibly|probably|appears?|seems?|or|either|instead|missing|used to|"
    r"supposed|imagin\w+|pretend\w*)\b",
    re.IGNORECASE,
)
_MANY = re.compile(r"\b(herd|crowd|many|lots|flock|dozens|bunch|numerous|variety|assortment|full of)\b", re.IGNORECASE)
_POSTURES = "sitting|standing|lying|laying|parked|resting|sleeping|hanging|perched|seated"
_PREPOSITIONS = "on top of|in front of|next to|on|in|at|near|under|beside|behind|inside|by"
_PLACED = re.compile(rf"(?P<posture>(?:{_POSTURES}) (?:{_PREPOSITIONS}) .+)")
# Brackets and signs have no place in a sentence that is repeated word for word: their markup may have been taken apart, not their order.
_PLAIN = re.compile(r"(?:[\w\s.,;!?'’‘“”\"/&%$#°–—-]|:(?=\d))+")
_LABEL = re.compile(r"[a-z]{2,20}(?: [a-z]{2,20}){0,2}")


@dataclass
class Mention:
    """How the captions speak of one noun."""

    colours: set[str] = field(default_factory=set)
    numbers: set[int] = field(default_factory=set)
    singular: int = 0
    plural: int = 0
    uncounted: bool = False
    """Some caption speaks of a herd or of many: a number that another gives may be of some of them."""
    introduced: bool = False
    """Some caption brings it in with "a": so one is there."""


@dataclass(frozen=True)
class Deed:
    """What a caption says of its subject: "the young man" "is riding a horse"."""

    who: str
    noun: str
    does: str
    is_place: bool


@dataclass(frozen=True)
class PhotoBox:
    label: str
    number: int
    xyxy: tuple[float, float, float, float]
    """Of the only one, or of all together."""

    @property
    def area(self) -> float:
        return (self.xyxy[2] - self.xyxy[0]) * (self.xyxy[3] - self.xyxy[1])

    @property
    def centre(self) -> tuple[float, float]:
        return (self.xyxy[0] + self.xyxy[2]) / 2, (self.xyxy[1] + self.xyxy[3]) / 2


@dataclass(frozen=True)
class PhotoFacts:
    captions: tuple[str, ...]
    """As sentences, without those that are suspect."""
    mentions: dict[str, Mention]
    deeds: tuple[Deed, ...]
    boxes: tuple[PhotoBox, ...]
    """One entry a label whose number is beyond doubt."""

    @property
    def present(self) -> tuple[str, ...]:
        """Nouns of which one is there."""
        return tuple(noun for noun, mention in self.mentions.items() if mention.introduced and noun not in _PEOPLE)

    @property
    def coloured(self) -> dict[str, str]:
        """Nouns that mean one thing, with its color."""
        return {
            noun: next(iter(mention.colours))
            for noun, mention in self.mentions.items()
            if len(mention.colours) == 1 and mention.introduced and not mention.plural and noun not in _PEOPLE
        }

    @property
    def counted(self) -> dict[str, int]:
        """Nouns of which all captions that speak of them agree on the number."""
        return {
            noun: next(iter(mention.numbers))
            for noun, mention in self.mentions.items()
            if len(mention.numbers) == 1
            and max(mention.numbers) > 1
            and not mention.singular
            and not mention.uncounted
            and noun not in _NO_THINGS
        }

    @property
    def single_boxes(self) -> tuple[PhotoBox, ...]:
        return tuple(box for box in self.boxes if box.number == 1)


def read_photo(captions: tuple[str, ...], boxes: tuple[Box, ...]) -> PhotoFacts:
    """The facts that captions and boxes decide; there may be none."""
    clean = [caption for caption in captions if 8 <= len(caption) <= 300 and _PLAIN.fullmatch(caption) and not text_flags(caption)]
    mentions: defaultdict[str, Mention] = defaultdict(Mention)
    deeds: list[Deed] = []
    for caption in clean:
        phrases = parse_noun_phrases(caption)
        plain = not _HEDGES.search(caption)
        for phrase in phrases:
            _note(mentions, phrase, plain)
        deed = _deed(caption) if plain else None
        deeds += [deed] if deed else []
    single = [deed for deed in deeds if not mentions[deed.noun].plural and mentions[deed.noun].numbers <= {1}]
    if len({deed.noun for deed in single if deed.noun in _PEOPLE}) > 1 or any(mentions[noun].plural for noun in _PEOPLE & mentions.keys()):
        single = [deed for deed in single if deed.noun not in _PEOPLE]
    if any(_MANY.search(caption) for caption in clean):
        for mention in mentions.values():
            mention.uncounted = True
    return PhotoFacts(tuple(_as_sentence(caption) for caption in clean), dict(mentions), tuple(single), _grouped(boxes, mentions))


def _as_sentence(caption: str) -> str:
    text = capital(re.sub(r"\s+([.,])", r"\1", caption.strip()).rstrip(" .,;:"))
    return text if text[-1] in "!?" else f"{text}."


def _note(mentions: defaultdict[str, Mention], phrase: NounPhrase, plain: bool) -> None:
    words = [word.lower() for word in phrase.words]
    tagged = list(zip(words, phrase.tags, strict=True))
    nouns = [word for word, tag in tagged if tag in ("NN", "NNS") and word not in COLOURS]
    if not nouns or not all(word.isalpha() and word.isascii() for word in nouns):
        return
    is_plural = phrase.tags[-1] == "NNS" or words[-1] in ("people", "men", "women", "children", "sheep", "deer", "fish")
    noun = " ".join([*nouns[:-1], lemma(nouns[-1], "NNS" if is_plural else "NN")])
    mention = mentions[noun]
    if len(nouns) > 1:  # "a tennis player" is also a player
        last = mentions[noun.rpartition(" ")[2]]
        last.plural, last.singular = last.plural + is_plural, last.singular + (not is_plural)
    mention.plural, mention.singular = mention.plural + is_plural, mention.singular + (not is_plural)
    mention.numbers |= {_number(word) for word in words if _number(word)}
    # "A small teddy bear" is not named by its last word, and a "person surfing" is not a kind of person.
    unclear = len(nouns) > 1 and (
        "JJ" in [tag for word, tag in tagged if word not in COLOURS] or any(word.endswith("ing") for word in nouns)
    )
    if not plain or unclear or noun in _NO_THINGS:
        return
    colours = {"gray" if word == "grey" else word for word in words if word in COLOURS}
    mention.colours |= colours if words[0] in ("a", "an", "the", "one") or not colours else colours | {"?"}
    mention.introduced = mention.introduced or (words[0] in ("a", "an") and not is_plural and len(nouns) <= 2)


def _number(word: str) -> int:
    return NUMBER_WORDS.index(word) if word in NUMBER_WORDS[1:] else int(word) if word.isdecimal() and len(word) < 3 else 0


def _deed(caption: str) -> Deed | None:
    """ "A young man (is) riding a horse on a beach." → what the young man does."""
    text = caption.strip().rstrip(" .")
    tagged = tagged_words(text)
    end = 0
    while end < len(tagged) and tagged[end][1] in ("DT", "JJ", "NN"):
        end += 1
    if end < 2 or end + 1 >= len(tagged) or tagged[0][0].lower() not in ("a", "an") or tagged[end - 1][1] != "NN":
        return None
    words = [word.lower() for word, _ in tagged]
    noun = words[end - 1]
    start = end + 1 if words[end] == "is" else end
    if noun in _NO_THINGS or start >= len(words) or not words[start].endswith("ing") or tagged[start][1] not in ("VBG", "NN"):
        return None
    who = " ".join(words[1:end])
    does = text.lower().partition(f"{who} ")[2].removeprefix("is ")
    if not does or re.search(r"\b(and|while|as|with another|other)\b", does) or not re.fullmatch(r"[a-z ,'-]+", does):
        return None
    return Deed(f"the {who}", noun, does, bool(_PLACED.fullmatch(does)))


def _grouped(boxes: tuple[Box, ...], mentions: defaultdict[str, Mention]) -> tuple[PhotoBox, ...]:
    """Labels with the number of their boxes, without those where captions, overlaps or a crowd leave a doubt."""
    groups: defaultdict[str, list[Box]] = defaultdict(list)
    for box in boxes:
        left, top, right, bottom = box.xyxy
        if _LABEL.fullmatch(box.label.lower()) and not text_flags(box.label) and 0 <= left < right <= 1 and 0 <= top < bottom <= 1:
            groups[box.label.lower()].append(box)
    found = []
    for label, group in groups.items():
        names = _PEOPLE if label in _PEOPLE else {label, label.rpartition(" ")[2]}
        told = [mentions[name] for name in names if name in mentions]
        numbers = {number for mention in told for number in mention.numbers}
        if len(group) == 1:
            doubt = any(mention.plural for mention in told) or (label in _PEOPLE and sum(mention.singular > 0 for mention in told) > 2)
        else:
            doubt = bool(numbers - {len(group)}) or any(mention.singular for mention in told)
        if doubt or len(group) > 5 or any(_same_place(one, other) for place, one in enumerate(group) for other in group[:place]):
            continue
        edges = list(zip(*(box.xyxy for box in group), strict=True))
        found.append(PhotoBox(label, len(group), (min(edges[0]), min(edges[1]), max(edges[2]), max(edges[3]))))
    return tuple(found)


def _same_place(one: Box, other: Box) -> bool:
    """Two boxes that share more than half of the smaller: perhaps one thing annotated twice, or hard to tell apart."""
    width = min(one.xyxy[2], other.xyxy[2]) - max(one.xyxy[0], other.xyxy[0])
    height = min(one.xyxy[3], other.xyxy[3]) - max(one.xyxy[1], other.xyxy[1])
    areas = [(box.xyxy[2] - box.xyxy[0]) * (box.xyxy[3] - box.xyxy[1]) for box in (one, other)]
    return width > 0 and height > 0 and width * height > 0.5 * min(areas)
