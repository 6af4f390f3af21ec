"""A benchmark of one's own is a file; what is wrong in it is said with its line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vistune.chat_model import ScriptedChatModel
from vistune.errors import DataError, ImageError
from vistune.eval.check import check, in_words, require_no_problem
from vistune.eval.own import SCORERS, own_benchmark
from vistune.eval.results import BenchmarkResult, evaluate
from vistune.types import Reply

LABELS = [f"{word}" for word in ["tea"] * 9 + ["coffee"]]


def written(folder: Path, scorer: str, *rows: dict[str, Any], **header: Any) -> Path:
    Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    lines = [{"benchmark": "mine", "scorer": scorer, **header}, *({"id": f"q{number}", **row} for number, row in enumerate(rows))]
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def measured(path: Path, *replies: str) -> BenchmarkResult:
    model = ScriptedChatModel(replies)
    return asyncio.run(evaluate(model, own_benchmark(path), path.parent / "out", model_name="m", concurrency=1))[0]


@pytest.mark.parametrize(
    ("scorer", "row", "right", "wrong"),
    [
        ("exact", {"answers": ["grey", "silver"]}, "It... no. ", "grey cat"),
        ("contains", {"answer": "tea"}, "There is tea in it.", "steam"),
        ("choice", {"choices": ["tea", "rice"], "answer": "rice"}, "B. rice", "A"),
        ("choice", {"choices": ["tea", "rice"], "answer": "B"}, "rice", "neither"),
        ("choice", {"choices": ["black tea", "a cup"], "answer": "B"}, "The answer is a cup.", "The answer is black tea."),
        ("yes-no", {"answer": "no"}, "No, there is none.", "Yes"),
        ("vqa", {"answers": LABELS}, "Tea.", "milk"),
        ("anls", {"answer": "invoice"}, "invoise", "receipt"),
        ("relaxed", {"answer": "100"}, "104", "106"),
    ],
)
def test_each_shared_scorer_tells_right_from_wrong(scorer: str, row: dict[str, Any], right: str, wrong: str, tmp_path: Path):
    benchmark = own_benchmark(written(tmp_path, scorer, {"question": "What?", **row}))
    (question,) = benchmark.questions()
    if scorer == "exact":
        right = "The Silver."
    assert (benchmark.score(question, Reply(right, "stop"), scorer).value or 0) > 0.5
    assert benchmark.score(question, Reply(wrong, "stop"), scorer).value == 0.0


def test_every_scorer_is_of_the_list_that_the_tests_go_through():
    assert set(SCORERS) == {"exact", "contains", "choice", "yes-no", "vqa", "anls", "relaxed", "judge"}


def test_a_file_becomes_questions_with_pictures_choices_and_an_instruction(tmp_path: Path):
    row = {"image": "a.png", "question": "What is it?", "choices": ["tea", "rice"], "answer": "tea", "category": "top"}
    (question,) = own_benchmark(written(tmp_path, "choice", row)).questions()
    assert question.conversation.images[0].source == (tmp_path / "a.png").resolve()
    assert question.conversation.messages[0].text == (
        "\nWhat is it?\nA. tea\nB. rice\nAnswer with the option's letter from the given choices directly."
    )
    assert (question.category, question.image_group, question.answers) == ("top", "a.png", ("tea",))


def test_an_instruction_of_ones_own_takes_the_place_of_the_scorers(tmp_path: Path):
    path = written(tmp_path, "exact", {"question": "What?", "answer": "tea"}, instruction="One word.", max_new_tokens=4)
    benchmark = own_benchmark(path)
    assert benchmark.questions()[0].conversation.messages[0].text == "What?\nOne word."
    assert benchmark.params.max_new_tokens == 4


def test_the_result_has_the_mean_and_that_of_each_category_in_percent(tmp_path: Path):
    rows = [{"question": "What?", "answer": word, "category": kind} for word, kind in (("tea", "a"), ("rice", "a"), ("salt", "b"))]
    result = measured(written(tmp_path, "contains", *rows), "tea", "no idea", "salt")
    assert {metric.name: (metric.value, metric.n) for metric in result.metrics} == {
        "accuracy": (pytest.approx(200 / 3), 3), "accuracy/a": (50.0, 2), "accuracy/b": (100.0, 1),
    }  # fmt: skip


def test_another_content_is_another_version(tmp_path: Path):
    first = own_benchmark(written(tmp_path, "exact", {"question": "What?", "answer": "tea"})).version
    assert own_benchmark(written(tmp_path, "exact", {"question": "What?", "answer": "rice"})).version != first


@pytest.mark.parametrize(
    ("scorer", "row", "complaint"),
    [
        ("exact", {"question": "What?"}, "line 2: there is no 'answer'"),
        ("exact", {"question": "What?", "answers": []}, "at least one text"),
        ("choice", {"question": "What?", "answer": "tea"}, "there is no 'choices'"),
        ("choice", {"question": "What?", "answer": "milk", "choices": ["tea", "rice"]}, "one of the choices, or its letter"),
        ("choice", {"question": "What?", "answer": "tea", "choices": ["tea", "tea"]}, "different texts"),
        ("vqa", {"question": "What?", "answers": ["tea"]}, "ten texts"),
        ("yes-no", {"question": "Is it?", "answer": "maybe"}, "yes or no"),
        ("exact", {"id": "q1", "question": "What?", "answer": "tea"}, "was there before"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(scorer: str, row: dict[str, Any], complaint: str, tmp_path: Path):
    good = {"question": "What?", "answer": "tea", "id": "q1"}
    path = written(tmp_path, scorer, row, *([good] if row.get("id") else []))
    with pytest.raises(DataError, match=complaint):
        own_benchmark(path).questions()


@pytest.mark.parametrize("text", ["", '{"id": "1", "question": "What?"}\n', "Dear diary\n", '{"benchmark": "../x", "scorer": "exact"}\n'])
def test_a_file_that_does_not_say_what_it_is_is_refused(text: str, tmp_path: Path):
    (tmp_path / "mine.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"mine\.jsonl"):
        own_benchmark(tmp_path / "mine.jsonl")


def test_a_picture_that_is_missing_or_elsewhere_is_refused(tmp_path: Path):
    for name in ("gone.png", "../a.png", "/etc/passwd"):
        with pytest.raises(ImageError, match=r"line 2"):
            own_benchmark(written(tmp_path, "exact", {"image": name, "question": "What?", "answer": "tea"})).questions()


def test_a_check_counts_what_is_there_and_finds_the_picture_that_is_none(tmp_path: Path):
    (tmp_path / "b.png").write_bytes(b"no picture")
    rows = [{"image": name, "question": "What?", "answer": "tea", "category": kind} for name, kind in (("a.png", "x"), ("b.png", "y"))]
    found = check(own_benchmark(written(tmp_path, "exact", *rows)), None)
    assert (found[0].n, found[0].pictures, found[0].categories, len(found[0].problems)) == (2, 2, {"x": 1, "y": 1}, 1)
    said = in_words("mine", found)
    assert "mine (exact): 2 questions about 2 pictures" in said
    assert "q1: " in said
    with pytest.raises(DataError, match="1 questions of mine"):
        require_no_problem("mine", found)
