"""What a teacher is sent: quoted annotations that nothing can break out of, and kinds that are folders."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.datagen.quoting import MAX_LINE, is_unseen, quoted
from vistune.datagen.teacher import (
    brief_questions,
    detailed_questions,
    kind_named,
    kind_names,
    parse_context,
    render_context,
    render_prompt,
    teacher_conversation,
)
from vistune.errors import DataError, UnknownName
from vistune.scenes import plan_scene
from vistune.types import Box, ImageAnnotations

BUS = ImageAnnotations(
    "val/7.jpg",
    640,
    480,
    ("A red bus stops.", "A bus at the corner."),
    (Box("bus", (0.12, 0.3, 0.88, 0.91234)), Box("person", (0, 0, 1, 1))),
)

texts = st.text(max_size=60)
boxes = st.builds(Box, texts, st.tuples(*[st.floats(0, 1)] * 4))
annotations = st.builds(
    ImageAnnotations,
    image=texts,
    width=st.just(10),
    height=st.just(10),
    captions=st.lists(texts, max_size=4).map(tuple),
    boxes=st.lists(boxes, max_size=4).map(tuple),
)


def test_captions_and_boxes_are_quoted_line_by_line_with_three_decimals():
    assert render_context(BUS, boxes=True) == (
        "> A red bus stops.\n> A bus at the corner.\n>\n> bus: [0.120, 0.300, 0.880, 0.912]\n> person: [0.000, 0.000, 1.000, 1.000]"
    )


def test_a_kind_without_boxes_sends_captions_alone():
    assert render_context(BUS, boxes=False) == "> A red bus stops.\n> A bus at the corner."


@given(annotations)
def test_a_context_is_read_back_as_it_was_quoted(known: ImageAnnotations):
    captions, found = parse_context(render_context(known, boxes=True))
    assert captions == tuple(line for caption in known.captions if (line := quoted(caption)))
    assert [box.label for box in found] == [quoted(box.label) for box in known.boxes]
    assert all(
        abs(a - b) <= 0.0005001 for one, other in zip(found, known.boxes, strict=True) for a, b in zip(one.xyxy, other.xyxy, strict=True)
    )


@given(texts)
def test_quoted_text_is_one_line_that_is_seen_whole_and_opens_or_closes_nothing(text: str):
    line = quoted(text)
    assert len(line.splitlines()) <= 1
    assert not any(is_unseen(character) for character in line)
    assert not re.search(r"[<>\[\]]|==|\s\s", line)
    assert quoted(line) == line


def test_a_caption_without_end_is_cut():
    assert len(quoted("word " * 100_000)) <= MAX_LINE


@pytest.mark.parametrize("text", ["bus: [0, 0, 1, 1]", "> bus\n no quotation", "no quotation", ">\n> bus: [zero]"])
def test_a_context_of_another_form_is_refused(text: str):
    with pytest.raises(DataError):
        parse_context(f">\n{text}")


def test_the_shipped_kinds_are_the_three_of_the_paper():
    assert kind_names() == ("conversation", "detail", "reasoning")
    assert [kind_named(name).shape for name in kind_names()] == ["dialogue", "description", "pair"]
    assert [kind_named(name).uses_boxes for name in kind_names()] == [False, True, True]
    assert [len(kind_named(name).examples) for name in kind_names()] == [2, 3, 3]


@pytest.mark.parametrize("name", kind_names())
def test_the_messages_are_system_examples_and_the_picture(name: str):
    kind = kind_named(name)
    conversation = teacher_conversation(kind, BUS)
    roles = [message.role for message in conversation.messages]
    assert roles == ["system", *["user", "assistant"] * len(kind.examples), "user"]
    assert conversation.messages[-1].text == render_context(BUS, boxes=kind.uses_boxes)


@pytest.mark.parametrize("name", kind_names())
def test_the_examples_keep_the_rules_of_the_system_text(name: str):
    for context, reply in kind_named(name).examples:
        captions, found = parse_context(context)
        assert len(captions) == 5
        assert bool(found) == kind_named(name).uses_boxes
        assert not re.search(r"\b(captions?|sentences?|annotations?|coordinates?|box(es)?|\d)", reply)


def test_the_prompt_is_shown_message_by_message_and_never_holds_the_file_name():
    conversation = teacher_conversation(kind_named("detail"), BUS)
    shown = render_prompt(conversation)
    assert shown.count("--- user ---") == 4
    assert all(message.text in shown for message in conversation.messages)
    assert "7.jpg" not in shown


def test_the_digest_changes_with_every_word_that_is_sent(tmp_path: Path):
    kinds = [own_kind(tmp_path / name, system) for name, system in (("one", "Say it."), ("two", "Say it!"), ("three", "Say it."))]
    first, second, third = (kind_named(str(path)).digest for path in kinds)
    assert first != second
    assert first == third


def own_kind(folder: Path, system: str, **settings: object) -> Path:
    folder.mkdir()
    (folder / "kind.json").write_text(json.dumps({"shape": "pair", "uses_boxes": True} | settings))
    (folder / "system.txt").write_text(system)
    (folder / "example_1_context.json").write_text(json.dumps({"captions": ["A bus."], "boxes": [["bus", [0, 0, 1, 1]]]}))
    (folder / "example_1_reply.txt").write_text("Question:\n===\nWhat?\n===\nAnswer:\n===\nA bus.\n===")
    return folder


def test_a_new_kind_is_a_new_folder(tmp_path: Path):
    kind = kind_named(str(own_kind(tmp_path / "safety", "Ask about dangers.")))
    assert (kind.name, kind.shape, kind.examples[0][0]) == ("safety", "pair", "> A bus.\n>\n> bus: [0.000, 0.000, 1.000, 1.000]")


def test_an_unknown_kind_and_a_broken_folder_are_explained(tmp_path: Path):
    with pytest.raises(UnknownName, match="conversation, detail, reasoning"):
        kind_named("dialog")
    with pytest.raises(DataError, match="'shape'"):
        kind_named(str(own_kind(tmp_path / "wrong", "Hm.", shape="poem")))
    half = own_kind(tmp_path / "half", "Hm.")
    (half / "example_1_reply.txt").unlink()
    with pytest.raises(DataError, match=r"example_1_reply\.txt"):
        kind_named(str(half))


def test_there_are_eleven_brief_and_sixteen_detailed_questions():
    assert len(set(brief_questions())) == 11
    assert len(set(detailed_questions())) == 16


def test_a_drawn_scene_keeps_its_names_in_the_context():
    scene = plan_scene(5)
    captions, found = parse_context(render_context(scene.annotations("x.jpg"), boxes=True))
    assert captions == scene.captions
    assert tuple(box.label for box in found) == scene.names
