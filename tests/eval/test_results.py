"""A measured benchmark is written down whole, shown as a table, and never mixed with another run."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from tests.eval.small import benchmark_of

from vistune.chat_model import ScriptedChatModel
from vistune.errors import ResumeMismatch
from vistune.eval.benchmarks.text_only import SideBySide
from vistune.eval.results import BenchmarkResult, evaluate, side_by_side_markdown, table
from vistune.types import Conversation, ImagePart, Question


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


def test_a_result_is_written_with_its_figures_and_the_name_of_its_predictions(tmp_path: Path):
    result = run(tmp_path, looking())
    written = json.loads((tmp_path / "colours.json").read_text())
    assert (written["overall"], written["n"], written["blind"], written["checkpoint"]) == (pytest.approx((2 / 3 + 1) / 2), 4, False, "abc")
    assert written["by_group"] == result.by_group == {"far": 1.0, "near": 0.75, "near/new": 1.0, "near/old": 0.5}
    assert len((tmp_path / written["predictions"]).read_text().splitlines()) == 1 + 4
    assert result.seconds is not None


def test_a_run_given_again_asks_nothing_and_claims_no_time(tmp_path: Path):
    run(tmp_path, looking())
    again = looking()
    assert run(tmp_path, again).seconds is None
    assert again.calls == []


def test_blind_and_shortened_runs_have_files_of_their_own(tmp_path: Path):
    run(tmp_path, looking())
    assert run(tmp_path, looking(), blind=True).overall == 0.0
    assert run(tmp_path, looking(), limit=1).n == 1
    assert {path.name for path in tmp_path.glob("*.json")} == {"colours.json", "colours.blind.json", "colours.first-1.json"}


@pytest.mark.parametrize("other", [{"checkpoint": "def"}, {"arithmetic": "bfloat16"}])
def test_answers_of_another_checkpoint_or_number_format_are_refused(tmp_path: Path, other: dict[str, str]):
    run(tmp_path, looking())
    with pytest.raises(ResumeMismatch, match="model"):
        run(tmp_path, looking(), **other)


def test_the_table_has_a_row_per_group_and_leaves_blank_what_was_not_asked(tmp_path: Path):
    drawn, file = table(run(tmp_path, looking())), io.StringIO()
    cells = [list(column.cells) for column in drawn.columns]
    rows = dict(zip(cells[0], zip(*cells[1:], strict=True), strict=True))
    assert rows["all"] == ("0.667", "1.000", "0.833", "4")
    assert rows["far"] == ("1.000", "", "1.000", "1")
    Console(file=file, width=60).print(drawn)
    assert "near/old" in file.getvalue()


def test_text_answers_stand_under_each_prompt_as_quotes():
    text = side_by_side_markdown((SideBySide("Hi?", "One\n\ntwo", ""),), tuned_name="t")
    assert "## 1. Hi?\n\n**Base**\n\n> One\n>\n> two\n\n**Tuned**\n\n> (nothing)\n" in text
