"""A little English for the template teacher: articles, plurals, numbers, and choices."""

from __future__ import annotations

import functools
import re

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

_IRREGULAR_PLURALS = {
    "man": "men", "woman": "women", "child": "children", "person": "people", "foot": "feet", "tooth": "teeth", "goose": "geese",
    "mouse": "mice", "ox": "oxen", "leaf": "leaves", "knife": "knives", "wolf": "wolves", "scarf": "scarves", "loaf": "loaves",
    "shelf": "shelves", "half": "halves", "cactus": "cacti", "hero": "heroes", "potato": "potatoes", "tomato": "tomatoes",
    "mango": "mangoes", "mosquito": "mosquitoes", "volcano": "volcanoes", "buffalo": "buffaloes", "tornado": "tornadoes",
    "superhero": "superheroes", "skis": "skis",
}  # fmt: skip
_UNCHANGED_PLURALS = frozenset(
    {"bison", "deer", "dice", "fish", "moose", "salmon", "series", "sheep", "shrimp", "species", "squid", "aircraft"}
)
# Words that begin with the sound of "you" or "one", and those whose h is not heard.
_CONSONANT_SOUND = re.compile(r"(?:uni(?!n)|use|usb|uku|eu|ufo|one\b|once)", re.IGNORECASE)
_VOWEL_SOUND = re.compile(r"(?:[aeiou]|hour|honest|heir|x-|ok\b)", re.IGNORECASE)


def with_article(words: str) -> str:
    """ "a dog", "an hourglass"."""
    vowel = _VOWEL_SOUND.match(words) and not _CONSONANT_SOUND.match(words)
    return f"{'an' if vowel else 'a'} {words}"


@functools.lru_cache(maxsize=4096)
def plural_of(noun: str) -> str:
    """The plural of a countable noun, which may be several words; of "star of David" it is "stars of David"."""
    for link in (" of ", " with "):
        if link in noun:
            head, rest = noun.split(link, 1)
            return f"{plural_of(head)}{link}{rest}"
    *before, last = noun.split(" ")
    return " ".join([*before, _plural_word(last)])


def _plural_word(word: str) -> str:
    if word in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[word]
    if word in _UNCHANGED_PLURALS or word.endswith("fish"):
        return word
    if word.endswith("man") and word not in ("human", "caiman", "shaman"):
        return f"{word[:-3]}men"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return f"{word[:-1]}ies"
    return f"{word}es" if re.search(r"(?:s|x|z|ch|sh)$", word) and not word.endswith("stomach") else f"{word}s"


def number_word(number: int) -> str:
    """ "three"; digits above twelve."""
    return NUMBER_WORDS[number] if number < len(NUMBER_WORDS) else str(number)


def capital(text: str) -> str:
    """The text with its first letter in upper case; the rest stays as it is."""
    return text[:1].upper() + text[1:]


def either(words: list[str]) -> str:
    """ "a or b", "a, b or c"."""
    return f"{', '.join(words[:-1])} or {words[-1]}"
