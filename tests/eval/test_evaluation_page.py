"""What docs/evaluation.md shows works as it stands there."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from pathlib import Path

import pytest
import typer
from PIL import Image

from vistune.chat_model import ScriptedChatModel
from vistune.cli_eval import eval_app
from vistune.eval.own import SCORERS, own_benchmark
from vistune.eval.results import evaluate

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def block(opening: str) -> str:
    """The one code block that begins with these words."""
    (found,) = [each for each in re.findall(r"```\w*\n(.*?)```", PAGE, re.DOTALL) if each.startswith(opening)]
    return found


def test_the_benchmark_in_one_file_runs(tmp_path: Path):
    (tmp_path / "signs.py").write_text(block('"""Signs'))
    spec = importlib.util.spec_from_file_location("signs", tmp_path / "signs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "signs" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "signs" / "images" / "1.jpg")
    rows = [{"id": number, "image": "1.jpg", "question": "What?", "answers": ["stop"], "country": "x"} for number in (1, 2)]
    (tmp_path / "signs" / "signs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = ScriptedChatModel(["Stop!", "Go"])
    result, _ = asyncio.run(evaluate(model, module.BENCHMARK, tmp_path / "out", model_name="m", data=tmp_path, concurrency=1))
    assert {metric.name: metric.value for metric in result.metrics} == {"accuracy": 50.0, "accuracy/x": 50.0}


def test_the_questions_of_ones_own_can_be_asked(tmp_path: Path):
    (tmp_path / "shelf").mkdir()
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / "shelf" / name)
    (tmp_path / "shelf.jsonl").write_text(block('{"benchmark": "shelf-labels"'))
    first, second = own_benchmark(tmp_path / "shelf.jsonl").questions()
    assert (first.answers, second.category) == (("tea",), "blurred")


@pytest.mark.parametrize("scorer", SCORERS)
def test_every_shared_scorer_is_explained(scorer: str):
    assert f"| `{scorer}` | " in PAGE


def test_every_option_that_is_named_exists():
    verbs = getattr(typer.main.get_command(eval_app), "commands").values()  # noqa: B009 (typer's group type does not say it)
    known = {option for verb in verbs for parameter in verb.params for option in (*parameter.opts, *parameter.secondary_opts)}
    page = PAGE.replace(block("export OPENAI_API_KEY"), "").replace("`--model openai_compatible`", "")
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page)) - known == set()
