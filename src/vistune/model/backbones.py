"""The vision towers and language models that vistune can put together, and the arithmetic of visual tokens. No torch here.

Adding a tower or a language model family starts here: a row in one of the two tables, and a case in `tests/parity`. A family is in the
table only if its ragged forward is tested equal to transformers' own; everything else is refused by name, because a wrong mask or a wrong
rotary embedding gives fluent nonsense, not an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vistune.errors import UnknownName, UnsupportedModel
from vistune.model.config import ImageConfig, ModelConfig


@dataclass(frozen=True, kw_only=True)
class VisionTowerSpec:
    """A vision tower: how to build it and the shape of what it returns."""

    name: str
    has_cls: bool
    """Whether index 0 of its token sequence is a class token and not a patch."""
    image: ImageConfig
    """Size and normalisation of the published weights (LLaVA's for CLIP); a folder's own `ImageConfig` wins."""
    model_type: str | None = None
    """transformers' `model_type` of the vision configuration; None for our own definitions."""
    config_class: str | None = None
    model_class: str | None = None
    config_defaults: Mapping[str, int] = field(default_factory=dict)
    """What transformers assumes for keys that a saved configuration leaves out, as hub folders do."""


@dataclass(frozen=True, kw_only=True)
class LanguageModelSpec:
    """A causal language model family of transformers."""

    model_type: str
    config_class: str
    model_class: str
    sequential_block: bool = True
    """Attention, residual, norm, MLP, residual (Llama's shape). Phi adds attention and MLP to the residual side by side."""


@dataclass(frozen=True)
class TowerClasses:
    """What a tower was trained to tell apart: a name for each class, and by how many of its features (the first ones) it does so."""

    names: tuple[str, ...]
    channels: int

    @property
    def words(self) -> tuple[str, ...]:
        """The different names, by first appearance: several classes (all dogs, say) may share one."""
        return tuple(dict.fromkeys(self.names))


_HALF = (0.5, 0.5, 0.5)

VISION_TOWERS: dict[str, VisionTowerSpec] = {
    "clip": VisionTowerSpec(
        name="clip",
        has_cls=True,
        image=ImageConfig(),
        model_type="clip_vision_model",
        config_class="CLIPVisionConfig",
        model_class="CLIPVisionModel",
        config_defaults={"image_size": 224, "patch_size": 32, "hidden_size": 768, "num_hidden_layers": 12},
    ),
    "siglip": VisionTowerSpec(
        name="siglip",
        has_cls=False,
        image=ImageConfig(size=384, mean=_HALF, std=_HALF, resize="exact"),
        model_type="siglip_vision_model",
        config_class="SiglipVisionConfig",
        model_class="SiglipVisionModel",
        config_defaults={"image_size": 224, "patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12},
    ),
    "efficientnet_lite0": VisionTowerSpec(
        name="efficientnet_lite0",
        has_cls=False,
        # (x·255 − 127) / 128: the normalisation that EfficientNet-Lite was trained with.
        image=ImageConfig(size=224, mean=(127 / 255, 127 / 255, 127 / 255), std=(128 / 255, 128 / 255, 128 / 255), resize="exact"),
    ),
}

LANGUAGE_MODELS: dict[str, LanguageModelSpec] = {
    "llama": LanguageModelSpec(model_type="llama", config_class="LlamaConfig", model_class="LlamaForCausalLM"),
    "mistral": LanguageModelSpec(model_type="mistral", config_class="MistralConfig", model_class="MistralForCausalLM"),
    "qwen2": LanguageModelSpec(model_type="qwen2", config_class="Qwen2Config", model_class="Qwen2ForCausalLM"),
    "qwen3": LanguageModelSpec(model_type="qwen3", config_class="Qwen3Config", model_class="Qwen3ForCausalLM"),
    "phi": LanguageModelSpec(model_type="phi", config_class="PhiConfig", model_class="PhiForCausalLM", sequential_block=False),
}

SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies are fixed. `dynamic` and `longrope` change them with the longest sequence of the batch."""

_DROPOUTS = ("attention_dropout", "embd_pdrop", "resid_pdrop")

EFFICIENTNET_STRIDE = 32
EFFICIENTNET_HEAD_WIDTH = 1280
EFFICIENTNET_MIDDLE_WIDTH = 112  # channels of the stride-16 map; unshuffled 2×2 they are 448


def vision_tower_spec(name: str) -> VisionTowerSpec:
    """The row of VISION_TOWERS. Raises UnknownName."""
    try:
        return VISION_TOWERS[name]
    except KeyError:
        raise UnknownName("vision tower", name, known=VISION_TOWERS) from None


def language_model_spec(model_type: str) -> LanguageModelSpec:
    """The row of LANGUAGE_MODELS. Raises UnsupportedModel for a family outside the parity tests."""
    try:
        return LANGUAGE_MODELS[model_type]
    except KeyError:
        raise UnsupportedModel(
            f"The language model is of family {model_type!r}; vistune runs the families it is tested equal to transformers on: "
            f"{', '.join(sorted(LANGUAGE_MODELS))}. Choose a model of one of them."
        ) from None


def check_language_model(text_config: Mapping[str, Any]) -> LanguageModelSpec:
    """Returns the family of a language model configuration, or says why vistune cannot run it exactly.

    Raises UnsupportedModel for a family outside the parity tests, a RoPE type that depends on the batch, and for dropout
    inside the model (the ragged attention has none; LoRA's dropout is another thing and works).
    """
    spec = language_model_spec(str(text_config.get("model_type")))
    rope_type = _rope_type(text_config)
    if rope_type not in SUPPORTED_ROPE_TYPES:
        raise UnsupportedModel(
            f"The language model uses RoPE type {rope_type!r}, whose frequencies can depend on the other sequences of a batch, so answers "
            f"would change with the company they keep. Supported types: {', '.join(SUPPORTED_ROPE_TYPES)}. Choose a model with one of them."
        )
    for name in _DROPOUTS:
        if text_config.get(name):
            raise UnsupportedModel(
                f"The language model's configuration has {name} = {text_config[name]}; vistune's ragged attention has no dropout. "
                f"Set {name} to 0 in text_config (LoRA's own dropout is not affected)."
            )
    return spec


def _rope_type(text_config: Mapping[str, Any]) -> str:
    """The RoPE type under any of the names that transformers has used: rope_parameters (5.x), rope_scaling with rope_type or type (4.x)."""
    settings = text_config.get("rope_parameters") or text_config.get("rope_scaling") or {}
    return str(settings.get("rope_type") or settings.get("type") or "default")


def vision_setting(config: ModelConfig, name: str) -> int:
    """A number of the tower's configuration, or what transformers assumes where the saved configuration leaves it out."""
    return int(config.vision_config.get(name, vision_tower_spec(config.vision_tower).config_defaults[name]))


def patches_per_side(config: ModelConfig) -> int:
    """Patches along one side of a view: 24 for CLIP-L/14 at 336 px, 7 for EfficientNet-Lite0 at 224 px."""
    if vision_tower_spec(config.vision_tower).model_type is None:
        if config.image.size % EFFICIENTNET_STRIDE:
            raise UnsupportedModel(
                f"{config.vision_tower} sees images whose side is a multiple of {EFFICIENTNET_STRIDE} px, not {config.image.size}; "
                f"set image.size to {config.image.size // EFFICIENTNET_STRIDE * EFFICIENTNET_STRIDE or EFFICIENTNET_STRIDE}."
            )
        return config.image.size // EFFICIENTNET_STRIDE
    return vision_setting(config, "image_size") // vision_setting(config, "patch_size")


def tokens_per_view(config: ModelConfig) -> int:
    """Visual tokens of one view before any AnyRes merging: the patches, and the class token where there is one and it is kept."""
    keeps_cls = vision_tower_spec(config.vision_tower).has_cls and config.feature_select == "full"
    return patches_per_side(config) ** 2 + int(keeps_cls)


@cache
def _imagenet_names() -> tuple[str, ...]:
    text = (Path(__file__).parents[1] / "assets/imagenet_words.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if not line.startswith("#"))


def tower_classes(config: ModelConfig) -> TowerClasses | None:
    """The classes of a tower that still has its classifier: ImageNet's for EfficientNet-Lite0, whose head channels it reads."""
    if vision_tower_spec(config.vision_tower).model_type is not None:
        return None
    return TowerClasses(_imagenet_names(), EFFICIENTNET_HEAD_WIDTH)


def vision_width(config: ModelConfig) -> int:
    """Width of the features that enter the projector: 1024 for CLIP-L, 1728 for EfficientNet-Lite0."""
    if vision_tower_spec(config.vision_tower).model_type is None:
        return EFFICIENTNET_HEAD_WIDTH + 4 * EFFICIENTNET_MIDDLE_WIDTH
    return vision_setting(config, "hidden_size")
