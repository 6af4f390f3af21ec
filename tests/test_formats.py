"""LLaVA JSON in and out, and rows that are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.errors import DataError, EmptyAnswerError, ImageCountError
from vistune.formats import example_from_llava, example_to_llava, read_examples, read_rows, write_examples
from vistune.types import Conversation, ImagePart, InstructionExample, Message, TextPart

ROOT = Path("/pictures")


def row(*turns: str, image: Any = None, **more: Any) -> dict[str, Any]:
    """A row whose turns are human's and gpt's in turn."""
    conversations = [{"from": "gpt" if place % 2 else "human", "value": text} for place, text in enumerate(turns)]
    return {"id": "r", **({} if image is None else {"image": image}), "conversations": conversations, **more}


def read(raw: Any, **settings: Any) -> InstructionExample:
    return example_from_llava(raw, ROOT, **settings)


def test_an_image_mark_becomes_a_reference_under_the_image_folder():
    user, assistant = read(row("<image>\nWhat is it?", "A cat.", image="cats/1.jpg")).conversation.messages
    assert user == Message("user", (ImagePart(ROOT / "cats/1.jpg"), TextPart("\nWhat is it?")))
    assert assistant == Message("assistant", (TextPart("A cat."),))


def test_several_images_stay_where_they_were_written():
    conversation = read(row("Is <image> like <image>?", "No.", "And <image>?", "Yes.", image=["a.png", "b.png", "c.png"])).conversation
    assert conversation.messages[0].parts == (
        TextPart("Is "), ImagePart(ROOT / "a.png"), TextPart(" like "), ImagePart(ROOT / "b.png"), TextPart("?")
    )  # fmt: skip
    assert conversation.messages[2].images == (ImagePart(ROOT / "c.png"),)


def test_image_place_first_moves_the_only_picture_of_a_turn_to_its_front():
    raw = row("What is it?\n<image>", "A cat.", image="1.jpg")
    assert read(raw, image_place="first") == read(row("<image>\nWhat is it?", "A cat.", image="1.jpg"))
    assert read(raw) != read(raw, image_place="first")


def test_the_mark_in_a_row_of_plain_text_is_plain_text():
    example = read(row("What does <image> mean in HTML?", "Nothing."))
    assert example.conversation.messages[0].parts == (TextPart("What does <image> mean in HTML?"),)


@pytest.mark.parametrize("image", ["a.png", ["a.png", "b.png", "c.png"], []])
def test_as_many_marks_as_files_or_the_row_is_named(image: Any):
    raw = row("<image> <image>", "Two.", image=image)
    if image == []:
        assert not read(raw).conversation.images
    else:
        with pytest.raises(ImageCountError, match=r"id 'r'.*2 <image>"):
            read(raw)


@pytest.mark.parametrize("answer", ["", "  \n"])
def test_an_empty_answer_is_refused_by_name(answer: str):
    with pytest.raises(EmptyAnswerError, match=r"id 'r'.*turn 1 is empty"):
        read(row("Well?", answer))


def test_an_answer_before_the_first_question_is_dropped_as_in_the_original():
    raw = row("Well?", "Yes.")
    raw["conversations"].insert(0, {"from": "gpt", "value": "Welcome."})
    assert read(raw) == read(row("Well?", "Yes."))


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        ("text", "JSON str"),
        ({"id": "r"}, "'conversations' must be a list"),
        (row("One?", "Yes.", "Two?"), "ends with a question"),
        ({"id": "r", "conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}]}, "take turns"),
        ({"id": "r", "conversations": [{"from": "user", "value": "a"}]}, "one of human, gpt, system"),
        ({"id": "r", "conversations": [{"from": "gpt", "value": "a"}]}, "no turn of a user"),
        (row("<image>", "A.", image="../secret.png"), "outside the image folder"),
        (row("<image>", "A.", image="/etc/secret.png"), "outside the image folder"),
        (row("<image>", "A.", image=7), "'image' must be"),
    ],
)
def test_what_is_not_a_llava_row_is_refused_with_the_reason(raw: Any, complaint: str):
    with pytest.raises(DataError, match=complaint):
        read(raw)


words = st.text(st.characters(exclude_categories=("Cs",)), max_size=12).filter(lambda text: "<image>" not in text)


@given(st.lists(st.tuples(st.lists(words, min_size=1, max_size=4), words.filter(str.strip)), min_size=1, max_size=3))
def test_writing_and_reading_gives_the_same_conversation(turns: list[tuple[list[str], str]]):
    texts = [text for pieces, answer in turns for text in ("<image>".join(pieces), answer)]
    images = [f"{number}.png" for number in range(sum(len(pieces) - 1 for pieces, _ in turns))]
    example = read(row(*texts, image=images))
    written = example_to_llava(example, ROOT)
    assert [turn["value"] for turn in written["conversations"]] == texts
    assert read(json.loads(json.dumps(written))) == example


def test_a_text_that_spells_the_mark_beside_a_picture_is_not_written_wrongly():
    parts = (ImagePart(ROOT / "a.png"), TextPart("the word <image>"))
    example = InstructionExample("r", Conversation((Message("user", parts), Message("assistant", (TextPart("Yes."),)))))
    with pytest.raises(DataError, match="cannot tell the two apart"):
        example_to_llava(example, ROOT)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_lists_and_lines_are_read_alike(tmp_path: Path, name: str):
    rows = [row("<image>\nWhat?", "A dog.", image="1.png"), row("Hi\u2028there", "Hello.")]
    path = tmp_path / name
    path.write_text(json.dumps(rows) if name.endswith("json") else "\n".join(json.dumps(each, ensure_ascii=False) for each in rows) + "\n")
    assert [example_to_llava(example, ROOT) for example in read_examples(path, ROOT)] == rows


def test_a_written_file_is_read_back(tmp_path: Path):
    examples = [read(row("<image>\nWhat?", "A dog.", image="1.png", kind="detail")), read(row("Hi", "Hello."))]
    write_examples(examples, tmp_path / "rows.json", ROOT)
    assert list(read_examples(tmp_path / "rows.json", ROOT)) == examples


@pytest.mark.parametrize(("content", "complaint"), [("{}", "a list of rows"), ("[1,", "is not JSON"), (None, "no data file")])
def test_a_file_that_is_no_list_of_rows_is_refused(tmp_path: Path, content: str | None, complaint: str):
    path = tmp_path / "rows.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=complaint):
        list(read_rows(path))
