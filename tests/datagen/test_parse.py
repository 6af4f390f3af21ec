"""Tolerant of dress, strict about what is left; and what is rendered is read back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.datagen.parse import MAX_REPLY_CHARACTERS, ParsedReply, Rejection, is_repairable, parse_reply, render_reply, to_example
from vistune.datagen.teacher import detailed_questions, kind_named, kind_names
from vistune.errors import DataError
from vistune.formats import example_from_llava, example_to_llava
from vistune.types import ImageAnnotations, ImagePart

DIALOGUE, DESCRIPTION, PAIR = kind_named("conversation"), kind_named("detail"), kind_named("reasoning")
TURNS = (("What is it?", "A cat."), ("What color is it?", "It is black.\n\nIts paws are white."))
PLAIN = "\n===\n".join(
    (
        "Question:",
        "What is it?",
        "Answer:",
        "A cat.",
        "Question:",
        "What color is it?",
        "Answer:",
        "It is black.\n\nIts paws are white.",
        "",
    )
).strip()

DRESSED = {
    "as asked": PLAIN,
    "no last separator": PLAIN.removesuffix("\n==="),
    "Windows newlines": PLAIN.replace("\n", "\r\n"),
    "a mark of byte order": "\ufeff" + PLAIN,
    "bold labels": PLAIN.replace("Question:", "**Question:**").replace("Answer:", "**Answer:**"),
    "bold words only": PLAIN.replace("Question:", "**Question**:").replace("Answer:", "__Answer__:"),
    "bold to the end of the line": PLAIN.replace("Question:\n===\nWhat is it?", "**Question: What is it?**"),
    "numbered labels": PLAIN.replace("Question:", "1. Question 1:").replace("Answer:", "Answer 1:"),
    "headings": PLAIN.replace("Question:", "### Question:").replace("Answer:", "### Answer:"),
    "short labels": PLAIN.replace("Question:", "Q:").replace("Answer:", "A:"),
    "labels in capitals": PLAIN.replace("Question:", "QUESTION:").replace("Answer:", "ANSWER:"),
    "LLaVA's own layout": PLAIN.replace(":\n===", ":"),
    "no separators": PLAIN.replace("===\n", "").replace("\n===", ""),
    "longer separators": PLAIN.replace("===", "=========="),
    "separators stuck to the text": PLAIN.replace("What is it?\n===", "What is it? ===").replace("===\nA cat.", "===A cat."),
    "rules for separators": PLAIN.replace("\n===\nAnswer", "\n---\nAnswer").replace("\n===\nQuestion", "\n---\nQuestion"),
    "empty lines": PLAIN.replace("===\n", "\n===\n\n"),
    "a remark before": "Sure! Here is the conversation you asked for:\n\n" + PLAIN,
    "a remark after": PLAIN + "\n\nLet me know if you need more.",
    "a code fence": f"```\n{PLAIN}\n```",
    "a code fence and a remark": f"Here you are:\n```text\n{PLAIN}\n```",
    "thinking first": f"<think>\nQuestion: what do they want?\n</think>\n\n{PLAIN}",
}


@pytest.mark.parametrize("text", DRESSED.values(), ids=list(DRESSED))
def test_a_dialogue_is_read_whatever_its_dress(text: str):
    assert parse_reply(DIALOGUE, text, seed="0") == ParsedReply(TURNS)


REJECTED = {
    "no words": ("", "empty"),
    "only separators": ("===\n===", "empty"),
    "only space": (" \n\t\r\n ", "empty"),
    "plain prose": ("A cat is sitting on a mat.", "wrong_shape"),
    "JSON": ('[{"question": "What is it?", "answer": "A cat."}]', "wrong_shape"),
    "blocks without labels": ("What is it?\n===\nA cat.\n===", "wrong_shape"),
    "text between the parts": (PLAIN.replace("===\nQuestion", "===\nNow a harder one.\n===\nQuestion", 1), "wrong_shape"),
    "a long remark": ("word " * 200 + "\n" + PLAIN, "wrong_shape"),
    "an answer first": ("Answer:\n===\nA cat.\n===\nQuestion:\n===\nWhat is it?\n===", "not_alternating"),
    "two questions in a row": (PLAIN.replace("Answer:", "Question:", 1), "not_alternating"),
    "two answers in a row": (PLAIN.replace("Question:\n===\nWhat color", "Answer:\n===\nWhat color"), "not_alternating"),
    "a question left open": (PLAIN + "\nQuestion:\n===\nWhere is it?", "not_alternating"),
    "an empty answer": (PLAIN.replace("A cat.", ""), "empty"),
    "an empty question": (PLAIN.replace("What is it?", "  "), "empty"),
    "a marker of a template": (PLAIN.replace("A cat.", "A cat.<|im_end|>"), "role_marker"),
    "another speaker": (PLAIN.replace("A cat.", "A cat.\nUSER: And now?"), "role_marker"),
    "a place of a picture": (PLAIN.replace("What is it?", "<image>\nWhat is it?"), "role_marker"),
    "a refusal": ("I'm sorry, but I can't help with that.", "refusal"),
    "too much": ("a" * (MAX_REPLY_CHARACTERS + 1), "too_large"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), REJECTED.values(), ids=list(REJECTED))
def test_what_is_no_dialogue_is_rejected_by_name(text: str, reason: str):
    rejection = parse_reply(DIALOGUE, text, seed="0")
    assert isinstance(rejection, Rejection)
    assert (rejection.reason, bool(rejection.message)) == (reason, True)


def test_a_reply_that_was_cut_off_is_rejected_though_its_words_would_do():
    rejection = parse_reply(DIALOGUE, PLAIN, seed="0", finish_reason="length")
    assert isinstance(rejection, Rejection)
    assert rejection.reason == "cut_off"


def test_only_a_fault_of_form_is_worth_a_second_try():
    worth = {reason for _, reason in REJECTED.values() if is_repairable(Rejection(reason, ""))}  # type: ignore[arg-type]
    assert worth == {"empty", "wrong_shape", "not_alternating", "role_marker"}
    assert not is_repairable(Rejection("cut_off", ""))


def test_a_pair_is_one_question_with_its_answer():
    assert parse_reply(PAIR, render_reply(PAIR, TURNS[:1]), seed="0") == ParsedReply(TURNS[:1])
    rejection = parse_reply(PAIR, PLAIN, seed="0")
    assert isinstance(rejection, Rejection)
    assert rejection.reason == "wrong_shape"


@pytest.mark.parametrize(
    "before", ["", "===\n", "**Description:** ", "Sure, here is a detailed description:\n\n", "```\n", "<think>hm</think>\n"]
)
def test_a_description_is_its_text_alone(before: str):
    text = "A black cat lies on a mat.\n\nBehind it stands a vase."
    after = "\n```" if "```" in before else ""
    parsed = parse_reply(DESCRIPTION, before + text + after, seed="7")
    assert isinstance(parsed, ParsedReply)
    ((question, answer),) = parsed.turns
    assert answer == text
    assert question in detailed_questions()


@pytest.mark.parametrize("text", [PLAIN, "A cat.\n===\nA mat.", '{"description": "A cat."}'])
def test_a_description_holds_neither_questions_nor_parts_nor_json(text: str):
    rejection = parse_reply(DESCRIPTION, text, seed="0")
    assert isinstance(rejection, Rejection)
    assert rejection.reason == "wrong_shape"


def test_the_question_to_a_description_is_drawn_by_seed_from_all_of_them():
    drawn = [parse_reply(DESCRIPTION, "A cat.", seed=str(seed)) for seed in range(300)]
    assert {parsed.turns[0][0] for parsed in drawn if isinstance(parsed, ParsedReply)} == set(detailed_questions())
    assert drawn[:20] == [parse_reply(DESCRIPTION, "A cat.", seed=str(seed)) for seed in range(20)]


@pytest.mark.parametrize("name", kind_names())
def test_every_shipped_example_is_read_and_rendered_as_it_stands(name: str):
    kind = kind_named(name)
    for _, reply in kind.examples:
        parsed = parse_reply(kind, reply, seed="0")
        assert isinstance(parsed, ParsedReply)
        assert render_reply(kind, parsed.turns).strip() == reply.strip()


words = st.text(st.characters(codec="utf-8", exclude_characters="=:：<>[]\r`~"), min_size=1, max_size=80).map(str.strip).filter(bool)
prose = words.filter(lambda text: not any(line.strip(" -*_") == "" for line in text.split("\n") if line))
pairs = st.lists(st.tuples(prose, prose), min_size=1, max_size=5).map(tuple)


@given(pairs)
def test_what_was_rendered_is_read_back(turns: tuple[tuple[str, str], ...]):
    assert parse_reply(DIALOGUE, render_reply(DIALOGUE, turns), seed="0") == ParsedReply(turns)
    assert parse_reply(PAIR, render_reply(PAIR, turns[:1]), seed="0") == ParsedReply(turns[:1])


@given(st.lists(st.tuples(st.text(), st.text()), max_size=4).map(tuple), st.sampled_from([DIALOGUE, PAIR, DESCRIPTION]))
def test_turns_that_the_grammar_cannot_hold_are_not_rendered(turns: tuple[tuple[str, str], ...], kind):
    try:
        text = render_reply(kind, turns)
    except DataError:
        return
    parsed = parse_reply(kind, text, seed="0")
    assert isinstance(parsed, ParsedReply)
    assert [answer for _, answer in parsed.turns] == [answer for _, answer in turns]


grammar = st.sampled_from(
    ["Question:", "Answer:", "===", "**Q:**", "A:", "```", "---", "\n", "\r", "text", "<think>", "</think>", " ", "\u2028", "1."]
)


@given(st.one_of(st.text(max_size=300), st.lists(grammar, max_size=40).map("".join)), st.sampled_from([DIALOGUE, PAIR, DESCRIPTION]))
def test_any_text_is_read_or_rejected_and_what_is_read_has_the_right_form(text: str, kind):
    outcome = parse_reply(kind, text, seed="0")
    if isinstance(outcome, ParsedReply):
        assert outcome.turns
        assert all(question.strip() and answer.strip() for question, answer in outcome.turns)
        assert kind.shape == "dialogue" or len(outcome.turns) == 1
    assert outcome == parse_reply(kind, text, seed="0")


def test_an_example_has_its_picture_in_the_first_question_before_or_after_the_words():
    annotations = ImageAnnotations("train/000007.jpg", 640, 480, ("A cat.",))
    places = set()
    for seed in range(20):
        example = to_example(annotations, DIALOGUE, TURNS, Path("images/train/000007.jpg"), {"teacher": "t"}, seed=str(seed))
        first, *others = example.conversation.messages
        assert [message.text.strip() for message in example.conversation.messages] == [text for turn in TURNS for text in turn]
        assert len(first.images) == 1
        assert not any(message.images for message in others)
        places.add(isinstance(first.parts[0], ImagePart))
        row = example_to_llava(example, Path("images"))
        assert example_from_llava(row, Path("images")).conversation == example.conversation
    assert places == {True, False}
    assert (example.id, example.kind, example.provenance["teacher"]) == ("train/000007-conversation", "conversation", "t")
