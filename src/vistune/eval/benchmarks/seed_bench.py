"""SEED-Bench: accuracy of option letters, in all and for pictures and videos apart.

`official` follows convert_seed_for_submission.py of LLaVA, `lmms` follows lmms-eval; they differ in how much beside the letter a reply may
hold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.benchmarks.choices import LETTER_ANSWER, LETTERS, lettered, unreadable
from vistune.eval.benchmarks.vqa import as_text
from vistune.eval.official_files import Pictures, Row, json_rows, read_json, require_count, unique
from vistune.eval.shared import about_pictures, mean_percent, mean_percents, unanswered
from vistune.types import Graded, Question, Reply, SamplingParams, Score

Mode = Literal["official", "lmms"]
MODES = ("official", "lmms")
Predictions = Mapping[int | str, str] | Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class SeedBenchScore:
    """Fractions over questions, 0 where there is none; `by_type` is keyed by `question_type_id`."""

    accuracy: float
    image: float
    video: float
    by_type: dict[int, float]
    n: int
    n_missing: int


def match(reply: str | None, answer: str, mode: Mode = "official") -> bool:
    """Whether a reply is the answer's letter: exactly, or in `lmms` mode by its first character, trimmed and in any case."""
    if mode not in MODES:
        raise UnknownName("SEED-Bench mode", mode, known=MODES)
    if mode == "official":
        return reply == answer
    return as_text(reply).strip()[:1].lower() == answer.lower().strip()


def score(
    questions: Iterable[Mapping[str, Any]], predictions: Predictions, *, mode: Mode = "official", strict_official: bool = False
) -> SeedBenchScore:
    """Adds up letters. A question without a prediction is wrong, and counted in `n_missing`.

    Args:
        questions: records with `question_id`, `answer`, `data_type` (`image` or `video`) and `question_type_id`.
        predictions: by question, or rows of `question_id` and `text`, of which the last counts. Ids that read as integers are integers.
        strict_official: raise where LLaVA's script fails: no question of pictures or none of videos, or a type all of whose questions
            are answered and none right.

    Raises:
        ScoringError: as above, and for a record without a field that is needed.
    """
    replies = predictions if isinstance(predictions, Mapping) else {_field(row, "question_id"): _field(row, "text") for row in predictions}
    points: dict[str, list[bool]] = {"image": [], "video": []}
    by_type: dict[int, list[bool]] = defaultdict(list)
    missing: set[int] = set()  # types with a missing prediction: these have a count even if none is right
    n_missing = 0
    for question in questions:
        kind = _field(question, "question_type_id")
        name = _as_integer(_field(question, "question_id"))
        right = name in replies and match(replies[name], _field(question, "answer"), mode)
        if name not in replies:
            missing.add(kind)
            n_missing += 1
        by_type[kind].append(right)
        points.setdefault(_field(question, "data_type"), []).append(right)
    if strict_official:
        _refuse_as_the_script(points, by_type, missing)
    everything = [right for found in by_type.values() for right in found]
    return SeedBenchScore(
        accuracy=_mean(everything),
        image=_mean(points["image"]),
        video=_mean(points["video"]),
        by_type={kind: _mean(found) for kind, found in by_type.items()},
        n=len(everything),
        n_missing=n_missing,
    )


def _refuse_as_the_script(points: Mapping[str, list[bool]], by_type: Mapping[int, list[bool]], missing: set[int]) -> None:
    for name in ("image", "video"):
        if not points[name]:
            raise ScoringError(f"There is no SEED-Bench question of kind {name}; the official script divides by zero.")
    for kind, found in by_type.items():
        if not any(found) and kind not in missing:
            raise ScoringError(f"No question of SEED-Bench type {kind} is right; the official script has no count for the type and fails.")


def _as_integer(name: Any) -> Any:
    try:
        return int(name)
    except (TypeError, ValueError):
        return name  # the ids of videos are words


def _field(record: Any, name: str) -> Any:
    if not isinstance(record, Mapping) or name not in record:
        found = ", ".join(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
        raise ScoringError(
            f"A SEED-Bench record has no `{name}`; found {found or 'nothing'}. Check that the file is in the official layout."
        )
    return record[name]


def _mean(values: list[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


# --- the questions ------------------------------------------------------------------------------------------------------------------------

FILE = "SEED-Bench.json"
PICTURES, FRAMES = "SEED-Bench-image", "SEED-Bench-video-image"
QUESTIONS, PICTURE_QUESTIONS = 19_242, 14_232
_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The questions; the category is `image/` or `video/` and the name of the type. A video is shown by the frame in its middle.

    Raises:
        DataError: the file or a picture is missing, an id comes twice, a type has no name, an answer is no letter, or the count is wrong.
    """
    path = folder / FILE
    rows = unique(json_rows(path, "questions"), lambda row: row.name("question_id"))
    named = Row(Row(read_json(path), str(path)).mapping("question_type"), f"{path}, 'question_type'")
    types = {named.integer(name): name for name in named.values}
    wanted = {name: row for name, row in rows.items() if not (protocol.endswith("-image") and row.text("data_type") != "image")}
    if check_counts:
        expected = PICTURE_QUESTIONS if protocol.endswith("-image") else QUESTIONS
        require_count(len(wanted), expected, f"{path}: questions")
    folders: dict[str, Pictures] = {}
    return [_question(name, row, types, folder, folders) for name, row in wanted.items()]


def _question(name: str, row: Row, types: Mapping[Any, str], folder: Path, folders: dict[str, Pictures]) -> Question:
    kind, number = row.choice("data_type", ("image", "video")), row.integer("question_type_id")
    if number not in types:
        raise row.wrong("question_type_id", f"one of {', '.join(map(str, types))}, which the file has names for")
    place, image = (PICTURES, row.text("data_id")) if kind == "image" else (FRAMES, f"{number}_{name}.png")
    if place not in folders:
        folders[place] = Pictures(folder / place)
    choices = tuple(row.text(key) for key in _CHOICES)
    return Question(
        name,
        about_pictures(folders[place].part(image, row), f"{row.text('question')}\n{lettered(choices)}\n{LETTER_ANSWER}"),
        answers=(row.choice("answer", tuple(LETTERS[: len(choices)])),),
        choices=choices,
        category=f"{kind}/{types[number]}",
        image_group=row.name("data_id"),
    )


def score_reply(question: Question, reply: Reply, protocol: str) -> Score:
    """Whether the reply is the letter."""
    said = reply.text.strip()
    mode: Mode = "lmms" if protocol.startswith("lmms") else "official"
    letter = next((letter for letter in LETTERS[: len(question.choices)] if match(said, letter, mode)), None)
    note = "" if letter else "the reply is not a letter, which counts as wrong"
    return unanswered(reply) or Score(float(letter == question.answers[0]), extracted=letter, note=note)


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    """Accuracy over all questions, over those of pictures and of videos, and per type."""
    return (
        mean_percent("accuracy", graded, headline=True),
        *mean_percents("accuracy", graded, lambda item: (item.question.category.partition("/")[0], item.question.category)),
        unreadable(graded),
    )


BENCHMARK = Benchmark(
    "seed-bench",
    "1",
    about=About(
        title="SEED-Bench: multiple choice about pictures and the middle frame of videos, 12 types",
        source="https://github.com/AILab-CVC/SEED-Bench; frames as LLaVA's extract_video_frames.py writes them",
        licence="CC BY-NC 4.0",
        layout=f"{FILE}\n{PICTURES}/1454426_2591111986\n{FRAMES}/10_v10_0.png (type id, question id)",
        metric="accuracy over all questions; LLaVA-1.6 reports those of pictures alone",
        paper="https://arxiv.org/abs/2307.16125",
    ),
    protocols=(
        Protocol("official", "LLaVA's prompt; the reply must be the letter and nothing else, as convert_seed_for_submission.py"),
        Protocol("official-image", "the same for the questions about pictures; needs no frames"),
        Protocol("lmms", "the same prompt; the first character counts, as in lmms-eval"),
        Protocol("lmms-image", "the same for the questions about pictures"),
    ),
    load=load,
    score=score_reply,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=128),
    sizes={
        "official": QUESTIONS,
        "official-image": PICTURE_QUESTIONS,
        "lmms": QUESTIONS,
        "lmms-image": PICTURE_QUESTIONS,
    },
)
