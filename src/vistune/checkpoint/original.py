"""The original LLaVA layout (haotian-liu/LLaVA and LLaVA-NeXT): full, projector-only and LoRA checkpoints, in and out.

Which of the three a folder is, its files say: an adapter, a projector and nothing else, or all weights. In each the tower may lie inside
(then it is used, tuned or not) or be named by `mm_vision_tower` (then it is pulled).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from vistune.checkpoint import adapters, names
from vistune.checkpoint.assemble import DType, add_image_token, build, read_tokenizer, tensors_of
from vistune.checkpoint.backbones import Backbone, read_language_model, read_vision_tower, without_last_layer
from vistune.checkpoint.files import Fields, contained_file, has_file, read_json
from vistune.checkpoint.hub import read_vision_config
from vistune.checkpoint.original_config import (
    KNOWN_TOWERS,
    TOWER_CONFIG_KEY,
    family_of,
    original_config,
    original_tower_path,
    read_original_config,
    read_text_config,
    template_of,
    tower_image,
)
from vistune.checkpoint.tensors import (
    DEFAULT_SHARD_BYTES,
    INDEX_NAME,
    WEIGHTS_NAME,
    LazyTensor,
    TensorSource,
    open_weights,
    read_header,
    refuse_pickled,
    write_weights,
)
from vistune.errors import CheckpointError, UsageError
from vistune.journal import atomic_folder
from vistune.model.backbones import VISION_TOWERS
from vistune.model.config import ImageConfig
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.pull import pull

PROJECTOR_FILE = "mm_projector.safetensors"
NON_LORA_FILE = "non_lora_trainables.safetensors"


def load_original(
    folder: Path,
    *,
    base: Path | None = None,
    vision_tower: Path | None = None,
    template: str | None = None,
    dtype: DType = "auto",
    device: str | torch.device = "cpu",
) -> tuple[Llava, Processor]:
    """The model and processor of an original checkpoint; arguments and errors as in `folder.load_model`."""
    where = str(folder / "config.json")
    values = read_json(folder, "config.json")
    weights, tokenizer_folder, text_values = _weights(folder, values, base)
    tower_weights = {name: source for name, source in weights.items() if name.startswith(names.TOWER)}
    tower = _tower(folder, values, vision_tower, tower_weights)
    weights = {**weights, **tower.weights}
    text_config = read_text_config({**text_values, "model_type": values.get("model_type")}, where)
    tokenizer = read_tokenizer(tokenizer_folder)
    chosen = template or template_of(values, family_of(values, where), tokenizer.get_vocab())
    config = read_original_config(
        values,
        where,
        text_config=text_config,
        vision_tower=tower.vision_tower,
        vision_config=tower.config,
        image=tower.image,
        image_token_id=add_image_token(tokenizer),
        template=chosen,
    )
    if not config.image_newline:  # LLaVA-1.6 files carry it also where their configuration has no use for it
        weights.pop(names.NEWLINE, None)
    model = build(config, weights, where=str(folder), dtype=dtype, device=device)
    return model, Processor(tokenizer, config)


def _weights(folder: Path, values: Mapping[str, Any], base: Path | None) -> tuple[dict[str, TensorSource], Path, Mapping[str, Any]]:
    """All tensors but perhaps the tower's, where the tokenizer lies, and the configuration of the language model."""
    if adapters.is_adapter(folder):
        return _lora_weights(folder, base)
    if has_file(folder, WEIGHTS_NAME) or has_file(folder, INDEX_NAME):
        return dict(names.renamed(open_weights(folder), names.from_original)), folder, values
    if has_file(folder, PROJECTOR_FILE):
        weights, text_values = _base_weights(_required(base, folder, values.get("_name_or_path")))
        projector = names.renamed(read_header(contained_file(folder, PROJECTOR_FILE)), names.from_projector_file)
        language_model = {name: source for name, source in weights.items() if name.startswith(names.LANGUAGE_MODEL)}
        assert base is not None
        return {**language_model, **projector}, base, text_values
    refuse_pickled(folder)
    raise CheckpointError(f"{folder} has neither {WEIGHTS_NAME} nor {PROJECTOR_FILE} nor {adapters.CONFIG_NAME}.")


def _lora_weights(folder: Path, base: Path | None) -> tuple[dict[str, TensorSource], Path, Mapping[str, Any]]:
    adapter = adapters.read_adapter(folder)
    base = _required(base, folder, adapter.base)
    if not has_file(folder, NON_LORA_FILE):
        refuse_pickled(folder)
        raise CheckpointError(
            f"{folder} has an adapter but no {NON_LORA_FILE}, where its projector should be: an intermediate checkpoint of the original's "
            "trainer, which saves the projector at the end only. Take the final folder."
        )
    weights, text_values = _base_weights(base)
    trained = names.renamed(read_header(contained_file(folder, NON_LORA_FILE)), names.from_wrapped_original)
    merged = adapter.merged_into({**weights, **trained})
    return merged, folder if has_file(folder, "tokenizer_config.json") else base, text_values


def _base_weights(base: Path) -> tuple[dict[str, TensorSource], Mapping[str, Any]]:
    """A raw language model, or a full LLaVA in the original layout."""
    values = read_json(base, "config.json")
    if values.get("mm_vision_tower"):
        return dict(names.renamed(open_weights(base), names.from_original)), values
    return dict(read_language_model(base).weights), values


def _required(base: Path | None, folder: Path, noted: Any) -> Path:
    if base is None:
        raise UsageError(
            f"{folder} holds only what was trained; name the folder of the language model it was trained on: --base FOLDER (load_model's "
            f"base=). "
            f"Its own note says {str(noted)[:100]!r}."
        )
    return base


def _tower(folder: Path, values: Mapping[str, Any], given: Path | None, inside: Mapping[str, TensorSource]) -> Backbone:
    """The vision tower: its weights from the checkpoint if they are there, else from the folder that was given or named."""
    where = str(folder / "config.json")
    name = Fields(values, where).text("mm_vision_tower")
    if given is None:
        given = original_tower_path(folder, name)
    if inside and TOWER_CONFIG_KEY in values:
        vision_tower, config = read_vision_config(Fields(values, where).object(TOWER_CONFIG_KEY), f"{where} ({TOWER_CONFIG_KEY})")
        return Backbone(folder, config, inside, "", vision_tower, tower_image(values, where, _stock_image(vision_tower, config)))
    if inside and given is None and name in KNOWN_TOWERS:
        vision_tower, config = read_vision_config(KNOWN_TOWERS[name], name)
        tower = Backbone(folder, config, inside, "", vision_tower, _stock_image(vision_tower, config))
    else:
        tower = read_vision_tower(given or pull(name))
    if tower.vision_tower == "siglip":
        tower = without_last_layer(tower)
    return Backbone(folder, tower.config, inside, "", tower.vision_tower, tower.image) if inside else tower


def _stock_image(vision_tower: str, config: Mapping[str, Any]) -> ImageConfig:
    stock = VISION_TOWERS[vision_tower].image
    return ImageConfig(size=int(config["image_size"]), mean=stock.mean, std=stock.std, resize=stock.resize)


def save_original(
    model: Llava,
    processor: Processor,
    folder: Path,
    *,
    vision_tower: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    existing: Literal["refuse", "replace"] = "refuse",
) -> None:
    """Saves a model in the original layout, tower included, for SGLang and the LLaVA repositories' own tools.

    The embeddings keep the rows that the language model was trained with: a row that only stands for `<image>` (the original has no such
    token) is left out, and the tokens added for it leave the tokenizer. LoRA adapters are merged.

    Args:
        vision_tower: the hub id to write as `mm_vision_tower`; None finds that of an official tower.

    Raises UnsupportedModel for what the layout cannot express, SaveError, TensorError.
    """
    config = processor.config
    rows = _original_rows(processor)
    values = original_config(config, vision_tower=vision_tower, rows=rows, dtype=str(model.dtype).removeprefix("torch."))
    tensors: dict[str, TensorSource] = {}
    for name, source in tensors_of(model).items():
        if name in (names.EMBEDDING, names.HEAD) and source.shape[0] > rows:
            shape = (rows, *source.shape[1:])
            source = LazyTensor(source.dtype, shape, lambda source=source: source.read()[:rows])
        tensors[names.to_original(name, config)] = source
    with atomic_folder(folder, existing=existing) as partial:
        write_weights(partial, tensors, max_shard_bytes=max_shard_bytes)
        (partial / "config.json").write_text(json.dumps(values, indent=2) + "\n")
        _write_tokenizer(processor, partial, rows)


def _original_rows(processor: Processor) -> int:
    """Rows of the language model's own vocabulary: up to `<image>` where that was the first token added behind the vocabulary."""
    rows, image_token_id = int(processor.config.text_config["vocab_size"]), processor.config.image_token_id
    return image_token_id if image_token_id < rows and image_token_id == processor.tokenizer.vocab_size else rows


def _write_tokenizer(processor: Processor, folder: Path, rows: int) -> None:
    """The tokenizer without the tokens that have no row: the original resizes the embeddings to the tokenizer it finds."""
    processor.tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer.json"
    definition = json.loads(path.read_text(encoding="utf-8"))
    gone = {token["content"] for token in definition["added_tokens"] if token["id"] >= rows}
    gone.add(processor.config.image_token)
    definition["added_tokens"] = [token for token in definition["added_tokens"] if token["content"] not in gone]
    path.write_text(json.dumps(definition, ensure_ascii=False) + "\n", encoding="utf-8")
    settings = read_json(folder, "tokenizer_config.json")
    kept = {name: value for name, value in settings.items() if value not in gone and name not in ("added_tokens_decoder", "chat_template")}
    if kept.get("tokenizer_class") == "TokenizersBackend":
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
