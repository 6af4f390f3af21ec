"""How a run begins and ends on disk: the model it starts from, and the folder that it leaves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from vistune.checkpoint.adapters import is_adapter
from vistune.checkpoint.backbones import new_model
from vistune.checkpoint.folder import load_model, save_adapter, save_model
from vistune.checkpoint.settings import read_settings
from vistune.errors import UsageError
from vistune.model.config import OFFICIAL_PINPOINTS, ModelConfig
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.pull import pull
from vistune.train.config import ModelChoice, TrainConfig
from vistune.train.quantise import put_back


@dataclass(frozen=True)
class Bases:
    """Names (for `pull`) of the backbones whose very weights a model holds."""

    language_model: str
    vision_tower: str


@dataclass(frozen=True)
class Start:
    """A model to train, and the bases it stands on, if its backbones are still those of their publishers."""

    model: Llava
    processor: Processor
    bases: Bases | None


def start_model(choice: ModelChoice) -> Start:
    """A checkpoint to go on from, seeing and speaking as this stage asks, or a new model of two backbones.

    A LoRA adapter in the checkpoint is merged when it is loaded: what is trained next is on top of it.
    """
    if not choice.init_from:
        if not (choice.language_model and choice.vision_tower):
            raise UsageError(
                "A run starts from model.init_from, or from model.language_model and model.vision_tower; set one or the other two."
            )
        model, processor = new_model(
            pull(choice.language_model),
            pull(choice.vision_tower),
            projector=choice.projector,
            template=choice.template,
            image_mode=choice.image_mode,
            max_length=choice.max_length,
        )
        return Start(model, processor, Bases(choice.language_model, choice.vision_tower))
    folder = pull(choice.init_from)
    model, processor = load_model(folder)
    if choice.image_mode == "anyres":
        begin_anyres(model)
    model.config = as_chosen(model.config, choice)
    return Start(model, Processor(processor.tokenizer, model.config), _bases_of(folder))


def begin_anyres(model: Llava) -> None:
    """Gives a model that saw pictures whole what it needs to see them in tiles: LLaVA-1.6's grids, and a line break that is yet to learn.

    NeXT's stage 1 sees pictures whole, too; its line break begins in stage 2, as random as here.
    """
    if model.image_newline is None:
        width = int(model.config.text_config["hidden_size"])
        model.image_newline = nn.Parameter((torch.randn(width) / width**0.5).to(model.dtype))
    if not model.config.image.pinpoints:
        side = model.config.image.size
        grids = tuple((width // 336 * side, height // 336 * side) for width, height in OFFICIAL_PINPOINTS)
        model.config = replace(model.config, image=replace(model.config.image, pinpoints=grids, pinpoint_order="original"))
    model.config = replace(model.config, image_newline=True)


def as_chosen(config: ModelConfig, choice: ModelChoice) -> ModelConfig:
    """The model's config with the stage's template, image mode and context."""
    longest = int(config.text_config["max_position_embeddings"])
    return replace(
        config,
        image=replace(config.image, mode=choice.image_mode),
        template=choice.template,
        max_length=min(choice.max_length, longest),
    )


def _bases_of(folder: Path) -> Bases | None:
    """The bases of a folder that holds a projector on named bases; none where an adapter changed them or the folder is whole."""
    bases = (read_settings(folder) or {}).get("bases")
    if bases is None or is_adapter(folder):
        return None
    return Bases(bases["language_model"]["name"], bases["vision_tower"]["name"])


def save_result(start: Start, config: TrainConfig, folder: Path) -> Path:
    """Writes the trained model: what training added where the backbones are as published, else all of it.

    What was quantised for training is saved as it was before: an adapter is merged into its base itself.
    """
    if config.model.quantise != "none":
        put_back(start.model, start_model(config.model).model)
    untouched = not {"language_model", "vision_tower"} & set(config.trainable)
    if start.bases is not None and untouched:
        save_adapter(
            start.model,
            start.processor,
            folder,
            language_model=start.bases.language_model,
            vision_tower=start.bases.vision_tower,
            dtype=torch.bfloat16 if config.save_as == "bf16" else None,
            existing="replace",
        )
    else:
        save_model(start.model, start.processor, folder, existing="replace")
    return folder
