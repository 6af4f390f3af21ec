"""MME (Fu et al. 2023): 14 tasks, two yes-or-no questions an image, scored as the benchmark's `calculation.py` or as lmms-eval does.

`parse` and `score` are pure; the benchmark itself is at the end. A task's score is 100 x the share of questions that are right plus 100 x
the share of images with both right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vistune.errors import DataError, ScoringError, UnknownName
from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.benchmarks.choices import unreadable
from vistune.eval.official_files import SEE_LAYOUT, Pictures, Row, read_text, require_count
from vistune.eval.shared import SHORT_ANSWER, about_pictures, unanswered
from vistune.types import Graded, Question, Reply, SamplingParams, Score

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


# --- the questions ------------------------------------------------------------------------------------------------------------------------

QUESTIONS = {
    **dict.fromkeys(("existence", "count", "position", "color"), 60),
    **{"posters": 294, "celebrity": 340, "scene": 400, "landmark": 400, "artwork": 400, "OCR": 40},
    **{"commonsense_reasoning": 140, "numerical_calculation": 40, "text_translation": 40, "code_reasoning": 40},
}
"""Questions per task, 2,374 in all."""
_RELEASE = "MME_Benchmark_release_version"
_YES_OR_NO = " Please answer yes or no."
_PICTURE_ENDINGS = (".jpg", ".png", ".jpeg")


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The questions of the 14 tasks, which are the categories, two to a picture, in the order of the file names.

    Raises:
        DataError: a task, picture or question is missing, an answer is neither yes nor no, or a task has another number of questions.
    """
    base = folder / _RELEASE
    base = base / "MME_Benchmark" if (base / "MME_Benchmark").is_dir() else base
    questions = []
    for task, expected in QUESTIONS.items():
        if not (base / task).is_dir() and not check_counts:
            continue
        found = _load_task(base / task, task, protocol)
        if check_counts:
            require_count(len(found), expected, f"{base / task}: questions")
        questions += found
    return questions


def _load_task(folder: Path, task: str, protocol: str) -> list[Question]:
    """Some tasks have pictures and questions in folders of their own, others both in one."""
    apart = (folder / "images").is_dir()
    pictures = Pictures(folder / "images" if apart else folder)
    return [
        question
        for path in sorted((folder / "questions_answers_YN" if apart else folder).glob("*.txt"))
        for question in _load_pair(path, task, pictures, protocol)
    ]


def _load_pair(path: Path, task: str, pictures: Pictures, protocol: str) -> list[Question]:
    """The two questions about one picture, which has the name of their file."""
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if len(lines) != 2:
        raise DataError(f"{path} has {len(lines)} questions, but every picture has two. {SEE_LAYOUT}")
    name = next((f"{path.stem}{ending}" for ending in _PICTURE_ENDINGS if f"{path.stem}{ending}" in pictures), f"{path.stem}.jpg")
    found = []
    for number, line in enumerate(lines, 1):
        text, _, answer = line.strip().partition("\t")
        row = Row({"question": text, "answer": answer.strip().lower()}, f"{path}, line {number}")
        found.append(
            Question(
                f"{task}/{path.stem}/{number}",
                about_pictures(pictures.part(name, row), _prompt(text, protocol)),
                answers=(row.choice("answer", ("yes", "no")),),
                category=task,
                image_group=f"{task}/{path.stem}",
            )
        )
    return found


def _prompt(text: str, protocol: str) -> str:
    return text if protocol == "official" else f"{text.replace(_YES_OR_NO, '').rstrip()}\n{SHORT_ANSWER}"


def score_reply(question: Question, reply: Reply, protocol: str) -> Score:
    """Whether the reply is read as the answer."""
    if missing := unanswered(reply):
        return missing
    said = parse(reply.text.strip(), "lmms" if protocol == "lmms" else "official")
    if said == "other":
        return Score(0.0, note="neither yes nor no, which counts as wrong")
    return Score(float(said == question.answers[0]), extracted=said)


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    """Perception (the headline) and cognition, and the points and both accuracies of each task.

    A picture with one wrong answer is wrong whatever became of the other question; without one, both must be scored for it to count.
    """
    tasks: dict[str, list[Graded]] = defaultdict(list)
    for item in graded:
        if item.score.value is not None:
            tasks[item.question.category].append(item)
    figures = {task: _task_figures(tasks[task]) for task in PERCEPTION + COGNITION if task in tasks}
    metrics = []
    for name, members in (("perception", PERCEPTION), ("cognition", COGNITION)):
        present = [task for task in members if task in figures]
        if present or name == "perception":
            total = sum(points for task in present for points in figures[task])
            n = sum(len(tasks[task]) for task in present)
            metrics.append(Metric(name, total, n, "points", headline=name == "perception"))
        metrics += [Metric(f"{name}/{task}", sum(figures[task]), len(tasks[task]), "points") for task in present]
    for place, name in enumerate(("accuracy", "accuracy plus")):
        metrics += [Metric(f"{name}/{task}", figure[place], len(tasks[task])) for task, figure in figures.items()]
    return (*metrics, unreadable(graded))


def _task_figures(items: Sequence[Graded]) -> tuple[float, float]:
    """Per cent of questions right, and of pictures with both right."""
    pictures: dict[str, list[float]] = defaultdict(list)
    for item in items:
        pictures[item.question.image_group].append(item.score.value or 0.0)
    both = [min(values) == 1.0 for values in pictures.values() if len(values) == 2 or 0.0 in values]
    right = sum(sum(values) for values in pictures.values())
    return 100 * right / len(items), 100 * sum(both) / len(both) if both else 0.0


BENCHMARK = Benchmark(
    "mme",
    "1",
    about=About(
        title="MME: perception and cognition in 14 tasks, two yes-or-no questions a picture",
        source="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation (on request from the authors)",
        licence="research use, on request",
        layout=f"{_RELEASE}/{{task}}/*.jpg and *.txt\n{_RELEASE}/{{task}}/images/*.jpg with questions_answers_YN/*.txt (five tasks)",
        metric="perception: points of ten tasks, 100 x accuracy + 100 x share of pictures with both right each, at most 2,000",
        paper="https://arxiv.org/abs/2306.13394",
    ),
    protocols=(
        Protocol("llava", "LLaVA-1.5's prompt (a word or phrase in place of 'Please answer yes or no.'); the official tool's reading"),
        Protocol("official", "the questions as they are in the files; the official tool's reading"),
        Protocol("lmms", "LLaVA's prompt; lmms-eval's reading, which trims and takes a lone y or n"),
    ),
    load=load,
    score=score_reply,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=128),
    sizes=dict.fromkeys(("llava", "official", "lmms"), sum(QUESTIONS.values())),
)
