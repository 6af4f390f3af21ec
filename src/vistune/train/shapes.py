"""The sizes of a model that decide what it costs: of its language model, its tower and its projector. No torch here.

From a model's own configuration where it is at hand, else from the published shapes below, so that a run can be planned on a machine that
holds nothing of it yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vistune.model.backbones import patches_per_side, tokens_per_view, vision_setting, vision_width
from vistune.model.backbones import vision_tower_spec as tower_spec
from vistune.model.config import ImageConfig, ModelConfig, ProjectorType


@dataclass(frozen=True, kw_only=True)
class LanguageShape:
    """A decoder. With the symbols of the formulas: d, L, ff, h, k, e, V."""

    width: int
    layers: int
    mlp_width: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    tied: bool = False
    """Whether the head is the embedding matrix."""
    mlp_matrices: int = 3
    """Three with a gate (Llama's), two without (Phi's)."""

    @property
    def query_width(self) -> int:
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_width

    @property
    def layer_matrices(self) -> int:
        """Weights of one layer's linear maps."""
        return 2 * self.width * self.query_width + 2 * self.width * self.kv_width + self.mlp_matrices * self.width * self.mlp_width

    @property
    def matrices(self) -> int:
        """P: weights of all layers' linear maps, without embeddings and head."""
        return self.layers * self.layer_matrices

    @property
    def head(self) -> int:
        """H: weights of the head."""
        return self.width * self.vocabulary

    @property
    def parameters(self) -> int:
        norms = (2 * self.layers + 1) * self.width
        return self.matrices + norms + self.head * (1 if self.tied else 2)

    def lora_parameters(self, rank: int) -> int:
        """Of adapters on every linear map of every layer: rank x (inputs + outputs)."""
        attention = 2 * (self.width + self.query_width) + 2 * (self.width + self.kv_width)
        return self.layers * rank * (attention + self.mlp_matrices * (self.width + self.mlp_width))


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """A vision tower, as far as it is run."""

    width: int
    """Of the features that the projector gets."""
    tokens: int
    """Visual tokens of one view."""
    pixels: int
    """Along a side of a view."""
    parameters: int
    run_parameters: int
    """Without the layers after the selected one."""
    flops_per_view: int
    layers: int = 0
    mlp_width: int = 0
    sequence: int = 0
    """Of a transformer: the tokens inside, a class token counted. 0 layers: a convolutional tower."""


@dataclass(frozen=True, kw_only=True)
class ProjectorShape:
    parameters: int
    matrices: int
    """Weights that every visual token is multiplied with."""
    hidden: int
    """Numbers per visual token that the backward pass needs beside the features themselves."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    language_model: LanguageShape
    tower: TowerShape
    projector: ProjectorShape

    @property
    def parameters(self) -> int:
        return self.language_model.parameters + self.tower.parameters + self.projector.parameters


def language_shape(config: Mapping[str, Any]) -> LanguageShape:
    """From transformers' configuration of a language model."""
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    return LanguageShape(
        width=width,
        layers=int(config["num_hidden_layers"]),
        mlp_width=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_width=int(config.get("head_dim") or width // heads),
        vocabulary=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", False)),
        mlp_matrices=2 if config.get("model_type") == "phi" else 3,
    )


# EfficientNet-Lite0 without its classifier: parameters, and FLOP for a view of 224 px (counted by torch's flop counter)
_LITE0_PARAMETERS, _LITE0_RUN_PARAMETERS, _LITE0_FLOPS = 4_652_008, 3_371_008, 767_815_104


def tower_shape(config: ModelConfig) -> TowerShape:
    """From a model's configuration: only the layers up to the selected one are run."""
    tokens, width = tokens_per_view(config), vision_width(config)
    spec = tower_spec(config.vision_tower)
    if spec.model_type is None:
        scale = (config.image.size / 224) ** 2
        return TowerShape(
            width=width,
            tokens=tokens,
            pixels=config.image.size,
            parameters=_LITE0_PARAMETERS,
            run_parameters=_LITE0_RUN_PARAMETERS,
            flops_per_view=round(_LITE0_FLOPS * scale),
        )
    hidden, layers = vision_setting(config, "hidden_size"), vision_setting(config, "num_hidden_layers")
    mlp = int(config.vision_config.get("intermediate_size", 4 * hidden))
    patch = vision_setting(config, "patch_size")
    run = config.feature_layer if config.feature_layer >= 0 else layers + 1 + config.feature_layer
    patches = patches_per_side(config) ** 2
    sequence = patches + int(spec.has_cls)
    per_layer = 4 * hidden**2 + 2 * hidden * mlp
    embedding = 3 * patch**2 * hidden
    with_biases = per_layer + 9 * hidden + mlp  # biases of six linear maps, two norms
    ends = embedding + (sequence + 6) * hidden
    return TowerShape(
        width=width,
        tokens=tokens,
        pixels=config.image.size,
        parameters=layers * with_biases + ends,
        run_parameters=run * with_biases + ends,
        flops_per_view=2 * embedding * patches + run * (2 * per_layer * sequence + 4 * sequence**2 * hidden),
        layers=run,
        mlp_width=mlp,
        sequence=sequence,
    )


def projector_shape(config: ModelConfig) -> ProjectorShape:
    inputs, outputs = vision_width(config), int(config.text_config["hidden_size"])
    match config.projector:
        case "linear":
            return ProjectorShape(parameters=(inputs + 1) * outputs, matrices=inputs * outputs, hidden=0)
        case "mlp2x_gelu":
            matrices = inputs * outputs + outputs**2
            return ProjectorShape(parameters=matrices + 2 * outputs, matrices=matrices, hidden=2 * outputs)
        case "grid_mlp":
            words = config.visual_words or outputs
            matrices = 2 * outputs * inputs + 2 * outputs * words + 9 * 2 * outputs
            matrices += outputs * words if config.visual_words else 0
            return ProjectorShape(
                parameters=matrices + (tokens_per_view(config) + 8) * outputs, matrices=matrices, hidden=8 * outputs + 2 * words
            )


def model_shape(config: ModelConfig) -> ModelShape:
    return ModelShape(language_model=language_shape(config.text_config), tower=tower_shape(config), projector=projector_shape(config))


# --- published shapes -----------------------------------------------------------------------------------------------------------------


def _llama(
    width: int, layers: int, mlp: int, heads: int, kv_heads: int, vocabulary: int, *, tied: bool = False, length: int
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": length,
    }


PUBLISHED_LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "lmsys/vicuna-7b-v1.3": _llama(4096, 32, 11008, 32, 32, 32_000, length=2048),
    "lmsys/vicuna-7b-v1.5": _llama(4096, 32, 11008, 32, 32, 32_000, length=4096),
    "lmsys/vicuna-13b-v1.3": _llama(5120, 40, 13824, 40, 40, 32_000, length=2048),
    "lmsys/vicuna-13b-v1.5": _llama(5120, 40, 13824, 40, 40, 32_000, length=4096),
    "mistralai/Mistral-7B-Instruct-v0.2": _llama(4096, 32, 14336, 32, 8, 32_000, length=32768) | {"model_type": "mistral"},
    "meta-llama/Meta-Llama-3-8B-Instruct": _llama(4096, 32, 14336, 32, 8, 128_256, length=8192),
    "Qwen/Qwen2-0.5B-Instruct": _llama(896, 24, 4864, 14, 2, 151_936, tied=True, length=32768) | {"model_type": "qwen2"},
    "Qwen/Qwen2-7B-Instruct": _llama(3584, 28, 18944, 28, 4, 152_064, length=32768) | {"model_type": "qwen2"},
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": _llama(2048, 22, 5632, 32, 4, 32_000, length=2048),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _llama(576, 30, 1536, 9, 3, 49_152, tied=True, length=8192),
    "HuggingFaceTB/SmolLM2-360M-Instruct": _llama(960, 32, 2560, 15, 5, 49_152, tied=True, length=8192),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _llama(2048, 24, 8192, 32, 32, 49_152, tied=True, length=8192),
}
PUBLISHED_LANGUAGE_MODELS["smollm2-135m-instruct"] = PUBLISHED_LANGUAGE_MODELS["HuggingFaceTB/SmolLM2-135M-Instruct"]


def _vit(kind: str, pixels: int, patch: int, width: int, layers: int, mlp: int) -> tuple[str, dict[str, Any]]:
    settings = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": mlp, "image_size": pixels, "patch_size": patch}
    return kind, {"model_type": f"{kind}_vision_model", **settings}


PUBLISHED_TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai/clip-vit-large-patch14": _vit("clip", 224, 14, 1024, 24, 4096),
    "openai/clip-vit-large-patch14-336": _vit("clip", 336, 14, 1024, 24, 4096),
    "openai/clip-vit-base-patch16": _vit("clip", 224, 16, 768, 12, 3072),
    "google/siglip-base-patch16-224": _vit("siglip", 224, 16, 768, 12, 3072),
    "google/siglip-so400m-patch14-384": _vit("siglip", 384, 14, 1152, 27, 4304),
    "efficientnet-lite0": ("efficientnet_lite0", {}),
}


def published_config(language_model: str, vision_tower: str, projector: ProjectorType, *, visual_words: int = 0) -> ModelConfig | None:
    """The configuration of a new model of two published backbones, or None where one is in neither table."""
    if language_model not in PUBLISHED_LANGUAGE_MODELS or vision_tower not in PUBLISHED_TOWERS:
        return None
    kind, settings = PUBLISHED_TOWERS[vision_tower]
    spec = tower_spec(kind)
    size = int(settings.get("image_size", spec.image.size))
    return ModelConfig(
        vision_tower=kind,
        vision_config=settings,
        text_config=PUBLISHED_LANGUAGE_MODELS[language_model],
        projector=projector,
        visual_words=visual_words,
        feature_select="patch" if spec.has_cls else "full",
        image=ImageConfig(size=size),
    )
