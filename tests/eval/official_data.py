"""Small data folders in benchmarks' official layouts, and a run over one with a model that says what the test tells it to."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from vistune.calls import Calls
from vistune.chat_model import ScriptedChatModel, ScriptedReply
from vistune.eval.benchmark import Benchmark
from vistune.eval.judge import Judge
from vistune.eval.results import BenchmarkResult, evaluate
from vistune.types import Conversation, Question, SamplingParams

JudgeScript = Callable[[str], ScriptedReply]


def write_json(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_pictures(folder: Path, *names: str) -> None:
    """Little pictures, each of another colour."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        Image.new("RGB", (8, 6), (number * 37 % 256, number * 91 % 256, 120)).save(file, "PNG")
        path.write_bytes(file.getvalue())


def uncounted(benchmark: Benchmark) -> Benchmark:
    """The benchmark without its check that all questions are there."""
    load: Callable[..., Any] = benchmark.load
    return dataclasses.replace(benchmark, load=functools.partial(load, check_counts=False))


def words(conversation: Conversation) -> str:
    """All that is said in a conversation, with single blanks: what tells questions apart."""
    return " ".join(" ".join(message.text for message in conversation.messages).split())


def run(
    benchmark: Benchmark, root: Path, replies: Mapping[str, ScriptedReply], *, protocol: str = "", judge: JudgeScript | None = None
) -> tuple[BenchmarkResult, list[Question], ScriptedChatModel]:
    """Evaluates on `root` through the real runner, with a reply for each question's id and a judge that answers texts.

    Any share of the questions may stay without a score.
    """
    asked = uncounted(benchmark)
    questions = list(asked.questions(root, protocol))
    by_words = {words(question.conversation): question.id for question in questions}
    assert len(by_words) == len(questions), "two questions of this test read alike"
    assert set(replies) == {question.id for question in questions}

    def say(conversation: Conversation, params: SamplingParams) -> ScriptedReply:
        return replies[by_words[words(conversation)]]

    model = ScriptedChatModel(say, piece_size=2000)
    if asked.judge:  # a judge that a test makes up knows no canary
        asked = dataclasses.replace(asked, judge=dataclasses.replace(asked.judge, canaries=False))
    out = root / f"out-{protocol}"
    with _calls(judge, out) as calls:
        judges = [Judge("scripted", calls)] if judge else []
        options: dict[str, Any] = {"data": root, "protocol": protocol, "judges": judges, "most_unscored": 1.0}
        result, _ = asyncio.run(evaluate(model, asked, out, model_name="scripted", **options))
    return result, questions, model


def _calls(judge: JudgeScript | None, out: Path) -> Calls:
    out.mkdir(parents=True, exist_ok=True)
    script = judge or (lambda text: "")
    model = ScriptedChatModel(lambda conversation, params: script(conversation.messages[-1].text), piece_size=2000)
    return Calls(model, name="scripted", log=out / "judge.log")


def figures(result: BenchmarkResult) -> dict[str, float]:
    """Every metric by its name, rounded to nine decimals."""
    return {metric.name: round(metric.value, 9) for metric in result.metrics}


def headline(result: BenchmarkResult) -> str:
    (name,) = [metric.name for metric in result.metrics if metric.headline]
    return name
