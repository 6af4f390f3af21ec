"""Running a benchmark: concurrent, resumable, and honest about what could not be scored."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.eval.small import benchmark_of

from vistune.errors import CostCapReached, DataError, RemoteError, ResumeMismatch, ScoringError, UnknownName, UsageError
from vistune.eval.benchmark import Protocol, majority_replies, report
from vistune.eval.runner import Prediction, grade, predict, questions_digest
from vistune.journal import Journal
from vistune.types import Conversation, Graded, ImagePart, Question, Reply, SamplingParams, Score, TokenLogprob


def question(number: int, kind: str = "what", group: str = "") -> Question:
    return Question(f"q{number}", Conversation(()).then("user", f"Say {number}"), (str(number),), (), kind, group)


QUESTIONS = tuple(question(number, "even" if number % 2 == 0 else "odd") for number in range(8))
BENCHMARK = benchmark_of("counting", QUESTIONS, protocols=(Protocol("exact", "as it is"), Protocol("loud", "in capitals")))


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


def run(model: Parrot, path: Path, **options: Any) -> dict[str, Prediction]:
    return asyncio.run(predict(model, BENCHMARK, QUESTIONS, path, **{"model_name": "parrot", **options}))


def values(predictions: dict[str, Prediction]) -> list[float | None]:
    return [item.score.value for item in grade(BENCHMARK, QUESTIONS, predictions)]


def test_every_question_is_asked_once_and_several_at_a_time(tmp_path: Path):
    model = Parrot()
    assert values(run(model, tmp_path / "p.answers", concurrency=3)) == [1.0] * 8
    assert sorted(model.asked) == [str(number) for number in range(8)]
    assert model.most == 3


def test_a_second_run_asks_only_what_has_no_answer_yet(tmp_path: Path):
    path = tmp_path / "p.answers"
    run(Parrot(fail=frozenset("35")), path)
    path.write_bytes(path.read_bytes() + b'1234abcd {"id": "q3", "rep')  # cut off inside a record
    again = Parrot()
    assert values(run(again, path)) == [1.0] * 8
    assert sorted(again.asked) == ["3", "5"]


def test_answers_of_before_a_parameter_was_added_are_kept(tmp_path: Path):
    path = tmp_path / "p.answers"
    run(Parrot(), path)
    with Journal(path) as journal:
        first, *rows = journal
    del first["params"]["cache_salt"]
    path.unlink()
    with Journal(path) as journal:
        for record in (first, *rows):
            journal.append(record)
    again = Parrot()
    assert values(run(again, path)) == [1.0] * 8
    assert again.asked == []


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"model_name": "other"}, "model"),
        ({"questions": QUESTIONS[:4]}, "questions"),
        ({"protocol": "loud"}, "protocol"),
        ({"benchmark": dataclasses.replace(BENCHMARK, params=SamplingParams(max_new_tokens=1))}, "params"),
    ],
)
def test_answers_of_another_run_are_refused(tmp_path: Path, other: dict[str, Any], named: str):
    run(Parrot(), tmp_path / "p.answers")
    arguments = {"model": Parrot(), "benchmark": BENCHMARK, "questions": QUESTIONS, "model_name": "parrot", **other}
    with pytest.raises(ResumeMismatch, match=named):
        asyncio.run(predict(answers=tmp_path / "p.answers", **arguments))


def test_a_file_that_holds_no_answers_is_refused_and_kept(tmp_path: Path):
    path = tmp_path / "p.answers"
    path.write_text("Dear diary\n")
    with pytest.raises(DataError, match="not a journal"):
        run(Parrot(), path)
    assert path.read_text() == "Dear diary\n"


def test_failures_are_unscored_with_their_reason_and_not_wrong(tmp_path: Path):
    predictions = run(Parrot(fail=frozenset("3")), tmp_path / "p.answers")
    graded = grade(BENCHMARK, QUESTIONS, predictions)
    assert [item.score.value for item in graded] == [1.0] * 3 + [None] + [1.0] * 4
    assert "the line is dead" in graded[3].score.note


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_no_score(value: float, tmp_path: Path):
    strange = dataclasses.replace(BENCHMARK, score=lambda question, reply, protocol: Score(value))
    graded = grade(strange, QUESTIONS, run(Parrot(), tmp_path / "p.answers"))
    assert {item.score.value for item in graded} == {None}
    assert "no number" in graded[0].score.note


def test_a_reply_that_the_scorer_refuses_is_unscored(tmp_path: Path):
    def refuse(question: Question, reply: Reply, protocol: str) -> Score:
        raise ScoringError("the official script fails here")

    graded = grade(dataclasses.replace(BENCHMARK, score=refuse), QUESTIONS, run(Parrot(), tmp_path / "p.answers"))
    assert {(item.score.value, item.score.note) for item in graded} == {(None, "the official script fails here")}


def test_a_cap_that_is_reached_ends_the_run_and_keeps_what_was_answered(tmp_path: Path):
    class Poor(Parrot):
        async def generate(self, conversation: Conversation, params: SamplingParams = SamplingParams()) -> Reply:  # noqa: B008
            if len(self.asked) == 3:
                raise CostCapReached("no more money")
            return await super().generate(conversation, params)

    with pytest.raises(CostCapReached):
        run(Poor(), tmp_path / "p.answers", concurrency=1)
    rich = Parrot()
    run(rich, tmp_path / "p.answers")
    assert len(rich.asked) == 5


def test_likelihood_takes_the_continuation_with_the_highest_mean(tmp_path: Path):
    class Scorer(Parrot):
        async def logprobs(self, conversation: Conversation, continuations: Sequence[str]) -> tuple[tuple[TokenLogprob, ...], ...]:
            sums = {"long": (-1.0, -1.0, -1.0), "short": (-2.0,), "": ()}
            return tuple(tuple(TokenLogprob("t", value) for value in sums[text]) for text in continuations)

    likely = dataclasses.replace(BENCHMARK, continuations=lambda question, protocol: ("short", "long", ""))
    reply = asyncio.run(predict(Scorer(), likely, QUESTIONS[:1], tmp_path / "p.answers", model_name="s"))["q0"].reply
    assert reply is not None
    assert reply.text == "long"
    assert [(each.token, each.logprob) for each in reply.logprobs or ()] == [("short", -2.0), ("long", -1.0), ("", -9999.0)]
    with pytest.raises(UsageError, match="likelihoods"):
        asyncio.run(predict(Parrot(), likely, QUESTIONS[:1], tmp_path / "q.answers", model_name="s"))


def test_the_digest_of_questions_is_of_pictures_and_not_of_their_places(tmp_path: Path):
    def asked(place: str, colour: bytes) -> str:
        path = tmp_path / place
        path.write_bytes(colour)
        return questions_digest([Question("q", Conversation(()).then("user", ImagePart(path), "What?"))])

    assert asked("a.png", b"red") == asked("b.png", b"red") != asked("c.png", b"blue")
    with pytest.raises(DataError, match="cannot be read"):
        questions_digest([Question("q", Conversation(()).then("user", ImagePart(tmp_path / "gone.png")))])


def test_questions_of_wrong_folders_are_named_errors(tmp_path: Path):
    needy = dataclasses.replace(BENCHMARK, needs_data=True)
    with pytest.raises(UsageError, match="give --data ROOT"):
        needy.questions()
    with pytest.raises(DataError, match="is no folder"):
        needy.questions(tmp_path)
    with pytest.raises(DataError, match="1 ids more than once"):
        benchmark_of("twice", [QUESTIONS[0], QUESTIONS[0]]).questions()
    with pytest.raises(DataError, match="no questions"):
        benchmark_of("empty", []).questions()
    with pytest.raises(UnknownName, match="protocol of counting"):
        BENCHMARK.questions(protocol="quiet")


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
