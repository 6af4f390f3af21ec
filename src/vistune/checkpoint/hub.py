"""The Hugging Face side: `config.json`, processor and generation settings of a LLaVA or LLaVA-NeXT folder, to and from `ModelConfig`.

A folder that vistune wrote carries `vistune.json` and comes back as it was. Any other is read with these defaults:

    image mode            `anyres` for llava_next; for llava `pad` if its image processor has do_pad, else `square` (what transformers does)
    pinpoint order        `transformers`: entries are (height, width)
    several images        `anyres` each, as transformers does
    text after an image   `transformers`
    template              by the marks in its chat template (CHAT_TEMPLATE_MARKS); without a chat template `vicuna_v1`

What transformers does differently from the original with the very folder we write, each a setting of `ImageConfig`:

    crop or pad           without do_pad the centre is cropped; published LLaVA-1.5 folders lack it, ours set it for mode `pad`.
    text after an image   the original tokenises it as a piece of its own; transformers' processor as the continuation of the text before.
    several images        the original pads each, transformers' LLaVA-NeXT tiles each.
    unpadding             transformers rounds to 7 decimals before cutting (rare: one row or column at exact ratios).
    torchvision           where it is installed, transformers resizes with it: pixels then differ in the last bits from Pillow's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import transformers

from vistune.checkpoint.files import Fields, contained_file, has_file, read_json
from vistune.checkpoint.settings import SETTINGS_NAME, config_from, read_settings
from vistune.errors import CheckpointError, UnsupportedModel
from vistune.model.backbones import (
    VISION_TOWERS,
    check_language_model,
    patches_per_side,
    tokens_per_view,
    vision_setting,
    vision_tower_spec,
)
from vistune.model.config import OFFICIAL_PINPOINTS, ImageConfig, ModelConfig

ARCHITECTURES = {"llava": "LlavaForConditionalGeneration", "llava_next": "LlavaNextForConditionalGeneration"}

CHAT_TEMPLATE_MARKS = (
    ("created by Alibaba Cloud", "qwen_2_5"),
    ("trained by Hugging Face", "smollm2"),
    ("Answer the questions.", "chatml_direct"),
    ("<|start_header_id|>", "llava_llama_3"),
    ("<|im_start|>", "qwen_1_5"),
    ("<start_of_turn>", "gemma_instruct"),
    ("[INST]", "mistral_instruct"),
    ("USER:", "vicuna_v1"),
    ("###", "llava_v0"),
)
"""What a stored chat template writes around turns, and the template of ours that was trained so. The first mark found decides."""

# Bounds that keep a hostile configuration from costing memory or minutes before its tensors are compared with it.
_BOUNDS = {
    "num_hidden_layers": 512,
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 20,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 12,
    "vocab_size": 1 << 22,
    "max_position_embeddings": 1 << 24,
    "image_size": 1 << 14,
    "patch_size": 1 << 10,
    "num_channels": 16,
}
_LEGACY_KEYS = frozenset({"rope_theta", "rope_scaling", "partial_rotary_factor", "tie_word_embeddings"})
_CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines", "quantization_config")


def refuse_code(values: Mapping[str, Any], where: str) -> None:
    """Raises CheckpointError for a configuration that asks for code of its own, or for quantised weights."""
    for key in _CODE_KEYS:
        if values.get(key):
            raise CheckpointError(f"{where} sets {key}; vistune runs no code from checkpoints and reads plain weights only.")


def complete_config(values: Mapping[str, Any], config_class: str, where: str) -> dict[str, Any]:
    """A backbone's configuration with every field that its class declares, and none that it does not.

    Hub folders leave defaults out and carry generation settings of old releases along. Raises CheckpointError for values that the class
    refuses or that are out of any reasonable range.
    """
    refuse_code(values, where)
    fields = Fields(values, where)
    for name, high in _BOUNDS.items():
        if name in fields:
            fields.integer(name, low=1, high=high)
    cls = getattr(transformers, config_class)
    declared = (set(cls().to_dict()) - set(transformers.PreTrainedConfig().to_dict())) | _LEGACY_KEYS
    try:
        known = cls(**{name: value for name, value in values.items() if name in declared and value is not None}).to_dict()
    except Exception as error:
        # Configuration classes validate with whatever exception they like; each means that the values do not describe a model.
        raise CheckpointError(f"{where} is no valid {config_class}: {' '.join(str(error).split())[:300]}") from error
    complete = {name: value for name, value in sorted(known.items()) if name in declared}
    return {"model_type": cls.model_type, **complete}


def full_text_config(config: ModelConfig) -> dict[str, Any]:
    """The language model's configuration with every default spelled out, so that a later transformers cannot mean something else."""
    return complete_config(config.text_config, check_language_model(config.text_config).config_class, "text_config")


def full_vision_config(config: ModelConfig) -> dict[str, Any]:
    """The tower's configuration, likewise; empty for a tower that has none."""
    return read_vision_config(config.vision_config, "vision_config")[1] if config.vision_config else {}


def read_config(folder: Path, *, template: str | None = None) -> ModelConfig:
    """The ModelConfig of a Hugging Face LLaVA or LLaVA-NeXT folder. Raises CheckpointError or UnsupportedModel."""
    where = str(folder / "config.json")
    values = read_json(folder, "config.json")
    refuse_code(values, where)
    fields = Fields(values, where)
    vision_tower, vision_config = read_vision_config(fields.object("vision_config", {}), f"{where} (vision_config)")
    text_values = fields.object("text_config", {})
    text_values.setdefault("model_type", "llama")  # what transformers assumes
    if values.get("tie_word_embeddings"):
        text_values["tie_word_embeddings"] = True
    spec = check_language_model(text_values)
    text_config = complete_config(text_values, spec.config_class, f"{where} (text_config)")
    if settings := read_settings(folder):
        rows = Fields(settings, str(folder / SETTINGS_NAME)).integer("vocabulary_rows", int(text_config["vocab_size"]), low=1)
        text_config["vocab_size"] = min(rows, int(text_config["vocab_size"]))
        config = config_from(settings, vision_config=vision_config, text_config=text_config, where=str(folder / SETTINGS_NAME))
        _agree(config, values, where)
        return config
    return _default_config(folder, fields, vision_tower, vision_config, text_config, template)


def read_vision_config(values: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """The tower's name in VISION_TOWERS and its complete configuration."""
    model_type = values.get("model_type", "clip_vision_model")
    for name, spec in VISION_TOWERS.items():
        if spec.model_type == model_type and spec.config_class:
            if model_type == "clip_vision_model" and "model_type" not in values:  # transformers' own defaults for a LLaVA without them
                values = {**_LLAVA_VISION_DEFAULTS, **values}
            return name, complete_config(values, spec.config_class, where)
    known = ", ".join(spec.model_type for spec in VISION_TOWERS.values() if spec.model_type)
    raise UnsupportedModel(f"{where}: the vision tower is a {str(model_type)[:60]!r}; vistune reads {known}.")


_LLAVA_VISION_DEFAULTS = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "patch_size": 14,
    "image_size": 336,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "projection_dim": 768,
}


def _default_config(
    folder: Path, fields: Fields, vision_tower: str, vision_config: dict[str, Any], text_config: dict[str, Any], template: str | None
) -> ModelConfig:
    anyres = fields.choice("model_type", tuple(ARCHITECTURES)) == "llava_next"
    strategy = fields.choice("vision_feature_select_strategy", ("default", "full"), "default")
    if strategy == "default" and not vision_tower_spec(vision_tower).has_cls:
        raise UnsupportedModel(
            f"{folder}: vision_feature_select_strategy 'default' drops the first token, but a {vision_tower} tower has no class token "
            "there, only a patch; set it to 'full' if the model was trained with all patches."
        )
    if fields.boolean("multimodal_projector_bias", True) is False or fields.text("projector_hidden_act", "gelu") != "gelu":
        raise UnsupportedModel(f"{folder}: its projector has no bias or another activation than gelu; vistune has the LLaVA-1.5 one.")
    image = read_image_config(folder, vision_tower, vision_config)
    if anyres:
        pinpoints = fields.sizes("image_grid_pinpoints", OFFICIAL_PINPOINTS)
        image = replace(image, mode="anyres", pinpoints=pinpoints)
    image_token_id = fields.integer("image_token_index" if "image_token_index" in fields else "image_token_id", 32000, high=1 << 24)
    return ModelConfig(
        vision_tower=vision_tower,
        vision_config=vision_config,
        text_config=text_config,
        feature_layer=fields.integer("vision_feature_layer", -2, low=-1024, high=1024),
        feature_select="patch" if strategy == "default" else "full",
        image=image,
        image_token_id=image_token_id,
        image_newline=anyres,
        template=template or _template_of(folder),
        max_length=int(text_config["max_position_embeddings"]),
    )


def read_image_config(folder: Path, vision_tower: str, vision_config: Mapping[str, Any]) -> ImageConfig:
    """How the folder's image processor prepares a picture; without one, as the tower's published weights expect."""
    stock = replace(
        vision_tower_spec(vision_tower).image,
        size=int(vision_config["image_size"]),
        mode="square",
        pinpoint_order="transformers",
        several_images="anyres",
        text_after_image="transformers",
    )
    values, where = _image_processor(folder)
    if values is None:
        return stock
    fields = Fields(values, where)
    mean, std = fields.numbers("image_mean", 3, stock.mean), fields.numbers("image_std", 3, stock.std)
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not fields.boolean(step, True):
            raise UnsupportedModel(f"{where} turns {step} off; vistune always resizes, rescales and normalises.")
    if fields.integer("resample", 3) != 3:
        raise UnsupportedModel(f"{where} resizes with filter {values['resample']}; every LLaVA uses 3 (bicubic).")
    size = values.get("size") or {"shortest_edge": stock.size}
    if isinstance(size, int):  # before transformers 4.26
        size = {"shortest_edge": size}
    shortest = isinstance(size, dict) and "shortest_edge" in size
    side = Fields(size if isinstance(size, dict) else {}, f"{where} (size)").integer(
        "shortest_edge" if shortest else "height", low=1, high=1 << 14
    )
    if side != stock.size:
        raise UnsupportedModel(f"{where} makes images of {side} px, but the tower sees {stock.size} px (vision_config.image_size).")
    return replace(
        stock,
        mean=mean,
        std=std,
        resize="shortest_edge" if shortest else "exact",
        # LLaVA-NeXT's do_pad is about the number of tiles, not about the shape of the picture.
        mode="pad" if fields.boolean("do_pad", False) and "image_grid_pinpoints" not in fields else "square",
    )


def _image_processor(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The image processor's settings: inside processor_config.json (5.x), else preprocessor_config.json (4.x)."""
    if has_file(folder, "processor_config.json"):
        nested = read_json(folder, "processor_config.json").get("image_processor")
        if isinstance(nested, dict):
            return nested, f"{folder / 'processor_config.json'} (image_processor)"
    if has_file(folder, "preprocessor_config.json"):
        return read_json(folder, "preprocessor_config.json"), str(folder / "preprocessor_config.json")
    return None, ""


def _template_of(folder: Path) -> str:
    """The template that the folder's chat template was written for, by its marks."""
    text = ""
    if has_file(folder, "chat_template.jinja"):
        text = contained_file(folder, "chat_template.jinja").read_text(encoding="utf-8", errors="replace")[: 1 << 20]
    for name in ("chat_template.json", "tokenizer_config.json"):
        if not text and has_file(folder, name):
            text = str(read_json(folder, name).get("chat_template") or "")
    if not text:
        return "vicuna_v1"
    for mark, template in CHAT_TEMPLATE_MARKS:
        if mark in text:
            return template
    raise CheckpointError(
        f"{folder} has a chat template that vistune does not know (it looks for {', '.join(mark for mark, _ in CHAT_TEMPLATE_MARKS)}). "
        "Say which template the model was trained with: --template NAME (load_model's template=)."
    )


def why_native(config: ModelConfig) -> str | None:
    """What of this model the Hugging Face LLaVA classes cannot express, or None if they can."""
    spec = vision_tower_spec(config.vision_tower)
    if spec.model_type is None:
        return f"the vision tower {config.vision_tower}"
    if config.projector != "mlp2x_gelu":
        return f"the projector {config.projector}"
    if config.text_config["model_type"] == "phi":
        return "the bias of Phi's head"
    if (config.image.mode == "anyres") != config.image_newline:
        return f"image mode {config.image.mode} {'with' if config.image_newline else 'without'} a newline vector"
    return None


def hub_config(config: ModelConfig, *, dtype: str, rows: int) -> dict[str, Any]:
    """`config.json` of a Hugging Face folder for a model that `why_native` has nothing against; `rows` of its embeddings on disk."""
    spec = check_language_model(config.text_config)
    model_type: Literal["llava", "llava_next"] = "llava_next" if config.image.mode == "anyres" else "llava"
    tied = bool(config.text_config.get("tie_word_embeddings"))
    values: dict[str, Any] = {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "text_config": {**full_text_config(config), "architectures": [spec.model_class], "vocab_size": rows},
        "vision_config": full_vision_config(config),
        "image_token_index": config.image_token_id,
        "image_seq_length": tokens_per_view(config),
        "vision_feature_layer": config.feature_layer,
        "vision_feature_select_strategy": _strategy(config),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": tied,
        "dtype": dtype,
        "torch_dtype": dtype,  # the name before transformers 4.56; SGLang reads it
    }
    if model_type == "llava_next":
        values["image_grid_pinpoints"] = [list(pair) for pair in _height_first(config.image)]
        values["use_image_newline_parameter"] = True
    return values


def _strategy(config: ModelConfig) -> str:
    drops_cls = config.feature_select == "patch" and vision_tower_spec(config.vision_tower).has_cls
    return "default" if drops_cls else "full"


def _height_first(image: ImageConfig) -> tuple[tuple[int, int], ...]:
    """AnyRes candidates as transformers reads them. Each keeps its place in the list, so that ties fall as they do for us."""
    return image.pinpoints if image.pinpoint_order == "transformers" else tuple((height, width) for width, height in image.pinpoints)


def _agree(config: ModelConfig, values: Mapping[str, Any], where: str) -> None:
    """Raises CheckpointError if `config.json` was edited to say something else than `vistune.json` about the same thing."""
    expected = hub_config(config, dtype="", rows=0)
    for key in ("model_type", "image_token_index", "vision_feature_layer", "vision_feature_select_strategy", "image_grid_pinpoints"):
        if key in values and values[key] != expected.get(key):
            raise CheckpointError(
                f"{where} has {key} = {str(values[key])[:80]}, but {SETTINGS_NAME} beside it means {expected.get(key)}; "
                f"change both, or remove {SETTINGS_NAME} to read the folder as any hub folder."
            )


def image_processor_config(config: ModelConfig) -> dict[str, Any]:
    """Settings of the transformers image processor that makes the pixels that `prepare_image` makes."""
    image, side = config.image, config.image.size
    cropped = image.resize == "shortest_edge"
    values: dict[str, Any] = {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side} if cropped else {"height": side, "width": side},
        "resample": 3,
        "do_center_crop": cropped,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
    }
    if cropped:
        values["crop_size"] = {"height": side, "width": side}
    match image.mode:
        case "anyres":
            pinpoints = [list(pair) for pair in _height_first(image)]
            values |= {"image_processor_type": "LlavaNextImageProcessor", "do_pad": True, "image_grid_pinpoints": pinpoints}
        case "pad":
            values |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
        case "square":
            values["image_processor_type"] = "CLIPImageProcessor" if cropped else "SiglipImageProcessor"
    return values


def processor_config(config: ModelConfig) -> dict[str, Any]:
    """`processor_config.json`. The number of additional tokens is what makes 576 of 577: wrong, transformers counts 575."""
    return {
        "processor_class": "LlavaNextProcessor" if config.image.mode == "anyres" else "LlavaProcessor",
        "image_processor": image_processor_config(config),
        "image_token": config.image_token,
        "patch_size": vision_setting(config, "image_size") // patches_per_side(config),
        "vision_feature_select_strategy": _strategy(config),
        "num_additional_image_tokens": int(vision_tower_spec(config.vision_tower).has_cls),
    }
