"""The things that a text names: its noun phrases and their head nouns. English, offline, a few thousand sentences a second.

    "A small brown dog near the red fire hydrants"  ─tag─►  words with parts of speech  ─cut─►  "small brown dog" · "red fire hydrant"

Parts of speech come from `textblob.en.parse` (the shallow parser and lexicon of Pattern, packaged with TextBlob). It was made from
newspapers and looks at one word at a time, which has two uses here: a tag can be remembered per word, and where captions use a word
otherwise (a *teddy bear*, the *stop sign*, a man *rides* a wave), its neighbours can correct it. Phrases are cut here and not by TextBlob,
whose chunks run across "and" and "'s": "a man and a dog" are two things.

Used by the concept filter (`concept_filter.py`) and by the filter that asks whether an answer is grounded (`filters.py`).
"""

from __future__ import annotations

import functools
import re
import warnings
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class NounPhrase:
    """Words of a text as they stand there, from the determiner to the head noun, which is last."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    """Penn Treebank parts of speech, one a word."""

    def normalised(self, *, lower_case: bool = True, strip_determiners: bool = True, lemmatise: bool = True) -> str:
        """The phrase as one string, so that "The Dogs" and "a dog" may count as the same: "dog".

        Args:
            lower_case: write all words in lower case.
            strip_determiners: leave out what comes before the description: articles, possessives, quantifiers and numbers.
            lemmatise: put the nouns into the singular. Written in lower case, because the rules of the plural are.
        """
        pairs = list(zip(self.words, self.tags, strict=True))
        if strip_determiners:
            pairs = [pair for pair in pairs if pair[1] not in _DETERMINERS]
        words = (lemma(word, tag) if lemmatise and tag in _NOUNS else word for word, tag in pairs)
        text = " ".join(words)
        return text.lower() if lower_case else text

    @property
    def head(self) -> str:
        """The noun that says what the thing is, in the singular and lower case: "city streets" is about a "street"."""
        return lemma(self.words[-1], self.tags[-1]).lower()


def noun_phrases(text: str) -> list[str]:
    """The things a text names, in order, each in lower case, without determiner and in the singular; one named twice is there twice."""
    return [phrase.normalised() for phrase in parse_noun_phrases(text)]


def nouns(text: str, *, which: Literal["heads", "all"] = "heads") -> list[str]:
    """The nouns of a text's noun phrases, in order, each in lower case and in the singular.

    Args:
        which: only what each phrase is about ("a city street" → street), or also the nouns that describe it (→ city, street).
    """
    phrases = parse_noun_phrases(text)
    if which == "heads":
        return [phrase.head for phrase in phrases]
    return [lemma(word, tag).lower() for phrase in phrases for word, tag in zip(phrase.words, phrase.tags, strict=True) if tag in _NOUNS]


def parse_noun_phrases(text: str) -> list[NounPhrase]:
    """Every noun phrase of a text, in order. A pronoun names nothing by itself and is none."""
    tagged = tagged_words(text)
    words, tags = [word for word, _ in tagged], [tag for _, tag in tagged]
    shape = "".join(_LETTERS.get(tag, ".") for tag in tags)
    return [NounPhrase(tuple(words[slice(*cut.span())]), tuple(tags[slice(*cut.span())])) for cut in _PHRASE.finditer(shape)]


def tagged_words(text: str) -> list[tuple[str, str]]:
    """The words and signs of a text, each with its part of speech (Penn Treebank)."""
    words = _WORD.findall(text)
    return list(zip(words, _tags(words), strict=True))


@functools.lru_cache(maxsize=65536)
def lemma(word: str, tag: str = "NNS") -> str:
    """A noun in the singular. Only a word tagged as a plural (NNS, NNPS) changes."""
    if tag not in ("NNS", "NNPS") or word.isupper():
        return word
    lower = word.lower()
    return _SINGULARS.get(lower) or _textblob().singularize(lower)


# Words and their parts of speech --------------------------------------------------------------------------------------------------------

_WORD = re.compile(
    r"[^\W\d_]+(?=n['’]t\b)|n['’]t\b"  # do|n't
    r"|['’](?:s|m|re|ve|ll|d)\b"  # dog|'s
    r"|\w+(?:-\w+)*|[^\w\s]"
)
_DETERMINERS = frozenset({"DT", "PDT", "WDT", "PRP$", "WP$", "CD"})
_NOUNS = frozenset({"NN", "NNS", "NNP", "NNPS"})
_LETTERS = (
    dict.fromkeys(_DETERMINERS, "D")
    | dict.fromkeys(_NOUNS, "N")
    | dict.fromkeys(("JJ", "JJR", "JJS"), "A")
    | dict.fromkeys(("RB", "RBR", "RBS"), "R")
    | {"CC": "K"}
)
# (the) (three) (very big and rather old) (fire hydrants). The bounds keep a text of adverbs without end from taking quadratic time.
_PHRASE = re.compile(r"D{0,4}(?:R{0,3}A(?:K?R{0,3}A){0,8})?N+")


_CORRECTED = frozenset({"VB", "VBP", "VBG", "VBN", "VBD", "JJ", "NNS"})


def _tags(words: list[str]) -> list[str]:
    """The part of speech of each word: the usual one, corrected where its neighbours show that captions use it otherwise."""
    tags = [_usual_tag(word) for word in words]
    for place, tag in enumerate(tags):
        if tag not in _CORRECTED:
            continue
        before = tags[place - 1] if place else ""
        after = tags[place + 1] if place + 1 < len(tags) else ""
        describes = before in _DETERMINERS or before.startswith("JJ")
        names = after in _NOUNS or after.startswith("JJ")
        match tag:
            case "VB" | "VBP" if describes or before == "POS":  # the stop sign, a brown bear
                tags[place] = "NN"
            case "VBG" | "VBN" | "VBD" if describes and names:  # a parked car, the living room
                tags[place] = "JJ"
            case "JJ" if before in _DETERMINERS and after not in _NOUNS and not after.startswith(("JJ", "CC", "VBG", "VBN")):
                tags[place] = "NN"  # an orange on a plate
            case "NNS" if before in _NOUNS or before == "PRP":
                if words[place].lower() in _CAPTION_VERBS:  # a man rides a wave
                    tags[place] = "VBZ"
    return tags


@functools.lru_cache(maxsize=262_144)
def _usual_tag(word: str) -> str:
    textblob = _textblob()
    lower = word.lower()
    if lower in _CAPTION_TAGS:
        return _CAPTION_TAGS[lower]
    if word.isdecimal():
        return "CD"
    if not word[0].isalnum():
        return "POS" if lower in ("'s", "’s") else "."
    # A capital may be the beginning of a sentence or a headline, so the word in lower case is asked first; US is not us.
    known = lower if not word.isupper() and lower in textblob.lexicon else word
    return textblob.parse(known, tokenize=False, chunks=False, split=True)[0][0][1].partition("-")[0]


# The usual parts of speech of words that newspapers use otherwise than captions do.
_CAPTION_TAGS = {
    **dict.fromkeys(("check", "hold", "wear"), "VB"),
    **dict.fromkeys(("bear", "frisbee", "lego", "selfie"), "NN"),
    **dict.fromkeys(("polar", "teal", "maroon", "beige"), "JJ"),
    **dict.fromkeys(("some", "any", "no", "each", "every", "both", "all", "several", "many", "few", "various"), "DT"),
    **dict.fromkeys(("that", "s", "t", "there"), "."),
}
# Plurals of the newspaper that after a noun are what somebody does in a picture.
_CAPTION_VERB_LIST = """
    catches checks climbs crosses dances drinks drives eats flies hits holds jumps kicks kisses leans lifts looks paints plays poses pulls
    pushes races reaches reads rests rides rolls runs serves shows sits skates skis sleeps slides smiles stands stops surfs swings talks
    throws touches turns waits walks watches waves wears works
"""
_CAPTION_VERBS = frozenset(_CAPTION_VERB_LIST.split())
_NO_SINGULAR = """
    binoculars clothes goggles headphones jeans leggings media overalls pajamas pants pliers pyjamas scissors series shorts species
    sunglasses sweatpants tights trousers tweezers
"""
# Where TextBlob's rules of the plural are wrong, or the word has no singular.
_SINGULARS = {
    "brownies": "brownie",
    "calories": "calorie",
    "canoes": "canoe",
    "caves": "cave",
    "dice": "die",
    "gloves": "glove",
    "hoes": "hoe",
    "hooves": "hoof",
    "hoodies": "hoodie",
    "lenses": "lens",
    "lies": "lie",
    "menus": "menu",
    "olives": "olive",
    "pies": "pie",
    "selfies": "selfie",
    "skis": "ski",
    "smoothies": "smoothie",
    "taxis": "taxi",
    "ties": "tie",
    "toes": "toe",
} | {word: word for word in _NO_SINGULAR.split()}


@dataclass(frozen=True)
class _TextBlob:
    parse: Any
    lexicon: Any
    singularize: Any


@functools.cache
def _textblob() -> _TextBlob:
    """TextBlob's English parser, loaded when the first text comes (half a second, 40 MB)."""
    from textblob.en import lexicon, parse
    from textblob.en.inflect import singularize

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the closing of its file to the garbage collector
        len(lexicon)  # reads it
    return _TextBlob(parse, lexicon, singularize)
