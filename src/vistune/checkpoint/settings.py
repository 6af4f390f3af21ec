"""`vistune.json`: what a folder says about a model beyond its weights and its backbones' configurations.

Lies beside `config.json`. A Hugging Face reader ignores it; without it, `hub.py` falls back to documented defaults.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vistune.checkpoint.files import Fields, has_file, read_json
from vistune.errors import CheckpointError
from vistune.model.config import ImageConfig, ModelConfig

SETTINGS_NAME = "vistune.json"
FORMAT = 1
_MAX_PIXELS = 1 << 14
_MAX_TOKENS = 1 << 24


def write_settings(folder: Path, config: ModelConfig, *, extra: Mapping[str, Any] | None = None) -> None:
    """Writes everything in the configuration but the backbones' own, and `extra` objects of other files' concern."""
    model = {
        each.name: getattr(config, each.name)
        for each in dataclasses.fields(config)
        if each.name not in ("image", "vision_config", "text_config")
    }
    values = {"format": FORMAT, "model": model, "image": dataclasses.asdict(config.image), **(extra or {})}
    (folder / SETTINGS_NAME).write_text(json.dumps(values, indent=2) + "\n")


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The content of `vistune.json`, or None if the folder has none. Raises CheckpointError for a format of the future."""
    if not has_file(folder, SETTINGS_NAME):
        return None
    values = read_json(folder, SETTINGS_NAME)
    found = values.get("format")
    if found != FORMAT:
        raise CheckpointError(f"{folder / SETTINGS_NAME} has format {found!r}; this vistune reads format {FORMAT}. Update vistune.")
    return values


def config_from(
    settings: Mapping[str, Any], *, vision_config: Mapping[str, Any], text_config: Mapping[str, Any], where: str
) -> ModelConfig:
    """The configuration that `write_settings` wrote, with the backbones' configurations put back."""
    model = Fields(_known(Fields(settings, where).object("model"), ModelConfig, where), f"{where} (model)")
    image = Fields(_known(Fields(settings, where).object("image"), ImageConfig, where), f"{where} (image)")
    choices = typing.get_type_hints(ModelConfig)
    image_choices = typing.get_type_hints(ImageConfig)

    def chosen(fields: Fields, hints: Mapping[str, Any], name: str) -> Any:
        return fields.choice(name, typing.get_args(hints[name]))

    mean, std = image.numbers("mean", 3), image.numbers("std", 3)
    return ModelConfig(
        vision_tower=model.text("vision_tower"),
        vision_config=vision_config,
        text_config=text_config,
        projector=chosen(model, choices, "projector"),
        visual_words=model.integer("visual_words", 0, high=_MAX_TOKENS),
        feature_layer=model.integer("feature_layer", low=-1024, high=1024),
        feature_select=chosen(model, choices, "feature_select"),
        image=ImageConfig(
            size=image.integer("size", low=1, high=_MAX_PIXELS),
            mean=(mean[0], mean[1], mean[2]),
            std=(std[0], std[1], std[2]),
            resize=chosen(image, image_choices, "resize"),
            mode=chosen(image, image_choices, "mode"),
            pinpoints=image.sizes("pinpoints"),
            pinpoint_order=chosen(image, image_choices, "pinpoint_order"),
            several_images=chosen(image, image_choices, "several_images"),
            text_after_image=chosen(image, image_choices, "text_after_image"),
        ),
        image_token=model.text("image_token"),
        image_token_id=model.integer("image_token_id", high=_MAX_TOKENS),
        image_newline=model.boolean("image_newline"),
        template=model.text("template"),
        max_length=model.integer("max_length", low=1, high=_MAX_TOKENS),
    )


def _known(values: dict[str, Any], record: type, where: str) -> dict[str, Any]:
    unknown = sorted(values.keys() - {each.name for each in dataclasses.fields(record)})
    if unknown:
        raise CheckpointError(f"{where} sets {', '.join(unknown)}, which this vistune does not know. Update vistune, or remove it.")
    return values
