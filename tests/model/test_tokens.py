"""Tokens of rendered text: one call's ids for ordinary text, plain letters for whatever a user types."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import MARKERS, byte_tokenizer, dialogue, llama_tokenizer, texts
from tokenizers import AddedToken, Tokenizer, models
from transformers import BertTokenizerLegacy, PreTrainedTokenizerFast

from vistune.errors import CheckpointError
from vistune.model.templates import Segment, template_named
from vistune.model.tokens import TextEncoder, _owners
from vistune.types import ImagePart

TOKENIZERS = {
    "llama": llama_tokenizer(markers=MARKERS),
    "llama_legacy": llama_tokenizer(legacy=True, markers=MARKERS),
    "byte_level": byte_tokenizer(),
}
ENCODERS = {name: TextEncoder(tokenizer, "<image>") for name, tokenizer in TOKENIZERS.items()}
letters = st.characters(exclude_categories=("Cs",), exclude_characters="<")  # without it no marker can be spelled
ordinary = st.lists(st.text(letters, max_size=8) | st.sampled_from([" ", "\n", "cat", "  dog", "日本", "😀"])).map("".join)


def ids(encoder: TextEncoder, segments: list[Segment], *, chunked: bool = True) -> list[int]:
    return [token.id for token in encoder.encode(segments, chunked=chunked)]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ordinary_text_gets_the_ids_of_one_ordinary_call(name):
    @given(st.lists(st.tuples(ordinary, st.sampled_from(["", "</s>", "<|im_end|>\n", " ASSISTANT: "]))))
    @settings(max_examples=60, deadline=None)
    def check(pieces):
        segments = [segment for typed, written in pieces for segment in (Segment(typed, typed=True), Segment(written))]
        assert ids(ENCODERS[name], segments) == TOKENIZERS[name]("".join(segment.text for segment in segments)).input_ids

    check()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_typed_text_is_never_a_special_token_and_loses_no_letter(name):
    encoder, tokenizer = ENCODERS[name], TOKENIZERS[name]

    @given(texts)
    @settings(max_examples=60, deadline=None)
    def check(typed):
        found = ids(encoder, [Segment("</s>"), Segment(typed, typed=True)])[len(encoder.prefix_ids) + 1 :]
        assert not set(found) & set(tokenizer.all_special_ids) | set(found) & set(tokenizer.get_added_vocab().values())
        # SentencePiece writes a blank as "▁", so the two are one; a legacy tokenizer adds a blank after a special token.
        assert tokenizer.decode(found).replace("▁", " ").strip(" ") == typed.replace("▁", " ").strip(" ")

    check()


def test_the_same_letters_are_special_in_a_template_and_plain_in_a_message():
    encoder = ENCODERS["llama"]
    assert ids(encoder, [Segment("</s>")]) == [1, 2]
    assert ids(encoder, [Segment("</s>", typed=True)]) == [1, 1533, 29879, 29958]


def test_every_special_token_of_the_vocabulary_is_plain_when_typed():
    for name, tokenizer in TOKENIZERS.items():
        for marker in tokenizer.get_added_vocab():
            assert not set(ids(ENCODERS[name], [Segment("x", typed=True), Segment(marker, typed=True)])[1:]) & set(
                tokenizer.get_added_vocab().values()
            )


def test_text_after_a_picture_begins_anew_or_goes_on():
    segments = [Segment("USER: "), Segment(image=ImagePart(b"")), Segment("\nWhat")]
    encoder = ENCODERS["llama"]
    assert ids(encoder, segments) == [1, 3148, 1001, 29901, 29871, -1, 29871, 13, 5618]
    whole = encoder.encode(segments, chunked=False)
    assert [token.id for token in whole if not token.is_image] == [1, 3148, 1001, 29901, 29871, 13, 5618]
    assert [token.is_image for token in whole] == [False] * 5 + [True] + [False] * 2


def test_a_reply_that_would_merge_with_its_header_is_cut_off_from_it():
    """ChatML's header ends in a line break; a reply that begins with one would merge with it into one token."""
    tokenizer, encoder = TOKENIZERS["byte_level"], ENCODERS["byte_level"]
    template = template_named("smollm2")
    reply = dialogue("Q", "\nuser")
    whole = "".join(segment.text for segment in template.segments(reply, generate=False))
    prompt = ids(encoder, template.segments(dialogue("Q"), generate=True))
    assert tokenizer(whole).input_ids[: len(prompt)] != prompt
    assert ids(encoder, template.segments(reply, generate=False))[: len(prompt)] == prompt
    assert tokenizer.decode(ids(encoder, template.segments(reply, generate=False))) == whole


def test_a_bos_that_the_template_writes_is_not_doubled():
    assert ids(ENCODERS["llama"], [Segment("<s>"), Segment("x")])[:2] == [1, TOKENIZERS["llama"]("<s>x").input_ids[2]]


def test_added_words_stay_words_and_added_markers_do_not_match_typed_text():
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate("abcdef<>_ ")}, merges=[]))
    backend.add_tokens([AddedToken("bad", normalized=False), AddedToken("<dead>", normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    encoder = TextEncoder(tokenizer, "<image>")
    word, marker = tokenizer.convert_tokens_to_ids(["bad", "<dead>"])
    assert ids(encoder, [Segment("bad", typed=True)]) == [word]
    assert ids(encoder, [Segment("<dead>")]) == [marker]
    assert marker not in ids(encoder, [Segment("<dead>", typed=True)])


def test_a_tokenizer_without_offsets_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\na\n")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        TextEncoder(BertTokenizerLegacy(str(tmp_path / "vocab.txt")), "<image>")


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), max_size=20),
    st.booleans(),
)
def test_a_token_belongs_to_every_segment_it_shares_a_character_with(pieces, tokens, ascending):
    spans, end = [], 0
    for length, gap in pieces:  # segments may be empty, and a break may stand between two
        spans.append((end, end + length, Segment()))
        end += length + gap
    offsets = [(start, start + length) for start, length in (sorted(tokens) if ascending else tokens)]
    assert _owners(spans, offsets) == [
        tuple(place for place, (first, last, _) in enumerate(spans) if start < last and max(stop, start + 1) > first)
        for start, stop in offsets
    ]
