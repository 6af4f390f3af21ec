"""Names of tensors on disk and in the model.

The model's own names are those of the hub's LLaVA folders (the first column of each table's result), so saving needs no table. Reading
does: transformers has written three generations of names, and the original LLaVA has its own.

    hub folders, transformers 4.x     intermediate `model.` nesting                    transformers 5.x
    language_model.model.*            model.language_model.*                           model.language_model.*
    language_model.lm_head.weight     lm_head.weight                                   lm_head.weight
    multi_modal_projector.linear_1.*  model.multi_modal_projector.linear_1.*           (same)
    vision_tower.vision_model.*       model.vision_tower.vision_model.*                model.vision_tower.*
    image_newline                     model.image_newline                              (same)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from vistune.errors import CheckpointError, TensorError
from vistune.model.config import ModelConfig

Stored = TypeVar("Stored")

TOWER = "vision_tower."
PROJECTOR = "multi_modal_projector."
LANGUAGE_MODEL = "language_model."
NEWLINE = "image_newline"
EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"

IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".embeddings.position_ids")
"""Buffers that older releases saved and every release computes anew."""

_NESTED = (
    ("model.language_model.", LANGUAGE_MODEL + "model."),
    ("lm_head.", LANGUAGE_MODEL + "lm_head."),
    ("model.vision_tower.", TOWER),
    ("model.multi_modal_projector.", PROJECTOR),
    ("model.image_newline", NEWLINE),
)

_ORIGINAL = (
    ("model.mm_projector.0.", PROJECTOR + "linear_1."),
    ("model.mm_projector.2.", PROJECTOR + "linear_2."),
    ("model.mm_projector.", PROJECTOR + "linear_1."),  # v1: one affine map, without an index
    ("model.vision_tower.vision_tower.", TOWER),
    ("model.image_newline", NEWLINE),
    ("model.", LANGUAGE_MODEL + "model."),
    ("lm_head.", LANGUAGE_MODEL + "lm_head."),
)


def from_hub(name: str) -> str:
    """The model's name for a tensor of a Hugging Face LLaVA folder of any generation."""
    return _with_vision_model(_replaced(name, _NESTED))


def from_original(name: str) -> str:
    """The model's name for a tensor of an original LLaVA checkpoint."""
    return _with_vision_model(_replaced(name, _ORIGINAL))


def to_original(name: str, config: ModelConfig) -> str:
    """The original's name for one of the model's tensors."""
    if config.projector == "linear" and name.startswith(PROJECTOR + "linear_1."):
        return "model.mm_projector." + name.removeprefix(PROJECTOR + "linear_1.")
    for original, ours in _ORIGINAL:
        if name.startswith(ours):
            return original + name.removeprefix(ours)
    raise CheckpointError(f"{name} has no name in the original layout.")


def from_projector_file(name: str) -> str:
    """The model's name for a tensor of `mm_projector.bin`: whatever stands before `mm_projector.` is a wrapper's prefix."""
    _, found, rest = name.partition("mm_projector.")
    if not found:
        if name.endswith("embed_tokens.weight"):
            raise CheckpointError(
                f"The projector file holds {name}: it was trained with <im_start> and <im_end> tokens (mm_use_im_start_end), "
                "which vistune does not have; no official release uses them."
            )
        return name
    return from_original("model.mm_projector." + rest)


def from_wrapped_original(name: str) -> str:
    """The model's name for a tensor of `non_lora_trainables.bin`, saved from inside PEFT's two wrappers."""
    name = name.removeprefix("base_model.")
    return from_original(name.removeprefix("model.") if name.startswith("model.model.") else name)


def renamed(stored: Mapping[str, Stored], rename: Callable[[str], str]) -> dict[str, Stored]:
    """The same tensors under the model's names, without buffers that are computed anew. Raises TensorError for two of one name."""
    result: dict[str, Stored] = {}
    sources: dict[str, str] = {}
    for name, value in stored.items():
        if name.endswith(IGNORED_SUFFIXES):
            continue
        ours = rename(name)
        if ours in result:
            raise TensorError(f"{sources[ours]} and {name} are the same tensor ({ours}) in two generations of names; remove one of them.")
        result[ours], sources[ours] = value, name
    return result


def _replaced(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for prefix, ours in table:
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    return name


def _with_vision_model(name: str) -> str:
    """transformers 5.6 dropped the `vision_model.` level of CLIP and SigLIP; convolutional towers of ours start with an underscore."""
    rest = name.removeprefix(TOWER)
    if rest == name or rest.startswith(("vision_model.", "_")):
        return name
    return f"{TOWER}vision_model.{rest}"
