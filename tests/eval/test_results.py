"""A measured benchmark is written down whole, shown as a table, and never mixed with another run."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from tests.eval.small import benchmark_of

from vistune.chat_model import ScriptedChatModel
from vistune.errors import DataError, EvaluationIncomplete, RemoteError, ResumeMismatch, UsageError
from vistune.eval.benchmarks.text_only import SideBySide, side_by_side_markdown
from vistune.eval.results import BenchmarkResult, evaluate, read_result
from vistune.eval.tables import remarks, table, title
from vistune.types import Conversation, ImagePart, Question, SamplingParams


def picture(colour: str) -> ImagePart:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, "PNG")
    return ImagePart(file.getvalue())


def question(number: int, answer: str, kind: str, group: str) -> Question:
    return Question(f"q{number}", Conversation(()).then("user", picture(answer), f"\n{kind}?"), (answer,), (), kind, group)


BENCHMARK = benchmark_of(
    "colours",
    [
        question(0, "red", "what", "near/new"),
        question(1, "blue", "what", "near/old"),
        question(2, "red", "where", "near/old"),
        question(3, "red", "what", "far"),
    ],
)


def looking() -> ScriptedChatModel:
    def look(conversation: Conversation, _: object) -> str:
        source = conversation.images[0].source
        assert isinstance(source, bytes)
        pixel = Image.open(io.BytesIO(source)).convert("RGB").getpixel((0, 0))
        return {(255, 0, 0): "Red."}.get(pixel, "Grey.")  # type: ignore[arg-type]

    return ScriptedChatModel(look)


def run(folder: Path, model: ScriptedChatModel, **options: Any) -> BenchmarkResult:
    return asyncio.run(evaluate(model, BENCHMARK, folder, model_name="looker", **{"checkpoint": "abc", **options}))[0]


def samples(folder: Path, name: str = "colours") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_a_result_is_written_with_its_figures_and_what_tells_it_from_others(tmp_path: Path):
    result = run(tmp_path, looking())
    written = json.loads((tmp_path / "colours.json").read_text())
    assert {metric.name: metric.value for metric in result.metrics} == {
        "overall": pytest.approx((2 / 3 + 1) / 2), "every question": 0.75, "overall/far": 1.0, "overall/near": 0.75,
        "overall/near/new": 1.0, "overall/near/old": 0.5, "what": pytest.approx(2 / 3), "where": 1.0, "what/far": 1.0, "what/near": 0.5,
        "where/near": 1.0, "what/near/new": 1.0, "what/near/old": 0.0, "where/near/old": 1.0,
    }  # fmt: skip
    assert [metric["name"] for metric in written["metrics"] if metric["headline"]] == ["overall"]
    assert {name: written[name] for name in ("protocol", "scorer", "n", "n_unscored", "blind", "partial", "judge", "checkpoint")} == {
        "protocol": "exact", "scorer": "1", "n": 4, "n_unscored": 0, "blind": False, "partial": False, "judge": "", "checkpoint": "abc",
    }  # fmt: skip
    assert result.seconds is not None
    assert result.bounds is None
    assert read_result(tmp_path / "colours.json")[0] == result


def test_a_result_of_an_earlier_version_is_read_and_biases_are_what_they_were(tmp_path: Path):
    run(tmp_path, looking())
    record = json.loads((tmp_path / "colours.json").read_text())
    later = {"response_schema", "frequency_penalty", "presence_penalty", "logit_bias", "top_k", "min_p", "cache_salt"}
    params = {name: value for name, value in record["params"].items() if name not in later} | {"response_format": None}
    (tmp_path / "colours.json").write_text(json.dumps(record | {"params": params}))
    assert read_result(tmp_path / "colours.json")[0].params == SamplingParams(**record["params"] | {"stop": (), "logit_bias": ()})
    (tmp_path / "colours.json").write_text(json.dumps(record | {"params": params | {"logit_bias": [[7, 1.5]]}}))
    assert read_result(tmp_path / "colours.json")[0].params.logit_bias == ((7, 1.5),)


def test_every_sample_says_what_was_sent_what_came_back_and_what_was_made_of_it(tmp_path: Path):
    run(tmp_path, looking())
    first, second, *_ = samples(tmp_path)
    assert (first["id"], first["reply"], first["extracted"], first["score"], first["answers"]) == ("q0", "Red.", "red", 1.0, ["red"])
    assert second["score"] == 0.0
    picture_sent, words = first["prompt"][0]["content"]
    assert (len(picture_sent["picture"]), words) == (64, "\nwhat?")


def test_a_run_given_again_asks_nothing_claims_no_time_and_writes_the_same_samples(tmp_path: Path):
    run(tmp_path, looking())
    before = (tmp_path / "colours.jsonl").read_bytes()
    again = looking()
    assert run(tmp_path, again).seconds is None
    assert again.calls == []
    assert (tmp_path / "colours.jsonl").read_bytes() == before


def test_blind_and_shortened_runs_have_files_of_their_own(tmp_path: Path):
    run(tmp_path, looking())
    assert run(tmp_path, looking(), blind=True).metric("overall") == 0.0
    shortened = run(tmp_path, looking(), limit=1)
    assert (shortened.n, shortened.partial) == (1, True)
    assert {path.name for path in tmp_path.glob("*.json")} == {"colours.json", "colours.blind.json", "colours.first-1.json"}


@pytest.mark.parametrize("other", [{"checkpoint": "def"}, {"arithmetic": "bfloat16"}])
def test_answers_of_another_checkpoint_or_number_format_are_refused(tmp_path: Path, other: dict[str, str]):
    run(tmp_path, looking())
    with pytest.raises(ResumeMismatch, match="model"):
        run(tmp_path, looking(), **other)


def test_samples_whose_answers_are_gone_are_not_overwritten(tmp_path: Path):
    (tmp_path / "colours.jsonl").write_text("{}\n")
    with pytest.raises(ResumeMismatch, match="move it away"):
        run(tmp_path, looking())


def failing_at(words: str) -> ScriptedChatModel:
    def answer(conversation: Conversation, _: object) -> str:
        if words in conversation.messages[-1].text:
            raise RemoteError("the line is dead")
        return "Red."

    return ScriptedChatModel(answer)


def test_unscored_answers_are_counted_and_bounded_and_too_many_are_an_error_after_all_is_written(tmp_path: Path):
    results: list[BenchmarkResult] = []
    with pytest.raises(EvaluationIncomplete, match=r"1 of 4.*the line is dead"):
        run(tmp_path, failing_at("where"), on_result=results.append)
    (result,) = results
    assert (result.n, result.n_unscored) == (4, 1)
    assert result.metric("overall") == pytest.approx(2 / 3)  # of the kind that has scores
    assert result.bounds == (pytest.approx(1 / 3), pytest.approx((2 / 3 + 1) / 2))
    assert "1 unscored; between 0.3333 and 0.8333" in remarks(result)
    assert read_result(tmp_path / "colours.json")[0] == result
    assert run(tmp_path, failing_at("nothing")).n_unscored == 0  # asked again


def test_just_as_many_may_be_unscored_as_is_said(tmp_path: Path):
    assert run(tmp_path, failing_at("where"), most_unscored=0.25).n_unscored == 1


def test_a_run_without_any_score_has_no_figure_but_bounds(tmp_path: Path):
    results: list[BenchmarkResult] = []
    with pytest.raises(EvaluationIncomplete, match="4 of 4"):
        run(tmp_path, failing_at("?"), on_result=results.append, most_unscored=1.0)
    assert (results[0].metrics, results[0].headline, results[0].bounds) == ((), None, (0.0, 1.0))


def test_the_table_has_a_row_per_category_and_leaves_blank_what_was_not_asked(tmp_path: Path):
    drawn, file = table(run(tmp_path, looking())), io.StringIO()
    cells = [list(column.cells) for column in drawn.columns]
    assert [str(column.header) for column in drawn.columns] == ["", "overall", "what", "where", "n"]
    rows = dict(zip(cells[0], zip(*cells[1:], strict=True), strict=True))
    assert rows["all"] == ("0.833", "0.667", "1.000", "4")
    assert rows["far"] == ("1.000", "1.000", "", "1")
    assert str(drawn.caption).endswith("; every question 0.750")
    Console(file=file, width=80).print(drawn)
    assert "near/old" in file.getvalue()


def test_a_headline_without_categories_keeps_its_column_beside_others_that_have_some(tmp_path: Path):
    result = run(tmp_path, looking())
    whole = tuple(metric for metric in result.metrics if not metric.name.startswith("overall/"))
    drawn = table(dataclasses.replace(result, metrics=whole))
    assert [str(column.header) for column in drawn.columns] == ["", "overall", "what", "where", "n"]


def test_another_number_of_questions_than_there_officially_are_is_partial(tmp_path: Path):
    larger = dataclasses.replace(BENCHMARK, sizes={"exact": 5})
    result, _ = asyncio.run(evaluate(looking(), larger, tmp_path, model_name="looker"))
    assert result.partial


def test_a_reply_with_strange_line_ends_is_one_sample(tmp_path: Path):
    run(tmp_path, ScriptedChatModel(lambda *_: "Red\u2028or\x85not\x0c.\ud800"))
    assert [sample.reply for sample in read_result(tmp_path / "colours.json")[1]] == ["Red\u2028or\x85not\x0c.\ud800"] * 4


def test_a_partial_or_blind_result_says_so_in_its_title(tmp_path: Path):
    assert title(run(tmp_path, looking(), limit=2, blind=True)) == "colours (exact, blind, PARTIAL): looker"


def test_a_benchmark_for_a_rule_wants_no_judge_and_one_for_a_judge_wants_one(tmp_path: Path):
    with pytest.raises(UsageError, match="scored by a rule"):
        run(tmp_path, looking(), judges=("someone",))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"metrics": []}'])
def test_a_file_that_is_no_result_is_refused(text: str, tmp_path: Path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match="no result"):
        read_result(tmp_path / "x.json")


def test_text_answers_stand_under_each_prompt_as_quotes():
    text = side_by_side_markdown((SideBySide("Hi?", "One\n\ntwo", ""),), tuned_name="t")
    assert "## 1. Hi?\n\n**Base**\n\n> One\n>\n> two\n\n**Tuned**\n\n> (nothing)\n" in text
