"""A model and adapters over it, with one set of base weights in memory.

    folder       a model of any layout            merged as load_model does, and shared as it is
    adapter      PEFT's folder                    trained on the model in `folder`; may carry modules saved whole, such as a projector
    adapter      a native folder on bases         what training with adapters writes; `folder` must stand on the same bases, which are
                                                  then shared as they are, and its own adapter stays beside them too

Each model has modules of its own over the same tensors, so that each can be asked at the same time. An adapter beside its weights costs two
small products a layer more than a merged one, and gives the same numbers up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from vistune.checkpoint import adapters, names
from vistune.checkpoint.adapters import Adapter
from vistune.checkpoint.assemble import DType, build, tied
from vistune.checkpoint.files import has_file
from vistune.checkpoint.folder import OnBases, check_template, load_model, read_on_bases, stands_on_bases
from vistune.checkpoint.tensors import LazyTensor, TensorSource, listed
from vistune.errors import CheckpointError, TensorError
from vistune.model.config import ModelConfig
from vistune.model.llava import Llava
from vistune.model.low_bits import Bits, quantise_weights
from vistune.model.processor import Processor


def load_sharing(
    folder: Path,
    adapter_folders: Sequence[Path],
    *,
    dtype: DType = "auto",
    weights: Literal["full"] | Bits = "full",
    device: str | torch.device = "cpu",
    base: Path | None = None,
    vision_tower: Path | None = None,
    template: str | None = None,
) -> list[tuple[Llava, Processor]]:
    """The model in `folder`, then one for each adapter; other arguments and errors as in `load_model`, which are about `folder`.

    Args:
        weights: `int8` and `int4` are smaller and less exact (`model/low_bits.py`). Under int4 the folder's own adapter stays beside its
            base: merged, much of what it changed would be rounded away again.

    Raises:
        CheckpointError: an adapter's folder that holds no adapter, or one on other bases.
        TensorError: an adapter that does not fit.
    """
    tuned = [(path, _tuned(path)) for path in adapter_folders]
    on_bases = [each for _, each in tuned if isinstance(each, OnBases)]
    if on_bases or (weights == "int4" and stands_on_bases(folder)):
        if template is not None:
            check_template(folder, template)
        first = _on_the_same_bases(folder, on_bases, base, vision_tower)
        language_model, tensors = first.opened()
        bare = build(first.config, {**tensors, **first.own}, where=str(folder), dtype=dtype, device=device)
        own_adapter, processor = first.adapter, first.processor(language_model)
        models = [(_over(bare, first.config, {}, [own_adapter], str(folder), dtype), processor)]
    else:
        bare, processor = load_model(folder, dtype=dtype, device=device, base=base, vision_tower=vision_tower, template=template)
        language_model, own_adapter = folder, None
        models = [(bare, processor)]
    for path, each in tuned:
        if isinstance(each, OnBases):
            model = _over(bare, each.config, each.own, [each.adapter], str(path), dtype)
            models.append((model, each.processor(language_model)))
        else:
            model = _over(bare, bare.config, each.replaced, [own_adapter, each], str(path), dtype)
            models.append((model, processor))
    del bare  # whose wide weights would be held until all are packed
    if weights != "full":
        quantise_weights([model for model, _ in models], weights)
    return models


def _tuned(folder: Path) -> OnBases | Adapter:
    if stands_on_bases(folder):
        return read_on_bases(folder)
    if adapters.is_adapter(folder) and not has_file(folder, "config.json"):
        return adapters.read_adapter(folder)
    raise CheckpointError(
        f"{folder} holds no adapter: neither adapter_config.json alone, nor projector and adapter on bases that it names. Load it as model."
    )


def _on_the_same_bases(folder: Path, others: Sequence[OnBases], base: Path | None, vision_tower: Path | None) -> OnBases:
    if not stands_on_bases(folder):
        raise CheckpointError(
            f"{others[0].folder} was trained on {others[0].language_model.name} and {others[0].vision_tower.name}, not on the model in "
            f"{folder}, so they share no weights; load it as a model of its own."
        )
    first = read_on_bases(folder, base=base, vision_tower=vision_tower)
    for other in others:
        for mine, theirs in ((first.language_model, other.language_model), (first.vision_tower, other.vision_tower)):
            if mine.sha256 != theirs.sha256:
                raise CheckpointError(
                    f"{other.folder} stands on another {theirs.what} ({theirs.name}) than {folder} ({mine.name}), so they share no "
                    "weights; load it as a model of its own."
                )
    return first


def _over(
    bare: Llava, config: ModelConfig, own: Mapping[str, TensorSource], loras: Sequence[Adapter | None], where: str, dtype: DType
) -> Llava:
    """A model of its own modules over the tensors of `bare`, with `own` in place of some, and adapters beside them."""
    shared: dict[str, TensorSource] = {name: LazyTensor.of(tensor) for name, tensor in bare.state_dict().items()}
    if tied(config):
        shared.pop(names.HEAD, None)
    if config is not bare.config:  # another projector altogether
        shared = {name: source for name, source in shared.items() if not name.startswith((names.PROJECTOR, names.NEWLINE))}
    elif own.keys() - shared.keys():
        raise TensorError(f"{where} holds {listed(own.keys() - shared.keys())}, which the base model does not have.")
    model = build(config, {**shared, **own}, where=where, dtype=dtype, device=bare.device)
    for lora in loras:
        if lora is not None:
            lora.put_on(model)
    return model
