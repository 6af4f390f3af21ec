"""What the templates write, without a tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from model_fixtures import answers, conversations, dialogue

from vistune.errors import DataError, EmptyAnswerError, ImageCountError, UnknownName
from vistune.model.templates import TEMPLATES, template_named, v0_official_mask
from vistune.types import Conversation, ImagePart, Message, TextPart, VideoPart

A = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to "
B = A.replace("human", "user")
C = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, and assist the "
    "user with a variety of tasks using natural language."
)

EXPECTED = {
    "v0": A + "the human's questions.\n\n### Human: <image>\nQ\n### Assistant: R\n### Human: S\n### Assistant: T\n### ",
    "vicuna_v1": B + "the user's questions. USER: <image>\nQ ASSISTANT: R</s>USER: S ASSISTANT: T</s>",
    "llava_v1": A + "the human's questions. USER: <image>\nQ ASSISTANT: R</s>USER: S ASSISTANT: T</s>",
    "llava_llama_2": f"[INST] <<SYS>>\n{C}\n<</SYS>>\n\n<image>\nQ [/INST] R </s><s>[INST] S [/INST] T </s>",
    "mistral_instruct": "[INST] <image>\nQ [/INST] R </s>[INST] S [/INST] T </s>",
    "chatml_direct": "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nQ<|im_end|><|im_start|>assistant\nR"
    "<|im_end|><|im_start|>user\nS<|im_end|><|im_start|>assistant\nT<|im_end|>",
    "mistral_zephyr": "<|system|>\nYou are a helpful AI assistant.</s><|user|>\n<image>\nQ</s><|assistant|>\nR</s><|user|>\nS</s>"
    "<|assistant|>\nT</s>",
    "qwen_1_5": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nQ<|im_end|>\n"
    "<|im_start|>assistant\nR<|im_end|>\n<|im_start|>user\nS<|im_end|>\n<|im_start|>assistant\nT<|im_end|>\n",
    "llava_llama_3": f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{C}<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n<image>\nQ<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nR<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nT<|eot_id|>",
    "gemma_instruct": "<start_of_turn>user\n<image>\nQ<end_of_turn>\n<start_of_turn>model\nR<end_of_turn>\n<start_of_turn>user\nS"
    "<end_of_turn>\n<start_of_turn>model\nT<end_of_turn>\n",
}


def written(name: str, conversation: Conversation, *, generate: bool = False) -> str:
    segments = template_named(name).segments(conversation, generate=generate)
    return "".join("<image>" if segment.image else segment.text for segment in segments)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_template_writes_the_bytes_that_its_checkpoints_were_trained_on(name):
    assert written(name, dialogue("Q", "R", "S", "T", images=1)) == EXPECTED[name]


@pytest.mark.parametrize(("name", "tail"), [("v0", "\n### Assistant: R"), ("v1", " ASSISTANT: R"), ("mpt", "assistant\nR")])
def test_an_unfinished_reply_is_left_open(name, tail):
    assert written(name, dialogue("Q", "R"), generate=True).endswith(tail)
    assert written(name, dialogue("Q", ""), generate=True) == written(name, dialogue("Q"), generate=True)


def test_a_caption_is_the_picture_and_its_text_alone():
    assert written("plain", dialogue("Describe the image.", "a red bus", images=1)) == "<image>a red bus\n"
    assert written("plain", dialogue("Describe the image.", images=1), generate=True) == "<image>"


def test_mmtag_templates_wrap_the_picture():
    assert "USER: <Image><image></Image>\nQ ASSISTANT:" in written("v1_mmtag", dialogue("Q", "R", images=1))


@pytest.mark.parametrize("name", [name for name in TEMPLATES if "plain" not in name])
def test_a_prompt_is_the_beginning_of_the_training_text(name):
    @given(conversations())
    @settings(max_examples=10, deadline=None)
    def check(conversation):
        if conversation.messages[0].role == "system" and TEMPLATES[name].style == "gemma":
            conversation = Conversation(conversation.messages[1:])
        prompt = written(name, Conversation(conversation.messages[:-1]), generate=True)
        assert written(name, conversation).startswith(prompt)

    check()


@given(answers)
@settings(max_examples=20, deadline=None)
def test_only_the_reply_and_its_end_are_supervised_by_answers(reply):
    for name, template in TEMPLATES.items():
        segments = template.segments(dialogue("Q", reply, images=1), generate=False)
        taught = "".join(segment.text for segment in segments if "answers" in segment.supervised_by)
        lead = {"v0": "\n", "llama_2": " "}.get({"single": "v0"}.get(template.style, template.style), "")
        assert taught == reply + lead + template.stop, name


def test_one_picture_comes_first_and_several_stay_where_they_are():
    image = ImagePart(b"")
    one = Conversation((Message("user", (TextPart(" What is "), image, TextPart("this? "))),))
    two = Conversation((Message("user", (TextPart("From "), image, TextPart(" to "), image)),))
    assert "USER: <image>\nWhat is this? ASSISTANT:" in written("v1", one, generate=True)
    assert "USER: From <image> to <image> ASSISTANT:" in written("v1", two, generate=True)
    alone = Conversation((Message("user", (image,)),))
    assert "USER: <image> ASSISTANT:" in written("v1", alone, generate=True)


def test_a_system_message_replaces_the_template_s_and_an_empty_one_removes_it():
    own = Conversation((Message("system", (TextPart("Be brief."),)), *dialogue("Q", "R").messages))
    none = Conversation((Message("system", ()), *dialogue("Q", "R").messages))
    assert written("v1", own) == "Be brief. USER: Q ASSISTANT: R</s>"
    assert written("v1", none) == "USER: Q ASSISTANT: R</s>"
    assert written("llama_2", none) == "[INST] Q [/INST] R </s>"
    with pytest.raises(DataError, match="no place for a system message"):
        written("gemma_instruct", own)


def test_what_the_assistant_said_before_the_first_question_is_dropped():
    greeting = Conversation((Message("assistant", (TextPart("Hello!"),)), *dialogue("Q", "R").messages))
    assert written("v1", greeting) == written("v1", dialogue("Q", "R"))


def test_a_conversation_that_no_template_can_write_is_refused():
    user = Message("user", (TextPart("Q"),))
    with pytest.raises(DataError, match=r"Message 2 is the user's where the assistant's"):
        written("v1", Conversation((user, user)))
    with pytest.raises(DataError, match="no user message"):
        written("v1", Conversation(()))
    with pytest.raises(EmptyAnswerError, match="Assistant message 2 of 2"):
        written("v1", dialogue("Q", " \n"))
    with pytest.raises(DataError, match="video"):
        written("v1", Conversation((Message("user", (VideoPart(b""),)),)), generate=True)
    with pytest.raises(ImageCountError, match="found 0"):
        written("plain", dialogue("Q", "R"))
    with pytest.raises(DataError, match="4 messages"):
        written("plain", dialogue("Q", "R", "S", "T", images=1))


def test_an_unknown_name_lists_the_right_ones():
    with pytest.raises(UnknownName, match=r"Did you mean 'vicuna_v1'.*llava_v1"):
        template_named("vicuna_v2")


def test_the_v0_mask_keeps_two_tokens_of_a_human_turn():
    assert v0_official_mask(2, [4, 3, 3], 12) == [False] * 2 + [True] * 2 + [False] * 2 + [True] * 5 + [False]
