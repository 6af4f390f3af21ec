"""Two results side by side: only what may be compared, a fair test, and a page that shows what was said without believing it."""

from __future__ import annotations

import asyncio
import dataclasses
import io
from pathlib import Path

import pytest
from PIL import Image
from tests.eval.small import benchmark_of

from vistune.chat_model import ScriptedChatModel
from vistune.errors import DataError, UsageError
from vistune.eval.benchmark import Benchmark
from vistune.eval.compare import Comparison, compare, in_words, page, questions_of, result_files
from vistune.eval.results import evaluate
from vistune.types import Conversation, ImagePart, Question, SamplingParams, Score


def picture(shade: int) -> ImagePart:
    file = io.BytesIO()
    Image.new("L", (800, 600), shade).save(file, "PNG")
    return ImagePart(file.getvalue())


QUESTIONS = tuple(
    Question(
        f"q{number}", Conversation(()).then("user", picture(number // 2), f"\n{number}?"), (str(number),), image_group=str(number // 2)
    )
    for number in range(8)
)
BENCHMARK = benchmark_of("counting", QUESTIONS)
NASTY = '<script>alert("x")</script>'


def measured(folder: Path, wrong: str, benchmark: Benchmark = BENCHMARK) -> Path:
    """A model that is wrong on the questions whose numbers are in `wrong`."""

    def answer(conversation: Conversation, params: SamplingParams) -> str:
        number = conversation.messages[-1].text.strip(" ?\n")
        return NASTY if number in wrong else number

    asyncio.run(evaluate(ScriptedChatModel(answer), benchmark, folder, model_name=f"wrong at {wrong}"))
    return folder / f"{benchmark.name}.json"


@pytest.fixture
def found(tmp_path: Path) -> Comparison:
    return compare(measured(tmp_path / "a", "0123"), measured(tmp_path / "b", "37"))


def test_flips_and_their_directions_are_counted(found: Comparison):
    assert [pair.a.id for pair in found.flips] == ["q0", "q1", "q2", "q7"]
    assert (found.better, found.test.n, found.test.clusters) == ((1, 3), 8, 4)
    assert found.test.difference == 2 / 8
    assert found.test.p == 6 / 8  # pictures: +2, +1, 0, -1; of the eight ways to flip three, two give 0


def test_the_largest_differences_come_first(tmp_path: Path):
    lengths = dataclasses.replace(BENCHMARK, score=lambda question, reply, protocol: Score(len(reply.text) / 10))
    answers = {"a": lambda number: "x", "b": lambda number: "x" * (number % 4 + 1)}
    for name, answer in answers.items():
        model = ScriptedChatModel(lambda asked, params, answer=answer: answer(int(asked.messages[-1].text.strip(" ?\n"))))
        asyncio.run(evaluate(model, lengths, tmp_path / name, model_name=name))
    found = compare(tmp_path / "a" / "counting.json", tmp_path / "b" / "counting.json")
    assert [pair.a.id for pair in found.flips] == ["q3", "q7", "q2", "q6", "q1", "q5"]


def test_the_words_say_who_is_better_on_how_many(found: Comparison):
    said = in_words(found)
    assert "B - A, mean score of a question: +0.2500" in said
    assert "better: A on 1 questions, B on 3; the same on 4" in said


def test_the_page_holds_the_pictures_and_runs_nothing(found: Comparison):
    text = page(found, questions_of(found, BENCHMARK))
    assert text.count("<article>") == text.count('src="data:image/jpeg;base64,') == 4
    assert "http:" not in text
    assert "https:" not in text
    assert "<script" not in text
    assert "&lt;script&gt;alert(&quot;x&quot;)" in text
    assert "default-src 'none'" in text


def test_a_long_page_says_what_it_leaves_out(found: Comparison):
    text = page(found, {}, most=1)
    assert text.count("<article>") == 1
    assert "3 smaller differences are left out" in text


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (benchmark_of("counting", QUESTIONS[:7]), "questions"),
        (dataclasses.replace(BENCHMARK, scorer="2"), "scorer"),
        (dataclasses.replace(BENCHMARK, version="2"), "version"),
    ],
)
def test_results_of_other_questions_or_rules_are_not_compared(other: Benchmark, named: str, tmp_path: Path):
    with pytest.raises(DataError, match=f"their {named} differs"):
        compare(measured(tmp_path / "a", ""), measured(tmp_path / "b", "", other))


def test_pictures_of_other_questions_are_not_shown(found: Comparison):
    strange = benchmark_of("counting", [dataclasses.replace(question, answers=("x",)) for question in QUESTIONS])
    with pytest.raises(DataError, match="not those that were asked"):
        questions_of(found, strange)


def test_two_folders_are_compared_in_what_both_hold(tmp_path: Path):
    measured(tmp_path / "a", "")
    measured(tmp_path / "b", "1")
    assert result_files(tmp_path / "a", tmp_path / "b") == [(tmp_path / "a" / "counting.json", tmp_path / "b" / "counting.json")]
    with pytest.raises(UsageError, match="no results of the same name"):
        result_files(tmp_path / "a", tmp_path)


def test_samples_of_another_run_beside_a_result_are_noticed(tmp_path: Path):
    a, b = measured(tmp_path / "a", ""), measured(tmp_path / "b", "1")
    lines = (tmp_path / "b" / "counting.jsonl").read_text().splitlines()
    (tmp_path / "b" / "counting.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(DataError, match="not of the same questions"):
        compare(a, b)
