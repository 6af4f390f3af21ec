"""ChartQA: relaxed accuracy, as lmms-eval and the Pix2Struct authors compute it.

A number may be off by a twentieth; everything else must be the same text but for case.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.benchmarks.vqa import as_text
from vistune.eval.official_files import Pictures, json_rows, require_count
from vistune.eval.shared import about_pictures, mean_percent, mean_percents, unanswered
from vistune.types import Graded, Question, Reply, SamplingParams, Score

TOLERANCE = 0.05


def relaxed(pred: str | None, target: str, *, strict_official: bool = False) -> bool:
    """Whether an answer is right: within 5 % of a target that is a number other than zero, else the same text but for case, untrimmed.

    Numbers are what Python's float() reads, so that "1e3", " 4 " and "1_000" are some and "1,000" is none; "5 %" is read as 0.05. A target
    that is infinite or not a number matches no number, not even itself. None is an empty reply.

    Raises:
        ScoringError: for what is not text; with `strict_official` for None, too.
    """
    reply = as_text(pred, strict_official=strict_official)
    target = as_text(target, strict_official=True)
    number, wanted = as_number(reply), as_number(target)
    if number is not None and wanted:
        return abs(number - wanted) / abs(wanted) <= TOLERANCE
    return reply.lower() == target.lower()


def as_number(text: str) -> float | None:
    """The number that a text is, None if it is none. All the percent signs at its end together mean one division by a hundred."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def split_of(question_type: str) -> Literal["human", "augmented"]:
    """Which half of the test set a question's `type` belongs to."""
    return "human" if question_type == "human_test" else "augmented"


# --- the test questions -------------------------------------------------------------------------------------------------------------------

FILES = {"human": "test/test_human.json", "augmented": "test/test_augmented.json"}
PER_FILE = 1_250
SINGLE_WORD = "Answer the question with a single word."


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The test questions of both halves; they have no ids, so their place in the file is their id.

    Raises:
        DataError: a file or picture is missing, a field is not there, or a half has not 1,250 questions.
    """
    pictures = Pictures(folder / "test/png")
    questions = []
    for half, file in FILES.items():
        rows = json_rows(folder / file)
        if check_counts:
            require_count(len(rows), PER_FILE, f"{folder / file}: questions")
        for number, row in enumerate(rows):
            image = row.name("imgname")
            conversation = about_pictures(pictures.part(image, row), f"{row.text('query')}\n{SINGLE_WORD}")
            questions.append(Question(f"{half}-{number}", conversation, (row.name("label"),), category=half, image_group=image))
    return questions


def score(question: Question, reply: Reply, protocol: str) -> Score:
    """Whether a reply is near enough."""
    said = reply.text.strip()
    return unanswered(reply) or Score(float(relaxed(said, question.answers[0])), extracted=said)


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    return (
        mean_percent("relaxed accuracy", graded, headline=True),
        *mean_percents("relaxed accuracy", graded, lambda item: item.question.category),
    )


BENCHMARK = Benchmark(
    "chartqa",
    "1",
    about=About(
        title="ChartQA: questions about charts",
        source="https://github.com/vis-nlp/ChartQA (the folder `ChartQA Dataset`)",
        licence="GPL-3.0",
        layout="test/test_human.json\ntest/test_augmented.json\ntest/png/1392.png",
        metric="relaxed accuracy (numbers within 5 %) over both halves of the test set",
        paper="https://arxiv.org/abs/2203.10244",
    ),
    protocols=(Protocol("lmms", "lmms-eval's prompt (a single word) and relaxed accuracy"),),
    load=load,
    score=score,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=16),
    sizes={"lmms": 2 * PER_FILE},
)
