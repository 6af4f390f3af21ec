"""LLaVA JSON ⇄ messages ⇄ ShareGPT: whatever is written is read back equal, and what cannot be is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.instruction_data import ROOT, examples, row, write_picture, write_rows

from vistune.errors import DataError, EmptyAnswerError, ImageCountError, UnknownName, UsageError
from vistune.formats import (
    FORMATS,
    ImageBytes,
    dataset_info,
    example_from_messages,
    example_from_row,
    example_from_sharegpt,
    example_to_llava,
    example_to_messages,
    example_to_sharegpt,
    format_of,
    read_examples,
    read_rows,
    spells_mark,
    write_examples,
)
from vistune.types import Conversation, ImagePart, InstructionExample, Message, TextPart, VideoPart


def through(example: InstructionExample, name: str) -> InstructionExample:
    """The record after a row of this format went through JSON, read by whatever the row itself looks like."""
    written = json.loads(json.dumps(FORMATS[name].to_row(example, ROOT)))
    read = example_from_row(written, ROOT)
    assert FORMATS[name].from_row(written, ROOT) == read
    return read


@given(st.permutations(list(FORMATS)), examples())
@settings(max_examples=200)
def test_a_record_survives_all_three_formats_in_any_order(order: list[str], example: InstructionExample):
    for name in order:
        assert through(example, name) == example


@pytest.mark.nightly
def test_ten_thousand_datasets_survive_every_way_around_as_files(tmp_path_factory: pytest.TempPathFactory, monkeypatch):
    folder = tmp_path_factory.mktemp("datasets")
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # 30,000 waits for the disk would say nothing about formats

    @given(st.lists(examples(), max_size=3), st.permutations(("a.json", "b.parquet", "c.jsonl")))
    @settings(max_examples=10_000, suppress_health_check=list(HealthCheck))
    def survive(dataset: list[InstructionExample], files: list[str]):
        current = dataset
        for name in files:
            write_examples(current, folder / name, ROOT, {".json": "llava", ".parquet": "messages", ".jsonl": "sharegpt"}[name[1:]])
            current = list(read_examples(folder / name, ROOT))
            assert current == dataset

    pytest.importorskip("pyarrow")
    survive()


@given(st.lists(examples(), max_size=3))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize(
    ("file", "name"), [("a.json", "llava"), ("a.jsonl", "sharegpt"), ("b.json", "messages"), ("a.parquet", "messages")]
)
def test_files_of_records_are_read_back(tmp_path: Path, file: str, name: str, dataset: list[InstructionExample]):
    if file.endswith("parquet"):
        pytest.importorskip("pyarrow")
    assert write_examples(dataset, tmp_path / file, ROOT, name) == len(dataset)
    assert list(read_examples(tmp_path / file, ROOT)) == dataset


# --- rows as other tools write them ---


def test_a_llava_row_keeps_the_columns_that_mean_nothing_here():
    raw = row(id="7", model="gpt-4", source={"page": 3}, kind="detail", provenance={"licence": "CC0"})
    example = example_from_row(raw, ROOT)
    assert example.provenance == {"licence": "CC0", "fields": {"model": "gpt-4", "source": {"page": 3}}}
    for name in FORMATS:
        assert example_to_llava(through(example, name), ROOT) == raw


@pytest.mark.parametrize("system", [{"system": "Be brief."}, {}])
def test_a_sharegpt_row_of_llama_factory_is_read(system: dict[str, str]):
    turns = [{"from": "system", "value": "Be brief."}] * (not system)
    turns += [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cat."}]
    example = example_from_row({"images": ["cat.png"], **system, "conversations": turns}, ROOT, row_number=4)
    assert example.id == "4"
    assert example.conversation.messages[:2] == (
        Message("system", (TextPart("Be brief."),)),
        Message("user", (ImagePart(ROOT / "cat.png"), TextPart("What?"))),
    )


def test_a_row_of_ms_swift_has_marks_in_the_text_of_its_messages():
    messages = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}]
    example = example_from_row({"messages": messages, "images": ["cat.png"]}, ROOT)
    assert example.conversation.messages[0].parts == (ImagePart(ROOT / "cat.png"), TextPart("What?"))
    assert example_from_row({"messages": messages}, ROOT).conversation.messages[0].parts == (TextPart("<image>What?"),)


def test_pictures_of_messages_may_be_numbered_and_keys_that_arrow_added_are_ignored():
    content = [{"type": "text", "text": "Or ", "index": None}, {"type": "image", "text": None, "index": 1}, {"type": "image", "index": 0}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "text", "text": "Yes.", "index": None}]}]
    read = example_from_row({"messages": messages, "images": ["a.png", {"path": "b.png", "bytes": None}]}, ROOT)
    assert read.conversation.images == (ImagePart(ROOT / "b.png"), ImagePart(ROOT / "a.png"))


def test_a_format_is_known_by_its_columns():
    assert [format_of({"messages": []}), format_of({"images": []}), format_of({"image": "a"}), format_of(7)] == [
        "messages", "sharegpt", "llava", "llava"
    ]  # fmt: skip


QUESTION, ANSWER = {"from": "human", "value": "Well?"}, {"from": "gpt", "value": "Yes."}
ASK, SAY = ({"role": role, "content": [{"type": "text", "text": "Hm."}]} for role in ("user", "assistant"))


@pytest.mark.parametrize(
    ("raw", "error", "complaint"),
    [
        ({"images": "a.png", "conversations": [QUESTION, ANSWER]}, ImageCountError, "0 <image> but 'images' names 1"),
        ({"images": 7, "conversations": [QUESTION, ANSWER]}, DataError, "list of file names"),
        ({"images": ["../a.png"], "conversations": [QUESTION, ANSWER]}, DataError, "outside the image folder"),
        ({"images": [], "system": "A", "conversations": [{"from": "system", "value": "B"}, QUESTION, ANSWER]}, DataError, "keep one of"),
        ({"images": [], "conversations": [QUESTION, {"from": "observation", "value": "{}"}]}, DataError, "one of human, gpt, system"),
        ({"messages": [ASK, SAY], "images": ["a.png"]}, ImageCountError, "0 <image> but 'images' names 1"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, SAY]}, ImageCountError, "1 <image> but 'images' names 0"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "http://a"}]}, SAY]}, DataError, "in the row's 'images'"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}, SAY]}, DataError, "content must be"),
        ({"messages": [{"role": "tool", "content": "3"}]}, DataError, "one of system, user, assistant"),
        ({"messages": [SAY, ASK]}, DataError, "ends with a question"),
        ({"messages": [ASK, {"role": "assistant", "content": "  "}]}, EmptyAnswerError, "turn 1 is empty"),
        ({"messages": "Hi"}, DataError, "list of messages"),
        ({"messages": [ASK, SAY], "system": "Be brief."}, DataError, "system text in 'messages'"),
        (row(video="a.mp4"), DataError, "only pictures can be read"),
        (row(answer="\ud83d"), DataError, "half a character"),
        ({"messages": [{"role": "user", "content": "\ud83d"}, SAY]}, DataError, "half a character"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_in_every_format(raw: Any, error: type[DataError], complaint: str):
    with pytest.raises(error, match=complaint):
        example_from_row(raw, ROOT, row_number=3)


def test_rewriting_refuses_what_training_reads_past():
    unasked = {"id": "r", "conversations": [ANSWER, QUESTION, ANSWER]}
    weighted = {"id": "r", "conversations": [QUESTION, ANSWER | {"weight": 0}]}
    named = {"messages": [ASK | {"name": "Ann"}, SAY]}
    for raw in (unasked, weighted, named):
        example_from_row(raw, ROOT)
        with pytest.raises(DataError, match="would be lost"):
            example_from_row(raw, ROOT, losses="refuse")


# --- what a format cannot hold ---


def talk(*parts: Any, system: tuple[Any, ...] = (), answer: str = "Yes.", **more: Any) -> InstructionExample:
    messages = [Message("system", system)] * bool(system) + [Message("user", parts), Message("assistant", (TextPart(answer),))]
    return InstructionExample("r", Conversation(tuple(messages)), **more)


PICTURE = ImagePart(ROOT / "a.png")


@pytest.mark.parametrize(
    ("example", "formats", "complaint"),
    [
        (talk(PICTURE, TextPart("the word <image>")), ("llava", "sharegpt"), "cannot tell the two apart"),
        (talk(PICTURE, TextPart("<ima"), TextPart("ge>")), ("llava", "sharegpt"), "cannot tell the two apart"),
        (talk(TextPart("Hi"), system=(PICTURE,)), ("sharegpt",), "picture in the system text"),
        (talk(ImagePart(b"bytes")), ("llava", "sharegpt"), "embed them"),
        (talk(ImagePart(Path("/elsewhere/a.png"))), tuple(FORMATS), "must be files under /pictures"),
        (talk(ImagePart("data:image/png;base64,AA")), tuple(FORMATS), "must be files under /pictures"),
        (talk(VideoPart(ROOT / "a.mp4")), tuple(FORMATS), "video"),
        (talk(TextPart("\ud83d")), tuple(FORMATS), "half a character"),
        (talk(TextPart("Hi"), answer=" "), tuple(FORMATS), "answer is empty"),
        (talk(TextPart("Hi"), provenance={"score": float("nan")}), tuple(FORMATS), "finite numbers"),
        (talk(TextPart("Hi"), provenance={"when": ROOT}), tuple(FORMATS), "only text"),
        (InstructionExample("r", Conversation(()).then("user", "Hi")), tuple(FORMATS), "ends with a question"),
        (InstructionExample("r", Conversation(()).then("assistant", "Hi")), tuple(FORMATS), "without a question"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_by_name(example: InstructionExample, formats: tuple[str, ...], complaint: str):
    for name in formats:
        with pytest.raises(DataError, match=complaint):
            FORMATS[name].to_row(example, ROOT)
    for name in set(FORMATS) - set(formats):
        FORMATS[name].to_row(example, ROOT)


def test_messages_tell_the_mark_from_a_picture():
    example = talk(TextPart("Is <image> in "), PICTURE, TextPart("?"))
    assert example_from_messages(example_to_messages(example, ROOT), ROOT) == example


def test_neighbouring_texts_are_one_and_tuples_become_lists():
    example = talk(TextPart("a"), TextPart(""), TextPart("b"), provenance={"verdicts": ("kept",)})
    for name in FORMATS:
        read = through(example, name)
        assert read.conversation.messages[0].parts == (TextPart("ab"),)
        assert read.provenance == {"verdicts": ["kept"]}


def test_plain_text_that_llama_factory_would_stumble_over_is_known():
    assert spells_mark(talk(TextPart("What is <image>?")))
    assert not spells_mark(talk(PICTURE, TextPart("?")))


def test_the_stanza_for_llama_factory_names_only_columns_that_are_there():
    assert dataset_info("a.json", {"id", "images", "conversations"}) == {
        "file_name": "a.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "images": "images"},
    }


def test_an_empty_system_column_is_no_system_text_but_an_empty_turn_is_one():
    assert example_from_sharegpt({"system": "", "conversations": [QUESTION, ANSWER]}, ROOT).conversation.messages[0].role == "user"
    example = talk(TextPart("Hi"), system=(TextPart(""),))
    assert "system" not in example_to_sharegpt(example, ROOT)
    assert through(example, "sharegpt") == example


# --- files ---


@pytest.mark.parametrize("text", ["[]", " [ ] ", "\ufeff[]"])
def test_an_empty_list_has_no_rows(tmp_path: Path, text: str):
    (tmp_path / "a.json").write_text(text)
    assert list(read_rows(tmp_path / "a.json")) == []


@given(
    st.lists(st.one_of(st.integers(), st.text(), st.dictionaries(st.text(), st.floats(allow_nan=False)))), st.sampled_from([None, 1, "\t"])
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_list_is_parsed_as_json_parses_it_however_small_the_window(monkeypatch, tmp_path: Path, rows: list[Any], indent: Any):
    monkeypatch.setattr("vistune.formats.files._CHUNK_BYTES", 3)
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert list(read_rows(tmp_path / "a.json")) == rows


@pytest.mark.parametrize(
    ("name", "content", "read", "complaint"),
    [
        ("a.json", b'[{"a": 1}, {"b": ', 1, "not JSON after row 1"),
        ("a.json", b'[{"a": 1} {"b": 2}]', 1, "'{' after a row"),
        ("a.json", b'[{"a": 1}', 1, "ends in the middle"),
        ("a.json", b"[1] 2", 1, "more text after the end"),
        ("a.json", b'["\xff"]', 0, "not UTF-8"),
        ("a.json", b"", 0, "not JSON"),
        ("a.json", b"[" * 100_000, 0, "not JSON"),
        ("a.json", b"[" + b"9" * 5000 + b"]", 0, "not JSON"),
        ("a.jsonl", b'{"a": 1}\r\n\r\n{"b"', 1, "line 3 is not JSON"),
        ("a.jsonl", b'1\n"\xff"', 1, "not UTF-8"),
        ("a.parquet", b"PAR1 and nothing else PAR1", 0, "cannot be read as Parquet"),
    ],
)
def test_a_broken_file_gives_its_good_rows_and_then_says_where_it_breaks(
    tmp_path: Path, name: str, content: bytes, read: int, complaint: str
):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    rows = read_rows(tmp_path / name)
    for _ in range(read):
        next(rows)
    with pytest.raises(DataError, match=complaint):
        next(rows)


def test_a_row_without_end_is_refused_before_it_fills_the_memory(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("vistune.formats.files.MAX_ROW_CHARACTERS", 1000)
    (tmp_path / "a.json").write_text('["' + "x" * 5000)
    (tmp_path / "a.jsonl").write_text('"' + "x" * 5000)
    for name in ("a.json", "a.jsonl"):
        with pytest.raises(DataError, match="1,000"):
            list(read_rows(tmp_path / name))


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path):
    path = write_rows(tmp_path / "a.json", row())
    before = path.read_bytes()
    with pytest.raises(DataError, match="video"):
        write_examples([example_from_row(row(), ROOT), talk(VideoPart(ROOT / "a.mp4"))], path, ROOT)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("name", "format", "error"), [("a.txt", None, UsageError), ("a.parquet", "llava", UsageError), ("a.json", "alpaca", UnknownName)]
)
def test_a_file_that_cannot_be_of_its_format_is_refused(tmp_path: Path, name: str, format: str | None, error: type[Exception]):
    with pytest.raises(error):
        write_examples([], tmp_path / name, ROOT, format)


def test_json_has_no_place_for_the_bytes_of_a_picture(tmp_path: Path):
    with pytest.raises(DataError, match=r"write \.parquet"):
        write_examples([talk(ImagePart(b"bytes"))], tmp_path / "a.json", ROOT, "messages")


# --- Parquet, as `datasets` sees it ---


@pytest.fixture
def embedded(tmp_path: Path) -> Path:
    pytest.importorskip("pyarrow")
    data = write_picture(tmp_path / "cat.png").read_bytes()
    pictured = talk(TextPart("What is "), ImagePart(ImageBytes(data, "cats/cat.png")), TextPart("?"), kind="detail", provenance={"a": [1]})
    write_examples([pictured, talk(TextPart("Hi"))], tmp_path / "a.parquet", ROOT)
    return tmp_path / "a.parquet"


def test_embedded_pictures_come_back_as_bytes_that_know_their_name(embedded: Path):
    pictured, plain = read_examples(embedded, ROOT)
    (image,) = pictured.conversation.images
    assert isinstance(image.source, ImageBytes)
    assert (image.source, image.source.name) == ((embedded.parent / "cat.png").read_bytes(), "cats/cat.png")
    assert plain.conversation.messages[0].parts == (TextPart("Hi"),)


def test_datasets_reads_our_parquet_with_pictures_and_we_read_what_it_writes(embedded: Path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(embedded.parent / "cache"))
    datasets = pytest.importorskip("datasets")
    dataset: Callable = datasets.load_dataset("parquet", data_files=str(embedded), split="train", cache_dir=str(embedded.parent / "cache"))
    assert dataset[0]["images"][0].size == (96, 64)
    content = dataset[0]["messages"][0]["content"]
    assert [item["type"] for item in content] == ["text", "image", "text"]
    dataset.to_parquet(str(embedded.parent / "again.parquet"))
    assert list(read_examples(embedded.parent / "again.parquet", ROOT)) == list(read_examples(embedded, ROOT))


def test_rows_are_written_in_groups_that_a_reader_can_hold(tmp_path: Path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("vistune.formats.parquet.BATCH_ROWS", 2)
    write_examples([talk(TextPart(str(number))) for number in range(5)], tmp_path / "a.parquet", ROOT)
    with parquet.ParquetFile(tmp_path / "a.parquet") as file:
        assert file.num_row_groups == 3
