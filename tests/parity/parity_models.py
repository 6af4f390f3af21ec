"""Small random models, ours beside transformers' with the same weights, and mixed batches of conversations for them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from vistune.engine.kv_cache import KVArena, KVShape
from vistune.model.config import ImageConfig, ModelConfig
from vistune.model.images import image_layout, prepare_image
from vistune.model.inputs import IGNORE_INDEX, ModelInputs, RaggedBatch, lay_end_to_end
from vistune.model.llava import Llava

IMAGE_TOKEN, VOCABULARY, SIZE, PATCH = 120, 128, 28, 7
SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 3}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SHAPE},
    "llama3_rope": {"model_type": "llama", **SHAPE, "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}},
    "mistral": {"model_type": "mistral", **SHAPE, "head_dim": 8, "sliding_window": None},
    "mistral_window": {"model_type": "mistral", **SHAPE, "head_dim": 8, "sliding_window": 5},
    "qwen2": {"model_type": "qwen2", **SHAPE},
    "qwen2_tied": {"model_type": "qwen2", **SHAPE, "tie_word_embeddings": True},
    "qwen2_window": {"model_type": "qwen2", **SHAPE, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", **SHAPE, "head_dim": 16},
    "phi": {"model_type": "phi", **SHAPE, "partial_rotary_factor": 0.5},
    "phi_qk_norm": {"model_type": "phi", **SHAPE, "num_key_value_heads": 4, "partial_rotary_factor": 0.5, "qk_layernorm": True},
}  # fmt: skip
TOWER = {
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": PATCH,
}
PINPOINTS = ((28, 56), (56, 28), (56, 56), (84, 28), (28, 84))


def text_config(family: str) -> dict[str, Any]:
    # Weights ten times larger than usual: logits far enough apart that a wrong mask or position shows.
    return {**FAMILIES[family], "vocab_size": VOCABULARY, "max_position_embeddings": 1024, "initializer_range": 0.25, "pad_token_id": 0}


def model_config(family: str = "llama", tower: str = "clip", *, anyres: bool = False) -> ModelConfig:
    image = ImageConfig(size=SIZE)
    if anyres:
        image = ImageConfig(size=SIZE, mode="anyres", pinpoints=PINPOINTS, pinpoint_order="transformers", several_images="anyres")
    return ModelConfig(
        vision_tower=tower,
        vision_config=TOWER,
        text_config=text_config(family),
        feature_select="patch" if tower == "clip" else "full",
        image=image,
        image_token_id=IMAGE_TOKEN,
        image_newline=anyres,
    )


def build(config: ModelConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> Llava:
    torch.manual_seed(seed)
    return Llava(config, dtype=dtype).eval()


def conversation(model: Llava, *, words: int, images: Sequence[tuple[int, int]] = (), seed: int = 0, supervised: int = 3) -> ModelInputs:
    """Random words with images of the given sizes (width, height) at random places; the last words are supervised."""
    source = random.Random(seed)
    pictures = [Image.frombytes("RGB", (8, 8), source.randbytes(192)).resize(size) for size in images]
    pieces: list[list[int]] = [[source.randrange(2, 110)] for _ in range(words)]
    for size in images:
        layout = image_layout(size, model.config, images_in_conversation=len(images))
        pieces.insert(source.randrange(1, words - supervised), [IMAGE_TOKEN] * layout.tokens)
    ids = torch.tensor([token for piece in pieces for token in piece])
    views = [prepare_image(picture, model.config, images_in_conversation=len(images)) for picture in pictures]
    labels = torch.where(torch.arange(len(ids)) >= len(ids) - supervised, ids, IGNORE_INDEX)
    return ModelInputs(
        input_ids=ids,
        image_mask=ids == IMAGE_TOKEN,
        labels=labels,
        pixel_values=torch.cat(views).to(model.dtype) if views else None,
        views=tuple(len(view) for view in views),
        image_sizes=tuple(images),
    )


def mixed_conversations(model: Llava, seed: int = 0) -> list[ModelInputs]:
    """0 to 3 images of 40 to 2,000 px sides per conversation; all images of a conversation have one size, so their order is free."""
    source = random.Random(seed)
    conversations = []
    for count, words in ((1, 9), (0, 5), (3, 14), (2, 8), (0, 23)):
        size = (source.randint(40, 2000), source.randint(40, 2000))
        conversations.append(conversation(model, words=words, images=[size] * count, seed=source.randrange(1000)))
    return conversations


def hf_reference(model: Llava) -> Any:
    """transformers' own LLaVA or LLaVA-NeXT with the same weights."""
    config = model.config
    tower_class = {"clip": transformers.CLIPVisionConfig, "siglip": transformers.SiglipVisionConfig}[config.vision_tower]
    # SigLIP's pooling head is part of the weights and no part of the features.
    common = {
        "vision_config": tower_class(**config.vision_config),
        "text_config": {**config.text_config},
        "image_token_id": IMAGE_TOKEN,
        "vision_feature_layer": config.feature_layer,
        "vision_feature_select_strategy": "default" if config.feature_select == "patch" else "full",
        "tie_word_embeddings": bool(config.text_config.get("tie_word_embeddings", False)),
    }
    if config.image_newline:
        hf_config = transformers.LlavaNextConfig(**common, image_grid_pinpoints=[list(pair) for pair in config.image.pinpoints])
        reference = transformers.LlavaNextForConditionalGeneration(hf_config)
    else:
        reference = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**common))
    renamed = {_hf_name(name): tensor for name, tensor in model.state_dict().items()}
    reference.load_state_dict(renamed)
    return reference.to(model.dtype).eval()


def _hf_name(name: str) -> str:
    for ours, theirs in (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model.language_model."),
        ("vision_tower.vision_model.", "model.vision_tower."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return "model." + name


def hf_inputs(model: Llava, conversations: Sequence[ModelInputs], *, side: str = "right") -> dict[str, Tensor]:
    """What transformers takes: a padded batch with its mask, and for LLaVA-NeXT the tiles padded to the most of any image."""
    longest = max(each.num_tokens for each in conversations)

    def padded(tensors: Sequence[Tensor], fill: int) -> Tensor:
        missing = [longest - len(each) for each in tensors]
        pads = [(0, count) if side == "right" else (count, 0) for count in missing]
        return torch.stack([torch.nn.functional.pad(each, pad, value=fill) for each, pad in zip(tensors, pads, strict=True)])

    inputs = {
        "input_ids": padded([each.input_ids for each in conversations], 0),
        "attention_mask": padded([torch.ones(each.num_tokens, dtype=torch.int64) for each in conversations], 0),
    }
    images = [view for each in conversations if each.pixel_values is not None for view in each.pixel_values.split(list(each.views))]
    if not images:
        return inputs
    if not model.config.image_newline:
        return {**inputs, "pixel_values": torch.cat(images)}
    most = max(len(views) for views in images)
    stacked = torch.stack([torch.cat([views, views.new_zeros(most - len(views), *views.shape[1:])]) for views in images])
    sizes = torch.tensor([(height, width) for each in conversations for width, height in each.image_sizes])
    return {**inputs, "pixel_values": stacked, "image_sizes": sizes}


def prefill(model: Llava, conversations: Sequence[ModelInputs]) -> list[Tensor]:
    """Logits of each conversation, all computed in one ragged batch."""
    with torch.inference_mode():
        logits = model(lay_end_to_end(conversations))
    return list(logits.split([each.num_tokens for each in conversations]))


def decode(model: Llava, conversations: Sequence[ModelInputs], steps: int, *, chunk: int | None = None) -> tuple[list[list[int]], Tensor]:
    """Greedy tokens per conversation, decoded together, and the logits of every step [steps, S, V].

    With `chunk`, prompts are read that many tokens at a time, side by side.
    """
    arena = KVArena(KVShape.of(model.config.text_config), dtype=model.dtype)
    sequences = [arena.allocate() for _ in conversations]
    with torch.inference_mode():
        logits = _prefill_by_chunks(model, conversations, arena, sequences, chunk or 10**6)
        history, tokens = [logits], [logits.argmax(-1)]
        for _ in range(steps - 1):
            logits = model(step_batch(tokens[-1], [each.length for each in sequences]), kv=arena.view(sequences))
            history.append(logits)
            tokens.append(logits.argmax(-1))
    return torch.stack(tokens, 1).tolist(), torch.stack(history)


def step_batch(tokens: Tensor, past: Sequence[int]) -> RaggedBatch:
    """One new token for each sequence."""
    count = len(tokens)
    boundaries = torch.arange(count + 1, dtype=torch.int32)
    return RaggedBatch(
        input_ids=tokens, position_ids=torch.tensor(past), cu_seqlens=boundaries, image_mask=torch.zeros(count, dtype=torch.bool)
    )


def _prefill_by_chunks(model: Llava, conversations: Sequence[ModelInputs], arena: KVArena, sequences: list[Any], chunk: int) -> Tensor:
    batches = [lay_end_to_end([each]) for each in conversations]
    embeddings = [model.input_embeddings(batch) for batch in batches]
    last = torch.zeros(len(batches), VOCABULARY, dtype=torch.float32)
    for start in range(0, max(each.num_tokens for each in conversations), chunk):
        active = [index for index, each in enumerate(conversations) if each.num_tokens > start]
        parts = [slice(start, min(start + chunk, conversations[index].num_tokens)) for index in active]
        lengths = torch.tensor([part.stop - part.start for part in parts])
        ends = lengths.cumsum(0)
        batch = RaggedBatch(
            input_ids=torch.cat([batches[index].input_ids[part] for index, part in zip(active, parts, strict=True)]),
            position_ids=torch.cat([torch.arange(part.start, part.stop) for part in parts]),
            cu_seqlens=torch.cat([torch.zeros(1, dtype=torch.int64), ends]).int(),
            image_mask=torch.cat([batches[index].image_mask[part] for index, part in zip(active, parts, strict=True)]),
        )
        given = torch.cat([embeddings[index][part] for index, part in zip(active, parts, strict=True)])
        last[active] = model(batch, select=ends - 1, kv=arena.view([sequences[index] for index in active]), embeddings=given).float()
    return last
