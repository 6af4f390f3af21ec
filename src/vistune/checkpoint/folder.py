"""Loads and saves checkpoint folders. What a folder is, is decided by what is in it, never by its name.

    config.json says                              it is                              read by
    model_type llava / llava_next, text_config    a Hugging Face LLaVA folder        this file, hub.py
    model_type vistune                            a native folder                    this file
    model_type vistune, bases in vistune.json     projector and adapter on bases     this file, backbones.py
    mm_vision_tower                               the original LLaVA layout          original.py
    (none) and adapter_config.json                a PEFT adapter                     this file, on `base`

Saving writes a Hugging Face folder with the hub's tensor names wherever transformers' LLaVA classes can express the model, else the same
folder with `model_type: vistune`, which only vistune reads. Either comes back as it was, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vistune.checkpoint import adapters, hub, names
from vistune.checkpoint.assemble import DType, add_image_token, build, compare, read_tokenizer, tensors_of
from vistune.checkpoint.backbones import Base, new_model, read_language_model, read_vision_tower
from vistune.checkpoint.chat_templates import chat_template
from vistune.checkpoint.files import Fields, contained_file, has_file, read_json
from vistune.checkpoint.original import load_original
from vistune.checkpoint.settings import SETTINGS_NAME, config_from, read_settings, write_settings
from vistune.checkpoint.tensors import (
    DEFAULT_SHARD_BYTES,
    LazyTensor,
    TensorSource,
    file_digest,
    open_weights,
    refuse_pickled,
    write_weights,
)
from vistune.checkpoint.vocabulary import padded_rows, with_new_rows
from vistune.errors import CheckpointError, TensorError, UnsupportedModel, UsageError
from vistune.journal import atomic_folder
from vistune.model.backbones import check_language_model
from vistune.model.config import ModelConfig
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.model.templates import template_named

NATIVE = "vistune"
Existing = Literal["refuse", "replace"]


def load_model(
    folder: Path,
    *,
    dtype: DType = "auto",
    device: str | torch.device = "cpu",
    base: Path | None = None,
    vision_tower: Path | None = None,
    template: str | None = None,
) -> tuple[Llava, Processor]:
    """The model and processor of a checkpoint folder of any layout.

    Args:
        dtype: of the weights, or `auto`: each part as it is stored.
        base: the folder that a projector-only checkpoint or an adapter stands on, where it does not name one itself.
        vision_tower: the folder of an original checkpoint's tower, where it does not hold one (else `mm_vision_tower` is pulled).
        template: the template of a foreign folder, where it says none.

    Raises:
        UsageError: a template other than the one the folder itself names, or an adapter without a base.
        CheckpointError: not a checkpoint, or one that contradicts itself.
        TensorError: tensors missing, left over, wrongly shaped, damaged or not finite.
        UnsupportedModel: a model outside the tested families.
        ConversionError: pickled weights; the message names the command that converts them.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; give the folder that holds config.json and the weights.")
    if not has_file(folder, "config.json"):
        if adapters.is_adapter(folder):
            return _load_adapter(folder, base, dtype, device, template)
        refuse_pickled(folder)
        raise CheckpointError(f"{folder} has no config.json; it is not a checkpoint folder.")
    values = read_json(folder, "config.json")
    if template is not None:
        check_template(folder, template)
    if values.get("mm_vision_tower"):
        return load_original(folder, base=base, vision_tower=vision_tower, template=template, dtype=dtype, device=device)
    model_type = values.get("model_type")
    if model_type in hub.ARCHITECTURES:
        config = hub.read_config(folder, template=template)
        weights = names.renamed(open_weights(folder), names.from_hub)
        rows = int(config.text_config["vocab_size"])
        return _loaded(folder, config, _cut(weights, rows, values), dtype, device)
    if model_type == NATIVE:
        return _load_native(folder, values, dtype, device, base=base, vision_tower=vision_tower)
    raise UnsupportedModel(
        f"{folder} holds a {str(model_type)[:60]!r} model; vistune loads LLaVA folders (llava, llava_next, {NATIVE}, or the original "
        "layout with mm_vision_tower). A language model alone becomes one by training a projector."
    )


def check_template(folder: Path, template: str) -> None:
    """Raises UsageError if a folder that says its template is to be read with another: a model speaks the one it was trained with."""
    settings = read_settings(folder)
    named = Fields(settings, str(folder / SETTINGS_NAME)).object("model", {}).get("template", template) if settings else template
    if named != template:
        raise UsageError(f"{folder} was trained with template {named!r} and says so in {SETTINGS_NAME}; leave template {template!r} out.")


def load_untuned(folder: Path, *, dtype: DType = "auto", device: str | torch.device = "cpu") -> tuple[Llava, Processor]:
    """The bases that a tuned folder stands on, as they were before: for text only, as its projector has learned nothing.

    Raises CheckpointError for a folder that does not name its bases, and TensorError for bases that have changed.
    """
    settings = Fields(read_settings(folder) or {}, str(folder / SETTINGS_NAME))
    if "bases" not in settings:
        raise CheckpointError(f"{folder} does not name the language model that it was tuned from; only projector and adapter on bases do.")
    bases = Fields(settings.object("bases"), f"{folder / SETTINGS_NAME} (bases)")
    language_model = Base.of(bases.object("language_model"), "language model", None).opened(read_language_model)
    tower = Base.of(bases.object("vision_tower"), "vision tower", None).opened(read_vision_tower)
    template = Fields(settings.object("model"), f"{folder / SETTINGS_NAME} (model)").text("template")
    return new_model(language_model.folder, tower.folder, template=template, dtype=dtype, device=device)


def _loaded(
    folder: Path, config: ModelConfig, weights: dict[str, TensorSource], dtype: DType, device: str | torch.device
) -> tuple[Llava, Processor]:
    _verify(folder)
    tokenizer = read_tokenizer(folder)
    model = build(config, weights, where=str(folder), dtype=dtype, device=device)
    return model, Processor(tokenizer, config)


def _verify(folder: Path) -> None:
    """Compares weight files with the digests that we wrote beside them; folders of others have none."""
    digests = (read_settings(folder) or {}).get("weights", {})
    for name, expected in Fields({"weights": digests}, str(folder / SETTINGS_NAME)).object("weights").items():
        found = file_digest(contained_file(folder, name))
        if found != expected:
            raise TensorError(f"{folder / name} has sha256 {found}, saved was {expected}; the file was damaged or exchanged.")


def _cut(weights: Mapping[str, TensorSource], rows: int, values: dict[str, Any]) -> dict[str, TensorSource]:
    """Leaves out the rows that `save_model` added, where the folder says how many there were."""
    result = dict(weights)
    stored = values.get("text_config", {}).get("vocab_size")
    if stored is None or rows == stored:
        return result
    for name in (names.EMBEDDING, names.HEAD):
        source = weights.get(name)
        if source is not None and source.shape[0] == stored:
            shape = (rows, *source.shape[1:])
            result[name] = LazyTensor(source.dtype, shape, lambda source=source: source.read()[:rows].clone())
    return result


def _load_native(
    folder: Path, values: dict[str, Any], dtype: DType, device: str | torch.device, *, base: Path | None, vision_tower: Path | None
) -> tuple[Llava, Processor]:
    if not stands_on_bases(folder):
        return _loaded(folder, _native_config_of(folder, values), dict(open_weights(folder)), dtype, device)
    tuned = read_on_bases(folder, base=base, vision_tower=vision_tower)
    language_model, weights = tuned.opened()
    weights = {**weights, **tuned.own}
    if tuned.adapter is not None:
        weights = tuned.adapter.merged_into(weights)
    return build(tuned.config, weights, where=str(folder), dtype=dtype, device=device), tuned.processor(language_model)


@dataclass(frozen=True)
class OnBases:
    """A folder with what training added to bases that it names: a projector, and perhaps an adapter."""

    folder: Path
    config: ModelConfig
    own: Mapping[str, TensorSource]
    adapter: adapters.Adapter | None
    language_model: Base
    vision_tower: Base

    def opened(self) -> tuple[Path, dict[str, TensorSource]]:
        """The language model's folder, and the tensors of both bases."""
        language_model, tower = self.language_model.opened(read_language_model), self.vision_tower.opened(read_vision_tower)
        return language_model.folder, {**language_model.weights, **tower.weights}

    def processor(self, language_model: Path) -> Processor:
        tokenizer = read_tokenizer(self.folder if has_file(self.folder, "tokenizer.json") else language_model)
        add_image_token(tokenizer, self.config.image_token)
        return Processor(tokenizer, self.config)


def stands_on_bases(folder: Path) -> bool:
    """Whether a folder holds only what training added to bases that it names."""
    return "bases" in (read_settings(folder) or {})


def read_on_bases(folder: Path, *, base: Path | None = None, vision_tower: Path | None = None) -> OnBases:
    """Such a folder, its bases not yet looked at; `base` and `vision_tower` say where they lie. Raises CheckpointError and TensorError."""
    settings = Fields(read_settings(folder) or {}, str(folder / SETTINGS_NAME))
    bases = Fields(settings.object("bases"), f"{folder / SETTINGS_NAME} (bases)")
    config = _native_config_of(folder, read_json(folder, "config.json"))
    own = dict(open_weights(folder))
    _verify(folder)
    stray = [name for name in own if not name.startswith((names.PROJECTOR, names.NEWLINE))]
    if stray:
        raise TensorError(f"{folder} stands on bases but holds {stray[0]}; only projector tensors belong into it.")
    return OnBases(
        folder,
        config,
        own,
        adapters.read_adapter(folder) if adapters.is_adapter(folder) else None,
        Base.of(bases.object("language_model"), "language model", base),
        Base.of(bases.object("vision_tower"), "vision tower", vision_tower),
    )


def _native_config_of(folder: Path, values: dict[str, Any]) -> ModelConfig:
    where = str(folder / "config.json")
    hub.refuse_code(values, where)
    settings = read_settings(folder)
    if settings is None:
        raise CheckpointError(f"{folder} has no {SETTINGS_NAME}, without which a native folder cannot be read; copy it from its source.")
    fields = Fields(values, where)
    text_values = fields.object("text_config")
    text_config = hub.complete_config(text_values, check_language_model(text_values).config_class, f"{where} (text_config)")
    vision_config = fields.object("vision_config", {})
    if vision_config:
        _, vision_config = hub.read_vision_config(vision_config, f"{where} (vision_config)")
    return config_from(settings, vision_config=vision_config, text_config=text_config, where=str(folder / SETTINGS_NAME))


def _load_adapter(
    folder: Path, base: Path | None, dtype: DType, device: str | torch.device, template: str | None
) -> tuple[Llava, Processor]:
    """A PEFT adapter trained on a whole LLaVA folder (or on its language model)."""
    adapter = adapters.read_adapter(folder)
    if base is None:
        raise UsageError(
            f"{folder} is an adapter; name the model it was trained on: --base FOLDER (load_model's base=). Its own note says "
            f"{adapter.base!r}."
        )
    if read_json(base, "config.json").get("model_type") not in hub.ARCHITECTURES:
        raise CheckpointError(f"{base} is not a Hugging Face LLaVA folder; an adapter without a projector of its own needs one as base.")
    config = hub.read_config(base, template=template)
    weights = names.renamed(open_weights(base), names.from_hub)
    weights = _cut(weights, int(config.text_config["vocab_size"]), read_json(base, "config.json"))
    _verify(base)
    model = build(config, adapter.merged_into(weights), where=str(folder), dtype=dtype, device=device)
    return model, Processor(read_tokenizer(base), config)


def save_model(
    model: Llava, processor: Processor, folder: Path, *, max_shard_bytes: int = DEFAULT_SHARD_BYTES, existing: Existing = "refuse"
) -> None:
    """Saves a complete model: weights, configuration, tokenizer, chat template and processor. LoRA adapters are merged into the weights.

    A Hugging Face folder if transformers can express the model, else a native one. The folder appears whole or not at all.

    Args:
        existing: what to do with a folder that is there already.

    Raises SaveError (disk full, folder not empty), TensorError for weights that are not finite, CheckpointError for a tokenizer that does
    not know the model's image token.
    """
    config = processor.config
    native = hub.why_native(config)
    tensors = tensors_of(model)
    with atomic_folder(folder, existing=existing) as partial:
        if native is None:
            rows = _rows_on_disk(processor)
            tensors = _extended(tensors, rows)
            values = hub.hub_config(config, dtype=_dtype_name(model), rows=rows)
            _write_json(partial / "processor_config.json", hub.processor_config(config))
            preprocessor = hub.image_processor_config(config) | {"processor_class": hub.processor_config(config)["processor_class"]}
            _write_json(partial / "preprocessor_config.json", preprocessor)
        else:
            values = native_config(config, native, dtype=_dtype_name(model))
        digests = write_weights(partial, tensors, max_shard_bytes=max_shard_bytes)
        _write_json(partial / "config.json", values)
        _write_json(partial / "generation_config.json", _generation_config(processor))
        write_tokenizer(processor, partial)
        write_settings(partial, config, extra={"vocabulary_rows": int(config.text_config["vocab_size"]), "weights": digests})


def save_adapter(
    model: Llava,
    processor: Processor,
    folder: Path,
    *,
    language_model: str,
    vision_tower: str,
    dtype: torch.dtype | None = None,
    existing: Existing = "refuse",
) -> None:
    """Saves only what training added: the projector, and LoRA adapters if there are some; the bases are named and locked by sha256.

    Args:
        language_model, vision_tower: names that `pull` knows.
        dtype: in which projector and adapters are stored; None stores them as they are.

    Raises TensorError if a tower or language model weight is not the base's: such a model has to be saved whole.
    """
    config = processor.config
    bases = {
        "language_model": Base.named(language_model, "language model").opened(read_language_model),
        "vision_tower": Base.named(vision_tower, "vision tower").opened(read_vision_tower),
    }
    unmerged: dict[str, TensorSource] = {
        name.replace(".base_layer.", "."): LazyTensor.of(tensor)
        for name, tensor in {
            **{name: each for name, each in model.state_dict().items() if not name.startswith(names.LANGUAGE_MODEL)},
            **{names.LANGUAGE_MODEL + name: each for name, each in model.causal_lm.state_dict().items()},
        }.items()
        if ".lora_" not in name
    }
    own = {name: source for name, source in unmerged.items() if name.startswith((names.PROJECTOR, names.NEWLINE))}
    _unchanged({**bases["language_model"].weights, **bases["vision_tower"].weights}, unmerged.keys() - own.keys(), unmerged)
    stored: dict[str, TensorSource] = {name: LazyTensor.of(source.read().to(dtype or source.dtype)) for name, source in own.items()}
    with atomic_folder(folder, existing=existing) as partial:
        digests = write_weights(partial, stored)
        _write_json(partial / "config.json", native_config(config, "projector and adapter on named bases", dtype=_dtype_name(model)))
        if hasattr(model.language_model, "peft_config"):
            adapters.write_adapter(model, partial, base=language_model, dtype=dtype)
            digests[adapters.WEIGHTS_NAME] = file_digest(partial / adapters.WEIGHTS_NAME)
        locks = {
            "language_model": {"name": language_model, "sha256": bases["language_model"].digest},
            "vision_tower": {"name": vision_tower, "sha256": bases["vision_tower"].digest},
        }
        write_settings(partial, config, extra={"bases": locks, "weights": digests})


def _unchanged(bases: dict[str, TensorSource], expected: set[str], found: dict[str, TensorSource]) -> None:
    bases = {name: source for name, source in bases.items() if name in expected}
    compare(bases, {name: tuple(found[name].shape) for name in expected if name != names.HEAD or name in bases}, "The bases")
    for name, base in bases.items():
        held = found[name].read()
        if not torch.equal(base.read().to(held.device, held.dtype), held):
            raise TensorError(f"{name} was changed by training and is not in the adapter; save the model whole with save_model.")


def native_config(config: ModelConfig, reason: str, *, dtype: str) -> dict[str, Any]:
    """`config.json` of a folder that only vistune reads."""
    return {
        "model_type": NATIVE,
        "native_only": f"Read by vistune alone: transformers' LLaVA classes have no place for {reason}.",
        "text_config": hub.full_text_config(config),
        "vision_config": hub.full_vision_config(config),
        "tie_word_embeddings": bool(config.text_config.get("tie_word_embeddings")),
        "dtype": dtype,
    }


def write_tokenizer(processor: Processor, folder: Path) -> None:
    """Tokenizer files and the chat template, in the names that transformers 4 and 5 both read."""
    tokenizer, config = processor.tokenizer, processor.config
    tokenizer.save_pretrained(str(folder))
    settings = read_json(folder, "tokenizer_config.json")
    if settings.get("tokenizer_class") == "TokenizersBackend":  # the name since transformers 5; the older one is read by both
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in ("chat_template", "is_local", "local_files_only"):  # where it was read from is nobody's business
        settings.pop(name, None)
    settings["model_max_length"] = config.max_length
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(folder / "special_tokens_map.json", {name: str(token) for name, token in tokenizer.special_tokens_map.items()})
    (folder / "chat_template.jinja").write_text(chat_template(template_named(config.template), config.image_token))


def _rows_on_disk(processor: Processor) -> int:
    """Embedding rows of the Hugging Face folder: room for every id of the tokenizer."""
    tokenizer, config = processor.tokenizer, processor.config
    known = tokenizer.get_vocab()
    if known.get(config.image_token) != config.image_token_id:
        raise CheckpointError(
            f"The tokenizer gives {config.image_token!r} the id {known.get(config.image_token)}, the model {config.image_token_id}; "
            "use the tokenizer that the model was loaded with (checkpoint.assemble.add_image_token adds the token)."
        )
    return padded_rows(int(config.text_config["vocab_size"]), max(config.image_token_id, *known.values()))


def _extended(tensors: dict[str, TensorSource], rows: int) -> dict[str, TensorSource]:
    result = dict(tensors)
    for name in (names.EMBEDDING, names.HEAD):
        source = tensors.get(name)
        if source is not None and source.shape[0] != rows:
            shape = (rows, *source.shape[1:])
            result[name] = LazyTensor(source.dtype, shape, lambda source=source: with_new_rows(source.read().cpu(), rows))
    return result


def _generation_config(processor: Processor) -> dict[str, Any]:
    tokenizer = processor.tokenizer
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": sorted(processor.stop_ids), "pad_token_id": tokenizer.pad_token_id}
    return {name: value for name, value in ids.items() if value is not None and value != []}


def _dtype_name(model: Llava) -> str:
    return str(model.dtype).removeprefix("torch.")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
