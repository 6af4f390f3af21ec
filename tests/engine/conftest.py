"""A tiny random LLaVA with a byte-level tokenizer, and engines around it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vistune.engine.engine import Engine
from vistune.model.config import ImageConfig, ModelConfig
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.types import Conversation, ImagePart

Result = TypeVar("Result")

SPECIAL = ("<|im_start|>", "<|im_end|>", "<image>")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, then the special ones: the smallest tokenizer that knows every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


def tiny_config(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> ModelConfig:
    """CLIP at 28 px (a picture is 4 tokens) and a two-layer Llama."""
    settings: dict[str, Any] = {
        "vision_tower": "clip",
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": 28,
            "patch_size": 14,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        "text_config": {
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
        },
        "image": ImageConfig(size=28),
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "template": "chatml_direct",
        "max_length": 700,
    }
    return ModelConfig(**(settings | changes))


@pytest.fixture(scope="session")
def processor() -> Processor:
    tokenizer = byte_tokenizer()
    return Processor(tokenizer, tiny_config(tokenizer))


def tiny_model(processor: Processor) -> Llava:
    torch.manual_seed(1)
    model = Llava(processor.config).eval()
    head = model.causal_lm.lm_head.weight
    printable = torch.tensor(
        [processor.decode([token]).isprintable() and processor.decode([token]).isascii() for token in range(len(head))]
    )
    with torch.no_grad():
        head.mul_(20)  # spread the logits: the tests compare choices, which near ties would leave to rounding
        head[~printable] = 0  # greedy words are plain letters, which become the same tokens again when they are part of a prompt
    return model


@pytest.fixture(scope="session")
def model(processor: Processor) -> Llava:
    return tiny_model(processor)


@pytest.fixture
def make_engine(model: Llava, processor: Processor) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(**options: Any) -> Engine:
        engines.append(Engine(options.pop("model", model), options.pop("processor", processor), **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Rows per sequence of every forward pass."""
    passes: list[list[int]] = []
    original = Llava.hidden_states

    def recorded(self: Llava, batch: Any, **arguments: Any) -> torch.Tensor:
        passes.append(batch.lengths)
        return original(self, batch, **arguments)

    monkeypatch.setattr(Llava, "hidden_states", recorded)
    return passes


def picture(seed: int = 0) -> ImagePart:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return ImagePart(file.getvalue())


def ask(text: str, *, image: ImagePart | None = None) -> Conversation:
    parts = [text] if image is None else [image, text]
    return Conversation(()).then("user", *parts)


def run(work: Awaitable[Result]) -> Result:
    """Runs a coroutine; nothing here may take longer than a minute."""

    async def limited() -> Result:
        return await asyncio.wait_for(work, 60)

    return asyncio.run(limited())
