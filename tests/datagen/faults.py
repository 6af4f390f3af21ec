"""A scripted teacher whose faults are known: good replies, and the same, each spoilt in one way. For tests and benchmarks/filters.py.

The good replies are 31 annotated pictures with a description, a reasoning pair and five dialogue turns each (`data/good_replies.txt`).
A fault is a good reply into which one thing was written that its filter must find; what was written is in `data/faults.txt`, in
`data/refusals_*.tsv`, or composed below.
"""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import dataclass, replace
from pathlib import Path

from vistune.datagen.filters import Candidate
from vistune.datagen.parse import Turns, render_reply
from vistune.datagen.teacher import detailed_questions, kind_named
from vistune.scenes.bank import sprite_bank
from vistune.types import Box, ImageAnnotations

DATA = Path(__file__).parent / "data"
DIALOGUE, DESCRIPTION, PAIR = kind_named("conversation"), kind_named("detail"), kind_named("reasoning")
EACH = 60
"""Faults of each kind, where they are composed."""


@dataclass(frozen=True)
class Refusal:
    language: str
    refuses: bool
    text: str


def refusals(part: str) -> list[Refusal]:
    """Refusals and look-alikes: `development`, which the rules were written against, or `held_out`."""
    lines = (DATA / f"refusals_{part}.tsv").read_text(encoding="utf-8").splitlines()
    return [Refusal(language, label == "refusal", text) for language, label, text in (line.split("\t") for line in lines)]


@functools.cache
def good_candidates() -> tuple[Candidate, ...]:
    """Every good reply: for each picture a description, a pair, five dialogues of one turn and one of all five."""
    return tuple(
        candidate for block in (DATA / "good_replies.txt").read_text(encoding="utf-8").split("\n\n") for candidate in _block(block)
    )


def _block(block: str) -> list[Candidate]:
    fields = [line.split(": ", 1) for line in block.strip().splitlines()]
    of = {key: [value for name, value in fields if name == key] for key in ("image", "c", "b", "q", "d", "r")}
    boxes = tuple(Box(label, (0.1, 0.1, 0.9, 0.9)) for label in of["b"][0].split(", "))
    annotations = ImageAnnotations(f"{of['image'][0]}.jpg", 640, 480, tuple(of["c"]), boxes)
    turns = tuple(_turn(line) for line in of["q"])
    found = [candidate(annotations, "conversation", (turn,)) for turn in turns]
    found.append(candidate(annotations, "conversation", turns))
    found.append(candidate(annotations, "detail", ((detailed_questions()[0], of["d"][0]),)))
    found.append(candidate(annotations, "reasoning", (_turn(of["r"][0]),)))
    return found


def _turn(line: str) -> tuple[str, str]:
    question, answer = line.split(" | ")
    return question, answer


def candidate(annotations: ImageAnnotations, kind: str, turns: Turns) -> Candidate:
    return Candidate(annotations, kind_named(kind), turns, render_reply(kind_named(kind), turns))


@functools.cache
def _sections() -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    for line in (DATA / "faults.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("[") and line.endswith("]") and line[1:2].islower():
            name = line.strip("[]")
            sections[name] = []
        elif line:
            sections[name].append(line)
    return sections


def faulty_candidates(name: str) -> list[Candidate]:
    """At least fifty candidates that the filter of this name must drop."""
    return list(_FAULTS[name]())


def _hosts(*kinds: str):
    """Good replies to spoil, over and over."""
    return itertools.cycle([good for good in good_candidates() if not kinds or good.kind.name in kinds])


def _with_answer(host: Candidate, text: str, *, end: bool = True) -> Candidate:
    """The host with a sentence more at the end, or at the beginning, of its last answer."""
    *before, (question, answer) = host.turns
    return replace(host, turns=(*before, (question, f"{answer} {text}" if end else f"{text} {answer}")))


def _spoilt(section: str):
    return (
        _with_answer(host, text, end=number % 3 > 0)
        for number, (text, host) in enumerate(zip(_sections()[section], _hosts(), strict=False))
    )


def _refusals():
    for refusal, host in zip(
        [each for part in ("development", "held_out") for each in refusals(part) if each.refuses], _hosts(), strict=False
    ):
        yield replace(host, turns=((host.turns[0][0], refusal.text),))


def _injections():
    for text, host in zip(_sections()["injection captions"], _hosts(), strict=False):
        yield replace(host, annotations=replace(host.annotations, captions=(*host.annotations.captions, text)))
    yield from _spoilt("injection answers")


def _gives_away():
    for line, host in zip(_sections()["gives_away"], _hosts("conversation"), strict=False):
        yield replace(host, turns=(_turn(line),))
    for host in itertools.islice(_hosts("reasoning"), 10):  # the caption as a question
        question = f"Since {host.annotations.captions[0].rstrip('.').lower()}, what could be the reason?"
        yield replace(host, turns=((question, host.turns[0][1]),))


_CLAIMS = (
    "There is also {a} on the left.", "In the background, {a} can be seen.", "Next to it stands {a}.",
    "We can also see {a} in the distance.", "{a} is visible at the edge of the picture.", "On the right side there are two {plural}.",
    "The scene also includes {a}.",
)  # fmt: skip


def _unsupported():
    """Things of the sprite bank, a list that the lexicon was not made for alone, claimed in pictures that have none of them."""
    bank, draw = sprite_bank(), random.Random(7)
    categories = {"animal", "bird", "fruit", "vegetable", "food", "drink", "vehicle", "instrument", "clothing",
                  "sports item", "household item",
                  "device", "tool", "plant", "sea animal", "insect"}  # fmt: skip
    things = [
        thing
        for thing in bank.things.values()
        if thing.category in categories and thing.article and thing.plural and len(thing.name.split()) < 3
    ]
    for number, host in enumerate(itertools.islice(_hosts("conversation", "detail"), 120)):
        known = " ".join((*host.annotations.captions, *(box.label for box in host.annotations.boxes), *host.answers))
        thing = draw.choice([thing for thing in things if not any(word in known.lower() for word in thing.name.split())])
        a = f"{thing.article} {thing.name}"
        if number % 6 == 4:
            yield replace(host, kind=DIALOGUE, turns=((f"Is there {a} in the picture?", "Yes."),))
        elif number % 6 == 5:
            yield replace(host, kind=DIALOGUE, turns=((f"What color is the {thing.name}?", "It is dark brown."),))
        else:
            claim = draw.choice(_CLAIMS).format(a=a, plural=thing.plural)
            # Not after a question that asks for general knowledge: there the claim is no sentence of the picture's.
            yield _with_answer(host, claim[0].upper() + claim[1:])


def _not_alternating():
    inside = ("Question: And what else?", "Answer: It is.", "Q: Where? A: Here.", "User: And now?", "Assistant: It is calm.",
              "**Question:** Where is it?",
              "Human: Go on.", "\nAnswer: Yes.", "(Answer: no)", "Q2: Is it big?")  # fmt: skip
    for text, host in zip(inside * 3, _hosts("conversation", "reasoning"), strict=False):
        yield _with_answer(host, text)
    for host in itertools.islice(_hosts("conversation"), 20):
        yield replace(host, turns=((host.turns[0][1], host.turns[0][0]),))  # the roles swapped
    for text, host in zip(("", " ", "\n", "\u200b\n"), _hosts("conversation"), strict=False):
        yield replace(host, turns=((host.turns[0][0], text),))
    for host in itertools.islice(_hosts("conversation"), 6):
        yield replace(host, turns=((f"{host.turns[0][0]} Answer: {host.turns[0][1]}", "Yes."),))


def _too_short():
    for host in itertools.islice(_hosts("detail"), EACH // 3):
        yield replace(host, turns=((host.turns[0][0], " ".join(host.turns[0][1].split()[:8])),))
    for host in itertools.islice(_hosts("reasoning"), EACH // 3):
        yield replace(host, turns=(("Why so?", host.turns[0][1]),))
    for host in itertools.islice(_hosts("conversation"), EACH // 3):
        yield replace(host, turns=(("What?", host.turns[0][1]),))


def _too_long():
    for number, host in enumerate(itertools.islice(_hosts(), EACH)):
        other = [good.answers[-1] for good in good_candidates()[number : number + 60]]
        yield replace(host, turns=((host.turns[0][0], " ".join(other)),))


def _repetition():
    for host in itertools.islice(_hosts("conversation"), EACH // 2):
        yield replace(host, turns=(*host.turns, (host.turns[0][0].replace("?", " ?"), "It is as said before.")))
    for host in itertools.islice(_hosts("detail"), EACH // 2):
        last = host.turns[0][1].split(". ")[0]
        yield _with_answer(host, f"{last}. " * 5)


_FAULTS = {
    "not_alternating": _not_alternating,
    "too_short": _too_short,
    "too_long": _too_long,
    "repetition": _repetition,
    "refusal": _refusals,
    "scaffolding": lambda: _spoilt("scaffolding"),
    "injection": _injections,
    "link_or_code": lambda: _spoilt("link_or_code"),
    "unsupported": _unsupported,
    "gives_away": _gives_away,
}


def exact_duplicates() -> list[Candidate]:
    """Each long reply again for another picture, each short one for its own, with other capitals and signs."""
    return [
        replace(good, annotations=replace(good.annotations, image="other.jpg") if len(good.answers[0].split()) > 50 else good.annotations,
                turns=tuple((question.upper(), answer.replace(", ", " - ")) for question, answer in good.turns))
        for good in good_candidates()
    ]  # fmt: skip


def near_duplicates() -> list[Candidate]:
    """Each description and each pair again with a few words changed, as a teacher does that is asked twice."""
    changed = []
    for number, good in enumerate(good_candidates()):
        if good.kind is DIALOGUE:
            continue
        words = good.turns[0][1].split()
        spoil = random.Random(number)
        for _ in range(2):
            words[spoil.randrange(len(words))] = spoil.choice(("indeed", "small", "very", "their"))
        changed.append(replace(good, turns=((good.turns[0][0], " ".join(words)),)))
    return changed
