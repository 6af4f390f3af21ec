"""ScienceQA's questions in LLaVA's prompts, and the benchmark.

A prompt format such as QCM-LEA has two halves, as in the benchmark's own scripts: what is asked (Question, Context, Multiple options, and
for upper bounds the Lecture and the Explanation) and in which order a model was tuned to answer (Answer, Lecture, Explanation). Only the
first half is in the prompt; the second is how the model was trained, and belongs to the protocol for that reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vistune.errors import DataError
from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.benchmarks.choices import LETTER_ANSWER, LETTERS, NO_OPTION, lettered, unreadable
from vistune.eval.benchmarks.scienceqa import FAILED, OPTIONS, SPLIT_COUNTS, classes, match_lmms, parse
from vistune.eval.official_files import Pictures, Row, keyed_rows, read_json, require_count
from vistune.eval.shared import about_pictures, mean_percent, mean_percents, unanswered
from vistune.types import Conversation, Graded, Message, Question, Reply, SamplingParams, Score, TextPart

SPLIT = "test"
INPUTS = ("QCM", "CQM", "QCML", "QCME", "QCMLE", "QCLM", "QCEM", "QCLEM")
OUTPUTS = ("A", "AL", "AE", "ALE", "AEL", "LA", "EA", "LEA", "ELA", "LEPA")
LAYOUT = "problems.json\npid_splits.json\nimages/test/<id>/image.png"
_ANSWER = "The answer is {answer}."
# AL brings the solution and AE the lecture: so it is in the official scripts, and so models were tuned.
_ORDERS = {
    "A": _ANSWER,
    "AL": f"{_ANSWER} BECAUSE: {{solution}}",
    "AE": f"{_ANSWER} BECAUSE: {{lecture}}",
    "ALE": f"{_ANSWER} BECAUSE: {{lecture}} {{solution}}",
    "AEL": f"{_ANSWER} BECAUSE: {{solution}} {{lecture}}",
    "LA": f"{{lecture}} {_ANSWER}",
    "EA": f"{{solution}} {_ANSWER}",
    "LEA": f"{{lecture}} {{solution}} {_ANSWER}",
    "ELA": f"{{solution}} {{lecture}} {_ANSWER}",
}
_FINAL = "ANSWER:"


def question_text(problem: Mapping[str, Any], form: str) -> str:
    """What LLaVA asks in a prompt format, without the picture.

    >>> question_text({"question": "Which?", "choices": ["a", "b"], "hint": ""}, "CQM-A")
    'Context: N/A\\nQuestion: Which?\\nOptions: (A) a (B) b'
    """
    reasons = {"L": _one_line(problem, "lecture"), "E": _one_line(problem, "solution")}
    lines = {
        "Q": f"Question: {problem['question']}",
        "C": f"Context: {problem['hint'].strip() or 'N/A'}",
        "M": f"Options: {lettered(problem['choices'], '({}) {}', ' ')}",
    }
    pieces = re.findall("[QCM]|[LE]+", form.partition("-")[0])
    said = [lines.get(piece) or f"BECAUSE: {' '.join(reasons[letter] for letter in piece)}" for piece in pieces]
    text = _squeezed("\n".join(said))
    return text.replace("Question: ", "") if text.startswith("Question: ") else text


def answer_text(problem: Mapping[str, Any], form: str) -> str:
    """What a model tuned in a prompt format would say if it were right; the other half of a row to tune it with.

    >>> answer_text({"choices": ["a", "b"], "answer": 1, "lecture": "", "solution": "It is b."}, "QCM-ALE")
    'The answer is B. BECAUSE: It is b.'
    """
    order = form.partition("-")[2]
    said = {"answer": OPTIONS[problem["answer"]], "lecture": _one_line(problem, "lecture"), "solution": _one_line(problem, "solution")}
    if order != "LEPA":
        return _squeezed(_ORDERS[order].format_map(said))
    parts = [f"{name.upper()}: {said[name]}\n" for name in ("lecture", "solution") if said[name].strip()]
    return _squeezed(f"{''.join(parts)}###\n{_FINAL} {said['answer']}.")


def _squeezed(text: str) -> str:
    text = text.replace("  ", " ").strip()
    return text.replace("BECAUSE:", "").strip() if text.endswith("BECAUSE:") else text


def _one_line(problem: Mapping[str, Any], key: str) -> str:
    return str(problem.get(key) or "").replace("\n", "\\n")


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The test questions in the order of `pid_splits.json`; about half have a picture.

    Raises:
        DataError: a file or picture is missing, the list of the split names a problem twice, one that there is not or one of another split,
            an answer is no index of the choices, or there are not 4,241.
    """
    path = folder / "pid_splits.json"
    split = read_json(path)
    ids = split.get(SPLIT) if isinstance(split, dict) else None
    if not isinstance(ids, list) or not all(isinstance(id, str) for id in ids):
        raise DataError(f"{path} must have a list of problem ids under {SPLIT!r}; get the file again.")
    if len(set(ids)) != len(ids):
        raise DataError(f"{path} names {len(ids) - len(set(ids))} problems of {SPLIT!r} more than once; get the file again.")
    if check_counts:
        require_count(len(ids), SPLIT_COUNTS[SPLIT], f"{path}: problems of {SPLIT!r}")
    problems = keyed_rows(folder / "problems.json")
    lacking = [id for id in ids if id not in problems]
    if lacking:
        raise DataError(f"{folder / 'problems.json'} lacks {len(lacking)} problems of {path}, the first is {lacking[0]!r}; get both again.")
    pictures = Pictures(folder / "images" / SPLIT) if any(problems[id].get("image") for id in ids) else None
    return [_question(id, problems[id], pictures, protocol) for id in ids]


def _question(id: str, row: Row, pictures: Pictures | None, protocol: str) -> Question:
    row.choice("split", (SPLIT,))
    choices = row.texts("choices")
    if not 2 <= len(choices) <= len(OPTIONS):
        raise row.wrong("choices", "2 to 5 choices")
    answer = row.index("answer", len(choices))
    for key in ("question", "hint", "lecture", "solution", "subject", "grade"):
        row.text(key)
    image = row.get("image") or ""
    return Question(
        id,
        _asked(row, f"{id}/{row.text('image')}" if image else "", pictures, protocol),
        answers=(LETTERS[answer],),
        choices=choices,
        category=row.text("subject"),
        facts={
            "classes": sorted(classes(row.values)),
            "asked": question_text(row.values, "QCM-ALE"),
            "reference": answer_text(row.values, protocol if "-" in protocol and protocol != "text-only" else "QCM-ALE"),
        },
    )


def _asked(row: Row, image: str, pictures: Pictures | None, protocol: str) -> Conversation:
    problem = row.values
    if protocol == "lmms":
        context = f"Context: {problem['hint']}\n" if problem["hint"] else ""
        text = f"{context}{problem['question']}\n{lettered(problem['choices'])}\n{LETTER_ANSWER}"
    elif protocol == "llava":
        text = f"{question_text(problem, 'CQM-A')}\n{LETTER_ANSWER}"
    else:
        text = question_text(problem, "QCM-ALE" if protocol == "text-only" else protocol)
    if image and pictures and protocol != "text-only":
        return about_pictures(pictures.part(image, row), text)
    return Conversation((Message("user", (TextPart(text),)),))


def read_letter(text: str, n_choices: int, protocol: str) -> tuple[str, int]:
    """As `scienceqa.parse`; what a model tuned in LEPA says last is put into the sentence that is looked for, as LLaVA's runner does."""
    text = text.strip()
    if protocol.endswith("-LEPA") and _FINAL in text:
        text = f"The answer is {text.rpartition(_FINAL)[2].strip()}"
    return parse(text, n_choices)


def score_reply(question: Question, reply: Reply, protocol: str) -> Score:
    """Whether the reply is right; an answer that cannot be read is wrong, never guessed."""
    if missing := unanswered(reply):
        return missing
    (gold,) = question.answers
    if protocol == "lmms":
        said = reply.text.strip()
        letter = next((letter for letter in LETTERS[: len(question.choices)] if match_lmms(said, letter)), None)
        return Score(float(letter == gold), extracted=letter, note="" if letter else NO_OPTION)
    letter, index = read_letter(reply.text, len(question.choices), protocol)
    if letter == FAILED:
        return Score(0.0, note=NO_OPTION)
    return Score(float(index == OPTIONS.index(gold)), extracted=letter, note="" if index >= 0 else "the question has no such choice")


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    """The average and the columns of the paper's table; LLaVA-1.5 reports `accuracy/IMG`."""
    return (
        mean_percent("accuracy", graded, headline=True),
        *mean_percents("accuracy", graded, lambda item: item.question.facts["classes"]),
        unreadable(graded),
    )


def _protocols() -> tuple[Protocol, ...]:
    orders = {order: "the answer alone" if order == "A" else f"tuned to answer in the order {order}" for order in OUTPUTS}
    return (
        Protocol("llava", "LLaVA-1.5 without tuning: CQM and its closing sentence; eval_science_qa.py's reading"),
        *(Protocol(f"{INPUTS[0]}-{order}", f"question, context, options; {about}") for order, about in orders.items()),
        *(Protocol(f"{form}-A", f"asked in the order {form}; {orders['A']}") for form in INPUTS[1:]),
        Protocol("text-only", "QCM-ALE without the picture, for a teacher that sees none"),
        Protocol("lmms", "lmms-eval's prompt and reading"),
    )


BENCHMARK = Benchmark(
    "scienceqa",
    "1",
    about=About(
        title="ScienceQA: multiple choice from school books, about half with a picture",
        source="https://github.com/lupantech/ScienceQA (data/scienceqa and images)",
        licence="CC BY-NC-SA 4.0 (data), MIT (code)",
        layout=LAYOUT,
        metric="accuracy over the 4,241 test questions; LLaVA-1.5 reports accuracy/IMG",
        paper="https://arxiv.org/abs/2209.09513",
    ),
    protocols=_protocols(),
    load=load,
    score=score_reply,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=1024),
    sizes={protocol.id: SPLIT_COUNTS[SPLIT] for protocol in _protocols()},
)
