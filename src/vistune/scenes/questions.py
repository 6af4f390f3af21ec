"""Questions about a scene, with answers that are true because the scene was drawn from them.

`KINDS` are the six that the suite `scenes-v1` counts; training also gets `MORE_KINDS` and follow-ups that only make sense after the turn
before. A short answer is the rule; a full sentence is given where one is asked for (`FULL_SENTENCE`). Every kind has two sets of
phrasings: training uses `SEEN_PHRASINGS` alone, the suite both.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vistune.scenes.bank import PAINTED_CATEGORIES, Split, SpriteBank
from vistune.scenes.draw import COLOURS, PLACES, Scene, SceneObject, describe, join_words

KINDS = ("what", "where", "how_many", "colour", "yes_no", "describe")
MORE_KINDS = ("category", "background", "list")
FULL_SENTENCE = "Answer in a full sentence."
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

Phrasings = Mapping[str, tuple[str, ...]]

SEEN_PHRASINGS: Phrasings = {
    "what": (
        "What is {place}?",
        "What can you see {place}?",
        "Which object is {place}?",
        "What is the thing {place}?",
        "Name the object {place}.",
    ),
    "what_alone": (
        "What is this?",
        "What is in the picture?",
        "What do you see?",
        "What is shown here?",
        "Name the object.",
        "What is this a picture of?",
    ),
    "where": ("Where is {the}?", "Where in the picture is {the}?", "What is the position of {the}?", "Where can I see {the}?"),
    "how_many": (
        "How many objects are there?",
        "How many things are in the picture?",
        "How many objects do you see?",
        "Count the objects.",
    ),
    "how_many_of": (
        "How many {plural} are there?",
        "How many {plural} are in the picture?",
        "How many {plural} do you see?",
        "Count the {plural}.",
    ),
    "colour": ("What color is {the}?", "What is the color of {the}?", "Which color is {the}?", "What colour does {the} have?"),
    "exists": ("Is there {a} in the picture?", "Is there {a}?", "Can you see {a}?", "Does the picture show {a}?"),
    "exists_at": ("Is {the} {place}?", "Can you see {the} {place}?", "Is {the} placed {place}?"),
    "is_colour": ("Is {the} {colour}?", "Is the color of {the} {colour}?", "Does {the} look {colour}?"),
    "describe": ("Describe the picture.", "What does the picture show?", "Describe what you see.", "Describe this image in one sentence."),
    "category": ("What kind of thing is {place}?", "What sort of object is {place}?", "To which category does the object {place} belong?"),
    "background": ("What color is the background?", "Which color does the background have?", "What is the background color?"),
    "list": ("Name all objects.", "List the objects in the picture.", "Which objects are in the picture?"),
    "it_colour": ("What color is it?", "And its color?"),
    "it_category": ("What kind of thing is it?", "What sort of object is it?"),
}
NEW_PHRASINGS: Phrasings = {
    "what": ("Tell me what you find {place}.", "Which thing do you notice {place}?", "Please identify the item {place}."),
    "what_alone": ("Can you tell me what this is?", "Which thing is depicted?", "Please identify this."),
    "where": ("In which part of the image is {the}?", "Tell me where {the} is located.", "Find {the}: where is it?"),
    "how_many": ("What is the number of objects in this image?", "Tell me how many items appear here."),
    "how_many_of": ("What is the number of {plural} in this image?", "Tell me how many {plural} appear here."),
    "colour": ("Tell me the color of {the}.", "In which color is {the} painted?", "{the_upper}: which color?"),
    "exists": ("Do you notice {a} anywhere?", "Would you say that {a} appears here?", "Is {a} visible?"),
    "exists_at": ("Would I find {the} {place}?", "Do you notice {the} {place}?"),
    "is_colour": ("Would you call {the} {colour}?", "Is {the} painted {colour}?"),
    "describe": ("Tell me what this image contains and where.", "Put into words what is shown.", "Please give a description of the image."),
}


@dataclass(frozen=True)
class SceneQuestion:
    """A question, the answer a model is taught, and every answer that counts as right (the taught one first)."""

    kind: str
    text: str
    answer: str
    accepted: tuple[str, ...]


def ask(
    kind: str, scene: Scene, rng: random.Random, bank: SpriteBank, *,
    phrasings: Phrasings = SEEN_PHRASINGS, about: str | None = None,
) -> SceneQuestion | None:  # fmt: skip
    """One question of a kind, or None where the scene gives no occasion for it.

    Args:
        about: ask about the thing of this name, if the kind is about one thing.
    """
    return _ASK[kind](scene, rng, bank, phrasings, about)


Asker = Callable[[Scene, random.Random, SpriteBank, Phrasings, str | None], SceneQuestion | None]


def unique_things(scene: Scene) -> list[SceneObject]:
    """Things whose name occurs once, so that "the cat" means one."""
    counts = Counter(scene.names)
    return [thing for thing in scene.objects if counts[thing.name] == 1]


def _the(thing: SceneObject) -> str:
    return f"the {thing.name}" if thing.name[0].islower() or thing.thing.article else thing.name


def _pick(rng: random.Random, things: list[SceneObject], about: str | None) -> SceneObject | None:
    if about is not None:
        things = [thing for thing in things if thing.name == about]
    return rng.choice(things) if things else None


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _names_of(thing: SceneObject) -> tuple[str, ...]:
    """Ways to name a thing: plainly, with its colour, and a number or word by itself."""
    plain = [thing.thing.phrase(), thing.phrase]
    if thing.thing.category in ("number", "word"):
        plain.append(thing.name.split()[1])
    return tuple(dict.fromkeys(plain))


def _what(scene: Scene, rng: random.Random, bank: SpriteBank, phrasings: Phrasings, about: str | None) -> SceneQuestion | None:
    thing = _pick(rng, list(scene.objects), about)
    if thing is None:
        return None
    alone = len(scene.objects) == 1 and rng.randrange(2) == 0
    place = PLACES[thing.place]
    text = rng.choice(phrasings["what_alone" if alone else "what"]).format(place=place)
    names = _names_of(thing)
    sentences = tuple(f"There is {name} {place}" for name in names) + tuple(f"This is {name}" for name in names)
    return SceneQuestion("what", text, _capital(names[0]) + ".", (*names, *sentences))


def _where(scene: Scene, rng: random.Random, bank: SpriteBank, phrasings: Phrasings, about: str | None) -> SceneQuestion | None:
    thing = _pick(rng, unique_things(scene), about)
    if thing is None:
        return None
    text = rng.choice(phrasings["where"]).format(the=_the(thing))
    place = PLACES[thing.place]
    corner = (f"{thing.place} corner", f"{place} corner") if " " in thing.place else ()
    verb = "are" if not thing.thing.article and thing.name.endswith("s") else "is"
    sentences = tuple(f"{_the(thing)} {be} {place}" for be in dict.fromkeys((verb, "is", "are")))
    return SceneQuestion("where", text, _capital(place) + ".", (place, thing.place, *corner, *sentences))


def _how_many(scene: Scene, rng: random.Random, bank: SpriteBank, phrasings: Phrasings, about: str | None) -> SceneQuestion | None:
    counts = Counter(scene.names)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    countable = sorted(name for name in counts if bank.things[name].plural)
    wanted = [about] if about in countable else repeated if repeated and rng.randrange(4) else countable
    if wanted and rng.randrange(2):
        name = rng.choice(wanted)
        number, noun = counts[name], bank.things[name].plural if counts[name] > 1 else name
        text = rng.choice(phrasings["how_many_of"]).format(plural=bank.things[name].plural)
    else:
        number, noun = len(scene.objects), "objects" if len(scene.objects) > 1 else "object"
        text = rng.choice(phrasings["how_many"])
    word = NUMBER_WORDS[number]
    verb = "is" if number == 1 else "are"
    return SceneQuestion("how_many", text, _capital(word) + ".", (word, f"There {verb} {word} {noun}", f"{word} {noun}"))


def _colour(scene: Scene, rng: random.Random, bank: SpriteBank, phrasings: Phrasings, about: str | None) -> SceneQuestion | None:
    # Only painted things: their colour was drawn by lot, so no name gives it away.
    thing = _pick(rng, [thing for thing in unique_things(scene) if thing.colour], about)
    if thing is None or thing.colour is None:
        return None
    the = _the(thing)
    text = rng.choice(phrasings["colour"]).format(the=the, the_upper=_capital(the))
    sentences = tuple(f"{the} {be} {thing.colour}" for be in ("is", "are"))
    return SceneQuestion("colour", text, _capital(thing.colour) + ".", (thing.colour, f"It is {thing.colour}", *sentences))


def _yes_no(scene: Scene, rng: random.Random, bank: SpriteBank, phrasings: Phrasings, about: str | None) -> SceneQuestion | None:
    """Half of the answers are yes, whatever is asked; what is not there comes from the same part of the bank as what is."""
    yes = rng.randrange(2) == 0
    thing = _pick(rng, unique_things(scene), about)
    form = rng.choice(("exists", "exists", "exists_at", "is_colour"))
    if thing is not None and form == "exists_at":
        place = thing.place if yes else rng.choice([place for place in PLACES if place != thing.place])
        text = rng.choice(phrasings["exists_at"]).format(the=_the(thing), place=PLACES[place])
    elif thing is not None and thing.colour and form == "is_colour":
        colour = thing.colour if yes else rng.choice([colour for colour in COLOURS if colour != thing.colour])
        text = rng.choice(phrasings["is_colour"]).format(the=_the(thing), colour=colour)
    else:
        shown = thing or rng.choice(scene.objects)
        name = shown.name if yes else _absent_name(scene, rng, bank, shown)
        text = rng.choice(phrasings["exists"]).format(a=bank.things[name].phrase())
    answer = "yes" if yes else "no"
    return SceneQuestion("yes_no", text, _capital(answer) + ".", (answer,))


def _absent_name(scene: Scene, rng: random.Random, bank: SpriteBank, shown: SceneObject) -> str:
    """A name that is not in the scene: half of the time of the same category as one that is, so that a hunch is not enough."""
    split: Split = shown.sprite.split
    names = [name for name in bank.names(split) if name not in scene.names]
    painted = shown.thing.category in PAINTED_CATEGORIES
    alike = [name for name in names if bank.things[name].category == shown.thing.category]
    if alike and (painted or rng.randrange(2)):
        return rng.choice(alike)
    return rng.choice([name for name in names if bank.things[name].category not in PAINTED_CATEGORIES])


def _describe(scene: Scene, rng: random.Random, bank: SpriteBank, phrasings: Phrasings, about: str | None) -> SceneQuestion | None:
    answer = describe(scene.objects, scene.background)
    return SceneQuestion("describe", rng.choice(phrasings["describe"]), answer, (answer,))


def _category(scene: Scene, rng: random.Random, bank: SpriteBank, phrasings: Phrasings, about: str | None) -> SceneQuestion | None:
    thing = _pick(rng, list(scene.objects), about)
    if thing is None:
        return None
    answer = _category_phrase(thing.thing.category)
    text = rng.choice(phrasings["category"]).format(place=PLACES[thing.place])
    return SceneQuestion("category", text, _capital(answer) + ".", (answer,))


def _category_phrase(category: str) -> str:
    if category in ("clothing", "food", "stationery"):
        return category
    return f"an {category}" if category[0] in "aeiou" else f"a {category}"


def _background(scene: Scene, rng: random.Random, bank: SpriteBank, phrasings: Phrasings, about: str | None) -> SceneQuestion | None:
    colour = scene.background.colour
    return SceneQuestion("background", rng.choice(phrasings["background"]), _capital(colour) + ".", (colour, f"The background is {colour}"))


def _list(scene: Scene, rng: random.Random, bank: SpriteBank, phrasings: Phrasings, about: str | None) -> SceneQuestion | None:
    answer = _capital(join_words([thing.thing.phrase() for thing in scene.objects])) + "."
    return SceneQuestion("list", rng.choice(phrasings["list"]), answer, (answer,))


_ASK: dict[str, Asker] = {
    "what": _what, "where": _where, "how_many": _how_many, "colour": _colour, "yes_no": _yes_no, "describe": _describe,
    "category": _category, "background": _background, "list": _list,
}  # fmt: skip


def full_sentence(question: SceneQuestion, scene: Scene) -> SceneQuestion | None:
    """The same question asking for a sentence, or None where there is no natural one."""
    wanted = {"what": "There is ", "where": "the ", "how_many": "There ", "colour": "the ", "background": "The background"}.get(
        question.kind
    )
    answer = next((answer for answer in question.accepted if wanted and answer.startswith(wanted)), None)
    if answer is None:
        return None
    return SceneQuestion(question.kind, f"{question.text} {FULL_SENTENCE}", _capital(answer) + ".", question.accepted)


def follow_up(thing: SceneObject, rng: random.Random) -> SceneQuestion:
    """A question about the thing just named, which is only called "it"."""
    kind, answer = (
        ("it_colour", thing.colour) if thing.colour and rng.randrange(2) else ("it_category", _category_phrase(thing.thing.category))
    )
    return SceneQuestion(kind, rng.choice(SEEN_PHRASINGS[kind]), _capital(answer) + ".", (answer,))


def dialogue(scene: Scene, rng: random.Random, bank: SpriteBank, *, turns: int = 7) -> list[SceneQuestion]:
    """Several questions about one scene, kinds mixed, as training data: no question twice."""
    kinds = [*KINDS, *MORE_KINDS, "what", "where", "colour", "yes_no", "how_many"]
    rng.shuffle(kinds)
    questions: list[SceneQuestion] = []
    for kind in kinds[:turns]:
        thing = _pick(rng, unique_things(scene), None) if kind == "where" else None
        question = ask(kind, scene, rng, bank, about=thing.name if thing else None)
        if question is not None and rng.randrange(5) == 0:
            question = full_sentence(question, scene) or question
        if question is None or any(question.text == other.text for other in questions):
            continue
        questions.append(question)
        if thing is not None and rng.randrange(3) == 0:
            after = follow_up(thing, rng)
            questions += [after] * all(after.text != other.text for other in questions)
    return questions
