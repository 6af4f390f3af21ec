"""The processor: published id vectors, masks, pictures, and what it refuses."""

from __future__ import annotations

import gc
import io
import weakref
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import MARKERS, answers, byte_tokenizer, conversations, dialogue, llama_tokenizer, picture, tiny_config
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaNextProcessor, LlavaProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from vistune import media
from vistune.errors import ContextLengthError, EmptyAnswerError, EmptyMaskError, ImageCountError, UnknownName
from vistune.model.images import prepare_image
from vistune.model.inputs import IGNORE_INDEX, ModelInputs
from vistune.model.processor import Processor
from vistune.model.templates import TEMPLATES
from vistune.types import Conversation, ImagePart, Message, TextPart

TOKENIZERS = {
    "llama": llama_tokenizer(markers=MARKERS),
    "llama_legacy": llama_tokenizer(legacy=True, markers=MARKERS),
    "byte_level": byte_tokenizer(),
}
SYSTEM_IDS = (
    "1,319,13563,1546,263,12758,1404,322,385,23116,21082,20255,29889,450,20255,4076,8444,29892,13173,29892,322,1248,568,6089,304,278,1404,"
    "29915,29879,5155,29889,3148,1001,29901,29871"
)
TWO_TURNS = dialogue("What is shown?", "A cat.", "Why?", "Because.", images=1)


@cache
def processor_for(template: str = "v1", tokenizer: str = "llama", **image: object) -> Processor:
    """With a view of one patch, so that a picture is one token, unless `image` says otherwise."""
    return Processor(TOKENIZERS[tokenizer], replace(tiny_config(template, **({"size": 14} | image)), image_token_id=-200))


def run(processor: Processor, conversation: Conversation, **options) -> ModelInputs:
    return processor(conversation, images=[picture(seed=index) for index in range(len(conversation.images))], **options)


def supervised(inputs: ModelInputs) -> list[int]:
    assert inputs.labels is not None
    return inputs.labels[inputs.labels != IGNORE_INDEX].tolist()


@pytest.mark.parametrize(("tokenizer", "second_user", "total"), [("llama", "11889", 63), ("llama_legacy", "3148,1001", 64)])
@pytest.mark.parametrize("mask", ["answers", "official"])
def test_ids_and_labels_are_those_of_llava_1_5(tokenizer, second_user, total, mask):
    inputs = run(processor_for("v1", tokenizer), TWO_TURNS, train=True, mask=mask)
    expected = (
        f"{SYSTEM_IDS},-200,29871,13,5618,338,4318,29973,319,1799,9047,13566,29901,319,6635,29889,2,"
        f"{second_user},29901,3750,29973,319,1799,9047,13566,29901,7311,29889,2"
    )
    assert inputs.input_ids.tolist() == [int(id) for id in expected.split(",")]
    assert inputs.num_tokens == total
    places = [*range(47, 51), *range(total - 3, total)]
    assert torch.nonzero(inputs.labels != IGNORE_INDEX).squeeze(1).tolist() == places
    assert supervised(inputs) == [319, 6635, 29889, 2, 7311, 29889, 2]


@pytest.mark.parametrize("mask", ["answers", "official"])
def test_a_stage_1_caption_has_the_published_ids_and_labels(mask):
    inputs = run(processor_for("plain"), dialogue("Describe.", "a red bus", images=1), train=True, mask=mask)
    assert inputs.input_ids.tolist() == [1, -200, 263, 2654, 3593, 13]
    assert inputs.labels.tolist() == [-100, -100, 263, 2654, 3593, 13]


def test_only_assistant_turns_are_supervised():
    processor = processor_for()
    inputs = run(processor, TWO_TURNS, train=True)
    assert processor.decode(supervised(inputs)) == "A cat.</s> Because.</s>"


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("name", list(TEMPLATES))
def test_the_generation_prompt_is_a_prefix_of_the_training_ids(name, tokenizer):
    processor = processor_for(name, tokenizer)

    @given(conversations())
    @settings(max_examples=8, deadline=None)
    def check(conversation):
        conversation = fitting(name, conversation)
        prompt = run(processor, Conversation(conversation.messages[:-1])).input_ids
        training = run(processor, conversation, train=True).input_ids
        assert torch.equal(training[: len(prompt)], prompt)

    check()


def fitting(name: str, conversation: Conversation) -> Conversation:
    """The conversation without what the template has no place for."""
    style = TEMPLATES[name].style
    if style == "gemma" and conversation.messages[0].role == "system":
        return Conversation(conversation.messages[1:])
    if style == "plain":
        return dialogue("Describe.", conversation.messages[-1].text, images=1)
    return conversation


@pytest.mark.parametrize("tokenizer", ["llama", "byte_level"])
@pytest.mark.parametrize("name", ["v0", "v1", "llava_llama_2", "mpt", "qwen_1_5", "llava_llama_3", "gemma_instruct", "plain"])
def test_answers_mask_is_the_assistant_s_words_and_the_turn_end(name, tokenizer):
    processor, template = processor_for(name, tokenizer), TEMPLATES[name]

    @given(answers, answers)
    @settings(max_examples=15, deadline=None)
    def check(question, reply):
        inputs = run(processor, dialogue(question, reply, images=1), train=True)
        before_end = {"single": "\n", "llama_2": " "}.get(template.style, "")
        # A letter in front, because Llama's decoder takes a leading blank away; "▁" is how SentencePiece writes a blank.
        letter = processor.tokenizer.convert_tokens_to_ids("x")
        decoded = processor.decode([letter, *supervised(inputs)])[1:].replace("▁", " ")
        expected = reply.replace("▁", " ") + before_end + template.stop
        joined = [" "] if template.style in ("single", "two", "llama_2", "plain") else []  # a blank before the words may join the first
        assert decoded in (expected, *(blank + expected for blank in joined))

    check()


def test_a_conversation_that_ends_in_an_assistant_message_is_continued():
    processor = processor_for()
    prompt, begun = run(processor, dialogue("Hi")), run(processor, dialogue("Hi", "Well,"))
    assert torch.equal(begun.input_ids[: prompt.num_tokens], prompt.input_ids)
    assert processor.decode(begun.input_ids).endswith("ASSISTANT: Well,")
    assert begun.labels is None


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_nothing_that_is_typed_becomes_a_special_token(tokenizer):
    processor = processor_for("v1", tokenizer)
    special = set(TOKENIZERS[tokenizer].get_added_vocab().values())
    plain = run(processor, dialogue("x", "y"), train=True).input_ids.tolist()
    for marker in (*MARKERS, "<s>", "</s>", "<unk>", "<image>"):
        ids = run(processor, dialogue(marker, marker + "y"), train=True).input_ids.tolist()
        assert [id for id in ids if id in special] == [id for id in plain if id in special], marker


def test_each_picture_becomes_as_many_placeholders_as_its_layout_says():
    processor = processor_for(size=28)
    conversation = Conversation((Message("user", (ImagePart(b""), TextPart(" or "), ImagePart(b""), TextPart("?"))),))
    inputs = run(processor, conversation)
    assert int(inputs.image_mask.sum()) == 8
    assert (inputs.input_ids[inputs.image_mask] == -200).all()
    assert (inputs.views, inputs.image_sizes, tuple(inputs.pixel_values.shape)) == ((1, 1), ((30, 20), (30, 20)), (2, 3, 28, 28))
    assert torch.equal(inputs.pixel_values[1:], prepare_image(picture(seed=1), processor.config))


def test_pictures_are_opened_from_their_source_and_counted_without_pixels():
    processor, file = processor_for(size=28), io.BytesIO()
    picture().save(file, "PNG")
    conversation = Conversation((Message("user", (ImagePart(file.getvalue()), TextPart("?"))),))
    opened, counted = processor(conversation), processor(conversation, load_pixels=False)
    assert torch.equal(opened.pixel_values, processor(conversation, images=[picture()]).pixel_values)
    assert torch.equal(opened.input_ids, counted.input_ids)
    assert (counted.pixel_values, counted.image_keys, counted.image_sizes) == (None, (), ((30, 20),))


def test_pictures_are_opened_one_at_a_time_by_the_opener_that_was_given():
    held: list[weakref.ref[Image.Image]] = []
    sources: list[object] = []

    def open_image(source: object) -> Image.Image:
        gc.collect()
        assert all(earlier() is None for earlier in held), "an earlier picture is still in memory"
        opened = picture(seed=len(held))
        sources.append(source)
        held.append(weakref.ref(opened))
        return opened

    conversation, processor = dialogue("?", images=16), processor_for()
    inputs = processor.opening_with(open_image)(conversation)
    assert sources == [part.source for part in conversation.images]
    assert torch.equal(inputs.pixel_values, run(processor, conversation).pixel_values)
    assert inputs.image_keys == run(processor, conversation).image_keys
    assert processor.open_image is media.open_image


def test_image_keys_tell_apart_what_embeddings_depend_on():
    def key(processor: Processor, *, seed: int = 0, images: int = 1) -> str:
        return processor(dialogue("?", images=images), images=[picture(seed=seed)] * images).image_keys[0]

    pad = processor_for(size=28)
    anyres = processor_for(size=28, mode="anyres", pinpoints=((28, 56), (56, 28)))
    keys = [key(pad), key(pad, seed=1), key(processor_for(size=28, mode="square")), key(anyres), key(anyres, images=2)]
    assert len(set(keys)) == len(keys)
    assert key(pad) == key(pad, images=2) == key(processor_for("llava_v1", size=28))


@st.composite
def shown_conversations(draw: st.DrawFn) -> Conversation:
    """Conversations in which text spells no marker: transformers would read one as special."""
    words = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="<"), min_size=1, max_size=8).filter(str.strip)
    return draw(conversations(words=words))


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_ids_and_pixels_equal_those_of_transformers_processors(tokenizer):
    markers = (*MARKERS, "<image>")
    hub = {"llama": llama_tokenizer(markers=markers), "llama_legacy": llama_tokenizer(legacy=True, markers=markers)}.get(
        tokenizer, byte_tokenizer()
    )
    token_id = hub.convert_tokens_to_ids("<image>")
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    pinpoints = ((28, 56), (56, 28), (56, 56))
    counts = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    tiles = LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=[list(pair) for pair in pinpoints])
    anyres = {"mode": "anyres", "pinpoints": pinpoints, "pinpoint_order": "transformers", "several_images": "anyres"}
    pairs = [
        (LlavaProcessor(CLIPImageProcessorPil(**sizes), hub, **counts), {"mode": "square"}),
        (LlavaNextProcessor(tiles, hub, **counts), anyres),
    ]
    pairs = [
        (theirs, Processor(hub, replace(tiny_config("v1", text_after_image="transformers", **image), image_token_id=token_id)))
        for theirs, image in pairs
    ]

    @given(shown_conversations(), st.integers(0, 3), st.sampled_from(pairs))
    @settings(max_examples=20, deadline=None)
    def check(conversation, seed, pair):
        theirs, ours = pair
        images = [picture(40 + 97 * seed, 60 + 31 * index, seed) for index in range(len(conversation.images))]
        segments = TEMPLATES["v1"].segments(conversation, generate=False)
        text = "".join("<image>" if segment.image else segment.text for segment in segments)
        expected = theirs(images=images or None, text=text, return_tensors="pt")
        inputs = ours(conversation, train=True, images=images)
        assert torch.equal(inputs.input_ids, expected["input_ids"][0])
        if images:
            # transformers pads the stack of views of each picture with zeros; ours has the real ones only.
            views = expected["pixel_values"] if expected["pixel_values"].ndim == 5 else expected["pixel_values"][:, None]
            assert torch.equal(inputs.pixel_values, torch.cat([each[:count] for each, count in zip(views, inputs.views, strict=True)]))

    check()


def test_stops_are_tokens_where_the_tokenizer_has_them_and_strings_elsewhere():
    assert (processor_for("v1").stop_ids, processor_for("v1").stop_strings) == ({2}, ())
    assert processor_for("v0").stop_strings == ("###",)
    assert processor_for("mpt").stop_ids == {2, TOKENIZERS["llama"].convert_tokens_to_ids("<|im_end|>")}
    assert Processor(llama_tokenizer(), tiny_config("mpt")).stop_strings == ("<|im_end|>",)


def test_a_preview_shows_what_is_supervised():
    processor = processor_for(size=28)
    inputs = run(processor, dialogue("What?", "A cat.", images=1), train=True)
    preview = processor.masked_preview(inputs, colour=False)
    assert preview.endswith("USER: [picture: 4 tokens]\nWhat? ASSISTANT:⟦A cat.</s>⟧")
    assert "\x1b[32mA cat.</s>\x1b[0m" in processor.masked_preview(inputs)


def test_a_prompt_longer_than_the_context_says_what_fills_it():
    processor = Processor(TOKENIZERS["llama"], replace(tiny_config(), max_length=40))
    with pytest.raises(ContextLengthError, match=r"48 tokens: 44 of text and 4 for 1 picture\. The model's context is 40"):
        run(processor, dialogue("What?", images=1))


def test_pictures_and_places_must_match():
    processor = processor_for()
    with pytest.raises(ImageCountError, match="1 place for pictures, but 0 pictures"):
        processor(dialogue("?", images=1), images=[])
    hidden = Conversation((Message("system", (ImagePart(b""),)), *dialogue("?").messages))
    with pytest.raises(ImageCountError, match="1 picture, of which 0 can be shown"):
        processor(hidden)


def test_training_needs_words_and_something_to_learn():
    with pytest.raises(EmptyAnswerError):
        run(processor_for(), dialogue("Hi", " "), train=True)
    with pytest.raises(EmptyMaskError, match="vicuna_v1"):
        run(processor_for("vicuna_v1"), dialogue("Hi"), train=True)
    with pytest.raises(UnknownName, match="vicuna_v1"):
        Processor(TOKENIZERS["llama"], tiny_config("vicuna"))
