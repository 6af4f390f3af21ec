"""What several benchmarks share: how a picture is asked about, how questions meet their answers in another file, and means as metrics."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from vistune.errors import DataError
from vistune.eval.benchmark import Metric
from vistune.eval.official_files import Row
from vistune.types import Conversation, Graded, ImagePart, Message, Part, Reply, Score, TextPart, VideoPart

SHORT_ANSWER = "Answer the question using a single word or phrase."
"""What LLaVA-1.5 puts on a line of its own after a question that has a short answer."""


def about_pictures(pictures: ImagePart | VideoPart | Sequence[ImagePart | VideoPart], text: str) -> Conversation:
    """One user turn: the pictures or videos, each with a line of its own, and then the text."""
    parts: list[Part] = []
    for picture in [pictures] if isinstance(pictures, ImagePart | VideoPart) else pictures:
        parts += [picture, TextPart("\n")]
    return Conversation((Message("user", (*parts[:-1], TextPart(f"\n{text}"))),))


def unanswered(reply: Reply) -> Score | None:
    """The score of a reply that was cut off by us: none, for a failure is not a zero. None for any other reply."""
    return Score(None, note="the reply was cancelled") if reply.finish_reason == "cancelled" else None


def answer_texts(row: Row, key: str, *, count: int | None = None) -> tuple[str, ...]:
    """Accepted answers, given as texts or as objects with `answer`.

    Raises:
        DataError: they are something else, none, or not `count` of them.
    """
    answers = row.get(key)
    given = [answer.get("answer") if isinstance(answer, Mapping) else answer for answer in answers] if isinstance(answers, list) else []
    texts = tuple(text for text in given if isinstance(text, str))
    if not texts or len(texts) != len(given) or (count is not None and len(texts) != count):
        raise row.wrong(key, f"a list of {count or 'one or more'} answers (this may be a split whose answers are not public)")
    return texts


def require_same_ids(questions: Mapping[str, Row], others: Collection[str], what: str) -> None:
    """Raises DataError unless `others` are the ids of exactly these questions. `what` names the other file."""
    lacking = [name for name in questions if name not in others]
    extra = [name for name in others if name not in questions]
    if lacking or extra:
        first = f"{what} has nothing for it" if lacking else f"it is in {what} only"
        raise DataError(
            f"{what} does not belong to the questions: {len(lacking)} of {len(questions)} are not in it, {len(extra)} of its own are no "
            f"questions; the first is {(lacking or extra)[0][:80]!r}, {first}. Are they of the same split?"
        )


def mean_percent(name: str, items: Iterable[Graded], *, headline: bool = False) -> Metric:
    """The mean of the items' scores in percent; 0 of none. An item without a score is left out."""
    values = [item.score.value for item in items if item.score.value is not None]
    return Metric(name, 100 * math.fsum(values) / len(values) if values else 0.0, len(values), headline=headline)


def mean_percents(name: str, items: Iterable[Graded], categories: Callable[[Graded], str | Iterable[str]]) -> tuple[Metric, ...]:
    """The same for each category (one, or several of an item), by name. An item in no category (the empty text) is in none of them."""
    members: dict[str, list[Graded]] = defaultdict(list)
    for item in items:
        found = categories(item)
        for category in [found] if isinstance(found, str) else found:
            if category:
                members[category].append(item)
    return tuple(mean_percent(f"{name}/{category}", members[category]) for category in sorted(members))
