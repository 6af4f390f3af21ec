"""A tiny tokenizer and tiny random models, for the tests of this room and for parity."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from vistune.checkpoint.assemble import add_image_token
from vistune.checkpoint.tensors import open_weights, tensor_bytes
from vistune.model.config import ImageConfig, ModelConfig
from vistune.model.llava import Llava
from vistune.model.processor import Processor

ROWS = 258  # two special tokens and the bytes
HEAD = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TOWER = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes with BOS in front, as the language model's publisher saved it: without `<image>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {letter: index + 2 for index, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in ("<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def tiny_config(
    *,
    family: str = "llama",
    tower: str = "clip",
    mode: str = "pad",
    order: str = "original",
    text_after_image: str = "original",
    tie: bool = False,
    **changes: Any,
) -> ModelConfig:
    exact = tower == "siglip"
    return ModelConfig(
        **{
            "vision_tower": tower,
            "vision_config": {"model_type": f"{tower}_vision_model", **TOWER},
            "text_config": {
                "model_type": family,
                **HEAD,
                "vocab_size": ROWS,
                "max_position_embeddings": 512,
                "bos_token_id": 0,
                "eos_token_id": 1,
                "pad_token_id": None,
                "tie_word_embeddings": tie,
            },
            "feature_select": "full" if exact else "patch",
            "image": ImageConfig(
                size=28,
                mode=mode,  # type: ignore[arg-type]
                resize="exact" if exact else "shortest_edge",
                mean=(0.5, 0.5, 0.5) if exact else ImageConfig().mean,
                std=(0.5, 0.5, 0.5) if exact else ImageConfig().std,
                pinpoints=((28, 56), (56, 28), (56, 56), (84, 28), (28, 84)) if mode == "anyres" else (),
                pinpoint_order=order,  # type: ignore[arg-type]
                text_after_image=text_after_image,  # type: ignore[arg-type]
            ),
            "image_token_id": ROWS,
            "image_newline": mode == "anyres",
            "max_length": 512,
            **changes,
        }
    )


def tiny_llava(seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[Llava, Processor]:
    """A random model and its processor; `settings` as in `tiny_config`."""
    torch.manual_seed(seed)
    config = tiny_config(**settings)
    tokenizer = tiny_tokenizer()
    assert add_image_token(tokenizer) == config.image_token_id
    return Llava(config, dtype=dtype).eval(), Processor(tokenizer, config)


def digests(source: Llava | Path) -> dict[str, str]:
    """sha256 of each tensor, of a model in memory or of a folder's files."""
    stored = isinstance(source, Path)
    tensors = {name: slot.read() for name, slot in open_weights(source).items()} if stored else source.state_dict()
    return {name: hashlib.sha256(bytes(tensor_bytes(tensor))).hexdigest() for name, tensor in tensors.items()}
