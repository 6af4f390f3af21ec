"""Finds things that an answer claims to see and that neither the captions nor the boxes know of.

The teacher has not seen the picture, so what it adds is invented. Checked are the things of `lexicon/things.txt` (about 1,800 names
with synonyms, categories and parts; English): a word not in it passes, because an open vocabulary cannot be told from abstractions,
places and moods without throwing out good rows. A thing is supported by a synonym, by a member of its category ("animal" by a dog), by a
whole that has it as a part ("wheel" by a car), or by standing in the annotations as a word.

Only what is claimed counts: not what is denied ("no dogs", "without a helmet"), supposed ("he may wear a hat"), compared ("like a boat") or
told from general knowledge ("a racket has strings"). Answers to questions about the picture are taken at their word; in answers to *why*,
*how* and *what could*, only sentences that speak of the picture are ("there is", "in the background", "is wearing").
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vistune.datagen.concepts import lemma, tagged_words
from vistune.types import ImageAnnotations

THINGS = Path(__file__).parent / "lexicon" / "things.txt"
LONGEST_PHRASE = 3
"""Words in the longest name of the lexicon that is looked for."""

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_CLAUSE = re.compile(r"\s*(?:[,;:()]|—|–| - |\bbut\b|\bhowever\b|\bwhile\b|\bwhereas\b|\balthough\b)\s*", re.IGNORECASE)
_DENIAL = re.compile(
    r"\b(?:no|not|none|never|neither|nor|without|lacks?|lacking|absence|absent|free of|devoid|missing|cannot|unable|instead of"
    r"|rather than|unlike"
    r"|hardly|nothing|nobody)\b|n['’]t\b",
    re.IGNORECASE,
)
_LIKENESS = re.compile(
    r"\b(?:like|resembl\w+|such as|similar to|as if|as though|reminiscent|shaped|themed|than|printed|drawing of|picture of)\b",
    re.IGNORECASE,
)
_SUPPOSITION = re.compile(
    r"\b(?:may|might|could|would|should|must|shall|will|perhaps|maybe|possibl[ey]|potential\w*|probabl[ey]|likely|suggest\w*|impl(?:y"
    r"|ies|ying)|indicat\w+|if|when|whenever|unless|often|usually|typical\w*"
    r"|general\w*|common\w*|sometimes|example|e\.g|imagine|consider|ensur\w+|recommend\w*|advis\w+|need\w*|want\w*|help\w*|purpose"
    r"|used (?:to|for|as|by)|uses?|known for|in case|designed|made (?:from|for|to)|symboli\w+|associat\w+"
    r"|tradition\w*|histor\w+|originat\w+|invented|expect\w*|plan\w*|prepar\w+|waiting (?:for|to)|hop(?:e|es|ing)|intend\w*|about to"
    r"|going to|try\w*|tries|look(?:s|ing)? for|ready (?:to|for)|important|remember|avoid\w*"
    r"|(?<!trash )(?<!garbage )(?<!soda )(?<!watering )(?<!a )can(?! (?:also |clearly |just )?(?:be (?:seen|spotted|found)"
    r"|see\b|spot\b|make out)))\b",
    re.IGNORECASE,
)
_SPEAKS_OF_PICTURE = re.compile(
    r"\bthere(?:'s| is| are| appears?| seems?)\b|\bin (?:the|this) (?:image|picture|photo|photograph|scene|background|foreground"
    r"|distance)\b|\b(?:is|are) (?:also |clearly |partially )?(?:visible|present|shown|seen|located|placed|positioned)\b"
    r"|\bcan (?:also )?be (?:seen|spotted|found)\b|\b(?:we|i|you) (?:can )?(?:also )?see\b|\b(?:shows?|depicts?|features?|captures?)\b"
    r"|\b(?:is|are) (?:\w+ly |also |both |all )?\w+ing\b|\bnext to (?:him|her|them|it)\b",
    re.IGNORECASE,
)
_KNOWLEDGE_QUESTION = re.compile(
    r"^\W*(?:why|how (?!many|much|is the \w+ (?:dressed|positioned|sitting)|are the \w+ (?:dressed|arranged|positioned)|old|tall|big)"
    r"|explain|tell me (?:more )?about|in what ways?|for what|under what"
    r"|(?:what|which|where|who)\b[^?]{0,40}\b(?:might|could|would|should|can(?! (?:you|be|we|i) )|may|need|purpose|histor\w+|benefits?"
    r"|function|significance"
    r"|origin\w*|invented|made of|made from|used for|known|usually|typically|often|generally|tips?|advice|precautions?|challenges?"
    r"|factors?|reasons?|safety|rules?|skills?|eat|mean|symboli\w+|role|important|advantages?|risks?|safe))",
    re.IGNORECASE,
)
# "What do people get from sheep?" points at nothing in the picture; "What do they eat?" does.
_GENERIC_QUESTION = re.compile(r"^\W*(?:what|where|which|when|who)\b[^?]{0,30}\b(?:do|does|did)\b(?! you\b)", re.IGNORECASE)
_POINTS_AT_PICTURE = re.compile(
    r"\b(?:the|this|that|these|those|there|here|it|its|he|him|his|she|her|they|them|their|you|image|picture|photo|scene|shown|visible)\b",
    re.IGNORECASE,
)
_ASKS_WHETHER = re.compile(
    r"^\W*(?:is|are) there\b|^\W*(?:can|do) you (?:see|notice)\b|^\W*does the (?:image|picture|photo|scene) (?:show|contain|include"
    r"|have)\b",
    re.IGNORECASE,
)
_YES_NO = re.compile(r"^\W*(?:is|are|was|were|do|does|did|can|could|has|have|will|would|should)\b", re.IGNORECASE)
_YES_OR_NO = re.compile(r"^\W*(?:yes|no)\b\W*", re.IGNORECASE)
_YES = re.compile(r"^\W*(?:yes|yeah|yep|indeed|correct|sure)\b", re.IGNORECASE)
_NO = re.compile(r"^\W*(?:no|none|nope|nothing|nobody)\b\W*|\bthere (?:is|are) no\b", re.IGNORECASE)
_NOUNS = frozenset({"NN", "NNS", "NNP", "NNPS"})
_ARTICLES = frozenset({"a", "an"})
# Said of somebody in general as often as of somebody in the picture.
_GENERIC = frozenset({"person", "human being"})


@dataclass(frozen=True)
class _Lexicon:
    """`concepts`: a name, as its words, → what it may stand for; `parents`: a concept → its category; `parts`: a name → names of parts."""

    concepts: dict[tuple[str, ...], frozenset[str]]
    parents: dict[str, str]
    parts: dict[tuple[str, ...], tuple[tuple[str, ...], ...]]
    categories: frozenset[str]

    def ancestors(self, concept: str) -> Iterator[str]:
        """The concept and its categories, upwards."""
        step: str | None = concept
        while step is not None:
            yield step
            step = self.parents.get(step)


@dataclass(frozen=True)
class _Support:
    """What the annotations of a picture know: words, names of up to three words, concepts with all above them."""

    words: frozenset[str]
    concepts: frozenset[str]
    knows_other_things: bool
    """Whether a noun of the annotations is in no list, so that its category is unknown."""


def unsupported_things(annotations: ImageAnnotations, turns: tuple[tuple[str, str], ...], *, reasoning: bool) -> list[str]:
    """The things that the turns claim to be in the picture and that its annotations do not support, each once, in order.

    Args:
        reasoning: all questions ask for reasons or advice, whatever their words.
    """
    support = _support(annotations.captions, tuple(box.label for box in annotations.boxes))
    found: dict[str, None] = {}
    for question, answer in turns:
        generic = _GENERIC_QUESTION.match(question) is not None and not _POINTS_AT_PICTURE.search(question)
        knowledge = reasoning or generic or _KNOWLEDGE_QUESTION.match(question) is not None
        claims = list(_claims(answer, must_speak_of_picture=knowledge))
        if _ASKS_WHETHER.match(question) and _YES.match(answer):
            claims.append(question)
        for claim in claims:
            found |= dict.fromkeys(_unsupported(claim, support, only_definite=False))
        if not knowledge and not _YES_NO.match(question) and not _NO.search(answer):
            found |= dict.fromkeys(_unsupported(question, support, only_definite=True))
    return list(found)


def _claims(answer: str, *, must_speak_of_picture: bool) -> Iterator[str]:
    """The parts of an answer that say what is in the picture."""
    for sentence in _SENTENCE.split(answer):
        sentence = _YES_OR_NO.sub("", " ".join(sentence.split()))
        if must_speak_of_picture and not _SPEAKS_OF_PICTURE.search(sentence):
            continue
        denied = False
        for clause in _CLAUSE.split(sentence):
            if _SUPPOSITION.search(clause):
                break
            words = clause.split()
            if denied and (len(words) <= 4 or words[0].lower() in ("or", "nor", "and")):
                continue  # "no dogs, cats or birds" denies them all
            denied = _DENIAL.search(clause) is not None
            ends = [match.start() for expression in (_DENIAL, _LIKENESS) if (match := expression.search(clause))]
            yield clause[: min(ends, default=len(clause))]


def _unsupported(text: str, support: _Support, *, only_definite: bool) -> Iterator[str]:
    """Things in a text that are not supported. `only_definite`: those named as known, with "the" or "this"."""
    lexicon = _read_lexicon()
    tagged = tagged_words(text)
    lemmas = [lemma(word, tag).lower() for word, tag in tagged]
    place = 0
    while place < len(lemmas):
        length = next((n for n in range(LONGEST_PHRASE, 0, -1) if _names_thing(lexicon, lemmas, tagged, place, n)), 0)
        if not length:
            place += 1
            continue
        name = _name(lexicon, lemmas, tagged, place, length)
        before = lemmas[max(0, place - 3) : place]
        if (not only_definite or {"the", "this", "these", "those"} & set(before)) and not _is_supported(lexicon, name, support):
            yield " ".join(name)
        place += length


def _names_thing(lexicon: _Lexicon, lemmas: list[str], tagged: list[tuple[str, str]], place: int, length: int) -> bool:
    """Whether a name of the lexicon stands here, and not as a part of a longer noun ("car" in "car park").

    A word alone must be a noun; after an article it is one, whatever the tagger thinks of a word it does not know.
    """
    end = place + length
    if end > len(lemmas) or _name(lexicon, lemmas, tagged, place, length) not in lexicon.concepts:
        return False
    if length == 1 and tagged[place][1] not in _NOUNS and (place == 0 or lemmas[place - 1] not in _ARTICLES):
        return False
    return end == len(lemmas) or tagged[end][1] not in _NOUNS


def _name(lexicon: _Lexicon, lemmas: list[str], tagged: list[tuple[str, str]], place: int, length: int) -> tuple[str, ...]:
    """The words at a place in the singular, unless the lexicon has one as it stands: "glasses" are no glass."""
    as_written = (tagged[place][0].lower(),)
    return as_written if length == 1 and as_written in lexicon.concepts else tuple(lemmas[place : place + length])


def _is_supported(lexicon: _Lexicon, name: tuple[str, ...], support: _Support) -> bool:
    concepts = lexicon.concepts[name]
    if concepts & support.concepts or " ".join(name) in support.words or concepts & _GENERIC:
        return True
    if concepts & lexicon.categories and support.knows_other_things:
        return True
    head = (name[-1],)  # a "tennis ball" where a ball is known
    return len(name) > 1 and (name[-1] in support.words or bool(lexicon.concepts.get(head, frozenset()) & support.concepts))


@functools.lru_cache(maxsize=256)
def _support(captions: tuple[str, ...], labels: tuple[str, ...]) -> _Support:
    lexicon = _read_lexicon()
    names: set[tuple[str, ...]] = set()
    unknown = False
    for text in (*captions, *labels):
        tagged = tagged_words(text)
        # Some captions use a word as another part of speech than the tagger thinks: for support, each word counts in both forms.
        for lemmas in (
            [lemma(word, tag).lower() for word, tag in tagged],
            [lemma(word).lower() for word, _ in tagged],
            [word.lower() for word, _ in tagged],
        ):
            names |= {tuple(lemmas[i : i + n]) for n in range(1, LONGEST_PHRASE + 1) for i in range(len(lemmas) - n + 1)}
        unknown = unknown or any(tag in _NOUNS and (lemma(word, tag).lower(),) not in lexicon.concepts for word, tag in tagged)
    parts: set[tuple[str, ...]] = set()
    concepts = {above for name in names for concept in lexicon.concepts.get(name, ()) for above in lexicon.ancestors(concept)}
    for whole in {*names, *((*concept.split(),) for concept in concepts)}:
        parts.update(lexicon.parts.get(whole, ()))
    concepts |= {above for part in parts for concept in lexicon.concepts.get(part, ()) for above in lexicon.ancestors(concept)}
    return _Support(frozenset(" ".join(name) for name in names | parts), frozenset(concepts), unknown)


@functools.cache
def _read_lexicon() -> _Lexicon:
    """Reads the table of things; its first lines say how it is written."""
    concepts: dict[tuple[str, ...], set[str]] = {}
    parents: dict[str, str] = {}
    parts: dict[tuple[str, ...], tuple[tuple[str, ...], ...]] = {}
    categories: set[str] = set()
    category = ""

    def add(names: str, above: str) -> str:
        first, *others = (name.strip() for name in names.split("="))
        for name in (first, *others):
            concepts.setdefault(tuple(name.split()), set()).add(first)
        if above and above != first:
            parents[first] = above
        return first

    for line in THINGS.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("["):
            own, _, above = line.strip("[] ").partition("<")
            category = add(own.replace(", ", "=").strip(), above.strip())
            categories.add(category)
        elif " > " in line:
            whole, _, listed = line.partition(" > ")
            parts[tuple(whole.split())] = tuple(tuple(part.split()) for part in listed.split(", "))
        else:
            for names in line.split(", "):
                add(names, category)
    return _Lexicon({name: frozenset(found) for name, found in concepts.items()}, parents, parts, frozenset(categories))
