"""The command line as a user meets it: output, exit codes, and one paragraph for each mistake."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.checkpoint.tiny import tiny_llava
from tests.eval.small import benchmark_of

from vistune import cli, cli_model
from vistune.__main__ import BROKEN_PIPE, INTERRUPTED, main
from vistune.chat_model import ScriptedChatModel
from vistune.checkpoint.folder import save_model
from vistune.errors import VistuneError
from vistune.eval.benchmarks import BENCHMARKS
from vistune.types import Conversation, Question


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    Image.new("RGB", (8, 8), "red").save(path)
    return path


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Puts a scripted model where weights would be loaded, and shows how it was asked for."""
    seen: dict[str, Any] = {"model": ScriptedChatModel(lambda conversation, params: f"You said {conversation.messages[-1].text.strip()}")}

    seen["model"].arithmetic = "scripted"

    @contextmanager
    def fake(name: str, dtype: str, device: str, **options: Any) -> Iterator[ScriptedChatModel]:
        seen.update(options, name=name, dtype=dtype, device=device)
        yield seen["model"]

    monkeypatch.setattr(cli_model, "loaded_model", fake)
    return seen


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes the next `vistune chat` fail with an error."""

    def fail_with(error: BaseException) -> None:
        @contextmanager
        def fake(*_: object, **__: object) -> Iterator[None]:
            raise error
            yield

        monkeypatch.setattr(cli_model, "loaded_model", fake)

    return fail_with


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


# --- chat ---


def test_one_question_about_a_picture_prints_its_answer(loaded: dict[str, Any], picture: Path, capsys: pytest.CaptureFixture[str]):
    assert run("chat", picture, "What", "is this?", "--temperature", "0.5", "--top-p", 0.9, "--seed", 7, "--max-new-tokens", 50) == 0
    assert capsys.readouterr().out == "You said What is this?\n"
    conversation, params = loaded["model"].calls[0]
    assert conversation.images[0].source == picture
    assert (params.temperature, params.top_p, params.seed, params.max_new_tokens) == (0.5, 0.9, 7, 50)
    assert (loaded["name"], loaded["dtype"], loaded["deterministic"]) == ("assistant", "auto", False)


def test_json_and_the_choice_of_model_are_passed_on(loaded: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    assert run("chat", "--json", "-m", "some/model", "--dtype", "float32", "--deterministic", "--template", "vicuna_v1", "Hi") == 0
    assert json.loads(capsys.readouterr().out)["answer"] == "You said Hi"
    assert (loaded["name"], loaded["dtype"], loaded["deterministic"]) == ("some/model", "float32", True)
    assert (loaded["base"], loaded["template"]) == (None, "vicuna_v1")


def test_each_line_of_a_pipe_is_a_question(loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    assert run("chat") == 0
    assert capsys.readouterr().out == "You said one\nYou said two\n"


def test_a_missing_picture_is_reported_before_any_model_is_loaded(loaded: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    assert run("chat", "no-such.jpg", "What?") == 12
    assert "no-such.jpg" in capsys.readouterr().err
    assert "name" not in loaded


def test_the_demo_says_which_answers_are_right(
    loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "demo").mkdir()
    rows = [
        {"picture": "cat.jpg", "question": "A cat?", "answers": ["cat", "kitten"]},
        {"picture": "b.png", "question": "Bee?", "answers": ["be"]},
    ]
    (tmp_path / "demo" / "demo.json").write_text(json.dumps(rows))
    monkeypatch.setattr(cli, "ASSETS", tmp_path)
    assert run("demo") == 0
    out = capsys.readouterr().out
    assert "cat.jpg: A cat?\n  You said A cat?\n  right, expected: cat or kitten" in out
    assert "WRONG, expected: be\n" in out  # "Bee" contains "be", but not as a word
    assert out.endswith("1 of 2 answers are right.\n")


# --- mistakes ---


def test_an_error_of_ours_is_one_paragraph_with_its_own_exit_code(capsys: pytest.CaptureFixture[str]):
    assert run("train", "llava_v1_5_7b_pretrian") == 11
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: There is no recipe called 'llava_v1_5_7b_pretrian'. Did you mean 'llava_v1_5_7b_pretrain'?")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (["chat", "--template", "vicuna_v2", "Hi"], 11, "vicuna_v1"),
        (["chatt"], 2, "Did you mean 'chat'?"),
        (["chat", "--modle", "x"], 2, "--model"),
        (["chat", "--dtype", "int3", "Hi"], 2, "bfloat16"),
        (["chat", "--max-new-tokens", "0", "Hi"], 2, "greater than or equal to 1"),
        (["train"], 2, "smol_tune"),
        (["train", "smol_tune", "--set", "optim.learning_rate=1", "--show"], 11, "optim.lr"),
        (["train", "smol_tune", "--set", "optim.lr=fast", "--show"], 2, "optim.lr"),
        (["train", "smol_tune", "--set", "epochs", "--show"], 2, "--set epochs=VALUE"),
        (["pull", "smollm"], 11, "smollm2-135m-instruct"),
        (["pull", "no/such/folder"], 13, "no/such/folder"),
        (["convert", "no-such.bin", "out.safetensors"], 2, "no-such.bin"),
        (["data", "check", "no-such.json"], 21, "no-such.json"),
        (["data", "scenes"], 2, "--out"),
        (["eval", "scenes-v2"], 11, "Did you mean 'scenes-v1'?"),
        (["eval", "text-only", "--blind"], 2, "leave --blind"),
        (["eval", "scenes-v1", "--model", "no/such/folder"], 13, "no/such/folder"),
    ],
)
def test_a_mistake_has_a_code_and_a_hint(arguments: list[str], code: int, hint: str, capsys: pytest.CaptureFixture[str]):
    assert run(*arguments) == code
    error = capsys.readouterr().err
    assert hint in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("error", "code", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 4, "The disk is full (/x/y)"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 4, "/x/y"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x/y"), 2, "check the path"),
        (MemoryError(), 7, "ran out of memory"),
        (VistuneError("what, why, fix"), 1, "error: what, why, fix"),
        (KeyboardInterrupt(), INTERRUPTED, ""),
    ],
)
def test_the_systems_errors_are_explained(
    error: BaseException, code: int, hint: str, failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
):
    failing(error)
    assert run("chat", "Hi") == code
    assert hint in capsys.readouterr().err


def test_a_bug_and_debug_show_the_traceback(failing: Callable[[BaseException], None]):
    failing(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        run("chat", "Hi")
    failing(VistuneError("explained"))
    with pytest.raises(VistuneError):
        run("chat", "Hi", "--debug")


def test_a_reader_that_goes_away_is_no_reason_for_a_traceback():
    command = [sys.executable, "-m", "vistune", "train", "--list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(30) == BROKEN_PIPE
        assert process.stderr.read() == ""


# --- the other verbs ---


def test_recipes_and_their_settings_are_listed(capsys: pytest.CaptureFixture[str]):
    assert run("train", "--list") == 0
    assert "llava_v1_5_7b_finetune_lora" in capsys.readouterr().out
    assert run("train", "--show", "smol_tune", "--set", "optim.lr=3e-4") == 0
    shown = capsys.readouterr().out
    assert "optim.lr=0.0003\n" in shown
    assert "trainable=projector,lora\n    Exactly these parts change." in shown


def test_data_check_counts_the_rows_that_cannot_be_used(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def row(image: str, answer: str) -> dict[str, Any]:
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": answer}]
        return {"id": image, "image": image, "conversations": turns}

    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row(picture.name, "A cat.")]))
    assert run("data", "check", file) == 0
    assert capsys.readouterr().out == "1 rows can be used.\n"

    file.write_text(json.dumps([row(picture.name, "A cat."), row("gone.png", "A dog."), row(picture.name, " ")]))
    report = tmp_path / "report.json"
    assert run("data", "check", file, "--images", tmp_path, "--report", report) == 21
    captured = capsys.readouterr()
    assert "row 1: image_missing" in captured.out
    assert "1 image_missing, 1 empty_answer" in captured.err
    assert [each["row"] for each in json.loads(report.read_text())["rejected"]] == [1, 2]


def test_data_check_shows_what_a_model_would_learn_from_the_rows(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_model(*tiny_llava(), tmp_path / "model")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"id": "first", "image": picture.name, "conversations": turns}]))
    assert run("data", "check", file, "--preview", tmp_path / "model") == 0
    shown = capsys.readouterr().out
    assert "--- first: " in shown
    assert "[picture: 16 tokens]" in shown
    assert "ASSISTANT: ⟦A cat.</s>⟧" in shown


def test_scenes_are_drawn_into_a_folder_that_data_check_accepts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "scenes"
    assert run("data", "scenes", "--out", folder, "-n", 2, "--seed", 5, "--turns", 3) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    rows = json.loads((folder / "instruct.json").read_text())
    assert [len(row["conversations"]) for row in rows] == [6, 6]
    assert run("data", "check", folder / "instruct.json") == 0
    assert run("data", "scenes", "--out", folder, "-n", 2) == 4  # nothing is overwritten


@pytest.fixture
def tiny_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A benchmark of two questions, and a folder that stands for a model."""
    asked = [Question(word, Conversation(()).then("user", word), (f"You said {word}",), (), "echo") for word in ("one", "two")]
    monkeypatch.setitem(BENCHMARKS, "echoes", benchmark_of("echoes", asked))
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def test_eval_prints_a_table_and_writes_answers_and_result(
    loaded: dict[str, Any], tiny_benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert run("eval", "echoes", "-m", tiny_benchmark, "--out", out, "--limit", 1) == 0
    assert run("eval", "echoes", "-m", tiny_benchmark, "--out", out, "--concurrency", 1, "--template", "vicuna_v1") == 0
    assert "1.000" in capsys.readouterr().out
    assert (loaded["name"], loaded["deterministic"], loaded["template"]) == (str(tiny_benchmark), True, "vicuna_v1")
    assert loaded["model"].max_active == 1
    written = json.loads((out / "echoes.json").read_text())
    assert (written["metrics"][0]["value"], written["n"], written["arithmetic"]) == (1.0, 2, "scripted")
    assert {path.name for path in out.glob("echoes.*")} == {
        *("echoes.json", "echoes.jsonl", "echoes.answers"), *("echoes.first-1.json", "echoes.first-1.jsonl", "echoes.first-1.answers")
    }  # fmt: skip


def test_answers_of_a_folder_that_has_changed_are_not_taken_for_its_own(
    loaded: dict[str, Any], tiny_benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("eval", "echoes", "-m", tiny_benchmark, "--out", tmp_path) == 0
    (tiny_benchmark / "README.md").write_text("a card is no part of the model")
    assert run("eval", "echoes", "-m", tiny_benchmark, "--out", tmp_path) == 0
    (tiny_benchmark / "config.json").write_text("{}")
    assert run("eval", "echoes", "-m", tiny_benchmark, "--out", tmp_path) == 3
    assert "different: model" in capsys.readouterr().err


def test_results_go_to_a_folder_per_model_unless_told_otherwise(
    loaded: dict[str, Any], tiny_benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert run("eval", "echoes", "-m", tiny_benchmark) == 0
    (tiny_benchmark / "config.json").write_text("{}")
    assert run("eval", "echoes", "-m", tiny_benchmark) == 0
    assert len(list(tmp_path.glob("runs/eval/model-*/echoes.json"))) == 2


def test_text_only_writes_base_and_tuned_side_by_side(loaded: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("eval", "text-only", "--out", tmp_path / "out") == 0
    text = (tmp_path / "out" / "text-only.md").read_text()
    assert text.count("**Base**\n\n> You said ") == text.count("**Tuned**\n\n> You said ") == 20
    assert capsys.readouterr().out.strip() == text.strip()


def test_the_list_of_eval_says_of_every_benchmark_where_its_data_belongs(capsys: pytest.CaptureFixture[str]):
    assert run("eval", "--list") == 0
    listed = capsys.readouterr().out
    for name, benchmark in BENCHMARKS.items():
        assert f"{name}: {benchmark.about.title}" in listed
        assert all(f"ROOT/{name}/{line}" in listed for line in benchmark.about.layout.splitlines())
        assert all(f"protocol {protocol.id}: " in listed for protocol in benchmark.protocols)


def test_a_model_is_measured_on_benchmarks_of_ones_own(loaded: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "model").mkdir()
    rows = [{"benchmark": "mine", "scorer": "contains"}, {"id": "1", "question": "Say hay", "answer": "hay"}]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("eval", tmp_path / "model", "--benchmarks", tmp_path / "mine.jsonl", "--out", tmp_path / "a") == 0
    assert "100.00" in capsys.readouterr().out
    assert run("eval", "check", tmp_path / "mine.jsonl") == 0
    assert capsys.readouterr().out == "mine (contains): 1 questions about 0 pictures\n"
    assert run("eval", "compare", tmp_path / "a", tmp_path / "a", "--html", tmp_path / "p.html", "--own", tmp_path / "mine.jsonl") == 0
    assert "better: A on 0 questions, B on 0; the same on 1" in capsys.readouterr().out
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (["eval", "scenes-v1", "--protocol", "scenes-v1=loud"], 11, "protocol of scenes-v1"),
        (["eval", "scenes-v1", "--protocol", "pope=lmms"], 2, "NAME=ID"),
        (["eval", "http://127.0.0.1:9/v1", "--benchmarks", "scenes-v1"], 2, "--model-name"),
        (["eval", "assistant", "--benchmarks", "scenes-v1", "--model-name", "x"], 2, "no address"),
        (["eval", "assistant", "--benchmarks", "scenes-v1", "-m", "other"], 2, "Which model"),
        (["eval"], 2, "Which benchmarks"),
        (["eval", "compare", "gone", "lost"], 2, "no results of the same name"),
    ],
)
def test_a_mistake_with_eval_is_said_before_a_model_is_loaded(
    arguments: list[str], code: int, hint: str, loaded: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    assert run(*arguments) == code
    assert hint in capsys.readouterr().err
    assert "name" not in loaded


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]):
    from vistune import __version__

    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == __version__
