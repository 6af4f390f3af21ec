"""Tokenizers, a tiny model configuration and generated conversations for the tests of this room.

A module of its own name and not `conftest`, of which every room may have one.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from vistune.model.config import ImageConfig, ModelConfig
from vistune.types import Conversation, ImagePart, Message, TextPart

FIXTURES = Path(__file__).parent.parent / "fixtures"

MARKERS = (
    *("<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>"),
)


@cache
def llama_tokenizer(*, legacy: bool = False, markers: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Llama's SentencePiece tokenizer: a blank before each piece of text (legacy), or before the first only.

    `markers` become special tokens after its own 32,000.
    """
    data = json.loads(gzip.decompress((FIXTURES / "llama_tokenizer.json.gz").read_bytes()))
    words, merges = data["vocabulary"], data["merges"]
    pairs = [(words[left], words[right]) for left, right in zip(merges[::2], merges[1::2], strict=True)]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in ("<unk>", "<s>", "</s>", *markers)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A small byte-level BPE without BOS, cut like Qwen's and Llama-3's: it merges line breaks and blanks. With markers and `<image>`."""
    tokenizer = Tokenizer(models.BPE())
    cut = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(cut), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    corpus = [
        "What is shown in the picture?\n\nA cat and a dog\n\nof words\n  user\n\nassistant\n\n    system USER: ASSISTANT: Human ### [INST]"
    ]
    tokenizer.train_from_iterator(corpus * 20, trainer)
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in (*MARKERS, "</s>", "<s>", "<image>")])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", unk_token=None)


def tiny_config(template: str = "v1", **image: object) -> ModelConfig:
    """CLIP at 28 px with 2x2 patches: a picture is 4 tokens."""
    settings = replace(ImageConfig(size=28), **image)  # type: ignore[arg-type]
    return ModelConfig(
        vision_tower="clip",
        vision_config={"model_type": "clip_vision_model", "image_size": settings.size, "patch_size": 14, "hidden_size": 8},
        text_config={"model_type": "llama"},
        image=settings,
        image_newline=image.get("mode") == "anyres",
        template=template,
        max_length=100_000,
    )


def picture(width: int = 30, height: int = 20, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def dialogue(*texts: str, images: int = 0) -> Conversation:
    """User and assistant in turns; the first user message shows `images` pictures."""
    first = Message("user", (*(ImagePart(b""),) * images, TextPart(texts[0])))
    rest = tuple(Message("assistant" if index % 2 == 0 else "user", (TextPart(text),)) for index, text in enumerate(texts[1:]))
    return Conversation((first, *rest))


# Texts that try to be taken for something else: role markers, special tokens, merging blanks, letters of several bytes.
_SNIPPETS = (
    *("</s>", "<s>", "<unk>", "<image>", "<|im_end|>", "<|im_start|>assistant\n", "<end_of_turn>", "<|eot_id|>", "[/INST] ", "###"),
    *(
        " ASSISTANT: ",
        "### Human: ",
        "\n",
        "\n\n",
        " ",
        "  ",
        "\t",
        "▁",
        "cat",
        " dog",
        "What is shown?",
        "日本",
        "😀",
        "é",
        "<0x0A>",
        "A.",
    ),
)
texts = st.lists(
    st.sampled_from(_SNIPPETS) | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=4), min_size=1, max_size=6
).map("".join)
answers = texts.filter(lambda text: text.strip() != "")


@st.composite
def conversations(draw: st.DrawFn, *, words: st.SearchStrategy[str] = answers, max_images: int = 2) -> Conversation:
    """One to three exchanges; a picture or several in any user message, at any place."""
    messages: list[Message] = []
    if draw(st.booleans()):
        messages.append(Message("system", (TextPart(draw(words)),)))
    for _ in range(draw(st.integers(1, 3))):
        parts: list[TextPart | ImagePart] = [TextPart(draw(words)) for _ in range(draw(st.integers(1, 2)))]
        for _ in range(draw(st.integers(0, max_images))):
            parts.insert(draw(st.integers(0, len(parts))), ImagePart(b""))
        messages += [Message("user", tuple(parts)), Message("assistant", (TextPart(draw(words)),))]
    return Conversation(tuple(messages))
