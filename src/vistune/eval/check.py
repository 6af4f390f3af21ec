"""Looks through a benchmark's data folder before hours of running: every record, every picture and video, every protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vistune.errors import DataError, MissingDependency
from vistune.eval.benchmark import Benchmark
from vistune.media import open_image
from vistune.types import Conversation, ImagePart, Question, VideoPart
from vistune.video import with_frames


@dataclass(frozen=True)
class Checked:
    """What a protocol finds in the folder.

    `problems` are the pictures and videos that cannot be used, each with the question that shows it. `skipped` says what a protocol lacks
    on this machine, where another one can be used.
    """

    protocol: str
    n: int
    pictures: int
    categories: dict[str, int]
    without_answer: int
    problems: tuple[str, ...]
    skipped: str = ""


def check(
    benchmark: Benchmark, data: Path | None, protocol: str = "", *, progress: Callable[[int, int], None] | None = None
) -> tuple[Checked, ...]:
    """Loads the questions of one protocol, or of all, opens every picture once and decodes what is shown of every video.

    Raises:
        What `Benchmark.questions` raises: files that are missing, broken or not the official ones.
        MissingDependency: what the protocol needs is not installed; where all are looked at, only if it is so for the first.
    """
    chosen = [benchmark.protocol(protocol)] if protocol else benchmark.protocols
    opened: dict[ImagePart | VideoPart, str] = {}
    found = []
    for each in chosen:
        try:
            questions = benchmark.questions(data, each.id)
        except MissingDependency as error:
            if not found:
                raise
            found.append(Checked(each.id, 0, 0, {}, 0, (), skipped=str(error)))
            continue
        problems = []
        for number, question in enumerate(questions, 1):
            for part in _pictures(question):
                if part not in opened:
                    opened[part] = _problem(part)
                if opened[part]:
                    problems.append(f"{question.id}: {opened[part]}")
            if progress:
                progress(number, len(questions))
        found.append(
            Checked(
                each.id,
                len(questions),
                len({part.source for question in questions for part in _pictures(question)}),
                dict(Counter(question.category for question in questions)),
                sum(not question.answers for question in questions),
                tuple(problems),
            )
        )
    return tuple(found)


def _pictures(question: Question) -> Iterator[ImagePart | VideoPart]:
    for message in question.conversation.messages:
        yield from (part for part in message.parts if isinstance(part, ImagePart | VideoPart))


def _problem(part: ImagePart | VideoPart) -> str:
    try:
        if isinstance(part, ImagePart):
            open_image(part.source)
        else:
            with_frames(Conversation(()).then("user", part))
    except DataError as error:
        return str(error)
    return ""


def in_words(name: str, found: tuple[Checked, ...], *, most: int = 10) -> str:
    """The findings in a few lines."""
    lines = []
    for each in found:
        if each.skipped:
            lines.append(f"{name} ({each.protocol}): not looked at. {each.skipped}")
            continue
        without = f", {each.without_answer} without an answer" if each.without_answer else ""
        lines.append(f"{name} ({each.protocol}): {each.n:,} questions about {each.pictures:,} pictures{without}")
        if set(each.categories) != {""}:
            counts = sorted(each.categories.items(), key=lambda item: (-item[1], item[0]))
            shown = ", ".join(f"{category} {count:,}" for category, count in counts[:20])
            lines.append(f"  {shown}{', ...' if len(counts) > 20 else ''}")
        lines += [f"  {problem}" for problem in each.problems[:most]]
        if len(each.problems) > most:
            lines.append(f"  and {len(each.problems) - most:,} more")
    return "\n".join(lines)


def require_no_problem(name: str, found: tuple[Checked, ...]) -> None:
    """Raises DataError where a picture cannot be used."""
    count = sum(len(each.problems) for each in found)
    if count:
        raise DataError(f"{count:,} questions of {name} show pictures that cannot be opened; get those files again.")
