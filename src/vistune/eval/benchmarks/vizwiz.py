"""VizWiz: questions that blind people asked about pictures they took; the answer may be that there is none.

The prompt is LLaVA-1.5's, the accuracy `vqa.soft_m4c`. The validation questions are asked: the test set has no public answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.benchmarks.vqa import ANNOTATORS, normalise_m4c, soft_m4c
from vistune.eval.official_files import Pictures, json_rows, require_count, unique
from vistune.eval.shared import SHORT_ANSWER, about_pictures, answer_texts, mean_percent, mean_percents, unanswered
from vistune.types import Graded, Question, Reply, SamplingParams, Score

FILE = "val.json"
VALIDATION_QUESTIONS = 4_319
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The validation questions, one a picture; the category is the `answer_type`.

    Raises:
        DataError: the file or a picture is missing, a picture comes twice, a question lacks its ten answers, or there are not 4,319.
    """
    rows = unique(json_rows(folder / FILE), lambda row: row.name("image"))
    if check_counts:
        require_count(len(rows), VALIDATION_QUESTIONS, f"{folder / FILE}: questions")
    pictures = Pictures(folder / "val")
    return [
        Question(
            name,
            about_pictures(pictures.part(name, row), f"{row.text('question')}\n{UNANSWERABLE}\n{SHORT_ANSWER}"),
            answers=answer_texts(row, "answers", count=ANNOTATORS),
            category=row.text("answer_type"),
            image_group=name,
        )
        for name, row in rows.items()
    ]


def score(question: Question, reply: Reply, protocol: str) -> Score:
    """The soft accuracy of a reply."""
    if missing := unanswered(reply):
        return missing
    said = reply.text.strip()
    return Score(soft_m4c(said, question.answers), extracted=normalise_m4c(said))


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    return (
        mean_percent("accuracy", graded, headline=True),
        *mean_percents("accuracy", graded, lambda item: item.question.category),
    )


BENCHMARK = Benchmark(
    "vizwiz",
    "1",
    about=About(
        title="VizWiz-VQA: questions of blind people about their own pictures",
        source="https://vizwiz.org/tasks-and-datasets/vqa (validation annotations and pictures)",
        licence="CC BY 4.0",
        layout=f"{FILE}\nval/VizWiz_val_00000000.jpg",
        metric="soft accuracy over ten annotators on the validation questions; published test-dev figures need the authors' server",
        paper="https://arxiv.org/abs/1802.08218",
    ),
    protocols=(
        Protocol("llava", "LLaVA-1.5's prompt, which asks for 'Unanswerable' where nothing can be told; scored as m4c_evaluator.py"),
    ),
    load=load,
    score=score,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=128),
    sizes={"llava": VALIDATION_QUESTIONS},
)
