"""`vistune data stats`: what is in a data file, in numbers, as JSON and as text.

Rows stream; in memory stay counts, the distinct lengths, and the names of pictures seen. Sizes of pictures come from their headers. No
torch here: tokens are counted by a function that the caller brings.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistune.data.pictures import absolute_folder
from vistune.data.validate import reason_of
from vistune.errors import ContextLengthError, DataError, ImageError
from vistune.formats import example_from_row, format_of, read_rows
from vistune.media import image_size
from vistune.types import InstructionExample

_WORD = re.compile(r"\S+")
_SHOWN = 12
"""Rows of a table of counts in the text; the JSON has all."""


@dataclass
class Spread:
    """How whole numbers are distributed, kept as counts of the distinct ones."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, value: int) -> None:
        self.counts[value] += 1

    @property
    def n(self) -> int:
        return self.counts.total()

    @property
    def mean(self) -> float:
        return sum(value * count for value, count in self.counts.items()) / self.n if self.counts else 0.0

    def at(self, fraction: float) -> int:
        """The smallest number that at least this fraction of all is not above; 0 where there is none."""
        seen = 0
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= fraction * self.n:
                return value
        return 0

    def as_json(self) -> dict[str, float]:
        named = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
        return {"n": self.n, "mean": round(self.mean, 2), **{name: self.at(fraction) for name, fraction in named.items()}}


@dataclass
class DataStats:
    """Counts over the usable rows of a file; `rejected` counts the others by reason."""

    file: str
    formats: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    pictures_per_row: Counter[int] = field(default_factory=Counter)
    turns: Spread = field(default_factory=Spread)
    """Questions in a row."""
    question_words: Spread = field(default_factory=Spread)
    answer_words: Spread = field(default_factory=Spread)
    """Words between white space, of one turn."""
    tokens: Spread = field(default_factory=Spread)
    """Of a whole row, pictures expanded, where a model was named."""
    systems: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    pictures: int = 0
    """Distinct pictures (embedded ones each time they appear)."""
    broken_pictures: Counter[str] = field(default_factory=Counter)
    widths: Spread = field(default_factory=Spread)
    heights: Spread = field(default_factory=Spread)
    opening_words: Counter[str] = field(default_factory=Counter)
    """The first two words of each question."""

    def as_json(self) -> dict[str, Any]:
        def plain(value: Any) -> Any:
            if isinstance(value, Spread):
                return value.as_json()
            return {str(name): count for name, count in value.most_common()} if isinstance(value, Counter) else value

        return {name: plain(value) for name, value in vars(self).items()}

    def as_text(self) -> str:
        """A page for a terminal; what is in the data is printed with its control characters escaped."""
        lines = [
            f"{self.rows:,} rows ({', '.join(f'{count:,} {name}' for name, count in self.formats.most_common())})",
            *_table("cannot be used", self.rejected),
            *_table("pictures in a row", self.pictures_per_row),
            "",
            f"{'':<22}{'mean':>9}{'min':>8}{'median':>8}{'p90':>8}{'p99':>8}{'max':>8}",
            *_spread("questions in a row", self.turns),
            *_spread("words in a question", self.question_words),
            *_spread("words in an answer", self.answer_words),
            *_spread("tokens in a row", self.tokens),
            *_spread("width of a picture", self.widths),
            *_spread("height of a picture", self.heights),
            "",
            f"{self.systems:,} rows with a system text; {self.pictures:,} distinct pictures",
            *_table("pictures that cannot be used", self.broken_pictures),
            *_table("kind", self.kinds),
            *_table("source", self.sources),
            *_table("licence", self.licences),
            *_table("questions begin", self.opening_words),
        ]
        return "\n".join(lines)


def _spread(name: str, spread: Spread) -> list[str]:
    if not spread.counts:
        return []
    found = spread.as_json()
    columns = "".join(f"{found[column]:>8,}" for column in ("min", "median", "p90", "p99", "max"))
    return [f"{name:<22}{found['mean']:>9,.1f}{columns}"]


def _table(name: str, counts: Counter[Any]) -> list[str]:
    shown = [f"  {count:>9,}  {printable(str(value)) or '(none)'}" for value, count in counts.most_common(_SHOWN)]
    more = len(counts) - _SHOWN
    return [f"{name}:", *shown, *([f"  {'':>9}  and {more:,} more"] if more > 0 else [])] if counts else []


def printable(text: str) -> str:
    """Text of a stranger for a terminal: control and bidirectional characters escaped, at most 120 characters."""
    shown = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text[:120])
    return shown + "…" * (len(text) > 120)


def dataset_stats(path: Path, images: Path, *, sizes: bool = True, measure: Callable[[InstructionExample], int] | None = None) -> DataStats:
    """Counts what is in a file of any of the formats.

    Args:
        sizes: read the headers of pictures for their sizes.
        measure: record → tokens, where a model is named.
    """
    stats = DataStats(path.name)
    images = absolute_folder(images)
    seen: set[Path] = set()
    for number, row in enumerate(read_rows(path)):
        stats.formats[format_of(row)] += 1
        try:
            example = example_from_row(row, images, row_number=number)
            tokens = None if measure is None else measure(example)
        except (DataError, ContextLengthError) as error:
            stats.rejected[reason_of(error)] += 1
            continue
        _count(stats, example)
        if tokens is not None:
            stats.tokens.add(tokens)
        for image in example.conversation.images:
            if isinstance(image.source, Path):
                if image.source in seen:
                    continue
                seen.add(image.source)
            stats.pictures += 1
            if sizes:
                try:
                    width, height = image_size(image.source, root=images)
                except ImageError as error:
                    stats.broken_pictures[error.reason] += 1
                else:
                    stats.widths.add(width)
                    stats.heights.add(height)
    return stats


def _count(stats: DataStats, example: InstructionExample) -> None:
    messages = example.conversation.messages
    stats.rows += 1
    stats.pictures_per_row[len(example.conversation.images)] += 1
    stats.turns.add(sum(message.role == "user" for message in messages))
    stats.systems += messages[0].role == "system"
    stats.kinds[example.kind] += 1
    stats.sources[_named(example.provenance, "source")] += 1
    stats.licences[_named(example.provenance, "licence")] += 1
    for message in messages:
        words = _WORD.findall(message.text)
        if message.role == "user":
            stats.question_words.add(len(words))
            stats.opening_words[_opening(words)] += 1
        elif message.role == "assistant":
            stats.answer_words.add(len(words))


def _named(provenance: Mapping[str, Any], name: str) -> str:
    return str(provenance.get(name, ""))[:200]


def _opening(words: Iterable[str]) -> str:
    """The first two words of a question, cut so that long ones cannot fill the memory."""
    first, second, *_ = (*words, "", "")
    return f"{first[:20]} {second[:20]}".strip().casefold()
