"""MME (Fu et al. 2023): 14 tasks, two yes-or-no questions an image, scored as the benchmark's `calculation.py` or as lmms-eval does.

Pure functions. A task's score is 100 x the share of questions that are right plus 100 x the share of images with both right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vistune.errors import ScoringError, UnknownName

Mode = Literal["official", "lmms"]
MODES: tuple[Mode, ...] = ("official", "lmms")
PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_PREFIX = 4
"""An answer must stand within the first four characters of a reply."""


def parse(text: str, mode: Mode = "official") -> str:
    """`yes`, `no` or `other`.

    Officially the lower-cased reply is searched in its first four characters, and blanks before it count as characters.
    lmms-eval trims it and deletes full stops first, and takes a lone y or n.

    Raises:
        ScoringError: `text` is not text.
        UnknownName: there is no such mode.
    """
    if mode not in MODES:
        raise UnknownName("MME mode", mode, known=MODES)
    if not isinstance(text, str):
        raise ScoringError(f"an MME reply must be text, not {type(text).__name__}.")
    text = text.lower()
    if mode == "lmms":
        text = text.strip().replace(".", "")
        if len(text) == 1:
            return {"y": "yes", "n": "no"}.get(text, "other")
    prefix = text[:_PREFIX]
    return "yes" if "yes" in prefix else "no" if "no" in prefix else "other"


@dataclass(frozen=True)
class TaskScore:
    """One task: `score` from 0 to 200, the two accuracies as fractions, replies that are neither yes nor no counted in `n_other`."""

    score: float
    accuracy: float
    accuracy_plus: float
    n: int
    n_images: int
    n_other: int


@dataclass(frozen=True)
class MMEScore:
    """Sums over tasks: perception at most 2,000, cognition at most 800. `missing` names the tasks that no row is of."""

    perception: float
    cognition: float
    tasks: dict[str, TaskScore]
    missing: tuple[str, ...]


def score(
    items: Iterable[Mapping[str, Any]],
    *,
    mode: Mode = "official",
    check_counts: bool = True,
    strict_official: bool = False,
) -> MMEScore:
    """Scores rows with `category` (the task), `answer` (gold) and `prediction` (raw reply).

    Officially two consecutive rows of a task belong to one image; lmms-eval groups the rows of a task by `question_id`.

    Args:
        items: the rows, in the order of the official files.
        check_counts: refuse a consecutive pair whose rows name different pictures in `image`; the official tool never looks.
        strict_official: raise where the official tool fails: a task without rows. Else it is left out of the sum and named in `missing`.

    Raises:
        ScoringError: a task that MME has not, a gold answer other than yes or no, an image without exactly two questions, a missing field,
            or (strict) a missing task.
    """
    rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for item in items:
        rows[_field(item, "category")].append(item)
    unknown = [category for category in rows if category not in PERCEPTION + COGNITION]
    if unknown:
        raise ScoringError(f"MME has no task {str(unknown[0])[:40]!r}; its tasks are {', '.join(PERCEPTION + COGNITION)}.")
    missing = tuple(task for task in PERCEPTION + COGNITION if task not in rows)
    if strict_official and missing:
        raise ScoringError(f"the official tool needs a result file of every task; missing: {', '.join(missing)}.")
    group = _by_question_id if mode == "lmms" else _consecutive
    tasks = {task: _task_score(group(task, found, check_counts), mode) for task, found in rows.items()}
    return MMEScore(
        perception=sum((tasks[task].score for task in PERCEPTION if task in tasks), 0.0),
        cognition=sum((tasks[task].score for task in COGNITION if task in tasks), 0.0),
        tasks=tasks,
        missing=missing,
    )


def _consecutive(task: str, rows: Sequence[Mapping[str, Any]], check_counts: bool) -> list[Sequence[Mapping[str, Any]]]:
    images = [rows[start : start + 2] for start in range(0, len(rows), 2)]
    for image in images:
        if len(image) != 2:
            raise ScoringError(f"{task} has {len(rows)} rows, but every image has two questions.")
        if check_counts and image[0].get("image") != image[1].get("image"):
            raise ScoringError(
                f"{task}: {image[0].get('image')!r} and {image[1].get('image')!r} stand together, so a question is missing before them."
            )
    return images


def _by_question_id(task: str, rows: Sequence[Mapping[str, Any]], _: bool) -> list[Sequence[Mapping[str, Any]]]:
    images: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        images[_field(row, "question_id")].append(row)
    for question_id, image in images.items():
        if len(image) != 2:
            raise ScoringError(f"{task}: {question_id!r} has {len(image)} rows, but every image has two questions.")
    return list(images.values())


def _task_score(images: Sequence[Sequence[Mapping[str, Any]]], mode: Mode) -> TaskScore:
    replies = [[parse(_field(row, "prediction"), mode) for row in image] for image in images]
    right = [
        sum(reply == _gold(_field(row, "answer"), mode) for reply, row in zip(found, image, strict=True))
        for found, image in zip(replies, images, strict=True)
    ]
    accuracy = sum(right) / (2 * len(images))
    accuracy_plus = right.count(2) / len(images)
    return TaskScore(
        score=accuracy * 100 + accuracy_plus * 100,
        accuracy=accuracy,
        accuracy_plus=accuracy_plus,
        n=2 * len(images),
        n_images=len(images),
        n_other=sum(found.count("other") for found in replies),
    )


def _gold(answer: str, mode: Mode) -> str:
    cleaned = str(answer).lower()
    if mode == "lmms":
        cleaned = cleaned.strip().replace(".", "")
    if cleaned not in ("yes", "no"):
        raise ScoringError(f"a gold answer of MME must be yes or no, not {str(answer)[:40]!r}.")
    return cleaned


def _field(row: Mapping[str, Any], key: str) -> Any:
    try:
        return row[key]
    except KeyError:
        raise ScoringError(f"a row of MME has no {key!r}; it has {', '.join(map(str, row)) or 'nothing'}.") from None
