"""`vistune datagen` as a user meets it: what it prints, what it refuses, and the way through batch files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.datagen.runs import config_for, good_reply, rejects_of, rows_of, write_photos

from vistune.__main__ import main
from vistune.datagen.command import chosen, teacher_named
from vistune.datagen.tally import SAMPLES
from vistune.errors import UsageError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("all", ("a", "b", "c")),
        ("none", ()),
        ("c,a", ("a", "c")),
        ("all,-b", ("a", "c")),
        ("-b", ("a", "c")),
        (" a , b ", ("a", "b")),
        ("a,folder/of/mine", ("a", "folder/of/mine")),
        ("-d", ("a", "b", "c", "d")),  # refused by its name later, like any other stranger
    ],
)
def test_a_comma_list_names_all_none_some_or_all_but_some(text: str, names: tuple[str, ...]):
    assert chosen(text, ("a", "b", "c")) == names


def test_a_list_that_names_nothing_is_refused():
    with pytest.raises(UsageError, match="names nothing"):
        chosen(" , ", ("a",))


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("http://localhost:8000/v1", {}, "--server http://localhost:8000/v1"),
        ("template", {"server": "http://localhost:8000/v1"}, "built in"),
        ("template", {"server": None, "batch": [Path("results.jsonl")]}, "built in"),
    ],
)
def test_a_teacher_and_a_server_that_do_not_go_together_are_refused(name: str, options: dict[str, Any], told: str):
    with pytest.raises(UsageError, match=told):
        teacher_named(name, **{"server": None, **options})


def test_scenes_become_data_with_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    out = Path("out")
    assert main(["datagen", "scenes", "-n", "4", "--out", str(out)]) == 0
    printed, said = capsys.readouterr()
    rows = rows_of(out)
    assert f"{len(rows)} rows" in printed
    assert "of it for drawing" in printed
    assert str(out / "instruct.json") in printed
    assert said == ""
    assert {row["kind"] for row in rows} >= {"conversation", "detail"}
    assert all((out / row["image"]).is_file() for row in rows)
    assert (out / "report.html").read_text(encoding="utf-8").count('src="data:image/jpeg') == min(len(rows), SAMPLES)
    assert main(["datagen", "scenes", "-n", "4", "--out", str(out)]) == 0
    assert "complete already" in capsys.readouterr().out


def test_photos_with_captions_become_data_with_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    annotations = write_photos(tmp_path / "photos", 5)
    assert main(["datagen", "jsonl", str(annotations), "--out", str(tmp_path / "out"), "--licence", "my own"]) == 0
    rows = rows_of(tmp_path / "out")
    assert len(rows) >= 5
    assert {row["provenance"]["licence"] for row in rows} == {"my own"}
    assert main(["data", "check", str(tmp_path / "out" / "instruct.json"), "--images", str(tmp_path / "photos")]) == 0


def test_the_list_names_everything_that_can_be_chosen(capsys: pytest.CaptureFixture[str]):
    assert main(["datagen", "--list"]) == 0
    printed = capsys.readouterr().out
    for name in ("coco", "jsonl", "conversation", "reasoning", "scaffolding", "near_duplicate", "sharegpt"):
        assert f"  {name} " in printed


def test_a_prompt_is_shown_as_it_would_be_sent_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    annotations = write_photos(tmp_path / "photos", 3)
    assert main(["datagen", "jsonl", str(annotations), "--show-prompt", "2", "--kinds", "detail", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("=== detail ===\n--- system ---\n")
    assert "> A horse number 2 stands on the grass." in printed
    assert "> horse: [0.125, 0.167, 0.625, 0.833]" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_a_batch_goes_out_and_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    annotations = write_photos(tmp_path / "photos", 4)
    arguments = ["datagen", "jsonl", str(annotations), "--teacher", "gpt", "--kinds", "conversation", "--out", str(tmp_path / "out")]
    requests, results, rest = (tmp_path / name for name in ("requests.jsonl", "results.jsonl", "rest.jsonl"))
    assert main([*arguments, "--write-batch", str(requests)]) == 0
    assert "4 requests" in capsys.readouterr().out
    lines = [json.loads(line) for line in requests.read_text().splitlines()]
    with results.open("w") as file:
        for number, line in enumerate(lines[:3]):
            message = {"role": "assistant", "content": good_reply(number)}
            body = {
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 9, "completion_tokens": 5},
            }
            response = {"status_code": 200, "body": body}
            file.write(json.dumps({"custom_id": line["custom_id"], "response": response, "error": None}) + "\n")
    assert main([*arguments, "--write-batch", str(rest), "--read-batch", str(results)]) == 0
    assert [json.loads(line)["custom_id"] for line in rest.read_text().splitlines()] == [lines[3]["custom_id"]]
    assert main([*arguments, "--read-batch", str(results)]) == 0
    assert [row["image"] for row in rows_of(tmp_path / "out")] == ["0000.jpg", "0001.jpg", "0002.jpg"]
    (reject,) = rejects_of(tmp_path / "out")
    assert (reject["image"], reject["reason"]) == ("0003.jpg", "teacher_error")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["scenes"], 2, "Give -n"),
        (["scenes", "-n", "3", "--images", "x"], 2, "leave --images out"),
        (["scenes", "--show-prompt", "1"], 2, "Give -n"),
        (["scenes", "-n", "2", "--show-prompt", "1"], 2, "vistune data scenes"),
        (["cocoo", "a.json"], 11, "Did you mean 'coco'"),
        ([], 2, "--list"),
        (["jsonl"], 2, "Where are the annotations?"),
        (["jsonl", "nowhere.jsonl"], 21, "nowhere.jsonl"),
        (["jsonl", "PHOTOS", "--kinds", "detailed"], 11, "detail"),
        (["jsonl", "PHOTOS", "--filters", "-scafolding"], 11, "scaffolding"),
        (["jsonl", "PHOTOS", "--format", "coco"], 11, "llava"),
        (["jsonl", "PHOTOS", "--cap", "1"], 2, "--price-in"),
        (["jsonl", "PHOTOS", "--price-in", "1"], 2, "--price-out"),
        (["jsonl", "PHOTOS", "--images", "nowhere"], 21, "nowhere"),
        (["jsonl", "PHOTOS", "--write-batch", "b.jsonl"], 2, "--teacher"),
        (["jsonl", "PHOTOS", "--teacher", "m", "--read-batch", "none.jsonl"], 21, "none.jsonl"),
        (["jsonl", "PHOTOS", "--teacher", "m", "--server", "http://127.0.0.1:9/v1"], 24, "cannot be reached"),
    ],
)
def test_each_mistake_is_one_paragraph_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, told: str
):
    photos = config_for(tmp_path).annotations[0]
    monkeypatch.chdir(tmp_path)
    assert main(["datagen", *(str(photos) if each == "PHOTOS" else each for each in arguments)]) == code
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said
