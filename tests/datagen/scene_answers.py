"""What an answer about a scene must say, and whether it does: every sentence of it is read, and every one must be true."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tests.datagen.scene_reading import (
    BEYOND,
    BEYOND_WORDS,
    COLOURS,
    MORE,
    NUMBER,
    NUMBERS,
    PATTERNS,
    PLACE,
    Context,
    Drawn,
    Unread,
    Wrong,
    absent,
    all_matching,
    clearest,
    colour_of,
    count_of,
    decided,
    direction_in,
    distance,
    is_beyond,
    joined,
    list_of,
    place_in,
    the_one,
)  # fmt: skip

Form = Literal["", "word", "yes_no", "digit", "truth", "letter", "sentence", "reason", "brief"]


@dataclass(frozen=True)
class Expected:
    """What the answer must say: exactly one of the fields, and what "it" means afterwards."""

    yes: bool | None = None
    number: int | None = None
    word: str = ""
    place: str = ""
    things: tuple[Drawn, ...] | None = None
    thing: Drawn | None = None
    places: tuple[str, ...] = ()
    relation: tuple[Drawn, Drawn] | None = None
    whole_scene: bool = False
    order: tuple[Drawn, ...] = ()
    remain: tuple[Drawn, ...] = ()
    pair: tuple[Drawn, ...] = ()
    steps: tuple[int, ...] = ()
    """Numbers that a calculation goes through."""
    moved: bool = False
    """The answer is about an imagined picture."""
    focus: Drawn | None = None
    group: tuple[Drawn, ...] = ()


HERE = re.compile(r" (?:in (?:the|this) (?:picture|image|scene)|here)(?=$|[ ,.:?])(?! (?:were|would|in a mirror|by))")


def plain(text: str) -> str:
    return HERE.sub("", joined(text.strip().rstrip(".?!").lower())).strip()


# --- the answer ---------------------------------------------------------------------------------------------------------------------------


def read_answer(answer: str, expected: Expected, form: Form, context: Context) -> None:
    """Raises Wrong unless the answer says what is expected, in the form that was asked for, and nothing that is not so."""
    _check_form(answer, form)
    text = answer.lower()
    if expected.yes is not None:
        said, _, rest = text.rstrip(".").partition(", ")
        if said != ("yes" if expected.yes else "no"):
            raise Wrong(f"the answer is {'yes' if expected.yes else 'no'}")
        if rest:
            statement(plain(rest), context, expected)
        return
    sentences = [plain(part) for part in re.findall(r"[^.]+", text) if part.strip()]
    first, *others = sentences
    if not says(first, expected, context):
        raise Wrong(f"{first!r} does not say {expected}")
    for other in others:
        statement(other, context, expected)


def _check_form(answer: str, form: Form) -> None:
    words = answer.rstrip(".").split()
    fits = {
        "": True, "word": len(words) == 1, "yes_no": answer in ("Yes.", "No."), "digit": answer.isdecimal(), "truth": answer in ("True.",
            "False."),
        "letter": len(answer) == 1 and answer.isupper(), "sentence": len(words) > 2 and answer.endswith("."), "reason": len(words) > 2,
        "brief": not re.search(r"\b(is|are|there|shows)\b", answer),
    }[form]  # fmt: skip
    if not fits or not (answer[0].isupper() or answer[0].isdecimal()):
        raise Wrong(f"the answer is not of the form asked for ({form or 'any'})")


def says(text: str, expected: Expected, context: Context) -> bool:
    """Whether a first sentence, which must also be true, is an answer."""
    if expected.word:
        return text == expected.word or (statement(text, context, expected) and bool(re.search(rf"\b{expected.word}\b", text)))
    if expected.number is not None:
        words = {word for word, number in NUMBERS.items() if number == expected.number} | {str(expected.number)}
        if text in words:
            return True
        words |= {"no"} if expected.number == 0 else set()
        return statement(text, context, expected) and any(re.search(rf"\b{word}\b", text) for word in words)
    if expected.place:
        found = re.search(PLACE + "$", text)
        return bool(found) and place_in(found[0]) == expected.place and (found[0] == text or statement(text, context, expected))
    if expected.places:
        spots = [place_in(spot) for spot in re.findall(PLACE, text)]
        return sorted(spots) == sorted(expected.places)
    if expected.thing is not None:
        return _means(text, expected.thing, context) or (
            statement(text, context, expected) and any(name in text for name in (expected.thing.name, expected.thing.plural) if name)
        )
    if expected.order:
        return list_of(text.removeprefix("the order is "), context) == list(expected.order)
    if expected.things is not None:
        listed = re.sub(
            rf"^(?:there (?:is|are) (?:also )?|you can (?:also )?see |you would still see |the picture shows )| {BEYOND} (?:it|them|"
            rf"the .+)$",
            "",
            text,
        )
        listed = re.sub(r"^(there is )?nothing( else)?.*$", "nothing", listed)
        if "in the corners" not in text and re.search(PLACE, listed):
            return statement(text, context, expected) and all(thing.name in text for thing in expected.things)
        return same_things(list_of(listed, context), expected.things)
    if expected.relation:
        one, other = expected.relation
        words = re.fullmatch(rf"(?:(?P<x>.+) is )?(?P<r>{BEYOND}(?: and {BEYOND})?) (?P<y>.+)", text)
        if not words or the_one(words["y"], context) is not other or (words["x"] and the_one(words["x"], context) is not one):
            return False
        said = {direction_in(part, BEYOND_WORDS) for part in words["r"].split(" and ")}
        return said == {direction for direction in BEYOND_WORDS if is_beyond(one, other, direction)}
    return expected.whole_scene and whole_scene(text, context)


def same_things(one: Iterable[Drawn], other: Iterable[Drawn]) -> bool:
    """By name: of four cans, "three cans" may be any."""
    return sorted(thing.name for thing in one) == sorted(thing.name for thing in other)


def _means(text: str, thing: Drawn, context: Context) -> bool:
    """Whether a phrase is said of the thing; a name alone may fit several of one name."""
    try:
        return thing in all_matching(text.removeprefix("it is "), context) and not text.startswith("there")
    except Unread:
        return False


def whole_scene(text: str, context: Context) -> bool:
    """A sentence that tells all objects with their places, and the background."""
    ground = rf"an? (?:(?P<pattern>{PATTERNS}) )?(?P<colour>{COLOURS}) background"
    match = (
        re.fullmatch(rf"(?:the picture shows )?(?P<all>.+?),? on {ground}", text)
        or re.fullmatch(rf"on {ground}, (?P<all>.+)", text)
        or re.fullmatch(r"there (?:is|are) (?P<all>.+)", text)
    )
    if not match:
        return False
    told = match.groupdict()
    if "colour" in told and (told["colour"] != context.colour or (told["pattern"] or "") != context.pattern):
        return False
    items = re.findall(
        rf"(?:(?P<before>{PLACE}) there (?:is|are) (?P<one>.+?)|(?P<two>.+?) (?P<after>{PLACE}))(?:, | and |$)", match["all"]
    )
    left = list(context.things)
    for before, one, two, after in items:
        found = [thing for thing in all_matching(one or two, context) if thing in left and thing.place == place_in(before or after)]
        if not found or (found[0].colour and found[0].colour not in (one or two)):
            return False
        left.remove(found[0])
    return not left


# --- statements ---------------------------------------------------------------------------------------------------------------------------


def statement(text: str, context: Context, expected: Expected = Expected()) -> bool:
    """True; raises Wrong for a sentence that is false or not understood."""
    if holds(text, context, expected):
        return True
    for link in (", and ", " and ", ", "):
        for match in re.finditer(re.escape(link), text):
            left, right = text[: match.start()], text[match.end() :]
            if holds(left, context, expected) and _rest_holds(right, left, context, expected):
                return True
    raise Wrong(f"the sentence {text!r} is false or not understood")


def _rest_holds(text: str, before: str, context: Context, expected: Expected) -> bool:
    try:
        return statement(text, context, expected) or statement(f"there is {text}", context, expected)
    except Wrong:
        if before.startswith("there "):
            return statement(f"there is {text}", context, expected)
        raise


def holds(text: str, context: Context, expected: Expected) -> bool:
    for pattern, test in STATEMENTS:
        if match := pattern.fullmatch(text):
            try:
                if test(context, expected, **{k: v for k, v in match.groupdict().items() if v is not None}):
                    return True
            except Unread:
                continue
    return False


def _there(context: Context, expected: Expected, list_: str, place: str = "") -> bool:
    """ "there is a dog in the top left", "there are a dog and lips": what is said to be there is, and all of it is, or it answers."""
    found = list_of(list_, context)
    if place:
        return len(found) == 1 and any(thing.place == place_in(place) for thing in all_matching(list_, context))
    wanted = expected.things if expected.things is not None else context.things
    others = [thing for thing in context.things if thing is not expected.focus]
    if len(found) == 1 or (expected.group and all(thing in expected.group for thing in found)):
        return True
    return any(same_things(found, whole) for whole in (wanted, others, context.things))


def _number(context: Context, expected: Expected, n: str, noun: str = "objects", noun_2: str = "", n_2: str = "", total: str = "") -> bool:
    number = 0 if n == "no" else NUMBERS[n]
    good = number == count_of(noun, context)
    if noun_2:
        good = good and NUMBERS[n_2] == count_of(noun_2, context)
    return good and (not total or NUMBERS[total] == number + NUMBERS[n_2])


def _expected_number(context: Context, expected: Expected, n: str, **_: str) -> bool:
    return expected.number == (0 if n in ("no", "nothing") else NUMBERS[n])


def _is(context: Context, expected: Expected, x: str, place: str = "", c: str = "") -> bool:
    if x in ("one", "the other", "the other one") or x.startswith("the other "):
        group = [expected.focus] if expected.focus else expected.group
        return any(thing.place == place_in(place) for thing in group) if place else colour_of(expected.focus) == c  # type: ignore[arg-type]
    if x == "it" and expected.word and not expected.focus:
        return expected.word == c
    known = Context(context.things, context.colour, context.pattern, expected.focus or context.focus)
    thing = the_one(x, known)
    return thing.place == place_in(place) if place else colour_of(thing) == c


def _beyond(context: Context, expected: Expected, x: str, gt: str, y: str, gt_2: str = "") -> bool:
    known = Context(context.things, context.colour, context.pattern, expected.focus or context.focus)
    one, other = the_one(x, known), the_one(y, known)
    return all(decided(one, other, direction_in(part, BEYOND_WORDS)) for part in (gt, gt_2) if part)


def _size(context: Context, expected: Expected, x: str, how: str, place: str = "") -> bool:
    measure = {
        "largest": lambda t: t.area, "biggest": lambda t: t.area, "smallest": lambda t: -t.area, "tallest": lambda t: t.box[3] - t.box[1],
        "widest": lambda t: t.box[2] - t.box[0], "larger": lambda t: t.area, "smaller": lambda t: -t.area,
    }[how]  # fmt: skip
    return clearest(context.things, measure, factor=1.2) is the_one(x, context)


def _larger(context: Context, expected: Expected, x: str, how: str, y: str) -> bool:
    one, other = the_one(x, context), the_one(y, context)
    if max(one.area, other.area) < 1.2 * min(one.area, other.area):
        raise Wrong("the sizes are too much alike")
    return (one.area < other.area) if how == "smaller" else (one.area > other.area)


def _all_different(context: Context, expected: Expected) -> bool:
    return len({thing.name for thing in context.things}) == len(context.things)


def _nearest(context: Context, expected: Expected, x: str, how: str, y: str) -> bool:
    one = the_one(x, context)
    other = None if y == "the center" else the_one(y, context)
    point = (other.x, other.y) if other else (0.5, 0.5)
    sign = -1 if how in ("closest to", "nearest to") else 1
    return (
        clearest([thing for thing in context.things if thing is not other], lambda t: sign * distance((t.x, t.y), point), gap=0.05) is one
    )


ON_GROUND = rf"on an? (?:(?:{PATTERNS}) )?(?:{COLOURS}) background"
LIST = r"(?P<list_>.+?)"
_SENTENCES = [
    (rf"there (?:is|are) (?P<n>{NUMBER}|no)(?: now)?", lambda ctx, e, n: NUMBERS[n] == len(ctx.things) or NUMBERS[n] == e.number),
    (rf"(?:there (?:is|are)|i count|that is) (?P<n>{NUMBER}|no) (?P<noun>.+?)(?: in all| in total)?", _number),
    (rf"there (?:is|are) (?P<n>{NUMBER}) (?P<noun>.+?) and (?P<n_2>{NUMBER}) (?P<noun_2>.+?)(?:, which makes (?P<total>{NUMBER}))?",
        _number),
    (rf"there (?:is|are) (?P<n>{NUMBER}|no) objects? (?:{BEYOND} .+|in the (?:left|right|top|bottom) third of the picture)",
        _expected_number),
    (r"there is (?P<n>nothing) in the corners", lambda ctx, e, n: not any(" " in thing.place for thing in ctx.things)),
    (r"there is nothing else", lambda ctx, e: len(ctx.things) == 1),
    (rf"there is nothing {BEYOND} .+", lambda ctx, e: e.things == ()),
    (rf"there (?:is|are) {LIST} {BEYOND} .+", lambda ctx, e, list_: len(list_of(list_,
        ctx)) == e.number or (e.things is not None and same_things(list_of(list_, ctx), e.things))),
    (rf"there (?:is|are) {LIST} in the (?:left|right|top|bottom) third of the picture", lambda ctx, e, list_: len(list_of(list_,
        ctx)) == e.number),
    (rf"there (?:is|are) (?:also )?{LIST}(?: (?P<place>{PLACE}))?", _there),
    (r"there (?:is|are) no (?P<x>.+)", lambda ctx, e, x: absent(x, ctx) == []),
    (rf"(?P<place>{PLACE}),? there (?:is|are) {LIST}", _there),
    (rf"(?:the picture shows|you can(?: also)? see|i see) {LIST}", _there),
    (rf"(?:the picture shows|{ON_GROUND} there (?:is|are)) (?P<n>{NUMBER}) (?:object|thing)s?(?: {ON_GROUND})?", lambda ctx, e,
        n: NUMBERS[n] == len(ctx.things)),
    (r"i do not see (?P<x>.+)", lambda ctx, e, x: not all_matching(x, ctx) and absent(x, ctx) == []),
    (r"(?P<x>the .+|santa claus) is not", lambda ctx, e, x: not all_matching(x, ctx) and absent(x.removeprefix("the "), ctx) == []),
    (rf"you can find (?P<x>.+?) (?P<place>{PLACE})", _is),
    (rf"(?P<x>.+?) (?:is|are)(?: now)? (?P<place>{PLACE})(?: now)?", _is),
    (rf"the color of (?P<x>.+?) is (?P<c>{COLOURS})", _is),
    (rf"the background is (?P<c>{COLOURS})", lambda ctx, e, **g: g["c"] == ctx.colour),
    (rf"the background is (?:(?P<p>{PATTERNS})(?: and (?P<c>{COLOURS}))?)", lambda ctx, e, **g: g["p"] == ctx.pattern and g.get("c",
        ctx.colour) == ctx.colour),
    (rf"the background is not (?P<p>{PATTERNS})", lambda ctx, e, p: ctx.pattern != p),
    (rf"it is (?P<p>{PATTERNS})", lambda ctx, e, p: ctx.pattern == p == e.word),
    (rf"(?P<x>.+?) (?:is|are) (?P<c>{COLOURS})", _is),
    (rf"both are (?P<c>{COLOURS})", lambda ctx, e, c: e.yes is True and all(thing.colour == c for thing in e.pair)),
    (rf"(?P<x>.+?) (?:is|are) (?P<gt>{BEYOND})(?: and (?P<gt_2>{BEYOND}))? (?P<y>.+)", _beyond),
    (rf"(?P<x>.+?) is {MORE}", lambda ctx, e, x: the_one(x, ctx) is e.thing),
    (r"the object (?P<place>.+?) is (?P<x>.+)", lambda ctx, e, place, x: any(thing.place == place_in(place) for thing in all_matching(x,
        ctx))),
    (r"it is (?P<x>.+)", lambda ctx, e, x: e.thing in all_matching(x, ctx)),
    (r"the (?P<x>.+) appears more than once", lambda ctx, e, x: len(ctx.named(x)) > 1),
    (r"all objects are different", _all_different),
    (r"all objects are closer to the edges", lambda ctx, e: not any(thing.place == "center" for thing in ctx.things)),
    (r"(?P<x>.+?)(?: (?P<place>(?:in|at|on) the [a-z ]+))? (?:is|are) the (?P<how>largest|biggest|smallest|tallest|widest)(?: of them)?",
        _size),
    (r"(?P<x>.+?) (?:is|are) (?P<how>larger|smaller) than the other one", _size),
    (r"(?P<x>.+?) (?:is|are) (?P<how>larger|bigger|smaller) than (?P<y>.+)", _larger),
    (r"(?P<x>.+?) (?P<how>covers?) more of the picture than (?P<y>.+)", _larger),
    (r"no other object (?:covers as much of the picture|reaches as far from .+)", lambda ctx, e: e.thing is not None),
    (r"every other object covers more of the picture", lambda ctx, e: e.thing is not None),
    (r"(?P<x>.+?) (?:is|are) (?P<how>(?:closest|nearest) to|(?:farthest|furthest) from) (?P<y>.+)", _nearest),
    (r"the center of the picture is empty|there is nothing in the center", lambda ctx,
        e: not any(t.box[0] < 0.6 and t.box[2] > 0.4 and t.box[1] < 0.6 and t.box[3] > 0.4 for t in ctx.things)),
]  # fmt: skip
STATEMENTS = [(re.compile(pattern), test) for pattern, test in _SENTENCES]
