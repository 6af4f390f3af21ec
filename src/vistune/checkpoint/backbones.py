"""Backbones on disk: language models and vision towers as their publishers save them, and a new LLaVA made of one of each.

A language model is a folder that transformers' causal LM classes read; a tower is a CLIP or SigLIP folder (whole models too: their text
side is left aside) or EfficientNet-Lite0's state dict. Told apart by content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vistune.checkpoint import names
from vistune.checkpoint.assemble import DType, add_image_token, build, read_tokenizer
from vistune.checkpoint.files import Fields, read_json
from vistune.checkpoint.hub import complete_config, read_image_config, read_vision_config
from vistune.checkpoint.tensors import TensorSlot, TensorSource, file_digest, open_weights
from vistune.errors import TensorError
from vistune.model.backbones import VISION_TOWERS, check_language_model
from vistune.model.config import ImageConfig, ImageMode, ModelConfig, ProjectorType
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.pull import pull

_TEXT_SIDE = ("text_model.", "logit_scale", "logit_bias", "visual_projection.", "text_projection.")


@dataclass(frozen=True)
class Backbone:
    """A language model or a tower: its configuration and its tensors under the model's names, none of them read yet."""

    folder: Path
    config: Mapping[str, Any]
    weights: Mapping[str, TensorSource]
    digest: str
    """sha256 over the sha256 of its weight files."""
    vision_tower: str = ""
    image: ImageConfig = field(default_factory=ImageConfig)


@dataclass(frozen=True)
class Base:
    """A backbone that a checkpoint stands on: a name for `pull` and the digest that its weights must have."""

    name: str
    sha256: str | None
    what: str
    folder: Path | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], what: str, folder: Path | None) -> Base:
        fields = Fields(values, f"the {what} in vistune.json")
        return cls(fields.text("name"), fields.text("sha256"), what, folder)

    @classmethod
    def named(cls, name: str, what: str) -> Base:
        return cls(name, None, what)

    def opened(self, read: Callable[[Path], Backbone]) -> Backbone:
        """The backbone, pulled if no folder was given. Raises TensorError if its weights are not the expected ones."""
        backbone = read(self.folder or pull(self.name))
        if self.sha256 not in (None, backbone.digest):
            raise TensorError(
                f"The {self.what} in {backbone.folder} has sha256 {backbone.digest}, this checkpoint was trained on {self.name} with "
                f"{self.sha256}; answers would be nonsense. Pull {self.name} again, or use the vistune that the checkpoint came with."
            )
        return backbone


def read_language_model(folder: Path) -> Backbone:
    """A causal language model's folder. Raises UnsupportedModel for a family outside the tested ones."""
    where = str(folder / "config.json")
    values = read_json(folder, "config.json")
    spec = check_language_model(values)
    weights = {names.LANGUAGE_MODEL + name: slot for name, slot in open_weights(folder).items()}
    kept = {name: slot for name, slot in weights.items() if not name.endswith(names.IGNORED_SUFFIXES)}
    return Backbone(folder, complete_config(values, spec.config_class, where), kept, _digest(weights))


def read_vision_tower(folder: Path) -> Backbone:
    """A vision tower's folder: CLIP or SigLIP, alone or with its text side, or EfficientNet-Lite0's state dict."""
    stored = open_weights(folder)
    if "_conv_stem.weight" in stored:
        kept = {names.TOWER + name: slot for name, slot in stored.items()}
        return Backbone(folder, {}, kept, _digest(stored), "efficientnet_lite0", VISION_TOWERS["efficientnet_lite0"].image)
    where = str(folder / "config.json")
    values = read_json(folder, "config.json")
    if isinstance(values.get("vision_config"), dict):  # a whole CLIP or SigLIP; its vision side need not repeat its type
        model_type = f"{values.get('model_type')}_vision_model"
        values = {"model_type": model_type, **values["vision_config"]}
    vision_tower, config = read_vision_config({"model_type": "", **values}, where)
    kept = names.renamed({names.TOWER + name: slot for name, slot in stored.items() if not name.startswith(_TEXT_SIDE)}, names.from_hub)
    image = read_image_config(folder, vision_tower, config)
    return Backbone(folder, config, kept, _digest(stored), vision_tower, image)


def _digest(weights: Mapping[str, TensorSlot]) -> str:
    digests = [file_digest(path) for path in sorted({slot.path for slot in weights.values()})]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def without_last_layer(tower: Backbone) -> Backbone:
    """A SigLIP tower as LLaVA-NeXT uses it: the last layer and the pooling head removed, so that its output is the layer before."""
    layers = int(tower.config["num_hidden_layers"]) - 1
    dropped = (f"{names.TOWER}vision_model.encoder.layers.{layers}.", f"{names.TOWER}vision_model.head.")
    config = {**tower.config, "num_hidden_layers": layers, "vision_use_head": False}
    return replace(tower, config=config, weights={name: slot for name, slot in tower.weights.items() if not name.startswith(dropped)})


def new_model(
    language_model: Path,
    vision_tower: Path,
    *,
    projector: ProjectorType = "mlp2x_gelu",
    template: str = "vicuna_v1",
    image_mode: ImageMode = "pad",
    max_length: int = 2048,
    dtype: DType = "auto",
    device: str | torch.device = "cpu",
) -> tuple[Llava, Processor]:
    """A LLaVA that has learned nothing yet: two backbones and a projector with random weights (torch's own random state).

    CLIP and SigLIP give their penultimate layer, as in every official recipe. Raises UnsupportedModel and CheckpointError.
    """
    language, tower = read_language_model(language_model), read_vision_tower(vision_tower)
    tokenizer = read_tokenizer(language_model)
    side = tower.image.size
    image = replace(
        tower.image,
        mode=image_mode,
        pinpoint_order="original",
        several_images="pad",
        text_after_image="original",
        pinpoints=tuple((w * side, h * side) for w, h in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))) if image_mode == "anyres" else (),
    )
    config = ModelConfig(
        vision_tower=tower.vision_tower,
        vision_config=tower.config,
        text_config=language.config,
        projector=projector,
        feature_select="patch" if VISION_TOWERS[tower.vision_tower].has_cls else "full",
        image=image,
        image_token_id=add_image_token(tokenizer),
        image_newline=image_mode == "anyres",
        template=template,
        max_length=min(max_length, int(language.config["max_position_embeddings"])),
    )
    sources = {**language.weights, **tower.weights}
    where = f"{language_model} with {vision_tower}"
    return build(config, sources, where=where, dtype=dtype, device=device, fresh=True), Processor(tokenizer, config)
