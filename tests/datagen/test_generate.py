"""The run of the data engine: what comes out, in which order, and what a run that was stopped goes on from."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.datagen.annotation_files import write_lines
from tests.datagen.runs import config_for, good_reply, number_of, rejects_of, rows_of, teacher

from vistune.calls import CallLimits, Price
from vistune.chat_model import ScriptedChatModel
from vistune.datagen import generate
from vistune.datagen.config import DatagenConfig
from vistune.datagen.generate import batch_requests, find_items, run_datagen
from vistune.datagen.teacher import kind_named
from vistune.errors import (
    ContextLengthError,
    CostCapReached,
    DataError,
    Locked,
    RemoteError,
    ResumeMismatch,
    SaveError,
    UnknownName,
    UsageError,
)
from vistune.formats import read_examples
from vistune.journal import Journal
from vistune.types import Conversation, Delta, Reply, SamplingParams


class UnhurriedTeacher:
    """Answers well, in an order of its own."""

    def __init__(self, seed: int):
        self._draw = random.Random(seed)

    async def generate(self, conversation: Conversation, params: SamplingParams) -> Reply:
        await asyncio.sleep(self._draw.random() / 100)
        return Reply(good_reply(number_of(conversation)), "stop", prompt_tokens=100, completion_tokens=20)

    async def stream(self, conversation: Conversation, params: SamplingParams):
        reply = await self.generate(conversation, params)
        yield Delta(reply.text, reply)


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_leaves_one_folder_with_rows_rejects_card_report_log_and_settings(tmp_path: Path):
    result = run_datagen(config_for(tmp_path), teacher())
    assert files_of(tmp_path / "out") == {"instruct.json", "rejects.jsonl", "README.md", "report.html", "calls.log", "run.json"}
    assert files_of(tmp_path) == {"photos", "out"}
    assert result.rows == tmp_path / "out" / "instruct.json"
    assert len(rows_of(result.folder)) == result.page["counts"]["rows"] == 6


@pytest.mark.parametrize("seed", range(3))
def test_rows_stand_in_the_order_of_the_source_whatever_answers_first(tmp_path: Path, seed: int):
    folder = run_datagen(config_for(tmp_path, 30), UnhurriedTeacher(seed)).folder
    rows = rows_of(folder)
    assert [row["image"] for row in rows] == [f"{number:04}.jpg" for number in range(30)]
    again = run_datagen(replace(config_for(tmp_path, 30), out=tmp_path / "again"), UnhurriedTeacher(seed + 100)).folder
    assert (again / "instruct.json").read_bytes() == (folder / "instruct.json").read_bytes()
    assert (again / "rejects.jsonl").read_bytes() == (folder / "rejects.jsonl").read_bytes()


def test_a_row_says_where_it_comes_from(tmp_path: Path):
    config = config_for(tmp_path, licence="CC0")
    provenance = rows_of(run_datagen(config, teacher()).folder)[2]["provenance"]
    assert provenance["image_sha256"] == hashlib.sha256((tmp_path / "photos" / "0002.jpg").read_bytes()).hexdigest()
    assert (provenance["source"], provenance["licence"], provenance["teacher"]) == ("jsonl", "CC0", "scripted")
    assert len(provenance["prompt_sha256"]) == 64
    assert provenance["filters_passed"] == list(config.filters)


@pytest.mark.parametrize(("format", "file"), [("llava", "instruct.json"), ("sharegpt", "sharegpt.json"), ("messages", "messages.parquet")])
def test_every_format_can_be_read_back_with_its_provenance(tmp_path: Path, format: str, file: str):
    if format == "messages":
        pytest.importorskip("pyarrow")
    folder = run_datagen(config_for(tmp_path, format=format), teacher()).folder
    examples = list(read_examples(folder / file, tmp_path / "photos"))
    assert len(examples) == 6
    assert all(example.provenance["teacher"] == "scripted" and len(example.conversation.images) == 1 for example in examples)


def test_several_kinds_are_asked_about_each_picture(tmp_path: Path):
    text = "A dog stands on the grass and looks about. " * 3

    def script(conversation: Conversation, params: SamplingParams) -> str:
        return good_reply(0) if conversation.messages[0].text == kind_named("conversation").system else text

    config = config_for(tmp_path, 2, kinds=("detail", "conversation"), filters=())
    rows = rows_of(run_datagen(config, ScriptedChatModel(script, piece_size=1000)).folder)
    assert [row["kind"] for row in rows] == ["detail", "conversation"] * 2


# --- replies that are no rows ---


def test_a_malformed_reply_is_asked_for_once_more_and_no_more(tmp_path: Path):
    def script(conversation: Conversation, params: SamplingParams) -> str:
        return "Here you are!" if len(conversation.messages) % 2 == 0 else "Still no form."

    model = ScriptedChatModel(script, piece_size=1000)
    with pytest.raises(DataError, match=r"Not one usable row.*6 wrong_shape"):
        run_datagen(config_for(tmp_path), model)
    assert len(model.calls) == 12
    model = teacher(lambda number: "Here you are!" if number == 3 else None)
    folder = run_datagen(config_for(tmp_path, out=tmp_path / "other"), model).folder
    assert len(model.calls) == 7
    assert len(rows_of(folder)) == 6
    assert json.loads((folder / "run.json").read_text())["counts"]["repaired"] == 1


def test_rejects_keep_the_raw_reply_and_the_reason(tmp_path: Path):
    said = {
        1: "I'm sorry, but I cannot help with that.",
        2: good_reply(2).replace("with the number", "as the caption says, with the number"),
    }
    folder = run_datagen(config_for(tmp_path), teacher(said.get)).folder
    refused, leaked = rejects_of(folder)
    assert (refused["image"], refused["kind"], refused["reason"], refused["reply"]) == ("0001.jpg", "conversation", "refusal", said[1])
    assert (leaked["reason"], leaked["reply"]) == ("scaffolding", said[2])
    assert leaked["message"] == leaked["objections"]["scaffolding"]
    assert len(rows_of(folder)) == 4


def test_a_filter_that_is_switched_off_drops_nothing(tmp_path: Path):
    said = {2: good_reply(2).replace("with the number", "as the caption says, with the number")}
    config = config_for(tmp_path)
    kept = replace(config, filters=tuple(name for name in config.filters if name != "scaffolding"))
    assert len(rows_of(run_datagen(kept, teacher(said.get)).folder)) == 6


def test_of_two_equal_rows_the_first_in_the_source_stays(tmp_path: Path):
    write_lines(tmp_path / "photos.jsonl", [])
    config = config_for(tmp_path, 4)
    row = json.loads(config.annotations[0].read_text().splitlines()[0])
    long = " ".join(f"It has a part called {number} that can be seen well." for number in range(12))
    same = good_reply(0).replace("on it.", f"on it. {long}")
    folder = run_datagen(replace(config, filters=("exact_duplicate",)), teacher(lambda number: same)).folder
    assert [found["image"] for found in rows_of(folder)] == [row["image"]]
    assert {reject["reason"] for reject in rejects_of(folder)} == {"exact_duplicate"}


def test_rows_of_the_source_that_cannot_be_used_are_rejects_too(tmp_path: Path):
    config = config_for(tmp_path)
    with config.annotations[0].open("a") as file:
        file.write('{"image": "gone.jpg", "captions": ["A dog."]}\nnot json\n')
    folder = run_datagen(config, teacher()).folder
    assert [reject["reason"] for reject in rejects_of(folder)] == ["source_image_missing", "source_not_json"]
    assert len(rows_of(folder)) == 6


def test_a_request_that_fails_by_itself_is_a_reject(tmp_path: Path):
    said = {
        1: RemoteError("Too rude.", status=400),
        2: RemoteError("Withheld.", status=200, code="content_filter"),
        3: ContextLengthError("Too long."),
    }
    folder = run_datagen(config_for(tmp_path), teacher(said.get)).folder
    assert [(each["image"], each["reason"]) for each in rejects_of(folder)] == [(f"{n:04}.jpg", "teacher_error") for n in (1, 2, 3)]


# --- failures that stop the run ---


def test_a_wrong_key_stops_at_once_and_says_so(tmp_path: Path):
    model = teacher(lambda number: RemoteError("Invalid key.", status=401))
    config = config_for(tmp_path, 50, limits=CallLimits(concurrency=4))
    with pytest.raises(RemoteError, match="Invalid key"):
        run_datagen(config, model)
    assert len(model.calls) <= 4
    assert not config.out.exists()


def test_a_teacher_that_refuses_everything_from_the_start_rejects_nobody(tmp_path: Path):
    model = teacher(lambda number: RemoteError("Unknown parameter.", status=400))
    with pytest.raises(RemoteError, match=r"20 requests in a row.*Unknown parameter"):
        run_datagen(config_for(tmp_path, 60), model)
    assert len(model.calls) < 60


def test_pages_instead_of_replies_stop_the_run_even_after_good_ones(tmp_path: Path):
    page = RemoteError("no chat completion", status=200, body="<html>Bad Gateway</html>")
    config = config_for(tmp_path, 80, limits=CallLimits(concurrency=4, backoff=0.001, max_backoff=0.002))
    with pytest.raises(RemoteError, match="in a row"):
        run_datagen(config, teacher(lambda number: page if number > 20 else None))
    assert not config.out.exists()


def test_the_cap_stops_the_run_and_a_higher_one_goes_on_with_it(tmp_path: Path):
    config = config_for(tmp_path, 20, price=Price(0.0, 10.0), cap=0.004, limits=CallLimits(concurrency=2))
    first = UnhurriedTeacher(0)
    with pytest.raises(CostCapReached):
        run_datagen(config, first)
    answered = sum(record["event"] == "answer" for record in journal(config.unfinished / "calls.log"))
    assert 0 < answered < 20
    second = CountingTeacher()
    folder = run_datagen(replace(config, cap=10.0), second).folder
    assert second.calls == 20 - answered
    assert len(rows_of(folder)) == 20


def journal(path: Path) -> list[dict[str, Any]]:
    with Journal(path) as log:
        return list(log)


class CountingTeacher(UnhurriedTeacher):
    def __init__(self) -> None:
        super().__init__(0)
        self.calls = 0

    async def generate(self, conversation: Conversation, params: SamplingParams) -> Reply:
        self.calls += 1
        return await super().generate(conversation, params)


# --- stopping and going on ---


def test_a_run_that_failed_goes_on_without_asking_again_and_ends_as_if_never_stopped(tmp_path: Path):
    config = config_for(tmp_path, 20, limits=CallLimits(concurrency=3, max_attempts=1, backoff=0.001))
    whole = run_datagen(replace(config, out=tmp_path / "whole"), UnhurriedTeacher(1)).folder
    with pytest.raises(RemoteError):
        run_datagen(config, teacher(lambda number: RemoteError("Payment required", status=402) if number == 12 else None))
    answered = sum(record["event"] == "answer" for record in journal(config.unfinished / "calls.log"))
    assert answered >= 9
    going_on = CountingTeacher()
    folder = run_datagen(config, going_on).folder
    assert going_on.calls == 20 - answered
    assert (folder / "instruct.json").read_bytes() == (whole / "instruct.json").read_bytes()


def test_a_finished_run_is_not_repeated(tmp_path: Path):
    config = config_for(tmp_path)
    run_datagen(config, teacher())
    model = teacher()
    result = run_datagen(config, model)
    assert model.calls == []
    assert result.tally is None
    assert result.page["counts"]["rows"] == 6


def no_money_after_two(number: int) -> RemoteError | None:
    return RemoteError("no money", status=402) if number > 1 else None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"temperature": 0.1}, "temperature: 0.7, now 0.1"),
        ({"kinds": ("detail",)}, "kinds"),
        ({"filters": ()}, "filters"),
        ({"seed": 4}, "seed"),
    ],
)
def test_other_settings_are_refused_by_name_whether_begun_or_finished(tmp_path: Path, changes: dict[str, Any], named: str):
    config = config_for(tmp_path)
    with pytest.raises(RemoteError):
        run_datagen(config, teacher(no_money_after_two))
    with pytest.raises(ResumeMismatch, match=named):
        run_datagen(replace(config, **changes), teacher())
    run_datagen(config, teacher())
    with pytest.raises(ResumeMismatch, match=named):
        run_datagen(replace(config, **changes), teacher())


def test_a_run_that_was_never_answered_may_begin_anew_with_other_settings(tmp_path: Path):
    config = config_for(tmp_path)
    with pytest.raises(RemoteError):
        run_datagen(config, teacher(lambda number: RemoteError("no", status=401)))
    assert len(rows_of(run_datagen(replace(config, temperature=0.1), teacher()).folder)) == 6


def test_changed_annotations_are_other_settings(tmp_path: Path):
    config = config_for(tmp_path)
    with pytest.raises(RemoteError):
        run_datagen(config, teacher(no_money_after_two))
    config.annotations[0].write_text(config.annotations[0].read_text().replace("grass", "lawn"))
    with pytest.raises(ResumeMismatch, match="annotations"):
        run_datagen(config, teacher())


def test_fewer_pictures_may_be_asked_about_to_finish_a_run(tmp_path: Path):
    config = config_for(tmp_path, 20)
    with pytest.raises(RemoteError):
        run_datagen(config, teacher(lambda number: RemoteError("no money", status=402) if number > 9 else None))
    assert len(rows_of(run_datagen(replace(config, limit=5), teacher()).folder)) == 5


def test_two_runs_into_one_folder_are_refused(tmp_path: Path):
    config = config_for(tmp_path)
    config.unfinished.mkdir()
    with Journal(config.unfinished / "calls.log"), pytest.raises(Locked):
        run_datagen(config, teacher())


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path):
    config = config_for(tmp_path)
    config.out.mkdir()
    (config.out / "thesis.txt").write_text("mine")
    with pytest.raises(SaveError, match="not a run"):
        run_datagen(config, teacher())
    assert files_of(config.out) == {"thesis.txt"}


def test_an_empty_folder_may_be_there(tmp_path: Path):
    config = config_for(tmp_path)
    config.out.mkdir()
    assert len(rows_of(run_datagen(config, teacher()).folder)) == 6


# --- what to ask ---


def test_scenes_are_drawn_into_the_output_and_named_from_it(tmp_path: Path):
    config = DatagenConfig("scenes", tmp_path / "out", kinds=("conversation",), limit=3, teacher="scripted", filters=())
    model = ScriptedChatModel(lambda conversation, params: good_reply(0), piece_size=1000)
    folder = run_datagen(config, model).folder
    rows = rows_of(folder)
    assert [row["image"] for row in rows] == [f"scenes/images/{number:06}.jpg" for number in range(3)]
    assert all((folder / row["image"]).is_file() for row in rows)


def test_only_the_first_pictures_are_read_where_a_limit_is_set(tmp_path: Path):
    model = teacher()
    run_datagen(config_for(tmp_path, 10, limit=4), model)
    assert sorted(number_of(conversation) for conversation, _ in model.calls) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["0003.jpg", "0003", "3"])
def test_a_picture_is_found_by_its_name_or_number(tmp_path: Path, name: str):
    (item,) = find_items(config_for(tmp_path), name)
    assert item.annotations.image == "0003.jpg"


def test_an_unknown_picture_is_told_with_some_that_are_there(tmp_path: Path):
    with pytest.raises(DataError, match=r"no picture 'x\.jpg'.*0000\.jpg, 0001\.jpg"):
        find_items(config_for(tmp_path), "x.jpg")


def test_the_requests_of_a_batch_are_those_of_the_run(tmp_path: Path):
    config = config_for(tmp_path)
    model = teacher()
    run_datagen(config, model)
    assert sorted(map(repr, batch_requests(config))) == sorted(map(repr, model.calls))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"source": "cocoa"}, UnknownName),
        ({"kinds": ("converation",)}, UnknownName),
        ({"kinds": ()}, UsageError),
        ({"filters": ("lenght",)}, UnknownName),
        ({"format": "csv"}, UnknownName),
        ({"annotations": ()}, UsageError),
        ({"cap": 1.0}, UsageError),
        ({"source": "scenes", "annotations": ()}, UsageError),
        ({"annotations": (Path("nowhere.json"),)}, DataError),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(tmp_path: Path, changes: dict[str, Any], error: type[Exception]):
    config = replace(config_for(tmp_path), **changes)
    with pytest.raises(error):
        run_datagen(config, teacher())
    assert files_of(tmp_path) == {"photos"}


def test_memory_stays_bounded_however_long_the_source_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = config_for(tmp_path, 1, limits=CallLimits(concurrency=2))
    read = settled = furthest = 0
    (only,) = generate.read_items(config)

    def endless(*_: object, **__: object):
        nonlocal read
        for _ in range(200):
            read += 1
            yield only

    def count(*_: object) -> None:
        nonlocal settled, furthest
        settled += 1
        furthest = max(furthest, read - settled)

    monkeypatch.setattr(generate, "read_items", endless)
    run_datagen(config, teacher(), progress=count)
    assert settled == 200
    assert furthest <= generate.AHEAD * 2
