"""The checker's part for questions that need a thought: what if, how large, how near, in which order; and for their answers."""

from __future__ import annotations

import itertools
import re

from tests.datagen.scene_answers import STATEMENTS, Expected, same_things
from tests.datagen.scene_questions import BE, OT, OTS, X, Y, question
from tests.datagen.scene_reading import (
    NUMBER,
    NUMBERS,
    PLACE,
    Context,
    Drawn,
    Wrong,
    all_matching,
    at,
    clearest,
    colour_of,
    count_of,
    decided,
    distance,
    list_of,
    place_in,
    the_one,
)  # fmt: skip

GONE = r"(?P<gone>the .+?|it|santa claus)"
COLUMNS = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


def _mirrored(place: str, swaps: tuple[str, ...]) -> str:
    return " ".join(COLUMNS[word] if word in swaps else word for word in place.split())


@question(
    rf"(?:if|suppose|imagine) {GONE} (?:was|were) (?:taken away|removed|erased)(?: here| in .+?)?: how many {OTS} would (?:be left|remain)",
    rf"how many {OTS} would (?:be left|remain)(?: here| in .+?)? without {GONE}",
    rf"if somebody (?:erased|painted over|cut out) {GONE}, how many {OTS} would (?:still be there|be left)",
    rf"not counting {GONE}, how many {OTS} (?:are there|do you see)", rf"leaving out {GONE}, how many {OTS} are (?:there|left)",
    rf"how many {OTS} (?:are there|you see)(?: here| in .+?)? if {GONE} (?:do|does) not count",
    rf"count the {OTS}(?: here| in .+?)? without {GONE}", rf"count everything(?: here| in .+?)? but {GONE}",
)  # fmt: skip
def _remaining(context: Context, gone: str) -> Expected:
    if match := re.fullmatch(rf"the ({NUMBER}) (.+)", gone):
        taken = context.named(match[2])
        if len(taken) != NUMBERS[match[1]]:
            raise Wrong(f"there are {len(taken)} {match[2]}")
    else:
        taken = [the_one(gone, context)]
    left = tuple(thing for thing in context.things if thing not in taken)
    return Expected(number=len(left), remain=left, steps=(len(context.things), len(left)))


@question(
    rf"if (?P<n>{NUMBER}) more .+? were (?:added|put into the picture|drawn), how many (?P<p>.+?) would there be(?: in all)?",
    rf"suppose (?P<n>{NUMBER}) more .+? (?:joined|came into the picture): how many (?P<p>.+?) would (?:there be|you count)",
    rf"how many (?P<p>.+?) (?:would there be|there would be)(?: in all)? if (?P<n>{NUMBER}) more .+? were (?:added|drawn)",
    rf"with (?P<n>{NUMBER}) more .+?, how many (?P<p>.+?) would the picture (?:show|have)",
    rf"how many (?P<p>.+?) the picture would show with (?P<n>{NUMBER}) more .+",
)  # fmt: skip
def _added(context: Context, n: str, p: str) -> Expected:
    now = count_of(p, context)
    return Expected(number=now + NUMBERS[n], steps=(now, NUMBERS[n], now + NUMBERS[n]))


@question(
    rf"if the picture were mirrored (?:left to right|as in a mirror, left for right), where would {X} be",
    rf"imagine (?:this|the) picture in a mirror, left and right exchanged: where would {X} be",
    rf"where would {X} be if left and right were exchanged",
    rf"if you exchanged left and right(?: here| in .+?)?, where would {X} (?:end up|be found)",
    rf"where {X} would be if left and right were exchanged",
    rf"where {X} would be in a mirror image with left and right exchanged",
    rf"exchange left and right in your mind and say where {X} would be",
)  # fmt: skip
def _in_mirror(context: Context, x: str) -> Expected:
    return Expected(place=_mirrored(_hidden(x, context).place, ("left", "right")), moved=True)


def _hidden(x: str, context: Context) -> Drawn:
    if re.search(PLACE, x):
        raise Wrong("the question tells the place")
    return the_one(x, context)


@question(
    rf"if the picture were (?:turned|rotated) upside down, by half a turn, where would {X} be",
    rf"where would {X} be after (?:turning|rotating) the picture by 180 degrees",
    rf"suppose i (?:hold|turn) the picture upside down, by half a turn: where would {X} be then",
    rf"after half a turn of the whole picture, where would {X} (?:end up|be found)",
    rf"where {X} would be if the picture were turned by 180 degrees", rf"where {X} would be after half a turn of the picture",
    rf"turn the picture by half a turn in your mind and say where {X} would be",
)  # fmt: skip
def _turned(context: Context, x: str) -> Expected:
    return Expected(place=_mirrored(_hidden(x, context).place, ("left", "right", "top", "bottom")), moved=True)


SWAP = r"(?:trade|swap|exchange)d?(?:ped|d)?"


@question(
    rf"if {X} and {Y} (?:traded|swapped|exchanged) places, what would be (?P<place>{PLACE})",
    rf"suppose {X} and {Y} (?:trade|swap|exchange) places: what is (?P<place>{PLACE}) then",
    rf"what would be (?P<place>{PLACE}) if {X} and {Y} (?:traded|swapped|exchanged) places",
    rf"imagine that {X} moves to where {Y} is, and the other way round\. what is (?P<place>{PLACE}) then",
    rf"exchange {X} and {Y} in your mind and say what is (?P<place>{PLACE})",
)  # fmt: skip
def _swapped(context: Context, x: str, y: str, place: str) -> Expected:
    one, other = the_one(x, context), the_one(y, context)
    there = at(context, place_in(place))
    if there not in (one, other):
        raise Wrong("neither of the two is there")
    return Expected(thing=other if there is one else one, moved=True)


@question(
    rf"(?:do|are) {X} and {Y} (?:have the same color|of the same color)", rf"is the color of {X} the same as the color of {Y}",
    rf"do the colors of {X} and {Y} match", rf"are {X} and {Y} painted alike in color",
    rf"would one pot of paint do for both {X} and {Y}", rf"whether {X} and {Y} have the same color", rf"if the colors of {X} and {Y} match",
    rf"compare the colors of {X} and {Y}: are they the same",
)  # fmt: skip
def _same_colour(context: Context, x: str, y: str) -> Expected:
    one, other = the_one(x, context), the_one(y, context)
    return Expected(yes=colour_of(one) == colour_of(other), pair=(one, other))


@question(
    rf"what is between {X} and {Y}", rf"(?:which|what) {OT} is between {X} and {Y}", rf"what do you pass on the way from {X} to {Y}",
    rf"what separates {X} from {Y}", rf"what stands in the middle, between {X} and {Y}",
    rf"name what is between {X} and {Y}",
)  # fmt: skip
def _between(context: Context, x: str, y: str) -> Expected:
    one, other = the_one(x, context), the_one(y, context)
    across = abs(one.x - other.x) > abs(one.y - other.y)
    low, high = sorted((one.x, other.x) if across else (one.y, other.y))
    level = (one.y + other.y) / 2 if across else (one.x + other.x) / 2
    found = [
        thing for thing in context.things
        if low < (thing.x if across else thing.y) < high and abs((thing.y if across else thing.x) - level) < 1 / 6
    ]  # fmt: skip
    if len(found) != 1:
        raise Wrong(f"{len(found)} objects are between the two")
    return Expected(thing=found[0])


# --- sizes and distances ------------------------------------------------------------------------------------------------------------------

SIZES = {
    "largest": lambda t: t.area, "biggest": lambda t: t.area, "smallest": lambda t: -t.area, "tallest": lambda t: t.box[3] - t.box[1],
    "widest": lambda t: t.box[2] - t.box[0],
}  # fmt: skip
SIZE = rf"(?:the )?(?P<how>{'|'.join(SIZES)})"


@question(
    rf"(?:which {OT}|which of the {OTS}) (?:is|appears) {SIZE}",
    rf"(?:what is|what would you call|which object would you call) {SIZE}(?: {OT})?",
    rf"comparing their sizes(?: in the picture)?, which {OT} is {SIZE}",
    rf"if you (?:sort|order) the {OTS} by (?:size|how large they appear), which is {SIZE}", rf"(?:name|find) {SIZE} {OT}",
)  # fmt: skip
def _size_most(context: Context, how: str) -> Expected:
    return Expected(thing=clearest(context.things, SIZES[how], factor=1.2))


LARGER = r"(?P<how>larger|bigger|smaller)"
ROOM = r"(?P<room>more|less) (?:room|space|of the picture)"


@question(
    rf"which (?:is|appears) {LARGER}, {X} or {Y}", rf"(?:what|which) (?:takes up|covers|fills) {ROOM}, {X} or {Y}",
    rf"{X} or {Y}: which (?:is|appears) {LARGER}", rf"of {X} and {Y}, which (?:is|appears) {LARGER}",
    rf"which of the two (?:is|appears) {LARGER}, {X} or {Y}", rf"whether {X} or {Y} (?:is|appears) {LARGER}",
    rf"which of {X} and {Y} (?:is|appears) {LARGER}", rf"compare {X} and {Y}: which (?:is|appears) {LARGER}",
)  # fmt: skip
def _size_which(context: Context, x: str, y: str, how: str = "", room: str = "") -> Expected:
    one, other = the_one(x, context), the_one(y, context)
    return Expected(thing=one if _first_is(one, other, how or room) else other)


def _first_is(one: Drawn, other: Drawn, how: str) -> bool:
    if max(one.area, other.area) < 1.2 * min(one.area, other.area):
        raise Wrong(f"{one.name} and {other.name} are too much alike in size")
    return one.area < other.area if how in ("smaller", "less") else one.area > other.area


@question(
    rf"{BE} {X} {LARGER} than {Y}", rf"(?:does|do) {X} (?:appear|look) {LARGER} than {Y}",
    rf"is it right that {X} (?:takes|take) up {ROOM} than {Y}", rf"(?:does|do) {X} (?:cover|fill|take up) {ROOM} than {Y}",
    rf"(?:check )?(?:whether|if) {X} {BE} {LARGER} than {Y}", rf"compare {X} and {Y}: is the first {LARGER}",
)  # fmt: skip
def _size_is(context: Context, x: str, y: str, how: str = "", room: str = "") -> Expected:
    one, other = the_one(x, context), the_one(y, context)
    return Expected(yes=_first_is(one, other, how or room))


NEAR = r"(?P<how>closest|nearest|farthest|furthest)(?: to| from| away)?"


@question(
    rf"(?:which {OT}|what|which of the other {OTS}) is {NEAR} {Y}",
    rf"if you put a finger on (?P<y>the very (?:center|middle) of the picture), which {OT} is {NEAR} it",
    rf"(?:measured from|starting at) {Y}, which {OT} is {NEAR}", rf"name the {OT} {NEAR} {Y}",
)  # fmt: skip
def _nearest(context: Context, y: str, how: str) -> Expected:
    centre = re.fullmatch(r"the (?:very )?(?:center|middle) of the picture", y)
    other = None if centre else the_one(y, context)
    point = (other.x, other.y) if other else (0.5, 0.5)
    sign = -1 if how in ("closest", "nearest") else 1
    return Expected(thing=clearest([t for t in context.things if t is not other], lambda t: sign * distance((t.x, t.y), point), gap=0.05))


HALF = r"the (?P<side>left|right|top|bottom) half"
HIDDEN = r"(?:is|were) (?:covered|hidden|cut off)"


@question(
    rf"if {HALF} of the picture {HIDDEN}, (?:what|which objects) would you still see",
    rf"suppose i (?:cover|hide) {HALF} with my hand: what can still be seen",
    rf"what (?:stays|remains) in view if {HALF} of the picture {HIDDEN}",
    rf"with {HALF} of the picture (?:covered|hidden), what is left to see", rf"what would still be seen if {HALF} of the picture {HIDDEN}",
    rf"which {OTS} remain if {HALF} is cut off",
    rf"cover {HALF} in your mind and name what is left",
)  # fmt: skip
def _covered(context: Context, side: str) -> Expected:
    inside = {
        "left": lambda t: t.box[0] >= 0.49, "right": lambda t: t.box[2] <= 0.51, "top": lambda t: t.box[1] >= 0.49,
        "bottom": lambda t: t.box[3] <= 0.51,
    }  # fmt: skip
    seen = [thing for thing in context.things if inside[side](thing)]
    if any(not inside[COLUMNS[side]](thing) for thing in context.things if thing not in seen):
        raise Wrong("an object lies across the middle")
    return Expected(things=tuple(seen), moved=True)


ORDER = r"(?P<start>left|right|top|bottom) to (?:left|right|top|bottom)"


@question(
    rf"in which order do the {OTS} come, from {ORDER}", rf"what is the order of the {OTS} from {ORDER}",
    rf"going from {ORDER}, in which order do you (?:meet|see) the {OTS}",
    rf"reading the picture from {ORDER}, what comes first, and what after that",
    rf"in which order the {OTS} come from {ORDER}", rf"what the order of the {OTS} is from {ORDER}",
    rf"(?:name|list) the {OTS}(?: in their order)? from {ORDER}", rf"sort the {OTS} by their place, from {ORDER}",
)  # fmt: skip
def _order(context: Context, start: str) -> Expected:
    toward = {"left": "left", "right": "right", "top": "above", "bottom": "below"}[start]
    ordered = sorted(context.things, key=lambda t: {"left": t.x, "right": -t.x, "above": t.y, "below": -t.y}[toward])
    for one, other in itertools.pairwise(ordered):
        decided(one, other, toward)
    return Expected(order=tuple(ordered))


@question(
    r"is the (?:middle|center) of the picture empty", r"is there nothing in the (?:middle|center) of the picture",
    rf"is the (?:middle|center) of the picture free of {OTS}",
    rf"would there be room for one more {OT} right in the (?:middle|center) of the picture",
    r"(?:check )?whether the (?:middle|center) of the picture is empty", r"if there is nothing in the (?:middle|center) of the picture",
)  # fmt: skip
def _middle_empty(context: Context) -> Expected:
    inside = [thing for thing in context.things if thing.place == "center"]
    touching = [t for t in context.things if t.box[0] < 0.65 and t.box[2] > 0.35 and t.box[1] < 0.65 and t.box[3] > 0.35]
    if touching and not inside:
        raise Wrong("it cannot be said whether the middle is empty")
    return Expected(yes=not inside)


# --- their sentences ----------------------------------------------------------------------------------------------------------------------


def _steps(context: Context, expected: Expected, **said: str) -> bool:
    return all(NUMBERS[word] in expected.steps for word in said.values())


def _would_be(context: Context, expected: Expected, x: str, place: str) -> bool:
    if expected.thing:
        return the_one(x, context) is expected.thing
    the_one(x, context)
    return place_in(place) == expected.place


def _remains(context: Context, expected: Expected, what: str) -> bool:
    return same_things(list_of(what, context), expected.remain)


_SENTENCES = [
    (rf"(?P<n>{NUMBER}|no) objects? would be left", lambda ctx, e, n: (0 if n == "no" else NUMBERS[n]) == e.number),
    (rf"there (?:is|are) (?P<a>{NUMBER}) objects?, and without .+ (?P<b>{NUMBER}) remains?", lambda ctx, e, a, b: (NUMBERS[a],
        NUMBERS[b]) == e.steps),
    (r"what remains is (?P<what>.+)", _remains),
    (r"nothing remains", lambda ctx, e: e.remain == ()),
    (rf"there would be (?P<n>{NUMBER}) .+", lambda ctx, e, n: NUMBERS[n] == e.number),
    (rf"there (?:is|are) (?P<a>{NUMBER}) now, and (?P<b>{NUMBER}) and (?P<c>{NUMBER}) make (?P<d>{NUMBER})", lambda ctx, e, a, b, c,
        d: a == b and (NUMBERS[a], NUMBERS[c], NUMBERS[d]) == e.steps),
    (rf"(?P<x>.+?) would be (?P<place>{PLACE})", _would_be),
    (r"(?P<x>.+?) would stay in the same place", lambda ctx, e, x: the_one(x, ctx).place == e.place),
    (rf"(?P<x>.+?) (?:is|are) (?P<place>{PLACE}) now, and (?P<y>.+?) would take that place", lambda ctx, e, x, place, y: the_one(x,
        ctx).place == place_in(place) and the_one(y, ctx) is e.thing),
    (r"between them there (?:is|are) (?P<x>.+)", lambda ctx, e, x: e.thing in all_matching(x, ctx)),
    (r"you would still see (?P<what>.+)", lambda ctx, e, what: same_things(list_of(what, ctx), e.things or ())),
    (r"nothing would be left to see", lambda ctx, e: e.things == ()),
    (r"everything in the (?P<side>left|right|top|bottom) half stays in view", lambda ctx, e, side: bool(e.things)),
    (r"all objects are in the (?P<side>left|right|top|bottom) half", lambda ctx, e, side: e.things == ()),
    (r"the order is (?P<what>.+)", lambda ctx, e, what: list_of(what, ctx) == list(e.order)),
]  # fmt: skip
STATEMENTS[:0] = [(re.compile(pattern), test) for pattern, test in _SENTENCES]
