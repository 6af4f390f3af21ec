"""Looks through a benchmark's data folder before hours of running: every record, every picture, every protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vistune.errors import DataError
from vistune.eval.benchmark import Benchmark
from vistune.media import open_image
from vistune.types import ImagePart, Question


@dataclass(frozen=True)
class Checked:
    """What a protocol finds in the folder. `problems` are the pictures that cannot be used, each with the question that shows it."""

    protocol: str
    n: int
    pictures: int
    categories: dict[str, int]
    without_answer: int
    problems: tuple[str, ...]


def check(
    benchmark: Benchmark, data: Path | None, protocol: str = "", *, progress: Callable[[int, int], None] | None = None
) -> tuple[Checked, ...]:
    """Loads the questions of one protocol, or of all, and opens every picture once.

    Raises:
        What `Benchmark.questions` raises: files that are missing, broken or not the official ones.
    """
    chosen = [benchmark.protocol(protocol)] if protocol else benchmark.protocols
    opened: dict[Path | bytes | str, str] = {}
    found = []
    for each in chosen:
        questions = benchmark.questions(data, each.id)
        problems = []
        for number, question in enumerate(questions, 1):
            for part in _pictures(question):
                if part.source not in opened:
                    opened[part.source] = _problem(part)
                if opened[part.source]:
                    problems.append(f"{question.id}: {opened[part.source]}")
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


def _pictures(question: Question) -> Iterator[ImagePart]:
    return iter(question.conversation.images)


def _problem(part: ImagePart) -> str:
    try:
        open_image(part.source)
    except DataError as error:
        return str(error)
    return ""


def in_words(name: str, found: tuple[Checked, ...], *, most: int = 10) -> str:
    """The findings in a few lines."""
    lines = []
    for each in found:
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
