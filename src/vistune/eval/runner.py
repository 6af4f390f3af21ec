"""Runs a `ChatModel` over a benchmark's questions and keeps every answer.

Concurrency is the batch: as many conversations are in flight as the model may want. Each answer is in the journal as soon as it is there,
so a run that was cut off, by kill -9 too, asks for no answer twice; a second run into the same journal is refused while the first is at
it. Grading reads the journal; it can be repeated without the model.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistune.calls import reply_from
from vistune.chat_model import ChatModel, ScoringChatModel
from vistune.errors import CostCapReached, DataError, ResumeMismatch, SaveError, UsageError, VistuneError
from vistune.eval.benchmark import Benchmark
from vistune.eval.judge import finite, together
from vistune.journal import Journal
from vistune.types import Conversation, Graded, ImagePart, Part, Question, Reply, SamplingParams, Score, TextPart, TokenLogprob
from vistune.video import has_video, with_frames

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prediction:
    """One record of a journal of answers. `error` says why there is no reply."""

    id: str
    reply: Reply | None
    error: str = ""


async def predict(
    model: ChatModel, benchmark: Benchmark, questions: Sequence[Question], answers: Path, *, model_name: str, protocol: str = "",
    concurrency: int = 16, progress: Progress | None = None,
) -> dict[str, Prediction]:  # fmt: skip
    """Asks every question that the journal `answers` has no reply to yet, and returns all predictions by question id.

    Args:
        model_name: whose answers these are; a journal begun for another model, benchmark, protocol or way of decoding is refused.
        progress: called with (answered, total) after each answer.

    Raises:
        ResumeMismatch: the journal holds answers of another run.
        Locked: another run is writing it.
        DataError: it is damaged, or no journal.
        CostCapReached, SaveError, UsageError: nothing more can be asked; what was answered is kept.
    """
    protocol = benchmark.protocol(protocol).id
    answers.parent.mkdir(parents=True, exist_ok=True)
    with Journal(answers, sync="manual") as journal:
        done = _resume(journal, _header(benchmark, questions, model_name, protocol))
        waiting = iter([question for question in questions if question.id not in done or done[question.id].reply is None])
        answered = sum(question.id in done for question in questions)

        async def work() -> None:
            nonlocal answered
            for question in waiting:  # shared: each worker takes the next
                prediction = await _prediction(model, benchmark, question, protocol)
                answered += question.id not in done
                done[question.id] = prediction
                journal.append(dataclasses.asdict(prediction))
                if progress:
                    progress(answered, len(questions))

        await together(work() for _ in range(concurrency))
    return {question.id: done[question.id] for question in questions}


async def _prediction(model: ChatModel, benchmark: Benchmark, question: Question, protocol: str) -> Prediction:
    try:
        continuations = benchmark.continuations(question, protocol)
        if continuations:
            return Prediction(question.id, await _likeliest(model, question, continuations))
        shown = question.conversation
        if has_video(shown):  # decoded when it is their turn: the frames of all questions would not fit into memory
            shown = await asyncio.to_thread(with_frames, shown)
        return Prediction(question.id, await model.generate(shown, benchmark.params))
    except (CostCapReached, SaveError, UsageError):
        raise
    except VistuneError as error:  # a question that fails is recorded as unscored; a bug of ours is not caught
        return Prediction(question.id, None, f"{type(error).__name__}: {error}")


async def _likeliest(model: ChatModel, question: Question, continuations: Sequence[str]) -> Reply:
    """The continuation with the highest mean log-probability of its tokens, with those of all; of equals the first."""
    if not isinstance(model, ScoringChatModel):
        raise UsageError("This protocol compares likelihoods, which only a model that vistune itself runs can tell; take another protocol.")
    scored = await model.logprobs(question.conversation, continuations)
    means = [math.fsum(token.logprob for token in tokens) / len(tokens) if tokens else -math.inf for tokens in scored]
    best = max(range(len(means)), key=means.__getitem__)
    # JSON knows no infinity; chat_model writes -9999 for it, too.
    entries = tuple(TokenLogprob(text, max(mean, -9999.0)) for text, mean in zip(continuations, means, strict=True))
    return Reply(continuations[best], "stop", logprobs=entries)


def grade(benchmark: Benchmark, questions: Sequence[Question], predictions: Mapping[str, Prediction], protocol: str = "") -> list[Graded]:
    """Scores predictions by rule; questions without a reply are unscored, never wrong, and so is a reply that the scorer refuses."""
    protocol = benchmark.protocol(protocol).id
    return [_graded(benchmark, question, predictions[question.id], protocol) for question in questions]


def _graded(benchmark: Benchmark, question: Question, prediction: Prediction, protocol: str) -> Graded:
    if prediction.reply is None:
        return unanswered(question, prediction)
    try:
        score = finite(benchmark.score(question, prediction.reply, protocol))
    except DataError as error:
        score = Score(None, note=str(error))
    return Graded(question, prediction.reply, score)


def unanswered(question: Question, prediction: Prediction) -> Graded:
    return Graded(question, Reply("", "cancelled"), Score(None, note=prediction.error))


def questions_digest(questions: Sequence[Question]) -> str:
    """sha256 over ids, texts, pictures by content, choices, accepted answers and what else scores them, in order. Reads the pictures."""
    digest = hashlib.sha256()
    for question in questions:
        row: list[Any] = [question.id, question.category, question.group, question.answers, _content(question.conversation)]
        if question.choices or question.facts:
            row += [question.choices, question.facts]
        digest.update(json.dumps(row, ensure_ascii=False, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _content(conversation: Conversation) -> list[Any]:
    return [[message.role, message.text, [picture_id(part) for part in _pictures(message.parts)]] for message in conversation.messages]


def _pictures(parts: Sequence[Part]) -> Iterator[Part]:
    return (part for part in parts if not isinstance(part, TextPart))


def picture_id(part: Part) -> str:
    """What names a picture whatever folder it lies in: the sha256 of its bytes. A video has its name and size, for videos are long."""
    assert not isinstance(part, TextPart)
    if isinstance(part.source, str):
        return part.source
    if isinstance(part.source, bytes):
        return hashlib.sha256(part.source).hexdigest()
    try:
        if isinstance(part, ImagePart):
            state = part.source.stat()
            return _file_digest(part.source, state.st_mtime_ns, state.st_size)
        return f"{part.source.name} {part.source.stat().st_size}"
    except OSError as error:
        raise DataError(f"{part.source} cannot be read ({error.strerror}); check the data folder with vistune eval check.") from error


@functools.lru_cache(maxsize=2**17)
def _file_digest(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(benchmark: Benchmark, questions: Sequence[Question], model_name: str, protocol: str) -> dict[str, Any]:
    return {
        "benchmark": benchmark.name,
        "version": benchmark.version,
        "protocol": protocol,
        "model": model_name,
        "questions": questions_digest(questions),
        "params": json.loads(json.dumps(dataclasses.asdict(benchmark.params))),
    }


def _resume(journal: Journal, header: dict[str, Any]) -> dict[str, Prediction]:
    """Reads what an earlier run answered, or begins the journal."""
    records = list(journal)
    if not records:
        journal.append(header)
        return {}
    found, *rows = records
    if isinstance(found, dict) and isinstance(found.get("params"), dict):  # of before a parameter was added: it asked for nothing
        found["params"] = json.loads(json.dumps(dataclasses.asdict(SamplingParams()))) | found["params"]
    if found != header:
        changed = sorted(key for key in header if not isinstance(found, dict) or found.get(key) != header[key])
        raise ResumeMismatch(
            f"{journal.path} holds answers of another run (different: {', '.join(changed)}); give another folder or move it away."
        )
    return {row["id"]: Prediction(row["id"], reply_from(row["reply"]) if row["reply"] else None, row["error"]) for row in rows}
