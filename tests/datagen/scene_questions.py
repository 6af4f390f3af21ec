"""What questions about a scene ask for: patterns of their English, each with the way to find the answer in the scene itself."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.datagen.scene_answers import Expected, plain
from tests.datagen.scene_reading import (
    BEYOND,
    BEYOND_WORDS,
    COLOURS,
    MORE,
    MORE_WORDS,
    MOST,
    MOST_WORDS,
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
    at,
    colour_of,
    count_of,
    decided,
    direction_in,
    farthest,
    is_beyond,
    place_in,
    the_one,
)  # fmt: skip

Derive = Callable[..., Expected]
QUESTIONS: list[tuple[re.Pattern[str], Derive]] = []
OT = r"(?:object|thing)"
OTS = r"(?:objects|things|items)"
BE = r"(?:is|are)"


def question(*patterns: str) -> Callable[[Derive], Derive]:
    def add(derive: Derive) -> Derive:
        QUESTIONS.extend((re.compile(pattern), derive) for pattern in patterns)
        return derive

    return add


@question(
    rf"(?:what|which {OT}) is (?P<place>{PLACE})", rf"what (?:can|do) you see (?P<place>{PLACE})",
    rf"what can be (?:seen|found|made out) (?P<place>{PLACE})",
    rf"what (?:is shown|is located|is placed|appears|has been put) (?P<place>{PLACE})",
    rf"which {OT} do you (?:see|find) (?P<place>{PLACE})",
    rf"(?P<place>{PLACE}), what is (?:there|shown|to be seen)", rf"what would i find (?P<place>{PLACE})",
    rf"what is the {OT} (?P<place>{PLACE})(?: called)?",
    rf"can you name the {OT} (?P<place>{PLACE})", rf"what is it that i see (?P<place>{PLACE})", rf"what you see (?P<place>{PLACE})",
    rf"what the {OT} (?P<place>{PLACE}) is",
    rf"name (?:the {OT}|what is|what you see) (?P<place>{PLACE})", rf"say what is (?P<place>{PLACE})",
    rf"identify the object (?P<place>{PLACE})",
    rf"give me the name of the {OT} (?P<place>{PLACE})", rf"look (?P<place>{PLACE}) and name the object there",
    rf"(?:and|what about|how about) (?P<place>{PLACE})", rf"and what (?:is|can be seen) (?P<place>{PLACE})",
    rf"now look (?P<place>{PLACE}): what is there",
)  # fmt: skip
def _what_at(context: Context, place: str) -> Expected:
    thing = at(context, place_in(place))
    return Expected(thing=thing, focus=thing)


@question(
    rf"what is the (?:only|one) {OT}", rf"what {OT} is this", r"what is this a (?:picture|drawing) of", r"what this is a picture of",
    rf"name the (?:only|one) {OT}",
    rf"which {OT} (?:is shown|can be seen)",
)  # fmt: skip
def _what_alone(context: Context) -> Expected:
    if len(context.things) != 1:
        raise Wrong("there are several objects")
    return Expected(thing=context.things[0], focus=context.things[0])


@question(
    rf"which {OTS} (?:are there|are shown|can be seen|do you see|can you find|you see)",
    rf"what {OTS} does the (?:picture|image|scene) (?:show|contain)", rf"what are the {OTS}",
    rf"can you (?:name|list) (?:all|the) {OTS}", r"what (?:all )?can be seen", rf"what the {OTS} are", rf"what {OTS} the picture shows",
    rf"name (?:all|all the|the) {OTS}",
    rf"list (?:all|all the|the) {OTS}", r"list everything (?:you see|that is shown)", rf"make a list of the {OTS}", rf"enumerate the {OTS}",
    r"what is there instead", r"what do you see instead", r"then what is shown", rf"what {OTS} are there, then",
    r"so what does the picture show", r"what can be seen, then",
    r"what (?:is shown|can you see|do you see)", r"what does the (?:picture|image) show", r"what is shown", r"what you see",
    r"say what is shown", r"name what you see",
)  # fmt: skip
def _list(context: Context) -> Expected:
    alone = context.things[0] if len(context.things) == 1 else None
    return Expected(things=tuple(context.things), focus=alone)


X = r"(?P<x>.+?)"


@question(
    rf"where(?: exactly)? {BE} {X}(?: located| placed| shown| positioned| in the picture)?",
    rf"where(?: in the picture)? (?:can|could|do|would|may|should) (?:i|you) (?:find|see|spot|look for|place|put|locate) {X}",
    rf"where (?:does|do) {X} appear",
    rf"whereabouts {BE} {X}", rf"in what (?:area|part|spot) of the picture {BE} {X}", rf"what is the position of {X}",
    rf"which part of the picture {BE} {X} in",
    rf"where (?:can|may) {X} be (?:seen|found)", rf"where(?: exactly)? {X} {BE}", rf"where i can (?:find|see) {X}",
    rf"where {X} can be (?:seen|found|spotted)",
    rf"in what part of the picture {X} {BE}", rf"locate {X}", rf"give (?:me )?the position of {X}",
    rf"(?:describe|point out|say) where {X} {BE}", rf"say in what part of the picture {X} {BE}",
    rf"(?:is|are) {X} (?:rather )?(?P<one>{PLACE}) or (?P<two>{PLACE})",
    rf"which is (?:right|it|true): {BE} {X} (?P<one>{PLACE}) or (?P<two>{PLACE})",
    rf"do i (?:find|see) {X} (?P<one>{PLACE}) or (?P<two>{PLACE})", rf"should i look for {X} (?P<one>{PLACE}) or (?P<two>{PLACE})",
    rf"(?:decide )?(?:whether|if) {X} {BE} (?P<one>{PLACE}) or (?P<two>{PLACE})",
    rf"choose the right place of {X}: (?P<one>{PLACE}) or (?P<two>{PLACE})",
    r"(?:and )?where(?P<x>)(?:, exactly)?", rf"(?:and )?where {BE} {X}(?:, then)?", r"can you say where(?P<x>)",
)  # fmt: skip
def _where(context: Context, x: str, one: str = "", two: str = "") -> Expected:
    if x.startswith("the other ") or (x in ("they", "them") and context.focus is None):
        raise Unread(x)
    thing = the_one(x or "it", context)
    if one and thing.place not in (place_in(one), place_in(two)):
        raise Wrong("neither place is right")
    if not one and re.search(PLACE, x):
        raise Wrong("the question gives the place away")
    return Expected(place=thing.place, focus=thing)


@question(
    r"(?:and )?where is the other one", r"what about the other one: where is it", r"and the other .+, where is it",
    r"where can i find the other one", r"there is another one, where",
    r"(?P<colour>and what color is the other one)", r"(?P<colour>what color is the other one)",
    r"(?P<colour>what about the color of the other one)", r"(?P<colour>and the other .+, what color is it)",
    r"(?P<colour>which color does the other one have)",
)  # fmt: skip
def _other_one(context: Context, colour: str = "") -> Expected:
    told = the_one("it", context)
    others = [thing for thing in context.things if thing.name == told.name and thing is not told]
    if len(others) != 1:
        raise Wrong(f"there are {len(others)} others")
    other = others[0]
    return Expected(word=colour_of(other), focus=other) if colour else Expected(place=other.place, focus=other)


C = rf"(?P<c>{COLOURS})"
D = rf"(?P<d>{COLOURS})"


@question(
    rf"(?:what|which) color {BE} {X}", rf"what is the color of {X}", rf"(?:what|which) color (?:does|do) {X} have",
    rf"what color (?:did|has) the (?:artist|painter) (?:give|given) {X}",
    rf"in (?:what|which) color {BE} {X} (?:shown|drawn)", rf"how would you name the color of {X}",
    rf"what is the (?:main|right) word for the color of {X}", rf"what color do you see on {X}",
    rf"which color (?:best )?describes {X}", rf"(?:what|which) color {X} {BE}", rf"(?:what|which) color {X} (?:has|have)",
    rf"in what color {X} {BE} (?:shown|drawn)",
    rf"(?:name|give|state) the color of {X}", rf"say (?:what|which) color {X} {BE}",
    rf"{BE} {X} {C} or {D}", rf"which color {BE} {X}, {C} or {D}", rf"(?:does|do) {X} look (?:more )?{C} or {D}",
    rf"{C} or {D}: which is the color of {X}",
    rf"is the color of {X} {C} or {D}", rf"(?:decide )?(?:whether|if) {X} {BE} {C} or {D}", rf"choose the color of {X}: {C} or {D}",
)  # fmt: skip
def _colour(context: Context, x: str, c: str = "", d: str = "") -> Expected:
    if x == "the background":
        return Expected(word=context.colour)
    thing = the_one(x, context)
    if c and colour_of(thing) not in (c, d):
        raise Wrong("neither color is right")
    return Expected(word=colour_of(thing), focus=thing)


@question(
    rf"{BE} {X} {C}(?: in color)?", rf"(?:does|do) {X} (?:look|appear) {C}(?: to you)?", rf"(?:does|do) {X} have a {C} color",
    rf"is {C} the color of {X}", rf"is the color of {X} {C}",
    rf"{BE} {X} (?:shown|drawn) in {C}", rf"am i right that {X} {BE} {C}", rf"(?:check |say )?(?:whether|if) {X} {BE} {C}(?: in color)?",
    rf"whether the color of {X} is {C}",
    rf"(?:whether|if) {X} (?:looks|look) {C}", rf"is it an? {C} (?P<x>background)(?: that i see)?",
    rf"are the objects shown on an? {C} (?P<x>background)",
)  # fmt: skip
def _is_colour(context: Context, x: str, c: str) -> Expected:
    if x in ("the background", "background"):
        return Expected(yes=context.colour == c)
    thing = the_one(x, context)
    return Expected(yes=colour_of(thing) == c, focus=thing)


@question(
    rf"{BE} {X} (?:located |shown |positioned )?(?P<place>{PLACE})", rf"(?:does|do) {X} appear (?P<place>{PLACE})",
    rf"can {X} be (?:seen|found) (?P<place>{PLACE})",
    rf"do you (?:see|find) {X} (?P<place>{PLACE})", rf"would it be (?:right|correct) to look for {X} (?P<place>{PLACE})",
    rf"do i have to look (?P<place>{PLACE}) to find {X}",
    rf"(?:check |say |find out )?(?:whether|if) {X} {BE} (?:located |shown )?(?P<place>{PLACE})",
    rf"(?:find out )?(?:whether|if) {X} can be (?:seen|found) (?P<place>{PLACE})",
    rf"{BE} there (?:any )?{X} (?P<place>{PLACE})", rf"does the (?:picture|image) show {X} (?P<place>{PLACE})",
    rf"(?:check |say )?(?:whether|if) there {BE} (?:any )?{X} (?P<place>{PLACE})",
    rf"{BE} the {OT} (?P<place>{PLACE}) {X}", rf"is what i see (?P<place>{PLACE}) {X}",
    rf"(?:say )?(?:whether|if) the {OT} (?P<place>{PLACE}) {BE} {X}",
)  # fmt: skip
def _is_at(context: Context, x: str, place: str) -> Expected:
    where = place_in(place)
    if x.startswith("the ") or x in ("it", "they", "them"):
        thing = the_one(x, context)
        return Expected(yes=thing.place == where, focus=thing)
    found = all_matching(x, context) or absent(x, context)
    there = at(context, where)
    return Expected(yes=there in found, focus=there)


@question(
    rf"{BE} there (?:any )?(?P<a>.+?)(?: anywhere| to be seen| somewhere)?", r"(?:can|could) (?:you|one|i) (?:see|find) (?P<a>.+)",
    r"do you see (?P<a>.+)",
    r"does (?:the picture|this image|the scene) (?:show|contain|include|have) (?P<a>.+)",
    rf"{BE} (?P<a>.+?) (?:shown|pictured|depicted|present)", rf"{BE} (?P<a>.+?) among the {OTS}",
    r"can (?P<a>.+?) be (?:seen|found|spotted)", r"did the artist (?:draw|include) (?P<a>.+)", rf"is one of the {OTS} (?P<a>.+)",
    rf"(?:whether|if) there {BE} (?:any )?(?P<a>.+)",
    r"(?:whether|if) (?P<a>.+?) can be (?:seen|found)", r"(?:whether|if) the (?:picture|image) (?:shows|contains) (?P<a>.+)",
    r"(?:whether|if) you (?:can )?see (?P<a>.+)",
    r"find out whether the picture shows (?P<a>.+)",
    rf"(?:say |check )(?:whether|if) (?:you see|you can see|there {BE}) (?:any )?(?P<a>.+)",
    r"(?:whether |is )(?P<a>.+?)(?: is)? in (?:the|this) (?:picture|image|scene)",
    r"is (?P<a>(?:the |santa).+)", r"check whether (?P<a>.+?) is(?: in the picture)?", r"whether (?P<a>.+?) is",
)  # fmt: skip
def _exists(context: Context, a: str) -> Expected:
    if re.search(rf"\b(?:{PLACE}|{BEYOND}|more than|fewer than|at least|at most|exactly)\b", a) and not re.match(r"the (?:number|word)", a):
        raise Unread(a)
    found = all_matching(a, context) or absent(a, context)
    return Expected(yes=bool(found), focus=found[0] if len(found) == 1 else None, group=tuple(found) if len(found) > 1 else ())


N = rf"(?P<n>{NUMBER})"


@question(
    r"how many (?P<p>.+?) (?:are there|are shown|can be seen|can you see|do you see|do you count|can you count|can you find|"
    r"are visible|are present)(?: in total| in all| together)?",
    r"how many (?P<p>.+?) (?:does|do) the (?:picture|image|scene) (?:show|contain|have)",
    r"what (?:is the )?(?:total )?number of (?P<p>.+?)(?: shown| you see| can be seen| together| in total)?",
    r"counting everything, how many (?P<p>.+?) (?:are there|do you see)",
    r"how many (?P<p>.+?) (?:there are|are shown|can be seen|you see|you count|you can find)(?: in total| in all| together)?",
    r"how many (?P<p>.+?) the (?:picture|image|scene) (?:shows|contains|has)", r"count (?:the|all) (?P<p>.+?)(?: you see| you can find)?",
    r"give the number of (?P<p>.+?) you see",
    r"say how many (?P<p>.+?) there are", r"count how many (?P<p>.+?) are shown", rf"how many of the {OTS} are (?P<p>.+)",
    rf"how many {OTS} are (?P<p>.+)",
    rf"(?:so |and )?how many (?P<p>{OTS}) (?:is that|are there|does that make)(?: in total| in all)?", r"how many are that together(?P<p>)",
    r"what is their number(?P<p>)",
    r"if you count both (?P<p>.+?), how many (?:are there|do you get)", r"taken together, how many (?P<p>.+?) (?:are there|do you see)",
    r"count the (?P<p>.+?) together", r"add up the (?P<p>.+)",
)  # fmt: skip
def _how_many(context: Context, p: str) -> Expected:
    if not p:
        return Expected(number=len(context.things))
    parts = [part.removeprefix("the ") for part in re.split(r" (?:and|or) ", p)]
    counts = [count_of(part, context) for part in parts]
    group = context.named(parts[0]) if len(parts) == 1 else []
    return Expected(number=sum(counts), focus=group[0] if len(group) == 1 else None, group=tuple(group) if len(group) > 1 else ())


BOUND = r"(?P<bound>more than|fewer than|larger than|smaller than|at least|at most|exactly)"


@question(
    rf"(?:are|is) there {BOUND} {N} {OTS}?", rf"do you (?:see|count) {BOUND} {N} {OTS}?",
    rf"does the (?:picture|image|scene) (?:show|contain) {BOUND} {N} {OTS}?",
    rf"can (?:you|one) (?:see|count|find) {BOUND} {N} {OTS}?", rf"is the number of {OTS} {BOUND} {N}",
    rf"(?:check |say )?(?:whether|if) there are {BOUND} {N} {OTS}?",
    rf"(?:whether|if) the picture shows {BOUND} {N} {OTS}?", rf"(?:say )?whether you (?:count|see) {BOUND} {N} {OTS}?",
    *(text.replace("OBJ", r"(?:object|thing)s?") for text in (
        rf"are there {BOUND} {N} OBJ", rf"do you (?:see|count) {BOUND} {N} OBJ",
        rf"does the (?:picture|image|scene) (?:show|contain) {BOUND} {N} OBJ",
        rf"can (?:you|one) (?:see|count|find) {BOUND} {N} OBJ",
        rf"(?:check |say )?(?:whether|if) (?:there are|the picture shows|you count|you see) {BOUND} {N} OBJ",
    )),
)  # fmt: skip
def _bound(context: Context, bound: str, n: str) -> Expected:
    number, limit = len(context.things), NUMBERS[n]
    yes = {
        "more than": number > limit, "larger than": number > limit, "fewer than": number < limit, "smaller than": number < limit,
        "at least": number >= limit, "at most": number <= limit, "exactly": number == limit,
    }[bound]  # fmt: skip
    return Expected(yes=yes)


@question(
    r"are there more (?P<p>.+) than (?P<q>.+)", r"do you (?:see|count) more (?P<p>.+) than (?P<q>.+)",
    r"do the (?P<p>.+) outnumber the (?P<q>.+)",
    r"is the number of (?P<p>.+) larger than the number of (?P<q>.+)", r"does the (?:picture|image) show more (?P<p>.+) than (?P<q>.+)",
    r"(?:check )?(?:whether|if) there are more (?P<p>.+) than (?P<q>.+)", r"(?:say )?(?:whether|if) the (?P<p>.+) outnumber the (?P<q>.+)",
)  # fmt: skip
def _more(context: Context, p: str, q: str) -> Expected:
    return Expected(yes=count_of(p, context) > count_of(q, context))


def _repeated(context: Context) -> list[Drawn]:
    return [thing for thing in context.things if len(context.named(thing.name)) > 1]


@question(
    r"which (?:object|thing|name) (?:appears|occurs|is shown|can be seen) more than once",
    r"(?:which|what) (?:kind of object|thing) is there more than one of",
    r"what can be seen (?:more than once|several times)", rf"which {OT} is repeated",
    rf"name the {OT} that (?:appears|occurs|is shown) more than once", rf"find the {OT} that is repeated",
)  # fmt: skip
def _which_repeats(context: Context) -> Expected:
    names = {thing.name for thing in _repeated(context)}
    if len(names) != 1:
        raise Wrong(f"{len(names)} names are repeated")
    group = tuple(_repeated(context))
    return Expected(thing=group[0], group=group)


@question(
    rf"(?:does any|is any|is some) {OT} (?:appear|shown) more than once", r"is anything shown more than once",
    rf"are there two or more of the same {OT}", rf"do you see the same kind of {OT} (?:twice|more than once)",
    rf"is (?:any|some) {OT} repeated", r"(?:whether|if) (?:any|some) object (?:appears|occurs|is shown) more than once",
    r"(?:say )?(?:whether|if) anything is repeated",
    rf"whether the same kind of {OT} is there more than once", rf"check whether any {OT} is shown more than once",
)  # fmt: skip
def _any_repeats(context: Context) -> Expected:
    return Expected(yes=bool(_repeated(context)), group=tuple(_repeated(context)))


@question(
    rf"{BE} {X} the only {OT}", rf"{BE} {X} all (?:there is|that can be seen)", rf"{BE} {X} all alone", rf"is there nothing else than {X}",
    rf"does the (?:picture|image) show only {X}",
    rf"(?:check )?whether {X} {BE} the only {OT}", rf"if there is nothing else than {X}", rf"(?:say )?whether {X} {BE} all there is",
)  # fmt: skip
def _is_only(context: Context, x: str) -> Expected:
    thing = the_one(x, context)
    return Expected(yes=len(context.things) == 1, focus=thing)


SEEN = r"(?:is there|is shown|can be seen|do you see|can you see|can you find|are there|you see|there is)"


@question(
    rf"what else {SEEN}(?:,? (?:besides|apart from) {X})?", rf"besides {X}, what (?:else )?{SEEN}", rf"apart from {X}, what {SEEN}",
    rf"which other {OTS} {SEEN}(?: besides {X})?",
    rf"what keeps {X} company", rf"what {SEEN} apart from {X}", rf"name everything (?:but|except) {X}", rf"name the {OTS}, apart from {X}",
    rf"list what {SEEN} besides {X}",
    r"(?:and )?what else", r"and besides that, what do you see", r"what more is there to see",
)  # fmt: skip
def _what_else(context: Context, x: str = "it") -> Expected:
    thing = the_one(x, context) if x != "it" or context.focus else None
    if thing is None:
        raise Wrong("what else than what?")
    return Expected(things=tuple(other for other in context.things if other is not thing), focus=thing)


Y = r"(?P<y>.+?)"
# Where two stand side by side, each begins with its article.
SUBJECT_X = r"(?P<x>(?:the|santa|it|they)\b.*?)"
SUBJECT_Y = r"(?P<y>(?:the|santa|them)\b.+?)"
GT = rf"(?P<gt>{BEYOND})"
MR = rf"(?P<more>{MORE})"


@question(
    rf"is {X} (?:placed |located |shown )?{GT} {Y}", rf"would you find {X} {GT} {Y}", rf"does {X} (?:appear|lie) {GT} {Y}",
    rf"can {X} be (?:seen|found) {GT} {Y}", rf"is it {X} that is {GT} {Y}",
    rf"compared with {Y}, is {X} {MR}", rf"(?:check |say )?(?:whether|if) {X} (?:is|appears|lies)(?: placed| shown)? {GT} {Y}",
    rf"compare {X} and {Y}: is the first {MR}",
)  # fmt: skip
def _is_beyond(context: Context, x: str, y: str, gt: str = "", more: str = "") -> Expected:
    direction = direction_in(gt, BEYOND_WORDS) if gt else direction_in(more, MORE_WORDS)
    one, other = the_one(x, context), the_one(y, context)
    return Expected(yes=decided(one, other, direction), focus=one)


@question(
    rf"(?:which|which one|what) (?:is|lies|appears) {MR}, {X} or {Y}", rf"of {X} and {Y}, which is {MR}",
    rf"{X} or {Y}: which (?:one )?is {MR}", rf"which of the two is {MR}: {X} or {Y}",
    rf"between {X} and {Y}, which (?:one )?is {MR}", rf"whether {X} or {Y} is {MR}", rf"which of {X} and {Y} is {MR}",
    rf"(?:name|choose) the one that is {MR}: {X} or {Y}",
)  # fmt: skip
def _which_beyond(context: Context, x: str, y: str, more: str) -> Expected:
    direction = direction_in(more, MORE_WORDS)
    one, other = the_one(x, context), the_one(y, context)
    winner = one if decided(one, other, direction) else other
    return Expected(thing=winner, focus=winner)


@question(
    rf"what (?:is|lies|appears) {GT} {Y}", rf"which {OTS} are {GT} {Y}", rf"what (?:can|do) you (?:see|find) {GT} {Y}",
    rf"is anything {GT} {Y}, and if so, what", rf"which {OTS} can be (?:seen|found) {GT} {Y}",
    rf"what can be (?:seen|found) {GT} {Y}", rf"name everything {GT} {Y}", rf"list (?:what is|all that is|the objects) {GT} {Y}",
)  # fmt: skip
def _what_beyond(context: Context, y: str, gt: str) -> Expected:
    other, direction = the_one(y, context), direction_in(gt, BEYOND_WORDS)
    return Expected(things=tuple(_all_beyond(context, other, direction)), focus=other)


def _all_beyond(context: Context, other: Drawn, direction: str) -> list[Drawn]:
    """Everything clearly beyond. What is only a little beyond stands in the same column or row, and is not: by the scene's own places."""
    return [thing for thing in context.things if thing is not other and is_beyond(thing, other, direction)]


@question(
    rf"how many {OTS} are {GT} {Y}", rf"how many {OTS} (?:do|can) you (?:see|find|count) {GT} {Y}",
    rf"how many {OTS} (?:lie|appear|can be seen) {GT} {Y}", rf"what number of {OTS} is {GT} {Y}",
    rf"count the {OTS} {GT} {Y}", rf"say how many {OTS} are {GT} {Y}",
)  # fmt: skip
def _how_many_beyond(context: Context, y: str, gt: str) -> Expected:
    other = the_one(y, context)
    return Expected(number=len(_all_beyond(context, other, direction_in(gt, BEYOND_WORDS))), focus=other)


@question(
    rf"where is {X} (?:relative to|as seen from|in relation to) {Y}", rf"seen from {Y}, where is {X}",
    rf"how does the position of {X} compare with that of {Y}", rf"on which side of {Y} is {X}",
    rf"in which direction from {Y} is {X}", rf"how are {X} and {Y} placed relative to each other",
    rf"going from {Y} to {X}, in which direction do i move", rf"where {X} is (?:relative to|as seen from|in relation to) {Y}",
    rf"in which direction from {SUBJECT_Y} {SUBJECT_X} is", rf"on which side of {SUBJECT_Y} {SUBJECT_X} is",
    rf"describe the position of {X} relative to {Y}", rf"say where {X} is as seen from {Y}",
)  # fmt: skip
def _relation(context: Context, x: str, y: str) -> Expected:
    one, other = the_one(x, context), the_one(y, context)
    return Expected(relation=(one, other), focus=one)


MS = rf"(?P<most>{MOST})"


@question(
    rf"(?:which {OT}|what|which of the {OTS}) is {MS}", rf"what {OT} (?:do|can) you see {MS}", rf"what (?:lies|appears|can be found) {MS}",
    rf"which {OT} would you call the one {MS}",
    rf"(?:name|find) the {OT} (?:that is )?{MS}", rf"say which {OT} is {MS}", rf"(?:and )?which (?:one )?of them is {MS}",
    rf"of all these, which is {MS}", rf"what is {MS} among them",
)  # fmt: skip
def _which_most(context: Context, most: str) -> Expected:
    thing = farthest(context, direction_in(most, MOST_WORDS))
    return Expected(thing=thing, focus=thing)


THIRD = r"in the (?P<third>left|right|top|bottom) third of the picture"


@question(
    rf"how many {OTS} are {THIRD}", rf"how many {OTS} (?:do|can) you (?:see|count|find) {THIRD}", rf"what number of {OTS} is {THIRD}",
    rf"{THIRD}, how many {OTS} are there",
    rf"how many {OTS} (?:are|there are|can be seen) {THIRD}", rf"(?:count the|say how many) {OTS}(?: are)? {THIRD}",
)  # fmt: skip
def _third(context: Context, third: str) -> Expected:
    inside = {"left": lambda t: t.x < 1 / 3, "right": lambda t: t.x > 2 / 3, "top": lambda t: t.y < 1 / 3, "bottom": lambda t: t.y > 2 / 3}[
        third
    ]
    return Expected(number=sum(map(inside, context.things)))


@question(
    r"what is in the corners", rf"which {OTS} are in a corner", rf"which {OTS} (?:sit|lie|can be found) in (?:a corner|the corners)",
    r"is anything in a corner, and if so, what",
    r"name (?:what is|everything|the objects) in the corners", rf"list the {OTS} that are in a corner",
)  # fmt: skip
def _corners(context: Context) -> Expected:
    return Expected(things=tuple(thing for thing in context.things if " " in thing.place))


@question(
    r"(?:what|which) color is the background", r"what is the (?:color of the background|background color)",
    r"(?:what|which) color does the background have",
    r"on (?:what|which) color (?:are the objects|is everything) (?:shown|placed)", r"which color (?:fills|covers) the background",
    r"what color (?:was chosen|did the artist choose) for the background",
    rf"what color is behind the {OTS}", r"(?:what|which) color the background (?:is|has)", r"what the background color is",
    r"name the color of the background",
    r"say (?:what|which) color the background is", r"give the background color",
)  # fmt: skip
def _background(context: Context) -> Expected:
    return Expected(word=context.colour)


PT = rf"(?P<pattern>{PATTERNS})"


@question(
    r"what pattern does the background have", r"what pattern is on the background", r"how is the background patterned",
    r"which pattern (?:covers|fills|decorates) the background",
    r"is the background striped, checkered, dotted or speckled", r"what kind of pattern do you see (?:in|on) the background",
    r"(?:what|which) pattern the background has", r"how the background is patterned",
    r"name the pattern of the background", r"describe the pattern of the background in a word",
)  # fmt: skip
def _pattern(context: Context) -> Expected:
    if not context.pattern:
        raise Wrong("the background has no pattern with a name")
    return Expected(word=context.pattern)


@question(
    rf"is the background {PT}", rf"does the background look {PT}", rf"is it an? {PT} background", rf"does the background have a {PT} look",
    rf"are the objects on an? {PT} background",
    rf"(?:check |say )?(?:whether|if) the background is {PT}", rf"whether it is an? {PT} background",
)  # fmt: skip
def _is_pattern(context: Context, pattern: str) -> Expected:
    return Expected(yes=context.pattern == pattern)


S = r"(?P<s>.+?)"


@question(
    rf"true or false: {S}", rf"{S}\. (?:true or false|is this true or false|would you say true or false)",
    rf"is this statement true or false: {S}", rf"decide: is it true or false that {S}",
    rf"whether it is true or false that {S}", rf"say whether this is true or false: {S}",
    rf"(?:judge|check) this statement, true or false: {S}",
)  # fmt: skip
def _true_false(context: Context, s: str) -> Expected:
    return Expected(word="true" if is_true(s, context) else "false")


@question(
    rf"is it (?:true|right|correct) that {S}", rf"somebody (?:says|claims) that {S}\. is that (?:true|right|correct)",
    rf"am i (?:right|correct) that {S}",
    rf"i think that {S}\. (?:am i right|is that so|do you agree)",
    rf"would it be (?:right|correct|true) to say that {S}",
    rf"check this (?:claim|sentence): {S}\. is it (?:right|true|correct)", rf"would you agree that {S}",
    rf"(?:say )?(?:whether|if) it is (?:true|right|correct) that {S}", rf"(?:check )?whether {S}",
)  # fmt: skip
def _is_right(context: Context, s: str) -> Expected:
    return Expected(yes=is_true(s, context))


def is_true(claim: str, context: Context) -> bool:
    """Whether a statement is true; Unread where it cannot be understood, whichever it is."""
    text = plain(claim)
    if match := re.fullmatch(rf"there (?:is|are) (?P<n>{NUMBER}) objects?", text):
        return NUMBERS[match["n"]] == len(context.things)
    if match := re.fullmatch(rf"the background is ({COLOURS})", text):
        return context.colour == match[1]
    if match := re.fullmatch(r"there is (?P<a>an? .+)", text):
        return bool(all_matching(match["a"], context) or absent(match["a"], context))
    if match := re.fullmatch(rf"(?P<x>.+?) is (?P<gt>{BEYOND}) (?P<y>.+)", text):
        return decided(the_one(match["x"], context), the_one(match["y"], context), direction_in(match["gt"], BEYOND_WORDS))
    if match := re.fullmatch(rf"(?P<x>.+?) (?:is|are) (?P<c>{COLOURS})", text):
        return colour_of(the_one(match["x"], context)) == match["c"]
    if match := re.fullmatch(rf"(?P<x>.+?) (?:is|are) (?P<place>{PLACE})", text):
        return the_one(match["x"], context).place == place_in(match["place"])
    raise Unread(text)


O = r"(?P<options>.+)"  # noqa: E741


@question(
    rf"which of these (?:is|can be seen|is shown): {O}", rf"what (?:is shown|can be seen|do you see): {O}",
    rf"is it {O} that (?:is shown|can be seen)",
    rf"{O}: which of them (?:is|can be seen|is shown)", rf"only one of these is(?: in the picture)?\. which one: {O}",
    rf"choose what (?:is shown|can be seen): {O}", rf"pick what you see: {O}",
)  # fmt: skip
def _which_of_these(context: Context, options: str) -> Expected:
    found = [all_matching(option, context) or absent(option, context) for option in re.split(r", | or ", options)]
    there = [group for group in found if group]
    if len(there) != 1:
        raise Wrong(f"{len(there)} of the choices are there")
    return Expected(thing=there[0][0], focus=there[0][0] if len(there[0]) == 1 else None)


@question(
    r"what (?:is|can be seen|is shown), and where", r"what does the (?:picture|image) look like",
    r"(?:how would|can) you describe (?:the|this) (?:picture|image|scene)", r"what is (?:shown|going on), and where",
    r"how is the (?:picture|scene) arranged", r"what would you tell someone who cannot see (?:the|this) (?:picture|image)",
    r"what is shown and where", r"how the (?:picture|scene) is arranged", r"what you see and where",
    r"describe (?:the|this) (?:picture|image|scene)(?: for someone who cannot see it)?", r"describe what you see and where it is",
    r"write a sentence that describes the (?:picture|image)",
    r"say what is shown and where", r"give a full description of (?:the|this) (?:picture|image)",
    r"sum up the (?:picture|image|scene) in a sentence",
)  # fmt: skip
def _describe(context: Context) -> Expected:
    return Expected(whole_scene=True)


@question(
    r"(?:where are they|and where are they|where do you see them|whereabouts are they|can you say where they are|"
    r"where can i find them)(?:, then)?",
    rf"where (?:are|can i find|can i see|could i find|could i see) the (?P<n>{NUMBER}) (?P<p>.+?)",
    rf"how are the (?P<n>{NUMBER}) (?P<p>.+) placed", rf"(?:locate|find) the (?P<n>{NUMBER}) (?P<p>.+)",
    rf"(?:say )?where the (?P<n>{NUMBER}) (?P<p>.+) are", r"where are the (?P<p>.+) (?:placed|located)",
    r"at which places (?:do you see the (?P<p>.+)|the (?P<q>.+) are)",
)  # fmt: skip
def _where_all(context: Context, n: str = "", p: str = "", q: str = "") -> Expected:
    group = context.named(p or q) if p or q else context.group
    if len(group) < 2 or (n and NUMBERS[n] != len(group)):
        raise Unread(p or q)
    return Expected(places=tuple(thing.place for thing in group))
