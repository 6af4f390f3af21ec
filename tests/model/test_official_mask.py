"""The `official` mask against the original's algorithms, written here a second time as they are: by counting re-tokenised pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import MARKERS, byte_tokenizer, dialogue, llama_tokenizer, picture, tiny_config
from transformers import PreTrainedTokenizerFast

from vistune.model.processor import Processor
from vistune.model.templates import TEMPLATES, Template
from vistune.types import Conversation

IMAGE, IGNORE = -200, -100
TOKENIZERS = {
    "llama": llama_tokenizer(markers=MARKERS),
    "llama_legacy": llama_tokenizer(legacy=True, markers=MARKERS),
    "byte_level": byte_tokenizer(),
}
Tokenize = Callable[[str], list[int]]


def tokenize_around_images(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Each chunk on its own; BOS of the first only."""
    ids: list[int] = []
    bos = tokenizer("").input_ids
    for index, chunk in enumerate(text.split("<image>")):
        found = tokenizer(chunk).input_ids
        ids += found if index == 0 else [IMAGE, *found[len(bos) :]]
    return ids


def counted(
    text: str,
    tokenize: Tokenize,
    *,
    rounds: Sequence[str],
    separator: str,
    instruction_minus: int,
    round_plus: Callable[[int], int],
    instruction_plus: Callable[[int], int],
) -> list[int] | None:
    """The loop that v1, Llama-2, MPT and Gemma share; None where the counts do not add up and the original masks the whole sample."""
    labels = tokenize(text)
    labels[:1] = [IGNORE]
    position = 1
    for index, this in enumerate(rounds):
        parts = this.split(separator)
        if this == "" or len(parts) != 2:
            break
        instruction = len(tokenize(parts[0] + separator)) - instruction_minus + instruction_plus(index)
        labels[position : position + instruction] = [IGNORE] * len(labels[position : position + instruction])
        position += len(tokenize(this)) + round_plus(index)
    total = len(labels)
    labels[position:] = [IGNORE] * len(labels[position:])
    return labels if position == total else None


def original_labels(template: Template, name: str, conversation: Conversation, tokenizer: PreTrainedTokenizerFast) -> list[int] | None:
    legacy = tokenizer is TOKENIZERS["llama_legacy"]
    segments = template.segments(conversation, generate=False)
    text = "".join("<image>" if segment.image else segment.text for segment in segments)

    def tokenize(text: str) -> list[int]:
        return tokenize_around_images(text, tokenizer)

    if template.style == "plain":
        labels = tokenize(text)
        return [IGNORE] * len(tokenize("<image>")) + labels[len(tokenize("<image>")) :]
    if template.style in ("two", "llama_2"):
        later = -1 if template.style == "two" and not legacy else 0
        return counted(
            text,
            tokenize,
            rounds=text.split("</s>"),
            separator=" ASSISTANT: " if template.style == "two" else "[/INST] ",
            instruction_minus=2,
            round_plus=lambda index: later if index else 0,
            instruction_plus=lambda index: later if index else 0,
        )
    if template.style == "mpt":
        pieces = text.split(template.sep)
        first = 3 if template.system else 2
        rounds = [template.sep.join(pieces[:first])]
        rounds += [template.sep.join(pieces[index : index + 2]) for index in range(first, len(pieces), 2)]
        later = 1 if legacy else 0
        return counted(
            text,
            tokenize,
            rounds=rounds,
            separator=template.sep + template.roles[1],
            instruction_minus=1,
            round_plus=lambda index: later if index else 0,
            instruction_plus=lambda index: later if index else 0,
        )
    if template.style == "gemma":
        pieces = text.split(template.sep)
        return counted(
            text,
            tokenize,
            rounds=[template.sep.join(pieces[index : index + 2]) for index in range(0, len(pieces), 2)],
            separator=template.sep + template.roles[1],
            instruction_minus=1,
            round_plus=lambda index: 1,  # less the BOS, plus the two tokens of the separator
            instruction_plus=lambda index: 0,
        )
    if template.style == "single":
        return v0_labels(template, conversation, text, tokenize)
    return next_labels(template, name, segments, tokenizer)


def v0_labels(template: Template, conversation: Conversation, text: str, tokenize: Tokenize) -> list[int]:
    labels = tokenize(text)
    header = len(tokenize(template.system + "\n\n"))
    labels[:header] = [IGNORE] * header
    position = header
    for message in conversation.messages:
        words = message.text
        if message.images:
            mark = "<image>".join(template.image_wrap)
            words = (mark + "\n" + words.strip()).strip()
        role = template.roles[message.role == "assistant"]
        length = len(tokenize(f"### {role}: {words}\n"))
        if message.role == "user":
            labels[position + 2 : position + length] = [IGNORE] * len(labels[position + 2 : position + length])
        position += length
    return labels


def next_labels(template: Template, name: str, segments: Sequence, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Turn by turn, each rendered and tokenised alone; assistant turns whole, and certain tokens wherever they stand."""
    turns: dict[object, str] = {}
    for segment in segments:
        turns[segment.turn] = turns.get(segment.turn, "") + ("<image>" if segment.image else segment.text)
    always = set(tokenizer.convert_tokens_to_ids([marker for marker in template.always_supervised if marker.startswith("<")]))
    always |= {tokenizer("\n\n" if name == "llava_llama_3" else "\n").input_ids[0]}
    labels: list[int] = []
    for turn, text in turns.items():
        ids = tokenize_around_images(text, tokenizer)
        assistant = isinstance(turn, int) and turn % 2 == 1
        labels += [id if assistant or id in always else IGNORE for id in ids]
    return labels


@cache
def processor_for(name: str, tokenizer_name: str) -> Processor:
    """One view of 14 px is one patch: a picture is a single token, as in the original's unexpanded sequence."""
    return Processor(TOKENIZERS[tokenizer_name], replace(tiny_config(name, size=14), image_token_id=IMAGE))


def agrees(name: str, tokenizer_name: str, conversation: Conversation) -> bool:
    """Asserts that ours is the original's mask; False where the original threw the sample away."""
    tokenizer = TOKENIZERS[tokenizer_name]
    expected = original_labels(TEMPLATES[name], name, conversation, tokenizer)
    if expected is None:
        return False
    processor = processor_for(name, tokenizer_name)
    images = [picture()] * len(conversation.images)
    labels = processor(conversation, train=True, mask="official", images=images).labels
    assert labels is not None
    assert labels.tolist() == [IGNORE if label == IMAGE else label for label in expected]
    return True


CASES = [
    *((name, tokenizer) for name in ("v0", "v0_mmtag", "v1", "v1_mmtag", "plain") for tokenizer in ("llama", "llama_legacy")),
    *((name, "llama") for name in ("llava_llama_2", "mpt", "mistral_orca", "gemma_instruct")),
    *((name, "byte_level") for name in ("v0", "plain", "qwen_1_5", "llava_llama_3")),
]


def exchanges(name: str, texts: list[str], images: int) -> Conversation:
    return dialogue(*(texts[:2] if name == "plain" else texts), images=1 if name == "plain" else images)


@pytest.mark.parametrize(("name", "tokenizer"), CASES)
def test_official_mask_is_the_original_s(name, tokenizer):
    for images in (0, 1):
        assert agrees(name, tokenizer, exchanges(name, ["What is shown?", "A cat.", "Why?", "Because it is.", "And?", "No."], images))


# No "<" and "[": what spells a marker is special in the original and plain text here. No colon: " ASSISTANT: " ends its loop.
words = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="<[:#▁"), min_size=1, max_size=6)
spoken = st.lists(words | st.sampled_from([" ", "\n", "  ", "cat", "A dog", "日本", "😀", "\n\n"]), min_size=1, max_size=4).map("".join)


@pytest.mark.parametrize(("name", "tokenizer"), CASES)
def test_official_mask_is_the_original_s_on_generated_conversations(name, tokenizer):
    kept: list[bool] = []

    @given(st.lists(spoken.filter(str.strip), min_size=2, max_size=4).filter(lambda texts: len(texts) % 2 == 0), st.integers(0, 1))
    @settings(max_examples=20, deadline=None, derandomize=True)
    def check(texts, images):
        if tokenizer == "byte_level":  # where a reply's first blanks would merge with its header, ours are cut apart (test_tokens.py)
            texts = [text.strip() for text in texts]
        kept.append(agrees(name, tokenizer, exchanges(name, texts, images)))

    check()
    assert sum(kept) >= len(kept) / 2, f"the original threw away {len(kept) - sum(kept)} of {len(kept)}: this test compared too few"


def test_a_sample_that_the_original_would_throw_away_is_taught_as_it_was_meant():
    quoting = dialogue("Say ' ASSISTANT: '.", "I did.")
    assert not agrees("v1", "llama", quoting)
    processor = processor_for("v1", "llama")
    labels = processor(quoting, train=True, mask="official").labels
    assert processor.decode(labels[labels != IGNORE]) == "I did.</s>"
