"""`vistune data overlap`: evaluation pictures and questions that are in the training data.

Pictures are found by how they look (`data/picture_hash.py`), texts by runs of 13 words that both sides have (the length GPT-3's authors
used), whatever their case and punctuation. A run that many evaluation items share is the benchmark's own formula and is left out. A
question shorter than 13 words says little by itself, so it counts where its picture is found as well.

The evaluation side is held in memory, a few hundred bytes for a picture and for each run of words. Training rows stream; of them stay the
names of pictures, so that each is opened once.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from vistune.data.picture_hash import SAME_PICTURE, Fingerprint, LookIndex, fingerprint
from vistune.data.pictures import absolute_folder
from vistune.data.stats import printable
from vistune.errors import DataError, ImageError
from vistune.formats import example_from_row, read_rows
from vistune.types import ImageSource, InstructionExample, Question

RUN = 13
COMMON = 10
"""A run of words in more evaluation items than this is the benchmark's formula."""
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}
_PAIRS_PER_ITEM = 20
_ROWS_AT_ONCE = 64
"""Enough pictures to keep the threads busy, few enough to hold where they are embedded in their rows."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class EvaluationItem:
    """One thing that a model is measured on: a question with its pictures, answers and choices, or a picture alone."""

    id: str
    question: str = ""
    texts: tuple[str, ...] = ()
    images: tuple[ImageSource, ...] = ()


@dataclass(frozen=True)
class PicturePair:
    """An evaluation picture that looks like one in training. `bits` of 128 differ, 0 of them for equal pixels."""

    item: str
    row: int
    id: str
    picture: str
    bits: int
    same_question: bool


@dataclass(frozen=True)
class TextPair:
    """An evaluation item and a training row that share a run of words."""

    item: str
    row: int
    id: str
    words: str


@dataclass
class OverlapReport:
    """What was compared and found. At most 20 pairs of each kind are listed for an item; the sets of items are complete."""

    items: int = 0
    item_pictures: int = 0
    rows: int = 0
    row_pictures: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    """Rows and pictures of either side that could not be compared, by reason."""
    formulas: int = 0
    """Runs of words left out, because many evaluation items have them."""
    picture_pairs: list[PicturePair] = field(default_factory=list)
    text_pairs: list[TextPair] = field(default_factory=list)
    items_with_picture: set[str] = field(default_factory=set)
    items_with_text: set[str] = field(default_factory=set)
    items_with_both: set[str] = field(default_factory=set)
    """Items of which a row has the picture and asks the same question."""
    items_asked: set[str] = field(default_factory=set)
    """Items whose question, to the word, is asked about any picture."""

    def as_json(self) -> dict[str, Any]:
        page: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, list):
                page[name] = [asdict(pair) for pair in value]
            else:
                page[name] = sorted(value) if isinstance(value, set) else dict(value) if isinstance(value, Counter) else value
        return page

    def as_text(self) -> str:
        lines = [
            f"{self.items:,} evaluation items with {self.item_pictures:,} pictures, against {self.rows:,} training rows with "
            f"{self.row_pictures:,} distinct pictures.",
            f"{len(self.items_with_both):>8,} items: a training row shows the picture and asks the same question",
            f"{len(self.items_with_picture):>8,} items: a training row shows the picture",
            f"{len(self.items_with_text):>8,} items: a training row has {RUN} words in a row of it",
            f"{len(self.items_asked):>8,} items: the question, to the word, is asked in training about some picture",
        ]
        if self.formulas:
            lines.append(f"{self.formulas:,} runs of words that more than {COMMON} items share were left out as formulas.")
        if self.unreadable:
            lines.append("Not compared: " + ", ".join(f"{count:,} {reason}" for reason, count in self.unreadable.most_common()) + ".")
        return "\n".join(lines)


# What is evaluated ----------------------------------------------------------------------------------------------------------------------


def items_of_questions(questions: Iterable[Question]) -> Iterator[EvaluationItem]:
    """The items of one of vistune's benchmarks."""
    for question in questions:
        asked = question.conversation.messages[-1].text
        yield EvaluationItem(
            question.id,
            asked,
            (*(message.text for message in question.conversation.messages), *question.answers, *question.choices),
            tuple(image.source for image in question.conversation.images),
        )


def items_of_file(path: Path, images: Path) -> Iterator[EvaluationItem]:
    """The rows of a data file, each question an item."""
    images = absolute_folder(images)
    for number, row in enumerate(read_rows(path)):
        example = example_from_row(row, images, row_number=number)
        shown = tuple(image.source for image in example.conversation.images)
        texts = [message.text for message in example.conversation.messages]
        asked = [message.text for message in example.conversation.messages if message.role == "user"]
        for turn, question in enumerate(asked):
            yield EvaluationItem(f"{example.id}/{turn}" if len(asked) > 1 else example.id, question, tuple(texts), shown)


def items_of_folder(folder: Path) -> Iterator[EvaluationItem]:
    """A benchmark as a folder: every picture below it, and the questions of its `.jsonl` and `.json` lists.

    A question is a row with a text under `text`, `question` or `prompt`; its picture is the file that its `image` names, or the one picture
    of that name below the folder. Other JSON files are passed over.
    """
    folder = absolute_folder(folder)
    files = sorted(Path(base) / name for base, _, names in os.walk(folder) for name in names)
    pictures = [path for path in files if path.suffix.lower() in _PICTURES]
    by_name: dict[str, list[Path]] = {}
    for path in pictures:
        by_name.setdefault(path.name, []).append(path)
    asked: set[Path] = set()
    for path in files:
        if path.suffix in (".json", ".jsonl"):
            for item in _questions(path, folder, by_name):
                asked.update(image for image in item.images if isinstance(image, Path))
                yield item
    for path in pictures:
        if path not in asked:
            yield EvaluationItem(path.relative_to(folder).as_posix(), images=(path,))


def _questions(path: Path, folder: Path, by_name: dict[str, list[Path]]) -> Iterator[EvaluationItem]:
    rows = read_rows(path)
    try:
        first = next(rows, None)
    except DataError:  # another kind of JSON: annotations, settings, ...
        return
    for number, row in enumerate(chain((first,), rows)):
        if not isinstance(row, dict):
            continue
        question = next((row[name] for name in ("text", "question", "prompt") if isinstance(row.get(name), str)), None)
        if question is not None:
            image = row.get("image")
            named = by_name.get(Path(image).name, []) if isinstance(image, str) else []
            exact = [each for each in named if each.as_posix().endswith(f"/{image}")]
            shown = exact[:1] or (named if len(named) == 1 else [])
            item_id = row.get("question_id", row.get("id", number))
            yield EvaluationItem(f"{path.name}#{item_id}", question, (question,), tuple(shown))


# Comparing ------------------------------------------------------------------------------------------------------------------------------


def find_overlap(
    training: Path, images: Path, items: Iterable[EvaluationItem], *, distance: int = SAME_PICTURE, threads: int | None = None
) -> OverlapReport:
    """Compares a training file (its pictures under `images`) with evaluation items.

    Args:
        distance: bits of 128 in which two pictures taken for the same may differ.
        threads: that open pictures; by default as many as the machine has cores, at most 8.
    """
    images = absolute_folder(images)
    report = OverlapReport()
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        evaluation = _Evaluation(items, images, pool, report)
        known: dict[ImageSource, list[tuple[int, int]]] = {}
        numbered = enumerate(read_rows(training))
        while rows := list(islice(numbered, _ROWS_AT_ONCE)):
            examples = list(_usable(rows, images, report))
            new = {image.source: None for _, each in examples for image in each.conversation.images if image.source not in known}
            for source, seen in zip(new, pool.map(lambda source: _opened(source, images), new), strict=True):
                known[source] = evaluation.near(seen, distance)
                report.row_pictures += 1
            for number, example in examples:
                evaluation.compare(number, example, known)
            for source in [source for source in new if not isinstance(source, Path)]:
                del known[source]  # the bytes of an embedded picture are too many to keep
    return report


def _usable(rows: Iterable[tuple[int, Any]], images: Path, report: OverlapReport) -> Iterator[tuple[int, InstructionExample]]:
    for number, row in rows:
        report.rows += 1
        try:
            yield number, example_from_row(row, images, row_number=number)
        except DataError:
            report.unreadable["training rows"] += 1


def _opened(source: ImageSource, root: Path | None) -> Fingerprint | None:
    try:
        return fingerprint(source, root=root)
    except ImageError:
        return None


def words_of(text: str) -> list[str]:
    """The words of a text for comparison: without case, punctuation and differences that only Unicode sees."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def runs(words: list[str]) -> Iterator[str]:
    """Every run of 13 words."""
    return (" ".join(words[start : start + RUN]) for start in range(len(words) - RUN + 1))


class _Evaluation:
    """The evaluation side, ready for look-up; collects what is found in the report."""

    def __init__(self, items: Iterable[EvaluationItem], images: Path, pool: ThreadPoolExecutor, report: OverlapReport):
        self._images, self._report = images, report
        self._ids: list[str] = []
        self._questions: list[str] = []
        self._asked: dict[str, list[int]] = {}
        self._runs: dict[str, list[int]] = {}
        self._listed: Counter[tuple[str, int]] = Counter()
        shown: dict[ImageSource, list[int]] = {}
        for number, item in enumerate(items):
            self._ids.append(item.id)
            self._questions.append(" ".join(words_of(item.question)))
            if self._questions[-1]:
                self._asked.setdefault(self._questions[-1], []).append(number)
            for run in {run for text in item.texts for run in runs(words_of(text))}:
                self._runs.setdefault(run, []).append(number)
            for image in item.images:
                shown.setdefault(image, []).append(number)
        formulas = [run for run, numbers in self._runs.items() if len(numbers) > COMMON]
        for run in formulas:
            del self._runs[run]
        fingerprints: list[Fingerprint] = []
        self._items_of_picture: list[list[int]] = []
        for numbers, seen in zip(shown.values(), pool.map(lambda source: _opened(source, None), shown), strict=True):
            if seen is None:
                report.unreadable["evaluation pictures"] += 1
            else:
                fingerprints.append(seen)
                self._items_of_picture.append(numbers)
        self._index = LookIndex(fingerprints)
        report.items, report.item_pictures, report.formulas = len(self._ids), len(fingerprints), len(formulas)

    def near(self, seen: Fingerprint | None, distance: int) -> list[tuple[int, int]]:
        """(evaluation picture, bits) for a training picture."""
        if seen is None:
            self._report.unreadable["training pictures"] += 1
            return []
        return self._index.near(seen, distance)

    def compare(self, number: int, example: InstructionExample, known: dict[ImageSource, list[tuple[int, int]]]) -> None:
        """Reports what a training row has in common with the items."""
        texts = [words_of(message.text) for message in example.conversation.messages]
        asked = {" ".join(words) for words in texts}
        for question in asked & self._asked.keys():
            self._report.items_asked.update(self._ids[item] for item in self._asked[question])
        for image in example.conversation.images:
            for picture, bits in known[image.source]:
                for item in self._items_of_picture[picture]:
                    same = self._questions[item] in asked and self._questions[item] != ""
                    name = image.source.relative_to(self._images).as_posix() if isinstance(image.source, Path) else "(embedded)"
                    self._add_picture(item, PicturePair(self._ids[item], number, example.id, name, bits, same))
        if self._runs:
            shared: dict[int, str] = {}
            for words in texts:
                for run in runs(words):
                    for item in self._runs.get(run, ()):
                        shared.setdefault(item, run)
            for item, run in shared.items():
                self._add_text(item, TextPair(self._ids[item], number, example.id, run))

    def _add_picture(self, item: int, pair: PicturePair) -> None:
        self._report.items_with_picture.add(pair.item)
        if pair.same_question:
            self._report.items_with_both.add(pair.item)
        # A pair with the same question is always listed: it is what must be taken out of the training data.
        self._listed["picture", item] += 1
        if pair.same_question or self._listed["picture", item] <= _PAIRS_PER_ITEM:
            self._report.picture_pairs.append(pair)

    def _add_text(self, item: int, pair: TextPair) -> None:
        self._report.items_with_text.add(pair.item)
        self._listed["text", item] += 1
        if self._listed["text", item] <= _PAIRS_PER_ITEM:
            self._report.text_pairs.append(pair)


def first_lines(report: OverlapReport, count: int) -> list[str]:
    """The worst pairs as lines to print: same picture and question first, then the nearest pictures, then texts."""
    pictures = sorted(report.picture_pairs, key=lambda pair: (not pair.same_question, pair.bits))
    lines = [
        f"{printable(pair.item)}: row {pair.row} ({printable(pair.id)}) shows {printable(pair.picture)}"
        + (", the same pixels" if pair.bits == 0 else f", {pair.bits} of 128 bits differ")
        + (", and asks the same question" if pair.same_question else "")
        for pair in pictures[:count]
    ]
    for pair in islice(report.text_pairs, count - len(lines)):
        lines.append(f"{printable(pair.item)}: row {pair.row} ({printable(pair.id)}) says “{pair.words}”")
    return lines
