"""`config.json` of the original LLaVA layout, to and from `ModelConfig`. No tensors here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vistune.checkpoint.files import Fields
from vistune.checkpoint.hub import complete_config, full_text_config, full_vision_config, refuse_code
from vistune.errors import CheckpointError, UnsupportedModel
from vistune.model.backbones import check_language_model, vision_setting, vision_width
from vistune.model.config import ImageConfig, ImageMode, ModelConfig

FAMILIES = {
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
}
"""The original's model types (`llava` up to v1.1, before other families) and the language model family inside."""

TEMPLATES_BY_FAMILY = {"llama": "vicuna_v1", "mistral": "mistral_instruct", "qwen2": "qwen_1_5"}
"""The template of the official releases. Llama checkpoints whose tokenizer has other turn marks: TEMPLATES_BY_TOKEN."""

TEMPLATES_BY_TOKEN = (("<|start_header_id|>", "llava_llama_3"), ("<|im_start|>", "chatml_direct"))

_CLIP_LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
_SIGLIP_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}
KNOWN_TOWERS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14": {**_CLIP_LARGE, "image_size": 224},
    "openai/clip-vit-large-patch14-336": {**_CLIP_LARGE, "image_size": 336},
    "google/siglip-so400m-patch14-384": {**_SIGLIP_SO400M, "image_size": 384},
}
"""Configurations of the official towers, for checkpoints that hold the tower's weights but only name its configuration."""

TOWER_CONFIG_KEY = "vistune_vision_config"
"""Where `save_original` keeps the tower's configuration; the original's own readers ignore it and go by `mm_vision_tower`."""
IMAGE_KEY = "vistune_image"
TEMPLATE_KEY = "vistune_template"


def family_of(values: Mapping[str, Any], where: str) -> str:
    """The language model family. Raises UnsupportedModel for MPT, Gemma, Mixtral and others."""
    family = FAMILIES.get(str(values.get("model_type")))
    if family is None:
        raise UnsupportedModel(
            f"{where} is an original LLaVA of type {str(values.get('model_type'))[:60]!r}; vistune reads {', '.join(FAMILIES)}."
        )
    return family


def read_text_config(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The language model's configuration, which the original keeps at the top level."""
    text = {**values, "model_type": family_of(values, where)}
    return complete_config(text, check_language_model(text).config_class, where)


def read_original_config(
    values: Mapping[str, Any],
    where: str,
    *,
    text_config: Mapping[str, Any],
    vision_tower: str,
    vision_config: Mapping[str, Any],
    image: ImageConfig,
    image_token_id: int,
    template: str,
) -> ModelConfig:
    """The ModelConfig of an original checkpoint. Raises UnsupportedModel for options outside LLaVA-1 to 1.6, by name."""
    refuse_code(values, where)
    fields = Fields(values, where)
    _refuse_options(values, where)
    projector = fields.text("mm_projector_type", "linear")
    if projector not in ("linear", "mlp2x_gelu"):
        raise UnsupportedModel(f"{where}: the projector is {projector!r}; vistune reads linear and mlp2x_gelu from the original layout.")
    select = fields.text("mm_vision_select_feature", "patch")
    if select not in ("patch", "cls_patch"):
        raise UnsupportedModel(f"{where}: mm_vision_select_feature is {select!r}; vistune has patch and cls_patch.")
    mode = _image_mode(fields.text("image_aspect_ratio", "square"), where)
    merge = fields.text("mm_patch_merge_type", "flat")
    if merge not in ("flat", "spatial_unpad"):
        raise UnsupportedModel(f"{where}: mm_patch_merge_type is {merge!r}; vistune has flat and spatial_unpad.")
    siglip = vision_tower == "siglip"
    return ModelConfig(
        vision_tower=vision_tower,
        vision_config=vision_config,
        text_config=text_config,
        projector="mlp2x_gelu" if projector == "mlp2x_gelu" else "linear",
        # The original's SigLIP ignores the setting: its last layer is cut off and the new last state is taken.
        feature_layer=-1 if siglip else fields.integer("mm_vision_select_layer", -2, low=-1024, high=1024),
        feature_select="full" if siglip or select == "cls_patch" else "patch",
        image=ImageConfig(
            size=image.size,
            mean=image.mean,
            std=image.std,
            resize=image.resize,
            mode=mode,
            pinpoints=read_pinpoints(values.get("image_grid_pinpoints"), image.size, where) if mode == "anyres" else (),
        ),
        image_token_id=image_token_id,
        image_newline=merge == "spatial_unpad",
        template=template,
        max_length=fields.integer("tokenizer_model_max_length", 2048, low=1, high=1 << 24),
    )


def _refuse_options(values: Mapping[str, Any], where: str) -> None:
    for option in ("mm_use_im_start_end", "mm_resampler_type", "s2", "add_faster_video", "use_pos_skipping"):
        if values.get(option):
            raise UnsupportedModel(f"{where} sets {option} = {str(values[option])[:60]!r}, which vistune does not have.")


def _image_mode(aspect: str, where: str) -> ImageMode:
    modes: dict[str, ImageMode] = {"square": "square", "pad": "pad", "anyres": "anyres"}
    if aspect not in modes:
        raise UnsupportedModel(f"{where}: image_aspect_ratio is {aspect!r}; vistune has {', '.join(modes)}.")
    return modes[aspect]


def read_pinpoints(value: Any, side: int, where: str) -> tuple[tuple[int, int], ...]:
    """AnyRes candidates (width, height): a list, its text, or NeXT's range "(1x1),...,(6x6)" of multiples of the tower's side."""
    if isinstance(value, str):
        if found := re.fullmatch(r"\s*\((\d{1,2})x(\d{1,2})\)\s*,\s*\.\.\.\s*,\s*\((\d{1,2})x(\d{1,2})\)\s*", value):
            first_w, first_h, last_w, last_h = map(int, found.groups())
            value = [[w * side, h * side] for w in range(first_w, last_w + 1) for h in range(first_h, last_h + 1)]
        else:
            try:
                value = json.loads(value.replace("(", "[").replace(")", "]"))
            except (ValueError, RecursionError) as error:
                raise CheckpointError(f"{where}: image_grid_pinpoints {value[:80]!r} is not a list of sizes.") from error
    return Fields({"image_grid_pinpoints": value}, where).sizes("image_grid_pinpoints")


def original_config(config: ModelConfig, *, vision_tower: str | None, rows: int, dtype: str) -> dict[str, Any]:
    """`config.json` of the original layout. Raises UnsupportedModel for what the original cannot express."""
    family = config.text_config["model_type"]
    model_type = {family: original for original, family in FAMILIES.items() if original != "llava"}.get(family)
    if model_type is None or config.projector == "grid_mlp" or config.vision_tower not in ("clip", "siglip"):
        raise UnsupportedModel(
            f"The original layout has no place for a {family} with {config.vision_tower} and {config.projector}; it knows Llama, Mistral "
            "and Qwen2 with CLIP or SigLIP and linear or mlp2x_gelu. Save a native folder instead."
        )
    if config.image_newline != (config.image.mode == "anyres") and config.image_newline:
        raise UnsupportedModel("The original layout has a newline vector for anyres pictures only.")
    classes = {"llava_llama": "LlavaLlamaForCausalLM", "llava_mistral": "LlavaMistralForCausalLM", "llava_qwen": "LlavaQwenForCausalLM"}
    size = config.image
    pinpoints = size.pinpoints if size.pinpoint_order == "original" else tuple((w, h) for h, w in size.pinpoints)
    return {
        **full_text_config(config),
        "architectures": [classes[model_type]],
        "model_type": model_type,
        "vocab_size": rows,
        "mm_vision_tower": vision_tower or _known_tower(config),
        "mm_hidden_size": vision_width(config),
        "mm_projector_type": config.projector,
        "mm_vision_select_layer": -2 if config.vision_tower == "siglip" else config.feature_layer,
        "mm_vision_select_feature": "cls_patch" if config.feature_select == "full" and config.vision_tower == "clip" else "patch",
        "mm_patch_merge_type": "spatial_unpad" if config.image_newline else "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "image_aspect_ratio": size.mode,
        "image_grid_pinpoints": [list(pair) for pair in pinpoints] or None,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": True,  # the tower's weights are in the checkpoint
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": config.max_length,
        "torch_dtype": dtype,
        TOWER_CONFIG_KEY: full_vision_config(config),
        IMAGE_KEY: {"size": size.size, "mean": list(size.mean), "std": list(size.std), "resize": size.resize},
        TEMPLATE_KEY: config.template,
    }


def _known_tower(config: ModelConfig) -> str:
    for name, values in KNOWN_TOWERS.items():
        layers = values["num_hidden_layers"] - (values["model_type"] == "siglip_vision_model")
        same = all(vision_setting(config, key) == values[key] for key in ("image_size", "patch_size", "hidden_size"))
        if same and vision_setting(config, "num_hidden_layers") in (layers, values["num_hidden_layers"]):
            return name
    raise CheckpointError(
        "The original layout names its vision tower by hub id, and this model's is none of "
        f"{', '.join(KNOWN_TOWERS)}; say which: --tower-id NAME (save_original's vision_tower=)."
    )


def tower_image(values: Mapping[str, Any], where: str, stock: ImageConfig) -> ImageConfig:
    """How pictures are prepared: as `save_original` noted, else as the tower's published weights expect."""
    if IMAGE_KEY not in values:
        return stock
    fields = Fields(Fields(values, where).object(IMAGE_KEY), f"{where} ({IMAGE_KEY})")
    mean, std = fields.numbers("mean", 3), fields.numbers("std", 3)
    return ImageConfig(
        size=fields.integer("size", low=1, high=1 << 14),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        resize="exact" if fields.choice("resize", ("shortest_edge", "exact")) == "exact" else "shortest_edge",
    )


def template_of(values: Mapping[str, Any], family: str, vocabulary: Mapping[str, int]) -> str:
    """The template: as `save_original` noted, by the tokenizer's turn marks for Llama, else that of the family's official release."""
    if isinstance(noted := values.get(TEMPLATE_KEY), str):
        return noted
    if family == "llama":
        for token, template in TEMPLATES_BY_TOKEN:
            if token in vocabulary:
                return template
    return TEMPLATES_BY_FAMILY[family]


def original_tower_path(folder: Path, name: str) -> Path | None:
    """A tower named by a path on this machine: absolute, or inside the checkpoint."""
    for candidate in (Path(name), folder / name):
        if candidate.is_absolute() and candidate.is_dir():
            return candidate
    return None
