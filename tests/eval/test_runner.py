"""Running a benchmark: concurrent, resumable, and honest about what could not be scored."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.eval.small import benchmark_of

from vistune.errors import DataError, EvaluationIncomplete, RemoteError, ResumeMismatch
from vistune.eval.benchmark import majority_replies, report
from vistune.eval.runner import Prediction, grade, predict
from vistune.types import Conversation, Graded, Question, Reply, SamplingParams, Score


def question(number: int, kind: str = "what", group: str = "") -> Question:
    return Question(f"q{number}", Conversation(()).then("user", f"Say {number}"), (str(number),), (), kind, group)


QUESTIONS = tuple(question(number, "even" if number % 2 == 0 else "odd") for number in range(8))
BENCHMARK = benchmark_of("counting", QUESTIONS)


class Parrot:
    """Says the last word of the question; notes who asked and how many ask at once."""

    def __init__(self, fail: frozenset[str] = frozenset()):
        self.asked: list[str] = []
        self.fail, self.now, self.most = fail, 0, 0

    async def generate(self, conversation: Conversation, params: SamplingParams = SamplingParams()) -> Reply:  # noqa: B008 (frozen)
        word = conversation.messages[-1].text.split()[-1]
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        self.asked.append(word)
        if word in self.fail:
            raise RemoteError("the line is dead")
        return Reply(word, "stop")

    def stream(self, conversation: Conversation, params: SamplingParams = SamplingParams()):  # noqa: B008 (frozen)
        raise AssertionError("the runner asks for whole replies")


def run(model: Parrot, path: Path, **options) -> dict[str, Prediction]:
    return asyncio.run(predict(model, BENCHMARK, path, model_name="parrot", **options))


def test_every_question_is_asked_once_and_several_at_a_time(tmp_path: Path):
    model = Parrot()
    result, graded = grade(BENCHMARK, run(model, tmp_path / "p.jsonl", concurrency=3))
    assert (result.overall, result.n, len(graded)) == (1.0, 8, 8)
    assert sorted(model.asked) == [str(number) for number in range(8)]
    assert model.most == 3


def test_a_second_run_asks_only_what_has_no_answer_yet(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    run(Parrot(fail=frozenset("35")), path)
    path.write_text(path.read_text() + '{"id": "q3", "rep')  # cut off inside a line
    again = Parrot()
    result, _ = grade(BENCHMARK, run(again, path))
    assert sorted(again.asked) == ["3", "5"]
    assert (result.overall, result.n_unscored) == (1.0, 0)


def test_answers_of_another_model_are_refused(tmp_path: Path):
    run(Parrot(), tmp_path / "p.jsonl")
    with pytest.raises(ResumeMismatch, match="model"):
        asyncio.run(predict(Parrot(), BENCHMARK, tmp_path / "p.jsonl", model_name="other"))


def test_a_file_that_holds_no_predictions_is_refused_and_kept(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text("Dear diary\n")
    with pytest.raises(DataError, match="not a predictions file"):
        run(Parrot(), path)
    assert path.read_text() == "Dear diary\n"


def test_failures_are_unscored_not_wrong_and_too_many_are_an_error(tmp_path: Path):
    predictions = run(Parrot(fail=frozenset("3")), tmp_path / "p.jsonl")
    result, _ = grade(BENCHMARK, predictions, most_unscored=0.2)
    assert (result.overall, result.n_unscored) == (1.0, 1)
    with pytest.raises(EvaluationIncomplete, match=r"1 of 8.*the line is dead"):
        grade(BENCHMARK, predictions)


def test_overall_is_the_mean_over_kinds_and_groups_are_paths():
    def graded(kind: str, group: str, value: float | None) -> Graded:
        return Graded(question(0, kind, group), Reply("", "stop"), Score(value))

    result = report("x", [graded("a", "g/1", 1.0), graded("a", "g/2", 1.0), graded("a", "h", 1.0), graded("b", "g/1", 0.0)])
    assert (result.overall, result.micro) == (0.5, 0.75)
    assert result.by_group == {"g": 0.5, "g/1": 0.5, "g/2": 1.0, "h": 1.0}


def test_the_majority_answers_by_question_text_then_by_its_opening():
    training = [("Is it red?", "No."), ("Is it red?", "No."), ("Is it big?", "Yes."), ("How many?", "Two.")]
    asked = [Question(text, Conversation(()).then("user", text)) for text in ("Is it red?", "Is it old?", "Why?")]
    assert majority_replies(asked, training) == {"Is it red?": "No.", "Is it old?": "No.", "Why?": "No."}
