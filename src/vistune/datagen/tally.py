"""What a run counts as its rows pass by, for the report, the card and `run.json`: figures and a few samples, never the rows themselves."""

from __future__ import annotations

import functools
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vistune.datagen.concepts import lemma, tagged_words
from vistune.types import ImagePart, InstructionExample

SAMPLES = 24
REJECTED_SAMPLES_PER_REASON = 3
_AUXILIARIES = frozenset(
    re.findall(r"\w+", "am is are was were be been being do does did have has had can could may might must shall should will would")
)
_NO_VERBS = frozenset({"please", "let", "left"})  # as questions use them
_IRREGULAR = {
    "ate": "eat", "caught": "catch", "drawn": "draw", "eaten": "eat", "found": "find", "gave": "give", "given": "give", "held": "hold",
    "kept": "keep", "made": "make", "sat": "sit", "saw": "see", "seen": "see", "shown": "show", "stood": "stand",
    "taken": "take", "thought": "think", "told": "tell", "took": "take", "used": "use", "wore": "wear", "worn": "wear",
}  # fmt: skip
_NOUN_TAGS = ("NN", "NNS", "NNP", "NNPS")


@dataclass(frozen=True)
class Rejected:
    """A line of rejects.jsonl. `reason` is a fixed code, fit for counting; `reply` is what the teacher said, untouched."""

    image: str
    kind: str
    reason: str
    message: str
    reply: str = ""

    row: str = ""
    """Where the source has it, for a row that was never asked about."""
    objections: Mapping[str, str] = field(default_factory=dict)
    """What each filter that objected said; the first of them is `reason` and `message`."""


@dataclass
class Tally:
    """Counts of one run; the same rows in the same order give the same tally."""

    seed: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    rejected_by_kind: Counter[str] = field(default_factory=Counter)
    objections: Counter[str] = field(default_factory=Counter)
    """How many replies each filter objected to, alone or beside others."""
    repaired: int = 0
    pairs: int = 0
    turns: Counter[int] = field(default_factory=Counter)
    question_words: Counter[int] = field(default_factory=Counter)
    answer_words: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    verb_nouns: Counter[tuple[str, str]] = field(default_factory=Counter)
    samples: list[InstructionExample] = field(default_factory=list)
    rejected_samples: defaultdict[str, list[Rejected]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._draw = random.Random(f"samples/{self.seed}")

    @property
    def total_rows(self) -> int:
        return self.rows.total()

    @property
    def asked(self) -> int:
        """Replies that came back, used or not; rows that the source itself rejected are not among them."""
        return self.total_rows + self.rejected_by_kind.total()

    @property
    def reject_rate(self) -> float:
        """The share of the replies that could not be used."""
        return self.rejected_by_kind.total() / self.asked if self.asked else 0.0

    def add(self, example: InstructionExample) -> None:
        texts = [message.text.strip() for message in example.conversation.messages if message.role != "system"]
        questions, answers = texts[::2], texts[1::2]
        self.rows[example.kind] += 1
        self.pairs += len(questions)
        self.turns[len(questions)] += 1
        for question in questions:
            self.question_words[len(question.split())] += 1
            if (pair := verb_and_noun(question)) is not None:
                self.verb_nouns[pair] += 1
        for answer in answers:
            self.answer_words[example.kind][len(answer.split())] += 1
        self._sample(example)

    def reject(self, rejected: Rejected) -> None:
        self.rejected[rejected.reason] += 1
        self.objections.update(rejected.objections.keys())
        if rejected.kind:
            self.rejected_by_kind[rejected.kind] += 1
        if len(samples := self.rejected_samples[rejected.reason]) < REJECTED_SAMPLES_PER_REASON:
            samples.append(rejected)

    def figures(self) -> dict[str, Any]:
        """The counts as JSON."""
        return {
            "rows": self.total_rows,
            "rows_by_kind": dict(self.rows),
            "questions": self.pairs,
            "asked": self.asked,
            "repaired": self.repaired,
            "rejected": dict(self.rejected.most_common()),
            "objections": dict(self.objections.most_common()),
            "reject_rate": round(self.reject_rate, 4),
        }

    def _sample(self, example: InstructionExample) -> None:
        """Every row has the same chance to be among the samples (Vitter's algorithm R)."""
        if len(self.samples) < SAMPLES:
            self.samples.append(example)
        elif (place := self._draw.randrange(self.total_rows)) < SAMPLES:
            self.samples[place] = example


def picture_of(example: InstructionExample) -> ImagePart | None:
    """The row's only picture."""
    return next(iter(example.conversation.images), None)


def verb_and_noun(question: str) -> tuple[str, str] | None:
    """What a question is about, in two words: its first full verb, and the noun that follows it (or else the last before it).

    "What is the man in the red shirt holding?" → ("hold", "shirt"); "Is there a cat?" → ("be", "cat"). None where there is no noun.
    """
    tagged = tagged_words(question)
    verbs = [(place, word.lower()) for place, (word, tag) in enumerate(tagged) if tag.startswith("VB") and word.lower() not in _NO_VERBS]
    place, verb = next(((place, word) for place, word in verbs if word not in _AUXILIARIES), verbs[0] if verbs else (0, "be"))
    nouns = [(at, lemma(word, tag).lower()) for at, (word, tag) in enumerate(tagged) if tag in _NOUN_TAGS and at != place]
    if not nouns:
        return None
    after = [at for at, _ in nouns if at > place]
    # "the traffic light": the last noun of a run is the one that it is about.
    chosen = next((at for at in after if at + 1 not in after), nouns[-1][0])
    return ("be" if verb in _AUXILIARIES else base_form(verb), dict(nouns)[chosen])


@functools.lru_cache(maxsize=65_536)
def base_form(verb: str) -> str:
    """A verb without its ending ("holding" → "hold", "makes" → "make"), as far as a lexicon of usual tags can tell."""
    if verb in _IRREGULAR:
        return _IRREGULAR[verb]
    if verb.endswith("s") and not verb.endswith("ss"):
        return verb[:-2] if verb.endswith(("shes", "ches", "sses", "xes", "oes")) else verb[:-1]
    for ending in ("ing", "ed"):
        stem = verb.removesuffix(ending)
        if stem != verb and len(stem) >= 2:
            candidates = (f"{stem}e", stem, stem[:-1])
            return next((each for each in candidates if tagged_words(each)[0][1] in ("VB", "VBP")), verb)
    return verb
