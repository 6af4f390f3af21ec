"""A model and a text-only teacher together on ScienceQA (LLaVA paper, section 5.2): "complement" and "judge", 92.53 % with GPT-4.

The teacher's own answers come from a file: `gpt4_result.json` as LLaVA published it, or the samples of a run of the teacher under the
protocol `text-only`, as `teacher.jsonl`. In "judge" the teacher is asked again where both differ, now as a judge that sees both answers;
what it says then counts, and the model's own answer where it cannot be read. Nothing is guessed, where the official scripts draw a choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vistune.eval.benchmark import About, Metric
from vistune.eval.benchmarks import scienceqa_data
from vistune.eval.benchmarks.scienceqa import FAILED, OPTIONS, SPLIT_COUNTS, complement, disagreements, parse
from vistune.eval.judge import JudgeRules
from vistune.eval.official_files import Row, jsonl_rows, read_json, unique
from vistune.eval.shared import mean_percent, mean_percents, require_same_ids, unanswered
from vistune.types import Conversation, Graded, Message, Question, Reply, SamplingParams, Score, TextPart

OFFICIAL_FILE, OWN_FILE = "gpt4_result.json", "teacher.jsonl"
FORMS = ("QCM-LEA", "QCM-A", "QCM-ALE", "llava")


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The questions with the teacher's answers.

    Raises:
        DataError: as `scienceqa_data.load`; the teacher's file is missing, or its questions are others.
    """
    questions = scienceqa_data.load(folder, protocol, check_counts=check_counts)
    said = _teacher(folder)
    require_same_ids({question.id: Row({}, question.id) for question in questions}, set(said), "the teacher's file")
    return [dataclasses.replace(question, facts={**question.facts, "teacher": said[question.id]}) for question in questions]


def _teacher(folder: Path) -> dict[str, str]:
    """The teacher's replies by problem."""
    if not (folder / OFFICIAL_FILE).exists() and (folder / OWN_FILE).exists():
        rows = unique(jsonl_rows(folder / OWN_FILE), lambda row: row.name("id"))
        return {id: row.text("reply") for id, row in rows.items()}
    path = folder / OFFICIAL_FILE
    document = read_json(path)
    outputs = Row(document if isinstance(document, dict) else {}, str(path)).mapping("outputs")
    return {id: Row(outputs, f"{path}, 'outputs'").text(id) for id in outputs}


def _problem(question: Question) -> dict[str, Any]:
    return {"choices": question.choices, "answer": OPTIONS.index(question.answers[0])}


def _read(text: str, question: Question) -> Score:
    letter, index = parse(text.strip(), len(question.choices))
    return Score(float(index == OPTIONS.index(question.answers[0])), extracted=None if letter == FAILED else letter)


def by_model(question: Question, reply: Reply, protocol: str) -> Score:
    """The model's own answer, an unreadable one being wrong."""
    score = unanswered(reply) or _read(reply.text, question)
    return dataclasses.replace(score, note=score.note or "the model's own answer")


def by_complement(question: Question, reply: Reply, protocol: str) -> Score:
    """The teacher's answer, or where it gives none that can be read, the model's."""
    teacher = _read(question.facts["teacher"], question)
    if unanswered(reply) or teacher.extracted is None:
        return by_model(question, reply, protocol)
    return dataclasses.replace(teacher, note="the teacher's answer")


def ask(question: Question, reply: Reply, protocol: str) -> Sequence[Conversation]:
    """The second question to the teacher, without the picture; none where both gave the same letter."""
    ours, teacher = reply.text.strip(), question.facts["teacher"].strip()
    if not disagreements({question.id: _problem(question)}, {question.id: ours}, {question.id: teacher}):
        return ()
    text = (
        f"{question.facts['asked']}\n\n"
        f"Two assistants answered this question. The first could see the picture, if there is one; you cannot.\n"
        f"[Assistant 1]\n{ours}\n[End of Assistant 1]\n"
        f"[Assistant 2]\n{teacher}\n[End of Assistant 2]\n\n"
        "Their answers differ. Weigh both, decide which choice is right, and end with a sentence of the form: The answer is A."
    )
    return (Conversation((Message("user", (TextPart(text),)),)),)


def read_judge(text: str, question: Question, protocol: str) -> Score:
    """The choice that the teacher decides for; without one, no score."""
    score = _read(text, question)
    if score.extracted is None:
        return Score(None, note='there is no single "The answer is X." in it')
    return dataclasses.replace(score, note="the teacher's second answer")


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    """Accuracy of both together with the columns of the paper; beside it what each alone, the complement and the better of both reach."""
    scored = [item for item in graded if item.score.value is not None]
    problems = {item.question.id: _problem(item.question) for item in scored}
    model = {item.question.id: item.reply.text.strip() for item in scored}
    teacher = {item.question.id: item.question.facts["teacher"].strip() for item in scored}
    found = complement(problems, model, teacher)
    counts = {
        "model alone": found.ours,
        "teacher alone": found.teacher,
        "complement": found.complement,
        "better of both": found.upper_bound,
        "teacher unreadable": found.teacher_failed,
    }
    return (
        mean_percent("accuracy", graded, headline=True),
        *mean_percents("accuracy", graded, lambda item: item.question.facts["classes"]),
        *(Metric(name, 100 * count / found.total if found.total else 0.0, found.total) for name, count in counts.items()),
    )


def _about(way: str) -> About:
    layout = f"{scienceqa_data.LAYOUT}\n{OFFICIAL_FILE}, or {OWN_FILE} (the samples of the teacher's own run under scienceqa's `text-only`)"
    return dataclasses.replace(
        scienceqa_data.BENCHMARK.about,
        title=f"ScienceQA, with a text-only teacher: {way}",
        layout=layout,
        metric="accuracy of both together",
    )


_PROTOCOLS = tuple(scienceqa_data.BENCHMARK.protocol(form) for form in FORMS)

COMPLEMENT = dataclasses.replace(
    scienceqa_data.BENCHMARK,
    name="scienceqa-complement",
    about=_about("its answer, or where it gives none, the model's"),
    protocols=_PROTOCOLS,
    load=load,
    score=by_complement,
    summarise=summarise,
    sizes=dict.fromkeys(FORMS, SPLIT_COUNTS["test"]),
)
JUDGE = dataclasses.replace(
    COMPLEMENT,
    name="scienceqa-judge",
    about=_about("it decides where both differ"),
    judge=JudgeRules(
        ask=ask,
        parse=read_judge,
        params=SamplingParams(max_new_tokens=1024),
        settle=by_model,
        # Where the model repeats the teacher's letter nobody is asked, and a reference answer is no better than the teacher's own.
        canaries=False,
    ),
)
