"""Questions and descriptions of photos from what `photo_facts.py` found. Few kinds, because other people's captions decide little.

Where something is, is said of boxes in the picture ("farther left", "takes up more of the picture"), never of the world: a small box may
hold a large thing far away.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from vistune.datagen.asked import BEYOND, MORE, OPPOSITE, Asked, Ref
from vistune.datagen.deducing import CLEARLY_LARGER, CLEARLY_NEARER
from vistune.datagen.english import number_word, plural_of, with_article
from vistune.datagen.grammar import Wording, pick, say
from vistune.datagen.photo_facts import COLOURS, PhotoBox, PhotoFacts
from vistune.datagen.scene_dialogue import Turn, words_of
from vistune.datagen.scene_facts import count_noun, sentence
from vistune.scenes.draw import join_words

_Asker = Callable[[PhotoFacts, random.Random], Asked | None]
CLEARLY_BESIDE = 0.02
"""How far apart the edges of two boxes must be before one is said to be left of, or above, the other."""


# --- from captions ------------------------------------------------------------------------------------------------------------------------


def _exists(facts: PhotoFacts, rng: random.Random) -> Asked | None:
    if not facts.present:
        return None
    a = with_article(pick(rng, facts.present))
    slots = {"a": a, "any": a, "is": "is", "is_there": "is there", "there_is": "there is"}
    return Asked("exists", slots, "yes_no", "yes", (f"there is {a}",), aspect="name")


def _colour(facts: PhotoFacts, rng: random.Random) -> Asked | None:
    if not facts.coloured:
        return None
    noun = pick(rng, tuple(facts.coloured))
    colour, ref = facts.coloured[noun], Ref.of(f"the {noun}")
    fact = f"the {noun} is {colour}"
    roll = rng.random()
    if roll < 0.5:
        return Asked("colour", ref.slots, "word", colour, (fact,))
    other = pick(rng, sorted(COLOURS - {colour, "grey"}))
    if roll < 0.75:
        yes = rng.random() < 0.5
        slots = {**ref.slots, "colour": colour if yes else other}
        return Asked("is_colour", slots, "yes_no", "yes" if yes else "no", (fact,))
    first, second = (colour, other) if rng.random() < 0.5 else (other, colour)
    return Asked("colour_choice", {**ref.slots, "colour_1": first, "colour_2": second}, "word", colour, (fact,))


def _number(facts: PhotoFacts, rng: random.Random) -> Asked | None:
    if not facts.counted:
        return None
    noun = pick(rng, tuple(facts.counted))
    return _how_many_of(rng, noun, facts.counted[noun])


def _how_many_of(rng: random.Random, noun: str, number: int) -> Asked:
    be, said = ("is" if number == 1 else "are"), number_word(number)
    return Asked("how_many_of", {"plural": plural_of(noun)}, "number", said, (f"there {be} {said} {count_noun(noun, number)}",))


def _deed(facts: PhotoFacts, rng: random.Random) -> Asked | None:
    """What somebody does; a posture with its place is also an answer to where."""
    if not facts.deeds:
        return None
    deed = facts.deeds[int(rng.random() * len(facts.deeds))]
    if deed.is_place:
        return Asked("where", Ref.of(deed.who).slots, "text", f"{deed.who} is {deed.does}", ())
    return Asked("doing", {"the": deed.who}, "text", f"{deed.who} is {deed.does}", ())


def _gist(facts: PhotoFacts, rng: random.Random) -> Asked | None:
    if not facts.captions:
        return None
    return Asked("gist", {}, "text", pick(rng, facts.captions).rstrip("."), ())


PHOTO_WORDINGS: dict[str, Wording] = {
    "doing": Wording(
        (
            "what is {the} doing{here}", "what is {the} up to{here}", "what do you see {the} doing{here}", "what is {the} busy with{here}",
            "how would you describe what {the} is doing", "what can {the} be seen doing{here}",
        ),
        ("what {the} is doing{here}", "what {the} can be seen doing", "what {the} is busy with"),
        ("describe what {the} is doing{here}", "say what {the} is doing"),
    ),
    "gist": Wording(
        (
            "what is [going on|happening|shown|to be seen]{here}", "what does the [picture|photo|image] show",
            "what is the [picture|photo|image] about",
            "how would you sum up [the|this] [picture|photo|image]", "what is the main content of [the|this] [picture|photo|image]",
        ),
        ("what is [going on|happening|shown]{here}", "what the [picture|photo|image] shows",
            "what [the|this] [picture|photo|image] is about"),
        ("sum up [the|this] [picture|photo|image] in a sentence", "write a caption for [the|this] [picture|photo|image]",
            "say in one sentence what is shown{here}"),
    ),
    "left_if_gone": Wording(
        (
            "if {gone} of the {plural} [went away|left|were taken away], how many {plural} would [remain|be left]{here}",
            "suppose {gone} of the {plural} [went away|left|were taken away]: how many would [remain|be left]",
            "how many {plural} would [remain|be left]{here} if {gone} of them [went away|left|were taken away]",
        ),
        ("how many {plural} would [remain|be left]{here} if {gone} of them were taken away",),
    ),
}  # fmt: skip


def photo_dialogue(facts: PhotoFacts, rng: random.Random) -> list[Turn]:
    """A conversation of up to six turns; as short as the captions make it, and empty where they decide nothing."""
    askers: list[_Asker] = [_gist, _exists, _exists, _colour, _colour, _number, _deed, _deed, _beside, _in_boxes]
    wanted, turns, known = 2 + int(rng.random() * 5), list[Turn](), set[str]()
    for _ in range(6 * wanted):
        if len(turns) == wanted:
            break
        asked = askers[int(rng.random() * len(askers))](facts, rng)
        # The same fact is asked for once: a second question in other words has the same answer.
        if asked is None or (fact := asked.sentences[0] if asked.sentences else f"{asked.wording} {asked.slots.get('the')}") in known:
            continue
        known.add(fact)
        turns.append(words_of(asked, rng, wordings=PHOTO_WORDINGS))
    return turns


# --- from boxes ---------------------------------------------------------------------------------------------------------------------------


def _beside(facts: PhotoFacts, rng: random.Random) -> Asked | None:
    """Which of two things is farther in a direction, or whether one is; only where their boxes do not overlap in that direction."""
    if len(facts.single_boxes) < 2:
        return None
    one, other = rng.sample(facts.single_boxes, 2)
    directions = [d for d, gap in _gaps(one, other).items() if gap >= CLEARLY_BESIDE]
    if not directions:
        return None
    true = pick(rng, directions)
    one_the, other_the = f"the {one.label}", f"the {other.label}"
    slots = {"one": one_the, "one_them": one_the, "other": other_the, "other_them": other_the}
    plain = {"left": "farther left", "right": "farther right", "above": "higher up", "below": "lower down"}[true]
    fact = f"{one_the} is {plain} in the picture than {other_the}"
    if rng.random() < 0.5:
        return Asked("which_beyond", {**slots, "more": say(rng, pick(rng, MORE[true]), {})}, "phrase", one_the, (fact,))
    asked = true if rng.random() < 0.5 else OPPOSITE[true]
    # "Above" and "to the left of" may be said of the world; "higher up" and "farther left" are said of the picture.
    slots |= {"beyond": say(rng, BEYOND[asked][0 if asked in ("left", "right") else 1], {}), "more": say(rng, MORE[asked][0], {})}
    return Asked("is_beyond", slots, "yes_no", "yes" if asked == true else "no", (fact,), (fact,))


def _gaps(one: PhotoBox, other: PhotoBox) -> dict[str, float]:
    """By how much the first box lies beyond the second, in each direction."""
    a, b = one.xyxy, other.xyxy
    return {"left": b[0] - a[2], "right": a[0] - b[2], "above": b[1] - a[3], "below": a[1] - b[3]}


def _in_boxes(facts: PhotoFacts, rng: random.Random) -> Asked | None:
    if not facts.boxes:
        return None
    box = facts.boxes[int(rng.random() * len(facts.boxes))]
    return _how_many_of(rng, box.label, box.number)


def _larger(facts: PhotoFacts, rng: random.Random) -> Asked | None:
    if len(facts.single_boxes) < 2:
        return None
    one, other = rng.sample(facts.single_boxes, 2)
    if one.area < CLEARLY_LARGER * other.area:
        return None
    one_the, other_the = f"the {one.label}", f"the {other.label}"
    flipped = rng.random() < 0.5
    first, second = (other_the, one_the) if flipped else (one_the, other_the)
    room = pick(rng, ("more room", "more space", "more of the picture"))
    slots = {"one": first, "other": second, "one_them": first, "other_them": second, "more": "larger in the picture", "more_room": room}
    fact = f"{one_the} takes up more of the picture than {other_the}"
    return Asked("size_which", slots, "phrase", one_the, (fact,), (fact,))


def _nearest_centre(facts: PhotoFacts, rng: random.Random) -> Asked | None:
    if len(facts.single_boxes) < 2 or len(facts.single_boxes) < len(facts.boxes):
        return None
    first, second = sorted(facts.single_boxes, key=lambda box: math.dist(box.centre, (0.5, 0.5)))[:2]
    if math.dist(second.centre, (0.5, 0.5)) - math.dist(first.centre, (0.5, 0.5)) < 2 * CLEARLY_NEARER:
        return None
    others = [f"the {box.label}" for box in facts.single_boxes]
    rng.shuffle(others)
    slots = {"things": join_words(others)}
    return Asked("which_central", slots, "phrase", f"the {first.label}", (f"the {first.label} is closest to the center of the picture",))


PHOTO_WORDINGS["which_central"] = Wording(
    (
        "of {things}, which is [closest|nearest] to the [center|middle] of the picture",
        "which is [closest|nearest] to the [center|middle] of the picture: {things}",
        "comparing {things}, which one is [closest|nearest] to the [center|middle] of the picture",
    ),
    ("which of {things} is [closest|nearest] to the [center|middle] of the picture",),
)  # fmt: skip


def _gone(facts: PhotoFacts, rng: random.Random) -> Asked | None:
    several = [box for box in facts.boxes if box.number > 1]
    if not several:
        return None
    box = several[int(rng.random() * len(several))]
    gone = 1 + int(rng.random() * (box.number - 1))
    left, plural = box.number - gone, plural_of(box.label)
    said = f"{number_word(left)} {count_noun(box.label, left)} would remain"
    reason = f"there are {number_word(box.number)} {plural}, and {number_word(box.number)} minus {number_word(gone)} is {number_word(left)}"
    return Asked("left_if_gone", {"gone": number_word(gone), "plural": plural}, "number", number_word(left), (said,), (reason,))


def photo_thought(facts: PhotoFacts, rng: random.Random) -> Turn | None:
    """One question that needs the places or numbers of several things, or None where the boxes leave all of them open."""
    askers: list[_Asker] = [_beside, _beside, _larger, _nearest_centre, _gone, _in_boxes]
    for _ in range(40):
        asked = askers[int(rng.random() * len(askers))](facts, rng)
        if asked is not None and (asked.wording != "how_many_of" or rng.random() < 0.2):
            return words_of(asked, rng, form="explained" if asked.reasons and rng.random() < 0.5 else "", wordings=PHOTO_WORDINGS)
    return None


def describe_photo(facts: PhotoFacts, rng: random.Random) -> list[str]:
    """The sentences of a description: what the captions say, each of them new, then numbers and places from the boxes."""
    said: list[str] = []
    captions = sorted(facts.captions, key=len, reverse=True)
    for caption in captions[:4]:
        words = {word.strip(".,").lower() for word in caption.split() if len(word) > 3}
        known = {word.strip(".,").lower() for other in said for word in other.split()}
        if not said or len(words - known) >= 0.6 * len(words):
            said.append(caption)
    counts = [f"{number_word(box.number)} {count_noun(box.label, box.number)}" for box in facts.boxes]
    if counts:
        be = "is" if facts.boxes[0].number == 1 else "are"
        said.append(sentence(f"there {be} {join_words(counts)} in the picture"))
    for side, test in (("left", lambda box: box.xyxy[2] <= 0.45), ("right", lambda box: box.xyxy[0] >= 0.55)):
        found = [with_article(box.label) for box in facts.single_boxes if test(box)]
        if found:
            said.append(sentence(f"in the {side} half there is {join_words(found)}"))
    pairs = [asked for _ in range(3) if (asked := _beside(facts, rng))]
    if pairs:
        said.append(sentence(pairs[0].sentences[0]))
    return said
