"""Runs a `ChatModel` over a benchmark's questions and keeps every answer.

Concurrency is the batch: as many conversations are in flight as the model may want. Each answer is appended to a predictions file as soon
as it is there, so a run that was cut off pays for no answer twice. Grading reads that file; it can be repeated without the model.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistune.chat_model import ChatModel
from vistune.errors import DataError, EvaluationIncomplete, ResumeMismatch, VistuneError
from vistune.eval.benchmark import Benchmark, BenchmarkReport, report
from vistune.types import Conversation, Graded, ImagePart, Question, Reply, Score


@dataclass(frozen=True)
class Prediction:
    """One line of a predictions file. `error` says why there is no reply."""

    id: str
    reply: Reply | None
    error: str = ""


async def predict(
    model: ChatModel, benchmark: Benchmark, predictions: Path, *, model_name: str, concurrency: int = 16, limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Prediction]:  # fmt: skip
    """Asks every question that `predictions` has no answer to yet, and returns all predictions by question id.

    Args:
        model_name: whose answers these are; a file begun for another model, benchmark or way of decoding is refused.
        limit: only the first so many questions.
        progress: called with (answered, total) after each answer.

    Raises:
        ResumeMismatch: the file holds answers of another run.
        DataError: the file is damaged other than by a half last line.
    """
    questions = list(benchmark.questions())[:limit]
    header = _header(benchmark, questions, model_name)
    done = _resume(predictions, header)
    waiting = [question for question in questions if question.id not in done or done[question.id].reply is None]
    gate = asyncio.Semaphore(concurrency)
    with predictions.open("a", encoding="utf-8") as file:

        async def answer(question: Question) -> None:
            async with gate:
                try:
                    prediction = Prediction(question.id, await model.generate(question.conversation, benchmark.params))
                except VistuneError as error:  # a question that fails is recorded as unscored; a bug of ours is not caught
                    prediction = Prediction(question.id, None, f"{type(error).__name__}: {error}")
            done[question.id] = prediction
            file.write(json.dumps(dataclasses.asdict(prediction), ensure_ascii=False) + "\n")
            file.flush()
            if progress:
                progress(len(questions) - sum(other.id not in done for other in questions), len(questions))

        async with asyncio.TaskGroup() as tasks:
            for question in waiting:
                tasks.create_task(answer(question))
    return {question.id: done[question.id] for question in questions}


def grade(benchmark: Benchmark, predictions: dict[str, Prediction], *, most_unscored: float = 0.02) -> tuple[BenchmarkReport, list[Graded]]:
    """Scores predictions; questions without a reply count as unscored, never as wrong.

    Raises:
        EvaluationIncomplete: more than the share `most_unscored` of the questions could not be scored.
    """
    graded = []
    for question in benchmark.questions():
        if (prediction := predictions.get(question.id)) is None:
            continue
        if prediction.reply is None:
            graded.append(Graded(question, Reply("", "cancelled"), Score(None, note=prediction.error)))
        else:
            graded.append(Graded(question, prediction.reply, benchmark.score(question, prediction.reply, "")))
    result = report(benchmark.name, graded)
    if result.n == 0 or result.n_unscored > most_unscored * result.n:
        first = next((item.score.note for item in graded if item.score.value is None), "there are no predictions")
        raise EvaluationIncomplete(
            f"{result.n_unscored} of {result.n} questions of {benchmark.name} have no score (at most {most_unscored:.0%} may be missing); "
            f"the first: {first}. Run again to ask those anew."
        )
    return result, graded


def questions_digest(questions: Sequence[Question]) -> str:
    """sha256 over ids, texts, pictures and accepted answers, in order."""
    digest = hashlib.sha256()
    for question in questions:
        row = [question.id, question.category, question.group, question.answers, _content(question.conversation)]
        digest.update(json.dumps(row, ensure_ascii=False).encode())
    return digest.hexdigest()


def _content(conversation: Conversation) -> list[Any]:
    content: list[Any] = []
    for message in conversation.messages:
        images = [
            hashlib.sha256(part.source).hexdigest() if isinstance(part.source, bytes) else str(part.source)
            for part in message.parts
            if isinstance(part, ImagePart)
        ]
        content.append([message.role, message.text, images])
    return content


def _header(benchmark: Benchmark, questions: Sequence[Question], model_name: str) -> dict[str, Any]:
    return {
        "benchmark": benchmark.name,
        "version": benchmark.version,
        "model": model_name,
        "questions": questions_digest(questions),
        "params": json.loads(json.dumps(dataclasses.asdict(benchmark.params))),
    }


def _resume(path: Path, header: dict[str, Any]) -> dict[str, Prediction]:
    """Reads what an earlier run answered, or begins the file."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole, _, half = text.rpartition("\n")
    if half:  # the last run was cut off inside a line
        path.write_text(whole + "\n" if whole else "", encoding="utf-8")
    lines = whole.splitlines()
    if not lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return {}
    try:
        found, *rows = [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not a predictions file ({error}); move it away and run again.") from error
    if found != header:
        changed = sorted(key for key in header if not isinstance(found, dict) or found.get(key) != header[key])
        raise ResumeMismatch(f"{path} holds answers of another run (different: {', '.join(changed)}); give another file or move it away.")
    return {row["id"]: Prediction(row["id"], Reply(**row["reply"]) if row["reply"] else None, row["error"]) for row in rows}
