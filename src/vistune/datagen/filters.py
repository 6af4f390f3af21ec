"""Which parsed replies go into the data: one table of filters, each with its reason to drop.

A filter is a pure function of a candidate and never raises, whatever the text; so a row can be judged again, in any order, with the same
verdicts. What each looks for is in the file of its subject (`refusals.py`, `leaks.py`, `grounding.py`); those that need no more than a
page are here. Only duplicates depend on the rows before: `DuplicateFilter` remembers those, for one run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from vistune.datagen.duplicates import Deduplicator
from vistune.datagen.grounding import unsupported_things
from vistune.datagen.leaks import injection_in, link_or_code_in, scaffolding_in
from vistune.datagen.parse import MAX_REPLY_CHARACTERS, ROLE_MARKER, Turns
from vistune.datagen.refusals import refusal_in
from vistune.datagen.teacher import Kind, Shape
from vistune.errors import UnknownName
from vistune.types import ImageAnnotations


@dataclass(frozen=True)
class Candidate:
    """A parsed reply on its way into the data, with the picture's annotations and the reply as the teacher wrote it."""

    annotations: ImageAnnotations
    kind: Kind
    turns: Turns
    reply: str = ""

    @property
    def answers(self) -> tuple[str, ...]:
        return tuple(answer for _, answer in self.turns)

    @property
    def texts(self) -> tuple[str, ...]:
        """All that would be trained on. The question to a description is ours and is not judged."""
        return self.answers if self.kind.shape == "description" else tuple(text for turn in self.turns for text in turn)


@dataclass(frozen=True)
class Filter:
    """`check` says why a candidate is dropped, or None."""

    name: str
    description: str
    check: Callable[[Candidate], str | None]


@dataclass(frozen=True)
class Verdict:
    """What one filter says of one candidate: `reason` is None if it may stay."""

    filter: str
    reason: str | None

    @property
    def kept(self) -> bool:
        return self.reason is None


@dataclass(frozen=True)
class LengthLimits:
    """Least and most words. A word is a run of letters and digits, or one character of a script without spaces."""

    question: tuple[int, int]
    answer: tuple[int, int]
    turns: int = 1


# Around what LLaVA's own data has: answers of a dialogue down to one word, descriptions and reasoning of a paragraph to a page.
LENGTH_LIMITS: Mapping[Shape, LengthLimits] = {
    "dialogue": LengthLimits(question=(2, 60), answer=(1, 250), turns=16),
    "description": LengthLimits(question=(2, 60), answer=(12, 500)),
    "pair": LengthLimits(question=(3, 80), answer=(1, 500)),
}


def filter_names() -> tuple[str, ...]:
    """All filters in the order in which they are asked, those of duplicates last."""
    return (*FILTERS, *DUPLICATE_FILTERS)


def filter_description(name: str) -> str:
    """What a filter looks for, in a line. Raises UnknownName, which lists the filters."""
    return DUPLICATE_FILTERS[name] if name in DUPLICATE_FILTERS else filter_named(name).description


def filter_named(name: str) -> Filter:
    """A filter that judges a row alone. Raises UnknownName, which lists the filters."""
    try:
        return FILTERS[name]
    except KeyError:
        raise UnknownName("filter", name, known=filter_names()) from None


def run_filters(candidate: Candidate, names: Iterable[str]) -> tuple[Verdict, ...]:
    """The verdicts of these filters of `FILTERS`, in their order."""
    return tuple(Verdict(name, filter_named(name).check(candidate)) for name in names)


class DuplicateFilter:
    """The filters of `DUPLICATE_FILTERS`, which compare a row with those that were kept before it.

    Ask with `check` in the order of the rows, and `keep` each candidate that no filter dropped.
    """

    def __init__(self, names: Iterable[str] | None = None, *, near: float = 0.5, capacity: int = 100_000):
        self._names = tuple(DUPLICATE_FILTERS if names is None else names)
        if stranger := next((name for name in self._names if name not in DUPLICATE_FILTERS), None):
            raise UnknownName("filter of duplicates", stranger, known=DUPLICATE_FILTERS)
        self._deduplicator = Deduplicator(near=near, capacity=capacity)

    def check(self, candidate: Candidate) -> tuple[Verdict, ...]:
        found = self._deduplicator.find(candidate.annotations.image, _trained_on(candidate)) if self._names else None
        verdicts = []
        for name in self._names:
            objects = found is not None and (found.similarity == 1.0) == (name == "exact_duplicate")
            verdicts.append(Verdict(name, f"{found.similarity:.0%} the same as kept row {found.earlier}" if found and objects else None))
        return tuple(verdicts)

    def keep(self, candidate: Candidate) -> None:
        if self._names:
            self._deduplicator.keep(candidate.annotations.image, _trained_on(candidate))


def _trained_on(candidate: Candidate) -> str:
    return "\n".join(candidate.texts)


# --- the checks ---------------------------------------------------------------------------------------------------------------------------

_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]+(?:['’-][^\W_]+)*"
)
# At the beginning of a line or sentence: "Next question: where is it?" is a way to ask.
_TURN_INSIDE = re.compile(
    r"(?:^|[.!?…)\]\"'“”]\s{1,3}|[*_(])[*_(]{0,3}(?:question|answer|user|human|assistant|person)\s?\d{0,3}\s?(?:\*\*)?[:：]"
    r"|(?:^|[.!?]\s{1,3})(?:Q|A)\d{0,2}[:：]\s",
    re.IGNORECASE | re.MULTILINE,
)
_ASKED_BACK = re.compile(r"[^.!?。！？]*[?？]\W*")
_ASKS_WHAT = re.compile(r"\b(?:what|which|who|whose|where|how)\b", re.IGNORECASE)
# Questions that must name what they ask about: to be confirmed, to be chosen from, supposed.
_MAY_NAME_ANSWER = re.compile(
    r"(?:^|[:,.?!]\s{0,3})\W*(?:(?:so|and|but|then|also|well|ok|okay)\W{1,3})?(?:is|are|was|were|do|does|did|can|could|has|have|had"
    r"|will|would|should"
    r"|may|might|must|am)(?:n['’]t)?\b|\b(?:whether|if|check|true|false|yes|no|would|letter|or|than|between|either|versus|vs)\b",
    re.IGNORECASE,
)
_TAG_QUESTION = re.compile(
    r",\s*(?:(?:is|are|was|were|do|does|did|has|have|can)(?:n['’]t| not)?) (?:it|they|he|she|there|this|that)(?: not)?\s*\?\W*$"
    r"|,\s*(?:right|correct|no)\s*\?\W*$",
    re.IGNORECASE,
)
# Names of colours that are names of things: "What color is the orange? — Orange." gives nothing away.
_COLOURED_THINGS = frozenset(
    {"orange", "peach", "plum", "rose", "violet", "lime", "olive", "salmon", "lavender", "gold", "silver", "cherry", "chocolate"}
)
# "How many cats are there? Answer in one word." does not say that there is one.
_HOW_TO_ANSWER = re.compile(r"[^.?!]*\b(?:sentences?|words?|letters?|phrase|numbers?|digits?)\b[^.?!]*", re.IGNORECASE)
_DENIES = re.compile(r"\b(?:no|not|none|nothing|nobody|never|zero)\b|n['’]t\b", re.IGNORECASE)
_ASKS_COLOUR = re.compile(r"\bcolou?r", re.IGNORECASE)
_EMPTY_WORD_LIST = """
    a an the this that these those it its they them their there here he she him her his is are was were be been being am do does did has
    have had of in on at to by for from with and or as up out into onto over under so very what which who whom whose where when why how many
    much color colour kind type sort object thing things picture image photo scene shown visible seen see can you i we some any not
    no yes also located called named
"""
_EMPTY_WORDS = frozenset(_EMPTY_WORD_LIST.split())
_COPIED_WORDS = 5
_COPIED_SHARE = 0.8
_LOOP_WORDS = 6
_LOOP_TIMES = 4


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _not_alternating(candidate: Candidate) -> str | None:
    if not candidate.turns:
        return "it has no turns"
    for number, (question, answer) in enumerate(candidate.turns, 1):
        if not (_words(question) and _words(answer)):
            return f"the {'answer' if _words(question) else 'question'} of turn {number} has no words"
        for part, text in (("question", question), ("answer", answer)):
            if match := _TURN_INSIDE.search(text) or ROLE_MARKER.search(text):
                return f"the {part} of turn {number} holds another turn ({match.group().strip()!r})"
        if candidate.kind.shape != "description" and _ASKED_BACK.fullmatch(answer[:2000]):
            return f"the answer of turn {number} is a question"
    return None


def _too_short(candidate: Candidate) -> str | None:
    return _length(candidate, too_long=False)


def _too_long(candidate: Candidate) -> str | None:
    limits = LENGTH_LIMITS[candidate.kind.shape]
    if len(candidate.turns) > limits.turns:
        return f"it has {len(candidate.turns)} turns; at most {limits.turns} are wanted"
    characters = sum(map(len, candidate.texts))
    if characters > MAX_REPLY_CHARACTERS:
        return f"it has {characters} characters; at most {MAX_REPLY_CHARACTERS} are wanted"
    return _length(candidate, too_long=True)


def _length(candidate: Candidate, *, too_long: bool) -> str | None:
    limits = LENGTH_LIMITS[candidate.kind.shape]
    for question, answer in candidate.turns:
        for part, text, (least, most) in (("question", question, limits.question), ("answer", answer, limits.answer)):
            count = len(_words(text))
            if count > most if too_long else count < least:
                return f"{part} of {count} words; {least} to {most} are wanted"
    return None


def _repetition(candidate: Candidate) -> str | None:
    asked: set[str] = set()
    for question, answer in candidate.turns:
        key = " ".join(_words(question.casefold()))
        if key in asked:
            return f"it asks twice: {question[:60]!r}"
        asked.add(key)
        words = _words(answer.casefold())
        runs: dict[tuple[str, ...], int] = {}
        for start in range(len(words) - _LOOP_WORDS + 1):
            run = tuple(words[start : start + _LOOP_WORDS])
            runs[run] = runs.get(run, 0) + 1
            if runs[run] >= _LOOP_TIMES:
                return f"its answer goes round in a loop: {' '.join(run)!r}"
    return None


def _refusal(candidate: Candidate) -> str | None:
    return next((reason for answer in candidate.answers if (reason := refusal_in(answer))), None)


def _scaffolding(candidate: Candidate) -> str | None:
    return next((reason for text in candidate.texts if (reason := scaffolding_in(text, candidate.annotations))), None)


def _injection(candidate: Candidate) -> str | None:
    return injection_in(candidate.texts, candidate.annotations)


def _link_or_code(candidate: Candidate) -> str | None:
    return next((reason for text in candidate.texts if (reason := link_or_code_in(text))), None)


def _unsupported(candidate: Candidate) -> str | None:
    things = unsupported_things(candidate.annotations, candidate.turns, reasoning=candidate.kind.shape == "pair")
    return f"neither captions nor boxes know of: {', '.join(things)}" if things else None


def _gives_away(candidate: Candidate) -> str | None:
    if candidate.kind.shape == "description":
        return None
    captions = [_content(caption) for caption in candidate.annotations.captions]
    for question, answer in candidate.turns:
        if _TAG_QUESTION.search(question) and re.match(r"\W*(?:yes|no|right|correct|indeed|exactly)\b", answer, re.IGNORECASE):
            return f"the question only asks to be confirmed: {question[:80]!r}"
        asked = _content(question)
        for caption in captions:
            if len(caption) >= _COPIED_WORDS and len(asked & caption) >= _COPIED_SHARE * len(caption):
                return f"the question tells what a caption tells: {question[:80]!r}"
        if _MAY_NAME_ANSWER.search(question) or not _ASKS_WHAT.search(question) or _DENIES.search(answer):
            continue
        asked = _content(_HOW_TO_ANSWER.sub(" ", question))
        told = _content(answer)
        if told and told <= asked and not (told & _COLOURED_THINGS and _ASKS_COLOUR.search(question)):
            return f"every word of the answer is in the question: {question[:60]!r} {answer[:40]!r}"
    return None


def _content(text: str) -> frozenset[str]:
    """A text's words that carry its meaning, without the ending of a plural."""
    words = (word.casefold() for word in _words(text))
    return frozenset(word.removesuffix("s") if len(word) > 3 else word for word in words if word not in _EMPTY_WORDS)


def _table(*filters: Filter) -> dict[str, Filter]:
    return {each.name: each for each in filters}


FILTERS: Mapping[str, Filter] = _table(
    Filter("not_alternating", "a turn inside a turn, an empty turn, an answer that asks back", _not_alternating),
    Filter("too_short", "a question or answer of too few words for its kind", _too_short),
    Filter("too_long", "too many words or turns for its kind", _too_long),
    Filter("repetition", "a question asked twice, an answer that goes round in a loop", _repetition),
    Filter("refusal", "an answer that declines (five languages)", _refusal),
    Filter("scaffolding", "captions, boxes or coordinates spoken of: the teacher's side shows", _scaffolding),
    Filter("injection", "annotations that give orders, or a trace of an order that was followed", _injection),
    Filter("link_or_code", "links, addresses, markup, code", _link_or_code),
    Filter("unsupported", "things claimed that neither captions nor boxes know of (English)", _unsupported),
    Filter("gives_away", "a question that gives its answer or the caption away", _gives_away),
)
DUPLICATE_FILTERS: Mapping[str, str] = {
    "exact_duplicate": "the same words as an earlier row (short rows: of the same picture)",
    "near_duplicate": "nearly the words of an earlier row (short rows: of the same picture)",
}
