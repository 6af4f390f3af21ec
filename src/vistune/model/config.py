"""What a model is, as data: enough to build it, to prepare its inputs and to save it. No torch here.

The official values of LLaVA-1.5 are the defaults (the original's own defaults are values that none of its recipes used).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ProjectorType = Literal["linear", "mlp2x_gelu", "grid_mlp"]
FeatureSelect = Literal["patch", "full"]
ImageMode = Literal["square", "pad", "anyres"]
PinpointOrder = Literal["original", "transformers"]
LossMask = Literal["answers", "official"]

OFFICIAL_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
"""LLaVA-1.6's grid, (width, height) in the original order; the set is symmetrical, only ties see the order."""


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How a picture becomes pixel tensors. One place, so that the token count and the features come from the same numbers."""

    size: int = 336
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    resize: Literal["shortest_edge", "exact"] = "shortest_edge"
    """CLIP resizes the shortest side and crops the centre; SigLIP resizes to the exact square."""
    mode: ImageMode = "pad"
    pinpoints: tuple[tuple[int, int], ...] = ()
    """AnyRes candidates as written in the folder: (width, height) in original order, (height, width) in transformers order."""
    pinpoint_order: PinpointOrder = "original"
    several_images: Literal["pad", "anyres"] = "pad"
    """AnyRes only: with more than one image in a conversation, `pad` each (original) or `anyres` each (transformers)."""
    text_after_image: Literal["original", "transformers"] = "original"
    """Id of the text that follows an image: tokenised as a piece of its own (original), or as transformers' processor does."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """LoRA adapters on every linear layer of the language model (PEFT's names and meanings)."""

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A LLaVA: a vision tower, a projector and a causal language model.

    `vision_config` and `text_config` are the backbones' own transformers configurations as plain dictionaries (they name their
    `model_type`); `vision_config` is empty for towers that have none (EfficientNet-Lite0).
    """

    vision_tower: str  # a key of VISION_TOWERS
    vision_config: Mapping[str, Any] = field(default_factory=dict)
    text_config: Mapping[str, Any]
    projector: ProjectorType = "mlp2x_gelu"
    visual_words: int = 0
    """`grid_mlp` only: in how many words an aligned projector says what it sees; 0 before alignment."""
    feature_layer: int = -2
    """Index into the tower's hidden states, of which 0 is the embedding output (the original's `mm_vision_select_layer`)."""
    feature_select: FeatureSelect = "patch"
    """`patch` drops the CLS token, `full` keeps all (SigLIP has none to drop and is `full`)."""
    image: ImageConfig = field(default_factory=ImageConfig)
    image_token: str = "<image>"
    image_token_id: int = 32000
    image_newline: bool = False
    """A learned vector at the end of each row of an AnyRes picture (LLaVA-1.6, `spatial_unpad`)."""
    template: str = "vicuna_v1"
    """A key of TEMPLATES: the words between the turns that this model was trained with."""
    max_length: int = 2048
    """Context in tokens, after images are expanded."""
